# amaranth: UnusedElaboratable=no
"""What stands between an accelerator's Verilog and a board's pins: clock, reset, serial line, LED."""

from typing import Any

from amaranth.build import Attrs
from amaranth.hdl import ClockDomain, ClockSignal, Elaboratable, Instance, Module, ResetSignal, Signal
from amaranth.lib import io
from amaranth.lib.cdc import FFSynchronizer
from amaranth_boards.resources import UARTResource

from .boards import Board

__all__ = ["MACHINE", "BoardTop"]

#: Name of the accelerator's instance.
MACHINE = "machine"


class BoardTop(Elaboratable):  # type: ignore[misc]
    """The top of a bitstream: the accelerator's module, instantiated from its Verilog.

    Parameters
    ----------
    board : Board
        Where it is.
    module : str
        Its module, with the ports ``clk``, ``rst`` and ``led``.
    pll : bool
        Whether a module ``pll`` makes it of the board's clock; else it is that clock.
    serial : bool
        Whether it has a serial line, ``rx`` and ``tx``, too.
    """

    def __init__(self, board: Board, module: str, *, pll: bool, serial: bool = True):
        self.board = board
        self.module = module
        self.pll = pll
        self.serial = serial

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        if self.pll:
            self._make_clock(m, platform)
        resource, number, *part = self.board.led
        led = platform.request(resource, number, dir="-")
        m.submodules.led = led = io.Buffer("o", getattr(led, part[0]) if part else led)
        ports: dict[str, Any] = {"o_led": led.o}
        if self.serial:
            uart = self._uart(platform)
            m.submodules.rx, m.submodules.tx = rx, tx = io.Buffer("i", uart.rx), io.Buffer("o", uart.tx)
            ports |= {"i_rx": rx.i, "o_tx": tx.o}
        m.submodules[MACHINE] = Instance(
            self.module, i_clk=ClockSignal(), i_rst=ResetSignal(allow_reset_less=True), **ports)
        return m

    def _uart(self, platform: Any) -> Any:
        """The serial line: the board's, or one on its connectors."""
        if self.board.uart is None:
            return platform.request("uart", 0, dir="-")
        connector, rx, tx, attributes = self.board.uart
        platform.add_resources([UARTResource("host", 0, rx=rx, tx=tx, conn=(connector, 0), attrs=Attrs(**attributes))])
        return platform.request("host", 0, dir="-")

    def _make_clock(self, m: Module, platform: Any) -> None:
        """Let the PLL drive the clock domain, in reset until some time after it has locked.

        For 1,023 cycles: block RAMs of iCE40 read as zeros for some microseconds after configuration.
        """
        port = platform.request(platform.default_clk, dir="-")
        if self.board.family == "ice40":  # the PLL has the pin, and its input buffer
            source = ("io", "clock_in", port.io)
        else:
            m.submodules.clock_in = buffer = io.Buffer("i", port)
            source = ("i", "clock_in", buffer.i)
        # All tools know what a PLL makes of the board's clock, which is constrained.
        clock, locked, steady = Signal(), Signal(), Signal()
        m.submodules.pll = Instance("pll", source, o_clock_out=clock, o_locked=locked)
        m.domains.start = ClockDomain("start", reset_less=True, local=True)
        m.domains.sync = ClockDomain("sync")
        m.submodules.synchronizer = FFSynchronizer(locked, steady, o_domain="start")
        held = Signal(10)
        ready = Signal()
        m.d.comb += [ClockSignal("start").eq(clock), ClockSignal("sync").eq(clock), ResetSignal("sync").eq(~ready)]
        m.d.start += ready.eq(held.all())
        with m.If(~steady):
            m.d.start += held.eq(0)
        with m.Elif(~held.all()):
            m.d.start += held.eq(held + 1)
