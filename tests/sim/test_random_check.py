"""What compares RTL with the golden model and the estimate: it must find any difference, and say where it is."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from nomul.compiler import Program, compile_graph
from nomul.graph import Conv
from nomul_hw.config import ArrayConfig
from nomul_sim import golden, random_check, random_layers, random_networks
from nomul_sim.build import BuildError
from nomul_sim.random_arrays import CONFIGS, NETWORK_CONFIGS
from nomul_sim.random_check import Report, check_case, generator
from nomul_sim.verilated import VerilatedDevice

CONFIG = next(config for config in NETWORK_CONFIGS if config.format.name == "exp4")


@pytest.fixture(scope="module")
def device() -> VerilatedDevice:
    return VerilatedDevice(CONFIG)


@pytest.fixture(scope="module")
def program() -> tuple[Program, np.ndarray]:
    """A program of three layers, whose second is a convolution with more than one output channel."""
    for index in range(200):
        case = random_layers.random_layers(CONFIG, generator(CONFIG, 5, index))
        nodes = case.graph.nodes
        if len(nodes) == 3 and isinstance(nodes[1], Conv) and len(nodes[1].bias) > 1 and nodes[1].high > nodes[1].low:
            return compile_graph(case.graph, CONFIG), case.inputs
    raise AssertionError("no such case")


def test_no_difference(device: VerilatedDevice, program) -> None:
    assert check_case(device, *program) is None


def test_first_wrong_layer_and_element(device: VerilatedDevice, program) -> None:
    correct, inputs = program
    # The device runs the words that were compiled; the golden model runs the graph. So changing the graph afterwards
    # looks like broken hardware: here, channel 1 of the second layer.
    first, second, third = correct.graph.nodes
    expected = golden.run(correct.graph, inputs)[second.output][0, 1]
    at_low = int(expected[0, 0]) == second.low
    bias = second.bias.copy()
    bias[1] = (1 << CONFIG.acc_bits) if at_low else -(1 << CONFIG.acc_bits)
    shift = second.shift.copy()
    shift[1] = 0
    graph = replace(correct.graph, nodes=(first, replace(second, bias=bias, shift=shift), third))
    problem = check_case(device, replace(correct, graph=graph), inputs)
    assert problem is not None
    assert problem.startswith(f"{second.name} (exp4 conv")
    assert (f": channel 1, row 0, column 0 is {expected[0, 0]} in RTL and "
            f"{second.high if at_low else second.low} in the golden model; ") in problem


@pytest.mark.parametrize("alone", [True, False])
def test_single_cycle(device: VerilatedDevice, program, monkeypatch: pytest.MonkeyPatch, alone: bool) -> None:
    correct, inputs = program
    second = correct.graph.nodes[1].name
    if alone:
        estimate = random_check.estimate_alone
        monkeypatch.setattr(random_check, "estimate_alone", lambda program, node: (
            estimate(program, node) | {"drain": estimate(program, node)["drain"] + (node == second)}))
        drain = estimate(correct, second)["drain"]
    else:
        # Only in the run of the first two layers; a descriptor that says so would be another program.
        estimate, two = Program.estimate, random_check._until(correct, correct.graph.nodes[1])
        drain = estimate(two).accounting["drain"]

        def one_more(program: Program):
            found = estimate(program)
            if len(program.layers) == len(two.layers):
                found.accounting["drain"] += 1
            return found

        monkeypatch.setattr(Program, "estimate", one_more)
    problem = check_case(device, correct, inputs)
    assert problem is not None and problem.startswith(second + " (")
    assert ("all layers up to it in one run: sample 0" in problem) is not alone
    assert problem.endswith(f": drain is {drain} in RTL and {drain + 1} in the estimate")


@pytest.mark.parametrize("module", [random_layers, random_networks])
def test_command_line(module, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    name = module.__name__.removeprefix("nomul_sim.")
    arguments = ["--count", "4", "--seed", "9", "--config", CONFIG.name]
    assert module.main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(" cycles on 1 arrays: 0 mismatches")

    monkeypatch.setattr(random_check, "check_case", lambda *_: "broken")
    assert module.main([*arguments, "--first", "4"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == [
        f"{CONFIG.name}, case 4: broken",
        f"    again: python -m nomul_sim.{name} --config {CONFIG.name} --seed 9 --first 4 --count 1"]
    assert module.main([*arguments, "--json"]) == 1
    report = Report(**json.loads(capsys.readouterr().out))
    assert report.cases == len(report.mismatches) == 4 and report.arrays == 1
    assert sum(Counter(report.features).values()) > 0

    def no_compiler(*_: object, **__: object) -> None:
        raise BuildError("no compiler")

    monkeypatch.setattr(random_check, "check_cases", no_compiler)
    assert module.main(arguments) == 2
    assert capsys.readouterr().err == "no compiler\n"


def test_arrays() -> None:
    """The arrays have everything that an array can have."""
    assert len({config.name for config in CONFIGS}) == len(CONFIGS)
    assert {config.format.name for config in CONFIGS} >= {
        "binary", "ternary", "pot3", "pot3z", "pot4", "exp4", "exp4_sqrt2", "exp5", "fp4_e2m1", "int2", "int3", "int4",
        "int8"}
    assert {config.format.name for config in CONFIGS if config.pe == "multiplier"} == {"int4", "int8"}
    assert {config.lanes for config in CONFIGS} >= {1, 2, 4, 8}
    assert {config.gain_terms for config in CONFIGS} == {1, 2, 3}
    assert {config.act_bits for config in CONFIGS} >= {2, 4, 8}
    assert {(config.rows, config.cols) for config in CONFIGS} >= {(1, 1), (3, 5), (2, 8), (8, 2), (4, 4)}

    def kinds(configs: tuple[ArrayConfig, ...]) -> set[object]:
        return {(config.format.zero, config.memory.lines > 0, config.window_groups > 1, config.plane_shift > 0)
                for config in configs}

    for configs in (CONFIGS, NETWORK_CONFIGS):
        windowed = [config for config in configs if config.memory.lines]
        assert {config.format.zero for config in windowed} == {False, True}
        assert {config.window_groups for config in windowed} >= {1, 2, 3, 5}
        assert {config.cols > config.depth for config in configs} == {False, True}
        assert any(not config.memory.lines for config in configs)
    assert {config.plane_shift for config in CONFIGS} >= {0, 1, 2, 4}
