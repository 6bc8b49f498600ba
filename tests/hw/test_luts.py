"""Functions of few bits: composed as they should be, and never larger than a LUT."""

from operator import and_, xor

import numpy as np
from amaranth.hdl import Signal

from nomul_hw.luts import Bit, Cover, mux


def value(bit: Bit, cover: Cover, inputs: dict[str, int]) -> int:
    """A function's value, LUTs in between included."""
    inner = {lut.names[0]: function for function, lut in cover.luts.items()}
    return bit.table >> sum((value(inner[name], cover, inputs) if name in inner else inputs[name]) << at
                            for at, name in enumerate(bit.names)) & 1


def test_random_functions():
    """Trees of functions of ten signals, in LUTs of four inputs and of six."""
    rng = np.random.default_rng(1)
    for size in (4, 6):
        for _ in range(30):
            cover = Cover(size)
            bits = cover.bits(Signal(10, name="x"))
            said = [lambda x, at=at: x[at] for at in range(10)]
            for _ in range(20):
                function, count = ((and_, 2), (xor, 2), (mux, 3))[rng.integers(3)]
                chosen, spare = rng.integers(len(bits), size=count), int(rng.integers(size - 2))
                bits.append(cover.apply(function, *(bits[at] for at in chosen), spare=spare))
                said.append(lambda x, function=function, parts=[said[at] for at in chosen]: function(
                    *(part(x) for part in parts)))
                assert len(bits[-1].names) <= size - spare
            assert all(len(bit.names) <= size for bit in cover.luts)
            for x in rng.integers(2, size=(20, 10)).tolist():
                inputs = {f"x[{at}]": bit for at, bit in enumerate(x)}
                assert [value(bit, cover, inputs) for bit in bits] == [each(x) for each in said]


def test_what_does_not_matter():
    """Constants and equal inputs leave no trace; what is a signal already needs no LUT."""
    cover = Cover(6)
    one, other = cover.bits(Signal(2, name="x"))
    assert cover.apply(mux, one, other, other) == other
    assert cover.apply(and_, one, Bit(0)) == Bit(0)
    assert cover.apply(xor, one, Bit(1)).table == 0b01
    assert cover.wire(other) is other and cover.wire(Bit(0)) == Bit(0) and not cover.luts
    both = cover.apply(and_, one, other)
    assert cover.wire(both) is cover.wire(cover.apply(and_, one, other)) and len(cover.luts) == 1
    assert both.spread(3)[1] == 0b10001000


def test_luts_are_shared():
    """Where something must become a LUT, it is what is one already."""
    cover = Cover(4)
    a, b, c, d, e = cover.bits(Signal(5, name="x"))
    small, large = cover.apply(and_, a, b), cover.apply(mux, c, d, e)
    cover.wire(small)
    assert len(cover.apply(xor, small, large).names) == 4 and list(cover.luts) == [small]
