"""The golden model against a deliberately naive one: Python integers, one multiply-accumulate at a time."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nomul.graph import Concat, Conv, Graph, Node, Pool, Tensor
from nomul_hw.arithmetic import act_range
from nomul_hw.formats import FORMATS, WeightFormat, get_format
from nomul_sim import golden
from nomul_sim.golden import GoldenError, accumulators, run
from tests.graphs import input_codes, random_graph


def naive_accumulator(graph: Graph, node: Node, codes: np.ndarray, channel: int, row: int, column: int) -> int:
    """One accumulator of one sample, codes (channels, height, width), as the contract's words say it."""
    source = graph.tensor(node.input)
    smallest = act_range(graph.act_bits)[0]
    is_max = isinstance(node, Pool) and node.kind == "max"
    values = []
    if isinstance(node, Conv):
        group, size = channel * node.groups // len(node.weights), source.channels // node.groups
        channels = range(group * size, (group + 1) * size)
    else:
        channels = range(channel, channel + 1)
    for c in channels:
        for ky in range(node.kernel[0]):
            for kx in range(node.kernel[1]):
                y = row * node.stride[0] + ky * node.dilation[0] - node.padding[0]
                x = column * node.stride[1] + kx * node.dilation[1] - node.padding[1]
                if 0 <= y < source.height and 0 <= x < source.width:
                    q = int(codes[c, y, x])
                else:
                    q = smallest if is_max else source.zero_point
                values.append(q * int(node.weights[channel, c - channels[0], ky, kx]) if isinstance(node, Conv) else q)
    return max(values) if is_max else sum(values)


def naive_requantize(graph: Graph, node: Node, channel: int, acc: int, skip: int) -> int:
    m, n = int(node.multiplier[channel]), int(node.shift[channel])
    half = 1 << n - 1 if n else 0
    target = graph.tensor(node.output)
    if node.skip is not None:
        added = graph.tensor(node.skip)
        skip = (skip - added.zero_point) << n - (target.exponent - added.exponent)
    code = (((acc + int(node.bias[channel])) * m + skip + half) >> n) + target.zero_point
    return min(max(code, node.low), node.high)


def check(graph: Graph, codes: np.ndarray) -> None:
    """Compare every tensor and every accumulator of every sample."""
    tensors = run(graph, codes)
    assert list(tensors) == [graph.input, *(node.output for node in graph.nodes)]
    np.testing.assert_array_equal(tensors[graph.input], codes)
    for node in graph.nodes:
        target, outputs = graph.tensor(node.output), tensors[node.output]
        assert outputs.dtype == np.int8 and outputs.shape == (len(codes), *target.shape) and outputs.flags.c_contiguous
        if isinstance(node, Concat):
            parts = [plane for name in node.inputs for plane in tensors[name].swapaxes(0, 1)]
            assert len(parts) == target.channels
            for channel, plane in enumerate(parts):
                np.testing.assert_array_equal(outputs[:, channel], plane)
            continue
        inputs = tensors[node.input]
        sums = accumulators(graph, node, inputs)
        assert sums.dtype == np.int64 and sums.shape == outputs.shape
        for at in np.ndindex(outputs.shape):
            sample, channel, row, column = at
            acc = naive_accumulator(graph, node, inputs[sample], channel, row, column)
            skip = 0 if node.skip is None else int(tensors[node.skip][at])
            assert (sums[at], outputs[at]) == (acc, naive_requantize(graph, node, channel, acc, skip)), (node.name, at)


def one_node(node: Node, *, shape=(1, 1, 1), zero_points=(0, 0), fmt: str | WeightFormat = "int8", act_bits=8) -> Graph:
    """A graph of one node, input ``x`` and output ``y``."""
    fmt = fmt if isinstance(fmt, WeightFormat) else get_format(fmt)
    channels = len(node.weights) if isinstance(node, Conv) else shape[0]
    tensors = (Tensor("x", *shape, 0, zero_points[0]),
               Tensor("y", channels, *node.output_size(*shape[1:]), 0, zero_points[1]))
    return Graph(fmt, act_bits, 3, tensors, (node,), "x", "y", tensors[1].shape)


