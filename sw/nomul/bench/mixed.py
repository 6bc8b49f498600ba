"""Mixed precision beside one format for all layers: accuracy over bits, cycles and LUTs.

    python -m nomul.bench.mixed digits
    python -m nomul.bench.mixed ds_cnn kws_dscnn_fp32.npz --keywords kws_mfcc.npz --bits 2.5,3,3.5
    python -m nomul.bench.mixed digits --bits "" --cycles 6000,8000
    python -m nomul.bench.mixed digits --bits "" --luts 9000,20000 --lut ternary=8000 --lut exp4=18000

One line per format, then one per budget: what `nomul search` chooses. It calibrates and chooses on the same inputs,
none of which are counted.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from nomul.frontend import FloatGraph, import_module
from nomul.inputs import parse_shape
from nomul.quantize import QuantizeConfig, QuantizeError
from nomul.quantize.mixed import Budget, Choice, sweep_formats
from nomul.report import print_json
from nomul_hw.config import ArrayConfig, ConfigError
from nomul_hw.formats import get_format

from .networks import BenchError, ds_cnn, keywords
from .post_training import CLIPS, compare

__all__ = ["Row", "Task", "load_task", "rows"]


@dataclass(frozen=True, eq=False)
class Task:
    """A float network, inputs (N, C, H, W) that calibrate it, and others that are counted, with labels (N,)."""

    network: FloatGraph
    calibration: npt.NDArray[Any]
    inputs: npt.NDArray[Any]
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Row:
    """A format for all layers, or what a budget allows; and how it does on the inputs that are counted.

    Parameters
    ----------
    what : str
        The format, or the budget.
    choice : Choice
        Formats per layer, bits, cycles, LUTs.
    logit_sqnr : float
        Power of the float outputs over that of the error, dB.
    accuracy : float
        Share of the inputs that are classified as labelled, 0..1.
    """

    what: str
    choice: Choice
    logit_sqnr: float
    accuracy: float


def load_task(network: str, weights: Path | None = None, clips: Path | None = None) -> Task:
    """``"digits"``, trained here, or ``"ds_cnn"`` from files.

    Raises
    ------
    BenchError
        If there is no such task, or a file is missing.
    """
    if network == "digits":
        from nomul import digits

        data = digits.load()
        return Task(import_module(digits.train(), data.test_x[:2]), data.train_x[:256], data.test_x, data.test_y)
    if network != "ds_cnn":
        raise BenchError(f"Network must be digits or ds_cnn, not {network!r}")
    if weights is None or clips is None:
        raise BenchError("ds_cnn wants its weights and clips: ds_cnn WEIGHTS --keywords FILE")
    inputs, labels = keywords(clips)
    order = np.random.default_rng(0).permutation(len(inputs))
    return Task(ds_cnn(weights), inputs[order[:CLIPS]], inputs[order[CLIPS:]], labels[order[CLIPS:]])


def rows(task: Task, formats: Sequence[str], budgets: Sequence[Budget], array: ArrayConfig,
         luts: dict[str, int] | None = None) -> list[Row]:
    """Every format for all layers, then what every budget allows.

    Parameters
    ----------
    array : ArrayConfig
        What cycles are counted on, with memories as large as needed; a budget of LUTs chooses its format.
    luts : dict of str to int, optional
        LUTs of an array by its format.

    Raises
    ------
    QuantizeError
        If nothing is within a budget.
    """
    results = sweep_formats(task.network, task.calibration, formats, budgets, array=array, fit=False, luts=luts)
    alone = {choice.name: choice for choice in results[0].choices}
    asked = [(name, alone[name], QuantizeConfig(get_format(name))) for name in formats]
    for budget, result in zip(budgets, results, strict=True):
        what = ", ".join(f"{value:,} {name}" for name, value in asdict(budget).items() if value is not None)
        asked.append((what, result.best, result.config))
    wanted = task.network.run(task.inputs).reshape(len(task.inputs), -1)
    found = []
    for what, choice, config in asked:
        counted = compare(task.network, task.calibration, task.inputs, config, task.labels, wanted)
        assert counted.accuracy is not None
        found.append(Row(what, choice, counted.logit_sqnr, counted.accuracy))
    return found


def _numbers(option: str, text: str, kind: type[int] | type[float]) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise BenchError(f"{option} takes numbers with commas, not {text!r}") from None


def _table(found: Sequence[Row], array: ArrayConfig) -> str:
    luts = any(row.choice.luts for row in found)
    lines = [f"{'formats, or budget':20} bits  array      cycles  {'  LUTs  ' if luts else ''}logits dB  accuracy"]
    for row in found:
        choice = row.choice
        cells = f"{choice.luts or '':>6}  " if luts else ""
        mix = "" if row.what == choice.name else f"  {_mix(choice)}"
        lines.append(f"{row.what:20} {choice.bits:4.2f}  {choice.array or '':8} {choice.cycles or 0:8,}  {cells}"
                     f"{row.logit_sqnr:9.2f} {row.accuracy:9.2%}{mix}")
    return "\n".join([*lines, f"cycles on {array.rows}x{array.lanes}x{array.cols}, other formats as planes"])


def _mix(choice: Choice) -> str:
    """How many layers have each format; one name where all have it."""
    if choice.name != "mixed":
        return choice.name
    counts = {name: list(choice.formats.values()).count(name) for name in dict.fromkeys(choice.formats.values())}
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def main(
    network: Annotated[str, typer.Argument(help="digits or ds_cnn.")],
    weights: Annotated[Path | None, typer.Argument(help="The network's weights (.npz).", exists=True,
                                                   dir_okay=False)] = None,
    clips: Annotated[Path | None, typer.Option("--keywords", help="Clips' features and labels (.npz).")] = None,
    formats: Annotated[str, typer.Option(help="What to choose from.")] = "ternary,pot3,exp4,exp5,int8",
    bits: Annotated[str, typer.Option(help="Budgets of bits per weight.")] = "2.25,2.5,3,3.5,4",
    cycles: Annotated[str, typer.Option(help="Budgets of cycles.")] = "",
    luts: Annotated[str, typer.Option(help="Budgets of LUTs, of arrays of the formats of --lut.")] = "",
    lut: Annotated[list[str] | None, typer.Option(metavar="NAME=N", help="LUTs of an array of a format.")] = None,
    array: Annotated[str, typer.Option(metavar="SHAPE", help="Array of ternary weights to count cycles on.")] = "16x16",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare what budgets allow with one format for all layers."""
    try:
        task = load_task(network, weights, clips)
        height, lanes, width = parse_shape(array)
        target = ArrayConfig(get_format("ternary"), rows=height, lanes=lanes, cols=width)
        budgets = [*(Budget(bits=value) for value in _numbers("--bits", bits, float)),
                   *(Budget(cycles=value) for value in _numbers("--cycles", cycles, int)),
                   *(Budget(luts=value) for value in _numbers("--luts", luts, int))]
        if not budgets:
            raise BenchError("A budget is needed: --bits, --cycles or --luts")
        pairs = [one.partition("=")[::2] for one in lut or []]
        table = {name: number for name, text in pairs for number in _numbers("--lut", text, int)}
        names = [name.strip() for name in formats.split(",")]
        found = rows(task, names, budgets, target, table or None)
    except (BenchError, ConfigError, QuantizeError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    real = task.network.run(task.inputs).reshape(len(task.inputs), -1)
    accuracy = float((real.argmax(axis=1) == task.labels).mean())
    if as_json:
        print_json({"float_accuracy": accuracy, "counted": len(task.inputs), "rows": [asdict(row) for row in found]})
    else:
        print(f"{accuracy:.2%} of {len(task.inputs):,} inputs in float\n{_table(found, target)}")


if __name__ == "__main__":
    typer.run(main)
