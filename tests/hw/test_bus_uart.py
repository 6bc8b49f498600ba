# amaranth: UnusedElaboratable=no
"""The UART: bytes at any ratio of clock and baud rate, lines without stop bits, far ends that are too fast or slow."""

from itertools import repeat

import numpy as np
import pytest
from amaranth.hdl import Module

from nomul_hw.bus.uart import UARTReceiver, UARTTransmitter
from nomul_hw.config import ConfigError

from .simulate import pauses, simulate, stream_put

BYTES = [0x00, 0xFF, 0x55, 0xAA, 0x01, 0x80, *np.random.default_rng(0).integers(256, size=6).tolist()]


def wave(data, cycles: float, start: float = 0.0) -> list[int]:
    """The line, cycle by cycle, as a transmitter drives it whose bits take ``cycles`` of our cycles."""
    bits = [1, 1, *(bit for byte in data for bit in (0, *(byte >> at & 1 for at in range(8)), 1)), 1, 1]
    return [bits[int(at)] for at in np.arange(start, len(bits), 1 / cycles)]


def receive(line, ratio: float) -> tuple[list[int], int]:
    """Bytes and errors that a receiver finds on a line."""
    dut, found, errors = UARTReceiver(round(ratio * 1000), 1000), [], []

    async def testbench(ctx):
        for level in [*line, *repeat(1, 20)]:
            ctx.set(dut.rx, level)
            _, _, valid, byte, error = await ctx.tick().sample(dut.o.valid, dut.o.payload, dut.error)
            if valid:
                found.append(byte)
            if error:
                errors.append(True)

    simulate(dut, testbench, timeout=100_000)
    return found, len(errors)


@pytest.mark.parametrize("ratio", [3.0, 3.5, 4.0, 16.667, 10.85])
@pytest.mark.parametrize("pausing", [False, True])
def test_there_and_back(ratio, pausing):
    top = Module()
    top.submodules.transmitter = transmitter = UARTTransmitter(round(ratio * 1000), 1000)
    top.submodules.receiver = receiver = UARTReceiver(round(ratio * 1000), 1000)
    top.d.comb += receiver.rx.eq(transmitter.tx)
    found, started = [], []

    async def put(ctx):
        await stream_put(ctx, transmitter.i, BYTES, pauses(1) if pausing else repeat(False))

    async def get(ctx):
        while len(found) < len(BYTES):
            ready, valid = transmitter.i.ready, transmitter.i.valid
            _, _, taken, valid, byte, error = await ctx.tick().sample(ready & valid, receiver.o.valid,
                                                                      receiver.o.payload, receiver.error)
            assert not error
            started.append(taken)
            if valid:
                found.append(byte)

    simulate(top, put, get, timeout=30_000)
    assert found == BYTES
    if not pausing:
        # Without a pause in between, a byte takes ten bits: exact for each, so that nothing adds up.
        at = np.flatnonzero(started)
        assert set(np.diff(at)) == {round(10 * round(ratio * 1000) / 1000)}


@pytest.mark.parametrize("ratio", [4.0, 16.667])
@pytest.mark.parametrize("error", [-0.02, 0.0, 0.02])
def test_a_far_end_that_is_off(ratio, error):
    for start in (0.0, 0.3, 0.7):
        assert receive(wave(BYTES, ratio * (1 + error), start), ratio) == (BYTES, 0)


def test_a_spike_is_no_start_bit():
    line = [1] * 10 + [0] * 2 + [1] * 40 + wave([0x42], 10)
    assert receive(line, 10) == ([0x42], 0)


def test_what_has_no_stop_bit_is_an_error():
    held = [1] * 10 + [0] * 300 + [1] * 10
    assert receive(held + wave([0x42], 10), 10) == ([0x42], 1)


def test_a_clock_that_is_too_slow():
    UARTReceiver(9_000_000, 3_000_000)
    with pytest.raises(ConfigError, match=r"8 MHz is too slow for 3000000 baud"):
        UARTReceiver(8_000_000, 3_000_000)
    with pytest.raises(ConfigError, match="too slow"):
        UARTTransmitter(8_000_000, 3_000_000)
