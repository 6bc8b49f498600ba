"""The fastest array for a network on a board: its shape, with memories as large as the network needs.

Shapes are tried from the largest down. What each takes of the chip is predicted (:mod:`nomul.area`), what it needs of
memory and how many cycles a sample takes is exact (:mod:`nomul.estimate`). A shape whose every product in every cycle
would not beat the best one so far needs no look.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import product
from typing import Any

from nomul_hw.config import ArrayConfig, ConfigError, MemoryConfig
from nomul_hw.families import Cost
from nomul_hw.formats import FORMATS, WeightFormat, get_format

from .area import Errors, Predictor, load_predictor
from .compiler.errors import CompileError
from .compiler.plan import fitted
from .estimate import estimate_network
from .shapes import NetworkShape

__all__ = ["BOARDS", "Board", "Candidate", "Fit", "FitError", "config_toml", "fit_board"]

#: Rows, lanes and columns that are tried.
ROWS, LANES, COLS = (2, 4, 8, 16, 32), (1, 2, 4, 8, 16), (2, 4, 8, 16, 32, 64)

#: Share of the LUTs and flip-flops that may be used: a fuller chip is hard to route.
SHARE = 0.85


class FitError(ValueError):
    """No array for a network on a board; the message says what it lacks."""


@dataclass(frozen=True)
class Board:
    """A board: what its chip has.

    Parameters
    ----------
    name, chip : str
    family : str
        One of :data:`nomul_hw.families.FAMILIES`.
    lut, ff, bram : int
        As :class:`nomul_hw.families.Cost` counts them: block RAMs of 16 or 18 kbit, 4 kbit on iCE40.
    """

    name: str
    chip: str
    family: str
    lut: int
    ff: int
    bram: int


#: Boards by the name that ``--board`` takes; sizes are those of the chips' data sheets.
BOARDS: Mapping[str, Board] = {board.name: board for board in (
    Board("ulx3s-85f", "LFE5U-85F", "ecp5", 83_640, 83_640, 208),
    Board("ulx3s-45f", "LFE5U-45F", "ecp5", 43_848, 43_848, 108),
    Board("ecpix5-85f", "LFE5UM5G-85F", "ecp5", 83_640, 83_640, 208),
    Board("orangecrab-25f", "LFE5U-25F", "ecp5", 24_288, 24_288, 56),
    Board("icebreaker", "iCE40UP5K", "ice40", 5_280, 5_280, 30),
    Board("ice40-hx8k", "iCE40HX8K", "ice40", 7_680, 7_680, 32),
    Board("arty-a7-35t", "XC7A35T", "xilinx", 20_800, 41_600, 100),
    Board("pynq-z2", "XC7Z020", "xilinx", 53_200, 106_400, 280),
    Board("tang-nano-9k", "GW1NR-9", "gowin", 8_640, 6_480, 26),
)}


@dataclass(frozen=True)
class Candidate:
    """An array, what it is predicted to take, and the cycles of a sample."""

    config: ArrayConfig
    cost: Cost
    cycles: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"array": self.config.name, "cost": asdict(self.cost), "cycles": self.cycles,
                "memory": asdict(self.config.memory)}


@dataclass(frozen=True)
class Fit:
    """What a search found.

    Parameters
    ----------
    board : Board
    share : float
        Of its LUTs and flip-flops that may be used.
    candidates : tuple of Candidate
        Those that fit, the fastest first; of equals the one of fewer LUTs.
    tried : int
        Shapes whose cycles were counted.
    errors : Errors
        Of the predictions.
    """

    board: Board
    share: float
    candidates: tuple[Candidate, ...]
    tried: int
    errors: Errors

    @property
    def best(self) -> Candidate:
        """The fastest."""
        return self.candidates[0]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {"board": asdict(self.board), "share": self.share, "best": self.best.to_dict(), "tried": self.tried,
                "candidates": [candidate.to_dict() for candidate in self.candidates], "errors": asdict(self.errors)}


def fit_board(network: NetworkShape, board: Board, fmt: WeightFormat | str, *, pe: str = "shift", share: float = SHARE,
              predictor: Predictor | None = None, progress: Callable[[str], None] | None = None) -> Fit:
    """Find the fastest array for a network that a board's chip holds, whole network and weights on the chip.

    Parameters
    ----------
    network : NetworkShape
        Layers of other formats run as planes.
    fmt : WeightFormat or str
        Of the array.
    pe : str
        As of :class:`nomul_hw.config.ArrayConfig`.
    share : float
        Of the LUTs and flip-flops that may be used, above 0 and at most 1.
    predictor : Predictor, optional
        That of the board's family, from the package, unless given.

    Raises
    ------
    FitError
        If no array fits; the message says what the smallest one takes.
    nomul.area.AreaError
        If the family was not swept.
    """
    if not 0 < share <= 1:
        raise FitError(f"share must be above 0 and at most 1, not {share}")
    tell, predictor = progress or (lambda _: None), predictor or load_predictor(board.family)
    fmt = get_format(fmt) if isinstance(fmt, str) else fmt
    macs = sum(network.macs(layer) for layer in network.layers)
    shapes = sorted(product(ROWS, LANES, COLS), key=lambda shape: (-shape[0] * shape[1] * shape[2], shape))
    found: list[Candidate] = []
    tried, lacks = 0, ""  # why not the shape tried last, the smallest in the end
    for rows, lanes, cols in shapes:
        if found and macs / (rows * lanes * cols) > min(candidate.cycles for candidate in found):
            break
        try:
            bare = ArrayConfig(fmt, rows, cols, lanes, pe)
            cost = predictor.predict(bare)
            if cost.lut > share * board.lut or cost.ff > share * board.ff:
                lacks = f"{bare.name} takes about {cost.lut:,} LUTs and {cost.ff:,} flip-flops"
                continue
            config = fitted(network, bare)
        except (ConfigError, CompileError) as error:
            lacks = str(error)
            continue
        cost = predictor.predict(config)
        tried += 1
        if cost.lut > share * board.lut or cost.ff > share * board.ff or cost.bram > board.bram:
            lacks = f"{config.name} takes about {cost.lut:,} LUTs, {cost.ff:,} flip-flops and {cost.bram} block RAMs"
            continue
        found.append(Candidate(config, cost, estimate_network(network, config).cycles))
        tell(f"{config.name}: {found[-1].cycles:,} cycles, about {cost.lut:,} LUTs")
    if not found:
        raise FitError(f"no array of {fmt.name} holds the network on {board.name} ({board.chip}: {board.lut:,} LUTs, "
                       f"{board.bram} block RAMs); {lacks}")
    found.sort(key=lambda candidate: (candidate.cycles, candidate.cost.lut))
    return Fit(board, share, tuple(found), tried, predictor.errors)


def config_toml(config: ArrayConfig) -> str:
    """A configuration as ``CONFIG.toml``: what :func:`nomul_hw.config.load_config` reads back as the same."""
    fmt = config.format
    if FORMATS.get(fmt.name) == fmt or (fmt.is_uniform and get_format(f"int{fmt.bits}") == fmt):
        name = f'"{fmt.name}"'
    else:
        name = f'{{ name = "{fmt.name}", levels = {list(fmt.levels)} }}'
    array = [f"{f.name} = {_toml(getattr(config, f.name))}" for f in fields(ArrayConfig)
             if f.name not in ("format", "memory")]
    memory = [f"{f.name} = {getattr(config.memory, f.name)}" for f in fields(MemoryConfig)]
    return "\n".join(["[array]", f"format = {name}", *array, "", "[memory]", *memory, ""])


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
