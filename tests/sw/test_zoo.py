"""The zoo: its networks are the architectures that they are named after, and go all the way to the machine."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from nomul.compiler import Program, compile_graph
from nomul.frontend import FloatConv, import_module
from nomul.graph import Graph
from nomul.quantize import quantize
from nomul.verify import verify
from nomul.zoo import MODELS, resnet8
from nomul_hw.config import ArrayConfig, MemoryConfig
from nomul_sim import golden
from nomul_sim.verilated import VerilatedDevice

#: Memories of a 16 x 16 array that hold ResNet-8.
MEMORY = MemoryConfig(activations=4096, weights=8192, parameters=512, accumulators=1024, layers=64)


def images(count: int, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Smooth random images, 0..1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, shape[0], 8, 8, generator=generator)
    fine = torch.rand(count, *shape, generator=generator)
    return 0.8 * nn.functional.interpolate(coarse, shape[1:], mode="bilinear") + 0.2 * fine


@cache
def compiled(fmt: str) -> tuple[Graph, Program]:
    """Seeded ResNet-8 on 16 x 16."""
    model = resnet8(seed=0)
    graph = quantize(model, images(8, model.input_shape), format=fmt, method="nearest")
    return graph, compile_graph(graph, ArrayConfig(fmt, rows=16, cols=16, memory=MEMORY))


def test_seeds():
    first, again, other = resnet8(seed=1), resnet8(seed=1), resnet8(seed=2)
    for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first[0].weight, other[0].weight)
    assert MODELS["resnet8"] is resnet8 and not first.training


def test_resnet8_is_what_mlperf_tiny_defines():
    model = resnet8(seed=0).double()
    x = images(3, model.input_shape).double()
    graph = import_module(model, x)
    with torch.no_grad():
        np.testing.assert_allclose(graph.run(x.numpy()), model(x).numpy(), rtol=1e-10, atol=1e-10)
    macs = parameters = 0
    for layer, output in graph.outputs(x.numpy()):
        if isinstance(layer, FloatConv):
            macs += layer.weights[0].size * output[0].size
            parameters += layer.weights.size + layer.bias.size
    # The reference has 78,666 parameters, 960 of them in 240 channels of batch norms.
    assert (macs, parameters) == (12_501_632, 78_666 - 4 * 240)
    assert [(layer.name, layer.skip) for layer in graph.layers if layer.skip is not None] == [
        ("3.body.3", "0"), ("4.skip.0", "4.body.3"), ("5.skip.0", "5.body.3")]
    assert len(graph.layers) == 11


@pytest.mark.parametrize("fmt", ["ternary", "exp4"])
def test_resnet8_is_quantized_and_compiled(fmt):
    graph, program = compiled(fmt)
    assert sum(node.skip is not None for node in graph.nodes) == 3
    x = images(4, (3, 32, 32), seed=1)
    real = graph.dequantize_output(golden.run(graph, graph.quantize_input(x.numpy()))[graph.output])
    with torch.no_grad():
        wanted = resnet8(seed=0)(x).double().numpy()
    assert real.shape == (4, 10, 1, 1) and np.corrcoef(real.ravel(), wanted.ravel())[0, 1] > 0.5
    estimate = program.estimate()
    print(f"{fmt}: {estimate.cycles} cycles, {estimate.macs} MACs, utilisation {estimate.utilisation:.3f}")
    assert estimate.macs == 12_501_632
    assert estimate.cycles <= 50_000


@pytest.mark.slow
def test_resnet8_on_rtl():
    """Every bit of every layer, every cycle."""
    graph, program = compiled("ternary")
    codes = graph.quantize_input(images(1, (3, 32, 32), seed=2).numpy())
    found = verify(program, codes, VerilatedDevice(program.config))
    assert found.ok and len(found.layers) == len(graph.nodes)
    assert [layer.mismatches for layer in found.layers] == [0] * len(graph.nodes)
