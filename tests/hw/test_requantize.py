"""The requantizer against the arithmetic contract: ends of the range, ties, every shift and every gain."""

import itertools

import numpy as np
import pytest

from nomul_hw.arithmetic import MAX_SKIP_DROP, act_range, requantize
from nomul_hw.config import ArrayConfig
from nomul_hw.requantize import Requantizer

from .simulate import trace
from .vectors import MULTIPLIERS, cells, parameter

CONFIGS = [ArrayConfig("ternary", 2, 2, act_bits=act_bits, acc_bits=acc_bits, gain_terms=terms)
           for acc_bits, (act_bits, terms) in itertools.product(
               (16, 24, 32), ((8, 1), (4, 2), (8, 2), (4, 3), (8, 3)))]
every_config = pytest.mark.parametrize(
    "config", CONFIGS, ids=lambda c: f"acc{c.acc_bits}-act{c.act_bits}-terms{c.gain_terms}")


def vectors(config: ArrayConfig, rng: np.random.Generator, count: int):
    """Accumulators, biases, multipliers and shifts, (n,) each; every ``acc + bias`` fits in an accumulator."""
    bits = config.acc_bits
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    multipliers = np.array(config.gain_multipliers)
    ends = [(low, 0), (0, low), (high, 0), (0, high), (low, high), (high, low), (0, 0), (-1, 0), (low // 2, low // 2)]
    rows = []
    # The ends at every shift with the smallest and the largest multiplier, the utmost with all at the last shifts.
    for end in ends:
        rows += [(*end, m, n) for m in (1, multipliers[-1]) for n in range(config.max_gain_shift + 1)]
    for end in ((low, 0), (high, 0)):
        rows += [(*end, m, n) for m in multipliers for n in (0, config.max_gain_shift)]
    # Exact halves, and their neighbours: a multiplier is odd, so v * m is a tie where v is an odd half.
    for n in range(1, config.max_gain_shift):
        for v in (2 * int(rng.integers(-4, 4)) + 1, -1, 1):
            half = v << (n - 1)
            if low < half < high:
                rows += [(half + near, 0, int(rng.choice(multipliers)), n) for near in (-1, 0, 1)]
    # Codes around powers of two, where an output saturates and where a shifter drops bits.
    for _ in range(count):
        m, n = int(rng.choice(multipliers)), int(rng.integers(0, config.max_gain_shift + 1))
        code = (int(rng.choice([-1, 1])) << int(rng.integers(config.act_bits - 2, config.act_bits + 7)))
        v = (code + int(rng.integers(-2, 3)) << n) // m + int(rng.integers(-1, 2))
        if low <= v <= high:
            rows.append((v, 0, m, n))
    # Values whose codes are spread over the range and a little beyond.
    for _ in range(count):
        m, n = int(rng.choice(multipliers)), int(rng.integers(0, config.max_gain_shift + 1))
        v = int(np.clip(rng.integers(-160, 161) * 2.0**n / m, low, high))
        bias = int(rng.integers(max(low, v - high), min(high, v - low) + 1))
        rows.append((v - bias, bias, m, n))
    return np.array(rows).T


def layer(config: ArrayConfig, low: int, high: int) -> dict[str, int]:
    """What the requantizer is told of a layer's limits."""
    return {"slack": (1 << config.act_bits) - 1 - (high - low), "above": high + 1}


@every_config
def test_contract(config):
    """Every vector's code, :attr:`latency` cycles later, one vector a cycle."""
    rng = np.random.default_rng(config.acc_bits + config.gain_terms)
    smallest, largest = act_range(config.act_bits)
    dut = Requantizer(config)
    assert dut.latency == 5
    inputs = {name: [] for name in ("acc", "parameters", "slack", "above")}
    expected = {}
    clamps = [(0, smallest, largest), (smallest, smallest, largest), (smallest, smallest + 1, 0), (0, 1, 1),
              (smallest, largest, largest)]
    every = rng.permutation(vectors(config, rng, 200), axis=1)
    for index, (zero_point, low, high) in enumerate(clamps):
        acc, bias, multiplier, shift = every[:, index::len(clamps)]
        codes = requantize(acc, bias, multiplier, shift, zero_point=zero_point, low=low, high=high)
        expected |= dict(enumerate(codes.tolist(), start=len(inputs["acc"]) + dut.latency))
        # The layer's values stay as they are until its last code is out.
        drain = [0] * dut.latency
        inputs["acc"] += acc.tolist() + drain
        inputs["parameters"] += [parameter(config, *row, zero_point=zero_point, low=low) for row in
                                 zip(bias.tolist(), multiplier.tolist(), shift.tolist(), strict=True)] + drain
        for name, value in layer(config, low, high).items():
            inputs[name] += [value] * (len(acc) + dut.latency)
    code = trace(dut, inputs, ["code"])["code"]
    assert {cycle: code[cycle] for cycle in expected} == expected
    assert {smallest, largest, 0, 1} <= set(expected.values())


@every_config
@pytest.mark.parametrize("drop", range(MAX_SKIP_DROP + 1))
@pytest.mark.parametrize("relu", [False, True])
def test_residual(config, drop, relu):
    """The skip tensor's value comes two cycles after the accumulator, with ``drop`` places below the point."""
    rng = np.random.default_rng([drop, relu])
    smallest, largest = act_range(config.act_bits)
    zero_point, low, high = (smallest, smallest, largest - 2) if relu else (0, smallest, largest)
    dut = Requantizer(config)
    every = rng.permutation(vectors(config, rng, 100), axis=1)
    acc, bias, multiplier, shift = every[:, every[3] >= drop]
    code = rng.choice([smallest, -1, 0, 1, largest, *range(smallest, largest)], len(acc))
    skip = code - zero_point
    # Where a residual stands against a sum of the same size: codes within the range, and ties.
    near = rng.random(len(acc)) < 0.5
    acc[near] = np.clip(-(skip[near] << shift[near] >> drop) // multiplier[near] + rng.integers(-3, 4, near.sum()),
                        -(1 << config.acc_bits - 1), (1 << config.acc_bits - 1) - 1)
    bias[near] = 0
    expected = requantize(acc, bias, multiplier, shift, zero_point=zero_point, low=low, high=high, skip=skip,
                          drop=drop)
    length = len(acc) + dut.latency

    def padded(values) -> list[int]:
        return [*map(int, values), *[0] * (length - len(values))]

    inputs = {
        "acc": padded(acc), "skip": padded([0, 0, *code]), "adds": [1] * length,
        "drop": [drop] * length,
        "parameters": padded([parameter(config, *map(int, row), zero_point=zero_point, low=low, drop=drop,
                                        skip_zero_point=zero_point)
                              for row in zip(bias, multiplier, shift, strict=True)]),
        **{name: [value] * length for name, value in layer(config, low, high).items()}}
    assert trace(dut, inputs, ["code"])["code"][dut.latency:] == expected.tolist()
    assert {low, zero_point, zero_point + 1, high} <= set(expected.tolist())


@every_config
def test_no_multiplier(config):
    assert not set(cells(Requantizer(config))) & MULTIPLIERS
