"""The machine as its descriptors define it, in NumPy: what a program does, word by word, without the hardware's timing.

It knows nothing of networks or of the compiler: it takes what the host sends. So a program that computes the right
thing here was lowered correctly, and hardware that differs from it does not do what its descriptors say.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np

from nomul.compiler.packing import pack_words, unpack_words
from nomul_hw.arithmetic import act_range, gain_positions
from nomul_hw.config import ArrayConfig
from nomul_hw.descriptor import (
    ADDRESS_BITS,
    CAUSES,
    COUNTERS,
    DESCRIPTOR,
    DESCRIPTOR_WORDS,
    HOST_BITS,
    LOOPS,
    LayerOp,
    Opcode,
    Target,
    parameter_fields,
    shift_stages,
    target_word_bits,
    unpack,
)
from nomul_hw.timing import run_cycles

__all__ = ["Machine"]

Array = np.ndarray[Any, np.dtype[np.int64]]

#: Coordinates have 12 bits; so a negative one is a large one.
COORDINATES = 1 << 12


def signed(values: Array, bits: int) -> Array:
    """Read the low bits of integers as two's complement."""
    half = 1 << bits - 1
    return (values + half) % (2 * half) - half


class Machine:
    """An accelerator at the end of a host stream (:class:`nomul.driver.Transport`).

    Parameters
    ----------
    config : ArrayConfig
        What it was built from.
    rng : numpy Generator
        Fills the memories: nothing may depend on what was there before.
    """

    def __init__(self, config: ArrayConfig, rng: np.random.Generator):
        self.config = config
        low, high = act_range(config.act_bits)
        #: Activation banks, int64 (2, words, lanes).
        self.banks = rng.integers(low, high, (2, config.memory.activations, config.depth), endpoint=True)
        weights = config.memory.weights if config.weights == "memory" else 0
        self.memories = {
            target: rng.integers(0, 1 << 32, (depth, -(-target_word_bits(config, target) // HOST_BITS)),
                                 dtype=np.uint32)
            for target, depth in ((Target.PROGRAM, config.memory.layers * DESCRIPTOR_WORDS),
                                  (Target.PARAMETER, config.memory.parameters), (Target.WEIGHT, weights))
        }
        #: What every run takes of weights, if they come from outside: host words, (words, host words of one).
        self.stream = np.zeros((0, 1), dtype=np.uint32)
        self.counters = dict.fromkeys(COUNTERS, 0)
        self._corrections = config.product.corrections(config.format.levels)
        #: Descriptors of the layers that ran.
        self.ran: list[dict[str, int]] = []

    # The host's side ---------------------------------------------------------------------------------------------

    def transfer(self, words: np.ndarray, replies: int) -> np.ndarray:
        """Do what the commands say; return what they answer."""
        answer: list[np.ndarray] = [np.zeros(0, dtype=np.uint32)]
        at = 0
        while at < len(words):
            command, address, count = map(int, words[at:at + 3])
            at += 3
            opcode, target = Opcode(command & 0xFF), Target(command >> 8)
            size = -(-target_word_bits(self.config, target) // HOST_BITS)
            if opcode is Opcode.WRITE:
                self._write(target, address, words[at:at + count * size].reshape(count, size))
                at += count * size
            elif opcode is Opcode.READ:
                answer.append(self._read(target, address, count).reshape(-1))
            else:
                self._run(address, count)
        answered = np.concatenate(answer)
        assert len(answered) == replies
        return answered

    def feed(self, words: np.ndarray) -> None:
        """Take the weights of every run from now on."""
        self.stream = words.reshape(-1, -(-self.config.weight_word_bits // HOST_BITS))

    def _write(self, target: Target, address: int, words: np.ndarray) -> None:
        if target in (Target.ACTIVATION_0, Target.ACTIVATION_1):
            values = unpack_words(words, self.config.act_bits, self.config.depth)
            self.banks[target - Target.ACTIVATION_0, address:address + len(words)] = values
        else:
            assert address + len(words) <= len(self.memories[target])
            self.memories[target][address:address + len(words)] = words

    def _read(self, target: Target, address: int, count: int) -> np.ndarray:
        match target:
            case Target.IDENTITY:
                return np.array([self.config.identity, 0], dtype=np.uint32)[address:address + count]
            case Target.COUNTER:
                return np.array([self.counters[cause] for cause in CAUSES], dtype=np.uint32)[address:address + count]
            case Target.ACTIVATION_0 | Target.ACTIVATION_1:
                values = self.banks[target - Target.ACTIVATION_0, address:address + count]
                assert len(values) == count
                return pack_words(values, self.config.act_bits)
        raise AssertionError(f"{target.name} cannot be read")

    def _run(self, address: int, count: int) -> None:
        program = self.memories[Target.PROGRAM].reshape(-1)
        self.ran = []
        for start in range(address, address + count * DESCRIPTOR_WORDS, DESCRIPTOR_WORDS):
            words = program[start:start + DESCRIPTOR_WORDS]
            self.ran.append(unpack(DESCRIPTOR, sum(int(word) << HOST_BITS * i for i, word in enumerate(words))))
        cycles = list(run_cycles(self.config, self.ran))
        self.counters = {name: sum(each[name] for each in cycles) for name in COUNTERS}
        self._streamed = 0
        for layer in self.ran:
            self._layer(layer)
        assert self.config.weights == "memory" or self._streamed == len(self.stream)

    # One layer ---------------------------------------------------------------------------------------------------

    def _layer(self, layer: dict[str, int]) -> None:
        op = LayerOp(layer["op"])
        assert layer["in_bank"] != layer["out_bank"] or not layer["pair"]
        inputs = self.banks[layer["in_bank"]].copy()  # what is written must not have been meant to be read
        self._touched = np.zeros(len(inputs), dtype=bool)
        self._wrote = np.zeros(len(inputs), dtype=bool)
        if op is LayerOp.CONV:
            self._convolve(layer, inputs)
        elif op.is_window:
            self._slide(layer, inputs)
        else:
            self._pool(layer, inputs)
        if layer["in_bank"] == layer["out_bank"]:
            assert not (self._touched & self._wrote).any(), "a layer overwrote its input"

    def _walk(self, layer: dict[str, int], *levels: int | Array) -> tuple[Array, Array, Array]:
        """Address, column and row where the loops stand at these iterations, innermost first."""
        where = []
        for name, start, bits in (("step", layer["in_address"], ADDRESS_BITS), ("x_step", layer["x_start"], 12),
                                  ("y_step", layer["y_start"], 12)):
            total: Any = start
            inside = 0  # what the loops inside of this one move until they are at their ends
            for level, iteration in enumerate(levels):
                move = layer[f"{name}_{level}"] + inside
                total = total + iteration * move
                inside += layer[f"count_{level}"] * move
            where.append(np.asarray(total) % (1 << bits))
        return where[0], where[1], where[2]

    def _fetch(self, layer: dict[str, int], inputs: Array, where: tuple[Array, Array, Array], pad: int) -> Array:
        """Words (..., lanes) at these places; padding outside the map."""
        address, x, y = where
        inside = (x < layer["in_width"]) & (y < layer["in_height"])
        assert address[inside].size == 0 or address[inside].max() < len(inputs)
        self._touched[address[inside]] = True
        words = inputs[np.where(inside, address, 0)]
        return np.where(inside[..., None], words, pad)

    def _corrected(self, levels: Array) -> Array:
        """What the raw products of weights lack, elementwise."""
        return self._corrections[np.searchsorted(self.config.format.levels, levels)]

    def _padding(self, layer: dict[str, int]) -> int:
        return act_range(self.config.act_bits)[0] if layer["pad_low"] else 0

    def _convolve(self, layer: dict[str, int], inputs: Array) -> None:
        config, pad = self.config, self._padding(layer)
        counts = [layer[f"count_{level}"] + 1 for level in range(LOOPS)]
        pixels, passes = counts[0] * counts[1], counts[2] * counts[3] * counts[4]
        assert passes * counts[5] == 1 or pixels <= config.memory.accumulators
        tiles = self._weights(layer, passes * counts[5] * counts[6], config.rows)
        ky, kx, word, y, x = np.meshgrid(*map(np.arange, reversed(counts[:5])), indexing="ij", sparse=True)
        for block in range(counts[6]):
            sums = np.zeros((pixels, config.cols), dtype=np.int64)
            for plane in range(counts[5]):
                if plane and layer["shifts"] >> plane & 1:
                    sums = signed(sums << config.plane_shift, config.acc_bits)
                acts = self._fetch(layer, inputs, self._walk(layer, x, y, word, kx, ky, plane, block), pad)
                acts[:, :, -1, ..., layer["edge_last"] + 1:] = pad
                for word_acts in acts.reshape(passes, pixels, config.depth):
                    levels = next(tiles).reshape(config.rows, config.cols, config.lanes)
                    levels = levels.transpose(0, 2, 1).reshape(config.depth, config.cols)
                    raw = word_acts @ levels - self._corrected(levels).sum(axis=0)
                    sums = signed(sums + raw, config.acc_bits)
            self._output(layer, block * config.column_chunks, sums)

    def _pool(self, layer: dict[str, int], inputs: Array) -> None:
        config = self.config
        counts = [layer[f"count_{level}"] + 1 for level in range(LOOPS)]
        assert counts[5:] == [1, 1]
        grid = np.meshgrid(*map(np.arange, reversed(counts[:4])), indexing="ij")  # y, x, ky, kx
        for word in range(counts[4]):
            where = self._walk(layer, grid[3], grid[2], grid[1], grid[0], word)
            acts = self._fetch(layer, inputs, where, self._padding(layer))
            acts = acts.reshape(counts[2] * counts[3], -1, config.depth) - act_range(config.act_bits)[0]
            if layer["op"] == LayerOp.MAX_POOL:
                results = acts.max(axis=1)
            else:
                results = acts.sum(axis=1)
                assert results.max() < 1 << config.pool_bits
            self._output(layer, word * config.word_chunks, results)

    def _slide(self, layer: dict[str, int], inputs: Array) -> None:
        config, op = self.config, LayerOp(layer["op"])
        counts = [layer[f"count_{level}"] + 1 for level in range(LOOPS)]
        assert counts[:2] == counts[5:] == [1, 1] and 2 <= counts[2] <= config.memory.lines
        assert not layer["pair"] or op is LayerOp.DEPTHWISE
        pad = self._padding(layer)
        tiles = self._weights(layer, counts[4], config.rows * config.window_groups) if op.has_weights else None
        positions, rows = np.arange(counts[2]), np.arange(counts[3])[:, None]
        for word in range(counts[4]):
            address, x, y = self._walk(layer, 0, 0, positions, rows, word)
            columns = self._fetch(layer, inputs, (address, x, y), pad)
            if layer["pair"]:
                left = self._fetch(layer, inputs, (address - 1, (x - 1) % COORDINATES, y), pad)
                columns = np.stack([left, columns], axis=2).reshape(counts[3], 2 * counts[2], config.depth)
            # Two columns and two rows of padding in front; then every window lies in the map.
            framed = np.full((counts[3] + 2, columns.shape[1] + 2, config.depth), pad)
            framed[2:, 2:] = columns
            last_row = range(layer["skip_rows"], counts[3], 1 + layer["stride_rows"])
            last_column = range(layer["skip_columns"], counts[2], 1 + layer["stride_columns"])
            assert last_row[-1] == counts[3] - 1 and last_column[-1] == counts[2] - 1
            if layer["pair"]:
                last_column = range(2 * last_column.start + 1, 2 * last_column.stop, 2)
            windows = np.empty((len(last_row), len(last_column), 3, 3, config.depth), dtype=np.int64)
            for ky, kx in product(range(3), range(3)):
                masked = (layer["mask_rows"] >> ky & 1) | (layer["mask_columns"] >> kx & 1)
                windows[:, :, ky, kx] = pad if masked else framed[np.ix_([r + ky for r in last_row],
                                                                         [c + kx for c in last_column])]
            if tiles is None:
                results = windows.max(axis=(2, 3))
            else:
                if layer["pair"]:
                    windows = windows[:, :, :, [1, 0, 2]]
                tile = next(tiles).reshape(config.window_groups, config.rows, config.cols, config.lanes)
                taps = tile.transpose(0, 2, 1, 3).reshape(-1, config.depth)[:9]
                results = (windows.reshape(*windows.shape[:2], 9, config.depth) * taps).sum(axis=2)
                results -= self._corrected(taps).sum(axis=0)
                assert (signed(results, config.window_bits) == results).all()
            self._output(layer, word * config.word_chunks, results.reshape(-1, config.depth))

    def _weights(self, layer: dict[str, int], tiles: int, words: int) -> Iterator[Array]:
        """Levels of one tile after the other, int64 (words, columns * lanes)."""
        config = self.config
        if config.weights == "memory":
            start = layer["weight_base"]
            taken = self.memories[Target.WEIGHT][start:start + tiles * words]
        else:
            taken = self.stream[self._streamed:self._streamed + tiles * words]
            self._streamed += tiles * words
        assert len(taken) == tiles * words
        codes = unpack_words(taken, config.format.bits, config.cols * config.lanes) % (1 << config.format.bits)
        levels = config.format.decode(codes).astype(np.int64)
        return iter(levels.reshape(tiles, words, -1))

    # Requantization ----------------------------------------------------------------------------------------------

    def _output(self, layer: dict[str, int], chunk: int, sums: Array) -> None:
        """Requantize vectors (pixels, channels), the first chunk of which has this number, and write them."""
        config, bank = self.config, self.banks[layer["out_bank"]]
        lanes = config.requantize_lanes
        for at in range(0, sums.shape[1], lanes):
            plane, part = divmod(chunk, config.word_chunks)
            address = layer["out_address"] + plane * layer["out_plane"] + np.arange(len(sums))
            assert address.max() < len(bank), "a layer writes beyond the memory"
            here = slice(part * lanes, (part + 1) * lanes)
            offset, multiplier, shift = self._parameters(layer["parameter_base"] + chunk)
            total = signed(signed(sums[:, at:at + lanes], config.acc_bits) * multiplier + offset,
                           config.requantize_bits)
            if layer["skip"]:
                others = self.banks[1 - layer["in_bank"]]
                added = others[(address + layer["skip_address"]) % (1 << ADDRESS_BITS) % len(others), here]
                total += (added - (1 << config.act_bits - 1)) << shift - layer["skip_drop"]
            top = (1 << config.act_bits) - 1
            codes = np.clip(total >> shift, 0, top - layer["slack"]) + layer["slack"]
            bank[address, here] = signed(codes - top + layer["above"] - 1, config.act_bits)
            self._wrote[address] = True
            chunk += 1

    def _parameters(self, address: int) -> tuple[Array, Array, Array]:
        """Offset, multiplier and shift of a chunk's channels."""
        config = self.config
        words = self.memories[Target.PARAMETER][address]
        word = sum(int(each) << HOST_BITS * index for index, each in enumerate(words))
        fields = parameter_fields(config)
        bits = sum(field.bits for field in fields)
        positions = gain_positions(config.gain_terms)
        records = []
        for lane in range(config.requantize_lanes):
            values = unpack(fields, word >> bits * lane)
            lead = -1 if values["lead_negative"] else 1
            multiplier, inverted = 0, 0
            for digit, places in enumerate(positions):
                opposite = lead < 0 if digit == len(positions) - 1 else values[f"digit_{digit}_inverted"]
                sign = -lead if opposite else lead
                multiplier += sign * sum(1 << place for place in places if not values[f"digit_{digit}_not_at_{place}"])
                inverted += opposite << places[0]
            if lead > 0 or multiplier:
                multiplier += lead
            # To invert makes one less than the negative: of the sum, and again of each digit, at its first position.
            offset = values["offset"] + (multiplier if lead < 0 else 0) - inverted
            shift = sum(values[f"shift_{places}"] * places for places, _ in shift_stages(config))
            records.append((offset, multiplier, shift))
        return tuple(np.array(column, dtype=np.int64) for column in zip(*records, strict=True))
