"""cocotb benches of the array and of the whole accelerator, on Icarus and on Verilator."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from nomul_hw.accelerator import Accelerator
from nomul_hw.array import SystolicArray
from nomul_hw.config import ArrayConfig, MemoryConfig
from nomul_hw.verilog import to_verilog
from nomul_sim.cocotb_benches.runner import SIMULATORS, BenchError, Simulator, missing, run_bench

MEMORY = MemoryConfig(activations=200, weights=300, parameters=60, accumulators=30, layers=20)

#: Selects, shifts, zeros, lanes and an array that is not square.
ARRAY = ArrayConfig("exp4", rows=4, cols=3, lanes=2)
ACCELERATOR = ArrayConfig("ternary", rows=4, cols=4, memory=MEMORY)
STREAMED = ArrayConfig("ternary", rows=4, cols=4, weights="stream", memory=replace(MEMORY, weights=30, lines=8))


@cache
def array_verilog() -> str:
    return to_verilog(SystolicArray(ARRAY), "array")


@cache
def accelerator_verilog(config: ArrayConfig) -> str:
    return to_verilog(Accelerator(config), "accelerator")


@pytest.fixture(params=SIMULATORS)
def simulator(request: pytest.FixtureRequest) -> Simulator:
    if reason := missing(request.param):
        pytest.skip(reason)
    return request.param


def test_array(simulator: Simulator, tmp_path: Path) -> None:
    assert run_bench("array", simulator, ARRAY, array_verilog(), "array", tmp_path) == 2


@pytest.mark.parametrize("config", [ACCELERATOR, STREAMED], ids=["memory", "stream"])
def test_accelerator(simulator: Simulator, config: ArrayConfig, tmp_path: Path) -> None:
    assert run_bench("accelerator", simulator, config, accelerator_verilog(config), "accelerator", tmp_path) == 6


def test_bench_finds_a_fault(simulator: Simulator, tmp_path: Path) -> None:
    """An element that takes its next weight when that is loaded, not when the tile begins."""
    verilog = array_verilog().replace("if (swap_i) active <= shadow;", "if (load_i) active <= shadow;", 1)
    assert verilog != array_verilog()
    with pytest.raises(BenchError, match=r"array on \w+: 2 of 2 tests failed"):
        run_bench("array", simulator, ARRAY, verilog, "array", tmp_path)
