"""The demo on a small array, and what it shows."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from nomul import demo, digits
from nomul.cli import app
from nomul.demo import DemoResult, Row, parse_shape
from nomul.report import demo_table, plot_demo
from nomul.verify import Verification
from nomul_hw.config import ArrayConfig, ConfigError, load_config
from nomul_hw.formats import get_format

ROOT = Path(__file__).parents[2]

GOOD = Verification(
    images=64, bits=5120, mismatches=0, cycles=(100,) * 64, estimated_cycles=100, accounting={"total": 100},
    estimated_accounting={"total": 100}, layers=(), first=None,
)


def row(name: str, verification: Verification = GOOD, accuracy: float = 0.98) -> Row:
    config = ArrayConfig(get_format(name.removesuffix("_multiplier")),
                         pe="multiplier" if name.endswith("_multiplier") else "shift")
    return Row(name, config, 0.99, accuracy, verification, 0.5, Path(f"{config.name}.v"))


def rendered(rows: list[Row], width: int = 200) -> str:
    text = io.StringIO()
    Console(file=text, width=width).print(demo_table(DemoResult(tuple(rows), 449, 0, Path("demo.png"))))
    return text.getvalue()


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


@pytest.fixture
def quickly_trained(monkeypatch):
    """A network that is trained a little: what it recognizes is not the point."""
    monkeypatch.setattr(demo, "_trained", lambda seed: digits.train(seed, epochs=2))


@pytest.mark.slow
@pytest.mark.usefixtures("quickly_trained")
def test_demo(tmp_path):
    """One format on the small example array: every figure that is promised, and no difference."""
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["demo", "--config", str(ROOT / "examples" / "ternary_4x4.toml"), "--images", "64",
                                      "--formats", "ternary", "--output", str(out), "--json"])
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["ok"] and list(data["formats"]) == ["ternary"]
    figures = data["formats"]["ternary"]
    assert 0.5 < figures["float_accuracy"] <= 1 and 0.2 < figures["quantized_accuracy"] <= 1
    assert (figures["images"], figures["mismatches"], figures["cycle_differences"]) == (64, 0, 0)
    assert figures["rtl_cycles"] == figures["estimated_cycles"] > 0
    assert 0 < figures["utilisation"] < 1 and figures["bits_per_weight"] == 2
    assert "endmodule" in Path(figures["verilog"]).read_text()
    assert json.loads((out / "results.json").read_text()) == data
    assert min(png_size(out / "demo.png")) > 200


@pytest.mark.parametrize(("change", "shown"), [
    ({"mismatches": 3}, "3"),
    ({"cycles": (100,) * 63 + (98,)}, "98"),
])
def test_a_difference_is_shown_and_fails(monkeypatch, tmp_path, change, shown):
    bad = row("exp4", replace(GOOD, **change))
    assert not bad.ok and shown in rendered([row("ternary"), bad])
    assert "RTL differs from the golden model or the estimate: exp4" in rendered([row("ternary"), bad])
    monkeypatch.setattr(demo, "run_demo",
                        lambda *_, **__: DemoResult((row("ternary"), bad), 449, 0, tmp_path / "demo.png"))
    result = CliRunner().invoke(app, ["demo", "--json"])
    assert result.exit_code == 1
    data = json.loads(result.stdout)
    assert not data["ok"] and data["formats"]["ternary"]["ok"] and not data["formats"]["exp4"]["ok"]


def test_table():
    text = rendered([row("ternary"), row("int8_multiplier", accuracy=0.991)])
    assert "int8 multiplier" in text and "99.1 %" in text and "agree in every bit and every cycle" in text


def test_table_on_a_narrow_terminal():
    lines = rendered([row("int8_multiplier")], width=80).splitlines()
    assert max(map(len, lines)) <= 80
    assert any(all(part in line for part in ("int8 multiplier", "99.0 %", "98.0 %", "100", "50.0 %")) for line in lines)


@pytest.mark.parametrize("names", [["ternary"], ["ternary", "pot3", "exp4", "int4", "int8_multiplier"]])
def test_plot(tmp_path, names):
    path = tmp_path / "new" / "plot.png"
    plot_demo([row(name, accuracy=0.9 + index / 100) for index, name in enumerate(names)], path, title="A title")
    width, height = png_size(path)
    assert width == 1500 and height > 250


def test_the_array_of_a_row():
    base = load_config(ROOT / "examples" / "custom_format.toml")
    configs = demo._configs(base, ["five", "int4", "int4_multiplier"])
    assert [(config.format.name, config.pe) for config in configs.values()] == [
        ("five", "shift"), ("int4", "shift"), ("int4", "multiplier")]
    assert all((config.rows, config.lanes, config.cols) == (8, 2, 8) for config in configs.values())
    with pytest.raises(ConfigError, match="Unknown weight format 'six'"):
        demo._configs(base, ["six"])


def test_parse_shape():
    assert parse_shape("16x8") == (16, 1, 8) and parse_shape("4x2x8") == (4, 2, 8)
    for text in ("16", "16x", "axb", "1x2x3x4", "-1x2"):
        with pytest.raises(ConfigError, match="ROWSxCOLS or ROWSxLANESxCOLS"):
            parse_shape(text)
