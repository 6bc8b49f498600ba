"""The closed form of cycles against counting them one by one. (The hardware's counters: wherever layers run.)"""

from collections.abc import Mapping, Sequence
from itertools import product
from math import gcd

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nomul_hw.config import ArrayConfig
from nomul_hw.descriptor import COUNTERS, DESCRIPTOR, DESCRIPTOR_WORDS, LOOPS, LayerOp
from nomul_hw.output import OutputStage
from nomul_hw.requantize import Requantizer
from nomul_hw.timing import FETCH_CYCLES, OUTPUT_LATENCY, hold_cycles, run_cycles

configs = st.builds(ArrayConfig, st.just("ternary"), rows=st.integers(1, 7), cols=st.integers(1, 9),
                    lanes=st.integers(1, 3))


@st.composite
def programs(draw) -> tuple[ArrayConfig, list[dict[str, int]]]:
    """An array and layers for it, with holds as compiled or as anything."""
    config = draw(configs)
    layers = []
    for _ in range(draw(st.integers(1, 4))):
        op = draw(st.sampled_from(LayerOp))
        counts = draw(st.lists(st.integers(0, 3), min_size=LOOPS, max_size=LOOPS))
        if op is not LayerOp.CONV:
            counts[5] = 0
        hold = hold_cycles(config, op, (counts[0] + 1) * (counts[1] + 1))
        layers.append({"op": int(op), "hold": draw(st.sampled_from([hold, 0, 3])),
                       **{f"count_{level}": count for level, count in enumerate(counts)}})
    return config, layers


def count_cycles(config: ArrayConfig, layers: Sequence[Mapping[str, int]]) -> list[dict[str, int]]:
    """Step through a run as sequencer, address generator and weight loader do."""
    counted = []
    spent: dict[str, int] = {}
    now = -1

    def spend(cause: str) -> None:
        nonlocal now
        spent[cause] += 1
        spent["total"] += 1
        now += 1

    asked = -1  # the cycle in which the next layer's descriptor was asked for
    ready = None  # the first cycle in which a weight tile may start
    for layer in layers:
        spent = dict.fromkeys(COUNTERS, 0)
        spend("control")
        while now < asked + FETCH_CYCLES:
            spend("control")
        asked = now
        if ready is None:
            ready = now + config.tile_cycles

        is_conv = layer["op"] == LayerOp.CONV
        ends = [layer[f"count_{level}"] for level in range(LOOPS)]
        inner = slice(2, 5) if is_conv else slice(0, 2)
        for outermost_first in product(*(range(end + 1) for end in reversed(ends))):
            counts = list(reversed(outermost_first))
            if is_conv and counts[:2] == [0, 0]:
                while now + 1 < ready:
                    spend("weight")
                ready = now + 1 + config.tile_cycles
            spend("busy")
            if counts[inner] == ends[inner] and counts != ends:
                for _ in range(layer["hold"]):
                    spend("requantize")

        # Memory, padding; array and accumulators, or the channel unit; then chunk after chunk.
        stages = 2 + (config.rows + config.cols + 1 if is_conv else 2)
        chunks = config.column_chunks if is_conv else config.word_chunks
        for _ in range(stages + chunks - 1 + OutputStage.latency):
            spend("drain")
        counted.append(spent)
    return counted


@given(programs())
@settings(deadline=None, derandomize=True, max_examples=150)
def test_closed_form(program):
    config, layers = program
    cycles = list(run_cycles(config, layers))
    assert cycles == count_cycles(config, layers)
    for each in cycles:
        assert list(each) == list(COUNTERS)
        assert each["total"] == sum(each.values()) - each["total"]
        assert min(each.values()) >= 0


@pytest.mark.parametrize("ops", [[LayerOp.CONV], [LayerOp.MAX_POOL, LayerOp.CONV, LayerOp.CONV],
                                 [LayerOp.SUM_POOL] * 2 + [LayerOp.CONV], [LayerOp.SUM_POOL] * 8 + [LayerOp.CONV]])
def test_first_weights(ops):
    """An array so tall that its first weights take longer than the layers that need none."""
    config = ArrayConfig("ternary", 100, 100)
    layers = [{"op": int(op), "hold": 0, **{f"count_{level}": 0 for level in range(LOOPS)}} for op in ops]
    cycles = list(run_cycles(config, layers))
    assert cycles == count_cycles(config, layers)
    first = next(index for index, op in enumerate(ops) if op is LayerOp.CONV)
    assert (cycles[first]["weight"] > 0) == (len(ops) < 9)


@given(configs, st.sampled_from(LayerOp), st.integers(1, 40))
@settings(deadline=None, derandomize=True)
def test_hold(config, op, taps):
    """The fewest cycles that leave room for the chunks of every vector."""
    lanes = gcd(config.depth, config.cols)
    words, chunks = (1, config.cols // lanes) if op is LayerOp.CONV else (taps, config.depth // lanes)
    hold = hold_cycles(config, op, taps)
    assert hold == max(0, chunks - words)


def test_longest_hold():
    """A descriptor's field holds it: 512 channels of a word, written one by one."""
    (field,) = (field for field in DESCRIPTOR if field.name == "hold")
    assert hold_cycles(ArrayConfig("binary", 256, 1, 2), LayerOp.MAX_POOL, 1) == 511 < 1 << field.bits
    assert hold_cycles(ArrayConfig("binary", 1, 256), LayerOp.CONV, 1) == 255


def test_constants():
    assert OUTPUT_LATENCY == OutputStage.latency == 1 + Requantizer.latency
    assert FETCH_CYCLES == DESCRIPTOR_WORDS + 2
