"""Attribution: the figures of every layer, against the quantizer's own and against doing it by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nomul.frontend import INPUT, FloatConcat, FloatConv, FloatGraph, FloatPool
from nomul.graph import Conv, Graph
from nomul.quantize import LayerReport, QuantizeConfig, QuantizeError, QuantizeReport, quantize, quantize_report
from nomul.quantize import attribution as module
from nomul.quantize.attribution import (
    Attribution,
    LayerAttribution,
    attribute,
    channel_steps,
    real_conv,
    unit_values,
)
from nomul.quantize.report import sqnr_db
from nomul_sim import golden

pytestmark = pytest.mark.usefixtures("one_thread")


def conv(rng, name, inputs, outputs, kernel=3, **options):
    weights = rng.standard_normal((outputs, inputs, kernel, kernel)) / np.sqrt(inputs * kernel**2)
    padding = (kernel // 2,) * 4
    return FloatConv(name, (kernel, kernel), padding=padding, weights=weights,
                     bias=0.3 * rng.standard_normal(outputs), **options)


def branched(seed=0):
    """Residual, concatenation, a maximum, and averages over nine that gains of two terms cannot express."""
    rng = np.random.default_rng(seed)
    layers = (
        conv(rng, "stem", 3, 8, low=0.0),
        FloatPool("max", (2, 2), (2, 2), kind="max"),
        conv(rng, "body", 8, 8, skip="max", low=0.0),
        FloatPool("nine", (3, 3), padding=(1, 1, 1, 1), kind="average", divisor=9),
        conv(rng, "side", 8, 4, 1, input="max"),
        FloatConcat("both", ("nine", "side")),
        conv(rng, "late", 12, 6, low=0.0, high=2.0),
        FloatPool("all", (6, 6), kind="average", divisor=36),
        conv(rng, "head", 6, 5, 1),
    )
    return FloatGraph((3, 12, 12), layers, (5,))


def mean_at_the_end(seed=0):
    """Ends with an average over 49: its counts are not worth a power of two, but those of the network's output are."""
    rng = np.random.default_rng(seed)
    layers = (conv(rng, "first", 2, 6, low=0.0), conv(rng, "second", 6, 4),
              FloatPool("mean", (7, 7), kind="average", divisor=49))
    return FloatGraph((2, 7, 7), layers, (4,))


def inputs_of(network, samples=24, seed=1):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((samples, *network.input_shape)) + rng.standard_normal((samples, 1, 1, 1))


def quantized(network, fmt="exp4", **choices):
    x = inputs_of(network)
    return x, *quantize_report(network, x, QuantizeConfig(fmt, **choices))


@pytest.mark.parametrize("make", [branched, mean_at_the_end])
@pytest.mark.parametrize("choices", [{}, {"gain_terms": 1, "act_bits": 5}, {"fmt": "pot3", "method": "nearest"},
                                     {"equalization": 0.5}])
def test_figures_are_those_of_the_quantizer(make, choices):
    """On the calibration inputs; the quantizer has its own integers and its own account of what a count is worth."""
    network = make()
    x, graph, report = quantized(network, **choices)
    equalization = choices.get("equalization", 0.0)
    result = attribute(network, graph, x, equalization=equalization, calibration=x if equalization else None)
    assert result.ok and result.samples == len(x)
    assert [layer.name for layer in result.layers] == [graph.input, *(layer.name for layer in report.layers)]
    for layer, expected in zip(result.layers[1:], report.layers, strict=True):
        assert layer.kind == expected.kind
        assert layer.integer_sqnr == pytest.approx(expected.output_sqnr, abs=1e-9), layer.name
        assert layer.fake_sqnr == layer.integer_sqnr
        assert layer.saturation == expected.saturation
        assert layer.zeros == expected.zeros and (layer.rho is None) == (expected.rho is None)
        assert layer.rho == pytest.approx(expected.rho) if layer.rho is not None else not expected.exponents
        assert {level: count for level, count in layer.levels.items() if count} == expected.levels
        assert layer.weight_sqnr == (None if expected.weight_sqnr is None
                                     else pytest.approx(expected.weight_sqnr, abs=1e-9))


