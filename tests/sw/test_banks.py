"""Banks: which tensors are tied, which residuals need a copy, and that programs with them compute the same."""

from dataclasses import replace

import numpy as np
import pytest

from nomul.compiler import compile_graph
from nomul.compiler.banks import opposite_banks, with_copies
from nomul.graph import Graph, Node, Pool, Tensor
from nomul.shapes import network_shape
from nomul_hw.config import ArrayConfig, MemoryConfig
from nomul_hw.formats import get_format
from nomul_sim import golden
from tests.graphs import input_codes, random_graph

CONFIG = ArrayConfig("ternary", rows=2, cols=2)


def pool(name: str, source: str, skip: str | None = None) -> Node:
    return Pool(name, source, name, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), np.zeros(3, np.int64),
                np.ones(3, np.int64), np.zeros(3, np.int64), -128, 127, kind="sum", skip=skip)


def graph(*nodes: Node) -> Graph:
    """Layers on tensors of one shape and scale, each called like the layer that makes it, the input ``x``."""
    tensors = tuple(Tensor(name, 3, 4, 5, 0, -128 if name == "x" else 0) for name in ["x", *(n.name for n in nodes)])
    return Graph(get_format("ternary"), 8, 2, tensors, nodes, "x", nodes[-1].name, (3, 4, 5))


def banks_differ(made: Graph) -> bool:
    """Whether every layer of a compiled graph without copies reads its two tensors from different banks."""
    placements = compile_graph(made, CONFIG).placements
    return all(placements[node.input].bank != placements[node.skip].bank
               for node in made.nodes if node.skip is not None)


def test_no_residuals_no_ties():
    made = graph(pool("a", "x"), pool("b", "a"))
    assert opposite_banks(network_shape(made)) == {"x": {"x": 0}, "a": {"a": 0}, "b": {"b": 0}}
    assert with_copies(made) == (made, {})


def test_input_and_skip_are_apart():
    made = graph(pool("a", "x"), pool("b", "a"), pool("c", "b", "x"))
    tied = opposite_banks(network_shape(made))
    assert tied["x"] == {"x": 0, "b": 1} and tied["b"] == {"b": 0, "x": 1} and tied["a"] == {"a": 0}
    assert with_copies(made) == (made, {}) and banks_differ(made)


def test_ties_are_transitive():
    """x and b, b and c apart: so x and c lie together."""
    made = graph(pool("a", "x"), pool("b", "a"), pool("c", "b", "x"), pool("d", "c", "b"))
    assert opposite_banks(network_shape(made))["c"] == {"c": 0, "b": 1, "x": 0}
    assert opposite_banks(network_shape(made))["x"] == {"x": 0, "b": 1, "c": 0}
    assert with_copies(made)[1] == {} and banks_differ(made)


def test_groups_merge():
    """Two pairs, then a layer that ties one of each."""
    made = graph(pool("a", "x"), pool("b", "a"), pool("c", "b", "x"), pool("d", "c", "a"), pool("e", "b", "c"))
    tied = opposite_banks(network_shape(made))
    assert tied["a"] == {"a": 0, "c": 1, "b": 0, "x": 1}
    assert all(tied[other][name] == side for name, sides in tied.items() for other, side in sides.items())
    assert banks_differ(made)


def test_contradictions_are_copied():
    """x, b and c would have to be apart, each from the others: two banks are not enough."""
    made = graph(pool("a", "x"), pool("b", "a"), pool("c", "b", "x"), pool("d", "c", "b"), pool("e", "c", "x"))
    with pytest.raises(ValueError, match="tensors 'c' and 'x' would have to lie in one bank"):
        opposite_banks(network_shape(made))
    copied, owners = with_copies(made)
    (copy,) = owners
    assert owners == {copy: "e"} and [n.name for n in copied.nodes] == ["a", "b", "c", "d", copy, "e"]
    assert (copied.nodes[-2].input, copied.nodes[-1].skip, copied.nodes[-1].input) == ("x", copy, "c")
    assert opposite_banks(network_shape(copied))["c"][copy] == 1
    assert copied.tensor(copy) == replace(copied.tensor("x"), name=copy)


def test_a_tensor_that_is_added_to_its_own_layer():
    """x + f(x) reads x twice."""
    made = graph(pool("a", "x"), pool("b", "a", "a"))
    copied, owners = with_copies(made)
    copy = copied.nodes[1]
    assert owners == {copy.name: "b"} and copy.input == "a" and copied.nodes[2].skip == copy.output
    assert {layer.node for layer in compile_graph(made, CONFIG).layers} == {"a", "b"}  # the copy is b's


def test_every_copy_is_of_its_own():
    made = graph(pool("a", "x"), pool("b", "x", "x"), pool("c", "x", "x"), pool("d", "b", "c"))
    copied, owners = with_copies(made)
    assert sorted(owners.values()) == ["b", "c"]
    opposite_banks(network_shape(copied))


def test_copies_change_nothing():
    copies = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        made = random_graph(rng, nodes=5, act_bits=8)
        copied, owners = with_copies(made)
        codes = input_codes(made, rng, 2)
        expected, got = golden.run(made, codes), golden.run(copied, codes)
        for name, array in expected.items():
            np.testing.assert_array_equal(got[name], array)
        opposite_banks(network_shape(copied))
        copies += len(owners)
    assert copies > 10


def test_random_programs_keep_inputs_and_skips_apart():
    found = 0
    for seed in range(60):
        made = random_graph(np.random.default_rng(seed), nodes=6, fmt="ternary", act_bits=8, gain_terms=2)
        program = compile_graph(made, ArrayConfig("ternary", rows=2, cols=2, acc_bits=32,
                                                  memory=MemoryConfig(activations=4096, weights=1 << 15)))
        copied = set(with_copies(made)[1].values())
        for node in made.nodes:
            if node.skip is not None and node.name not in copied:
                assert program.placements[node.input].bank != program.placements[node.skip].bank
                found += 1
    assert found > 20
