"""Wishbone registers, one of which takes the words of commands and gives those of answers: for a small processor."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..accelerator import Accelerator
from ..descriptor import HOST_BITS
from .bank import watch_accelerator
from .registers import ADDRESS_BITS, PROCESSOR

__all__ = ["WishboneTop"]


class WishboneTop(wiring.Component):
    """An accelerator as a classic Wishbone slave (B4) of 32 bits.

    An access is answered one cycle later at the earliest. One of ``data`` waits until the accelerator takes or gives
    the word; reading it while no word can come, because no command is under way, is an error, as are accesses that the
    registers refuse.

    Parameters
    ----------
    accelerator : Accelerator
        With a monitor; its weights are in memory.

    Members
    -------
    wb_cyc_i, wb_stb_i, wb_we_i, wb_adr_i, wb_sel_i, wb_dat_i : In
        The access; the address counts words.
    wb_ack_o, wb_err_o, wb_dat_o : Out
        Its answer.
    interrupt : Out(1)
        High while an event is set that is enabled.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        super().__init__({
            "wb_cyc_i": In(1), "wb_stb_i": In(1), "wb_we_i": In(1), "wb_adr_i": In(ADDRESS_BITS - 2),
            "wb_sel_i": In(HOST_BITS // 8), "wb_dat_i": In(HOST_BITS),
            "wb_ack_o": Out(1), "wb_err_o": Out(1), "wb_dat_o": Out(HOST_BITS),
            "interrupt": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        accelerator, reset = self.accelerator, Signal()
        bank = watch_accelerator(m, PROCESSOR, accelerator, reset)
        offered = Signal()
        m.d.sync += offered.eq(accelerator.o.valid)
        m.d.comb += [
            reset.eq(bank.control.reset),
            self.interrupt.eq(bank.raised),
            bank.status.accepts.eq(accelerator.i.ready),
            bank.status.offers.eq(accelerator.o.valid),
            bank.status.last.eq(accelerator.o.valid & accelerator.last),
            bank.interrupt.answer.eq(accelerator.o.valid & ~offered),
        ]

        access, at_data = Signal(), Signal()
        port = bank.port
        m.d.comb += [
            access.eq(self.wb_cyc_i & self.wb_stb_i & ~self.wb_ack_o & ~self.wb_err_o),
            at_data.eq(self.wb_adr_i == PROCESSOR["data"].address // 4),
            port.address.eq(self.wb_adr_i),
            port.write.eq(access & self.wb_we_i & ~at_data),
            port.strobe.eq(self.wb_sel_i),
            port.data.eq(self.wb_dat_i),
            accelerator.i.payload.eq(self.wb_dat_i),
            accelerator.i.valid.eq(access & at_data & self.wb_we_i),
            accelerator.o.ready.eq(access & at_data & ~self.wb_we_i),
        ]
        ends, fails = Signal(), Signal()
        with m.If(~at_data):
            m.d.comb += [ends.eq(1), fails.eq(port.error)]
        with m.Elif(self.wb_we_i):
            m.d.comb += ends.eq(accelerator.i.ready)
        with m.Else():
            m.d.comb += [ends.eq(accelerator.o.valid | accelerator.idle), fails.eq(~accelerator.o.valid)]
        m.d.sync += [self.wb_ack_o.eq(access & ends & ~fails), self.wb_err_o.eq(access & ends & fails)]
        with m.If(access):
            m.d.sync += self.wb_dat_o.eq(Mux(at_data, accelerator.o.payload, port.read))
        return m
