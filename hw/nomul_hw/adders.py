"""Sums of raw products in the form that suits a family of chips.

The plain form, ``psum + product``, is what :mod:`nomul_hw.pe` writes when it knows nothing about the chip. Synthesis
makes three things of it that it need not be: logic in front of carry chains whose own LUTs have inputs to spare,
compressors instead of a carry chain per sum, and inversions where they do not merge with anything. So for a family
whose :class:`~nomul_hw.fabric.Fabric` is known, sums are made of a leaf module, ``nomul_adder_<family>``, that
instantiates the family's carry cells and has a second text for simulators: ``leaves/adder.v``, around the cells in
``leaves/<family>.v``.

A leaf adds two vectors that are functions of others, bit by bit:

    s = g(a, b) + f(b, c, d)

What a fabric says is how much of a product it should leave to ``f``: on ECP5, where a LUT in front of the carry has two
inputs beside the operand, the last stage of the shifter or the sign and the gate of a ternary weight; on others little
or nothing. On Xilinx' 7 series it has five, so that more fits than one function can say: its leaf, all of
``leaves/xilinx.v``, has a function for each place, which :mod:`nomul_hw.luts` composes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from operator import and_, xor
from typing import Any

from amaranth.hdl import Cat, Const, Instance, Module, Mux, Signal

from .arithmetic import signed_bits
from .fabric import FABRICS
from .luts import Bit, Cover, mux
from .product import ProductForm, Term

__all__ = ["ADDER", "Factor", "choose", "fabric_sum", "factors", "fields", "leaf", "multiple_bits", "odd_part"]

#: Name of the leaf modules, less the family.
ADDER = "nomul_adder_"

#: Likewise of the leaf of LUTs alone.
LUTS = "nomul_luts_"

#: Truth tables of ``f``, a bit for each value of ``{d, c, b}``. It must be 0 where c = d = 0: a carry cell of ECP5
#: takes its carry from what its LUT would be without c and d.
_PLAIN, _SIGN, _MUX, _OTHER_SIGN = (
    sum(bool(table(index & 1, index >> 1 & 1, index >> 2)) << index for index in range(8))
    for table in (lambda b, c, d: b & (c | d), lambda b, c, d: b & c ^ d, lambda b, c, d: b if c else d,
                  lambda b, c, d: c ^ d))

#: Truth tables of ``g``, a bit for each value of ``{b, a}``: a, and a inverted by b.
_LEFT, _LEFT_SIGN = 0b1010, 0b0110


def leaf(family: str) -> str:
    """Verilog of a family's leaf module."""
    texts = resources.files(__package__).joinpath("leaves")
    if FABRICS[family].fused == "lut":
        return texts.joinpath(f"{family}.v").read_text(encoding="utf-8")
    module, cells = (texts.joinpath(name).read_text(encoding="utf-8") for name in ("adder.v", f"{family}.v"))
    return module.replace("FAMILY", family).replace("CELLS\n", cells)


# Parts of a product ----------------------------------------------------------------------------------------------


def odd_part(base: int) -> int:
    """The odd multiple that travels along the row for a base; the rest of the base is wiring."""
    return base // (base & -base)


def multiple_bits(product: ProductForm, act_bits: int) -> list[int]:
    """Widths of an activation's odd multiples, in the order of ``product.bases``."""
    return [act_bits + (odd_part(base) - 1).bit_length() for base in product.bases]


@dataclass(frozen=True)
class _Fields:
    """A control word taken apart; ``nonzero`` is None where the term cannot be zero."""

    negative: Any
    nonzero: Any
    shift: Any
    select: Any


def fields(term: Term, controls: Any) -> _Fields:
    """Take a term's control word apart."""
    at = 1 + term.zero
    return _Fields(controls[0], controls[1] if term.zero else None, controls[at:at + term.shift_bits],
                   controls[at + term.shift_bits:])


def choose(term: Term, select: Any, multiples: Sequence[Any]) -> Any:
    """Select the base; the result is signed, and as wide as the widest."""
    candidates = [Cat(Const(0, (base & -base).bit_length() - 1), multiple).as_signed()
                  for base, multiple in zip(term.bases, multiples, strict=True)]
    chosen = candidates[-1]
    for index in reversed(range(len(candidates) - 1)):
        chosen = Mux(select == index, candidates[index], chosen)
    return chosen


