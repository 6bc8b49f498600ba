"""The importer against PyTorch, in float64: equal to rounding errors, or one error that names everything."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from nomul.frontend import INPUT, FloatConcat, FloatConv, FloatGraph, FloatPool, UnsupportedError, import_module
from nomul.frontend.importer import export_program
from nomul.frontend.operators import OPERATORS

# PyTorch pads such maps in a copy; the result is the same.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")

#: Operators in the exported programs of :func:`spelled_modules`, by version of PyTorch. A version that is not listed
#: is held to the alias table only; add its list when the project moves to it.
SEEN = {
    "2.13": {
        "aten.adaptive_avg_pool1d.default", "aten.adaptive_avg_pool2d.default", "aten.add.Tensor",
        "aten.avg_pool1d.default", "aten.avg_pool2d.default", "aten.batch_norm.default",
        "aten._native_batch_norm_legit_no_training.default", "aten.cat.default", "aten.clamp.default",
        "aten.clamp_min.default", "aten.clip.default", "aten.clone.default", "aten.concat.default",
        "aten.concatenate.default", "aten.constant_pad_nd.default", "aten.conv1d.default", "aten.conv1d.padding",
        "aten.conv2d.default", "aten.conv2d.padding", "aten.dropout.default", "aten.feature_dropout.default",
        "aten.flatten.using_ints", "aten.hardtanh.default", "aten.hstack.default", "aten.linear.default",
        "aten.max_pool1d.default", "aten.max_pool2d.default", "aten.mean.dim", "aten.pad.default", "aten.relu.default",
        "aten.relu6.default", "aten.reshape.default", "aten.slice.Tensor", "aten.squeeze.dim", "aten.unsqueeze.default",
        "aten.view.default", "getitem",
    },
}


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def randomize(module, seed=0):
    """Give a module float64 parameters and batch statistics that are all different."""
    generator = torch.Generator().manual_seed(seed)
    module.double()
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
        elif tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5)
    return module


def assert_equal(module, shape, *, seed=0):
    """Import a module, compare it with PyTorch on random inputs, return the graph."""
    randomize(module, seed)
    x = 2 * torch.randn(5, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    graph = import_module(module, x[:2])
    with torch.no_grad():
        expected = module.eval()(x).numpy()
    got = graph.run(x.numpy())
    assert got.shape == expected.shape == (5, *graph.output_shape)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12 * (1 + np.abs(expected).max()))
    return graph


def random_module(seed):
    """A random chain, and the shape of its input."""
    rng = np.random.default_rng(seed)
    channels, size = int(rng.integers(1, 5)), rng.integers(7, 15, 2)
    shape = (channels, *map(int, size))
    layers = []
    for _ in range(int(rng.integers(1, 4))):
        kernel = tuple(map(int, rng.integers(1, 4, 2)))
        out, groups = int(rng.integers(1, 6)), 1
        if rng.integers(2):  # depthwise, or two groups where there are
            groups = channels if rng.integers(2) else 2 - channels % 2
            out = groups * int(rng.integers(1, 3))
        same = bool(rng.integers(2))
        if rng.integers(3) == 0:
            layers.append(nn.ZeroPad2d(tuple(map(int, rng.integers(0, 3, 4)))))
        layers.append(nn.Conv2d(channels, out, kernel, stride=1 if same else int(rng.integers(1, 3)),
                                padding="same" if same else tuple(map(int, rng.integers(0, 3, 2))), groups=groups,
                                dilation=int(rng.integers(1, 3)), bias=bool(rng.integers(2))))
        if rng.integers(2):
            layers.append(nn.BatchNorm2d(out))
        layers.append([nn.Identity(), nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-0.5, 0.75)][rng.integers(4)])
        if rng.integers(2):
            layers.append(nn.Dropout2d(0.3))
        channels = out
    layers.append([nn.Identity(), nn.MaxPool2d(2, 1, 1), nn.AvgPool2d((1, 2), 1, (0, 1)), nn.AdaptiveAvgPool2d(1)]
                  [rng.integers(4)])
    with torch.no_grad():
        try:
            features = nn.Sequential(*layers).eval()(torch.zeros(1, *shape)).numel()
        except RuntimeError:  # the map shrank away
            return random_module(seed + 1000)
    if rng.integers(2):
        layers += [nn.Flatten(), nn.Dropout(), nn.Linear(features, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)]
    return nn.Sequential(*layers), shape


@pytest.mark.parametrize("seed", range(24))
def test_random_modules(seed):
    assert_equal(*random_module(seed), seed=seed)


@pytest.mark.parametrize("layer", [
    nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, (2, 3), padding=(1, 2), stride=(2, 1)),
    nn.Conv2d(3, 4, (4, 2), padding="same", dilation=(1, 3)), nn.Conv2d(3, 4, 3, padding="valid", bias=False),
    nn.Conv2d(3, 6, 3, groups=3), nn.Conv2d(3, 3, (5, 2), padding="same", groups=3, bias=False),
    nn.MaxPool2d(3, 2, 1), nn.MaxPool2d((2, 3), dilation=2), nn.MaxPool2d(3, 2, ceil_mode=True),
    nn.MaxPool2d(2, 3, 1, ceil_mode=True), nn.AvgPool2d(2), nn.AvgPool2d((3, 2), 1, (1, 0)),
    nn.AvgPool2d(3, divisor_override=5), nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((3, None)),
    Apply(lambda x: x.mean((2, 3))), Apply(lambda x: x.mean([-1, -2], keepdim=True)),
    Apply(lambda x: x.flatten(2).mean(-1)), nn.ReLU(), nn.ZeroPad2d((1, 0, 2, 3)), Apply(lambda x: x[:, :, ::2, ::3]),
    Apply(lambda x: x[:, 1:]), Apply(lambda x: x[:, ::2, :, ::4]), Apply(lambda x: x[:, :3, 0:9:1].relu()),
    nn.BatchNorm2d(3),
], ids=str)
def test_layers(layer):
    assert_equal(nn.Sequential(layer), (3, 9, 8))


@pytest.mark.parametrize("layer", [
    nn.Conv1d(3, 4, 3, padding=1), nn.Conv1d(3, 6, 2, stride=2, dilation=3, groups=3, bias=False),
    nn.Conv1d(3, 4, 4, padding="same"), nn.Conv1d(3, 4, 3, padding="valid"), nn.MaxPool1d(3, 2, 1), nn.MaxPool1d(2),
    nn.MaxPool1d(3, 2, ceil_mode=True), nn.AvgPool1d(2), nn.AvgPool1d(3, 2, 1), nn.AdaptiveAvgPool1d(1),
    nn.AdaptiveAvgPool1d(2), nn.BatchNorm1d(3), nn.ReLU(), nn.ZeroPad1d((2, 1)), nn.Dropout1d(),
    Apply(lambda x: x.mean(-1)), Apply(lambda x: x[:, :, ::3]), Apply(lambda x: functional.pad(x, (1, 2, 0, 1))),
    Apply(lambda x: x.unsqueeze(2).mean((2, 3))), nn.Sequential(nn.Flatten(), nn.Linear(30, 4)),
], ids=str)
def test_sequences(layer):
    graph = assert_equal(nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3), layer), (2, 10))
    assert graph.input_shape == (2, 1, 10)


@pytest.mark.parametrize("function", [
    functional.relu, functional.relu6, functional.relu_, lambda x: x.clamp(-0.5, 1), lambda x: x.clamp(max=0.25),
    lambda x: x.clamp_min(0.1), lambda x: x.clip(0, 2), lambda x: torch.clamp_(x, 0, 1), lambda x: x.clamp(1, -1),
    lambda x: functional.hardtanh(functional.relu(x), -1, 0.5), lambda x: functional.relu(x.clamp(-2, -1)),
    nn.ReLU(inplace=True), nn.ReLU6(inplace=True), nn.Hardtanh(inplace=True),
])
def test_activations(function):
    graph = assert_equal(nn.Sequential(nn.Conv2d(2, 3, 1), Apply(function)), (2, 4, 5))
    assert len(graph.layers) == 1


def spelled_modules():
    """Modules that between them spell every supported operator in the usual ways, with their input shapes."""
    yield nn.Sequential(
        nn.Conv2d(2, 4, 3, padding="same"), nn.BatchNorm2d(4), nn.ReLU6(), nn.Dropout(), nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 1), nn.Hardtanh(), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ), (2, 8, 8)
    yield nn.Sequential(  # writes in place, so it is exported without
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(), Apply(lambda x: x.mean((2, 3))),
        Apply(lambda x: x + x.relu()), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Unflatten(1, (6, 1, 1)),
        nn.Conv2d(6, 2, 1)
    ), (2, 6, 6)
    yield nn.Sequential(
        nn.Conv2d(2, 4, 3), Apply(functional.relu), nn.Dropout2d(), Apply(lambda x: functional.relu6(x)),
        Apply(lambda x: x.clamp(0, 5).clamp_min(1).clip(max=4)), nn.AdaptiveAvgPool2d(1),
        Apply(lambda x: x.squeeze(-1).squeeze(-1).unsqueeze(1).view(len(x), -1).reshape(len(x), 4)), nn.Linear(4, 3)
    ), (2, 6, 6)
    yield nn.Sequential(
        nn.ZeroPad2d(1), nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), Apply(lambda x: functional.pad(x, (1, 0, 2, 1))),
        Apply(lambda x: torch.cat([x, x.relu()], 1)), Apply(lambda x: torch.concat([x, x], -3)[:, :, ::2]),
        Apply(lambda x: torch.hstack([x, torch.concatenate([x, x], dim=1)])), Apply(lambda x: x[:, :8]),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    ), (2, 6, 6)
    yield nn.Sequential(
        nn.ConstantPad1d(1, 0.0), nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.MaxPool1d(2), nn.AvgPool1d(2),
        nn.Conv1d(4, 4, 3, padding="same"), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
    ), (2, 12)
    yield nn.Sequential(Apply(lambda x: torch.constant_pad_nd(x, (1, 1))), nn.Conv2d(2, 2, 1)), (2, 4, 4)


def test_spellings():
    seen = set()
    for module, shape in spelled_modules():
        assert_equal(module, shape)
        for node in export_program(module, torch.zeros(2, *shape)).graph.nodes:
            if node.op == "call_function":
                seen.add(str(node.target) if hasattr(node.target, "_schema") else node.target.__name__)
    assert seen <= set(OPERATORS)
    version = ".".join(torch.__version__.split(".")[:2])
    assert seen == SEEN.get(version, seen)


def test_flatten_before_the_first_linear_layer():
    graph = assert_equal(nn.Sequential(nn.Flatten(), nn.Linear(24, 5), nn.ReLU(), nn.Linear(5, 2)), (2, 3, 4))
    assert graph.layers[0].weights.shape == (5, 2, 3, 4)
    assert graph.output_shape == (2,)


def test_features_as_input():
    graph = assert_equal(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)), (6,))
    assert graph.input_shape == (6, 1, 1)


def test_single_sample_as_example():
    graph = import_module(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)), np.zeros((1, 1, 4, 4)))
    assert graph.run(np.zeros((3, 1, 4, 4))).shape == (3, 2)


def test_names_are_module_paths():
    module = nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 1)), Apply(lambda x: functional.max_pool2d(x, 2)),
                           nn.Conv2d(2, 2, 1))
    graph = assert_equal(module, (1, 4, 4))
    assert [layer.name for layer in graph.layers] == ["0.0", "1.max_pool2d", "2"]


class Twice(nn.Module):
    """A module that runs two layers twice, one of them not a module of its own."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x):
        x = functional.max_pool2d(self.conv(x), 2)
        return functional.max_pool2d(self.conv(x), 2)


