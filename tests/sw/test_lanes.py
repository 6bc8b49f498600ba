"""Lanes and concatenation by placement: gaps agree where they must, parts lie where they belong, nothing is moved."""

from dataclasses import replace
from math import lcm

import numpy as np
import pytest

from nomul.compiler import compile_graph
from nomul.compiler.banks import copied_shape
from nomul.compiler.lanes import Lanes, channel_lanes, parents
from nomul.compiler.plan import plan_network
from nomul.driver import StreamDevice
from nomul.graph import Concat, Conv, Graph, Operation, Pool, Tensor
from nomul.shapes import LayerShape, NetworkShape, TensorShape
from nomul_hw.config import ArrayConfig, MemoryConfig
from nomul_hw.formats import get_format
from nomul_sim import golden
from tests.graphs import input_codes
from tests.machine import Machine


def network(channels: dict[str, int], *nodes: LayerShape | Concat, size: tuple[int, int] = (3, 4)) -> NetworkShape:
    """Tensors of these channels, the first the input, the last the output."""
    tensors = tuple(TensorShape(name, count, *size) for name, count in channels.items())
    return NetworkShape(tensors, nodes, tensors[0].name, tensors[-1].name)


def conv(source: str, target: str, *, groups: int = 1, skip: str | None = None) -> LayerShape:
    return LayerShape(f"to {target}", "conv", source, target, groups=groups, skip=skip)


def pool(source: str, target: str, *, skip: str | None = None) -> LayerShape:
    return LayerShape(f"to {target}", "sum", source, target, skip=skip)


# Lanes -------------------------------------------------------------------------------------------------------------


def test_without_concatenation_lanes_are_channels() -> None:
    lanes = channel_lanes(network({"x": 5, "y": 9}, conv("x", "y")), ArrayConfig("ternary", rows=4, cols=2))
    assert lanes == {"x": Lanes(5, 4, ((0, 0),), 5), "y": Lanes(9, 4, ((0, 0),), 9)}
    assert lanes["y"].positions.tolist() == list(range(9)) and lanes["y"].words == 3 and not lanes["y"].gaps


