"""The host port against a list of commands, whoever pauses on whichever stream."""

from itertools import repeat

import numpy as np
import pytest

from nomul_hw.config import ArrayConfig
from nomul_hw.descriptor import CAUSES, HOST_BITS, Opcode, Target, target_word_bits, to_host_words
from nomul_hw.host import HostPort

from .simulate import PAUSES, pauses, simulate, stream_get, stream_put
from .vectors import join

CONFIGS = [
    ArrayConfig("ternary", 1, 1, acc_bits=12, gain_terms=1),  # every word fits in one of the host's
    ArrayConfig("ternary", 1, 2),  # parameters alone do not
    ArrayConfig("exp5", 5, 4, lanes=2),
    ArrayConfig("ternary", 8, 12, lanes=2),
]
every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
BAKED = 0xBA4EDBAD
BANKS = (Target.ACTIVATION_0, Target.ACTIVATION_1)


def command(opcode: int, target: int, address: int, count: int) -> list[int]:
    return [opcode | target << 8, address, count]


class Script:
    """Random commands, with what they must do and what they must be answered."""

    def __init__(self, rng: np.random.Generator, config: ArrayConfig, length: int):
        self.rng, self.config = rng, config
        self.sent: list[int] = []
        self.events: list[tuple] = []
        self.replies: list[int] = []
        self.banks: dict[tuple[Target, int], int] = {}
        self.cycles: list[list[int]] = [[0] * len(CAUSES)]  # after no run, after one, ...
        actions = [self.write, self.write, self.read_bank, self.read_bank, self.read_other, self.run, self.nonsense]
        for _ in range(length):
            actions[int(rng.integers(len(actions)))]()
        # Answered when all that was sent before is done.
        self.sent += command(Opcode.READ, Target.IDENTITY, 0, 1)
        self.replies.append(config.identity)

    def write(self):
        target = Target(int(self.rng.choice(Target)))
        bits = target_word_bits(self.config, target)
        address, count = int(self.rng.integers(6)), int(self.rng.integers(4))
        self.sent += command(Opcode.WRITE, target, address, count)
        for index in range(count):
            # The host words' last bits, beyond the target's word, do not matter.
            words = self.rng.integers(1 << HOST_BITS, size=-(-bits // HOST_BITS)).tolist()
            value = join(words, HOST_BITS) % (1 << bits)
            self.sent += words
            self.events.append(("write", target, address + index, value))
            self.banks[target, address + index] = value

    def read_bank(self):
        target = BANKS[int(self.rng.integers(2))]
        address, count = int(self.rng.integers(6)), int(self.rng.integers(4))
        self.sent += command(Opcode.READ, target, address, count)
        for index in range(count):
            self.replies += to_host_words(self.banks.get((target, address + index), 0), self.config.act_word_bits)

    def read_other(self):
        target = Target(int(self.rng.choice([each for each in Target if each not in BANKS])))
        address = int(self.rng.integers(len(CAUSES) - 2))
        self.sent += command(Opcode.READ, target, address, 3)
        for index in range(address, address + 3):
            if target is Target.COUNTER:
                self.replies.append(self.cycles[-1][index])
            elif target is Target.IDENTITY:
                self.replies.append(BAKED if index % 2 else self.config.identity)
            else:  # memories that only the machine reads
                self.replies += to_host_words(0, target_word_bits(self.config, target))

    def run(self):
        address, count = int(self.rng.integers(64)), int(self.rng.integers(3))
        self.sent += command(Opcode.RUN, int(self.rng.integers(256)), address, count)
        if count:
            self.events.append(("run", address, count))
            self.cycles.append(self.rng.integers(1 << HOST_BITS, size=len(CAUSES)).tolist())

    def nonsense(self):
        """An opcode or a target that there is not, a count of 0."""
        opcode, target = [(0, 3), (4, 0), (255, 255), (int(Opcode.WRITE), 77), (int(Opcode.READ), 7)][
            int(self.rng.integers(5))]
        self.sent += command(opcode, target, int(self.rng.integers(1 << HOST_BITS)), 2)
        if opcode == Opcode.WRITE:
            self.sent += self.rng.integers(1 << HOST_BITS, size=2).tolist()
        if opcode == Opcode.READ:
            self.replies += [0, 0]


@every_config
@pytest.mark.parametrize("source, sink", PAUSES)
def test_commands(config, source, sink):
    rng = np.random.default_rng([config.depth, source, sink])
    script = Script(rng, config, 40)
    dut = HostPort(config, BAKED)
    replies, events, done = [], [], []

    async def put(ctx):
        await stream_put(ctx, dut.i, script.sent, pauses(1) if source else repeat(False))

    async def get(ctx):
        replies.extend(await stream_get(ctx, dut.o, len(script.replies), pauses(2) if sink else repeat(False)))
        done.append(True)

    async def machine(ctx):
        memory = {}
        runs = busy = 0
        shown = late = 0
        while not done:
            if ctx.get(dut.address) < len(CAUSES):
                ctx.set(dut.cycles, script.cycles[runs][ctx.get(dut.address)])
            words = [ctx.get(dut.word(target)) for target in Target]
            _, _, write, address, bank, read, run, count = await ctx.tick().sample(
                dut.write, dut.address, dut.bank, dut.read, dut.run, dut.count)
            for target in Target:
                if write >> target & 1:
                    memory[target, address] = words[target]
                    events.append(("write", target, address, words[target]))
            # What was read is shown until the next read; anything before the first.
            for index, target in enumerate(BANKS):
                if read >> index & 1:
                    shown = memory.get((target, address), 0)
                    assert bank == index
            ctx.set(dut.bank_word, late)
            late = shown
            if run:
                events.append(("run", address, count))
                runs, busy = runs + 1, int(rng.integers(1, 30))
                ctx.set(dut.busy, 1)
            elif busy:
                busy -= 1
                if not busy:
                    ctx.set(dut.busy, 0)
            assert not run or not write

    simulate(dut, put, get, machine, timeout=20_000)
    assert replies == script.replies
    assert events == script.events


@every_config
def test_write_takes_a_word_a_cycle(config):
    """A command's three words, its data, and one cycle in which the last word is written."""
    data = 3 * -(-config.act_word_bits // HOST_BITS)
    sent = command(Opcode.WRITE, Target.ACTIVATION_0, 2, 3) + [7] * data
    dut, ready = HostPort(config), []

    async def testbench(ctx):
        ctx.set(dut.i.valid, 1)
        for word in [*sent, sent[0], *sent, sent[0]]:  # the next command's first word is offered for two cycles
            ctx.set(dut.i.payload, word)
            ready.append(ctx.get(dut.i.ready))
            await ctx.tick()

    simulate(dut, testbench)
    assert ready == ([1] * (3 + data) + [0]) * 2


@every_config
def test_read_takes_two_cycles(config):
    """Two cycles before the first host word of every word."""
    dut, valid = HostPort(config), []
    host_words = -(-config.act_word_bits // HOST_BITS)

    async def testbench(ctx):
        await stream_put(ctx, dut.i, command(Opcode.READ, Target.ACTIVATION_1, 0, 3))
        ctx.set(dut.o.ready, 1)
        for _ in range(3 * (2 + host_words) + 2):
            valid.append(ctx.get(dut.o.valid))
            await ctx.tick()

    simulate(dut, testbench)
    assert valid == ([0, 0] + [1] * host_words) * 3 + [0, 0]
