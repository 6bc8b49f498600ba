"""Place and route: clocks are reached or missed, paths and cells belong to modules."""

import json
import subprocess

import pytest

from nomul_hw import pnr
from nomul_hw.pnr import DEVICES, HARNESS, Routing, default_device, nextpnr_version, place_and_route, trim_carries
from nomul_hw.synth import TOP, SynthesisError

#: A counter that feeds an adder, with an instance whose name is a keyword.
CHAIN = """
module counter(clk, rst, en, q);
  input clk;
  input rst;
  input en;
  output [15:0] q;
  reg [15:0] q = 0;
  always @(posedge clk) if (rst) q <= 0; else if (en) q <= q + 1;
endmodule
module adder(clk, a, b, s);
  input clk;
  input [15:0] a;
  input [15:0] b;
  output s;
  reg [16:0] sum;
  always @(posedge clk) sum <= a + b;
  assign s = ^sum;
endmodule
module chain(clk, rst, en, b, s);
  input clk;
  input rst;
  input en;
  input [15:0] b;
  output s;
  wire s;
  wire [15:0] count;
  wire odd;
  reg last;
  counter \\begin (
    .clk(clk), .rst(rst), .en(en), .q(count)
  );
  adder add (
    .clk(clk), .a(count), .b(b), .s(odd)
  );
  always @(posedge clk) last <= odd;
  assign s = last;
endmodule
"""


@pytest.mark.parametrize("device", ["lfe5u-25f", "lfe5um5g-85f", "hx8k", "gw1nr-9"])
def test_modules_and_clock(device):
    said = []
    result = place_and_route(CHAIN, "chain", device, seeds=(1, 2), progress=said.append)
    assert set(result.modules) >= {"begin", "add", TOP, HARNESS}
    registers = {"TRELLIS_FF": 17, "DFF": 17, "ICESTORM_LC": 17}  # of the adder; in ice40 with the logic before them
    kind = next(kind for kind in registers if kind in result.used)
    assert registers[kind] <= result.modules["add"][kind] <= registers[kind] + 8
    # nextpnr has a few cells of its own, and packs some away.
    for counted in {kind, "LUT4", "TRELLIS_COMB"} & result.used.keys():
        assert abs(sum(cells.get(counted, 0) for cells in result.modules.values()) - result.used[counted][0]) <= 2
    assert all(used <= available for used, available in result.used.values())
    assert set(result.clocks) == {1, 2} and result.fmax == max(result.clocks.values())
    assert 1e3 / result.path.delay == pytest.approx(result.fmax, rel=0.05)
    assert sum(hop.delay for hop in result.path.hops) == pytest.approx(result.path.delay, abs=0.05)
    assert 0 < result.path.wires < result.path.delay
    assert set(result.path.modules) <= set(result.modules)
    assert {result.path.source, result.path.sink} <= {"begin.q", "add.sum", "add.s", "top.last", "add.b", "begin.en",
                                                      "harness.given", "harness.taken"}
    assert result.path.source.split(".")[0] in result.path.modules or result.path.source.startswith(HARNESS)
    assert f"synthesize for {device}" in said and any("MHz" in line for line in said)
    assert Routing.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_carry_chains_begin_and_end():
    """A carry that nothing reads leaves no chain; one that a port, a LUT or the next cell reads does. None begins one
    whose first LUT is empty and unread."""
    def cell(lut: str = "0110", cin: object = "0", cout: int | None = None, s0: int = 20) -> dict[str, object]:
        connections = {"A0": [2], "CIN": [cin], "COUT": [] if cout is None else [cout], "S0": [s0]}
        return {"type": "CCU2C", "parameters": {"INIT0": lut}, "connections": connections,
                "port_directions": {port: "output" if port in ("COUT", "S0") else "input" for port in connections}}

    cells = {"nothing": cell(cout=10), "port": cell(cout=11), "lut": cell(cout=12), "chain": cell(cout=13),
             "last": cell(cin=13, cout=14), "open": cell(cin=13), "one": cell("0000", "1"), "empty": cell("0000"),
             "carried": cell("0000", 13), "shown": cell("0000", s0=12),
             "logic": {"type": "LUT4", "port_directions": {"A": "input", "Z": "output"},
                       "connections": {"A": [12], "Z": [15]}}}
    design = {"modules": {"top": {"ports": {"s": {"direction": "output", "bits": [11, 15]}}, "cells": cells}}}
    found = json.loads(trim_carries(json.dumps(design)))["modules"]["top"]["cells"]
    for name in cells.keys() - {"port", "lut", "chain", "logic"}:
        cells[name]["connections"]["COUT"] = ["x"]
    cells["empty"]["connections"]["CIN"] = ["x"]
    assert found == cells


def test_a_faster_grade_is_faster():
    slow, fast = (place_and_route(CHAIN, "chain", "lfe5u-25f", speed=speed).fmax for speed in ("6", "8"))
    assert slow < fast


def test_what_does_not_fit():
    memory = ("module big(clk, i, o);\n  input clk;\n  input [39:0] i;\n  output [39:0] o;\n  reg [39:0] o;\n"
              "  reg [39:0] m [65535:0];\n  always @(posedge clk) begin m[i[15:0]] <= i; o <= m[i[39:24]]; end\n"
              "endmodule\n")
    with pytest.raises(SynthesisError, match=r"^nextpnr: ERROR: .* \(ICESTORM_RAM [1-9]\d{2,} %, "):
        place_and_route(memory, "big", "up5k")


def test_defaults():
    assert [default_device(family) for family in ("ecp5", "ice40", "gowin")] == ["lfe5u-85f", "hx8k", "gw1nr-9"]
    assert all(len(device.pins) in (0, 5) for device in DEVICES.values())
    assert "nextpnr" in nextpnr_version("ecp5")


def test_refusals(monkeypatch):
    with pytest.raises(ValueError, match=r"^there is place and route for ecp5, ice40, gowin, not for xilinx$"):
        default_device("xilinx")
    with pytest.raises(ValueError, match=r"^device must be one of lfe5u-85f, .*, not 'hx1k'$"):
        place_and_route(CHAIN, "chain", "hx1k")
    with pytest.raises(ValueError, match=r"^place and route needs a seed$"):
        place_and_route(CHAIN, "chain", seeds=())
    with pytest.raises(ValueError, match=r"^hx8k comes in one speed grade only$"):
        place_and_route(CHAIN, "chain", "hx8k", speed="6")
    with pytest.raises(SynthesisError, match=r"^there is no module 'nothing'$"):
        place_and_route(CHAIN, "nothing")
    monkeypatch.setattr(pnr.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(pnr.shutil, "which", lambda name: None)
    with pytest.raises(SynthesisError, match=r"needs nextpnr-ecp5, .* not installed: pip install 'nomul\[pnr\]'$"):
        nextpnr_version("ecp5")
    monkeypatch.setattr(pnr.shutil, "which", lambda name: f"/opt/{name}")
    monkeypatch.setattr(pnr.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess(
        [], 0, "", '"nextpnr-ecp5" -- Next Generation Place and Route (Version 0.4-1+b1)'))
    assert nextpnr_version("ecp5") == "nextpnr 0.4-1+b1"