@pytest.mark.parametrize(("rows", "cols", "start"), [(4, 2, 8), (4, 8, 8), (2, 2, 6), (5, 1, 5), (4, 6, 12)])
def test_parts_start_words_and_blocks(rows: int, cols: int, start: int) -> None:
    made = network({"x": 3, "a": 5, "b": 7, "y": 12, "z": 2},
                   conv("x", "a"), conv("x", "b"), Concat("join", ("a", "b"), "y"), conv("y", "z"))
    lanes = channel_lanes(made, ArrayConfig("ternary", rows=rows, cols=cols))
    unit = lcm(rows, cols)
    assert lanes["y"].positions.tolist() == [*range(5), *range(start, start + 7)] and start % unit == 0
    assert lanes["y"].lane(4) == 4 and lanes["y"].lane(5) == start and lanes["y"].used == start + 7
    assert lanes["a"].positions.tolist() == list(range(5)) and lanes["a"].gaps is False
    # Lanes are filled beyond the channels only where the array has no weight of zero.
    assert [lanes[name].filled for name in ("a", "b", "y", "z")] == [5, 7, start + 7, 2]
    filled = channel_lanes(made, ArrayConfig("pot3", rows=rows, cols=cols))
    assert [filled[name].filled for name in ("a", "b", "y", "z")] == [start, -(-7 // unit) * unit,
                                                                     -(-(start + 7) // unit) * unit, 2]


def test_no_gap_where_parts_fill_words() -> None:
    made = network({"x": 3, "a": 8, "b": 4, "y": 12}, conv("x", "a"), conv("x", "b"), Concat("join", ("a", "b"), "y"))
    assert channel_lanes(made, ArrayConfig("pot3", rows=4, cols=4))["y"] == Lanes(12, 4, ((0, 0),), 12)


def test_gaps_go_wherever_channels_keep_their_lanes() -> None:
    """Through pools, depthwise convolutions and additions, both ways; not through other convolutions."""
    made = network(
        {"x": 3, "a": 5, "b": 7, "y": 12, "pooled": 12, "c": 12, "added": 12, "wise": 12, "d": 12, "z": 12},
        conv("x", "a"), conv("x", "b"), Concat("join", ("a", "b"), "y"), pool("y", "pooled"), conv("x", "c"),
        pool("pooled", "added", skip="c"), conv("added", "wise", groups=12), conv("x", "d"),
        conv("d", "z", skip="wise"))
    lanes = channel_lanes(made, ArrayConfig("ternary", rows=4, cols=4))
    gap = {name for name in lanes if lanes[name].segments == ((0, 0), (5, 8))}
    assert gap == {"y", "pooled", "c", "added", "wise", "z"}
    assert {lanes[name].segments for name in ("x", "a", "b", "d")} == {((0, 0),)}


def test_two_concatenations_of_one_tensor_share_their_gaps() -> None:
    """5 + 7 and 3 + 9 channels are added: every tensor starts words at channels 3 and 5, as far as it has them."""
    made = network({"x": 3, "a": 5, "b": 7, "c": 3, "d": 9, "ab": 12, "cd": 12, "y": 12},
                   *(conv("x", name) for name in "abcd"), Concat("first", ("a", "b"), "ab"),
                   Concat("second", ("c", "d"), "cd"), pool("ab", "y", skip="cd"))
    lanes = channel_lanes(made, ArrayConfig("ternary", rows=4, cols=4))
    assert lanes["ab"].segments == lanes["cd"].segments == lanes["y"].segments == ((0, 0), (3, 4), (5, 8))
    assert lanes["a"].segments == ((0, 0), (3, 4)) and lanes["d"].segments == ((0, 0), (2, 4))
    assert lanes["b"].segments == lanes["c"].segments == ((0, 0),)


@pytest.mark.parametrize("seed", range(30))
def test_a_part_lies_in_the_whole_as_it_lies_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tensors, nodes = {"x": int(rng.integers(1, 9))}, list[LayerShape | Concat]()
    for index in range(12):
        name, names = f"t{index}", list(tensors)
        match rng.choice(["conv", "pool", "concat", "add"]):
            case "conv":
                tensors[name] = int(rng.integers(1, 9))
                nodes.append(conv(str(rng.choice(names)), name))
            case "concat":
                parts = [str(part) for part in rng.choice(names, rng.integers(2, 4))]
                tensors[name] = sum(tensors[part] for part in parts)
                nodes.append(Concat(name, tuple(parts), name))
            case kind:
                source = str(rng.choice(names))
                alike = [other for other in names if tensors[other] == tensors[source]]
                tensors[name] = tensors[source]
                nodes.append(pool(source, name, skip=str(rng.choice(alike)) if kind == "add" else None))
    rows, cols = rng.integers(1, 6, 2).tolist()
    config = ArrayConfig(str(rng.choice(["ternary", "pot3"])), rows=rows, cols=cols)
    made, _ = copied_shape(network(tensors, *nodes))
    lanes = channel_lanes(made, config)
    for part, (whole, channel) in parents(made).items():
        start = lanes[whole].lane(channel)
        assert start % lcm(config.depth, config.cols) == 0
        assert np.array_equal(lanes[part].positions + start,
                              lanes[whole].positions[channel:channel + lanes[part].channels])
        assert start + lanes[part].used <= lanes[whole].used and start + lanes[part].filled <= lanes[whole].filled
    # What must agree does: copies change nothing about it.
    before = channel_lanes(network(tensors, *nodes), config)
    assert all(lanes[name] == before[name] for name in tensors)
    placements = plan_network(made, config, fit=False).placements
    for part, (whole, channel) in parents(made).items():
        word = lanes[whole].lane(channel) // config.depth
        assert placements[part].bank == placements[whole].bank
        assert placements[part].address == placements[whole].address + word * 12


# Copies ------------------------------------------------------------------------------------------------------------


def owners(made: NetworkShape) -> dict[str, str]:
    return copied_shape(made)[1]


def test_dense_blocks_copy_nothing() -> None:
    """A concatenation that repeats an earlier one goes on where that ended."""
    channels = {"x": 4, "a": 2, "xa": 6, "b": 2, "xab": 8, "c": 2, "xabc": 10, "y": 3}
    made = network(channels, conv("x", "a"), Concat("1", ("x", "a"), "xa"), conv("xa", "b"),
                   Concat("2", ("x", "a", "b"), "xab"), conv("xab", "c"), Concat("3", ("x", "a", "b", "c"), "xabc"),
                   conv("xabc", "y"))
    copied, copies = copied_shape(made)
    assert not copies
    assert [node.inputs for node in copied.nodes if isinstance(node, Concat)] == [
        ("x", "a"), ("xa", "b"), ("xab", "c")]
    plan = plan_network(made, ArrayConfig("ternary", rows=2, cols=2))
    assert {plan.placements[name].address for name in ("x", "xa", "xab", "xabc")} == {plan.placements["x"].address}


def test_a_tensor_in_two_places_is_copied() -> None:
    made = network({"x": 2, "a": 2, "b": 3, "xa": 4, "bxx": 7, "y": 1}, conv("x", "a"), conv("x", "b"),
                   Concat("1", ("x", "a"), "xa"), Concat("2", ("b", "x", "x"), "bxx"), conv("xa", "y"))
    copied, copies = copied_shape(made)
    assert copies == {"2 copy of x": "to y", "2 copy of x'": "to y"}  # what comes after the concatenation
    assert [node.inputs for node in copied.nodes if isinstance(node, Concat)] == [
        ("x", "a"), ("b", "2 copy of x", "2 copy of x'")]


def test_parts_that_must_lie_apart_are_copied() -> None:
    """b reads a and x at once, so they lie in different banks; what follows wants them in one."""
    made = network({"x": 2, "a": 2, "b": 2, "y": 4}, pool("x", "a"), pool("a", "b", skip="x"),
                   Concat("join", ("a", "x"), "y"))
    assert owners(made) == {"join copy of x": "to b"}  # nothing comes after
    apart = network({"x": 2, "a": 2, "y": 4, "b": 2}, pool("x", "a"), Concat("join", ("a", "x"), "y"),
                    pool("a", "b", skip="x"))
    assert owners(apart) == {"to b copy of x": "to b"}  # the other way round


# Programs ----------------------------------------------------------------------------------------------------------


def tensor(name: str, channels: int, zero_point: int = -128) -> Tensor:
    return Tensor(name, channels, 3, 4, 0, zero_point)


def real_conv(rng: np.random.Generator, fmt: str, source: Tensor, target: Tensor, *, kernel: int = 3, low: int = -128,
              high: int = 127) -> Conv:
    count = target.channels
    weights = rng.choice(get_format(fmt).levels, (count, source.channels, kernel, kernel)).astype(np.int32)
    return Conv(f"to {target.name}", source.name, target.name, (kernel, kernel), (1, 1), (kernel // 2,) * 4, (1, 1),
                rng.integers(-99, 99, count), np.ones(count, np.int64), np.full(count, 6), low, high, weights=weights)


def real_pool(source: Tensor, target: Tensor) -> Pool:
    zeros = np.zeros(source.channels, np.int64)
    return Pool(f"to {target.name}", source.name, target.name, (2, 3), (1, 1), (1, 1, 0, 1), (1, 1),
                zeros - source.zero_point, zeros + 1, zeros, -128, 127, kind="max")


def check(graph: Graph, config: ArrayConfig, seed: int = 0) -> None:
    """Run a network on the machine, whole and layer by layer, and compare all that it writes."""
    rng = np.random.default_rng(seed)
    program = compile_graph(graph, config)
    codes = input_codes(graph, rng, 3)
    expected = golden.run(graph, codes)
    device = StreamDevice(Machine(config, rng))
    np.testing.assert_array_equal(device.run(program, codes).outputs, expected[graph.output])
    for node, (name, output, _) in zip(graph.computing, device.run_layers(program, codes[2]), strict=True):
        assert name == node.name
        np.testing.assert_array_equal(output, expected[node.output][2], err_msg=name)


MEMORY = MemoryConfig(activations=2000, weights=8000, parameters=800, accumulators=12, layers=64, lines=8)

#: No weight of zero, and units of lanes in which words and blocks are alike, or either is larger.
ARRAYS = [ArrayConfig(fmt, rows=rows, cols=cols, acc_bits=20, memory=MEMORY)
          for fmt in ("pot3", "binary", "ternary") for rows, cols in ((2, 2), (4, 2), (2, 6), (2, 3))]


@pytest.mark.parametrize("config", ARRAYS, ids=lambda config: config.name)
@pytest.mark.parametrize("clamp", [(-128, 127), (-100, 90), (1, 70)])
def test_gaps_do_no_harm(config: ArrayConfig, clamp: tuple[int, int]) -> None:
    """Parts of one channel and more, written by a convolution and a pool, the input among them, then padded taps."""
    rng = np.random.default_rng(1)
    x, a, b, y, pooled, z = (tensor("x", 3), tensor("a", 1), tensor("b", 3), tensor("y", 7), tensor("pooled", 7),
                             tensor("z", 3, 0))
    nodes: tuple[Operation, ...] = (
        real_conv(rng, config.format.name, x, a, low=clamp[0], high=clamp[1]), real_pool(x, b),
        Concat("join", ("a", "x", "b"), "y"), real_pool(y, pooled), real_conv(rng, config.format.name, pooled, z))
    check(Graph(config.format, 8, 2, (x, a, b, y, pooled, z), nodes, "x", "z", z.shape), config)
    direct = (*nodes[:3], real_conv(rng, config.format.name, y, z))
    check(Graph(config.format, 8, 2, (x, a, b, y, z), direct, "x", "z", z.shape), config)


@pytest.mark.parametrize("config", ARRAYS, ids=lambda config: config.name)
def test_the_output_may_be_concatenated(config: ArrayConfig) -> None:
    rng = np.random.default_rng(2)
    x, a, b, y = tensor("x", 3), tensor("a", 1), tensor("b", 5), tensor("y", 13)
    nodes = (real_conv(rng, config.format.name, x, a), real_conv(rng, config.format.name, a, b),
             Concat("join", ("b", "a", "x", "a", "x"), "y"))
    check(Graph(config.format, 8, 2, (x, a, b, y), nodes, "x", "y", y.shape), config)


def test_nothing_but_concatenation() -> None:
    x, y = tensor("x", 3), tensor("y", 6)
    graph = Graph(get_format("ternary"), 8, 2, (x, y), (Concat("join", ("x", "x"), "y"),), "x", "y", y.shape)
    check(graph, ARRAYS[-1])
    assert {layer.node for layer in compile_graph(graph, ARRAYS[-1]).layers} == {"join"}


@pytest.mark.parametrize("config", ARRAYS, ids=lambda config: config.name)
def test_parts_of_whole_blocks_overwrite_nobody(config: ArrayConfig) -> None:
    """The last part of a concatenation may be written when other tensors lie behind it, and whole blocks of it are."""
    rng = np.random.default_rng(3)
    x, a, b, c, y, u, z = (tensor("x", 3), tensor("a", 1), tensor("b", 1), tensor("c", 3), tensor("y", 2),
                           tensor("u", 2, 0), tensor("z", 2, 0))
    convs = {target.name: real_conv(rng, config.format.name, source, target)
             for source, target in ((x, a), (x, b), (x, c), (y, u), (c, z))}
    for parts in (("a", "b"), ("b", "a")):
        nodes = (convs["a"], convs["c"], convs["b"], Concat("join", parts, "y"), convs["u"], convs["z"])
        check(Graph(config.format, 8, 2, (x, a, b, c, y, u, z), nodes, "x", "z", z.shape), config)


def test_placements_say_where_channels_lie() -> None:
    rng = np.random.default_rng(4)
    x, a, y = tensor("x", 3), tensor("a", 5), tensor("y", 8)
    graph = Graph(get_format("ternary"), 8, 2, (x, a, y),
                  (real_conv(rng, "ternary", x, a), Concat("join", ("x", "a"), "y")), "x", "y", y.shape)
    placements = compile_graph(graph, ArrayConfig("ternary", rows=4, cols=2)).placements
    assert placements["y"].segments == ((0, 0), (3, 4)) and placements["y"].lanes(8).tolist() == [0, 1, 2, *range(4, 9)]
    assert placements["a"].segments == ((0, 0),) and placements["a"].address == placements["y"].address + 12
    assert placements["x"] == replace(placements["y"], words=12, segments=((0, 0),))
    assert placements["y"].words == 3 * 12
