"""What an element adds, read from its netlist: for all weights, activations and sums from above, and without a search.

An element is gates and adders. No gate takes in two lanes: what stands in front of the adders are functions of one
lane's weight and activation, which have 2**16 cases at most, and all of them are tried. What adders make of two lanes
is looked at as an integer: a sum of such functions, one of each lane, and of the sum from above. Since lanes know
nothing of each other, the range of such a sum is that of its parts together; where it fits the adder's width, the sum's
sign may be extended and the sum be added to another. So an element comes out as ``above + f(lane 0) + f(lane 1) +
...``, each ``f`` a table of integers, to be compared with ``weight * activation``. What cannot be read in this way is
refused.

Registers delay. Every bit has a time, and bits that meet must have the same: so products meet the sum from above that
belongs to them.
"""

import json
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from amaranth.back import rtlil

from nomul_hw.adders import ADDER, LUTS, odd_part
from nomul_hw.arithmetic import act_range
from nomul_hw.lint import find_yosys
from nomul_hw.pe import ProcessingElement

__all__ = ["Refused", "check", "netlists", "yosys"]

#: Yosys' gates: inputs and truth table, whose index has the first input as its lowest bit.
GATES = {"$_NOT_": ("A", 0b01), "$_AND_": ("AB", 0b1000), "$_OR_": ("AB", 0b1110), "$_XOR_": ("AB", 0b0110),
         "$_MUX_": ("ABS", 0b11001010)}

#: The sum from above, among lanes.
ABOVE = -1


class Refused(AssertionError):
    """An element does not add what it should, or it cannot be seen that it does."""


def yosys(folder: Path, passes: Sequence[str], **files: str) -> None:
    """Let Yosys do what a script asks for, and fail if it cannot; ``name_v`` is the text of the file ``name.v``."""
    found = find_yosys()
    if found is None:
        pytest.skip("no Yosys")
    for name, text in files.items():
        (folder / ".".join(name.rsplit("_", 1))).write_text(text, encoding="utf-8")
    done = subprocess.run([*found.program, "-p", ";".join(passes)], cwd=folder, capture_output=True, text=True,
                          timeout=3600, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]


def netlists(folder: Path, elements: Sequence[ProcessingElement]) -> list[dict[str, Any]]:
    """Make gates, adders and registers of elements, as Yosys' JSON has them."""
    names = [f"element{index}" for index in range(len(elements))]
    yosys(folder, [*(f"read_rtlil {name}.il" for name in names), "proc", "techmap t:* t:$add %d", "opt_expr",
                   "opt_clean", "write_json elements.json"],
          **{f"{name}_il": rtlil.convert(element, name=name, emit_src=False)
             for name, element in zip(names, elements, strict=True)})
    modules = json.loads((folder / "elements.json").read_text(encoding="utf-8"))["modules"]
    return [modules[name] for name in names]


@dataclass(frozen=True, eq=False)
class Bit:
    """A function of one lane: 0 or 1 for each of the lane's cases; and the cycle that it has it in."""

    lane: int
    values: npt.NDArray[np.uint8]
    time: int


@dataclass(frozen=True, eq=False)
class Word:
    """The low bits of an integer, which is the sum of functions, one of each lane."""

    parts: Mapping[Any, npt.NDArray[np.int64]]
    width: int

    @cached_property
    def ends(self) -> npt.NDArray[np.int64]:
        """The integer's range, or more."""
        return np.array([sum(end(values) for values in self.parts.values()) for end in (np.min, np.max)])

    @property
    def exact(self) -> bool:
        """Whether the bits, as a signed number, are the integer."""
        return bool(-1 << self.width - 1 <= self.ends[0] and self.ends[1] < 1 << self.width - 1)


@dataclass(frozen=True)
class Digit:
    """A bit of a word."""

    word: Word
    index: int
    time: int


Value = bool | Bit | Digit


