"""The arithmetic contract, in words and in NumPy. Everything else is tested against this module.

- **Activations** are signed integers ``q`` of ``act_bits`` bits with a per-tensor scale ``2**exponent`` and a zero
  point ``zp`` that is 0 (signed tensors) or ``-2**(act_bits-1)`` (tensors that are never negative, so that they use
  all codes): ``real = 2**exponent * (q - zp)``. Padding reads as ``zp``.
- **Accumulators** are exact: ``acc = sum(w * q)`` over all taps, padding included; ``-zp * sum(w)`` is part of the
  bias.
- **Requantization** is ``y = clamp(((v * m + half) >> n) + zp, lo, hi)`` with ``v = acc + bias`` and
  ``half = 2**(n-1)`` (0 if ``n == 0``): round half up, everywhere. The gain ``m / 2**n`` lies on a lattice:
  ``m`` is 1, or an odd integer of at most ``terms`` signed binary digits, so that ``v * m`` is a few adds of shifts.
- A **gain** is chosen on the lattice before the weights are quantized, never rounded to it afterwards.
- **Residual addition** happens inside requantization, before the rounding:
  ``y = clamp(((v * m + (skip << (n - drop)) + half) >> n) + zp, low, high)`` with ``skip = q - zp`` of the tensor that
  is added, and ``drop = exponent of the output - exponent of that tensor`` in 0..3.
- **Average pooling** is a sum over the window (padding included as ``zp``) and a requantization.
"""

from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import numpy.typing as npt

__all__ = ["MAX_SKIP_DROP", "Gain", "act_range", "gain_digits", "gain_multipliers", "gain_positions", "gains_near",
           "max_gain_shift", "nearest_gain", "requantize", "round_half_up", "zero_point"]

Int64Array = npt.NDArray[np.int64]


#: Largest difference of exponents in a residual addition.
MAX_SKIP_DROP = 3


@dataclass(frozen=True, order=True)
class Gain:
    """A representable requantization gain, ``multiplier / 2**shift``, ``multiplier`` odd and positive."""

    multiplier: int
    shift: int

    @property
    def value(self) -> float:
        """The gain as a real number."""
        return self.multiplier / 2.0**self.shift


