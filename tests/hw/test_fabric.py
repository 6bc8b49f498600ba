# amaranth: UnusedElaboratable=no
"""Family forms: proven equal to the plain form, for all codes, activations and partial sums."""

import importlib.util
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from amaranth.hdl import Module, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from nomul_hw.accelerator import Accelerator
from nomul_hw.adders import fabric_sum, factors, leaf
from nomul_hw.array import SystolicArray
from nomul_hw.config import ArrayConfig, ConfigError, MemoryConfig
from nomul_hw.fabric import FABRICS
from nomul_hw.formats import FORMATS, MAX_MULTIPLES, WeightFormat
from nomul_hw.lint import find_yosys, lint_verilog
from nomul_hw.pe import Multiples, ProcessingElement, WeightDecoder, plain_sum
from nomul_hw.product import ProductForm
from nomul_hw.synth import synthesize
from nomul_hw.verilog import to_verilog

FORMS = [ProductForm(fmt) for fmt in FORMATS.values() if len(fmt.multiples) <= MAX_MULTIPLES]
FORMS += [ProductForm(WeightFormat.from_magnitudes("odd", (1, 3), zero=True))]  # a selection and nothing to shift
FORMS += [ProductForm(WeightFormat.uniform(bits), "multiplier") for bits in range(2, 9)]

#: The cells of each family's leaf, and those that their models are made of.
CELLS = {"ecp5": ("LUT2", "LUT4", "CCU2C"), "ice40": ("SB_LUT4", "SB_CARRY"), "xilinx": ("LUT6", "CARRY4"),
         "gowin": ("ALU",)}

#: Where Yosys keeps the models of a family, if not under its name.
FOLDERS = {"ecp5": ["ecp5", "lattice"]}

#: The leaf's functions: a plain operand, a gated sign, the last stage of a shifter; and two signs.
TABLES = [(0xa8, 0b1010), (0x78, 0b1010), (0xb8, 0b1010), (0x3c, 0b0110)]


class Step(wiring.Component):
    """What one element adds to the sum from above, from codes and activations."""

    def __init__(self, product: ProductForm, lanes: int, width: int, family: str | None, pipeline: int = 0):
        self.product, self.lanes, self.width, self.family, self.pipeline = product, lanes, width, family, pipeline
        super().__init__({"codes": In(lanes * product.format.bits), "acts": In(lanes * 8), "psum": In(signed(width)),
                          "total": Out(signed(width))})

    def elaborate(self, platform):
        m, lanes = Module(), []
        for lane in range(self.lanes):
            m.submodules[f"decoder_{lane}"] = decoder = WeightDecoder(product=self.product)
            m.submodules[f"multiples_{lane}"] = multiples = Multiples(product=self.product, act_bits=8)
            m.d.comb += [decoder.code.eq(self.codes.word_select(lane, self.product.format.bits)),
                         multiples.act.eq(self.acts.word_select(lane, 8))]
            lanes.append(factors(self.product, 8, f"lane_{lane}", decoder.controls, multiples.multiples))
        m.d.comb += self.total.eq(  # the plain form in the order in which families add: terms of one weight first
            self.psum + plain_sum(m, [list(terms) for terms in zip(*lanes, strict=True)], None, 0)
            if self.family is None
            else fabric_sum(m, self.family, lanes, self.psum, self.width, self.pipeline))
        return m


def prove(folder: Path, passes: list[str], **files: str) -> None:
    """Let Yosys prove what a script asks for."""
    yosys = find_yosys()
    if yosys is None:
        pytest.skip("no Yosys")
    for name, text in files.items():
        (folder / f"{name}.v").write_text(text, encoding="utf-8")
    done = subprocess.run([*yosys.program, "-p", ";".join(passes)], cwd=folder, capture_output=True, text=True,
                          timeout=3600, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]


