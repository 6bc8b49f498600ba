# amaranth: UnusedElaboratable=no
"""The device's half of the serial link against the host's, over faulty lines and with everyone pausing."""

from itertools import repeat

import numpy as np
import pytest

from nomul.wire import HostLink
from nomul_hw.accelerator import Accelerator
from nomul_hw.bus.frames import FLAG, LINK_VERSION, REPLY, REQUEST, decode_body, encode_frame
from nomul_hw.bus.link import Deframer, Framer, Link
from nomul_hw.bus.serial import SerialBus
from nomul_hw.config import ArrayConfig, ConfigError
from nomul_hw.descriptor import HOST_BITS, pack, to_host_words
from nomul_sim.line import FaultyLine

from ..link import echo
from .simulate import pauses, simulate, stream_get, stream_put

#: Seconds of a cycle, in the host's eyes.
CYCLE = 1e-6
SPECIAL = [0x7E7E7E7E, 0x7D7D7D7D, 0x7D5E7E5D, 0, 0xFFFFFFFF]


class _Packed:
    """A stream whose payload is set as one integer."""

    def __init__(self, stream):
        self.payload, self.valid, self.ready = stream.payload.as_value(), stream.valid, stream.ready


@pytest.mark.parametrize("pausing", [False, True])
def test_framer(pausing):
    dut, sent, expected, received = Framer(), [], b"", []
    for payload in ([1, 2], [], SPECIAL, [0x7E000000]):
        header = {"session": 0x7E7D, "round": len(payload)}
        expected += encode_frame(REQUEST, header, payload)
        words = [*to_host_words(pack(REQUEST, {**header, "version": LINK_VERSION}), 64), *payload]
        sent += [*words[:-1], words[-1] | 1 << HOST_BITS]

    async def put(ctx):
        await stream_put(ctx, _Packed(dut.i), sent, pauses(1) if pausing else repeat(False))

    async def get(ctx):
        received.extend(await stream_get(ctx, dut.o, len(expected), pauses(2) if pausing else repeat(False)))

    simulate(dut, put, get)
    assert bytes(received) == expected


@pytest.mark.parametrize("pausing", [False, True])
def test_deframer(pausing):
    """Whole frames, damaged ones, lost bytes, noise, one behind the other."""
    rng = np.random.default_rng(0)
    data, lost_at, expected = [*b"noise"], set(), []
    for _ in range(40):
        payload = rng.choice(np.array([*SPECIAL, 1, 2], dtype=np.uint32), int(rng.integers(4)))
        frame = bytearray(encode_frame(REQUEST, {"session": int(rng.integers(1 << 16))}, payload))
        kind = int(rng.integers(4))
        if kind == 1:
            frame[int(rng.integers(1, len(frame) - 1))] ^= 0x10
        if kind == 2:
            del frame[int(rng.integers(1, len(frame) - 1))]
        if kind == 3:
            lost_at.add(len(data) + int(rng.integers(1, len(frame) - 1)))
        expected += [kind == 0 for body in bytes(frame).split(bytes([FLAG])) if body]
        data += frame
    dut, found, words, shown = Deframer(), [], [], []

    async def testbench(ctx):
        wait = pauses(3) if pausing else repeat(False)
        for index, byte in enumerate(data):
            while next(wait):
                ctx.set(dut.i.valid, 0)
                await ctx.tick()
            lost = index in lost_at
            ctx.set(dut.i.payload, byte)
            ctx.set(dut.i.valid, not lost)
            ctx.set(dut.error, lost)
            _, _, valid, word, done, good = await ctx.tick().sample(dut.valid, dut.word, dut.done, dut.good)
            ctx.set(dut.i.valid, 0)
            ctx.set(dut.error, 0)
            if valid:
                words.append(word)
            if done:
                found.append(bool(good))
                shown.append(words.copy())
                words.clear()

    simulate(dut, testbench)
    assert found == expected
    bodies = [body for body in bytes(data).split(bytes([FLAG]))[1:] if body]
    for good, got, body in zip(found, shown, bodies, strict=True):
        if good:
            fields, payload = decode_body(REQUEST, body)
            assert got[2:] == payload.tolist() and got[0] & 0xFFFF == fields["session"]


