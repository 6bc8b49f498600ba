"""A quantized network as a module: its modes against each other and the golden model, to the bit."""

import copy
import re

import numpy as np
import pytest
import torch
from torch import nn

from nomul.frontend import FloatConcat, FloatConv, FloatGraph, FloatPool
from nomul.graph import Conv, Graph
from nomul.quantize import QuantizeError, quantize, quantize_graph
from nomul.quantize.module import QuantizedNetwork, TrainedConv
from nomul.quantize.scalar import APoT, exact_format
from nomul.quantize.train import Absmean, Discrete, StraightThrough, Tga, TrainConfig, Ttq, train
from nomul_sim.golden import run

RULES = {"ste": (StraightThrough(), "exp4"), "deepshift": (StraightThrough(False, "log"), "pot4z"),
         "apot": (StraightThrough(), exact_format("apot4", APoT(4).levels)),
         "inq": (StraightThrough(), exact_format("inq4", [-8, -4, -2, -1, 0, 1, 2, 4, 8])),
         "binary": (StraightThrough(), "binary"), "int8": (StraightThrough(), "int8"), "tga": (Tga(), "ternary"),
         "tga-paper": (Tga(start_at="max", gain=False), "ternary"),
         "tga-channel": (Tga(per="channel", centre=False), "ternary"), "ttq": (Ttq(), "exp4"),
         "ttq-layer": (Ttq(per="layer"), "ternary"), "absmean": (Absmean(), "ternary"),
         "absmean-layer": (Absmean("layer"), "ternary"), "discrete": (Discrete(), "pot4z")}


pytestmark = pytest.mark.usefixtures("one_thread")


