"""Registers in hardware, and what all tops do with them."""

from amaranth.hdl import Cat, Const, Module, Mux, ResetInserter, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..accelerator import Accelerator
from ..descriptor import CAUSES, HOST_BITS
from ..layouts import fields_layout
from .registers import ADDRESS_BITS, COUNTERS_AT, Access, RegisterMap

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

    Members
    -------
    port : In(RegisterPort)
        Address in words, and what to do there. Without a ``strobe`` a byte is not written.
    raised : Out(1)
        An event has happened that is enabled.
    NAME
        Each register, as the struct of its fields: In if it only shows what happens, with the events of this cycle in
        the case of those that keep them, Out if it is written; pulses last one cycle. Those that give and take words
        are left to the bus.
    """

    def __init__(self, registers: RegisterMap):
        self.registers = registers
        super().__init__({
            "port": In(RegisterPort),
            "raised": Out(1),
            **{name: (In if register.access in (Access.READ, Access.CLEAR) else Out)(fields_layout(register.fields))
               for name, register in registers.items() if register.access is not Access.WORD},
        })

    def elaborate(self, platform):
        m = Module()
        port = self.port
        mask = Cat(bit.replicate(8) for bit in port.strobe)
        m.d.comb += port.error.eq(1)
        for name, register in self.registers.items():
            if register.access is Access.WORD:
                continue
            value = getattr(self, name).as_value()
            shown = value
            here = Signal(name=f"at_{name}")
            m.d.comb += here.eq(port.address == register.address // 4)
            written = Mux(here & port.write, mask, 0)[:len(value)]
            match register.access:
                case Access.WRITE:
                    m.d.sync += value.eq((value & ~written) | (port.data & written))
                case Access.CLEAR:
                    shown = Signal(len(value), name=f"{name}_so_far")
                    m.d.sync += shown.eq((shown & ~(port.data & written)) | value)
                    m.d.comb += self.raised.eq((shown & self.interrupt_enable.as_value()).any())
                case Access.PULSE:
                    m.d.comb += value.eq(port.data & written)
                    shown = Const(0)
            with m.If(here):
                m.d.comb += [port.read.eq(shown), port.error.eq(port.write & (register.access is Access.READ))]
        return m


def watch_accelerator(m: Module, bank: RegisterBank, accelerator: Accelerator, reset: Signal) -> None:
    """Make an accelerator part of a top, and show of it in the registers what every top shows.

    Parameters
    ----------
    accelerator : Accelerator
        With a monitor.
    reset : Signal
        Resets the accelerator alone.
    """
    contents = accelerator.contents
    m.submodules.accelerator = ResetInserter(reset)(accelerator)
    was_busy = Signal()
    m.d.sync += was_busy.eq(accelerator.busy)
    m.d.comb += [
        bank.version.eq(Const(bank.registers.version)),
        bank.identity.value.eq(accelerator.config.identity),
        bank.program.value.eq(contents.identity if contents else 0),
        bank.status.running.eq(accelerator.busy),
        bank.status.idle.eq(accelerator.idle),
        bank.interrupt.run.eq(was_busy & ~accelerator.busy),
        accelerator.cause.eq(bank.port.address - COUNTERS_AT // 4),
        *(getattr(bank, f"cycles_{cause}").value.eq(accelerator.cycles) for cause in CAUSES),
    ]
