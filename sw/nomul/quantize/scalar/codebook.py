"""What a scalar quantizer finds: levels, the weights' codes, and how good they are."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .source import Sample, Source, Weights, as_source

__all__ = ["Codebook", "best_scales", "cells", "correlation", "midpoints", "quality"]

Float64Array = npt.NDArray[np.float64]

#: Thresholds that are looked up at once.
CHUNK = 1 << 20

#: Largest magnitudes, in standard deviations, among which a scale is looked for, and how many in an octave.
SMALLEST, LARGEST, PER_OCTAVE = 0.25, 64.0, 12

#: Rounds of refinement of a scale, each of as many scales, between the neighbours of the best so far.
ROUNDS, REFINED = 5, 9


def midpoints(levels: Float64Array) -> Float64Array:
    """Thresholds (..., levels - 1) between neighbouring levels (..., levels): what sends weights to the nearest."""
    return (levels[..., 1:] + levels[..., :-1]) / 2


def cells(source: Source, thresholds: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Mass and first moment of all cells, (..., levels)."""
    mass, moment = source.below(thresholds)
    ends = (*mass.shape[:-1], 1)
    return (np.diff(np.concatenate([np.zeros(ends), mass, np.ones(ends)], axis=-1)),
            np.diff(np.concatenate([np.zeros(ends), moment, np.full(ends, source.mean)], axis=-1)))


def correlation(source: Source, levels: Float64Array, thresholds: Float64Array) -> Float64Array:
    """Correlation rho (...) of weights and levels (..., levels), parted by thresholds (..., levels - 1).

    ``E[w ŵ] / sqrt(E[w²] E[ŵ²])``, about zero rather than about the means: the gain is free, an offset is not.
    """
    mass, moment = cells(source, thresholds)
    cross, energy = (levels * moment).sum(axis=-1), (levels * levels * mass).sum(axis=-1)
    return np.divide(cross, np.sqrt(energy * source.power), out=np.zeros_like(cross), where=energy > 0)


def quality(source: Source, levels: Float64Array, thresholds: Float64Array) -> Float64Array:
    """1 less the error's share of the weights' power (...), of levels (..., levels) as they are."""
    mass, moment = cells(source, thresholds)
    return (levels * (2 * moment - levels * mass)).sum(axis=-1) / source.power


@dataclass(frozen=True, eq=False)
class Codebook:
    """Levels for weights, or for a density.

    Parameters
    ----------
    source : Source
        What was quantized.
    levels : float64 array, shape (levels,)
        Values of the quantized weights, ascending.
    thresholds : float64 array, shape (levels - 1,)
        A weight from ``thresholds[i - 1]`` to just below ``thresholds[i]`` has code ``i``.
    scale : float
        What the method calls its scale; ``levels / scale`` are the method's own levels.
    ratio : float or None
        Of neighbouring magnitudes, if it is the same for all.
    """

    source: Source
    levels: Float64Array
    thresholds: Float64Array
    scale: float
    ratio: float | None = None

    @classmethod
    def nearest(cls, weights: Weights, levels: Float64Array, scale: float, *, ratio: float | None = None) -> "Codebook":
        """Send every weight to the nearest of the levels ``scale * levels``."""
        levels = np.asarray(levels, dtype=np.float64) * scale
        return cls(as_source(weights), levels, midpoints(levels), scale, ratio)

    @property
    def bits(self) -> int:
        """Width of a code."""
        return (len(self.levels) - 1).bit_length()

    @cached_property
    def codes(self) -> npt.NDArray[np.int64]:
        """Index of every weight's level, in the shape of the weights; empty for a density."""
        values = self.source.values if isinstance(self.source, Sample) else np.empty(0)
        return np.searchsorted(self.thresholds, values, side="right").astype(np.int64)

    @property
    def quantized(self) -> Float64Array:
        """The quantized weights, in the shape of the weights; empty for a density."""
        return self.levels[self.codes]

    @cached_property
    def use(self) -> Float64Array:
        """Share of the weights at each level (levels,)."""
        return cells(self.source, self.thresholds)[0]

    @property
    def zeros(self) -> float:
        """Share of the weights that become 0."""
        return float(self.use[self.levels == 0].sum())

    @cached_property
    def rho(self) -> float:
        """Correlation of the weights before and after."""
        return float(correlation(self.source, self.levels, self.thresholds))

    @cached_property
    def gain(self) -> float:
        """Factor on the levels that makes the squared error least: ``E[w ŵ] / E[ŵ²]``; 1 if they are right already."""
        mass, moment = cells(self.source, self.thresholds)
        energy = float(self.levels**2 @ mass)
        return float(self.levels @ moment) / energy if energy else 1.0

    @cached_property
    def sqnr(self) -> float:
        """Power of the weights over that of their error, dB."""
        if isinstance(self.source, Sample) and self.source.counts is None:  # exact even where the error is tiny
            error = float(np.mean(np.square(self.source.values - self.quantized)))
        else:
            error = self.source.power * (1 - float(quality(self.source, self.levels, self.thresholds)))
        return _decibels(self.source.power, error)

    @property
    def best_sqnr(self) -> float:
        """The same with the best gain in front of the levels, ``-10 log10(1 - rho²)``, dB."""
        return _decibels(1.0, 1 - self.rho**2)


def _decibels(power: float, error: float) -> float:
    return 10 * math.log10(power / error) if error > 0 else math.inf


def best_scales(source: Source, books: Float64Array, *,
                part: Callable[[Float64Array], Float64Array] = midpoints) -> tuple[Float64Array, Float64Array]:
    """Scales of the least squared error, which for nearest levels is the largest correlation.

    Parameters
    ----------
    source : Source
    books : float64 array, shape (books, levels)
        Sets of levels, each ascending.
    part : callable
        Thresholds of scaled levels.

    Returns
    -------
    scales, quality : float64 arrays, shape (books,)
        See :func:`quality`; it is ``rho²`` at the best scale.
    """
    # The error has many minima in the scale of a coarse code: a dense grid first, then the best's neighbourhood.
    deviation, largest = math.sqrt(source.power), np.abs(books).max(axis=1)
    octaves = math.log2(min(LARGEST, max(2.0, 1.5 * source.peak / deviation)) / SMALLEST)
    logs = np.log(SMALLEST * deviation / largest)[:, None] + np.log(2) * np.linspace(
        0, octaves, math.ceil(octaves * PER_OCTAVE) + 1)
    width = math.log(2) / PER_OCTAVE
    for _ in range(ROUNDS + 1):
        values = _at_scales(source, books, np.exp(logs), part)
        at, rows = values.argmax(axis=1), np.arange(len(books))
        best, found = logs[rows, at], values[rows, at]
        logs = best[:, None] + np.linspace(-width, width, REFINED)
        width *= 2 / (REFINED - 1)
    return np.exp(best), found


def _at_scales(source: Source, books: Float64Array, scales: Float64Array,
               part: Callable[[Float64Array], Float64Array]) -> Float64Array:
    """Quality (books, scales) of books (books, levels) at scales (books, scales)."""
    pairs = np.indices(scales.shape).reshape(2, -1)
    result = np.empty(scales.size)
    step = max(1, CHUNK // books.shape[1])
    for start in range(0, scales.size, step):
        rows, columns = pairs[:, start : start + step]
        levels = books[rows] * scales[rows, columns][:, None]
        result[start : start + step] = quality(source, levels, part(levels))
    return result.reshape(scales.shape)
