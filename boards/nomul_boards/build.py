"""From a network to a board: what `nomul build` does.

The network is compiled for the board's array, the array's Verilog is the one that `nomul generate` writes, and its
bitstream is made, or a Vivado project that makes it. A bitstream whose timing is missed is none: nothing is written.
"""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nomul.area import AreaError, block_rams, load_predictor
from nomul.compiler import Program, compile_network
from nomul.files import save_program
from nomul.graph import Graph
from nomul.report import build_table, json_text, text_of
from nomul.schedule import Schedule
from nomul_hw.bus.serial import SerialBus
from nomul_hw.config import ArrayConfig
from nomul_hw.pnr import Routing
from nomul_hw.verilog import generate

from .boards import Board
from .errors import BuildError
from .placing import check_tools, place
from .pll import make_pll
from .top import BoardTop
from .vivado import write_project

__all__ = ["Build", "build"]

#: What a folder must hold to be replaced.
_MARK = "report.json"

#: Of a project's folder, what nobody needs afterwards: netlists as large as the chip.
_BULKY = ("top.json", "top.syn.json", "top.pnr.json", "placed.json", "report.json", "top.config", "top.asc", "top.svf")


@dataclass(frozen=True)
class Build:
    """What was built.

    Attributes
    ----------
    board : Board
        The board.
    config : ArrayConfig
        The array.
    clock : float
        In MHz.
    baud : int
        Bits per second on the serial line.
    cycles : int
        Of one sample, exactly.
    routing : Routing or None
        Timing and utilisation; None where Vivado has yet to do that.
    folder : Path
        Where everything is; if the clock was missed, nothing is.
    bitstream : Path
        In that folder; for Vivado's project what it will make.
    """

    board: Board
    config: ArrayConfig
    clock: float
    baud: int
    cycles: int
    routing: Routing | None
    folder: Path
    bitstream: Path

    @property
    def met(self) -> bool:
        """Whether the clock was met, as far as is known."""
        return self.routing is None or self.routing.fmax >= self.clock

    @property
    def missed(self) -> str:
        """What to say if it was not."""
        assert self.routing is not None
        path = self.routing.path
        return (f"the clock is missed: {self.routing.fmax:.1f} MHz of {self.clock:g} MHz, by a path through "
                f"{', '.join(dict.fromkeys(path.modules))} ({path.source} to {path.sink}); nothing was written")

    @property
    def commands(self) -> tuple[str, ...]:
        """What to type next: program the board, then run the network on it."""
        make = () if self.board.open else (
            f"(cd {self.folder / 'project'} && vivado -mode batch -source top.tcl)",)
        return (*make, self.board.load.format(file=self.bitstream),
                f"nomul run {self.folder / 'program.nomul'} INPUT.npy --port /dev/ttyUSB0 --baud {self.baud}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json`` and the report."""
        return {
            "board": self.board.name, "chip": self.board.chip, "array": self.config.name,
            "config_hash": self.config.hash, "clock_mhz": self.clock, "baud": self.baud, "cycles": self.cycles,
            "milliseconds": self.cycles / self.clock / 1e3, "met": self.met if self.routing else None,
            "routing": self.routing.to_dict() if self.routing else None,
        }


def build(board: Board, network: Graph, folder: str | Path, *, config: ArrayConfig | None = None,
          clock: float | None = None, baud: int | None = None, seeds: Sequence[int] = (1,),
          progress: Callable[[str], None] | None = None) -> Build:
    """Build a bitstream and a network's program for it.

    In the folder, which is made whole or not at all: the bitstream, ``program.nomul``, ``report.json`` and
    ``report.txt``, ``verilog`` (what `nomul generate` writes) and ``project`` (constraints, scripts and logs of the
    tools).

    Parameters
    ----------
    config : ArrayConfig, optional
        Another array than the board's.
    clock : float, optional
        In MHz, if not the board's.
    baud : int, optional
        Bits per second on the serial line, if not the board's.
    seeds : sequence of int
        Placements to try, until one meets the clock.
    progress : callable, optional
        Is told what is being done.

    Raises
    ------
    BuildError
        If the folder cannot be replaced, a tool is missing or fails, or the design does not fit.
    nomul.compiler.CompileError
        If the network does not suit the array.
    nomul_hw.config.ConfigError
        If the array cannot be reached over a serial line, or the clock is too slow for it.
    """
    folder, tell = Path(folder), progress or (lambda _: None)
    _check_replaceable(folder)
    check_tools(board)
    array = board.config() if config is None else config
    tell(f"compile for {array.name}")
    program = compile_network(network, array)
    _warn(board, array, tell)

    wanted = board.clock if clock is None else clock
    pll = None if wanted == board.source else make_pll(board.family, board.part, board.source, wanted)
    made = wanted if pll is None else pll.clock
    line = SerialBus(round(made * 1e6), board.baud if baud is None else baud, board.depth, min(128, board.depth // 2))

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        work = Path(scratch) / "new"
        tell(f"generate {array.name}")
        verilog = generate(array, work / "verilog", bus=line, family=board.family, lint=False)
        files = {verilog.verilog.name: verilog.verilog.read_text(encoding="utf-8"),
                 **({"pll.v": pll.verilog} if pll else {})}
        top = BoardTop(board, verilog.manifest["top"], pll=pll is not None)
        routing = bitstream = None
        if board.open:
            routing, bitstream = place(board, top, files, work / "project", clock=made, seeds=seeds, progress=tell)
        else:
            tell("write Vivado's project")
            write_project(board, top, files, work / "project")
        name = f"{board.name}.{board.suffix}"
        result = Build(board, array, made, line.baud, _cycles(program), routing, folder,
                       folder / name if board.open else folder / "project" / f"top.{board.suffix}")
        if not result.met:
            return result
        if bitstream is not None:
            bitstream.replace(work / name)
        for bulky in _BULKY:
            (work / "project" / bulky).unlink(missing_ok=True)
        save_program(program, work / "program.nomul")
        (work / "report.txt").write_text(text_of(build_table(result)), encoding="utf-8")
        (work / _MARK).write_text(json_text(result.to_dict()), encoding="utf-8")
        _move(work, folder, Path(scratch) / "old")
    return result


def _cycles(program: Program | Schedule) -> int:
    return int(program.estimate().cycles)


def _warn(board: Board, config: ArrayConfig, tell: Callable[[str], None]) -> None:
    """Say before the long work what will probably not fit."""
    blocks = block_rams(config, board.family)
    if blocks > board.bram:
        tell(f"warning: {config.name} takes about {blocks} block RAMs, {board.chip} has {board.bram}")
    try:
        cost = load_predictor(board.family).predict(config)
    except AreaError:  # not every family was swept
        return
    if cost.lut > board.lut:
        tell(f"warning: {config.name} takes about {cost.lut:,} LUTs, {board.chip} has {board.lut:,}")


def _check_replaceable(folder: Path) -> None:
    """Find out before the work whether the folder may be written."""
    if folder.exists() and not folder.is_dir():
        raise BuildError(f"{folder}: is not a folder")
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARK).is_file():
        raise BuildError(f"{folder}: is not what `nomul build` wrote: remove it or choose another folder")


def _move(new: Path, folder: Path, old: Path) -> None:
    """Put a finished folder in place of an older one."""
    if folder.exists():
        shutil.move(folder, old)
    new.rename(folder)
