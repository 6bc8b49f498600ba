"""On-chip memories.

All are simple dual-port block RAMs: one read port with a cycle of latency, one write port. The activation banks of a
machine with a window unit can read at the write port's address, too, in cycles in which nothing is written: that is
what true dual-port block RAMs do. No part of the machine uses what it reads of a word in the cycle in which that is
written, so it does not matter; synthesis may be told so (``-no-rw-check`` in Yosys), which saves the logic that would
make it defined. Those of a baked program (:mod:`nomul_hw.contents`) are only read.
"""

from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from .contents import Table
from .layouts import address_bits

__all__ = ["BlockRAM"]


class BlockRAM(wiring.Component):
    """A simple dual-port memory.

    Parameters
    ----------
    width : int
        Bits of a word.
    depth : int
        Words.
    parts : int
        Equal parts of a word that can be written on their own.
    table : Table, optional
        What the memory holds from power-up on; it is as deep as that, and ignores writes.
    second : bool
        Whether there is a second read port, which shares the write port's address.

    Members
    -------
    read_address : In
        Address of the word that ``read_data`` shows in the next cycle, if ``read_enable`` is set.
    read_enable : In(1)
        Without it ``read_data`` keeps its value.
    read_data : Out(width)
        The word.
    write_address : In
        Address to write.
    write_enable : In(parts)
        Parts to write.
    write_data : In(width)
        What to write.
    second_enable : In(1), second_data : Out(width)
        The second read port, if there is one: reads at ``write_address``.
    """

    def __init__(self, *, width: int, depth: int, parts: int = 1, table: Table | None = None, second: bool = False):
        if width % parts:
            raise ValueError(f"Width {width} must be a multiple of the number of parts, {parts}")
        if table is not None and table.bits != width:
            raise ValueError(f"Words of the table must have {width} bits, not {table.bits}")
        self.width = width
        self.depth = depth if table is None else len(table.words)
        self.parts = parts
        self.table = table
        self.second = second
        super().__init__({
            "read_address": In(address_bits(depth)),
            "read_enable": In(1),
            "read_data": Out(width),
            "write_address": In(address_bits(depth)),
            "write_enable": In(parts),
            "write_data": In(width),
            **({"second_enable": In(1), "second_data": Out(width)} if second else {}),
        })

    def elaborate(self, platform):
        m = Module()
        if self.table is None:
            memory = Memory(shape=self.width, depth=self.depth, init=())
            write = memory.write_port(granularity=self.width // self.parts if self.parts > 1 else None)
            m.d.comb += [
                write.addr.eq(self.write_address),
                write.data.eq(self.write_data),
                write.en.eq(self.write_enable),
            ]
        else:
            memory = Memory(shape=self.width, depth=self.depth, init=self.table.words,
                            attrs={"contents": self.table.file})
        m.submodules.memory = memory
        read = memory.read_port()
        m.d.comb += [
            read.addr.eq(self.read_address),
            read.en.eq(self.read_enable),
            self.read_data.eq(read.data),
        ]
        if self.second:
            second = memory.read_port()
            m.d.comb += [
                second.addr.eq(self.write_address),
                second.en.eq(self.second_enable),
                self.second_data.eq(second.data),
            ]
        return m
