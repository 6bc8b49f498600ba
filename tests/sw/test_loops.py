"""What runs a layer, and its loops: windows of all kinds, groups that skip zeros, planes, strips, streamed weights."""

from dataclasses import replace
from itertools import product
from math import prod

import numpy as np
import numpy.typing as npt
import pytest

from nomul.compiler import CompileError, Program, compile_graph
from nomul.compiler.lanes import channel_lanes
from nomul.compiler.loops import Geometry, Run
from nomul.compiler.packing import unpack_words
from nomul.compiler.plan import plan_network
from nomul.driver import StreamDevice
from nomul.graph import Conv, Graph, Node, Pool, Tensor, window_output
from nomul.shapes import LayerShape, NetworkShape, TensorShape
from nomul_hw.config import ArrayConfig, MemoryConfig
from nomul_hw.descriptor import LayerOp
from nomul_hw.formats import WeightFormat, get_format
from nomul_hw.timing import run_cycles, weight_tiles
from nomul_sim import golden
from nomul_sim.random_networks import NETWORK_CONFIGS, random_network
from tests.graphs import input_codes, random_graph
from tests.machine import Machine


def layer(kind: str, channels: int, size: tuple[int, int], *, fmt: str = "ternary", out: int | None = None,
          groups: int = 1, kernel: tuple[int, int] = (3, 3), stride: tuple[int, int] = (1, 1),
          padding: tuple[int, int, int, int] = (1, 1, 1, 1), dilation: tuple[int, int] = (1, 1), seed: int = 0,
          own: WeightFormat | None = None) -> Graph:
    """A network of one layer."""
    rng = np.random.default_rng(seed)
    count = channels if out is None else out
    common = ("layer", "x", "y", kernel, stride, padding, dilation, rng.integers(-300, 300, count),
              rng.choice([1, 3, 5], count), rng.integers(2, 7, count), -128, 127)
    node: Node
    if kind == "conv":
        levels = (own or get_format(fmt)).levels
        weights = rng.choice(levels, (count, channels // groups, *kernel)).astype(np.int32)
        node = Conv(*common, weights=weights, groups=groups, format=own)
    else:
        node = Pool(*common, kind="max" if kind == "max" else "sum")
    target = Tensor("y", count, *node.output_size(*size), 0, int(rng.choice([0, -128])))
    source = Tensor("x", channels, *size, 0, int(rng.choice([0, -128])))
    return Graph(get_format(fmt), 8, 2, (source, target), (node,), "x", "y", target.shape)


def check(graph: Graph, config: ArrayConfig, seed: int = 0) -> Program:
    """Compile, run on the machine whole and layer by layer, and compare all that is written."""
    rng = np.random.default_rng(seed)
    program = compile_graph(graph, config)
    compare(program, Machine(config, rng), input_codes(graph, rng, 3))
    return program


def values(program: Program, field: str) -> list[int]:
    """A field of all descriptors."""
    return [layer.values[field] for layer in program.layers]


def compare(program: Program, machine: Machine, codes: npt.NDArray[np.int8]) -> None:
    graph, device = program.graph, StreamDevice(machine)
    expected = golden.run(graph, codes)
    result = device.run(program, codes)
    np.testing.assert_array_equal(result.outputs, expected[graph.output])
    assert result.counters[0] == program.estimate().accounting
    for node, (name, output, _) in zip(graph.computing, device.run_layers(program, codes[-1]), strict=True):
        assert name == node.name
        np.testing.assert_array_equal(output, expected[node.output][-1], err_msg=name)


def host_words(config: ArrayConfig) -> int:
    return -(-config.weight_word_bits // 32)


def geometry(shape: LayerShape, source: TensorShape, target: TensorShape, config: ArrayConfig, *,
             compact: bool = False) -> Geometry:
    network = NetworkShape((source, target), (shape,), source.name, target.name)
    lanes = channel_lanes(network, config)
    return Geometry(shape, source, target, lanes["x"], lanes["y"], network.depthwise(shape), config, compact)


# Whole networks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", NETWORK_CONFIGS, ids=lambda config: config.name)
@pytest.mark.parametrize("seed", range(4))
def test_random_networks(config: ArrayConfig, seed: int) -> None:
    """Residuals, concatenations, groups, planes: what the descriptors say is what the network computes."""
    rng = np.random.default_rng([seed, config.depth, config.cols])
    case = random_network(config, rng)
    compare(compile_graph(case.graph, config), Machine(config, rng), case.inputs)


WIDE = MemoryConfig(activations=3000, weights=40000, parameters=4000, accumulators=40, layers=200, lines=9)


@pytest.mark.parametrize("config", [
    ArrayConfig("ternary", rows=2, cols=2, acc_bits=32, memory=WIDE),
    ArrayConfig("pot3", rows=1, cols=6, lanes=4, acc_bits=32, gain_terms=3, memory=WIDE),
    ArrayConfig("pot4", rows=3, cols=2, acc_bits=32, memory=replace(WIDE, lines=0)),
    ArrayConfig("int8", rows=2, cols=2, pe="multiplier", acc_bits=32, memory=WIDE),
    ArrayConfig("exp4", rows=4, cols=3, acc_bits=32, weights="stream", memory=replace(WIDE, weights=8)),
], ids=lambda config: config.name)
def test_random_graphs(config: ArrayConfig) -> None:
    """Every corner of the arithmetic, with formats up to 16 bits."""
    ran = 0
    for seed in range(8):
        graph = random_graph(np.random.default_rng([seed, config.depth]), nodes=4, fmt=config.format, act_bits=8,
                             gain_terms=config.gain_terms, mixed=True)
        try:
            check(graph, config)
        except CompileError as error:
            assert "acc_bits = " in str(error)  # 16-bit weights need much
        else:
            ran += 1
    assert ran >= 6


# The window unit ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", list(product((1, 2, 3), (1, 2, 3))), ids=str)
def test_windows(kernel: tuple[int, int]) -> None:
    """Strides, paddings up to windows that lie in them altogether, and maps down to one pixel."""
    rng = np.random.default_rng(kernel)
    config = ArrayConfig("pot3", rows=2, cols=4, acc_bits=20, memory=MemoryConfig(lines=12))
    seen: set[tuple[int, ...]] = set()
    for seed in range(24):
        stride = int(rng.integers(1, 3)), int(rng.integers(1, 3))
        top, left, bottom, right = (int(rng.integers(0, kernel[side % 2] + 2)) for side in range(4))
        size = int(rng.integers(1, 8)), int(rng.integers(1, 8))
        if min(window_output(size[0], kernel[0], stride[0], top, bottom),
               window_output(size[1], kernel[1], stride[1], left, right)) < 1:
            continue
        kind, channels = ("conv", 3) if seed % 2 else ("max", 3)
        graph = layer(kind, channels, size, fmt="pot3", groups=3 if kind == "conv" else 1, kernel=kernel,
                      stride=stride, padding=(top, left, bottom, right), seed=seed)
        (ran,) = [each.values for each in check(graph, config, seed).layers]
        op = LayerOp(ran["op"])
        assert op is LayerOp.DEPTHWISE if kind == "conv" else op in (LayerOp.MAX_WINDOW, LayerOp.MAX_POOL)
        assert ran.get("pair", 0) == (op is LayerOp.DEPTHWISE and stride[1] == 2)
        seen.add((op, *stride, ran.get("skip_columns", 0), ran.get("skip_rows", 0)))
    assert len(seen) >= 8


def test_windows_read_no_more_than_they_need() -> None:
    """Neither the padding on the left nor above; on the right and below what the last window takes."""
    config = ArrayConfig("ternary", rows=2, cols=4, memory=MemoryConfig(lines=16))

    def columns(width: int, *, stride: int, padding: int, pair: bool, right: int | None = None
                ) -> tuple[int, int, int]:
        right = padding if right is None else right
        output = window_output(width, 3, stride, padding, right)
        shape = LayerShape("layer", "conv", "x", "y", (3, 3), (1, stride), (1, padding, 1, right), groups=3, planes=1)
        (strip,) = geometry(shape, TensorShape("x", 3, 9, width), TensorShape("y", 3, 9, output),
                            config).strips(pair=pair)
        return strip.values["x_start"], strip.values["count_2"] + 1, strip.values["skip_columns"]

    assert columns(8, stride=1, padding=1, pair=False) == (0, 9, 1)
    assert columns(8, stride=1, padding=0, pair=False) == (0, 8, 2)
    assert columns(8, stride=2, padding=1, pair=False) == (0, 8, 1)
    assert columns(8, stride=2, padding=1, pair=True) == (1, 4, 0)
    assert columns(8, stride=2, padding=0, pair=True) == (0, 4, 1)
    assert columns(9, stride=2, padding=2, pair=True) == (0, 6, 0)
    assert columns(1, stride=1, padding=1, pair=False) == (0, 2, 1)
    assert columns(1, stride=1, padding=2, right=0, pair=False) == (-1, 2, 1)
    assert columns(1, stride=2, padding=1, pair=True) == (-1, 2, 1)


def test_pairs_take_two_banks() -> None:
    """``t`` lies apart from ``x`` and from ``y``, so these two lie in one bank."""
    ones, channels = np.ones(3, np.int64), 3
    rng = np.random.default_rng(0)

    def pool(name: str, source: str, skip: str | None, stride: int) -> Pool:
        return Pool(name, source, name, (1, 1), (stride, stride), (0, 0, 0, 0), (1, 1), 0 * ones, ones, ones, -128,
                    127, kind="sum", skip=skip)

    wise = Conv("y", "x", "y", (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 0 * ones, ones, 2 * ones, -128, 127,
                weights=rng.integers(-1, 2, (3, 1, 3, 3)).astype(np.int32), groups=channels)
    nodes = (pool("t", "x", None, 1), pool("u", "x", "t", 1), wise, pool("z", "t", "y", 2))
    tensors = tuple(Tensor(name, channels, size, size, 0, 0)
                    for name, size in (("x", 7), ("t", 7), ("u", 7), ("y", 4), ("z", 4)))
    config = ArrayConfig("ternary", rows=3, cols=3, memory=MemoryConfig(lines=16))
    for kept, pair in ((nodes, 0), (nodes[2:3], 1)):
        program = check(
            Graph(get_format("ternary"), 8, 2, tensors, kept, "x", kept[-1].output, tensors[-1].shape), config)
        (ran,) = (each.values for each in program.layers if each.values["op"] == LayerOp.DEPTHWISE)
        assert (program.placements["x"].bank != program.placements["y"].bank) == pair
        assert (ran["pair"], ran["stride_columns"], ran["stride_rows"]) == (pair, 1 - pair, 1)


@pytest.mark.parametrize(("change", "op"), [
    ({}, LayerOp.DEPTHWISE),
    ({"stride": (2, 1)}, LayerOp.DEPTHWISE),
    ({"kernel": (1, 3), "dilation": (2, 1)}, LayerOp.DEPTHWISE),  # a dilation of one tap is none
    ({"dilation": (2, 1)}, LayerOp.CONV),
    ({"stride": (3, 1)}, LayerOp.CONV),
    ({"kernel": (4, 3)}, LayerOp.CONV),
    ({"groups": 4}, LayerOp.CONV),
    ({"out": 16}, LayerOp.CONV),  # two outputs for every input
    ({"size": (9, 16)}, LayerOp.CONV),  # 17 columns with the padding on the right
    ({"own": get_format("int4")}, LayerOp.CONV),
], ids=str)
def test_what_the_window_unit_convolves(change: dict[str, object], op: LayerOp) -> None:
    config = ArrayConfig("ternary", rows=4, cols=4, memory=MemoryConfig(lines=16, weights=1 << 14))
    arguments = {"groups": 8, "size": (9, 9), "channels": 8} | change
    graph = layer("conv", **arguments)  # type: ignore[arg-type]
    assert set(values(check(graph, config), "op")) == {op}
    plain = compile_graph(graph, replace(config, memory=replace(config.memory, lines=0)))
    assert set(values(plain, "op")) == {LayerOp.CONV}


@pytest.mark.parametrize(("kernel", "stride", "rows", "op"), [
    ((3, 3), 1, 4, LayerOp.MAX_WINDOW),  # 9 taps a pixel, or one position
    ((2, 2), 1, 4, LayerOp.MAX_WINDOW),
    ((2, 2), 2, 4, LayerOp.MAX_POOL),  # 4 taps a pixel, or 4 positions: the same, but the window unit drains later
    ((1, 1), 1, 4, LayerOp.MAX_POOL),
    ((1, 1), 2, 4, LayerOp.MAX_POOL),  # the window unit would read what is skipped
    ((1, 2), 2, 4, LayerOp.MAX_POOL),
    ((5, 5), 1, 4, LayerOp.MAX_POOL),
])
def test_maxima_run_where_they_take_fewer_cycles(kernel: tuple[int, int], stride: int, rows: int, op: LayerOp) -> None:
    config = ArrayConfig("ternary", rows=rows, cols=4, memory=MemoryConfig(lines=16))
    graph = layer("max", 4, (8, 8), kernel=kernel, stride=(stride, stride), padding=(0, 0, 0, 0))
    assert values(check(graph, config), "op") == [op]


def test_depthwise_convolutions_run_where_they_take_fewer_cycles() -> None:
    """On a map of one pixel nothing but weights takes time, and a tile of the window unit has nine taps."""
    config = ArrayConfig("ternary", rows=8, cols=1, memory=MemoryConfig(lines=16))
    for kernel, op in (((1, 1), LayerOp.CONV), ((3, 3), LayerOp.DEPTHWISE)):
        graph = layer("conv", 32, (1, 1), groups=32, kernel=kernel, padding=(kernel[0] // 2,) * 4)
        programs = [check(graph, replace(config, memory=replace(config.memory, lines=lines))) for lines in (0, 16)]
        without, program = (each.estimate().cycles for each in programs)
        assert program == without if op is LayerOp.CONV else program < without
        assert set(values(programs[1], "op")) == {op}


# Groups ------------------------------------------------------------------------------------------------------------


def runs(channels: int, out: int, groups: int, rows: int, cols: int, *, compact: bool = False) -> tuple[Run, ...]:
    shape = LayerShape("layer", "conv", "x", "y", (3, 3), padding=(1, 1, 1, 1), groups=groups, planes=1)
    return geometry(shape, TensorShape("x", channels, 9, 9), TensorShape("y", out, 9, 9),
                    ArrayConfig("ternary", rows=rows, cols=cols), compact=compact).runs


def test_blocks_read_the_words_of_their_groups() -> None:
    # As many columns as lanes: every block of a depthwise convolution reads the next word.
    assert runs(12, 12, 12, 4, 4) == (Run(0, 3, 0, 1, 1),)
    assert runs(10, 10, 10, 4, 4) == (Run(0, 3, 0, 1, 1),)
    # Twice as many: two words.
    assert runs(16, 16, 16, 4, 8) == (Run(0, 2, 0, 2, 2),)
    # Half as many: two blocks read one word, which no step says; a descriptor for each word.
    assert runs(12, 12, 12, 4, 2) == (Run(0, 2, 0, 0, 1), Run(2, 2, 1, 0, 1), Run(4, 2, 2, 0, 1))
    # Two outputs of every input; two groups of two words and two blocks.
    assert runs(4, 8, 4, 2, 4) == (Run(0, 2, 0, 1, 1),)
    assert runs(16, 16, 2, 4, 4) == (Run(0, 2, 0, 0, 2), Run(2, 2, 2, 0, 2))
    # Groups across words.
    assert runs(12, 12, 2, 4, 4) == (Run(0, 3, 0, 0, 3),) or sum(run.blocks * run.words for run in runs(
        12, 12, 2, 4, 4)) < 9


def test_dense_convolutions_read_all_words() -> None:
    assert runs(12, 5, 1, 4, 2) == (Run(0, 3, 0, 0, 3),)


def test_few_descriptors_where_they_must_be() -> None:
    assert runs(12, 12, 12, 4, 2, compact=True) == (Run(0, 6, 0, 0, 3),)
    graph = layer("conv", 12, (9, 9), groups=12)
    config = ArrayConfig("ternary", rows=4, cols=2)
    program = check(graph, config)
    assert len(program.layers) == 3
    tight = replace(config, memory=replace(config.memory, layers=2))
    compact = check(graph, tight)
    assert len(compact.layers) == 1 and compact.estimate().cycles > program.estimate().cycles
    assert sum(each.macs for each in program.layers) == compact.layers[0].macs == 12 * 9 * 81
    # Where neither fits, what is asked for would do.
    with pytest.raises(CompileError, match=r"set memory\.weights to at least 648"):
        compile_graph(graph, replace(tight, memory=replace(tight.memory, weights=647)))


@pytest.mark.parametrize("seed", range(20))
def test_every_block_reads_all_that_its_groups_need(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = int(rng.integers(1, 9))
    channels, out = groups * int(rng.integers(1, 7)), groups * int(rng.integers(1, 7))
    rows, cols = rng.integers(1, 7, 2).tolist()
    found = runs(channels, out, groups, rows, cols, compact=bool(rng.integers(2)))
    read = {run.first_block + index: range(run.first_word + run.step * index,
                                           run.first_word + run.step * index + run.words)
            for run in found for index in range(run.blocks)}
    assert sorted(read) == list(range(-(-out // cols)))
    assert all(words.start >= 0 and words.stop <= -(-channels // rows) for words in read.values())
    for channel in range(out):
        group = channel // (out // groups)
        inputs = range(group * (channels // groups), (group + 1) * (channels // groups))
        assert {each // rows for each in inputs} <= set(read[channel // cols])
    assert all(run.first_block * cols % rows == 0 for run in found)


@pytest.mark.parametrize("fmt", ["ternary", "pot3", "pot4"])
@pytest.mark.parametrize("groups", [2, 3, 6])
def test_grouped_convolutions(fmt: str, groups: int) -> None:
    """With strips, planes where the format has no zero, and channels that fill neither words nor blocks."""
    for rows, cols in ((2, 4), (4, 2), (5, 3)):
        config = ArrayConfig(fmt, rows=rows, cols=cols, acc_bits=28, memory=MemoryConfig(accumulators=20))
        program = check(layer("conv", 12, (5, 7), fmt=fmt, out=18, groups=groups), config)
        assert set(values(program, "count_5")) == {0 if fmt == "ternary" else 1}
        assert program.estimate().macs == 18 * 12 // groups * 9 * 35


# Planes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("array", "weights", "planes"), [
    ("ternary", "ternary", 1), ("ternary", "int8", 8), ("int4", "int8", 3), ("int8", "int4", 1), ("exp4", "int8", 4),
    ("pot3", "ternary", 2), ("int8", "int12", 2), ("exp5", "pot4", 3),
])
def test_formats_run_as_planes(array: str, weights: str, planes: int) -> None:
    fmt = get_format(weights)
    graph = layer("conv", 5, (4, 5), fmt=array, out=7, own=fmt, seed=1)
    conv = graph.nodes[0]
    assert isinstance(conv, Conv)
    conv.weights.flat[:2] = fmt.levels[0], fmt.levels[-1]
    config = ArrayConfig(array, rows=2, cols=3, acc_bits=32, pe="multiplier" if array == "int8" else "shift")
    program = check(graph, config)
    assert set(values(program, "count_5")) == {planes - 1}
    assert program.estimate().macs == 7 * 5 * 9 * 20  # of the network, not of its planes
    shape = LayerShape("layer", "conv", "x", "y", (3, 3), padding=(1, 1, 1, 1), format=fmt)
    shapes = NetworkShape((TensorShape("x", 5, 4, 5), TensorShape("y", 7, 4, 5)), (shape,), "x", "y")
    planned = [each.values for each in plan_network(shapes, config).layers]
    assert [dict(each) for each in run_cycles(config, planned)] == [
        dict(each) for each in run_cycles(config, [each.values for each in program.layers])]


def test_few_planes_where_weights_are_small() -> None:
    """Weights decide, not what their format could hold."""
    graph = layer("conv", 5, (4, 5), own=get_format("int8"), out=7)
    conv = graph.nodes[0]
    assert isinstance(conv, Conv)
    conv.weights[...] = np.clip(conv.weights, -3, 3)
    assert values(check(graph, ArrayConfig("ternary", rows=2, cols=3)), "count_5") == [1]


def test_layers_of_one_network_have_formats_of_their_own() -> None:
    rng = np.random.default_rng(5)
    tensors = [Tensor(f"t{index}", 3, 4, 4, 0, 0) for index in range(4)]
    nodes = []
    for index, name in enumerate(("int8", "ternary", "exp4")):
        weights = rng.choice(get_format(name).levels, (3, 3, 3, 3)).astype(np.int32)
        nodes.append(Conv(name, f"t{index}", f"t{index + 1}", (3, 3), (1, 1), (1, 1, 1, 1), (1, 1),
                          rng.integers(-99, 99, 3), np.ones(3, np.int64), np.full(3, 4), -128, 127, weights=weights,
                          format=get_format(name)))
    graph = Graph(get_format("int4"), 8, 2, tuple(tensors), tuple(nodes), "t0", "t3", (3, 4, 4))
    assert values(check(graph, ArrayConfig("ternary", rows=2, cols=2)), "count_5") == [7, 0, 4]


# Weights -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [
    ArrayConfig("exp4", rows=2, cols=3, memory=MemoryConfig(accumulators=12, lines=8, weights=1 << 14)),
    ArrayConfig("exp4", rows=2, cols=3, weights="stream",
                memory=MemoryConfig(accumulators=12, lines=8, weights=3)),
], ids=lambda config: config.weights)
def test_weights_of_every_layer(config: ArrayConfig) -> None:
    """As many words as the loader takes, from where it takes them; strips of one node take the same."""
    rng = np.random.default_rng(3)
    x, y, z = (Tensor(name, channels, 6, 5, 0, 0) for name, channels in (("x", 4), ("y", 4), ("z", 5)))
    nodes = []
    for source, target, groups in ((x, y, 4), (y, z, 1)):
        count = target.channels
        weights = rng.choice(config.format.levels, (count, 4 // groups, 3, 3)).astype(np.int32)
        nodes.append(Conv(f"to {target.name}", source.name, target.name, (3, 3), (1, 1), (1,) * 4, (1, 1),
                          np.zeros(count, np.int64), np.ones(count, np.int64), np.full(count, 6), -128, 127,
                          weights=weights, groups=groups))
    graph = Graph(config.format, 8, 2, (x, y, z), tuple(nodes), "x", "z", z.shape)
    program = check(graph, config)
    assert [each.node for each in program.layers] == ["to y", *["to z"] * 3]
    assert program.layers[0].values["op"] == LayerOp.DEPTHWISE
    for each in program.layers:
        assert len(each.weights) == prod(weight_tiles(config, each.values))
        assert each.values["weight_base"] == (each.weights.start if config.weights == "memory" else 0)
    assert program.layers[1].weights == program.layers[3].weights
    words = program.weights.reshape(-1, host_words(config))
    taken = [words[each.weights.start:each.weights.stop] for each in program.layers]
    np.testing.assert_array_equal(program.weight_stream, np.concatenate(taken).reshape(-1))


def test_depthwise_tiles() -> None:
    """A tile per word: groups of rows, whose columns stand for taps; a smaller kernel's taps are the last."""
    config = ArrayConfig("int4", rows=2, cols=4, lanes=2, memory=MemoryConfig(lines=8))
    for stride, order in ((1, (0, 1, 2)), (2, (1, 0, 2))):
        graph = layer("conv", 6, (5, 5), fmt="int4", groups=6, kernel=(2, 3), stride=(1, stride))
        conv, program = graph.nodes[0], compile_graph(graph, config)
        assert isinstance(conv, Conv) and program.layers[0].values["pair"] == stride - 1
        codes = unpack_words(program.weights.reshape(-1, host_words(config)), 4, 8).reshape(2, 3, 2, 4, 2)
        for word, row, lane, tap in product(range(2), range(2), range(2), range(12)):
            channel, (ky, slot) = 4 * word + 2 * row + lane, divmod(tap, 3)
            real = channel < 6 and 1 <= ky < 3
            assert codes[word, tap // 4, row, tap % 4, lane] == (
                conv.weights[channel, 0, ky - 1, order[slot]] if real else 0)
