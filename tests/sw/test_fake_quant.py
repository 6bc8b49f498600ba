"""Fake quantization in PyTorch against the golden model: every code of every tensor, no tolerance."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nomul.graph import Concat, Conv, Graph, Tensor
from nomul.quantize.config import QuantizeError
from nomul.quantize.fake_quant import FakeQuant
from nomul_hw.formats import WeightFormat, get_format
from nomul_sim.golden import run
from tests.graphs import input_codes, random_graph

pytestmark = pytest.mark.usefixtures("one_thread")


def reals(graph: Graph, codes: np.ndarray) -> torch.Tensor:
    """The real numbers that a graph quantizes to these input codes."""
    tensor = graph.tensor(graph.input)
    return torch.from_numpy((codes.astype(np.float64) - tensor.zero_point) * 2.0**tensor.exponent)


def check(graph: Graph, x: torch.Tensor, *, dtype: torch.dtype = torch.float64) -> None:
    module = FakeQuant(graph, dtype=dtype)
    codes = graph.quantize_input(x.numpy())
    expected, tensors, got = run(graph, codes), module.tensors(x), module.codes(x)
    assert list(got) == list(expected) == list(tensors)
    for name, array in expected.items():
        assert got[name].dtype == torch.int8 and tensors[name].dtype == dtype
        np.testing.assert_array_equal(got[name].numpy(), array, err_msg=name)
        tensor = graph.tensor(name)
        real = (array.astype(np.float64) - tensor.zero_point) * 2.0**tensor.exponent
        np.testing.assert_array_equal(tensors[name].double().numpy(), real, err_msg=name)
    output = module(x)
    assert output.shape == (len(x), *graph.output_shape)
    np.testing.assert_array_equal(output.double().numpy().ravel(), graph.dequantize_output(expected[graph.output])
                                  .ravel())


@settings(max_examples=100, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_random_graphs(seed):
    rng = np.random.default_rng(seed)
    graph = random_graph(rng, nodes=int(rng.integers(1, 5)), max_shift=63, mixed=bool(rng.integers(2)))
    check(graph, reals(graph, input_codes(graph, rng, 4)))


@pytest.mark.parametrize("zero_point", [0, -128])
def test_input_rounds_half_up_and_saturates(zero_point):
    graph = replace(random_graph(np.random.default_rng(1), nodes=1, act_bits=8))
    source = replace(graph.tensors[0], exponent=-2, zero_point=zero_point)
    graph = replace(graph, tensors=(source, *graph.tensors[1:]))
    size = int(np.prod(source.shape))
    values = np.resize(np.concatenate([np.arange(-1100, 1100) / 32, [-1e30, 1e30, 0.125 - 2.0**-56]]), 80 * size)
    check(graph, torch.from_numpy(values.reshape(80, *source.shape)))


def test_float32():
    """24 bits are enough for these layers; the batch and the 3x3 kernel are what fast convolutions look for."""
    rng = np.random.default_rng(2)
    n, c = 24, 16
    weights = rng.choice(get_format("ternary").levels, (n, c, 3, 3)).astype(np.int32)
    node = Conv("conv", "x", "y", (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), rng.integers(-999, 999, n),
                rng.choice([1, 3, 5, 7], n), rng.integers(4, 9, n), -128, 127, weights=weights)
    tensors = (Tensor("x", c, 20, 20, -5, -128), Tensor("y", n, 20, 20, -3, 0))
    graph = Graph(get_format("ternary"), 8, 2, tensors, (node,), "x", "y", (n, 20, 20))
    check(graph, reals(graph, input_codes(graph, rng, 32)), dtype=torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("groups", "n"), [(16, 16), (16, 32), (4, 24)])
def test_groups(dtype, groups, n):
    """Depthwise and other grouped convolutions have fast paths of their own."""
    rng = np.random.default_rng(groups)
    weights = rng.integers(-128, 127, (n, 16 // groups, 3, 3), dtype=np.int32, endpoint=True)
    node = Conv("conv", "x", "y", (3, 3), (2, 1), (0, 1, 1, 1), (1, 1), rng.integers(-999, 999, n),
                rng.choice([1, 3], n), rng.integers(4, 15, n), -128, 127, weights=weights, groups=groups,
                format=get_format("int8"))
    tensors = (Tensor("x", 16, 19, 20, -5, -128), Tensor("y", n, 9, 20, -3, 0))
    graph = Graph(get_format("ternary"), 8, 2, tensors, (node,), "x", "y", (n, 9, 20))
    check(graph, reals(graph, input_codes(graph, rng, 8)), dtype=dtype)


def test_concat():
    """Of the input and a tensor that was clamped, one of them twice."""
    grid = {"height": 2, "width": 3, "exponent": -4, "zero_point": -128}
    tensors = (Tensor("x", 1, **grid), Tensor("y", 2, **grid), Tensor("z", 4, **grid))
    node = Conv("conv", "x", "y", (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), np.full(2, 128), np.ones(2, np.int64),
                np.zeros(2, np.int64), -100, 100, weights=np.ones((2, 1, 1, 1), np.int32))
    graph = Graph(get_format("ternary"), 8, 2, tensors, (node, Concat("both", ("x", "y", "x"), "z")), "x", "z", (24,))
    check(graph, reals(graph, input_codes(graph, np.random.default_rng(0), 4)))


def wide_graph(magnitude: int, *, shift: int = 8, multiplier: int = 1) -> Graph:
    fmt = WeightFormat("wide", (-magnitude, 0, magnitude))
    node = Conv("features.3", "x", "y", (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), np.zeros(1, np.int64),
                np.full(1, multiplier), np.full(1, shift), -128, 127,
                weights=np.full((1, 1, 1, 1), magnitude, np.int32))
    return Graph(fmt, 8, 3, (Tensor("x", 1, 1, 1, 0, 0), Tensor("y", 1, 1, 1, -64, 0)), (node,), "x", "y", (1,))


def test_float32_is_refused_where_24_bits_are_not_enough():
    FakeQuant(wide_graph(2**15), dtype=torch.float32)  # zero point 0: 128 * 2**15 is half of 2**23
    message = "node 'features.3': sums up to 16777216 are not exact in torch.float32, which holds integers up to 2**24"
    with pytest.raises(QuantizeError, match=f"^{re.escape(message)}$"):
        FakeQuant(wide_graph(2**16), dtype=torch.float32)
    FakeQuant(wide_graph(2**16))


def test_float64_is_refused_where_53_bits_are_not_enough():
    graph = wide_graph(2**30, multiplier=73)
    check(graph, torch.full((1, 1, 1, 1), 127.0))
    many = np.full((1, 2**12, 1, 1), 2**30, np.int32)
    graph = replace(graph, nodes=(replace(graph.nodes[0], weights=many),),
                    tensors=(replace(graph.tensors[0], channels=2**12), graph.tensors[1]))
    message = (f"node 'features.3': sums up to {2 * 2**12 * 2**37 * 73} are not exact in torch.float64, "
               f"which holds integers up to 2**53")
    with pytest.raises(QuantizeError, match=f"^{re.escape(message)}$"):
        FakeQuant(graph)


def test_float32_underflow_is_refused():
    message = "node 'features.3': a shift of 63 underflows torch.float32"
    with pytest.raises(QuantizeError, match=f"^{re.escape(message)}$"):
        FakeQuant(wide_graph(1, shift=63), dtype=torch.float32)


def test_wrong_arguments():
    graph = wide_graph(1)
    with pytest.raises(QuantizeError, match=r"^Fake quantization runs in torch\.float64 or torch\.float32, not "
                                            r"torch\.float16$"):
        FakeQuant(graph, dtype=torch.float16)
    with pytest.raises(QuantizeError, match=r"^Input must have the shape \(batch, 1, 1, 1\), not \(3, 1, 1\)$"):
        FakeQuant(graph)(torch.zeros(3, 1, 1))
