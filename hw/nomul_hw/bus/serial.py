# amaranth: UnusedElaboratable=no
"""An accelerator on two wires: a host reaches it through a serial port (:mod:`nomul.wire`)."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from amaranth.hdl import Module, ResetInserter, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..accelerator import Accelerator
from ..config import ConfigError
from ..contents import Table
from .link import Link
from .uart import UARTReceiver, UARTTransmitter

__all__ = ["SerialBus", "SerialTop"]


@dataclass(frozen=True)
class SerialBus:
    """How an accelerator is reached: over a serial line.

    Parameters
    ----------
    clock : int
        Frequency of the clock in Hz.
    baud : int
        Bits per second on the line.
    depth, frame_words : int
        As for :class:`nomul_hw.bus.link.Link`.
    """

    name: ClassVar[str] = "serial"
    monitor: ClassVar[bool] = False
    tables: ClassVar[tuple[Table, ...]] = ()

    clock: int
    baud: int
    depth: int = 1024
    frame_words: int = 128

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the manifest."""
        return {"name": self.name, **asdict(self)}

    def around(self, accelerator: Accelerator) -> "SerialTop":
        """Put the line's logic around an accelerator.

        Raises
        ------
        ConfigError
            If the clock is too slow, the buffers' depth is no power of two, or the weights come from a stream.
        """
        return SerialTop(accelerator, self)


class SerialTop(wiring.Component):
    """Accelerator, link and UART.

    Parameters
    ----------
    accelerator : Accelerator
        With its weights in memory.
    bus : SerialBus
        Clock, baud rate and sizes.

    Members
    -------
    rx, tx : In(1), Out(1)
        The serial line, 8N1; 1 at rest. ``rx`` need not be in step with the clock.
    led : Out(1)
        Bytes come or go, or did so in the last 20th of a second.

    Raises
    ------
    ConfigError
        As for :meth:`SerialBus.around`.
    """

    def __init__(self, accelerator: Accelerator, bus: SerialBus):
        if accelerator.config.weights == "stream":
            raise ConfigError(f"{accelerator.config.name}: weights cannot be streamed over a serial line; set "
                              f"array.weights = \"memory\"")
        self.accelerator = accelerator
        self.bus = bus
        self.link = Link(depth=bus.depth, frame_words=bus.frame_words)
        self.receiver = UARTReceiver(bus.clock, bus.baud)
        self.transmitter = UARTTransmitter(bus.clock, bus.baud)
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
        glow = Signal(range(self.bus.clock // 20 + 1))
        m.d.comb += self.led.eq(glow != 0)
        with m.If(receiver.o.valid | link.tx.valid):
            m.d.sync += glow.eq(self.bus.clock // 20)
        with m.Elif(self.led):
            m.d.sync += glow.eq(glow - 1)
        return m
