"""The arithmetic contract against Python's unbounded integers and fractions."""

import re
from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nomul_hw.arithmetic import (
    MAX_SKIP_DROP,
    Gain,
    act_range,
    gain_digits,
    gain_multipliers,
    gain_positions,
    gains_near,
    nearest_gain,
    requantize,
    round_half_up,
    zero_point,
)


def refuse(message: str):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


# Rounding -------------------------------------------------------------------------------------------------------

def test_round_half_up():
    values = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, -2.51, -2.49, 2.49, 2.51, 0.0]
    expected = [-2, -1, 0, 1, 2, 3, -3, -2, 2, 3, 0]
    np.testing.assert_array_equal(round_half_up(values), expected)
    assert round_half_up(np.float32(0.5)).dtype == np.float64


@pytest.mark.parametrize(("bits", "low", "high"), [(2, -2, 1), (4, -8, 7), (8, -128, 127)])
def test_act_range(bits, low, high):
    assert act_range(bits) == (low, high)
    assert zero_point(bits, signed=True) == 0
    assert zero_point(bits, signed=False) == low


# Requantization -------------------------------------------------------------------------------------------------

def contract(acc: int, bias: int, m: int, n: int, zp: int, low: int, high: int) -> int:
    """``clamp(((v * m + half) >> n) + zp, low, high)`` with unbounded integers."""
    half = 1 << n - 1 if n else 0
    return min(max((((acc + bias) * m + half) >> n) + zp, low), high)


def requantized(acc, bias, m, n, zp=0, low=-128, high=127) -> np.ndarray:
    as_array = [np.asarray(value, dtype=np.int64) for value in (acc, bias, m, n)]
    result = requantize(*as_array, zero_point=zp, low=low, high=high)
    assert result.dtype == np.int64
    return result


@settings(max_examples=500, deadline=None, derandomize=True)
@given(acc=st.integers(-2**31, 2**31), bias=st.integers(-2**31, 2**31), m=st.sampled_from(gain_multipliers(3)),
       n=st.integers(0, 63), signed=st.booleans(), clamp=st.tuples(st.integers(-128, 127), st.integers(-128, 127)))
def test_requantize(acc, bias, m, n, signed, clamp):
    zp, (low, high) = zero_point(8, signed=signed), sorted(clamp)
    assert requantized(acc, bias, m, n, zp, low, high) == contract(acc, bias, m, n, zp, low, high)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(acc=st.integers(-2**31, 2**31), m=st.sampled_from(gain_multipliers(3)), drop=st.integers(0, MAX_SKIP_DROP),
       more=st.integers(0, 29), skip=st.integers(-255, 255), signed=st.booleans())
def test_requantize_adds_a_residual(acc, m, drop, more, skip, signed):
    """``clamp(((v * m + (skip << (n - drop)) + half) >> n) + zp)`` with unbounded integers, and as a fraction."""
    n, zp = drop + more, zero_point(8, signed=signed)
    half = 1 << n - 1 if n else 0
    expected = min(max((((acc - 9) * m + (skip << n - drop) + half) >> n) + zp, -128), 127)
    got = requantize(*(np.asarray(value, dtype=np.int64) for value in (acc, -9, m, n)), zero_point=zp, low=-128,
                     high=127, skip=np.asarray(skip, dtype=np.int64), drop=drop)
    assert got == expected
    exact = Fraction((acc - 9) * m, 2**n) + Fraction(skip, 2**drop)
    assert got == min(max(floor(exact + Fraction(1, 2)) + zp, -128), 127)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("m", [1, 3, 7, 17])
def test_requantize_every_small_value(n, m):
    """All ties, both signs, and the clamp's two ends."""
    acc = np.arange(-3000, 3001)
    expected = [contract(v, -7, m, n, -3, -100, 90) for v in acc.tolist()]
    np.testing.assert_array_equal(requantized(acc, -7, m, n, -3, -100, 90), expected)
    exact = [np.floor(Fraction((v - 7) * m, 2**n) + Fraction(1, 2)) - 3 for v in acc.tolist()]
    np.testing.assert_array_equal(np.clip(np.asarray(exact, dtype=float), -100, 90), expected)


