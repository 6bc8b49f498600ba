"""The compiler: what it lays out, what it proves, and what it refuses."""

import re
from dataclasses import replace
from itertools import product
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest

from nomul.compiler import CompileError, Program, compile_graph
from nomul.compiler.input_packing import pack_input, packed_graph, packing_windows
from nomul.compiler.packing import pack_words, unpack_words
from nomul.driver import StreamDevice
from nomul.graph import Conv, Graph, Pool, Tensor
from nomul.shapes import network_shape
from nomul_hw.config import ArrayConfig, MemoryConfig
from nomul_hw.descriptor import DESCRIPTOR, DESCRIPTOR_WORDS, HOST_BITS, LayerOp, unpack
from nomul_hw.formats import get_format
from nomul_sim import golden
from tests.graphs import input_codes, random_graph
from tests.machine import Machine

Codes = npt.NDArray[np.int8]


def conv_graph(*, fmt: str = "ternary", channels: int = 5, out: int = 6, size: tuple[int, int] = (7, 6),
               kernel: tuple[int, int] = (3, 3), padding: tuple[int, int, int, int] = (1, 1, 1, 1),
               stride: tuple[int, int] = (1, 1), seed: int = 0, level: int | None = None, bias: int = 0) -> Graph:
    """One convolution; all weights are ``level`` if it is given."""
    rng = np.random.default_rng(seed)
    weights = rng.choice(get_format(fmt).levels, (out, channels, *kernel)).astype(np.int32)
    if level is not None:
        weights[:] = level
    node = Conv("conv", "x", "y", kernel, stride, padding, (1, 1), np.full(out, bias, dtype=np.int64),
                np.ones(out, dtype=np.int64), np.full(out, 4, dtype=np.int64), -128, 127, weights=weights)
    source = Tensor("x", channels, *size, 0, -128)
    target = Tensor("y", out, *node.output_size(*size), 0, 0)
    return Graph(get_format(fmt), 8, 2, (source, target), (node,), "x", "y", target.shape)


def depthwise_graph(fmt: str = "ternary", *, channels: int = 5, size: tuple[int, int] = (7, 6),
                    kernel: tuple[int, int] = (3, 3), stride: tuple[int, int] = (1, 1),
                    padding: tuple[int, int, int, int] = (1, 1, 1, 1)) -> Graph:
    """One depthwise convolution."""
    graph = conv_graph(fmt=fmt, channels=1, out=channels, size=size, kernel=kernel, stride=stride, padding=padding)
    node = replace(graph.nodes[0], groups=channels)
    return replace(graph, nodes=(node,), tensors=(replace(graph.tensor("x"), channels=channels), graph.tensor("y")))


def run(program: Program, codes: Codes) -> Codes:
    """Outputs of a program, as its descriptors define them."""
    machine = Machine(program.config, np.random.default_rng(0))
    result = StreamDevice(machine).run(program, codes)
    assert [unpack(DESCRIPTOR, word) for word in descriptors(program)] == machine.ran
    assert result.counters[0] == program.estimate().accounting
    return result.outputs


def descriptors(program: Program) -> list[int]:
    """The descriptors that a device is loaded with."""
    rows = program.descriptors.reshape(-1, DESCRIPTOR_WORDS).tolist()
    return [sum(word << (HOST_BITS * index) for index, word in enumerate(row)) for row in rows]


def refuses(graph: Graph, config: ArrayConfig, message: str) -> None:
    with pytest.raises(CompileError, match=f"^{message}$"):
        compile_graph(graph, config)


# Refusals ----------------------------------------------------------------------------------------------------------


def test_refuses_other_activations() -> None:
    refuses(conv_graph(), ArrayConfig("ternary", act_bits=4),
            "the network has 8-bit activations, the array 4-bit ones")


def test_refuses_weights_that_are_no_planes() -> None:
    """The message says what would do, and that does."""
    refuses(conv_graph(), ArrayConfig("binary"), re.escape(
        "layer 'conv': its ternary weights cannot be written as up to 16 planes of binary that are 0 places apart: "
        "quantize it for format 'binary' or choose another array"))
    wide = conv_graph(fmt="int8", level=-128)
    refuses(wide, ArrayConfig("ternary", plane_shift=0), re.escape(
        "layer 'conv': its int8 weights cannot be written as up to 16 planes of ternary that are 0 places apart: "
        "array.plane_shift = 1 would do"))
    compile_graph(wide, ArrayConfig("ternary", plane_shift=1))
    refuses(depthwise_graph("binary"), ArrayConfig("binary"), re.escape(
        "layer 'conv': its binary weights and the zeros between its groups cannot be written as up to 16 planes of "
        "binary that are 0 places apart: choose an array whose format has a zero"))
    compile_graph(depthwise_graph("binary"), ArrayConfig("ternary"))
    # The window unit needs no zeros.
    compile_graph(depthwise_graph("binary"), ArrayConfig("binary", memory=MemoryConfig(lines=16)))


