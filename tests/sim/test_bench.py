"""The bench: what it prints, on a small array; its times are not asserted."""

import json

import pytest

from nomul_sim import bench

TOML = """
[array]
format = "ternary"
rows = 4
cols = 4

[memory]
activations = 4096
weights = 9216
"""


def test_bench(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "array.toml").write_text(TOML)
    arguments = ["--config", str(tmp_path / "array.toml"), "--seconds", "0.1", "--optimize", "build", "--json"]
    assert bench.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["config"] == "ternary_4x4" and found["optimize"] == "build"
    assert found["layer_cycles"] > 64 * 64 * 9 * 256 / (4 * 4)
    assert all(found[name] > 0 for name in ("elaborate_s", "build_cold_s", "build_cached_s", "cycles_per_s",
                                            "cycles_per_cpu_s", "macs_per_s", "verilog_lines"))
    assert set(found["machine"]) == {"processor", "cores", "system", "compiler", "python", "amaranth", "verilator"}


def test_bench_refuses(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "array.toml").write_text(TOML.replace("rows = 4", "rows = 0"))
    assert bench.main(["--config", str(tmp_path / "array.toml")]) == 2
    (tmp_path / "small.toml").write_text(TOML.replace("4096", "100"))
    assert bench.main(["--config", str(tmp_path / "small.toml")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and "array.rows must be in 1..256" in errors[0] and "memory.activations" in errors[1]
