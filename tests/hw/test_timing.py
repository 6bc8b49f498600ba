"""The closed form of cycles against counting them one by one. (The hardware's counters: wherever layers run.)"""

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import product
from math import gcd
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nomul_hw.config import ArrayConfig, MemoryConfig
from nomul_hw.descriptor import COUNTERS, DESCRIPTOR, DESCRIPTOR_WORDS, LOOPS, LayerOp
from nomul_hw.output import OutputStage
from nomul_hw.requantize import Requantizer
from nomul_hw.timing import (
    CHANNEL_LATENCY,
    FETCH_CYCLES,
    OUTPUT_LATENCY,
    WINDOW_LATENCY,
    WeightSource,
    hold_cycles,
    run_cycles,
    weight_tiles,
)

configs = st.builds(ArrayConfig, st.just("ternary"), rows=st.integers(1, 7), cols=st.integers(1, 9),
                    lanes=st.integers(1, 3),
                    memory=st.builds(MemoryConfig, weights=st.sampled_from([3, 4, 7, 20, 100]), lines=st.just(64)))
sources = st.one_of(
    st.lists(st.booleans(), min_size=1, max_size=60).filter(any).map(WeightSource),
    st.fractions(Fraction(1, 20), 1, max_denominator=20).map(WeightSource.constant),
    # Long silences between bursts.
    st.builds(lambda burst, silence: WeightSource([True] * burst + [False] * silence),
              st.integers(1, 100), st.integers(0, 200)),
)


@st.composite
def layers(draw, config: ArrayConfig) -> dict[str, int]:
    """One layer, with a hold as compiled or as anything."""
    op = draw(st.sampled_from(LayerOp))
    counts = draw(st.lists(st.integers(0, 2), min_size=LOOPS, max_size=LOOPS))
    values = {}
    if op.is_window:
        counts[0] = counts[1] = counts[5] = counts[6] = 0
        for level, axis in ((2, "columns"), (3, "rows")):
            stride, skip = draw(st.integers(0, 1)), draw(st.integers(0, 3))
            values |= {f"skip_{axis}": skip, f"stride_{axis}": stride}
            counts[level] = skip + (draw(st.integers(0, 4)) << stride)
    elif op is not LayerOp.CONV:
        counts[5] = counts[6] = 0
    hold = hold_cycles(config, op, (counts[0] + 1) * (counts[1] + 1))
    return {"op": int(op), "hold": draw(st.sampled_from([hold, 0, 3])), **values,
            **{f"count_{level}": count for level, count in enumerate(counts)}}


@st.composite
def programs(draw) -> tuple[ArrayConfig, list[dict[str, int]]]:
    """An array and layers for it."""
    config = draw(configs)
    return config, draw(st.lists(layers(config), min_size=1, max_size=5))


class Word(NamedTuple):
    """A word that the address generator issues: it starts a tile, the layer's last; cycles that must follow it."""

    tile: bool
    last_tile: bool
    hold: int


def walk(layer: Mapping[str, int]) -> Iterator[Word]:
    """Words of a layer, loop by loop."""
    op = LayerOp(layer["op"])
    ends = [layer[f"count_{level}"] for level in range(LOOPS)]
    for outermost_first in product(*(range(end + 1) for end in reversed(ends))):
        counts = list(reversed(outermost_first))
        if op is LayerOp.CONV:
            tile, last_tile = counts[:2] == [0, 0], counts[2:] == ends[2:]
            completes = counts[2:6] == ends[2:6]
        elif op.is_window:
            tile, last_tile = op.has_weights and counts[2:4] == [0, 0], counts[4] == ends[4]
            completes = all(
                count >= layer[f"skip_{axis}"] and not (count - layer[f"skip_{axis}"]) % (1 + layer[f"stride_{axis}"])
                for count, axis in zip(counts[2:4], ("columns", "rows"), strict=True))
        else:
            tile = last_tile = False
            completes = counts[:2] == ends[:2]
        yield Word(tile, last_tile, layer["hold"] if completes and counts != ends else 0)


