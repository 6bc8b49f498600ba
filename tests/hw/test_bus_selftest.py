# amaranth: UnusedElaboratable=no
"""The self-test: with an accelerator that a bench plays, and around a real one."""

import zlib
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from nomul.selftest import self_test
from nomul_hw.accelerator import Accelerator
from nomul_hw.bus.selftest import SelfTest, SelfTestBus, masked_crc
from nomul_hw.config import ArrayConfig, ConfigError
from nomul_hw.contents import Contents
from nomul_hw.descriptor import Target
from nomul_hw.verilog import generate

from ..sw.small import small_program
from .simulate import PAUSES, pauses, simulate, stream_get, stream_put

ALL = 0xFFFFFFFF
COMMANDS = (7, 0xDEADBEEF, 0, 3)
ANSWERS, MASKS = (0x12345678, 0xFFFFFFFF, 5), (ALL, 0x00FF00FF, ALL)


def bus(masks=MASKS, **changes) -> SelfTestBus:
    return replace(SelfTestBus(clock=100, commands=COMMANDS, masks=masks, crc=masked_crc(ANSWERS, masks)), **changes)


def test_the_checksum_is_that_of_the_link():
    assert masked_crc(ANSWERS, (ALL,) * 3) == zlib.crc32(np.array(ANSWERS, dtype="<u4").tobytes())
    assert masked_crc((1, 0x12FF3456), (ALL, 0xFF0000FF)) == masked_crc((1, 0x12000056), (ALL, ALL))


@pytest.mark.parametrize("masks", [MASKS, (ALL,) * 3], ids=["masks", "all bits"])
@pytest.mark.parametrize("slow_source, slow_sink", PAUSES)
def test_passes_over_and_over(masks, slow_source, slow_sink):
    """The same commands every time; the LED blinks. Bits that do not count may differ."""
    dut = SelfTest(bus(masks))
    changes = []

    async def accelerator(ctx):
        for run in range(8):
            assert not ctx.get(dut.failed)
            taken = pauses(run) if slow_sink else iter(lambda: False, None)
            given = pauses(-run - 1 & 0xFF) if slow_source else iter(lambda: False, None)
            assert tuple(await stream_get(ctx, dut.o, len(COMMANDS), taken)) == COMMANDS
            assert ctx.get(dut.busy)
            noise = [0xA5A5A5A5 * run & ALL & ~mask for mask in masks]
            await stream_put(ctx, dut.i, [answer ^ bits for answer, bits in zip(ANSWERS, noise, strict=True)], given)
            await ctx.tick().repeat(3)
            assert ctx.get(dut.passed)
            changes.append(ctx.get(dut.led))
            await ctx.tick().repeat(60)  # more than half a second

    simulate(dut, accelerator, timeout=20_000)
    assert changes == [1, 0] * 4


def test_runs_that_are_quick_do_not_make_it_blink_faster():
    dut = SelfTest(bus(clock=1000))
    lit = []

    async def accelerator(ctx):
        while len(lit) < 100:
            await stream_get(ctx, dut.o, len(COMMANDS))
            await stream_put(ctx, dut.i, ANSWERS)
            lit.append(ctx.get(dut.led))

    simulate(dut, accelerator)
    assert 1 <= sum(before != after for before, after in pairwise(lit)) <= 5


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_one_wrong_bit_ends_it(wrong):
    dut = SelfTest(bus())
    answers = [answer ^ (wrong == index) for index, answer in enumerate(ANSWERS)]

    async def accelerator(ctx):
        for words in (ANSWERS, ANSWERS, answers):
            await stream_get(ctx, dut.o, len(COMMANDS))
            assert not ctx.get(dut.failed)
            await stream_put(ctx, dut.i, words)
        await ctx.tick().repeat(4)
        for _ in range(200):
            await ctx.tick()
            assert (ctx.get(dut.failed), ctx.get(dut.passed), ctx.get(dut.busy), ctx.get(dut.led)) == (1, 0, 0, 1)
            assert not ctx.get(dut.o.valid)

    simulate(dut, accelerator)


def test_an_accelerator_that_does_not_answer():
    """Neither passes nor fails, and the LED does not change."""
    dut = SelfTest(bus())

    async def accelerator(ctx):
        await stream_get(ctx, dut.o, len(COMMANDS))
        await stream_put(ctx, dut.i, ANSWERS[:-1])
        for _ in range(300):
            await ctx.tick()
            assert (ctx.get(dut.busy), ctx.get(dut.passed), ctx.get(dut.failed), ctx.get(dut.led)) == (1, 0, 0, 0)

    simulate(dut, accelerator)


def outcome(test: SelfTestBus, contents: Contents) -> tuple[int, int]:
    """Whether a real accelerator, with the small program, passes or fails."""
    dut = test.around(Accelerator(small_program().config, contents))
    ended = []

    async def watch(ctx):
        while not (ctx.get(dut.passed) or ctx.get(dut.failed)):
            await ctx.tick()
        await ctx.tick().repeat(700)  # into the next run
        ended.append((ctx.get(dut.passed), ctx.get(dut.failed)))

    simulate(dut, watch)
    return ended[0]


def test_of_a_network():
    """Passes as compiled; a weight, an input or a CRC that differs in one bit fails."""
    program = small_program()
    test = self_test(program, 1000)
    assert outcome(test, program.contents) == (1, 0)

    weights = program.contents.tables[Target.WEIGHT]
    flipped = replace(weights, words=(*weights.words[:-1], weights.words[-1] ^ 1))
    assert outcome(test, Contents({**program.contents.tables, Target.WEIGHT: flipped})) == (0, 1)
    assert test.commands[:3] == (1 | Target.ACTIVATION_0 << 8, 0, 16)  # writes the input, 2 x 4 x 4
    assert outcome(replace(test, commands=(*test.commands[:3], test.commands[3] ^ 128, *test.commands[4:])),
                   program.contents) == (0, 1)
    assert outcome(replace(test, crc=test.crc ^ 1 << 31), program.contents) == (0, 1)


def test_refuses():
    with pytest.raises(ConfigError, match="needs answers"):
        SelfTestBus(100, COMMANDS, (), 0)
    with pytest.raises(ConfigError, match="streamed weights come from outside"):
        bus().around(Accelerator(ArrayConfig("ternary", 2, 2, weights="stream")))


def test_generate(tmp_path):
    """Verilog that no linter has anything to say of, the files that it reads, and what it is."""
    program = small_program()
    test = self_test(program, 25_000_000)
    made = generate(program.config, tmp_path, contents=program.contents, bus=test)
    assert made.lint.ok, made.lint.to_text()
    assert {port["name"] for port in made.manifest["ports"]} == {"clk", "rst", "busy", "passed", "failed", "led"}
    assert made.manifest["bus"] == {"name": "selftest", "clock": 25_000_000, "commands": len(test.commands),
                                    "answers": len(test.masks), "crc": f"{test.crc:08x}"}
    assert [int(word, 16) for word in (tmp_path / "selftest_commands.hex").read_text().split()] == list(test.commands)
    assert (tmp_path / "selftest_masks.hex").exists()
    assert "selftest_commands.hex" in (tmp_path / f"{program.config.name}_selftest.core").read_text()