def conv(weights, *, bias=0, multiplier=1, shift=0, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1),
         groups=1) -> Conv:
    weights = np.asarray(weights, dtype=np.int32)
    n = len(weights)
    return Conv("conv", "x", "y", weights.shape[2:], stride, padding, dilation, np.full(n, bias, np.int64),
                np.full(n, multiplier, np.int64), np.full(n, shift, np.int64), -128, 127, weights=weights,
                groups=groups)


def pool(kind, channels, kernel, *, bias=0, shift=0, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1)) -> Pool:
    return Pool("pool", "x", "y", kernel, stride, padding, dilation, np.full(channels, bias, np.int64),
                np.ones(channels, np.int64), np.full(channels, shift, np.int64), -128, 127, kind=kind)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_random_graphs(seed):
    rng = np.random.default_rng(seed)
    graph = random_graph(rng, nodes=int(rng.integers(1, 4)), mixed=bool(rng.integers(2)))
    check(graph, input_codes(graph, rng, 3))


def test_random_graphs_are_mixed():
    """Groups of every kind, formats of their own up to 16 bits, concatenations of different tensors."""
    graphs = [random_graph(np.random.default_rng(seed), nodes=3, mixed=True) for seed in range(150)]
    convs = [(graph, node) for graph in graphs for node in graph.nodes if isinstance(node, Conv)]
    # Channels in and out of a group, 1 or more of either.
    assert {(node.weights.shape[1] > 1, len(node.weights) > node.groups) for _, node in convs if node.groups > 1} == {
        (False, False), (False, True), (True, False), (True, True)}
    assert {graph.format_of(node).bits for graph, node in convs} >= {1, 2, 3, 4, 5, 8, 9, 12, 16}
    joins = [(graph, node) for graph in graphs for node in graph.nodes if isinstance(node, Concat)]
    assert {len(set(node.inputs)) for _, node in joins} == {1, 2, 3}
    assert {graph.input in node.inputs for graph, node in joins} == {True, False}
    assert {graph.output == node.output for graph, node in joins} == {True, False}


def test_random_graphs_add_residuals():
    """With every difference of exponents, of tensors near and far."""
    graphs = [random_graph(np.random.default_rng(seed), nodes=3) for seed in range(150)]
    pairs = [(graph, node) for graph in graphs for node in graph.nodes if node.skip is not None]
    assert {graph.skip_drop(node) for graph, node in pairs} == {0, 1, 2, 3}
    assert {node.skip == node.input for _, node in pairs} == {True, False}
    assert {type(node) for _, node in pairs} == {Conv, Pool}


@pytest.mark.parametrize("fmt", list(FORMATS))
@pytest.mark.parametrize("act_bits", [2, 5, 8])
def test_extremes(fmt, act_bits):
    """Largest weights times largest codes, of either sign, with asymmetric padding that reads as the zero point."""
    levels, (low, high) = get_format(fmt).levels, act_range(act_bits)
    weights = np.asarray([levels[0], levels[-1]], dtype=np.int32).reshape(2, 1, 1, 1).repeat(6, 1).repeat(2, 3)
    for zero_points in ((0, low), (low, 0)):
        node = replace(conv(weights, padding=(1, 0, 2, 3), shift=5), low=low, high=high)
        graph = one_node(node, shape=(6, 3, 2), zero_points=zero_points, fmt=fmt, act_bits=act_bits)
        check(graph, np.asarray([low, high], dtype=np.int8).reshape(2, 1, 1, 1) * np.ones((1, 6, 3, 2), np.int8))


@pytest.mark.parametrize("multiplier", [1, 3, 5, 7, 9, 15, 17])
@pytest.mark.parametrize("shift", [0, 1, 2, 3])
def test_ties_round_up(multiplier, shift):
    """All codes through one weight of 1: at these shifts most rounding errors are ties."""
    graph = one_node(conv([[[[1]]]], multiplier=multiplier, shift=shift), shape=(1, 16, 16))
    codes = np.arange(-128, 128).astype(np.int8).reshape(1, 1, 16, 16)
    exact = codes.astype(np.float64) * multiplier / 2**shift
    np.testing.assert_array_equal(run(graph, codes)["y"], np.clip(np.floor(exact + 0.5), -128, 127))
    check(graph, codes)


