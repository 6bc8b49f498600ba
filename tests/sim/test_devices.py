"""The golden device keeps the promises of the driver's protocol."""

import re
from dataclasses import replace

import numpy as np
import pytest

from nomul.compiler import compile_graph
from nomul.driver import Device, DeviceError
from nomul.graph import Concat
from nomul_hw.config import ArrayConfig, MemoryConfig
from nomul_sim.devices import GoldenDevice
from nomul_sim.golden import run
from tests.graphs import input_codes, random_graph


@pytest.fixture
def program():
    graph = random_graph(np.random.default_rng(4), nodes=3, fmt="pot3", act_bits=8, gain_terms=2)
    return compile_graph(graph, ArrayConfig("pot3", rows=4, cols=8, memory=MemoryConfig(activations=4096)))


def test_run(program):
    device = GoldenDevice()
    assert isinstance(device, Device)
    codes = input_codes(program.graph, np.random.default_rng(0), 5)
    expected = run(program.graph, codes)
    result = device.run(program, codes)
    np.testing.assert_array_equal(result.outputs, expected[program.graph.output])
    assert result.outputs.dtype == np.int8 and result.counters == ()
    layers = list(device.run_layers(program, codes[2]))
    assert [name for name, _, _ in layers] == [node.name for node in program.graph.nodes]
    for node, (_, output, counters) in zip(program.graph.nodes, layers, strict=True):
        np.testing.assert_array_equal(output, expected[node.output][2])
        assert counters == {}


def test_concatenations_are_no_layers(program):
    graph = random_graph(np.random.default_rng(2), nodes=4, mixed=True)
    assert any(isinstance(node, Concat) for node in graph.nodes)
    codes = input_codes(graph, np.random.default_rng(0), 1)
    layers = list(GoldenDevice().run_layers(replace(program, graph=graph), codes[0]))
    assert [name for name, _, _ in layers] == [node.name for node in graph.nodes if not isinstance(node, Concat)]


def test_wrong_codes(program):
    shape = program.graph.tensor("x").shape
    message = f"input must be int8 codes of shape (batch, {', '.join(map(str, shape))}), not int8 of shape {shape}"
    with pytest.raises(DeviceError, match=f"^{re.escape(message)}$"):
        GoldenDevice().run(program, np.zeros(shape, np.int8))
