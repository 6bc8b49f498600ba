"""Shapes: what is left of a network without its numbers, and that planning with them is planning with the network."""

import numpy as np
import pytest

from nomul.compiler.banks import copied_shape, with_copies
from nomul.compiler.input_packing import packed_graph, packed_shape, packing_windows
from nomul.frontend import import_module
from nomul.graph import Concat, Conv
from nomul.inputs import InputError, load_shape
from nomul.shapes import LayerShape, NetworkShape, TensorShape, network_shape
from nomul_hw.config import ArrayConfig
from tests.graphs import random_graph

MODULE = """
import torch
from torch import nn

class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(4, 6, 3, 2, padding=1)
        self.left, self.right = nn.Conv2d(6, 6, (1, 3), padding="same"), nn.Conv2d(6, 6, 1)
        self.pool, self.last = nn.MaxPool2d(2), nn.Linear(6 * 2 * 3, 5)

    def forward(self, x):
        x = self.first(x).relu()
        return self.last(self.pool(self.left(x) + self.right(x)).flatten(1))

def sized():
    model = Branches()
    model.input_shape = (4, 8, 12)
    return model
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(MODULE)


@pytest.mark.parametrize("seed", range(10))
def test_a_graph_has_the_shapes_that_it_had(seed):
    graph = random_graph(np.random.default_rng(seed), nodes=5, mixed=True)
    network = network_shape(graph)
    assert [node.name for node in network.nodes] == [node.name for node in graph.nodes]
    assert (network.input, network.output) == (graph.input, graph.output)
    for node, shape in zip(graph.nodes, network.nodes, strict=True):
        assert node.sources == shape.sources and node.output == shape.output
        if isinstance(node, Concat):
            assert node is shape
            continue
        assert isinstance(shape, LayerShape)
        assert network.macs(shape) == graph.macs(node)
        assert shape.format == (graph.format_of(node) if isinstance(node, Conv) else None)
        target = network.tensor(shape.output)
        assert (target.channels, target.height, target.width) == graph.tensor(node.output).shape
        assert target.pixels == target.height * target.width


@pytest.mark.parametrize("seed", range(20))
def test_shapes_are_packed_and_copied_like_graphs(seed):
    rng = np.random.default_rng(seed)
    graph = random_graph(rng, nodes=6)
    config = ArrayConfig("ternary", rows=4, cols=4)
    for window in packing_windows(network_shape(graph), config):
        packed = packed_graph(graph, window)
        assert network_shape(packed) == packed_shape(network_shape(graph), window)
        copied, owners = with_copies(packed)
        assert (network_shape(copied), owners) == copied_shape(network_shape(packed))


def test_a_module_has_shapes():
    network = load_shape("net.py:Branches", "4x8x12")
    assert network == load_shape("net.py:sized")
    assert [(layer.name, layer.kind, layer.skip) for layer in network.layers] == [
        ("first", "conv", None), ("left", "conv", None), ("right", "conv", "left"), ("pool", "max", None),
        ("last", "conv", None)]
    first, left, right, pool, last = network.layers
    assert (first.kernel, first.stride, first.padding, first.taps) == ((3, 3), (2, 2), (1, 1, 1, 1), 9)
    assert (left.kernel, left.padding, left.input, right.input) == ((1, 3), (0, 1, 0, 1), "first", "first")
    assert network.tensor(pool.output) == TensorShape("pool", 6, 2, 3) and last.kernel == (2, 3)
    assert network.macs(first) == 6 * 4 * 6 * 4 * 9 and network.macs(pool) == 0
    assert (network.input, network.output) == ("input", "last")
    assert network.tensor("input") == TensorShape("input", 4, 8, 12)


def test_groups_and_concatenations_of_a_module():
    from torch import cat, nn

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.input = nn.Conv2d(4, 4, 3, groups=4)  # a name that the network's input has too
            self.other = nn.Conv2d(4, 6, 3, groups=2)

        def forward(self, x):
            return cat([self.input(x), self.other(x)], 1)

    network = network_shape(import_module(Model(), np.zeros((2, 4, 5, 5), dtype=np.float32)))
    assert [layer.groups for layer in network.layers] == [4, 2]
    assert [network.macs(layer) for layer in network.layers] == [4 * 9 * 9, 6 * 2 * 9 * 9]
    assert (network.input, network.layers[0].name) == ("input_", "input")
    joined = network.nodes[-1]
    assert isinstance(joined, Concat) and joined.sources == ("input", "other")
    assert network.tensor(network.output).channels == 10


@pytest.mark.parametrize(("spec", "shape", "message"), [
    ("nothing", None, "'nothing' is not a folder that nomul wrote, a table of layers"),
    ("net.py:Branches", None, "the shape of its input is not known: give --input-shape, such as 3x32x32"),
    ("net.py:Branches", "4x8x", "the shape of an input is CHANNELSxHEIGHTxWIDTH, such as 3x32x32, not '4x8x'"),
    ("net.py:Branches", "4x0x3", "not '4x0x3'"),
    ("net.py:Branches", "1x2x3x4", "not '1x2x3x4'"),
    ("net.py:Other", None, "net.py has no 'Other'"),
], ids=str)
def test_networks_that_cannot_be_loaded(spec, shape, message):
    with pytest.raises(InputError) as caught:
        load_shape(spec, shape)
    assert message in str(caught.value)


def test_a_network_of_the_zoo():
    network = load_shape("resnet8")
    assert isinstance(network, NetworkShape) and sum(map(network.macs, network.layers)) == 12_501_632
