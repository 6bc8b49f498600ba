"""Buses around the accelerator: register maps, generated tops, gearboxes. Whole tops run in tests/sim."""

import json
import re

import numpy as np
import pytest
from amaranth.sim import Simulator

from nomul_hw.bus.bursts import Gearbox
from nomul_hw.bus.registers import ADDRESS_BITS, COUNTERS_AT, REGISTER_MAPS, Access, Register, RegisterMap
from nomul_hw.bus.tops import AxiBus, AxiStreamBus, WishboneBus
from nomul_hw.config import ArrayConfig, ConfigError, MemoryConfig
from nomul_hw.descriptor import CAUSES, Field
from nomul_hw.fusesoc import core_file
from nomul_hw.verilog import generate

MEMORY = MemoryConfig(activations=64, weights=16, parameters=16, accumulators=16, layers=4)
STREAMED = ArrayConfig("ternary", rows=2, cols=2, weights="stream", memory=MEMORY)


@pytest.mark.parametrize("top", sorted(REGISTER_MAPS))
def test_register_maps(top):
    registers = REGISTER_MAPS[top]
    assert list(registers) == sorted(registers, key=lambda name: registers[name].address)
    for name, register in registers.items():
        assert 0 < sum(field.bits for field in register.fields) <= 32, name
        assert register.unpack(register.pack(**{field.name: 1 for field in register.fields})) == {
            field.name: 1 for field in register.fields}
        assert f"`{name}`" in registers.table()
    assert [registers[f"cycles_{cause}"].address for cause in CAUSES] == [
        COUNTERS_AT + 4 * index for index in range(len(CAUSES))]
    assert registers["interrupt"].fields == registers["interrupt_enable"].fields


def test_versions_differ():
    assert len({registers.version for registers in REGISTER_MAPS.values()}) == len(REGISTER_MAPS)


def test_register_map_refuses():
    def register(name, address):
        return Register(name, address, Access.READ, (Field("value", 32, False, ""),), "")

    for registers in ([register("a", 0), register("a", 4)], [register("a", 0), register("b", 0)]):
        with pytest.raises(ValueError, match="differ in name and address"):
            RegisterMap(9, registers)
    for address in (2, 1 << ADDRESS_BITS, -4):
        with pytest.raises(ValueError, match="multiples of 4"):
            RegisterMap(9, [register("a", address)])


@pytest.mark.parametrize("wrong, message", [
    ({"data_bits": 48}, "a beat must have 32"), ({"burst": 3}, "a burst must have"), ({"burst": 512}, "a burst must"),
    ({"data_bits": 1024, "burst": 64}, "at most 4 KiB, not 64 beats of 128 bytes"), ({"outstanding": 0}, "1 to 64"),
    ({"address_bits": 65}, "32 to 64 bits"),
])
def test_axi_bus_refuses(wrong, message):
    with pytest.raises(ConfigError, match=message):
        AxiBus(**wrong)


def test_wishbone_cannot_stream(tmp_path):
    with pytest.raises(ConfigError, match="weights cannot be streamed over Wishbone"):
        generate(STREAMED, tmp_path, bus=WishboneBus(), lint=False)


@pytest.mark.parametrize("bus, config, interfaces", [
    (AxiStreamBus(), STREAMED, {"s_axi", "s_axis", "m_axis", "s_axis_weights"}),
    (AxiBus(data_bits=128, burst=4, address_bits=40), STREAMED, {"s_axi", "m_axi"}),
    (WishboneBus(), ArrayConfig("ternary", rows=2, cols=2, memory=MEMORY), {"wb"}),
], ids=lambda value: getattr(value, "name", ""))
def test_generate(bus, config, interfaces, tmp_path):
    """No tool has anything to say; ports have the names that tools look for; the folder says what it is."""
    made = generate(config, tmp_path, bus=bus)
    assert made.lint.ok, made.lint.to_text()
    assert made.verilog.name == f"{config.name}_{bus.name}.v"
    assert made.manifest["top"] == f"nomul_{config.name}_{bus.name}"
    assert made.manifest["bus"] == bus.to_dict()
    ports = {port["name"]: port["width"] for port in made.manifest["ports"]}
    clock = {"clk", "rst"} if bus.name == "wishbone" else {"aclk", "aresetn"}
    assert {re.sub(r"_(?:t?[a-z]+|[a-z]+_[io])$", "", name) for name in ports if name not in clock} == {
        *interfaces, "interrupt"}
    assert clock < set(ports)
    verilog = made.verilog.read_text()
    if bus.name != "wishbone":
        assert "xilinx.com:signal:interrupt:1.0 interrupt INTERRUPT" in verilog
        (associated,) = set(re.findall(r'"ASSOCIATED_BUSIF (\S+), ASSOCIATED_RESET aresetn"', verilog))
        assert set(associated.split(":")) == interfaces
    if bus.name == "axi":
        assert (ports["m_axi_rdata"], ports["m_axi_wstrb"], ports["m_axi_araddr"]) == (128, 16, 40)
    core = (tmp_path / f"{config.name}_{bus.name}.core").read_text()
    assert f'"nomul:accelerator:{config.name}_{bus.name}:' in core
    assert f'"{made.verilog.name}": {{file_type: verilogSource-2005}}' in core


def test_core_file():
    """FuseSoC wants this first line, and names of four parts; see docs/bus.md for the command that reads it."""
    text = core_file("net", "nomul_net", "net.v", ["a.hex"], version="1.2.3", description='says "x": y')
    lines = text.splitlines()
    assert lines[0] == "CAPI=2:"
    assert lines[1] == 'name: "nomul:accelerator:net:1.2.3"'
    assert json.loads(lines[2].removeprefix("description: ")) == 'says "x": y'
    assert '      - "a.hex": {file_type: user, copyto: "a.hex"}' in lines
    assert '    toplevel: "nomul_net"' in lines


@pytest.mark.parametrize("take, give", [(1, 1), (4, 1), (1, 3), (2, 3), (3, 2), (2, 4)])
def test_gearbox(take, give):
    """All words, in order; without pauses one side works in every cycle."""
    words = np.arange(1, 24 * take * give + 1)
    received, stalls = [], []
    rng = np.random.default_rng(take * 10 + give)
    dut = Gearbox(take, give)
    pause = 0.0

    async def feed(ctx):
        for part in words.reshape(-1, take).tolist():
            while rng.random() < pause:
                ctx.set(dut.i.valid, 0)
                await ctx.tick()
            ctx.set(dut.i.payload, sum(word << 32 * index for index, word in enumerate(part)))
            ctx.set(dut.i.valid, 1)
            await ctx.tick().until(dut.i.ready)
        ctx.set(dut.i.valid, 0)

    async def drain(ctx):
        cycles = 0
        while len(received) < len(words):
            ctx.set(dut.o.ready, int(rng.random() >= pause))
            _, _, valid, ready, payload = await ctx.tick().sample(dut.o.valid, dut.o.ready, dut.o.payload)
            if valid and ready:
                received.extend((payload >> 32 * index) & 0xFFFFFFFF for index in range(give))
            cycles += 1
        stalls.append(cycles - len(words) // min(take, give))

    for pause in (0.0, 0.5):  # noqa: B007 - the benches read it
        received.clear()
        simulator = Simulator(dut)
        simulator.add_clock(1e-6)
        simulator.add_testbench(feed)
        simulator.add_testbench(drain)
        simulator.run()
        assert received == words.tolist()
    assert stalls[0] <= 2
