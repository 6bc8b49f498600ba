"""The output stage against a plain loop over channels: which code is written where, and in which cycle."""

import numpy as np
import pytest

from nomul_hw.arithmetic import act_range, requantize
from nomul_hw.config import ArrayConfig, MemoryConfig
from nomul_hw.descriptor import LayerOp, parameter_fields
from nomul_hw.output import LEAD, OutputStage

from .simulate import trace
from .vectors import descriptor, join, parameter, split, token

MEMORY = MemoryConfig(activations=200, parameters=60, accumulators=16)
CONFIGS = [
    ArrayConfig("ternary", 4, 2, memory=MEMORY),  # two blocks fill a word
    ArrayConfig("ternary", 2, 6, memory=MEMORY, act_bits=4, gain_terms=3),  # a block fills three words
    ArrayConfig("binary", 3, 4, memory=MEMORY, gain_terms=1),  # coprime: a channel per cycle
    ArrayConfig("ternary", 2, 3, lanes=3, memory=MEMORY, acc_bits=16),
    ArrayConfig("ternary", 2, 4, lanes=3, memory=MEMORY),  # neither divides the other
    ArrayConfig("ternary", 2, 2, memory=MEMORY),
    ArrayConfig("ternary", 1, 1, memory=MEMORY),
]