def equal(first: str, second: str) -> list[str]:
    """Passes that prove two modules without registers equal.

    ABC proves points inside equal, from the inputs on, and makes one of each two: SAT alone takes hours for many sums.
    """
    return [f"miter -equiv -flatten -make_assert {first} {second} miter", "hierarchy -top miter", "techmap",
            "opt -full", "abc -g AND -script +fraig,-C,10000", "sat -verify -prove-asserts miter"]


@cache
def cells(family: str) -> str:
    """Yosys' own models of the cells that a family's leaf is made of."""
    spec = importlib.util.find_spec("pyosys")
    if spec is None or spec.origin is None:
        pytest.skip("no pyosys")
    share = Path(spec.origin).parent / "share"
    text = "".join(path.read_text() for folder in FOLDERS.get(family, [family])
                   for path in sorted((share / folder).glob("*_sim.v*"))).replace("`ICE40_DEFAULT_ASSIGNMENT_0", "")
    return "".join(re.search(rf"\bmodule {cell}\b.*?\bendmodule\n", text, re.DOTALL)[0]
                   for cell in CELLS[family])


@pytest.mark.parametrize("family", sorted(FABRICS.keys() - {"xilinx"}))
def test_leaf(family, tmp_path):
    """A leaf for synthesis, made of the family's cells, is what it is for simulators: for all inputs."""
    around = f"""
module around #(parameter [7:0] F = 0, parameter [3:0] G = 0)
    (input [6:0] a, input [6:0] b, input [6:0] c, input [6:0] d, output [6:0] s);
  wire [6:0] sign = {{7{{b[0]}}}};
  nomul_adder_{family} #(.WIDTH(7), .F(F), .G(G)) leaf(.a(a), .b(G == 4'b0110 ? sign : b), .c(c), .d(d), .s(s));
endmodule
"""
    passes = []
    for index, (table, head) in enumerate(TABLES):
        for what, flag in (("cells", ""), ("model", "-nosynthesis")):
            passes += ["design -push", "read_verilog cells.v", f"read_verilog {flag} leaf.v",
                       f"chparam -set F {table} -set G {head} around",
                       "prep -flatten -top around", "rename -top leaf", f"design -save {what}{index}", "design -pop"]
        passes += ["design -push", f"design -copy-from cells{index} -as cells leaf",
                   f"design -copy-from model{index} -as model leaf", *equal("model", "cells"), "design -pop"]
    prove(tmp_path, passes, leaf=leaf(family) + around, cells=cells(family))


def test_leaf_of_luts(tmp_path):
    """The same of Xilinx' leaves, of which every place has a table of its own."""
    tables = np.random.default_rng(1).integers(1 << 32, size=2 * 14)
    around = f"""
module around(input [6:0] a, input [6:0] b, input [6:0] c, input [6:0] d, input [6:0] e, input [6:0] g,
    output [6:0] s, output [6:0] o);
  nomul_adder_xilinx #(.WIDTH(7), .F({{{", ".join(f"32'd{table}" for table in tables[:14])}}})) adder(
      .a(a), .b(b), .c(c), .d(d), .e(e), .g(g), .s(s));
  nomul_luts_xilinx #(.WIDTH(7), .F({{{", ".join(f"32'd{table}" for table in tables[14:])}}})) luts(
      .a(a), .b(b), .c(c), .d(d), .e(e), .g(g), .o(o));
endmodule
"""
    passes = []
    for what, flag in (("cells", ""), ("model", "-nosynthesis")):
        passes += ["read_verilog cells.v", f"read_verilog {flag} leaf.v", "prep -flatten -top around",
                   f"rename -top {what}", f"design -stash {what}"]
    passes += [f"design -copy-from {what} -as {what} {what}" for what in ("cells", "model")]
    prove(tmp_path, passes + equal("model", "cells"), leaf=leaf("xilinx") + around, cells=cells("xilinx"))


#: Registers as wires: what is added does not depend on when.
WIRES = """
module \\$dff #(parameter WIDTH = 1, CLK_POLARITY = 1) (input CLK, input [WIDTH-1:0] D, output [WIDTH-1:0] Q);
  assign Q = D;
endmodule
"""


