# amaranth: UnusedElaboratable=no
"""Accelerators on AXI: cocotb benches with cocotbext-axi's masters, sources, sinks and memory."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from nomul_hw.bus.axi_master import AxiMasterTop
from nomul_hw.bus.axi_stream import AxiStreamTop
from nomul_hw.config import ArrayConfig, MemoryConfig
from nomul_hw.verilog import to_verilog
from nomul_sim.cocotb_benches.runner import SIMULATORS, Simulator, missing, run_bench

MEMORY = MemoryConfig(activations=200, weights=300, parameters=60, accumulators=30, layers=20)
KEPT = ArrayConfig("ternary", rows=4, cols=4, memory=MEMORY)
STREAMED = replace(KEPT, weights="stream", memory=replace(MEMORY, weights=30))

TOPS = {"axi-stream": AxiStreamTop, "axi": AxiMasterTop}


class Traced(wiring.Component):
    """A top that also shows when a run is under way, and when a weight word is on offer."""

    def __init__(self, top: wiring.Component):
        self.top = top
        super().__init__({**top.signature.members, "trace_busy": Out(1), "trace_offers": Out(1)})
        self.__dict__.update({name: getattr(top, name) for name in top.signature.members})

    def elaborate(self, platform):
        m = self.top.elaborate(platform)
        accelerator = m.submodules.accelerator
        m.d.comb += self.trace_busy.eq(accelerator.busy)
        if self.top.config.weights == "stream":
            m.d.comb += self.trace_offers.eq(accelerator.weights.valid)
        return m


@cache
def verilog(top: str, config: ArrayConfig, **options: int) -> str:
    return to_verilog(Traced(TOPS[top](config, **options)), "top")


def bench(name: str, simulator: Simulator, top: str, config: ArrayConfig, folder: Path, **options: int) -> int:
    if reason := missing(simulator):
        pytest.skip(reason)
    return run_bench(name, simulator, config, verilog(top, config, **options), "top", folder,
                     {"NOMUL_BENCH_TOP": top, "PYTHONWARNINGS": "ignore::DeprecationWarning"})


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("config", [KEPT, STREAMED], ids=["memory", "stream"])
@pytest.mark.parametrize("top", list(TOPS))
def test_top(top: str, config: ArrayConfig, simulator: Simulator, tmp_path: Path) -> None:
    assert bench("axi", simulator, top, config, tmp_path) == 4
