"""The zoo: its networks are the architectures that they are named after, and go all the way to the machine."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from nomul.compiler import Program, compile_graph
from nomul.frontend import INPUT, FloatConcat, FloatConv, FloatGraph, import_module
from nomul.graph import Conv, Graph
from nomul.quantize import quantize_graph
from nomul.quantize.fake_quant import FakeQuant
from nomul.verify import verify
from nomul.zoo import MODELS, Network, _SameConv2d, resnet8, resnet18, resnet20, resnet50, samples
from nomul_hw.config import ArrayConfig, MemoryConfig
from nomul_sim import golden
from nomul_sim.verilated import VerilatedDevice

#: Memories of a 16 x 16 array that hold ResNet-8.
MEMORY = MemoryConfig(activations=4096, weights=8192, parameters=512, accumulators=1024, layers=64)

#: Multiply-accumulates (linear layers counted, padding too, biases not), and parameters with the statistics of batch
#: norms, of each network. The parameters of MLPerf Tiny's are the references', which give every convolution a bias; so
#: ResNet-8 is said to have 240 more. ResNet-20 has 262,144 multiply-accumulates fewer where shortcuts cost nothing.
PUBLISHED = {
    "resnet8": (12_501_632, 78_666 - 240),
    "ds_cnn": (2_656_768, 24_908),
    "mobilenet_v1_025": (7_489_664, 221_794),
    "autoencoder": (264_192, 269_992),
    "resnet20": (40_551_040 + 262_144, 269_722 + 2 * 688),
    "resnet18": (1_814_073_344, 11_689_512 + 2 * 4_800),
    "resnet50": (4_089_184_256, 25_557_032 + 2 * 26_560),
    "mobilenet_v1": (568_740_352, 4_231_976 + 2 * 10_944),
    "mobilenet_v2": (300_774_272, 3_504_872 + 2 * 17_056),
    "squeezenet": (818_924_576, 1_248_424),
}


def macs(graph: FloatGraph) -> int:
    """Multiply-accumulates of one sample."""
    shapes, total = {INPUT: graph.input_shape}, 0
    for layer in graph.layers:
        first = shapes[layer.sources[0]]
        if isinstance(layer, FloatConcat):
            shapes[layer.name] = (sum(shapes[part][0] for part in layer.inputs), *first[1:])
            continue
        shapes[layer.name] = layer.output_shape(*first)
        if isinstance(layer, FloatConv):
            total += layer.weights[0].size * int(np.prod(shapes[layer.name]))
    return total


@cache
def network(name: str) -> Network:
    """A seeded network."""
    return MODELS[name](seed=0)


@cache
def compiled(fmt: str) -> tuple[Graph, Program]:
    """Seeded ResNet-8 on 16 x 16."""
    model = network("resnet8")
    graph = quantize_graph(model, samples(model.input_shape, 8), format=fmt, method="nearest")
    return graph, compile_graph(graph, ArrayConfig(fmt, rows=16, cols=16, memory=MEMORY))


def test_seeds():
    torch.manual_seed(5)
    first = resnet8(seed=1)
    torch.manual_seed(6)
    again, other = resnet8(seed=1), resnet8(seed=2)
    for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b) and a.dtype in (torch.float32, torch.int64)
    assert not torch.equal(first[0].weight, other[0].weight)
    assert not first.training and not resnet8().training
    assert not torch.equal(resnet8()[0].weight, resnet8()[0].weight)


@pytest.mark.parametrize("name", ["autoencoder", "ds_cnn", "mobilenet_v1_025", "mobilenet_v2", "resnet8", "resnet20"])
def test_seeded_activations_stay_alive(name):
    """Every channel that a batch norm makes varies, about as much in the last layers as in the first; so do outputs."""
    model, made = network(name), list[torch.Tensor]()
    hooks = [module.register_forward_hook(lambda module, inputs, output: made.append(output.transpose(0, 1).flatten(1)))
             for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    with torch.no_grad():
        output = model(samples(model.input_shape, 4, seed=1))
    for hook in hooks:
        hook.remove()
    for channels in made:
        assert (channels.std(1) > 0).all() and 0.3 < channels.std(1).mean() < 1.5
    assert output.std(0).mean() > 0.05 * output.std() > 0


@pytest.mark.parametrize("name", MODELS)
def test_networks_are_what_they_are_named_after(name):
    model = network(name)
    x = samples(model.input_shape, 2, seed=1)
    graph = import_module(model, x)
    parameters = sum(p.numel() for p in model.parameters()) + sum(
        b.numel() for b in model.buffers() if b.is_floating_point())
    assert (macs(graph), parameters) == PUBLISHED[name]
    with torch.no_grad():
        wanted = model.double()(x[:1].double()).numpy()
        model.float()
    np.testing.assert_allclose(graph.run(x[:1].double().numpy()), wanted, rtol=1e-10, atol=1e-12 * np.abs(wanted).max())
    # Paths of modules, an operator added where the module has no weights.
    assert {layer.name.removesuffix(".pad") for layer in graph.layers if isinstance(layer, FloatConv)} <= {
        path for path, _ in model.named_modules()}
    assert {layer.padding for layer in graph.layers if not isinstance(layer, FloatConcat)} <= {
        (0, 0, 0, 0), (1, 1, 1, 1), (3, 3, 3, 3), (0, 0, 1, 1), (4, 1, 5, 1)}


def test_layers_of_resnet8():
    graph = import_module(network("resnet8"), samples((3, 32, 32), 2))
    assert [(layer.name, layer.skip) for layer in graph.layers if layer.skip is not None] == [
        ("3.conv2", "0"), ("4.downsample", "4.conv2"), ("5.downsample", "5.conv2")]
    assert len(graph.layers) == 11


def test_shortcuts_of_resnet20():
    graph = import_module(network("resnet20"), samples((3, 32, 32), 2))
    found = [layer for layer in graph.layers if layer.kernel == (1, 1) and layer.name != "linear"]
    assert [(layer.name, layer.stride, layer.weights.sum()) for layer in found] == [
        ("layer2.0.downsample.pad", (2, 2), 16), ("layer3.0.downsample.pad", (2, 2), 32)]


@pytest.mark.parametrize(("make", "entries", "some"), [
    (resnet20, 116, ["conv1.weight", "bn1.bias", "layer2.0.conv1.weight", "layer3.2.bn2.running_var", "linear.bias"]),
    (resnet18, 122, ["conv1.weight", "layer2.0.downsample.1.running_mean", "layer4.1.conv2.weight", "fc.weight"]),
    (resnet50, 320, ["bn1.running_mean", "layer1.0.downsample.0.weight", "layer3.5.conv3.weight", "fc.bias"]),
])
def test_state_dictionaries_of_references_fit(make, entries, some):
    state = make().state_dict()
    assert len(state) == entries and set(some) <= set(state)


def test_order_of_the_parameters_is_the_references():
    kernels = [tuple(p.shape) for name, p in network("ds_cnn").named_parameters() if p.ndim > 1]
    assert kernels == [(64, 1, 10, 4), *[(64, 1, 3, 3), (64, 64, 1, 1)] * 4, (12, 64)]
    linear = [tuple(p.shape) for p in network("autoencoder").parameters() if p.ndim > 1]
    assert linear == [(128, 640), *[(128, 128)] * 3, (8, 128), (128, 8), *[(128, 128)] * 3, (640, 128)]


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize(("kernel", "stride", "sides"), [
    (3, 1, {7: (1, 1), 8: (1, 1)}), (3, 2, {7: (1, 1), 8: (0, 1)}), (4, 2, {7: (1, 2), 8: (1, 1)}),
    (1, 2, {7: (0, 0), 8: (0, 0)}), (10, 2, {7: (4, 5), 8: (4, 4)}),
])
def test_padding_as_in_tensorflow(size, kernel, stride, sides):
    conv = _SameConv2d(1, 2, kernel, stride)
    x = torch.randn(1, 1, size, size)
    with torch.no_grad():
        wanted = functional.conv2d(functional.pad(x, sides[size] * 2), conv.weight, conv.bias, stride)
        assert torch.equal(conv(x), wanted) and wanted.shape[2] == -(-size // stride)


@pytest.mark.parametrize("name", [
    "resnet8", "ds_cnn", "mobilenet_v1_025", "autoencoder", "resnet20", "squeezenet",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("mobilenet_v1", "mobilenet_v2", "resnet18", "resnet50"))])
def test_quantized_networks(name):
    """Fake quantization equals the golden model in every tensor, outputs depend on inputs, and are near the float's."""
    model = network(name)
    calibration = samples(model.input_shape, 2)
    imported = import_module(model, calibration)
    graph = quantize_graph(imported, calibration, format="exp4", method="nearest",
                     formats={imported.layers[0].name: "int8"})
    first, *others = [node for node in graph.nodes if isinstance(node, Conv)]
    assert graph.format_of(first).name == "int8" and {graph.format_of(node).name for node in others} == {"exp4"}
    x = samples(model.input_shape, 3, seed=1).double().reshape(3, *graph.tensor("input").shape)
    codes = golden.run(graph, graph.quantize_input(x.numpy()))
    for name, fake in FakeQuant(graph).codes(x[:1]).items():
        np.testing.assert_array_equal(fake.numpy(), codes[name][:1], err_msg=name)
    outputs = codes[graph.output].reshape(3, -1)
    assert (outputs.std(axis=0) > 0).mean() > 0.5 and len(np.unique(outputs[0])) > min(100, outputs[0].size // 2)
    with torch.no_grad():
        wanted = model(x.float().reshape(3, *model.input_shape)).numpy().reshape(3, -1)
    assert np.corrcoef(outputs.ravel(), wanted.ravel())[0, 1] > 0.5


@pytest.mark.parametrize("fmt", ["ternary", "exp4"])
def test_resnet8_is_quantized_and_compiled(fmt):
    graph, program = compiled(fmt)
    assert sum(node.skip is not None for node in graph.computing) == 3
    x = samples((3, 32, 32), 4, seed=1)
    real = graph.dequantize_output(golden.run(graph, graph.quantize_input(x.numpy()))[graph.output])
    with torch.no_grad():
        wanted = network("resnet8")(x).double().numpy()
    assert real.shape == (4, 10, 1, 1) and np.corrcoef(real.ravel(), wanted.ravel())[0, 1] > 0.5
    estimate = program.estimate()
    print(f"{fmt}: {estimate.cycles} cycles, {estimate.macs} MACs, utilisation {estimate.utilisation:.3f}")
    assert estimate.macs == 12_501_632
    assert estimate.cycles <= 50_000


@pytest.mark.slow
def test_resnet8_on_rtl():
    """Every bit of every layer, every cycle."""
    graph, program = compiled("ternary")
    codes = graph.quantize_input(samples((3, 32, 32), 1, seed=2).numpy())
    found = verify(program, codes, VerilatedDevice(program.config))
    assert found.ok and len(found.layers) == len(graph.nodes)
    assert [layer.mismatches for layer in found.layers] == [0] * len(graph.nodes)