# Operands of adders ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Operand:
    """What an adder adds: a function, bit by bit, of three vectors of one width; all ``offset`` places to the left.

    ``made_of`` says of which products it is the sum.
    """

    table: int
    b: Any
    c: Any
    d: Any
    made_of: tuple["Factor", ...]
    offset: int

    @property
    def value(self) -> Any:
        """The function as logic, for where there is no adder."""
        return {_PLAIN: self.b, _SIGN: self.b & self.c ^ self.d,
                _MUX: self.b & self.c | self.d & ~self.c}[self.table]


def _bits(made_of: Sequence["Factor"], offset: int) -> int:
    """Width of a sum of products, whose lowest ``offset`` bits are left out.

    Digits of one weight are not independent: their sum is narrower than that of as many others.
    """
    together = [made_of] if len({factor.weight for factor in made_of}) == 1 else [[factor] for factor in made_of]
    bounds = [some[0].form.bounds(some[0].act_bits, tuple(factor.index for factor in some)) for some in together]
    low, high = (sum(ends) >> offset for ends in zip(*bounds, strict=True))
    return signed_bits(low, high)


def _extended(value: Any, width: int) -> Any:
    """Sign-extend or cut a vector."""
    return Cat(value[:width], value[-1].replicate(max(0, width - len(value))))


