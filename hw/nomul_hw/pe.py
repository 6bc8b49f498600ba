"""The processing element, and the two things around the array that it relies on.

One parameterised element serves every format: sign/zero logic for ternary weights, a barrel shifter for powers of two,
a select in front of it where a format has several odd multiples, and a sum of Booth rows for the multiplier baseline.
It never multiplies and never negates: see :mod:`nomul_hw.product`.
"""

from amaranth.hdl import Cat, Const, Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .adders import Factor, choose, fabric_sum, factors, fields, multiple_bits, odd_part
from .fabric import FABRICS
from .product import ProductForm

__all__ = ["Multiples", "ProcessingElement", "WeightDecoder", "balanced_sum", "plain_sum",
           "raw_products"]


class Multiples(wiring.Component):
    """The odd multiples of one activation, computed once per array row.

    Combinational: an adder or two per multiple above 1 (none for powers of two).

    Parameters
    ----------
    product : ProductForm
        Its bases say which multiples.
    act_bits : int
        Width of the activation.

    Members
    -------
    act : In(signed(act_bits))
        The activation.
    multiples : Out(sum of multiple_bits)
        Its multiples, least significant first.
    """

    def __init__(self, *, product: ProductForm, act_bits: int):
        self.product = product
        self.act_bits = act_bits
        self.widths = multiple_bits(product, act_bits)
        super().__init__({"act": In(signed(act_bits)), "multiples": Out(sum(self.widths))})

    def elaborate(self, platform):
        m = Module()
        multiples = []
        for base, width in zip(self.product.bases, self.widths, strict=True):
            multiple = Signal(signed(width), name=f"times_{odd_part(base)}")
            m.d.comb += multiple.eq(self._times(odd_part(base)))
            multiples.append(multiple)
        m.d.comb += self.multiples.eq(Cat(multiples))
        return m

    def _times(self, odd: int):
        """Add up the signed binary digits (non-adjacent form) of ``odd``."""
        total, at = None, 0
        positive, negative = [], []
        while odd:
            if odd & 1:
                digit = 2 - (odd & 3)
                (positive if digit > 0 else negative).append(self.act << at)
                odd -= digit
            odd >>= 1
            at += 1
        for value in positive:
            total = value if total is None else total + value
        for value in negative:
            total = total - value
        return total


class WeightDecoder(wiring.Component):
    """Turns a weight's code into the control word that a processing element stores. Combinational.

    Parameters
    ----------
    product : ProductForm
        Format and kind of the elements.

    Members
    -------
    code : In(format.bits)
        The code from weight memory.
    controls : Out(product.control_bits)
        Control words of the product's terms, least significant first.
    """

    def __init__(self, *, product: ProductForm):
        self.product = product
        super().__init__({"code": In(product.format.bits), "controls": Out(product.control_bits)})

    def elaborate(self, platform):
        m = Module()
        if self.product.kind == "multiplier":
            extended = Cat(Const(0, 1), self.code, self.code[-1])  # the bit right of the weight, and its sign
            at = 0
            for term in self.product.terms:
                with m.Switch(extended[term.offset:term.offset + 3]):
                    for index in range(8):
                        with m.Case(index):
                            word = term.pack(self.product.booth_digit(index))
                            m.d.comb += self.controls[at:at + term.control_bits].eq(word)
                at += term.control_bits
        else:
            with m.Switch(self.code):
                for code, level in enumerate(self.product.format.code_levels):
                    if level is not None:
                        with m.Case(code):
                            m.d.comb += self.controls.eq(self.product.pack(level))
        return m


