"""The table of elements: what is in the documentation is what is measured, and keeps what it promises."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nomul_hw.synth import SynthesisError, yosys_version
from nomul_sim.pe_table import ELEMENTS, Measured, _document, main, measure

STORED = json.loads((Path(__file__).parents[2] / "docs" / "pe_table.json").read_text(encoding="utf-8"))
ROWS = {(row["element"], row["family"], row["lanes"]): row for row in STORED["elements"]}
NAMED = {element.name: element for element in ELEMENTS}

@pytest.mark.parametrize("name, one, eight, column", [
    ("ternary", 24, 16, 13), ("pot3z", 40, 34, 32), ("pot4", 44, 46, 38), ("exp4", 45, 41, 37),
    ("int8_booth", 92, 87, 82), ("int4_booth", 52, 52, 43)])
def test_limits(name, one, eight, column):
    """LUTs of ECP5 per product: what no change may exceed."""
    assert ROWS[name, "ecp5", 1]["lut"] <= one
    assert ROWS[name, "ecp5", 8]["lut"] <= eight
    assert ROWS[name, "ecp5", 1]["column_lut"] <= column


def test_stored_is_measured():
    if [yosys_version()] != STORED["tools"][:1]:
        pytest.skip("measured with another Yosys")
    for name in ("ternary", "pot4"):
        row = ROWS[name, "ecp5", 1]
        found = measure(NAMED[name], "ecp5", 1, column=False)
        assert (found.lut, found.carry, found.ff) == (row["lut"], row["carry"], row["ff"])


def test_what_else_is_in_a_file_stays(tmp_path):
    path = tmp_path / "table.json"
    ternary = Measured("ternary", "ecp5", 1, 24, 24, 38)
    first = [replace(ternary, column_lut=12, fmax={0: 300.0}), Measured("pot4", "ecp5", 1, 43)]
    path.write_text(_document(first))
    again = [ternary, Measured("pot4", "ecp5", 1, 42), Measured("pot4", "ice40", 8, 50)]
    rows = json.loads(_document(again, path))["elements"]
    assert [(row["element"], row["family"], row["lut"], row["column_lut"], row["fmax"]) for row in rows] == [
        ("ternary", "ecp5", 24, 12, {"0": 300.0}), ("pot4", "ecp5", 42, 0, {}), ("pot4", "ice40", 50, 0, {})]
    path.write_text(path.read_text().replace("Yosys", "Other"))
    assert len(json.loads(_document(again[:1], path))["elements"]) == 1


def test_cells_need_a_library(tmp_path, monkeypatch):
    library = tmp_path / "toy.lib"
    library.write_text("library (toy) { cell (INVX1) { area : 16; } }\n")
    with pytest.raises(SynthesisError, match=r"toy.lib: has no cell of a NAND of two inputs$"):
        measure(NAMED["binary"], "cells", 1, library)
    monkeypatch.setattr("nomul_hw.cells._LIBRARY", tmp_path / "missing.lib")
    with pytest.raises(SynthesisError, match=r"^standard cells need a library: name one with --liberty FILE.lib"):
        measure(NAMED["binary"], "cells", 1)


def test_command_line(tmp_path, capsys, monkeypatch):
    arguments = ["--format", "ternary", "--family", "ecp5", "--lanes", "1", "--no-column"]
    assert main([*arguments, "--write", str(tmp_path / "table.json"), "--json"]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed) == json.loads((tmp_path / "table.json").read_text())
    assert json.loads(printed)["elements"][0]["lut"] == 24
    assert main(arguments) == 0
    assert "ternary        ecp5        1   24.00" in capsys.readouterr().out
    monkeypatch.setattr("nomul_hw.cells._LIBRARY", tmp_path / "missing.lib")
    assert main(["--family", "cells"]) == 1
    assert "--liberty" in capsys.readouterr().err
