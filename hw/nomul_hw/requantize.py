"""Requantization without a multiplier: ``clamp((((acc + bias) * m + skip + half) >> n) + zp, low, high)``.

The rules are those of :mod:`nomul_hw.arithmetic`; ``m`` is a sum of at most ``gain_terms`` signed powers of two.

There is one of these for every channel that is written per cycle, so every LUT counts. Registers are cheaper: where a
value may be absent, or one of several, a register of it is reset and the results are or-ed, which takes one LUT a bit
for three choices; a multiplexer of three takes two. And what the contract adds after the gain, half of the last place,
the zero point, less the lowest code, is part of a channel's ``offset``: the lowest code is 0 in here.
"""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .arithmetic import MAX_SKIP_DROP, gain_positions
from .config import ArrayConfig
from .descriptor import shift_stages
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
        Offset, gain multiplier and shift of its channel, in the same cycle.
    skip : In(signed(act_bits))
        The code that is added before rounding, two cycles after ``acc``.
    adds : In(1)
        There is such a code. Stable while a layer runs.
    drop : In(range(MAX_SKIP_DROP + 1))
        How many places of ``skip`` are below the point. Stable while a layer runs.
    slack : In(act_bits)
        How many codes the clamp excludes: ``2**act_bits - 1 - (high - low)``. Stable while a layer runs.
    above : In(signed(act_bits))
        The code above the largest that is allowed, modulo ``2**act_bits``. Stable while a layer runs.
    code : Out(signed(act_bits))
        The activation.
    """

    #: Cycles from an accumulator to its code.
    latency = 5

    def __init__(self, config: ArrayConfig):
        self.config = config
        super().__init__({
            "acc": In(signed(config.acc_bits)),
            "parameters": In(parameter_layout(config)),
            "skip": In(signed(config.act_bits)),
            "adds": In(1),
            "drop": In(range(MAX_SKIP_DROP + 1)),
            "slack": In(config.act_bits),
            "above": In(signed(config.act_bits)),
            "code": Out(signed(config.act_bits)),
        })

    def elaborate(self, platform):
        m = Module()
        act_bits = self.config.act_bits
        later = Signal.like(self.parameters, reset_less=True)
        m.d.sync += later.eq(self.parameters)

        # Cycles 0 and 1: the gain.
        total = Signal(signed(self.config.requantize_bits))
        m.d.comb += total.eq(self._times_gain(m, later) + later.offset)

        # Cycles 2 and 3: the shift, with as many places below the point as a skip tensor may have. What is added is
        # never positive: what is negative stays so, and what has further bits stays out of range.
        shifted, more, negative = self._shift_right(
            m, Cat(Const(0, MAX_SKIP_DROP), total), later, act_bits + 1 + MAX_SKIP_DROP)
        fine = Signal(signed(len(shifted) + 1))
        whole = fine[MAX_SKIP_DROP:]
        m.d.comb += fine.eq(shifted + self._skipped(m))

        # The lowest code is 0: nothing is below it.
        below, above = Signal(), Signal()
        floored, beyond = Signal(act_bits, reset_less=True), Signal(reset_less=True)
        m.d.comb += [
            below.eq(negative | (~more & fine[-1])),
            above.eq(~negative & (more | (~fine[-1] & whole[act_bits:-1].any()))),
        ]
        m.d.sync += [floored.eq(whole), beyond.eq(above)]
        with m.If(below):
            m.d.sync += floored.eq(0)

        # Cycle 4: the highest allowed code is the last of all: nothing is beyond it. Cycle 5: back to where they were.
        raised = Signal(act_bits + 1)
        ceiled = Signal(act_bits, init=-1, reset_less=True)
        m.d.comb += raised.eq(floored + self.slack)
        m.d.sync += ceiled.eq(raised)
        with m.If(beyond | raised[-1]):
            m.d.sync += ceiled.eq(-1)
        m.d.comb += self.code.eq(ceiled + self.above)
        return m

    def _times_gain(self, m: Module, gain):
        """Add up the digits of the gain multiplier.

        A digit has a register for each position where it may stand; all of them, or all but one, are reset. To negate
        is to invert and to add 1: the ones, at the place where the inverted number begins, are part of the offset.
        """
        bits, positions = self.config.acc_bits, gain_positions(self.config.gain_terms)
        value = Signal(signed(bits))
        m.d.comb += value.eq(self.acc ^ self.parameters.lead_negative.replicate(bits).as_signed())
        total = Signal.like(value, name="lead", reset_less=True)
        m.d.sync += total.eq(value)
        absent = [self.parameters[f"digit_{digit}_not_at_{place}"] for digit, places in enumerate(positions)
                  for place in places]
        with m.If(self.parameters.lead_negative & Cat(absent).all()):
            m.d.sync += total.eq(0)
        for digit, places in enumerate(positions):
            term = 0
            for place in places:
                present = Signal.like(value, name=f"digit_{digit}_at_{place}", reset_less=True)
                m.d.sync += present.eq(value)
                with m.If(self.parameters[f"digit_{digit}_not_at_{place}"]):
                    m.d.sync += present.eq(0)
                term = term | (present << place - places[0])
            invert = gain.lead_negative if digit == len(positions) - 1 else gain[f"digit_{digit}_inverted"]
            term = term ^ invert.replicate(len(term)).as_signed()
            # Only what lies above the digit's first position is added.
            total = Cat(total[:places[0]], total[places[0]:].as_signed() + term).as_signed()
        return total

    def _skipped(self, m: Module):
        """What is added: the skip tensor's code less the number of codes it may be away from the highest, or 0.

        The code moves to its place below the point. There is a register for each; all or all but one are reset.
        """
        width = self.config.act_bits + 1 + MAX_SKIP_DROP
        added = 0
        for drop in range(MAX_SKIP_DROP + 1):
            placed = Signal(signed(self.config.act_bits + 1), name=f"skip_{drop}", reset_less=True)
            m.d.sync += placed.eq(Cat(self.skip[:-1], ~self.skip[-1], Const(1, 1)))
            with m.If(~self.adds | (self.drop != drop)):
                m.d.sync += placed.eq(0)
            moved = Signal(signed(width), name=f"moved_{drop}")
            m.d.comb += moved.eq(placed << MAX_SKIP_DROP - drop)
            added = added | moved
        return added.as_signed()

    def _shift_right(self, m: Module, value, parameters, bits: int):
        """Shift right and keep ``bits`` bits of the result, stage by stage, largest shifts first.

        The bits that no later stage can bring into the result are dropped: that halves the shifter. Returns the
        result, whether there were more bits, and whether the value was negative; then the others mean nothing.
        """
        stages = [(0, 1), (0, 1), *reversed(shift_stages(self.config))][-3:]
        digits = [parameters[f"shift_{places}"] if places else Const(0, 1) for places, _ in stages]
        further = sum(places * (choices - 1) for places, choices in stages)
        value, negative, more = value[:-1], value[-1], Const(0, 1)
        for index, (places, choices) in enumerate(stages[:-1]):
            # Two registers, of which one is 0: of the value, and of the value shifted twice.
            near = Signal(len(value), name=f"near_{index}", reset_less=True)
            far = Const(0, 1)
            m.d.sync += near.eq(value)
            if choices == 3:
                far = Signal(len(value) - 2 * places, name=f"far_{index}", reset_less=True)
                m.d.sync += far.eq(value >> 2 * places)
                with m.If(digits[index][1]):
                    m.d.sync += near.eq(0)
                with m.Else():
                    m.d.sync += far.eq(0)
            more, negative, once, *digits[index + 1:] = _registered(
                m, f"stage_{index}", [more, negative, digits[index][0], *digits[index + 1:]])
            further -= places * (choices - 1)
            kept = bits + further
            more = more | near[kept + places:].any() | far[kept:].any() | (~once & near[kept:kept + places].any())
            value = (Mux(once, near >> places, near) | far)[:kept]
        shifted = value
        for times in range(1, stages[-1][1]):
            shifted = Mux(digits[-1] == times, value >> times, shifted)
        return shifted[:bits], more | shifted[bits:].any(), negative


def _registered(m: Module, name: str, values):
    """Register each of some values."""
    later = [Signal.like(value, name=f"{name}_{index}", reset_less=True) for index, value in enumerate(values)]
    m.d.sync += [register.eq(value) for register, value in zip(later, values, strict=True)]
    return later