def test_use_of_exponents():
    report = LayerReport("conv", "conv", 10.0, 10.0, 0.25, 0.0, 0, 0.99, {-12: 1, -2: 2, 0: 2, 3: 1, 8: 2})
    assert report.exponents == {1: 3 / 8, 2: 0.0, 3: 3 / 8}
    assert replace(report, levels={0: 5}).exponents == replace(report, levels={}).exponents == {}
    assert QuantizeReport((report,)).to_dict()[0]["exponents"] == report.exponents


def uneven(seed=0):
    """Computes what :func:`mean_at_the_end` does, its channels of very different sizes in between."""
    network = mean_at_the_end(seed)
    sizes = np.geomspace(1, 0.02, 6)
    first, second, mean = network.layers
    return replace(network, layers=(
        replace(first, weights=first.weights * sizes[:, None, None, None], bias=first.bias * sizes),
        replace(second, weights=second.weights / sizes[:, None, None]), mean))


def test_an_equalized_network_is_compared_with_what_it_was_equalized_to():
    network = uneven()
    x, graph, _ = quantized(network, equalization=0.5)
    right = attribute(network, graph, x, equalization=0.5, calibration=x)
    blind = attribute(network, graph, x)
    # What the whole network computes is the same in float, and so is what gathers up to a layer that was not scaled.
    assert right.output_sqnr == pytest.approx(blind.output_sqnr, abs=1e-6)
    assert right.layers[-1].up_to_here == pytest.approx(blind.layers[-1].up_to_here, abs=1e-6)
    assert right.layers[1].integer_sqnr > 20 > 10 > blind.layers[1].integer_sqnr
    assert right.layers[1].weight_sqnr > 15 > 10 > blind.layers[1].weight_sqnr
    assert right.layers[1].up_to_here > 20 > blind.layers[1].up_to_here
    assert right.layers[1].growth == pytest.approx(1, abs=0.1)
    assert not any("--equalization" in finding for finding in right.findings)
    assert any(finding.startswith("first: its integers stand for weights") for finding in blind.findings)
    module = quantize(network, x, QuantizeConfig("exp4", equalization=0.5))
    assert attribute(module, module.graph, x).layers == right.layers


def test_one_layer_at_a_time_by_hand():
    network = branched()
    x, graph, _ = quantized(network, "ternary")
    result = {layer.name: layer for layer in attribute(network, graph, x).layers}
    units = unit_values(network, graph)
    float_output = network.run(x)
    for at, layer in enumerate(network.layers):
        if isinstance(layer, FloatConv):
            node = next(node for node in graph.nodes if node.name == layer.name)
            alone = real_conv(layer, node, graph, units)
            changed = replace(network, layers=(*network.layers[:at], alone, *network.layers[at + 1:]))
            assert result[layer.name].from_weights == pytest.approx(sqnr_db(float_output, changed.run(x)), abs=1e-9)
            norms = np.square(layer.weights).sum() * np.square(alone.weights).sum()
            assert result[layer.name].rho == pytest.approx((layer.weights * alone.weights).sum() / np.sqrt(norms))
        else:
            assert layer.name not in result or result[layer.name].from_weights is None
    assert result["max"].from_codes is None and result["nine"].from_codes > 20
    # The last layer's rounding is that of the network's output.
    unit, target = units[graph.output], graph.tensor(graph.output)
    codes = np.clip(np.floor(float_output / unit + 0.5) + target.zero_point, -128, 127)
    rounded = (codes - target.zero_point) * unit
    assert result["head"].from_codes == pytest.approx(sqnr_db(float_output, rounded), abs=1e-9)