def test_refuses_gains_beyond_the_array() -> None:
    graph = conv_graph()
    node = replace(graph.nodes[0], multiplier=np.full(6, 5, dtype=np.int64))
    refuses(replace(graph, nodes=(node,)), ArrayConfig("ternary", gain_terms=1), re.escape(
        "layer 'conv': its gains have more than the array's gain_terms = 1 signed digits: quantize with gain_terms=1"))
    node = replace(graph.nodes[0], shift=np.full(6, 17, dtype=np.int64))
    refuses(replace(graph, nodes=(node,)), ArrayConfig("ternary", acc_bits=16), re.escape(
        "layer 'conv': a gain shifts by 17, the array by at most 8 (its acc_bits less its act_bits)"))


@pytest.mark.parametrize(("memory", "message"), [
    (MemoryConfig(weights=100), (r"the network needs \d+ words of memory\.weights, the array has 100: set "
                                r"memory\.weights to at least \d+")),
    (MemoryConfig(parameters=2), (r"the network needs 4 words of memory\.parameters, the array has 2: set "
                                 r"memory\.parameters to at least 4")),
    (MemoryConfig(layers=2, accumulators=8), r"the network needs \d+ words of memory\.layers, the array has 2: .*"),
    (MemoryConfig(accumulators=2), (r"layer 'conv': a row of 6 output pixels needs memory\.accumulators of at least 6, "
                                   r"not 2")),
    (MemoryConfig(activations=80), (r"input 'x': a tensor of 84 words \(5 x 7 x 6\) does not fit in two banks of "
                                   r"memory\.activations = 80 words beside 0 words in use: memory\.activations = 84 "
                                   r"would do")),
], ids=["weights", "parameters", "layers", "accumulators", "activations"])
def test_refuses_what_does_not_fit(memory: MemoryConfig, message: str) -> None:
    graph = conv_graph(out=14)
    refuses(graph, ArrayConfig("ternary", rows=4, cols=4, memory=memory), message)


def test_refuses_sums_that_could_overflow() -> None:
    graph = conv_graph(fmt="pot4", channels=9, level=128)  # 81 products of up to 128 * 128, in a 20-bit accumulator
    message = (f"layer 'conv': a sum could reach {-128 * 81 * 128}..{127 * 81 * 128} with its bias, more than "
               f"acc_bits = {{}} hold: acc_bits = 22 would do")
    for acc_bits in (20, 21):
        refuses(graph, ArrayConfig("pot4", rows=4, cols=4, acc_bits=acc_bits), re.escape(message.format(acc_bits)))
    compile_graph(graph, ArrayConfig("pot4", rows=4, cols=4, acc_bits=22))


@pytest.mark.parametrize("kind", ["max", "sum"])
def test_overflow_proof_covers_pools(kind: Literal["max", "sum"]) -> None:
    most = 127 * (9 if kind == "sum" else 1)
    for bias, fits in (((1 << 19) - 1 - most, True), ((1 << 19) - most, False)):
        pool = Pool("pool", "x", "y", (3, 3), (1, 1), (0, 0, 0, 0), (1, 1), np.full(1, bias),
                    np.ones(1, dtype=np.int64), np.full(1, 8), -128, 127, kind=kind)
        graph = Graph(get_format("ternary"), 8, 2, (Tensor("x", 1, 3, 3, 0, 0), Tensor("y", 1, 1, 1, 0, 0)), (pool,),
                      "x", "y", (1,))
        if fits:
            compile_graph(graph, ArrayConfig("ternary", acc_bits=20))
        else:
            refuses(graph, ArrayConfig("ternary", acc_bits=20), "layer 'pool': .* acc_bits = 21 would do")


