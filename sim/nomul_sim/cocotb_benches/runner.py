"""Build a design for a simulator, and run a bench in it."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import cocotb_tools.config
import cocotb_tools.runner
from cocotb_tools.check_results import get_results

from nomul_hw.config import ArrayConfig

from .build import build_executable

__all__ = ["BENCH_CONFIG", "SIMULATORS", "BenchError", "Simulator", "missing", "run_bench"]

Simulator = Literal["icarus", "verilator"]

#: The simulators that benches run on.
SIMULATORS: tuple[Simulator, ...] = ("icarus", "verilator")

#: Environment variable that tells a bench the configuration of its design, as JSON.
BENCH_CONFIG = "NOMUL_BENCH_CONFIG"


class BenchError(AssertionError):
    """A bench that failed; the message ends with what the simulator printed last."""


def missing(simulator: Simulator) -> str | None:
    """Say what is not installed that a simulator needs, if anything."""
    return "iverilog not installed" if simulator == "icarus" and not shutil.which("iverilog") else None


def _build(runner: cocotb_tools.runner.Runner, simulator: Simulator, verilog: str, top: str, folder: Path) -> None:
    source = folder / f"{top}.v"
    source.write_text(verilog, encoding="utf-8")
    if simulator == "icarus":
        runner.build(sources=[source], hdl_toplevel=top, build_dir=folder, timescale=("1ns", "1ps"),
                     log_file=folder / "build.log")
    else:
        # cocotb's own build wants Perl and make, and compiles the same run-time library for every design.
        shutil.copy(build_executable(verilog, top), folder / top)


def run_bench(bench: str, simulator: Simulator, config: ArrayConfig, verilog: str, top: str, folder: Path,
              environment: Mapping[str, str] | None = None) -> int:
    """Run all tests of a bench in a simulator.

    Parameters
    ----------
    bench : str
        Name of a module in this package.
    simulator : str
        ``"icarus"`` or ``"verilator"``.
    config : ArrayConfig
        Configuration of the design.
    verilog, top : str
        The design, and the name of its top module.
    folder : Path
        Where the simulator may leave its files.
    environment : mapping of str to str, optional
        Further environment variables for the bench.

    Returns
    -------
    int
        Number of tests that ran, all of them passed.

    Raises
    ------
    BenchError
        If a test failed, or none ran.
    BuildError
        If the design could not be built.
    """
    runner = cocotb_tools.runner.get_runner(simulator)
    _build(runner, simulator, verilog, top, folder)
    log, results = folder / "simulation.log", folder / "results.xml"
    ended = ""
    try:
        runner.test(
            test_module=f"{__package__}.{bench}", hdl_toplevel=top, hdl_toplevel_lang="verilog", build_dir=folder,
            test_dir=folder, results_xml=str(results), log_file=log, seed=1,
            # What has no initial value starts as anything; Icarus starts it as unknown.
            plusargs=["+verilator+rand+reset+2", "+verilator+seed+1"] if simulator == "verilator" else [],
            extra_env={BENCH_CONFIG: json.dumps(config.to_dict()), **(environment or {})},
        )
    except (RuntimeError, SystemExit) as error:  # failed tests too, when pytest runs this
        ended = f"the simulator ended early: {error}"
    try:
        ran, failures = get_results(results)
    except RuntimeError:
        ran, failures = 0, 0
    failed = f"{failures} of {ran} tests failed" if failures else ended or ("" if ran else "no test ran")
    if failed:
        printed = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
        raise BenchError("\n".join([f"{bench} on {simulator}: {failed}", *printed[-60:]]))
    return ran
