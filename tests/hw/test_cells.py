"""Standard cells: areas are counted once, belong to the right module; memories are bits."""

import json
from pathlib import Path

import pytest

from nomul_hw import cells
from nomul_hw.accelerator import Accelerator
from nomul_hw.cells import CellArea, CellSynthesis, find_liberty, synthesize_cells
from nomul_hw.config import ArrayConfig, MemoryConfig
from nomul_hw.synth import TOP, SynthesisError
from nomul_hw.verilog import to_verilog

#: The smallest library that will do.
LIBRARY = """
library(few) {
  cell(BUFX2) { area : 24; pin(A) { direction : input; } pin(Y) { direction : output; function : "A"; } }
  cell(NOR2X1) { area : 24; pin(A) { direction : input; } pin(B) { direction : input; }
    pin(Y) { direction : output; function : "(!(A+B))"; } }
  cell(INVX1) { area : 16; pin(A) { direction : input; } pin(Y) { direction : output; function : "(!A)"; } }
  cell(NAND2X1) { area : 24; pin(A) { direction : input; } pin(B) { direction : input; }
    pin(Y) { direction : output; function : "(!(A B))"; } }
  cell(NAND2X2) { area : 32; pin(A) { direction : input; } pin(B) { direction : input; }
    pin(Y) { direction : output; function : "(!(A B))"; } }
  cell("DFFPOSX1") { area : 96; ff(P, PN) { next_state : "D"; clocked_on : "CLK"; }
    pin(D) { direction : input; } pin(CLK) { direction : input; clock : true; }
    pin(Q) { direction : output; function : "P"; } }
}
"""

GATES = """
module gates(clk, a, b, y);
  input clk;
  input [3:0] a;
  input [3:0] b;
  output [3:0] y;
  reg [3:0] y;
  always @(posedge clk) y <= ~(a & b);
endmodule
module two(clk, a, b, y);
  input clk;
  input [3:0] a;
  input [3:0] b;
  output [3:0] y;
  wire [3:0] between;
  gates first (
    .clk(clk), .a(a), .b(b), .y(between)
  );
  gates last (
    .clk(clk), .a(~between), .b(b), .y(y)
  );
endmodule
"""


@pytest.fixture
def liberty(tmp_path) -> Path:
    path = tmp_path / "few.lib"
    path.write_text(LIBRARY)
    return path


def test_gates(liberty):
    """Four NANDs and four flip-flops each; the inverters between them are the top's."""
    result = synthesize_cells(GATES, "two", liberty)
    gates = CellArea(4 * 24, 4 * 96)
    assert result.modules == {"first": gates, "last": gates, TOP: CellArea(4 * 16)}
    assert result.library == "few" and result.nand2 == 24
    assert result.total == CellArea(8 * 24 + 4 * 16, 8 * 96) and result.gates(result.total.total) == (256 + 768) / 24
    assert CellSynthesis.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_an_accelerator(liberty):
    config = ArrayConfig("ternary", rows=1, cols=1, memory=MemoryConfig(activations=16, layers=1))
    result = synthesize_cells(to_verilog(Accelerator(config), "chip"), "chip", liberty)
    for name, area in result.modules.items():
        assert area.total or area.memory, name
    assert result.modules["bank_0"] == CellArea(memory=16 * config.act_word_bits)
    assert result.modules["weight_memory"].memory == config.memory.weights * config.weight_word_bits
    assert result.modules["sequencer"].memory and result.modules["array"].sequential


def test_refusals(liberty, monkeypatch):
    with pytest.raises(SynthesisError, match=r"nothing\.lib: No such file"):
        synthesize_cells(GATES, "two", liberty.with_name("nothing.lib"))
    liberty.write_text(LIBRARY.replace("NAND2", "ND2"))
    with pytest.raises(SynthesisError, match=r"few\.lib: has no cell of a NAND of two inputs$"):
        synthesize_cells(GATES, "two", liberty)
    monkeypatch.setattr(cells, "_LIBRARY", liberty)
    assert find_liberty() == liberty
    monkeypatch.setattr(cells, "_LIBRARY", liberty.with_name("nothing.lib"))
    with pytest.raises(SynthesisError, match=r"--liberty FILE\.lib, or install Debian's package qflow-tech-osu018$"):
        find_liberty()