def check(netlist: Mapping[str, Any], element: ProcessingElement, functions: Collection[tuple[int, int]],
          widest: int) -> None:
    """Check that a netlist is an element: that it adds the products of all lanes to the sum from above.

    Parameters
    ----------
    netlist : mapping
        One of :func:`netlists`.
    functions, widest : collection of (int, int), int
        Leaves that add what their text says: with which ``F`` and ``G``, and up to which width.

    Raises
    ------
    Refused
        If it does not, or if that cannot be seen.
    """
    form, lanes = element.product, range(element.lanes)
    low, high = act_range(element.act_bits)
    acts, levels = np.arange(low, high + 1), form.format.levels
    words = np.array([form.pack(level) for level in levels])
    multiples = [bit for base, width in zip(form.bases, element.widths, strict=True)
                 for bit in _bits(odd_part(base) * acts, width)]
    inputs = {
        "active": [Bit(lane, np.repeat(bit, len(acts)), 0)
                   for lane in lanes for bit in _bits(words, form.control_bits)],
        "act_i": [Bit(lane, np.tile(bit, len(words)), 0) for lane in lanes for bit in multiples],
    }
    products = np.multiply.outer(levels, acts) - form.corrections(levels)[:, None]
    expected = dict.fromkeys(lanes, products.ravel())
    if element.psum_in_bits:  # Words are added and shifted, nothing else: the ends stand for all between.
        expected[ABOVE] = np.array([-1 << element.psum_in_bits - 1, (1 << element.psum_in_bits - 1) - 1])
        inputs["psum_i"] = _digits(Word({ABOVE: expected[ABOVE]}, element.psum_in_bits), element.pipeline)

    nets = {"0": False, "1": True}
    for name, values in inputs.items():
        nets.update(zip(netlist["netnames"][name]["bits"], values, strict=True))
    total = _Reader(netlist, nets, functions, widest).values(netlist["ports"]["psum_o"]["bits"])
    if _time(total) != element.pipeline + 1:
        raise Refused("products take too many registers, or too few")
    found = _parts(total)
    if set(found) != set(expected) or any(np.any((found[lane] - expected[lane]) % (1 << len(total))) for lane in found):
        raise Refused("not the sum of the products and the sum from above")


def _bits(numbers: npt.NDArray[np.int64], width: int) -> list[npt.NDArray[np.uint8]]:
    return [(numbers >> index & 1).astype(np.uint8) for index in range(width)]


def _digits(word: Word, time: int) -> list[Value]:
    return [Digit(word, index, time) for index in range(word.width)]


def _time(values: Sequence[Value]) -> int:
    times = {value.time for value in values if not isinstance(value, bool)}
    if len(times) != 1:
        raise Refused("what meets is not of one time")
    return times.pop()


def _function(table: int, inputs: Sequence[Value]) -> Value:
    """A function of some bits, by its truth table: a constant, one of them as it is, or a function of one lane."""
    rows, needed = [table >> index & 1 for index in range(1 << len(inputs))], []
    for at, value in reversed(list(enumerate(inputs))):
        without, with_it = ([row for index, row in enumerate(rows) if index >> at & 1 == bit] for bit in (0, 1))
        if value is True or value is False:
            rows = with_it if value else without
        elif without == with_it:
            rows = without
        else:
            needed.insert(0, value)
    if not needed:
        return bool(rows[0])
    if rows == [0, 1]:
        return needed[0]
    if any(not isinstance(value, Bit) or value.lane != needed[0].lane for value in needed):
        raise Refused("a gate takes in more than one lane, or a sum of some")
    index = sum(value.values << at for at, value in enumerate(needed))
    return Bit(needed[0].lane, np.array(rows, np.uint8)[index], _time(needed))


def _parts(vector: Sequence[Value]) -> dict[Any, Any]:
    """A vector as an integer, which it equals but for a multiple of two to its width: the functions that it sums up."""
    parts: dict[Any, Any] = {}
    for at, value in enumerate(vector):
        weight = np.int64(-1 << at if at + 1 == len(vector) else 1 << at)
        if isinstance(value, Bit):
            parts[value.lane] = parts.get(value.lane, 0) + weight * value.values
        elif isinstance(value, Digit):
            return _sum(parts, _word_parts(vector[at:]), at)
        elif value:  # A constant is a function of any lane.
            parts[0] = parts.get(0, 0) + weight
    return parts


def _word_parts(vector: Sequence[Value]) -> dict[Any, Any]:
    """The same of a vector that begins in a word: the word from there on, or its low bits below a sum with the others.

    The high bits of a word are an integer, too: the word, divided and rounded down. It stands for itself, as a part
    named by the word and its first bit, until the low bits below it make the word whole.
    """
    word, first = vector[0].word, vector[0].index
    end = next((at for at, value in enumerate(vector) if not isinstance(value, Digit) or value.word is not word
                or value.index != min(first + at, word.width - 1)), len(vector))
    if end == len(vector):
        if (first or first + end > word.width) and not word.exact:
            raise Refused("a sum is wider than its adder")
        return {(word, first): word.ends >> first} if first else dict(word.parts)
    rest = _parts(vector[end:])
    if first or not np.array_equal(rest.pop((word, end), None), word.ends >> end):
        raise Refused("a vector takes in a part of a sum")
    return _sum(word.parts, rest, end)


