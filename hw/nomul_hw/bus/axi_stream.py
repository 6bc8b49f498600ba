"""AXI4-Lite registers, and AXI4-Streams of commands, answers and weights: for a DMA engine beside the accelerator."""

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from ..accelerator import Accelerator
from ..config import ArrayConfig
from ..descriptor import HOST_BITS
from .axi import AxiLite, AxiLiteSlave, AxiStream, attach, attach_stream, clock_ports, ports, use_clock
from .bank import watch_accelerator
from .registers import STREAM

__all__ = ["AxiStreamTop", "weight_beat_bits"]


def weight_beat_bits(config: ArrayConfig) -> int:
    """Bits of a weight word where whole host words carry it, as in ``Program.weight_stream``."""
    return -(-config.weight_word_bits // HOST_BITS) * HOST_BITS


class AxiStreamTop(wiring.Component):
    """An accelerator between AXI4-Streams.

    Streamed weights are taken only while a run is under way, so that a source may offer those of the next one before.

    Parameters
    ----------
    accelerator : Accelerator
        With a monitor.

    Members
    -------
    aclk, aresetn : In(1)
        Clock, and reset when 0.
    s_axi_* : In(AxiLite())
        The registers :data:`nomul_hw.bus.registers.STREAM`.
    s_axis_* : In(AxiStream(32))
        Host commands.
    m_axis_* : Out(AxiStream(32, last=True))
        Answers; ``tlast`` with the last word of each.
    s_axis_weights_* : In(AxiStream(bits))
        If weights are streamed: a weight word per beat, in as many whole host words as it needs.
    interrupt : Out(1)
        High while an event is set that is enabled.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        config = accelerator.config
        super().__init__({
            **clock_ports(),
            **ports("s_axi", AxiLite().flip()),
            **ports("s_axis", AxiStream(HOST_BITS).flip()),
            **ports("m_axis", AxiStream(HOST_BITS, last=True)),
            **(ports("s_axis_weights", AxiStream(weight_beat_bits(config)).flip())
               if config.weights == "stream" else {}),
            "interrupt": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        use_clock(m, self, "s_axi", "s_axis", "m_axis",
                  *(["s_axis_weights"] if self.accelerator.config.weights == "stream" else []))
        accelerator, reset = self.accelerator, Signal()
        m.submodules.slave = slave = AxiLiteSlave()
        bank = watch_accelerator(m, STREAM, accelerator, reset)
        attach(m, self, "s_axi", slave.bus)
        wiring.connect(m, slave.port, bank.port)
        m.d.comb += [reset.eq(bank.control.reset), self.interrupt.eq(bank.raised)]
        attach_stream(m, self, "s_axis", accelerator.i)
        attach_stream(m, self, "m_axis", accelerator.o)
        m.d.comb += self.m_axis_tlast.eq(accelerator.last)
        if accelerator.config.weights == "stream":
            m.d.comb += [
                accelerator.weights.payload.eq(self.s_axis_weights_tdata),
                accelerator.weights.valid.eq(self.s_axis_weights_tvalid & accelerator.busy),
                self.s_axis_weights_tready.eq(accelerator.weights.ready & accelerator.busy),
            ]
        return m
