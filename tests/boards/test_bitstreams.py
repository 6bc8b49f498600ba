"""Bitstreams of small accelerators that test themselves, one for each family that has free tools.

The whole way from the command line: network, program, Verilog, Yosys, nextpnr, bitstream.
"""

import json

import pytest
from typer.testing import CliRunner

from nomul.cli import app
from nomul.files import save_graph
from tests.sw.small import CONFIG_TOML, small_graph

#: What bitstreams begin with, or have near their beginning, and LUT cells in nextpnr's words.
FORMATS = {
    "orangecrab-25f": (b"\xff\xff\xbd\xb3", "TRELLIS_COMB"), "icebreaker": (b"\x7e\xaa\x99\x7e", "ICESTORM_LC"),
    "tang-nano-9k": (b"1111111111111111", "LUT4"),
}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("board", FORMATS)
def test_self_test(board, tmp_path):
    network = save_graph(small_graph(), tmp_path / "net.nomul")
    (tmp_path / "array.toml").write_text(CONFIG_TOML)
    done = CliRunner().invoke(app, ["build", board, str(network), "--out", str(tmp_path / "out"), "--selftest",
                                    "--config", str(tmp_path / "array.toml"), "--json"])
    assert done.exit_code == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    (bitstream,) = [path for path in (tmp_path / "out").iterdir() if path.stem == board]
    magic, kind = FORMATS[board]
    assert magic in bitstream.read_bytes()[:1000]
    routing = report["routing"]
    assert report["met"] and routing["fmax"] >= report["clock_mhz"]
    used, available = routing["used"][kind]
    assert 500 < used < available
    # Everything but pins and clocks belongs to the machine, by name.
    assert {"array", "sequencer", "output", "test"} <= set(routing["modules"])
    inside = sum(cells.get(kind, 0) for name, cells in routing["modules"].items() if name != "board")
    assert inside > 0.9 * used
    assert {hop["module"] for hop in routing["path"]["hops"]} <= set(routing["modules"])
