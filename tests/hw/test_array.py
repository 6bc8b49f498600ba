"""The systolic array against NumPy: every shape, tiles without a bubble, loads at their earliest and latest."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from nomul_hw.arithmetic import act_range
from nomul_hw.array import SystolicArray
from nomul_hw.config import ArrayConfig

from .simulate import trace
from .vectors import MULTIPLIERS, cells, join, split

CONFIGS = [
    ArrayConfig("ternary", 1, 1),
    ArrayConfig("pot3", 1, 1, 4),
    ArrayConfig("int4", 1, 1, 8, pe="multiplier"),
    ArrayConfig("exp4", 4, 4),
    ArrayConfig("binary", 4, 4, 2),
    ArrayConfig("fp4_e2m1", 3, 5),
    ArrayConfig("ternary", 3, 5, 4),
    ArrayConfig("int3", 3, 5, pe="multiplier"),
    ArrayConfig("pot4", 2, 8),
    ArrayConfig("pot3z", 2, 3, 8),
    ArrayConfig("exp5", 2, 2, 2),
    ArrayConfig("int8", 2, 2, pe="multiplier"),
    ArrayConfig("int4", 5, 1, act_bits=4),
    ArrayConfig("exp4_sqrt2", 1, 6, act_bits=3),
    ArrayConfig("pot4", 3, 2, pipeline=1),
    ArrayConfig("ternary", 2, 2, 4, pipeline=2),
    ArrayConfig("int8", 2, 2, pe="multiplier", pipeline=3),
    ArrayConfig("exp4", 2, 3, 5, pipeline=3),
    ArrayConfig("binary", 2, 2, 8, pipeline=1),
]
every_config = pytest.mark.parametrize(
    "config", CONFIGS, ids=lambda config: f"{config.name}-{config.act_bits}bit-{config.pipeline}")


@dataclass
class Tile:
    """Weights (depth, cols), and the vectors (n, depth) that they multiply; ``gaps[i]`` idle cycles follow vector i."""

    weights: npt.NDArray
    acts: npt.NDArray
    gaps: npt.NDArray

    @property
    def cycles(self) -> int:
        return len(self.acts) + int(self.gaps.sum())


def random_tiles(rng, config: ArrayConfig, count: int, *, gaps: bool) -> list[Tile]:
    """Tiles of at least ``rows`` cycles, so that the weight bus can load one while the one before it is in use."""
    low, high = act_range(config.act_bits)
    tiles = []
    for _ in range(count):
        weights = rng.choice(config.format.levels, (config.depth, config.cols))
        length = int(config.rows + rng.integers(0, 4) * rng.integers(0, 2))
        acts = rng.integers(low, high, (length, config.depth), endpoint=True)
        tiles.append(Tile(weights, acts, rng.integers(0, 3, length) * rng.integers(0, 2, length) if gaps
                          else np.zeros(length, dtype=int)))
    return tiles


def check(config: ArrayConfig, tiles: list[Tile], *, load: str, seed: int) -> None:
    """Stream tiles through an array; everything on its inputs that is not theirs is garbage.

    ``load``: whether tiles are loaded as early as the array allows or as late.
    """
    rng = np.random.default_rng(seed)
    dut = SystolicArray(config)
    assert dut.latency == config.rows + config.cols + config.pipeline
    rows, lanes = config.rows, config.lanes
    starts = np.cumsum([rows, *(tile.cycles for tile in tiles)]).tolist()
    cycles = starts[-1] + dut.latency + 1
    low, high = act_range(config.act_bits)
    acts = rng.integers(low, high, (cycles, config.depth), endpoint=True)
    weights = [int.from_bytes(rng.bytes(-(-config.weight_word_bits // 8))) % (1 << config.weight_word_bits)
               for _ in range(cycles)]
    swaps, loads, expected = [0] * cycles, [0] * cycles, {}

    for index, tile in enumerate(tiles):
        # The window of row r, from r cycles after the swap before to r - 1 cycles after this tile's. The first tile
        # finds an array without any.
        earliest, latest = (starts[index - 1] if index else 0), starts[index] - 1
        words = tile.weights.reshape(rows, lanes, config.cols).transpose(0, 2, 1).reshape(rows, -1)
        for row, codes in enumerate(config.format.encode(words)):
            at = {"earliest": earliest, "latest": latest}[load] + row
            assert not loads[at], "the weight bus is in use"
            loads[at], weights[at] = 1 << row, join(codes, config.format.bits)

        swaps[starts[index]] = 1
        at = starts[index] + np.concatenate(([0], np.cumsum(1 + tile.gaps)[:-1])).astype(int)
        acts[at] = tile.acts
        sums = tile.acts.astype(np.int64) @ tile.weights - config.product.corrections(tile.weights).sum(0)
        expected |= dict(zip((at + dut.latency).tolist(), sums.tolist(), strict=True))

    got = trace(dut, {"act": [join(x, config.act_bits) for x in acts], "swap": swaps, "load": loads,
                      "weights": weights}, ["sums"])["sums"]
    got = {cycle: split(got[cycle], config.column_sum_bits, config.cols) for cycle in expected}
    assert got == expected


def extreme_tiles(config: ArrayConfig) -> list[Tile]:
    """The largest sums there are, of either sign: no partial sum on the way down may overflow."""
    levels, ends = config.format.levels, act_range(config.act_bits)
    acts = np.array([[end] * config.depth for end in ends] * config.rows)
    tiles = [Tile(np.full((config.depth, config.cols), weight), acts, np.zeros(len(acts), dtype=int))
             for weight in (levels[0], levels[-1])]
    low, high = config.product.raw_bounds(levels, config.act_bits)
    sums = [tile.acts @ tile.weights - config.product.corrections(tile.weights).sum(0) for tile in tiles]
    assert np.min(sums) == config.depth * low.min() and np.max(sums) == config.depth * high.max()
    return tiles


@every_config
def test_back_to_back(config):
    """One vector a cycle, tile after tile, extremes first; a tile's load begins beside the swap before it."""
    tiles = extreme_tiles(config) + random_tiles(np.random.default_rng(1), config, 5, gaps=False)
    check(config, tiles, load="earliest", seed=2)


@every_config
def test_gaps(config):
    """Idle cycles in every other tile, with garbage on all inputs; loads as late as they may be."""
    rng = np.random.default_rng(3)
    tiles = [tile for gaps in (True, False) * 3 for tile in random_tiles(rng, config, 1, gaps=gaps)]
    check(config, tiles, load="latest", seed=4)


@every_config
def test_no_multiplier(config):
    """An array is made of adders, in its elements and at its edge."""
    found = cells(SystolicArray(config))
    assert not set(found) & {"$neg", *MULTIPLIERS}
    elements = config.rows * config.cols * config.lanes * len(config.product.terms) - config.cols
    edges = sum(((3 * multiple) ^ multiple).bit_count() - 1
                for multiple in config.format.multiples) if config.pe == "shift" else 0
    assert found["$add"] + found["$sub"] == elements + config.depth * edges
