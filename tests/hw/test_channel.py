"""The channel unit against NumPy: windows of any size, back to back and with gaps."""

import numpy as np
import pytest

from nomul_hw.channel import ChannelUnit
from nomul_hw.config import ArrayConfig
from nomul_hw.descriptor import LayerOp

from .simulate import trace
from .vectors import descriptor, join, split, token

CONFIGS = [
    ArrayConfig("ternary", 3, 1),
    ArrayConfig("ternary", 2, 2, lanes=2, act_bits=4),
    ArrayConfig("binary", 1, 1, acc_bits=12),  # accumulators narrower than a sum of 256 taps
]
every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.name}-act{c.act_bits}-acc{c.acc_bits}")


@every_config
@pytest.mark.parametrize("op", [LayerOp.MAX_POOL, LayerOp.SUM_POOL])
@pytest.mark.parametrize("gaps", [False, True])
def test_windows(config, op, gaps):
    rng = np.random.default_rng(1)
    high = 1 << (config.act_bits - 1)
    most = 1 << (config.pool_bits - config.act_bits)
    windows = [rng.integers(-high, high, (taps, config.depth)) for taps in (1, 1, 2, 9, 1, 4, 3)]
    windows += [np.full((most, config.depth), end) for end in (-high, high - 1)]
    # The largest tap comes first, last, and in every other place.
    windows += [np.roll(np.arange(4) - high, turn)[:, None].repeat(config.depth, 1) for turn in range(4)]

    tokens, words, expected = [], [], {}
    for pixel, window in enumerate(windows):
        for index, tap in enumerate(window):
            for _ in range(int(rng.integers(0, 3)) if gaps and len(window) < 10 else 0):
                tokens.append(token(config, valid=0, first=1, last=1))
                words.append(rng.integers(-high, high, config.depth))
            tokens.append(token(config, first=index == 0, last=index == len(window) - 1, pixel=pixel))
            words.append(tap)
        window = window + high
        reduced = window.max(0) if op is LayerOp.MAX_POOL else window.sum(0)
        expected[len(tokens) - 1 + 2] = tokens[-1], reduced.tolist()  # two cycles after the last tap
    tokens += [0] * 4
    words += [np.zeros(config.depth)] * 4

    outputs = trace(ChannelUnit(config), {
        "layer": [descriptor(op=op)] * len(tokens), "token": tokens,
        "word": [join(word, config.act_bits) for word in words],
    }, ["upcoming", "result"])
    result = [[value % (1 << config.pool_bits) for value in split(word, config.pool_bits, config.depth)]
              for word in outputs["result"]]
    done = {cycle: (word, result[cycle]) for cycle, word in enumerate(outputs["upcoming"], start=2) if word & 1}
    assert done == expected
    # A result is kept until the next one: the output stage takes its channels one after the other.
    for (start, (_, values)), end in zip(expected.items(), [*list(expected)[1:], len(result)], strict=True):
        assert result[start:end] == [values] * (end - start)