def test_layers_used_twice_have_two_names():
    graph = assert_equal(nn.Sequential(Twice()), (1, 8, 8))
    assert [layer.name for layer in graph.layers] == ["0.conv", "0.max_pool2d", "0.conv_2", "0.max_pool2d_2"]


def test_clamps_move_in_front_of_maximum_pools():
    graph = assert_equal(nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.MaxPool2d(2), nn.ReLU6()), (1, 12, 12))
    assert [(layer.low, layer.high) for layer in graph.layers] == [(0, 6), (-np.inf, np.inf), (-np.inf, np.inf)]


def test_dead_channels_become_constants():
    norm = nn.BatchNorm2d(4, eps=0.0)
    module = randomize(nn.Sequential(nn.Conv2d(2, 4, 3), norm))
    with torch.no_grad():
        norm.weight[1] = 0.0
        norm.running_var[2] = 0.0
    (layer,) = import_module(module, torch.zeros(1, 2, 5, 5)).layers
    assert isinstance(layer, FloatConv)
    assert (layer.weights[[1, 2]] == 0).all()
    np.testing.assert_array_equal(layer.bias[[1, 2]], norm.bias.detach().numpy()[[1, 2]])
    assert (layer.weights[[0, 3]] != 0).all()


def test_batch_norm_without_parameters():
    assert_equal(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, affine=False)), (2, 5, 5))


