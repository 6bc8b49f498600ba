"""Weight formats: every weight is a sign, an odd multiple and a shift.

A weight code stands for an integer ``w = ±m · 2**s`` or 0, with ``m`` from a small set of odd integers (the
format's *multiples*). The product with an activation is ``±(m·x) << s``; since ``m·x`` does not depend on the
output channel it is computed once per array row, and a processing element only selects, shifts, inverts and adds.

This module is plain Python and NumPy. Hardware, golden model, quantizers and compiler all speak of the same
:class:`WeightFormat`; none of them keeps a table of its own.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["FORMATS", "MAX_BITS", "MAX_MULTIPLES", "MAX_UNIFORM_BITS", "WeightFormat", "get_format"]

#: Widest code that an array takes: its weights are stored in bytes.
MAX_BITS = 8

#: Widest uniform format. Beyond MAX_BITS it is for networks alone: arrays run such weights as planes.
MAX_UNIFORM_BITS = 16

#: Largest absolute level: weights are stored as int32, and products must stay far from the end of int64.
MAX_LEVEL = 1 << 30

#: A row edge computes one adder per odd multiple above 1; beyond this many, planes or a multiplier are cheaper.
MAX_MULTIPLES = 8


def _odd_part(value: int) -> tuple[int, int]:
    """Split a positive integer into its odd factor and the power of two that is left."""
    shift = (value & -value).bit_length() - 1
    return value >> shift, shift


def _uniform_levels(bits: int) -> range:
    """The integers of ``bits`` bits."""
    if type(bits) is not int or not 2 <= bits <= MAX_UNIFORM_BITS:
        raise ValueError(f"A uniform format has 2 to {MAX_UNIFORM_BITS} bits, not {bits!r}")
    return range(-(1 << (bits - 1)), 1 << (bits - 1))


@dataclass(frozen=True)
class WeightFormat:
    """A set of integer weight levels and their codes.

    Codes are sign-magnitude: the top bit is the sign, the others are the index into :attr:`magnitudes`; the code of
    minus zero, in formats that have a zero, is illegal. The uniform formats ``int2`` .. ``int16`` alone are not
    symmetric (``int4`` reaches -8 but not +8): their codes are two's complement, and their levels are kept as a range.

    Parameters
    ----------
    name : str
        Name shown in tables, configurations and manifests.
    levels : tuple of int, or range
        The weights that the format can hold: sorted, distinct, symmetric about 0 (or ``-2**(b-1) .. 2**(b-1)-1``).

    Raises
    ------
    TypeError
        If the name is not a string or a level not an integer.
    ValueError
        If the levels are not sorted, not symmetric, or fewer than two.
    """

    name: str
    levels: Sequence[int]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"Format name must be a string, not {self.name!r}")
        if not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", self.name):  # It becomes part of file names.
            raise ValueError(f"Format name must be letters, digits and underscores, a letter first, not {self.name!r}")
        if isinstance(self.levels, range) and self.is_uniform:
            return
        if not isinstance(self.levels, tuple) or not all(
            isinstance(level, int) and not isinstance(level, bool) for level in self.levels
        ):
            raise TypeError(f"Levels of format {self.name!r} must be a tuple of integers, not {self.levels!r}")
        if len(self.levels) > 1 << MAX_BITS:
            raise ValueError(f"Format {self.name!r} has {len(self.levels)} levels, more than {1 << MAX_BITS}")
        if len(self.levels) < 2 or list(self.levels) != sorted(set(self.levels)):
            raise ValueError(
                f"Levels of format {self.name!r} must be at least two distinct integers in ascending order, "
                f"not {self.levels!r}"
            )
        if max(abs(level) for level in self.levels) > MAX_LEVEL:
            raise ValueError(f"Levels of format {self.name!r} must lie in {-MAX_LEVEL}..{MAX_LEVEL}")
        if not self.is_uniform and set(self.levels) != {-level for level in self.levels}:
            raise ValueError(
                f"Levels of format {self.name!r} must be symmetric about 0, or all integers of a two's-complement "
                f"range, not {self.levels!r}"
            )
        if self.is_uniform:
            object.__setattr__(self, "levels", range(self.levels[0], -self.levels[0]))

    @classmethod
    def from_products(
        cls, name: str, multiples: Iterable[int], shifts: int, *, zero: bool, magnitudes: int | None = None
    ) -> "WeightFormat":
        """Build the format of all ``±m · 2**s`` with ``m`` in ``multiples`` and ``0 <= s < shifts``.

        Parameters
        ----------
        multiples : iterable of int
            Odd positive integers.
        shifts : int
            Number of shift amounts.
        zero : bool
            Whether 0 is a level.
        magnitudes : int, optional
            Keep only this many of the smallest magnitudes (zero not counted).
        """
        multiples = tuple(multiples)
        if not multiples or any(type(m) is not int or m < 1 or m % 2 == 0 for m in multiples):
            raise ValueError(f"Multiples of format {name!r} must be odd positive integers, not {multiples!r}")
        if type(shifts) is not int or not 1 <= shifts < MAX_LEVEL.bit_length():
            raise ValueError(f"Number of shifts of format {name!r} must be an integer in "
                             f"1..{MAX_LEVEL.bit_length() - 1}, not {shifts!r}")
        positive = sorted({m << s for m in multiples for s in range(shifts)})[:magnitudes]
        return cls.from_magnitudes(name, positive, zero=zero)

    @classmethod
    def from_magnitudes(cls, name: str, magnitudes: Iterable[int], *, zero: bool) -> "WeightFormat":
        """Build a symmetric format from its positive levels."""
        positive = sorted(set(magnitudes))
        return cls(name, tuple([-m for m in reversed(positive)] + [0] * zero + positive))

    @classmethod
    def uniform(cls, bits: int) -> "WeightFormat":
        """Build the two's-complement integers of ``bits`` bits, ``-2**(bits-1) .. 2**(bits-1)-1``."""
        return cls(f"int{bits}", _uniform_levels(bits))

    # What the levels say about the hardware --------------------------------------------------------------------

    @cached_property
    def zero(self) -> bool:
        """Whether 0 is a level."""
        return 0 in self.levels

    @cached_property
    def magnitudes(self) -> tuple[int, ...]:
        """Absolute values of the levels, ascending."""
        return tuple(sorted({abs(level) for level in self.levels}))

    @cached_property
    def is_uniform(self) -> bool:
        """Whether the levels are all integers of a two's-complement range, as in ``int4``."""
        half = -self.levels[0] if self.levels else 0
        if not 2 <= half < 1 << MAX_UNIFORM_BITS or half & (half - 1) or len(self.levels) != 2 * half:
            return False
        whole = range(-half, half)
        return self.levels == (whole if isinstance(self.levels, range) else tuple(whole))

    @cached_property
    def max_magnitude(self) -> int:
        """Largest absolute level."""
        return max(-self.levels[0], self.levels[-1])

    @cached_property
    def bits(self) -> int:
        """Width of a code."""
        return 1 + (-self.levels[0] - 1 if self.is_uniform else len(self.magnitudes) - 1).bit_length()

    @cached_property
    def multiples(self) -> tuple[int, ...]:
        """Odd factors of the levels, ascending."""
        return tuple(sorted({_odd_part(abs(level))[0] for level in self.levels if level}))

    @cached_property
    def bases(self) -> tuple[int, ...]:
        """For each multiple ``m`` the smallest level that it makes, ``m << min(s)``.

        That part of the shift is wiring at the row edge, so the barrel shifter in the PE only covers the rest:
        ``exp4`` = {2, 3, 4, 6, 8, 12, 16} is {2, 3} shifted by 0..3.
        """
        smallest: dict[int, int] = {}
        for level in self.levels:
            if level:
                odd, shift = _odd_part(abs(level))
                smallest[odd] = min(shift, smallest.get(odd, shift))
        return tuple(odd << smallest[odd] for odd in self.multiples)

    @cached_property
    def shifts(self) -> int:
        """Number of shift amounts of the PE's barrel shifter, beyond :attr:`bases`."""
        return 1 + max(self.fields(level)[3] for level in self.levels)

    def fields(self, level: int) -> tuple[bool, bool, int, int]:
        """Split a level into what a PE does: ``(nonzero, negative, index into bases, shift)``."""
        if level == 0:
            return False, False, 0, 0
        odd, shift = _odd_part(abs(level))
        select = self.multiples.index(odd)
        return True, level < 0, select, shift - _odd_part(self.bases[select])[1]

    # Weights ---------------------------------------------------------------------------------------------------

    @cached_property
    def _level_array(self) -> npt.NDArray[np.int64]:
        """The levels, shape (levels,)."""
        return np.asarray(self.levels, dtype=np.int64)

    def holds(self, weights: npt.NDArray[Any]) -> bool:
        """Whether an array of signed integers holds nothing but levels of the format."""
        if weights.dtype.kind != "i":
            return False
        if self.is_uniform:
            return not weights.size or bool(self.levels[0] <= weights.min() and weights.max() <= self.levels[-1])
        return bool(np.isin(weights, self._level_array).all())

    def nearest(self, values: npt.ArrayLike) -> npt.NDArray[np.int32]:
        """Round real values to the nearest level; a tie goes up, as everywhere (round half up)."""
        levels = self._level_array
        thresholds = (levels[1:] + levels[:-1]) / 2
        return levels[np.searchsorted(thresholds, np.asarray(values), side="right")].astype(np.int32)

    # Codes -----------------------------------------------------------------------------------------------------

    @cached_property
    def code_levels(self) -> tuple[int | None, ...]:
        """Level of every code ``0 .. 2**bits - 1``; ``None`` where the code is illegal."""
        half = 1 << (self.bits - 1)
        if self.is_uniform:
            return tuple(range(half)) + tuple(range(-half, 0))
        table: list[int | None] = [None] * (2 * half)
        for index, magnitude in enumerate(self.magnitudes):
            table[index] = magnitude
            if magnitude:
                table[half + index] = -magnitude
        return tuple(table)

    @cached_property
    def _code_of(self) -> dict[int, int]:
        return {level: code for code, level in enumerate(self.code_levels) if level is not None}

    @cached_property
    def _codes(self) -> npt.NDArray[np.unsignedinteger]:
        """Codes of the levels, in their order."""
        return np.asarray([self._code_of[level] for level in self.levels],
                          dtype=np.uint8 if self.bits <= MAX_BITS else np.uint16)

    def encode(self, weights: npt.ArrayLike) -> npt.NDArray[np.unsignedinteger]:
        """Turn integer weights into codes of the same shape (uint8; uint16 if the format has more than 8 bits).

        Raises
        ------
        ValueError
            If a weight is not a level of the format; the first offender is named with its index.
        """
        weights = np.asarray(weights)
        levels = self._level_array
        slots = np.clip(np.searchsorted(levels, weights), 0, len(levels) - 1)
        wrong = levels[slots] != weights
        if wrong.any():
            index = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise ValueError(f"Weight {weights[index]} at index {index} is not a level of format {self.name!r}")
        return self._codes[slots]

    def decode(self, codes: npt.ArrayLike) -> npt.NDArray[np.int32]:
        """Turn codes into integer weights of the same shape (int32).

        Raises
        ------
        ValueError
            If a code is out of range or illegal; the first offender is named with its index.
        """
        codes = np.asarray(codes)
        table = np.asarray([np.iinfo(np.int32).min if lv is None else lv for lv in self.code_levels], dtype=np.int32)
        if codes.size and (codes.min() < 0 or codes.max() >= len(table)):
            raise ValueError(f"Codes of format {self.name!r} must lie in 0..{len(table) - 1}, got {codes.min()}"
                             f"..{codes.max()}")
        weights = table[codes]
        wrong = weights == np.iinfo(np.int32).min
        if wrong.any():
            index = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise ValueError(f"Code {codes[index]} at index {index} is illegal in format {self.name!r}")
        return weights

    @cached_property
    def smallest_code(self) -> int:
        """Code of the level nearest to 0: what fills the parts of a tile that a layer does not use."""
        return self._code_of[min(self.levels, key=lambda level: (abs(level), level))]

    # Plain data ------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain data for files, manifests and hashes: a name, and levels or the bits of a uniform format."""
        return {"name": self.name, **({"bits": self.bits} if self.is_uniform else {"levels": list(self.levels)})}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "WeightFormat":
        """Rebuild a format from :meth:`to_dict`; a uniform one may list its levels too.

        Raises
        ------
        TypeError, ValueError
            As the constructor; ``None`` stands for what is missing.
        """
        levels = data.get("levels")
        if "bits" in data:
            levels = _uniform_levels(data["bits"])
        elif isinstance(levels, list):
            levels = tuple(levels)
        return cls(data.get("name"), levels)


