"""Logic as functions of few bits, for LUTs that are written down rather than left to synthesis.

ABC shares what two LUTs have in common, even where that takes a LUT of its own and saves none: the sign of a product,
of which each place of an adder could form its own. Of ABC's own accord no adder's LUT takes in more. So an adder of
such LUTs must be told what goes into each: :class:`Cover` builds logic up bit by bit, and names what does not fit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from amaranth.hdl import Const, Signal

__all__ = ["Bit", "Cover"]


@dataclass(frozen=True)
class Bit:
    """A function of few signals.

    Attributes
    ----------
    inputs : tuple of str
        Names of the signals.
    table : int
        The function's value for each of theirs, the first signal's the least significant of the index.
    signals : tuple of Value
        The signals.
    value : Value
        The function as an expression.
    """

    inputs: tuple[str, ...]
    table: int
    signals: tuple[Any, ...] = field(compare=False)
    value: Any = field(compare=False)

    def at(self, assigned: dict[str, int]) -> int:
        """The function's value."""
        return self.table >> sum(assigned[name] << index for index, name in enumerate(self.inputs)) & 1

    def spread(self, inputs: int) -> tuple[list[Any], int]:
        """Signals and table of the same function, of more inputs that do not matter."""
        return ([*self.signals, *[Const(0, 1)] * (inputs - len(self.inputs))],
                sum(self.table << at for at in range(0, 1 << inputs, 1 << len(self.inputs))))


class Cover:
    """Composes functions, each of no more signals than a LUT has inputs.

    Parameters
    ----------
    inputs : int
        Of a LUT.

    Attributes
    ----------
    made : dict of Bit to Bit
        What did not fit and became a LUT of its own, with the signal that stands for it.
    """

    def __init__(self, inputs: int) -> None:
        self.inputs = inputs
        self.made: dict[Bit, Bit] = {}

    @staticmethod
    def zeros(count: int) -> list[Bit]:
        """Bits that are 0."""
        return [Bit((), 0, (), Const(0, 1))] * count

    @staticmethod
    def bits(vector: Any) -> list[Bit]:
        """The bits of a signal."""
        return [Bit((f"{vector.name}[{place}]",), 0b10, (vector[place],), vector[place])
                for place in range(len(vector))]

    def signal(self, bit: Bit) -> Bit:
        """Make a bit a signal, which is one LUT."""
        if not bit.inputs or (len(bit.inputs) == 1 and bit.table == 0b10):
            return bit
        if bit not in self.made:
            self.made[bit], = self.bits(Signal(1, name=f"lut_{len(self.made)}"))
        return self.made[bit]

    def apply(self, function: Callable[..., Any], *arguments: Bit, spare: int = 0) -> Bit:
        """Compose a function with others; the largest of these become signals as long as the result is too large.

        Parameters
        ----------
        function : callable
            Of bits as integers, or as expressions.
        spare : int
            Inputs of the LUT that the result must leave free.
        """
        bits = list(arguments)
        while True:
            signals = {name: signal for bit in bits for name, signal in zip(bit.inputs, bit.signals, strict=True)}
            composed = self._reduced(function, bits, signals)
            if len(composed.inputs) <= self.inputs - spare:
                return composed
            # What is a signal already costs nothing.
            largest = max(range(len(bits)), key=lambda index: (len(bits[index].inputs) > 1 and bits[index] in self.made,
                                                               len(bits[index].inputs)))
            if len(bits[largest].inputs) == 1:
                raise ValueError(f"a function of {len(bits)} signals does not fit a LUT of {self.inputs} inputs")
            bits[largest] = self.signal(bits[largest])

    @staticmethod
    def _reduced(function: Callable[..., Any], bits: Sequence[Bit], signals: dict[str, Any]) -> Bit:
        """Compose, and leave out signals that do not matter."""
        names = list(signals)

        def table() -> int:
            total = 0
            for index in range(1 << len(names)):
                assigned = {**dict.fromkeys(signals, 0), **{name: index >> at & 1 for at, name in enumerate(names)}}
                total |= (function(*(bit.at(assigned) for bit in bits)) & 1) << index
            return total

        full = table()
        for at, name in reversed(list(enumerate(names))):
            if all(full >> index & 1 == full >> (index | 1 << at) & 1 for index in range(1 << len(names))
                   if not index >> at & 1):
                names.remove(name)
                full = table()
        return Bit(tuple(names), full, tuple(signals[name] for name in names), function(*(bit.value for bit in bits)))