@pytest.mark.parametrize("array", ["int8", "ternary", "int4", "exp4", "pot3", "pot4"])
@pytest.mark.parametrize("sign", [1, -1])
def test_sums_may_leave_an_accumulator_on_their_way(array: str, sign: int) -> None:
    """Whatever planes do in between, what fits in the end is right, to the last code."""
    fmt = get_format("int8")
    weights = np.array([[[[100, -27]], [[127, 1]], [[-128, -128]]]], dtype=np.int32) * sign
    weights = np.clip(weights, *(fmt.levels[0], fmt.levels[-1])).astype(np.int32)
    positive, negative = weights.clip(min=0).sum(), weights.clip(max=0).sum()
    least, most = -128 * positive + 127 * negative, 127 * positive - 128 * negative
    largest, smallest = (np.where(weights > 0, *ends)[0] for ends in ((127, -128), (-128, 127)))
    for bias, worst in (((1 << 17) - 1 - most, largest), (-(1 << 17) - least, smallest)):
        # A gain that leaves the top bits, so that a wrong sign could not go unnoticed.
        node = Conv("conv", "x", "y", (1, 2), (1, 1), (0, 0, 0, 0), (1, 1), np.full(1, bias), np.ones(1, np.int64),
                    np.full(1, 9), -128, 127, weights=weights, format=fmt)
        graph = Graph(get_format(array), 8, 2, (Tensor("x", 3, 1, 2, 0, 0), Tensor("y", 1, 1, 1, 0, 0)), (node,),
                      "x", "y", (1,))
        config = ArrayConfig(array, rows=1, cols=1, acc_bits=18, pe="multiplier" if array == "int8" else "shift")
        codes = worst[None].astype(np.int8)
        expected = golden.run(graph, codes)["y"]
        assert expected.item() == (127 if worst is largest else -128)
        assert np.array_equal(run(compile_graph(graph, config), codes), expected)
        refuses(graph, replace(config, acc_bits=17), "layer 'conv': a sum could reach .* acc_bits = 18 would do")


def test_overflow_proof_counts_the_bias() -> None:
    limit = 1 << 23
    config = ArrayConfig("ternary", rows=4, cols=4)
    compile_graph(conv_graph(level=1, bias=limit - 1 - 127 * 45), config)
    with pytest.raises(CompileError, match="acc_bits = 25 would do"):
        compile_graph(conv_graph(level=1, bias=limit - 127 * 45), config)


def test_refuses_maps_beyond_a_descriptor() -> None:
    memory = MemoryConfig(activations=1 << 16, accumulators=1 << 13)
    wide = conv_graph(channels=1, out=1, size=(1, 4095), kernel=(1, 3), padding=(0, 2, 0, 0))
    refuses(wide, ArrayConfig("ternary", rows=1, cols=1, memory=memory),
            "layer 'conv': an input width of 4095 with its padding is more than the 4096 that a descriptor reaches")
    pool = Pool("pool", "x", "y", (20, 20), (1, 1), (0, 0, 0, 0), (1, 1), np.zeros(1, dtype=np.int64),
                np.ones(1, dtype=np.int64), np.full(1, 8, dtype=np.int64), -128, 127, kind="sum")
    graph = Graph(get_format("ternary"), 8, 2, (Tensor("x", 1, 20, 20, 0, 0), Tensor("y", 1, 1, 1, 0, 0)), (pool,),
                  "x", "y", (1,))
    refuses(graph, ArrayConfig("ternary"),
            "layer 'pool': a window of 400 pixels is too large to sum, the array sums 256")


# Layout ------------------------------------------------------------------------------------------------------------


def test_descriptors_are_what_the_layers_say() -> None:
    program = compile_graph(random_graph(np.random.default_rng(3), fmt="exp4", act_bits=8, gain_terms=2),
                            ArrayConfig("exp4", rows=4, cols=4))
    words = program.descriptors.reshape(-1, DESCRIPTOR_WORDS)
    for layer, row in zip(program.layers, words, strict=True):
        packed = sum(int(word) << (HOST_BITS * index) for index, word in enumerate(row))
        found = unpack(DESCRIPTOR, packed)
        assert {name: found[name] for name in layer.values} == layer.values


