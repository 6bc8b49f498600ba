"""A LiteX peripheral around an accelerator on Wishbone, and a system that has nothing else.

    nomul generate examples/ternary_4x4.toml --top wishbone -o build/wishbone
    python examples/litex_accelerator.py build/wishbone -o build/system.v

The second command writes the system's Verilog: LiteX's bus with the accelerator at 0x9000_0000, and a master whose
signals are ports, where others have a processor. In a system of one's own:

    soc.accelerator = NomulAccelerator(platform, "build/wishbone")
    soc.bus.add_slave("nomul", soc.accelerator.bus, SoCRegion(origin=0x9000_0000, size=0x1000, cached=False))

The registers are those of docs/bus.md. Needs LiteX: pip install litex
"""

import argparse
import json
from pathlib import Path

from litex.build.generic_platform import Pins
from litex.build.sim import SimPlatform
from litex.soc.integration.soc import SoCRegion
from litex.soc.integration.soc_core import SoCMini
from litex.soc.interconnect import wishbone
from migen import ClockDomain, ClockSignal, Instance, Module, ResetSignal, Signal


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


class Clock(Module):
    """The system's clock and reset, from its ports."""

    def __init__(self, platform):
        self.clock_domains.cd_sys = domain = ClockDomain()
        self.comb += [domain.clk.eq(platform.request("sys_clk")), domain.rst.eq(platform.request("sys_rst"))]


class System(SoCMini):
    """Bus, accelerator, and ports instead of a processor."""

    def __init__(self, folder):
        master = wishbone.Interface(data_width=32, adr_width=30, addressing="word")
        platform = SimPlatform("SIM", [
            ("sys_clk", 0, Pins(1)), ("sys_rst", 0, Pins(1)), ("interrupt", 0, Pins(1)), master.get_ios("host")[0]])
        super().__init__(platform, clk_freq=50_000_000)
        self.crg = Clock(platform)
        self.accelerator = NomulAccelerator(platform, folder)
        self.bus.add_slave("nomul", self.accelerator.bus, SoCRegion(origin=0x9000_0000, size=0x1000, cached=False))
        self.bus.add_master("host", master)
        self.comb += [
            master.connect_to_pads(platform.request("host"), mode="slave"),
            platform.request("interrupt").eq(self.accelerator.interrupt),
        ]


def main():
    """Write the Verilog of a system around an accelerator."""
    parser = argparse.ArgumentParser(description="Write a LiteX system around an accelerator.")
    parser.add_argument("folder", help="what `nomul generate --top wishbone` wrote")
    parser.add_argument("-o", "--output", default="build/system.v", help="file to write (default: %(default)s)")
    options = parser.parse_args()
    system = System(options.folder)
    system.finalize()
    output = Path(options.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    system.platform.get_verilog(system, name=output.stem).write(str(output))


if __name__ == "__main__":
    main()
