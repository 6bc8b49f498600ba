# amaranth: UnusedElaboratable=no
"""How a build plan is run: seeds, naming, adapters. Neither Yosys nor nextpnr run; one real bitstream is in
:mod:`tests.boards.test_bitstreams`."""

import json

import pytest

from nomul_boards import placing
from nomul_boards.boards import BOARDS
from nomul_boards.errors import BuildError
from nomul_boards.placing import place
from nomul_boards.top import BoardTop
from nomul_hw.pnr import Hop
from nomul_hw.synth import SynthesisError

#: A machine in a bus, as `nomul generate` writes them.
VERILOG = """\
module array(clk, a, s);
  input clk;
  input [7:0] a;
  output [7:0] s;
endmodule

module accelerator(clk, rst);
  input clk;
  input rst;
  array array (
    .clk(clk)
  );
endmodule

module link(clk);
  input clk;
endmodule

module machine(clk, rst, rx, tx, led);
  input clk;
  input rst;
  input rx;
  output tx;
  output led;
  accelerator accelerator (
    .clk(clk), .rst(rst)
  );
  link link (
    .clk(clk)
  );
endmodule
"""

CELLS = ("machine.link.position", "machine.accelerator.array.sum", "machine.accelerator.held", "button")


@pytest.fixture
def tools(monkeypatch):
    """Programs that note what they are asked for; clocks by seed."""
    asked, clocks = [], {"1": 40.0, "2": 55.0, "3": 60.0}

    def nextpnr(program, given, folder, tell):
        asked.append(("nextpnr", *given))
        seed = given[given.index("--seed") + 1]
        path = [{"from": {"cell": CELLS[0]}, "to": {"cell": CELLS[1]}, "delay": 7.0, "type": "routing"},
                {"from": {"cell": CELLS[1]}, "to": {"cell": CELLS[1]}, "delay": 3.0, "type": "logic"}]
        (folder / "report.json").write_text(json.dumps({
            "fmax": {"clock": {"achieved": clocks[seed], "constraint": 50}},
            "critical_paths": [{"from": "posedge clock", "to": "posedge clock", "path": path}],
            "utilization": {"TRELLIS_FF": {"used": 4, "available": 100}, "DCC": {"used": 0, "available": 9}}}))
        placed = {"modules": {"top": {"cells": {name: {"type": "TRELLIS_FF"} for name in CELLS}}}}
        (folder / ("top.pnr.json" if "--vopt" in given else "placed.json")).write_text(json.dumps(placed))

    def run_tool(name, arguments, folder):
        asked.append((name, *arguments))
        (folder / "top.bit").write_bytes(b"bits")

    monkeypatch.setattr(placing, "_synthesize",
                        lambda folder, family: asked.append(("yosys", (folder / "top.ys").read_text())))
    monkeypatch.setattr(placing, "run_nextpnr", nextpnr)
    monkeypatch.setattr(placing, "run_tool", run_tool)
    return asked


def run(name, tmp_path, **choices):
    board = BOARDS[name]
    return place(board, BoardTop(board, "machine", pll=False), {"machine.v": VERILOG}, tmp_path / "project",
                 clock=50, progress=lambda said: None, **choices)


def test_the_first_seed_that_meets_the_clock(tools, tmp_path):
    routing, bitstream = run("orangecrab-25f", tmp_path, seeds=(1, 2, 3))
    assert routing.clocks == {1: 40.0, 2: 55.0} and routing.fmax == 55
    assert bitstream == tmp_path / "project" / "top.bit"
    assert bitstream.read_bytes()[-8:-5] == b"UFD"  # OrangeCrab's boot loader wants it marked
    assert [asked[0] for asked in tools] == ["yosys", "nextpnr", "nextpnr", "ecppack"]
    given = tools[1]
    assert "--freq" in given and given[given.index("--freq") + 1] == "50" and "--timing-allow-fail" in given


def test_no_seed_meets_the_clock(tools, tmp_path):
    routing, bitstream = run("orangecrab-25f", tmp_path)
    assert routing.clocks == {1: 40.0} and bitstream is None
    assert "ecppack" not in [asked[0] for asked in tools]


def test_modules(tools, tmp_path):
    routing, _ = run("orangecrab-25f", tmp_path)
    assert {name: cells["TRELLIS_FF"] for name, cells in routing.modules.items()} == {
        "link": 1, "array": 1, "top": 1, "board": 1}
    assert routing.path.source == "link.position" and routing.path.sink == "array.sum"
    assert routing.path.hops == (Hop("array", 1, 10.0),)
    assert routing.used == {"TRELLIS_FF": (4, 100)}


def test_names_survive_synthesis(tools, tmp_path):
    run("orangecrab-25f", tmp_path)
    script = tools[0][1]
    assert "synth_ecp5 -nowidelut -no-rw-check -top top" in script
    assert "rename -hide machine/w:* machine/t:$*ff* %co1:+[Q] %d" in script
    assert "w:machine.accelerator.array.a" in script and "w:machine.link.clk" in script
    assert script.index("hierarchy -top top") < script.index("flatten") < script.index("synth_ecp5")


def test_gowin_speaks_to_himbaechel(tools, tmp_path):
    run("tang-nano-9k", tmp_path, seeds=(3,))
    given = tools[1]
    assert ["--vopt", "family=GW1N-9C"] == list(given[given.index("--vopt"):][:2])
    assert "--family" not in given and "--cst" not in given and "cst=top.cst" in given
    assert given.count("--write") == 1


def test_what_does_not_fit(tools, tmp_path, monkeypatch):
    def fail(program, given, folder, tell):
        (folder / "top.tim").write_text("Info: Device utilisation:\n"
                                        "Info: \t         ICESTORM_LC:    5579/   5280   105%\n"
                                        "Info: \t        ICESTORM_RAM:      22/     30    73%\n")
        raise SynthesisError("nextpnr: ERROR: Failed to expand region")

    monkeypatch.setattr(placing, "run_nextpnr", fail)
    with pytest.raises(BuildError, match=r"^the design does not fit iCE40UP5K: it takes 5,579 of 5,280 ICESTORM_LC$"):
        run("icebreaker", tmp_path)
    monkeypatch.setattr(placing, "_too_much", lambda log, board: "")
    with pytest.raises(BuildError, match=r"^iCEBreaker: nextpnr: ERROR: Failed to expand region$"):
        run("icebreaker", tmp_path / "again")
