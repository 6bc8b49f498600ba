"""Place and route what :func:`nomul.fit.fit_board` chooses, and say how far off its prediction is.

    python -m nomul_sim.fit_check resnet8 --board orangecrab-25f --format exp4 --share 0.3

What is counted on the chip is without the registers of the harness that the design stands in
(:mod:`nomul_hw.pnr`). Minutes for a small array, much longer for a large one; the cache keeps what was done.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nomul.area import AreaError
from nomul.fit import BOARDS, SHARE, Board, FitError, fit_board
from nomul.inputs import InputError, load_shape
from nomul_hw.families import Cost
from nomul_hw.pnr import DEVICES, HARNESS, Routing
from nomul_hw.synth import SynthesisError

from .synthesis import route_accelerator

__all__ = ["Check", "check", "device_of", "main", "occupied"]

#: nextpnr's cells by what they are, for each family; a logic cell of iCE40 is a LUT with or without a flip-flop.
_CELLS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "ecp5": {"lut": ("TRELLIS_COMB",), "ff": ("TRELLIS_FF",), "bram": ("DP16KD",)},
    "ice40": {"lut": ("ICESTORM_LC",), "ff": (), "bram": ("ICESTORM_RAM",)},
    "gowin": {"lut": ("LUT4", "ALU"), "ff": ("DFF",), "bram": ("BSRAM",)},
}


@dataclass(frozen=True)
class Check:
    """A prediction and the truth.

    Attributes
    ----------
    array, board : str
    cycles : int
        Of a sample of the network.
    predicted, routed : Cost
        What nothing is said about is 0.
    fmax : float
        Highest clock that was reached, in MHz.
    path : str
        Modules of the slowest path.
    """

    array: str
    board: str
    cycles: int
    predicted: Cost
    routed: Cost
    fmax: float
    path: str

    def error(self, kind: str) -> float | None:
        """Prediction less truth, as a share of the truth."""
        guess, truth = getattr(self.predicted, kind), getattr(self.routed, kind)
        return (guess - truth) / truth if truth else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "errors": {kind: self.error(kind) for kind in ("lut", "ff", "bram")}}


def device_of(board: Board) -> str:
    """A board's chip as :data:`nomul_hw.pnr.DEVICES` names it.

    Raises
    ------
    ValueError
        If nothing places and routes it.
    """
    name = board.chip.lower().removeprefix("ice40")
    if name not in DEVICES:
        raise ValueError(f"nothing places and routes {board.chip}")
    return name


def occupied(routing: Routing) -> Cost:
    """What a routed design takes of its chip, without its harness."""
    kinds = _CELLS[DEVICES[routing.device].family]
    return Cost(**{kind: sum(cells.get(name, 0) for module, cells in routing.modules.items() if module != HARNESS
                             for name in names) for kind, names in kinds.items()})


def check(network: str, board: Board, fmt: str, share: float = SHARE, seeds: Sequence[int] = (1,)) -> Check:
    """Choose an array, place and route its accelerator.

    Raises
    ------
    nomul.fit.FitError, nomul.area.AreaError
        If no array fits, or the family was not swept.
    nomul_hw.synth.SynthesisError
        If a tool is missing or fails, or the design does not fit after all.
    ValueError
        If nothing places and routes the board's chip.
    """
    device = device_of(board)
    best = fit_board(load_shape(network), board, fmt, share=share).best
    print(f"{best.config.name}: {best.cost}", file=sys.stderr)
    routing = route_accelerator(best.config, device, seeds=seeds,
                                progress=lambda step: print(step, file=sys.stderr, flush=True))
    return Check(best.config.name, board.name, best.cycles, best.cost, occupied(routing), routing.fmax,
                 ", ".join(routing.path.modules))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m nomul_sim.fit_check",
                                     description="Compare a prediction of nomul fit with the routed truth.")
    parser.add_argument("network", help="as for nomul fit")
    parser.add_argument("--board", required=True, choices=BOARDS)
    parser.add_argument("--format", default="ternary", help="weight format of the array (default: ternary)")
    parser.add_argument("--share", type=float, default=SHARE, help="share of LUTs and flip-flops that may be used")
    parser.add_argument("--seeds", type=int, default=1, help="placements, of which the best counts")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args(arguments)
    try:
        found = check(chosen.network, BOARDS[chosen.board], chosen.format, chosen.share, range(1, chosen.seeds + 1))
    except (AreaError, FitError, InputError, SynthesisError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    if chosen.json:
        print(json.dumps(found.to_dict(), indent=1))
        return 0
    print(f"{found.array} on {found.board}: {found.cycles:,} cycles, {found.fmax:.1f} MHz, through {found.path}")
    for kind, name in (("lut", "LUTs"), ("ff", "flip-flops"), ("bram", "block RAMs")):
        off = found.error(kind)
        print(f"{name:10} {getattr(found.predicted, kind):7,} predicted, {getattr(found.routed, kind):7,} routed"
              + (f", {off:+.1%}" if off is not None else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