class _Sum:
    """Builds the sums of one element: names signals and instances, and places registers."""

    def __init__(self, m: Module, family: str) -> None:
        self.m = m
        self.family = family
        self.fabric = FABRICS[family]
        self.adders = 0

    def named(self, name: str, value: Any, *, register: bool = False) -> Any:
        """Give a vector a name, or a register."""
        signal = Signal(len(value), name=name, reset_less=True)
        self.m.d["sync" if register else "comb"] += signal.eq(value)
        return signal

    def add(self, left: Any, right: _Operand, width: int, *, left_sign: Any = None) -> Any:
        """Instantiate an adder; returns the sum, ``width`` bits of it.

        Parameters
        ----------
        left_sign : optional
            A bit that inverts what of ``left`` is added to; then ``right`` must be a value and its sign.
        """
        index, self.adders = self.adders, self.adders + 1
        at, rest = right.offset, width - right.offset
        left = _extended(left, width)
        b, c, d = (_extended(vector, rest) for vector in (right.b, right.c, right.d))
        table, head = right.table, _LEFT
        if left_sign is not None:
            table, head = _OTHER_SIGN, _LEFT_SIGN
            b, c = left_sign.replicate(rest), b
        total = Signal(rest, name=f"sum_{index}")
        self.m.submodules[f"adder_{index}"] = Instance(
            ADDER + self.family, p_WIDTH=rest, p_F=Const(table, 8), p_G=Const(head, 4),
            i_a=left[at:], i_b=b, i_c=c, i_d=d, o_s=total)
        return Cat(left[:at], total)

    def plain(self, value: Any, made_of: tuple["Factor", ...], offset: int) -> _Operand:
        """A vector as it stands."""
        return _Operand(_PLAIN, value, Const(1, 1).replicate(len(value)), Const(0, len(value)), made_of, offset)

    def operand(self, factor: "Factor", *, register: bool, sign_last: bool = False) -> _Operand:
        """Form a product as far as an adder cannot.

        Parameters
        ----------
        register : bool
            Whether what is left to the adder is registered.
        sign_last : bool
            Leave the inversion to the adder, and nothing else.
        """
        name, term, of = factor.name, factor.term, fields(factor.term, factor.controls)
        widest = _bits([factor], term.offset)
        fused = "sign" if sign_last else self.fabric.fused
        shifts = [1 << stage for stage in range(term.shift_bits)]
        last = shifts.pop() if fused == "stage" and shifts else 0
        stages = [0] * (len(term.bases) > 1) + shifts  # 0: the selection of the base
        if fused == "stage" and not last:
            invert, gate = None, None
        elif fused == "sign":
            invert, gate = None, min(1, len(stages))
        else:  # Each takes a LUT input: a stage for each, or for want of stages both in front of them.
            invert, gate = (1, 2) if len(stages) > 1 or (stages and not term.zero) else (0, 0)
        value, inverted = Cat(choose(term, of.select, factor.multiples)), False

        def finish(done: int, value: Any) -> Any:
            nonlocal inverted
            if invert == done:
                value, inverted = value ^ of.negative.replicate(len(value)), True
            return value & of.nonzero.replicate(len(value)) if term.zero and gate == done else value

        def source(shift: int) -> Any:
            """What a stage shifts: where that is its only shift, what no stage before it shifts then."""
            return value if unshifted is None or term.shifts != shift + 1 else unshifted

        unshifted = value = finish(0, value)
        for done, shift in enumerate(stages, 1):
            if shift:
                value = self.named(f"{name}_before_{shift}", value)
                width = min(len(value) + shift, widest)
                fill = of.negative.replicate(shift) if inverted else Const(0, shift)
                control = of.shift[shift.bit_length() - 1]
                value = Mux(control, _extended(Cat(fill, source(shift)), width), _extended(value, width))
            value = finish(done, value)
            if not shift:
                unshifted = value
            elif done in (invert, gate):
                unshifted = None
        value = self.named(f"{name}_formed", value, register=register)
        if register:
            unshifted = None

        def later(label: str, bit: Any) -> Any:
            return self.named(f"{name}_{label}", bit, register=True) if register else bit

        rest = ((factor,), term.offset)
        if last:
            width = min(len(value) + last, widest)
            return _Operand(_MUX, _extended(Cat(later("fill", of.negative).replicate(last), source(last)), width),
                            later("last", of.shift[-1]).replicate(width), _extended(value, width), *rest)
        if invert is None:
            passes = later("nonzero", of.nonzero) if term.zero and gate is None else Const(1, 1)
            return _Operand(_SIGN, value, passes.replicate(len(value)),
                            later("negative", of.negative).replicate(len(value)), *rest)
        return self.plain(value, *rest)

    def chain(self, factors: Sequence["Factor"], *, register: bool) -> _Operand:
        """Add products one after the other, to a vector that has the first one's offset."""
        # What is added to has to be formed whole, unless all but its sign is little and the adder has room for both
        # signs.
        pair = self.fabric.signs and len(factors) > 1 and all(_is_little(each.term) for each in factors[:2])
        first, *others = [self.operand(factor, register=register, sign_last=pair and index < 2)
                          for index, factor in enumerate(factors)]
        base, made_of = first.offset, first.made_of
        others = [replace(operand, offset=operand.offset - base) for operand in others]
        total, sign = (first.b, first.d[0]) if pair else (first.value, None)
        for operand in others:
            made_of += operand.made_of
            total, sign = self.add(total, operand, _bits(made_of, base), left_sign=sign), None
        if pair and others[0].offset:  # of the first product, places that nothing was added to lack their sign
            signs = _extended(Cat(first.d[:others[0].offset], Const(0, 1)), len(total))
            return _Operand(_SIGN, total, Const(1, 1).replicate(len(total)), signs, made_of, base)
        return self.plain(total, made_of, base)

    def tree(self, sums: Sequence[_Operand]) -> _Operand:
        """Add vectors in a tree."""
        sums = list(sums)
        while len(sums) > 1:
            sums = [self._both(*sums[at:at + 2]) if at + 1 < len(sums) else sums[at] for at in range(0, len(sums), 2)]
        return sums[0]

    def _both(self, left: _Operand, right: _Operand) -> _Operand:
        base, made_of = left.offset, left.made_of + right.made_of
        right = replace(right, offset=right.offset - base)
        return self.plain(self.add(left.value, right, _bits(made_of, base)), made_of, base)

    def registered(self, name: str, operand: _Operand) -> _Operand:
        """Put a register behind a vector."""
        return self.plain(self.named(name, operand.value, register=True), operand.made_of, operand.offset)

    def result(self, total: _Operand, psum: Any, width: int) -> Any:
        """Add the sum of the products to the one from above, if there is one."""
        return self.add(psum, total, width) if psum is not None else _extended(total.value, width)


