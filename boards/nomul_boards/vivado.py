"""A project for Vivado: Verilog, constraints, and a Tcl script that makes the bitstream or fails.

Script and constraints are those of Amaranth's platforms. What they lack is a check: Vivado writes a bitstream of a
design whose timing is missed as readily as of any other.
"""

from collections.abc import Mapping
from pathlib import Path

from .boards import Board
from .placing import prepare
from .top import BoardTop

__all__ = ["write_project"]

#: After routing: one more try, then the least slack decides.
_CHECK = """\
phys_opt_design
set slack [get_property SLACK [get_timing_paths -delay_type max]]
set hold [get_property SLACK [get_timing_paths -delay_type min]]
if {$slack < 0 || $hold < 0} {
    report_timing -file top_missed.rpt
    puts "ERROR: the clock is missed: setup slack $slack ns, hold slack $hold ns; see top_missed.rpt"
    exit 1
}"""


def write_project(board: Board, top: BoardTop, files: Mapping[str, str], folder: Path) -> None:
    """Write the project's files into a folder.

    Parameters
    ----------
    files : mapping of str to str
        The accelerator's Verilog and what goes with it, by name.
    """
    # Vivado would build the adders of DSP slices if it thought that they were worth it.
    prepare(board, top, files, script_after_route=_CHECK, synth_design_opts="-max_dsp 0").extract(folder)
