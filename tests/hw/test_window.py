"""The window unit against NumPy: kernels, strides, paddings, pairs, tiles behind each other, gaps in the stream."""

import numpy as np
import pytest

from nomul_hw.arithmetic import act_range
from nomul_hw.config import ArrayConfig, MemoryConfig
from nomul_hw.descriptor import LayerOp
from nomul_hw.layouts import window_layout
from nomul_hw.window import WindowUnit

from .simulate import trace
from .vectors import descriptor, join, split, token

CONFIGS = [
    ArrayConfig("ternary", 3, 10, memory=MemoryConfig(lines=16)),
    ArrayConfig("exp4_sqrt2", 1, 4, lanes=2, memory=MemoryConfig(lines=9)),  # no multiple is 1; three groups of taps
    ArrayConfig("int4", 2, 5, act_bits=4, pe="multiplier", memory=MemoryConfig(lines=16)),
]
every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)


class Stimulus:
    """Inputs of the unit cycle by cycle, and what must come out."""

    def __init__(self, config, rng):
        self.config, self.rng = config, rng
        self.ports = {name: [] for name in ("layer", "token", "place", "word", "before", "load", "weights")}
        self.expected = {}

    def cycle(self, **values):
        garbage = {
            "token": token(self.config, valid=0, **{f: int(self.rng.integers(2)) for f in ("last", "tile", "first")}),
            "place": int(self.rng.integers(1 << window_layout(self.config).size)) & ~(
                -1 << window_layout(self.config).size),
            "word": join(self.rng.integers(-128, 128, self.config.depth), self.config.act_bits),
            "before": join(self.rng.integers(-128, 128, self.config.depth), self.config.act_bits),
            "load": 0,
            "weights": int.from_bytes(self.rng.bytes(64)) & ((1 << self.config.weight_word_bits) - 1),
            "layer": 0,
        }
        for name, port in self.ports.items():
            port.append(values.get(name, garbage[name]))

    def load(self, layer, weights, pair):
        """Load a tile of weights (channels, 3, 3) of all lanes."""
        config = self.config
        order = [1, 0, 2] if pair else [0, 1, 2]
        taps = weights[:, :, order].reshape(config.depth, 9)
        for group in range(config.window_groups):
            for row in range(config.rows):
                codes = np.zeros(config.cols * config.lanes, dtype=np.int64)
                for col in range(config.cols):
                    for lane in range(config.lanes):
                        tap = group * config.cols + col
                        level = taps[row * config.lanes + lane, tap] if tap < 9 else config.format.levels[0]
                        codes[col * config.lanes + lane] = config.format.encode(np.array([level]))[0]
                self.cycle(load=1 << (group * config.rows + row), weights=join(codes, config.format.bits), layer=layer)

    def plane(self, op, layer_values, codes, weights, kernel, stride, padding, pair, gaps, load):
        """Stream one map (channels, height, width); ``padding`` is top, left; outputs are all that fit with any
        padding of at most the kernel behind."""
        config, rng = self.config, self.rng
        low = act_range(config.act_bits)[0]
        pad = low if layer_values["pad_low"] else 0
        _, height, width = codes.shape
        rows = (height + padding[0] + int(rng.integers(0, kernel[0])) - kernel[0]) // stride[0] + 1
        columns = (width + padding[1] + int(rng.integers(0, kernel[1])) - kernel[1]) // stride[1] + 1
        if min(rows, columns) < 1:
            return False
        # Where windows end, and where positions start.
        first = [2 - padding[axis] - 3 + kernel[axis] for axis in (0, 1)]
        starts, skips = [], []
        for axis in (0, 1):
            start = first[axis] % 2 if axis and pair else min(0, first[axis])
            if axis and pair and first[axis] < start:
                start = first[axis]
            skip = (first[axis] - start) // (2 if axis and pair else 1)
            starts.append(start)
            skips.append(skip)
        step = 2 if pair else 1
        if pair and first[1] >= 2 and first[1] % 2 == 0 and starts[1] != 0:
            raise AssertionError
        last_column = first[1] + (columns - 1) * stride[1]
        if last_column == starts[1]:
            starts[1] -= step
            skips[1] += 1
        layer_values |= {
            "skip_columns": skips[1], "skip_rows": skips[0], "stride_columns": int(stride[1] == 2 and not pair),
            "stride_rows": int(stride[0] == 2), "pair": int(pair), "op": op,
            "mask_columns": (1 << 3 - kernel[1]) - 1, "mask_rows": (1 << 3 - kernel[0]) - 1,
        }
        layer = descriptor(**layer_values)
        padded = np.full((config.depth, height + 12, width + 12), pad)
        padded[:, 6:6 + height, 6:6 + width] = codes
        if load:
            self.load(layer, weights, pair)
            for _ in range(2):
                self.cycle(layer=layer)
        place = window_layout(config)
        pixel = 0
        for y in range(starts[0], first[0] + (rows - 1) * stride[0] + 1):
            for index, x in enumerate(range(starts[1], last_column + 1, step)):
                done = y >= first[0] and (y - first[0]) % stride[0] == 0 and x >= first[1] and (
                    (x - first[1]) % stride[1] == 0)
                for _ in range(int(rng.integers(0, 3)) if gaps else 0):
                    self.cycle(layer=layer)
                word = token(config, last=done, tile=int(op == LayerOp.DEPTHWISE and y == starts[0] and index == 0),
                             pixel=pixel)
                if done:
                    window = padded[:, 6 + y - kernel[0] + 1:6 + y + 1, 6 + x - kernel[1] + 1:6 + x + 1]
                    if op == LayerOp.MAX_WINDOW:
                        values = window.max(axis=(1, 2))
                    else:
                        full = np.full((config.depth, 3, 3), pad)
                        full[:, 3 - kernel[0]:, 3 - kernel[1]:] = window
                        values = [sum(config.product.raw(int(w), int(v)) for w, v in
                                      zip(weights[channel].ravel(), full[channel].ravel(), strict=True))
                                  for channel in range(config.depth)]
                    # The token's first cycle is the next one; three later comes the result.
                    self.expected[len(self.ports["token"]) + 3] = word | 0, list(map(int, values))
                    pixel += 1
                self.cycle(
                    layer=layer, token=word,
                    place=place.const({"column": index, "first_column": index == 0, "row_0": y == starts[0],
                                       "row_1": y == starts[0] + 1, "before_outside": 0}).as_bits(),
                    word=join(padded[:, 6 + y, 6 + x], config.act_bits),
                    before=join(padded[:, 6 + y, 6 + x - 1], config.act_bits))
        for _ in range(3):
            self.cycle(layer=layer)
        return True

    def check(self):
        ports = {**self.ports}
        config = self.config
        ports["next_valid"] = [word & 1 for word in ports["token"][1:]] + [0]
        ports["next_place"] = ports["place"][1:] + [0]
        outputs = trace(WindowUnit(config), ports, ["upcoming", "result"])
        done = {cycle: (word, split(outputs["result"][cycle], config.channel_bits, config.depth))
                for cycle, word in enumerate(outputs["upcoming"], start=2) if word & 1}
        assert done == self.expected


