"""Every way to choose weights, on the RTL: what was trained or fitted is what the hardware computes, to the bit."""

import numpy as np
import pytest
import torch
from torch import nn

from nomul.compiler import compile_graph
from nomul.graph import Graph
from nomul.quantize import quantize, quantize_graph
from nomul.quantize.train import Absmean, Discrete, StraightThrough, Tga, TrainConfig, Ttq, WeightRule, train
from nomul.verify import verify
from nomul_sim.random_arrays import NETWORK_CONFIGS
from nomul_sim.verilated import VerilatedDevice

#: An array that other tests run on as well: 4 x 4 elements for exp4; all else runs there as planes.
ARRAY = NETWORK_CONFIGS[2]

RULES: dict[str, tuple[WeightRule, str]] = {
    "ste": (StraightThrough(), "exp4"), "deepshift": (StraightThrough(False, "log"), "pot4z"),
    "tga": (Tga(), "ternary"), "ttq": (Ttq(), "exp4"), "absmean": (Absmean(), "ternary"),
    "discrete": (Discrete(), "pot4z")}


def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 5, 3), nn.ReLU(),
                             nn.Flatten(), nn.Linear(20, 4)).eval()


def inputs(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(seed))


def check(graph: Graph, x: torch.Tensor) -> None:
    codes = graph.quantize_input(x.numpy())
    result = verify(compile_graph(graph, ARRAY), codes, VerilatedDevice(ARRAY))
    assert result.ok, result.first


@pytest.mark.parametrize("name", RULES)
def test_trained(name):
    rule, fmt = RULES[name]
    network = quantize(model(), inputs(64, 1), format=fmt, gain_terms=ARRAY.gain_terms).with_rule(rule)
    before = network.graph
    x = inputs(64, 2)
    train(network, x, model()(x).argmax(1), TrainConfig(epochs=1, batch=16, rate=0.02))
    trained = network.graph
    assert any(not np.array_equal(getattr(one, "bias", 0), getattr(other, "bias", 0))
               for one, other in zip(before.nodes, trained.nodes, strict=True))
    check(trained, x[:6])


def test_laplacian_rule():
    """Weights of 12 bits, with the support for Laplacian ones: planes of the array's own format."""
    check(quantize_graph(model(), inputs(64, 1), format="int12", steps="laplacian", gain_terms=ARRAY.gain_terms),
          inputs(6, 2))


@pytest.mark.parametrize("method", ["nearest", "gptq", "adaround", "best"])
@pytest.mark.parametrize("fmt", ["pot3", "exp5"])
def test_post_training(method, fmt):
    check(quantize_graph(model(), inputs(64, 1), format=fmt, method=method, equalization=0.5, activations="percentile",
                         gain_terms=ARRAY.gain_terms), inputs(6, 2))