def _sum(first: Mapping[Any, Any], second: Mapping[Any, Any], at: int = 0) -> dict[Any, Any]:
    """Add up, the second shifted."""
    return {lane: first.get(lane, 0) + (second.get(lane, 0) << at) for lane in {**first, **second}}


class _Reader:
    """Reads a netlist from its outputs on."""

    def __init__(self, netlist: Mapping[str, Any], nets: dict[Any, Value], functions: Collection[tuple[int, int]],
                 widest: int):
        self.nets, self.functions, self.widest = nets, functions, widest
        self.drivers = {bit: cell for cell in netlist["cells"].values()
                        for output in ("Y", "Q", "s", "o") for bit in cell["connections"].get(output, ())}

    def values(self, bits: Sequence[Any]) -> list[Value]:
        for bit in bits:
            if bit not in self.nets:
                self.read(self.drivers[bit])
        return [self.nets[bit] for bit in bits]

    def read(self, cell: Mapping[str, Any]) -> None:
        kind, ports = cell["type"], cell["connections"]
        if kind in GATES:
            inputs, table = GATES[kind]
            outputs, values = ports["Y"], [_function(table, [self.values(ports[name])[0] for name in inputs])]
        elif kind == "$_DFF_P_":
            outputs, (value,) = ports["Q"], self.values(ports["D"])
            values = [value if isinstance(value, bool) else replace(value, time=value.time + 1)]
        elif kind == "$add":
            outputs, values = ports["Y"], _add(*self.operands(cell))
        elif kind.startswith(LUTS):
            outputs, values = ports["o"], [_function(*place) for place in self.places(cell)]
        elif kind.startswith(ADDER):
            if len(ports["s"]) > self.widest:
                raise Refused(f"a leaf of {len(ports['s'])} bits is not proven")
            outputs, values = ports["s"], _add(*(self.lut_operands if "e" in ports else self.leaf_operands)(cell))
        else:
            raise Refused(f"a cell that is neither a gate nor an adder: {kind}")
        self.nets.update(zip(outputs, values, strict=True))

    def operands(self, cell: Mapping[str, Any]) -> list[list[Value]]:
        """What Yosys' adder adds: both operands are as wide as the sum."""
        width, *signed = (int(cell["parameters"][name], 2) for name in ("Y_WIDTH", "A_SIGNED", "B_SIGNED"))
        vectors = [self.values(cell["connections"][name]) for name in "AB"]
        return [(vector + [vector[-1] if all(signed) else False] * width)[:width] for vector in vectors]

    def leaf_operands(self, cell: Mapping[str, Any]) -> list[list[Value]]:
        """What a leaf adds: ``g(a, b)`` and ``f(b, c, d)``, with the same functions at all places."""
        f, g = (int(cell["parameters"][name], 2) for name in "FG")
        if (f, g) not in self.functions:
            raise Refused(f"a leaf with F = {f:#x} and G = {g:#x} is not proven")
        if g == 0b0110 and len(set(cell["connections"]["b"])) > 1:
            raise Refused("a leaf's sign is not the same at all places")
        places = list(zip(*(self.values(cell["connections"][name]) for name in "abcd"), strict=True))
        return [[_function(g, (a, b)) for a, b, _, _ in places], [_function(f, (b, c, d)) for _, b, c, d in places]]

    def lut_operands(self, cell: Mapping[str, Any]) -> list[list[Value]]:
        """What a leaf of LUTs adds: ``a`` and ``a ^ f(a, b, c, d, e, g)``, with a function for each place."""
        places = self.places(cell)
        return [[inputs[0] for _, inputs in places],
                [_function(table ^ 0xaaaa_aaaa_aaaa_aaaa, inputs) for table, inputs in places]]

    def places(self, cell: Mapping[str, Any]) -> list[tuple[int, Sequence[Value]]]:
        """Table and inputs of LUTs beside each other."""
        tables = int(cell["parameters"]["F"], 2)
        inputs = zip(*(self.values(cell["connections"][name]) for name in "abcdeg"), strict=True)
        return [(tables >> 64 * at & (1 << 64) - 1, values) for at, values in enumerate(inputs)]


def _add(left: Sequence[Value], right: Sequence[Value]) -> list[Value]:
    """Add two vectors as wide as their sum: of one lane, the sum is a function of it like any other."""
    parts, time = _sum(_parts(left), _parts(right)), _time([*left, *right])
    (lane, numbers), *others = parts.items()
    if not others and isinstance(lane, int) and lane != ABOVE:
        return [Bit(lane, bit, time) for bit in _bits(numbers, len(left))]
    return _digits(Word(parts, len(left)), time)
