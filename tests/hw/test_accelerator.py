"""The whole machine in Amaranth's simulator: tiny networks, equal to the golden model in codes and in cycles."""

from collections import deque
from dataclasses import replace

import numpy as np
import pytest
from amaranth.sim import Simulator

from nomul.compiler import CompileError, compile_graph
from nomul.driver import StreamDevice
from nomul.estimate import estimate
from nomul.graph import Conv, Graph, Pool, Tensor
from nomul_hw.accelerator import Accelerator
from nomul_hw.config import ArrayConfig, MemoryConfig
from nomul_hw.contents import Contents
from nomul_hw.descriptor import HOST_BITS, Opcode, Target, target_word_bits
from nomul_hw.formats import FORMATS, MAX_MULTIPLES
from nomul_hw.timing import WeightSource
from nomul_sim import golden

from ..graphs import input_codes
from .vectors import MULTIPLIERS, cells, join

MEMORY = MemoryConfig(activations=128, weights=512, parameters=64, accumulators=16, layers=8)


class PythonTransport:
    """Host words to and from an accelerator in Amaranth's simulator; time stands still between transfers."""

    def __init__(self, config: ArrayConfig, contents: Contents | None = None, source: WeightSource | None = None):
        self.config = config
        self.sending: deque[int] = deque()
        self.received: deque[int] = deque()
        self.weights: list[int] = []
        dut = Accelerator(config, contents)
        self.simulator = Simulator(dut)
        self.simulator.add_clock(1e-6)

        async def sender(ctx):
            while True:
                ctx.set(dut.i.valid, bool(self.sending))
                ctx.set(dut.i.payload, self.sending[0] if self.sending else 0)
                _, _, valid, ready = await ctx.tick().sample(dut.i.valid, dut.i.ready)
                if valid and ready:
                    self.sending.popleft()

        async def receiver(ctx):
            ctx.set(dut.o.ready, 1)
            while True:
                _, _, valid, payload = await ctx.tick().sample(dut.o.valid, dut.o.payload)
                if valid:
                    self.received.append(payload)

        async def weight_source(ctx):
            offered, sent, cycle = False, 0, 0
            while True:
                if ctx.get(dut.busy):
                    offered = offered or (sent < len(self.weights) and source.pattern[cycle % len(source.pattern)])
                    cycle += 1
                else:
                    offered, sent, cycle = False, 0, 0
                ctx.set(dut.weights.valid, offered)
                ctx.set(dut.weights.payload, self.weights[sent] if offered else 0)
                _, _, ready = await ctx.tick().sample(dut.weights.ready)
                if offered and ready:
                    offered, sent = False, sent + 1

        if source is not None:
            self.simulator.add_testbench(weight_source)
        self.simulator.add_testbench(sender)
        self.simulator.add_testbench(receiver)

    def feed(self, words):
        per_word = -(-self.config.weight_word_bits // HOST_BITS)
        self.weights = [join(parts, HOST_BITS) for parts in words.reshape(-1, per_word).tolist()]

    def transfer(self, words, replies, *, timeout=100_000):
        self.sending.extend(np.asarray(words).tolist())
        while self.sending or len(self.received) < replies:
            self.simulator.advance()
            timeout -= 1
            assert timeout, f"{len(self.sending)} words not sent, {len(self.received)} of {replies} received"
        return np.array([self.received.popleft() for _ in range(replies)], dtype=np.uint32)


def tiny_network(config: ArrayConfig, rng: np.random.Generator) -> Graph:
    """Padding and strides, a pool of each kind, a layer that reads a flattened map; shared by no other layer."""
    smallest = -(1 << config.act_bits - 1)

    def common(name, source, target, channels, kernel, stride=(1, 1), padding=(0, 0, 0, 0), shift=6):
        return {"name": name, "input": source, "output": target, "kernel": kernel, "stride": stride,
                "padding": padding, "dilation": (1, 1), "bias": rng.integers(-300, 300, channels),
                "multiplier": rng.choice(config.gain_multipliers, channels),
                "shift": rng.integers(shift - 2, shift + 2, channels), "low": smallest, "high": -smallest - 1}

    def weights(*shape):
        return rng.choice(config.format.levels, shape).astype(np.int32)

    pad = (1, 1, 1, 1)
    nodes = (
        Conv(**common("conv", "x", "a", 5, (3, 3), (2, 1), pad), weights=weights(5, 3, 3, 3)),
        Pool(**common("max", "a", "b", 5, (2, 2), padding=(0, 0, 1, 1), shift=3), kind="max"),
        Conv(**common("point", "b", "c", 4, (1, 1)), weights=weights(4, 5, 1, 1)),
        Pool(**common("sum", "c", "d", 4, (1, 2), (1, 2), shift=4), kind="sum"),
        Conv(**common("linear", "d", "y", 7, (2, 2)), weights=weights(7, 4, 2, 2)),
    )
    sizes = {"x": (3, 4, 4), "a": (5, 2, 4), "b": (5, 2, 4), "c": (4, 2, 4), "d": (4, 2, 2), "y": (7, 1, 1)}
    zero_points = dict(zip(sizes, (0, smallest, smallest, 0, smallest, 0), strict=True))
    tensors = tuple(Tensor(name, *size, 0, zero_points[name]) for name, size in sizes.items())
    return Graph(config.format, config.act_bits, config.gain_terms, tensors, nodes, "x", "y", (7,))


@pytest.mark.parametrize("config", [
    ArrayConfig("exp4", 2, 3, memory=MEMORY),
    ArrayConfig("ternary", 2, 2, lanes=2, act_bits=4, gain_terms=3, memory=MEMORY),
    ArrayConfig("int4", 3, 2, pe="multiplier", acc_bits=20, gain_terms=1, memory=MEMORY),
], ids=lambda config: config.name)
def test_network(config):
    """Zero bits and zero cycles of difference."""
    rng = np.random.default_rng(config.depth)
    graph = tiny_network(config, rng)
    codes = input_codes(graph, rng, 2)
    program = compile_graph(graph, config)
    expected = golden.run(graph, codes)
    assert expected["y"].std() > 1  # not stuck at a clamp
    result = StreamDevice(PythonTransport(config)).run(program, codes)
    np.testing.assert_array_equal(result.outputs, expected["y"])
    assert result.counters == (estimate(program).accounting,) * len(codes)


def test_built_in_network():
    """The same without loading anything."""
    rng = np.random.default_rng(1)
    config = ArrayConfig("exp4", 2, 3, memory=MEMORY)
    graph = tiny_network(config, rng)
    codes = input_codes(graph, rng, 2)
    program = compile_graph(graph, config)
    transport = PythonTransport(config, program.contents)
    for target in (Target.PROGRAM, Target.PARAMETER, Target.WEIGHT):  # nothing can be written over it
        words = 5 * -(-target_word_bits(config, target) // HOST_BITS)
        transport.transfer([Opcode.WRITE | target << 8, 0, 5, *[77] * words], 0)
    result = StreamDevice(transport).run(program, codes)
    np.testing.assert_array_equal(result.outputs, golden.run(graph, codes)["y"])
    assert result.counters == (estimate(program).accounting,) * len(codes)


@pytest.mark.parametrize("pattern", [[1], [0, 0, 1], [1] * 50 + [0] * 150])
def test_streamed_weights(pattern):
    """Weights from outside, as fast as they are needed, slower, and with long silences."""
    rng = np.random.default_rng(2)
    config = ArrayConfig("exp4", 2, 3, weights="stream", memory=replace(MEMORY, weights=9))
    graph = tiny_network(config, rng)
    codes = input_codes(graph, rng, 2)
    program, source = compile_graph(graph, config), WeightSource(pattern)
    device = StreamDevice(PythonTransport(config, source=source))
    result = device.run(program, codes)
    np.testing.assert_array_equal(result.outputs, golden.run(graph, codes)["y"])
    expected = estimate(program, source).accounting
    assert result.counters == (expected,) * len(codes)
    assert (expected["memory"] > 0) == (len(pattern) > 1)


def test_blocks_beyond_the_last_channel():
    """An array of more columns than a word has channels writes words that no tensor has: they need room as well."""
    rng = np.random.default_rng(1)
    config = ArrayConfig("ternary", 1, 4, memory=replace(MEMORY, activations=36))
    conv = Conv("conv", "x", "y", (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), np.array([5]), np.array([1]), np.array([0]),
                -128, 127, weights=np.array([[[[-1]]]], dtype=np.int32))
    graph = Graph(config.format, 8, 2, (Tensor("x", 1, 3, 3, 0, 0), Tensor("y", 1, 3, 3, 0, 0)), (conv,), "x", "y",
                  (1, 3, 3))
    codes = input_codes(graph, rng, 1)
    result = StreamDevice(PythonTransport(config)).run(compile_graph(graph, config), codes)
    np.testing.assert_array_equal(result.outputs, golden.run(graph, codes)["y"])
    with pytest.raises(CompileError, match="'conv': a tensor of 36 words"):
        compile_graph(graph, replace(config, memory=replace(MEMORY, activations=35)))


#: Formats of the accelerators that test_verilog.py turns into netlists, and looks for multipliers in.
ELSEWHERE = {"binary", "ternary", "exp4", "exp5", "int4"}


@pytest.mark.parametrize("name", [fmt.name for fmt in FORMATS.values()
                                  if len(fmt.multiples) <= MAX_MULTIPLES and fmt.name not in ELSEWHERE])
def test_no_multiplier(name):
    """Nowhere in the machine, whatever the format."""
    assert not set(cells(Accelerator(ArrayConfig(name, 1, 1, memory=MEMORY)))) & MULTIPLIERS
