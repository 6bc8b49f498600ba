"""Synthesis of whole accelerators, each configuration once: see :mod:`nomul_hw.synth`."""

import json
from pathlib import Path

import nomul_hw.synth
from nomul_hw.config import ArrayConfig
from nomul_hw.fabric import FABRICS
from nomul_hw.synth import Synthesis, synthesize, yosys_version

from .cache import cached, content_hash
from .verilated import ACCELERATOR, accelerator_verilog

__all__ = ["synthesize_accelerator"]


def synthesize_accelerator(config: ArrayConfig, family: str = "ecp5") -> Synthesis:
    """Synthesize the accelerator for a configuration, or find the result in the cache.

    Raises
    ------
    nomul_hw.synth.SynthesisError
        If Yosys is missing or fails.
    ValueError
        If there is no such family.
    """
    version = yosys_version()
    verilog = accelerator_verilog(config, family=family if family in FABRICS else None)

    def make(path: Path) -> None:
        path.write_text(json.dumps(synthesize(verilog, ACCELERATOR, family).to_dict()), encoding="utf-8")

    how = Path(nomul_hw.synth.__file__).read_bytes()
    key = content_hash(verilog, family, version, how)
    return Synthesis.from_dict(json.loads(cached("synthesis", f"{key}.json", make).read_text(encoding="utf-8")))
