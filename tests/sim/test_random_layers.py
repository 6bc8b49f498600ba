"""Random layers: generated RTL against the golden model in every bit, and against the estimate in every cycle."""

from collections import Counter

import numpy as np
import pytest

from nomul.compiler import compile_graph
from nomul.graph import Conv, Pool
from nomul_hw.arithmetic import MAX_SKIP_DROP, act_range
from nomul_hw.config import ArrayConfig, MemoryConfig
from nomul_sim import golden
from nomul_sim.random_arrays import CONFIGS
from nomul_sim.random_check import check_cases, features, generator
from nomul_sim.random_layers import random_layers
from nomul_sim.random_nodes import Case

#: Cases per array, and the seed that makes them.
CASES, SEED = 24, 1

EXP4 = next(config for config in CONFIGS if config.format.name == "exp4" and config.memory.layers == 50)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_rtl_is_exact(config: ArrayConfig) -> None:
    report = check_cases("random_layers", random_layers, config, CASES, SEED)
    assert not report.mismatches, "\n".join(map(str, report.mismatches))
    assert report.cases == CASES and report.layers > CASES and report.codes > 500 and report.cycles > 1000


def cases(config: ArrayConfig, count: int, seed: int = SEED) -> list[Case]:
    return [random_layers(config, generator(config, seed, index)) for index in range(count)]


def test_programs_have_everything() -> None:
    """What the RTL was compared on: all that layers can be."""
    found = Counter[str]()
    for config in CONFIGS:
        for case in cases(config, CASES):
            found.update(features(compile_graph(case.graph, config)))
    assert set(found) >= {
        "conv", "max pool", "sum pool", "depthwise", "max window", "copy", "groups on the array",
        "depthwise on the array beside a window unit", "planes with shifts", "planes without shifts",
        *(f"residual in {kind}" for kind in ("conv", "max pool", "sum pool", "depthwise", "max window")),
        *(f"window of {groups} groups of taps" for groups in (1, 2, 3, 5, 9)),
        *(f"{unit}, {axis} by {step}" for unit in ("depthwise", "max window") for axis, step in (
            ("rows", 1), ("rows", 2), ("columns", 1))), "max window, columns by 2", "depthwise, columns by pairs",
    }, found


@pytest.mark.parametrize("config", [
    *CONFIGS,
    ArrayConfig("ternary"),
    ArrayConfig("exp4_sqrt2", rows=16, cols=3, acc_bits=32, memory=MemoryConfig(lines=20)),
    ArrayConfig("pot4z", rows=2, cols=2, act_bits=2, acc_bits=14, memory=MemoryConfig(16, 64, 16, 4, 8)),
], ids=lambda config: config.name)
def test_cases_fit_the_array(config: ArrayConfig) -> None:
    for case in cases(config, 20, seed=5):
        program = compile_graph(case.graph, config)
        assert program.estimate().cycles < 20_000
        assert case.inputs.dtype == np.int8 and case.inputs.shape[1:] == case.graph.tensor(case.graph.input).shape


def test_cases_follow_the_seed() -> None:
    first, again, other = (cases(EXP4, 1, seed)[0] for seed in (1, 1, 2))
    assert np.array_equal(first.inputs, again.inputs)
    assert all(np.array_equal(a.bias, b.bias)
               for a, b in zip(first.graph.computing, again.graph.computing, strict=True))
    assert first.inputs.shape != other.inputs.shape or not np.array_equal(first.inputs, other.inputs)


def test_cases_reach_the_corners() -> None:
    low, high = act_range(EXP4.act_bits)
    seen = set()
    for case in cases(EXP4, 400):
        tensors = golden.run(case.graph, case.inputs)
        seen |= {f"residual drop {case.graph.skip_drop(node)}" for node in case.graph.computing if node.skip}
        seen.add(f"layers {len(case.graph.nodes)}")
        seen |= {f"sample all {v}" for v in (low, high) if (case.inputs == v).all(axis=(1, 2, 3)).any()}
        for node in case.graph.computing:
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
            groups = node.groups if isinstance(node, Conv) else 1
            seen |= {name for name, present in {
                "1x1 map": (source.height, source.width) == (1, 1),
                "one row": source.height == 1 and source.width > 10,
                "one column": source.width == 1 and source.height > 10,
                "not square": source.height != source.width,
                "window in padding": top >= node.kernel[0] or left >= node.kernel[1],
                "asymmetric padding": len(set(node.padding)) > 2,
                "dilation": node.dilation != (1, 1),
                "stride 3": 3 in node.stride,
                "kernel 5": 5 in node.kernel,
                "depthwise": groups == source.channels == target.channels > 1,
                "depthwise, stride 2": groups == source.channels > 1 and node.stride == (2, 2),
                "depthwise, large": groups == source.channels > 1 and max(node.kernel) > 3,
                "groups": 1 < groups < source.channels,
                "more outputs than groups": 1 < groups == source.channels < target.channels,
                "shift 0": 0 in node.shift,
                "shift all": EXP4.max_gain_shift in node.shift,
                "partial word": source.channels % EXP4.depth > 0,
                "partial block": target.channels % EXP4.cols > 0,
                "several words": source.channels > EXP4.depth,
                "several blocks": target.channels > EXP4.cols,
                "relu": node.low == target.zero_point == 0,
                "relu6": node.low == target.zero_point and node.high < high,
                "strips": target.height * target.width > EXP4.memory.accumulators,
                "global": node.kernel == (source.height, source.width) != (1, 1),
                f"zero points {source.zero_point} {target.zero_point}": True,
                node.kind if isinstance(node, Pool) else "conv": True,
            }.items() if present}
            seen |= {f"multiplier {m}" for m in node.multiplier}
            if isinstance(node, Conv):
                seen.add(f"{case.graph.format_of(node).name} weights")
                if (node.weights == EXP4.format.levels[0]).all(axis=(1, 2, 3)).any():
                    seen.add("extreme weights")
    assert seen >= {
        "layers 1", "layers 2", "layers 3", "sample all -128", "sample all 127", "tie", "large sum", "1x1 map",
        "one row", "one column", "not square", "window in padding", "asymmetric padding", "dilation", "stride 3",
        "kernel 5", "depthwise", "depthwise, stride 2", "depthwise, large", "groups", "more outputs than groups",
        "shift 0", "shift all", "partial word", "partial block", "several words", "several blocks", "relu", "relu6",
        "strips", "global", "conv", "max", "sum", "extreme weights", "binary weights", "pot3 weights", "int6 weights",
        *(f"residual drop {drop}" for drop in range(MAX_SKIP_DROP + 1)),
        *(f"multiplier {m}" for m in EXP4.gain_multipliers),
        *(f"zero points {a} {b}" for a in (0, low) for b in (0, low))}
