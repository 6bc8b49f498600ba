"""What the tops cost: the command, with a synthesis that answers at once. Real ones are measured in docs/bus.md."""

import re
from pathlib import Path

import pytest

from nomul_hw.config import ArrayConfig, MemoryConfig
from nomul_hw.families import Cost
from nomul_hw.synth import Synthesis
from nomul_sim import tops

EXAMPLE = str(Path(__file__).parents[2] / "examples" / "ternary_4x4.toml")

CONFIG = ArrayConfig("ternary", 1, 1, memory=MemoryConfig(activations=64, weights=16, parameters=2, accumulators=2,
                                                          layers=1))


@pytest.mark.parametrize("name", ["streams", "axi"])
def test_one_clock_under_one_name(name):
    verilog = tops.top_verilog(name, CONFIG, "ecp5")
    body = re.search(rf"^module {tops.TOP}\b.*?^endmodule", verilog, re.MULTILINE | re.DOTALL)[0]
    assert "  input clk;" in body and not re.search(r"\baclk\b", verilog)
    assert re.search(r"^  \w+ accelerator \(", body, re.MULTILINE)


def test_command(monkeypatch, capsys):
    asked = []

    def area(name, config, family):
        asked.append((name, config.name, family))
        return Synthesis(family, "", "", {"accelerator": Cost(lut=1000, ff=20, bram=3), "link": Cost(lut=234)})

    monkeypatch.setattr(tops, "area", area)
    monkeypatch.setattr(tops, "clock", lambda *_: 123.45)
    monkeypatch.setattr(tops, "yosys_version", lambda: "Yosys")
    assert tops.main([EXAMPLE]) == 0
    assert asked == [(name, "ternary_4x4", "ecp5") for name in tops.TOPS]
    assert "123" not in capsys.readouterr().out
    assert tops.main([EXAMPLE, "--top", "serial", "--device", "hx8k", "--route"]) == 0
    assert asked[-1] == ("serial", "ternary_4x4", "ice40")
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.split() == ["serial", "1,234", "20", "3", "123.5", "accelerator", "1,000,", "link", "234"]
    assert tops.main(["no.toml"]) == 2
    assert "no.toml" in capsys.readouterr().err
