"""Configurations: derived shape, TOML, identity, and every message that a user's mistake gets."""

import json
import re
from dataclasses import FrozenInstanceError, replace

import pytest

from nomul_hw.config import ArrayConfig, ConfigError, MemoryConfig, load_config, parse_config
from nomul_hw.formats import FORMATS, WeightFormat, get_format


def refuse(message: str):
    return pytest.raises(ConfigError, match=f"^{re.escape(message)}$")


# Derived values -------------------------------------------------------------------------------------------------

def test_defaults():
    config = ArrayConfig("ternary")
    assert config.format is get_format("ternary")
    assert (config.rows, config.cols, config.lanes, config.pe) == (16, 16, 1, "shift")
    assert (config.act_bits, config.acc_bits, config.gain_terms) == (8, 24, 2)
    assert config.memory == MemoryConfig()
    assert config.name == "ternary_16x16"


def test_shape():
    config = ArrayConfig("int4", rows=4, cols=12, lanes=2, pe="multiplier")
    assert config.name == "int4_mul_4x2x12"
    assert (config.depth, config.macs_per_cycle) == (8, 96)
    assert (config.requantize_lanes, config.column_chunks, config.word_chunks) == (4, 3, 2)
    assert (config.act_word_bits, config.weight_word_bits) == (64, 96)
    assert config.gain_multipliers == (1, 3, 5, 7, 9, 15, 17)
    assert (config.max_gain_shift, config.requantize_bits) == (16, 29)


@pytest.mark.parametrize("fmt", list(FORMATS))
def test_sums_grow_with_the_row(fmt):
    """A sum of ternary products on 16 rows has 9 to 13 bits, not 24."""
    config = ArrayConfig(fmt, rows=16, acc_bits=32, pe="multiplier" if fmt == "int8" else "shift")
    bits = [config.sum_bits(row) for row in range(config.rows)]
    assert bits == sorted(bits) and bits[-1] == config.column_sum_bits
    assert bits[-1] - bits[0] in (3, 4, 5)
    if fmt == "ternary":
        assert (bits[0], bits[-1]) == (8, 12)


@pytest.mark.parametrize(("rows", "lanes", "cols", "lanes_out"), [
    (1, 1, 1, 1), (16, 1, 16, 16), (16, 4, 16, 16), (3, 1, 5, 1), (12, 1, 8, 4), (1, 8, 4, 4)])
def test_requantize_lanes_divide_both(rows, lanes, cols, lanes_out):
    config = ArrayConfig("ternary", rows=rows, lanes=lanes, cols=cols)
    assert config.requantize_lanes == lanes_out
    assert config == replace(config, requantize_lanes=0) == replace(config, requantize_lanes=lanes_out)
    for fewer in (config, replace(config, requantize_lanes=1)):
        assert fewer.column_chunks * fewer.requantize_lanes == cols
        assert fewer.word_chunks * fewer.requantize_lanes == rows * lanes


def test_configurations_are_values():
    config = ArrayConfig("ternary")
    assert config == ArrayConfig(get_format("ternary")) and hash(config) == hash(ArrayConfig("ternary"))
    with pytest.raises(FrozenInstanceError):
        config.rows = 3


# Identity -------------------------------------------------------------------------------------------------------

