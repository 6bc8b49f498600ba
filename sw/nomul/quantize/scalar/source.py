"""What a scalar quantizer has to know of the weights: two functions of a threshold.

The error of a set of levels needs, for each of its cells, how many weights lie in it and what they sum up to. Both are
differences of ``P(w < t)`` and ``E[w; w < t]`` at the cell's ends. For an array of weights these are prefix sums of the
sorted values; for a Gaussian or a Laplacian density they have closed forms, so that what a quantizer does to a density
is exact and takes no sample.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..config import QuantizeError

__all__ = ["GAUSSIAN", "LAPLACIAN", "Density", "Sample", "Source", "Weights", "as_source"]

Float64Array = npt.NDArray[np.float64]


class Source(Protocol):
    """A distribution of weights.

    Attributes
    ----------
    mean, power : float
        ``E[w]`` and ``E[w²]``.
    peak : float
        Largest magnitude; infinite for a density as it is.
    """

    @property
    def mean(self) -> float: ...

    @property
    def power(self) -> float: ...

    @property
    def peak(self) -> float: ...

    def below(self, thresholds: Float64Array) -> tuple[Float64Array, Float64Array]:
        """``P(w < t)`` and ``E[w; w < t]`` for thresholds of any shape."""
        ...

    def quantile(self, share: float) -> float:
        """Magnitude that a share of the weights does not exceed."""
        ...


@dataclass(frozen=True)
class Density:
    """A symmetric density of unit variance: :data:`GAUSSIAN` or :data:`LAPLACIAN`.

    :meth:`among` gives it the range that a number of weights would have, for methods that look at the largest.
    """

    name: str
    mass: Callable[[Float64Array], Float64Array]
    moment: Callable[[Float64Array], Float64Array]
    mean: float = 0.0
    power: float = 1.0
    peak: float = math.inf

    def below(self, thresholds: Float64Array) -> tuple[Float64Array, Float64Array]:
        """``P(w < t)`` and ``E[w; w < t]``."""
        return self.mass(thresholds), self.moment(thresholds)

    def quantile(self, share: float) -> float:
        """Magnitude that a share of the weights does not exceed."""
        low, high = 0.0, 64.0
        for _ in range(60):
            middle = (low + high) / 2
            inside = 1 - 2 * float(self.mass(np.asarray([-middle]))[0])
            low, high = (middle, high) if inside < share else (low, middle)
        return high

    def among(self, count: int) -> "Density":
        """The same density, its peak the largest magnitude to be expected among so many weights."""
        # Maxima of both densities are nearly Gumbel distributed: the mean is where exp(-γ) of the count lie beyond.
        return replace(self, peak=self.quantile(1 - math.exp(-float(np.euler_gamma)) / count))


def _erf(values: Float64Array) -> Float64Array:
    flat = np.fromiter(map(math.erf, values.ravel().tolist()), np.float64, values.size)
    return flat.reshape(values.shape)


def _laplacian_mass(t: Float64Array) -> Float64Array:
    tail = np.exp(-math.sqrt(2) * np.abs(t)) / 2
    return np.where(t < 0, tail, 1 - tail)


GAUSSIAN = Density(
    "Gaussian",
    lambda t: (1 + _erf(t / math.sqrt(2))) / 2,
    lambda t: -np.exp(-t * t / 2) / math.sqrt(2 * math.pi),
)

LAPLACIAN = Density(
    "Laplacian",
    _laplacian_mass,
    lambda t: -np.exp(-math.sqrt(2) * np.abs(t)) * (np.abs(t) + math.sqrt(0.5)) / 2,
)


@dataclass(frozen=True, eq=False)
class Sample:
    """An array of weights.

    Parameters
    ----------
    weights : array of any shape
        At least one, all finite, not all zero.
    counts : array, optional
        How often each occurs; once unless given.

    Raises
    ------
    QuantizeError
        If there is no scale to be found in the weights.
    """

    weights: npt.ArrayLike
    counts: npt.ArrayLike | None = None

    def __post_init__(self) -> None:
        values = self.values
        if not values.size or not np.isfinite(values).all() or not values.any():
            what = "none" if not values.size else "all zero" if not values.any() else "not all finite"
            raise QuantizeError(f"Weights to be quantized must be finite and not all zero; these are {what}")

    @cached_property
    def values(self) -> Float64Array:
        """The weights, float64, in their own shape."""
        return np.asarray(self.weights, dtype=np.float64)

    @cached_property
    def _sorted(self) -> tuple[Float64Array, Float64Array | None, Float64Array, float]:
        """Weights in ascending order, their prefix counts (None: one each), prefix sums, and the total count."""
        flat = self.values.ravel()
        if self.counts is None:
            values = np.sort(flat)
            return values, None, np.concatenate([[0.0], np.cumsum(values)]), float(values.size)
        order = np.argsort(flat, kind="stable")
        values, counts = flat[order], np.asarray(self.counts, dtype=np.float64).ravel()[order]
        prefix = np.concatenate([[0.0], np.cumsum(counts)])
        return values, prefix, np.concatenate([[0.0], np.cumsum(counts * values)]), float(prefix[-1])

    @cached_property
    def mean(self) -> float:
        """``E[w]``."""
        _, _, sums, total = self._sorted
        return float(sums[-1]) / total

    @cached_property
    def power(self) -> float:
        """``E[w²]``."""
        flat = self.values.ravel()
        counts = np.ones_like(flat) if self.counts is None else np.asarray(self.counts, dtype=np.float64).ravel()
        return float(np.square(flat) @ counts) / self._sorted[3]

    @cached_property
    def peak(self) -> float:
        """Largest magnitude."""
        return float(np.abs(self.values).max())

    def below(self, thresholds: Float64Array) -> tuple[Float64Array, Float64Array]:
        """``P(w < t)`` and ``E[w; w < t]``."""
        values, prefix, sums, total = self._sorted
        at = np.searchsorted(values, thresholds, side="left")
        return (at if prefix is None else prefix[at]) / total, sums[at] / total

    def quantile(self, share: float) -> float:
        """Magnitude that a share of the weights does not exceed."""
        return float(np.quantile(np.abs(self.values), share))


#: What quantizers take: an array of weights, or a distribution.
Weights = npt.ArrayLike | Source


def as_source(weights: Weights) -> Source:
    """Take an array for a :class:`Sample` of itself."""
    return weights if isinstance(weights, Density | Sample) else Sample(weights)  # type: ignore[arg-type]
