"""A LiteX peripheral around an accelerator on Wishbone.

    nomul generate examples/ternary_4x4.toml --top wishbone -o build/wishbone

    soc.accelerator = NomulAccelerator(platform, "build/wishbone")
    soc.bus.add_slave("nomul", soc.accelerator.bus, SoCRegion(origin=0x9000_0000, size=0x1000, cached=False))

The registers are those of docs/bus.md. Needs LiteX; the Wishbone top is tested, this file was not tried in a system.
"""

import json
from pathlib import Path

from litex.soc.interconnect import wishbone
from migen import ClockSignal, Instance, Module, ResetSignal, Signal


class NomulAccelerator(Module):
    """The accelerator of a folder that ``nomul generate --top wishbone`` wrote.

    Parameters
    ----------
    platform : litex.build.generic_platform.GenericPlatform
        Gets the sources.
    folder : str
        The folder.

    Attributes
    ----------
    bus : wishbone.Interface
        The slave.
    interrupt : Signal
        High while an event is set that is enabled.
    """

    def __init__(self, platform, folder):
        manifest = json.loads((Path(folder) / "manifest.json").read_text(encoding="utf-8"))
        platform.add_source(str(Path(folder) / manifest["verilog"]["file"]))
        self.bus = bus = wishbone.Interface(data_width=32, adr_width=30, addressing="word")
        self.interrupt = Signal()
        self.specials += Instance(
            manifest["top"], i_clk=ClockSignal(), i_rst=ResetSignal(), o_interrupt=self.interrupt,
            i_wb_cyc_i=bus.cyc, i_wb_stb_i=bus.stb, i_wb_we_i=bus.we, i_wb_adr_i=bus.adr[:10], i_wb_sel_i=bus.sel,
            i_wb_dat_i=bus.dat_w, o_wb_dat_o=bus.dat_r, o_wb_ack_o=bus.ack, o_wb_err_o=bus.err)
