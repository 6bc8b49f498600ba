"""The top that reads and writes memory: bursts of any length anywhere, and everything that can go wrong."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles

from nomul.driver import DeviceError
from nomul_hw.descriptor import Opcode, Target, target_word_bits, to_host_words

from .accelerator import find_case
from .axi import check
from .bus import CONFIG, MemoryHost, Words, start

#: Host words of an activation word, and words of a bank.
PER_WORD = len(to_host_words(0, target_word_bits(CONFIG, Target.ACTIVATION_0)))
DEPTH = CONFIG.memory.activations


def command(opcode: Opcode, target: int, address: int, count: int) -> list[int]:
    """The three words of a command."""
    return [opcode | target << 8, address, count]


async def transfer(host: MemoryHost, words: list[int], replies: int, at: int = 0, answers_at: int = 0x8000) -> Words:
    """A transfer with buffers at any place; return what lies there afterwards, 64 words around it too."""
    around = 64
    place = host.ADDRESS + answers_at - 4 * around
    host.write_memory(place, np.full(replies + 2 * around, 0xA5A5A5A5, dtype=np.uint32))
    host.write_memory(host.ADDRESS + at, np.array(words, dtype=np.uint32))
    for name, offset, count in (("command", at, len(words)), ("answer", answers_at, replies)):
        await host.set(f"{name}_address", value=host.ADDRESS + offset)
        await host.set(f"{name}_words", value=count)
    await host.set("interrupt", done=1, error=1)
    await host.set("control", start=1)
    while (await host.get("status"))["active"]:
        await host.interrupted()
    found = host.read_memory(place, replies + 2 * around)
    assert (found[:around] == 0xA5A5A5A5).all() and (found[around + replies:] == 0xA5A5A5A5).all()
    return found[around:around + replies]


@cocotb.test()
async def bursts(dut: Any) -> None:
    """Data of many lengths to a bank and back, from and to many places: nothing beside them is written."""
    host = await start(dut, 0.4, seed=4)
    rng = np.random.default_rng(4)
    await host.set("interrupt_enable", done=1)
    beat = len(dut.m_axi_wdata) // 8
    for index in range(16):
        count = int(rng.integers(1, 8 if index < 10 else DEPTH))
        data = rng.integers(0, 1 << 32, count * PER_WORD).astype(np.uint32)
        at, answers_at = (start_ + beat * int(rng.integers(4096 // beat)) for start_ in (0x10000, 0x20000))
        got = await transfer(host, [*command(Opcode.WRITE, Target.ACTIVATION_1, 0, count), *data.tolist(),
                                    *command(Opcode.READ, Target.ACTIVATION_1, 0, count)], len(data), at, answers_at)
        width = target_word_bits(CONFIG, Target.ACTIVATION_0)
        last = (1 << (width - 1) % 32 + 1) - 1
        data[PER_WORD - 1::PER_WORD] &= last
        assert np.array_equal(got, data)
        status = await host.get("status")
        assert not any(value for name, value in status.items() if name != "idle"), status
        assert (await host.get("interrupt"))["done"] and not (await host.get("interrupt"))["error"]


@cocotb.test()
async def errors(dut: Any) -> None:
    """Each is reported, ends the transfer, and leaves nothing behind."""
    host = await start(dut, 0.2, seed=5)
    identity = command(Opcode.READ, Target.IDENTITY, 0, 2)
    await host.set("interrupt_enable", done=1)

    async def fails(error: str, run: Callable[[], Awaitable[Any]], response: int = 0) -> None:
        await run()
        status, interrupt = await host.get("status"), await host.get("interrupt")
        assert {name for name, value in status.items() if value and name.endswith("_error")} == {error}, status
        assert status["response"] == response and status["idle"]
        assert interrupt["done"] and interrupt["error"]
        assert (await transfer(host, identity, 2)).tolist() == [CONFIG.identity, 0]
        assert not (await host.get("status"))[error]

    for misplaced in ("at", "answers_at"):
        await fails("address_error", partial(transfer, host, identity, 2, **{misplaced: 0x9002}))
    for words, replies in ((identity[:2], 0), (identity, 3), (identity, 1),
                           (command(Opcode.WRITE, Target.PROGRAM, 0, 5) + [0], 0)):
        await fails("length_error", partial(transfer, host, words, replies))

    async def on_bad_memory(bad: range, words: list[int], replies: int) -> None:
        host.bad = bad
        await transfer(host, words, replies)
        host.bad = range(0)

    write = command(Opcode.WRITE, Target.PROGRAM, 0, 20) + list(range(20))
    for offset in (0, 0x40):
        begin = host.ADDRESS + offset
        await fails("read_error", partial(on_bad_memory, range(begin, begin + 4), 6 * write, 0), 2)
    answers = host.ADDRESS + 0x8000
    await fails("write_error", partial(on_bad_memory, range(answers, answers + 4), identity, 2), 2)

    host.bad = range(host.ADDRESS, host.ADDRESS + 0x8000)
    try:
        await host.device()
    except DeviceError as error:
        assert "read error (response 2)" in str(error)
    else:
        raise AssertionError("the driver says nothing")


@cocotb.test()
async def stop_while_memory_is_slow(dut: Any) -> None:
    """What has begun on the bus is ended first, however long it takes; then the accelerator works on."""
    host = await start(dut, seed=6)
    write, read = host.memory.write_if, host.memory.read_if
    words = command(Opcode.WRITE, Target.ACTIVATION_0, 0, DEPTH) + [1] * (DEPTH * PER_WORD)
    words += command(Opcode.READ, Target.ACTIVATION_0, 0, DEPTH)
    for channel in (read.ar_channel, read.r_channel, write.aw_channel, write.w_channel, write.b_channel):
        host.write_memory(host.ADDRESS, np.array(words, dtype=np.uint32))
        for name, offset, count in (("command", 0, len(words)), ("answer", 0x8000, DEPTH * PER_WORD)):
            await host.set(f"{name}_address", value=host.ADDRESS + offset)
            await host.set(f"{name}_words", value=count)
        channel.pause = True
        await host.set("control", start=1)
        await ClockCycles(dut.aclk, 3 * len(words))
        await host.set("control", stop=1)
        await ClockCycles(dut.aclk, 50)
        assert (await host.get("status"))["active"]
        channel.pause = False
        await ClockCycles(dut.aclk, 100)
        status = await host.get("status")
        assert not any(value for name, value in status.items() if name != "idle"), status
    await check(host, await host.device(), *find_case(2, 30_000))


@cocotb.test()
async def weights_of_another_length(dut: Any) -> None:
    """A run that takes fewer weights than it is given is an error; one that waits for more can be stopped."""
    if CONFIG.weights == "memory":
        return
    host = await start(dut, 0.2, seed=7)
    case, program = next(found for found in (find_case(1, 1000 * index) for index in range(40, 60))
                         if len(found[1].weight_stream))
    device = await host.device()
    await check(host, device, case, program)
    run = command(Opcode.RUN, 0, 0, len(program.layers))
    words = len(program.weight_stream)
    per_word = len(to_host_words(0, CONFIG.weight_word_bits))
    for surplus in (1, 2 * CONFIG.memory.weights):  # that the queue in front of the array takes, and does not
        await host.set("weight_words", value=words + surplus * per_word)
        await transfer(host, run, 0)
        assert (await host.get("status"))["length_error"]
    await host.set("weight_words", value=0)
    for name, value in (("command_address", host.ADDRESS), ("command_words", 3), ("answer_words", 0)):
        await host.set(name, value=value)
    await host.set("control", start=1)
    await ClockCycles(dut.aclk, 500)
    status = await host.get("status")
    assert status["active"] and status["running"]
    assert (await host.counters())["memory"] > 300
    await host.set("control", stop=1)
    await ClockCycles(dut.aclk, 20)
    assert not (await host.get("status"))["active"]
    await check(host, await host.device(), case, program)