CONFIGS = [
    ArrayConfig("ternary"),
    ArrayConfig("pot3", rows=3, cols=5, lanes=2, act_bits=4, acc_bits=20, gain_terms=3),
    ArrayConfig("int8", pe="multiplier", memory=MemoryConfig(512, 1024, 32, 64, 8)),
    ArrayConfig(WeightFormat("mine", (-5, 0, 5)), rows=1, cols=1),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_dict_round_trip(config):
    data = json.loads(json.dumps(config.to_dict()))
    again = ArrayConfig.from_dict(data)
    assert again == config and again.hash == config.hash


def test_hash_sees_every_field():
    base = ArrayConfig("ternary")
    others = [
        ArrayConfig("ternary", rows=8), ArrayConfig("ternary", cols=8), replace(base, lanes=2),
        replace(base, act_bits=7), replace(base, acc_bits=25), replace(base, gain_terms=1),
        replace(base, requantize_lanes=8), replace(base, plane_shift=0), replace(base, weights="stream"),
        replace(base, format="pot3"),
        replace(base, format=WeightFormat("ternary", (-2, 0, 2))), replace(base, format="int4"),
        replace(base, format="int4", pe="multiplier"),
        *(replace(base, memory=replace(base.memory, **{name: 64}))
          for name in ("activations", "weights", "parameters", "accumulators")),
        replace(base, memory=replace(base.memory, layers=63)), replace(base, memory=replace(base.memory, lines=8)),
    ]
    assert len({config.hash for config in [base, *others]}) == len(others) + 1
    assert all(config.identity == int(config.hash[:8], 16) < 2**32 for config in others)


# TOML -----------------------------------------------------------------------------------------------------------

def test_load(tmp_path):
    path = tmp_path / "array.toml"
    path.write_text('[array]\nformat = "exp4"\nrows = 8\ncols = 4\nlanes = 2\n[memory]\nweights = 100\n')
    assert load_config(path) == load_config(str(path)) == ArrayConfig(
        "exp4", rows=8, cols=4, lanes=2, memory=MemoryConfig(weights=100))


@pytest.mark.parametrize(("text", "levels"), [
    ('{name = "mine", levels = [-3, -1, 0, 1, 3]}', (-3, -1, 0, 1, 3)),
    ('{name = "mine", multiples = [1, 3], shifts = 2, zero = false}', (-6, -3, -2, -1, 1, 2, 3, 6)),
    ('{name = "mine", multiples = [1], shifts = 1, zero = true}', (-1, 0, 1)),
])
def test_user_defined_format(tmp_path, text, levels):
    path = tmp_path / "array.toml"
    path.write_text(f"[array]\nformat = {text}\n")
    config = load_config(path)
    assert config.format == WeightFormat("mine", levels)
    assert config.name == "mine_16x16"


def test_format_as_a_table(tmp_path):
    path = tmp_path / "array.toml"
    path.write_text('[array]\nrows = 4\n[array.format]\nname = "mine"\nlevels = [-1, 1]\n')
    assert load_config(path).format.levels == (-1, 1)


@pytest.mark.parametrize(("text", "message"), [
    ("", 'array.format is missing, for example format = "ternary"'),
    ("[array]", 'array.format is missing, for example format = "ternary"'),
    ("[memory]\nweights = 5", 'array.format is missing, for example format = "ternary"'),
    ("[arary]\nformat = 'ternary'", "unknown table [arary]; known: [array], [memory]"),
    ("rows = 3", "unknown table [rows]; known: [array], [memory]"),
    ("array = 3", "[array] must be a table, not 3"),
    ("[array]\nformat = 'ternary'\nrow = 3",
     ("unknown key array.row; known: acc_bits, act_bits, cols, format, gain_terms, lanes, pe, pipeline, "
     "plane_shift, requantize_lanes, rows, weights")),
    ("[array]\nformat = 'ternary'\nmemory = 3",
     ("unknown key array.memory; known: acc_bits, act_bits, cols, format, gain_terms, lanes, pe, pipeline, "
     "plane_shift, requantize_lanes, rows, weights")),
    ("[array]\nformat = 'ternary'\n[memory]\nweight = 3",
     "unknown key memory.weight; known: accumulators, activations, layers, lines, parameters, weights"),
    ("[array]\nformat = 'ternery'", ("array.format: Unknown weight format 'ternery'; known: binary, ternary, pot3, "
                                     "pot3z, pot4, pot4z, exp4, exp4_sqrt2, exp5, fp4_e2m1, int2..int16")),
    ("[array]\nformat = 'int9'", ("array.format: an array holds weights of up to 8 bits, not int9; layers of int9 run "
                                  "on any array, as planes")),
    ("[array]\nformat = 4", "array.format: must be a name or a table, not 4"),
    ("[array]\nformat = {name = 'x'}", ("array.format: a table has the keys name, levels, or name, multiples, shifts, "
                                        "zero; not name")),
    ("[array]\nformat = {name = 'x', levels = [-1, 1], zero = false}",
     "array.format: a table has the keys name, levels, or name, multiples, shifts, zero; not levels, name, zero"),
    ("[array]\nformat = {name = 'x', levels = 3}", "array.format: levels must be a list of integers, not 3"),
    ("[array]\nformat = {name = 'x', levels = [-1.0, 1.0]}",
     "array.format: Levels of format 'x' must be a tuple of integers, not (-1.0, 1.0)"),
    ("[array]\nformat = {name = 'x', levels = [1, 2]}",
     ("array.format: Levels of format 'x' must be symmetric about 0, or all integers of a two's-complement range, "
      "not (1, 2)")),
    ("[array]\nformat = {name = 5, levels = [-1, 1]}", "array.format: Format name must be a string, not 5"),
    ("[array]\nformat = {name = '/', levels = [-1, 1]}",
     "array.format: Format name must be letters, digits and underscores, a letter first, not '/'"),
    ("[array]\nformat = {name = 'x', multiples = 1, shifts = 1, zero = true}",
     "array.format: multiples must be a list of integers, not 1"),
    ("[array]\nformat = {name = 'x', multiples = [2], shifts = 1, zero = true}",
     "array.format: Multiples of format 'x' must be odd positive integers, not (2,)"),
    ("[array]\nformat = {name = 'x', multiples = [1], shifts = 1000000000, zero = true}",
     "array.format: Number of shifts of format 'x' must be an integer in 1..30, not 1000000000"),
    ("[array]\nformat = {name = 'x', multiples = [1], shifts = 1, zero = 'no'}",
     "array.format: zero must be true or false, not 'no'"),
    ("[array]\nformat = 'ternary'\nweights = 'stream'\n[memory]\nweights = 2",
     "memory.weights must be at least 3 where it is a buffer of the weight stream, not 2"),
    ("[array]\nformat = 'ternary'\nrows = '16'", "array.rows must be an integer, not '16'"),
    ("[array]\nformat = 'ternary'\nrows = 16.0", "array.rows must be an integer, not 16.0"),
    ("[array]\nformat = 'ternary'\nrows = true", "array.rows must be an integer, not True"),
    ("[array]\nformat = 'ternary'\nrows = 0", "array.rows must be in 1..256, not 0"),
    ("[array]\nformat = 'ternary'\ncols = 257", "array.cols must be in 1..256, not 257"),
    ("[array]\nformat = 'ternary'\nlanes = 65", "array.lanes must be in 1..64, not 65"),
    ("[array]\nformat = 'ternary'\nact_bits = 9", "array.act_bits must be in 2..8, not 9"),
    ("[array]\nformat = 'ternary'\nacc_bits = 33", "array.acc_bits must be in 12..32, not 33"),
    ("[array]\nformat = 'ternary'\ngain_terms = 4", "array.gain_terms must be in 1..3, not 4"),
    ("[array]\nformat = 'ternary'\nrows = 16\nlanes = 64", "array.rows * array.lanes must be at most 512, not 16 * 64"),
    ("[array]\nformat = 'ternary'\npe = 'dsp'", "array.pe must be one of shift, multiplier, not 'dsp'"),
    ("[array]\nformat = 'ternary'\npe = ['shift']", "array.pe must be one of shift, multiplier, not ['shift']"),
    ("[array]\nformat = 'ternary'\npe = 'multiplier'",
     "array: A multiplier takes a uniform format (int2..int8), not 'ternary'"),
    ("[array]\nformat = 'int8'", ("array: Format 'int8' needs 64 odd multiples per row edge, more than 8: "
                                  'set pe = "multiplier" or choose a format with fewer levels')),
    ("[array]\nformat = 'int4'\nacc_bits = 14",
     "array.acc_bits = 14 cannot hold one column sum of 16 int4 products: at least 15 bits are needed"),
    ("[array]\nformat = 'ternary'\n[memory]\nactivations = 1", "memory.activations must be in 2..1048576, not 1"),
    ("[array]\nformat = 'ternary'\n[memory]\nweights = 4194305", "memory.weights must be in 2..4194304, not 4194305"),
    ("[array]\nformat = 'ternary'\n[memory]\nparameters = 1", "memory.parameters must be in 2..65536, not 1"),
    ("[array]\nformat = 'ternary'\n[memory]\naccumulators = -5", "memory.accumulators must be in 2..65536, not -5"),
    ("[array]\nformat = 'ternary'\n[memory]\nlayers = 0", "memory.layers must be in 1..4096, not 0"),
    ("[array]\nformat = 'ternary'\n[memory]\nlayers = '8'", "memory.layers must be an integer, not '8'"),
])
def test_mistakes_in_a_file(tmp_path, text, message):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with refuse(f"{path}: {message}"):
        load_config(path)


@pytest.mark.parametrize(("data", "message"), [
    (b"[array", "not TOML: .+"),
    (b"[array]\nrows = 1\nrows = 2\n", "not TOML: Cannot overwrite a value .+"),
    (b"\xff", "not TOML: 'utf-8' codec can't decode byte 0xff .+"),
    (b"rows = " + b"9" * 5000, "not TOML: Exceeds the limit .+"),
    (b"rows = " + b"[" * 100_000, "not TOML: .+"),
])
def test_not_toml(tmp_path, data, message):
    path = tmp_path / "bad.toml"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=f"^{re.escape(str(path))}: {message}$"):
        load_config(path)


def test_unreadable_file(tmp_path):
    with refuse(f"{tmp_path / 'no.toml'}: No such file or directory"):
        load_config(tmp_path / "no.toml")
    with refuse(f"{tmp_path}: Is a directory"):
        load_config(tmp_path)


def test_parse_names_its_source():
    with refuse('configuration: array.format is missing, for example format = "ternary"'):
        parse_config({})
    with refuse('the test: array.format is missing, for example format = "ternary"'):
        parse_config({}, source="the test")


# Python ---------------------------------------------------------------------------------------------------------

def test_wrong_types_in_python():
    with refuse("array.format must be the name of a weight format or a WeightFormat, not 3"):
        ArrayConfig(3)
    with refuse("array.format: an array holds weights of up to 8 bits, not int16; layers of int16 run on any array, as "
                "planes"):
        ArrayConfig("int16", pe="multiplier")
    with refuse("memory must be a MemoryConfig, not {}"):
        ArrayConfig("ternary", memory={})


def test_errors_are_value_errors():
    assert issubclass(ConfigError, ValueError)
