"""Synthesis of whole accelerators, each configuration once: see :mod:`nomul_hw.synth`."""

import json
from pathlib import Path
from typing import Any

import nomul_hw.synth
from nomul_hw.config import ArrayConfig
from nomul_hw.synth import Synthesis, synthesize, yosys_version

from .cache import cached, content_hash
from .verilated import ACCELERATOR, accelerator_verilog, component_verilog

__all__ = ["synthesize_accelerator", "synthesize_array"]


def synthesize_accelerator(config: ArrayConfig, family: str = "ecp5") -> Synthesis:
    """Synthesize the accelerator for a configuration, or find the result in the cache.

    Raises
    ------
    nomul_hw.synth.SynthesisError
        If Yosys is missing or fails.
    ValueError
        If there is no such family.
    """
    return _synthesized(accelerator_verilog(config), ACCELERATOR, family)


def synthesize_array(config: ArrayConfig, family: str = "ecp5") -> Synthesis:
    """Synthesize the array of a configuration alone, or find the result in the cache; errors as above."""
    def make() -> Any:
        from nomul_hw.array import SystolicArray

        return SystolicArray(config)

    return _synthesized(component_verilog(make, "array", config.hash), "array", family)


def _synthesized(verilog: str, top: str, family: str) -> Synthesis:
    def make(path: Path) -> None:
        path.write_text(json.dumps(synthesize(verilog, top, family).to_dict()), encoding="utf-8")

    how = Path(nomul_hw.synth.__file__).read_bytes()
    key = content_hash(verilog, family, yosys_version(), how)
    return Synthesis.from_dict(json.loads(cached("synthesis", f"{key}.json", make).read_text(encoding="utf-8")))
