"""Running a component in Amaranth's simulator: one way for all unit benches."""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any

import numpy as np
from amaranth.hdl import Cat, ClockDomain, Module, Signal, Value
from amaranth.sim import Simulator

__all__ = ["PAUSES", "pauses", "simulate", "stream_get", "stream_put", "trace"]

#: Seconds of simulated time that a cycle takes; any would do.
PERIOD = 1e-6

Testbench = Callable[[Any], Awaitable[None]]


def simulate(dut: Any, *testbenches: Testbench, timeout: int = 10_000) -> None:
    """Run ``testbenches`` concurrently until all are done; fail instead of hanging.

    There is a clock even if ``dut`` is combinational, so that every testbench can count time in ``ctx.tick()``.

    Raises
    ------
    TimeoutError
        If a testbench is not done after ``timeout`` cycles.
    """
    top = Module()
    top.domains.sync = ClockDomain()
    top.submodules.dut = dut
    simulator = Simulator(top)
    simulator.add_clock(PERIOD)
    for testbench in testbenches:
        simulator.add_testbench(testbench)

    async def watchdog(ctx: Any) -> None:
        # Not ctx.tick().repeat(): abandoned in the middle, it warns when it is garbage collected.
        await ctx.delay(timeout * PERIOD)
        raise TimeoutError(f"simulation still running after {timeout} cycles")

    simulator.add_testbench(watchdog, background=True)
    simulator.run()


def trace(dut: Any, inputs: Mapping[str, Sequence[int]], outputs: Iterable[str]) -> dict[str, list[int]]:
    """Drive ports cycle by cycle and record others: for components without a handshake.

    Parameters
    ----------
    inputs : mapping of str to sequence of int
        Value of each driven port in every cycle, structures as packed integers. All sequences have the same length.
    outputs : iterable of str
        Ports to record.

    Returns
    -------
    dict
        Value of each recorded port in every cycle, seen after that cycle's inputs and before the next clock edge.
    """
    (cycles,) = {len(values) for values in inputs.values()}
    # One signal drives all ports: after every change of a signal the simulator evaluates what depends on it.
    ports = [Value.cast(getattr(dut, name)) for name in inputs]
    words = [0] * cycles
    at = 0
    for port, values in zip(ports, inputs.values(), strict=True):
        mask = (1 << len(port)) - 1
        words = [word | (int(value) & mask) << at for word, value in zip(words, values, strict=True)]
        at += len(port)
    top, stimulus = Module(), Signal(at)
    top.submodules.dut = dut
    top.d.comb += Cat(ports).eq(stimulus)
    recorded = {name: (Value.cast(getattr(dut, name)), []) for name in outputs}

    async def testbench(ctx: Any) -> None:
        for word in words:
            ctx.set(stimulus, word)
            for port, values in recorded.values():
                values.append(ctx.get(port))
            await ctx.tick()

    simulate(top, testbench, timeout=cycles + 2)
    return {name: values for name, (_, values) in recorded.items()}


def pauses(seed: int) -> Iterator[bool]:
    """Whether to pause, cycle after cycle: stretches of pauses and of none, seldom and often."""
    rng = np.random.default_rng(seed)
    while True:
        probability = rng.choice([0.1, 0.5, 0.9])
        yield from (rng.random(int(rng.integers(1, 40))) < probability).tolist()


#: Who pauses, (source, sink): every block with streams is tested with each.
PAUSES = [(False, False), (True, False), (False, True), (True, True)]


async def stream_put(ctx: Any, stream: Any, words: Iterable[int], pausing: Iterable[bool] = repeat(False)) -> None:
    """Send words; before each one wait as many cycles as ``pausing`` says."""
    wait = iter(pausing)
    for word in words:
        while next(wait):
            await ctx.tick()
        ctx.set(stream.payload, int(word))
        ctx.set(stream.valid, 1)
        ready = False
        while not ready:
            _, _, ready = await ctx.tick().sample(stream.ready)
        ctx.set(stream.valid, 0)


async def stream_get(ctx: Any, stream: Any, count: int, pausing: Iterable[bool] = repeat(False)) -> list[int]:
    """Receive words, not ready in the cycles that ``pausing`` says; check that offered words are held until then."""
    wait = iter(pausing)
    words: list[int] = []
    offered = None
    while len(words) < count:
        ready = not next(wait)
        ctx.set(stream.ready, ready)
        _, _, valid, payload = await ctx.tick().sample(stream.valid, stream.payload)
        if offered is not None:
            assert valid and payload == offered, "a word that was offered was withdrawn"
        offered = payload if valid and not ready else None
        if valid and ready:
            words.append(payload)
    ctx.set(stream.ready, 0)
    return words
