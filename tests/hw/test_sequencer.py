"""The sequencer with a machine that spends random cycles: the order of layers, and where every cycle goes."""

import numpy as np
import pytest
from amaranth.hdl import Value

from nomul_hw.config import ArrayConfig, MemoryConfig
from nomul_hw.descriptor import CAUSES, DESCRIPTOR, DESCRIPTOR_WORDS, HOST_BITS, to_host_words
from nomul_hw.layouts import descriptor_layout
from nomul_hw.sequencer import Sequencer
from nomul_hw.timing import FETCH_CYCLES

from .simulate import simulate
from .vectors import descriptor

LAYERS = 5
CONFIG = ArrayConfig("ternary", 2, 2, memory=MemoryConfig(layers=LAYERS))


def random_descriptor(rng: np.random.Generator) -> int:
    """Random bits in every field."""
    values = {}
    for field in DESCRIPTOR:
        value = int(rng.integers(1 << field.bits))
        values[field.name] = value - (1 << field.bits) if field.signed and value >> (field.bits - 1) else value
    return descriptor(**values)


async def load(ctx, dut: Sequencer, words: list[int], address: int = 0) -> None:
    """Write program memory."""
    for offset, word in enumerate(words):
        ctx.set(dut.program_address, address + offset)
        ctx.set(dut.program_data, word)
        ctx.set(dut.program_write, 1)
        await ctx.tick()
    ctx.set(dut.program_write, 0)


def counted(ctx, dut: Sequencer) -> dict[str, int]:
    """Cycles of the latest run."""
    cycles = {}
    for index, cause in enumerate(CAUSES):
        ctx.set(dut.cause, index)
        cycles[cause] = ctx.get(dut.cycles)
    return cycles


async def run(ctx, dut: Sequencer, rng: np.random.Generator, first: int, programs: list[int], longest: int) -> None:
    """Run layers ``first ..``, playing the machine; check every start and the counters at the end."""
    upcoming, layer = Value.cast(dut.upcoming), Value.cast(dut.layer)
    ctx.set(dut.run, 1)
    ctx.set(dut.run_address, first * DESCRIPTOR_WORDS)
    ctx.set(dut.run_layers, len(programs))
    assert not ctx.get(dut.busy)
    await ctx.tick()
    ctx.set(dut.run, 0)
    ctx.set(dut.run_address, int(rng.integers(8)))
    ctx.set(dut.run_layers, int(rng.integers(LAYERS)))

    spent = dict.fromkeys(CAUSES, 0)
    since_start = 0  # of the run or of the layer before
    for index, program in enumerate(programs):
        control = 0
        while True:
            control += 1
            assert ctx.get(dut.busy)
            assert ctx.get(dut.start) == ctx.get(dut.fetched)
            if ctx.get(dut.start):
                break
            await ctx.tick()
        # The next descriptor is fetched while a layer runs: between long layers one cycle goes by.
        assert control == max(1, FETCH_CYCLES - since_start)
        assert ctx.get(upcoming) == program
        spent["control"] += control
        await ctx.tick()

        cycles = int(rng.integers(1, longest))
        causes = {"busy": dut.issuing, "weight": dut.waits_for_weights, "memory": dut.waits_for_memory,
                  "requantize": dut.holds}
        drain = int(rng.integers(1, longest))
        for at in range(cycles + drain):
            assert ctx.get(dut.busy) and not ctx.get(dut.start) and ctx.get(layer) == program
            # The next descriptor, if there is one, is there in time, complete, and no other.
            assert ctx.get(dut.fetched) == (index + 1 < len(programs) and at + 1 >= FETCH_CYCLES)
            assert not ctx.get(dut.fetched) or ctx.get(upcoming) == programs[index + 1]
            for port in causes.values():
                ctx.set(port, 0)
            cause = "drain"
            if at < cycles:
                cause = "busy" if at == cycles - 1 else str(rng.choice(list(causes)))
                ctx.set(causes[cause], 1)
            spent[cause] += 1
            ctx.set(dut.issued_last, at == cycles - 1)
            ctx.set(dut.done, at == cycles + drain - 1)
            await ctx.tick()
        ctx.set(dut.done, 0)
        since_start = cycles + drain
    assert not ctx.get(dut.busy) and not ctx.get(dut.start)
    await ctx.tick()  # the last cycle is counted in the one after it
    assert counted(ctx, dut) == spent


@pytest.mark.parametrize("longest", [5, 60])
def test_runs(longest):
    """Runs of one layer, of some, and of all that there is room for; layers shorter and longer than a fetch."""
    rng = np.random.default_rng(longest)
    dut = Sequencer(CONFIG)
    programs = [random_descriptor(rng) for _ in range(LAYERS)]

    async def testbench(ctx):
        for index, program in enumerate(programs):
            words = to_host_words(program, DESCRIPTOR_WORDS * HOST_BITS)
            await load(ctx, dut, words, index * DESCRIPTOR_WORDS)
        for first, count in [(0, LAYERS), (2, 1), (LAYERS - 1, 1), (1, 3), (0, 2)]:
            await run(ctx, dut, rng, first, programs[first:first + count], longest)
            for _ in range(int(rng.integers(0, 3))):
                assert not ctx.get(dut.busy)
                await ctx.tick()
        # Another program in the place of the first.
        other = random_descriptor(rng)
        await load(ctx, dut, to_host_words(other, DESCRIPTOR_WORDS * HOST_BITS))
        await run(ctx, dut, rng, 0, [other, programs[1]], longest)

    simulate(dut, testbench)


def test_run_of_no_layers():
    """Nothing happens; the counters keep what they count."""
    dut = Sequencer(CONFIG)
    rng = np.random.default_rng(1)
    program = random_descriptor(rng)

    async def testbench(ctx):
        await load(ctx, dut, to_host_words(program, DESCRIPTOR_WORDS * HOST_BITS))
        await run(ctx, dut, rng, 0, [program], 5)
        before = counted(ctx, dut)
        ctx.set(dut.run, 1)
        ctx.set(dut.run_layers, 0)
        for _ in range(2 * FETCH_CYCLES):
            await ctx.tick()
            assert not ctx.get(dut.busy) and not ctx.get(dut.start)
            ctx.set(dut.run, 0)
        assert counted(ctx, dut) == before
        await run(ctx, dut, rng, 0, [program], 5)

    simulate(dut, testbench)


def test_descriptor_fits():
    """The struct has the fields of the packed word, in the same places."""
    rng = np.random.default_rng(2)
    word = random_descriptor(rng)
    values = descriptor_layout().from_bits(word)
    assert word == descriptor(**{field.name: int(values[field.name]) for field in DESCRIPTOR})
