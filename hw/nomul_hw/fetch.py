"""Fetching activations: the address generator, and the padding of what comes back from memory.

A layer is one loop nest over words of the input tensor. What the loops mean (output pixels, kernel taps, channel
words, blocks of output channels) is the compiler's business; the generator adds one precomputed step per word to an
address and to a pair of coordinates, so it needs no multiplier and no division, and an im2col matrix never exists.
"""

from functools import reduce
from operator import or_

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .config import ArrayConfig
from .descriptor import LOOPS, LayerOp
from .layouts import address_bits, descriptor_layout, token_layout, window_layout
from .planes import MAX_PLANES

__all__ = ["AddressGenerator", "Padding"]


class AddressGenerator(wiring.Component):
    """Walks the loop nest of a layer, one word per cycle.

    A word that starts a weight tile waits for ``weights_ready``; a word that completes an output pixel is followed by
    ``hold`` idle cycles. Nothing else stops the walk: every later stage has a fixed latency and is always ready.

    In a layer of the window unit every position of the input is a word, and those that complete an output pixel are
    its ``last``.

    Parameters
    ----------
    config : ArrayConfig
        Depths of the memories.

    Members
    -------
    upcoming : In(descriptor)
        The layer that ``start`` begins; its start address and coordinates are taken in that cycle.
    layer : In(descriptor)
        The running layer; stable from the cycle after ``start`` until the layer is done.
    start : In(1)
        Begin a layer in the next cycle.
    weights_ready : In(1)
        A further weight tile may be started.
    address : Out
        Word address in the input bank, for the token of this cycle.
    reads : Out(1)
        The address has just moved: its word is to be read now, and is kept until it is issued. Every word is read
        once, and what enables memory does not wait for the decision whether a word is issued.
    token : Out(token_layout)
        The word issued in this cycle.
    outside : Out(1)
        The word lies outside the input map: it reads as padding. Not set while no layer is under way, as is ``edge``.
    window : Out(window_layout)
        Where the word stands in the map, for the window unit.
    edge : Out(1)
        The word is the last channel word of its pixel in a convolution: lanes beyond ``edge_last`` read as padding.
    last_tile : Out(1)
        The token's tile is the layer's last.
    running, waits_for_weights, holds : Out(1)
        What this cycle is spent on.
    """

    def __init__(self, config: ArrayConfig):
        self.config = config
        layout = descriptor_layout()
        super().__init__({
            "upcoming": In(layout),
            "layer": In(layout),
            "start": In(1),
            "weights_ready": In(1),
            "address": Out(address_bits(config.memory.activations)),
            "reads": Out(1),
            "token": Out(token_layout(config)),
            "outside": Out(1),
            "window": Out(window_layout(config)),
            "edge": Out(1),
            "last_tile": Out(1),
            "running": Out(1),
            "waits_for_weights": Out(1),
            "holds": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        layer, token = self.layer, self.token

        counts = [Signal(12, name=f"count_{level}") for level in range(LOOPS)]
        x, y = Signal(signed(12)), Signal(signed(12))
        hold = Signal(len(layer.hold))
        pixel = Signal.like(token.pixel)

        # Whether a word is issued decides about every register in here, in the same cycle. What can be known a cycle
        # before stands in a register: what kind of layer it is, and whether the walk is held.
        is_conv, is_window, is_depthwise = Signal(), Signal(), Signal()
        with m.If(self.start):
            m.d.sync += is_conv.eq(self.upcoming.op == LayerOp.CONV)
            if self.config.memory.lines:
                m.d.sync += [
                    is_depthwise.eq(self.upcoming.op == LayerOp.DEPTHWISE),
                    is_window.eq(self.upcoming.op.matches(LayerOp.DEPTHWISE, LayerOp.MAX_WINDOW)),
                ]
        # A loop's index is at its start from power-up on, and whenever it was at its end before.
        at_start, at_end = Signal(LOOPS, init=-1), Signal(LOOPS)
        single = Signal(LOOPS)  # loops of one iteration
        # Loops 0 and 1 run over pixels in a convolution, over taps in a pool; 2, 3 (and 4, 5) the other way round.
        # In a window layer 2 and 3 run over the input: its last word of a window is the one at the right place.
        shifts = Signal()
        with m.Switch(counts[5]):
            for plane in range(MAX_PLANES):
                with m.Case(plane):
                    m.d.comb += shifts.eq(layer.shifts[plane])
        m.d.comb += [
            token.first.eq(Mux(is_conv, at_start[2:6].all(), at_start[0:2].all())),
            token.last.eq(Mux(is_conv, at_end[2:6].all(), at_end[0:2].all())),
            token.tile.eq((is_conv & at_start[0:2].all()) | (is_depthwise & at_start[2:4].all())),
            token.shift.eq(is_conv & at_start[2:5].all() & shifts),
            token.block_last.eq(at_end[0:4].all() & (at_end[4:6].all() | ~is_conv)),
            token.layer_last.eq(at_end.all()),
            token.pixel.eq(pixel),
            self.last_tile.eq(at_end[4:].all() & (at_end[2:4].all() | ~is_conv)),
            self.edge.eq(self.running & is_conv & at_end[2]),
            # Negative coordinates are large unsigned ones: one comparison per axis does both ends.
            self.outside.eq(self.running & (
                (x.as_unsigned() >= layer.in_width) | (y.as_unsigned() >= layer.in_height))),
        ]
        if self.config.memory.lines:
            completes = [Signal(name=f"completes_{axis}") for axis in ("columns", "rows")]
            for done, count, skip, stride in ((completes[0], counts[2], layer.skip_columns, layer.stride_columns),
                                              (completes[1], counts[3], layer.skip_rows, layer.stride_rows)):
                m.d.comb += done.eq(((count[2:] != 0) | (count[:2] >= skip)) & ~(stride & (count[0] ^ skip[0])))
            with m.If(is_window):
                m.d.comb += token.last.eq(completes[0] & completes[1])
            before = Signal(signed(12))
            m.d.comb += [
                before.eq(x - 1),
                self.window.column.eq(counts[2]),
                self.window.first_column.eq(at_start[2]),
                self.window.row_0.eq(at_start[3]),
                self.window.row_1.eq(counts[3] == 1),
                self.window.before_outside.eq((before.as_unsigned() >= layer.in_width)
                                              | (y.as_unsigned() >= layer.in_height)),
            ]

        holding, blocked = Signal(), Signal()
        m.d.comb += [
            blocked.eq(token.tile & ~self.weights_ready),
            token.valid.eq(self.running & ~holding & ~blocked),
            self.holds.eq(self.running & holding),
            self.waits_for_weights.eq(self.running & ~holding & blocked),
        ]

        with m.If(token.valid & token.last):
            m.d.sync += [hold.eq(layer.hold), holding.eq(layer.hold != 0)]
        with m.Elif(holding):
            m.d.sync += [hold.eq(hold - 1), holding.eq(hold != 1)]

        # A pixel ends with its word in a convolution's pass, with its last tap in a pool.
        with m.If(token.valid & (is_conv | token.last)):
            m.d.sync += pixel.eq(pixel + 1)
            with m.If(at_end[0:2].all() & (is_conv | at_end[2:4].all())):
                m.d.sync += pixel.eq(0)

        # The innermost loop that is not at its end steps; those inside it start again. In front of a layer all loops
        # are at their start, and the address and the coordinates are 0: the first step is from there to the first word.
        # Which one that is does not wait for the decision whether a word is issued.
        steps, turn = Signal(LOOPS), Signal(LOOPS)
        m.d.comb += [
            turn.eq(self.running.replicate(LOOPS) & ~at_end & Cat(
                at_end[:level].all() if level else Const(1, 1) for level in range(LOOPS))),
            steps.eq(token.valid.replicate(LOOPS) & turn),
        ]
        for level in range(LOOPS):
            following, wraps = Signal(12, name=f"following_{level}"), Signal(name=f"wraps_{level}")
            m.d.comb += [
                following.eq(counts[level] + 1),
                wraps.eq(token.valid & at_end[:level + 1].all()),
            ]
            with m.If(steps[level]):
                m.d.sync += [
                    counts[level].eq(following),
                    at_start[level].eq(0),
                    at_end[level].eq(following == layer[f"count_{level}"]),
                ]
            with m.If(wraps):
                m.d.sync += [counts[level].eq(0), at_start[level].eq(1), at_end[level].eq(single[level])]
            with m.If(self.start):
                once = self.upcoming[f"count_{level}"] == 0
                m.d.sync += [at_end[level].eq(once), single[level].eq(once)]
        places = [(self.address, "step", self.upcoming.in_address), (x, "x_step", self.upcoming.x_start),
                  (y, "y_step", self.upcoming.y_start)]
        for place, step, first in places:
            moves = [(~self.running, first), *((turn[level], layer[f"{step}_{level}"]) for level in range(LOOPS))]
            move = Signal(len(place), name=f"next_{step}")
            m.d.comb += move.eq(reduce(or_, (
                value[:len(place)].as_unsigned() & chosen.replicate(len(place)) for chosen, value in moves)))
            with m.If(self.start | token.valid):
                m.d.sync += place.eq(place + move)

        m.d.sync += self.reads.eq(self.start | (token.valid & ~token.layer_last))
        with m.If(self.start):
            m.d.sync += [self.running.eq(1), holding.eq(0)]
        with m.If(token.valid & token.layer_last):
            m.d.sync += [self.running.eq(0), *(place.eq(0) for place, _, _ in places)]
        return m


class Padding(wiring.Component):
    """Replaces what lies outside the input by its padding. One cycle of latency, in step with the memory.

    Parameters
    ----------
    config : ArrayConfig
        Width of a word.

    Members
    -------
    layer : In(descriptor)
        The running layer.
    outside, edge : In(1)
        As the address generator gives them, in the cycle in which it issues the word.
    data : In(ArrayLayout(signed(act_bits), rows * lanes))
        The word as memory returns it one cycle later.
    word : Out(ArrayLayout(signed(act_bits), rows * lanes))
        The word with its padding, registered: two cycles after the word was issued.
    """

    def __init__(self, config: ArrayConfig):
        self.config = config
        word = data.ArrayLayout(signed(config.act_bits), config.depth)
        super().__init__({
            "layer": In(descriptor_layout()),
            "outside": In(1),
            "edge": In(1),
            "data": In(word),
            "word": Out(word),
        })

    def elaborate(self, platform):
        m = Module()
        bits, depth = self.config.act_bits, self.config.depth
        masked = Signal(depth)
        used = _up_to(self.layer.edge_last, depth)
        m.d.sync += masked.eq(self.outside.replicate(depth) | (~used & self.edge.replicate(depth)))
        # The padding is 0 or the smallest code. All bits but the top one are 0 in both: a reset of their register.
        for lane in range(depth):
            low = Signal(bits - 1, name=f"low_{lane}", reset_less=True)
            top = Signal(name=f"top_{lane}", reset_less=True)
            m.d.sync += [
                low.eq(self.data[lane]),
                top.eq(Mux(masked[lane], self.layer.pad_low, self.data[lane][-1])),
            ]
            with m.If(masked[lane]):
                m.d.sync += low.eq(0)
            m.d.comb += self.word[lane].eq(Cat(low, top).as_signed())
        return m


def _up_to(last, count: int):
    """One bit for each of ``count`` numbers: is it at most ``last``? A LUT each, where a comparison takes more."""
    bits = Const(1, 1)
    for bit in last[:(count - 1).bit_length()]:
        bits = Cat(bits | bit.replicate(len(bits)), bits & bit.replicate(len(bits)))
    return bits[:count]
