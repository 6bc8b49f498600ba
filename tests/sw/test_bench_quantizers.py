"""The comparison of quantizers: files that it reads, what it prints, mistakes."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from nomul.bench.quantizers import compare, load_layers, main, methods
from nomul.quantize import QuantizeError
from nomul.quantize.scalar import LAPLACIAN


@pytest.fixture
def weights():
    rng = np.random.default_rng(0)
    return {"conv": rng.laplace(size=(8, 4, 3, 3)).astype(np.float32), "bias": rng.random(8).astype(np.float32),
            "fc": rng.standard_normal((16, 32)).astype(np.float32), "small": np.ones((2, 2), dtype=np.float32)}


def test_files(weights, tmp_path):
    np.savez(tmp_path / "a.npz", **weights, steps=np.arange(300).reshape(3, 100))
    save_file(weights, tmp_path / "a.safetensors")
    state = {name: torch.from_numpy(values) for name, values in weights.items()}
    torch.save(state, tmp_path / "a.pt")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "a.th")
    for suffix in ("npz", "safetensors", "pt", "th"):
        found = load_layers(tmp_path / f"a.{suffix}")
        assert set(found) == {"conv", "fc"}
        assert found["conv"].dtype == np.float64
        assert all(np.array_equal(values, weights[name]) for name, values in found.items())


def test_channels_and_codes(tmp_path):
    rng = np.random.default_rng(0)
    codebook, code = rng.standard_normal(16).astype(np.float32), rng.integers(16, size=(8, 8, 3, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", **{"x/code": code, "x/codebook": codebook, "conv": rng.random((3, 3, 8, 16)),
                                    "depthwise": rng.random((3, 3, 64, 1)), "first": rng.random((1, 3, 3, 64))})
    assert np.array_equal(load_layers(tmp_path / "a.npz")["x"], codebook[code].astype(np.float64))
    found = load_layers(tmp_path / "a.npz", channels_last=True)
    assert found["conv"].shape == (16, 3, 3, 8) and found["depthwise"].shape == (64, 3, 3, 1)
    assert load_layers(tmp_path / "a.npz")["first"].shape == (64, 1, 3, 3)


@pytest.mark.parametrize("name, content, message", [
    ("a.npz", None, "a.npz: no such file"), ("a.npz", b"PK", "a.npz: not a file of weights"),
    ("a.txt", b"", "expected .npz, .safetensors, .pt, .pth or .th"), ("a.safetensors", b"", "not a file of weights"),
    ("a.pt", b"", "not a file of weights"),
])
def test_mistakes(name, content, message, tmp_path, capsys):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert main([str(tmp_path / name), "--bits", "2"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1


def test_no_weights(tmp_path):
    np.savez(tmp_path / "a.npz", bias=np.ones(1000))
    with pytest.raises(QuantizeError, match="no float tensor of two dimensions and at least 256 weights"):
        load_layers(tmp_path / "a.npz")


@pytest.mark.parametrize("text", ["0", "7", "x", ""])
def test_bits_out_of_range(text, capsys):
    with pytest.raises(SystemExit):
        main(["--bits", text])
    assert "expected numbers from 1 to 6" in capsys.readouterr().err


def test_command(weights, tmp_path, capsys):
    path = tmp_path / "net.npz"
    np.savez(path, **weights)
    assert main([str(path), "--bits", "3", "--json", "--plot", str(tmp_path / "a.svg")]) == 0
    comparisons = json.loads(capsys.readouterr().out)["comparisons"]
    assert [each["name"] for each in comparisons] == ["Gaussian", "Laplacian", "net.npz"]
    assert comparisons[2]["layers"] == ["conv", "fc"]
    assert {each["method"] for each in comparisons[2]["methods"]} == set(methods(3))
    assert all(len(each["sqnr"]) == 2 for each in comparisons[2]["methods"])
    assert {each["format"] for each in comparisons[2]["formats"]} == {"pot3", "pot3z", "int3"}
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")

    assert main([str(path), "--bits", "2,3"]) == 0
    text = capsys.readouterr().out
    assert "Laplacian: SQNR in dB" in text and "net.npz: SQNR in dB, mean of 2 layers" in text
    assert "exponential, best against linear, best (layers won)" in text and "a step per channel" in text


def test_wins_and_losses():
    """The papers' claim, and what is left of it beside a linear quantizer that clips."""
    found = compare("L", {"L": LAPLACIAN.among(10**6)}, (4,))
    sqnr = {name: found.find(name, 4).mean_sqnr for name in methods(4) if name != "DeepShift-Q"}
    assert sqnr["exponential, range"] - sqnr["linear, range"] > 6
    assert 0.5 < sqnr["exponential, best"] - sqnr["linear, best"] < 1.3
    assert found.find("DeepShift-Q", 4) is None
    assert max(sqnr, key=sqnr.get) == "Lloyd-Max"