class Bench:
    """A host at the link's bytes, an accelerator at its words; both pause as they like."""

    def __init__(self, dut: Link, seed: int, rate: float, pausing: bool):
        self.dut, self.seed = dut, seed
        self.wait = [pauses(seed * 10 + index) if pausing else repeat(False) for index in range(4)]
        self.down, self.up = (FaultyLine(rate, (seed, index), 300 * CYCLE) for index in range(2))
        self.host = HostLink(baud=10_000_000, latency=500 * CYCLE, attempts=100, frame_words=5)
        self.cycle = 0
        self.taken: list[int] = []
        self.resets = 0
        self.over = False
        self.queue = b""

    async def accelerator(self, ctx):
        """Answers as :func:`tests.link.echo` says."""
        dut, answers = self.dut, []
        offered = None
        while not self.over:
            ready = len(answers) < 4 and not next(self.wait[0])
            if offered is None and answers and not next(self.wait[1]):
                offered = answers.pop(0)
            ctx.set(dut.o.ready, ready)
            ctx.set(dut.i.valid, offered is not None)
            ctx.set(dut.i.payload, offered or 0)
            _, _, valid, word, took, reset = await ctx.tick().sample(dut.o.valid, dut.o.payload, dut.i.ready,
                                                                     dut.reset)
            if valid and ready:
                self.taken.append(word)
                answers += echo(word)
            if offered is not None and took:
                offered = None
            if reset:
                self.resets += 1
                self.taken.clear()
                answers.clear()
                offered = None

    async def run(self, ctx):
        """Let the host do what it has begun."""
        dut, host = self.dut, self.host
        while not host.done:
            now = self.cycle * CYCLE
            self.down.send(host.outgoing(now), now)
            self.queue += self.down.receive(now)
            send = bool(self.queue) and not next(self.wait[2])
            ready = not next(self.wait[3])
            if send:
                ctx.set(dut.rx.payload, self.queue[0])
                self.queue = self.queue[1:]
            ctx.set(dut.rx.valid, send)
            ctx.set(dut.tx.ready, ready)
            _, _, valid, byte = await ctx.tick().sample(dut.tx.valid, dut.tx.payload)
            self.cycle += 1
            now = self.cycle * CYCLE
            if valid and ready:
                self.up.send(bytes([byte]), now)
            if arrived := self.up.receive(now):
                host.incoming(arrived, now)
        ctx.set(dut.rx.valid, 0)

    async def exchange(self, ctx, words: np.ndarray):
        expected = [answer for word in words.tolist() for answer in echo(word)]
        self.host.begin(words, len(expected), self.cycle * CYCLE)
        await self.run(ctx)
        assert self.host.replies.tolist() == expected


@pytest.mark.parametrize("seed, rate, pausing", [(0, 0, False), (1, 0, True), (2, 0.001, False), (3, 0.002, True)])
def test_every_word_once(seed, rate, pausing):
    dut = Link(depth=16, frame_words=7)
    bench, rng = Bench(dut, seed, rate, pausing), np.random.default_rng(seed)
    words = [rng.choice([*SPECIAL, 1, 2, 3], size).astype(np.uint32) for size in (1, 0, 30, 7, 20)]

    async def testbench(ctx):
        for session in (7, 9):  # the second one forgets all of the first
            bench.host.open(session, bench.cycle * CYCLE)
            await bench.run(ctx)
            for each in words:
                await bench.exchange(ctx, each)
            # The accelerator takes what is left of it in its own time.
            while len(bench.taken) < sum(map(len, words)):
                await ctx.tick()
            assert bench.taken == np.concatenate(words).tolist()
        bench.over = True

    simulate(dut, testbench, bench.accelerator, timeout=200_000)
    assert bench.resets == 2
    counts = bench.host.counts
    if rate:
        assert counts.rounds > 2 and counts.damaged_here and counts.damaged_there
    else:
        assert counts.rounds == counts.polls and counts.words_again == counts.damaged_here == 0


async def _send(ctx, dut, frame: bytes) -> None:
    for byte in frame:
        ctx.set(dut.rx.payload, byte)
        ctx.set(dut.rx.valid, 1)
        await ctx.tick()
    ctx.set(dut.rx.valid, 0)


