"""The bare systolic array against NumPy: tiles back to back, weights that arrive early, late and just in time."""

import json
import os
from collections import defaultdict
from dataclasses import dataclass
from typing import Protocol

import cocotb
import numpy as np
import numpy.typing as npt
from cocotb.clock import Clock
from cocotb.handle import LogicArrayObject, LogicObject
from cocotb.triggers import FallingEdge

from nomul_hw.arithmetic import act_range
from nomul_hw.config import ArrayConfig

from .runner import BENCH_CONFIG

Int64Array = npt.NDArray[np.int64]

CONFIG = ArrayConfig.from_dict(json.loads(os.environ[BENCH_CONFIG]))


class Ports(Protocol):
    """Ports of the array."""

    clk: LogicObject
    rst: LogicObject
    act: LogicArrayObject
    swap: LogicObject
    load: LogicArrayObject
    weights: LogicArrayObject
    sums: LogicArrayObject


@dataclass(frozen=True)
class Stimulus:
    """What the ports see, cycle by cycle, and what must come out.

    Attributes
    ----------
    acts : int64 array, shape (cycles, depth)
        Activation vectors.
    swap : bool array, shape (cycles,)
        First vector of a tile.
    load : int64 array, shape (cycles,)
        Row whose weights are on the bus, or -1.
    codes : uint8 array, shape (cycles, cols * lanes)
        Weight codes on the bus; anything where ``load`` is -1.
    sums : int64 array, shape (cycles, cols)
        Raw column sums of the vector of that cycle.
    first : int
        Cycle of the first swap; sums before it mean nothing.
    """

    acts: Int64Array
    swap: npt.NDArray[np.bool_]
    load: Int64Array
    codes: npt.NDArray[np.uint8]
    sums: Int64Array
    first: int


def make_stimulus(config: ArrayConfig, rng: np.random.Generator, lengths: list[int], *, eager: bool) -> Stimulus:
    """Schedule tiles of the given lengths, in vectors, at least ``rows`` each.

    The row of a tile may be loaded from its number of cycles after the previous swap on, until the cycle in which its
    own swap has not reached it yet. ``eager`` loads every row as soon as it may be, otherwise rows wait at random, up
    to the last moment.
    """
    rows, depth = config.rows, config.depth
    swaps = np.concatenate([[rows], rows + np.cumsum(lengths)])
    cycles = int(swaps[-1]) + rows
    levels = np.asarray(config.format.levels)
    tiles = rng.choice(levels, (len(lengths), depth, config.cols))
    low, high = act_range(config.act_bits)
    acts = rng.integers(low, high, (cycles, depth), endpoint=True)
    acts[rng.random(cycles) < 0.1] = low
    acts[rng.random(cycles) < 0.1] = high

    load = np.full(cycles, -1)
    codes = rng.integers(0, 1 << config.format.bits, (cycles, config.cols * config.lanes)).astype(np.uint8)
    # (deadline, row, tile) of what is to be loaded, by the cycle from which on it may be.
    pending: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for tile in range(len(lengths)):
        for row in range(rows):
            previous = int(swaps[tile - 1]) if tile else 0
            pending[previous + row].append((int(swaps[tile]) + row - 1, row, tile))
    waiting: list[tuple[int, int, int]] = []
    for cycle in range(cycles):
        waiting = sorted(waiting + pending[cycle])
        if waiting and (eager or waiting[0][0] == cycle or rng.random() < 0.3):
            deadline, row, tile = waiting.pop(0)
            assert deadline >= cycle
            load[cycle] = row
            weights = tiles[tile, row * config.lanes:(row + 1) * config.lanes]  # (lanes, cols)
            codes[cycle] = config.format.encode(weights.T).reshape(-1)
    assert not waiting

    sums = np.zeros((cycles, config.cols), dtype=np.int64)
    for tile, weights in enumerate(tiles):
        of_tile = slice(swaps[tile], swaps[tile + 1] if tile + 1 < len(lengths) else cycles)
        sums[of_tile] = acts[of_tile] @ weights - config.product.corrections(weights).sum(axis=0)
    swap = np.zeros(cycles, dtype=bool)
    swap[swaps[:-1]] = True
    return Stimulus(acts, swap, load, codes, sums, rows)


def _pack(values: npt.NDArray[np.integer], bits: int) -> int:
    word = 0
    for index, value in enumerate(values.tolist()):
        word |= (value & ((1 << bits) - 1)) << (index * bits)
    return word


def _unpack(word: int, bits: int, count: int) -> list[int]:
    values = [(word >> (index * bits)) & ((1 << bits) - 1) for index in range(count)]
    return [value - (1 << bits) if value >> (bits - 1) else value for value in values]


async def apply(dut: Ports, stimulus: Stimulus) -> None:
    """Drive the stimulus and compare every sum, from the first swap on."""
    config = CONFIG
    latency = config.array_cycles
    cycles = len(stimulus.acts)
    # Everything happens at falling edges: inputs settle before the rising edge, outputs have settled after it.
    for cycle in range(cycles + latency):
        await FallingEdge(dut.clk)
        entered = cycle - latency
        if entered >= stimulus.first:
            got = _unpack(dut.sums.value.to_unsigned(), config.column_sum_bits, config.cols)
            assert got == stimulus.sums[entered].tolist(), f"sums of cycle {entered}"
        if cycle < cycles:
            dut.act.value = _pack(stimulus.acts[cycle], config.act_bits)
            dut.swap.value = int(stimulus.swap[cycle])
            dut.load.value = 1 << int(stimulus.load[cycle]) if stimulus.load[cycle] >= 0 else 0
            dut.weights.value = _pack(stimulus.codes[cycle], config.format.bits)


async def start(dut: Ports) -> None:
    """Start the clock and reset the array."""
    Clock(dut.clk, 10, unit="ns").start()
    for port in (dut.act, dut.swap, dut.load, dut.weights):
        port.value = 0
    dut.rst.value = 1
    for _ in range(2):
        await FallingEdge(dut.clk)
    dut.rst.value = 0


@cocotb.test()
async def tiles_without_a_bubble(dut: Ports) -> None:
    """Tiles as short as loading allows: a new row of weights in every cycle."""
    await start(dut)
    rng = np.random.default_rng(1)
    await apply(dut, make_stimulus(CONFIG, rng, [CONFIG.rows] * 40, eager=True))


@cocotb.test()
async def tiles_of_any_length(dut: Ports) -> None:
    """Weights that come at any time that is allowed, the bus carrying anything in between."""
    await start(dut)
    rng = np.random.default_rng(2)
    for _ in range(4):  # one after the other, without a reset
        lengths = (CONFIG.rows + rng.integers(0, 20, 15)).tolist()
        await apply(dut, make_stimulus(CONFIG, rng, lengths, eager=False))
