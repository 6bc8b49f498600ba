"""The integer graph as data: what it refuses, and the few things that it computes."""

import re
from dataclasses import replace

import numpy as np
import pytest

from nomul.graph import Concat, Conv, Graph, GraphError, Operation, Pool, Tensor, window_output
from nomul_hw.formats import get_format
from tests.graphs import input_codes, random_graph


def conv(name: str, source: Tensor, target: Tensor, *, kernel=(1, 1), **changes) -> Conv:
    n = target.channels
    fields = {
        "stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "bias": np.zeros(n, np.int64),
        "multiplier": np.ones(n, np.int64), "shift": np.zeros(n, np.int64), "low": -128, "high": 127,
        "weights": np.ones((n, source.channels, *kernel), np.int32), **changes}
    return Conv(name, source.name, target.name, kernel, **fields)


X, Y, Z = Tensor("x", 3, 8, 6, -4, -128), Tensor("y", 5, 8, 6, -2, 0), Tensor("z", 5, 4, 3, 0, 0)
POOL = Pool("pool", "y", "z", (2, 2), (2, 2), (0, 0, 0, 0), (1, 1), np.zeros(5, np.int64), np.full(5, 3),
            np.full(5, 4), -128, 127, kind="max")


def graph(*, first: dict | None = None, second: dict | None = None, x: dict | None = None, y: dict | None = None,
          z: dict | None = None, **changes) -> Graph:
    """A convolution and a pool, with changes."""
    nodes: tuple[Operation, ...] = (replace(conv("conv", X, Y), **(first or {})), replace(POOL, **(second or {})))
    tensors = tuple(replace(t, **(c or {})) for t, c in ((X, x), (Y, y), (Z, z)))
    fields = {"format": get_format("ternary"), "act_bits": 8, "gain_terms": 2, "tensors": tensors, "nodes": nodes,
              "input": "x", "output": "z", "output_shape": (5, 4, 3), **changes}
    return Graph(**fields)


def test_valid():
    made = graph()
    assert made.tensor("y") is made.tensors[1] and made.tensor("y").shape == (5, 8, 6)
    assert graph(output_shape=(60,)).output_shape == (60,)
    assert graph(output="y", output_shape=(5, 8, 6)).output == "y"  # a later node may be a dead end


