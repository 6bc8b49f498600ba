# amaranth: UnusedElaboratable=no
"""Elements of every family: proven to add ``weight * activation``, for all weights, activations and partial sums.

The proof has two halves. A leaf, made of a family's cells, adds what its one line for simulators says: by SAT
(:func:`test_leaf`). An element, made of leaves, adds the products: by reading its netlist (:func:`test_step`,
:mod:`.proof`). What an element takes in is tested for all cases too: control words in ``test_pe.test_decoder``,
multiples in ``test_pe.test_multiples``.
"""

import copy
import importlib.util
import re
import shutil
import subprocess
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from amaranth.hdl import Module, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from nomul_hw.accelerator import Accelerator
from nomul_hw.adders import ADDER, fabric_sum, factors, leaf
from nomul_hw.array import SystolicArray
from nomul_hw.config import ArrayConfig, ConfigError, MemoryConfig
from nomul_hw.fabric import FABRICS
from nomul_hw.formats import FORMATS, MAX_MULTIPLES, WeightFormat
from nomul_hw.lint import lint_verilog
from nomul_hw.pe import Multiples, ProcessingElement, WeightDecoder, plain_sum
from nomul_hw.product import ProductForm
from nomul_hw.synth import synthesize
from nomul_hw.verilog import to_verilog

from .proof import Refused, check, netlists, yosys

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

    def __init__(self, form: ProductForm, lanes: int, width: int, family: str | None):
        self.form, self.lanes, self.width, self.family = form, lanes, width, family
        super().__init__({"codes": In(lanes * form.format.bits), "acts": In(lanes * 8), "psum": In(signed(width)),
                          "total": Out(signed(width))})

    def elaborate(self, platform):
        m, lanes = Module(), []
        for lane in range(self.lanes):
            m.submodules[f"decoder_{lane}"] = decoder = WeightDecoder(product=self.form)
            m.submodules[f"multiples_{lane}"] = multiples = Multiples(product=self.form, act_bits=8)
            m.d.comb += [decoder.code.eq(self.codes.word_select(lane, self.form.format.bits)),
                         multiples.act.eq(self.acts.word_select(lane, 8))]
            lanes.append(factors(self.form, 8, f"lane_{lane}", decoder.controls, multiples.multiples))
        m.d.comb += self.total.eq(
            plain_sum(m, lanes, self.psum, 0) if self.family is None
            else fabric_sum(m, self.family, lanes, self.psum, self.width, 0))
        return m


def equal(first: str, second: str) -> list[str]:
    """Passes that prove two modules without registers equal.

    ABC proves points inside equal, from the inputs on, and makes one of each two: that leaves SAT little to do.
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


#: Width of the widest leaf that is proven.
WIDEST = 32


@pytest.mark.parametrize("widest, family", [
    *((8, family) for family in FABRICS),
    *(pytest.param(WIDEST, family, marks=pytest.mark.sweep) for family in FABRICS)])
def test_leaf(widest, family, tmp_path):
    """Leaves for synthesis, made of the family's cells, are what they are for simulators: all widths, all inputs.

    Cells take in two places or four at most, and all cells between the first and the last are alike: what goes wrong,
    goes wrong up to 8 bits.
    """
    prove_leaves(widest, family, leaf(family), tmp_path)


def prove_leaves(widest: int, family: str, text: str, folder: Path) -> None:
    if FABRICS[family].fused == "lut":  # first with LUTs that give b to the carry chain, whatever that is
        ports = "abcdeg"
        tables = [np.full(widest, 0xcccc_cccc_cccc_cccc, np.uint64),
                  np.random.default_rng(1).integers(1 << 64, size=widest, dtype=np.uint64)]
        functions = [(f"{64 * widest}'h" + "".join(f"{int(table):016x}" for table in each), None) for each in tables]
    else:
        ports, functions = "abcd", TABLES
    passes, arounds = [], {}
    for index, (table, head) in enumerate(functions):
        parameters = f".F({table})" if head is None else f".F({table}), .G({head})"
        vectors = "".join(f".{port}({port}[width-1:0]), " for port in ports)
        if head == 0b0110:
            vectors = vectors.replace("b[width-1:0]", "{width{b[0]}}")
        arounds[f"around{index}_v"] = f"""
module around(input [{widest - 1}:0] {", ".join(ports)}, output [{widest * widest - 1}:0] s);
  genvar width;
  generate
    for (width = 1; width <= {widest}; width = width + 1) begin : each
      nomul_adder_{family} #(.WIDTH(width), {parameters}) leaf ({vectors}.s(s[(width-1)*{widest}+:width]));
    end
  endgenerate
endmodule
"""
        for what, flag in (("cells", ""), ("model", "-nosynthesis")):
            passes += ["design -push", "read_verilog cells.v", f"read_verilog {flag} leaf.v around{index}.v",
                       "prep -flatten -top around", "rename -top leaf", f"design -save {what}{index}", "design -pop"]
        passes += ["design -push", f"design -copy-from cells{index} -as cells leaf",
                   f"design -copy-from model{index} -as model leaf", *equal("model", "cells"), "design -pop"]
    yosys(folder, passes, **arounds, leaf_v=text, cells_v=cells(family))


def test_wrong_leaf(tmp_path):
    """The proof of leaves can fail: here a carry is that of the place below."""
    text = leaf("gowin").replace(".CIN(carry[i])", ".CIN(carry[i && i - 1])")
    assert text != leaf("gowin")
    with pytest.raises(AssertionError, match="proof did fail"):
        prove_leaves(3, "gowin", text, tmp_path)


def make_elements(form: ProductForm, lanes: int, families) -> list[ProcessingElement]:
    """Elements with no register and with all of them, and an array's first, which has no sum above it."""
    most = form.max_pipeline(lanes)
    return [ProcessingElement(product=form, lanes=lanes, act_bits=8, psum_in_bits=above, psum_out_bits=width,
                              pipeline=pipeline, family=family)
            for above, width, pipeline in ((24, 24, 0), (24, 24, most), (0, form.sum_bits(lanes, 8), most))
            for family in families]


