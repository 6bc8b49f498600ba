"""One and two bits: ternary and binary weights."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from ..config import QuantizeError
from .codebook import Codebook, best_scales
from .levels import peak
from .source import Sample, Source, Weights, as_source

__all__ = ["Binary", "Ternary", "TernaryTGA", "tga_scale", "tga_slopes"]

Float64Array = npt.NDArray[np.float64]
Rule = Literal["correlation", "twn", "absmean"]

_SIGNS = np.asarray([-1.0, 0.0, 1.0])


def _mean_magnitude(source: Source) -> float:
    """``E|w|``."""
    return source.mean - 2 * float(source.below(np.zeros(1))[1][0])


def _around(source: Source, centre: float, threshold: float, scale: float) -> Codebook:
    """Ternary levels, parted at a distance from a centre."""
    return Codebook(source, scale * _SIGNS, np.asarray([centre - threshold, centre + threshold]), scale)


@dataclass(frozen=True)
class Ternary:
    """Levels ``0, ±scale``.

    Parameters
    ----------
    rule : {"correlation", "twn", "absmean"}
        - ``"correlation"``: the largest correlation that any ternary weights have with these, exactly: the ``k``
          largest magnitudes are not 0, with the ``k`` of the largest ``(sum of them)² / k``.
        - ``"twn"``: threshold ``0.75 E|w|``, scale the mean of the magnitudes above (Li et al., arXiv 1605.04711).
        - ``"absmean"``: scale ``E|w|``, threshold half of it (BitNet b1.58, arXiv 2402.17764).
    """

    rule: Rule = "correlation"

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise QuantizeError(f"rule must be one of {', '.join(get_args(Rule))}, not {self.rule!r}")

    def fit(self, weights: Weights) -> Codebook:
        """Quantize weights of any shape, or a density."""
        source = as_source(weights)
        if self.rule == "absmean":
            scale = _mean_magnitude(source)
            return _around(source, 0.0, scale / 2, scale)
        if self.rule == "twn":
            return self._mean_above(source, 0.75 * _mean_magnitude(source))
        if isinstance(source, Sample) and source.counts is None:
            magnitudes = np.sort(np.abs(source.values), axis=None)[::-1]
            kept = np.arange(1, magnitudes.size + 1)
            # Equal magnitudes stay together: the maximum of the quotient is never between them.
            smallest = magnitudes[int((np.cumsum(magnitudes) ** 2 / kept).argmax())]
            below = magnitudes[magnitudes < smallest]
            return self._mean_above(source, float(smallest + (below[0] if below.size else 0)) / 2)
        return Codebook.nearest(source, _SIGNS, float(best_scales(source, _SIGNS[None])[0][0]))

    def _mean_above(self, source: Source, threshold: float) -> Codebook:
        """The scale that makes the error least for a threshold."""
        found = _around(source, 0.0, threshold, 1.0)
        return _around(source, 0.0, threshold, found.gain)


def _phi(a: float) -> float:
    return math.exp(-a * a / 2) / math.sqrt(2 * math.pi)


def tga_scale(threshold: float, mean: float = 0.0, deviation: float = 1.0) -> float:
    """Scale ``S = mean + deviation h(a)`` of a threshold, ``a = threshold / deviation``, ``h = phi(a) / (1 - Phi(a))``.

    It is the mean of a Gaussian's values beyond ``mean + threshold`` (arXiv 1810.01018).
    """
    a = threshold / deviation
    return mean + deviation * _phi(a) / (math.erfc(a / math.sqrt(2)) / 2)


def tga_slopes(threshold: float, deviation: float = 1.0) -> tuple[float, float, float]:
    """Derivatives of :func:`tga_scale` by threshold, mean and deviation: ``h (h - a)``, 1, ``h (1 + a² - a h)``."""
    a = threshold / deviation
    h = tga_scale(a)
    return h * (h - a), 1.0, h * (1 + a * a - a * h)


@dataclass(frozen=True)
class TernaryTGA:
    """The ternary weights of TGA as a start for its training, or without any (arXiv 1810.01018).

    With mean and deviation of the weights: +1 above ``mean + threshold``, -1 below ``mean - threshold``; the scale is
    :func:`tga_scale`.

    Parameters
    ----------
    threshold : float, optional
        In deviations, at most 3. 0.6 is near the optimum for Gaussian weights.
    share : float, optional
        The threshold as a share of the largest magnitude instead; the authors' code starts at 0.05.
    """

    threshold: float = 0.6
    share: float | None = None

    def __post_init__(self) -> None:
        if self.threshold < 0 or (self.share is not None and self.share < 0):
            raise QuantizeError("A threshold must not be negative")

    def fit(self, weights: Weights) -> Codebook:
        """Quantize weights of any shape, or a density."""
        source = as_source(weights)
        deviation = math.sqrt(max(0.0, source.power - source.mean**2))
        wanted = self.threshold * deviation
        if self.share is not None:
            wanted = self.share * peak(self, source)
        threshold = min(wanted, 3 * deviation)
        scale = tga_scale(threshold, source.mean, deviation) if deviation > 0 else 0.0
        if scale <= 0:
            raise QuantizeError("TGA has no scale for weights whose mean is far below 0, or that are all the same")
        return _around(source, source.mean, threshold, scale)


@dataclass(frozen=True)
class Binary:
    """Levels ``±scale``, the scale ``E|w|`` (XNOR-Net, arXiv 1603.05279), or the power of two nearest to it.

    Nearest in the logarithm: a requantizer of one term has just these gains.
    """

    power_of_two: bool = False

    def fit(self, weights: Weights) -> Codebook:
        """Quantize weights of any shape, or a density."""
        source = as_source(weights)
        scale = _mean_magnitude(source)
        if self.power_of_two:
            scale = 2.0 ** math.floor(math.log2(scale) + 0.5)
        return Codebook.nearest(source, np.asarray([-1.0, 1.0]), scale)
