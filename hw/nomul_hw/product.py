"""What a processing element adds up for one weight, and what that leaves for the bias.

A product is the sum of one or more *terms*, each a base selected, shifted, inverted and gated:

    term = (((bases[select] * x) << shift) & nonzero) ^ negative) << offset

An element for a :class:`~nomul_hw.formats.WeightFormat` is one term. The multiplier baseline is the radix-4 Booth
form of the same thing: one term of {0, ±1, ±2} for every two bits of the weight, recoded when the weight is loaded.

Inverting instead of negating saves a carry chain in every lane: ``-y = ~y + 1``. The 1 depends on the weight alone,
so what a column lacks, its number of negative weights, is a compile-time constant of the output channel and belongs in
the bias: the *correction*.
"""

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import numpy.typing as npt

from .arithmetic import act_range, signed_bits
from .formats import MAX_MULTIPLES, WeightFormat

__all__ = ["PE_KINDS", "Controls", "ProductForm", "Term"]

#: The processing elements: barrel shifters (sign/zero logic where there is nothing to shift), or the Booth baseline.
PE_KINDS = ("shift", "multiplier")


@dataclass(frozen=True)
class Controls:
    """What one term does for one weight."""

    nonzero: bool
    negative: bool
    select: int
    shift: int


@dataclass(frozen=True)
class Term:
    """One shifted product: the levels ``±bases[select] << shift`` (and 0), all of it shifted by ``offset``."""

    bases: tuple[int, ...]
    shifts: int
    zero: bool
    offset: int = 0

    @property
    def select_bits(self) -> int:
        """Width of the field that picks the base."""
        return (len(self.bases) - 1).bit_length()

    @property
    def shift_bits(self) -> int:
        """Width of the field that picks the shift."""
        return (self.shifts - 1).bit_length()

    @property
    def control_bits(self) -> int:
        """Width of the stored control word: negative, nonzero (if the term can be zero), shift, select."""
        return 1 + self.zero + self.shift_bits + self.select_bits

    def pack(self, controls: Controls) -> int:
        """Pack a control word, LSB first: negative, nonzero, shift, select."""
        word, at = int(controls.negative), 1
        if self.zero:
            word |= int(controls.nonzero) << at
            at += 1
        word |= controls.shift << at
        return word | controls.select << (at + self.shift_bits)

    def value(self, controls: Controls, x: int) -> int:
        """The raw sum that the hardware adds: the product less the correction."""
        if not controls.nonzero:
            return 0
        y = self.bases[controls.select] * x << controls.shift
        return (~y if controls.negative else y) << self.offset

    def correction(self, controls: Controls) -> int:
        """What the inversion leaves out of the product."""
        return 1 << self.offset if controls.negative else 0


@dataclass(frozen=True)
class ProductForm:
    """How a processing element of a kind forms ``w * x`` for the weights of a format.

    Parameters
    ----------
    format : WeightFormat
        The weights.
    kind : str
        ``"shift"`` or ``"multiplier"``.

    Raises
    ------
    ValueError
        If the kind is unknown, if ``"multiplier"`` is asked for a format that is not uniform, or if the format has
        more odd multiples than a row edge should compute.
    """

    format: WeightFormat
    kind: str = "shift"

    def __post_init__(self) -> None:
        fmt = self.format
        if self.kind not in PE_KINDS:
            raise ValueError(f"Processing element must be one of {', '.join(PE_KINDS)}, not {self.kind!r}")
        if self.kind == "multiplier" and not fmt.is_uniform:
            raise ValueError(f"A multiplier takes a uniform format (int2..int8), not {fmt.name!r}")
        if self.kind == "shift" and len(fmt.multiples) > MAX_MULTIPLES:
            raise ValueError(
                f"Format {fmt.name!r} needs {len(fmt.multiples)} odd multiples per row edge, more than "
                f'{MAX_MULTIPLES}: set pe = "multiplier" or choose a format with fewer levels'
            )

    @cached_property
    def terms(self) -> tuple[Term, ...]:
        """The terms of the product, least significant first."""
        fmt = self.format
        if self.kind == "shift":
            return (Term(fmt.bases, fmt.shifts, fmt.zero),)
        digits = (fmt.bits + 1) // 2
        return tuple(Term((1,), 2, True, 2 * i) for i in range(digits))

    @cached_property
    def bases(self) -> tuple[int, ...]:
        """The multiples of an activation that travel along a row."""
        return self.terms[0].bases

    @cached_property
    def control_bits(self) -> int:
        """Bits that a processing element stores for one weight."""
        return sum(term.control_bits for term in self.terms)

    def max_pipeline(self, lanes: int) -> int:
        """Most registers on the way of a product to the sum from above: there is more to cut where products add up."""
        return 1 if lanes * len(self.terms) == 1 else 3

    def controls(self, level: int) -> tuple[Controls, ...]:
        """What every term does for a weight."""
        if self.kind == "shift":
            nonzero, negative, select, shift = self.format.fields(level)
            return (Controls(nonzero, negative, select, shift),)
        return tuple(self.booth_digit(level << 1 >> term.offset & 7) for term in self.terms)

    @staticmethod
    def booth_digit(window: int) -> Controls:
        """Radix-4 Booth digit in {-2..2} of three neighbouring bits of a two's-complement weight."""
        digit = (0, 1, 1, 2, -2, -1, -1, 0)[window]
        return Controls(digit != 0, digit < 0, 0, int(abs(digit) == 2))

    def pack(self, level: int) -> int:
        """Control word of a weight, terms LSB first."""
        word = at = 0
        for term, controls in zip(self.terms, self.controls(level), strict=True):
            word |= term.pack(controls) << at
            at += term.control_bits
        return word

    def corrections(self, weights: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """What the bias must add per weight, elementwise (int64)."""
        return self._lookup(weights, [sum(t.correction(c) for t, c in zip(self.terms, self.controls(level),
                                                                          strict=True))
                                      for level in self.format.levels])

    def raw_bounds(
        self, weights: npt.ArrayLike, act_bits: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Smallest and largest raw product per weight over all activations, elementwise (int64)."""
        low, high = act_range(act_bits)
        ends = [[self.raw(level, x) for x in (low, high)] for level in self.format.levels]
        return (self._lookup(weights, [min(pair) for pair in ends]),
                self._lookup(weights, [max(pair) for pair in ends]))

    def raw(self, level: int, x: int) -> int:
        """What the hardware adds for one product: ``level * x`` less the correction."""
        return sum(term.value(controls, x)
                   for term, controls in zip(self.terms, self.controls(level), strict=True))

    def sum_bits(self, products: int, act_bits: int) -> int:
        """Width of a signed sum of ``products`` raw products that cannot overflow."""
        low, high = self.bounds(act_bits)
        return signed_bits(products * low, products * high)

    def bounds(self, act_bits: int, indices: tuple[int, ...] | None = None) -> tuple[int, int]:
        """Smallest and largest raw product of any weight and activation, or sum of some of its terms."""
        return _bounds(self, act_bits, tuple(range(len(self.terms))) if indices is None else indices)

    def _lookup(self, weights: npt.ArrayLike, per_level: list[int]) -> npt.NDArray[np.int64]:
        slots = np.searchsorted(np.asarray(self.format.levels), np.asarray(weights))
        return np.asarray(per_level, dtype=np.int64)[slots]


@cache
def _bounds(product: ProductForm, act_bits: int, indices: tuple[int, ...]) -> tuple[int, int]:
    ends = [sum(product.terms[index].value(controls[index], x) for index in indices)
            for controls in map(product.controls, product.format.levels) for x in act_range(act_bits)]
    return min(ends), max(ends)
