"""Turn Verilog into a Verilator executable for cocotb, without Perl and make.

Only the ports of the top module are visible to the bench: that keeps the model as small as without a bench.
"""

from pathlib import Path

import cocotb_tools.config

from ..build import Recipe, build

__all__ = ["build_executable"]


def build_executable(verilog: str, top: str) -> Path:
    """Build the executable that runs cocotb benches on a design, or find it in the cache.

    Parameters
    ----------
    verilog : str
        The design's text, self-contained.
    top : str
        Name of its top module.

    Raises
    ------
    BuildError
        If a tool is missing or refuses the design.
    """
    libraries = Path(cocotb_tools.config.libs_dir)
    return build(verilog, top, Recipe(
        kind="cocotb", suffix="", verilator=("--vpi", "--x-assign", "unique", "--x-initial", "unique"), compiler=(),
        linker=(f"-L{libraries}", "-lcocotbvpi_verilator", f"-Wl,-rpath,{libraries}"), optimization="-O1",
        runtime=("verilated.cpp", "verilated_vpi.cpp", "verilated_threads.cpp"),
        main=Path(cocotb_tools.config.share_dir) / "lib" / "verilator" / "verilator.cpp", public=True))
