"""The estimate: what it adds up to. That it equals the hardware is tested on the RTL, in tests/sim."""

import numpy as np

from nomul.compiler import compile_graph
from nomul.estimate import estimate
from nomul_hw.config import ArrayConfig, MemoryConfig
from nomul_hw.descriptor import COUNTERS
from tests.graphs import random_graph


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