def test_ties_go_up():
    np.testing.assert_array_equal(requantized([-3, -1, 1, 3], 0, 1, 1), [-1, 0, 1, 2])
    np.testing.assert_array_equal(requantized([-6, -2, 2, 6], 0, 1, 2), [-1, 0, 1, 2])


def test_shift_zero_does_not_round():
    acc = np.arange(-128, 128)
    np.testing.assert_array_equal(requantized(acc, 0, 1, 0), acc)


@pytest.mark.parametrize("n", [33, 40, 62, 63])
def test_large_shifts_leave_nothing(n):
    np.testing.assert_array_equal(requantized([-2**31, -1, 0, 1, 2**31 - 1], 0, 1, n), 0)


def test_requantize_per_channel():
    acc = np.arange(-12, 12).reshape(2, 3, 4)
    bias, m, n = np.asarray([[[1]], [[-5]]]), np.asarray([[[3]], [[1]]]), np.asarray([[[1]], [[0]]])
    result = requantized(acc, bias, m, n)
    assert result.shape == acc.shape
    for channel, row, column in np.ndindex(acc.shape):
        assert result[channel, row, column] == contract(
            int(acc[channel, row, column]), int(bias[channel, 0, 0]), int(m[channel, 0, 0]), int(n[channel, 0, 0]),
            0, -128, 127)


# The lattice ----------------------------------------------------------------------------------------------------

def signed_digit_sums(terms: int) -> set[int]:
    """All values of ``±1 ± 2**a``, ``a`` 2 to 4, or of ``±1 ± 2**a ± 2**b``, ``a`` 2 or 3 and ``b`` 4 to 6."""
    sums = {1, -1}
    for places in {1: (), 2: [(2, 3, 4)], 3: [(2, 3), (4, 5, 6)]}[terms]:
        sums |= {value + sign * 2**place for value in sums for sign in (1, -1) for place in places}
    return sums


@pytest.mark.parametrize("terms", [1, 2, 3])
def test_multipliers_against_all_digits(terms):
    multipliers = gain_multipliers(terms)
    assert multipliers == tuple(sorted(value for value in signed_digit_sums(terms) if value > 0))
    assert all(m % 2 == 1 for m in multipliers)


def test_known_multipliers():
    assert gain_multipliers(1) == (1,)
    assert gain_multipliers(2) == (1, 3, 5, 7, 9, 15, 17)
    assert gain_multipliers(3) == (*range(1, 42, 2), *range(55, 74, 2))


@pytest.mark.parametrize(("terms", "decibels"), [(1, 14.0), (2, 28.4), (3, 41.3)])
def test_precision_of_the_lattice(terms, decibels):
    """The error of a gain that is rounded to the lattice, over an octave."""
    values = 2.0 ** np.linspace(-12, -11, 2000, endpoint=False)
    errors = [np.log(nearest_gain(value, terms=terms, max_shift=24).value / value) for value in values]
    assert -10 * np.log10(np.mean(np.square(errors))) == pytest.approx(decibels, abs=0.1)


@pytest.mark.parametrize("terms", [1, 2, 3])
def test_digits_make_the_multiplier(terms):
    for m in gain_multipliers(terms):
        lead, digits = gain_digits(m, terms)
        assert lead in (1, -1) and len(digits) < terms
        assert lead + sum(sign << at for sign, at in digits) == m
        # A digit of one's own for every position, in order.
        own = [[digit for digit, places in enumerate(gain_positions(terms)) if at in places] for _, at in digits]
        assert own == sorted(own) and all(len(each) == 1 for each in own)
        assert len({digit for (digit,) in own}) == len(digits)
        assert all(sign in (1, -1) for sign, _ in digits)
        if digits:
            assert digits[-1][0] == 1