@dataclass(frozen=True)
class _Places:
    """What an adder of LUTs adds: a function for each place. Otherwise as :class:`_Operand`."""

    value: Sequence[Bit]
    made_of: tuple["Factor", ...]
    offset: int


class _LutSum(_Sum):
    """As :class:`_Sum`, of a family whose adders' LUTs are written down: each takes in what it has room for."""

    def __init__(self, m: Module, family: str) -> None:
        super().__init__(m, family)
        self.cover = Cover(6)

    def add(self, left: Sequence[Bit], right: _Places, width: int, *, left_sign: Any = None) -> Any:
        index, self.adders = self.adders, self.adders + 1
        at, rest = right.offset, width - right.offset
        places = []
        for first, second in zip(_sized(left, width)[at:], _sized(right.value, rest), strict=True):
            signals, table = second.spread(5)
            differ = sum((table >> value & 1 ^ bit) << 2 * value + bit for value in range(32) for bit in range(2))
            places.append(([self.cover.wire(first).wire, *signals], differ))
        total = Signal(rest, name=f"sum_{index}")
        self.m.submodules[f"adder_{index}"] = self._leaf(ADDER, places, o_s=total)
        return [*left[:at], *self.cover.bits(total)]

    def _leaf(self, leaf: str, places: Sequence[tuple[Sequence[Any], int]], **output: Any) -> Instance:
        """Instantiate a leaf that has six inputs and a table at each place."""
        tables = sum(table << 64 * place for place, (_, table) in enumerate(places))
        inputs = {f"i_{port}": Cat(signals[number] for signals, _ in places) for number, port in enumerate("abcdeg")}
        return Instance(leaf + self.family, p_WIDTH=len(places), p_F=Const(tables, 64 * len(places)), **inputs,
                        **output)

    def plain(self, value: Any, made_of: tuple["Factor", ...], offset: int) -> Any:
        return _Places(value, made_of, offset)

    def operand(self, factor: "Factor", *, register: bool, sign_last: bool = False) -> Any:
        name, term, of = factor.name, factor.term, fields(factor.term, factor.controls)
        widest, cover = _bits([factor], term.offset), self.cover

        def bits(label: str, value: Any) -> list[Bit]:
            return cover.bits(self.named(f"{name}_{label}", value)) if len(value) else []

        def chosen(control: Bit, one: Sequence[Bit], zero: Sequence[Bit], spare: int = 0) -> list[Bit]:
            width = min(max(len(one), len(zero)), widest)
            return [cover.apply(mux, control, *pair, spare=spare)
                    for pair in zip(_sized(one, width), _sized(zero, width), strict=True)]

        options = [[*[Bit(0)] * ((base & -base).bit_length() - 1), *bits(f"times_{odd_part(base)}", multiple)]
                   for base, multiple in zip(term.bases, factor.multiples, strict=True)]
        for control in bits("select", of.select):
            options = [chosen(control, *reversed(options[at:at + 2])) if at + 1 < len(options) else options[at]
                       for at in range(0, len(options), 2)]
        value = unshifted = options[0]
        for stage, control in enumerate(bits("shift", of.shift)):
            source = unshifted if term.shifts == (1 << stage) + 1 else value  # if no other shift goes with this one
            last = stage + 1 == term.shift_bits  # to which come the gate, the sign, and the sum from above
            value = chosen(control, [*[Bit(0)] * (1 << stage), *source], value, 2 + term.zero if last else 0)
        for passes in bits("nonzero", of.nonzero) if term.zero else ():
            value = [cover.apply(and_, bit, passes) for bit in value]
        for negative in bits("negative", of.negative):
            value = [cover.apply(xor, bit, negative, spare=1) for bit in value]
        formed = _Places(value, (factor,), term.offset)
        return self.registered(f"{name}_formed", formed) if register else formed

    def registered(self, name: str, operand: Any) -> Any:
        return replace(operand, value=self.cover.bits(self.named(name, self._wires(operand.value), register=True)))

    def _wires(self, bits: Sequence[Bit]) -> Any:
        return Cat(self.cover.wire(bit).wire for bit in bits)

    def result(self, total: Any, psum: Any, width: int) -> Any:
        bits = total.value if psum is None else self.add(self.cover.bits(self.named("above", psum)), total, width)
        value = self._wires(_sized(bits, width))
        # A leaf for each level: simulators take a vector that drives part of itself for a loop.
        level: dict[str, int] = {}
        for bit, lut in self.cover.luts.items():
            level[lut.names[0]] = 1 + max(level.get(name, 0) for name in bit.names)
        for depth in sorted(set(level.values())):
            luts = {bit: lut.wire for bit, lut in self.cover.luts.items() if level[lut.names[0]] == depth}
            self.m.submodules["luts" if depth == 1 else f"luts_{depth}"] = self._leaf(
                LUTS, [bit.spread(6) for bit in luts], o_o=Cat(luts.values()))
        return value


