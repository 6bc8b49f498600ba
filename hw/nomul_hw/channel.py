"""The channel unit: what works on every channel on its own. Maximum and sum pooling."""

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .config import ArrayConfig
from .descriptor import LayerOp
from .layouts import descriptor_layout, token_layout

__all__ = ["ChannelUnit"]


class ChannelUnit(wiring.Component):
    """Reduces the taps of a window, one activation word (``rows * lanes`` channels) per cycle.

    The latency from a window's last tap to its result is two cycles; a result is kept until the next one.

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
    done : Out(token_layout)
        The token of a window's last tap beside its ``result``; not valid in other cycles.
    result : Out(ArrayLayout(signed(pool_bits), rows * lanes))
        Maximum or sum of the window.
    """

    def __init__(self, config: ArrayConfig):
        self.config = config
        super().__init__({
            "layer": In(descriptor_layout()),
            "token": In(token_layout(config)),
            "word": In(data.ArrayLayout(signed(config.act_bits), config.depth)),
            "done": Out(token_layout(config)),
            "result": Out(data.ArrayLayout(signed(config.pool_bits), config.depth)),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        take_max = Signal()
        m.d.comb += take_max.eq(self.layer.op == LayerOp.MAX_POOL)

        state = Signal(self.result.shape(), reset_less=True)
        complete = Signal(token_layout(config))
        m.d.sync += [complete.eq(self.token), self.done.eq(complete)]
        m.d.sync += complete.valid.eq(self.token.valid & self.token.last)
        for lane in range(config.depth):
            value, held = self.word[lane], state[lane]
            larger = value > held[:config.act_bits].as_signed()
            reduced = Mux(take_max, Mux(larger, value, held), held + value)
            with m.If(self.token.valid):
                m.d.sync += state[lane].eq(Mux(self.token.first, value, reduced))
        with m.If(complete.valid):
            m.d.sync += self.result.eq(state)
        return m