@every_config
@pytest.mark.parametrize("op", [LayerOp.DEPTHWISE, LayerOp.MAX_WINDOW])
@pytest.mark.parametrize("gaps", [False, True])
def test_windows(config, op, gaps):
    rng = np.random.default_rng([config.depth, op, gaps])
    stimulus = Stimulus(config, rng)
    low, high = act_range(config.act_bits)
    levels = np.asarray(config.format.levels)
    for kernel in ((3, 3), (1, 1), (2, 3), (3, 1), (2, 2), (1, 2)):
        for stride in ((1, 1), (2, 2), (1, 2), (2, 1)):
            pair = op == LayerOp.DEPTHWISE and stride[1] == 2 and rng.random() < 0.7
            height, width = (int(size) for size in rng.integers(1, 6, 2))
            padding = tuple(int(rng.integers(0, k)) for k in kernel)
            codes = rng.integers(low, high, (config.depth, height, width), endpoint=True)
            weights = rng.choice(levels, (config.depth, 3, 3))
            stimulus.plane(op, {"pad_low": int(op == LayerOp.MAX_WINDOW or rng.random() < 0.5)}, codes, weights, kernel,
                           stride, padding, pair, gaps, op == LayerOp.DEPTHWISE)
    assert len(stimulus.expected) > 50
    stimulus.check()
