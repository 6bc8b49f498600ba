"""Loading weights: tiles follow each other in memory in the order of use."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .config import ArrayConfig
from .descriptor import LayerOp
from .layouts import address_bits, descriptor_layout

__all__ = ["WeightLoader"]


class WeightLoader(wiring.Component):
    """Loads the next weight tile into the array's shadow registers while the current one is in use.

    A tile's load starts in the cycle after the address generator issued the first word of the tile before it, and
    takes ``rows`` cycles, or ``rows * window_groups`` for a depthwise layer's. The load runs on across layers: when a
    layer's last tile becomes active the first tile of the next layer follows, so that only the start of a program
    waits for weights.

    Parameters
    ----------
    config : ArrayConfig
        Shape and memory depth.

    Members
    -------
    layer : In(descriptor)
        The running layer.
    prime : In(1)
        Load the first tile of a program, from ``prime_address``.
    prime_address, prime_depthwise : In
        Address of that tile; it is a depthwise layer's.
    tile, last_tile : In(1)
        The address generator issues the first word of a tile, of the layer's last tile.
    ready : Out(1)
        The next tile may start: it is being loaded, ahead of the words that need it, and the accumulators are free
        of the tile before. It rises ``config.tile_cycles`` (``window_tile_cycles``) cycles after ``tile``.
    address, enable : Out
        Read port of weight memory.
    load : Out(rows, or rows * window_groups with a window unit)
        The row of the tile that the memory's data belong to, two cycles after their address: in step with data that
        are registered once behind the memory.
    """

    def __init__(self, config: ArrayConfig):
        self.config = config
        address = address_bits(config.memory.weights)
        self.words = config.rows * (config.window_groups if config.memory.lines else 1)
        super().__init__({
            "layer": In(descriptor_layout()),
            "prime": In(1),
            "prime_address": In(address),
            "prime_depthwise": In(1),
            "tile": In(1),
            "last_tile": In(1),
            "ready": Out(1),
            "address": Out(address),
            "enable": Out(1),
            "load": Out(self.words),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config

        # What kind of tile is loaded next, and is being loaded.
        next_depthwise, depthwise = Signal(), Signal()
        if config.memory.lines:
            m.d.comb += next_depthwise.eq(Mux(self.prime, self.prime_depthwise, Mux(
                self.last_tile, self.layer.depthwise_next, self.layer.op == LayerOp.DEPTHWISE)))
        wait = Signal(range(config.window_tile_cycles if config.memory.lines else config.tile_cycles))
        m.d.comb += self.ready.eq(wait == 0)
        begin = Signal()
        m.d.comb += begin.eq(self.prime | self.tile)
        with m.If(begin):
            m.d.sync += [
                wait.eq(Mux(next_depthwise, config.window_tile_cycles - 1, config.tile_cycles - 1)),
                depthwise.eq(next_depthwise),
            ]
        with m.Elif(wait != 0):
            m.d.sync += wait.eq(wait - 1)

        # One bit walks along the rows. It stands beside the address, the memory and the word register follow.
        row = Signal(self.words)
        at_memory = Signal(self.words)
        follow = Signal.like(self.address)
        onward = Signal(self.words)
        m.d.comb += [self.enable.eq(row.any()), onward.eq(row << 1)]
        if self.words > config.rows:
            with m.If(~depthwise):
                m.d.comb += onward[config.rows].eq(0)
        m.d.sync += [
            row.eq(onward | begin),
            at_memory.eq(row),
            self.load.eq(at_memory),
        ]
        with m.If(self.prime):
            m.d.sync += self.address.eq(self.prime_address)
        with m.Elif(self.tile):
            m.d.sync += self.address.eq(Mux(self.last_tile, self.layer.weight_next[:len(self.address)], follow))
        with m.Elif(onward.any()):
            m.d.sync += self.address.eq(self.address + 1)
        m.d.comb += follow.eq(self.address + 1)
        return m