class Tangled(nn.Module):
    """A residual addition, a concatenation, a depthwise convolution, both pools, a dead channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bn = nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.depth, self.point = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn(self.first(x)))
        x = torch.relu(x + self.point(torch.relu(self.depth(x))))
        y = torch.cat([nn.functional.max_pool2d(x, 3, 2, 1), nn.functional.avg_pool2d(x, 2)], 1)
        return self.fc(torch.flatten(nn.functional.avg_pool2d(y, 2), 1))


@pytest.fixture(scope="module")
def tangled() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Tangled().eval()
        model.first.weight.data[3] = 0
    return model


def inputs(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(seed))


def check(network: QuantizedNetwork, x: torch.Tensor) -> None:
    """Fake, integer and golden: every code of every tensor."""
    graph = network.graph
    codes, reals = run(graph, graph.quantize_input(x.numpy())), network.tensors(x)
    assert list(codes) == list(reals)
    for name, expected in codes.items():
        tensor = graph.tensor(name)
        found = reals[name].detach().double().numpy() * 2.0**-tensor.exponent + tensor.zero_point
        np.testing.assert_array_equal(found, expected, err_msg=name)
    outputs = {}
    for network.mode in ("fake", "integer"):
        outputs[network.mode] = network(x).detach()
    network.mode = "fake"
    assert outputs["fake"].dtype == outputs["integer"].dtype == torch.float32
    assert outputs["fake"].shape == (len(x), *graph.output_shape)
    assert torch.equal(outputs["fake"], outputs["integer"])


def assert_same(left: Graph, right: Graph) -> None:
    assert left.tensors == right.tensors and len(left.nodes) == len(right.nodes)
    for one, other in zip(left.nodes, right.nodes, strict=True):
        assert type(one) is type(other)
        for name in ("weights", "bias", "multiplier", "shift"):
            np.testing.assert_array_equal(getattr(one, name, 0), getattr(other, name, 0), err_msg=f"{one.name} {name}")


@pytest.mark.parametrize("method", ["gptq", "nearest"])
@pytest.mark.parametrize("fmt", ["binary", "ternary", "pot3", "exp4", "int8", "int16"])
def test_begins_at_post_training_quantization(tangled, fmt, method):
    network = quantize(tangled, inputs(64), format=fmt, method=method, acc_bits=32)
    assert_same(network.graph, quantize_graph(tangled, inputs(64), format=fmt, method=method, acc_bits=32))
    assert len(network.report.layers) == sum(hasattr(node, "bias") for node in network.graph.nodes)
    check(network, inputs(50, 2))


@pytest.mark.parametrize("name", RULES)
def test_every_rule_trains_on_the_integers(tangled, name):
    rule, fmt = RULES[name]
    network = quantize(tangled, inputs(64), format=fmt).with_rule(rule)
    check(network, inputs(20, 2))
    x = inputs(96, 3)
    y = tangled(x).argmax(1)
    before = copy.deepcopy(network).graph
    train(network, x, y, TrainConfig(epochs=3, batch=16, rate=1e-2))
    check(network, 2 * inputs(20, 4))
    pairs = zip(before.nodes, network.graph.nodes, strict=True)
    assert any((one.weights != other.weights).any() for one, other in pairs if isinstance(one, Conv))


@pytest.mark.parametrize("act_bits", [2, 3, 5, 8])
def test_act_bits(tangled, act_bits):
    network = quantize(tangled, inputs(64), format="pot4z", act_bits=act_bits)
    x = inputs(64, 3)
    train(network, x, tangled(x).argmax(1), TrainConfig(epochs=2, batch=16, rate=1e-2))
    check(network, inputs(20, 4))


def test_float_mode_is_the_float_network(tangled):
    network = quantize(tangled, inputs(64), format="ternary")
    network.mode = "float"
    x = inputs(20, 2)
    torch.testing.assert_close(network(x), tangled(x))


def test_wide_sums_run_in_float64(tangled):
    network = quantize(tangled, inputs(64), format="int16", acc_bits=32, gain_terms=3)
    types = [layer._dtype(*(part.detach() for at, part in enumerate(layer._integers()) if at != 1))
             for layer in network.layers if isinstance(layer, TrainedConv)]
    assert torch.float64 in types
    check(network, inputs(20, 2))


def test_gradients_pass_the_rounding(tangled):
    """With weights and activations of 16 and 8 bits, they are nearly those of the float network."""
    x = inputs(64)
    network = quantize(tangled, x, format="int16", acc_bits=32, method="nearest")
    network(x).square().sum().backward()
    model = copy.deepcopy(tangled)
    model(x).square().sum().backward()
    layer = network.layers[-1]
    got, expected = (layer.weight.grad.flatten(1) / layer.size[:, None]).flatten(), model.fc.weight.grad.flatten()
    assert float(nn.functional.cosine_similarity(got, expected.to(got), dim=0)) > 0.98
    got = layer.bias.grad / layer.bias_unit
    assert float(nn.functional.cosine_similarity(got, model.fc.bias.grad.to(got), dim=0)) > 0.98


def test_rules_by_name(tangled):
    network = quantize(tangled, inputs(64), format="ternary")
    network = network.with_rule(Tga(), {"first": StraightThrough(), "fc*": Absmean()})
    rules = {layer.node.name: type(layer.rule) for layer in network.layers if isinstance(layer, TrainedConv)}
    assert rules == {"first": StraightThrough, "depth": Tga, "point": Tga, "fc": Absmean}
    with pytest.raises(QuantizeError, match=r"^No layer with weights has a name like 'conv'; there are first, depth, "):
        network.with_rule(Tga(), {"conv": Tga()})


def test_channels_that_only_pass_on_stay():
    """Identity weights, and channels that are constants, are none of training's business."""
    rng = np.random.default_rng(0)
    eye = np.eye(3)[:, :, None, None]
    weights = rng.normal(size=(3, 3, 1, 1))
    weights[1] = 0
    graph = FloatGraph((3, 4, 4), (
        FloatConv("eye", (1, 1), weights=eye, bias=np.zeros(3)),
        FloatConv("conv", (1, 1), weights=weights, bias=rng.normal(size=3)),
        FloatConcat("both", ("eye", "conv")),
        FloatPool("mean", (4, 4), kind="average", divisor=16)), (6,))
    x = torch.from_numpy(rng.normal(size=(64, 3, 4, 4))).float()
    network = quantize(graph, x, format="ternary")
    before = network.graph
    assert len(network.weights()) == 1
    train(network, x, torch.arange(64) % 6, TrainConfig(epochs=4, batch=8, rate=0.1))
    after = network.graph
    for name, channels in (("eye", [0, 1, 2]), ("conv", [1])):
        one, other = (next(node for node in each.nodes if node.name == name) for each in (before, after))
        for part in ("weights", "bias", "multiplier", "shift"):
            np.testing.assert_array_equal(getattr(one, part)[channels], getattr(other, part)[channels])
    check(network, x)


def test_checkpoints_hold_parameters_only(tangled):
    network = quantize(tangled, inputs(64), format="ternary").with_rule(Tga())
    other = network.with_rule(Tga())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.25)
    assert {name.rsplit(".", 1)[-1] for name in network.state_dict()} == {"weight", "bias", "threshold", "gain"}
    other.load_state_dict(network.state_dict())
    assert_same(network.graph, other.graph)


def test_wrong_arguments(tangled):
    network = quantize(tangled, inputs(64), format="ternary")
    with pytest.raises(QuantizeError, match=r"^Mode must be one of float, fake, integer, not 'eval'$"):
        network.mode = "eval"
    with pytest.raises(QuantizeError, match=re.escape("Inputs must be (samples, 2, 8, 8), not (3, 2, 8, 7)")):
        network(torch.zeros(3, 2, 8, 7))
    with pytest.raises(QuantizeError, match=r"^first: TGA makes ternary weights, not 'pot3'$"):
        quantize(tangled, inputs(64), format="pot3").with_rule(Tga())
    with pytest.raises(QuantizeError, match=r"^first: TTQ needs a format with a zero, not 'pot3'$"):
        quantize(tangled, inputs(64), format="pot3").with_rule(Ttq())
