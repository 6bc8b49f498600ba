"""Weight formats: levels, what they ask of a processing element, codes."""

import json
import re

import numpy as np
import pytest

from nomul_hw.formats import FORMATS, MAX_BITS, MAX_LEVEL, WeightFormat, get_format

ALL = list(FORMATS.values())

USER = [
    WeightFormat("two", (-5, 5)),
    WeightFormat("sparse", (-12, -1, 0, 1, 12)),
    WeightFormat.from_products("apot", (1, 5), 3, zero=True),
    WeightFormat.from_products("few", (3, 1), 8, zero=False, magnitudes=5),
    WeightFormat("wide", (-MAX_LEVEL, 0, MAX_LEVEL)),
    WeightFormat("full", tuple(range(-128, 0)) + tuple(range(1, 129))),
]


def refuse(error: type[Exception], message: str):
    return pytest.raises(error, match=f"^{re.escape(message)}$")


# The table of the architecture: multiples, shifts of the barrel shifter, zero, bits, number of levels.
@pytest.mark.parametrize(("name", "multiples", "shifts", "zero", "bits", "levels"), [
    ("binary", (1,), 1, False, 1, 2),
    ("ternary", (1,), 1, True, 2, 3),
    ("pot3", (1,), 4, False, 3, 8),
    ("pot3z", (1,), 3, True, 3, 7),
    ("pot4", (1,), 8, False, 4, 16),
    ("pot4z", (1,), 7, True, 4, 15),
    ("exp4", (1, 3), 4, True, 4, 15),
    ("exp4_sqrt2", (3, 17), 4, True, 4, 15),
    ("exp5", (1, 5, 13), 5, True, 5, 31),
    ("fp4_e2m1", (1, 3), 4, True, 4, 15),
    ("int2", (1,), 2, True, 2, 4),
    ("int3", (1, 3), 3, True, 3, 8),
    ("int4", (1, 3, 5, 7), 4, True, 4, 16),
])
def test_named_format(name, multiples, shifts, zero, bits, levels):
    fmt = get_format(name)
    assert (fmt.name, fmt.multiples, fmt.shifts, fmt.zero, fmt.bits) == (name, multiples, shifts, zero, bits)
    assert len(fmt.levels) == levels


def test_levels_of_the_formats():
    assert get_format("binary").levels == (-1, 1)
    assert get_format("pot3z").levels == (-4, -2, -1, 0, 1, 2, 4)
    assert get_format("pot4").levels[8:] == tuple(1 << s for s in range(8))
    assert get_format("fp4_e2m1").levels[7:] == (0, 1, 2, 3, 4, 6, 8, 12)  # 0, .5, 1, 1.5, 2, 3, 4, 6
    assert get_format("int4").levels == range(-8, 8)
    assert get_format("int8").levels == range(-128, 128)
    assert get_format("int12").levels == range(-2048, 2048)


@pytest.mark.parametrize(("name", "ratio", "tolerance"), [
    ("exp4", 2**0.5, 1.07), ("exp4_sqrt2", 2**0.5, 1.003), ("exp5", 2 ** (1 / 3), 1.032)])
def test_geometric_formats(name, ratio, tolerance):
    """Neighbouring levels of the exponential formats keep their ratio."""
    positive = np.asarray([level for level in get_format(name).levels if level > 0], dtype=float)
    error = positive[1:] / positive[:-1] / ratio
    assert max(error.max(), 1 / error.min()) < tolerance


@pytest.mark.parametrize("fmt", ALL + USER, ids=lambda fmt: fmt.name)
def test_fields_make_the_level(fmt):
    """Every level is sign, base and shift, as a processing element forms it, and none of them is out of range."""
    assert len(fmt.bases) == len(fmt.multiples)
    for base, multiple in zip(fmt.bases, fmt.multiples, strict=True):
        assert base in {abs(level) for level in fmt.levels} and base % multiple == 0
    used = set()
    for level in fmt.levels:
        nonzero, negative, select, shift = fmt.fields(level)
        assert 0 <= shift < fmt.shifts and 0 <= select < len(fmt.bases)
        assert (-1 if negative else 1) * (fmt.bases[select] << shift) * nonzero == level
        used.add(shift)
    assert used >= {0, fmt.shifts - 1}


