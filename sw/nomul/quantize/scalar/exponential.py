"""Exponential discretization: magnitudes in geometric progression, the ratio searched."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from ..config import QuantizeError
from .codebook import Codebook, best_scales, correlation, midpoints
from .levels import check_bits, peak, symmetric
from .source import Source, Weights, as_source

__all__ = ["Exponential"]

Float64Array = npt.NDArray[np.float64]
Criterion = Literal["correlation", "range"]
Partition = Literal["nearest", "log"]

#: Ratios among which the best is looked for, and how many at first; a round of refinement has fewer.
RATIOS, COARSE, REFINED, ROUNDS = (1.03, 8.0), 28, 7, 4


@dataclass(frozen=True)
class Exponential:
    """Levels ``±a q**-k``, ``k = 0 .. 2**(bits-1) - 1`` (arXiv 2002.00623, and Part II of it, OMNN 29(3), 2020).

    Parameters
    ----------
    bits : int
        2 to 8, 3 to 8 with a zero; the sign included.
    ratio : float, optional
        ``q``; the best unless given. The machine has 2 (``pot3``, ``pot4``), about sqrt(2) (``exp4``, ``exp4_sqrt2``)
        and about the cube root of 2 (``exp5``); see :func:`~nomul.quantize.scalar.nearest_format`.
    zero : bool
        Whether 0 is a level. It takes the place of the smallest magnitude: one code is not used.
    criterion : {"correlation", "range"}
        Part II chooses ``a`` and ``q`` together for the largest correlation of the weights before and after. In Part I
        ``a`` is the largest magnitude of the weights, and ``q`` is chosen for the least error.
    partition : {"nearest", "log"}
        A weight goes to the nearest level, or to the one whose logarithm is nearest. Abstracts do not say which one
        Part I uses.
    """

    bits: int
    ratio: float | None = None
    zero: bool = False
    criterion: Criterion = "correlation"
    partition: Partition = "nearest"

    def __post_init__(self) -> None:
        check_bits(self, self.bits, 2 + self.zero, 8)  # one magnitude and zero: that is Ternary
        if self.ratio is not None and not 1 < self.ratio < math.inf:
            raise QuantizeError(f"The ratio of neighbouring levels must be above 1, not {self.ratio!r}")
        for name, known in (("criterion", get_args(Criterion)), ("partition", get_args(Partition))):
            if getattr(self, name) not in known:
                raise QuantizeError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")

    def levels(self, ratio: float) -> Float64Array:
        """Levels of a ratio, the largest 1."""
        powers = ratio ** -np.arange(2.0 ** (self.bits - 1) - 1 - self.zero, -1.0, -1.0)
        return symmetric([0.0, *powers] if self.zero else powers)

    def fit(self, weights: Weights) -> Codebook:
        """Quantize weights of any shape, or a density (which has no range)."""
        source = as_source(weights)
        if self.ratio is not None:
            ratios = np.asarray([self.ratio])
        else:
            # Logarithms of ratios, denser near 1.
            ratios = np.geomspace(math.log(RATIOS[0]), math.log(RATIOS[1]), COARSE)
            for _ in range(ROUNDS):
                scales, quality = self._try(source, np.exp(ratios))
                at = int(quality.argmax())
                low, high = ratios[max(at - 1, 0)], ratios[min(at + 1, len(ratios) - 1)]
                ratios = np.linspace(low, high, REFINED)
            ratios = np.exp(ratios)
        scales, quality = self._try(source, ratios)
        at = int(quality.argmax())
        levels = self.levels(float(ratios[at])) * scales[at]
        return Codebook(source, levels, self._part(levels), float(scales[at]), float(ratios[at]))

    def _try(self, source: Source, ratios: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Scale ``a`` of every ratio, and a measure that is the larger the better."""
        books = np.stack([self.levels(ratio) for ratio in ratios])
        if self.criterion == "correlation":
            return best_scales(source, books, part=self._part)
        scales = np.full(len(ratios), peak(self, source))
        levels = books * scales[:, None]
        return scales, correlation(source, levels, self._part(levels))

    def _part(self, levels: Float64Array) -> Float64Array:
        """Thresholds (..., levels - 1)."""
        if self.partition == "nearest":
            return midpoints(levels)
        half = levels.shape[-1] // 2 + self.zero
        positive = levels[..., half:]
        inner = np.sqrt(positive[..., 1:] * positive[..., :-1])
        if self.zero:  # as far below the smallest magnitude as between two
            lowest = positive[..., :1] * np.sqrt(positive[..., :1] / positive[..., 1:2])
            inner = np.concatenate([lowest, inner], axis=-1)
            return np.concatenate([-inner[..., ::-1], inner], axis=-1)
        return np.concatenate([-inner[..., ::-1], np.zeros_like(positive[..., :1]), inner], axis=-1)
