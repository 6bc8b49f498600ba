# amaranth: UnusedElaboratable=no
"""An accelerator on two wires: a host reaches it through a serial port, :class:`nomul.wire.SerialDevice`."""

from amaranth.hdl import Module, ResetInserter, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..accelerator import Accelerator
from ..config import ArrayConfig, ConfigError
from ..contents import Contents
from .link import Link
from .uart import UARTReceiver, UARTTransmitter

__all__ = ["SerialTop"]


class SerialTop(wiring.Component):
    """Accelerator, link and UART.

    Parameters
    ----------
    config : ArrayConfig
        The array; its weights must be in memory.
    contents : Contents, optional
        A program to bake in.
    clock : int
        Frequency of the clock in Hz.
    baud : int
        Bits per second on the line.
    depth, frame_words : int
        As for :class:`Link`.

    Members
    -------
    rx, tx : In(1), Out(1)
        The serial line, 8N1; 1 at rest. ``rx`` need not be in step with the clock.
    led : Out(1)
        The line carries something, or did so in the last 20th of a second.

    Raises
    ------
    ConfigError
        If the clock is too slow, the buffers' depth is no power of two, or the weights come from a stream.
    """

    def __init__(self, config: ArrayConfig, contents: Contents | None = None, *, clock: int, baud: int,
                 depth: int = 1024, frame_words: int = 128):
        if config.weights == "stream":
            raise ConfigError(f"{config.name}: weights cannot be streamed over a serial line; set array.weights = "
                              f"\"memory\"")
        self.clock = clock
        self.accelerator = Accelerator(config, contents)
        self.link = Link(depth=depth, frame_words=frame_words)
        self.receiver = UARTReceiver(clock, baud)
        self.transmitter = UARTTransmitter(clock, baud)
        super().__init__({"rx": In(1, init=1), "tx": Out(1, init=1), "led": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.link = link = self.link
        m.submodules.receiver = receiver = self.receiver
        m.submodules.transmitter = transmitter = self.transmitter
        m.submodules.accelerator = accelerator = ResetInserter(link.reset)(self.accelerator)
        m.d.comb += [
            receiver.rx.eq(self.rx),
            self.tx.eq(transmitter.tx),
            link.error.eq(receiver.error),
        ]
        wiring.connect(m, receiver.o, link.rx)
        wiring.connect(m, link.tx, transmitter.i)
        wiring.connect(m, link.o, accelerator.i)
        wiring.connect(m, accelerator.o, link.i)

        # Bytes are too short to be seen.
        glow = Signal(range(self.clock // 20 + 1))
        m.d.comb += self.led.eq(glow != 0)
        with m.If(receiver.o.valid | link.tx.valid):
            m.d.sync += glow.eq(self.clock // 20)
        with m.Elif(self.led):
            m.d.sync += glow.eq(glow - 1)
        return m
