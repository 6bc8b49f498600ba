"""Words from memory and to memory, in bursts.

Memory moves *beats* of ``data_bits``, which hold several words of 32 bits, the first one least significant. A burst is
at most ``burst`` beats, a power of two, and never crosses a multiple of that: so it does not cross 4 KiB either.
A burst is asked for only when there is room for all that is read, or all that is written is there: whatever else waits,
the bus never waits for the accelerator.
"""

from math import gcd

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from ..descriptor import HOST_BITS

__all__ = ["BurstReader", "BurstWriter", "Gearbox", "beat_shift", "request_layout", "write_layout"]


def beat_shift(data_bits: int) -> int:
    """Low bits of a byte address that are 0 where a beat begins."""
    return (data_bits // 8).bit_length() - 1


def request_layout(address_bits: int, data_bits: int, burst: int) -> data.StructLayout:
    """A burst: its address, in beats, and its number of beats, less 1."""
    return data.StructLayout({"address": address_bits - beat_shift(data_bits), "more": max(1, burst.bit_length() - 1)})


def write_layout(data_bits: int) -> data.StructLayout:
    """A beat to memory, which of its words are written, and whether it ends its burst."""
    return data.StructLayout({"data": data_bits, "words": data_bits // HOST_BITS, "last": 1})


class Gearbox(wiring.Component):
    """Cuts groups of ``take`` words into groups of ``give``, in order; one group per cycle goes in or out at best.

    A group that comes in can go out in the next cycle.

    Members
    -------
    i, o : In, Out(stream.Signature(32 * take)), Out(stream.Signature(32 * give))
        The groups.
    clear : In(1)
        Forget what is held.
    """

    def __init__(self, take: int, give: int):
        self.take, self.give = take, give
        super().__init__({
            "i": In(stream.Signature(HOST_BITS * take)),
            "o": Out(stream.Signature(HOST_BITS * give)),
            "clear": In(1),
        })

    def elaborate(self, platform):
        m = Module()
        unit = gcd(self.take, self.give)
        take, give, bits = self.take // unit, self.give // unit, HOST_BITS * unit
        words = Signal((take + give - 1) * bits)
        held, rest = Signal(range(take + give)), Signal(range(take + give))
        taken, given = self.i.valid & self.i.ready, self.o.valid & self.o.ready
        m.d.comb += [
            self.o.valid.eq(held >= give),
            self.o.payload.eq(words),
            rest.eq(Mux(given, held - give, held)),
            self.i.ready.eq(rest < give),
        ]
        m.d.sync += held.eq(Mux(taken, rest + take, rest))
        with m.If(given):
            m.d.sync += words.eq(words >> len(self.o.payload))
        with m.If(taken), m.Switch(rest):
            for place in range(give):
                with m.Case(place):
                    m.d.sync += words[place * bits:(place + take) * bits].eq(self.i.payload)
        with m.If(self.clear):
            m.d.sync += held.eq(0)
        return m


class _Bursts:
    """Where the next burst begins, and how many beats it has: what is left of ``words`` from ``address`` on."""

    def __init__(self, m: Module, address_bits: int, data_bits: int, burst: int):
        self.words_of_beat = data_bits // HOST_BITS
        self.shift = beat_shift(data_bits)
        self.next = Signal(address_bits - self.shift)
        self.left = Signal(HOST_BITS)
        self.beats = Signal(range(burst + 1))
        self.request = Signal(request_layout(address_bits, data_bits, burst))
        self.valid = Signal()
        low = burst.bit_length() - 1
        place = self.next[:low] if burst > 1 else 0
        to_boundary = burst - place
        # Only the low bits of what is left can be fewer than there are up to the boundary.
        few = self.left[:low + 1]
        m.d.comb += self.beats.eq(Mux(self.left[low + 1:].any() | (few >= to_boundary), to_boundary, few))

    def begin(self, m: Module, address, words):
        """Start anew, in the next cycle."""
        m.d.sync += [
            self.next.eq(address >> self.shift),
            self.left.eq((words + (self.words_of_beat - 1)) >> (self.words_of_beat.bit_length() - 1)),
        ]

    def ask(self, m: Module):
        """Ask for the next burst, from the next cycle on."""
        m.d.sync += [
            self.valid.eq(1),
            self.request.address.eq(self.next),
            self.request.more.eq(self.beats - 1),
            self.next.eq(self.next + self.beats),
            self.left.eq(self.left - self.beats),
        ]


class BurstReader(wiring.Component):
    """Reads words from memory, ahead of their use as far as its buffer reaches.

    Parameters
    ----------
    address_bits, data_bits, burst : int
        Width of an address in bytes, of a beat, and beats of a burst.
    outstanding : int
        Bursts that the buffer holds, and that can be under way.
    give : int
        Words that are given at a time.

    Members
    -------
    start : In(1)
        Begin with ``words`` words, a multiple of ``give``, at ``address``; not before all of those before were given.
    address, words : In
        Byte address, a multiple of a beat's bytes; words of 32 bits.
    stop : In(1)
        Ask for no further burst.
    request : Out(stream.Signature(request_layout(address_bits, data_bits, burst)))
        Bursts to read.
    beat : In(stream.Signature(data_bits, always_ready=True))
        What was read, in order.
    o : Out(stream.Signature(32 * give))
        The words.
    empty, idle : Out(1)
        All words have been given; no burst is under way.
    """

    def __init__(self, address_bits: int, data_bits: int, burst: int, outstanding: int, give: int = 1):
        self.address_bits, self.data_bits, self.burst = address_bits, data_bits, burst
        self.depth = max(4, burst * outstanding)  # a smaller buffer cannot take as many beats in a row as it holds
        self.give = give
        super().__init__({
            "start": In(1), "address": In(address_bits), "words": In(HOST_BITS), "stop": In(1),
            "request": Out(stream.Signature(request_layout(address_bits, data_bits, burst))),
            "beat": In(stream.Signature(data_bits, always_ready=True)),
            "o": Out(stream.Signature(HOST_BITS * give)),
            "empty": Out(1), "idle": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        bursts = _Bursts(m, self.address_bits, self.data_bits, self.burst)
        m.submodules.buffer = buffer = SyncFIFOBuffered(width=self.data_bits, depth=self.depth)
        m.submodules.gearbox = gearbox = Gearbox(self.data_bits // HOST_BITS, self.give)
        wiring.connect(m, buffer.r_stream, gearbox.i)

        # Beats that can still be asked for, and that have been asked for and not come.
        room, coming = Signal(range(self.depth + 1), init=self.depth), Signal(range(self.depth + 1))
        asks = Signal()
        asked = Mux(asks, bursts.beats, 0)
        m.d.comb += [
            asks.eq(~bursts.valid & (bursts.left != 0) & (bursts.beats <= room) & ~self.stop),
            self.request.valid.eq(bursts.valid),
            self.request.payload.eq(bursts.request),
            buffer.w_data.eq(self.beat.payload),
            buffer.w_en.eq(self.beat.valid),
            self.idle.eq(~bursts.valid & (coming == 0)),
        ]
        m.d.sync += [
            room.eq(room - asked + (buffer.r_en & buffer.r_rdy)),
            coming.eq(coming + asked - self.beat.valid),
        ]
        with m.If(self.request.ready):
            m.d.sync += bursts.valid.eq(0)
        with m.If(asks):
            bursts.ask(m)

        # Behind the last word the rest of its beat is left over.
        left = Signal(HOST_BITS)
        m.d.comb += [
            self.empty.eq(left == 0),
            self.o.payload.eq(gearbox.o.payload),
            self.o.valid.eq(gearbox.o.valid & ~self.empty),
            gearbox.o.ready.eq(self.o.ready & ~self.empty),
            gearbox.clear.eq(self.start),
        ]
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += left.eq(left - self.give)
        with m.If(self.start):
            m.d.sync += left.eq(self.words)
            bursts.begin(m, self.address, self.words)
        return m


class BurstWriter(wiring.Component):
    """Writes words to memory.

    A burst is asked for when all of it is there, and no more than :attr:`UNANSWERED` bursts wait to be confirmed; the
    next is collected while it is sent.

    Parameters
    ----------
    address_bits, data_bits, burst : int
        Width of an address in bytes, of a beat, and beats of a burst.

    Members
    -------
    start : In(1)
        Begin with ``words`` words to ``address``.
    address, words : In
        Byte address, a multiple of a beat's bytes; words of 32 bits.
    stop : In(1)
        Ask for no further burst.
    i : In(stream.Signature(32))
        The words; none is taken behind the last.
    request : Out(stream.Signature(request_layout(address_bits, data_bits, burst)))
        Bursts to write.
    beat : Out(stream.Signature(write_layout(data_bits)))
        Their beats.
    response : In(1)
        A burst has been written.
    full, idle : Out(1)
        All words have been taken; no burst is under way, nor any that could begin.
    """

    #: Bursts, at most, that memory has taken and not confirmed.
    UNANSWERED = 15

    def __init__(self, address_bits: int, data_bits: int, burst: int):
        self.address_bits, self.data_bits, self.burst = address_bits, data_bits, burst
        super().__init__({
            "start": In(1), "address": In(address_bits), "words": In(HOST_BITS), "stop": In(1),
            "i": In(stream.Signature(HOST_BITS)),
            "request": Out(stream.Signature(request_layout(address_bits, data_bits, burst))),
            "beat": Out(stream.Signature(write_layout(data_bits))),
            "response": In(1),
            "full": Out(1), "idle": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        words_of_beat = self.data_bits // HOST_BITS
        depth = 2 * self.burst
        bursts = _Bursts(m, self.address_bits, self.data_bits, self.burst)
        m.submodules.buffer = buffer = SyncFIFOBuffered(width=self.data_bits + words_of_beat, depth=depth)

        # Collect words to beats; a place that the last beat does not fill is not written.
        left, place = Signal(HOST_BITS), Signal(range(words_of_beat))
        so_far = [Signal(HOST_BITS, name=f"word_{index}") for index in range(words_of_beat - 1)]
        mask = Signal(words_of_beat)
        complete, taken = Signal(), Signal()
        # The last place needs no choice: what is there before its word comes is not written.
        beat = Cat(*(Mux(place == index, self.i.payload, word) for index, word in enumerate(so_far)), self.i.payload)
        m.d.comb += [
            mask.eq(Cat(1, *(place >= index for index in range(1, words_of_beat)))),
            complete.eq((place == words_of_beat - 1) | (left == 1)),
            self.full.eq(left == 0),
            self.i.ready.eq(~self.full & buffer.w_rdy),
            taken.eq(self.i.valid & self.i.ready),
            buffer.w_data.eq(Cat(beat, mask)),
            buffer.w_en.eq(taken & complete),
        ]
        with m.If(taken):
            m.d.sync += [left.eq(left - 1), place.eq(Mux(complete, 0, place + 1))]
            with m.Switch(place):
                for index, word in enumerate(so_far):
                    with m.Case(index):
                        m.d.sync += word.eq(self.i.payload)

        collected = Signal(range(depth + 1))  # beats that no burst has been asked for yet
        sending = Signal(range(self.burst + 1))  # beats of the burst that is being sent
        unanswered = Signal(range(self.UNANSWERED + 1))  # bursts
        asks, sent = Signal(), Signal()
        m.d.comb += [
            asks.eq(~bursts.valid & (sending == 0) & (bursts.left != 0) & (bursts.beats <= collected)
                    & (unanswered != self.UNANSWERED) & ~self.stop),
            self.request.valid.eq(bursts.valid),
            self.request.payload.eq(bursts.request),
            self.beat.valid.eq((sending != 0) & buffer.r_rdy),
            Cat(self.beat.payload.data, self.beat.payload.words).eq(buffer.r_data),
            self.beat.payload.last.eq(sending == 1),
            sent.eq(self.beat.valid & self.beat.ready),
            buffer.r_en.eq(sent),
            self.idle.eq(~bursts.valid & (sending == 0) & (unanswered == 0) & (self.stop | (bursts.left == 0))),
        ]
        m.d.sync += [
            collected.eq(collected + (taken & complete) - Mux(asks, bursts.beats, 0)),
            unanswered.eq(unanswered + asks - self.response),
        ]
        with m.If(self.request.ready):
            m.d.sync += bursts.valid.eq(0)
        with m.If(asks):
            bursts.ask(m)
            m.d.sync += sending.eq(bursts.beats)
        with m.Elif(sent):
            m.d.sync += sending.eq(sending - 1)
        with m.If(self.start):
            m.d.sync += left.eq(self.words)
            bursts.begin(m, self.address, self.words)
        return m