@pytest.mark.parametrize("shift", [24, 32, 62, 63])
def test_shifts_out(shift):
    """Beyond the accumulator's width a shift leaves 0 for both signs (round half up, not -1)."""
    graph = one_node(conv([[[[127]]], [[[-127]]]], shift=shift), zero_points=(0, -128))
    codes = np.asarray([-128, -1, 0, 127], dtype=np.int8).reshape(4, 1, 1, 1)
    assert (run(graph, codes)["y"] == -128).all()


def test_known_convolution():
    """A case worked by hand: 2x2 window, stride 2, dilation 2, padding above and left."""
    weights = [[[[1, 2], [3, 4]]]]
    graph = one_node(conv(weights, stride=(2, 2), dilation=(2, 2), padding=(1, 1, 0, 0), bias=10), shape=(1, 4, 4),
                     zero_points=(-128, 0))
    codes = np.arange(16).astype(np.int8).reshape(1, 1, 4, 4)
    expected = [[1 * -128 + 2 * -128 + 3 * -128 + 4 * 5, 1 * -128 + 2 * -128 + 3 * 5 + 4 * 7],
                [1 * -128 + 2 * 5 + 3 * -128 + 4 * 13, 1 * 5 + 2 * 7 + 3 * 13 + 4 * 15]]
    np.testing.assert_array_equal(accumulators(graph, graph.nodes[0], codes)[0, 0], expected)
    np.testing.assert_array_equal(run(graph, codes)["y"][0, 0], np.clip(np.asarray(expected) + 10, -128, 127))


def test_known_groups():
    """Two groups of two channels, three output channels each; a weight of 10**n marks its input channel n."""
    codes = np.asarray([1, 2, 3, 4], dtype=np.int8).reshape(1, 4, 1, 1)
    weights = np.asarray([[1, 10], [10, 1], [1, 0]] * 2).reshape(6, 2, 1, 1)
    graph = one_node(conv(weights, groups=2), shape=(4, 1, 1))
    assert accumulators(graph, graph.nodes[0], codes).ravel().tolist() == [21, 12, 1, 43, 34, 3]


@pytest.mark.parametrize("outputs", [1, 2])
def test_depthwise(outputs):
    """Every channel by its own window, by one or several of them, at the ends of the codes and of 16-bit weights."""
    rng = np.random.default_rng(8)
    weights = rng.choice([-32768, -1, 0, 1, 32767], (7 * outputs, 1, 3, 2))
    node = conv(weights, groups=7, shift=12, stride=(2, 1), padding=(1, 0, 0, 2), dilation=(1, 2))
    graph = one_node(node, shape=(7, 6, 5), zero_points=(-128, 0), fmt="int16")
    check(graph, input_codes(graph, rng, 4))
    sums = accumulators(graph, node, np.full((1, 7, 6, 5), -128, np.int8))  # padding reads as -128 too
    np.testing.assert_array_equal(sums[0, :, 0, 0], -128 * weights.sum(axis=(1, 2, 3)))