@pytest.mark.parametrize("fmt", ALL + USER, ids=lambda fmt: fmt.name)
def test_codes(fmt):
    """Every level has exactly one code, and decoding undoes encoding; the other codes are illegal."""
    levels = np.asarray(fmt.levels)
    codes = fmt.encode(levels)
    assert codes.dtype == np.uint8 and len(set(codes.tolist())) == len(levels)
    assert codes.max() < 2**fmt.bits <= 2**MAX_BITS
    decoded = fmt.decode(codes)
    assert decoded.dtype == np.int32
    np.testing.assert_array_equal(decoded, levels)
    assert len(fmt.code_levels) == 2**fmt.bits
    for code in range(2**fmt.bits):
        if code in codes:
            assert fmt.encode(fmt.code_levels[code]) == code
        else:
            assert fmt.code_levels[code] is None
            with refuse(ValueError, f"Code {code} at index (1,) is illegal in format {fmt.name!r}"):
                fmt.decode([codes[0], code])


def test_sign_magnitude_codes():
    """The sign is the top bit; minus zero is illegal."""
    fmt = get_format("exp4")
    assert fmt.code_levels == (0, 2, 3, 4, 6, 8, 12, 16, None, -2, -3, -4, -6, -8, -12, -16)
    assert get_format("ternary").code_levels == (0, 1, None, -1)
    assert get_format("binary").code_levels == (1, -1)
    assert get_format("pot3").code_levels == (1, 2, 4, 8, -1, -2, -4, -8)


@pytest.mark.parametrize("bits", range(2, 17))
def test_uniform_codes_are_twos_complement(bits):
    fmt = WeightFormat.uniform(bits)
    assert fmt.is_uniform and fmt.bits == bits and fmt.name == f"int{bits}" and fmt == get_format(fmt.name)
    weights = np.asarray(fmt.levels)
    assert fmt.encode(weights).dtype == (np.uint8 if bits <= MAX_BITS else np.uint16)
    np.testing.assert_array_equal(fmt.encode(weights), weights % 2**bits)
    np.testing.assert_array_equal(fmt.decode(np.arange(2**bits)),
                                  [code - 2**bits if code >= 2 ** (bits - 1) else code for code in range(2**bits)])


def test_is_uniform_only_of_a_twos_complement_range():
    for fmt in ALL + USER:
        assert fmt.is_uniform == bool(re.fullmatch(r"int\d", fmt.name))
    assert WeightFormat("any_name", (-2, -1, 0, 1)).is_uniform
    assert not WeightFormat("symmetric", (-2, -1, 1, 2)).is_uniform


def test_uniform_levels_are_a_range():
    """However they were given; so 65,536 of them cost nothing."""
    listed, named = WeightFormat("int4", tuple(range(-8, 8))), get_format("int4")
    assert isinstance(listed.levels, range) and listed == named and hash(listed) == hash(named)
    assert WeightFormat("mine", range(-8, 8)) != listed
    assert get_format("int16") is get_format("int16")
    assert (get_format("int16").max_magnitude, get_format("int16").zero) == (32768, True)


def test_shapes_and_layouts_are_kept():
    fmt = get_format("int4")
    weights = np.random.default_rng(0).integers(-8, 8, (3, 4, 5))[:, ::2].transpose(2, 0, 1)
    assert fmt.encode(weights).shape == weights.shape == fmt.decode(fmt.encode(weights)).shape
    np.testing.assert_array_equal(fmt.decode(fmt.encode(weights)), weights)
    assert fmt.encode(np.zeros((0, 3), int)).shape == (0, 3)
    assert fmt.decode(np.zeros((0, 3), np.uint8)).shape == (0, 3)
    assert fmt.decode(fmt.encode(-8)) == -8


@pytest.mark.parametrize(("weight", "shown"), [(5, 5), (-9, -9), (8, 8), (1.5, 1.5), (100, 100)])
def test_encode_refuses_other_weights(weight, shown):
    fmt = WeightFormat("odd", (-8, -4, 0, 4, 8)) if weight in (5, -9, 100, 1.5) else get_format("int4")
    with refuse(ValueError, f"Weight {shown} at index (1, 0) is not a level of format {fmt.name!r}"):
        fmt.encode(np.asarray([[4, 0], [weight, weight]]))


