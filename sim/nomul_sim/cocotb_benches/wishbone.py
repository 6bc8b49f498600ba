"""The Wishbone top, driven by a small model of a processor."""

import json
import os
from collections.abc import Callable
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.task import bridge, resume
from cocotb.triggers import ClockCycles, FallingEdge, First, RisingEdge

from nomul.bus import RegisterTransport
from nomul.driver import StreamDevice
from nomul.estimate import estimate
from nomul_hw.bus.registers import REGISTER_MAPS
from nomul_hw.config import ArrayConfig
from nomul_hw.descriptor import CAUSES, Opcode, Target

from .. import golden
from .accelerator import find_case
from .runner import BENCH_CONFIG

CONFIG = ArrayConfig.from_dict(json.loads(os.environ[BENCH_CONFIG]))
REGISTERS = REGISTER_MAPS["wishbone"]

#: Cycles after which an access that is not answered is a fault.
PATIENCE = 5000


class BusError(Exception):
    """An access that the slave refused."""


class Processor:
    """Accesses registers, one after the other, with pauses."""

    def __init__(self, dut: Any, seed: int) -> None:
        self.dut = dut
        self._random = np.random.default_rng(seed)

    async def access(self, address: int, value: int | None = None, select: int = 0xF) -> int:
        """Read a register, or write it."""
        dut = self.dut
        await ClockCycles(dut.clk, int(self._random.integers(1, 4)))
        await FallingEdge(dut.clk)
        dut.wb_adr_i.value, dut.wb_sel_i.value = address // 4, select
        dut.wb_we_i.value, dut.wb_dat_i.value = int(value is not None), value or 0
        dut.wb_cyc_i.value = dut.wb_stb_i.value = 1
        for _ in range(PATIENCE):
            await FallingEdge(dut.clk)
            if dut.wb_ack_o.value or dut.wb_err_o.value:
                break
        else:
            raise AssertionError(f"no answer from {address:#x}")
        assert not (dut.wb_ack_o.value and dut.wb_err_o.value)
        failed, word = dut.wb_err_o.value, dut.wb_dat_o.value
        dut.wb_cyc_i.value = dut.wb_stb_i.value = 0
        if failed:
            raise BusError(f"{address:#x}")
        return word.to_unsigned() if value is None else 0

    async def refused(self, address: int, value: int | None = None) -> bool:
        """Whether an access is an error."""
        try:
            await self.access(address, value)
        except BusError:
            return True
        return False

    def read(self, address: int) -> int:
        """Read a register; for code that runs beside the simulation, as what follows."""
        access: Callable[[int], int] = resume(self.access)
        return access(address)

    def write(self, address: int, value: int) -> None:
        """Write a register."""
        access: Callable[[int, int], int] = resume(self.access)
        access(address, value)

    def wait(self) -> None:
        """Wait for the interrupt, or for a while."""
        wait: Callable[[], None] = resume(self.interrupted)
        wait()

    async def interrupted(self) -> None:
        """Wait for the interrupt, or for a while."""
        if not self.dut.interrupt.value:
            await First(RisingEdge(self.dut.interrupt), ClockCycles(self.dut.clk, 500))


async def start(dut: Any, seed: int) -> Processor:
    """Start the clock, and reset."""
    Clock(dut.clk, 10, unit="ns").start()
    dut.wb_cyc_i.value = dut.wb_stb_i.value = 0
    dut.rst.value = 1
    await ClockCycles(dut.clk, 3)
    await FallingEdge(dut.clk)
    dut.rst.value = 0
    return Processor(dut, seed)


async def check(processor: Any, first: int) -> None:
    """Run a network, and compare outputs and counters."""
    case, program = find_case(2, first)
    transport = await bridge(RegisterTransport)(CONFIG, processor)
    device = await bridge(StreamDevice)(transport)
    result = await bridge(device.run)(program, case.inputs[:2])
    assert np.array_equal(result.outputs, golden.run(case.graph, case.inputs[:2])[case.graph.output])
    expected = estimate(program).accounting
    assert result.counters == (expected,) * len(case.inputs[:2])
    for cause in CAUSES:
        assert await processor.access(REGISTERS[f"cycles_{cause}"].address) == expected[cause]


@cocotb.test()
async def network(dut: Any) -> None:
    """By the driver, over registers alone."""
    await check(await start(dut, 1), 50_000)


@cocotb.test()
async def registers(dut: Any) -> None:
    """Identity, byte selects, and accesses that are refused."""
    processor = await start(dut, 2)
    assert await processor.access(0) == REGISTERS.version
    assert await processor.access(REGISTERS["identity"].address) == CONFIG.identity
    data, enable = REGISTERS["data"].address, REGISTERS["interrupt_enable"].address
    assert await processor.refused(data)  # nothing can come
    assert await processor.refused(REGISTERS["identity"].address, 1)
    assert await processor.refused(0x7C) and await processor.refused(0xFFC, 1)
    await processor.access(enable, 0xFFFFFFFF, select=0b1110)
    assert await processor.access(enable) == 0
    await processor.access(enable, 0xFFFFFFFF)
    assert await processor.access(enable) == 3
    for word in (Opcode.READ | Target.IDENTITY << 8, 0, 2):
        await processor.access(data, int(word))
    await processor.interrupted()
    status = REGISTERS["status"]
    found = status.unpack(await processor.access(status.address))
    assert found == {"running": 0, "idle": 0, "accepts": 0, "offers": 1, "last": 0}
    assert [await processor.access(data), await processor.access(data)] == [CONFIG.identity, 0]
    assert status.unpack(await processor.access(status.address)) == {**found, "idle": 1, "accepts": 1, "offers": 0}


@cocotb.test()
async def reset_in_the_middle(dut: Any) -> None:
    """A reset by register ends a command."""
    processor = await start(dut, 3)
    for words in ((Opcode.WRITE, 0, 100, 1), (Opcode.READ | Target.COUNTER << 8, 0, 3)):
        for word in words:
            await processor.access(REGISTERS["data"].address, int(word))
        await processor.access(REGISTERS["control"].address, 1)
        status = REGISTERS["status"]
        assert status.unpack(await processor.access(status.address))["idle"]
    await check(processor, 51_000)
