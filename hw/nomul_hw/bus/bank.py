"""Registers in hardware, and what all tops do with them."""

from collections.abc import Mapping
from functools import reduce
from operator import or_

from amaranth.hdl import Cat, Const, Module, Mux, ResetInserter, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..accelerator import Accelerator
from ..descriptor import HOST_BITS
from ..layouts import fields_layout
from .registers import ADDRESS_BITS, COUNTER_REGISTERS, COUNTERS_AT, Access, RegisterMap

__all__ = ["RegisterBank", "RegisterPort", "watch_accelerator"]

#: What a bus does with a bank: read or write one register per cycle.
RegisterPort = wiring.Signature({
    "address": Out(ADDRESS_BITS - 2),
    "write": Out(1),
    "strobe": Out(HOST_BITS // 8),
    "data": Out(HOST_BITS),
    "read": In(HOST_BITS),
    "error": In(1),
})


class RegisterBank(wiring.Component):
    """The registers of a map.

    A read shows the register in the same cycle; a write counts from the next one on. ``error`` says, in the same cycle,
    that there is no such register, or that it cannot be written.

    Parameters
    ----------
    registers : RegisterMap
        Which there are.
    constants : mapping of str to int
        What registers read as that never change.

    Members
    -------
    port : In(RegisterPort)
        Address in words, and what to do there. Without a ``strobe`` a byte is not written.
    raised : Out(1)
        An event has happened that is enabled.
    cycles : In(32)
        The counter whose register is at the address; all of them share these wires.
    NAME
        Each other register, as the struct of its fields: In if it only shows what happens, with the events of this
        cycle in the case of those that keep them, Out if it is written; pulses last one cycle. Those that give and
        take words are left to the bus.
    """

    def __init__(self, registers: RegisterMap, constants: Mapping[str, int]):
        self.registers = registers
        self.constants = constants
        elsewhere = {*constants, *COUNTER_REGISTERS}
        super().__init__({
            "port": In(RegisterPort),
            "raised": Out(1),
            "cycles": In(HOST_BITS),
            **{name: (In if register.access in (Access.READ, Access.CLEAR) else Out)(fields_layout(register.fields))
               for name, register in registers.items()
               if register.access is not Access.WORD and name not in elsewhere},
        })

    def elaborate(self, platform):
        m = Module()
        port = self.port
        known, fixed, counts, shown = [], [], [], []
        for name, register in self.registers.items():
            if register.access is Access.WORD:
                continue
            here = Signal(name=f"at_{name}")
            known.append(here)
            m.d.comb += here.eq(port.address == register.address // 4)
            if register.access is Access.READ:
                fixed.append(here)
            if name in COUNTER_REGISTERS:
                counts.append(here)
                continue
            value = Const(self.constants[name]) if name in self.constants else getattr(self, name).as_value()
            # Byte by byte, with an enable each: flip-flops have one, and need no logic then to keep what they hold.
            written = [(slice(8 * index, 8 * index + 8), here & port.write & strobe)
                       for index, strobe in enumerate(port.strobe)]
            given = Cat(Mux(enable, port.data[byte], 0) for byte, enable in written)
            shows = value
            match register.access:
                case Access.WRITE:
                    for byte, enable in written:
                        with m.If(enable):
                            m.d.sync += value[byte].eq(port.data[byte])
                case Access.CLEAR:
                    shows = Signal(len(value), name=f"{name}_so_far")
                    m.d.sync += shows.eq((shows & ~given) | value)
                    m.d.comb += self.raised.eq((shows & self.interrupt_enable.as_value()).any())
                case Access.PULSE:
                    m.d.comb += value.eq(given)
                    shows = Const(0)
            shown.append(Mux(here, shows, 0))
        m.d.comb += [
            # An address is that of one register at most: so a sum of products will do, which is smaller than a choice.
            port.read.eq(reduce(or_, [Mux(Cat(counts).any(), self.cycles, 0), *shown])),
            port.error.eq(~Cat(known).any() | port.write & Cat(fixed).any()),
        ]
        return m


def watch_accelerator(m: Module, registers: RegisterMap, accelerator: Accelerator, reset: Signal) -> RegisterBank:
    """Make an accelerator part of a top, and registers that show of it what every top shows.

    Parameters
    ----------
    registers : RegisterMap
        Those of the top.
    accelerator : Accelerator
        With a monitor.
    reset : Signal
        Resets the accelerator alone.
    """
    contents = accelerator.contents
    m.submodules.accelerator = ResetInserter(reset)(accelerator)
    m.submodules.bank = bank = RegisterBank(registers, {
        "version": registers.version, "identity": accelerator.config.identity,
        "program": contents.identity if contents else 0})
    was_busy = Signal()
    m.d.sync += was_busy.eq(accelerator.busy)
    m.d.comb += [
        bank.status.running.eq(accelerator.busy),
        bank.status.idle.eq(accelerator.idle),
        bank.interrupt.run.eq(was_busy & ~accelerator.busy),
        accelerator.cause.eq(bank.port.address - COUNTERS_AT // 4),
        bank.cycles.eq(accelerator.cycles),
    ]
    return bank
