"""Random layers: generated RTL against the golden model in every bit, and against the estimate in every cycle."""

import json
from dataclasses import replace

import numpy as np
import pytest

from nomul.compiler import Program, compile_graph
from nomul.compiler.banks import with_copies
from nomul.graph import Conv, Pool
from nomul_hw.arithmetic import MAX_SKIP_DROP, act_range
from nomul_hw.config import ArrayConfig, MemoryConfig
from nomul_sim import golden, random_layers
from nomul_sim.build import BuildError
from nomul_sim.random_layers import CONFIGS, Case, Report, check_case, check_layers, main, random_case
from nomul_sim.verilated import VerilatedDevice

#: Cases per configuration; 14 configurations make some 900 layers.
CASES = 40

EXP4 = next(config for config in CONFIGS if config.format.name == "exp4")


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_rtl_is_exact(config: ArrayConfig) -> None:
    report = check_layers(config, CASES, seed=1)
    assert not report.mismatches, "\n".join(map(str, report.mismatches))
    assert report.cases == CASES and report.layers > CASES and report.codes > 1000 and report.cycles > 5_000


def test_configurations_cover_the_generator() -> None:
    assert len(CONFIGS) * CASES >= 500
    assert len({config.name for config in CONFIGS}) == len(CONFIGS)
    assert {config.format.name for config in CONFIGS} == {
        "binary", "ternary", "pot3", "pot3z", "pot4", "exp4", "exp5", "fp4_e2m1", "int2", "int3", "int4", "int8"}
    assert {config.format.name for config in CONFIGS if config.pe == "multiplier"} == {"int4", "int8"}
    assert {config.lanes for config in CONFIGS} >= {1, 2, 4, 8}
    assert {config.gain_terms for config in CONFIGS} == {1, 2, 3}
    assert {config.act_bits for config in CONFIGS} >= {4, 8}
    assert {(config.rows, config.cols) for config in CONFIGS} >= {(1, 1), (3, 5), (2, 8), (8, 2), (4, 4)}


# The generator -----------------------------------------------------------------------------------------------------


def cases(config: ArrayConfig, count: int) -> list[Case]:
    return [random_case(config, np.random.default_rng((5, index))) for index in range(count)]


@pytest.mark.parametrize("config", [
    *CONFIGS,
    ArrayConfig("ternary"),
    ArrayConfig("exp4_sqrt2", rows=16, cols=3, acc_bits=32),
    ArrayConfig("pot4z", rows=2, cols=2, act_bits=2, acc_bits=14, memory=MemoryConfig(16, 64, 16, 4, 8)),
], ids=lambda config: config.name)
def test_cases_fit_the_array(config: ArrayConfig) -> None:
    for case in cases(config, 30):
        program = compile_graph(case.graph, config)
        assert program.estimate().cycles < 20_000
        assert case.inputs.dtype == np.int8 and case.inputs.shape[1:] == case.graph.tensor(case.graph.input).shape


