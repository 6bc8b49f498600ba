"""Synthesis: cells are counted once, belong to the right module, and none is a multiplier."""

import pytest

from nomul_hw.accelerator import Accelerator
from nomul_hw.config import ArrayConfig, MemoryConfig
from nomul_hw.families import FAMILIES, Cost
from nomul_hw.memory import BlockRAM
from nomul_hw.output import OutputStage
from nomul_hw.synth import TOP, Synthesis, SynthesisError, synthesize, yosys_version
from nomul_hw.verilog import to_verilog

MULTIPLIER = """
module product(input clk, input [15:0] a, input [15:0] b, output reg [31:0] y);
  always @(posedge clk) y <= a * b;
endmodule
module top(input clk, input [15:0] a, input [15:0] b, output [31:0] y, output [15:0] s, output both);
  product \\buf (
    .clk(clk), .a(a), .b(b), .y(y)
  );
  assign both = a[0] & b[0];
  assign s = a + b;
endmodule
"""


def accelerator(**values: object) -> Synthesis:
    return synthesize(to_verilog(Accelerator(ArrayConfig(**values)), "chip"), "chip")  # type: ignore[arg-type]


def test_every_module_of_an_accelerator():
    result = accelerator(format="exp4", rows=2, cols=2, memory=MemoryConfig(lines=16))
    assert set(result.modules) == {
        "host", "sequencer", "generator", "padding", "padding_before", "bank_0", "bank_1", "weight_memory", "loader",
        "array", "accumulator", "channel", "window_unit", "output", TOP}
    assert list(result.modules.values()) == sorted(result.modules.values(), key=lambda cost: -cost.lut)
    assert all(cost.lut >= cost.carry >= 0 for cost in result.modules.values())
    assert result.total.dsp == 0
    assert result.total.bram > result.modules["bank_0"].bram > 0
    for name in ("array", "output", "generator"):
        assert result.modules[name].carry and result.modules[name].ff
    assert result.array == result.modules["array"]
    assert result.array + result.beside == result.total
    assert result.overhead == result.beside.lut / result.array.lut
    assert result.family == "ecp5" and result.tool == yosys_version() and "synth_ecp5" in result.command
    assert Synthesis.from_dict(result.to_dict()) == result


def test_no_multiplier_in_the_baseline():
    """Booth's multiplier is made of adders; the stream's queue is named as such."""
    result = accelerator(format="int4", pe="multiplier", rows=1, cols=1, weights="stream")
    assert result.total.dsp == 0 and "weight_queue" in result.modules


def test_fewer_requantization_lanes_take_less():
    one, four = (synthesize(to_verilog(OutputStage(ArrayConfig("ternary", 4, 4, requantize_lanes=lanes)), "stage"),
                            "stage").total.lut for lanes in (1, 4))
    assert one < 0.6 * four


def test_a_multiplier_is_seen():
    """Below the top, whatever the names there; a sum of 16 bits takes a carry cell for two of them."""
    result = synthesize(MULTIPLIER, "top")
    assert result.modules["buf"].dsp == 1 == result.total.dsp
    assert result.modules[TOP] == Cost(lut=17, carry=16)
    assert result.array == Cost() and result.overhead == float("inf")


def test_what_is_left_out_is_not_counted():
    result = synthesize(MULTIPLIER, "top", left_out=("buf",))
    assert result.modules == {TOP: Cost(lut=17, carry=16)}


def test_a_module_inside_another_counts_there():
    """Also if it is one of those below the top, too: Verilog has equal modules once."""
    around = ("module around(input clk, input [15:0] a, output [31:0] y);\n"
              "  product inside (\n    .clk(clk), .a(a), .b(~a), .y(y)\n  );\nendmodule\n")
    verilog = MULTIPLIER.replace("module top(", f"{around}module top(output [31:0] z, ").replace(
        "  assign both", "  around outside (\n    .clk(clk), .a(b), .y(z)\n  );\n  assign both")
    modules = synthesize(verilog, "top").modules
    assert modules["buf"].dsp == modules["outside"].dsp == 1 and modules["outside"].ff == modules["buf"].ff


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_maps_everything(family):
    """Shifters, adders, registers with resets and enables, a block RAM; and a multiplier is seen."""
    stage = synthesize(to_verilog(OutputStage(ArrayConfig("exp4", rows=1, cols=1)), "part"), "part", family).total
    assert stage.lut > 100 and stage.ff > 200 and stage.bram >= 1 and stage.dsp == 0
    if family != "ice40":  # those with DSPs need them asked for
        assert synthesize(MULTIPLIER, "top", family).total.dsp == 1


@pytest.mark.parametrize("family, blocks, blocks_of_two_ports", [
    ("ecp5", 1, 2), ("ice40", 4, 8), ("xilinx", 1, 2), ("gowin", 1, 2)])
def test_memories_are_block_rams_and_nothing_else(family, blocks, blocks_of_two_ports):
    """512 words of 32 bits: as many blocks as hold them, and no logic that makes up for what a block does not do.

    A second read port takes a port that also writes, which is half as wide; iCE40 has none, and holds a copy.
    """
    parts, second = (synthesize(to_verilog(BlockRAM(width=32, depth=512, **kind), "memory"), "memory", family).total
                     for kind in ({"parts": 4}, {"second": True}))
    assert (parts.bram, parts.ff, second.bram, second.ff) == (blocks, 0, blocks_of_two_ports, 0)
    assert max(parts.lut, second.lut) <= 1  # an inverted enable


def test_costs_add_up():
    assert Cost(1, 2, 3, 4, 5) * 2 + Cost(1) == Cost(3, 4, 6, 8, 10)


def refused(match: str, verilog: str, top: str = "top", error: type[Exception] = SynthesisError) -> None:
    with pytest.raises(error, match=match):
        synthesize(verilog, top)


def test_refusals(monkeypatch):
    refused(r"^there is no module 'nothing'$", MULTIPLIER, "nothing")
    refused(r"ERROR: .*syntax error", MULTIPLIER.replace("assign both =", "assign ="))
    refused(r"^what a cell DCCA costs is unknown$",
            "(* blackbox *) module DCCA(input CLKI, input CE, output CLKO);\nendmodule\n"
            "module top(input i, output o);\n  DCCA x (\n    .CLKI(i), .CE(i), .CLKO(o));\nendmodule")
    with pytest.raises(ValueError, match=r"^family must be one of ecp5, ice40, xilinx, gowin, not 'asic'$"):
        synthesize(MULTIPLIER, "top", "asic")
    monkeypatch.setattr("nomul_hw.synth.find_yosys", lambda: None)
    refused(r"^synthesis needs Yosys, which is not installed: pip install 'nomul\[synth\]'$", MULTIPLIER)
