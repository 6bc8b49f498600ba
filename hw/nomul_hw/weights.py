"""Loading weights: tiles follow each other in the order of use, in memory or in a stream from outside."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .config import ArrayConfig
from .descriptor import LayerOp
from .layouts import address_bits, descriptor_layout

__all__ = ["WeightLoader"]


class WeightLoader(wiring.Component):
    """Loads the next weight tile into the array's shadow registers while the current one is in use.

    A tile's load starts in the cycle after the address generator issued the first word of the tile before it, and
    takes ``rows`` cycles, or ``rows * window_groups`` for a depthwise layer's. It runs on across layers: when a layer's
    last tile has become active the first tile of the next one follows, as soon as that layer's descriptor is there; so
    only the start of a run waits for weights. Behind the last layer of a run nothing is loaded.

    With weights from memory a word comes every cycle. From a stream it comes when it comes: the walk along the rows
    waits for it, and the tile is ready when its last word is being taken.

    Parameters
    ----------
    config : ArrayConfig
        Shape, memory depth, and where weights come from.

    Members
    -------
    layer, upcoming : In(descriptor)
        The running layer, and the one after it.
    fetched : In(1)
        ``upcoming`` is complete.
    tile, last_tile : In(1)
        The address generator issues the first word of a tile, of the layer's last tile.
    due : Out(1)
        The next tile would be ready if every word had been there in time: ``config.tile_cycles``
        (``window_tile_cycles``) cycles after its load was begun, which is when the accumulators are free of the tile
        before, too.
    ready : Out(1)
        The next tile may start: it is due, and all of it has come.
    weights : Out(cols * lanes * format.bits)
        A word of the tile.
    load : Out(rows, or rows * window_groups with a window unit)
        One bit per word of the tile: ``weights`` are that word.
    address, enable, data : Out, Out, In
        Read port of weight memory, if weights come from there.
    words : In(stream.Signature(cols * lanes * format.bits))
        The words in the order of use, if weights come from a stream.
    """

    def __init__(self, config: ArrayConfig):
        self.config = config
        address = address_bits(config.memory.weights)
        word = config.weight_word_bits
        self.words_of_tile = config.rows * (config.window_groups if config.memory.lines else 1)
        super().__init__({
            "layer": In(descriptor_layout()),
            "upcoming": In(descriptor_layout()),
            "fetched": In(1),
            "tile": In(1),
            "last_tile": In(1),
            "due": Out(1),
            "ready": Out(1),
            "weights": Out(word),
            "load": Out(self.words_of_tile),
            **({"words": In(stream.Signature(word))} if config.weights == "stream" else
               {"address": Out(address), "enable": Out(1), "data": In(word)}),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config

        # The layer's next tile follows one that became active. The first of a layer waits for its descriptor.
        free = Signal(init=1)  # the running layer has no use for the shadow registers any more
        first, begin = Signal(), Signal()
        m.d.comb += [
            first.eq(free & self.fetched & self.upcoming.op.matches(LayerOp.CONV, LayerOp.DEPTHWISE)),
            begin.eq(first | (self.tile & ~self.last_tile)),
        ]
        with m.If(first):
            m.d.sync += free.eq(0)
        with m.Elif(self.tile & self.last_tile):
            m.d.sync += free.eq(1)

        next_depthwise, depthwise = Signal(), Signal()
        if config.memory.lines:
            m.d.comb += next_depthwise.eq(Mux(first, self.upcoming.op, self.layer.op) == LayerOp.DEPTHWISE)
        wait = Signal(range(config.window_tile_cycles if config.memory.lines else config.tile_cycles))
        due = Signal(init=1)
        m.d.comb += self.due.eq(due)
        with m.If(begin):
            m.d.sync += [
                wait.eq(Mux(next_depthwise, config.window_tile_cycles - 1, config.tile_cycles - 1)),
                depthwise.eq(next_depthwise),
                due.eq(0),
            ]
        with m.Elif(~due):
            m.d.sync += [wait.eq(wait - 1), due.eq(wait == 1)]

        # One bit walks along the rows.
        row, onward = Signal(self.words_of_tile), Signal(self.words_of_tile)
        m.d.comb += onward.eq(row << 1)
        if self.words_of_tile > config.rows:
            with m.If(~depthwise):
                m.d.comb += onward[config.rows].eq(0)

        weights = Signal.like(self.weights, reset_less=True)
        m.d.comb += self.weights.eq(weights)
        if config.weights == "stream":
            following = Signal.like(row)
            m.d.comb += [
                self.words.ready.eq(row.any()),
                following.eq(Mux(self.words.valid, onward, row)),
                self.ready.eq(self.due & ~following.any()),
            ]
            m.d.sync += [
                row.eq(following | begin),
                self.load.eq(row & self.words.valid.replicate(len(row))),
                weights.eq(self.words.payload),
            ]
        else:
            # The bit stands beside the address; the memory and the word register follow.
            at_memory = Signal.like(row)
            m.d.comb += [self.ready.eq(self.due), self.enable.eq(row.any())]
            m.d.sync += [row.eq(onward | begin), at_memory.eq(row), self.load.eq(at_memory), weights.eq(self.data)]
            with m.If(first):
                m.d.sync += self.address.eq(self.upcoming.weight_base)
            with m.Elif(self.enable):
                m.d.sync += self.address.eq(self.address + 1)
        return m
