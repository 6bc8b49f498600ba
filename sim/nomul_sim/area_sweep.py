"""Synthesize elements, arrays and accelerators, to calibrate what :mod:`nomul.area` predicts.

    python -m nomul_sim.area_sweep ecp5

writes what every module takes into the package, where the predictor finds it. Syntheses that are in the cache are not
repeated, so an interrupted sweep goes on. It is to be run again whenever the hardware changes. Accelerators are trimmed
first (:func:`trim`), so that what counts is what is left of a module in the whole.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nomul.area import sweep_path
from nomul.report import json_text
from nomul_hw.config import ArrayConfig, MemoryConfig
from nomul_hw.families import FAMILIES, Cost
from nomul_hw.formats import get_format
from nomul_hw.synth import run_yosys, yosys_version

from . import pe_table
from .pe_table import Element, measure
from .synthesis import synthesize_array, synthesize_verilog
from .verilated import ACCELERATOR, accelerator_verilog

__all__ = ["ACCELERATORS", "ARRAYS", "ELEMENTS", "main", "selected", "sweep", "trim"]

_SMALL = {"activations": 512, "weights": 512, "parameters": 64, "accumulators": 256, "layers": 16}


def _config(fmt: str, rows: int, lanes: int, cols: int, *, memory: dict[str, int] | None = None,
            **choices: Any) -> ArrayConfig:
    return ArrayConfig(get_format(fmt), rows, cols, lanes, memory=MemoryConfig(**_SMALL | (memory or {})), **choices)


#: Accelerators without their arrays: what lies beside an array hardly depends on the format of its weights.
ACCELERATORS: tuple[ArrayConfig, ...] = (
    _config("ternary", 4, 1, 4),
    _config("ternary", 8, 1, 8),
    _config("pot3", 4, 1, 4, memory={"lines": 32}),
    _config("ternary", 4, 1, 4, act_bits=4),
    _config("int8", 4, 1, 4, pe="multiplier", requantize_lanes=1),
    _config("pot4", 4, 2, 8, weights="stream", gain_terms=3, acc_bits=32),
    _config("ternary", 2, 8, 16, requantize_lanes=4, memory={"activations": 4096, "weights": 2048}),
    _config("exp4", 4, 2, 8, requantize_lanes=2, memory={"lines": 64, "accumulators": 1024}),
    _config("exp4", 16, 1, 16, memory={"activations": 2048, "weights": 4096, "parameters": 256, "accumulators": 1024,
                                       "layers": 64}))

_ARRAYS: tuple[tuple[str, tuple[int, int, int], dict[str, Any]], ...] = (
    ("ternary", (4, 1, 4), {}), ("ternary", (4, 4, 4), {}), ("ternary", (16, 1, 4), {}), ("ternary", (4, 1, 16), {}),
    ("ternary", (2, 4, 4), {"pipeline": 3}), ("ternary", (4, 1, 4), {"act_bits": 4}),
    ("binary", (4, 2, 4), {}), ("pot3", (8, 1, 4), {}), ("pot3z", (4, 1, 4), {}), ("pot3z", (2, 8, 4), {}),
    ("pot4", (4, 1, 4), {"pipeline": 1}), ("pot4", (4, 2, 4), {}), ("exp4", (4, 1, 4), {}), ("exp4", (2, 4, 4), {}),
    ("exp4", (8, 1, 8), {}), ("exp4", (2, 2, 4), {"act_bits": 6}),
    ("int4", (4, 1, 4), {}), ("int4", (4, 1, 4), {"pe": "multiplier"}), ("int8", (4, 1, 4), {"pe": "multiplier"}),
    ("int8", (2, 2, 4), {"pe": "multiplier", "pipeline": 2}),
)

#: Arrays alone, of every kind of element, with lanes and without.
ARRAYS: tuple[ArrayConfig, ...] = tuple(_config(fmt, *shape, **choices) for fmt, shape, choices in _ARRAYS)

#: Elements by themselves, of all formats that have one.
ELEMENTS: tuple[ArrayConfig, ...] = tuple(
    _config(element.format, 1, lanes, 1, pe=element.kind)
    for element in pe_table.ELEMENTS if element.kind != "*" for lanes in pe_table.USUAL_LANES)


def selected(family: str) -> tuple[tuple[ArrayConfig, ...], tuple[ArrayConfig, ...]]:
    """Accelerators and arrays of a family's sweep: all for ECP5, for others a few, as small as their boards."""
    if family == "ecp5":
        return ACCELERATORS, ARRAYS
    return (tuple(ACCELERATORS[index] for index in (0, 2, 4, 5)),
            tuple(config for config in ARRAYS if config.macs_per_cycle <= 16))