@pytest.mark.parametrize("form, lanes", [
    pytest.param(form, lanes, id=f"{form.format.name}-{form.kind}-{lanes}",
                 marks=[pytest.mark.sweep] if lanes * len(form.terms) > 16 else [])
    for lanes in (1, 8) for form in FORMS])
def test_step(form, lanes, tmp_path):
    """An element of leaves, or of operators alone, adds ``weight * activation``, less what the bias adds.

    For all weights, activations and sums from above; of one product and of eight, with no register and with all.
    """
    elements = make_elements(form, lanes, (None, *FABRICS))
    for netlist, element in zip(netlists(tmp_path, elements), elements, strict=True):
        check(netlist, element, TABLES, WIDEST)


def mistakes(netlist, lanes):
    """Yield netlists with a mistake each, and what it is: in every leaf, behind some, and in the whole."""
    def mutant():
        copied = copy.deepcopy(netlist)
        return copied, copied["cells"]

    def wire(cells, at, bit):
        cells[f"wire_{at}"] = {"type": "$_AND_", "connections": {"A": [bit], "B": ["1"], "Y": [at]}}

    def cut(part, low, high):
        part["connections"] = {port: bits[low:high] for port, bits in part["connections"].items()}
        part["parameters"]["WIDTH"] = format(high - low, "b")
        if "e" in part["connections"]:  # a table for each place, the last one first
            tables = part["parameters"]["F"]
            part["parameters"]["F"] = tables[len(tables) - 64 * high:len(tables) - 64 * low]

    leaves = {name: cell["connections"]["s"] for name, cell in netlist["cells"].items()
              if cell["type"].startswith(ADDER)}
    for name, bits in leaves.items():
        wrong, cells = mutant()
        cells[name]["parameters"]["F"] = cells[name]["parameters"]["F"].translate({48: "1", 49: "0"})
        yield f"{name}: sign", wrong

        wrong, cells = mutant()
        cells[name]["connections"].update({port: vector[:1] + vector[:-1]
                                           for port, vector in cells[name]["connections"].items() if port in "bcdeg"})
        yield f"{name}: offset", wrong

        wrong, cells = mutant()
        cells["upper"] = copy.deepcopy(cells[name])
        cut(cells[name], 0, len(bits) // 2)
        cut(cells["upper"], len(bits) // 2, len(bits))
        yield f"{name}: dropped carry", wrong

        wrong, cells = mutant()
        cut(cells[name], 0, len(bits) - 1)
        wire(cells, bits[-1], bits[-2])
        yield f"{name}: too narrow", wrong

    sums = {bit for bits in leaves.values() for bit in bits}
    for name, cell in netlist["cells"].items():
        if cell["type"] == "$_DFF_P_" and cell["connections"]["D"][0] in sums:
            wrong, cells = mutant()
            del cells[name]
            wire(cells, cell["connections"]["Q"][0], cell["connections"]["D"][0])
            yield f"{name}: no register", wrong

    wrong, _ = mutant()
    weights = wrong["netnames"]["active"]["bits"]
    weights[:] = weights[len(weights) // lanes:] + weights[:len(weights) // lanes]
    yield "weights of another lane", wrong


@pytest.mark.parametrize("name, family", [("ternary", "ecp5"), ("binary", "ice40"), ("pot3z", "xilinx"),
                                          ("pot3", "gowin")])
def test_mistakes(name, family, tmp_path):
    """The proof can fail: it sees a mistake in whichever leaf. Leaves with any function are taken for proven here."""
    functions = set(product(range(256), range(16)))
    elements = make_elements(ProductForm(FORMATS[name]), 4, [family])[:2]
    for netlist, element in zip(netlists(tmp_path, elements), elements, strict=True):
        check(netlist, element, functions, WIDEST)
        wrong = dict(mistakes(netlist, element.lanes))
        assert len(wrong) > 4 * element.lanes

        def overlooked(netlist, element=element):
            try:
                check(netlist, element, functions, WIDEST)
            except Refused:
                return False
            return True

        assert not list(filter(lambda what: overlooked(wrong[what]), wrong))


@pytest.mark.parametrize("name, lanes, family", [("ternary", 1, "ecp5"), ("ternary", 8, "ecp5"), ("pot3z", 1, "xilinx"),
                                                 ("int8", 1, "ice40"), ("ternary", 1, "gowin")])
def test_cells(name, lanes, family, tmp_path):
    """Both halves of the proof at once, for a few elements: the Verilog with the family's cells, and the plain form."""
    form = ProductForm(FORMATS[name], "multiplier" if name == "int8" else "shift")
    passes, texts = [], {}
    for top, of in (("plain", None), ("made", family)):
        texts[f"{top}_v"] = to_verilog(Step(form, lanes, 24, of), top)
        passes += ["read_verilog cells.v", f"read_verilog {top}.v", f"prep -flatten -top {top}", f"design -stash {top}"]
    passes += ["design -reset", *(f"design -copy-from {top} -as {top} {top}" for top in ("plain", "made"))]
    yosys(tmp_path, [*passes, *equal("plain", "made")], **texts, cells_v=cells(family))


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
