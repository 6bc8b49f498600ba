"""What the tops cost: an accelerator on every bus, synthesized and, where asked for, placed and routed.

    python -m nomul_sim.tops examples/ternary_4x4.toml
    python -m nomul_sim.tops examples/ternary_4x4.toml --route --top axi wishbone

A top is one among other modules on a chip: its ports end at registers (:mod:`nomul_hw.pnr`).
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from amaranth.hdl import Module
from amaranth.lib import wiring

from nomul_hw.accelerator import Accelerator
from nomul_hw.bus.serial import SerialBus
from nomul_hw.bus.tops import AxiBus, AxiStreamBus, WishboneBus
from nomul_hw.config import ArrayConfig, ConfigError, load_config
from nomul_hw.pnr import DEVICES, nextpnr_version, place_and_route
from nomul_hw.synth import Synthesis, SynthesisError, yosys_version
from nomul_hw.verilog import Bus

from .cache import cached_json
from .synthesis import synthesize_verilog
from .verilated import component_verilog, hardware_hash

__all__ = ["TOPS", "Alone", "area", "clock", "main", "top_verilog"]

#: What stands in ``nomul generate --top``, with the options that it has there, for a clock of 48 MHz.
TOPS: Mapping[str, Bus | None] = {
    "streams": None, "serial": SerialBus(48_000_000, 3_000_000), "axi-stream": AxiStreamBus(), "axi": AxiBus(),
    "wishbone": WishboneBus(),
}

#: Name of the top module.
TOP = "bus"


class Alone(wiring.Component):  # type: ignore[misc]
    """Nothing around an accelerator. As below every other top it is one module, which is optimized as a whole."""

    def __init__(self, accelerator: Any):
        self.accelerator = accelerator
        super().__init__(dict(accelerator.signature.members))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.accelerator = self.accelerator
        wiring.connect(m, wiring.flipped(self), self.accelerator)
        return m


def top_verilog(name: str, config: ArrayConfig, family: str) -> str:
    """Verilog of an accelerator on a bus, for a family of chips; its clock is ``clk`` everywhere."""
    def make() -> Any:
        bus = TOPS[name]
        accelerator = Accelerator(config, family=family, monitor=bus is not None and bus.monitor)
        return bus.around(accelerator) if bus else Alone(accelerator)

    # What places and routes knows the clock by that name.
    return re.sub(r"\baclk\b", "clk", component_verilog(make, TOP, config.hash, family, "top", name))


def area(name: str, config: ArrayConfig, family: str) -> Synthesis:
    """What an accelerator on a bus occupies, synthesized or from the cache.

    Raises
    ------
    SynthesisError
        If Yosys is missing or fails.
    """
    return synthesize_verilog(top_verilog(name, config, family), TOP, family)


def clock(name: str, config: ArrayConfig, device: str) -> float:
    """Highest clock of an accelerator on a bus, in MHz, of one placement; routed or from the cache.

    Raises
    ------
    SynthesisError
        If a tool is missing or fails.
    """
    family = DEVICES[device].family
    verilog = top_verilog(name, config, family)
    versions = yosys_version(), nextpnr_version(family), hardware_hash()
    return float(cached_json("top_clocks", [verilog, device, *versions],
                             lambda: place_and_route(verilog, TOP, device).fmax))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code: 2 for a mistake."""
    parser = argparse.ArgumentParser(prog="python -m nomul_sim.tops", description="What tops cost.")
    parser.add_argument("config", metavar="CONFIG.toml", help="the accelerator")
    parser.add_argument("--top", nargs="+", choices=TOPS, default=list(TOPS), help="all unless given")
    parser.add_argument("--device", choices=DEVICES, default="lfe5u-85f", help="chip (default: %(default)s)")
    parser.add_argument("--route", action="store_true", help="place and route too: minutes for each")
    options = parser.parse_args(arguments)
    try:
        config, family = load_config(options.config), DEVICES[options.device].family
        print(f"{config.name}, {yosys_version()}\ntop           LUT     FF  block RAMs    MHz  LUTs by module")
        for name in options.top:
            found = area(name, config, family)
            total, reached = found.total, f"{clock(name, config, options.device):.1f}" if options.route else ""
            modules = ", ".join(f"{module} {cost.lut:,}" for module, cost in found.modules.items())
            print(f"{name:10} {total.lut:6,} {total.ff:6,} {total.bram:11}  {reached:>5}  {modules}", flush=True)
    except (ConfigError, SynthesisError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
