"""The accumulators against a dictionary: passes over pixels in any rhythm that the array may have."""

import numpy as np
import pytest

from nomul_hw.accumulator import Accumulator
from nomul_hw.config import ArrayConfig, MemoryConfig

from .simulate import trace
from .vectors import join, split, token

CONFIGS = [
    ArrayConfig("ternary", 2, 3, acc_bits=16, memory=MemoryConfig(activations=64, accumulators=7)),
    ArrayConfig("int8", 1, 1, pe="multiplier", acc_bits=17, memory=MemoryConfig(activations=64, accumulators=2)),
    ArrayConfig("binary", 4, 2, acc_bits=12, memory=MemoryConfig(activations=4, accumulators=16)),
]
every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)


def run(config, words):
    """Feed ``(token fields or None, sums)`` cycle by cycle; return what comes out three cycles after each token.

    The token itself comes out two cycles before that.

    Without a token all other fields and the sums are garbage.
    """
    rng = np.random.default_rng(1)
    garbage = {name: int(rng.integers(2)) for name in ("first", "last", "tile", "block_last", "layer_last", "pixel")}
    ahead = [token(config, **(garbage | {"valid": 0} if fields is None else fields)) for fields, _ in words]
    sums = [join(values, config.column_sum_bits) for _, values in words]
    # The sums arrive two cycles after their token.
    outputs = trace(Accumulator(config), {"ahead": ahead + [0] * 3, "sums": [0] * 2 + sums + [0]},
                    ["upcoming", "totals"])
    assert outputs["upcoming"][1:len(ahead) + 1] == ahead
    return [split(word, config.acc_bits, config.cols) for word in outputs["totals"][3:]]


def random_sums(rng, config):
    high = 1 << (config.column_sum_bits - 1)
    return rng.integers(-high, high, config.cols).tolist()


@every_config
@pytest.mark.parametrize("gaps", [False, True])
def test_passes(config, gaps):
    """Layers of some passes; pixels come back after four cycles at the earliest. Totals are kept between tokens."""
    rng = np.random.default_rng(2)
    words, expected = [], []
    kept = None
    for passes, pixels in [(1, 3), (4, config.memory.accumulators), (2, 1), (5, min(4, config.memory.accumulators))]:
        totals = {}
        for index in range(passes):
            for pixel in range(pixels):
                sums = random_sums(rng, config)
                fields = {"first": index == 0, "last": index == passes - 1, "tile": pixel == 0, "pixel": pixel}
                kept = totals[pixel] = np.add(sums, 0 if index == 0 else totals[pixel]).tolist()
                words.append((fields, sums))
                expected.append(kept)
                idle = int(rng.integers(0, 3)) if gaps else 0
                if pixel == pixels - 1:
                    idle = max(idle, 4 - pixels)
                for _ in range(idle):
                    words.append((None, random_sums(rng, config)))
                    expected.append(kept)
    assert run(config, words) == expected


@every_config
def test_single_pass_needs_no_memory(config):
    """Layers of one pass may have more pixels than there are accumulators."""
    rng = np.random.default_rng(3)
    pixels = min(config.memory.activations, 40)
    sums = [random_sums(rng, config) for _ in range(pixels)]
    words = [({"first": 1, "last": 1, "pixel": pixel}, each) for pixel, each in enumerate(sums)]
    assert run(config, words) == sums


@every_config
def test_ends_of_the_range(config):
    """Totals reach both ends of an accumulator exactly."""
    low, high = -(1 << (config.acc_bits - 1)), (1 << (config.acc_bits - 1)) - 1
    most = (1 << (config.column_sum_bits - 1)) - 1
    for target, step in ((high, most), (low, -most - 1)):
        steps = [step] * (target // step) + ([target % step] if target % step else [])
        words, totals = [], []
        for index, value in enumerate(steps):
            words += [({"first": index == 0, "last": index == len(steps) - 1}, [value] * config.cols)]
            words += [(None, [0] * config.cols)] * 3
            totals += [[sum(steps[:index + 1])] * config.cols] * 4
        assert totals[-1] == [target] * config.cols
        assert run(config, words) == totals