def _element(config: ArrayConfig, family: str) -> dict[str, Cost]:
    found = measure(Element(config.format.name, config.pe), family, config.lanes, column=False)
    return {"element": Cost(*(round(part * config.lanes) for part in (found.lut, found.carry, found.ff)))}


def _array(config: ArrayConfig, family: str) -> dict[str, Cost]:
    return {"array": synthesize_array(config, family).total}


#: Yosys' passes that drop, in every module, what no other one reads, and what ports that are constant decide. Three
#: rounds: what is dropped in one module was the last that read something of another.
_TRIM = ("proc", "opt", *["opt_hier", "opt"] * 3, "write_verilog -noattr result")


def trim(verilog: str, top: str) -> str:
    """Leave out of every module what the others make no use of; modules and instances keep their names.

    Synthesis of a design as a whole does that, synthesis of modules that stay apart does not: the sequencer would keep
    registers for all fields of layer descriptors, and a third of their bits has no use in most configurations.

    Parameters
    ----------
    verilog : str
        Content of one self-contained file.
    top : str
        Its top module, whose ports stay.

    Raises
    ------
    nomul_hw.synth.SynthesisError
        If Yosys is missing or fails.
    """
    return run_yosys([f"hierarchy -top {top}", *_TRIM], verilog)[0]


def _beside(config: ArrayConfig, family: str) -> dict[str, Cost]:
    verilog = trim(accelerator_verilog(config, family=family), ACCELERATOR)
    return dict(sorted(synthesize_verilog(verilog, ACCELERATOR, family, ("array",)).modules.items()))


def sweep(family: str, elements: Sequence[ArrayConfig] = ELEMENTS) -> dict[str, Any]:
    """Synthesize; returns what :func:`nomul.area.load_sweep` reads.

    Raises
    ------
    nomul_hw.synth.SynthesisError
        If Yosys is missing or fails.
    """
    accelerators, arrays = selected(family)
    work = [("elements", config, _element) for config in elements]
    work += [("results", config, _array) for config in arrays]
    work += [("results", config, _beside) for config in accelerators]
    found: dict[str, list[dict[str, Any]]] = {"elements": [], "results": []}
    for number, (kind, config, cost) in enumerate(work, 1):
        since, modules = time.monotonic(), cost(config, family)
        costs = {name: asdict(one) for name, one in modules.items()}
        found[kind].append({"config": config.to_dict(), "modules": costs})
        print(f"{number}/{len(work)} {config.name} {', '.join(modules)}: {sum(one.lut for one in modules.values()):,} "
              f"LUTs, {time.monotonic() - since:.0f} s", file=sys.stderr, flush=True)
    return {"family": family, "tool": yosys_version(), **found}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m nomul_sim.area_sweep",
                                     description="Synthesize a sweep of small accelerators.")
    parser.add_argument("family", choices=list(FAMILIES))
    parser.add_argument("-o", "--output", type=Path, help="file to write (default: that of the package)")
    chosen = parser.parse_args(arguments)
    output = chosen.output or sweep_path(chosen.family)
    document = sweep(chosen.family)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json_text(document), encoding="utf-8")
    print(f"{output}: {len(document['elements']) + len(document['results'])} syntheses", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
