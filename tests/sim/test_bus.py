"""Accelerators on AXI: cocotb benches with cocotbext-axi's masters, sources, sinks and memory."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from nomul import digits
from nomul.compiler import compile_graph
from nomul.files import save_program
from nomul.graph import Conv, Graph
from nomul.inputs import random_codes
from nomul.quantize import quantize_graph
from nomul_hw.accelerator import Accelerator
from nomul_hw.bus.tops import AxiBus, AxiStreamBus, WishboneBus
from nomul_hw.config import ArrayConfig, MemoryConfig
from nomul_hw.formats import get_format
from nomul_hw.verilog import to_verilog
from nomul_sim.cocotb_benches.runner import Simulator, missing, run_bench
from nomul_sim.networks import common_config, quantized

MEMORY = MemoryConfig(activations=200, weights=300, parameters=60, accumulators=30, layers=20)
KEPT = ArrayConfig("ternary", rows=4, cols=4, memory=MEMORY)
STREAMED = replace(KEPT, weights="stream", memory=replace(MEMORY, weights=30))

TOPS = {bus.name: bus for bus in (AxiStreamBus, AxiBus, WishboneBus)}
AXI = (AxiStreamBus.name, AxiBus.name)


class Traced(wiring.Component):
    """A top that also shows when a run is under way, and when a weight word is on offer."""

    def __init__(self, top: wiring.Component):
        self.top = top
        super().__init__({**top.signature.members, "trace_busy": Out(1), "trace_offers": Out(1)})
        self.__dict__.update({name: getattr(top, name) for name in top.signature.members})

    def elaborate(self, platform):
        m = self.top.elaborate(platform)
        self.top._MustUse__used = True  # Amaranth sees only what becomes a submodule
        accelerator = self.top.accelerator
        m.d.comb += self.trace_busy.eq(accelerator.busy)
        if accelerator.config.weights == "stream":
            m.d.comb += self.trace_offers.eq(accelerator.weights.valid)
        return m


@cache
def verilog(top: str, config: ArrayConfig, **options: int) -> str:
    return to_verilog(Traced(TOPS[top](**options).around(Accelerator(config, monitor=True))), "top")


def bench(name: str, simulator: Simulator, top: str, config: ArrayConfig, folder: Path,
          environment: Mapping[str, str] | None = None, **options: int) -> int:
    if reason := missing(simulator):
        pytest.skip(reason)
    return run_bench(name, simulator, config, verilog(top, config, **options), "top", folder,
                     {"NOMUL_BENCH_TOP": top, "PYTHONWARNINGS": "ignore::DeprecationWarning", **(environment or {})})


#: A bench on Verilator takes minutes to compile.
SIMULATORS = pytest.mark.parametrize("simulator", ["icarus", pytest.param("verilator", marks=pytest.mark.sweep)])


@SIMULATORS
@pytest.mark.parametrize("config", [KEPT, STREAMED], ids=["kept", "streamed"])
@pytest.mark.parametrize("top", AXI)
def test_top(top: str, config: ArrayConfig, simulator: Simulator, tmp_path: Path) -> None:
    """Small networks, registers, resets."""
    assert bench("axi", simulator, top, config, tmp_path) == 4


@SIMULATORS
@pytest.mark.parametrize("data_bits, burst", [(64, 16), pytest.param(32, 1, marks=pytest.mark.slow),
                                              pytest.param(128, 256, marks=pytest.mark.sweep)])
def test_memory(data_bits: int, burst: int, simulator: Simulator, tmp_path: Path) -> None:
    """Bursts, errors, stops; a weight word takes three host words."""
    config = replace(STREAMED, format=get_format("int4"), rows=2, cols=8, lanes=3, requantize_lanes=2,
                     memory=replace(STREAMED.memory, activations=64))
    assert bench("axi_memory", simulator, "axi", config, tmp_path, data_bits=data_bits, burst=burst) == 4


@SIMULATORS
def test_wishbone(simulator: Simulator, tmp_path: Path) -> None:
    """A network over registers, refused accesses, a reset."""
    assert bench("wishbone", simulator, "wishbone", KEPT, tmp_path) == 3


#: Icarus takes milliseconds for a cycle: there an array whose products are cheap and many, so that cycles are few.
ARRAYS: dict[Simulator, ArrayConfig] = {
    "icarus": ArrayConfig("ternary", rows=4, lanes=4, cols=16, weights="stream", memory=MemoryConfig(weights=16)),
    "verilator": ArrayConfig("exp4", rows=4, lanes=2, cols=8, weights="stream", memory=MemoryConfig(weights=16)),
}


@cache
def graphs(fmt: str) -> dict[str, Graph]:
    """The network of the demonstration, untrained, and ResNet-8."""
    torch.manual_seed(0)
    model, images = digits.build_model().eval(), digits.load().train_x[:32]
    return {"digits": quantize_graph(model, images, format=fmt, method="nearest"),
            "resnet8": quantized("resnet8", fmt)}


def _cost(simulator: Simulator, top: str, network: str) -> pytest.MarkDecorator:
    """Verilator takes minutes to compile: the suite has one such top."""
    quick = network == "digits" and (simulator == "icarus" or top == AxiBus.name)
    return pytest.mark.slow if quick else pytest.mark.sweep


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("top, network, simulator", [
    pytest.param(top, network, simulator, id=f"{top}-{network}-{simulator}", marks=_cost(simulator, top, network))
    for simulator in ARRAYS for network in ("digits", "resnet8") for top in AXI])
def test_network(top: str, network: str, simulator: Simulator, tmp_path: Path) -> None:
    """Weights that do not fit the memory that they come through; one array of a simulator for both networks.

    For ResNet-8 only the weights' channel pauses: every channel that does costs as much time as the design.
    """
    array = ARRAYS[simulator]
    config = common_config(graphs(array.format.name).values(), array)
    graph = graphs(array.format.name)[network]
    weights = sum(node.weights.size for node in graph.computing if isinstance(node, Conv))
    assert weights > 20 * config.memory.weights * config.cols * config.lanes
    save_program(compile_graph(graph, config), tmp_path / "program")
    np.save(tmp_path / "inputs.npy", random_codes(graph, 1, 1))
    assert bench("axi_network", simulator, top, config, tmp_path, {
        "NOMUL_BENCH_PROGRAM": str(tmp_path / "program"), "NOMUL_BENCH_INPUTS": str(tmp_path / "inputs.npy"),
        "NOMUL_BENCH_PAUSE": "0.3" if network == "digits" else "0"}) == 1