def check_step(form: ProductForm, lanes: int, family: str, folder: Path, width: int = 24) -> None:
    modules = {"plain": Step(form, lanes, width, None),
               **{f"made_{pipeline}": Step(form, lanes, width, family, pipeline)
                  for pipeline in (0, form.max_pipeline(lanes))}}
    passes = []
    for name in modules:
        passes += ["read_verilog cells.v", f"read_verilog {name}.v", f"prep -flatten -top {name}",
                   "techmap -map wires.v", "delete -port w:clk w:rst", f"design -stash {name}"]
    plain, *made = modules
    for name in made:
        passes += ["design -reset", *(f"design -copy-from {each} -as {each} {each}" for each in (plain, name)),
                   *equal(plain, name)]
    prove(folder, passes, **{name: to_verilog(step, name) for name, step in modules.items()}, cells=cells(family),
          wires=WIRES)


#: Proofs that every run of the tests makes; each takes seconds.
QUICK = {("ecp5", "ternary", 1), ("ecp5", "ternary", 8), ("ecp5", "pot3z", 1), ("ice40", "int8", 1),
         ("gowin", "ternary", 1)}
STEPS = [pytest.param(form, family, lanes, id=f"{family}-{form.format.name}-{form.kind}-{lanes}",
                      marks=[] if (family, form.format.name, lanes) in QUICK else [pytest.mark.sweep])
         for lanes in (1, 8) for family in FABRICS for form in FORMS]


@pytest.mark.parametrize("form, family, lanes", STEPS)
def test_step(form, family, lanes, tmp_path):
    """With the family's cells, an element adds what the plain form does: all codes, activations and sums from above.

    Of one product and of eight, with no register and with all of them.
    """
    check_step(form, lanes, family, tmp_path)


def run_both(form: ProductForm, lanes: int, pipeline: int, row: int, family: str, folder: Path) -> None:
    """Let Icarus run an element of a family beside the plain one: random weights, strobes, activations and sums."""
    iverilog = shutil.which("iverilog")
    if iverilog is None:
        pytest.skip("no Icarus")
    modules = []
    for name, of in (("plain", None), ("made", family)):
        element = ProcessingElement(
            product=form, lanes=lanes, act_bits=8, psum_in_bits=form.sum_bits(row * lanes, 8) if row else 0,
            psum_out_bits=form.sum_bits((row + 1) * lanes, 8), pipeline=pipeline, family=of)
        modules.append(to_verilog(element, name))
    above = f".psum_i(sum[{form.sum_bits(row * lanes, 8) - 1}:0])," if row else ""
    words = [form.pack(level) for level in form.format.levels]
    table = "".join(f"{index}: word = {form.control_bits}'d{word};" for index, word in enumerate(words))
    # Multiples are random bits: whatever they are, an element selects, shifts and adds them.
    (folder / "bench.v").write_text("".join(modules) + f"""
module bench;
  reg clk = 0, load, swap;
  reg [{element.act_bundle_bits - 1}:0] act;
  reg [{element.weight_bits - 1}:0] weight;
  reg [31:0] sum;
  wire [{len(element.psum_o) - 1}:0] first, second;
  plain a(.clk(clk), .rst(1'b0), .act_i(act), {above} .load_i(load), .swap_i(swap), .weight_i(weight), .psum_o(first));
  made b(.clk(clk), .rst(1'b0), .act_i(act), {above} .load_i(load), .swap_i(swap), .weight_i(weight), .psum_o(second));
  function [{form.control_bits - 1}:0] word(input integer index); case (index) {table} endcase endfunction
  integer cycle, lane, wrong = 0, seed = 1;
  initial begin
    for (cycle = 0; cycle < 3000; cycle = cycle + 1) begin
      for (lane = 0; lane < {lanes}; lane = lane + 1) begin
        weight[lane * {form.control_bits} +: {form.control_bits}] = word($unsigned($random(seed)) % {len(words)});
        act[lane * {sum(element.widths)} +: {sum(element.widths)}] = {{$random(seed), $random(seed)}};
      end
      sum = $random(seed);
      load = $random(seed) | cycle < 8;
      swap = $random(seed) | cycle < 8;
      #1 clk = 1;
      #1 if (cycle > 8 && first !== second) wrong = wrong + 1;
      clk = 0;
    end
    $display("%0d wrong", wrong);
  end
endmodule
""", encoding="utf-8")
    subprocess.run([iverilog, "-g2005", "-s", "bench", "-o", "bench", "bench.v"], cwd=folder, check=True)
    done = subprocess.run(["vvp", "-n", "bench"], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout == "0 wrong\n"


@pytest.mark.parametrize("form, lanes, pipeline, row, family", [
    pytest.param(form, lanes, pipeline, row, family,
                 id=f"{family}-{form.format.name}-{form.kind}-{lanes}-{pipeline}-row{row}")
    for name, kind, lanes, pipeline, row, family in (
        ("ternary", "shift", 1, 1, 1, "ecp5"), ("pot4z", "shift", 1, 1, 1, "ecp5"), ("exp5", "shift", 1, 1, 0, "ecp5"),
        ("ternary", "shift", 8, 3, 1, "ecp5"), ("binary", "shift", 5, 2, 1, "ecp5"),
        ("pot3z", "shift", 6, 1, 0, "ecp5"),
        ("int8", "multiplier", 1, 2, 1, "ecp5"), ("int4", "multiplier", 3, 3, 0, "ecp5"),
        ("exp4", "shift", 1, 1, 1, "xilinx"), ("int4", "multiplier", 2, 2, 1, "gowin"),
        ("pot3z", "shift", 2, 1, 1, "xilinx"), ("pot4", "shift", 3, 3, 1, "ice40"),
        ("binary", "shift", 5, 2, 1, "ice40"), ("int8", "multiplier", 2, 3, 1, "ice40"),
    ) for form in [ProductForm(FORMATS[name], kind)]])
def test_registers(form, lanes, pipeline, row, family, tmp_path):
    """An element with registers and strobes does in every cycle what the plain one does."""
    run_both(form, lanes, pipeline, row, family, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", [pytest.param(family, marks=[pytest.mark.sweep] if family != "ecp5" else [])
                                    for family in FABRICS])
