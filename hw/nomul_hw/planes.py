"""Planes: weights that an array's format cannot hold, as several passes of weights that it can.

    w = sum over planes of 2**(places · shifts that follow the plane) · w_plane

The array adds the planes of a weight one after the other, most significant first; between two of them the
accumulators shift left by the array's ``plane_shift`` places, or do not. So the price of precision is time: int8
weights take two or three planes on an ``int4`` array and eight signed binary digits on a ``ternary`` one.

Plain Python and NumPy.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import numpy.typing as npt

from .formats import WeightFormat

__all__ = ["MAX_PLANES", "PlaneError", "Planes", "natural_shift", "split"]

Int64Array = npt.NDArray[np.int64]

#: Planes of one layer; the descriptor has one bit for each.
MAX_PLANES = 16

#: Up to this many planes every pattern of shifts is tried, beyond only the regular ones: shifts, then additions.
_ALL_PATTERNS = 5


class PlaneError(ValueError):
    """Weights that no number of planes can hold."""


@dataclass(frozen=True, eq=False)
class Planes:
    """Weights as planes, the most significant first.

    Parameters
    ----------
    shifts : tuple of bool
        For every plane, whether the accumulators shift before it is added; False for the first.
    weights : tuple of int32 array
        The planes, each of the weights' shape and of levels of the array's format.
    """

    shifts: tuple[bool, ...]
    weights: tuple[npt.NDArray[np.int32], ...]


@cache
def natural_shift(fmt: WeightFormat) -> int:
    """Places by which planes of a format are best apart.

    The largest number such that the levels have every remainder modulo ``2**places``: then any integer can be written
    digit by digit. 0 where even that fails, as it does for ``binary``.
    """
    places = 0
    while places < 8 and len({level % (2 << places) for level in fmt.levels}) == 2 << places:
        places += 1
    return places


def split(weights: npt.ArrayLike, fmt: WeightFormat, places: int) -> Planes:
    """Write integer weights as the fewest planes of a format.

    Parameters
    ----------
    weights : integer array, any shape
        What to write.
    fmt : WeightFormat
        The array's format.
    places : int
        Places by which the array's accumulators can shift between planes; 0 if they cannot.

    Raises
    ------
    PlaneError
        If it takes more than :data:`MAX_PLANES`.
    """
    weights = np.asarray(weights)
    values, where = np.unique(weights, return_inverse=True)
    if np.isin(values, fmt.levels).all():
        return Planes((False,), (weights.astype(np.int32),))
    shifts, digits = _digits(tuple(values.tolist()), fmt, places)
    return Planes(shifts, tuple(digit[where].reshape(weights.shape).astype(np.int32) for digit in digits))


def _patterns(count: int, places: int) -> Iterator[tuple[bool, ...]]:
    """Which planes to shift before, for a number of planes; the first never."""
    if not places:
        yield (False,) * count
    elif count <= _ALL_PATTERNS:
        yield from ((False, *pattern) for pattern in product((True, False), repeat=count - 1))
    else:  # Formats without a zero need a few more planes on top of the digits.
        for added in range(count):
            yield (False, *[True] * (count - 1 - added), *[False] * added)


@cache
def _digits(values: tuple[int, ...], fmt: WeightFormat, places: int) -> tuple[tuple[bool, ...], tuple[Int64Array, ...]]:
    """Planes of distinct values; the shifts, and an array of as many levels for every plane."""
    wanted, levels = np.asarray(values, dtype=np.int64), np.asarray(fmt.levels, dtype=np.int64)
    reach = int(np.abs(wanted).max())
    for count in range(2, MAX_PLANES + 1):
        for shifts in _patterns(count, places):
            # What the planes so far can add up to, as far as it can still lead to a wanted value.
            sums = [levels]
            for plane in range(1, count):
                following = sum(places for shift in shifts[plane + 1:] if shift)
                bound = (reach >> following) + (count - plane) * fmt.max_magnitude
                made = np.unique((sums[-1] << (places if shifts[plane] else 0))[:, None] + levels)
                sums.append(made[np.abs(made) <= bound])
            if np.isin(wanted, sums[-1]).all():
                return shifts, _peel(wanted, levels, shifts, sums, places)
    raise PlaneError(f"weights {values[0]}..{values[-1]} cannot be written as up to {MAX_PLANES} planes of "
                     f"{fmt.name} with shifts by {places}")


def _peel(wanted: Int64Array, levels: Int64Array, shifts: tuple[bool, ...], sums: list[Int64Array],
          places: int) -> tuple[Int64Array, ...]:
    """Choose every plane's level from the last plane to the first, the smallest remainders that work."""
    digits: list[Int64Array] = []
    rest = wanted
    for plane in range(len(shifts) - 1, 0, -1):
        shift = places if shifts[plane] else 0
        before = rest[:, None] - levels
        possible = (before % (1 << shift) == 0) & np.isin(before >> shift, sums[plane - 1])
        size = np.where(possible, np.abs(before), np.iinfo(np.int64).max)
        chosen = size.argmin(axis=1)
        digits.append(levels[chosen])
        rest = before[np.arange(len(rest)), chosen] >> shift
    return (rest, *reversed(digits))
