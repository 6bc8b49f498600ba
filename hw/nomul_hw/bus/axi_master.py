"""AXI4 master: commands and streamed weights come from memory, answers go to memory; AXI4-Lite registers say where."""

from amaranth.hdl import Cat, Const, Module, Mux, ResetInserter, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from ..accelerator import Accelerator
from ..descriptor import HOST_BITS
from .axi import Axi, AxiLite, AxiLiteSlave, attach, clock_ports, ports, use_clock
from .axi_stream import weight_beat_bits
from .bank import watch_accelerator
from .bursts import BurstReader, BurstWriter, beat_shift, request_layout
from .registers import MASTER
from .tops import AxiBus

__all__ = ["AxiMasterTop"]


class AxiMasterTop(wiring.Component):
    """An accelerator that fetches its commands and streamed weights from memory, and writes its answers there.

    A host writes host words to memory, the three addresses and lengths to registers, and ``start`` to the register
    ``control``. A transfer ends when all commands are executed and the memory has confirmed that all answers are
    written. The registers must not change before. Streamed weights are read anew for every run, from its first cycle
    on.

    An error ends a transfer, and so does ``stop``: bursts that have begun are ended as the bus demands, then the
    accelerator is reset.

    Parameters
    ----------
    accelerator : Accelerator
        With a monitor.
    bus : AxiBus
        Widths and lengths of bursts.

    Members
    -------
    aclk, aresetn : In(1)
        Clock, and reset when 0.
    s_axi_* : In(AxiLite())
        The registers :data:`nomul_hw.bus.registers.MASTER`.
    m_axi_* : Out(Axi(bus.address_bits, bus.data_bits))
        Memory. Reads have the identifier 0 for commands, 1 for weights; ``rready`` and ``bready`` are always 1.
    interrupt : Out(1)
        High while an event is set that is enabled.
    """

    def __init__(self, accelerator: Accelerator, bus: AxiBus):
        self.accelerator = accelerator
        self.bus = bus
        super().__init__({
            **clock_ports(),
            **ports("s_axi", AxiLite().flip()),
            **ports("m_axi", Axi(bus.address_bits, bus.data_bits)),
            "interrupt": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        use_clock(m, self, "s_axi", "m_axi")
        reset, begin, stop = Signal(), Signal(), Signal()
        accelerator, outstanding = self.accelerator, self.bus.outstanding
        m.submodules.slave = slave = AxiLiteSlave()
        bank = watch_accelerator(m, MASTER, accelerator, reset)
        attach(m, self, "s_axi", slave.bus)
        wiring.connect(m, slave.port, bank.port)
        m.d.comb += self.interrupt.eq(bank.raised)

        streamed = accelerator.config.weights == "stream"
        shape = (self.bus.address_bits, self.bus.data_bits, self.bus.burst)
        commands, writer = BurstReader(*shape, outstanding), BurstWriter(*shape)
        m.submodules.commands = ResetInserter(reset)(commands)
        m.submodules.writer = ResetInserter(reset)(writer)
        wiring.connect(m, commands.o, accelerator.i)
        wiring.connect(m, accelerator.o, writer.i)
        m.d.comb += [commands.start.eq(begin), writer.start.eq(begin)]
        movers = {"command": commands, "answer": writer}
        left_over = Signal()  # a run has ended, and not taken all of its weights
        if streamed:
            weights = BurstReader(*shape, outstanding, weight_beat_bits(accelerator.config) // HOST_BITS)
            m.submodules.weights = ResetInserter(reset)(weights)
            movers["weight"] = weights
            was_busy = Signal()
            m.d.sync += was_busy.eq(accelerator.busy)
            m.d.comb += [
                weights.start.eq(accelerator.busy & ~was_busy),
                left_over.eq(~accelerator.busy & was_busy & (~weights.empty | accelerator.unused)),
                accelerator.weights.payload.eq(weights.o.payload),
                accelerator.weights.valid.eq(weights.o.valid),
                weights.o.ready.eq(accelerator.weights.ready),
            ]
        unaligned = Signal(len(movers))
        for index, (name, mover) in enumerate(movers.items()):
            address = Cat(getattr(bank, f"{name}_address").value, getattr(bank, f"{name}_address_high").value)
            m.d.comb += [
                unaligned[index].eq(address[:beat_shift(self.bus.data_bits)].any()),
                mover.address.eq(address),
                mover.words.eq(getattr(bank, f"{name}_words").value),
                mover.stop.eq(stop),
            ]
        self._read(m, [commands, weights] if streamed else [commands])
        self._write(m, writer)

        # What can go wrong, until the next transfer.
        status, wrong = bank.status, Signal()
        happened = {
            "read_error": self.m_axi_rvalid & self.m_axi_rresp[1],
            "write_error": self.m_axi_bvalid & self.m_axi_bresp[1],
            "length_error": status.active & ~stop & (
                commands.empty & Mux(accelerator.idle, ~writer.full, accelerator.i.ready)
                | writer.full & accelerator.o.valid | left_over),
        }
        flags = {name: Signal(name=name) for name in (*happened, "address_error")}
        m.d.comb += [getattr(status, name).eq(flag) for name, flag in flags.items()]
        for name, now in happened.items():
            with m.If(now):
                m.d.sync += flags[name].eq(1)
        response = Signal(2)
        m.d.comb += [status.response.eq(response), wrong.eq(Cat(flags.values()).any())]
        with m.If(response == 0):
            m.d.sync += response.eq(Mux(happened["read_error"], self.m_axi_rresp,
                                        Mux(happened["write_error"], self.m_axi_bresp, 0)))

        idle = Signal(len(movers))
        m.d.comb += [idle[index].eq(mover.idle) for index, mover in enumerate(movers.values())]
        with m.FSM():
            with m.State("IDLE"):
                with m.If(bank.control.start):
                    m.d.sync += [*(flag.eq(0) for flag in flags.values()), response.eq(0)]
                    with m.If(unaligned.any()):
                        m.d.comb += [bank.interrupt.done.eq(1), bank.interrupt.error.eq(1)]
                        m.d.sync += flags["address_error"].eq(1)
                    with m.Else():
                        m.d.comb += begin.eq(1)
                        m.next = "MOVE"
            with m.State("MOVE"):
                m.d.comb += status.active.eq(1)
                with m.If(wrong | bank.control.stop):
                    m.next = "STOP"
                with m.Elif(commands.empty & accelerator.idle & writer.full & idle.all()):
                    m.d.comb += bank.interrupt.done.eq(1)
                    m.next = "IDLE"
            with m.State("STOP"):
                m.d.comb += [status.active.eq(1), stop.eq(1)]
                with m.If(idle.all()):
                    m.d.comb += [reset.eq(1), bank.interrupt.done.eq(1), bank.interrupt.error.eq(wrong)]
                    m.next = "IDLE"
        return m

    def _address(self, prefix):
        """The signals of an address channel that never change."""
        return [getattr(self, f"m_axi_{prefix}{name}").eq(value) for name, value in (
            ("size", beat_shift(self.bus.data_bits)), ("burst", 1),  # INCR
            ("cache", 0b0011),  # normal memory, neither cached nor looked up in caches
        )]

    def _bytes(self, request):
        """Byte address of a burst."""
        return Cat(Const(0, beat_shift(self.bus.data_bits)), request.address)

    def _read(self, m: Module, readers):
        """Give readers the read channels: they have as identifiers their places in the list, and the last one goes
        first."""
        request, valid = Signal(request_layout(self.bus.address_bits, self.bus.data_bits, self.bus.burst)), Signal()
        m.d.comb += [
            *self._address("ar"),
            self.m_axi_araddr.eq(self._bytes(request)), self.m_axi_arlen.eq(request.more), self.m_axi_arvalid.eq(valid),
            self.m_axi_rready.eq(1),
        ]
        # A register keeps an address on offer while a more urgent one comes.
        free = ~valid | self.m_axi_arready
        with m.If(self.m_axi_arready):
            m.d.sync += valid.eq(0)
        for index, reader in enumerate(readers):
            more_urgent = Cat(other.request.valid for other in readers[index + 1:]).any()
            m.d.comb += [
                reader.request.ready.eq(free & ~more_urgent),
                reader.beat.payload.eq(self.m_axi_rdata),
                reader.beat.valid.eq(self.m_axi_rvalid & (self.m_axi_rid == index)),
            ]
            with m.If(reader.request.valid & reader.request.ready):
                m.d.sync += [valid.eq(1), request.eq(reader.request.payload), self.m_axi_arid.eq(index)]

    def _write(self, m: Module, writer):
        """Give the writer the write channels."""
        m.d.comb += [
            *self._address("aw"),
            self.m_axi_awaddr.eq(self._bytes(writer.request.payload)),
            self.m_axi_awlen.eq(writer.request.payload.more),
            self.m_axi_awvalid.eq(writer.request.valid), writer.request.ready.eq(self.m_axi_awready),
            self.m_axi_wdata.eq(writer.beat.payload.data),
            self.m_axi_wstrb.eq(Cat(word.replicate(4) for word in writer.beat.payload.words)),
            self.m_axi_wlast.eq(writer.beat.payload.last),
            self.m_axi_wvalid.eq(writer.beat.valid), writer.beat.ready.eq(self.m_axi_wready),
            self.m_axi_bready.eq(1), writer.response.eq(self.m_axi_bvalid),
        ]
