"""Whole networks on the RTL: every layer's bits, every cycle by cause, and the cycles that they must not exceed."""

import pytest

from nomul_hw.config import ArrayConfig
from nomul_sim.networks import common_config, main, quantized, run_network

#: The cycles that 16 x 16 products may take at most, all of it counted.
LIMITS = {"resnet8": 50_000, "ds_cnn": 13_000, "mobilenet_v1_025": 40_000, "autoencoder": 5_500, "resnet20": 165_000}


@pytest.mark.timeout(600)
def test_networks_on_exp4():
    """MLPerf Tiny's four networks and ResNet-20 on one array of 16 inputs and 16 outputs."""
    graphs = {network: quantized(network, "exp4") for network in LIMITS}
    config = common_config(graphs.values(), ArrayConfig("exp4", rows=4, lanes=4, cols=16))
    for network, graph in graphs.items():
        run = run_network(network, graph, config)
        assert run.verification.ok, (network, run.verification.first)
        assert len(run.verification.layers) == len(graph.computing)
        assert run.verification.cycles[0] <= LIMITS[network]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("fmt, array", [("ternary", "ternary"), ("pot3", "pot3"), ("int8", "ternary")])
def test_resnet8(fmt, array):
    """Formats of their own arrays, and 8-bit weights as planes of a ternary one."""
    graph = quantized("resnet8", fmt)
    config = common_config([graph], ArrayConfig(array, rows=16, cols=16))
    run = run_network("resnet8", graph, config)
    assert run.verification.ok, run.verification.first
    planes = 1 if fmt == array else 8
    assert run.verification.cycles[0] <= LIMITS["resnet8"] * planes


@pytest.mark.sweep
@pytest.mark.timeout(1800)
def test_resnet18_at_224(capsys):
    """The command of the README: 1.8 G multiply-accumulates, weights streamed."""
    assert main(["resnet18", "--format", "exp4", "--stream"]) == 0
    assert "every bit and cycle equal" in capsys.readouterr().out
