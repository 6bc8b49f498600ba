"""Fixed sets of levels, and the published rules that choose them and their scale."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from nomul_hw.formats import WeightFormat

from ..config import QuantizeError
from .codebook import Codebook, best_scales, quality
from .source import Source, Weights, as_source

__all__ = ["APoT", "DeepShift", "INQ", "LevelSet", "LogNet", "check_bits", "peak", "symmetric"]

Float64Array = npt.NDArray[np.float64]


def check_bits(method: object, bits: object, low: int, high: int) -> None:
    """Refuse a number of bits that a method does not have."""
    if type(bits) is not int or not low <= bits <= high:
        raise QuantizeError(f"{type(method).__name__} has {low} to {high} bits, not {bits!r}")


def symmetric(magnitudes: npt.ArrayLike) -> Float64Array:
    """Levels of ascending magnitudes, which may start with 0."""
    positive = np.asarray(magnitudes, dtype=np.float64)
    return np.concatenate([-positive[::-1], positive[int(positive[0] == 0) :]])


@dataclass(frozen=True)
class LevelSet:
    """Any levels, at the scale that maximizes the correlation.

    Parameters
    ----------
    levels : tuple of float
        Ascending, those of a code whose step is 1. ``LevelSet.of(fmt)`` takes them from a weight format.
    """

    levels: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.levels) < 2 or list(self.levels) != sorted(set(self.levels)):
            raise QuantizeError(f"Levels must be at least two, in ascending order, not {self.levels!r}")

    @classmethod
    def of(cls, fmt: WeightFormat) -> "LevelSet":
        """The levels of a weight format; the scale is then the step."""
        return cls(tuple(map(float, fmt.levels)))

    def fit(self, weights: Weights) -> Codebook:
        """Quantize weights of any shape, or a density."""
        source, levels = as_source(weights), np.asarray(self.levels)
        scales, _ = best_scales(source, levels[None])
        return Codebook.nearest(source, levels, float(scales[0]))


@dataclass(frozen=True)
class APoT:
    """Sums of two or three powers of two (Li et al., "Additive powers-of-two quantization", ICLR 2020), 2 to 6 bits.

    The scale, trained in the paper, maximizes the correlation here. 2 bits are ternary, 3 are powers of two.
    """

    bits: int

    #: Exponents of the terms' powers, by bits; a term is one of these or 0. As in the authors' code, which has one bit
    #: less since it does not count the sign.
    TERMS = {
        2: ((1,),),
        3: ((1, 2, 3),),
        4: ((1, 2, 4), (3,)),
        5: ((1, 3, 5), (2, 4, 6)),
        6: ((1, 3, 6), (2, 4, 7), (5,)),
    }

    def __post_init__(self) -> None:
        check_bits(self, self.bits, 2, 6)

    @property
    def levels(self) -> Float64Array:
        """Levels, the largest 1."""
        sums = {0.0}
        for term in self.TERMS[self.bits]:
            sums = {total + part for total in sums for part in (0.0, *(2.0**-k for k in term))}
        return symmetric(sorted(sums)) / max(sums)

    def fit(self, weights: Weights) -> Codebook:
        """Quantize weights of any shape, or a density."""
        return LevelSet(tuple(self.levels.tolist())).fit(weights)


def _powers(largest: float, magnitudes: int, ratio: float = 2.0) -> Float64Array:
    """Levels 0 and ``±largest * ratio**-k``."""
    return symmetric([0.0, *largest * ratio ** -np.arange(magnitudes - 1.0, -1.0, -1.0)])


def _log_rounded(source: Source, levels: Float64Array, ratio: float, scale: float) -> Codebook:
    """Weights go to the nearest logarithm; below the last magnitude by as much as between others, to 0."""
    positive = levels[levels > 0]
    thresholds = positive / math.sqrt(ratio)
    return Codebook(source, levels, np.concatenate([-thresholds[::-1], thresholds]), scale, ratio)


@dataclass(frozen=True)
class DeepShift:
    """DeepShift-Q (Elhoushi et al., CVPR workshops 2021): ``±2**round(log2 |w|)``, exponents from 0 down.

    There is no scale: weights must be below 1. Those too small for the exponents get the smallest magnitude; only 0
    itself becomes 0. One of the ``2**bits`` codes is not used.
    """

    bits: int = 5

    def __post_init__(self) -> None:
        check_bits(self, self.bits, 2, 6)

    def fit(self, weights: Weights) -> Codebook:
        """Quantize weights of any shape, or a density."""
        levels = _powers(1.0, 2 ** (self.bits - 1) - 1)
        positive = levels[levels > 0][1:] / math.sqrt(2)
        around_zero = [0.0, np.finfo(np.float64).tiny]
        return Codebook(as_source(weights), levels, np.concatenate([-positive[::-1], around_zero, positive]), 1.0, 2.0)


@dataclass(frozen=True)
class INQ:
    """Incremental network quantization (Zhou et al., ICLR 2017): 0 and ``±2**n``, the nearest one.

    The largest ``n`` is ``floor(log2(4/3 max|w|))``. There are ``2**(bits - 2)`` of them: one bit is for 0.
    """

    bits: int = 5

    def __post_init__(self) -> None:
        check_bits(self, self.bits, 2, 7)

    def fit(self, weights: Weights) -> Codebook:
        """Quantize weights of any shape."""
        source = as_source(weights)
        scale = 2.0 ** math.floor(math.log2(4 / 3 * peak(self, source)))
        return Codebook.nearest(source, _powers(1.0, 2 ** (self.bits - 2)), scale, ratio=2.0)


@dataclass(frozen=True)
class LogNet:
    """LogNet (Miyashita, Lee and Murmann, 2016): powers of 2 or of its square root, nearest in the logarithm.

    The full scale is a power of two, the best one here. One code is 0, and one is not used.

    Parameters
    ----------
    bits : int
        2 to 6, the sign included.
    base : {"2", "sqrt2"}
    """

    bits: int
    base: Literal["2", "sqrt2"] = "2"

    def __post_init__(self) -> None:
        check_bits(self, self.bits, 2, 6)
        if self.base not in ("2", "sqrt2"):
            raise QuantizeError(f"Base of LogNet must be '2' or 'sqrt2', not {self.base!r}")

    def fit(self, weights: Weights) -> Codebook:
        """Quantize weights of any shape, or a density."""
        source, ratio = as_source(weights), 2.0 if self.base == "2" else math.sqrt(2)
        middle = round(math.log2(source.power) / 2)
        books = [_log_rounded(source, _powers(2.0**n, 2 ** (self.bits - 1) - 1, ratio), ratio, 2.0**n)
                 for n in range(middle - 2, middle + 7)]
        return max(books, key=lambda book: float(quality(source, book.levels, book.thresholds)))


def peak(method: object, source: Source) -> float:
    """Largest magnitude of the weights, which a density as it is does not have."""
    if math.isinf(source.peak):
        raise QuantizeError(f"{type(method).__name__} looks at the largest weight; a density has one `among(count)`")
    return source.peak