def round_half_up(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Round to the nearest integer, ties towards plus infinity (``np.round`` and ``torch.round`` do not)."""
    return np.floor(np.asarray(values, dtype=np.float64) + 0.5)


def act_range(act_bits: int) -> tuple[int, int]:
    """Smallest and largest activation code."""
    return -(1 << (act_bits - 1)), (1 << (act_bits - 1)) - 1


def signed_bits(low: int, high: int) -> int:
    """Width of the signed numbers from ``low`` to ``high``."""
    return 1 + max(high.bit_length(), (~low).bit_length())


def zero_point(act_bits: int, *, signed: bool) -> int:
    """Zero point of a tensor: 0 where values may be negative, else the smallest code."""
    return 0 if signed else act_range(act_bits)[0]


def requantize(
    acc: Int64Array,
    bias: Int64Array,
    multiplier: Int64Array,
    shift: Int64Array,
    *,
    zero_point: int,
    low: int,
    high: int,
    skip: Int64Array | None = None,
    drop: int = 0,
) -> Int64Array:
    """Apply ``clamp((((acc + bias) * m + (skip << (n - drop)) + half) >> n) + zp, low, high)``.

    Arguments broadcast, everything is int64. ``drop`` must be at most the smallest shift.
    """
    doubled = ((acc + bias) * multiplier) << 1
    if skip is not None:
        doubled = doubled + (skip << (shift + 1 - drop))
    # (product + 2**(n-1)) >> n, written so that n == 0 needs no case of its own; the hardware does the same.
    rounded = ((doubled >> shift) + 1) >> 1
    return np.clip(rounded + zero_point, low, high)


def gain_positions(terms: int) -> tuple[tuple[int, ...], ...]:
    """Where each digit beyond the leading one may stand: (2, 3, 4) for one, (2, 3) and (4, 5, 6) for two of them.

    The widest hole of the two-digit lattice (1.25 to 1.5) is the same however far its digit reaches, and three
    positions are what the requantizer can choose from at no more cost than none.

    Raises
    ------
    ValueError
        If there are not 1, 2 or 3 terms.
    """
    if terms not in (1, 2, 3):
        raise ValueError(f"Number of gain terms must be 1, 2 or 3, not {terms!r}")
    last = terms - 2
    return tuple(tuple(range(2 * digit + 2, 2 * digit + 4 + (digit == last))) for digit in range(terms - 1))


@cache
def _gain_forms(terms: int) -> dict[int, tuple[int, tuple[tuple[int, int], ...]]]:
    """Each multiplier as :func:`gain_digits` gives it; of several forms one with the fewest digits."""
    forms: dict[int, tuple[int, tuple[tuple[int, int], ...]]] = {}
    for places in product(*((None, *choices) for choices in gain_positions(terms))):
        used = [place for place in places if place is not None]
        for lead, *signs in product((1, -1), repeat=len(used) + 1):
            digits = tuple(zip(signs, used, strict=True))
            value = lead + sum(sign << place for sign, place in digits)
            if value > 0 and (value not in forms or len(digits) < len(forms[value][1])):
                forms[value] = lead, digits
    return dict(sorted(forms.items()))


def gain_digits(multiplier: int, terms: int) -> tuple[int, tuple[tuple[int, int], ...]]:
    """Write ``multiplier`` as ``lead + sum(sign << position)``, the form that a requantizer adds up.

    Returns
    -------
    lead : int
        +1 or -1, the digit at position 0.
    digits : tuple of (sign, position)
        At most one for each digit of :func:`gain_positions`, ascending; the last one is positive.

    Raises
    ------
    ValueError
        If the multiplier is not odd and positive or needs more digits.
    """
    if multiplier not in _gain_forms(terms):
        raise ValueError(f"Gain multiplier {multiplier} is not odd and positive with at most {terms} signed digits")
    return _gain_forms(terms)[multiplier]


def gain_multipliers(terms: int) -> tuple[int, ...]:
    """All odd multipliers of at most ``terms`` signed binary digits at :func:`gain_positions`, ascending.

    ``terms = 1`` gives (1,); ``terms = 2`` gives (1, 3, 5, 7, 9, 15, 17); ``terms = 3`` the odd numbers up to 41 and
    from 55 to 73.
    """
    return tuple(_gain_forms(terms))


def max_gain_shift(acc_bits: int, act_bits: int) -> int:
    """Largest right shift of a gain: the largest sum of all is then the largest code.

    It is at most 26, which three stages of the requantizer's shifter reach.
    """
    return min(acc_bits - act_bits, 26)


@cache
def _lattice(terms: int, max_shift: int) -> tuple[tuple[Gain, ...], npt.NDArray[np.float64]]:
    """All gains, ascending by multiplier and shift, and their values."""
    gains = tuple(Gain(m, shift) for m in gain_multipliers(terms) for shift in range(max_shift + 1))
    return gains, np.asarray([gain.value for gain in gains])


def gains_near(value: float, *, terms: int, max_shift: int, count: int) -> list[Gain]:
    """List the ``count`` lattice gains nearest to a positive ``value`` (by ratio), nearest first.

    Only gains with ``0 <= shift <= max_shift`` exist; fewer are returned where there are not so many.
    """
    if not value > 0 or not np.isfinite(value):
        raise ValueError(f"A gain must be a positive number, not {value!r}")
    gains, values = _lattice(terms, max_shift)
    order = np.argsort(np.abs(np.log2(values / value)), kind="stable")
    return [gains[index] for index in order[:count]]


def nearest_gain(value: float, *, terms: int, max_shift: int) -> Gain:
    """Round a positive gain to the lattice (nearest by ratio).

    Raises
    ------
    ValueError
        If ``value`` lies beyond the lattice (its shift would be negative or above ``max_shift``).
    """
    near = gains_near(value, terms=terms, max_shift=max_shift, count=1)
    if not near or not 0.7 < near[0].value / value < 1.43:
        raise ValueError(f"Gain {value:g} is outside the lattice of shifts 0..{max_shift}")
    return near[0]
