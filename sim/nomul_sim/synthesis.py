"""Synthesis, place and route of whole accelerators, each once: :mod:`nomul_hw.synth`, :mod:`nomul_hw.pnr`."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nomul_hw.cells
import nomul_hw.families
import nomul_hw.pnr
import nomul_hw.synth
from nomul_hw.cells import CellSynthesis, find_liberty, synthesize_cells
from nomul_hw.config import ArrayConfig
from nomul_hw.fabric import FABRICS
from nomul_hw.pnr import DEVICES, Routing, nextpnr_version, place_and_route
from nomul_hw.synth import Synthesis, SynthesisError, synthesize, yosys_version

from .cache import cached, content_hash
from .verilated import ACCELERATOR, accelerator_verilog, component_verilog

__all__ = ["route_accelerator", "synthesize_accelerator", "synthesize_accelerator_cells", "synthesize_array"]


def _how() -> bytes:
    """What decides how tools are run."""
    return b"".join(Path(str(module.__file__)).read_bytes()
                    for module in (nomul_hw.families, nomul_hw.synth, nomul_hw.pnr, nomul_hw.cells))


def _fabric(family: str) -> str | None:
    """The family to make the array for, if it has a form of its own."""
    return family if family in FABRICS else None


def synthesize_accelerator(config: ArrayConfig, family: str = "ecp5") -> Synthesis:
    """Synthesize the accelerator for a configuration, or find the result in the cache.

    Raises
    ------
    nomul_hw.synth.SynthesisError
        If Yosys is missing or fails.
    ValueError
        If there is no such family.
    """
    return _synthesized(accelerator_verilog(config, family=_fabric(family)), ACCELERATOR, family)


def synthesize_array(config: ArrayConfig, family: str = "ecp5") -> Synthesis:
    """Synthesize the array of a configuration alone, or find the result in the cache; errors as above."""
    def make() -> Any:
        from nomul_hw.array import SystolicArray

        return SystolicArray(config, _fabric(family))

    return _synthesized(component_verilog(make, "array", config.hash, _fabric(family) or ""), "array", family)


def _synthesized(verilog: str, top: str, family: str) -> Synthesis:
    def make(path: Path) -> None:
        path.write_text(json.dumps(synthesize(verilog, top, family).to_dict()), encoding="utf-8")

    key = content_hash(verilog, family, yosys_version(), _how())
    return Synthesis.from_dict(json.loads(cached("synthesis", f"{key}.json", make).read_text(encoding="utf-8")))


def synthesize_accelerator_cells(config: ArrayConfig, liberty: Path | None = None) -> CellSynthesis:
    """Synthesize the accelerator for a configuration to standard cells, or find the result in the cache.

    Parameters
    ----------
    config : ArrayConfig
        The array.
    liberty : Path, optional
        The library; :func:`nomul_hw.cells.find_liberty`'s if not given.

    Raises
    ------
    nomul_hw.synth.SynthesisError
        If Yosys is missing or fails, or there is no library.
    """
    version = yosys_version()
    library = liberty or find_liberty()
    verilog = accelerator_verilog(config)

    def make(path: Path) -> None:
        path.write_text(json.dumps(synthesize_cells(verilog, ACCELERATOR, library).to_dict()), encoding="utf-8")

    try:
        key = content_hash(verilog, library.read_bytes(), version, _how())
    except OSError as error:
        raise SynthesisError(f"{library}: {error.strerror}") from None
    return CellSynthesis.from_dict(json.loads(cached("cells", f"{key}.json", make).read_text(encoding="utf-8")))


def route_accelerator(config: ArrayConfig, device: str = "lfe5u-85f", *, package: str = "", speed: str = "",
                      clock: float | None = None, seeds: Sequence[int] = (1,),
                      progress: Callable[[str], None] | None = None) -> Routing:
    """Place and route the accelerator for a configuration; what was done before, seed by seed, is in the cache.

    Parameters are those of :func:`nomul_hw.pnr.place_and_route`.

    Raises
    ------
    nomul_hw.synth.SynthesisError
        If a tool is missing or fails.
    ValueError
        If there is no such device, or no seed.
    """
    if device not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}, not {device!r}")
    if not seeds:
        raise ValueError("place and route needs a seed")
    family = DEVICES[device].family
    versions = yosys_version(), nextpnr_version(family)
    verilog = accelerator_verilog(config, family=_fabric(family))
    results = []
    for seed in seeds:
        def make(path: Path, seed: int = seed) -> None:
            result = place_and_route(verilog, ACCELERATOR, device, package=package, speed=speed, clock=clock,
                                     seeds=[seed], progress=progress)
            path.write_text(json.dumps(result.to_dict()), encoding="utf-8")

        key = content_hash(verilog, device, package, speed, str(clock), str(seed), *versions, _how())
        entry = cached("routing", f"{key}.json", make)
        results.append(Routing.from_dict(json.loads(entry.read_text(encoding="utf-8"))))
    best = max(results, key=lambda result: result.fmax)
    return replace(best, clocks={seed: result.fmax for seed, result in zip(seeds, results, strict=True)})