@pytest.mark.parametrize(("codes", "got"), [([0, 4], "0..4"), ([-1, 2], "-1..2")])
def test_decode_refuses_codes_out_of_range(codes, got):
    with refuse(ValueError, f"Codes of format 'ternary' must lie in 0..3, got {got}"):
        get_format("ternary").decode(codes)


@pytest.mark.parametrize("fmt", [*ALL, *USER, get_format("int12")], ids=lambda fmt: fmt.name)
def test_holds(fmt):
    levels = np.asarray(fmt.levels)
    assert fmt.holds(levels) and fmt.holds(levels.reshape(-1, 1, 1)[::2]) and fmt.holds(levels[:0])
    assert not fmt.holds(levels.astype(np.float64)) and not fmt.holds(levels[levels > 0].astype(np.uint64))
    for wrong in (levels[0] - 1, levels[-1] + 1, *({0} - set(fmt.levels))):
        assert not fmt.holds(np.append(levels, wrong))


@pytest.mark.parametrize("fmt", [*ALL, *USER, get_format("int12")], ids=lambda fmt: fmt.name)
def test_nearest(fmt):
    """The nearest of all levels; a tie goes up; beyond the ends, the end."""
    levels = np.asarray(fmt.levels)
    np.testing.assert_array_equal(fmt.nearest(levels), levels)
    between = (levels[1:] + levels[:-1]) / 2
    np.testing.assert_array_equal(fmt.nearest(between), levels[1:])
    np.testing.assert_array_equal(fmt.nearest(np.nextafter(between, -np.inf)), levels[:-1])
    assert fmt.nearest([-1e300, 1e300]).tolist() == [levels[0], levels[-1]]
    values = np.random.default_rng(1).uniform(levels[0] * 1.2, levels[-1] * 1.2, 500)
    chosen = fmt.nearest(values)
    assert chosen.dtype == np.int32
    np.testing.assert_array_equal(np.abs(chosen - values), np.abs(levels - values[:, None]).min(axis=1))


@pytest.mark.parametrize(("name", "level"), [("binary", -1), ("ternary", 0), ("pot3", -1), ("exp4", 0), ("int8", 0)])
def test_smallest_code(name, level):
    fmt = get_format(name)
    assert fmt.code_levels[fmt.smallest_code] == level


@pytest.mark.parametrize("fmt", [*ALL, *USER, get_format("int16")], ids=lambda fmt: fmt.name)
def test_dict_round_trip(fmt):
    data = json.loads(json.dumps(fmt.to_dict()))
    assert WeightFormat.from_dict(data) == fmt
    assert WeightFormat.from_dict({**data, "colour": "an addition"}) == fmt


def test_to_dict():
    assert get_format("ternary").to_dict() == {"name": "ternary", "levels": [-1, 0, 1]}
    assert get_format("int16").to_dict() == {"name": "int16", "bits": 16}
    assert WeightFormat("mine", tuple(range(-4, 4))).to_dict() == {"name": "mine", "bits": 3}
    assert WeightFormat.from_dict({"name": "int3", "levels": list(range(-4, 4))}) is not None


@pytest.mark.parametrize(("data", "error", "message"), [
    ({"name": "x"}, TypeError, "Levels of format 'x' must be a tuple of integers, not None"),
    ({"levels": [-1, 1]}, TypeError, "Format name must be a string, not None"),
    ({"name": 3, "bits": 4}, TypeError, "Format name must be a string, not 3"),
    ({"name": "x", "levels": 3}, TypeError, "Levels of format 'x' must be a tuple of integers, not 3"),
    ({"name": "x", "levels": [None]}, TypeError, "Levels of format 'x' must be a tuple of integers, not (None,)"),
    ({"name": "x", "bits": 17}, ValueError, "A uniform format has 2 to 16 bits, not 17"),
    ({"name": "x", "bits": None}, ValueError, "A uniform format has 2 to 16 bits, not None"),
])
def test_from_wrong_dict(data, error, message):
    with refuse(error, message):
        WeightFormat.from_dict(data)


def test_equality_is_by_value():
    assert WeightFormat("ternary", (-1, 0, 1)) == get_format("ternary")
    assert len({WeightFormat("ternary", (-1, 0, 1)), get_format("ternary")}) == 1
    assert WeightFormat("other", (-1, 0, 1)) != get_format("ternary")


