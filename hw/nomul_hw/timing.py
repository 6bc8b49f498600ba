"""Exact cycles: a closed form of a layer's descriptor.

The address generator decides when every word is issued; all stages after it have a fixed latency. With ``M`` output
pixels, ``T = config.tile_cycles``, ``D = config.window_tile_cycles`` and ``E`` cycles to requantize one output vector
(``column_chunks`` for the array, ``word_chunks`` for the channel and window units), the cycles of a layer are:

- convolution: each weight tile takes ``max(M, T)``, the last tile of a block of output channels ``max(M * E, T)``;
- pool: each output pixel of each channel word takes ``max(taps, E)``;
- depthwise convolution: each channel word takes ``max(positions + M * (E - 1), D)``, a position being an input word,
  or a pair of them at stride 2;
- maximum in the window unit: the same without a ``D``;
- then the pipeline drains, and one cycle of control starts the next layer.

Weights from outside add the cycles in which their source (:class:`WeightSource`) falls behind, worked out tile by tile.

These are equalities with the hardware's counters, per cause, tested with zero difference. Plain Python: importing
this module does not import Amaranth.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import accumulate, repeat
from math import prod
from operator import itemgetter

from .config import ArrayConfig
from .descriptor import DESCRIPTOR_WORDS, LOOPS, LayerOp

__all__ = ["CHANNEL_LATENCY", "FETCH_CYCLES", "OUTPUT_LATENCY", "QUEUE_LATENCY", "WINDOW_LATENCY", "WeightSource",
           "hold_cycles", "run_cycles", "tile_cycles", "weight_tiles", "window_outputs"]

#: Cycles from the start of a layer (or a run) until the next layer's descriptor is complete.
FETCH_CYCLES = DESCRIPTOR_WORDS + 2

#: Cycles from taking a chunk of an output vector to writing it.
OUTPUT_LATENCY = 5

#: Cycles from a streamed weight word's coming to the first in which it can be loaded.
QUEUE_LATENCY = 2

#: Cycles from a word to its result: of the channel unit, of the window unit.
CHANNEL_LATENCY, WINDOW_LATENCY = 2, 3


_counts = itemgetter(*(f"count_{level}" for level in range(LOOPS)))


def _iterations(layer: Mapping[str, int]) -> list[int]:
    """Iterations of each loop."""
    return [count + 1 for count in _counts(layer)]


def hold_cycles(config: ArrayConfig, op: LayerOp, taps: int) -> int:
    """Idle cycles that must follow a word which completes an output pixel."""
    if op is LayerOp.CONV:
        return config.column_chunks - 1
    return config.word_chunks - 1 if op.is_window else max(0, config.word_chunks - taps)


def tile_cycles(config: ArrayConfig, op: LayerOp) -> int:
    """Fewest cycles from the start of any weight tile to the start of one of ``op``."""
    return config.window_tile_cycles if op is LayerOp.DEPTHWISE else config.tile_cycles


def window_outputs(layer: Mapping[str, int]) -> tuple[int, int]:
    """Output columns and rows of a layer of the window unit."""
    columns = layer["count_2"] - layer["skip_columns"]
    rows = layer["count_3"] - layer["skip_rows"]
    return (columns >> layer["stride_columns"]) + 1, (rows >> layer["stride_rows"]) + 1


def _drain_cycles(config: ArrayConfig, op: LayerOp) -> int:
    """Cycles from the layer's last word to its last write."""
    if op is LayerOp.CONV:  # memory, padding, array, accumulator
        return 2 + config.array_cycles + 1 + config.column_chunks - 1 + OUTPUT_LATENCY
    unit = WINDOW_LATENCY if op.is_window else CHANNEL_LATENCY  # memory, padding, unit
    return 2 + unit + config.word_chunks - 1 + OUTPUT_LATENCY


