"""Standard cells: areas are counted once, belong to the right module; memories are bits; adders still add."""

import json
import re
from pathlib import Path

import pytest

from nomul_hw import cells
from nomul_hw.accelerator import Accelerator
from nomul_hw.bare import bare_element
from nomul_hw.cells import CellArea, CellSynthesis, find_liberty, synthesize_cells
from nomul_hw.config import ArrayConfig, MemoryConfig
from nomul_hw.formats import get_format
from nomul_hw.product import ProductForm
from nomul_hw.synth import TOP, SynthesisError, apart
from nomul_hw.verilog import to_verilog

from .proof import yosys

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


def adder(name: str, inputs: str, sum_: str, carry: str, area: int = 60, more: str = "") -> str:
    """A full adder of a library; its inputs, and its outputs' functions, are named by one letter each."""
    pins = "".join(f"pin({pin}) {{ direction : input; }} " for pin in inputs)
    return f"""cell({name}) {{ area : {area}; {more}
    pin("Q1") {{ direction : output; function : "{sum_}"; }} {pins}
    pin (Q0) {{ direction : output; function : "{carry}"; }} }}
"""


def with_cells(*texts: str) -> str:
    """The library and some more cells."""
    return LIBRARY.replace("library(few) {", "library(few) {\n" + "".join(texts))


#: Full adders as libraries write them.
ADDERS = {
    "osu": adder("FAX1", "ABC", "((A^B)^C)", "(((A B)+(B C))+(C A))"),
    "sums": adder("FULL", "XYZ", "X Y Z + X !Y !Z + X' Y Z' + (!X)*(!Y)*Z", "(X & Y) | ((X | Y) & Z)"),
    "mixed": adder("addf_1", "KAB", "A ^ B ^ K", "A ^ B K | (A * B)"),
    "inverted": adder("FAC", "ABC", "(A ^ B')' ^ (C')'", "!((A' + B') (!A + !C) (B' + C'))"),
}

#: Cells that are none.
OTHERS = (
    adder("SUBX1", "ABC", "A ^ B ^ C", "!A B + B C + C !A", 1),
    adder("KEEPS", "ABC", "A ^ B ^ C", "state", 1),
    adder("BROKEN", "ABC", "A ^ B ^ C", "((A B) + (B C)", 1),
    adder("TRISTATE", "ABC", "A ^ B ^ C", "A B +", 1),
    adder("NOT_THIS", "ABC", "A ^ B ^ C", "A B + B C + C A", 1, "dont_use : true;"),
    adder("LARGE", "ABC", "A ^ B ^ C", "A B + B C + C A", 70),
    adder("HAX1", "AB", "A ^ B", "A B", 1),
)

#: Sums of all kinds; widths that differ, constants, signs, what only a carry is needed of, products of either kind.
SUMS = """
module sums(clk, a, b, c, n, plus, minus, wide, signs, mixed, offset, three, less, up, narrow, product, kept);
  input clk;
  input [5:0] a;
  input [5:0] b;
  input [8:0] c;
  input [1:0] n;
  output [5:0] plus;
  output [6:0] minus;
  output [11:0] wide;
  output [9:0] signs;
  output [9:0] mixed;
  output [9:0] offset;
  output [9:0] three;
  output less;
  output [5:0] up;
  output [6:0] narrow;
  output [15:0] product;
  output [8:0] kept;
  reg [8:0] kept;
  wire [7:0] factor = n[1] ? (n[0] ? 8'h80 : 8'h5b) : (n[0] ? 8'hb6 : 8'h7f);
  assign plus = a + b;
  assign minus = a - b;
  assign wide = $signed(c) - $signed(a);
  assign signs = $signed(c) + $signed(b);
  assign mixed = $signed(c) - $signed({1'b0, a});
  assign offset = $signed(c) + $signed({b, 2'b00});
  assign three = $signed(a) + $signed(b) + $signed(c);
  assign less = $signed(a) < $signed(b);
  assign up = a + 6'd13;
  assign narrow = $signed(a[3:0]) * $signed(b[2:0]);
  assign product = $signed(factor) * $signed(c[7:0]);
  always @(posedge clk) kept <= kept + c;
endmodule
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


@pytest.mark.parametrize("cell", ADDERS)
def test_a_full_adder_is_found(cell, liberty):
    """By what it does, whatever its pins are called and however that is written; the smallest."""
    name = re.match(r"cell\((\w+)", ADDERS[cell])[1]
    found = cells._full_adder(with_cells(*OTHERS, ADDERS[cell]))
    assert found["CELL"] == name and (found["SUM"], found["CARRY"]) == ("Q1", "Q0")
    assert sorted((found["A"], found["B"], found["C"])) == sorted(set(re.findall(r"pin\((\w)\)", ADDERS[cell])))
    assert cells._full_adder(LIBRARY) is cells._full_adder(with_cells(*OTHERS[:4])) is None


def mapped_equal(verilog: str, top: str, library: str, liberty: Path, cycles: int) -> str:
    """Prove a design equal to what it is mapped to, for some cycles from zero; returns the counts of its cells."""
    liberty.write_text(library)
    yosys(liberty.parent, [
        "read_verilog design.v", f"prep -flatten -top {top}", "design -stash source",
        "read_verilog design.v", *apart(top, ()), *cells._passes(top, liberty, library), "tee -q -o counts stat",
        # Full adders as cells of the library: what its own functions say.
        "read_liberty -overwrite few.lib", f"hierarchy -check -top {top}", "flatten", "design -stash made",
        "design -copy-from source -as source " + top, "design -copy-from made -as made " + top,
        "miter -equiv -flatten -make_assert source made miter", "hierarchy -top miter", "techmap", "opt -full",
        f"sat -verify -prove-asserts -set-init-zero -seq {cycles} miter",
    ], design_v=verilog)
    return (liberty.parent / "counts").read_text()


@pytest.mark.parametrize("cell", [None, *ADDERS])
def test_sums_are_what_they_were(cell, liberty):
    """Proven for all inputs, with a library's full adders and without."""
    library = with_cells(ADDERS[cell]) if cell else LIBRARY
    counts = mapped_equal(SUMS, "sums", library, liberty, 2)
    if cell:
        assert re.search(rf"\d+ .*{cells._full_adder(library)['CELL']}", counts)


@pytest.mark.parametrize("name", ["ternary", "pot3"])
def test_an_element_is_what_it_was(name, liberty):
    """All that five cycles can do: a weight is loaded, made active, multiplied, and another after it."""
    element = to_verilog(bare_element(ProductForm(get_format(name)), 2, None, 13, 13), "element")
    mapped_equal(element, "element", with_cells(ADDERS["mixed"]), liberty, 5)


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
