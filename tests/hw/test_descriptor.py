"""Packed words: descriptors, parameters, host words."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nomul_hw.arithmetic import gain_multipliers
from nomul_hw.config import ArrayConfig
from nomul_hw.descriptor import (
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


@pytest.mark.parametrize("terms", [1, 2, 3])
def test_parameters_hold_every_gain(terms):
    config = ArrayConfig("ternary", gain_terms=terms)
    fields = {field.name: field for field in parameter_fields(config)}
    assert fields["bias"] == Field("bias", 24, True, fields["bias"].doc)
    assert 2 ** fields["shift"].bits > config.max_gain_shift
    assert total_bits(fields.values()) == 24 + 5 + {1: 0, 2: 1 + 3, 3: 1 + 4 + 1 + 4}[terms]
    assert [name for name in fields if name.startswith("digit")] == {
        1: [], 2: ["digit_0_enable", "digit_0_position"],
        3: ["digit_0_enable", "digit_0_position", "digit_0_negative", "digit_1_enable", "digit_1_position"]}[terms]
    if terms > 1:
        reach = 2 ** fields["digit_0_position"].bits
        assert max(gain_multipliers(terms)).bit_length() - 1 <= reach


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
    assert list(COUNTERS) == ["total", "busy", "weight", "memory", "requantize", "drain", "control"]


def test_field_table():
    assert field_table(LAYOUT) == (
        "| bits | field | meaning |\n"
        "|---|---|---|\n"
        "| 2:0 | `a` | first |\n"
        "| 6:3 | `b` | second, signed |\n"
        "| 7:7 | `c` | third |\n"
        "| 8:8 | `d` | one bit, signed, signed |\n")
    assert field_table(DESCRIPTOR).count("\n") == len(DESCRIPTOR) + 2