@pytest.mark.parametrize("groups", [1, 2, 6, 12])
def test_groups_are_a_convolution_with_zeros(groups):
    rng = np.random.default_rng(groups)
    weights = rng.integers(-8, 8, (12, 12 // groups, 3, 3))
    dense = np.zeros((12, 12, 3, 3), np.int64)
    for channel, group in enumerate(np.repeat(np.arange(groups), 12 // groups)):
        dense[channel, group * 12 // groups:(group + 1) * 12 // groups] = weights[channel]
    windows = {"shift": 6, "padding": (1, 1, 1, 1), "stride": (2, 2)}
    graphs = [one_node(conv(weights, groups=groups, **windows), shape=(12, 9, 9), zero_points=(-128, 0)),
              one_node(conv(dense, **windows), shape=(12, 9, 9), zero_points=(-128, 0))]
    codes = input_codes(graphs[0], rng, 3)
    np.testing.assert_array_equal(*(run(graph, codes)["y"] for graph in graphs))


def test_concat_is_a_copy():
    """In the order of its inputs, one of them twice; and not a view of the caller's buffer."""
    grid = {"height": 1, "width": 2, "exponent": 0, "zero_point": -128}
    tensors = (Tensor("x", 1, **grid), Tensor("y", 1, **grid), Tensor("z", 3, **grid))
    copy = replace(pool("max", 1, (1, 1), bias=128), low=0)
    graph = Graph(get_format("int8"), 8, 3, tensors, (copy, Concat("both", ("y", "x", "y"), "z")), "x", "z", (6,))
    codes = np.asarray([[[[5, -5]]]], dtype=np.int8)
    check(graph, codes)
    result = run(graph, codes)["z"]
    codes[...] = 1
    assert result.ravel().tolist() == [5, 0, 5, -5, 5, 0]


@pytest.mark.parametrize("kind", ["max", "sum"])
@pytest.mark.parametrize("zero_point", [0, -128])
def test_pool_padding(kind, zero_point):
    """Padding of a maximum never wins, padding of a sum adds a real zero."""
    node = pool(kind, 2, (3, 2), stride=(2, 1), dilation=(1, 2), padding=(1, 2, 1, 1), shift=0 if kind == "max" else 3)
    graph = one_node(node, shape=(2, 3, 3), zero_points=(zero_point, 0))
    codes = np.random.default_rng(5).integers(-128, 128, (4, 2, 3, 3)).astype(np.int8)
    check(graph, codes)
    corner = accumulators(graph, node, codes)[:, :, 0, 0]  # columns -2, 0 and rows -1..1
    if kind == "max":
        np.testing.assert_array_equal(corner, codes[:, :, :2, 0].max(axis=2))
    else:
        np.testing.assert_array_equal(corner, codes[:, :, :2, 0].astype(int).sum(axis=2) + 4 * zero_point)


def test_single_pixel_maps():
    rng = np.random.default_rng(3)
    weights = rng.integers(-128, 128, (5, 7, 1, 1))
    graph = one_node(conv(weights, shift=9), shape=(7, 1, 1))
    check(graph, input_codes(graph, rng, 4))


@pytest.mark.parametrize("budget", [1, 1000, 3000])
@pytest.mark.parametrize("kind", ["conv", "depthwise", "sum"])
def test_blocks(monkeypatch, budget, kind):
    """However small the im2col matrix may be, cutting by samples and by rows changes nothing."""
    rng = np.random.default_rng(7)
    windows = {"stride": (2, 1), "padding": (1, 0, 2, 1), "dilation": (2, 1)}
    node = {"conv": conv(rng.integers(-128, 128, (3, 4, 3, 3)), shift=10, **windows),
            "depthwise": conv(rng.integers(-128, 128, (8, 1, 3, 3)), shift=10, groups=4, **windows),
            "sum": pool("sum", 4, (3, 3), shift=4, **windows)}[kind]
    graph = one_node(node, shape=(4, 9, 7), zero_points=(-128, 0))
    codes = input_codes(graph, rng, 5)
    expected = run(graph, codes)["y"]
    monkeypatch.setattr(golden, "IM2COL_BYTES", budget)
    np.testing.assert_array_equal(run(graph, codes)["y"], expected)
    check(graph, codes[:1])


@pytest.mark.parametrize("groups", [1, 4, 64])
def test_memory_is_bounded(monkeypatch, groups):
    largest = 0
    original = golden._im2col

    def spy(*args):
        nonlocal largest
        columns = original(*args)
        largest = max(largest, columns.nbytes)
        return columns

    monkeypatch.setattr(golden, "_im2col", spy)
    weights = np.ones((groups, 64 // groups, 3, 3))
    graph = one_node(conv(weights, shift=9, padding=(1, 1, 1, 1), groups=groups), shape=(64, 64, 64))
    run(graph, np.zeros((6, 64, 64, 64), np.int8))
    assert 0 < largest <= golden.IM2COL_BYTES


def test_empty_batch():
    graph = one_node(conv([[[[1]]]]))
    assert run(graph, np.zeros((0, 1, 1, 1), np.int8))["y"].shape == (0, 1, 1, 1)
    assert accumulators(graph, graph.nodes[0], np.zeros((0, 1, 1, 1), np.int8)).shape == (0, 1, 1, 1)


def test_result_is_independent_of_input():
    """The caller may reuse its buffer: no output is a view of it."""
    graph = one_node(pool("max", 1, (1, 1)))
    codes = np.asarray([[[[5]]]], dtype=np.int8)
    result = run(graph, codes)["y"]
    codes[...] = 0
    assert result.item() == 5


# float32 holds 2**24, float64 2**53: the choice is made from the weights at hand, and beyond there is none.

def wide(magnitude: int) -> WeightFormat:
    return WeightFormat(f"wide{magnitude}", (-magnitude, -1, 0, 1, magnitude))


@pytest.mark.parametrize("magnitude", [2**17 - 1, 2**17, 2**17 + 1, 2**30 - 1])
def test_exact_beyond_float32(magnitude):
    fmt = wide(magnitude)
    weights = np.asarray([magnitude, 1, -1, 1]).reshape(1, 4, 1, 1)
    graph = one_node(conv(weights, shift=30), shape=(4, 1, 1), fmt=fmt)
    for values in ([127, 127, -128, 126], [-128, 127, 127, -1]):
        check(graph, np.asarray(values, dtype=np.int8).reshape(1, 4, 1, 1))


def test_inexact_convolution_is_refused():
    fmt = wide(2**30)
    taps = 2**53 // 2**37  # 128 * 2**30 each
    weights = np.full((1, taps, 1, 1), 2**30)
    graph = one_node(conv(weights), shape=(taps, 1, 1), fmt=fmt)
    message = f"node 'conv': accumulators up to {2**53} are not exact in float64"
    with pytest.raises(GoldenError, match=f"^{re.escape(message)}$"):
        run(graph, np.zeros((1, taps, 1, 1), np.int8))
    with pytest.raises(GoldenError, match=f"^{re.escape(message)}$"):
        accumulators(graph, graph.nodes[0], np.zeros((1, taps, 1, 1), np.int8))
    weights[0, 0] = 1
    graph = one_node(conv(weights), shape=(taps, 1, 1), fmt=fmt)
    codes = np.full((1, taps, 1, 1), -128, np.int8)
    assert accumulators(graph, graph.nodes[0], codes).item() == -128 * ((taps - 1) * 2**30 + 1)


@pytest.mark.parametrize("bias", [2**62, -2**63])
def test_requantize_overflow_is_refused(bias):
    graph = one_node(conv([[[[1]]]], bias=bias))
    message = f"node 'conv': accumulator, bias {abs(bias)} and gain exceed 64-bit arithmetic"
    with pytest.raises(GoldenError, match=f"^{re.escape(message)}$"):
        run(graph, np.zeros((1, 1, 1, 1), np.int8))


@pytest.mark.parametrize(("codes", "message"), [
    ([[[[1]]]], "Codes of tensor 'x' must be an int8 array, not list"),
    (np.zeros((1, 2, 3, 4)), "Codes of tensor 'x' must be an int8 array, not float64 array"),
    (np.zeros((2, 3, 4), np.int8), "Codes of tensor 'x' must have the shape (batch, 2, 3, 4), not (2, 3, 4)"),
    (np.zeros((1, 2, 4, 3), np.int8), "Codes of tensor 'x' must have the shape (batch, 2, 3, 4), not (1, 2, 4, 3)"),
    (np.full((1, 2, 3, 4), 8, np.int8), "Codes of tensor 'x' must lie in -8..7, not 8..8"),
])
def test_wrong_codes(codes, message):
    node = replace(pool("max", 2, (1, 1)), low=-8, high=7)
    graph = one_node(node, shape=(2, 3, 4), act_bits=4)
    with pytest.raises(GoldenError, match=f"^{re.escape(message)}$"):
        run(graph, codes)
    with pytest.raises(GoldenError, match=f"^{re.escape(message)}$"):
        accumulators(graph, node, codes)
