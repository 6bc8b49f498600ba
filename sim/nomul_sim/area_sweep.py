"""Synthesize small accelerators, and arrays alone, to calibrate what :mod:`nomul.area` predicts.

    python -m nomul_sim.area_sweep ecp5

writes what every module takes into the package, where the predictor finds it. Syntheses that are in the cache are not
repeated, so an interrupted sweep goes on. It is to be run again whenever the hardware changes.
"""

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nomul.area import sweep_path
from nomul.report import json_text
from nomul_hw.config import ArrayConfig, MemoryConfig
from nomul_hw.families import FAMILIES, Cost
from nomul_hw.formats import get_format

from .synthesis import synthesize_accelerator, synthesize_array

__all__ = ["ACCELERATORS", "ARRAYS", "main", "sweep"]

_SMALL = {"activations": 512, "weights": 512, "parameters": 64, "accumulators": 256, "layers": 16}


def _config(fmt: str, rows: int, lanes: int, cols: int, *, memory: dict[str, int] | None = None,
            **choices: Any) -> ArrayConfig:
    return ArrayConfig(get_format(fmt), rows, cols, lanes, memory=MemoryConfig(**_SMALL | (memory or {})), **choices)


#: Whole accelerators: what lies beside the array hardly depends on the format of its weights.
ACCELERATORS: tuple[ArrayConfig, ...] = (
    _config("ternary", 4, 1, 4), _config("ternary", 8, 1, 8), _config("pot3", 4, 1, 4, memory={"lines": 32}))

_ARRAYS: tuple[tuple[str, tuple[int, int, int], dict[str, Any]], ...] = (
    ("ternary", (4, 4, 4), {}), ("ternary", (16, 1, 4), {}), ("ternary", (4, 1, 4), {"act_bits": 4}),
    ("binary", (4, 1, 4), {}), ("binary", (4, 2, 4), {}),
    ("pot3", (4, 1, 4), {}), ("pot3", (8, 1, 4), {}), ("pot3", (2, 4, 4), {}), ("pot3z", (4, 1, 4), {}),
    ("pot4", (4, 1, 4), {}), ("pot4", (4, 2, 4), {}),
    ("exp4", (4, 1, 4), {}), ("exp4", (2, 4, 4), {}), ("int4", (4, 1, 4), {}),
)

#: Arrays alone: what an element costs, for every kind of shift element, with lanes and without.
ARRAYS: tuple[ArrayConfig, ...] = tuple(_config(fmt, *shape, **choices) for fmt, shape, choices in _ARRAYS)


def sweep(family: str, accelerators: Sequence[ArrayConfig] = ACCELERATORS,
          arrays: Sequence[ArrayConfig] = ARRAYS) -> dict[str, Any]:
    """Synthesize; returns what :func:`nomul.area.load_sweep` reads.

    Raises
    ------
    nomul_hw.synth.SynthesisError
        If Yosys is missing or fails.
    """
    results: list[dict[str, Any]] = []
    tool = ""
    for config in (*arrays, *accelerators):
        since, alone = time.monotonic(), len(results) < len(arrays)
        made = (synthesize_array if alone else synthesize_accelerator)(config, family)
        tool = made.tool
        modules: Iterable[tuple[str, Cost]] = [("array", made.total)] if alone else sorted(made.modules.items())
        results.append({"config": config.to_dict(), "modules": {name: asdict(cost) for name, cost in modules}})
        print(f"{len(results)}/{len(arrays) + len(accelerators)} {config.name}{' array' if alone else ''}: "
              f"{made.total.lut:,} LUTs, {time.monotonic() - since:.0f} s", file=sys.stderr, flush=True)
    return {"family": family, "tool": tool, "results": results}


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
    print(f"{output}: {len(document['results'])} syntheses", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
