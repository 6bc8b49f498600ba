"""The estimate: what it adds up to, and that shapes are enough. That it equals the hardware is tested in tests/sim."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nomul.compiler import CompileError, compile_graph
from nomul.estimate import WAITS, Estimate, LayerEstimate, estimate, estimate_network
from nomul.inputs import load_shape
from nomul.scalesim import load_topology
from nomul.shapes import network_shape
from nomul_hw.config import ArrayConfig, MemoryConfig
from nomul_hw.descriptor import COUNTERS
from nomul_hw.formats import get_format
from tests.graphs import random_graph

TOPOLOGIES = Path(__file__).parents[2] / "examples" / "topologies"

TERNARY = get_format("ternary")


def test_accounting_adds_up() -> None:
    rng = np.random.default_rng(0)
    config = ArrayConfig("exp4", rows=4, cols=4, lanes=2, memory=MemoryConfig(accumulators=16))
    for _ in range(20):
        graph = random_graph(rng, fmt="exp4", act_bits=8, gain_terms=2)
        program = compile_graph(graph, config)
        result = estimate(program)
        assert [layer.name for layer in result.layers] == [node.name for node in graph.nodes]
        for layer in result.layers:
            assert set(layer.counters) == set(COUNTERS)
            assert layer.cycles == sum(count for name, count in layer.counters.items() if name != "total")
        assert result.cycles == sum(layer.cycles for layer in result.layers) == result.accounting["total"]
        assert result.macs == sum(graph.macs(node) for node in graph.nodes)
        assert 0 <= result.utilisation == result.macs / (result.cycles * 32) < 1
        data = result.to_dict()
        assert data["cycles"] == program.estimate().cycles and data["accounting"] == result.accounting
        assert sum(layer["cycles"] for layer in data["layers"]) == data["cycles"]


def test_data() -> None:
    counters = {**dict.fromkeys(COUNTERS, 0), "total": 130, "busy": 100, "weight": 20, "requantize": 4, "drain": 5,
                "control": 1}
    layer = LayerEstimate("a", 1600, counters)
    assert layer.waits == 24 and {"weight", "requantize"} <= set(WAITS) <= set(COUNTERS)
    data = Estimate(ArrayConfig(TERNARY, rows=4, cols=4), (layer,)).to_dict()
    assert data == {
        "array": "ternary_4x4", "model": "nomul", "cycles": 130, "macs": 1600, "utilisation": 1600 / (130 * 16),
        "accounting": counters,
        "layers": [{"name": "a", "cycles": 130, "macs": 1600, "utilisation": 1600 / (130 * 16),
                    "accounting": counters}],
    }


def test_times() -> None:
    result = Estimate(ArrayConfig(TERNARY), (LayerEstimate("a", 1, dict.fromkeys(COUNTERS, 50_000)),))
    assert result.milliseconds(25) == 2
    data = result.to_dict(25)
    assert (data["clock_mhz"], data["milliseconds"], data["inferences_per_second"]) == (25, 2, 500)


# Shapes are enough -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_a_network_takes_what_its_program_takes(seed: int) -> None:
    """The same cycles, by layer and cause, on the same array; and what does not fit, does not fit."""
    rng = np.random.default_rng(seed)
    fmt = str(rng.choice(["ternary", "exp4", "int4"]))
    graph = random_graph(rng, fmt=fmt, act_bits=8, gain_terms=2, nodes=int(rng.integers(1, 7)))
    rows, lanes, cols = map(int, rng.integers(1, 7, 3))
    memory = MemoryConfig(accumulators=int(rng.choice([16, 1024])), activations=int(rng.choice([60, 200, 2048])),
                          weights=int(rng.choice([1000, 40_000])), layers=int(rng.choice([4, 64])))
    config = ArrayConfig(fmt, rows=rows, cols=cols, lanes=lanes, acc_bits=32, memory=memory)  # type: ignore[arg-type]
    try:
        expected = compile_graph(graph, config).estimate()
    except CompileError as error:
        with pytest.raises(CompileError) as caught:
            estimate_network(network_shape(graph), config)
        assert str(caught.value) == str(error)
        return
    found = estimate_network(network_shape(graph), config)
    assert replace(found, memory={}) == expected
    assert all(found.memory[name] <= getattr(config.memory, name) for name in found.memory)


@pytest.mark.parametrize("seed", range(30))
def test_memory_as_large_as_needed(seed: int) -> None:
    """An array that has what the estimate says runs the network in the cycles that it says; with less it does not."""
    rng = np.random.default_rng(seed)
    graph = random_graph(rng, fmt="ternary", act_bits=8, gain_terms=2, nodes=5)
    network = network_shape(graph)
    found = estimate_network(network, ArrayConfig(TERNARY, rows=3, cols=4, lanes=2, acc_bits=32), fit=False)
    assert found.problem is None
    memory = {name: max(2, words) for name, words in found.memory.items()}
    exact = replace(found.config, memory=replace(found.config.memory, **memory))
    assert compile_graph(graph, exact).estimate().layers == found.layers
    for name, words in memory.items():
        if words > 2:
            less = replace(exact, memory=replace(exact.memory, **{name: words - 1}))
            try:  # more strips, or another packing of the input
                assert estimate_network(network, less).memory != found.memory
            except CompileError:
                pass


def test_what_no_array_can_hold() -> None:
    network = load_topology(TOPOLOGIES / "resnet18.csv")
    found = estimate_network(network, ArrayConfig(TERNARY, rows=1, cols=1), fit=False)
    assert found.problem is not None and found.problem.startswith("memory.")


def test_layers_that_the_array_cannot_run() -> None:
    network = load_topology(TOPOLOGIES / "resnet18.csv")
    other = replace(network, nodes=(replace(network.layers[0], format=get_format("int8")),))
    with pytest.raises(CompileError, match="layer 'conv1' has int8 weights, the array ternary: weights of several"):
        estimate_network(other, ArrayConfig(TERNARY), fit=False)
    depthwise = replace(network, nodes=(replace(network.layers[0], groups=3),))
    with pytest.raises(CompileError, match="layer 'conv1': convolutions in groups, depthwise ones among them, are not"):
        estimate_network(depthwise, ArrayConfig(TERNARY), fit=False)


# Large networks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("network", "least"), [("resnet18", 0.98), ("resnet50", 0.985)])
def test_tables_of_layers_use_the_array(network: str, least: float) -> None:
    """The share of its products that a 16 x 16 array puts to use, on the shapes that SCALE-Sim is tried with."""
    found = estimate_network(load_topology(TOPOLOGIES / f"{network}.csv"), ArrayConfig(TERNARY), fit=False)
    print(f"{network}.csv: {found.cycles:,} cycles, {found.utilisation:.2%}")
    assert found.utilisation >= least


@pytest.mark.parametrize(("network", "least"), [("resnet18", 0.98), ("resnet50", 0.985)])
def test_networks_use_the_array(network: str, least: float) -> None:
    """The same of the networks themselves, padding and all; of the layers that multiply."""
    found = estimate_network(load_shape(network), ArrayConfig(TERNARY, rows=2, lanes=8, cols=16), fit=False)
    cycles = sum(layer.cycles for layer in found.layers if layer.macs)
    print(f"{network}: {found.cycles:,} cycles, {found.utilisation:.2%}; {found.share(found.macs, cycles):.2%} of the "
          f"array while it works")
    assert found.share(found.macs, cycles) >= least


def test_an_estimate_takes_milliseconds() -> None:
    """ResNet-50 in 5 ms: nothing loops over cycles or pixels."""
    network, config = load_topology(TOPOLOGIES / "resnet50.csv"), ArrayConfig(TERNARY)
    times = []
    for _ in range(30):
        started = time.process_time()
        estimate_network(network, config, fit=False)
        times.append(1e3 * (time.process_time() - started))
    print(f"{min(times):.2f} ms")
    assert min(times) <= 5
