"""What the benches of the AXI tops have in common: the host's side of each, made of cocotbext-axi's models."""

import itertools
import json
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import cocotb
import numpy as np
import numpy.typing as npt
from cocotb.clock import Clock
from cocotb.task import bridge, resume
from cocotb.triggers import ClockCycles, FallingEdge, First, RisingEdge
from cocotbext.axi import (
    AxiBus,
    AxiLiteBus,
    AxiLiteMaster,
    AxiRam,
    AxiResp,
    AxiStreamBus,
    AxiStreamSink,
    AxiStreamSource,
)

from nomul.bus import MemoryTransport
from nomul.compiler import Program
from nomul.driver import StreamDevice
from nomul.estimate import estimate
from nomul_hw.bus.registers import REGISTER_MAPS
from nomul_hw.config import ArrayConfig
from nomul_hw.descriptor import CAUSES
from nomul_hw.timing import WeightSource

from .runner import BENCH_CONFIG

__all__ = ["BENCH_INPUTS", "BENCH_PAUSE", "BENCH_PROGRAM", "BENCH_TOP", "CONFIG", "Host", "MemoryHost", "StreamHost",
           "Trace", "Words", "reset", "start"]

Words = npt.NDArray[np.uint32]

#: A simulated top: cocotbext-axi finds the ports by their names.
Dut = Any

#: Environment variable that tells a bench which top it has.
BENCH_TOP = "NOMUL_BENCH_TOP"

#: Environment variables with the folder of a program, the file of the codes to run it on, and how often all channels
#: pause meanwhile, 0..1.
BENCH_PROGRAM, BENCH_INPUTS, BENCH_PAUSE = "NOMUL_BENCH_PROGRAM", "NOMUL_BENCH_INPUTS", "NOMUL_BENCH_PAUSE"

CONFIG = ArrayConfig.from_dict(json.loads(os.environ[BENCH_CONFIG]))


def _pauses(probability: float, seed: int) -> Iterator[int]:
    """Endless pauses at random, some of them long."""
    rng = np.random.default_rng(seed)
    while True:
        pause = rng.random(1000) < probability
        pause[500:500 + int(200 * probability)] = True
        yield from pause.astype(int).tolist()


async def reset(dut: Dut) -> None:
    """Reset the top, and the models that watch its reset."""
    dut.aresetn.value = 0
    await ClockCycles(dut.aclk, 3)
    dut.aresetn.value = 1
    await ClockCycles(dut.aclk, 2)


class Trace:
    """Records, for every run, in which of its cycles a weight word was on offer.

    Attributes
    ----------
    runs : list of list of bool
        One list per run.
    """

    def __init__(self, dut: Dut) -> None:
        self.runs: list[list[bool]] = []
        cocotb.start_soon(self._record(dut))

    async def _record(self, dut: Dut) -> None:
        was_busy = False
        while True:
            await FallingEdge(dut.aclk)
            busy = bool(dut.trace_busy.value)
            if busy and not was_busy:
                self.runs.append([])
            if busy:
                self.runs[-1].append(bool(dut.trace_offers.value))
            was_busy = busy

    def expected(self, program: Program, runs: int) -> tuple[dict[str, int], ...]:
        """Counters of the latest runs, which were of a program: its estimate, with weights when they were offered."""
        if program.config.weights != "stream":
            return (estimate(program).accounting,) * runs
        return tuple(estimate(program, WeightSource(offers if any(offers) else [True])).accounting
                     for offers in itertools.islice(self.runs, len(self.runs) - runs, None))


class Host:
    """A host with an AXI4-Lite master.

    Parameters
    ----------
    dut : Dut
        The top.
    pause : float
        Probability of pauses of every channel, 0..1.
    seed : int
        Of the pauses.
    """

    #: Name of the top.
    top: str

    def __init__(self, dut: Dut, pause: float = 0.0, seed: int = 0) -> None:
        self.dut = dut
        self.config = CONFIG
        self.map = REGISTER_MAPS[self.top]
        self._pause, self._seeds = pause, itertools.count(100 * seed)
        self.lite = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axi"), dut.aclk, dut.aresetn,
                                  reset_active_level=False)
        write, read = self.lite.write_if, self.lite.read_if
        self._pausing(write.aw_channel, write.w_channel, write.b_channel, read.ar_channel, read.r_channel)
        self.trace = Trace(dut)

    def _pausing(self, *channels: Any, pause: float | None = None) -> None:
        probability = self._pause if pause is None else pause
        for channel in channels:
            if probability:
                channel.set_pause_generator(_pauses(probability, next(self._seeds)))

    def delay_weights(self, pause: float) -> None:
        """Pause only where weights come in: every channel that pauses costs as much time as the design."""
        raise NotImplementedError

    async def device(self) -> StreamDevice:
        """The driver's device."""
        raise NotImplementedError

    async def read_at(self, address: int) -> int:
        """Read a register; an error is an exception."""
        answer = await self.lite.read(address, 4)
        assert answer.resp == AxiResp.OKAY, f"a read of {address:#x} is answered with {answer.resp!r}"
        return int.from_bytes(answer.data, "little")

    async def write_at(self, address: int, value: int) -> None:
        """Write a register; an error is an exception."""
        answer = await self.lite.write(address, value.to_bytes(4, "little"))
        assert answer.resp == AxiResp.OKAY, f"a write of {address:#x} is answered with {answer.resp!r}"

    async def get(self, name: str) -> dict[str, int]:
        """Fields of a register."""
        return self.map[name].unpack(await self.read_at(self.map[name].address))

    async def set(self, name: str, **fields: int) -> None:
        """Write fields of a register; the others become 0."""
        await self.write_at(self.map[name].address, self.map[name].pack(**fields))

    async def counters(self) -> dict[str, int]:
        """Counters of the latest run, from the registers."""
        cycles = {cause: (await self.get(f"cycles_{cause}"))["value"] for cause in CAUSES}
        return {"total": sum(cycles.values()), **cycles}