class Machine:
    """Sequencer, weight loader and queue of weights, one cycle after the other."""

    def __init__(self, config: ArrayConfig, source: Sequence[bool] | None):
        self.config, self.source = config, source
        self.spent: dict[str, int] = {}
        self.now = 0
        self.fetching = FETCH_CYCLES - 1  # cycles until the next descriptor is there
        self.upcoming: LayerOp | None = None
        self.free = True
        self.wait = self.missing = 0  # cycles and words until the next tile may start
        self.offered, self.stored, self.head = False, 0, False  # a word in front of the queue, in it, at its end

    def cycle(self, cause: str, *, begin: LayerOp | None = None) -> None:
        """Spend a cycle. ``begin``: a tile of this kind follows the one that starts in this cycle."""
        self.spent[cause] += 1
        self.spent["total"] += 1
        self._queue()
        if self.wait:
            self.wait -= 1
        if self.free and not self.fetching and self.upcoming is not None and self.upcoming.has_weights:
            self.free, begin = False, self.upcoming
        if self.fetching:
            self.fetching -= 1
        if begin is not None:
            depthwise = begin is LayerOp.DEPTHWISE
            self.missing = self.config.rows * (self.config.window_groups if depthwise else 1)
            self.wait = max(self.missing + depthwise, 4) - 1
        self.now += 1

    def _queue(self) -> None:
        """Pop a word, move one to the queue's end, take one in."""
        if self.source is None:
            self.missing = max(0, self.missing - 1)
            return
        self.offered = self.offered or self.source[self.now % len(self.source)]
        room = self.stored < self.config.memory.weights - 1
        if self.missing and self.head:
            self.missing, self.head = self.missing - 1, False
        if not self.head and self.stored:
            self.head, self.stored = True, self.stored - 1
        if self.offered and room:
            self.offered, self.stored = False, self.stored + 1

    @property
    def ready(self) -> bool:
        """All words of the next tile have come, or the last one comes in this cycle."""
        return not self.wait and (not self.missing or (self.missing == 1 and (self.head or self.source is None)))


def count_cycles(config: ArrayConfig, layers: Sequence[Mapping[str, int]],
                 source: Sequence[bool] | None = None) -> list[dict[str, int]]:
    """Step through a run."""
    counted = []
    machine = Machine(config, source)
    for index, layer in enumerate(layers):
        op = LayerOp(layer["op"])
        machine.spent = dict.fromkeys(COUNTERS, 0)
        machine.upcoming = op
        while machine.fetching:
            machine.cycle("control")
        machine.cycle("control")
        machine.upcoming = LayerOp(layers[index + 1]["op"]) if index + 1 < len(layers) else None
        machine.fetching = FETCH_CYCLES - 1
        for word in walk(layer):
            if word.tile:
                while not machine.ready:
                    machine.cycle("weight" if machine.wait else "memory")
            machine.cycle("busy", begin=op if word.tile and not word.last_tile else None)
            machine.free = machine.free or (word.tile and word.last_tile)
            for _ in range(word.hold):
                machine.cycle("requantize")

        # Memory, padding; array and accumulators, or a unit; then chunk after chunk.
        stages = 2 + (config.rows + config.cols + config.pipeline + 1 if op is LayerOp.CONV else
                      WINDOW_LATENCY if op.is_window else CHANNEL_LATENCY)
        chunks = config.column_chunks if op is LayerOp.CONV else config.word_chunks
        for _ in range(stages + chunks - 1 + OutputStage.latency):
            machine.cycle("drain")
        counted.append(machine.spent)
    return counted


def check(config: ArrayConfig, layers: Sequence[Mapping[str, int]], source: WeightSource | None = None) -> int:
    """Compare; return the cycles that waited for the source."""
    cycles = list(run_cycles(config, layers, source))
    assert cycles == count_cycles(config, layers, None if source is None else source.pattern)
    for each in cycles:
        assert list(each) == list(COUNTERS)
        assert each["total"] == sum(each.values()) - each["total"]
        assert min(each.values()) >= 0
    return sum(each["memory"] for each in cycles)


@given(programs())
@settings(deadline=None, derandomize=True, max_examples=200)
def test_closed_form(program):
    assert not check(*program)


@given(programs(), sources)
@settings(deadline=None, derandomize=True, max_examples=300)
def test_streamed_weights(program, source):
    check(*program, source)


@given(programs())
@settings(deadline=None, derandomize=True, max_examples=50)
def test_a_word_a_cycle_is_enough(program):
    """Nothing waits for a source of one word a cycle: it is as if the weights were in memory."""
    config, layers = program
    check(config, layers, WeightSource.constant(1))
    assert list(run_cycles(config, layers, WeightSource.constant(1))) == list(run_cycles(config, layers))