@pytest.mark.parametrize(("changes", "message"), [
    ({"act_bits": 1}, "activations have 2 to 8 bits, not 1"),
    ({"act_bits": 9}, "activations have 2 to 8 bits, not 9"),
    ({"gain_terms": 0}, "gains have 1 to 3 terms, not 0"),
    ({"gain_terms": 4}, "gains have 1 to 3 terms, not 4"),
    ({"tensors": (X, Y, Z, X)}, "tensor names are not unique"),
    ({"second": {"name": "conv"}}, "node names are not unique"),
    ({"x": {"channels": 0}}, "tensor 'x' has an empty shape (0, 8, 6)"),
    ({"z": {"width": -1}}, "tensor 'z' has an empty shape (5, 4, -1)"),
    ({"x": {"zero_point": 1}}, "tensor 'x' has zero point 1; it must be 0 or -128"),
    ({"act_bits": 4}, "tensor 'x' has zero point -128; it must be 0 or -8"),
    ({"y": {"exponent": 65}}, "tensor 'y' has the exponent 65, outside -64..64"),
    ({"y": {"exponent": -65}}, "tensor 'y' has the exponent -65, outside -64..64"),
    ({"input": "w"}, "the input 'w' is not a tensor"),
    ({"output": "w"}, "the output 'w' is never written"),
    ({"output_shape": (5, 4)}, "output shape (5, 4) does not hold (5, 4, 3)"),
    ({"first": {"input": "y"}}, "node 'conv' reads 'y' and writes 'y': not in execution order"),
    ({"first": {"input": "z"}}, "node 'conv' reads 'z' and writes 'y': not in execution order"),
    ({"first": {"output": "w"}}, "node 'conv' reads 'x' and writes 'w': not in execution order"),
    ({"second": {"output": "y"}}, "node 'pool' reads 'y' and writes 'y': not in execution order"),
    ({"second": {"output": "x"}}, "node 'pool' reads 'y' and writes 'x': not in execution order"),
    ({"nodes": (POOL, conv("conv", X, Y))}, "node 'pool' reads 'y' and writes 'z': not in execution order"),
    ({"first": {"stride": (0, 1)}}, "node 'conv' has a kernel, stride, dilation or padding out of range"),
    ({"first": {"kernel": (0, 1)}}, "node 'conv' has a kernel, stride, dilation or padding out of range"),
    ({"first": {"dilation": (1, 0)}}, "node 'conv' has a kernel, stride, dilation or padding out of range"),
    ({"first": {"padding": (0, 0, 0, -1)}}, "node 'conv' has a kernel, stride, dilation or padding out of range"),
    ({"first": {"padding": (1, 0, 0, 0)}}, "node 'conv' makes (9, 6) pixels of (8, 6), but its output is (8, 6)"),
    ({"second": {"stride": (2, 1)}}, "node 'pool' makes (4, 5) pixels of (8, 6), but its output is (4, 3)"),
    ({"second": {"kernel": (9, 2)}}, "node 'pool' makes (0, 3) pixels of (8, 6), but its output is (4, 3)"),
    ({"first": {"weights": np.ones((5, 3, 1, 2), np.int32)}},
     "node 'conv' has weights of shape (5, 3, 1, 2); expected (5, 3, 1, 1)"),
    ({"first": {"weights": np.full((5, 3, 1, 1), 2, np.int32)}},
     "node 'conv' has weights that are not levels of format 'ternary'"),
    ({"first": {"weights": np.ones((5, 3, 1, 1))}}, "node 'conv' has weights that are not levels of format 'ternary'"),
    ({"z": {"channels": 4}}, "node 'pool' changes the number of channels from 5 to 4"),
    ({"first": {"bias": np.zeros(4, np.int64)}}, "node 'conv' has bias int64(4,); expected int64(5,)"),
    ({"first": {"bias": np.zeros(5, np.int32)}}, "node 'conv' has bias int32(5,); expected int64(5,)"),
    ({"first": {"multiplier": np.ones(5)}}, "node 'conv' has multiplier float64(5,); expected int64(5,)"),
    ({"second": {"shift": np.zeros((5, 1), np.int64)}}, "node 'pool' has shift int64(5, 1); expected int64(5,)"),
    ({"first": {"multiplier": np.asarray([1, 3, 5, 7, 11])}},
     "node 'conv' has a gain that is not on the lattice of 2 terms"),
    ({"gain_terms": 1}, "node 'pool' has a gain that is not on the lattice of 1 terms"),
    ({"first": {"shift": np.asarray([0, 0, -1, 0, 0])}}, "node 'conv' has gain shifts -1..0, outside 0..63"),
    ({"first": {"shift": np.asarray([0, 64, 0, 0, 0])}}, "node 'conv' has gain shifts 0..64, outside 0..63"),
    ({"first": {"low": -129}}, "node 'conv' clamps to -129..127, outside -128..127"),
    ({"first": {"high": 128}}, "node 'conv' clamps to -128..128, outside -128..127"),
    ({"first": {"low": 5, "high": 4}}, "node 'conv' clamps to 5..4, outside -128..127"),
])
def test_contradictions(changes, message):
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        graph(**changes)


def residual(**changes) -> Graph:
    """A convolution y of x, and another that adds y to its result; ``changes`` are to the second."""
    z = Tensor("z", 5, 8, 6, changes.pop("exponent", -1), 0)
    second = replace(conv("add", Y, z), shift=np.full(5, 3), skip="y")
    return Graph(get_format("ternary"), 8, 2, (X, Y, z), (conv("conv", X, Y), replace(second, **changes)), "x", "z",
                 (5, 8, 6))


def test_residual():
    for drop in range(4):
        made = residual(exponent=drop - 2)
        assert [made.skip_drop(node) for node in made.nodes] == [0, drop]


@pytest.mark.parametrize(("changes", "message"), [
    ({"skip": "x"}, "node 'add' adds 'x', which is not an earlier tensor of shape (5, 8, 6)"),
    ({"skip": "z"}, "node 'add' adds 'z', which is not an earlier tensor of shape (5, 8, 6)"),
    ({"skip": "w"}, "node 'add' adds 'w', which is not an earlier tensor of shape (5, 8, 6)"),
    ({"exponent": -3},
     "node 'add' adds 'y' of exponent -2 to an output of exponent -3; the difference must be in 0..3"),
    ({"exponent": 2}, "node 'add' adds 'y' of exponent -2 to an output of exponent 2; the difference must be in 0..3"),
    ({"exponent": 0, "shift": np.asarray([3, 3, 1, 3, 3])},
     "node 'add' has a gain shift below 2, where its skip tensor is added"),
])
def test_wrong_residuals(changes, message):
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        residual(**changes)


# Groups and formats ---------------------------------------------------------------------------------------------

