"""From a board's design to its bitstream: Amaranth's build plan, run step by step with the tools that pip has.

A plan is a folder of files and a list of commands. The commands run here rather than in the plan's shell script: so
the programs can be Python packages, nextpnr can be told about seeds, and its report is read before anything is packed.
"""

import json
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import floor
from pathlib import Path
from typing import Any

from nomul_hw.families import FAMILIES
from nomul_hw.lint import find_yosys
from nomul_hw.pnr import HARNESS, Routing, _by_module, _run, _slowest, nextpnr_version
from nomul_hw.synth import SynthesisError, top_instances, yosys_version

from .boards import Board
from .errors import BuildError
from .tools import add_dfu_suffix, find_tool, himbaechel_options, require, run_tool
from .top import MACHINE, BoardTop

__all__ = ["BOARD", "check_tools", "place", "prepare"]

#: Row of what is around the accelerator's module.
BOARD = "board"

#: nextpnr and what makes a bitstream of its result, by family.
_TOOLS: Mapping[str, tuple[str, ...]] = {
    "ecp5": ("nextpnr-ecp5", "ecppack"), "ice40": ("nextpnr-ice40", "icepack"),
    "gowin": ("nextpnr-himbaechel", "gowin_pack"), "xilinx": ()}

#: Product numbers of OrangeCrab's boot loader, which a file is marked with.
_DFU = (0x1209, 0x5AF0)


def check_tools(board: Board) -> None:
    """Find out before the work whether all tools are there.

    Raises
    ------
    BuildError
        If one is not.
    """
    require(_TOOLS[board.family])
    if board.open:
        try:
            yosys_version()
        except SynthesisError as error:
            raise BuildError(str(error)) from None


def prepare(board: Board, top: BoardTop, files: Mapping[str, str], **overrides: str) -> Any:
    """Amaranth's build plan for a design.

    Parameters
    ----------
    files : mapping of str to str
        Verilog and what it reads, by name.
    overrides : str
        As Amaranth's platforms take them.
    """
    platform = board.make_platform()
    for name, text in files.items():
        platform.add_file(name, text)
    return platform.prepare(top, "top", verbose=True, emit_src=False, **overrides)


def place(board: Board, top: BoardTop, files: Mapping[str, str], folder: Path, *, clock: float,
          seeds: Sequence[int] = (1,), progress: Callable[[str], None]) -> tuple[Routing, Path | None]:
    """Synthesize, place, route and pack a design.

    Parameters
    ----------
    files : mapping of str to str
        The accelerator's Verilog first, and what goes with it.
    folder : Path
        Where everything happens; it stays there.
    clock : float
        In MHz.
    seeds : sequence of int
        Placements to try, until one meets the clock.

    Returns
    -------
    Routing
        Of the best placement.
    Path or None
        The bitstream; None if the clock was missed.

    Raises
    ------
    BuildError
        If a tool fails, for example because the design does not fit.
    """
    verilog = next(iter(files.values()))
    inner = _accelerator(verilog, top.module)
    instances = set(top_instances(verilog, top.module)) | set(top_instances(verilog, inner) if inner else ())
    # Gowin's plan writes the placed design anyway.
    placed_file = "top.pnr.json" if board.family == "gowin" else "placed.json"
    options = ["--report", "report.json", *([] if board.family == "gowin" else ["--write", placed_file]),
               "--freq", f"{clock:g}", "--timing-allow-fail"]
    plan = prepare(
        board, top, files, synth_opts=FAMILIES[board.family].synthesis.partition(" ")[2],
        script_after_read="\n".join(_keep_names(verilog, top.module, inner)), nextpnr_opts=" ".join(options))
    plan.extract(folder)
    commands = json.loads((folder / "build_top.json").read_text(encoding="utf-8"))["commands"]
    _, placement, *packing = commands
    progress(f"synthesize for {board.chip}")
    _synthesize(folder)
    best: Routing | None = None
    clocks: dict[int, float] = {}
    try:
        for seed in seeds:
            name, given = "nextpnr-himbaechel" if board.family == "gowin" else placement[0], placement[1:]
            given = himbaechel_options(given) if board.family == "gowin" else given
            _run(find_tool(name), [*given, "--seed", str(seed)], folder,
                 lambda step, seed=seed: progress(f"seed {seed}: {step}"))  # type: ignore[misc]
            placed = _routing(board, folder, placed_file, instances, [name, *given, "--seed", str(seed)], seed)
            clocks[seed] = placed.fmax
            progress(f"seed {seed}: {placed.fmax:.1f} MHz")
            if best is None or placed.fmax > best.fmax:
                best = placed
            if placed.fmax >= clock:  # what is packed is the latest placement
                break
    except SynthesisError as error:
        raise BuildError(_too_much(folder / "top.tim", board) or f"{board.title}: {error}") from None
    assert best is not None
    best = replace(best, clocks=clocks)
    if best.fmax < clock:
        return best, None
    for tool, *given in packing:
        progress(f"pack: {tool}")
        if tool == "dfu-suffix":
            add_dfu_suffix(folder / "top.bit", *_DFU)
        else:
            run_tool(tool, given, folder)
    return best, folder / f"top.{board.suffix}"