@pytest.mark.parametrize("values", [
    {"format": "ternary", "lanes": 5}, {"format": "exp4"}, {"format": "int8", "pe": "multiplier", "pipeline": 3}],
    ids=lambda values: values["format"])
def test_no_multiplier(family, values):
    """Whole accelerators, requantization included: no multiplier in the netlist of any family."""
    config = ArrayConfig(rows=2, cols=2, memory=MemoryConfig(lines=16), **values)
    found = synthesize(to_verilog(Accelerator(config, family=family), "chip"), "chip", family)
    assert found.total.dsp == 0 and found.array.lut


@pytest.mark.parametrize("family", FABRICS)
def test_readers(family):
    """Verilator, Icarus and Yosys read an array of a family's cells without a word."""
    verilog = to_verilog(SystolicArray(ArrayConfig("exp4", 2, 2, 2, pipeline=3), family), "array")
    report = lint_verilog(verilog, "array.v", "array", family=family)
    assert report.ok, report.to_text()
    assert f"module nomul_adder_{family} #(" in verilog


def test_refusals():
    form = ProductForm(FORMATS["ternary"])
    widths = {"product": form, "act_bits": 8, "psum_in_bits": 0, "psum_out_bits": 9}
    with pytest.raises(ValueError, match=r"^family must be one of ecp5, ice40, xilinx, gowin, not 'asic'$"):
        ProcessingElement(lanes=1, family="asic", **widths)
    with pytest.raises(ValueError, match=r"^pipeline must be in 0..1 for 1 lanes of ternary, not 2$"):
        ProcessingElement(lanes=1, pipeline=2, **widths)
    with pytest.raises(ConfigError, match=r"^array.pipeline must be in 0..1, not 2$"):
        ArrayConfig("ternary", 2, 2, pipeline=2)
