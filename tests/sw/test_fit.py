"""What an accelerator is predicted to take, and the fastest array for a board."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from nomul import area, fit
from nomul.area import ELEMENT_SUM_BITS, AreaError, Elements, Predictor, Sample, block_rams, load_predictor, load_sweep
from nomul.estimate import estimate_network
from nomul.fit import BOARDS, Board, FitError, config_toml, fit_board
from nomul.inputs import load_shape
from nomul.report import json_text
from nomul.shapes import network_shape
from nomul_hw.config import ArrayConfig, ConfigError, MemoryConfig, load_config, parse_config
from nomul_hw.families import FAMILIES, Cost
from nomul_hw.formats import FORMATS, WeightFormat
from nomul_hw.synth import synthesize
from nomul_sim.area_sweep import ELEMENTS, selected, trim
from nomul_sim.synthesis import synthesize_verilog
from nomul_sim.verilated import ACCELERATOR, accelerator_verilog

from .small import small_graph

SHAPE = network_shape(small_graph())


def made_up(config: ArrayConfig) -> Sample:
    """Costs that a sum of things explains: 9 LUTs a product, 2 a bit of sums, 1 a bit of words, and memories."""
    sums = sum(config.sum_bits(row) for row in range(config.rows)) * config.cols
    modules = {**area._memories(config, "ecp5"),
               "array": Cost(lut=9 * config.macs_per_cycle + 2 * sums, carry=sums,
                             ff=round(0.9 * area._array_ffs(config)[0])),
               "top": Cost(lut=config.act_word_bits + 100, ff=50)}
    if config.memory.lines:
        modules["window_unit"] += Cost(lut=20 * 9 * config.depth)
    return Sample(config, modules)


SWEEP = [made_up(ArrayConfig(fmt, rows, cols, lanes, memory=MemoryConfig(lines=lines)))
         for fmt in ("ternary", "exp4") for rows, lanes, cols, lines in
         ((4, 1, 4, 0), (8, 1, 4, 0), (4, 2, 8, 16), (2, 4, 4, 0), (8, 2, 8, 16))]
PRODUCTS = [Sample(ArrayConfig(fmt, 1, 1, lanes), {"element": Cost(lut=ELEMENT_SUM_BITS + 9 * lanes)})
            for fmt in ("ternary", "exp4") for lanes in (1, 4)]
PREDICTOR = Predictor("ecp5", SWEEP, PRODUCTS)


# Area ----------------------------------------------------------------------------------------------------------------


def test_sums_are_found():
    for config in (ArrayConfig("ternary", 16, 16), ArrayConfig("exp4", 8, 8, 4)):
        truth = made_up(config).total
        found = sum(PREDICTOR.modules(config).values(), Cost())
        assert found.carry == pytest.approx(truth.carry, rel=0.02)
        assert found.lut == pytest.approx(truth.lut, rel=0.02) and found.ff == pytest.approx(truth.ff, rel=0.02)
    assert "window_unit" not in PREDICTOR.modules(ArrayConfig("ternary"))
    assert PREDICTOR.modules(ArrayConfig("ternary", memory=MemoryConfig(lines=8)))["window_unit"].lut > 0
    assert max(PREDICTOR.errors.worst.values()) < 0.1 and "LUT 0." in str(PREDICTOR.errors)


def test_what_placing_takes_more():
    """Flip-flops take the places of LUTs where they are one cell; carry chains begin with LUTs of their own."""
    config = ArrayConfig("ternary", 8, 8)
    for family in FAMILIES:
        predictor = Predictor(family, SWEEP, PRODUCTS)
        counted, found = sum(predictor.modules(config).values(), Cost()), predictor.predict(config)
        assert found.ff == counted.ff and counted.carry > 0
        assert found.lut - counted.lut == round(area.LONE.get(family, 0) * counted.ff
                                                + area.FED.get(family, 0) * counted.carry)
        assert (found.lut > counted.lut) == (family != "xilinx")


def test_products_are_measured_or_like_what_was():
    elements = Elements(PRODUCTS)
    found = [elements.logic(ArrayConfig("exp4", 8, 8, lanes)) for lanes in (1, 2, 4, 8)]
    assert found == pytest.approx([9, 18, 36, 72])
    assert elements.logic(ArrayConfig("exp4", 8, 8, act_bits=4)) == pytest.approx(4.5, rel=0.2)
    unknown = elements.logic(ArrayConfig("pot4z", 8, 8))
    assert 4 < unknown < 18 and Elements([]).logic(ArrayConfig("pot4z", 8, 8)) == 0


def test_no_cost_is_negative():
    rng = np.random.default_rng(0)
    matrix, wanted = rng.random((12, 5)), rng.standard_normal(12)
    found = area._nonnegative(matrix, wanted)
    assert (found >= 0).all()
    gradient = matrix.T @ (matrix @ found - wanted)  # nothing is to be gained where a cost may still move
    assert gradient.min() > -1e-6 and gradient @ found == pytest.approx(0, abs=1e-6)


#: Block RAMs that Yosys makes of memories (its ``memory_libmap``, run by itself): words, bits, parts, whether the port
#: that writes reads too; on ECP5, iCE40, Gowin and Xilinx 7, of 16 or 18 kbit, 4 on iCE40.
MEMORIES = {
    (6, 16, 1, False): (0, 1, 0, 0), (32, 64, 1, False): (0, 4, 0, 0), (48, 32, 1, False): (1, 2, 1, 0),
    (64, 32, 1, True): (2, 4, 2, 0), (64, 64, 4, True): (4, 8, 4, 0), (64, 64, 1, False): (2, 4, 2, 0),
    (80, 64, 1, False): (2, 4, 2, 2), (100, 48, 4, False): (2, 3, 2, 2), (128, 32, 1, False): (1, 2, 1, 1),
    (256, 40, 1, False): (2, 3, 2, 2), (256, 64, 4, True): (4, 8, 4, 4), (418, 55, 1, False): (2, 7, 2, 2),
    (512, 64, 1, True): (4, 16, 4, 4), (1000, 48, 4, False): (4, 12, 4, 4), (1024, 36, 1, False): (2, 9, 2, 2),
    (1024, 64, 4, True): (4, 32, 4, 4), (2048, 48, 1, False): (6, 24, 6, 6), (2424, 64, 1, False): (10, 40, 10, 10),
    (4000, 16, 1, True): (4, 32, 4, 4), (16512, 32, 1, False): (34, 136, 34, 34),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_memories_are_made_of_what_yosys_takes(family):
    """Block RAMs, LUTs that hold words, or flip-flops."""
    at = ("ecp5", "ice40", "gowin", "xilinx").index(family)
    found = {one: area._memory(family, words, bits // parts, parts, second).bram
             for one in MEMORIES for words, bits, parts, second in [one]}
    assert found == {one: blocks[at] for one, blocks in MEMORIES.items()}
    small = area._memory(family, 2, 48)
    if family == "ice40":  # which has nothing else that is small
        assert small.ff == 2 * 48 + 48 and small.lut > 0
    else:
        assert small == Cost(lut={"ecp5": 72, "gowin": 48, "xilinx": 32}[family], ff=48)


def test_block_rams_follow_from_sizes():
    memory = MemoryConfig(activations=1024, weights=2048, parameters=2, accumulators=512, layers=1)
    config = ArrayConfig("ternary", memory=memory)
    # Two banks of 1024 x 128, weights of 2048 x 32, accumulators of 512 x 384; parameters in LUTs.
    sizes = area._memories(config, "ecp5")
    named = ("bank_0", "bank_1", "weight_memory", "accumulator", "output")
    assert [sizes[name].bram for name in named] == [8, 8, 4, 11, 0]
    assert block_rams(config, "ecp5") == 2 * 8 + 4 + 11 + sizes["sequencer"].bram
    # Banks of two ports that read are 18 bits wide, or kept twice.
    lines = area._memories(replace(config, memory=replace(memory, lines=64, activations=512)), "ecp5")
    assert [lines[name].bram for name in ("bank_0", "window_unit")] == [8, 4 * 4]
    assert area._memories(replace(config, memory=replace(memory, lines=32)), "ecp5")["window_unit"].bram == 0  # in LUTs
    assert [area._memories(replace(config, memory=replace(memory, lines=at)), "ice40")["bank_0"].bram
            for at in (0, 64)] == [32, 64]


def test_a_sweep_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "sweep.json"
    path.write_text(json_text({"family": "ecp5", "tool": "", **{key: [
        {"config": one.config.to_dict(), "modules": {name: asdict(cost) for name, cost in one.modules.items()}}
        for one in samples] for key, samples in (("results", SWEEP), ("elements", PRODUCTS))}}))
    assert load_sweep(path) == (tuple(SWEEP), tuple(PRODUCTS))
    path.write_text("{}")
    for wrong, message in ((path, "not a sweep"), (tmp_path / "none.json", "no such sweep; python -m nomul_sim")):
        with pytest.raises(AreaError, match=message):
            load_sweep(wrong)
    with pytest.raises(AreaError, match="No array with pe = 'multiplier'"):
        PREDICTOR.predict(ArrayConfig("int4", 4, 4, pe="multiplier"))
    with pytest.raises(AreaError, match="empty"):
        Predictor("ecp5", [])


@pytest.mark.parametrize("family", [name for name in FAMILIES if area.sweep_path(name).exists()])
def test_stored_sweeps(family):
    """All of a sweep is there, and predicted well enough to choose by."""
    predictor, (accelerators, arrays) = load_predictor(family), selected(family)
    assert [one.config for one in predictor.samples] == [*arrays, *accelerators]
    assert [one.config for one in predictor.elements] == list(ELEMENTS)
    for one in predictor.samples:
        guess = predictor.modules(one.config)
        for kind in ("lut", "ff"):
            found = sum(getattr(cost, kind) for name, cost in guess.items() if name in one.modules)
            assert found == pytest.approx(getattr(one.total, kind), rel=0.25), (one.config.name, kind)
        assert {name: cost.bram for name, cost in one.modules.items()} == {
            name: guess[name].bram for name in one.modules}, one.config.name


@pytest.mark.slow
@pytest.mark.parametrize("family", [pytest.param(name, marks=[pytest.mark.sweep] if name != "ecp5" else [])
                                    for name in FAMILIES])
def test_memories_of_a_machine_are_block_rams(family):
    """All of them, the queue of a weight stream with them, on every family; as many as are predicted."""
    memory = MemoryConfig(activations=512, weights=512, parameters=512, accumulators=512, layers=64, lines=64)
    config = ArrayConfig("ternary", 4, 4, weights="stream", memory=memory)
    found = synthesize_verilog(accelerator_verilog(config, family=family), ACCELERATOR, family, ("array",))
    for name in ("bank_0", "bank_1", "weight_queue", "accumulator", "output", "sequencer"):
        assert found.modules[name].bram > 0, name
    # Xilinx' LUTs hold 64 words each: enough for the window unit's lines.
    assert (found.modules["window_unit"].bram > 0) == (family != "xilinx")
    assert found.total.bram == block_rams(config, family)


@pytest.mark.slow
def test_what_nobody_reads_is_trimmed():
    """Ports, registers of their own, and what they were the last to read; what is seen outside stays."""
    verilog = """
