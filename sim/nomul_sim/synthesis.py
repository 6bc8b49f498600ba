"""Synthesis, place and route of whole accelerators, each once: :mod:`nomul_hw.synth`, :mod:`nomul_hw.pnr`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nomul_hw.cells
import nomul_hw.families
import nomul_hw.pnr
import nomul_hw.synth
from nomul_hw.cells import CellSynthesis, find_liberty, synthesize_cells
from nomul_hw.config import ArrayConfig
from nomul_hw.fabric import FABRICS
from nomul_hw.pnr import Mapped, Routing, best_of, find_chip, map_design, nextpnr_version, route
from nomul_hw.synth import Synthesis, SynthesisError, synthesize, yosys_version

from .cache import cached_json
from .verilated import ACCELERATOR, accelerator_verilog, component_verilog

__all__ = ["how", "route_accelerator", "synthesize_accelerator", "synthesize_accelerator_cells", "synthesize_array",
           "synthesize_verilog"]


def how() -> bytes:
    """What decides how tools are run: for keys of the cache."""
    return b"".join([*(Path(str(module.__file__)).read_bytes()
                       for module in (nomul_hw.families, nomul_hw.synth, nomul_hw.pnr)), nomul_hw.cells.how()])


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
    return synthesize_verilog(accelerator_verilog(config, family=_fabric(family)), ACCELERATOR, family)


def synthesize_array(config: ArrayConfig, family: str = "ecp5") -> Synthesis:
    """Synthesize the array of a configuration alone, or find the result in the cache; errors as above."""
    def make() -> Any:
        from nomul_hw.array import SystolicArray

        return SystolicArray(config, _fabric(family))

    return synthesize_verilog(component_verilog(make, "array", config.hash, _fabric(family) or ""), "array", family)


def synthesize_verilog(verilog: str, top: str, family: str, left_out: tuple[str, ...] = ()) -> Synthesis:
    """Synthesize any design, or find the result in the cache.

    Parameters and errors are those of :func:`nomul_hw.synth.synthesize`.
    """
    return Synthesis.from_dict(cached_json("synthesis", [verilog, family, *left_out, yosys_version(), how()],
                                           lambda: synthesize(verilog, top, family, left_out=left_out).to_dict()))


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
    library = liberty or find_liberty()
    try:
        contents = library.read_bytes()
    except OSError as error:
        raise SynthesisError(f"{library}: {error.strerror}") from None
    verilog = accelerator_verilog(config)
    return CellSynthesis.from_dict(cached_json("cells", [verilog, contents, yosys_version(), how()],
                                               lambda: synthesize_cells(verilog, ACCELERATOR, library).to_dict()))


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
    family = find_chip(device, package, speed, seeds).family
    yosys, nextpnr = yosys_version(), nextpnr_version(family)
    verilog = accelerator_verilog(config, family=_fabric(family))

    def mapped() -> Mapped:
        if progress:
            progress(f"synthesize for {device}")
        return Mapped.from_dict(cached_json("mapped", [verilog, family, yosys, how()],
                                            lambda: map_design(verilog, ACCELERATOR, family).to_dict()))

    def routed(seed: int) -> Routing:
        parts: list[str | bytes] = [verilog, device, package, speed, str(clock), str(seed), yosys, nextpnr, how()]
        return Routing.from_dict(cached_json("routing", parts, lambda: route(
            mapped(), device, seed, package=package, speed=speed, clock=clock, progress=progress).to_dict()))

    return best_of([routed(seed) for seed in seeds])