def _layer_cycles(config: ArrayConfig, layer: Mapping[str, int]) -> dict[str, int]:
    """Cycles of one layer by cause, without control and without the wait for its first weights."""
    op = LayerOp(layer["op"])
    counts = _iterations(layer)
    hold, busy, tile = layer["hold"], prod(counts), tile_cycles(config, op)
    weight = 0
    if op is LayerOp.CONV:
        pixels, passes, blocks = counts[0] * counts[1], prod(counts[2:6]), counts[6]
        outputs = pixels * blocks
        short, last_short = max(0, tile - pixels), max(0, tile - pixels * (hold + 1))
        weight = blocks * (passes - 1) * short + (blocks - 1) * last_short
    elif op.is_window:
        columns, rows = window_outputs(layer)
        outputs = columns * rows * counts[4]
        if op is LayerOp.DEPTHWISE:
            weight = (counts[4] - 1) * max(0, tile - counts[2] * counts[3] - hold * columns * rows)
    else:
        outputs = prod(counts[2:5])
    # The layer's very last word is followed by the drain, not by a hold.
    return {"busy": busy, "weight": weight, "memory": 0, "requantize": hold * (outputs - 1),
            "drain": _drain_cycles(config, op)}


def _last_tile_cycles(config: ArrayConfig, layer: Mapping[str, int]) -> int:
    """Cycles from the start of a layer's last weight tile to the layer's end, without control."""
    op = LayerOp(layer["op"])
    counts = _iterations(layer)
    if op is LayerOp.CONV:
        words, outputs = counts[0] * counts[1], counts[0] * counts[1]
    else:
        words, outputs = counts[2] * counts[3], prod(window_outputs(layer))
    return words + layer["hold"] * (outputs - 1) + _drain_cycles(config, op)


def weight_tiles(config: ArrayConfig, layer: Mapping[str, int]) -> tuple[int, int]:
    """Weight tiles that a layer loads, and the words of each."""
    op = LayerOp(layer["op"])
    if op is LayerOp.CONV:
        return prod(_iterations(layer)[2:]), config.rows
    if op is LayerOp.DEPTHWISE:
        return layer["count_4"] + 1, config.rows * config.window_groups
    return 0, 0


def _tile_spacings(layer: Mapping[str, int]) -> Iterator[int]:
    """Cycles from the start of each weight tile to the first in which the generator could start the next."""
    op = LayerOp(layer["op"])
    counts = _iterations(layer)
    if op is LayerOp.CONV:
        pixels = counts[0] * counts[1]
        for _ in range(counts[6]):
            yield from repeat(pixels, prod(counts[2:6]) - 1)
            yield pixels * (layer["hold"] + 1)
    elif op is LayerOp.DEPTHWISE:
        yield from repeat(counts[2] * counts[3] + layer["hold"] * prod(window_outputs(layer)), counts[4])


class WeightSource:
    """When a source of streamed weights offers a word: a pattern of cycles, which repeats itself.

    In a cycle of the pattern the source offers its next word, and keeps it on offer until it is taken; chances that
    pass meanwhile are lost. The first cycle of a run is the pattern's first. The source begins with the run, and gives
    it its words and no others.

    Parameters
    ----------
    pattern : sequence of bool
        Whether a word may be offered, cycle after cycle.

    Raises
    ------
    ValueError
        If the pattern never offers one.
    """

    def __init__(self, pattern: Sequence[bool]):
        self.pattern = tuple(map(bool, pattern))
        self._before = list(accumulate(self.pattern, initial=0))  # chances before a cycle of the period
        self._cycles = [cycle for cycle, offers in enumerate(self.pattern) if offers]
        if not self._cycles:
            raise ValueError("a source of weights must offer a word in some cycle of its pattern")

    @classmethod
    def constant(cls, words_per_cycle: Fraction | float) -> "WeightSource":
        """Source of a constant rate: by the end of cycle ``c`` it had ``floor((c + 1) * words_per_cycle)`` chances.

        The rate is taken as the nearest fraction with a denominator of up to 4096.

        Raises
        ------
        ValueError
            If the rate is not above 0, or above 1: no more than one word is taken in a cycle.
        """
        rate = Fraction(words_per_cycle).limit_denominator(4096)
        if not 0 < rate <= 1:
            raise ValueError(f"words per cycle must be above 0 and at most 1, not {words_per_cycle}")
        return cls([int((cycle + 1) * rate) > int(cycle * rate) for cycle in range(rate.denominator)])

    def chances(self, cycle: int) -> int:
        """Chances before a cycle."""
        periods, rest = divmod(cycle, len(self.pattern))
        return periods * len(self._cycles) + self._before[rest]

    def cycle(self, chance: int) -> int:
        """Cycle of a chance, counted from 0."""
        periods, rest = divmod(chance, len(self._cycles))
        return periods * len(self.pattern) + self._cycles[rest]