async def _reply(ctx, dut):
    ctx.set(dut.tx.ready, 1)
    received = []
    while len(received) < 2 or received[-1] != FLAG:
        _, _, valid, byte = await ctx.tick().sample(dut.tx.valid, dut.tx.payload)
        if valid:
            received.append(byte)
    ctx.set(dut.tx.ready, 0)
    return decode_body(REPLY, bytes(received[1:-1]))


def test_requests_and_their_answers():
    """What the device makes of each kind of request, and what it says."""
    dut = Link(depth=16, frame_words=4)

    async def testbench(ctx):
        async def ask(payload=(), **values):
            await _send(ctx, dut, encode_frame(REQUEST, values, payload))
            return await _reply(ctx, dut)

        fields, _ = await ask(session=5)  # before the first session
        assert fields["session"] == 0
        fields, _ = await ask(session=5, open=1, round=3)
        assert (fields["session"], fields["round"], fields["limit"], fields["gap"]) == (5, 3, 16, 0)
        fields, _ = await ask([1, 2], session=5, round=3, position=0)
        assert (fields["accepted"], fields["gap"]) == (2, 0)
        fields, _ = await ask([1, 2], session=5, round=3, position=0)  # again
        assert (fields["accepted"], fields["gap"]) == (2, 0)
        fields, _ = await ask([5], session=5, round=3, position=4)  # one was lost
        assert (fields["accepted"], fields["gap"]) == (2, 1)
        fields, _ = await ask([3], session=5, round=4, position=2)
        assert (fields["accepted"], fields["gap"], fields["round"]) == (3, 0, 4)
        fields, _ = await ask(range(20), session=5, round=4, position=3)  # more than there is room for
        assert fields["accepted"] == 3
        fields, _ = await ask([9], session=6, round=9, position=3)  # of another session
        assert (fields["session"], fields["accepted"], fields["round"]) == (5, 3, 4)
        fields, _ = await ask([9], session=5, round=4, position=3, version=7)  # of another protocol
        assert (fields["accepted"], fields["version"]) == (3, 1)
        await _send(ctx, dut, encode_frame(REQUEST, {"session": 5})[:-5] + bytes([FLAG]))
        fields, _ = await _reply(ctx, dut)
        assert (fields["damaged"], fields["gap"]) == (1, 1)
        fields, _ = await ask(session=5, open=1, round=9)  # which is open already
        assert (fields["accepted"], fields["round"], fields["gap"]) == (3, 9, 0)

    simulate(dut, testbench)


def test_answers_are_kept_until_the_host_has_them():
    dut = Link(depth=16, frame_words=4)
    got = []

    async def accelerator(ctx):
        while not ctx.get(dut.reset):
            await ctx.tick()
        await ctx.tick()
        await stream_put(ctx, dut.i, range(100, 120))
        got.append(True)

    async def testbench(ctx):
        await _send(ctx, dut, encode_frame(REQUEST, {"session": 5, "open": 1}))
        words = []
        while len(words) < 16:
            fields, payload = await _reply(ctx, dut)
            assert fields["position"] == len(words)
            words += payload.tolist()
        assert words == list(range(100, 116)) and not got
        await _send(ctx, dut, encode_frame(REQUEST, {"session": 5, "round": 1, "received": 6}))
        words = []
        while len(words) < 14:
            fields, payload = await _reply(ctx, dut)
            if fields["round"]:
                assert fields["position"] == 6 + len(words)
                words += payload.tolist()
        assert words == list(range(106, 120)) and got

    simulate(dut, accelerator, testbench)


@pytest.mark.parametrize("options, message", [
    ({"depth": 100}, "power of two"), ({"depth": 8}, "16 to 32768"), ({"frame_words": 0}, "1 to 1024 words"),
])
def test_mistakes(options, message):
    with pytest.raises(ConfigError, match=message):
        Link(**options)


def test_weights_must_be_in_memory():
    with pytest.raises(ConfigError, match="cannot be streamed over a serial line"):
        SerialBus(9_000_000, 3_000_000).around(Accelerator(ArrayConfig("ternary", 1, 1, weights="stream")))
