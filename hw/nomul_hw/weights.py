"""Loading weights: tiles follow each other in memory in the order of use."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .config import ArrayConfig
from .layouts import address_bits, descriptor_layout

__all__ = ["WeightLoader"]


class WeightLoader(wiring.Component):
    """Loads the next weight tile into the array's shadow registers while the current one is in use.

    A tile's load starts in the cycle after the address generator issued the first word of the tile before it, and
    takes ``rows`` cycles. The load runs on across layers: when a layer's last tile becomes active the first tile of
    the next layer follows, so that only the start of a program waits for weights.

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
    prime_address : In
        Address of that tile.
    tile, last_tile : In(1)
        The address generator issues the first word of a tile, of the layer's last tile.
    ready : Out(1)
        The next tile may start: it is being loaded, ahead of the words that need it, and the accumulators are free
        of the tile before. It rises ``config.tile_cycles`` cycles after ``tile``.
    address, enable : Out
        Read port of weight memory.
    load : Out(rows)
        The row that the memory's data belong to, two cycles after their address: in step with data that are
        registered once behind the memory.
    """

    def __init__(self, config: ArrayConfig):
        self.config = config
        address = address_bits(config.memory.weights)
        super().__init__({
            "layer": In(descriptor_layout()),
            "prime": In(1),
            "prime_address": In(address),
            "tile": In(1),
            "last_tile": In(1),
            "ready": Out(1),
            "address": Out(address),
            "enable": Out(1),
            "load": Out(config.rows),
        })

    def elaborate(self, platform):
        m = Module()
        rows = self.config.rows

        wait = Signal(range(self.config.tile_cycles))
        m.d.comb += self.ready.eq(wait == 0)
        with m.If(self.prime | self.tile):
            m.d.sync += wait.eq(self.config.tile_cycles - 1)
        with m.Elif(wait != 0):
            m.d.sync += wait.eq(wait - 1)

        # One bit walks along the rows. It stands beside the address, the memory and the word register follow.
        row = Signal(rows)
        at_memory = Signal(rows)
        follow = Signal.like(self.address)
        m.d.comb += self.enable.eq(row.any())
        m.d.sync += [
            row.eq((row << 1) | self.prime | self.tile),
            at_memory.eq(row),
            self.load.eq(at_memory),
        ]
        with m.If(self.prime):
            m.d.sync += self.address.eq(self.prime_address)
        with m.Elif(self.tile):
            m.d.sync += self.address.eq(Mux(self.last_tile, self.layer.weight_next[:len(self.address)], follow))
        with m.Elif(self.enable & ~row[-1]):
            m.d.sync += self.address.eq(self.address + 1)
        m.d.comb += follow.eq(self.address + 1)
        return m
