"""Turn Verilog into a Verilator executable for cocotb, without Perl and make.

Only the ports of the top module are visible to the bench: that keeps the model as small as without a bench. The part
of Verilator's run-time library that cocotb needs is the same for every design and compiled once per machine.
"""

import importlib.metadata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cocotb_tools.config

from ..build import compiler_identity, find_compiler, find_verilator, include_flags, machine_name, run_tool
from ..cache import cached, content_hash

__all__ = ["build_executable"]

_VERILATOR_FLAGS = ("--cc", "--vpi", "-O3", "--x-assign", "unique", "--x-initial", "unique", "--output-split", "0",
                    "-Wno-fatal", "-Wno-lint", "-Wno-style", "--prefix", "Vtop")
_COMPILER_FLAGS = ("-std=c++17", "-O1", "-w", "-DVERILATOR=1", "-DVM_COVERAGE=0", "-DVM_SC=0", "-DVM_TIMING=0",
                   "-DVM_TRACE=0", "-DVM_TRACE_FST=0", "-DVM_TRACE_VCD=0", "-DVM_TRACE_SAIF=0")
_RUNTIME_SOURCES = ("verilated.cpp", "verilated_vpi.cpp", "verilated_threads.cpp")


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
    root, version = find_verilator()
    compiler = find_compiler()
    libraries = Path(cocotb_tools.config.libs_dir)
    main = Path(cocotb_tools.config.share_dir) / "lib" / "verilator" / "verilator.cpp"
    compile_unit = [*compiler, *_COMPILER_FLAGS, *include_flags(root)]

    def make_runtime(path: Path) -> None:
        unit = path.with_name("runtime.cpp")
        unit.write_text("".join(f'#include "{name}"\n' for name in _RUNTIME_SOURCES))
        run_tool([*compile_unit, "-c", unit, "-o", path], "Compiling Verilator's run-time library")

    def make(path: Path) -> None:
        source, visible, model = path.with_name("design.v"), path.with_name("visible.vlt"), path.with_name("model")
        source.write_text(verilog, encoding="utf-8")
        visible.write_text(f'`verilator_config\npublic_flat_rw -module "{top}" -port "*"\n', encoding="utf-8")
        with ThreadPoolExecutor(1) as pool:
            runtime = pool.submit(cached, "runtime", f"{runtime_key}.o", make_runtime)
            run_tool([root / "bin" / "verilator_bin", *_VERILATOR_FLAGS, "--top-module", top, "--Mdir", model, visible,
                      source], "Verilator", VERILATOR_ROOT=str(root))
            unit = path.with_name("unit.cpp")
            units = [main, *sorted(model.glob("*.cpp"))]
            unit.write_text("".join(f'#include "{name.as_posix()}"\n' for name in units))
            run_tool([*compile_unit, f"-I{model}", "-c", unit, "-o", path.with_name("unit.o")],
                     "Compiling the Verilated model")
            run_tool([*compiler, path.with_name("unit.o"), runtime.result(), f"-L{libraries}", "-lcocotbvpi_verilator",
                      f"-Wl,-rpath,{libraries}", "-pthread", "-o", path], "Linking the simulator")

    machine = (version, compiler_identity(compiler), machine_name(), *_COMPILER_FLAGS)
    runtime_key = content_hash(*machine, *_RUNTIME_SOURCES)
    key = content_hash(verilog, top, importlib.metadata.version("cocotb"), str(libraries), *machine, *_VERILATOR_FLAGS)
    return cached("cocotb", key, make)