class _WeightStream:
    """The queue of streamed weights during a run, tile by tile.

    Words come at the source's chances, unless the queue is full, and are popped one a cycle. Both are increasing
    sequences, so that only the last word of a tile decides when all of it has come, and only the first pop of a tile
    can end a wait for room: whatever is popped after it leaves at least as fast as words come.
    """

    def __init__(self, config: ArrayConfig, source: WeightSource):
        self._config = config
        self._source = source
        self._popped = 0  # words of the tiles so far
        self._lost = 0  # chances that passed while the queue was full
        # Word for which there is room once the first word of a tile is popped; the first cycle in which it may come.
        self._room: deque[tuple[int, int]] = deque()

    def _last_pop(self, words: int, begin: int) -> int:
        """Cycle in which a tile's last word is popped, if its load begins in cycle ``begin``."""
        self._room.append((self._popped + self._config.memory.weights, begin + 2))
        self._popped += words
        while self._room and self._room[0][0] < self._popped:
            word, cycle = self._room.popleft()
            self._lost = max(self._lost, self._source.chances(cycle + 1) - (word + 1))
        return max(begin + words, self._source.cycle(self._popped - 1 + self._lost) + QUEUE_LATENCY)

    def waits(self, layer: Mapping[str, int], begin: int, start: int) -> int:
        """Cycles that a layer waits for words from outside.

        Parameters
        ----------
        begin : int
            Cycle in which the load of its first tile begins.
        start : int
            First cycle in which the generator can issue a word.
        """
        ideal = tile_cycles(self._config, LayerOp(layer["op"]))
        words = weight_tiles(self._config, layer)[1]
        waits = 0
        for spacing in _tile_spacings(layer):
            due = max(start, begin + ideal)
            begin = max(due, self._last_pop(words, begin))
            waits += begin - due
            start = begin + spacing
        return waits


def run_cycles(config: ArrayConfig, layers: Sequence[Mapping[str, int]],
               source: WeightSource | None = None) -> Iterator[dict[str, int]]:
    """Cycles of each layer of one run, by cause: the hardware's counters.

    Parameters
    ----------
    layers : sequence of descriptor values
        The layers that the run executes, in order.
    source : WeightSource, optional
        Where streamed weights come from; one that is always ahead if not given.

    Yields
    ------
    dict
        One entry per name of :data:`nomul_hw.descriptor.COUNTERS`; ``total`` is the sum of the others.
    """
    stream = _WeightStream(config, source) if source is not None else None
    control, since = FETCH_CYCLES, 0  # cycles from the beginning of the load of the layer's first tile to its start
    start = -1  # cycle of the layer's start
    for layer in layers:
        op = LayerOp(layer["op"])
        start += control
        cycles = {"total": 0, **_layer_cycles(config, layer), "control": control}
        if op.has_weights:
            cycles["weight"] += max(0, tile_cycles(config, op) - 1 - since)
            if stream is not None:
                cycles["memory"] = stream.waits(layer, start - since, start + 1)
        cycles["total"] = sum(cycles.values())
        spent = cycles["total"] - control
        yield cycles
        # The next first tile follows the layer's last one, and the descriptor that asks for it.
        control = max(1, FETCH_CYCLES - spent)
        start += spent
        since = spent + control - FETCH_CYCLES
        if op.has_weights:
            since = min(since, _last_tile_cycles(config, layer) + control - 2)