@pytest.mark.parametrize("in_channels", [7, 8, 17])
def test_weights_lie_in_the_order_of_use(in_channels: int) -> None:
    config = ArrayConfig("int4", rows=2, cols=3, lanes=2)
    graph = conv_graph(fmt="int4", channels=in_channels, out=4, kernel=(2, 3), padding=(0, 0, 0, 0), size=(7, 6))
    program = compile_graph(graph, config)
    node = packed_graph(graph, program.input_window).nodes[0]
    assert isinstance(node, Conv)
    _, channels, height, width = node.weights.shape
    weights = config.format.decode(unpack_words(
        program.weights[:, None], config.format.bits, config.cols * config.lanes) & 15)
    at = 0
    for block in range(2):
        for ky, kx, word, row in product(range(height), range(width), range(-(-channels // 4)), range(config.rows)):
            for col, lane in product(range(config.cols), range(config.lanes)):
                out, channel = block * 3 + col, word * 4 + row * 2 + lane
                expected = node.weights[out, channel, ky, kx] if out < 4 and channel < channels else 0
                assert weights[at, col * config.lanes + lane] == expected
            at += 1
    assert at == len(weights)


def test_layers_that_exceed_the_accumulators_run_as_strips() -> None:
    program = compile_graph(conv_graph(), ArrayConfig("ternary", rows=4, cols=4, memory=MemoryConfig(accumulators=13)))
    rows = [layer.values["count_1"] + 1 for layer in program.layers]
    assert rows == [2, 2, 2, 1] and {layer.node for layer in program.layers} == {"conv"}
    assert len({layer.values["weight_base"] for layer in program.layers}) == 1
    assert sum(layer.macs for layer in program.layers) == 7 * 6 * 6 * 5 * 9
    whole = compile_graph(conv_graph(), ArrayConfig("ternary", rows=4, cols=4))
    assert [layer.values["op"] for layer in whole.layers] == [LayerOp.CONV]


@pytest.mark.parametrize("width", range(1, 9))
def test_words_pack_and_unpack(width: int) -> None:
    rng = np.random.default_rng(width)
    for count in (1, 3, 4, 5, 16, 37):
        values = rng.integers(-(1 << width - 1), 1 << width - 1, (6, count))
        words = pack_words(values, width)
        assert words.dtype == np.uint32 and words.shape == (6, -(-count * width // 32))
        assert np.array_equal(unpack_words(words, width, count), values)
        as_integer = sum(int(word) << (32 * index) for index, word in enumerate(words[0]))
        assert as_integer == sum((int(v) & ((1 << width) - 1)) << (width * i) for i, v in enumerate(values[0]))


# Input packing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_a_packed_graph_computes_the_same(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kernel = (int(rng.integers(1, 5)), int(rng.integers(1, 5)))
    padding = tuple(int(rng.integers(0, size)) for size in (*kernel, *kernel))
    stride = (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
    graph = conv_graph(channels=int(rng.integers(1, 4)), size=(9, 8), kernel=kernel, stride=stride, seed=seed,
                       padding=(padding[0], padding[1], padding[2], padding[3]))
    graph = replace(graph, nodes=(replace(graph.nodes[0], bias=graph.nodes[0].bias + seed),))
    codes = input_codes(graph, rng, 3)
    expected = golden.run(graph, codes)["y"]
    for window in {(1, 1), (1, kernel[1]), kernel}:
        packed = packed_graph(graph, window)
        assert np.array_equal(golden.run(packed, pack_input(graph, window, codes))["y"], expected)
        assert packed.macs(packed.nodes[0]) == graph.macs(graph.nodes[0])


def test_packing_is_chosen_by_tiles_and_dropped_where_it_does_not_fit() -> None:
    graph = conv_graph(channels=3)
    config = ArrayConfig("ternary")
    assert packing_windows(network_shape(graph), config) == [(3, 3), (1, 3), (1, 1)]
    assert compile_graph(graph, config).input_window == (3, 3)
    # 27 channels of a pixel take two words; 9 take one.
    small = ArrayConfig("ternary", memory=MemoryConfig(activations=50))
    assert compile_graph(graph, small).input_window == (1, 3)
    assert packing_windows(network_shape(conv_graph(channels=16)), config) == [(1, 1)]


def test_unused_lanes_count_as_the_constants_that_they_are() -> None:
    # 9 products of up to 128 * 128 need 19 bits with their sign; 16 rows full of them would need more.
    graph = conv_graph(fmt="pot4", channels=1, out=1, kernel=(3, 3), level=128)
    program = compile_graph(graph, ArrayConfig("pot4", acc_bits=19))
    assert program.input_window == (3, 3)
    codes = input_codes(graph, np.random.default_rng(0), 3)
    assert golden.accumulators(graph, graph.nodes[0], codes).min() == -9 * 128 * 128


@pytest.mark.parametrize(("level", "code"), [(1, 127), (-1, -128)])
def test_the_largest_bias(level: int, code: int) -> None:
    """A sum with its bias fills an accumulator; seven unused lanes of 128 each are in the raw sum too."""
    largest = (1 << 15) - 1
    graph = conv_graph(fmt="pot3", channels=1, out=1, size=(1, 1), kernel=(1, 1), padding=(0, 0, 0, 0), level=level,
                       bias=largest - (127 if level > 0 else 128))
    graph = replace(graph, nodes=(replace(graph.nodes[0], shift=np.full(1, 8)),))
    program = compile_graph(graph, ArrayConfig("pot3", rows=8, cols=1, acc_bits=16))
    codes = np.full((1, 1, 1, 1), code, dtype=np.int8)
    assert run(program, codes).item() == golden.run(graph, codes)["y"].item() == 127