def test_cases_follow_the_seed() -> None:
    first, again, other = (random_case(EXP4, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first.inputs, again.inputs)
    assert all(np.array_equal(a.bias, b.bias) for a, b in zip(first.graph.nodes, again.graph.nodes, strict=True))
    assert first.inputs.shape != other.inputs.shape or not np.array_equal(first.inputs, other.inputs)


def test_cases_reach_the_corners() -> None:
    low, high = act_range(EXP4.act_bits)
    seen = set()
    for case in cases(EXP4, 300):
        tensors = golden.run(case.graph, case.inputs)
        seen |= {f"residual drop {case.graph.skip_drop(node)}" for node in case.graph.nodes if node.skip is not None}
        seen |= {"copy" for _ in with_copies(case.graph)[1]}
        seen.add(f"layers {len(case.graph.nodes)}")
        seen |= {f"sample all {v}" for v in (low, high) if (case.inputs == v).all(axis=(1, 2, 3)).any()}
        for node in case.graph.nodes:
            source, target = case.graph.tensor(node.input), case.graph.tensor(node.output)
            v = golden.accumulators(case.graph, node, tensors[node.input]) + node.bias[:, None, None]
            shift = node.shift[:, None, None]
            tie = (shift > 0) & (v % (1 << shift) == 1 << shift >> 1)
            codes = tensors[node.output]
            if (tie & (codes > node.low) & (codes < node.high)).any():
                seen.add("tie")
            if np.abs(v).max() > 1 << EXP4.acc_bits - 2:
                seen.add("large sum")
            top, left, _, _ = node.padding
            seen |= {name for name, present in {
                "1x1 map": (source.height, source.width) == (1, 1),
                "not square": source.height != source.width,
                "window in padding": top >= node.kernel[0] or left >= node.kernel[1],
                "asymmetric padding": len(set(node.padding)) > 2,
                "dilation": node.dilation != (1, 1),
                "stride 3": 3 in node.stride,
                "shift 0": 0 in node.shift,
                "shift all": EXP4.max_gain_shift in node.shift,
                "partial word": source.channels % EXP4.depth > 0,
                "partial block": target.channels % EXP4.cols > 0,
                "several words": source.channels > EXP4.depth,
                "several blocks": target.channels > EXP4.cols,
                "relu": node.low == target.zero_point == 0,
                "relu6": node.low == target.zero_point and node.high < high,
                "strips": target.height * target.width > EXP4.memory.accumulators,
                f"zero points {source.zero_point} {target.zero_point}": True,
                node.kind if isinstance(node, Pool) else "conv": True,
            }.items() if present}
            seen |= {f"multiplier {m}" for m in node.multiplier}
            if isinstance(node, Conv) and (node.weights == EXP4.format.levels[0]).all(axis=(1, 2, 3)).any():
                seen.add("extreme weights")
    assert seen >= {
        "layers 1", "layers 2", "layers 3", "sample all -128", "sample all 127", "tie", "large sum", "1x1 map",
        "not square", "window in padding", "asymmetric padding", "dilation", "stride 3", "shift 0", "shift all",
        "partial word", "partial block", "several words", "several blocks", "relu", "relu6", "strips", "conv", "max",
        "sum", "extreme weights", "copy",
        *(f"residual drop {drop}" for drop in range(MAX_SKIP_DROP + 1)),
        *(f"multiplier {m}" for m in EXP4.gain_multipliers),
        *(f"zero points {a} {b}" for a in (0, low) for b in (0, low))}


# The checker -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def device() -> VerilatedDevice:
    return VerilatedDevice(EXP4)


@pytest.fixture(scope="module")
def program() -> tuple[Program, np.ndarray]:
    """A program of three layers, whose second is a convolution with more than one output channel."""
    for case in cases(EXP4, 200):
        nodes = case.graph.nodes
        if len(nodes) == 3 and isinstance(nodes[1], Conv) and len(nodes[1].bias) > 1 and nodes[1].high > nodes[1].low:
            return compile_graph(case.graph, EXP4), case.inputs
    raise AssertionError("no such case")


def test_check_names_the_first_wrong_layer_and_element(device: VerilatedDevice, program) -> None:
    correct, inputs = program
    assert check_case(device, correct, inputs) is None
    # The device runs the words that were compiled; the golden model runs the graph. So changing the graph afterwards
    # looks like broken hardware: here, channel 1 of the second layer.
    first, second, third = correct.graph.nodes
    expected = golden.run(correct.graph, inputs)[second.output][0, 1]
    at_low = int(expected[0, 0]) == second.low
    bias = second.bias.copy()
    bias[1] = (1 << EXP4.acc_bits) if at_low else -(1 << EXP4.acc_bits)
    shift = second.shift.copy()
    shift[1] = 0
    graph = replace(correct.graph, nodes=(first, replace(second, bias=bias, shift=shift), third))
    problem = check_case(device, replace(correct, graph=graph), inputs)
    assert problem is not None
    assert problem.startswith(f"{second.name} (conv {second.kernel}, stride")
    assert (f": channel 1, row 0, column 0 is {expected[0, 0]} in RTL and "
            f"{second.high if at_low else second.low} in the golden model; ") in problem


def test_check_finds_a_single_cycle(device: VerilatedDevice, program, monkeypatch: pytest.MonkeyPatch) -> None:
    correct, inputs = program
    alone = random_layers.estimate_alone

    def one_more(program: Program, node: str) -> dict[str, int]:
        counters = alone(program, node)
        return counters | {"drain": counters["drain"] + (node == "layer1")}

    monkeypatch.setattr(random_layers, "estimate_alone", one_more)
    drain = alone(correct, "layer1")["drain"]
    assert (check_case(device, correct, inputs) or "").endswith(
        f": drain is {drain} in RTL and {drain + 1} in the estimate")


def test_command_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--count", "6", "--seed", "9", "--config", EXP4.name]
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(" cycles: 0 mismatches")

    monkeypatch.setattr(random_layers, "check_case", lambda *_: "broken")
    assert main([*arguments, "--first", "4"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == [
        f"{EXP4.name}, case 4: broken",
        f"    again: python -m nomul_sim.random_layers --config {EXP4.name} --seed 9 --first 4 --count 1"]
    assert main([*arguments, "--json"]) == 1
    report = Report(**json.loads(capsys.readouterr().out))
    assert report.cases == len(report.mismatches) == 6

    def no_compiler(*_: object, **__: object) -> None:
        raise BuildError("no compiler")

    monkeypatch.setattr(random_layers, "check_layers", no_compiler)
    assert main(arguments) == 2
    assert capsys.readouterr().err == "no compiler\n"
