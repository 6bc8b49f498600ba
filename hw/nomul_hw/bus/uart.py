# amaranth: UnusedElaboratable=no
"""Serial lines: a start bit, eight data bits with the least significant first, a stop bit; no parity (8N1).

The clock need not be a multiple of the baud rate: every bit of a byte begins in the cycle that is nearest to where it
belongs, and a receiver starts to count anew with every byte. So what is left of the error is half a cycle.
"""

from itertools import pairwise

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

from ..config import ConfigError

__all__ = ["MIN_CYCLES_PER_BIT", "UARTReceiver", "UARTTransmitter"]

#: A receiver samples in the middle of a bit, half a cycle too early or too late, and sees its beginning a cycle late.
MIN_CYCLES_PER_BIT = 3

#: Bits of a byte on the line.
_BITS = 10


def _check(clock: int, baud: int) -> None:
    if baud <= 0 or clock < MIN_CYCLES_PER_BIT * baud:
        raise ConfigError(f"a clock of {clock / 1e6:g} MHz is too slow for {baud} baud: a bit must take "
                          f"{MIN_CYCLES_PER_BIT} cycles at least")


def _less_one(m: Module, times: list[int], index):
    """Cycles, less 1, from one of a byte's events, given by its index, to the next."""
    lengths = [end - start for start, end in pairwise(times)]
    cycles = Signal(range(max(lengths)))
    with m.Switch(index):
        for at, length in enumerate(lengths):
            with m.Case(at):
                m.d.comb += cycles.eq(length - 1)
    return cycles


class UARTTransmitter(wiring.Component):
    """Sends bytes, one behind the other without a pause.

    Parameters
    ----------
    clock, baud : int
        Hertz, bits per second.

    Members
    -------
    i : In(stream.Signature(8))
        Bytes; one is taken when its start bit begins.
    tx : Out(1)
        The line; 1 at rest.

    Raises
    ------
    ConfigError
        If the clock is too slow.
    """

    def __init__(self, clock: int, baud: int):
        _check(clock, baud)
        self.ratio = clock / baud
        super().__init__({"i": In(stream.Signature(8)), "tx": Out(1, init=1)})

    def elaborate(self, platform):
        m = Module()
        bit, follows = Signal(range(_BITS), init=_BITS - 1), Signal(range(_BITS))
        cycles = _less_one(m, [round(index * self.ratio) for index in range(_BITS + 1)], follows)
        left = Signal.like(cycles)  # cycles of the bit, less 1
        rest = Signal(_BITS - 1)  # the bits behind it

        m.d.comb += self.i.ready.eq((left == 0) & (bit == _BITS - 1))
        with m.If(left != 0):
            m.d.sync += left.eq(left - 1)
        with m.Elif(bit != _BITS - 1):
            m.d.comb += follows.eq(bit + 1)
            m.d.sync += [self.tx.eq(rest[0]), rest.eq(rest >> 1), bit.eq(follows), left.eq(cycles)]
        with m.Elif(self.i.valid):
            m.d.sync += [self.tx.eq(0), rest.eq(Cat(self.i.payload, 1)), bit.eq(follows), left.eq(cycles)]
        return m


class UARTReceiver(wiring.Component):
    """Receives bytes, each bit sampled in its middle.

    Parameters
    ----------
    clock, baud : int
        Hertz, bits per second.

    Members
    -------
    rx : In(1)
        The line; 1 at rest. It need not be in step with the clock.
    o : Out(stream.Signature(8, always_ready=True))
        Bytes, each in the middle of its stop bit, for a cycle.
    error : Out(1)
        For a cycle: there was something without a stop bit.

    Raises
    ------
    ConfigError
        If the clock is too slow.
    """

    def __init__(self, clock: int, baud: int):
        _check(clock, baud)
        self.ratio = clock / baud
        super().__init__({"rx": In(1, init=1), "o": Out(stream.Signature(8, always_ready=True)), "error": Out(1)})

    def elaborate(self, platform):
        m = Module()
        line = Signal(init=1)
        m.submodules.synchronizer = FFSynchronizer(self.rx, line, init=1)
        # The bit begins within the cycle before the one in which it is first seen.
        middles = [int((index + 0.5) * self.ratio - 0.5) for index in range(_BITS)]
        bit = Signal(range(_BITS))
        cycles = _less_one(m, middles, bit)
        left = Signal.like(cycles)  # cycles until the sample, less 1
        received = Signal(8)

        m.d.comb += self.o.payload.eq(received)
        with m.If(left != 0):
            m.d.sync += left.eq(left - 1)
        with m.FSM():
            with m.State("BREAK"):  # also before the first byte, where the line may be anything
                with m.If(line):
                    m.next = "REST"
            with m.State("REST"):
                with m.If(~line):
                    m.d.sync += [left.eq(middles[0] - 1), bit.eq(0)]
                    m.next = "BITS"
            with m.State("BITS"):
                with m.If(left == 0):
                    m.d.sync += [left.eq(cycles), bit.eq(bit + 1), received.eq(Cat(received[1:], line))]
                    with m.If((bit == 0) & line):  # too short for a start bit
                        m.next = "REST"
                    with m.If(bit == _BITS - 2):
                        m.next = "STOP"
            with m.State("STOP"):
                with m.If(left == 0):
                    m.d.comb += [self.o.valid.eq(line), self.error.eq(~line)]
                    m.next = "BREAK"
                    with m.If(line):
                        m.next = "REST"
        return m
