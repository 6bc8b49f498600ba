"""A prediction beside the routed truth: what is compared is the design's own, and told in plain figures."""

import json

import pytest

from nomul.area import load_predictor
from nomul.fit import BOARDS, fit_board
from nomul.inputs import load_shape
from nomul_hw.families import Cost
from nomul_hw.pnr import DEVICES, HARNESS, Hop, Route, Routing
from nomul_sim import fit_check

ARGUMENTS = ["resnet8", "--board", "orangecrab-25f", "--share", "0.3"]


@pytest.fixture
def routed(monkeypatch):
    """A design that takes on the chip what is predicted, less 20 % of the flip-flops; and a harness."""
    def route(config, device, *, seeds, progress):
        assert device == "lfe5u-25f" and list(seeds) == [1]
        cost = load_predictor("ecp5").predict(config)
        half = {"TRELLIS_COMB": cost.lut // 2, "DP16KD": cost.bram}
        return Routing(device, "", "6", ("Yosys", "nextpnr"), "nextpnr", {1: 61.5},
                       Route("a.x", "b.y", 16.0, 9.0, (Hop("a", 1, 8.0), Hop("b", 1, 8.0))), {},
                       {"array": half, HARNESS: {"TRELLIS_FF": 300, "TRELLIS_COMB": 50},
                        "top": {"TRELLIS_COMB": cost.lut - cost.lut // 2, "TRELLIS_FF": round(cost.ff / 1.25)}})

    monkeypatch.setattr(fit_check, "route_accelerator", route)


def test_what_is_compared(routed, capsys):
    best = fit_board(load_shape("resnet8"), BOARDS["orangecrab-25f"], "ternary", share=0.3).best
    assert fit_check.main([*ARGUMENTS, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["array"] == best.config.name and found["cycles"] == best.cycles and found["fmax"] == 61.5
    assert Cost(**found["predicted"]) == best.cost
    assert found["errors"]["lut"] == 0 == found["errors"]["bram"]
    assert found["errors"]["ff"] == pytest.approx(0.25, abs=0.001)
    assert fit_check.main(ARGUMENTS) == 0
    text = capsys.readouterr().out
    assert f"{best.cycles:,} cycles, 61.5 MHz, through a, b" in text and "flip-flops" in text and "+25.0%" in text


def test_chips_and_mistakes(capsys):
    assert [fit_check.device_of(board) for board in BOARDS.values() if board.family != "xilinx"] == [
        "lfe5u-85f", "lfe5u-45f", "lfe5um5g-85f", "lfe5u-25f", "up5k", "hx8k", "gw1nr-9"]
    with pytest.raises(ValueError, match=r"^nothing places and routes XC7A35T$"):
        fit_check.device_of(BOARDS["arty-a7-35t"])
    assert set(fit_check._CELLS) == {device.family for device in DEVICES.values()}
    assert fit_check.main(["nothing", "--board", "ulx3s-85f"]) == 1
    assert "'nothing' is not" in capsys.readouterr().err
