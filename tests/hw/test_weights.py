"""The weight loader: which word of which tile is on its way when."""

from itertools import count

import numpy as np
import pytest

from nomul_hw.config import ArrayConfig, MemoryConfig
from nomul_hw.descriptor import LayerOp
from nomul_hw.weights import WeightLoader

from .simulate import pauses, simulate

#: Layers of some runs, with their weight tiles.
CONV, DEPTHWISE, POOL, WINDOW = LayerOp.CONV, LayerOp.DEPTHWISE, LayerOp.MAX_POOL, LayerOp.MAX_WINDOW
RUNS = [
    [(CONV, 1), (CONV, 3), (CONV, 1), (CONV, 5)],
    [(POOL, 0), (CONV, 2), (POOL, 0), (POOL, 0)],
    [(POOL, 0)],
    [(CONV, 1), (POOL, 0), (CONV, 1)],
    [(CONV, 2)],
]
WINDOW_RUNS = [
    [(CONV, 1), (DEPTHWISE, 3), (CONV, 2), (DEPTHWISE, 1)],
    [(DEPTHWISE, 1), (WINDOW, 0), (DEPTHWISE, 2), (POOL, 0)],
    [(DEPTHWISE, 1)],
]


class Bench:
    """Plays sequencer, address generator and the source of weights, and checks every output in every cycle.

    Parameters
    ----------
    lazy : bool
        Descriptors and tiles may start late, streamed words come late. Otherwise all is as early as can be.
    """

    def __init__(self, config: ArrayConfig, lazy: bool):
        self.config, self.lazy = config, lazy
        self.dut = WeightLoader(config)
        self.rng = np.random.default_rng(config.rows)
        self.pausing = pauses(config.rows)
        self.streams = config.weights == "stream"
        self.next_word = count(1)  # streamed words are numbered; a word of memory is its address
        self.address = 0
        self.offered = False
        self.free, self.wait = True, 0
        self.missing: list[tuple[int, int]] = []  # of the tile that is being loaded: (index, word)
        self.passing: list[tuple[int, int] | None] = [None] * (1 if self.streams else 2)  # on their way to the array

    def some(self, most: int) -> int:
        return int(self.rng.integers(most + 1)) if self.lazy else 0

    def begin(self, op: LayerOp) -> None:
        """The load of a tile begins."""
        depthwise = op is DEPTHWISE
        words = self.config.rows * (self.config.window_groups if depthwise else 1)
        self.wait = max(words + depthwise, 4) - 1
        self.missing = [(index, next(self.next_word) if self.streams else self.address + index)
                        for index in range(words)]
        self.address += words

    async def cycle(self, ctx, running: LayerOp, upcoming: tuple[LayerOp, int] | None, tile: bool, last: bool) -> bool:
        """Let a cycle go by; return whether the loader is ready, without which no tile starts."""
        dut = self.dut
        if self.streams:
            self.offered = self.offered or not (self.lazy and next(self.pausing))
            ctx.set(dut.words.valid, self.offered)
            # A word may be there long before anybody wants it.
            ctx.set(dut.words.payload, self.missing[0][1] if self.missing else 0)
        op, base = upcoming or (CONV, 77)
        ctx.set(dut.fetched, upcoming is not None)
        ctx.set(dut.upcoming, {"op": op, "weight_base": base})
        ctx.set(dut.layer, {"op": running})
        ctx.set(dut.last_tile, last)

        taken = None
        if self.missing and (self.offered or not self.streams):
            taken, self.offered = self.missing.pop(0), False
        due = not self.wait
        ready = due and not self.missing
        ctx.set(dut.tile, tile and ready)
        assert (ctx.get(dut.due), ctx.get(dut.ready)) == (due, ready)
        if self.streams:
            assert ctx.get(dut.words.ready) == bool(taken or self.missing)
        else:
            assert ctx.get(dut.enable) == bool(taken)
            assert taken is None or ctx.get(dut.address) == taken[1]
        loaded = self.passing.pop(0)
        assert ctx.get(dut.load) == (1 << loaded[0] if loaded else 0)
        assert loaded is None or ctx.get(dut.weights) == loaded[1]
        self.passing.append(taken)

        self.wait = max(0, self.wait - 1)
        if self.free and upcoming is not None and op.has_weights:
            self.free, self.address = False, base
            self.begin(op)
        elif tile and ready and not last:
            self.begin(running)
        self.free = self.free or (tile and ready and last)
        await ctx.tick()
        if not self.streams and taken is not None:
            ctx.set(dut.data, taken[1])
        return ready

    async def run(self, ctx, layers: list[tuple[LayerOp, int]]) -> None:
        """Run layers; while one runs the descriptor of the next is fetched."""
        waiting = [(op, tiles, self.some(60)) for op, tiles in layers]
        running, tiles, pause = POOL, 0, 0
        fetch = self.some(30)
        while waiting or tiles or pause:
            there = not fetch and bool(waiting)
            tries = bool(tiles) and not pause
            ready = await self.cycle(ctx, running, (waiting[0][0], waiting[0][2]) if there else None,
                                     tries, tiles == 1 or (not tries and bool(self.some(1))))
            fetch, pause = max(0, fetch - 1), max(0, pause - 1)
            if tries and ready:
                tiles, pause = tiles - 1, self.some(30)
            elif there and not tiles and not pause:
                running, tiles, _ = waiting.pop(0)
                fetch, pause = 2 + self.some(30), self.some(30)


@pytest.mark.parametrize("source", ["memory", "stream"])
@pytest.mark.parametrize(("rows", "lines"), [(1, 0), (5, 0), (1, 8), (4, 8)])
@pytest.mark.parametrize("lazy", [False, True])
def test_tiles(source, rows, lines, lazy):
    """Runs one after the other, in any order: each takes its own words and no more."""
    config = ArrayConfig("ternary", rows, 4, 2, weights=source, memory=MemoryConfig(weights=100, lines=lines))
    assert (config.tile_cycles, config.window_groups) == (max(rows, 4), 3)
    runs = RUNS + WINDOW_RUNS if lines else RUNS
    bench = Bench(config, lazy)

    async def testbench(ctx):
        for index in bench.rng.permutation(2 * len(runs)):
            await bench.run(ctx, runs[index % len(runs)])
            for _ in range(bench.some(10)):
                await bench.cycle(ctx, CONV, None, False, False)
        for _ in range(4):
            await bench.cycle(ctx, CONV, None, False, False)

    simulate(bench.dut, testbench)
    tiles = [(op, tiles) for run in runs for op, tiles in run]
    words = 2 * sum(tiles * rows * (3 if op is DEPTHWISE else 1) for op, tiles in tiles)
    assert not bench.streams or next(bench.next_word) == words + 1
