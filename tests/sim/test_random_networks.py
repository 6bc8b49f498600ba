"""Random small networks: generated RTL against the golden model in every bit, and the estimate in every cycle."""

from collections import Counter

import numpy as np
import pytest

from nomul.compiler import compile_graph
from nomul.graph import Concat, Conv, Graph
from nomul_hw.config import ArrayConfig
from nomul_sim import golden
from nomul_sim.random_arrays import CONFIGS, NETWORK_CONFIGS
from nomul_sim.random_check import check_cases, features, generator
from nomul_sim.random_networks import random_network
from nomul_sim.random_nodes import Case

from . import test_random_layers

#: Cases per array, and the seed that makes them.
CASES, SEED = 8, 1


@pytest.mark.slow
@pytest.mark.parametrize("config", NETWORK_CONFIGS, ids=lambda config: config.name)
def test_rtl_is_exact(config: ArrayConfig) -> None:
    report = check_cases("random_networks", random_network, config, CASES, SEED)
    assert not report.mismatches, "\n".join(map(str, report.mismatches))
    assert report.cases == CASES and report.layers > 4 * CASES and report.codes > 500 and report.cycles > 2000


def test_there_are_500_cases() -> None:
    assert test_random_layers.CASES * len(CONFIGS) + CASES * len(NETWORK_CONFIGS) >= 500


def cases(config: ArrayConfig, count: int) -> list[Case]:
    return [random_network(config, generator(config, SEED, index)) for index in range(count)]


def test_programs_have_everything() -> None:
    """What the RTL was compared on: all that networks can be made of."""
    found = Counter[str]()
    for config in NETWORK_CONFIGS:
        for case in cases(config, CASES):
            assert 4 <= len(case.graph.nodes) <= 20
            found.update(features(compile_graph(case.graph, config)))
            found.update(_topology(case.graph))
    assert set(found) >= {
        "conv", "max pool", "sum pool", "depthwise", "max window", "copy", "groups on the array", "residual in conv",
        "residual in depthwise", "planes with shifts", "planes without shifts", "concat", "concat with gaps",
        "depthwise, columns by pairs", "branch", "concat of a concat", "concat of the input",
        "concat of what is used elsewhere", "concat is the output", "mixed formats",
    }, found


def _topology(graph: Graph) -> Counter[str]:
    """What a network is like, besides its layers."""
    found, readers = Counter[str](), Counter[str]()
    for node in graph.nodes:
        readers.update(node.sources)
    concats = [node for node in graph.nodes if isinstance(node, Concat)]
    joined = {concat.output for concat in concats}
    for concat in concats:
        found["concat of a concat"] += bool(joined.intersection(concat.inputs))
        found["concat of the input"] += graph.input in concat.inputs
        found["concat of what is used elsewhere"] += any(readers[name] > 1 for name in concat.inputs)
        found["concat is the output"] += concat.output == graph.output
    found["branch"] += any(count > 1 for count in readers.values())
    found["mixed formats"] += len({graph.format_of(node).name for node in graph.nodes if isinstance(node, Conv)}) > 1
    return +found


def test_values_survive() -> None:
    """What later layers get is worth computing with."""
    alive = []
    for config in NETWORK_CONFIGS:
        for case in cases(config, CASES):
            output = golden.run(case.graph, case.inputs)[case.graph.output]
            alive += [len(np.unique(output[:, channel])) > 1 for channel in range(output.shape[1])]
    assert np.mean(alive) > 0.6