def test_a_layer_of_integers_is_the_real_layer_that_they_stand_for():
    """Sums of integers, times what one is worth, are the sums of :func:`real_conv`."""
    network = branched()
    x, graph, _ = quantized(network)
    units, codes = unit_values(network, graph), golden.run(graph, graph.quantize_input(x))
    for node in graph.nodes:
        if isinstance(node, Conv):
            layer = next(layer for layer in network.layers if layer.name == node.name)
            source = graph.tensor(node.input)
            real = (codes[node.input].astype(float) - source.zero_point) * units[node.input]
            sums = golden.accumulators(graph, node, codes[node.input]) + node.bias[:, None, None]
            worth = (channel_steps(node, units) * units[node.input])[:, None, None]
            # Padding reads as the zero point, which is real 0.
            np.testing.assert_allclose(real_conv(layer, node, graph, units).linear(real), sums * worth, atol=1e-9)


def test_integers_up_to_the_last_layer_are_the_integer_network():
    network = branched()
    x, graph, _ = quantized(network, "pot3")
    labels = network.run(x).argmax(axis=1)
    result = attribute(network, graph, x, labels)
    outputs = graph.dequantize_output(golden.run(graph, graph.quantize_input(x))[graph.output]).reshape(len(x), -1)
    assert result.output_sqnr == pytest.approx(sqnr_db(network.run(x), outputs))
    assert result.layers[-1].up_to_here == pytest.approx(result.output_sqnr)
    assert result.layers[0].up_to_here == result.layers[0].from_codes
    assert result.float_accuracy == 1.0
    assert result.integer_accuracy == result.agreement == (outputs.argmax(axis=1) == labels).mean()
    assert result.parts_sqnr == pytest.approx(-10 * np.log10(sum(layer.noise for layer in result.layers)))
    assert sum(result.share(part) for layer in result.layers
               for part in (layer.from_weights, layer.from_codes)) == pytest.approx(1)


def test_samples_in_parts_give_the_same(monkeypatch):
    network = mean_at_the_end()
    x, graph, _ = quantized(network)
    whole, told = attribute(network, graph, x), []
    monkeypatch.setattr(module, "PART_VALUES", 7 * sum(np.prod(tensor.shape) for tensor in graph.tensors))
    parts = attribute(network, graph, x, progress=told.append)
    assert told[0] == "samples 1 to 7 of 24" and told[-1] == "samples 22 to 24 of 24"
    for one, other in zip(whole.layers, parts.layers, strict=True):
        assert one.levels == other.levels
        assert one.up_to_here == pytest.approx(other.up_to_here)
        assert (one.from_weights is None) == (other.from_weights is None)
        assert (one.dead, one.saturation) == (other.dead, other.saturation)


def test_dead_channels_and_layers_without_weights_are_found():
    network = mean_at_the_end()
    first = network.layers[0]
    network = replace(network, layers=(replace(first, bias=np.where(np.arange(6) == 2, -100.0, first.bias)),
                                       *network.layers[1:]))
    x, graph, _ = quantized(network, "ternary")
    result = attribute(network, graph, x)
    assert (result.layers[1].dead, result.layers[1].dead_float) == (1, 1)
    assert not any("constant" in finding for finding in result.findings)  # so it was in float
    empty = replace(graph, nodes=tuple(replace(node, weights=np.zeros_like(node.weights)) if node.name == "second"
                                       else node for node in graph.nodes))
    result = attribute(network, empty, x)
    assert result.layers[2].zeros == 1.0 and result.layers[2].entropy == 0.0 and result.layers[2].unused == 2
    assert result.findings[:2] == ("second: all weights are 0",
                                   "second: 4 of 4 output channels are constant, in float 0")


def layer_of(**figures):
    values = dict.fromkeys(LayerAttribution.__dataclass_fields__, 0) | {
        "name": "conv", "kind": "conv", "format": "pot3", "levels": {}, "weight_sqnr": 1.0, "rho": 1.0,
        "growth": 1.0, "from_weights": 20.0, "from_codes": None}
    return LayerAttribution(**(values | figures))


