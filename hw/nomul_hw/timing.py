"""Exact cycles: a closed form of a layer's descriptor.

The address generator decides when every word is issued; all stages after it have a fixed latency. With ``M`` output
pixels, ``T = config.tile_cycles`` and ``E`` cycles to requantize one output vector (``column_chunks`` for the array,
``word_chunks`` for the channel unit), the cycles of a layer are:

- convolution: each weight tile takes ``max(M, T)``, the last tile of a block of output channels ``max(M * E, T)``;
- pool: each output pixel of each channel word takes ``max(taps, E)``;
- then the pipeline drains, and one cycle of control starts the next layer.

These are equalities with the hardware's counters, per cause, tested with zero difference. Plain Python: importing
this module does not import Amaranth.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import prod

from .config import ArrayConfig
from .descriptor import COUNTERS, DESCRIPTOR_WORDS, LOOPS, LayerOp

__all__ = ["FETCH_CYCLES", "OUTPUT_LATENCY", "hold_cycles", "run_cycles"]

#: Cycles from the start of a layer (or a run) until the next layer's descriptor is complete.
FETCH_CYCLES = DESCRIPTOR_WORDS + 2

#: Cycles from taking a chunk of an output vector to writing it.
OUTPUT_LATENCY = 5


def hold_cycles(config: ArrayConfig, op: LayerOp, taps: int) -> int:
    """Idle cycles that must follow a word which completes an output pixel."""
    return config.column_chunks - 1 if op is LayerOp.CONV else max(0, config.word_chunks - taps)


def _drain_cycles(config: ArrayConfig, op: LayerOp) -> int:
    """Cycles from the layer's last word to its last write."""
    if op is LayerOp.CONV:  # memory, padding, array, accumulator
        return 2 + config.rows + config.cols + 1 + config.column_chunks - 1 + OUTPUT_LATENCY
    return 2 + 2 + config.word_chunks - 1 + OUTPUT_LATENCY  # memory, padding, channel unit


def _layer_cycles(config: ArrayConfig, layer: Mapping[str, int]) -> dict[str, int]:
    """Cycles of one layer by cause, without control and without the wait for a program's first weights."""
    op = LayerOp(layer["op"])
    counts = [layer[f"count_{level}"] + 1 for level in range(LOOPS)]
    hold, busy = layer["hold"], prod(counts)
    if op is LayerOp.CONV:
        pixels, passes, blocks = counts[0] * counts[1], prod(counts[2:5]), counts[5]
        short = max(0, config.tile_cycles - pixels)
        last_short = max(0, config.tile_cycles - pixels * (hold + 1))
        weight = blocks * (passes - 1) * short + (blocks - 1) * last_short
        # The layer's very last word is followed by the drain, not by a hold.
        requantize = hold * (pixels * blocks - 1)
    else:
        weight = 0
        requantize = hold * (prod(counts[2:5]) - 1)
    return {"busy": busy, "weight": weight, "requantize": requantize, "drain": _drain_cycles(config, op)}


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
    since_prime: int | None = 0  # cycles since the run's first weight tile was requested, until one has started
    control = FETCH_CYCLES
    for layer in layers:
        cycles = {"total": 0, **_layer_cycles(config, layer), "control": control}
        if since_prime is not None:
            if layer["op"] == LayerOp.CONV:
                cycles["weight"] += max(0, config.tile_cycles - 1 - since_prime)
                since_prime = None
            else:
                since_prime += cycles["busy"] + cycles["requantize"] + cycles["drain"]
        spent = sum(cycles[name] for name in ("busy", "weight", "requantize", "drain"))
        cycles["total"] = spent + control
        control = max(1, FETCH_CYCLES - spent)
        if since_prime is not None:
            since_prime += control
        yield {name: cycles[name] for name in COUNTERS}
