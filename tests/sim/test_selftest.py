# amaranth: UnusedElaboratable=no
"""The self-test's Verilog, with the files that it reads, around a network of the size of a board's."""

import pytest
import torch
from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from nomul import digits
from nomul.compiler import Program, compile_graph
from nomul.quantize import quantize_graph
from nomul.selftest import self_test
from nomul_hw.accelerator import Accelerator
from nomul_hw.config import ArrayConfig
from nomul_sim.build import build_simulator
from nomul_sim.networks import common_config
from nomul_sim.verilated import StreamModel, component_verilog


class Probe(wiring.Component):
    """Tells, that many cycles after it was asked, what the outputs of a self-test are."""

    i: In(stream.Signature(32))
    o: Out(stream.Signature(32))

    def __init__(self, top):
        self.top = top
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        m.submodules.top = top = self.top
        left, asked = Signal(32), Signal()
        m.d.comb += self.i.ready.eq(~asked)
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [asked.eq(1), left.eq(self.i.payload)]
        with m.If(asked & (left != 0)):
            m.d.sync += left.eq(left - 1)
        with m.If(asked & (left == 0) & ~self.o.valid):
            m.d.sync += [self.o.valid.eq(1), self.o.payload.eq(Cat(top.passed, top.failed, top.led))]
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += [self.o.valid.eq(0), asked.eq(0)]
        return m


@pytest.fixture(scope="module")
def program() -> Program:
    """The demonstration's network, untrained."""
    torch.manual_seed(0)
    graph = quantize_graph(digits.build_model(), digits.load().train_x[:16], format="ternary", method="nearest")
    return compile_graph(graph, common_config([graph], ArrayConfig("ternary", 4, 4, lanes=2)))


def test_digits(program):
    data = digits.load()
    test = self_test(program, 100, program.graph.quantize_input(data.test_x[:2]))
    verilog = component_verilog(lambda: Probe(test.around(Accelerator(program.config, program.contents))), "probe",
                                program.config.hash, contents=program.contents, tables=test.tables)
    model = StreamModel(build_simulator(verilog, "probe"))

    def outcome(cycles: int) -> tuple[bool, bool, bool]:
        """``passed``, ``failed`` and ``led`` so many cycles later."""
        (word,) = model.transfer([cycles], 1).tolist()
        return bool(word & 1), bool(word & 2), bool(word & 4)

    cycles = 2 * program.estimate().cycles + len(test.commands) + 8 * len(test.masks) + 100
    assert outcome(cycles // 2) == (False, False, False)
    assert outcome(cycles // 2) == (True, False, True)
    assert {outcome(cycles // 3) for _ in range(20)} == {(True, False, False), (True, False, True)}