@pytest.mark.parametrize("layers", [
    [nn.BatchNorm2d(2), nn.Conv2d(2, 3, 1)], [nn.Conv2d(2, 3, 1), nn.ReLU(), nn.BatchNorm2d(3), nn.ReLU()],
    [nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)], [nn.MaxPool2d(2), nn.BatchNorm2d(2)],
], ids=["first", "after relu", "twice", "after a pool"])
def test_batch_norms_of_their_own(layers):
    """What no convolution can take over is a depthwise one."""
    graph = assert_equal(nn.Sequential(*layers), (2, 4, 4))
    assert any(isinstance(layer, FloatConv) and layer.groups > 1 and layer.taps == 1 for layer in graph.layers)


def test_training_flags_survive():
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2).eval(), nn.Dropout(), nn.ReLU())
    import_module(module, torch.zeros(2, 1, 3, 3))
    assert [part.training for part in module] == [True, False, True, True]


def test_example_of_another_type():
    module = nn.Sequential(nn.Conv2d(1, 2, 1))
    assert import_module(module.double(), np.zeros((2, 1, 3, 3), np.uint8)).input_shape == (1, 3, 3)


def test_graph_checks_names():
    def layer(name, **reads):
        return FloatPool(name, (1, 1), kind="max", **reads)

    last = FloatPool("c", (1, 1), kind="average", input="a", skip="b")
    chain = FloatGraph((1, 1, 1), (layer("a"), layer("b"), last), (1,))
    assert [made.input for made in chain.layers] == [INPUT, "a", "a"]
    with pytest.raises(ValueError, match=r"^Layer 'a' reads 'b', which no layer before it makes$"):
        FloatGraph((1, 1, 1), (layer("a", skip="b"), layer("b")), (1,))
    with pytest.raises(ValueError, match=r"^There are two layers 'a'$"):
        FloatGraph((1, 1, 1), (layer("a"), layer("a")), (1,))
    with pytest.raises(ValueError, match=r"^Layer 'b' is a maximum pool, which cannot add$"):
        FloatGraph((1, 1, 1), (layer("a"), layer("b", skip="a")), (1,))


