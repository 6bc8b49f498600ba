"""The bench of mixed precision, on a network that takes a moment."""

import json

import numpy as np
import pytest
import typer

from nomul.bench import mixed as module
from nomul.bench.mixed import Task, load_task, main, rows
from nomul.bench.networks import BenchError
from nomul.frontend import FloatConv, FloatGraph
from nomul.quantize.mixed import Budget
from nomul_hw.config import ArrayConfig
from nomul_hw.formats import get_format


def small_task():
    rng = np.random.default_rng(0)
    layers = (FloatConv("first", (3, 3), weights=rng.laplace(size=(8, 2, 3, 3)), bias=rng.standard_normal(8), low=0.0),
              FloatConv("last", (2, 2), weights=rng.laplace(size=(5, 8, 2, 2)) / 8, bias=rng.standard_normal(5)))
    network = FloatGraph((2, 4, 4), layers, (5,))
    x = rng.standard_normal((120, 2, 4, 4))
    return Task(network, x[:40], x[40:], network.run(x[40:]).argmax(axis=1))


def test_formats_then_budgets():
    array = ArrayConfig(get_format("ternary"), rows=4, cols=4)
    found = rows(small_task(), ("ternary", "int4"), [Budget(bits=2.5), Budget(cycles=200)], array)
    assert [row.what for row in found] == ["ternary", "int4", "2.5 bits", "200 cycles"]
    assert [row.choice.bits for row in found[:2]] == [2.0, 4.0]
    assert 2 <= found[2].choice.bits <= 2.5 and found[3].choice.cycles <= 200
    assert found[1].logit_sqnr > found[2].logit_sqnr >= found[0].logit_sqnr
    assert all(0.5 < row.accuracy <= 1 for row in found)


def test_a_budget_of_luts_chooses_the_array():
    array = ArrayConfig(get_format("ternary"), rows=4, cols=4)
    found = rows(small_task(), ("ternary", "int4"), [Budget(luts=900), Budget(luts=2000)], array,
                 {"ternary": 800, "int4": 1800})
    assert [(row.choice.array, row.choice.luts) for row in found[2:]] == [("ternary", 800), ("int4", 1800)]


def test_command(monkeypatch, capsys):
    monkeypatch.setattr(module, "load_task", lambda *files: small_task())
    main("digits", formats="ternary,int4", bits="2.5", cycles="", luts="", array="4x4", as_json=True)
    data = json.loads(capsys.readouterr().out)
    assert data["float_accuracy"] == 1.0 and data["counted"] == 80
    assert [row["what"] for row in data["rows"]] == ["ternary", "int4", "2.5 bits"]
    main("digits", formats="ternary,int4", bits="2,3.2", cycles="", luts="", array="4x4", as_json=False)
    text = capsys.readouterr().out
    assert "100.00% of 80 inputs in float" in text and "1 int4" in text
    assert text.splitlines()[-3].startswith("2.0 bits") and text.splitlines()[-3].endswith("ternary")
    for options, message in (({"bits": ""}, "A budget is needed"), ({"bits": "two"}, "--bits takes numbers"),
                             ({"array": "4"}, "an array is"), ({"formats": "none"}, "Unknown weight format"),
                             ({"bits": "1"}, "the least is 2.00 bits")):
        with pytest.raises(typer.Exit):
            main("digits", **{"formats": "ternary", "bits": "2", "cycles": "", "luts": "", "array": "4x4"} | options)
        assert message in capsys.readouterr().err


def test_files_are_asked_for():
    with pytest.raises(BenchError, match="must be digits or ds_cnn"):
        load_task("vgg")
    with pytest.raises(BenchError, match="--keywords FILE"):
        load_task("ds_cnn")