def _builtin() -> Sequence[WeightFormat]:
    return (
        WeightFormat.from_products("binary", (1,), 1, zero=False),
        WeightFormat.from_products("ternary", (1,), 1, zero=True),
        WeightFormat.from_products("pot3", (1,), 4, zero=False),
        WeightFormat.from_products("pot3z", (1,), 3, zero=True),
        WeightFormat.from_products("pot4", (1,), 8, zero=False),
        WeightFormat.from_products("pot4z", (1,), 7, zero=True),
        WeightFormat.from_magnitudes("exp4", (2, 3, 4, 6, 8, 12, 16), zero=True),
        WeightFormat.from_magnitudes("exp4_sqrt2", (12, 17, 24, 34, 48, 68, 96), zero=True),
        WeightFormat.from_magnitudes(
            "exp5", (8, 10, 13, 16, 20, 26, 32, 40, 52, 64, 80, 104, 128, 160, 208), zero=True
        ),
        WeightFormat.from_products("fp4_e2m1", (1, 3), 4, zero=True, magnitudes=7),
        *(_UNIFORM[f"int{bits}"] for bits in (2, 3, 4, 8)),
    )


_UNIFORM = {f"int{bits}": WeightFormat.uniform(bits) for bits in range(2, MAX_UNIFORM_BITS + 1)}


#: The formats that have a name, by name. :func:`get_format` knows the uniform ones of all widths besides.
FORMATS: dict[str, WeightFormat] = {fmt.name: fmt for fmt in _builtin()}


def get_format(name: str) -> WeightFormat:
    """Look a named format up: one of :data:`FORMATS`, or ``int2`` .. ``int16``.

    Raises
    ------
    ValueError
        If there is none of that name; the message lists those that exist.
    """
    found = FORMATS.get(name) or _UNIFORM.get(name)
    if found is None:
        others = ", ".join(other for other in FORMATS if other not in _UNIFORM)
        raise ValueError(f"Unknown weight format {name!r}; known: {others}, int2..int{MAX_UNIFORM_BITS}")
    return found