class StreamHost(Host):
    """Transport over the AXI4-Streams of a top.

    Attributes
    ----------
    answers : list of int
        Words of each answer so far.
    """

    top = "axi_stream"

    def __init__(self, dut: Dut, pause: float = 0.0, seed: int = 0) -> None:
        super().__init__(dut, pause, seed)
        at = dut.aclk, dut.aresetn
        self.commands = AxiStreamSource(AxiStreamBus.from_prefix(dut, "s_axis"), *at, reset_active_level=False)
        self.sink = AxiStreamSink(AxiStreamBus.from_prefix(dut, "m_axis"), *at, reset_active_level=False)
        self._pausing(self.commands, self.sink)
        self.answers: list[int] = []
        self._fed = b""
        if CONFIG.weights == "stream":
            self.weights = AxiStreamSource(AxiStreamBus.from_prefix(dut, "s_axis_weights"), *at,
                                           reset_active_level=False)
            self._pausing(self.weights)
            cocotb.start_soon(self._offer_weights())

    async def device(self) -> StreamDevice:
        return await bridge(StreamDevice)(self)

    def delay_weights(self, pause: float) -> None:
        self._pausing(self.weights, pause=pause)

    def feed(self, words: Words) -> None:
        """Give the weights that every run takes from now on."""
        self._fed = words.tobytes()

    async def _offer_weights(self) -> None:
        while True:
            await RisingEdge(self.dut.trace_busy)
            await self.weights.send(self._fed)

    def transfer(self, words: Words, replies: int) -> Words:
        """Send words and collect replies; for code that runs beside the simulation."""
        exchange: Callable[[Words, int], Words] = resume(self.exchange)
        return exchange(words, replies)

    async def exchange(self, words: Words, replies: int) -> Words:
        """Send words and collect replies."""
        if len(words):
            await self.commands.send(words.tobytes())
        received = list[int]()
        while len(received) < replies:
            frame = np.frombuffer(bytes((await self.sink.recv()).tdata), dtype=np.uint32)
            self.answers.append(len(frame))
            received += frame.tolist()
        assert len(received) == replies
        await self.commands.wait()
        return np.array(received, dtype=np.uint32)


class MemoryHost(Host):
    """Memory beside a top that reads commands from there, and what :class:`nomul.bus.MemoryTransport` needs.

    Attributes
    ----------
    bad : range
        Addresses at which memory answers with errors.
    """

    top = "axi"

    #: Where the driver's buffer begins, and its bytes.
    ADDRESS, SIZE = 0x10000, 1 << 21

    def __init__(self, dut: Dut, pause: float = 0.0, seed: int = 0) -> None:
        super().__init__(dut, pause, seed)
        self.memory = AxiRam(AxiBus.from_prefix(dut, "m_axi"), dut.aclk, dut.aresetn, reset_active_level=False,
                             size=1 << 22)
        write, read = self.memory.write_if, self.memory.read_if
        self.bad = range(0)
        write._write, read._read = self._guarded(write._write), self._guarded(read._read)
        self._pausing(write.aw_channel, write.w_channel, write.b_channel, read.ar_channel, read.r_channel)

    def _guarded(self, access: Callable[[int, Any], Awaitable[Any]]) -> Callable[[int, Any], Awaitable[Any]]:
        """Let accesses to bad addresses fail."""
        async def guarded(address: int, what: Any) -> Any:
            if address in self.bad:
                raise ValueError(f"no memory at {address:#x}")
            return await access(address, what)

        return guarded

    async def device(self) -> StreamDevice:
        self.transport = await bridge(MemoryTransport)(CONFIG, self, self.ADDRESS, self.SIZE, timeout_s=3600)
        return await bridge(StreamDevice)(self.transport)

    def delay_weights(self, pause: float) -> None:
        self._pausing(self.memory.read_if.r_channel, pause=pause)

    def read(self, address: int) -> int:
        """Read a register; for code that runs beside the simulation, as all that follow."""
        access: Callable[[int], int] = resume(self.read_at)
        return access(address)

    def write(self, address: int, value: int) -> None:
        """Write a register."""
        access: Callable[[int, int], None] = resume(self.write_at)
        access(address, value)

    def read_memory(self, address: int, count: int) -> Words:
        """Read words of memory."""
        return np.frombuffer(bytes(self.memory.read(address, 4 * count)), dtype=np.uint32)

    def write_memory(self, address: int, words: Words) -> None:
        """Write words of memory."""
        self.memory.write(address, words.tobytes())

    def wait(self) -> None:
        """Wait for the interrupt, or for a while."""
        pause: Callable[[], None] = resume(self.interrupted)
        pause()

    async def interrupted(self) -> None:
        """Wait for the interrupt, or for a while."""
        if not self.dut.interrupt.value:
            await First(RisingEdge(self.dut.interrupt), ClockCycles(self.dut.aclk, 2000))


async def start(dut: Dut, pause: float = 0.0, seed: int = 0) -> Any:
    """Start the clock, reset the top, and return the host that goes with it."""
    logging.getLogger(f"cocotb.{dut._name}").setLevel(logging.WARNING)
    Clock(dut.aclk, 10, unit="ns").start()
    dut.aresetn.value = 0
    host = {kind.top: kind for kind in (StreamHost, MemoryHost)}[os.environ[BENCH_TOP]](dut, pause, seed)
    await ClockCycles(dut.aclk, 2)
    await reset(dut)
    return host
