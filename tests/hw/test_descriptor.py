"""Packed words: descriptors, parameters, host words."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nomul_hw.arithmetic import act_range
from nomul_hw.config import ArrayConfig
from nomul_hw.descriptor import (
    CAUSES,
    COUNTERS,
    DESCRIPTOR,
    DESCRIPTOR_WORDS,
    HOST_BITS,
    LOOPS,
    Field,
    LayerOp,
    Opcode,
    Target,
    field_table,
    pack,
    parameter_fields,
    parameter_values,
    shift_stages,
    target_word_bits,
    to_host_words,
    total_bits,
    unpack,
)

LAYOUT = (Field("a", 3, False, "first"), Field("b", 4, True, "second"), Field("c", 1, False, "third"),
          Field("d", 1, True, "one bit, signed"))


def bounds(field: Field) -> tuple[int, int]:
    return (-(2 ** (field.bits - 1)), 2 ** (field.bits - 1) - 1) if field.signed else (0, 2**field.bits - 1)


def layouts():
    """Random layouts with values for them."""
    fields = st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=12).map(
        lambda pairs: tuple(Field(f"f{i}", bits, signed, "") for i, (bits, signed) in enumerate(pairs)))
    return fields.flatmap(lambda fields: st.tuples(
        st.just(fields), st.fixed_dictionaries({field.name: st.integers(*bounds(field)) for field in fields})))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(layout=layouts())
def test_round_trip(layout):
    fields, values = layout
    word = pack(fields, values)
    assert 0 <= word < 1 << total_bits(fields)
    assert unpack(fields, word) == values


@settings(max_examples=50, deadline=None, derandomize=True)
@given(values=st.fixed_dictionaries({field.name: st.integers(*bounds(field)) for field in DESCRIPTOR}))
def test_descriptor_round_trip(values):
    assert unpack(DESCRIPTOR, pack(DESCRIPTOR, values)) == values


def test_first_field_is_least_significant():
    assert pack(LAYOUT, {"a": 0b101}) == 0b101
    assert pack(LAYOUT, {"b": -1}) == 0b1111_000
    assert pack(LAYOUT, {"b": -8, "c": 1}) == 0b1_1000_000
    assert pack(LAYOUT, {"d": -1}) == 0b1_0_0000_000
    assert pack(LAYOUT, {}) == 0
    assert unpack(LAYOUT, 0b1_1_1000_101) == {"a": 5, "b": -8, "c": 1, "d": -1}


@pytest.mark.parametrize(("name", "value", "bounds"), [
    ("a", 8, "0..7"), ("a", -1, "0..7"), ("b", 8, "-8..7"), ("b", -9, "-8..7"), ("c", 2, "0..1"), ("d", 1, "-1..0")])
def test_values_must_fit(name, value, bounds):
    with pytest.raises(ValueError, match=f"^{re.escape(f'field {name} must be in {bounds}, not {value}')}$"):
        pack(LAYOUT, {name: value})


def test_values_must_name_fields():
    with pytest.raises(ValueError, match=r"^no such field: x, y$"):
        pack(LAYOUT, {"a": 1, "x": 2, "y": 3})


@settings(max_examples=100, deadline=None, derandomize=True)
@given(word=st.integers(0, 2**200 - 1), bits=st.integers(1, 200))
def test_host_words(word, bits):
    word &= (1 << bits) - 1
    words = to_host_words(word, bits)
    assert len(words) == -(-bits // HOST_BITS) and all(0 <= part < 2**32 for part in words)
    assert sum(part << 32 * index for index, part in enumerate(words)) == word


# The layouts ----------------------------------------------------------------------------------------------------

def test_descriptor_layout():
    names = [field.name for field in DESCRIPTOR]
    assert len(set(names)) == len(names)
    assert DESCRIPTOR_WORDS == -(-total_bits(DESCRIPTOR) // 32)
    for level in range(LOOPS):
        assert {f"count_{level}", f"step_{level}", f"x_step_{level}", f"y_step_{level}"} <= set(names)
    assert names[0] == "op" and total_bits(DESCRIPTOR) <= DESCRIPTOR_WORDS * 32
    assert max(LayerOp) < 1 << DESCRIPTOR[0].bits
    assert all(field.doc for field in DESCRIPTOR)


@pytest.mark.parametrize("act_bits, acc_bits", [(8, 12), (8, 16), (8, 24), (8, 32), (4, 32), (2, 32), (2, 12)])
@pytest.mark.parametrize("terms", [1, 2, 3])
def test_parameters_hold_every_gain(terms, act_bits, acc_bits):
    config = ArrayConfig("binary", rows=4, cols=4, act_bits=act_bits, acc_bits=acc_bits, gain_terms=terms)
    low, high = act_range(act_bits)
    limit = 1 << acc_bits - 1
    # What the sum must hold: the largest accumulator with its bias, times the largest multiplier, and what is added.
    every = np.array([(bias, m, n) for bias in (limit - 1, -limit) for m in (0, *config.gain_multipliers)
                      for n in range(config.max_gain_shift + 1)]).T
    fields = parameter_fields(config)
    for zero_point, code in ((0, low), (0, high), (low, low), (low, high)):
        values = parameter_values(config, *every, zero_point=zero_point, low=code)
        assert list(values) == [field.name for field in fields]
        reached = every[0] * every[1] + (1 << every[2]) // 2 + (zero_point - code) * (1 << every[2])
        assert np.abs(reached).max() < 1 << config.requantize_bits - 1
        for index in range(0, every.shape[1], 7):
            word = {name: int(each[index]) for name, each in values.items()}
            assert unpack(fields, pack(fields, word)) == word
    shifts = np.zeros_like(every[2])
    for places, choices in shift_stages(config):
        assert values[f"shift_{places}"].max() < choices <= 3
        shifts += places * values[f"shift_{places}"]
    assert np.array_equal(shifts, every[2]) and len(shift_stages(config)) <= 3


def test_parameters_of_the_default():
    """Sixteen channels take 608 bits: seventeen block RAMs of 36 bits each."""
    assert total_bits(parameter_fields(ArrayConfig("exp4"))) == 38


def test_target_word_bits():
    config = ArrayConfig("exp4", rows=4, lanes=2, cols=6, act_bits=5)
    parameter = total_bits(parameter_fields(config))
    assert {target: target_word_bits(config, target) for target in Target} == {
        Target.PROGRAM: 32, Target.PARAMETER: 2 * parameter, Target.WEIGHT: 6 * 2 * 4, Target.ACTIVATION_0: 40,
        Target.ACTIVATION_1: 40, Target.COUNTER: 32, Target.IDENTITY: 32}


def test_numbers_on_the_wire():
    """Programs and drivers in the field depend on these: a change needs a new machine version."""
    assert {op.name: op.value for op in Opcode} == {"WRITE": 1, "READ": 2, "RUN": 3}
    assert [target.value for target in Target] == list(range(7))
    assert {op.name: op.value for op in LayerOp} == {
        "CONV": 0, "MAX_POOL": 1, "SUM_POOL": 2, "DEPTHWISE": 3, "MAX_WINDOW": 4}
    assert list(COUNTERS) == ["total", *CAUSES]
    assert CAUSES == ("busy", "weight", "memory", "requantize", "drain", "control")


def test_field_table():
    assert field_table(LAYOUT) == (
        "| bits | field | meaning |\n"
        "|---|---|---|\n"
        "| 2:0 | `a` | first |\n"
        "| 6:3 | `b` | second, signed |\n"
        "| 7:7 | `c` | third |\n"
        "| 8:8 | `d` | one bit, signed, signed |\n")
    assert field_table(DESCRIPTOR).count("\n") == len(DESCRIPTOR) + 2
