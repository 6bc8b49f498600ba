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

These are equalities with the hardware's counters, per cause, tested with zero difference. Plain Python: importing
this module does not import Amaranth.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import prod

from .config import ArrayConfig
from .descriptor import COUNTERS, DESCRIPTOR_WORDS, LOOPS, LayerOp

__all__ = ["CHANNEL_LATENCY", "FETCH_CYCLES", "OUTPUT_LATENCY", "WINDOW_LATENCY", "hold_cycles", "run_cycles",
           "tile_cycles", "window_outputs"]

#: Cycles from the start of a layer (or a run) until the next layer's descriptor is complete.
FETCH_CYCLES = DESCRIPTOR_WORDS + 2

#: Cycles from taking a chunk of an output vector to writing it.
OUTPUT_LATENCY = 5


#: Cycles from a word to its result: of the channel unit, of the window unit.
CHANNEL_LATENCY, WINDOW_LATENCY = 2, 3


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
        return 2 + config.rows + config.cols + 1 + config.column_chunks - 1 + OUTPUT_LATENCY
    unit = WINDOW_LATENCY if op.is_window else CHANNEL_LATENCY  # memory, padding, unit
    return 2 + unit + config.word_chunks - 1 + OUTPUT_LATENCY


def _layer_cycles(config: ArrayConfig, layer: Mapping[str, int]) -> dict[str, int]:
    """Cycles of one layer by cause, without control and without the wait for its first weights."""
    op = LayerOp(layer["op"])
    counts = [layer[f"count_{level}"] + 1 for level in range(LOOPS)]
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
    counts = [layer[f"count_{level}"] + 1 for level in range(LOOPS)]
    if op is LayerOp.CONV:
        words, outputs = counts[0] * counts[1], counts[0] * counts[1]
    else:
        words, outputs = counts[2] * counts[3], prod(window_outputs(layer))
    return words + layer["hold"] * (outputs - 1) + _drain_cycles(config, op)


def run_cycles(config: ArrayConfig, layers: Sequence[Mapping[str, int]]) -> Iterable[dict[str, int]]:
    """Cycles of each layer of one run, by cause: the hardware's counters.

    Parameters
    ----------
    layers : sequence of descriptor values
        The layers that the run executes, in order.

    Yields
    ------
    dict
        One entry per name of :data:`nomul_hw.descriptor.COUNTERS`; ``total`` is the sum of the others.
    """
    since_tile = 0  # cycles since the next layer's first weight tile was asked for
    control = FETCH_CYCLES
    for layer in layers:
        op = LayerOp(layer["op"])
        cycles = {"total": 0, **_layer_cycles(config, layer), "control": control}
        if op.has_weights:
            cycles["weight"] += max(0, tile_cycles(config, op) - 1 - since_tile)
        spent = sum(cycles[name] for name in COUNTERS if name not in ("total", "control"))
        cycles["total"] = spent + control
        control = max(1, FETCH_CYCLES - spent)
        since_tile = (_last_tile_cycles(config, layer) - 1 if op.has_weights else since_tile + spent) + control
        yield {name: cycles[name] for name in COUNTERS}