def grouped(groups: int, outputs: int = 6, **changes) -> Graph:
    """A convolution of six channels in groups."""
    x, y = Tensor("x", 6, 4, 4, 0, 0), Tensor("y", outputs, 4, 4, 0, 0)
    weights = np.ones((outputs, 6 // max(groups, 1), 1, 1), np.int32)
    node = replace(conv("conv", x, y, weights=weights), **{"groups": groups, **changes})
    return Graph(get_format("ternary"), 8, 2, (x, y), (node,), "x", "y", y.shape)


@pytest.mark.parametrize(("groups", "outputs"), [(1, 5), (2, 6), (3, 3), (6, 6), (6, 12)])
def test_groups(groups, outputs):
    made = grouped(groups, outputs)
    assert made.macs(made.nodes[0]) == 16 * outputs * 6 // groups


@pytest.mark.parametrize(("groups", "outputs", "message"), [
    (4, 8, "node 'conv' has 4 groups, which do not divide its 6 input and 8 output channels"),
    (3, 8, "node 'conv' has 3 groups, which do not divide its 6 input and 8 output channels"),
    (12, 12, "node 'conv' has 12 groups, which do not divide its 6 input and 12 output channels"),
    (0, 6, "node 'conv' has 0 groups, which do not divide its 6 input and 6 output channels"),
    (-6, 6, "node 'conv' has -6 groups, which do not divide its 6 input and 6 output channels"),
])
def test_groups_must_divide(groups, outputs, message):
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        grouped(groups, outputs)


@pytest.mark.parametrize("shape", [(6, 6, 1, 1), (6, 1, 1, 1), (2, 3, 1, 1)])
def test_weights_are_those_of_a_group(shape):
    message = f"node 'conv' has weights of shape {shape}; expected (6, 3, 1, 1)"
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        grouped(2, weights=np.ones(shape, np.int32))


@pytest.mark.parametrize(("own", "weight"), [("int8", -128), ("int8", 127), ("int16", -32768), ("int9", 255)])
def test_format_of_a_node(own, weight):
    fmt = get_format(own)
    made = grouped(1, format=fmt, weights=np.full((6, 6, 1, 1), weight, np.int32))
    assert made.format_of(made.nodes[0]) is fmt and made.format.name == "ternary"
    assert graph().format_of(graph().nodes[0]) is get_format("ternary")


@pytest.mark.parametrize(("own", "weight"), [("int8", 128), ("int16", 32768), ("int9", -257), ("pot3", 3), ("pot3", 0)])
def test_weights_must_be_levels_of_their_own_format(own, weight):
    message = f"node 'conv' has weights that are not levels of format {own!r}"
    weights = np.ones((6, 6, 1, 1), np.int32)
    weights[5, 5] = weight
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        grouped(1, format=get_format(own), weights=weights)


# Concatenation --------------------------------------------------------------------------------------------------

def join(inputs=("x", "y"), *, output="z", x: dict | None = None, z: dict | None = None, name="join") -> Graph:
    """A convolution y of x, and both of them; or what ``inputs`` says."""
    x_, y, z_ = Tensor("x", 3, 8, 6, -2, 0), Y, Tensor("z", 8, 8, 6, -2, 0)
    tensors = replace(x_, **(x or {})), y, replace(z_, **(z or {}))
    return Graph(get_format("ternary"), 8, 2, tensors, (conv("conv", x_, Y), Concat(name, inputs, output)), "x", "z",
                 tensors[2].shape)


def test_concat():
    made = join()
    both = made.nodes[1]
    assert both.sources == ("x", "y") and made.computing == made.nodes[:1] and made.macs(both) == 0
    join(("y", "x"))
    join(("x", "x", "x"), z={"channels": 9})
    made = residual()
    assert [node.sources for node in made.nodes] == [("x",), ("y", "y")]


@pytest.mark.parametrize(("changes", "message"), [
    ({"inputs": ()}, "node 'join' concatenates 0 tensors; it takes two or more"),
    ({"inputs": ("y",)}, "node 'join' concatenates 1 tensors; it takes two or more"),
    ({"inputs": ("x", "w")}, "node 'join' reads 'x' and 'w' and writes 'z': not in execution order"),
    ({"inputs": ("x", "z")}, "node 'join' reads 'x' and 'z' and writes 'z': not in execution order"),
    ({"output": "y"}, "node 'join' reads 'x' and 'y' and writes 'y': not in execution order"),
    ({"output": "w"}, "node 'join' reads 'x' and 'y' and writes 'w': not in execution order"),
    ({"name": "conv"}, "node names are not unique"),
    ({"inputs": ("x", "x")}, "node 'join' concatenates 3 + 3 channels, but its output has 8"),
    ({"z": {"channels": 9}}, "node 'join' concatenates 3 + 5 channels, but its output has 9"),
    ({"z": {"width": 7}}, "node 'join' concatenates 'x' of (3, 8, 6) into an output of (8, 8, 7)"),
    ({"z": {"height": 1}}, "node 'join' concatenates 'x' of (3, 8, 6) into an output of (8, 1, 6)"),
    ({"x": {"exponent": -3}}, ("node 'join' concatenates 'x' of exponent -3 and zero point 0 into an output of -2 and "
                               "0; they must be the same")),
    ({"z": {"zero_point": -128}}, ("node 'join' concatenates 'x' of exponent -2 and zero point 0 into an output of -2 "
                                   "and -128; they must be the same")),
])
def test_wrong_concatenations(changes, message):
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        join(**changes)


def test_graph_error_is_a_value_error():
    assert issubclass(GraphError, ValueError)


@pytest.mark.parametrize(("size", "kernel", "stride", "before", "after", "dilation"), [
    (size, kernel, stride, before, after, dilation)
    for size in (1, 2, 7, 8) for kernel in (1, 2, 3) for stride in (1, 2, 3) for before in (0, 1, 2)
    for after in (0, 2) for dilation in (1, 2)
])
def test_window_output_counts_the_windows(size, kernel, stride, before, after, dilation):
    reach = dilation * (kernel - 1)
    fits = [at for at in range(-before, size + after, stride) if at + reach < size + after]
    assert max(window_output(size, kernel, stride, before, after, dilation), 0) == len(fits)


def test_output_size_is_vertical_then_horizontal():
    node = replace(conv("c", X, Y, kernel=(3, 1)), padding=(1, 2, 0, 3), stride=(2, 1))
    assert node.output_size(8, 6) == (4, 11)


def test_macs():
    made = graph()
    assert made.macs(made.nodes[0]) == 8 * 6 * 5 * 3
    assert made.macs(made.nodes[1]) == 0


@pytest.mark.parametrize("zero_point", [0, -128])
@pytest.mark.parametrize("exponent", [-6, 0, 3])
def test_quantize_input(zero_point, exponent):
    made = graph(x={"zero_point": zero_point, "exponent": exponent})
    step = 2.0**exponent
    codes = np.random.default_rng(0).integers(-128, 128, (2, 3, 8, 6))
    for offset, rounded in ((0, 0), (0.49, 0), (0.5, 1), (-0.5, 0), (-0.51, -1)):
        got = made.quantize_input((codes - zero_point + offset) * step)
        assert got.dtype == np.int8
        np.testing.assert_array_equal(got, np.clip(codes + rounded, -128, 127))
    extremes = made.quantize_input(np.full((1, 3, 8, 6), 1e30) * np.asarray([1, -1, 0]).reshape(3, 1, 1))
    assert [set(extremes[0, channel].ravel().tolist()) for channel in range(3)] == [{127}, {-128}, {zero_point}]


def test_quantize_input_takes_float32():
    """The sum with 0.5 is not rounded in float32 first."""
    value = np.float32(0.5) - np.float32(2.0**-25)
    made = graph(x={"exponent": 0, "zero_point": 0})
    assert (made.quantize_input(np.full((1, 3, 8, 6), value, np.float32)) == 0).all()


def test_quantize_input_of_few_bits():
    made = random_graph(np.random.default_rng(0), nodes=1, act_bits=4)
    assert made.quantize_input(np.full((1, *made.tensor("x").shape), 1e9)).max() == 7


def test_dequantize_undoes_quantize():
    for seed in range(10):
        made = random_graph(np.random.default_rng(seed), nodes=1)
        codes = input_codes(made, np.random.default_rng(seed), 3)
        source = made.tensor(made.input)
        back = replace(made, nodes=(), output=made.input, output_shape=source.shape)
        np.testing.assert_array_equal(back.quantize_input(back.dequantize_output(codes)), codes)


def test_dequantize_output():
    np.testing.assert_array_equal(graph(z={"exponent": -1}).dequantize_output(np.asarray([[-128, 3]], np.int8)),
                                  [[-64, 1.5]])
    np.testing.assert_array_equal(
        graph(z={"exponent": 1, "zero_point": -128}).dequantize_output(np.asarray([[-128, 127]], np.int8)), [[0, 510]])