@pytest.mark.parametrize(("ops", "waits"), [
    # A run's first tile is asked for when its descriptor is there; so is one behind layers without weights.
    ([LayerOp.CONV], [99]),
    ([LayerOp.MAX_POOL, LayerOp.CONV, LayerOp.CONV], [0, 99, 0]),
    ([LayerOp.SUM_POOL] * 9 + [LayerOp.CONV], [0] * 9 + [99]),
    ([LayerOp.CONV, LayerOp.SUM_POOL, LayerOp.CONV], [99, 0, 99]),
    # A depthwise tile must be whole. Behind it the next is loaded during its one word and the drain of 10 cycles.
    ([LayerOp.DEPTHWISE, LayerOp.CONV], [100, 89]),
])
def test_first_weights(ops, waits):
    """Tiles that take longer to load than the layers before them last: 100 cycles."""
    config = ArrayConfig("ternary", 100, 100, memory=MemoryConfig(lines=8))
    layers = [{"op": int(op), "hold": 0, **{f"count_{level}": 0 for level in range(LOOPS)},
               **dict.fromkeys(("skip_columns", "skip_rows", "stride_columns", "stride_rows"), 0)} for op in ops]
    check(config, layers)
    assert [each["weight"] for each in run_cycles(config, layers)] == waits


@pytest.mark.parametrize("rate", [Fraction(1), Fraction(5, 8), Fraction(1, 2), Fraction(1, 7)])
@pytest.mark.parametrize("pixels", [7, 8, 16, 40])
def test_constant_rate(rate, pixels):
    """In the long run a layer takes as long as its products or as its weights, whichever is longer."""
    config = ArrayConfig("ternary", 8, 8, memory=MemoryConfig(weights=64))
    layer = {"op": int(LayerOp.CONV), "hold": 0, **{f"count_{level}": 0 for level in range(LOOPS)},
             "count_0": pixels - 1, "count_2": 199}
    waits = check(config, [layer], WeightSource.constant(rate))
    assert abs(waits - 200 * max(0, 8 / rate - max(pixels, 8))) <= 8 / rate + 64 / rate


def test_rates():
    assert WeightSource.constant(0.25).pattern == (False, False, False, True)
    assert WeightSource.constant(Fraction(2, 5)).pattern == (False, False, True, False, True)
    assert WeightSource.constant(1).pattern == (True,)
    for rate in (0, -1, 1.01, Fraction(1, 10_000)):
        with pytest.raises(ValueError, match=f"words per cycle must be above 0 and at most 1, not {rate}"):
            WeightSource.constant(rate)
    with pytest.raises(ValueError, match="must offer a word in some cycle"):
        WeightSource([0, 0])


@given(sources, st.integers(0, 1000))
@settings(deadline=None, derandomize=True)
def test_chances(source, count):
    offers = [source.pattern[cycle % len(source.pattern)] for cycle in range(count)]
    assert source.chances(count) == sum(offers)
    assert [source.cycle(chance) for chance in range(sum(offers))] == [at for at, offer in enumerate(offers) if offer]


@given(programs())
@settings(deadline=None, derandomize=True, max_examples=50)
def test_weight_tiles(program):
    config, layers = program
    for layer in layers:
        tiles, words = weight_tiles(config, layer)
        assert tiles == sum(word.tile for word in walk(layer))
        groups = -(-9 // config.cols)
        assert words == {LayerOp.CONV: config.rows, LayerOp.DEPTHWISE: config.rows * groups}.get(layer["op"], 0)


@given(configs, st.sampled_from(LayerOp), st.integers(1, 40))
@settings(deadline=None, derandomize=True)
def test_hold(config, op, taps):
    """The fewest cycles that leave room for the chunks of every vector."""
    lanes = gcd(config.depth, config.cols)
    words = taps if op in (LayerOp.MAX_POOL, LayerOp.SUM_POOL) else 1
    chunks = (config.cols if op is LayerOp.CONV else config.depth) // lanes
    hold = hold_cycles(config, op, taps)
    assert hold == max(0, chunks - words)


def test_longest_hold():
    """A descriptor's field holds it: 512 channels of a word, written one by one."""
    (field,) = (field for field in DESCRIPTOR if field.name == "hold")
    assert hold_cycles(ArrayConfig("binary", 256, 1, 2), LayerOp.MAX_POOL, 1) == 511 < 1 << field.bits
    assert hold_cycles(ArrayConfig("binary", 1, 256), LayerOp.CONV, 1) == 255


def test_constants():
    assert OUTPUT_LATENCY == OutputStage.latency == Requantizer.latency
    assert FETCH_CYCLES == DESCRIPTOR_WORDS + 2
