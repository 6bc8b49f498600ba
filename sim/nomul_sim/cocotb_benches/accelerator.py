"""The whole accelerator behind its host stream, driven by the driver that users call."""

import json
import os
from collections.abc import Callable
from typing import Protocol

import cocotb
import numpy as np
import numpy.typing as npt
from cocotb.clock import Clock
from cocotb.handle import LogicArrayObject, LogicObject
from cocotb.task import bridge, resume
from cocotb.triggers import FallingEdge, ReadOnly

from nomul.compiler import Program, compile_graph
from nomul.driver import DeviceError, StreamDevice
from nomul_hw.config import ArrayConfig
from nomul_hw.descriptor import COUNTERS, HOST_BITS, Opcode, Target
from nomul_hw.timing import WeightSource, run_cycles

from .. import golden
from ..random_layers import random_layers
from ..random_nodes import Case
from .runner import BENCH_CONFIG

Words = npt.NDArray[np.uint32]

CONFIG = ArrayConfig.from_dict(json.loads(os.environ[BENCH_CONFIG]))


#: When streamed weights are offered: seldom, often, not for long, all the time.
SOURCE = WeightSource((np.random.default_rng(7).random(400) < np.repeat([0.1, 0.6, 0, 1], 100)).tolist())


class Ports(Protocol):
    """Ports of the accelerator; those of a weight stream only if there is one."""

    clk: LogicObject
    rst: LogicObject
    i__payload: LogicArrayObject
    i__valid: LogicObject
    i__ready: LogicObject
    o__payload: LogicArrayObject
    o__valid: LogicObject
    o__ready: LogicObject
    busy: LogicObject
    weights__payload: LogicArrayObject
    weights__valid: LogicObject
    weights__ready: LogicObject


