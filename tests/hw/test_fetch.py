"""The address generator against plain loops over compiled layers; padding for every mask."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from amaranth.hdl import Value

from nomul.compiler import CompileError, compile_graph
from nomul.compiler.banks import with_copies
from nomul.compiler.input_packing import packed_graph
from nomul.graph import Conv, Node, Tensor
from nomul_hw.arithmetic import act_range
from nomul_hw.config import ArrayConfig, MemoryConfig
from nomul_hw.descriptor import DESCRIPTOR, LayerOp, unpack
from nomul_hw.fetch import AddressGenerator, Padding
from nomul_hw.layouts import token_layout

from ..graphs import random_graph
from .simulate import simulate, trace
from .vectors import descriptor, join, split

CONFIGS = [
    ArrayConfig("ternary", 2, 3, acc_bits=32, memory=MemoryConfig(4096, 1 << 16, 4096, 16, 64)),
    ArrayConfig("exp4", 1, 2, lanes=4, acc_bits=32, memory=MemoryConfig(1 << 16, 1 << 16, 4096, 64, 64)),
    ArrayConfig("pot3", 1, 1, acc_bits=32, memory=MemoryConfig(5000, 1 << 16, 4096, 40, 64)),
]


@dataclass(frozen=True)
class Word:
    """What the generator says of a word; ``address`` is None where the word lies outside the input."""

    address: int | None
    first: bool
    last: bool
    tile: bool
    pixel: int
    block_last: bool
    layer_last: bool
    edge: bool
    last_tile: bool | None  # only of the first word of a tile


def plain_loops(node: Node, source: Tensor, target: Tensor, base: int, rows: range, config: ArrayConfig
                ) -> Iterator[Word]:
    """Walk a node's loops over the given output rows, from its geometry alone."""
    depth, cols = config.depth, config.cols
    words = -(-source.channels // depth)
    blocks = -(-target.channels // cols)
    kernel_rows, kernel_columns = node.kernel

    def address(word, oy, ox, ky, kx):
        y = oy * node.stride[0] + ky * node.dilation[0] - node.padding[0]
        x = ox * node.stride[1] + kx * node.dilation[1] - node.padding[1]
        if not (0 <= y < source.height and 0 <= x < source.width):
            return None
        return base + (word * source.height + y) * source.width + x

    pixels = [(oy, ox) for oy in rows for ox in range(target.width)]
    taps = [(ky, kx) for ky in range(kernel_rows) for kx in range(kernel_columns)]
    if isinstance(node, Conv):
        passes = [(ky, kx, word) for ky, kx in taps for word in range(words)]
        for block in range(blocks):
            for index, (ky, kx, word) in enumerate(passes):
                last = index == len(passes) - 1
                for pixel, (oy, ox) in enumerate(pixels):
                    done = last and pixel == len(pixels) - 1
                    tile = pixel == 0
                    yield Word(address(word, oy, ox, ky, kx), index == 0, last, tile, pixel, done,
                               done and block == blocks - 1, word == words - 1,
                               (last and block == blocks - 1) if tile else None)
    else:
        for word in range(words):
            for pixel, (oy, ox) in enumerate(pixels):
                for index, (ky, kx) in enumerate(taps):
                    last = index == len(taps) - 1
                    done = last and pixel == len(pixels) - 1
                    yield Word(address(word, oy, ox, ky, kx), index == 0, last, False, pixel, done,
                               done and word == words - 1, False, None)


def compiled_layers(config: ArrayConfig, rng: np.random.Generator, count: int) -> list[tuple[int, list[Word]]]:
    """Descriptors of random nodes, some of several strips, with the words that they stand for."""
    layers: list[tuple[int, list[Word]]] = []
    while len(layers) < count:
        graph = random_graph(rng, nodes=1, fmt=config.format, act_bits=config.act_bits, gain_terms=config.gain_terms)
        try:
            program = compile_graph(graph, config)
        except CompileError:
            continue  # too large for these memories
        graph, _ = with_copies(packed_graph(graph, program.input_window))
        remaining = list(program.layers)
        strips = []
        for node in graph.nodes:
            source, target = graph.tensor(node.input), graph.tensor(node.output)
            top = 0
            while top < target.height:
                layer = remaining.pop(0)
                is_conv = layer.values["op"] == LayerOp.CONV
                height = layer.values["count_1" if is_conv else "count_3"] + 1
                words = list(plain_loops(node, source, target, program.placements[node.input].address,
                                         range(top, top + height), config))
                strips.append((descriptor(**layer.values), words))
                top += height
            assert top == target.height
        assert not remaining
        if sum(len(words) for _, words in strips) < 500:
            layers += strips
    return layers


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
@pytest.mark.parametrize("weights", ["ready", "slow"])
def test_walk(config, weights):
    """Layer after layer, word after word, and what every cycle is spent on."""
    rng = np.random.default_rng([config.depth, weights == "slow"])
    layers = compiled_layers(config, rng, 12)
    assert any(word.address is None for _, words in layers for word in words)
    dut = AddressGenerator(config)
    upcoming, layer, token = Value.cast(dut.upcoming), Value.cast(dut.layer), Value.cast(dut.token)
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
                    assert Word(
                        None if ctx.get(dut.outside) else ctx.get(dut.address),
                        *(bool(fields[name]) for name in ("first", "last", "tile")), fields.pixel,
                        *(bool(fields[name]) for name in ("block_last", "layer_last")), bool(ctx.get(dut.edge)),
                        bool(ctx.get(dut.last_tile)) if want.tile else None,
                    ) == want
                    hold = unpack(DESCRIPTOR, word)["hold"] if want.last else 0
                    at += 1
                await ctx.tick()
        for _ in range(3):
            assert not ctx.get(dut.running) and not ctx.get(token) & 1
            await ctx.tick()

    simulate(dut, testbench, timeout=100_000)


@pytest.mark.parametrize("hold", [0, 1, 255, 511, 1023])
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
            layer = descriptor(edge_lanes=edge_lanes, pad_low=pad_low)
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