module part(input clk, input [7:0] a, output reg [7:0] b, output reg [7:0] c);
  always @(posedge clk) begin b <= a; c <= a + 8'd1; end
endmodule
module chip(input clk, input [7:0] a, output [7:0] y);
  wire [7:0] unread;
  part one (
    .clk(clk), .a(a), .b(y), .c(unread)
  );
endmodule
"""
    assert synthesize(verilog, "chip").modules["one"].ff == 16
    assert synthesize(trim(verilog, "chip"), "chip").modules["one"] == Cost(ff=8)


# Fit -----------------------------------------------------------------------------------------------------------------

SMALL = Board("small", "made up", "ecp5", 3_000, 3_000, 30)


def test_the_fastest_that_fits():
    told = []
    result = fit_board(SHAPE, SMALL, "ternary", predictor=PREDICTOR, progress=told.append)
    assert result.best.cycles == min(candidate.cycles for candidate in result.candidates) and told
    for candidate in result.candidates:
        assert candidate.cost == PREDICTOR.predict(candidate.config)
        assert candidate.cost.lut <= 0.85 * SMALL.lut and candidate.cost.bram <= SMALL.bram
        assert candidate.cycles == estimate_network(SHAPE, candidate.config).cycles
    # None that fits is faster, of all shapes.
    for rows in fit.ROWS:
        for lanes in fit.LANES:
            for cols in fit.COLS:
                try:
                    config = fit.fitted(SHAPE, ArrayConfig("ternary", rows, cols, lanes))
                except ConfigError:
                    continue
                cost = PREDICTOR.predict(config)
                if max(cost.lut, cost.ff) <= 0.85 * 3000 and cost.bram <= 30:
                    assert estimate_network(SHAPE, config).cycles >= result.best.cycles
    data = result.to_dict()
    assert data["best"]["cycles"] == result.best.cycles and data["board"]["lut"] == 3000


def test_a_larger_board_is_no_slower():
    cycles = [fit_board(SHAPE, replace(SMALL, lut=luts, ff=luts), "exp4", predictor=PREDICTOR).best.cycles
              for luts in (2_000, 4_000, 16_000)]
    assert cycles == sorted(cycles, reverse=True) and cycles[0] > cycles[-1]


def test_what_lacks_is_told():
    with pytest.raises(FitError, match=r"on small \(made up: 100 LUTs, 30 block RAMs\); ternary_2x2 takes about"):
        fit_board(SHAPE, replace(SMALL, lut=100), "ternary", predictor=PREDICTOR)
    with pytest.raises(FitError, match=r"ternary_2x2 takes about .* flip-flops and \d+ block RAMs"):
        fit_board(load_shape("resnet8"), replace(SMALL, bram=3), "ternary", predictor=PREDICTOR)
    with pytest.raises(FitError, match="share must be"):
        fit_board(SHAPE, SMALL, "ternary", share=1.5, predictor=PREDICTOR)
    with pytest.raises(AreaError, match="no such sweep"):
        load_predictor("abacus")


def test_a_small_network_fits_small_chips():
    """With the sweeps of the package."""
    best = fit_board(SHAPE, BOARDS["icebreaker"], "ternary").best
    assert best.cost.lut <= 0.85 * BOARDS["icebreaker"].lut and best.cost.bram <= BOARDS["icebreaker"].bram
    assert fit_board(SHAPE, BOARDS["ice40-hx8k"], "ternary").best.cycles <= best.cycles


def test_boards_are_of_known_families():
    assert all(board.family in FAMILIES and name == board.name for name, board in BOARDS.items())


@pytest.mark.parametrize("config", [
    ArrayConfig("exp4", 2, 4, 8, memory=MemoryConfig(lines=32)), ArrayConfig("int8", 4, 4, pe="multiplier"),
    ArrayConfig(WeightFormat("five", (-5, -1, 0, 1, 5)), 4, 4, plane_shift=0),
    ArrayConfig(FORMATS["ternary"], weights="stream", requantize_lanes=2)], ids=lambda config: config.name)
def test_configurations_are_written_as_they_are_read(config, tmp_path):
    path = tmp_path / "array.toml"
    path.write_text(config_toml(config))
    assert load_config(path) == config and parse_config({"array": {"format": "ternary"}}) != config
