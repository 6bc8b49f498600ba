"""Requantization without a multiplier: ``clamp((((acc + bias) * m + half) >> n) + zp, low, high)``.

The rules are those of :mod:`nomul_hw.arithmetic`; ``m`` is a sum of at most ``gain_terms`` signed powers of two.
"""

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .config import ArrayConfig
from .layouts import parameter_layout

__all__ = ["Requantizer"]


class Requantizer(wiring.Component):
    """One requantization lane: a value every cycle, :attr:`latency` cycles later its code.

    Parameters
    ----------
    config : ArrayConfig
        Widths and number of gain terms.

    Members
    -------
    acc : In(signed(acc_bits))
        An accumulator.
    parameters : In(parameter_layout)
        Bias and gain of its channel, in the same cycle.
    zero_point, low, high : In(signed(8))
        Of the layer; stable while it runs.
    code : Out(signed(act_bits))
        The activation.
    """

    #: Cycles from an accumulator to its code: bias, gain, shift and rounding, zero point and clamp.
    latency = 4

    def __init__(self, config: ArrayConfig):
        self.config = config
        super().__init__({
            "acc": In(signed(config.acc_bits)),
            "parameters": In(parameter_layout(config)),
            "zero_point": In(signed(8)),
            "low": In(signed(8)),
            "high": In(signed(8)),
            "code": Out(signed(config.act_bits)),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        biased = Signal(signed(config.acc_bits), reset_less=True)
        gain = Signal(parameter_layout(config), reset_less=True)
        m.d.sync += [biased.eq(self.acc + self.parameters.bias), gain.eq(self.parameters)]

        # The leading digit is +1 or -1, the others are shifts by 1 .. 2**terms.
        product_bits = config.acc_bits + max(config.gain_multipliers).bit_length()
        product = Signal(signed(product_bits), reset_less=True)
        total = biased
        if config.gain_terms > 1:
            total = Mux(gain.lead_negative, -biased, biased)
        for digit in range(config.gain_terms - 1):
            shifted = Signal(signed(product_bits), name=f"digit_{digit}")
            position = gain[f"digit_{digit}_position"]
            m.d.comb += shifted.eq(Mux(gain[f"digit_{digit}_enable"], (biased << position) << 1, 0))
            last = digit == config.gain_terms - 2
            total = total + shifted if last else Mux(gain[f"digit_{digit}_negative"], total - shifted, total + shifted)
        shift = Signal.like(gain.shift, reset_less=True)
        m.d.sync += [product.eq(total), shift.eq(gain.shift)]

        # One more bit below the point, then round half up: (2 * product >> n) + 1 >> 1.
        halves = Signal(signed(product_bits + 1))
        rounded = Signal(signed(product_bits + 1), reset_less=True)
        m.d.comb += halves.eq((product << 1) >> shift)
        m.d.sync += rounded.eq((halves + 1) >> 1)

        moved = Signal(signed(product_bits + 2))
        m.d.comb += moved.eq(rounded + self.zero_point)
        with m.If(moved < self.low):
            m.d.sync += self.code.eq(self.low)
        with m.Elif(moved > self.high):
            m.d.sync += self.code.eq(self.high)
        with m.Else():
            m.d.sync += self.code.eq(moved)
        return m
