"""The address generator against plain loops over compiled layers; padding for every mask."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from amaranth.hdl import Value

from nomul.compiler import CompileError, compile_graph
from nomul.compiler.banks import with_copies
from nomul.compiler.input_packing import packed_graph
from nomul.compiler.loops import Run
from nomul.compiler.plan import plan_network
from nomul.graph import Concat, Conv, Graph, Node, Pool, Tensor, window_output
from nomul.shapes import network_shape
from nomul_hw.arithmetic import act_range
from nomul_hw.config import ArrayConfig, MemoryConfig
from nomul_hw.descriptor import DESCRIPTOR, LayerOp, unpack
from nomul_hw.fetch import AddressGenerator, Padding
from nomul_hw.formats import get_format
from nomul_hw.layouts import token_layout, window_layout

from ..graphs import random_graph
from .simulate import simulate, trace
from .vectors import descriptor, join, split

CONFIGS = [
    ArrayConfig("ternary", 2, 3, acc_bits=32, memory=MemoryConfig(4096, 1 << 16, 4096, 16, 64, 11)),
    ArrayConfig("exp4", 1, 2, lanes=4, acc_bits=32, memory=MemoryConfig(1 << 16, 1 << 16, 4096, 64, 64, 16)),
    ArrayConfig("pot3", 1, 1, acc_bits=32, memory=MemoryConfig(5000, 1 << 16, 4096, 40, 64)),
]


@dataclass(frozen=True)
class Word:
    """What the generator says of a word; ``address`` is None where the word lies outside the input."""

    address: int | None
    first: bool
    last: bool
    tile: bool
    shift: bool
    pixel: int
    block_last: bool
    layer_last: bool
    edge: bool
    last_tile: bool | None = None  # only of the first word of a tile
    #: Of the window unit: index in the row, first of it, first and second row, left column of a pair outside.
    window: tuple[int, bool, bool, bool, bool] | None = None


@dataclass(frozen=True)
class Layer:
    """A node, or what one descriptor does of it."""

    node: Node
    source: Tensor
    target: Tensor
    base: int  # address of the input
    config: ArrayConfig

    def address(self, word: int, y: int, x: int) -> int | None:
        """Where a word of the input lies; None outside the map."""
        if not (0 <= y < self.source.height and 0 <= x < self.source.width):
            return None
        return self.base + (word * self.source.height + y) * self.source.width + x

    def tap(self, word: int, oy: int, ox: int, ky: int, kx: int) -> int | None:
        node = self.node
        return self.address(word, oy * node.stride[0] + ky * node.dilation[0] - node.padding[0],
                            ox * node.stride[1] + kx * node.dilation[1] - node.padding[1])

    def conv(self, rows: range, run: Run, planes: int, shifts: int) -> Iterator[Word]:
        """Blocks of output channels, planes, taps and channel words, and for each all output pixels."""
        pixels = [(oy, ox) for oy in rows for ox in range(self.target.width)]
        passes = [(plane, ky, kx, word) for plane in range(planes) for ky in range(self.node.kernel[0])
                  for kx in range(self.node.kernel[1]) for word in range(run.words)]
        for block in range(run.blocks):
            for index, (plane, ky, kx, word) in enumerate(passes):
                last, last_block = index == len(passes) - 1, block == run.blocks - 1
                shift = (ky, kx, word) == (0, 0, 0) and bool(shifts >> plane & 1)
                for pixel, (oy, ox) in enumerate(pixels):
                    done, tile = last and pixel == len(pixels) - 1, pixel == 0
                    yield Word(self.tap(run.first_word + block * run.step + word, oy, ox, ky, kx), index == 0, last,
                               tile, shift, pixel, done, done and last_block, word == run.words - 1,
                               (last and last_block) if tile else None)

    def pool(self) -> Iterator[Word]:
        """Channel words, output pixels, and for each all taps."""
        words = -(-self.source.channels // self.config.depth)
        pixels = [(oy, ox) for oy in range(self.target.height) for ox in range(self.target.width)]
        taps = [(ky, kx) for ky in range(self.node.kernel[0]) for kx in range(self.node.kernel[1])]
        for word in range(words):
            for pixel, (oy, ox) in enumerate(pixels):
                for index, (ky, kx) in enumerate(taps):
                    last = index == len(taps) - 1
                    done = last and pixel == len(pixels) - 1
                    yield Word(self.tap(word, oy, ox, ky, kx), index == 0, last, False, False, pixel, done,
                               done and word == words - 1, False)

    def window(self, pair: bool) -> Iterator[Word]:
        """Channel words, and for each all that the windows cover, row by row; a word is the later one of a pair."""
        words, weights = -(-self.source.channels // self.config.depth), isinstance(self.node, Conv)
        rows, last_rows = self.visits(0, self.target.height, 1, 1)
        columns, last_columns = self.visits(1, self.target.width, 1 + pair, 2)
        for word in range(words):
            pixel = 0
            for row, y in enumerate(rows):
                for column, x in enumerate(columns):
                    last, tile = y in last_rows and x in last_columns, weights and row == column == 0
                    done = (y, x) == (rows[-1], columns[-1])
                    yield Word(self.address(word, y, x), True, last, tile, False, pixel, done,
                               done and word == words - 1, False, (word == words - 1) if tile else None,
                               (column, column == 0, row == 0, row == 1, self.address(word, y, x - 1) is None))
                    pixel += last

    def visits(self, axis: int, outputs: int, step: int, least: int) -> tuple[list[int], set[int]]:
        """Coordinates that are visited, and those of them that end windows."""
        node = self.node
        ends = [output * node.stride[axis] - node.padding[axis] + node.kernel[axis] - 1 for output in range(outputs)]
        visited = [ends[-1]]
        while visited[0] > min(step - 1, ends[0]) or len(visited) < least:
            visited.insert(0, visited[0] - step)
        return visited, set(ends)


def small_graph(rng: np.random.Generator, config: ArrayConfig) -> Graph:
    """A depthwise convolution or a maximum that suits the window unit, or a convolution that takes planes."""
    kernel = tuple(rng.integers(1, 4, 2).tolist())
    stride = tuple(rng.integers(1, 3, 2).tolist())
    padding = tuple(int(rng.integers(0, kernel[side % 2] + 1)) for side in range(4))
    size = [max(1, kernel[axis] - padding[axis] - padding[axis + 2], int(rng.integers(1, 8))) for axis in range(2)]
    output = [window_output(size[axis], kernel[axis], stride[axis], padding[axis], padding[axis + 2])
              for axis in range(2)]
    channels = int(rng.integers(1, config.depth + 2))
    x, y = Tensor("x", channels, *size, 0, 0), Tensor("y", channels, *output, 0, 0)
    zeros = np.zeros(channels, np.int64)
    common = ("node", "x", "y", kernel, stride, padding, (1, 1), zeros, zeros + 1, zeros + 3, -128, 127)
    kind, node = rng.choice(["depthwise", "max", "planes"]), Pool(*common, kind="max")
    if kind != "max":
        fmt, groups = (config.format, channels) if kind == "depthwise" else (get_format("int8"), 1)
        weights = rng.choice(fmt.levels, (channels, channels // groups, *kernel)).astype(np.int32)
        node = Conv(*common, weights=weights, groups=groups, format=fmt)
    return Graph(config.format, config.act_bits, config.gain_terms, (x, y), (node,), "x", "y", y.shape)


def compiled_layers(config: ArrayConfig, rng: np.random.Generator, count: int) -> list[tuple[int, list[Word]]]:
    """Descriptors of random nodes, some of several strips and runs, with the words that they stand for."""
    layers: list[tuple[int, list[Word]]] = []
    while len(layers) < count:
        graph = small_graph(rng, config) if len(layers) % 2 else random_graph(
            rng, nodes=1, fmt=config.format, act_bits=config.act_bits, gain_terms=config.gain_terms, mixed=True)
        if any(isinstance(node, Concat) for node in graph.nodes):
            continue
        try:
            program = compile_graph(graph, config)
        except CompileError:
            continue  # too large for these memories
        weights = {node.name: node.weights for node in graph.computing if isinstance(node, Conv)}
        plan = plan_network(network_shape(graph), config, weights=weights)
        graph, _ = with_copies(packed_graph(graph, program.input_window))
        remaining, found = list(program.layers), []
        for node, geometry in zip(graph.computing, plan.geometries, strict=True):
            walk = Layer(node, graph.tensor(node.input), graph.tensor(node.output),
                         program.placements[node.input].address, config)
            for run in geometry.runs if geometry.op is LayerOp.CONV else [None]:
                top = 0
                while top < walk.target.height:
                    values = remaining.pop(0).values
                    assert values["op"] == geometry.op
                    rows = range(top, walk.target.height)
                    if run is not None:
                        rows = range(top, top + values["count_1"] + 1)
                        words = walk.conv(rows, run, geometry.layer.planes, values["shifts"])
                    else:
                        words = walk.window(bool(values["pair"])) if geometry.op.is_window else walk.pool()
                    found.append((descriptor(**values), list(words)))
                    top = rows.stop
                assert top == walk.target.height
        assert not remaining
        if sum(len(words) for _, words in found) < 250:
            layers += found
    return layers


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
@pytest.mark.parametrize("weights", ["ready", "slow"])
def test_walk(config, weights):
    """Layer after layer, word after word, and what every cycle is spent on."""
    rng = np.random.default_rng([config.cols, weights == "slow"])
    layers = compiled_layers(config, rng, 40)
    everything = [word for _, words in layers for word in words]
    assert any(word.address is None for word in everything) and any(word.shift for word in everything)
    assert any(word.window for word in everything) == (config.memory.lines > 0)
    dut = AddressGenerator(config)
    upcoming, layer, token = Value.cast(dut.upcoming), Value.cast(dut.layer), Value.cast(dut.token)
    window = Value.cast(dut.window)
    layout = token_layout(config)

    async def testbench(ctx):
        for word, expected in layers:
            assert not ctx.get(dut.running) and not ctx.get(token) & 1
            ctx.set(upcoming, word)
            ctx.set(dut.start, 1)
            await ctx.tick()
            ctx.set(dut.start, 0)
            ctx.set(upcoming, int.from_bytes(rng.bytes(len(upcoming) // 8)))
            ctx.set(layer, word)
            hold, at = 0, 0
            while at < len(expected):
                ready = int(weights == "ready" or rng.random() < 0.2)
                ctx.set(dut.weights_ready, ready)
                spent = [ctx.get(port) for port in (dut.holds, dut.waits_for_weights, token)]
                spent[2] &= 1
                assert ctx.get(dut.running)
                want = expected[at]
                if hold:
                    assert spent == [1, 0, 0]
                    hold -= 1
                elif want.tile and not ready:
                    assert spent == [0, 1, 0]
                else:
                    assert spent == [0, 0, 1]
                    fields = layout.from_bits(ctx.get(token))
                    place = window_layout(config).from_bits(ctx.get(window))
                    assert Word(
                        None if ctx.get(dut.outside) else ctx.get(dut.address),
                        *(bool(fields[name]) for name in ("first", "last", "tile", "shift")), fields.pixel,
                        *(bool(fields[name]) for name in ("block_last", "layer_last")), bool(ctx.get(dut.edge)),
                        bool(ctx.get(dut.last_tile)) if want.tile else None,
                        (place.column, *(bool(place[name]) for name in ("first_column", "row_0", "row_1",
                                                                        "before_outside"))) if want.window else None,
                    ) == want
                    hold = unpack(DESCRIPTOR, word)["hold"] if want.last else 0
                    at += 1
                await ctx.tick()
        for _ in range(3):
            assert not ctx.get(dut.running) and not ctx.get(token) & 1
            await ctx.tick()

    simulate(dut, testbench, timeout=100_000)


@pytest.mark.parametrize("hold", [0, 1, 255, 511])
def test_hold(hold):
    """As many idle cycles as the descriptor's field can say."""
    config = CONFIGS[0]
    word = descriptor(op=LayerOp.SUM_POOL, hold=hold, count_2=1)
    outputs = trace(AddressGenerator(config), {"upcoming": [word] * (hold + 5), "layer": [word] * (hold + 5),
                                               "start": [1] + [0] * (hold + 4)}, ["token", "holds", "running"])
    assert [cycle for cycle, token in enumerate(outputs["token"]) if token & 1] == [1, hold + 2]
    assert sum(outputs["holds"]) == hold
    assert sum(outputs["running"]) == hold + 2