def test_run_checks_shapes():
    graph = import_module(nn.Sequential(nn.Conv2d(1, 2, 1)), torch.zeros(2, 1, 3, 4))
    with pytest.raises(ValueError, match=r"Inputs must be \(samples, 1, 3, 4\), not \(2, 1, 4, 3\)"):
        graph.run(np.zeros((2, 1, 4, 3)))


# Additions -----------------------------------------------------------------------------------------------------------


class Graph(nn.Module):
    """Named layers, and a function of the module and the input that wires them."""

    def __init__(self, wire, **layers):
        super().__init__()
        self.wire = wire
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.wire(self, x)


def conv(outputs=4, inputs=4, **options):
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def wiring(module, shape=(4, 6, 5)):
    """Import a module, compare it with PyTorch, return (name, input, skip, low) of every layer."""
    graph = assert_equal(module, shape)
    return [(layer.name, layer.input, layer.skip, layer.low) for layer in graph.layers]


FREE = -np.inf


def test_addition_in_the_later_operand():
    module = Graph(lambda m, x: functional.relu(m.norm(m.b(functional.relu(m.a(x)))) + m.down(x)),
                   a=conv(6, stride=2), b=conv(6, 6), norm=nn.BatchNorm2d(6), down=nn.Conv2d(4, 6, 1, stride=2))
    assert wiring(module) == [("a", INPUT, None, 0), ("b", "a", None, FREE), ("down", INPUT, "b", 0)]


@pytest.mark.parametrize("wire", [
    lambda m, x: m.a(x) + x, lambda m, x: x + m.a(x), lambda m, x: torch.add(x, m.a(x)), lambda m, x: m.a(x).add_(x),
    lambda m, x: x.clone().add_(m.a(x)),
])
def test_addition_of_the_input(wire):
    assert wiring(Graph(wire, a=conv())) == [("a", INPUT, INPUT, FREE)]


def test_addition_in_place():
    def wire(m, x):
        y = m.a(x)
        y += x
        return m.relu(y)

    assert wiring(Graph(wire, a=conv(), relu=nn.ReLU(inplace=True))) == [("a", INPUT, INPUT, 0)]


def test_addition_in_the_earlier_operand_waits_for_the_other():
    module = Graph(lambda m, x: m.a(x) + functional.relu(m.b(x)), a=conv(), b=conv())
    assert wiring(module) == [("b", INPUT, None, 0), ("a", INPUT, "b", FREE)]


def test_addition_of_its_own():
    """Both operands have activations."""
    module = Graph(lambda m, x: (functional.relu(m.a(x)) + functional.relu6(m.b(x))).clamp(max=3), a=conv(), b=conv())
    assert wiring(module) == [("a", INPUT, None, 0), ("b", INPUT, None, 0), ("add", "a", "b", FREE)]


def test_operands_that_are_read_elsewhere():
    module = Graph(lambda m, x: m.b(y := m.a(x)) + y, a=conv(), b=conv())
    assert wiring(module) == [("a", INPUT, None, FREE), ("b", "a", "a", FREE)]
    module = Graph(lambda m, x: (y := m.a(x)) + functional.relu(y), a=conv())
    assert wiring(module) == [("a", INPUT, None, FREE), ("relu", "a", None, 0), ("add", "a", "relu", FREE)]


def test_activation_of_a_sum_that_is_read_elsewhere():
    """As in networks whose activations come before the convolutions."""
    module = Graph(lambda m, x: m.b(functional.relu(y := m.a(x) + x)) + y, a=conv(), b=conv())
    assert wiring(module) == [("a", INPUT, INPUT, FREE), ("relu", "a", None, 0), ("b", "relu", "a", FREE)]


def test_sum_of_three():
    module = Graph(lambda m, x: m.a(x) + m.b(x) + m.c(x), a=conv(), b=conv(), c=conv())
    assert wiring(module) == [("a", INPUT, None, FREE), ("b", INPUT, "a", FREE), ("c", INPUT, "b", FREE)]
    module = Graph(lambda m, x: m.a(x) + x + x, a=conv())
    assert wiring(module) == [("a", INPUT, INPUT, FREE), ("add", "a", INPUT, FREE)]


def test_a_tensor_twice():
    assert wiring(Apply(lambda x: x + x)) == [("add", INPUT, INPUT, FREE)]
    assert wiring(Graph(lambda m, x: (y := m.a(x)) + y, a=conv())) == [("a", INPUT, None, FREE),
                                                                     ("add", "a", "a", FREE)]


def test_pools_add_too():
    module = Graph(lambda m, x: m.p(m.a(x)) + m.b(x).mean((2, 3), keepdim=True), a=conv(), b=conv(),
                   p=nn.AdaptiveAvgPool2d(1))
    assert wiring(module) == [("a", INPUT, None, FREE), ("p", "a", None, FREE), ("b", INPUT, None, FREE),
                              ("mean", "b", "p", FREE)]
    module = Graph(lambda m, x: functional.max_pool2d(m.a(x), 2) + functional.max_pool2d(x, 2), a=conv())
    assert [name for name, *_ in wiring(module)] == ["a", "max_pool2d", "max_pool2d_2", "add"]


