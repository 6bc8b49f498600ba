"""The importer against PyTorch, in float64: equal to rounding errors, or one error that names everything."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from nomul.frontend import INPUT, FloatConv, FloatGraph, FloatPool, UnsupportedError, import_module
from nomul.frontend.importer import export_program
from nomul.frontend.operators import OPERATORS

# PyTorch pads such maps in a copy; the result is the same.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")

#: Operators in the exported programs of :func:`spelled_modules`, by version of PyTorch. A version that is not listed
#: is held to the alias table only; add its list when the project moves to it.
SEEN = {
    "2.13": {
        "aten.adaptive_avg_pool2d.default", "aten.add.Tensor", "aten.avg_pool2d.default", "aten.batch_norm.default",
        "aten._native_batch_norm_legit_no_training.default", "aten.clamp.default", "aten.clamp_min.default",
        "aten.clip.default", "aten.clone.default", "aten.conv2d.default", "aten.conv2d.padding", "aten.dropout.default",
        "aten.feature_dropout.default", "aten.flatten.using_ints", "aten.hardtanh.default", "aten.linear.default",
        "aten.max_pool2d.default", "aten.mean.dim", "aten.relu.default", "aten.relu6.default", "aten.reshape.default",
        "aten.squeeze.dim", "aten.unsqueeze.default", "aten.view.default", "getitem",
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
        out = int(rng.integers(1, 6))
        same = bool(rng.integers(2))
        layers.append(nn.Conv2d(channels, out, kernel, stride=1 if same else int(rng.integers(1, 3)),
                                padding="same" if same else tuple(map(int, rng.integers(0, 3, 2))),
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


@pytest.mark.parametrize("seed", range(16))
def test_random_modules(seed):
    assert_equal(*random_module(seed), seed=seed)


@pytest.mark.parametrize("layer", [
    nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, (2, 3), padding=(1, 2), stride=(2, 1)),
    nn.Conv2d(3, 4, (4, 2), padding="same", dilation=(1, 3)), nn.Conv2d(3, 4, 3, padding="valid", bias=False),
    nn.MaxPool2d(3, 2, 1), nn.MaxPool2d((2, 3), dilation=2), nn.MaxPool2d(3, 2, ceil_mode=True),
    nn.MaxPool2d(2, 3, 1, ceil_mode=True), nn.AvgPool2d(2), nn.AvgPool2d((3, 2), 1, (1, 0)),
    nn.AvgPool2d(3, divisor_override=5), nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((3, None)),
    Apply(lambda x: x.mean((2, 3))), Apply(lambda x: x.mean([-1, -2], keepdim=True)),
    Apply(lambda x: x.flatten(2).mean(-1)), nn.ReLU(),
], ids=str)
def test_layers(layer):
    assert_equal(nn.Sequential(layer), (3, 9, 8))


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


# What cannot be imported ---------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """Five operators that the machine does not run, and a few that it does."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.SiLU())
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(8, 3)
        self.softmax = nn.Softmax(dim=1)

    def forward(self, x):
        x = self.stem(x)
        y = functional.relu(self.norm(self.depthwise(x)))
        x = x + y
        x = torch.cat([x, y], 1)
        x = functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return self.softmax(self.head(x.mean((2, 3))))


def test_all_offenders_in_one_error():
    with pytest.raises(UnsupportedError) as caught:
        import_module(Residual(), torch.zeros(2, 3, 8, 8))
    assert [(o.operator, o.module) for o in caught.value.offenders] == [
        ("aten.silu.default", "stem.2 (SiLU)"),
        ("aten.conv2d.default", "depthwise (Conv2d)"),
        ("aten.cat.default", "the top module (Residual)"),
        ("aten.avg_pool2d.default", "the top module (Residual)"),
        ("aten.softmax.int", "softmax (Softmax)"),
    ]
    for offender, line in zip(caught.value.offenders, ["self.stem(x)", "self.depthwise(x)", "torch.cat",
                                                       "avg_pool2d", "self.softmax("], strict=True):
        assert "test_frontend.py:" in offender.source and line in offender.source
    message = str(caught.value).splitlines()
    assert message[0] == "The machine cannot run this network:"
    assert len(message) == 6
    assert message[1].endswith(": use ReLU, ReLU6 or Hardtanh")
    assert message[2].endswith(": depthwise convolution is not supported yet")
    assert message[3].endswith(": concatenation is not supported yet")


class Parametrized(nn.Module):
    """A convolution whose weights are made in the forward pass."""

    def __init__(self):
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 1))

    def forward(self, x):
        return self.conv(x)


@pytest.mark.parametrize(("module", "reason"), [
    (nn.Sequential(nn.BatchNorm2d(3)), "right after a convolution or a linear layer"),
    (nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)), "right after a convolution or a linear layer"),
    (nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)), "right after a convolution"),
    (nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)), "statistics"),
    (nn.Sequential(nn.Conv2d(3, 6, 1, groups=3)), r"grouped convolution \(3 groups\) is not supported yet"),
    (nn.Sequential(nn.ConvTranspose2d(3, 4, 2)), "strided convolution"),
    (nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")), "aten.pad.default"),
    (nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(3, 4, 3)), "padding of the convolution"),
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
    "norm first", "norm after relu", "norm twice", "norm of the batch", "groups", "transposed", "circular", "zero pad",
    "ceil", "exclude pad", "adaptive", "linear on a map", "unflatten", "batch mixed", "channel mean", "softmax",
    "dropout", "cosine", "scaled sum", "sum with a number", "sum with a constant", "broadcast", "sum of reshapes",
    "parametrized", "two outputs", "nothing", "constant", "indices", "branch", "wrong shape",
])
def test_unsupported(module, reason):
    with pytest.raises(UnsupportedError, match=reason):
        import_module(module, torch.zeros(2, 3, 5, 7))


def test_wrong_input_rank():
    with pytest.raises(UnsupportedError, match=r"must be \(N, C, H, W\) or \(N, features\)"):
        import_module(nn.Sequential(nn.Conv1d(2, 3, 1)), torch.zeros(2, 2, 5))


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
