"""Quantization: what it promises of scales, weights and biases, and that its integer network is the golden one."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from nomul.compiler import compile_graph
from nomul.frontend import INPUT, FloatConcat, FloatConv, FloatGraph, FloatPool
from nomul.graph import Concat, Conv, Graph, Pool
from nomul.quantize import QuantizeConfig, QuantizeError, equalize, quantize_graph, quantize_report
from nomul.quantize.activations import fit_exponent
from nomul.quantize.fake_quant import FakeQuant
from nomul.quantize.lattice import StepLattice
from nomul.quantize.report import sqnr_db
from nomul.quantize.rounding import LayerOutputs, fit_learned
from nomul.quantize.scalar import INQ, APoT, DeepShift, LogNet, exact_format, laplacian_support
from nomul.quantize.scalar import steps as scalar_steps
from nomul.quantize.weights import _Levels, fit_compensated, fit_nearest
from nomul_hw.arithmetic import Gain, gains_near
from nomul_hw.config import ArrayConfig
from nomul_hw.formats import FORMATS, WeightFormat, get_format
from nomul_sim import golden


@pytest.fixture
def quick(monkeypatch):
    """Few steps of learned rounding: for what does not depend on how good it is."""
    monkeypatch.setattr(sys.modules[fit_learned.__module__], "STEPS", 40)


def float_conv(rng, name, inputs, outputs, kernel, *, bias=0.3, groups=1, **options):
    """A random convolution whose outputs are about as large as its inputs."""
    inputs //= groups
    weights = rng.standard_normal((outputs, inputs, *kernel)) / np.sqrt(inputs * kernel[0] * kernel[1])
    return FloatConv(name, kernel, weights=weights, bias=bias * rng.standard_normal(outputs), groups=groups, **options)


def float_graph(seed=0):
    """A network with every kind of layer; averages over 4 and 1 pixels, which every lattice has."""
    rng = np.random.default_rng(seed)
    layers = (
        float_conv(rng, "conv1", 3, 12, (3, 3), padding=(1, 1, 1, 1), low=0.0),
        FloatPool("max", (2, 2), (2, 2), kind="max"),
        float_conv(rng, "conv2", 12, 16, (3, 2), padding=(1, 0, 1, 1), stride=(1, 2), dilation=(1, 2), low=0, high=1.5),
        float_conv(rng, "conv3", 16, 16, (1, 1), low=-1.0, high=1.0),
        FloatPool("average", (2, 2), (2, 2), kind="average", divisor=4),
        float_conv(rng, "linear", 16, 5, (3, 1)),
    )
    return FloatGraph((3, 12, 8), layers, (5,))


def inputs_of(graph, samples=32, seed=0, *, positive=False):
    """Random inputs with correlated pixels, as images have."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, *graph.input_shape))
    x = x + 2 * rng.standard_normal((samples, 1, 1, 1)) + np.roll(x, 1, axis=-1)
    return np.abs(x) if positive else x


def chain(*layers, shape=(2, 8, 8)):
    """A float graph of these layers."""
    at = shape
    for layer in layers:
        at = layer.output_shape(*at)
    return FloatGraph(shape, layers, at)


def run(graph, x):
    """Real outputs of an integer graph for real inputs."""
    codes = golden.run(graph, graph.quantize_input(x))[graph.output]
    return graph.dequantize_output(codes).reshape(len(x), *graph.output_shape)


def arrays(graph: Graph):
    """Everything in a graph that quantization chose."""
    for node in graph.nodes:
        yield from (node.bias, node.multiplier, node.shift, np.asarray([node.low, node.high]))
        if isinstance(node, Conv):
            yield node.weights


# Parts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("terms", "max_shift"), [(1, 24), (2, 24), (3, 32)])
def test_lattice_is_that_of_the_arithmetic(terms, max_shift):
    lattice = StepLattice(terms, max_shift, 0.75)
    assert (np.diff(lattice.steps) > 0).all()
    values = np.exp(np.random.default_rng(0).uniform(np.log(2.0**-max_shift), np.log(8.0), 500))
    for value, index in zip(values, lattice.nearest(values * 0.75), strict=True):
        (gain,) = gains_near(value, terms=terms, max_shift=max_shift, count=1)
        assert gain == Gain(lattice.multipliers[index], lattice.shifts[index])
        assert lattice.steps[index] == gain.value * 0.75
    assert lattice.nearest(np.asarray([0.0, 1e9])).tolist() == [0, len(lattice.steps) - 1]


def test_exponent_is_the_one_of_least_error():
    values = np.random.default_rng(0).laplace(size=4000)
    chosen = fit_exponent(values, QuantizeConfig("ternary", act_bits=4), signed=True)
    errors = {e: np.square(np.clip(np.floor(values / 2.0**e + 0.5), -8, 7) * 2.0**e - values).sum()
              for e in range(-8, 5)}
    assert chosen == min(errors, key=errors.get)
    assert 7 * 2.0**chosen < np.abs(values).max()  # worth saturating a few


@pytest.mark.parametrize(("values", "signed", "exponent"), [
    ([0.0, 255.0], False, 0), ([0.0, 255.3], False, 0), ([0.0, 1.0, 0.0625], False, -7), ([-128.0, 127.0], True, 0),
    ([-1.0, 0.25], True, -7), ([0.0], False, 0), ([], True, 0),
])
def test_exponent_of_exact_values(values, signed, exponent):
    assert fit_exponent(np.asarray(values), QuantizeConfig("ternary"), signed=signed) == exponent


@pytest.mark.parametrize("fmt", [*FORMATS.values(), get_format("int11"), WeightFormat("far", (-(1 << 20), 0, 1 << 20))],
                         ids=lambda fmt: fmt.name)
def test_levels_are_those_of_the_format(fmt):
    most = 1.5 * fmt.max_magnitude
    values = np.concatenate([np.random.default_rng(0).uniform(-most, most, 4000), np.arange(-300, 300) / 4,
                             [most * 1e6, -most * 1e6, 0.0, -0.0]])
    np.testing.assert_array_equal(_Levels(fmt).nearest(values), fmt.nearest(values))


def layer_problem(seed=0, channels=24, inputs=40, samples=400, groups=1):
    """Weights and second moments of a layer; a lattice, and the lowest steps."""
    rng = np.random.default_rng(seed)
    mix = np.eye(inputs) + 0.3 * rng.standard_normal((groups, inputs, inputs))
    x = rng.standard_normal((groups, samples, inputs)) @ mix
    moment = x.swapaxes(1, 2) @ x / samples
    weights = rng.standard_normal((groups, channels, inputs))
    return weights, moment, StepLattice(2, 24, 1.0), np.zeros((groups, channels), dtype=np.int64)


def power_of(moment):
    return moment.diagonal(axis1=1, axis2=2)


def cost(weights, moment, fit, lattice):
    error = weights - fit.levels * lattice.steps[fit.index][:, :, None]
    return np.einsum("gij,gjk,gik->gi", error, moment, error)


@pytest.mark.parametrize("fmt", ["binary", "ternary", "pot3", "exp4", "int4", "int8"])
def test_compensation_beats_rounding(fmt):
    weights, moment, lattice, lowest = layer_problem()
    near = fit_nearest(weights, power_of(moment), get_format(fmt), lattice, lowest)
    made_up = fit_compensated(weights, moment, moment, get_format(fmt), lattice, lowest)
    damped = moment + 0.1 * power_of(moment).mean() * np.eye(moment.shape[1])
    assert (cost(weights, damped, made_up, lattice) <= cost(weights, damped, near, lattice)).all()
    gain = 10 * np.log10(cost(weights, moment, near, lattice).sum() / cost(weights, moment, made_up, lattice).sum())
    assert gain > (2 if fmt in ("ternary", "pot3", "exp4", "int4") else 0.2)