def test_sums_of_features():
    module = Graph(lambda m, x: m.b(functional.relu(m.a(x)) + x), a=nn.Linear(6, 6), b=nn.Linear(6, 2))
    assert wiring(module, (6,)) == [("a", INPUT, None, 0), ("add", "a", INPUT, FREE), ("b", "add", None, FREE)]


def test_clamps_stay_behind_maximum_pools_of_what_others_read():
    module = Graph(lambda m, x: functional.relu(functional.max_pool2d(y := m.a(x), 3, 1, 1)) + y, a=conv())
    assert wiring(module)[1] == ("max_pool2d", "a", None, 0)


def test_batch_norm_of_what_others_read():
    """The bare convolution runs beside the folded one."""
    module = Graph(lambda m, x: m.norm(y := m.a(x)) + y, a=conv(), norm=nn.BatchNorm2d(4))
    assert wiring(module) == [("a", INPUT, None, FREE), ("a_2", INPUT, "a", FREE)]


@pytest.mark.parametrize("seed", range(12))
def test_random_networks(seed):
    """Layers that keep the shape, each reading and adding anything before it."""
    rng = np.random.default_rng(seed)
    plan = [(rng.choice(["conv", "norm", "max", "mean", "relu", "add", "add"]), *rng.integers(0, at + 1, 2))
            for at in range(8)]
    layers = {f"conv{at}": conv(bias=bool(rng.integers(2))) for at in range(8)}
    layers |= {f"norm{at}": nn.BatchNorm2d(4) for at in range(8)}

    def compute(m, at, kind, a, b):
        match kind:
            case "conv":
                return getattr(m, f"conv{at}")(a)
            case "norm":
                return getattr(m, f"norm{at}")(getattr(m, f"conv{at}")(a))
            case "max":
                return functional.max_pool2d(a, 3, 1, 1)
            case "mean":
                return functional.avg_pool2d(a, 3, 1, 1)
            case "relu":
                return functional.relu(a)
        return a + b

    def wire(m, x):
        values = [x]
        for at, (kind, left, right) in enumerate(plan):
            values.append(compute(m, at, kind, values[-1 - left // 2], values[right]))
        return m.last(values[-1] + values[-2])

    assert_equal(Graph(wire, **layers, last=conv(2)), (4, 5, 6), seed=seed)


# Concatenations ------------------------------------------------------------------------------------------------------


def joined(graph):
    """Names, and what they read, of all concatenations."""
    return {layer.name: layer.inputs for layer in graph.layers if isinstance(layer, FloatConcat)}


@pytest.mark.parametrize("wire", [
    lambda m, x: torch.cat([m.a(x), m.b(x)], 1), lambda m, x: torch.cat([m.a(x), m.b(x)], -3),
    lambda m, x: torch.concat((m.a(x), m.b(x)), dim=1), lambda m, x: torch.hstack((m.a(x), m.b(x))),
])
def test_concatenation(wire):
    graph = assert_equal(Graph(wire, a=conv(), b=conv(3)), (4, 6, 5))
    assert list(joined(graph).values()) == [("a", "b")] and graph.output_shape == (7, 6, 5)


def test_concatenation_goes_on():
    def wire(m, x):
        y = torch.cat([x, m.a(x)], 1)
        return m.b(functional.max_pool2d(torch.cat([y, m.c(y), x], 1), 2))

    graph = assert_equal(Graph(wire, a=conv(3), b=conv(2, 13, groups=1), c=conv(2, 7)), (4, 6, 5))
    assert joined(graph) == {"cat": (INPUT, "a"), "cat_2": ("cat", "c", INPUT)}


def test_concatenation_of_one_tensor():
    assert joined(assert_equal(Graph(lambda m, x: torch.cat([m.a(x)], 1), a=conv()), (4, 3, 3))) == {}
    graph = assert_equal(Graph(lambda m, x: torch.cat([y := m.a(x), y], 1), a=conv()), (4, 3, 3))
    assert joined(graph) == {"cat": ("a", "a")}


def test_concatenation_of_sequences_and_features():
    module = Graph(lambda m, x: torch.cat([m.a(x), x], -2), a=nn.Conv1d(2, 3, 3, padding=1))
    assert joined(assert_equal(module, (2, 7))) == {"cat": ("a", INPUT)}
    module = Graph(lambda m, x: m.b(torch.cat([m.a(x), x], -1)), a=nn.Linear(3, 4), b=nn.Linear(7, 2))
    assert joined(assert_equal(module, (3,))) == {"cat": ("a", INPUT)}


def test_concatenation_of_flattened_maps():
    module = Graph(lambda m, x: m.b(torch.cat([m.a(x).flatten(1), x.flatten(1)], 1)), a=conv(3), b=nn.Linear(63, 2))
    graph = assert_equal(module, (4, 3, 3))
    assert joined(graph) == {"cat": ("a", INPUT)} and graph.layers[-1].kernel == (3, 3)


def test_clamps_of_concatenations_are_those_of_their_parts():
    module = Graph(lambda m, x: functional.relu6(torch.cat([m.a(x), torch.cat([m.b(x), x], 1)], 1).clamp(-1, 4)),
                   a=conv(), b=conv())
    graph = assert_equal(module, (4, 3, 3))
    lows = {layer.name: (layer.low, layer.high) for layer in graph.layers if not isinstance(layer, FloatConcat)}
    assert lows == {"a": (0, 4), "b": (0, 4), "clamp": (0, 4)} and list(joined(graph).values()) == [
        ("b", "clamp"), ("a", "cat")]
    module = Graph(lambda m, x: functional.relu(y := torch.cat([m.a(x), x], 1)) + y, a=conv())
    assert wiring_of(assert_equal(module, (4, 3, 3))) == [("a", (INPUT,)), ("cat", ("a", INPUT)), ("relu", ("cat",)),
                                                         ("add", ("relu", "cat"))]


def wiring_of(graph):
    return [(layer.name, layer.sources) for layer in graph.layers]


def test_concatenated_and_added():
    module = Graph(lambda m, x: torch.cat([x, x], 1) + m.b(torch.cat([m.a(x), x], 1)), a=conv(), b=conv(8, 8))
    assert wiring_of(assert_equal(module, (4, 3, 3))) == [
        ("cat", (INPUT, INPUT)), ("a", (INPUT,)), ("cat_2", ("a", INPUT)), ("b", ("cat_2", "cat"))]


# Values that only move -----------------------------------------------------------------------------------------------


def geometry(module, shape=(4, 6, 5)):
    """Import a module, compare it with PyTorch, return (kernel, stride, padding) of every layer."""
    return [(layer.kernel, layer.stride, layer.padding) for layer in assert_equal(module, shape).layers]


ONE = (1, 1)


def test_padding_becomes_the_window_s_own():
    pads = Graph(lambda m, x: m.a(functional.pad(m.p(x), (0, 2, 0, 1))), p=nn.ZeroPad2d((1, 2, 3, 4)), a=conv(2))
    assert geometry(pads) == [((3, 3), ONE, (4, 2, 6, 5))]
    for pool in (nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(2)):
        assert len(geometry(nn.Sequential(nn.ConstantPad2d(1, 0), pool))) == 1
    module = Graph(lambda m, x: torch.cat([m.a(y := functional.pad(x, (1, 0))), m.b(y)], 1), a=conv(), b=conv(2))
    graph = assert_equal(module, (4, 6, 5))
    assert [layer.padding for layer in graph.layers[:2]] == [(1, 2, 1, 1)] * 2 and len(graph.layers) == 3


def test_padding_of_maximum_pools():
    """Zeros never win where nothing is negative; else they have to be there."""
    pad = nn.ZeroPad2d((0, 1, 1, 0))
    assert geometry(nn.Sequential(conv(), nn.ReLU(), pad, nn.MaxPool2d(2)))[1:] == [((2, 2), (2, 2), (1, 0, 0, 1))]
    assert geometry(nn.Sequential(conv(), nn.ReLU(), nn.MaxPool2d(2, 1), pad, nn.MaxPool2d(2, 1)))[2:] == [
        ((2, 2), ONE, (1, 0, 0, 1))]
    assert geometry(nn.Sequential(conv(), pad, nn.MaxPool2d(2)))[1:] == [(ONE, ONE, (1, 0, 0, 1)),
                                                                        ((2, 2), (2, 2), (0, 0, 0, 0))]
    # A window that sees nothing but zeros has a maximum of 0.
    assert len(geometry(nn.Sequential(conv(), nn.ReLU(), nn.ZeroPad2d(2), nn.MaxPool2d(2)))) == 3
    assert len(geometry(nn.Sequential(conv(), Apply(lambda x: x.clamp(-2, -1)), pad, nn.MaxPool2d(2)))) == 3


def test_padding_that_is_used_otherwise():
    module = Graph(lambda m, x: (y := functional.pad(x, (1, 1, 1, 1))) + m.a(y), a=conv())
    assert geometry(module) == [(ONE, ONE, (1,) * 4), ((3, 3), ONE, (2,) * 4)]
    assert geometry(nn.Sequential(conv(), nn.ZeroPad2d(1))) == [((3, 3), ONE, (1,) * 4), (ONE, ONE, (1,) * 4)]


def test_slices_become_strides():
    assert geometry(nn.Sequential(Apply(lambda x: x[:, :, ::2, ::3]), nn.Conv2d(4, 2, 1))) == [(ONE, (2, 3), (0,) * 4)]
    assert geometry(nn.Sequential(nn.ZeroPad2d(1), Apply(lambda x: x[..., ::2]), nn.Conv2d(4, 2, 1, stride=2))) == [
        (ONE, (2, 4), (1,) * 4)]
    assert geometry(nn.Sequential(Apply(lambda x: x[:, :, ::2, ::2]), nn.Conv2d(4, 2, 2))) == [
        (ONE, (2, 2), (0,) * 4), ((2, 2), ONE, (0,) * 4)]  # holes in a window are for dilations


def test_shortcut_without_weights():
    """As in the published ResNet-20: one convolution of zeros and ones, which adds too."""
    def wire(m, x):
        return functional.relu(m.a(x) + functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2), "constant", 0))

    module = Graph(wire, a=conv(8, stride=2))
    graph = assert_equal(module, (4, 6, 6))
    assert wiring_of(graph) == [("a", (INPUT,)), ("pad", (INPUT, "a"))]
    pad = graph.layers[1]
    assert (pad.stride, pad.low) == ((2, 2), 0)
    np.testing.assert_array_equal(pad.weights[:, :, 0, 0], np.eye(8)[:, 2:6])


def test_names_of_subclasses():
    class Same(nn.Conv2d):
        def forward(self, x):
            return super().forward(functional.pad(x, (0, 1, 0, 1)))

    graph = assert_equal(nn.Sequential(Same(2, 2, 2, bias=False), Same(2, 2, 2), nn.BatchNorm2d(2)), (2, 4, 4))
    assert [layer.name for layer in graph.layers] == ["0", "1"]


# What cannot be imported ---------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """Five operators that the machine does not run, and a few that it does."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.SiLU())
        self.up = nn.ConvTranspose2d(4, 4, 1, groups=4)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(8, 3)
        self.softmax = nn.Softmax(dim=1)

    def forward(self, x):
        x = self.stem(x)
        y = functional.relu(self.norm(self.up(x)))
        x = x + y
        x = torch.cat([x, y], 2)
        x = functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return self.softmax(self.head(torch.cat([x, x], 1).mean((2, 3))))


def test_all_offenders_in_one_error():
    with pytest.raises(UnsupportedError) as caught:
        import_module(Residual(), torch.zeros(2, 3, 8, 8))
    assert [(o.operator, o.module) for o in caught.value.offenders] == [
        ("aten.silu.default", "stem.2 (SiLU)"),
        ("aten.conv_transpose2d.input", "up (ConvTranspose2d)"),
        ("aten.cat.default", "the top module (Residual)"),
        ("aten.avg_pool2d.default", "the top module (Residual)"),
        ("aten.softmax.int", "softmax (Softmax)"),
    ]
    for offender, line in zip(caught.value.offenders, ["self.stem(x)", "self.up(x)", "torch.cat",
                                                       "avg_pool2d", "self.softmax("], strict=True):
        assert "test_frontend.py:" in offender.source and line in offender.source
    message = str(caught.value).splitlines()
    assert message[0] == "The machine cannot run this network:"
    assert len(message) == 6
    assert message[1].endswith(": use ReLU, ReLU6 or Hardtanh")
    assert message[2].endswith(": use upsampling on the host or a strided convolution")
    assert message[3].endswith(": it concatenates along axis 2 of (2, 4, 8, 8), not along the channels")


class Parametrized(nn.Module):
    """A convolution whose weights are made in the forward pass."""

    def __init__(self):
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 1))

    def forward(self, x):
        return self.conv(x)


