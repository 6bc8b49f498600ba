"""Evenly spaced levels: what the others are compared with, and the design for many bits on Laplacian weights."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from ..config import QuantizeError
from .codebook import Codebook, best_scales
from .levels import check_bits, peak
from .source import Weights, as_source

__all__ = ["Linear", "UniformLaplacian", "laplacian_bits", "laplacian_sqnr", "laplacian_support"]

Float64Array = npt.NDArray[np.float64]
Criterion = Literal["correlation", "clipping", "range"]


def _midrise(bits: int) -> Float64Array:
    """Levels -(2**bits - 1), .., -1, 1, .., 2**bits - 1: steps of 2, no zero."""
    return np.arange(1.0 - 2**bits, 2.0**bits, 2.0)


@dataclass(frozen=True)
class Linear:
    """``2**bits`` levels, evenly spaced and symmetric about 0, none of them 0.

    Parameters
    ----------
    bits : int
        1 to 12.
    criterion : {"correlation", "clipping", "range"}
        The step of the largest correlation (the least squared error); one that divides the range of the smallest
        ``keep`` of the magnitudes; one that divides the range of all, ``2 max|w| / 2**bits``.
    keep : float
        Share of the magnitudes that clipping keeps.
    """

    bits: int
    criterion: Criterion = "correlation"
    keep: float = 0.999

    def __post_init__(self) -> None:
        check_bits(self, self.bits, 1, 12)
        if self.criterion not in get_args(Criterion):
            raise QuantizeError(f"criterion must be one of {', '.join(get_args(Criterion))}, not {self.criterion!r}")
        if not 0 < self.keep <= 1:
            raise QuantizeError(f"keep must be a share above 0, at most 1, not {self.keep!r}")

    def fit(self, weights: Weights) -> Codebook:
        """Quantize weights of any shape, or a density (which has no range)."""
        source, levels = as_source(weights), _midrise(self.bits)
        if self.criterion == "correlation":
            half = float(best_scales(source, levels[None])[0][0])
        else:
            largest = source.quantile(self.keep) if self.criterion == "clipping" and self.keep < 1 else 0.0
            half = (largest or peak(self, source)) / 2**self.bits
        return Codebook(source, levels * half, (levels[1:] - 1) * half, half)


def _coth(value: float) -> float:
    return 1 / math.tanh(value)


def laplacian_sqnr(bits: int, support: float, level: float = 0.0) -> float:
    """SQNR in dB of a uniform quantizer on Laplacian weights, in closed form.

    Parameters
    ----------
    bits : int
        ``2**bits`` levels.
    support : float
        Half of the quantizer's range, in the standard deviations that it was designed for.
    level : float
        Power of the weights that it meets over the power that it was designed for, dB.
    """
    levels, deviation = 2**bits, 10 ** (level / 20)
    step = 2 * support / levels / deviation
    b = step / math.sqrt(2)
    tail = math.exp(-levels * b)
    # 1 + D²/4 + B (E - (1 - E) coth B), with the terms that cancel for small steps taken out: coth B = 1/B + rest.
    rest = b / 3 - b**3 / 45 + 2 * b**5 / 945 if b < 0.05 else _coth(b) - 1 / b
    return -10 * math.log10(tail + step**2 / 4 + b * tail - (1 - tail) * b * rest)


def laplacian_support(bits: int, rule: Literal["optimal", "iterative"] = "optimal") -> float:
    """Half of the range of a uniform quantizer for Laplacian weights of unit variance.

    Parameters
    ----------
    bits : int
        ``2**bits`` levels.
    rule : {"optimal", "iterative"}
        The maximum of :func:`laplacian_sqnr`; or ``x <- ln(3 N² / (sqrt(2) x)) / sqrt(2)`` from ``sqrt(2) ln N``, N
        the number of levels, until it settles, which is near it for many bits (doi 10.5755/j01.itc.50.3.28468).
    """
    levels = 2**bits
    support = math.sqrt(2) * math.log(levels)
    if rule == "iterative":
        for _ in range(100):
            support = math.log(3 * levels**2 / (math.sqrt(2) * support)) / math.sqrt(2)
        return support
    low, high, golden = 0.5, 2 * support + 2, (math.sqrt(5) - 1) / 2
    while high - low > 1e-7:
        left, right = high - golden * (high - low), low + golden * (high - low)
        if laplacian_sqnr(bits, left) > laplacian_sqnr(bits, right):
            high = right
        else:
            low = left
    return (low + high) / 2


def laplacian_bits(sqnr: float, levels: tuple[float, float] = (0.0, 0.0)) -> int:
    """The fewest bits that reach an SQNR in dB on Laplacian weights of any power in a range.

    Parameters
    ----------
    sqnr : float
        dB.
    levels : tuple of float
        Lowest and highest power of the weights over that which the quantizer is designed for, dB. A quantizer met by
        weights L dB weaker needs about ``L / 6.02`` bits more.

    Raises
    ------
    QuantizeError
        If 24 bits do not.
    """
    for bits in range(1, 25):
        support = laplacian_support(bits)
        # The SQNR has one maximum over the level, so the worst is at an end.
        if min(laplacian_sqnr(bits, support, level) for level in levels) >= sqnr:
            return bits
    raise QuantizeError(f"No 24 bits reach {sqnr:g} dB from {levels[0]:g} to {levels[1]:g} dB of power")


@dataclass(frozen=True)
class UniformLaplacian:
    """The uniform quantizer designed for Laplacian weights of known variance (doi 10.5755/j01.itc.50.3.28468).

    All it asks of the weights is their power: a closed form for 9 to 16 bits, where a search would take long and gain
    nothing.

    Parameters
    ----------
    bits : int
        2 to 16.
    rule : {"iterative", "optimal"}
        See :func:`laplacian_support`.
    """

    bits: int
    rule: Literal["iterative", "optimal"] = "iterative"

    def __post_init__(self) -> None:
        check_bits(self, self.bits, 2, 16)
        if self.rule not in ("iterative", "optimal"):
            raise QuantizeError(f"rule must be iterative or optimal, not {self.rule!r}")

    def fit(self, weights: Weights) -> Codebook:
        """Quantize weights of any shape, or a density."""
        source, levels = as_source(weights), _midrise(self.bits)
        half = laplacian_support(self.bits, self.rule) * math.sqrt(source.power) / 2**self.bits
        return Codebook(source, levels * half, (levels[1:] - 1) * half, half)
