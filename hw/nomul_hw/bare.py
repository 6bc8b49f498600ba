"""Elements by themselves, to be measured: one, or a column of them as an array builds it."""

from itertools import pairwise

from amaranth.hdl import Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .pe import ProcessingElement
from .product import ProductForm

__all__ = ["Column", "PlainElement", "bare_element"]

_ACT_BITS = 8


class _Product(wiring.Component):
    """``w * x``, in a module of its own: a synthesizer that merges it with the sum makes more of it."""

    def __init__(self, bits: int):
        super().__init__({"w": In(signed(bits)), "x": In(signed(_ACT_BITS)), "y": Out(signed(bits + _ACT_BITS))})

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.y.eq(self.w * self.x)
        return m


class PlainElement(wiring.Component):
    """An element that multiplies with ``*``: the baseline that a synthesizer is left alone with.

    Parameters
    ----------
    bits, lanes : int
        Width of a weight, products per cycle.
    psum_in_bits, psum_out_bits : int
        As of :class:`nomul_hw.pe.ProcessingElement`.
    """

    def __init__(self, bits: int, lanes: int, psum_in_bits: int, psum_out_bits: int):
        self.bits, self.lanes = bits, lanes
        self.act_bundle_bits, self.weight_bits, self.psum_in_bits = lanes * _ACT_BITS, lanes * bits, psum_in_bits
        super().__init__({
            "act_i": In(self.act_bundle_bits), "act_o": Out(self.act_bundle_bits),
            "load_i": In(1), "load_o": Out(1), "swap_i": In(1), "swap_o": Out(1), "weight_i": In(self.weight_bits),
            **({"psum_i": In(signed(psum_in_bits))} if psum_in_bits else {}), "psum_o": Out(signed(psum_out_bits)),
        })

    def elaborate(self, platform):
        m = Module()
        shadow, active = Signal(self.weight_bits, reset_less=True), Signal(self.weight_bits, reset_less=True)
        m.d.sync += [self.act_o.eq(self.act_i), self.load_o.eq(self.load_i), self.swap_o.eq(self.swap_i)]
        with m.If(self.load_i):
            m.d.sync += shadow.eq(self.weight_i)
        with m.If(self.swap_i):
            m.d.sync += active.eq(shadow)
        total = self.psum_i if self.psum_in_bits else 0
        for lane in range(self.lanes):
            m.submodules[f"product_{lane}"] = product = _Product(self.bits)
            m.d.comb += [product.w.eq(active.word_select(lane, self.bits)),
                         product.x.eq(self.act_i.word_select(lane, _ACT_BITS))]
            total = total + product.y
        m.d.sync += self.psum_o.eq(total)
        return m


def bare_element(form: ProductForm, lanes: int, family: str | None, psum_in_bits: int, psum_out_bits: int,
                 plain: bool = False) -> wiring.Component:
    """Make an element of a form, or one that multiplies with ``*``."""
    if plain:
        return PlainElement(form.format.bits, lanes, psum_in_bits, psum_out_bits)
    return ProcessingElement(product=form, lanes=lanes, act_bits=_ACT_BITS, psum_in_bits=psum_in_bits,
                             psum_out_bits=psum_out_bits, family=family)


class Column(wiring.Component):
    """A column of elements, sums growing with the row; all other ports lie beside each other, row after row."""

    def __init__(self, form: ProductForm, lanes: int, family: str | None, rows: int, plain: bool = False):
        widths = [0, *(form.sum_bits((row + 1) * lanes, _ACT_BITS) for row in range(rows))]
        self.elements = [bare_element(form, lanes, family, above, below, plain)
                         for above, below in pairwise(widths)]
        first = self.elements[0]
        self.ports = {"act_i": first.act_bundle_bits, "load_i": 1, "swap_i": 1, "weight_i": first.weight_bits}
        self.outputs = {"act_o": first.act_bundle_bits, "load_o": 1, "swap_o": 1}
        super().__init__({
            **{name: In(rows * width) for name, width in self.ports.items()},
            **{name: Out(rows * width) for name, width in self.outputs.items()},
            "psum_o": Out(signed(widths[-1])),
        })

    def elaborate(self, platform):
        m = Module()
        for row, element in enumerate(self.elements):
            m.submodules[f"row_{row}"] = element
            m.d.comb += [getattr(element, name).eq(getattr(self, name).word_select(row, width))
                         for name, width in self.ports.items()]
            m.d.comb += [getattr(self, name).word_select(row, width).eq(getattr(element, name))
                         for name, width in self.outputs.items()]
            if row:
                m.d.comb += element.psum_i.eq(self.elements[row - 1].psum_o)
        m.d.comb += self.psum_o.eq(self.elements[-1].psum_o)
        return m