@pytest.mark.parametrize(("module", "reason"), [
    (nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)), "statistics"),
    (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.BatchNorm1d(140)), r"normalizes 140 channels of \(4, 5, 7\)"),
    (nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 4, 1)), "only one- and two-dimensional convolutions"),
    (nn.Sequential(nn.ConvTranspose2d(3, 4, 2)), "strided convolution"),
    (nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")), "aten.pad.default"),
    (nn.Sequential(nn.ConstantPad2d(1, 0.5), nn.Conv2d(3, 4, 3)), "only padding with zeros"),
    (nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(3, 4, 3)), "only padding with zeros"),
    (nn.Sequential(nn.ZeroPad2d((1, -1, 0, 0)), nn.Conv2d(3, 4, 3)), "it crops"),
    (nn.Sequential(Apply(lambda x: functional.pad(x, (0, 0, 0, 0, 0, 0, 1, 0))), nn.Conv2d(3, 4, 3)), "pads the batch"),
    (nn.Sequential(Apply(lambda x: x[:, :, 1:]), nn.Conv2d(3, 4, 3)), "it crops"),
    (nn.Sequential(Apply(lambda x: x[:, :, :-1]), nn.Conv2d(3, 4, 3)), "it crops"),
    (nn.Sequential(Apply(lambda x: x[:, 0])), "slice with a range"),
    (nn.Sequential(Apply(lambda x: x[:2]), nn.Conv2d(3, 4, 3)), "picks samples"),
    (nn.Sequential(Apply(lambda x: torch.cat([x, torch.ones(2, 1, 5, 7)], 1))), "it concatenates a constant"),
    (nn.Sequential(Apply(lambda x: torch.cat([x, x], 0))), "along axis 0"),
    (nn.Sequential(Apply(lambda x: torch.stack([x, x], 1))), "concatenate along the channels"),
    (Graph(lambda m, x: torch.cat([x.flatten(1), m.a(x).flatten(1)], 1), a=nn.Conv2d(3, 3, 2)),
     r"reshaped from \(3, 5, 7\), \(3, 4, 6\)"),
    (nn.Sequential(nn.Flatten(2), nn.MaxPool1d(2)), r"reshaped from \(2, 3, 5, 7\) to \(2, 3, 35\)"),
    (nn.Sequential(nn.AvgPool2d((5, 1)), nn.Flatten(2), nn.MaxPool2d(1)), r"reshaped from \(2, 3, 1, 7\)"),
    (nn.Sequential(nn.AvgPool2d(2, ceil_mode=True)), "ceil_mode=True"),
    (nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False)), "count_include_pad=False"),
    (nn.Sequential(nn.AdaptiveAvgPool2d(3)), "windows differ in size"),
    (nn.Sequential(nn.Linear(7, 2)), "flatten it to"),
    (nn.Sequential(nn.Flatten(), nn.Unflatten(1, (5, 7, 3)), nn.Conv2d(5, 2, 1)), "was reshaped from"),
    (nn.Sequential(Apply(lambda x: x.reshape(-1, 35)), nn.Linear(35, 2)), "mixes the samples"),
    (nn.Sequential(Apply(lambda x: x.mean(1))), "only the mean over height and width"),
    (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softmax(dim=1)), "on the host"),
    (nn.Sequential(Apply(lambda x: functional.dropout(x))), "drops in evaluation too"),
    (nn.Sequential(Apply(lambda x: x.cos())), "the machine has nothing like it"),
    (nn.Sequential(Apply(lambda x: torch.add(x, x.relu(), alpha=2))), "it adds one tensor 2 times; only plain sums"),
    (nn.Sequential(Apply(lambda x: x + 1)), "it adds a constant; only the sum of two activation tensors"),
    (nn.Sequential(Apply(lambda x: x + torch.ones(3, 1, 1))), "it adds a constant"),
    (nn.Sequential(Apply(lambda x: x + x.mean((2, 3), keepdim=True))),
     r"tensors of shapes \(2, 3, 5, 7\) and \(2, 3, 1, 1\); they must have one shape"),
    (Graph(lambda m, x: x.flatten(1) + m.a(x.flatten(1)), a=nn.Linear(105, 105)),
     r"its inputs were reshaped from \(3, 5, 7\) and \(105, 1, 1\)"),
    (Parametrized(), "computed in the forward pass"),
    (nn.Sequential(Apply(lambda x: (x, x))), "2 outputs"),
    (nn.Sequential(nn.Identity()), "computes nothing"),
    (nn.Sequential(Apply(lambda x: torch.ones(3))), "computes nothing"),
    (nn.Sequential(Apply(lambda x: functional.max_pool2d(x, 2, return_indices=True)[1].float())), "only the first"),
    (nn.Sequential(Apply(lambda x: x if x.sum() > 0 else -x)), "PyTorch cannot export Sequential"),
    (nn.Sequential(nn.Conv2d(2, 4, 1)), r"PyTorch cannot export Sequential for an input of shape \(2, 3, 5, 7\)"),
], ids=[
    "norm of the batch", "norm of a flattened map", "3-D", "transposed", "circular", "pad with a number", "reflect",
    "crop", "pad the batch", "slice", "slice the end", "select", "samples", "cat with a constant", "cat of samples",
    "stack", "cat of unlike maps", "1-D over a map", "2-D over a sequence", "ceil", "exclude pad", "adaptive",
    "linear on a map", "unflatten", "batch mixed", "channel mean", "softmax", "dropout",
    "cosine", "scaled sum", "sum with a number", "sum with a constant", "broadcast", "sum of reshapes",
    "parametrized", "two outputs", "nothing", "constant", "indices", "branch", "wrong shape",
])
def test_unsupported(module, reason):
    with pytest.raises(UnsupportedError, match=reason):
        import_module(module, torch.zeros(2, 3, 5, 7))


def test_wrong_input_rank():
    with pytest.raises(UnsupportedError, match=r"must be \(N, C, H, W\), \(N, C, L\) or \(N, features\), not"):
        import_module(nn.Sequential(nn.Conv3d(2, 3, 1)), torch.zeros(2, 2, 5, 5, 5))


def test_two_inputs():
    class Two(nn.Module):
        def forward(self, x, y):
            return x + y

    with pytest.raises(UnsupportedError, match="PyTorch cannot export Two"):
        import_module(Two(), torch.zeros(2, 2))


def test_branches_that_nobody_joins_do_not_count():
    def forked(x):
        x.relu()
        return functional.max_pool2d(x, 2)

    graph = assert_equal(nn.Sequential(nn.Conv2d(2, 3, 1), Apply(forked)), (2, 4, 4))
    assert [type(layer) for layer in graph.layers] == [FloatConv, FloatPool]


def test_importing_the_package_leaves_torch_alone():
    code = "import sys, nomul.frontend, nomul.quantize, nomul.digits; sys.exit('torch' in sys.modules)"
    path = "import sys; sys.path[:0] = " + repr(sys.path)
    assert subprocess.run([sys.executable, "-c", f"{path}\n{code}"], check=False).returncode == 0
