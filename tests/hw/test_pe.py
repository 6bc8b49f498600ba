# amaranth: UnusedElaboratable=no
"""The processing element, its row edge and its weight decoder: every weight times every awkward activation."""

import numpy as np
import pytest

from nomul_hw.adders import multiple_bits, odd_part
from nomul_hw.arithmetic import act_range
from nomul_hw.formats import FORMATS, MAX_MULTIPLES, WeightFormat
from nomul_hw.pe import Multiples, ProcessingElement, WeightDecoder
from nomul_hw.product import ProductForm

from .simulate import trace
from .vectors import MULTIPLIERS, cells, join, split

#: A format of the user's: no zero, a magnitude that shifts by five, multiples whose smallest levels are shifted.
CUSTOM = WeightFormat.from_magnitudes("custom", (1, 12, 20, 32), zero=False)

#: A selection, and nothing to shift.
ODD = WeightFormat.from_magnitudes("odd", (1, 3), zero=True)

FORMS = [ProductForm(fmt) for fmt in (*FORMATS.values(), WeightFormat.uniform(5), CUSTOM, ODD)
         if len(fmt.multiples) <= MAX_MULTIPLES]
FORMS += [ProductForm(WeightFormat.uniform(bits), "multiplier") for bits in range(2, 9)]
every_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.format.name}-{form.kind}")


def bundle(form: ProductForm, act_bits: int, activations) -> int:
    """What travels along a row beside the activations of all lanes: their odd multiples."""
    word = at = 0
    for x in activations:
        for base, width in zip(form.bases, multiple_bits(form, act_bits), strict=True):
            word |= join([odd_part(base) * int(x)], width) << at
            at += width
    return word


def make_element(form: ProductForm, lanes: int, *, row: int = 1, act_bits: int = 8) -> ProcessingElement:
    """An element of an array's given row."""
    return ProcessingElement(product=form, lanes=lanes, act_bits=act_bits,
                             psum_in_bits=form.sum_bits(row * lanes, act_bits) if row else 0,
                             psum_out_bits=form.sum_bits((row + 1) * lanes, act_bits))


@every_form
@pytest.mark.parametrize("lanes", [1, 3])
def test_products(form, lanes):
    """Every level meets every awkward activation in every lane; a new weight is loaded and swapped in every cycle."""
    rng = np.random.default_rng(1)
    levels = np.array(form.format.levels)
    low, high = act_range(8)
    activations = np.array([low, high, 0, -1, rng.integers(low, high)])
    pairs = np.array([(w, x) for w in levels for x in activations])
    vectors = np.stack([rng.permutation(pairs) for _ in range(lanes)], axis=1)  # (cycles, lanes, 2)
    weights, acts = vectors[..., 0], vectors[..., 1]
    least, most = (lanes * int(bound) for bound in (form.raw_bounds(levels, 8)[0].min(),
                                                    form.raw_bounds(levels, 8)[1].max()))
    psums = rng.choice([least, most, 0, -1, int(rng.integers(least, most + 1))], len(weights))

    # A weight is loaded in one cycle, swapped in in the next, and multiplies in the one after that.
    controls = [join([form.pack(int(w)) for w in row], form.control_bits) for row in weights]
    acts_in = [bundle(form, 8, row) for row in acts]
    ones = [1] * (len(weights) + 3)
    outputs = trace(make_element(form, lanes), {
        "weight_i": controls + [0, 0, 0], "load_i": ones, "swap_i": ones,
        "act_i": [0, 0] + acts_in + [0], "psum_i": [0, 0] + psums.tolist() + [0],
    }, ["psum_o", "act_o"])

    expected = psums + (weights * acts).sum(1) - form.corrections(weights).sum(1)
    assert outputs["psum_o"][3:] == expected.tolist()
    assert outputs["act_o"][3:] == acts_in


