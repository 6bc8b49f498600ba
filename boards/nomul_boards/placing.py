"""From a board's design to its bitstream: Amaranth's build plan, run step by step with the tools that pip has.

A plan is a folder of files and a list of commands. The commands run here rather than in the plan's shell script: so
the programs can be Python packages, nextpnr can be told about seeds, and its report is read before anything is packed.
"""

import json
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nomul_hw.families import FAMILIES
from nomul_hw.lint import find_yosys
from nomul_hw.pnr import Routing, best_of, find_nextpnr, keep_names, read_routing, run_nextpnr, trim_carries
from nomul_hw.synth import SynthesisError, top_instances, yosys_version

from .boards import Board
from .errors import BuildError
from .tools import add_dfu_suffix, himbaechel_options, require, run_tool
from .top import MACHINE, BoardTop

__all__ = ["BOARD", "check_tools", "place", "prepare"]

#: Row of what is around the accelerator's module.
BOARD = "board"

#: What makes a bitstream of nextpnr's result, by family.
_PACKERS: Mapping[str, tuple[str, ...]] = {
    "ecp5": ("ecppack",), "ice40": ("icepack",), "gowin": ("gowin_pack",), "xilinx": ()}

#: Product numbers of OrangeCrab's boot loader, which a file is marked with.
_DFU = (0x1209, 0x5AF0)


def check_tools(board: Board) -> None:
    """Find out before the work whether all tools are there.

    Raises
    ------
    BuildError
        If one is not.
    """
    require(_PACKERS[board.family])
    if board.open:
        try:
            find_nextpnr(board.family)
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
    levels = _levels(verilog, top.module)
    instances = {instance for module in levels.values() for instance in top_instances(verilog, module)}
    # Gowin's plan writes the placed design anyway.
    placed_file = "top.pnr.json" if board.family == "gowin" else "placed.json"
    options = ["--report", "report.json", *([] if board.family == "gowin" else ["--write", placed_file]),
               "--freq", f"{clock:g}", "--timing-allow-fail"]
    plan = prepare(
        board, top, files, synth_opts=FAMILIES[board.family].synthesis.partition(" ")[2],
        script_after_read="\n".join(["hierarchy -top top", *keep_names(verilog, levels)]),
        nextpnr_opts=" ".join(options))
    plan.extract(folder)
    commands = json.loads((folder / "build_top.json").read_text(encoding="utf-8"))["commands"]
    _, placement, *packing = commands
    progress(f"synthesize for {board.chip}")
    _synthesize(folder, board.family)
    name, *given = placement
    if board.family == "gowin":
        name, given = "nextpnr-himbaechel", himbaechel_options(given)
    routings: list[Routing] = []
    try:
        nextpnr, version = find_nextpnr(board.family)
        for seed in seeds:
            seeded = [*given, "--seed", str(seed)]
            run_nextpnr(nextpnr, seeded, folder, partial(_tell_seed, progress, seed))
            routings.append(read_routing(
                folder, device=board.chip, tools=(yosys_version(), version),
                command=" ".join([name, *seeded]), seed=seed, instances=instances, placed=placed_file,
                inner=list(levels)[-1], around=BOARD))
            progress(f"seed {seed}: {routings[-1].fmax:.1f} MHz")
            if routings[-1].fmax >= clock:  # what is packed is the latest placement
                break
    except SynthesisError as error:
        raise BuildError(_too_much(folder / "top.tim", board) or f"{board.title}: {error}") from None
    best = best_of(routings)
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


def _tell_seed(progress: Callable[[str], None], seed: int, step: str) -> None:
    progress(f"seed {seed}: {step}")


def _levels(verilog: str, module: str) -> dict[str, str]:
    """Modules of a design that only connect others, by path: the bus's, and the accelerator's if there is one in it."""
    inner = top_instances(verilog, module).get("accelerator")
    return {MACHINE: module} | ({f"{MACHINE}.accelerator": inner} if inner else {})


def _synthesize(folder: Path, family: str) -> None:
    """Run the plan's script in Yosys, and leave out of the netlist what would only lengthen carry chains."""
    found = find_yosys()
    assert found is not None
    with (folder / "top.rpt").open("w", encoding="utf-8") as log:
        done = subprocess.run([*found.program, "-p", "script top.ys"], cwd=folder, stdout=log, stderr=log, check=False)
    if done.returncode:
        said = (folder / "top.rpt").read_text(encoding="utf-8", errors="replace").splitlines()
        lines = [line for line in said if "ERROR" in line]
        raise BuildError(f"Yosys: {lines[-1] if lines else f'ended with status {done.returncode}'}")
    if family == "ecp5":
        netlist = folder / "top.json"
        netlist.write_text(trim_carries(netlist.read_text(encoding="utf-8")), encoding="utf-8")
