"""The benches' own helpers: a bench that hangs fails, pauses pause, a stream that breaks its promise is caught."""

import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .simulate import pauses, simulate, stream_get, stream_put, trace


class Link(wiring.Component):
    """A stream that passes through; ``fickle`` withdraws every word for a cycle."""

    i: In(stream.Signature(8))
    o: Out(stream.Signature(8))

    def __init__(self, *, fickle=False):
        self.fickle = fickle
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        shown = Signal(init=1)
        m.d.comb += [self.o.payload.eq(self.i.payload), self.o.valid.eq(self.i.valid & shown),
                     self.i.ready.eq(self.o.ready & shown)]
        if self.fickle:
            m.d.sync += shown.eq(~shown)
        return m


class Adder(wiring.Component):
    """Something combinational."""

    a: In(4)
    b: In(4)
    o: Out(5)

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.o.eq(self.a + self.b)
        return m


def test_trace():
    assert trace(Adder(), {"a": [1, 1, 15], "b": [2, 3, 15]}, ["o"]) == {"o": [3, 4, 30]}


@pytest.mark.parametrize("source, sink", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_streams(source, sink):
    dut, words, got = Link(), list(range(100)), []
    quiet = [False] * 10_000

    async def put(ctx):
        await stream_put(ctx, dut.i, words, pauses(1) if source else quiet)

    async def get(ctx):
        got.extend(await stream_get(ctx, dut.o, len(words), pauses(2) if sink else quiet))

    simulate(dut, put, get)
    assert got == words


def test_word_withdrawn():
    dut = Link(fickle=True)

    async def put(ctx):
        await stream_put(ctx, dut.i, [1, 2])

    async def get(ctx):
        await stream_get(ctx, dut.o, 2, [True] * 10)

    with pytest.raises(AssertionError, match="withdrawn"):
        simulate(dut, put, get)


def test_timeout():
    dut = Link()

    async def get(ctx):
        await stream_get(ctx, dut.o, 1)

    with pytest.raises(TimeoutError, match="still running after 50 cycles"):
        simulate(dut, get, timeout=50)
