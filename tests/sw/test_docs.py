"""Documentation and examples say what the code does."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import nomul
from nomul_hw.config import load_config

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md"))]


def test_generated_tables_are_up_to_date():
    done = subprocess.run([sys.executable, ROOT / "docs" / "tables.py", "--check"], capture_output=True, text=True,
                          timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page):
    from nomul.cli import app

    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"(?m)^\s*nomul (\w+) ", text)) <= known
    targets = set(re.findall(r"(?m)^(\w+):", (ROOT / "Makefile").read_text()))
    assert set(re.findall(r"`make (\w+)`|(?m:^\s*make (\w+))", text)) <= {(t, "") for t in targets} | {
        ("", t) for t in targets}


def test_readme_names_the_public_api():
    names = set(re.findall(r"\bnomul\.([A-Za-z_]\w*)", re.sub(r"`[^`\n]*`", "", (ROOT / "README.md").read_text())))
    assert names <= set(nomul.__all__) | {"egg"}


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda path: path.name)
def test_example_configurations(path):
    config = load_config(path)
    text = path.read_text(encoding="utf-8")
    assert f"nomul generate examples/{path.name} -o " in text
    if re.search(r"_\d+x\d+$", path.stem):
        assert path.stem.replace("_multiplier", "_mul") == config.name


def test_the_first_example_shows_every_default():
    """`ternary_16x16.toml` is the reference: it spells out all keys, at their defaults."""
    import tomllib
    from dataclasses import asdict, fields

    from nomul_hw.config import ArrayConfig, MemoryConfig

    data = tomllib.loads((ROOT / "examples" / "ternary_16x16.toml").read_text(encoding="utf-8"))
    assert set(data["array"]) == {field.name for field in fields(ArrayConfig)} - {"memory"}
    assert data["memory"] == asdict(MemoryConfig())
    assert load_config(ROOT / "examples" / "ternary_16x16.toml") == ArrayConfig(data["array"]["format"])


def test_the_python_example_is_short():
    assert len((ROOT / "examples" / "python_api.py").read_text().splitlines()) <= 60


@pytest.mark.slow
def test_the_python_example_runs():
    done = subprocess.run([sys.executable, ROOT / "examples" / "python_api.py"], capture_output=True, text=True,
                          timeout=500)
    assert done.returncode == 0, done.stderr
    assert "RTL: 0 of 5,120 output bits differ" in done.stdout
