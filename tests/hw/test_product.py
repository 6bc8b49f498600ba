"""Products of a processing element: exhaustive over formats, kinds, weights and activations."""

import re

import numpy as np
import pytest

from nomul_hw.arithmetic import act_range
from nomul_hw.formats import FORMATS, WeightFormat, get_format
from nomul_hw.product import PE_KINDS, Controls, ProductForm, Term

UNIFORM = [name for name, fmt in FORMATS.items() if fmt.is_uniform]
FORMS = [
    *(ProductForm(fmt) for fmt in FORMATS.values() if fmt.name != "int8"),
    *(ProductForm(get_format(name), "multiplier") for name in UNIFORM),
    *(ProductForm(WeightFormat.uniform(bits), "multiplier") for bits in (5, 6, 7)),
    ProductForm(WeightFormat("offset", (-48, -40, -16, 0, 16, 40, 48))),
    ProductForm(WeightFormat("primes", (-19, -17, -13, -11, -7, -5, -3, -1, 1, 3, 5, 7, 11, 13, 17, 19))),
]


def label(form: ProductForm) -> str:
    return f"{form.format.name}-{form.kind}"


def refuse(message: str):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


@pytest.mark.parametrize("form", FORMS, ids=label)
def test_raw_product_and_correction_make_the_product(form):
    """Every weight times every activation."""
    low, high = act_range(8)
    corrections = form.corrections(form.format.levels)
    assert corrections.dtype == np.int64
    for level, correction in zip(form.format.levels, corrections.tolist(), strict=True):
        assert correction >= 0
        for x in range(low, high + 1):
            assert form.raw(level, x) + correction == level * x


@pytest.mark.parametrize("form", FORMS, ids=label)
def test_raw_product_bit_by_bit(form):
    """The same from the packed control word, as the hardware reads it: select, shift, gate, invert."""
    low, high = act_range(8)
    for level in form.format.levels:
        word = form.pack(level)
        assert 0 <= word < 1 << form.control_bits
        controls = []
        for term in form.terms:
            negative, word = bool(word & 1), word >> 1
            nonzero = True
            if term.zero:
                nonzero, word = bool(word & 1), word >> 1
            shift, word = word & (1 << term.shift_bits) - 1, word >> term.shift_bits
            select, word = word & (1 << term.select_bits) - 1, word >> term.select_bits
            controls.append((term, negative, nonzero, shift, select))
        for x in (low, -1, 0, 1, 77, high):
            total = 0
            for term, negative, nonzero, shift, select in controls:
                mask = -1 if negative else 0
                total += ((term.bases[select] * x << shift) & (-1 if nonzero else 0) ^ mask) << term.offset
            assert total == form.raw(level, x)


@pytest.mark.parametrize("form", FORMS, ids=label)
@pytest.mark.parametrize("act_bits", [2, 5, 8])
def test_raw_bounds(form, act_bits):
    low, high = act_range(act_bits)
    least, most = form.raw_bounds(form.format.levels, act_bits)
    for index, level in enumerate(form.format.levels):
        products = [form.raw(level, x) for x in range(low, high + 1)]
        assert (least[index], most[index]) == (min(products), max(products))


@pytest.mark.parametrize("form", FORMS, ids=label)
@pytest.mark.parametrize("products", [1, 2, 3, 16, 100])
def test_sum_bits_are_enough_and_no_more(form, products):
    least, most = (bound for bound in form.raw_bounds(form.format.levels, 8))
    bits = form.sum_bits(products, 8)
    worst = products * int(least.min()), products * int(most.max())
    assert -(1 << bits - 1) <= worst[0] and worst[1] < 1 << bits - 1
    assert not (-(1 << bits - 2) <= worst[0] and worst[1] < 1 << bits - 2)


@pytest.mark.parametrize("form", FORMS, ids=label)
def test_elementwise_on_any_shape(form):
    weights = np.random.default_rng(0).choice(form.format.levels, (2, 3, 4))
    corrections, (least, most) = form.corrections(weights), form.raw_bounds(weights, 8)
    for index in np.ndindex(weights.shape):
        level = int(weights[index])
        assert corrections[index] == level * 5 - form.raw(level, 5)
        assert least[index] <= form.raw(level, 5) <= most[index]


def test_what_the_element_becomes():
    """The hardware that a format asks for: no shifter, no select, no gate where they are not needed."""
    (binary,), (ternary,) = ProductForm(get_format("binary")).terms, ProductForm(get_format("ternary")).terms
    assert (binary.control_bits, binary.shift_bits, binary.select_bits) == (1, 0, 0)
    assert (ternary.control_bits, ternary.shift_bits, ternary.select_bits) == (2, 0, 0)
    assert ProductForm(get_format("pot3")).terms == (Term((1,), 4, False),)
    assert ProductForm(get_format("exp4")).bases == (2, 3)
    assert ProductForm(get_format("exp4")).control_bits == 1 + 1 + 2 + 1
    assert ProductForm(get_format("int4")).bases == (1, 3, 5, 7)
    assert ProductForm(get_format("int8"), "multiplier").bases == (1,)


@pytest.mark.parametrize(("bits", "digits"), [(2, 1), (3, 2), (4, 2), (5, 3), (7, 4), (8, 4)])
def test_booth_digits(bits, digits):
    form = ProductForm(WeightFormat.uniform(bits), "multiplier")
    assert [term.offset for term in form.terms] == list(range(0, 2 * digits, 2))
    for level in form.format.levels:
        total = 0
        for term, controls in zip(form.terms, form.controls(level), strict=True):
            total += (-1 if controls.negative else 1) * controls.nonzero * (1 << controls.shift + term.offset)
        assert total == level


def test_booth_table():
    """The recoding that the hardware does when a weight is loaded."""
    digits = [0, 1, 1, 2, -2, -1, -1, 0]
    for window, digit in enumerate(digits):
        expected = Controls(digit != 0, digit < 0, 0, int(abs(digit) == 2))
        assert ProductForm.booth_digit(window) == expected


def test_term_packs_lsb_first():
    term = Term((1, 3, 5), 4, True, 0)
    assert (term.select_bits, term.shift_bits, term.control_bits) == (2, 2, 6)
    assert term.pack(Controls(True, True, 2, 3)) == 0b10_11_1_1
    assert term.pack(Controls(False, False, 0, 0)) == 0
    assert Term((1,), 1, False).pack(Controls(True, True, 0, 0)) == 1


# Wrong arguments ------------------------------------------------------------------------------------------------

def test_unknown_kind():
    with refuse(f"Processing element must be one of {', '.join(PE_KINDS)}, not 'dsp'"):
        ProductForm(get_format("int4"), "dsp")


@pytest.mark.parametrize("name", ["binary", "ternary", "pot3", "exp4", "fp4_e2m1"])
def test_multiplier_needs_a_uniform_format(name):
    with refuse(f"A multiplier takes a uniform format (int2..int8), not {name!r}"):
        ProductForm(get_format(name), "multiplier")


def test_too_many_multiples():
    with refuse("Format 'int8' needs 64 odd multiples per row edge, more than 8: "
                'set pe = "multiplier" or choose a format with fewer levels'):
        ProductForm(get_format("int8"))
    ProductForm(WeightFormat.from_products("eight", range(1, 17, 2), 2, zero=True))