class HostStream:
    """Transport over the ports of a simulated accelerator, with pauses on both streams.

    Watches what a stream must keep to: a word that is offered stays, unchanged, until it is taken.

    Parameters
    ----------
    dut : Ports
        The accelerator.
    pause_in, pause_out : float
        Probability, per cycle, that no new word is offered and that no word is taken.
    seed : int
        Of the pauses.
    max_idle_cycles : int
        Give up when no word has moved for so long.
    """

    def __init__(self, dut: Ports, pause_in: float, pause_out: float, seed: int,
                 max_idle_cycles: int = 20_000) -> None:
        self.dut = dut
        self.config = CONFIG
        self.pause_in, self.pause_out = pause_in, pause_out
        self.max_idle_cycles = max_idle_cycles
        self._random = np.random.default_rng(seed)
        self._untaken: int | None = None
        self._weights: list[int] = []
        if CONFIG.weights == "stream":
            cocotb.start_soon(self._offer_weights())

    def feed(self, words: Words) -> None:
        """Give the weights that every run takes from now on."""
        per_word = -(-CONFIG.weight_word_bits // HOST_BITS)
        self._weights = [sum(part << HOST_BITS * index for index, part in enumerate(parts))
                         for parts in words.reshape(-1, per_word).tolist()]

    async def _offer_weights(self) -> None:
        """Offer the words to every run, in the cycles of the source's pattern."""
        dut, offered, sent, cycle = self.dut, False, 0, 0
        while True:
            await FallingEdge(dut.clk)
            if not dut.busy.value:
                offered, sent, cycle = False, 0, 0
            elif not offered and sent < len(self._weights):
                offered = SOURCE.pattern[cycle % len(SOURCE.pattern)]
            cycle += 1
            dut.weights__valid.value = int(offered)
            dut.weights__payload.value = self._weights[sent] if offered else 0
            await ReadOnly()
            if offered and dut.weights__ready.value:
                offered, sent = False, sent + 1

    def transfer(self, words: Words, replies: int) -> Words:
        """Send words and collect replies; for code that runs beside the simulation (``bridge``)."""
        exchange: Callable[[list[int], int], list[int]] = resume(self.exchange)
        return np.array(exchange(words.tolist(), replies), dtype=np.uint32)

    async def exchange(self, words: list[int], replies: int) -> list[int]:
        """Send words and collect replies; both streams run at once."""
        dut, received = self.dut, list[int]()
        sent, offered, idle = 0, False, 0
        while sent < len(words) or len(received) < replies:
            await FallingEdge(dut.clk)
            if not offered and sent < len(words) and self._random.random() >= self.pause_in:
                dut.i__payload.value = words[sent]
                offered = True
            dut.i__valid.value = int(offered)
            taking = len(received) < replies and self._random.random() >= self.pause_out
            dut.o__ready.value = int(taking)
            # What the streams show now is what the next rising edge will see.
            await ReadOnly()
            idle += 1
            if offered and dut.i__ready.value:
                sent, offered, idle = sent + 1, False, 0
            word = self._watch(taking)
            if taking and word is not None:
                received.append(word)
                idle = 0
            if idle > self.max_idle_cycles:
                raise DeviceError(f"no word moved for {idle} cycles: {sent} of {len(words)} words sent, "
                                  f"{len(received)} of {replies} replies received")
        await FallingEdge(dut.clk)
        dut.i__valid.value = 0
        dut.o__ready.value = 0
        return received

    def _watch(self, taking: bool) -> int | None:
        """Check the output stream's rules; return the word that is offered."""
        dut = self.dut
        word = dut.o__payload.value.to_unsigned() if dut.o__valid.value else None
        if self._untaken is not None and word != self._untaken:
            raise DeviceError(f"word {self._untaken:#x} was offered, not taken, and then became {word}")
        self._untaken = None if taking else word
        return word

    async def silent(self, cycles: int) -> bool:
        """Wait; whether the device offers nothing."""
        for _ in range(cycles):
            await FallingEdge(self.dut.clk)
            await ReadOnly()
            if self._watch(False) is not None:
                return False
        return True


async def start(dut: Ports) -> None:
    """Start the clock and reset the accelerator; its memories hold nothing."""
    Clock(dut.clk, 10, unit="ns").start()
    dut.i__valid.value = 0
    dut.i__payload.value = 0
    dut.o__ready.value = 0
    if CONFIG.weights == "stream":
        dut.weights__valid.value = 0
    await reset(dut)


async def reset(dut: Ports) -> None:
    """Reset for two cycles."""
    await FallingEdge(dut.clk)
    dut.rst.value = 1
    for _ in range(2):
        await FallingEdge(dut.clk)
    dut.rst.value = 0


def expected_counters(program: Program) -> dict[str, int]:
    """Cycles of a run, by cause."""
    cycles = list(run_cycles(CONFIG, [layer.values for layer in program.layers],
                             SOURCE if CONFIG.weights == "stream" else None))
    return {name: sum(layer[name] for layer in cycles) for name in COUNTERS}


def find_case(layers: int, first: int) -> tuple[Case, Program]:
    """Find a random network of so many layers, and its program."""
    for index in range(first, first + 1000):
        case = random_layers(CONFIG, np.random.default_rng(index))
        if len(case.graph.nodes) == layers:
            program = compile_graph(case.graph, CONFIG)
            if expected_counters(program)["total"] < 3000:
                return case, program
    raise ValueError(f"no random network of {layers} layers")


async def check(stream: HostStream, case: Case, program: Program) -> None:
    """Run a network and compare every output bit, and every counter of every sample."""
    device = await bridge(StreamDevice)(stream)
    result = await bridge(device.run)(program, case.inputs)
    expected = golden.run(case.graph, case.inputs)[case.graph.output]
    assert np.array_equal(result.outputs, expected), f"{(result.outputs != expected).sum()} codes differ"
    assert result.counters == (expected_counters(program),) * len(case.inputs)
    assert await stream.silent(5)


@cocotb.test()
@cocotb.parametrize(pause_in=[0.0, 0.6], pause_out=[0.0, 0.6])
async def network(dut: Ports, pause_in: float, pause_out: float) -> None:
    """A network of three layers, the host pausing on either stream, on both, or on none."""
    await start(dut)
    seed = round(10 * pause_in + 100 * pause_out)
    case, program = find_case(3, 1000 * seed)
    await check(HostStream(dut, pause_in, pause_out, seed), case, program)


@cocotb.test()
async def networks_in_turn(dut: Ports) -> None:
    """Programs after one another: nothing of the one before may matter."""
    await start(dut)
    stream = HostStream(dut, 0.2, 0.2, 5)
    for first in (10_000, 11_000, 12_000, 13_000):
        await check(stream, *find_case(1, first))


@cocotb.test()
async def reset_in_the_middle(dut: Ports) -> None:
    """A reset ends whatever the host port is in the middle of: a write, an answer that nobody takes, a run."""
    await start(dut)
    stream = HostStream(dut, 0.0, 0.0, 6)
    case, program = find_case(2, 20_000)
    await check(stream, case, program)
    read_identity = [Opcode.READ | Target.IDENTITY << 8, 0, 1]
    for words in (
        [Opcode.WRITE | Target.PROGRAM << 8, 0, 1000, 1, 2, 3],
        [Opcode.READ | Target.COUNTER << 8, 0, 3],
        [Opcode.RUN, 0, len(program.layers)],
    ):
        await stream.exchange(words, 0)
        for _ in range(10):
            await FallingEdge(dut.clk)
        await reset(dut)
        assert await stream.exchange(read_identity, 1) == [CONFIG.identity]
    await check(stream, case, program)
