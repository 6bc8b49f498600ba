"""The channel unit: what works on every channel on its own. Maximum and sum pooling."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .config import ArrayConfig
from .descriptor import LayerOp
from .layouts import descriptor_layout, token_layout

__all__ = ["ChannelUnit"]


class ChannelUnit(wiring.Component):
    """Reduces the taps of a window, one activation word (``rows * lanes`` channels) per cycle.

    Taps count from the smallest code, so that none is negative. By what a result is too large, that code times the
    number of taps in a sum, the bias is less. The latency from a window's last tap to its result is two cycles; a
    result is kept until the next one.

    Parameters
    ----------
    config : ArrayConfig
        Shape and widths.

    Members
    -------
    layer : In(descriptor)
        The running layer.
    token : In(token_layout)
        The token of ``word``.
    word : In(ArrayLayout(signed(act_bits), rows * lanes))
        A tap.
    upcoming : Out(token_layout)
        The token of a window's last tap, two cycles before its ``result``; not valid in other cycles.
    result : Out(ArrayLayout(pool_bits, rows * lanes))
        Maximum or sum of the window's codes, each less the smallest one.
    """

    def __init__(self, config: ArrayConfig):
        self.config = config
        super().__init__({
            "layer": In(descriptor_layout()),
            "token": In(token_layout(config)),
            "word": In(data.ArrayLayout(signed(config.act_bits), config.depth)),
            "upcoming": Out(token_layout(config)),
            "result": Out(data.ArrayLayout(config.pool_bits, config.depth)),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        take_max = Signal()
        m.d.comb += take_max.eq(self.layer.op == LayerOp.MAX_POOL)

        first, taps = Signal(), Signal()
        m.d.comb += [first.eq(self.token.valid & self.token.first), taps.eq(self.token.valid & ~take_max)]
        complete = Signal()
        m.d.comb += [self.upcoming.eq(self.token), self.upcoming.valid.eq(self.token.valid & self.token.last)]
        m.d.sync += complete.eq(self.upcoming.valid)
        for lane in range(config.depth):
            # The upper bits are 0 in a window's first tap and in a maximum: a reset of their registers.
            low = Signal(config.act_bits, name=f"low_{lane}", reset_less=True)
            high = Signal(config.pool_bits - config.act_bits, name=f"high_{lane}", reset_less=True)
            value, total = Signal(config.act_bits, name=f"value_{lane}"), Signal(config.pool_bits, name=f"total_{lane}")
            m.d.comb += [
                value.eq(Cat(self.word[lane][:-1], ~self.word[lane][-1])),
                total.eq(Cat(low, high) + value),
            ]
            with m.If(first | taps | (self.token.valid & (value > low))):
                m.d.sync += low.eq(Mux(first | take_max, value, total))
            with m.If(taps):
                m.d.sync += high.eq(total[config.act_bits:])
            with m.If(first):
                m.d.sync += high.eq(0)
            with m.If(complete):
                m.d.sync += self.result[lane].eq(Cat(low, high))
        return m