class ProcessingElement(wiring.Component):
    """Weight-stationary processing element without a multiplier.

    Each cycle ``psum_o <= psum_i + sum(raw product of every lane)`` and ``act_o <= act_i``: the latency of both paths
    is one cycle, and products are ``pipeline`` cycles late: ``psum_i`` belongs to the activations of so many cycles
    before. ``load`` captures a weight into the shadow register, ``swap`` makes the shadow the active weight from
    the next cycle on; both travel to the right beside the activations. A load and a swap in one cycle are legal: the
    weight that becomes active is the one loaded before. There is no flow control, the array that owns the element
    skews its inputs; sums wrap, their width is chosen so that they cannot.

    Parameters
    ----------
    product : ProductForm
        How ``w * x`` is formed.
    lanes : int
        Products per cycle.
    act_bits : int
        Width of an activation.
    psum_in_bits, psum_out_bits : int
        Widths of the partial sums from above and to below; 0 above for the first row.
    pipeline : int
        Registers on the way of a product to the sum from above. The last of them holds the sum of all products. With
        2, the products are registered too, with 3 sums of a part of them as well. An element of one product has
        one at most; the family decides what part of the shifter is left behind it.
    family : str, optional
        One of :data:`nomul_hw.fabric.FABRICS`; without, there are operators alone.

    Raises
    ------
    ValueError
        If the family is unknown or the pipeline too long.

    Members
    -------
    act_i, act_o : In, Out(lanes * sum of multiple_bits)
        Activation multiples of all lanes, from the left and to the right.
    load_i, load_o, swap_i, swap_o : In, Out(1)
        Weight strobes, from the left and to the right.
    weight_i : In(lanes * control_bits)
        Control words from the column's bus.
    psum_i, psum_o : In, Out(signed)
        Partial sums, from above and to below.
    """

    def __init__(self, *, product: ProductForm, lanes: int, act_bits: int, psum_in_bits: int, psum_out_bits: int,
                 pipeline: int = 0, family: str | None = None):
        if family is not None and family not in FABRICS:
            raise ValueError(f"family must be one of {', '.join(FABRICS)}, not {family!r}")
        if not 0 <= pipeline <= product.max_pipeline(lanes):
            raise ValueError(f"pipeline must be in 0..{product.max_pipeline(lanes)} for {lanes} lanes of "
                             f"{product.format.name}, not {pipeline}")
        self.pipeline = pipeline
        self.family = family
        self.product = product
        self.lanes = lanes
        self.act_bits = act_bits
        self.widths = multiple_bits(product, act_bits)
        self.act_bundle_bits = lanes * sum(self.widths)
        self.weight_bits = lanes * product.control_bits
        super().__init__({
            "act_i": In(self.act_bundle_bits),
            "act_o": Out(self.act_bundle_bits),
            "load_i": In(1),
            "load_o": Out(1),
            "swap_i": In(1),
            "swap_o": Out(1),
            "weight_i": In(self.weight_bits),
            **({"psum_i": In(signed(psum_in_bits))} if psum_in_bits else {}),
            "psum_o": Out(signed(psum_out_bits)),
        })
        self.psum_in_bits = psum_in_bits

    def elaborate(self, platform):
        m = Module()
        passing = Signal(self.act_bundle_bits, reset_less=True)
        shadow = Signal(self.weight_bits, reset_less=True)
        active = Signal(self.weight_bits, reset_less=True)
        psum = Signal.like(self.psum_o, reset_less=True)
        m.d.comb += [self.act_o.eq(passing), self.psum_o.eq(psum)]
        m.d.sync += [passing.eq(self.act_i), self.load_o.eq(self.load_i), self.swap_o.eq(self.swap_i)]
        with m.If(self.load_i):
            m.d.sync += shadow.eq(self.weight_i)
        with m.If(self.swap_i):
            m.d.sync += active.eq(shadow)

        lanes = [factors(self.product, self.act_bits, f"lane_{lane}",
                         active.word_select(lane, self.product.control_bits),
                         self.act_i.word_select(lane, sum(self.widths))) for lane in range(self.lanes)]
        above = self.psum_i if self.psum_in_bits else None
        if self.family is None:
            total = plain_sum(m, lanes, above, self.pipeline)
        else:
            total = fabric_sum(m, self.family, lanes, above, len(psum), self.pipeline)
        m.d.sync += psum.eq(total)
        return m


def plain_sum(m: Module, lanes: list[list[Factor]], above, pipeline: int):
    """Add the raw products of all lanes and the sum from above with operators alone."""
    def registered(name: str, value):
        register = Signal.like(value, name=name, reset_less=True)
        m.d.sync += register.eq(value)
        return register

    addends = [_term(m, factor) for terms in lanes for factor in terms]
    if pipeline > 1:
        addends = [registered(f"product_{index}", each) for index, each in enumerate(addends)]
    if pipeline > 2:
        half = 1 << (len(addends) - 1).bit_length() + 1 >> 1
        addends = [registered(f"part_{at}", balanced_sum(addends[at:at + half]))
                   for at in range(0, len(addends), half)]
    products = balanced_sum(addends)
    if pipeline:
        products = registered("products", products)
    return products if above is None else above + products  # last, since it is wider than the products are


def raw_products(m: Module, name: str, product: ProductForm, act_bits: int, controls, bundle) -> list:
    """Form the terms of one raw product (:mod:`nomul_hw.product`), combinationally; their sum is the product.

    Parameters
    ----------
    name : str
        Prefix of the signals.
    controls : Value
        The weight's control words.
    bundle : Value
        The activation's odd multiples, as :class:`Multiples` makes them.
    """
    return [_term(m, factor) for factor in factors(product, act_bits, name, controls, bundle)]


def _term(m: Module, factor: Factor):
    """One term as plain logic: select, gate, shift, invert.

    Every stage is a named signal, since a shared expression would be emitted once per use.
    """
    name, term, of = factor.name, factor.term, fields(factor.term, factor.controls)
    chosen = choose(term, of.select, factor.multiples)
    value = Signal(signed(len(chosen)), name=f"{name}_gated")
    m.d.comb += value.eq(chosen & of.nonzero.replicate(len(chosen)).as_signed() if term.zero else chosen)
    if term.shift_bits:
        # One operator, not a stage per bit: synthesis makes the same stages of it, simulators a single instruction.
        shifted = Signal(signed(len(value) + term.shifts - 1), name=f"{name}_shifted")
        m.d.comb += shifted.eq(value << of.shift)
        value = shifted
    inverted = Signal.like(value, name=f"{name}_inverted")
    m.d.comb += inverted.eq(value ^ of.negative.replicate(len(value)).as_signed())
    return Cat(Const(0, term.offset), inverted).as_signed() if term.offset else inverted


def balanced_sum(values):
    """Add values up in a tree of minimal depth."""
    values = list(values)
    while len(values) > 1:
        values = [values[i] + values[i + 1] if i + 1 < len(values) else values[i] for i in range(0, len(values), 2)]
    return values[0]
