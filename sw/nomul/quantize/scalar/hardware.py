"""From the papers' levels, which are real numbers, to the machine's formats and steps."""

from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from nomul_hw.formats import FORMATS, MAX_UNIFORM_BITS, WeightFormat, get_format

from ..config import QuantizeError
from .codebook import Codebook, best_scales
from .linear import laplacian_support
from .source import Sample

__all__ = ["StepRule", "exact_format", "nearest_format", "steps"]

Float64Array = npt.NDArray[np.float64]
StepRule = Literal["correlation", "range", "mean", "laplacian"]

#: Steps that are tried in an octave, octaves below the step that saturates nothing, and rounds of refinement.
PER_OCTAVE, OCTAVES, ROUNDS = 10, 4, 3

#: Largest integer that the smallest level of a codebook becomes.
MAX_FACTOR = 64

#: Weights that are looked at together: what fits a core's caches.
CHUNK = 1 << 15


def nearest_format(codebook: Codebook, formats: Iterable[WeightFormat] | None = None) -> WeightFormat:
    """The hardware format whose levels come nearest to those of a codebook.

    Nearest means: by the squared error, at its best step, of turning the quantized weights into the format's, with the
    codebook's own use of its levels. It is the weights that are quantized to the format afterwards, not the codebook's
    levels.

    Parameters
    ----------
    codebook : Codebook
    formats : iterable of WeightFormat, optional
        Those to choose from. Unless given, all named ones with no more bits than the codebook has; without the uniform
        ones if the codebook has a ratio.

    Raises
    ------
    QuantizeError
        If there is none to choose from.
    """
    if formats is None:
        named = [*FORMATS.values(), *(get_format(f"int{bits}") for bits in range(2, MAX_UNIFORM_BITS + 1))]
        formats = [fmt for fmt in named if fmt.bits <= codebook.bits and not (codebook.ratio and fmt.is_uniform)]
    choice = list(formats)
    if not choice:
        raise QuantizeError(f"No format has {codebook.bits} bits or fewer")
    source = Sample(codebook.levels, codebook.use)
    # Of equals the one of fewer bits.
    return max(choice, key=lambda fmt: (
        round(float(best_scales(source, np.asarray(fmt.levels, dtype=np.float64)[None])[1][0]), 9), -fmt.bits))


def exact_format(codebook: Codebook, name: str) -> WeightFormat:
    """The levels of a codebook as a format of one's own, for a network's quantizer to use.

    That is possible where all levels are integers times one number, as those of APoT, DeepShift, INQ, and LogNet at
    base 2 are.

    Parameters
    ----------
    codebook : Codebook
    name : str
        What to call the format: letters, digits and underscores.

    Raises
    ------
    QuantizeError
        If there are no such integers up to the largest level of a format, or they are not symmetric about 0.
    """
    levels = codebook.levels / np.abs(codebook.levels[codebook.levels != 0]).min()
    for factor in range(1, MAX_FACTOR + 1):
        integers = np.rint(levels * factor)
        if np.allclose(levels * factor, integers, rtol=1e-9, atol=1e-6):
            try:
                return WeightFormat(name, tuple(map(int, integers)))
            except ValueError as error:
                raise QuantizeError(str(error)) from None
    raise QuantizeError(f"Levels are no integers times one number; a format that comes near is "
                        f"{nearest_format(codebook).name}")


def steps(weights: npt.ArrayLike, fmt: WeightFormat, rule: StepRule = "correlation",
          importance: npt.ArrayLike | None = None) -> Float64Array:
    """Choose a step, the worth of level 1, for every channel of a layer.

    Parameters
    ----------
    weights : array, shape (channels, inputs)
    fmt : WeightFormat
    rule : {"correlation", "range", "mean", "laplacian"}
        - ``"correlation"``: the least squared error of nearest levels.
        - ``"range"``: the largest level is the channel's largest weight.
        - ``"mean"``: the mean of the format's magnitudes but 0 is that of the channel's: XNOR's scale for ``binary``,
          absmean's for ``ternary``.
        - ``"laplacian"``: of the uniform formats, the support for Laplacian weights of the channel's power.
    importance : array, shape (inputs,), optional
        What squared errors count, for ``"correlation"``; 1 unless given.

    Returns
    -------
    float64 array, shape (channels,)
        0 for channels that are all zero.

    Raises
    ------
    QuantizeError
        If the weights are not a matrix, or the format does not suit the rule.
    """
    rows = np.asarray(weights, dtype=np.float64)
    if rows.ndim != 2 or not rows.size:
        raise QuantizeError(f"Weights must be of shape (channels, inputs), not {rows.shape}")
    if rule not in get_args(StepRule):
        raise QuantizeError(f"rule must be one of {', '.join(get_args(StepRule))}, not {rule!r}")
    largest = np.abs(rows).max(axis=1)
    if rule == "range":
        return largest / fmt.max_magnitude
    if rule == "mean":
        nonzero = [magnitude for magnitude in fmt.magnitudes if magnitude]
        return np.abs(rows).mean(axis=1) / float(np.mean(nonzero))
    if rule == "laplacian":
        if not fmt.is_uniform:
            raise QuantizeError(f"The Laplacian rule is for int2..int{MAX_UNIFORM_BITS}, not {fmt.name}")
        return laplacian_support(fmt.bits) * np.sqrt(np.square(rows).mean(axis=1)) * 2.0 ** (1 - fmt.bits)
    counts = np.ones(rows.shape[1]) if importance is None else np.asarray(importance, dtype=np.float64)
    if counts.shape != rows.shape[1:]:
        raise QuantizeError(f"Importance must be of shape {rows.shape[1:]}, not {counts.shape}")
    result = np.zeros(len(rows))
    alive = np.flatnonzero(largest)
    size = max(1, CHUNK // rows.shape[1])
    for start in range(0, len(alive), size):
        part = alive[start : start + size]
        result[part] = _best_steps(rows[part], fmt, counts, largest[part] / fmt.max_magnitude)
    return result


def _best_steps(rows: Float64Array, fmt: WeightFormat, counts: Float64Array, widest: Float64Array) -> Float64Array:
    """Steps (channels,) of least error; a step refitted to its own levels is never worse."""
    levels = np.asarray(fmt.levels, dtype=np.float64)
    thresholds = (levels[1:] + levels[:-1]) / 2
    best, least = widest, np.full(len(rows), np.inf)
    tried = [widest * 2.0 ** (-octave / PER_OCTAVE) for octave in range(-PER_OCTAVE // 2, OCTAVES * PER_OCTAVE + 1)]
    for at in range(len(tried) + ROUNDS):
        step = tried[at] if at < len(tried) else best
        level = levels[np.searchsorted(thresholds, rows / step[:, None], side="right")]
        energy, cross = (level * level) @ counts, (level * rows) @ counts
        step = np.divide(cross, energy, out=step.copy(), where=(energy > 0) & (cross > 0))
        error = np.square(rows - level * step[:, None]) @ counts
        best, least = np.where(error < least, step, best), np.minimum(error, least)
    return best
