"""The package as others get it: built as a wheel, installed elsewhere, used from another folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from .small import CONFIG_TOML

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build a wheel of the working tree."""
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out], cwd=ROOT, check=True,
                   capture_output=True, timeout=120)
    (path,) = out.glob("nomul-*.whl")
    return path


def test_contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = [archive.read(name).decode() for name in names if name.endswith("/METADATA")]
    packages = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert packages == {"nomul", "nomul_boards", "nomul_hw", "nomul_sim"}
    # What is not Python is left out by mistake easily.
    data = {path.relative_to(ROOT / top).as_posix() for top in ("hw", "sw", "sim", "boards")
            for path in (ROOT / top).rglob("*")
            if path.is_file() and path.suffix not in (".py", ".pyc") and "__pycache__" not in path.parts}
    assert data and data <= names
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert sorted(line.split()[1].split("<")[0].split(">")[0] for line in required) == [
        "amaranth[builtin-yosys]", "numpy", "rich", "safetensors", "typer"]


def test_generates_verilog_from_another_folder(wheel, tmp_path):
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    (elsewhere / "array.toml").write_text(CONFIG_TOML)
    code = ("import sys, nomul, nomul_hw\n"
            "assert all(module.__file__.startswith(sys.argv[1]) for module in (nomul, nomul_hw)), nomul.__file__\n"
            "from nomul.cli import app\n"
            "app(['generate', 'array.toml', '-o', 'out', '--no-lint'])")
    done = subprocess.run([sys.executable, "-c", code, installed], cwd=elsewhere, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(installed)}, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (elsewhere / "out" / "ternary_2x2.v").stat().st_size > 1000
