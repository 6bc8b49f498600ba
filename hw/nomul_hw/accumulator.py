"""Accumulators: the partial sums of one block of output channels, between the passes of its weight tiles."""

from amaranth.hdl import Cat, Module, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .config import ArrayConfig
from .layouts import address_bits, token_layout
from .memory import BlockRAM

__all__ = ["Accumulator"]


class Accumulator(wiring.Component):
    """Adds the array's column sums to what earlier passes left for the same output pixel.

    The latency is one cycle, the throughput one vector per cycle. Two words of the same pixel must be at least four
    cycles apart, which ``config.tile_cycles`` guarantees: memory is read two cycles before the sums arrive and
    written one cycle after. Where a plane of weights begins, what was left may shift left by ``config.plane_shift``
    places on the way. Sums wrap; the compiler proves that they cannot.

    Parameters
    ----------
    config : ArrayConfig
        Shape, widths and depth.

    Members
    -------
    ahead : In(token_layout)
        The token of the sums that arrive two cycles later.
    sums : In(ArrayLayout(signed(column_sum_bits), cols))
        Raw sums of the array.
    upcoming : Out(token_layout)
        The token of the ``totals`` that come two cycles later.
    totals : Out(ArrayLayout(signed(acc_bits), cols))
        Sums over all passes so far; kept until those of the next valid token.
    """

    def __init__(self, config: ArrayConfig):
        self.config = config
        super().__init__({
            "ahead": In(token_layout(config)),
            "sums": In(data.ArrayLayout(signed(config.column_sum_bits), config.cols)),
            "upcoming": Out(token_layout(config)),
            "totals": Out(data.ArrayLayout(signed(config.acc_bits), config.cols)),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        pixel_bits = address_bits(config.memory.accumulators)
        m.submodules.memory = memory = BlockRAM(width=config.cols * config.acc_bits, depth=config.memory.accumulators)

        # Three tokens in flight: its read is issued, its partial sum leaves memory, its sums arrive from the array.
        reading, adding, added = (Signal.like(self.ahead) for _ in range(3))
        m.d.sync += [reading.eq(self.ahead), adding.eq(reading), added.eq(adding)]
        m.d.comb += self.upcoming.eq(reading)

        m.d.comb += [
            memory.read_address.eq(self.ahead.pixel[:pixel_bits]),
            memory.read_enable.eq(self.ahead.valid & ~self.ahead.first),
            memory.write_address.eq(added.pixel[:pixel_bits]),
            memory.write_enable.eq(added.valid & ~added.last),
            memory.write_data.eq(self.totals),
        ]
        # A pixel's first pass adds to 0: a synchronous reset of the register, not a gate in front of the adder.
        partial = Signal(self.totals.shape(), reset_less=True)
        with m.If(reading.first):
            m.d.sync += partial.eq(0)
        with m.Else():
            m.d.sync += partial.eq(memory.read_data)
            if config.plane_shift:
                with m.If(reading.shift):
                    for col in range(config.cols):
                        word = memory.read_data.word_select(col, config.acc_bits)
                        m.d.sync += partial[col].eq(word << config.plane_shift)

        with m.If(adding.valid):
            m.d.sync += self.totals.eq(Cat(
                (partial[col] + self.sums[col])[:config.acc_bits] for col in range(config.cols)))
        return m
