"""A clock other than the board's: the family's own tool knows how its PLL makes it."""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .errors import BuildError
from .tools import run_tool

__all__ = ["PLL", "make_pll"]

#: How far off a clock may be: less than a UART minds.
TOLERANCE = 0.01


@dataclass(frozen=True)
class PLL:
    """A PLL.

    Attributes
    ----------
    verilog : str
        Module ``pll`` with the ports ``clock_in``, ``clock_out`` and ``locked``.
    clock : float
        What it makes, in MHz.
    """

    verilog: str
    clock: float


def make_pll(family: str, part: str, source: float, clock: float) -> PLL:
    """Configure a PLL.

    Parameters
    ----------
    part : str
        The chip's name, which Gowin's tool asks for.
    source, clock : float
        From and to, in MHz.

    Raises
    ------
    BuildError
        If the PLL cannot come close to the clock, or the tool is missing.
    """
    pll = _xilinx(source, clock) if family == "xilinx" else _by_tool(family, part, source, clock)
    if abs(pll.clock / clock - 1) > TOLERANCE:
        raise BuildError(f"the board's PLL cannot make {clock:g} MHz of {source:g} MHz; the nearest is "
                         f"{pll.clock:g} MHz")
    return pll


def _by_tool(family: str, part: str, source: float, clock: float) -> PLL:
    given = ["-i", f"{source:g}", "-o", f"{clock:g}", "-f", "pll.v"]
    tool, options = {
        "ecp5": ("ecppll", ["-n", "pll", "--clkin_name", "clock_in", "--clkout0_name", "clock_out"]),
        "ice40": ("icepll", ["-m", "-p"]),
        "gowin": ("gowin_pll", ["-d", part]),
    }[family]
    with tempfile.TemporaryDirectory(prefix="nomul-pll-") as folder:
        said = run_tool(tool, [*given, *options], Path(folder))
        verilog = (Path(folder) / "pll.v").read_text(encoding="utf-8")
    found = re.search(r"(?:clkout0 frequency|Achieved output frequency): *([\d.]+) MHz", said + verilog)
    if found is None:
        raise BuildError(f"{tool}: does not say which clock it makes")
    return PLL(verilog, float(found[1]))


def _xilinx(source: float, clock: float) -> PLL:
    """A PLL of the 7 series: VCO at 800 to 1600 MHz (DS181, speed grade -1), one integer factor, one integer divider.

    ``LOCKED`` and reset are as in UG472; there is no free tool that would write it.
    """
    factor, divider = min(
        ((factor, divider) for factor in range(2, 65) if 800 <= source * factor <= 1600 for divider in range(1, 129)),
        key=lambda pair: abs(source * pair[0] / pair[1] - clock))
    return PLL(f"""\
module pll(input clock_in, output clock_out, output locked);
  wire feedback, feedback_buffered, made;
  PLLE2_BASE #(
    .CLKIN1_PERIOD({1e3 / source:.3f}), .DIVCLK_DIVIDE(1), .CLKFBOUT_MULT({factor}), .CLKOUT0_DIVIDE({divider})
  ) pll_i (
    .CLKIN1(clock_in), .RST(1'b0), .PWRDWN(1'b0), .LOCKED(locked),
    .CLKFBOUT(feedback), .CLKFBIN(feedback_buffered), .CLKOUT0(made)
  );
  BUFG feedback_i (.I(feedback), .O(feedback_buffered));
  BUFG clock_i (.I(made), .O(clock_out));
endmodule
""", source * factor / divider)
