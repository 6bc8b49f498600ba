"""Networks whose weights come from outside, late, and networks that are part of the accelerator, on Verilated RTL."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from nomul.compiler import compile_graph
from nomul.driver import DeviceError
from nomul.estimate import estimate, estimate_alone
from nomul_hw.config import ArrayConfig, MemoryConfig
from nomul_hw.timing import WeightSource
from nomul_sim import golden
from nomul_sim.random_networks import random_network
from nomul_sim.verilated import VerilatedDevice

#: A word of weights has 36 bits; no depthwise tile and not all of any layer fits the buffer.
MEMORY = MemoryConfig(activations=8192, weights=3, parameters=4096, accumulators=60, layers=400, lines=12)
STREAMED = ArrayConfig("ternary", rows=2, cols=6, lanes=3, acc_bits=32, weights="stream", memory=MEMORY)


def sources(rng: np.random.Generator) -> list[WeightSource]:
    """A constant rate, and random stalls: seldom, mostly, in long stretches."""
    return [
        WeightSource.constant(Fraction(int(rng.integers(1, 12)), 12)),
        WeightSource(rng.random(997) < 0.8),
        WeightSource(rng.random(997) < 0.05),
        WeightSource(np.repeat(rng.random(60) < 0.5, rng.integers(1, 60, 60))),
    ]


@pytest.mark.parametrize("seed", range(6))
def test_streamed_networks(seed: int) -> None:
    """Every output bit, and every counter, of samples one after the other and of every layer on its own."""
    rng = np.random.default_rng(seed)
    case = random_network(STREAMED, rng)
    program = compile_graph(case.graph, STREAMED)
    expected = golden.run(case.graph, case.inputs)
    device = VerilatedDevice(STREAMED)
    for source in sources(rng):
        device.transport.source = source
        result = device.run(program, case.inputs)
        np.testing.assert_array_equal(result.outputs, expected[case.graph.output])
        assert result.counters == (estimate(program, source).accounting,) * len(case.inputs)
        layers = device.run_layers(program, case.inputs[0])
        for node, (name, output, counters) in zip(case.graph.computing, layers, strict=True):
            np.testing.assert_array_equal(output, expected[node.output][0])
            assert counters == estimate_alone(program, name, source)


def test_built_in_network() -> None:
    """A network that is part of the accelerator computes the same, and no other can be loaded."""
    config = replace(STREAMED, weights="memory", memory=replace(MEMORY, weights=32768))
    cases = [random_network(config, np.random.default_rng(seed)) for seed in (1, 2)]
    programs = [compile_graph(case.graph, config) for case in cases]
    device = VerilatedDevice(config, programs[0].contents)
    result = device.run(programs[0], cases[0].inputs)
    graph = cases[0].graph
    np.testing.assert_array_equal(result.outputs, golden.run(graph, cases[0].inputs)[graph.output])
    assert result.counters == (estimate(programs[0]).accounting,) * len(cases[0].inputs)
    with pytest.raises(DeviceError, match="built in and cannot load another"):
        device.run(programs[1], cases[1].inputs)