def test_use_of_levels():
    layer = layer_of(weights=8, levels={-2: 0, -1: 2, 1: 2, 2: 4})
    assert (layer.unused, layer.entropy, layer.zeros) == (1, 1.5, 0.0)
    assert layer_of().entropy is None and layer_of().zeros is None
    assert layer.to_dict()["levels"] == {-2: 0, -1: 2, 1: 2, 2: 4} and layer.to_dict()["noise"] == pytest.approx(0.01)


def test_findings_name_the_gravest_first():
    layers = (layer_of(name="a", from_weights=10.0, saturation=0.02),
              layer_of(name="b", from_weights=13.0, from_codes=40.0, differences=3), layer_of(name="c"))
    result = Attribution(layers, 10, 9.0, None)
    assert not result.ok
    assert [finding.split(":")[0] for finding in result.findings] == ["b", "a", "a", "b"]
    assert result.findings[0] == "b: 3 codes of fake quantization and integers differ: a bug"
    assert result.to_dict()["layers"][1]["differences"] == 3


def without(graph: Graph, name: str) -> Graph:
    return replace(graph, nodes=tuple(replace(node, name=f"{node.name}.other") if node.name == name else node
                                      for node in graph.nodes))


@pytest.mark.parametrize(("arguments", "message"), [
    (lambda n, g, x: (n, without(g, "body"), x), "has no layer 'body' of the same kind and shape"),
    (lambda n, g, x: (n, without(g, "max"), x), "has no layer 'max' of the same kind and shape"),
    (lambda n, g, x: (mean_at_the_end(), g, inputs_of(mean_at_the_end())), r"its input is \(3, 12, 12\), not"),
    (lambda n, g, x: (replace(n, layers=n.layers[:-1], output_shape=(6,)), g, x), "that has no layer 'head'"),
    (lambda n, g, x: (n, g, x[:, :2]), "Inputs must be"),
    (lambda n, g, x: (n, g, x, None, {"equalization": 0.5}), "needs both"),
    (lambda n, g, x: (n, g, x, None, {"calibration": x}), "needs both"),
    (lambda n, g, x: (n, g, x[:0]), "Inputs must be finite numbers"),
    (lambda n, g, x: (n, g, x * np.nan), "Inputs must be finite numbers"),
    (lambda n, g, x: (n, g, x, [0, 1]), r"Labels must be 24 integers in 0\.\.4"),
    (lambda n, g, x: (n, g, x, np.full(24, 5)), r"Labels must be 24 integers in 0\.\.4"),
    (lambda n, g, x: (n, g, x, np.zeros(24)), r"Labels must be 24 integers in 0\.\.4, one per input, not float64"),
])
def test_what_does_not_belong_together_is_refused(arguments, message):
    network = branched()
    x, graph, _ = quantized(network, "int8", method="nearest")
    with pytest.raises(QuantizeError, match=message):
        *given, options = (*arguments(network, graph, x), {})
        if isinstance(given[-1], dict):
            options = given.pop()
        attribute(*given, **options)


def test_maps_have_no_largest_output():
    network = branched()
    network = replace(network, layers=network.layers[:1], output_shape=(8, 12, 12))
    x, graph, _ = quantized(network, method="nearest")
    assert attribute(network, graph, x).agreement is None
    with pytest.raises(QuantizeError, match="whose output is a vector, not of shape"):
        attribute(network, graph, x, np.zeros(len(x), dtype=int))


def test_modules_are_imported():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(64, 3))
    x = torch.randn(16, 2, 6, 6)
    graph, _ = quantize_report(model.eval(), x, QuantizeConfig("pot4"))
    result = attribute(model, graph, x)
    assert [layer.kind for layer in result.layers] == ["input", "conv", "conv"] and result.ok
    assert INPUT not in [layer.name for layer in result.layers]
