"""Logic as functions of few bits, for a family whose LUTs are written down rather than left to synthesis.

ABC makes a LUT of what many LUTs have in common, even where each of them has room for it: the sign of a product, say,
which every place of an adder could form by itself. And it takes LUTs of few inputs to cost less than others. So who
wants an adder's LUTs to take in all that they have room for must say what goes into each. Here functions are composed
bit by bit; what is too large becomes a LUT of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from amaranth.hdl import Const, Signal

__all__ = ["Bit", "Cover", "mux"]

Function = Callable[..., int]


def mux(choice: int, one: int, other: int) -> int:
    """``one`` where ``choice`` is 1."""
    return one if choice else other


@dataclass(frozen=True)
class Bit:
    """A function of few signals.

    Attributes
    ----------
    table : int
        Its values, one bit for each index that the signals make, the first of them least significant.
    names : tuple of str
        The signals' names; what is equal has equal names.
    signals : tuple of Value
        The signals.
    """

    table: int
    names: tuple[str, ...] = ()
    signals: tuple[Any, ...] = field(default=(), compare=False)

    @property
    def is_wire(self) -> bool:
        """Whether it is a signal or a constant."""
        return not self.names or (len(self.names) == 1 and self.table == 0b10)

    @property
    def wire(self) -> Any:
        """The signal or constant that it is."""
        return self.signals[0] if self.signals else Const(self.table, 1)

    def spread(self, inputs: int) -> tuple[list[Any], int]:
        """Signals and table of the same function with as many inputs, the last of which do not matter."""
        return ([*self.signals, *[Const(0, 1)] * (inputs - len(self.names))],
                sum(self.table << at for at in range(0, 1 << inputs, 1 << len(self.names))))


class Cover:
    """Composes functions, each of no more signals than a LUT has inputs.

    Parameters
    ----------
    inputs : int
        Of a LUT.

    Attributes
    ----------
    luts : dict of Bit to Bit
        What was too large, each a LUT of its own, and the signal that it drives.
    """

    def __init__(self, inputs: int) -> None:
        self.inputs = inputs
        self.luts: dict[Bit, Bit] = {}

    @staticmethod
    def bits(vector: Any) -> list[Bit]:
        """The bits of a signal."""
        return [Bit(0b10, (f"{vector.name}[{place}]",), (vector[place],)) for place in range(len(vector))]

    def wire(self, bit: Bit) -> Bit:
        """A bit as a signal: of a LUT, if it is none yet."""
        if bit.is_wire:
            return bit
        if bit not in self.luts:
            self.luts[bit], = self.bits(Signal(1, name=f"lut_{len(self.luts)}"))
        return self.luts[bit]

    def apply(self, function: Function, *arguments: Bit, spare: int = 0) -> Bit:
        """Compose a function with others; as long as the result is too large, the largest of them becomes a LUT.

        Parameters
        ----------
        function : callable
            Of bits, one for each argument.
        spare : int
            Inputs of the LUT that the result must leave free.
        """
        bits = list(arguments)
        while True:
            signals = {name: signal for bit in bits for name, signal in zip(bit.names, bit.signals, strict=True)}
            names = list(signals)
            table, kept = _compose(function, len(names), tuple(
                (bit.table, tuple(names.index(name) for name in bit.names)) for bit in bits))
            if len(kept) <= self.inputs - spare:
                return Bit(table, tuple(names[at] for at in kept), tuple(signals[names[at]] for at in kept))
            # What is a LUT already costs nothing.
            at = max((at for at, bit in enumerate(bits) if not bit.is_wire),
                     key=lambda at: (bits[at] in self.luts, len(bits[at].names)))
            bits[at] = self.wire(bits[at])


@cache
def _compose(function: Function, count: int, bits: tuple[tuple[int, tuple[int, ...]], ...]
             ) -> tuple[int, tuple[int, ...]]:
    """Table of a function of functions, and which of ``count`` signals matter to it."""
    def value(index: int) -> int:
        return function(*(table >> sum((index >> signal & 1) << at for at, signal in enumerate(inputs)) & 1
                          for table, inputs in bits))

    values = [value(index) for index in range(1 << count)]
    kept: Sequence[int] = [at for at in range(count) if any(
        values[index] != values[index | 1 << at] for index in range(1 << count) if not index >> at & 1)]
    return (sum(values[sum((index >> at & 1) << signal for at, signal in enumerate(kept))] << index
                for index in range(1 << len(kept))), tuple(kept))
