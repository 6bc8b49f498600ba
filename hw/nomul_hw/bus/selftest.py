# amaranth: UnusedElaboratable=no
"""An accelerator that tests itself: it needs a clock, and one LED says whether every bit is right.

Beside it lie the words that a host would send and the CRC-32 of those that it would get back. So a board can be tried
with nothing attached to it, and a bitstream tells whether synthesis, clock and memories are as good as the simulation.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from ..accelerator import Accelerator
from ..config import ConfigError
from ..contents import Table
from ..descriptor import HOST_BITS
from ..memory import BlockRAM
from .link import CRC32

__all__ = ["SelfTest", "SelfTestBus", "SelfTestTop", "masked_crc"]

_BYTES = HOST_BITS // 8
_ALL = (1 << HOST_BITS) - 1


def masked_crc(words: Sequence[int], masks: Sequence[int]) -> int:
    """CRC-32 of answers, in the bits that count: that of the serial link's frames, least significant byte first."""
    return zlib.crc32((np.array(words, dtype="<u4") & np.array(masks, dtype="<u4")).tobytes())


@dataclass(frozen=True)
class SelfTestBus:
    """How an accelerator is reached: not at all, it has its commands beside it (:func:`nomul.selftest.self_test`).

    Parameters
    ----------
    clock : int
        Frequency of the clock in Hz: how fast the LED blinks.
    commands : tuple of int
        Host words that are sent.
    masks : tuple of int
        For every word of the answers, the bits of it that count.
    crc : int
        :func:`masked_crc` of the right answers.

    Raises
    ------
    ConfigError
        If there are no answers: every run would pass.
    """

    name: ClassVar[str] = "selftest"
    monitor: ClassVar[bool] = False

    clock: int
    commands: tuple[int, ...]
    masks: tuple[int, ...]
    crc: int

    def __post_init__(self) -> None:
        if not self.masks:
            raise ConfigError("a self-test needs answers to look at")

    @cached_property
    def tables(self) -> tuple[Table, ...]:
        """Contents of its memories; no masks where all bits count."""
        words = {"commands": self.commands, **({"masks": self.masks} if set(self.masks) != {_ALL} else {})}
        return tuple(Table(f"selftest_{name}.hex", HOST_BITS, each + (0,) * (2 - len(each)))
                     for name, each in words.items())

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the manifest."""
        return {"name": self.name, "clock": self.clock, "commands": len(self.commands), "answers": len(self.masks),
                "crc": f"{self.crc:08x}"}

    def around(self, accelerator: Accelerator) -> "SelfTestTop":
        """Put the test around an accelerator.

        Raises
        ------
        ConfigError
            If its weights come from a stream.
        """
        return SelfTestTop(accelerator, self)


class SelfTest(wiring.Component):
    """Plays the host: sends the same commands over and over, and looks at the answers.

    A word is sent per cycle at best; one of the answers is taken every fourth cycle, a byte of it at a time.

    Parameters
    ----------
    bus : SelfTestBus
        What is sent, and what has to come back.

    Members
    -------
    o : Out(stream.Signature(32)), i : In(stream.Signature(32))
        Commands to the accelerator, and its answers.
    busy : Out(1)
        Commands or answers of a run are outstanding.
    passed : Out(1)
        A run has ended, and all that have ended were right.
    failed : Out(1)
        A run was wrong. It was the last one: only a reset begins anew.
    led : Out(1)
        Blinks while runs end and are right: it changes with the first that ends half a second or more after the change
        before. Lit for good when one was wrong. If runs do not end, it stays as it is, dark from the beginning on.
    """

    o: Out(stream.Signature(HOST_BITS))
    i: In(stream.Signature(HOST_BITS))
    busy: Out(1)
    passed: Out(1)
    failed: Out(1)
    led: Out(1)

    def __init__(self, bus: SelfTestBus):
        self.bus = bus
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        words, answers = len(self.bus.commands), len(self.bus.masks)
        tables = self.bus.tables
        m.submodules.commands = commands = BlockRAM(
            width=HOST_BITS, depth=len(tables[0].words), table=tables[0])
        m.submodules.crc = checksum = CRC32.create()

        # Commands: out of memory into its read port's register, from there to the accelerator.
        sent, fetch = Signal(range(words + 1)), Signal()
        m.d.comb += [
            commands.read_address.eq(sent),
            commands.read_enable.eq(fetch),
            self.o.payload.eq(commands.read_data),
        ]
        with m.If(fetch):
            m.d.sync += [self.o.valid.eq(1), sent.eq(sent + 1)]
        with m.Elif(self.o.ready):
            m.d.sync += self.o.valid.eq(0)

        # Answers: a word stays on offer until its last byte is in the checksum.
        got, following, part = Signal(range(answers + 1)), Signal(range(answers + 1)), Signal(range(_BYTES))
        looked_at = Signal(HOST_BITS)
        m.d.comb += [following.eq(got), looked_at.eq(self.i.payload)]
        with m.Switch(part):
            for index in range(_BYTES):
                with m.Case(index):
                    m.d.comb += checksum.data.eq(looked_at.word_select(index, 8))
        m.d.sync += got.eq(following)
        if len(tables) > 1:
            m.submodules.masks = masks = BlockRAM(width=HOST_BITS, depth=len(tables[1].words), table=tables[1])
            m.d.comb += [
                masks.read_address.eq(following),
                masks.read_enable.eq(1),
                looked_at.eq(self.i.payload & masks.read_data),
            ]

        right = Signal()
        with m.FSM():
            with m.State("RUN"):
                m.d.comb += [
                    self.busy.eq(1),
                    fetch.eq((sent != words) & (~self.o.valid | self.o.ready)),
                    checksum.valid.eq(self.i.valid & (got != answers)),
                    self.i.ready.eq((part == _BYTES - 1) & (got != answers)),
                ]
                with m.If(checksum.valid):
                    m.d.sync += part.eq(part + 1)
                    with m.If(self.i.ready):
                        m.d.comb += following.eq(got + 1)
                with m.If((sent == words) & ~self.o.valid & (got == answers)):
                    m.next = "LOOK"
            with m.State("LOOK"):
                m.d.comb += [right.eq(checksum.crc == self.bus.crc), checksum.start.eq(1), following.eq(0)]
                m.d.sync += [sent.eq(0), self.passed.eq(right), self.failed.eq(~right)]
                m.next = "END"
                with m.If(right):
                    m.next = "RUN"
            with m.State("END"):
                pass

        half = self.bus.clock // 2
        wait = Signal(range(half + 1))
        with m.If(wait != 0):
            m.d.sync += wait.eq(wait - 1)
        with m.Elif(right):
            m.d.sync += [wait.eq(half), self.led.eq(~self.led)]
        with m.If(self.failed):
            m.d.sync += self.led.eq(1)
        return m


class SelfTestTop(wiring.Component):
    """Accelerator and test.

    Parameters
    ----------
    accelerator : Accelerator
        With the program built in, and its weights in memory.
    bus : SelfTestBus
        What is sent, and what has to come back.

    Members
    -------
    busy, passed, failed, led : Out(1)
        As of :class:`SelfTest`. One LED is enough.

    Raises
    ------
    ConfigError
        As for :meth:`SelfTestBus.around`.
    """

    busy: Out(1)
    passed: Out(1)
    failed: Out(1)
    led: Out(1)

    def __init__(self, accelerator: Accelerator, bus: SelfTestBus):
        if accelerator.config.weights == "stream":
            raise ConfigError(f"{accelerator.config.name}: streamed weights come from outside, and there is nothing "
                              f"outside of a self-test; set array.weights = \"memory\"")
        self.accelerator = accelerator
        self.bus = bus
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        m.submodules.accelerator = accelerator = self.accelerator
        m.submodules.test = test = SelfTest(self.bus)
        wiring.connect(m, test.o, accelerator.i)
        wiring.connect(m, accelerator.o, test.i)
        m.d.comb += [getattr(self, name).eq(getattr(test, name)) for name in ("busy", "passed", "failed", "led")]
        return m
