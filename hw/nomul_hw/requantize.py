"""Requantization without a multiplier: ``clamp((((acc + bias) * m + skip + half) >> n) + zp, low, high)``.

The rules are those of :mod:`nomul_hw.arithmetic`; ``m`` is a sum of at most ``gain_terms`` signed powers of two.
"""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
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
        Of the layer; stable while it runs. The zero point is 0 or the smallest code.
    skip : In(signed(act_bits + 1))
        What is added before rounding, one cycle after ``acc``; 0 for nothing.
    drop : In(2)
        The gain's shift is less by this many places than it should be, and ``skip`` has as many below the point.
        Stable while a layer runs.
    code : Out(signed(act_bits))
        The activation.
    """

    #: Cycles from an accumulator to its code: bias, gain, shift and rounding, clamp.
    latency = 4

    def __init__(self, config: ArrayConfig):
        self.config = config
        super().__init__({
            "acc": In(signed(config.acc_bits)),
            "parameters": In(parameter_layout(config)),
            "zero_point": In(signed(8)),
            "low": In(signed(8)),
            "high": In(signed(8)),
            "skip": In(signed(config.act_bits + 1)),
            "drop": In(2),
            "code": Out(signed(config.act_bits)),
        })

    def elaborate(self, platform):
        m = Module()
        act_bits = self.config.act_bits
        biased = Signal(signed(self.config.acc_bits), reset_less=True)
        gain = Signal(parameter_layout(self.config), reset_less=True)
        m.d.sync += [biased.eq(self.acc + self.parameters.bias), gain.eq(self.parameters)]

        product = self._times_gain(m, biased, gain)
        shift = Signal.like(gain.shift, reset_less=True)
        m.d.sync += shift.eq(gain.shift)

        # Round half up with one more bit below the point than the skip has: (2 * (sum + skip) + 2**drop) >> (drop + 1).
        # What leaves the window is out of range with any skip: |skip| is below a quarter of it.
        addend = Signal(signed(act_bits + 3), reset_less=True)
        m.d.sync += addend.eq((self.skip << 1) + Cat(self.drop == places for places in range(4)))
        halves, overflow = self._shift_right(m, Cat(Const(0, 1), product), shift, act_bits + 6)
        total = Signal(signed(act_bits + 7))
        m.d.comb += total.eq(halves + addend)
        rounded = Signal(signed(act_bits + 6), reset_less=True)
        above, below = Signal(reset_less=True), Signal(reset_less=True)
        for places in range(4):
            with m.If(self.drop == places):
                m.d.sync += rounded.eq(total >> (places + 1))
        m.d.sync += [
            above.eq(overflow & ~product[-1]),
            below.eq(overflow & product[-1]),
        ]

        # Adding a zero point of -2**(act_bits-1) flips the top bit of the code; the limits move the other way.
        with m.If(below | (~above & (rounded < self.low - self.zero_point))):
            m.d.sync += self.code.eq(self.low)
        with m.Elif(above | (rounded > self.high - self.zero_point)):
            m.d.sync += self.code.eq(self.high)
        with m.Else():
            m.d.sync += self.code.eq(Cat(rounded[:act_bits - 1], rounded[act_bits - 1] ^ self.zero_point[-1]))
        return m

    def _times_gain(self, m: Module, value, gain):
        """Add up the digits of the gain multiplier: the last, a positive shift, then the leading +1 or -1, the rest."""
        terms = self.config.gain_terms
        bits = self.config.acc_bits + (max(self.config.gain_multipliers) - 1).bit_length()
        shifted = []
        for digit in range(terms - 1):
            addend = Signal(signed(bits), name=f"digit_{digit}")
            position = gain[f"digit_{digit}_position"]
            m.d.comb += addend.eq(Mux(gain[f"digit_{digit}_enable"], (value << position) << 1, 0))
            shifted.append(addend)
        total = value
        if shifted:
            total = _add_or_subtract(m, "lead", shifted.pop(), value, gain.lead_negative)
        for digit, addend in enumerate(shifted):
            total = _add_or_subtract(m, f"sum_{digit}", total, addend, gain[f"digit_{digit}_negative"])
        product = Signal(signed(bits), reset_less=True)
        m.d.sync += product.eq(total)
        return product

    @staticmethod
    def _shift_right(m: Module, value, amount, bits: int):
        """Shift a signed value right, largest amounts first, and keep ``bits`` bits of the result.

        After a stage at most ``2**stage - 1`` further places can follow, so the bits above those that may still reach
        the result are dropped: they must equal the sign, or the result is out of range whatever follows. That halves
        the shifter. Returns the result and whether it is out of range.
        """
        overflow = Const(0, 1)
        for stage in reversed(range(len(amount))):
            places = 1 << stage
            shifted = Signal(signed(len(value)), name=f"shifted_{stage}")
            m.d.comb += shifted.eq(Mux(amount[stage], value.as_signed() >> places, value.as_signed()))
            kept = min(len(value), bits + places - 1)
            dropped = shifted[kept - 1:]
            overflow = overflow | ~(dropped.all() | ~dropped.any())
            value = shifted[:kept]
        return value.as_signed(), overflow


def _add_or_subtract(m: Module, name: str, left, right, subtract):
    """Add, or subtract, with one carry chain: ``-right = ~right + 1``, the 1 carried in from one bit further down."""
    bits = max(len(left), len(right))
    result = Signal(signed(bits + 1), name=name)
    inverted = Signal(signed(bits), name=f"{name}_inverted")
    wide = Signal(signed(bits), name=f"{name}_wide")
    m.d.comb += [
        wide.eq(left),
        inverted.eq(right ^ subtract.replicate(len(right)).as_signed()),
        result.eq(Cat(subtract, wide).as_signed() + Cat(subtract, inverted).as_signed()),
    ]
    return result[1:].as_signed()