@pytest.mark.parametrize(("m", "terms"), [(0, 2), (-1, 2), (2, 2), (11, 2), (13, 2), (31, 2), (3, 1), (43, 3)])
def test_digits_refuse_the_rest(m, terms):
    with refuse(f"Gain multiplier {m} is not odd and positive with at most {terms} signed digits"):
        gain_digits(m, terms)


@pytest.mark.parametrize("terms", [1, 2, 3])
def test_digits_exist_exactly_for_the_multipliers(terms):
    for m in range(-20, 100):
        if m in gain_multipliers(terms):
            gain_digits(m, terms)
        else:
            with pytest.raises(ValueError):
                gain_digits(m, terms)


@pytest.mark.parametrize("terms", [0, 4, -1, "2", None])
def test_number_of_terms(terms):
    with refuse(f"Number of gain terms must be 1, 2 or 3, not {terms!r}"):
        gain_multipliers(terms)


def test_gain():
    assert Gain(3, 5).value == 3 / 32
    assert Gain(1, 0) < Gain(1, 1) < Gain(3, 0)


def distance(gain: Gain, value: float) -> float:
    """How far apart by ratio, on a logarithmic scale; exact enough to tell any two gains from each other."""
    return abs(np.log2(gain.value) - np.log2(value))


@pytest.mark.parametrize("terms", [1, 2, 3])
@pytest.mark.parametrize("max_shift", [3, 12, 24])
@pytest.mark.parametrize("count", [1, 2, 5, 16, 40])
def test_gains_near_against_brute_force(terms, max_shift, count):
    everything = [Gain(m, n) for m in gain_multipliers(terms) for n in range(max_shift + 1)]
    rng = np.random.default_rng(count)
    exact = [Gain(m, n).value for m, n in zip(rng.choice(gain_multipliers(terms), 5), rng.integers(0, max_shift, 5),
                                              strict=True)]
    for value in [*(2.0 ** rng.uniform(-max_shift, 0, 20)), *exact]:
        found = gains_near(value, terms=terms, max_shift=max_shift, count=count)
        assert len(set(found)) == len(found) <= count and set(found) <= set(everything)
        distances = sorted(distance(gain, value) for gain in everything)
        np.testing.assert_allclose([distance(gain, value) for gain in found], distances[:len(found)], atol=1e-12)
        assert len(found) == min(count, len(everything))


@pytest.mark.parametrize("terms", [1, 2, 3])
def test_nearest_gain(terms):
    everything = [Gain(m, n) for m in gain_multipliers(terms) for n in range(25)]
    for gain in everything:
        assert nearest_gain(gain.value, terms=terms, max_shift=24).value == gain.value
    for value in 2.0 ** np.random.default_rng(2).uniform(-23, -1, 200):
        best = nearest_gain(value, terms=terms, max_shift=24)
        assert distance(best, value) == pytest.approx(min(distance(gain, value) for gain in everything), abs=1e-12)


@pytest.mark.parametrize(("terms", "worst"), [(1, 2**0.5), (2, 1.2**0.5), (3, 1.05**0.5)])
def test_holes_of_the_lattice(terms, worst):
    """The largest error of a gain that the lattice leaves, by ratio."""
    for value in 2.0 ** np.linspace(-12, -11, 500):
        ratio = nearest_gain(value, terms=terms, max_shift=24).value / value
        assert 1 / worst <= ratio * (1 + 1e-12) and ratio <= worst * (1 + 1e-12)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_gains_must_be_positive(value):
    with refuse(f"A gain must be a positive number, not {value!r}"):
        gains_near(value, terms=2, max_shift=24, count=1)


@pytest.mark.parametrize(("value", "terms", "shown"), [(40.0, 2, "40"), (2.0**-26, 2, "1.49012e-08"), (4.0, 1, "4")])
def test_gains_beyond_the_lattice(value, terms, shown):
    with refuse(f"Gain {shown} is outside the lattice of shifts 0..24"):
        nearest_gain(value, terms=terms, max_shift=24)