def _too_much(log: Path, board: Board) -> str:
    """What a design takes more of than the chip has, by nextpnr's own count; empty if that was not the reason."""
    said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    counts = [(name, int(used), int(available)) for name, used, available in
              re.findall(r"^Info:\s+(\w+): *(\d+)/ *(\d+) ", said, re.MULTILINE)]
    over = [f"{used:,} of {available:,} {name}" for name, used, available in counts if used > available]
    return f"the design does not fit {board.chip}: it takes {', '.join(over)}" if over else ""


def _accelerator(verilog: str, module: str) -> str:
    """The accelerator's module within that of a bus, by the instance's name; empty if it has none."""
    return top_instances(verilog, module).get("accelerator", "")


def _synthesize(folder: Path) -> None:
    """Run the plan's script in Yosys."""
    found = find_yosys()
    assert found is not None
    with (folder / "top.rpt").open("w", encoding="utf-8") as log:
        done = subprocess.run([*found.program, "-p", "script top.ys"], cwd=folder, stdout=log, stderr=log, check=False)
    if done.returncode:
        said = (folder / "top.rpt").read_text(encoding="utf-8", errors="replace").splitlines()
        lines = [line for line in said if "ERROR" in line]
        raise BuildError(f"Yosys: {lines[-1] if lines else f'ended with status {done.returncode}'}")


def _keep_names(verilog: str, module: str, inner: str) -> list[str]:
    """Passes that leave every net the name that it has in the module that drives it: as :mod:`nomul_hw.pnr` does.

    A net also has names in the modules that it goes to, and between them; Yosys would keep any of them.
    """
    bodies = dict(re.findall(r"^module (\w+)(.*?)^endmodule", verilog, re.MULTILINE | re.DOTALL))
    levels = [(MACHINE, module), *([(f"{MACHINE}.accelerator", inner)] if inner else [])]
    inputs = [f"w:{path}.{instance}.{port}" for path, name in levels
              for instance, kind in top_instances(verilog, name).items()
              for port in re.findall(r"^  input (?:\[\d+:0\] )?\\?(\S+?) ?;", bodies[kind], re.MULTILINE)]
    return ["hierarchy -top top", "proc",
            *(f"rename -hide {name}/w:* {name}/t:$*ff* %co1:+[Q] %d" for _, name in levels),
            "flatten", *([f"rename -hide {' '.join(inputs)}"] if inputs else [])]


def _routing(board: Board, folder: Path, placed_file: str, instances: set[str], command: Sequence[str],
             seed: int) -> Routing:
    """What nextpnr reports, by the accelerator's modules."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    placed = json.loads((folder / placed_file).read_text(encoding="utf-8"))

    def shorter(name: str) -> str:
        """A cell of the accelerator, without the module around it."""
        return name.replace(f"{MACHINE}.accelerator.", "accelerator.", 1)

    for path in report["critical_paths"]:
        for step in path["path"]:
            for end in ("from", "to"):
                step[end]["cell"] = shorter(step[end]["cell"])
    used = {name: (cells["used"], cells["available"]) for name, cells in report["utilization"].items() if cells["used"]}
    module = next(iter(placed["modules"].values()))
    module["cells"] = {shorter(name): cell for name, cell in module["cells"].items()}
    rows = {BOARD if name == HARNESS else name: cells for name, cells in _by_module(placed, used, instances).items()}
    achieved = min(domain["achieved"] for domain in report["fmax"].values())
    return Routing(board.chip, "", "", (yosys_version(), nextpnr_version(board.family)), " ".join(command),
                   {seed: floor(achieved * 100) / 100}, _slowest(report, instances), used, rows)