class Layer:
    """A random layer: ``blocks`` of channels (of the array or of a word) for ``pixels`` each."""

    def __init__(self, rng: np.random.Generator, config: ArrayConfig, op: LayerOp, parameter_base: int):
        self.op = op
        self.conv = op is LayerOp.CONV
        self.group = config.cols if self.conv else config.depth  # channels of a vector
        self.chunks = self.group // config.requantize_lanes
        self.blocks, self.pixels = int(rng.integers(1, 4)), int(rng.integers(1, 5))
        channels = self.blocks * self.group
        self.plane = self.pixels + int(rng.integers(0, 3))
        self.address = int(rng.integers(0, MEMORY.activations - self.plane * -(-channels // config.depth)))
        self.parameter_base = parameter_base
        self.bias = rng.integers(-50, 50, channels)
        self.multiplier = rng.choice(config.gain_multipliers, channels)
        self.shift = rng.integers(0, 6, channels)
        low, high = act_range(config.act_bits)
        self.zero_point = int(rng.choice([0, low]))
        self.low, self.high = [(low, high), (low, 2), (-1, high)][int(rng.integers(3))]
        bits = config.acc_bits - 4 if self.conv else config.channel_bits
        self.values = rng.integers(-200, 200, (self.blocks, self.pixels, self.group)).clip(
            -(1 << bits - 1), (1 << bits - 1) - 1)
        self.descriptor = descriptor(
            op=op, out_address=self.address, out_plane=self.plane, parameter_base=parameter_base,
            slack=(1 << config.act_bits) - 1 - (self.high - self.low), above=(self.high + 1) % (1 << config.act_bits),
        )

    def parameter_words(self, config: ArrayConfig) -> list[int]:
        """Parameter memory: the channels of a chunk side by side."""
        lanes = config.requantize_lanes
        words = [parameter(config, *map(int, each), zero_point=self.zero_point, low=self.low)
                 for each in zip(self.bias, self.multiplier, self.shift, strict=True)]
        bits = sum(field.bits for field in parameter_fields(config))
        return [join(words[at:at + lanes], bits) for at in range(0, len(words), lanes)]

    def codes(self) -> np.ndarray:
        """Output codes, (blocks, pixels, group)."""
        def per_channel(values):
            return values.reshape(self.blocks, 1, self.group)

        return requantize(self.values, per_channel(self.bias), per_channel(self.multiplier), per_channel(self.shift),
                          zero_point=self.zero_point, low=self.low, high=self.high)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
@pytest.mark.parametrize("gaps", [False, True])
def test_layers(config, gaps):
    """Convolutions and pools one after the other; vectors as soon as the chunks of the last are taken, or later."""
    rng = np.random.default_rng([config.depth, config.cols, gaps])
    layers, base = [], 3
    for op in (LayerOp.CONV, LayerOp.MAX_POOL, LayerOp.CONV, LayerOp.SUM_POOL, LayerOp.CONV):
        layers.append(Layer(rng, config, op, base))
        base += layers[-1].blocks * layers[-1].chunks
    memory = [0] * 3 + [word for layer in layers for word in layer.parameter_words(config)]
    assert base <= MEMORY.parameters

    # Each cycle: what changes on the inputs. Parameters first, then layer after layer.
    cycle = len(memory)
    starts, tokens, vectors, expected, done = {}, {}, {}, {}, []
    for layer in layers:
        starts[cycle] = layer
        cycle += 3 + LEAD
        codes = layer.codes()
        for block in range(layer.blocks):
            for pixel in range(layer.pixels):
                last = pixel == layer.pixels - 1
                fields = {"last": 1, "pixel": pixel, "block_last": last,
                          "layer_last": last and block == layer.blocks - 1}
                tokens[cycle - LEAD] = layer.conv, token(config, **fields)
                for chunk in range(layer.chunks):
                    # Channels are numbered through the layer; the vector stays where it is until all are taken.
                    vectors[cycle + chunk] = layer.conv, layer.values[block, pixel]
                    channel = block * layer.group + chunk * config.requantize_lanes
                    word, lane = divmod(channel, config.depth)
                    here = slice(chunk * config.requantize_lanes, (chunk + 1) * config.requantize_lanes)
                    expected[cycle + chunk + OutputStage.latency] = (
                        layer.address + word * layer.plane + pixel, 1 << (lane // config.requantize_lanes),
                        codes[block, pixel, here].tolist())
                cycle += layer.chunks + (int(rng.integers(0, 4)) if gaps else 0)
        done.append(max(expected))
        cycle = done[-1] + 1
    cycles = cycle + 2

    # Everything that does not count is garbage: the other source, sums that are not the last of their pixel.
    garbage = {True: token(config, last=0, pixel=1, block_last=1, layer_last=1),
               False: token(config, valid=0, last=1, block_last=1, layer_last=1)}
    foreign = token(config, last=1, block_last=1, layer_last=1)
    inputs = {name: [] for name in ("upcoming", "layer", "start", "total_token", "totals", "pool_token", "pooled",
                                    "parameter_address", "parameter_write", "parameter_data")}
    running = layers[0]
    for at in range(cycles):
        inputs["start"].append(int(at in starts))
        inputs["upcoming"].append(starts[at].descriptor if at in starts
                                  else int.from_bytes(rng.bytes(4)) << 60)
        inputs["layer"].append(running.descriptor)
        conv, vector = vectors.get(at, (None, None))
        before_first = at < min(tokens)
        for name, of_array, bits, count in (("total", True, config.acc_bits, config.cols),
                                            ("pool", False, config.channel_bits, config.depth)):
            value = vector if conv is of_array else rng.integers(-9, 9, count)
            inputs["totals" if of_array else "pooled"].append(join(value, bits))
            if at in tokens and tokens[at][0] is of_array:
                word = tokens[at][1]
            elif running.conv is not of_array and not before_first:
                word = foreign
            else:
                word = garbage[of_array] if not before_first else 0
            inputs[f"{name}_token"].append(word)
        inputs["parameter_write"].append(int(at < len(memory)))
        inputs["parameter_address"].append(at if at < len(memory) else int(rng.integers(MEMORY.parameters)))
        inputs["parameter_data"].append(memory[at] if at < len(memory) else int.from_bytes(rng.bytes(8)))
        running = starts.get(at, running)

    outputs = trace(OutputStage(config), inputs, ["address", "parts", "code", "done"])
    written = {at: (outputs["address"][at], parts, split(outputs["code"][at], config.act_bits,
                                                         config.requantize_lanes))
               for at, parts in enumerate(outputs["parts"]) if parts}
    assert written == expected
    assert [at for at, each in enumerate(outputs["done"]) if each] == done
