"""The AXI tops, each with the host that goes with it: whole networks, registers, interrupts, resets."""

from typing import Any

import cocotb
import numpy as np
from cocotb.task import bridge
from cocotb.triggers import ClockCycles
from cocotbext.axi import AxiResp

from nomul.compiler import Program
from nomul_hw.descriptor import CAUSES, Opcode, Target

from .. import golden
from ..random_nodes import Case
from .accelerator import find_case
from .bus import CONFIG, Host, reset, start


async def check(host: Host, device: Any, case: Case, program: Program) -> None:
    """Run a network; compare every output bit, and every counter of every sample."""
    result = await bridge(device.run)(program, case.inputs)
    expected = golden.run(case.graph, case.inputs)[case.graph.output]
    assert np.array_equal(result.outputs, expected), f"{(result.outputs != expected).sum()} codes differ"
    counted = host.trace.expected(program, len(case.inputs))
    assert result.counters == counted, f"{result.counters} counted, {counted} expected"
    assert await host.counters() == counted[-1]


@cocotb.test()
@cocotb.parametrize(pause=[0.0, 0.5])
async def network(dut: Any, pause: float) -> None:
    """A network of three layers, then another, whatever pauses."""
    host = await start(dut, pause, seed=1)
    device = await host.device()
    await check(host, device, *find_case(3, 1000))
    await check(host, device, *find_case(2, round(2000 + 100 * pause)))
    if host.top == "axi_stream":
        assert host.answers[0] == 2  # the identity
        assert host.answers[1::2] == [len(CAUSES)] * (len(host.answers) // 2)
    assert not (await host.get("status"))["running"]


@cocotb.test()
async def registers(dut: Any) -> None:
    """Identity, byte strobes, the interrupt, and accesses that are refused."""
    host = await start(dut, 0.3, seed=2)
    assert await host.read_at(0) == host.map.version
    assert (await host.get("identity"))["value"] == CONFIG.identity
    assert (await host.get("program"))["value"] == 0
    assert await host.get("status") == {field.name: int(field.name == "idle") for field in host.map["status"].fields}

    enable, all_events = host.map["interrupt_enable"], 2 ** len(host.map["interrupt"].fields) - 1
    await host.write_at(enable.address, 0xFFFFFFFF)
    assert await host.read_at(enable.address) == all_events
    await host.lite.write(enable.address + 1, b"\0\0\0")
    assert await host.read_at(enable.address) == all_events
    await host.lite.write(enable.address, b"\0")
    assert await host.read_at(enable.address) == 0

    for address in (0x1C, 0x7C, 0xFFC):
        assert (await host.lite.read(address, 4)).resp == AxiResp.SLVERR
        assert (await host.lite.write(address, bytes(4))).resp == AxiResp.SLVERR
    for name in ("version", "identity", "status", "cycles_busy"):
        assert (await host.lite.write(host.map[name].address, bytes(4))).resp == AxiResp.SLVERR
    assert await host.read_at(host.map["control"].address) == 0

    case, program = find_case(1, 10_000)
    device = await host.device()
    await host.set("interrupt_enable", run=1)
    assert not dut.interrupt.value
    await check(host, device, case, program)
    assert (await host.get("interrupt"))["run"] and dut.interrupt.value
    await host.set("interrupt", run=0)
    assert dut.interrupt.value
    await host.set("interrupt", run=1)
    assert not dut.interrupt.value and not (await host.get("interrupt"))["run"]


@cocotb.test()
async def reset_in_the_middle(dut: Any) -> None:
    """A reset by register or by pin ends whatever is under way, and the next run is right."""
    host = await start(dut, 0.2, seed=3)
    device = await host.device()
    case, program = find_case(2, 20_000)
    await check(host, device, case, program)
    for by_pin in (False, True):
        for words in (
            [Opcode.WRITE | Target.PROGRAM << 8, 0, 1000, 1, 2, 3],
            [Opcode.READ | Target.COUNTER << 8, 0, len(CAUSES)],
            [Opcode.RUN, 0, len(program.layers)],
        ):
            await begin(host, words)
            await ClockCycles(dut.aclk, 100)
            if by_pin:
                await reset(dut)
            else:
                await host.set("control", **{"reset" if host.top == "axi_stream" else "stop": 1})
                await ClockCycles(dut.aclk, 200)
            status = await host.get("status")
            assert status["idle"] and not status["running"] and not status.get("active", 0), status
            if host.top == "axi_stream":
                while not host.sink.empty():
                    host.sink.recv_nowait()
            assert (await host.get("identity"))["value"] == CONFIG.identity
        device = await host.device()
        await check(host, device, case, program)


async def begin(host: Any, words: list[int]) -> None:
    """Send a command that does not end."""
    data = np.array(words, dtype=np.uint32)
    if host.top == "axi_stream":
        await host.commands.send(data.tobytes())
        return
    host.write_memory(host.ADDRESS, data)
    for name, at, count in (("command", 0, len(words)), ("answer", 0x1000, 100)):
        await host.set(f"{name}_address", value=host.ADDRESS + at)
        await host.set(f"{name}_words", value=count)
    await host.set("control", start=1)