def test_compensation_follows_other_inputs():
    """Inputs that an earlier layer halved are doubled again by the weights."""
    weights, moment, lattice, lowest = layer_problem()
    fit = fit_compensated(weights, moment / 4, moment / 2, get_format("int8"), lattice, lowest)
    ratio = (fit.levels * lattice.steps[fit.index][:, :, None] * weights).sum() / np.square(weights).sum()
    assert 1.6 < ratio < 2.0  # damping holds some of it back


def test_nearest_step_is_the_best_of_all():
    weights, moment, lattice, lowest = layer_problem(channels=6)
    fmt, power = get_format("exp4"), power_of(moment)
    fit = fit_nearest(weights, power, fmt, lattice, lowest)
    errors = np.stack([np.square(weights[0] - fmt.nearest(weights[0] / step) * step) @ power[0]
                       for step in lattice.steps])
    assert (fit.index == errors.argmin(axis=0)).all()
    np.testing.assert_array_equal(fit.levels, fmt.nearest(weights / lattice.steps[fit.index][:, :, None]))


@pytest.mark.parametrize(("groups", "channels", "inputs"), [(5, 1, 9), (3, 4, 70), (400, 1, 100)])
def test_groups_are_fitted_each_on_its_own(groups, channels, inputs):
    weights, moment, lattice, lowest = layer_problem(0, channels, inputs, 2 * inputs, groups)
    weights *= np.geomspace(1, 100, groups)[:, None, None]
    fmt = get_format("exp4")
    near = fit_nearest(weights, power_of(moment), fmt, lattice, lowest)
    made_up = fit_compensated(weights, moment, moment, fmt, lattice, lowest) if groups < 100 else near
    for at in range(0, groups, 1 + groups // 10):
        one = slice(at, at + 1)
        alone = fit_nearest(weights[one], power_of(moment)[one], fmt, lattice, lowest[one])
        np.testing.assert_array_equal(near.levels[one], alone.levels)
        np.testing.assert_array_equal(near.index[one], alone.index)
        if groups < 100:
            alone = fit_compensated(weights[one], moment[one], moment[one], fmt, lattice, lowest[one])
            np.testing.assert_array_equal(made_up.levels[one], alone.levels)
            np.testing.assert_array_equal(made_up.index[one], alone.index)


def test_steps_stay_above_the_lowest():
    weights, moment, lattice, lowest = layer_problem()
    lowest[:] = len(lattice.steps) - 3
    for fit in (fit_nearest(weights, power_of(moment), get_format("int4"), lattice, lowest),
                fit_compensated(weights, moment, moment, get_format("int4"), lattice, lowest)):
        assert (fit.index >= lowest).all()


def test_inputs_that_never_vary():
    weights, moment, lattice, lowest = layer_problem()
    moment[:, :7] = moment[:, :, :7] = 0
    fit = fit_compensated(weights, moment, moment, get_format("int8"), lattice, lowest)
    values = fit.levels * lattice.steps[fit.index][:, :, None]
    assert np.abs(values - weights)[:, :, :7].max() < 0.05  # left as they were


def rounding_problem(fmt, *, high=np.inf):
    """A layer with ReLU whose inputs are correlated: what compensation makes of it, and the layer's outputs."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((24, 24)) / 3 + np.eye(24)
    x = (mix @ rng.standard_normal((24, 4000)))[None]
    weights, bias = rng.standard_normal((1, 10, 24)) / 8, rng.standard_normal((1, 10, 1)) - 1
    lattice, lowest = StepLattice(2, 24, 1.0), np.zeros((1, 10), dtype=np.int64)
    moment = x @ x.swapaxes(1, 2) / 4000
    fit = fit_compensated(weights, moment, moment, get_format(fmt), lattice, lowest)
    outputs = LayerOutputs(x.astype(np.float32), np.broadcast_to(bias, (1, 10, 4000)).astype(np.float32),
                           np.clip(weights @ x + bias, 0, high).astype(np.float32), 0.0, high)
    return fit, weights, outputs, get_format(fmt), lattice, lowest, np.full_like(lowest, len(lattice.steps) - 1)


@pytest.mark.parametrize("fmt", ["ternary", "pot3", "pot4", "exp4"])
def test_learned_rounding_knows_the_activation_function(fmt):
    start, weights, outputs, form, lattice, *_ = problem = rounding_problem(fmt, high=1.0)
    learned = fit_learned(*problem)

    def error(fit):
        values = fit.levels * lattice.steps[fit.index][:, :, None]
        made = np.clip(values @ outputs.inputs + outputs.base, 0, 1)
        return np.square(made - outputs.wanted).mean(axis=2) + 0.1 * np.square(outputs.inputs).mean() * np.square(
            values - weights).sum(axis=2)

    assert (error(learned) <= error(start) * (1 + 1e-5)).all()
    assert error(learned).sum() < 0.99 * error(start).sum()
    # Levels of the format, and none further than the next one.
    places = np.searchsorted(form.levels, learned.levels), np.searchsorted(form.levels, start.levels)
    assert form.holds(learned.levels) and np.abs(places[0] - places[1]).max() == 1
    assert (np.abs(learned.index - start.index) <= 1).all()
    again = fit_learned(*problem)
    assert (again.levels == learned.levels).all() and (again.index == learned.index).all()


def test_learned_rounding_keeps_steps_that_are_given():
    start, *rest = rounding_problem("pot3")
    assert (fit_learned(start, *rest[:4], start.index, start.index).index == start.index).all()


# Networks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["nearest", "gptq"])
@pytest.mark.parametrize("fmt", sorted(FORMATS))
def test_network_of_every_format(fmt, method):
    network = float_graph()
    x = inputs_of(network)
    graph, report = quantize_report(network, x, QuantizeConfig(fmt, method=method))
    assert graph.format is FORMATS[fmt] and graph.output_shape == (5,)
    assert [node.name for node in graph.nodes] == [layer.name for layer in network.layers]
    # What the quantizer saw on its way is what the golden model computes.
    tensors, real = golden.run(graph, graph.quantize_input(x)), x
    for layer, line in zip(network.layers, report.layers, strict=True):
        real = layer.run(real)
        tensor = graph.tensor(layer.name)
        got = (tensors[layer.name].astype(float) - tensor.zero_point) * 2.0**tensor.exponent
        assert line.name == layer.name and line.exponent == tensor.exponent
        assert line.output_sqnr == pytest.approx(sqnr_db(real, got), abs=1e-9)
    low = {"binary": 2, "ternary": 4, "int2": 4}.get(fmt, 9) + 3 * (method == "gptq")
    assert report.layers[-1].output_sqnr > low
    assert (report.layers[0].zeros > 0) <= graph.format.zero


@pytest.mark.parametrize("method", ["nearest", "gptq", "adaround"])
def test_deterministic(method, quick):
    network = float_graph()
    first, second = (quantize_graph(network, inputs_of(network), format="ternary", method=method) for _ in range(2))
    for a, b in zip(arrays(first), arrays(second), strict=True):
        np.testing.assert_array_equal(a, b)
    assert first.tensors == second.tensors


def test_int8_is_nearly_float():
    network = float_graph()
    x = inputs_of(network, 64)
    graph = quantize_graph(network, x, format="int8")
    fresh = inputs_of(network, 64, seed=1)
    assert sqnr_db(network.run(fresh), run(graph, fresh)) > 30


@pytest.mark.parametrize("terms", [1, 2, 3])
def test_gain_terms(terms):
    network = float_graph()
    graph, report = quantize_report(network, inputs_of(network), format="int8", gain_terms=terms)
    assert graph.gain_terms == terms
    # The weights are chosen for the gain, so that even a plain shift costs little.
    assert report.layers[-1].output_sqnr > 30
    if terms == 1:
        assert all((node.multiplier == 1).all() for node in graph.nodes)


@pytest.mark.parametrize("act_bits", [2, 4, 6])
def test_narrow_activations(act_bits):
    network = float_graph()
    graph, report = quantize_report(network, inputs_of(network), format="int8", act_bits=act_bits)
    assert graph.act_bits == act_bits
    assert report.layers[-1].output_sqnr > {2: 3, 4: 11, 6: 20}[act_bits]


def test_zero_points_and_clamps():
    network = float_graph()
    graph = quantize_graph(network, inputs_of(network), format="int4")
    zero = {tensor.name: tensor.zero_point for tensor in graph.tensors}
    assert zero == {"input": 0, "conv1": -128, "max": -128, "conv2": -128, "conv3": 0, "average": 0, "linear": 0}
    conv1, pool, conv2, conv3, *_ = graph.nodes
    assert (conv1.low, conv1.high) == (pool.low, pool.high) == (-128, 127)
    assert conv2.low == -128
    assert conv2.high == min(127, int(1.5 / 2.0 ** graph.tensor("conv2").exponent) - 128)
    one = int(2.0 ** -graph.tensor("conv3").exponent)
    assert (conv3.low, conv3.high) == (max(-128, -one), min(127, one))
    assert quantize_graph(network, inputs_of(network, positive=True), format="int4").tensor("input").zero_point == -128


def test_activation_before_the_first_layer():
    network = chain(FloatPool("relu", (1, 1), kind="max", low=0.0, high=0.5),
                    float_conv(np.random.default_rng(0), "conv", 2, 3, (3, 3)))
    x = inputs_of(network)
    graph, report = quantize_report(network, x, format="int8")
    assert report.layers[0].output_sqnr > 25
    assert report.layers[1].output_sqnr > 25
    assert graph.nodes[0].low == 0


def test_padded_pools():
    rng = np.random.default_rng(0)
    network = chain(float_conv(rng, "conv", 2, 4, (3, 3)), FloatPool("max", (3, 3), (2, 2), (1, 1, 1, 1), kind="max"),
                    FloatPool("average", (2, 2), (1, 1), (1, 0, 1, 1), kind="average", divisor=4))
    x = inputs_of(network) - 5
    graph, report = quantize_report(network, x, format="int8")
    assert min(layer.output_sqnr for layer in report.layers) > 30
    assert sqnr_db(network.run(x), run(graph, x)) == pytest.approx(report.layers[-1].output_sqnr)


@pytest.mark.parametrize("terms", [1, 2])
def test_next_convolution_absorbs_what_is_left_of_an_average(terms):
    rng = np.random.default_rng(0)
    network = chain(float_conv(rng, "a", 2, 8, (3, 3), low=0.0),
                    FloatPool("mean", (3, 3), (3, 3), kind="average", divisor=9),
                    float_conv(rng, "b", 8, 8, (1, 1), low=0.0, high=1.0), float_conv(rng, "c", 8, 8, (2, 2)))
    x = inputs_of(network)
    graph, report = quantize_report(network, x, format="int8", gain_terms=terms)
    gain = graph.nodes[1].multiplier[0] / 2.0 ** graph.nodes[1].shift[0]
    assert np.log2(gain * 9) % 1 != 0  # 1/9 is not on the lattice
    assert min(layer.output_sqnr for layer in report.layers) > 30  # and nobody notices
    assert sqnr_db(network.run(x), run(graph, x)) > 30


@pytest.mark.parametrize("terms", [1, 2])
def test_convolution_before_absorbs_it_at_the_end(terms):
    rng = np.random.default_rng(0)
    network = chain(float_conv(rng, "a", 2, 8, (3, 3), low=0.0, high=3.0), FloatPool("max", (2, 2), (1, 1), kind="max"),
                    FloatPool("mean", (5, 5), kind="average", divisor=25))
    x = inputs_of(network)
    graph = quantize_graph(network, x, format="int8", gain_terms=terms)
    assert sqnr_db(network.run(x), run(graph, x)) > 30


def test_average_with_its_own_divisor():
    rng = np.random.default_rng(0)
    network = chain(FloatPool("sum", (2, 2), (2, 2), kind="average", divisor=1), float_conv(rng, "a", 2, 8, (3, 3)))
    x = inputs_of(network)
    assert sqnr_db(network.run(x), run(quantize_graph(network, x, format="int8"), x)) > 30


def test_pools_alone():
    network = chain(FloatPool("mean", (2, 2), (2, 2), kind="average", divisor=4), FloatPool("max", (2, 2), kind="max"))
    x = inputs_of(network)
    graph = quantize_graph(network, x, format="ternary")
    assert all(isinstance(node, Pool) for node in graph.nodes)
    assert sqnr_db(network.run(x), run(graph, x)) > 30
    with pytest.raises(QuantizeError, match=r"^mean: .* no convolution in between could absorb what is left"):
        quantize_graph(chain(FloatPool("mean", (3, 3), kind="average", divisor=9)), x, format="ternary")


@pytest.mark.parametrize("fmt", ["ternary", "exp4", "int8", "binary", "pot3"])
@pytest.mark.parametrize("low", [0.0, -np.inf])
def test_dead_channels_are_exact_constants(fmt, low):
    rng = np.random.default_rng(0)
    conv = float_conv(rng, "conv", 4, 6, (2, 2), low=low)
    conv.weights[[1, 3, 4]] = 0
    conv.weights[5] *= 1e-9
    conv.bias[[1, 3, 4, 5]] = 0.0, -1.0, 1.25, 0.5
    network = chain(conv, shape=(4, 6, 6))
    x = inputs_of(network)
    graph = quantize_graph(network, x, format=fmt)
    tensor = graph.tensor("conv")
    wild = rng.integers(-128, 128, (64, 4, 6, 6)).astype(np.int8)  # constants whatever the inputs
    codes = golden.run(graph, wild)["conv"]
    for channel, value in ((1, 0.0), (3, max(-1.0, low)), (4, 1.25), (5, 0.5)):
        expected = min(127, int(np.floor(value / 2.0**tensor.exponent + 0.5)) + tensor.zero_point)
        assert (codes[:, channel] == expected).all(), channel


@pytest.mark.parametrize("fmt", ["ternary", "binary", "pot3"])
def test_dead_channels_compile(fmt):
    """Fifteen of sixteen rows of the array idle, and still no accumulator can overflow."""
    conv = float_conv(np.random.default_rng(0), "conv", 1, 4, (3, 3), low=0.0)
    conv.weights[1:] = 0
    conv.bias[1:] = 0.0, -1.0, 0.75
    network = chain(conv, shape=(1, 6, 6))
    program = compile_graph(quantize_graph(network, inputs_of(network), format=fmt), ArrayConfig(get_format(fmt)))
    assert len(program.weights)


def test_layer_of_nothing():
    network = chain(FloatConv("conv", (1, 1), weights=np.zeros((3, 2, 1, 1)), bias=np.zeros(3)))
    x = inputs_of(network)
    assert (run(quantize_graph(network, x, format="ternary"), x) == 0).all()
    assert (run(quantize_graph(network, 0 * x, format="ternary"), x) == 0).all()


def test_bias_correction_restores_the_means():
    network = float_graph()
    x = inputs_of(network, 64)
    wanted = x
    for layer in network.layers[:-1]:
        wanted = layer.run(wanted)
    wanted = network.layers[-1].linear(wanted).mean(axis=(0, 2, 3))
    off = {}
    for correct in (False, True):
        graph = quantize_graph(network, x, format="ternary", method="nearest", bias_correction=correct)
        off[correct] = np.abs(run(graph, x).mean(axis=0) - wanted).max()
    assert off[True] < 2.0 ** graph.tensor("linear").exponent
    assert off[False] > 4 * off[True]


def test_saturation_is_reported():
    network = chain(float_conv(np.random.default_rng(0), "conv", 2, 3, (3, 3)))
    x = np.random.default_rng(0).laplace(size=(64, 2, 8, 8)) ** 3
    _, report = quantize_report(network, x, format="int8", act_bits=4)
    assert 0 < report.layers[0].saturation < 0.05
    clamped = replace(network.layers[0], low=-1e-3, high=1e-3)
    assert quantize_report(chain(clamped), x, format="int8")[1].layers[0].saturation == 0


def test_report_as_text_and_data():
    network = float_graph()
    _, report = quantize_report(network, inputs_of(network), format="ternary")
    lines = str(report).splitlines()
    assert len(lines) == 7 and lines[0].split()[:2] == ["layer", "kind"] and lines[2].split()[:2] == ["max", "max"]
    data = report.to_dict()
    assert [line["kind"] for line in data] == ["conv", "max", "conv", "conv", "average", "conv"]
    assert data[1]["weight_sqnr"] is None and 0 < data[0]["zeros"] < 1


# Residuals -----------------------------------------------------------------------------------------------------------


def residual_graph(seed=0, *, big=1.0):
    """Two residual blocks, the second with a convolution beside it, an average that adds, and a sum of its own."""
    rng = np.random.default_rng(seed)
    layers = (
        float_conv(rng, "stem", 3, 8, (3, 3), padding=(1, 1, 1, 1), low=0.0),
        float_conv(rng, "a1", 8, 8, (3, 3), padding=(1, 1, 1, 1), low=0.0),
        float_conv(rng, "a2", 8, 8, (3, 3), padding=(1, 1, 1, 1), low=0.0, skip="stem"),
        float_conv(rng, "b1", 8, 12, (3, 3), padding=(1, 1, 1, 1), stride=(2, 2), low=0.0, high=2.0),
        float_conv(rng, "b2", 12, 12, (3, 3), padding=(1, 1, 1, 1)),
        float_conv(rng, "down", 8, 12, (1, 1), stride=(2, 2), low=0.0, input="a2", skip="b2"),
        FloatPool("max", (3, 3), (1, 1), (1, 1, 1, 1), kind="max"),
        FloatPool("sum", (1, 1), kind="average", skip="b1", low=-1.0),
        float_conv(rng, "c", 12, 12, (1, 1), low=0.0),
        FloatPool("mean", (3, 3), (1, 1), (1, 1, 1, 1), kind="average", divisor=9, skip="sum"),
        float_conv(rng, "linear", 12, 5, (6, 4)),
    )
    layers[4].weights[:] *= big
    return FloatGraph((3, 12, 8), layers, (5,))


def check_exact(network, x, graph, report):
    """What the quantizer saw on its way is what the golden model computes, and what fake quantization does."""
    tensors = golden.run(graph, graph.quantize_input(x))
    lines = {line.name: line for line in report.layers}
    for layer, real in network.outputs(network.as_input(x)):
        tensor = graph.tensor(layer.name)
        got = (tensors[layer.name].astype(float) - tensor.zero_point) * 2.0**tensor.exponent
        factor = (real * got).sum() / np.square(got).sum() if got.any() else 1.0
        assert abs(np.log2(factor)) < 1
        if not isinstance(layer, FloatConcat):
            assert lines[layer.name].exponent == tensor.exponent
            if tensor.name == graph.output:
                assert lines[layer.name].output_sqnr == pytest.approx(sqnr_db(real, got), abs=1e-9)
    fake = FakeQuant(graph).codes(torch.from_numpy(x))
    for name, array in tensors.items():
        np.testing.assert_array_equal(fake[name].numpy(), array, err_msg=name)


@pytest.mark.parametrize("fmt", ["ternary", "pot3", "exp4", "int8"])
@pytest.mark.parametrize("terms", [1, 2])
def test_residuals(fmt, terms):
    network = residual_graph()
    x = inputs_of(network)
    graph, report = quantize_report(network, x, format=fmt, gain_terms=terms)
    assert [node.skip for node in graph.nodes[:7]] == [None, None, "stem", None, None, "b2", None]
    assert {graph.nodes[7].input, graph.nodes[7].skip} == {"b1", "max"} and graph.nodes[9].skip == "sum"
    check_exact(network, x, graph, report)
    assert report.layers[-1].output_sqnr > {"ternary": 4, "pot3": 8, "exp4": 13, "int8": 25}[fmt]
    pe = "multiplier" if fmt == "int8" else "shift"
    assert compile_graph(graph, ArrayConfig(get_format(fmt), rows=4, cols=4, gain_terms=terms, pe=pe)).layers


@pytest.mark.parametrize("big", [1e-3, 1.0, 100.0, 1e4])
def test_operands_of_very_different_size(big):
    """The scale of what is added follows the sum's where that is much coarser."""
    network = residual_graph(big=big)
    x = inputs_of(network)
    graph, report = quantize_report(network, x, format="int8")
    assert all(0 <= graph.skip_drop(node) <= 3 for node in graph.nodes)
    check_exact(network, x, graph, report)
    assert report.layers[-1].output_sqnr > 20
    small = replace(network.layers[5], weights=network.layers[5].weights / big, bias=network.layers[5].bias / big)
    network = replace(network, layers=(*network.layers[:5], small, *network.layers[6:]))
    graph, report = quantize_report(network, x, format="int8")
    check_exact(network, x, graph, report)


@pytest.mark.parametrize("seed", range(10))
def test_random_residual_networks(seed):
    """Layers that keep the shape, each reading and adding anything before it, of any size."""
    rng = np.random.default_rng(seed)
    names, layers = [INPUT], []
    for at in range(7):
        source, skip = names[-1 - int(rng.integers(0, min(2, len(names))))], names[rng.integers(len(names))]
        options = {"input": source, "low": rng.choice([-np.inf, 0.0]), "skip": skip if rng.random() < 0.6 else None}
        name, size = f"l{at}", 2.0 ** rng.integers(-3, 4)
        match rng.integers(4):
            case 0:
                layers.append(FloatPool(name, (1, 1), kind="average", **options))
            case 1 if options["skip"] is None:
                layers.append(FloatPool(name, (3, 3), padding=(1, 1, 1, 1), kind="max", **options))
            case _:
                layer = float_conv(rng, name, 3, 3, (3, 3), padding=(1, 1, 1, 1), **options)
                layers.append(replace(layer, weights=layer.weights * size))
        names.append(name)
    network = FloatGraph((3, 6, 5), tuple(layers), (3, 6, 5))
    x = inputs_of(network)
    graph, report = quantize_report(network, x, format="int8", method="nearest")
    check_exact(network, x, graph, report)
    assert report.layers[-1].output_sqnr > 12


@pytest.mark.parametrize("fmt", ["ternary", "pot3"])
def test_dead_channels_let_residuals_through(fmt):
    rng = np.random.default_rng(0)
    conv = float_conv(rng, "conv", 4, 4, (1, 1), skip=INPUT)
    conv.weights[1:] = 0
    conv.bias[1:] = 0.0, 1.5, -2.0
    network = chain(conv, shape=(4, 6, 6))
    x = inputs_of(network)
    graph, report = quantize_report(network, x, format=fmt)
    check_exact(network, x, graph, report)
    step = 2.0 ** graph.tensor("conv").exponent
    seen = graph.quantize_input(x) * 2.0 ** graph.tensor("input").exponent
    wanted = np.clip(network.run(seen), -128 * step, 127 * step)
    assert np.abs(run(graph, x) - wanted)[:, 1:].max() <= (1 if fmt == "pot3" else 0.5) * step


def test_averages_at_two_scales_are_refused():
    """Added as it is, and added after an average whose gain the lattice lacks: no convolution can serve both."""
    rng = np.random.default_rng(0)
    network = chain(
        float_conv(rng, "a", 2, 2, (1, 1)), FloatPool("mean", (3, 3), padding=(1, 1, 1, 1), kind="average", divisor=9),
        FloatPool("sum", (1, 1), kind="average", skip="a"))
    with pytest.raises(QuantizeError, match=r"^sum: it is added, averaged or returned at two scales"):
        quantize_graph(network, inputs_of(network), format="int8")
    first = replace(network.layers[1], input=INPUT)
    network = chain(first, FloatPool("sum", (1, 1), kind="average", skip=INPUT))
    with pytest.raises(QuantizeError, match=r"^sum: it is added"):
        quantize_graph(network, inputs_of(network), format="int8")


# Groups --------------------------------------------------------------------------------------------------------------


def separable_graph(seed=0):
    """Depthwise and grouped convolutions: strides, dilation, uneven padding, two outputs of an input, a residual."""
    rng = np.random.default_rng(seed)
    layers = (
        float_conv(rng, "stem", 3, 8, (3, 3), padding=(0, 0, 1, 1), stride=(2, 2), low=0.0),
        float_conv(rng, "dw1", 8, 8, (3, 3), padding=(1, 1, 1, 1), groups=8, low=0.0, high=6.0),
        float_conv(rng, "pw1", 8, 12, (1, 1), low=0.0),
        float_conv(rng, "dw2", 12, 12, (3, 2), padding=(2, 0, 2, 1), dilation=(2, 1), groups=12, skip="pw1"),
        float_conv(rng, "grouped", 12, 8, (2, 2), groups=4, low=0.0),
        float_conv(rng, "wide", 8, 16, (1, 1), groups=8, low=0.0),
        float_conv(rng, "linear", 16, 5, (5, 3)),
    )
    return FloatGraph((3, 12, 8), layers, (5,))


@pytest.mark.parametrize("method", ["nearest", "gptq"])
@pytest.mark.parametrize("fmt", ["binary", "ternary", "pot3", "exp4", "int8"])
def test_groups(fmt, method):
    network = separable_graph()
    x = inputs_of(network)
    graph, report = quantize_report(network, x, format=fmt, method=method)
    assert [node.groups for node in graph.nodes] == [1, 8, 1, 12, 4, 8, 1]
    assert [node.weights.shape for node in graph.nodes] == [layer.weights.shape for layer in network.layers]
    check_exact(network, x, graph, report)
    assert report.layers[-1].output_sqnr > {"binary": 1, "ternary": 2, "pot3": 8, "exp4": 13, "int8": 25}[fmt]


def test_channels_of_a_depthwise_layer_have_gains_of_their_own():
    rng = np.random.default_rng(0)
    conv = float_conv(rng, "conv", 6, 6, (3, 3), groups=6, bias=0.0)
    conv.weights[:] *= np.geomspace(0.1, 10, 6)[:, None, None, None]
    network = chain(conv, shape=(6, 8, 8))
    graph, report = quantize_report(network, inputs_of(network), format="ternary")
    gains = graph.nodes[0].multiplier / 2.0 ** graph.nodes[0].shift
    assert (gains[1:] > gains[:-1]).all() and gains[-1] > 30 * gains[0] and report.layers[0].weight_sqnr > 6


def test_compensation_helps_depthwise_layers():
    network = separable_graph()
    x = inputs_of(network, 64)
    near, made_up = (quantize_report(network, x, format="pot3", method=method)[1].layers[-1].output_sqnr
                     for method in ("nearest", "gptq"))
    assert made_up > near + 1


# Concatenations ------------------------------------------------------------------------------------------------------


def fire_graph(seed=0):
    """Branches of unlike size and sign that are concatenated: convolutions, pools, an input, a concatenation."""
    rng = np.random.default_rng(seed)
    layers = (
        float_conv(rng, "stem", 3, 8, (3, 3), padding=(1, 1, 1, 1), low=0.0),
        float_conv(rng, "left", 8, 4, (1, 1), input="stem", low=0.0),
        float_conv(rng, "right", 8, 6, (3, 3), padding=(1, 1, 1, 1), input="stem"),
        FloatConcat("both", ("left", "right")),
        FloatPool("max", (3, 3), padding=(1, 1, 1, 1), kind="max", input="stem"),
        FloatConcat("all", ("max", "both", INPUT)),
        float_conv(rng, "mix", 21, 8, (1, 1), low=0.0, input="all"),
        FloatPool("mean", (3, 3), (1, 1), (1, 1, 1, 1), kind="average", divisor=9),
        float_conv(rng, "side", 8, 8, (1, 1), input="mix", low=0.0),
        FloatConcat("averaged", ("mean", "side")),
        FloatPool("pool", (12, 8), kind="average", divisor=96),
        float_conv(rng, "linear", 16, 5, (1, 1)),
    )
    layers[1].weights[:] *= 0.5
    layers[2].weights[:] *= 1.5
    return FloatGraph((3, 12, 8), layers, (5,))


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("fmt", ["ternary", "exp4", "int8"])
def test_concatenations(fmt, terms):
    network = fire_graph()
    x = inputs_of(network)
    graph, report = quantize_report(network, x, format=fmt, gain_terms=terms)
    # All parts have the scale of the largest, and codes for the negative numbers of any.
    assert [node.inputs for node in graph.nodes if isinstance(node, Concat)] == [
        ("left", "right"), ("max", "both", "input"), ("mean", "side")]
    names = {"input", "left", "right", "both", "stem", "max", "all"}
    assert {(graph.tensor(name).exponent, graph.tensor(name).zero_point) for name in names} == {
        (graph.tensor("right").exponent, 0)}
    assert {graph.tensor(name).zero_point for name in ("mean", "side", "averaged")} == {-128}
    check_exact(network, x, graph, report)
    assert report.layers[-1].output_sqnr > {"ternary": 4, "exp4": 13, "int8": 25}[fmt]
    assert [line.name for line in report.layers] == [node.name for node in graph.computing]


@pytest.mark.parametrize("terms", [1, 2])
def test_parts_whose_scales_contradict_each_other_are_copied(terms):
    """The average of a tensor has a factor that no convolution can give both, and the copy almost takes it back."""
    rng = np.random.default_rng(0)
    layers = (
        float_conv(rng, "a", 2, 8, (3, 3), low=0.0),
        FloatPool("mean", (3, 3), padding=(1, 1, 1, 1), kind="average", divisor=9),
        FloatConcat("cat", ("a", "mean")),
        float_conv(rng, "b", 16, 4, (6, 6)),
    )
    network = FloatGraph((2, 8, 8), layers, (4, 1, 1))
    x = inputs_of(network)
    graph, report = quantize_report(network, x, format="int8", gain_terms=terms)
    assert graph.nodes[2].name == "mean.copy" and graph.nodes[3].inputs == ("a", "mean.copy")
    copy = graph.nodes[2]
    assert isinstance(copy, Pool) and copy.kernel == (1, 1)
    codes = golden.run(graph, graph.quantize_input(x))
    for (name, array), fake in zip(codes.items(), FakeQuant(graph).codes(torch.from_numpy(x)).values(), strict=True):
        np.testing.assert_array_equal(fake.numpy(), array, err_msg=name)
    assert report.layers[-1].output_sqnr > (20 if terms == 1 else 30)


def test_parts_whose_scales_chase_each_other_are_copied():
    """The gain of a convolution has no room for its scale to be that of what it reads."""
    weights = np.asarray([[[[400.0]], [[-399.0]]]])
    network = FloatGraph((2, 8, 8), (
        FloatConv("conv", (1, 1), weights=weights, bias=np.zeros(1)), FloatConcat("cat", (INPUT, "conv"))), (3, 8, 8))
    x = np.repeat(inputs_of(network, 16)[:, :1], 2, axis=1)
    graph = quantize_graph(network, x, format="ternary", method="nearest")
    assert [node.name for node in graph.nodes] == ["conv", "input.copy", "conv.copy", "cat"]
    assert graph.nodes[0].shift[0] == 0 and graph.tensor("conv").exponent > graph.tensor("input").exponent
    assert graph.tensor("input.copy").exponent == graph.tensor("cat").exponent


@pytest.mark.parametrize("seed", range(10))
def test_random_networks_of_everything(seed):
    """Layers that keep the size, each reading, adding and concatenating anything before it."""
    rng = np.random.default_rng(seed)
    channels, layers = {INPUT: 3}, []
    for at in range(9):
        names, name = list(channels), f"l{at}"
        source, skip = names[-1 - int(rng.integers(0, min(3, len(names))))], names[rng.integers(len(names))]
        options = {"input": source, "low": rng.choice([-np.inf, 0.0]), "padding": (1, 1, 1, 1)}
        channels[name] = channels[source]
        match rng.integers(5):
            case 0:
                layers.append(FloatPool(name, (3, 3), kind="max", **options))
            case 1 if source != skip:
                layers.append(FloatConcat(name, (source, skip)))
                channels[name] += channels[skip]
            case 2:
                if channels[skip] == channels[source]:
                    options["skip"] = skip
                layers.append(float_conv(rng, name, channels[source], channels[source], (3, 3),
                                         groups=channels[source], **options))
            case _:
                channels[name] = int(rng.integers(1, 8))
                layers.append(float_conv(rng, name, channels[source], channels[name], (3, 3), **options))
                layers[-1].weights[:] *= 2.0 ** rng.integers(-2, 3)
    network = FloatGraph((3, 6, 5), tuple(layers), (channels["l8"], 6, 5))
    x = inputs_of(network)
    graph, report = quantize_report(network, x, format="int8", method="nearest", formats={"l[135]": "exp5"})
    check_exact(network, x, graph, report)
    last = graph.tensor(graph.output)
    got = golden.run(graph, graph.quantize_input(x))[graph.output].astype(float) - last.zero_point
    assert sqnr_db(network.run(x), got * 2.0**last.exponent) > 12


# Formats -------------------------------------------------------------------------------------------------------------


def test_formats_of_layers():
    network = float_graph()
    x = inputs_of(network)
    graph, report = quantize_report(network, x, format="ternary", formats={"conv1": "int8", "*near": "int8"})
    assert [graph.format_of(node).name for node in graph.nodes if isinstance(node, Conv)] == [
        "int8", "ternary", "ternary", "int8"]
    assert graph.format.name == "ternary" and graph.nodes[2].format is None
    check_exact(network, x, graph, report)
    plain = quantize_report(network, x, format="ternary")[1]
    assert report.layers[0].weight_sqnr > 30 > plain.layers[0].weight_sqnr
    assert report.layers[-1].output_sqnr > plain.layers[-1].output_sqnr + 2


def test_the_first_pattern_decides():
    config = QuantizeConfig("ternary", formats={"conv?": "int4", "conv1": "int8", "linear": get_format("ternary")})
    network = float_graph()
    graph = quantize_graph(network, inputs_of(network), config)
    assert [None if node.format is None else node.format.name for node in graph.nodes if isinstance(node, Conv)] == [
        "int4", "int4", "int4", None]


def test_patterns_that_match_nothing_are_refused():
    network = float_graph()
    with pytest.raises(QuantizeError, match=r"^No layer with weights has a name like 'fc'; there are conv1, conv2, "):
        quantize_graph(network, inputs_of(network), format="ternary", formats={"conv1": "int8", "fc": "int8"})
    with pytest.raises(QuantizeError, match="name like 'max'"):
        quantize_graph(network, inputs_of(network), format="ternary", formats={"max": "int8"})


@pytest.mark.parametrize("fmt", ["binary", "pot3", "ternary", "exp4"])
@pytest.mark.parametrize("method", ["nearest", "gptq"])
def test_channels_that_only_pass_are_exact(fmt, method):
    """As in a shortcut without weights: channels in other places, and zeros."""
    weights = np.zeros((6, 3, 1, 1))
    weights[[1, 2, 5], [2, 0, 1]] = 1
    network = chain(FloatConv("pass", (1, 1), (2, 2), weights=weights, bias=np.zeros(6)), shape=(3, 6, 6))
    x = inputs_of(network)
    graph = quantize_graph(network, x, format=fmt, method=method)
    codes = golden.run(graph, graph.quantize_input(x))
    np.testing.assert_array_equal(codes["pass"][:, [1, 2, 5]], codes["input"][:, [2, 0, 1], ::2, ::2])
    assert (codes["pass"][:, [0, 3, 4]] == 0).all()
    assert graph.nodes[0].format is (None if graph.format.zero else get_format("ternary"))


# AdaRound, and steps by rule -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [float_graph, separable_graph])
@pytest.mark.parametrize(("fmt", "bias_correction"), [("binary", True), ("ternary", False), ("exp5", True)])
def test_adaround_goes_on_from_gptq(make, fmt, bias_correction, quick):
    network = make()
    x = inputs_of(network)
    graph, report = quantize_report(network, x, format=fmt, method="adaround", bias_correction=bias_correction)
    check_exact(network, x, graph, report)
    _, before = quantize_report(network, x, format=fmt, method="gptq", bias_correction=bias_correction)
    assert report.layers[0].output_sqnr > before.layers[0].output_sqnr - 0.2
    assert report.layers[-1].output_sqnr > before.layers[-1].output_sqnr - 2  # at two bits anything goes


def steps_of(graph, name):
    """The worth of level 1 of a layer's channels."""
    node = next(node for node in graph.nodes if node.name == name)
    octaves = graph.tensor(node.output).exponent - graph.tensor(node.input).exponent
    return node.multiplier * 2.0 ** (octaves - node.shift)


@pytest.mark.parametrize("method", ["nearest", "gptq", "adaround"])
@pytest.mark.parametrize(("fmt", "rule"), [("int4", "range"), ("ternary", "mean"), ("exp4", "correlation"),
                                           ("int6", "laplacian")])
def test_steps_by_rule(fmt, rule, method, quick):
    network = float_graph()
    x = inputs_of(network)
    graph, report = quantize_report(network, x, format=fmt, steps=rule, method=method)
    check_exact(network, x, graph, report)
    weights = network.layers[0].weights.reshape(12, -1)
    wanted = scalar_steps(weights, get_format(fmt), rule)
    assert np.abs(np.log2(steps_of(graph, "conv1") / wanted)).max() <= 0.21  # the next gain of two terms
    assert report.layers[-1].output_sqnr > 4


@pytest.mark.parametrize("bits", [9, 12, 16])
def test_laplacian_rule_on_the_array(bits):
    """Weights of 9 to 16 bits with the support for Laplacian ones run by planes; more bits are more exact."""
    rng = np.random.default_rng(0)
    conv = FloatConv("conv", (3, 3), weights=rng.laplace(size=(4, 6, 3, 3)) / 16, bias=np.zeros(4), low=0.0)
    network = chain(conv, FloatConv("fc", (6, 6), weights=rng.laplace(size=(4, 4, 6, 6)) / 16, bias=np.zeros(4)),
                    shape=(6, 8, 8))
    x = inputs_of(network)
    graph, report = quantize_report(network, x, format=f"int{bits}", steps="laplacian", method="nearest", acc_bits=32)
    deviation = np.sqrt(np.square(conv.weights.reshape(4, -1)).mean(axis=1))
    wanted = laplacian_support(bits) * deviation * 2.0 ** (1 - bits)
    assert np.abs(np.log2(steps_of(graph, "conv") / wanted)).max() <= 0.21
    assert report.layers[0].weight_sqnr > 30
    check_exact(network, x, graph, report)
    compile_graph(graph, ArrayConfig("ternary", rows=4, cols=4, acc_bits=32))


def test_binary_with_powers_of_two():
    """XNOR's scale, the mean magnitude, as the power of two that is nearest."""
    network = float_graph()
    graph = quantize_graph(network, inputs_of(network), format="binary", steps="mean", gain_terms=1)
    scale = np.abs(network.layers[0].weights).mean(axis=(1, 2, 3))
    assert steps_of(graph, "conv1") == pytest.approx(2.0 ** np.floor(np.log2(scale) + 0.5))


@pytest.mark.parametrize("quantizer", [APoT(3), APoT(4), APoT(5), DeepShift(4), INQ(4), LogNet(4)], ids=repr)
def test_published_levels_as_formats(quantizer):
    network = float_graph()
    x = inputs_of(network)
    weights = network.layers[0].weights
    fmt = exact_format("published", quantizer.fit(weights / np.abs(weights).max()))
    graph, report = quantize_report(network, x, format=fmt)
    check_exact(network, x, graph, report)
    assert report.layers[-1].output_sqnr > 12
    compile_graph(graph, ArrayConfig(fmt, rows=4, cols=4))


# Accumulators --------------------------------------------------------------------------------------------------------


def test_sums_fit_for_any_input():
    network = float_graph()
    graph = quantize_graph(network, inputs_of(network), format="int8", acc_bits=20)
    rng = np.random.default_rng(0)
    for node in graph.nodes:
        shape = (200, *graph.tensor(node.input).shape)
        codes = rng.choice(np.asarray([-128, 127], np.int8), shape)
        acc = golden.accumulators(graph, node, codes)
        assert np.abs(acc).max() < 1 << 19
        assert np.abs(acc + node.bias[:, None, None]).max() < 1 << 19
        assert node.shift.max() <= 20


def test_narrow_accumulator_is_refused():
    network = float_graph()
    message = r"^conv1: sums reach \d{4}, more than acc_bits = 12 holds; acc_bits = 13 would do$"
    with pytest.raises(QuantizeError, match=message):
        quantize_graph(network, inputs_of(network), format="ternary", acc_bits=12)
    with pytest.raises(QuantizeError, match=r"^conv2: .*; acc_bits = 14 would do$"):
        quantize_graph(network, inputs_of(network), format="ternary", acc_bits=13)
    quantize_graph(network, inputs_of(network), format="ternary", acc_bits=14)


@pytest.mark.parametrize("method", ["nearest", "gptq", "adaround"])
def test_integers_have_coarser_steps_where_sums_would_not_fit(method, quick):
    network = float_graph()
    x = inputs_of(network)
    wide, report = quantize_report(network, x, format="int8", method=method)
    graph, narrow = quantize_report(network, x, format="int8", method=method, acc_bits=18)
    check_exact(network, x, graph, narrow)
    largest = [np.abs(node.weights).max() for node in graph.nodes if isinstance(node, Conv)]
    assert min(largest) < 100 < np.abs(wide.nodes[0].weights).max()
    assert report.layers[-1].output_sqnr - 8 < narrow.layers[-1].output_sqnr
    with pytest.raises(QuantizeError, match=r"^conv\d: sums reach .* acc_bits = 14 holds; acc_bits = \d\d would do$"):
        quantize_graph(network, x, format="int8", method=method, acc_bits=14)


@pytest.mark.parametrize("fmt", ["ternary", "pot3", "int8"])
def test_large_bias_on_small_weights(fmt):
    rng = np.random.default_rng(0)
    conv = float_conv(rng, "conv", 8, 4, (3, 3))
    conv.weights[:] *= np.asarray([1, 1e-2, 1e-4, 1e-6])[:, None, None, None]
    conv.bias[:] = 1.0, 50.0, 50.0, -50.0
    network = chain(conv, shape=(8, 6, 6))
    x = inputs_of(network)
    graph = quantize_graph(network, x, format=fmt, acc_bits=20)
    assert np.abs(graph.nodes[0].bias).max() < 1 << 19
    assert sqnr_db(network.run(x), run(graph, x)) > 30


def test_gains_beyond_the_lattice_move_the_scale():
    weights = np.asarray([[[[400.0]], [[-399.0]]]])
    network = chain(FloatConv("conv", (1, 1), weights=weights, bias=np.zeros(1), low=-1.0, high=1.0))
    x = np.repeat(inputs_of(network, 16)[:, :1], 2, axis=1)
    graph = quantize_graph(network, x, format="ternary", method="nearest")
    assert graph.nodes[0].shift[0] == 0


def test_large_average_is_refused():
    network = chain(FloatPool("mean", (20, 20), kind="average", divisor=400), shape=(1, 20, 20))
    with pytest.raises(QuantizeError, match="mean: a sum of 400 codes of 8 bits does not fit acc_bits = 16"):
        quantize_graph(network, inputs_of(network), format="ternary", acc_bits=16)


# Calling it ----------------------------------------------------------------------------------------------------------


def small_module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def test_modules_and_tensors():
    module, x = small_module(), torch.rand(16, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    graph = quantize_graph(module, x.requires_grad_(), QuantizeConfig("int8"))
    with torch.no_grad():
        assert sqnr_db(module(x).double().numpy(), run(graph, x.detach().numpy())) > 30


def test_features():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(32, 6)
    graph = quantize_graph(module, x, format="int8")
    with torch.no_grad():
        assert sqnr_db(module(x).double().numpy(), run(graph, x.numpy().reshape(32, 6, 1, 1))) > 25


def test_sequences():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv1d(3, 6, 5, stride=2), nn.BatchNorm1d(6), nn.ReLU(), nn.MaxPool1d(2),
                           nn.Conv1d(6, 6, 3, padding="same", groups=6), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
                           nn.Linear(6, 4)).eval()
    x = torch.randn(32, 3, 40)
    graph = quantize_graph(module, x, format="int8")
    assert graph.tensor("input").shape == (3, 1, 40)
    with torch.no_grad():
        assert sqnr_db(module(x).double().numpy(), run(graph, x.numpy()[:, :, None])) > 25


def test_choices_change_a_configuration():
    network = float_graph()
    config = QuantizeConfig("ternary", gain_terms=1)
    graph = quantize_graph(network, inputs_of(network), config, format="int4")
    assert (graph.format.name, graph.gain_terms) == ("int4", 1)


def test_layer_named_like_the_input():
    network = chain(float_conv(np.random.default_rng(0), "input", 2, 3, (1, 1)))
    graph = quantize_graph(network, inputs_of(network), format="ternary")
    assert (graph.input, graph.output) == ("input_", "input")


def test_few_samples():
    network = float_graph()
    graph = quantize_graph(network, inputs_of(network, 1), format="ternary")
    assert np.isfinite(run(graph, inputs_of(network, 4))).all()


@pytest.mark.parametrize(("choices", "message"), [
    ({"format": "int17"}, "Unknown weight format 'int17'; known: binary, ternary"),
    ({"format": 4}, "Format must be a WeightFormat or the name of one, not 4"),
    ({"format": "int4", "gain_terms": 4}, "Number of gain terms must be 1, 2 or 3, not 4"),
    ({"format": "int4", "act_bits": 9}, r"act_bits must be an integer in 2\.\.8, not 9"),
    ({"format": "int4", "acc_bits": 8.5}, r"acc_bits must be an integer in 12\.\.32, not 8.5"),
    ({"format": "int4", "method": "worst"}, "Method must be one of nearest, gptq, adaround, best, not 'worst'"),
    ({"format": "int4", "steps": "best"}, "Steps must be one of error, correlation, range, mean, laplacian, not 'b"),
])
def test_impossible_choices(choices, message):
    with pytest.raises(QuantizeError, match=message):
        QuantizeConfig(**choices)


@pytest.mark.parametrize(("samples", "message"), [
    (np.zeros((0, 3, 12, 8)), r"must be \(N, C, H, W\), \(N, C, L\) or \(N, features\), not \(0, 3, 12, 8\)"),
    (np.zeros(7), r"must be \(N, C, H, W\)"),
    (np.zeros((4, 3, 8, 12)), r"must be \(samples, 3, 12, 8\), not \(4, 3, 8, 12\)"),
    (np.full((4, 3, 12, 8), np.nan), "finite"),
])
def test_wrong_calibration(samples, message):
    with pytest.raises(QuantizeError, match=message):
        quantize_graph(float_graph(), samples, format="ternary")


def test_weights_that_are_not_numbers():
    network = chain(float_conv(np.random.default_rng(0), "conv", 2, 3, (1, 1)))
    network.layers[0].weights[0, 0] = np.inf
    with pytest.raises(QuantizeError, match="conv: weights and biases must be finite"):
        quantize_graph(network, np.zeros((2, 2, 8, 8)), format="ternary")


def test_too_many_inputs_for_moments():
    network = chain(FloatConv("fc", (2, 2), weights=np.ones((1, 3000, 2, 2)), bias=np.zeros(1)), shape=(3000, 2, 2))
    with pytest.raises(QuantizeError, match=r"^fc: .* takes at most 10240 inputs .*, not 12000; use"):
        quantize_graph(network, inputs_of(network, 2), format="ternary")
    quantize_graph(network, inputs_of(network, 2), format="ternary", method="nearest")


# Choices of method, calibration and equalisation ------------------------------------------------------------------


def depthwise_graph(seed=0):
    """A depthwise network whose channels differ in size by up to 60 times, as those of trained ones do."""
    rng = np.random.default_rng(seed)
    spread = np.exp(rng.uniform(0, 4, 12))
    first = float_conv(rng, "conv", 3, 12, (3, 3), padding=(1, 1, 1, 1), low=0.0)
    first = replace(first, weights=first.weights * spread[:, None, None, None], bias=first.bias * spread)
    last = float_conv(rng, "point", 12, 8, (1, 1), bias=0.0)
    return chain(
        first,
        float_conv(rng, "depth", 12, 12, (3, 3), padding=(1, 1, 1, 1), groups=12, low=0.0),
        FloatPool("max", (2, 2), (2, 2), kind="max"),
        replace(last, weights=last.weights / spread[:, None, None]), shape=(3, 8, 8))


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_equalized_network_computes_the_same(strength):
    network = depthwise_graph()
    x = inputs_of(network)
    np.testing.assert_allclose(equalize(network, x, strength=strength).run(x), network.run(x), rtol=1e-9, atol=1e-9)


def test_equalization_evens_out_channels_and_saves_accuracy():
    network = depthwise_graph()
    x, others = inputs_of(network, 64), inputs_of(network, 64, seed=1)

    def unevenness(graph):
        sizes = [np.sqrt(np.square(value).mean(axis=(0, 2, 3))) for _, value in graph.outputs(x)]
        return [float(size.max() / size.min()) for size in sizes[:3]]

    before, after = unevenness(network), unevenness(equalize(network, x, strength=1.0))
    assert all(new < old / 4 for new, old in zip(after, before, strict=True))
    graphs = [quantize_graph(network, x, format="int8", equalization=strength) for strength in (0.0, 1.0)]
    plain, even = (sqnr_db(network.run(others), run(graph, others)) for graph in graphs)
    assert even > plain + 3


def test_equalization_leaves_alone_what_would_not_commute():
    """Clamps from above, tensors that are added or returned."""
    rng = np.random.default_rng(0)
    for options in ({"low": 0.0, "high": 1.0}, {"low": -1.0}):
        network = chain(float_conv(rng, "a", 2, 4, (1, 1), **options), float_conv(rng, "b", 4, 4, (1, 1)))
        assert all((old.weights == new.weights).all() for old, new in zip(
            network.layers, equalize(network, inputs_of(network)).layers, strict=True))
    network = chain(float_conv(rng, "a", 2, 4, (1, 1), low=0.0), float_conv(rng, "b", 4, 4, (1, 1), low=0.0),
                    float_conv(rng, "c", 4, 4, (1, 1), skip="a"))
    equal = equalize(network, inputs_of(network), strength=1.0)
    assert (network.layers[0].weights == equal.layers[0].weights).all()
    assert not (network.layers[1].weights == equal.layers[1].weights).all()
    with pytest.raises(ValueError, match=r"Strength must be in 0\.\.1, not 2"):
        equalize(network, inputs_of(network), strength=2)


def test_scales_of_activations_by_percentile_and_maximum():
    values = np.concatenate([np.random.default_rng(0).uniform(0, 1, 9990), np.full(10, 100.0)])
    exponents = [fit_exponent(values, QuantizeConfig("int4", activations=rule, percentile=99.0), signed=False)
                 for rule in ("percentile", "error", "max")]
    assert exponents == sorted(exponents)
    assert 255 * 2.0 ** exponents[0] >= 0.99 > 255 * 2.0 ** (exponents[0] - 1)
    assert 255 * 2.0 ** exponents[2] >= 100 > 255 * 2.0 ** (exponents[2] - 1)
    # Zeros say nothing about the scale of the others.
    more = np.concatenate([values, np.zeros(100_000)])
    assert fit_exponent(more, QuantizeConfig("int4", activations="percentile", percentile=99.0),
                        signed=False) == exponents[0]
    assert fit_exponent(np.zeros(5), QuantizeConfig("int4", activations="percentile"), signed=False) == 0


def test_best_method_is_chosen_by_its_effect_on_other_inputs(quick):
    """With few inputs, error compensation follows their noise: the choice must not do worse than either by much."""
    network = float_graph(3)
    others = inputs_of(network, 64, seed=1)
    for samples in (12, 48):
        x = inputs_of(network, samples)
        graphs = {method: quantize_graph(network, x, format="pot4", method=method)
                  for method in ("nearest", "gptq", "adaround", "best")}
        found = {method: sqnr_db(network.run(others), run(graph, others)) for method, graph in graphs.items()}
        assert found["best"] > max(found["nearest"], found["gptq"]) - 1, found
    again = [quantize_graph(network, x, format="pot4", method="best") for _ in range(2)]
    assert all((one == other).all() for one, other in zip(*map(arrays, again), strict=True))


def test_best_method_with_a_single_input():
    network = float_graph()
    assert quantize_graph(network, inputs_of(network, 1), format="ternary", method="best").nodes


def test_wide_formats_use_coarser_steps_where_sums_would_not_fit():
    rng = np.random.default_rng(0)
    network = chain(float_conv(rng, "wide", 4096, 4, (1, 1)), shape=(4096, 1, 1))
    x = np.abs(inputs_of(network, 64))
    graph = quantize_graph(network, x, format="exp5", method="nearest", acc_bits=24)
    assert sqnr_db(network.run(x), run(graph, x)) > 20
