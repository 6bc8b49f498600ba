# amaranth: UnusedElaboratable=no
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
from nomul.fit import config_toml
from nomul.graph import Graph
from nomul.report import build_table, json_text, text_of
from nomul.selftest import self_test
from nomul_hw.bus.serial import SerialBus
from nomul_hw.config import ArrayConfig
from nomul_hw.contents import Contents
from nomul_hw.pnr import Routing
from nomul_hw.verilog import Bus, generate

from .boards import BOARDS, Board
from .errors import BuildError
from .placing import check_tools, place
from .pll import make_pll
from .top import BoardTop
from .vivado import write_project

__all__ = ["Build", "build"]

#: What a folder may hold, beside bitstreams, to be replaced.
_WRITTEN = ("array.toml", "program.nomul", "project", "report.json", "report.txt", "verilog")

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
    baud : int or None
        Bits per second on the serial line; None where it tests itself.
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
    baud: int | None
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
    def serial(self) -> bool:
        """Whether it has a serial line; a self-test has none."""
        return self.baud is not None

    @property
    def commands(self) -> tuple[str, ...]:
        """What to type next: program the board, then run the network on it."""
        make = f"(cd {self.folder / 'project'} && vivado -mode batch -source top.tcl)"
        run = f"nomul run {self.folder / 'program.nomul'} INPUT.npy --port /dev/ttyUSB0 --baud {self.baud}"
        return (*([] if self.board.open else [make]), self.board.load.format(file=self.bitstream),
                *([run] if self.serial else []))

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
          selftest: bool = False, progress: Callable[[str], None] | None = None) -> Build:
    """Build a bitstream and a network's program for it.

    In the folder, which is made whole or not at all: the bitstream, ``program.nomul``, ``array.toml`` to compile other
    networks for, ``report.json`` and ``report.txt``, ``verilog`` (what `nomul generate` writes) and ``project``
    (constraints, scripts and logs of the tools).

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
    selftest : bool
        Build the program in, with an input and the checksum of what it must make of it, instead of a serial line: the
        LED blinks as long as every bit and every cycle is right (:mod:`nomul.selftest`).
    progress : callable, optional
        Is told what is being done.

    Raises
    ------
    BuildError
        If the folder cannot be replaced, a tool is missing or fails, the design does not fit, or a network that runs
        piece by piece should test itself.
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
    hertz, baud = round(made * 1e6), None if selftest else baud or board.baud
    contents: Contents | None = None
    bus: Bus
    if baud is not None:
        bus = SerialBus(hertz, baud, board.depth, min(128, board.depth // 2))
    elif isinstance(program, Program):
        contents, bus = program.contents, self_test(program, hertz)
    else:
        raise BuildError(f"the network does not fit {array.name} as a whole, so that it cannot be built in")

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        work = Path(scratch) / "new"
        tell(f"generate {array.name}")
        verilog = generate(array, work / "verilog", contents=contents, bus=bus, family=board.family, lint=False)
        read = [verilog.verilog, *sorted((work / "verilog").glob("*.hex"))]
        files = {path.name: path.read_text(encoding="utf-8") for path in read}
        if pll is not None:
            files["pll.v"] = pll.verilog
        top = BoardTop(board, verilog.manifest["top"], pll=pll is not None, serial=not selftest)
        routing = bitstream = None
        if board.open:
            routing, bitstream = place(board, top, files, work / "project", clock=made, seeds=seeds, progress=tell)
        else:
            tell("write Vivado's project")
            write_project(board, top, files, work / "project")
        name = f"{board.name}.{board.suffix}"
        result = Build(board, array, made, baud, int(program.estimate().cycles), routing, folder,
                       folder / name if board.open else folder / "project" / f"top.{board.suffix}")
        if not result.met:
            return result
        if bitstream is not None:
            bitstream.replace(work / name)
        for bulky in _BULKY:
            (work / "project" / bulky).unlink(missing_ok=True)
        save_program(program, work / "program.nomul")
        (work / "array.toml").write_text(config_toml(array), encoding="utf-8")
        (work / "report.txt").write_text(text_of(build_table(result)), encoding="utf-8")
        (work / "report.json").write_text(json_text(result.to_dict()), encoding="utf-8")
        _move(work, folder, Path(scratch) / "old")
    return result


def _warn(board: Board, config: ArrayConfig, tell: Callable[[str], None]) -> None:
    """Say before the long work what will probably not fit."""
    blocks = block_rams(config, board.family)
    if blocks > board.size.bram:
        tell(f"warning: {config.name} takes about {blocks} block RAMs, {board.chip} has {board.size.bram}")
    try:
        cost = load_predictor(board.family).predict(config)
    except AreaError:  # not every family was swept
        return
    if cost.lut > board.size.lut:
        tell(f"warning: {config.name} takes about {cost.lut:,} LUTs, {board.chip} has {board.size.lut:,}")


def _check_replaceable(folder: Path) -> None:
    """Find out before the work whether the folder may be written."""
    if folder.exists() and not folder.is_dir():
        raise BuildError(f"{folder}: is not a folder")
    bitstreams = {f"{board.name}.{board.suffix}" for board in BOARDS.values()}
    for entry in sorted(folder.iterdir()) if folder.exists() else ():
        if entry.name not in _WRITTEN and entry.name not in bitstreams:
            raise BuildError(f"{folder}: is not what `nomul build` wrote (it has {entry.name}): choose another folder")


def _move(new: Path, folder: Path, old: Path) -> None:
    """Put a finished folder in place of an older one."""
    if folder.exists():
        shutil.move(folder, old)
    new.rename(folder)