def _sized(bits: Sequence[Bit], width: int) -> list[Bit]:
    """Sign-extend or cut."""
    return [*bits[:width], *[bits[-1]] * (width - len(bits))]


def _is_little(term: Term) -> bool:
    """Whether all but the sign of a term is one LUT for a bit, or nothing at all."""
    return len(term.bases) == 1 and term.shift_bits == term.zero


@dataclass(frozen=True)
class Factor:
    """One term of one weight: a control word, and the odd multiples that it chooses from.

    Attributes
    ----------
    weight : str
        Name of the weight.
    form : ProductForm
        Its product.
    index : int
        Which of the product's terms.
    act_bits : int
    controls : Value
        The term's control word.
    multiples : sequence of Value
    """

    weight: str
    form: ProductForm
    index: int
    act_bits: int
    controls: Any
    multiples: Sequence[Any]

    @property
    def name(self) -> str:
        """For signals."""
        return f"{self.weight}_term_{self.index}"

    @property
    def term(self) -> Term:
        """What it does."""
        return self.form.terms[self.index]


def factors(product: ProductForm, act_bits: int, name: str, controls: Any, bundle: Any) -> list[Factor]:
    """Take apart what makes one raw product.

    Parameters
    ----------
    name : str
        Of the weight.
    controls : Value
        The weight's control words.
    bundle : Value
        The activation's odd multiples, as :class:`nomul_hw.pe.Multiples` makes them.
    """
    multiples, at = [], 0
    for width in multiple_bits(product, act_bits):
        multiples.append(bundle[at:at + width])
        at += width
    found, at = [], 0
    for index, term in enumerate(product.terms):
        found.append(Factor(name, product, index, act_bits, controls[at:at + term.control_bits], multiples))
        at += term.control_bits
    return found


def fabric_sum(m: Module, family: str, lanes: Sequence[Sequence[Factor]], psum: Any, width: int,
               pipeline: int) -> Any:
    """Add the raw products of all lanes, and the sum from above.

    Parameters
    ----------
    family : str
        One of :data:`nomul_hw.fabric.FABRICS`.
    lanes : sequence of sequence of Factor
        The terms of every lane.
    psum : Value or None
        The sum from above.
    width : int
        Of the result.
    pipeline : int
        Registers on the way of the products: see :class:`nomul_hw.pe.ProcessingElement`.
    """
    build = (_LutSum if FABRICS[family].fused == "lut" else _Sum)(m, family)
    if sum(map(len, lanes)) == 1:
        total = build.operand(lanes[0][0], register=pipeline > 0)
    else:
        length = build.fabric.chain
        if len(lanes[0]) > 1 and not build.fabric.signs:
            length = 8  # nothing but the first of a chain has to be formed by itself
        if len(lanes) > 1:
            lanes = list(zip(*lanes, strict=True))  # digits of one place first: so sums stay narrow
            length = min(length, 2) if pipeline > 2 else length  # long chains are slow
        chains = [terms[at:at + length] for terms in lanes for at in range(0, len(terms), length)]
        sums = [build.chain(chain, register=pipeline > 1) for chain in chains]
        if pipeline > 2:
            sums = [build.registered(f"chain_{index}", each) for index, each in enumerate(sums)]
        total = build.tree(sums)
        if pipeline:
            total = build.registered("products", total)
    return build.result(total, psum, width).as_signed()