def test_from_products():
    assert WeightFormat.from_products("x", [3, 1], 2, zero=True).levels == (-6, -3, -2, -1, 0, 1, 2, 3, 6)
    assert WeightFormat.from_products("x", iter([1]), 2, zero=False).levels == (-2, -1, 1, 2)
    assert WeightFormat.from_products("x", (1, 3), 3, zero=False, magnitudes=2).levels == (-2, -1, 1, 2)
    assert WeightFormat.from_magnitudes("x", {3, 12}, zero=True).levels == (-12, -3, 0, 3, 12)


# Wrong arguments ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", [3, None, b"x"])
def test_name_must_be_a_string(name):
    with refuse(TypeError, f"Format name must be a string, not {name!r}"):
        WeightFormat(name, (-1, 1))


@pytest.mark.parametrize("name", ["", "a b", "../x", "4bit", "über", "x\n"])
def test_name_must_do_as_a_file_name(name):
    with refuse(ValueError, f"Format name must be letters, digits and underscores, a letter first, not {name!r}"):
        WeightFormat(name, (-1, 1))


@pytest.mark.parametrize("levels", [[-1, 1], (-1, 1.0), (-1, True), (-1, "1"), (-1, None), 3, range(0), range(5),
                                    range(-4, 5), range(-4, 4, 2), range(-(2**16), 2**16), range(-1, 1)])
def test_levels_must_be_integers(levels):
    with refuse(TypeError, f"Levels of format 'x' must be a tuple of integers, not {levels!r}"):
        WeightFormat("x", levels)


@pytest.mark.parametrize("levels", [(), (0,), (1, -1), (-1, 1, 1), (-1, 0, 0, 1)])
def test_levels_must_ascend(levels):
    with refuse(ValueError, f"Levels of format 'x' must be at least two distinct integers in ascending order, "
                            f"not {levels!r}"):
        WeightFormat("x", levels)


@pytest.mark.parametrize("levels", [
    (0, 1), (-1, 0), (-2, 1), (-2, -1, 1), (-1, 0, 2), (-3, -2, -1, 0, 1, 2), (-4, -2, 0, 2), (-2, -1, 0, 1, 3)])
def test_levels_must_be_symmetric(levels):
    with refuse(ValueError, f"Levels of format 'x' must be symmetric about 0, or all integers of a two's-complement "
                            f"range, not {levels!r}"):
        WeightFormat("x", levels)


@pytest.mark.parametrize("level", [MAX_LEVEL + 1, 2**31, 2**100])
def test_levels_must_fit(level):
    """Also where a naive check would list all integers up to a level."""
    with refuse(ValueError, "Levels of format 'x' must lie in -1073741824..1073741824"):
        WeightFormat("x", (-level, level))


def test_number_of_levels():
    with refuse(ValueError, "Format 'x' has 258 levels, more than 256"):
        WeightFormat("x", tuple(range(-129, 0)) + tuple(range(1, 130)))


@pytest.mark.parametrize("multiples", [(), (2,), (1, 4), (0,), (-1,), (1.0,), (True,), ("1",)])
def test_multiples_must_be_odd(multiples):
    with refuse(ValueError, f"Multiples of format 'x' must be odd positive integers, not {multiples!r}"):
        WeightFormat.from_products("x", multiples, 2, zero=True)


@pytest.mark.parametrize("shifts", [0, -1, 1.0, "2", True, None, 31, 10**9])
def test_shifts_must_be_sensible(shifts):
    with refuse(ValueError, f"Number of shifts of format 'x' must be an integer in 1..30, not {shifts!r}"):
        WeightFormat.from_products("x", (1,), shifts, zero=True)


@pytest.mark.parametrize("bits", [1, 17, 0, 4.0, True, "4"])
def test_uniform_bits(bits):
    with refuse(ValueError, f"A uniform format has 2 to 16 bits, not {bits!r}"):
        WeightFormat.uniform(bits)


@pytest.mark.parametrize("name", ["int1", "int17", "int08", "int", "Ternary", ""])
def test_unknown_format(name):
    known = "binary, ternary, pot3, pot3z, pot4, pot4z, exp4, exp4_sqrt2, exp5, fp4_e2m1, int2..int16"
    with refuse(ValueError, f"Unknown weight format {name!r}; known: {known}"):
        get_format(name)