@pytest.mark.parametrize("act_bits", [8, 4, 2])
@pytest.mark.parametrize("rows, lanes", [(2, 2), (5, 1), (1, 1)])
def test_padding(act_bits, rows, lanes):
    """Every number of lanes at the edge, either padding, in and out of the map."""
    config = ArrayConfig("ternary", rows, 1, lanes, act_bits=act_bits)
    rng = np.random.default_rng(act_bits)
    low, high = act_range(act_bits)
    stimulus = {name: [] for name in ("layer", "outside", "edge", "data")}
    expected = []
    for edge_lanes in range(1, config.depth + 1):
        for pad_low in (0, 1):
            layer = descriptor(edge_last=edge_lanes - 1, pad_low=pad_low)
            for outside, edge in [(0, 0), (0, 1), (1, 0), (1, 1), *rng.integers(0, 2, (6, 2)).tolist()]:
                values = rng.integers(low, high, config.depth, endpoint=True)
                values[int(rng.integers(config.depth))] = rng.choice([low, high])
                for name, value in zip(stimulus, (layer, outside, edge, join(values, act_bits)), strict=True):
                    stimulus[name].append(value)
                pad = low if pad_low else 0
                expected.append([pad if outside or (edge and lane >= edge_lanes) else int(value)
                                 for lane, value in enumerate(values)])
            # Nothing changes under a word on its way: the layer is stable until it is done.
            for name, value in zip(stimulus, (layer, 0, 0, 0), strict=True):
                stimulus[name] += [value] * 2
            expected += [[0] * config.depth] * 2
    # Memory returns a word one cycle after it was issued, and the padding takes another.
    stimulus["data"] = [0, *stimulus["data"][:-1]]
    word = trace(Padding(config), stimulus, ["word"])["word"]
    assert [split(each, act_bits, config.depth) for each in word[2:]] == expected[:-2]
