"""Mixed precision: the choice is the best, its costs are the exact model's, and what is measured is the network."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from nomul.compiler import CompileError, compile_graph
from nomul.compiler.plan import fitted
from nomul.estimate import estimate_network
from nomul.frontend import FloatConv, FloatGraph, FloatPool
from nomul.graph import Conv
from nomul.quantize import QuantizeConfig, QuantizeError, equalize, quantize_report
from nomul.quantize import mixed as module
from nomul.quantize.mixed import Budget, _knapsack, search_formats
from nomul.quantize.report import sqnr_db
from nomul.shapes import network_shape
from nomul_hw.config import ArrayConfig, MemoryConfig
from nomul_hw.formats import get_format
from nomul_sim import golden

FORMATS = ("ternary", "pot3z", "int4")
ARRAY = ArrayConfig(get_format("ternary"), rows=4, cols=4)


def network(seed=0):
    rng = np.random.default_rng(seed)

    def conv(name, inputs, outputs, kernel, **options):
        weights = rng.laplace(size=(outputs, inputs, kernel, kernel)) / np.sqrt(inputs * kernel**2)
        return FloatConv(name, (kernel, kernel), weights=weights, bias=0.2 * rng.standard_normal(outputs),
                         padding=(kernel // 2,) * 4, **options)

    layers = (conv("first", 2, 8, 3, low=0.0), conv("second", 8, 8, 3, low=0.0),
              FloatPool("mean", (4, 4), kind="average", divisor=16), conv("last", 8, 5, 1))
    return FloatGraph((2, 4, 4), layers, (5,))


def inputs_of(graph, samples=64, seed=1):
    return np.random.default_rng(seed).standard_normal((samples, *graph.input_shape))


def search(budget, formats=FORMATS, **options):
    graph = network()
    return search_formats(graph, inputs_of(graph), formats, budget, **options)


def choice_of(result, name):
    return next(choice for choice in result.choices if choice.name == name)


@pytest.mark.parametrize("seed", range(20))
def test_knapsack_is_exact(seed):
    rng = np.random.default_rng(seed)
    layers = [(rng.integers(0, 20, count).tolist(), rng.random(count).round(1).tolist())
              for count in rng.integers(1, 5, size=5)]
    options = list(product(*(range(len(costs)) for costs, _ in layers)))
    for limit in (0, 10, 30, 50, 100):
        sums = [(sum(layers[at][1][pick] for at, pick in enumerate(picks)),
                 sum(layers[at][0][pick] for at, pick in enumerate(picks))) for picks in options]
        within = [noise for noise, cost in sums if cost <= limit]
        picks = _knapsack(layers, limit)
        assert (picks is None) == (not within)
        if picks is not None:
            noise, cost = sums[options.index(tuple(picks))]
            assert cost <= limit and noise == pytest.approx(min(within))


def test_knapsack_of_many_layers_stays_within_its_limit(monkeypatch):
    monkeypatch.setattr(module, "MAX_STATES", 64)
    rng = np.random.default_rng(0)
    costs = rng.integers(1, 10_000, size=(60, 4))
    noises = 1 / costs * rng.uniform(0.5, 2, size=costs.shape)
    least, most = costs.min(axis=1).sum(), costs.max(axis=1).sum()
    limit = int(least + most) // 2
    picks = _knapsack([(list(c), list(n)) for c, n in zip(costs.tolist(), noises.tolist(), strict=True)], limit)
    rows = np.arange(60)
    assert costs[rows, picks].sum() <= limit
    # A bound: what multiplying costs by any price and adding the noise gives at best.
    bound = max((noises + price * costs).min(axis=1).sum() - price * limit for price in np.logspace(-12, 0, 400))
    assert noises[rows, picks].sum() <= 1.05 * bound


@pytest.mark.parametrize("budget", [2.3, 3.2])
def test_a_budget_of_bits(budget):
    graph = network()
    checks = inputs_of(graph, seed=2)
    labels = graph.run(checks).argmax(axis=1)
    told = []
    result = search(Budget(bits=budget), inputs=checks, labels=labels, progress=told.append)
    best = result.best
    weights = {layer.name: layer.weights.size for layer in graph.layers if isinstance(layer, FloatConv)}
    bits = sum(weights[name] * get_format(fmt).bits for name, fmt in best.formats.items())
    assert best.bits == bits / sum(weights.values()) <= budget
    # The integer network is what its configuration gives, and what was measured.
    again, _ = quantize_report(graph, inputs_of(graph), result.config)
    outputs = golden.run(result.graph, result.graph.quantize_input(checks))[result.graph.output]
    np.testing.assert_array_equal(golden.run(again, again.quantize_input(checks))[again.output], outputs)
    real = result.graph.dequantize_output(outputs).reshape(len(checks), -1)
    assert best.output_sqnr == sqnr_db(graph.run(checks), real)
    assert best.accuracy == best.agreement == (real.argmax(axis=1) == labels).mean()
    assert result.float_accuracy == 1.0
    assert {node.name: result.graph.format_of(node).name for node in result.graph.nodes
            if isinstance(node, Conv)} == best.formats
    # Nothing within the budget does better, and what is beyond it says so.
    assert all(choice.output_sqnr <= best.output_sqnr for choice in result.choices if choice.within)
    assert [choice.within for choice in result.choices[-3:]] == [
        get_format(name).bits <= budget for name in FORMATS]
    assert told[0] == "sensitivity of first, layer 1 of 3" and told[-1] == "quantize to the mixed choice"
    assert result.to_dict()["formats"] == best.formats


def test_an_equalized_network_is_searched_as_it_is_quantized():
    """Its layers on their own are those of the equalized network; the configuration equalizes it again."""
    first, *others = network().layers
    sizes = np.geomspace(1, 0.02, 8)[:, None, None, None]
    graph = replace(network(), layers=(replace(first, weights=first.weights * sizes), *others))
    x = inputs_of(graph)
    found = search_formats(graph, x, FORMATS, Budget(bits=2.6), config=QuantizeConfig("int4", equalization=0.5))
    apart = search_formats(equalize(graph, x, strength=0.5), x, FORMATS, Budget(bits=2.6))
    plain = search_formats(graph, x, FORMATS, Budget(bits=2.6))
    assert found.sensitivity == apart.sensitivity and found.best == apart.best
    assert found.sensitivity["second"] != plain.sensitivity["second"]
    assert found.config.equalization == 0.5 and apart.config.equalization == 0.0
    again, _ = quantize_report(graph, x, found.config)
    for one, other in zip(again.nodes, found.graph.nodes, strict=True):
        np.testing.assert_array_equal(one.shift, other.shift)
        np.testing.assert_array_equal(one.bias, other.bias)


def test_the_mixed_choice_is_the_best_prediction():
    result = search(Budget(bits=2.6))
    mixed = choice_of(result, "mixed")
    weights = {"first": 144, "second": 576, "last": 40}
    noise = {name: {fmt: 10 ** (-value / 10) for fmt, value in row.items()} for name, row in result.sensitivity.items()}
    possible = [dict(zip(weights, picks, strict=True)) for picks in product(FORMATS, repeat=3)]
    within = [picks for picks in possible
              if sum(weights[name] * get_format(fmt).bits for name, fmt in picks.items()) <= 2.6 * 760]
    best = min(within, key=lambda picks: sum(noise[name][fmt] for name, fmt in picks.items()))
    assert mixed.formats == best
    assert mixed.predicted_sqnr == pytest.approx(-10 * np.log10(sum(noise[name][fmt] for name, fmt in best.items())))


def test_a_budget_of_cycles_is_that_of_the_program():
    shape = network_shape(network())

    def cycles(name):
        nodes = tuple(replace(node, format=get_format(name)) if node.kind == "conv" else node for node in shape.nodes)
        return estimate_network(replace(shape, nodes=nodes), ARRAY, fit=False).cycles

    budget = (cycles("ternary") + cycles("int4")) // 2
    result = search(Budget(cycles=budget), array=ARRAY, fit=False)
    assert result.best.name == "mixed" and result.best.cycles <= budget
    assert choice_of(result, "ternary").cycles == cycles("ternary") and choice_of(result, "int4").cycles > budget
    assert not choice_of(result, "int4").within
    chosen = network_shape(result.graph)
    assert estimate_network(chosen, ARRAY, fit=False).cycles == result.best.cycles
    # The weights at hand may take fewer planes than their formats can need.
    assert compile_graph(result.graph, fitted(chosen, ARRAY)).estimate().cycles <= result.best.cycles


def test_an_array_with_its_own_memories():
    small = replace(ARRAY, memory=MemoryConfig(weights=100))
    result, large = search(Budget(cycles=10**6), array=small), search(Budget(cycles=10**6), array=ARRAY)
    assert choice_of(result, "ternary").cycles > choice_of(large, "ternary").cycles  # it runs piece by piece
    assert result.best.cycles is not None
    with pytest.raises(CompileError, match="does not fit"):
        search(Budget(cycles=10**6), array=replace(ARRAY, memory=MemoryConfig(weights=16)))


def test_a_budget_of_luts_chooses_the_array():
    luts = {"ternary": 1000, "pot3z": 2000, "int4": 4000}
    alone = search(Budget(luts=2500), luts=luts)
    # Without a budget of cycles there are only weights that the array holds as they are.
    assert (alone.best.array, alone.best.luts) == ("pot3z", 2000)
    assert choice_of(alone, "ternary").luts == 1000
    assert choice_of(alone, "int4").luts is None and not choice_of(alone, "int4").within
    assert set(alone.best.formats.values()) <= {"ternary", "pot3z"}
    both = search(Budget(luts=1500, cycles=10**6), luts=luts, fit=False)
    assert both.best.array == "ternary" and "int4" in both.best.formats.values()
    few = search(Budget(luts=2500, bits=2.5), luts=luts)
    assert few.best.bits <= 2.5


def test_layers_that_the_configuration_names_keep_their_format():
    result = search(Budget(bits=8), config=QuantizeConfig("ternary", formats={"l*": "int8"}))
    assert {choice.formats["last"] for choice in result.choices} == {"int8"}
    assert list(result.sensitivity["last"]) == ["int8"]


def test_one_format_alone_is_no_mixed_choice():
    result = search(Budget(bits=2), formats=["ternary", get_format("int4")])
    assert [choice.name for choice in result.choices] == ["ternary", "int4"] and result.best.name == "ternary"


@pytest.mark.parametrize(("options", "message"), [
    ({"budget": Budget(bits=1.9)}, r"Nothing is within 1\.9 bits per weight; the least is 2\.00 bits"),
    ({"budget": Budget(cycles=10), "array": ARRAY, "fit": False}, r"Nothing is within 10 cycles; the least is about"),
    ({"budget": Budget(cycles=10)}, "A budget of cycles needs an array"),
    ({"budget": Budget(luts=10)}, "A budget of LUTs and a table of LUTs by format go together"),
    ({"budget": Budget(bits=3), "luts": {"ternary": 10}}, "A budget of LUTs and a table"),
    ({"budget": Budget(luts=10), "luts": {"ternary": 20, "int4": 40}}, "the smallest takes 20"),
    ({"budget": Budget(luts=10), "luts": {"wrong": 5}}, "wrong"),
    ({"budget": Budget(luts=10), "luts": {"pot3": 5}}, "No choice among ternary, pot3z, int4 can run"),
    ({"budget": Budget(bits=3), "formats": ["wrong"]}, "wrong"),
    ({"budget": Budget(bits=3), "formats": []}, "There are no formats"),
    ({"budget": Budget(bits=3), "labels": [1]}, "Labels go with inputs that are not the calibration's"),
])
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(QuantizeError, match=message):
        search(**options)


@pytest.mark.parametrize("budget", [{}, {"bits": 0}, {"cycles": -1}, {"bits": 3, "cycles": 4}])
def test_impossible_budgets(budget):
    with pytest.raises(QuantizeError, match="A budget is"):
        Budget(**budget)


def test_a_network_without_weights():
    graph = FloatGraph((2, 4, 4), (FloatPool("max", (2, 2), (2, 2), kind="max"),), (2, 2, 2))
    with pytest.raises(QuantizeError, match="no layer with weights"):
        search_formats(graph, inputs_of(graph), ["ternary"], Budget(bits=3))