@pytest.mark.parametrize("name", ["ternary", "exp4"])
def test_first_row(name):
    """The element of the first row has nothing above it."""
    form = ProductForm(FORMATS[name])
    rng = np.random.default_rng(2)
    weights, acts = rng.choice(form.format.levels, 50), rng.integers(-128, 128, 50)
    dut = make_element(form, 1, row=0)
    assert "psum_i" not in dut.signature.members
    ones = [1] * 53
    outputs = trace(dut, {
        "weight_i": [form.pack(int(w)) for w in weights] + [0, 0, 0], "load_i": ones, "swap_i": ones,
        "act_i": [0, 0] + [bundle(form, 8, [x]) for x in acts] + [0],
    }, ["psum_o"])
    assert outputs["psum_o"][3:] == (weights * acts - form.corrections(weights)).tolist()


def test_load_and_swap():
    """Any order of strobes: a load without a swap keeps the active weight, both at once swap in the one before."""
    form = ProductForm(FORMATS["exp4"])
    rng = np.random.default_rng(3)
    cycles = 400
    weights = rng.choice(form.format.levels, cycles)
    acts, psums = rng.integers(-128, 128, cycles), rng.integers(-100, 100, cycles)
    load, swap = rng.integers(0, 2, (2, cycles))
    load[:2], swap[:2] = [1, 0], [0, 1]
    outputs = trace(make_element(form, 1), {
        "weight_i": [form.pack(int(w)) for w in weights], "load_i": load, "swap_i": swap,
        "act_i": [bundle(form, 8, [x]) for x in acts], "psum_i": psums,
    }, ["psum_o", "load_o", "swap_o"])

    shadow = active = None
    expected = []
    for cycle in range(cycles):
        if active is not None:
            expected.append(psums[cycle] + form.raw(int(active), int(acts[cycle])))
        active, shadow = (shadow if swap[cycle] else active), (weights[cycle] if load[cycle] else shadow)
    assert {(1, 0), (0, 1), (1, 1)} <= set(zip(load.tolist(), swap.tolist(), strict=True))
    assert outputs["psum_o"][3:] == expected[:-1]
    assert outputs["load_o"][1:] == load[:-1].tolist()
    assert outputs["swap_o"][1:] == swap[:-1].tolist()


@every_form
def test_multiples(form):
    """The row edge, for every activation."""
    for act_bits in (8, 3):
        low, high = act_range(act_bits)
        acts = list(range(low, high + 1))
        outputs = trace(Multiples(product=form, act_bits=act_bits), {"act": acts}, ["multiples"])
        assert outputs["multiples"] == [bundle(form, act_bits, [x]) for x in acts]


@every_form
def test_decoder(form):
    """The control word of every legal code."""
    codes = [(code, level) for code, level in enumerate(form.format.code_levels) if level is not None]
    outputs = trace(WeightDecoder(product=form), {"code": [code for code, _ in codes]}, ["controls"])
    assert outputs["controls"] == [form.pack(level) for _, level in codes]


@every_form
@pytest.mark.parametrize("lanes, row", [(1, 0), (1, 1), (3, 1)])
def test_no_multiplier_no_negation(form, lanes, row):
    """One adder per product and one per sum from above, none for negating; constant shifts are wiring."""
    found = cells(make_element(form, lanes, row=row))
    assert found["$add"] == lanes * len(form.terms) - (row == 0)
    assert set(found) <= {"$add", "$and", "$xor", "$eq", "$mux", "$shl", "$sshl", "$dff", "$sdff", "$dffe"}


@every_form
def test_adders_at_the_edge(form):
    """A multiple costs one adder for every signed digit but the first; powers of two are free."""
    found = cells(Multiples(product=form, act_bits=8))
    assert found["$add"] + found["$sub"] == sum(nonzero_digits(odd_part(base)) - 1 for base in form.bases)
    assert not set(found) & {"$neg", *MULTIPLIERS}


def nonzero_digits(value: int) -> int:
    """Nonzero digits of the non-adjacent form."""
    return ((3 * value) ^ value).bit_count()


def test_split_undoes_join():
    assert split(join([-3, 2, 0, -4], 3), 3, 4) == [-3, 2, 0, -4]
