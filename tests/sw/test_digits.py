"""The digits example: fixed data, reproducible training, and the accuracy that every weight format keeps."""

import numpy as np
import pytest
import torch

from nomul import digits
from nomul.frontend import import_module
from nomul.quantize import quantize_graph
from nomul_sim import golden

#: Points of accuracy on the test split (449 images) that a format may lose.
MAY_LOSE = {"binary": 3.0, "ternary": 2.0, "pot3": 1.0, "pot3z": 1.0, "pot4": 1.0, "exp4": 1.0, "exp5": 1.0,
            "fp4_e2m1": 1.0, "int4": 1.0, "int8": 0.5}


@pytest.fixture(scope="module")
def data():
    return digits.load()


@pytest.fixture(scope="module")
def trained():
    return digits.train()


def accuracy(outputs, labels):
    """Recognized share, percent."""
    return 100 * float(np.mean(outputs.reshape(len(labels), -1).argmax(axis=1) == labels))


def test_data(data):
    assert data.train_x.shape == (1348, 1, 8, 8) and data.test_x.shape == (449, 1, 8, 8)
    assert data.train_x.dtype == data.test_x.dtype == np.float32
    assert data.train_y.dtype == data.test_y.dtype == np.int64
    assert data.train_x.min() == 0 and data.train_x.max() == 1
    # Every image is in one of the splits, and every digit in both.
    images = np.concatenate([data.train_x, data.test_x]).reshape(1797, -1)
    assert len(np.unique(images, axis=0)) == 1797
    assert set(data.train_y) == set(data.test_y) == set(range(10))
    again = digits.load()
    np.testing.assert_array_equal(again.test_x, data.test_x)
    np.testing.assert_array_equal(again.train_y, data.train_y)


def test_training_is_reproducible_and_leaves_no_trace():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    seen = []
    first = digits.train(seed=3, epochs=1, progress=lambda epoch, loss: seen.append((epoch, loss)))
    torch.rand(1)
    torch.set_rng_state(state)
    second = digits.train(seed=3, epochs=1)
    other = digits.train(seed=4, epochs=1)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
    assert not torch.equal(first[0].weight, other[0].weight)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    assert [epoch for epoch, _ in seen] == [1] and 0 < seen[0][1] < 3
    assert not first.training


def test_float_accuracy(trained, data):
    with torch.no_grad():
        outputs = trained(torch.from_numpy(data.test_x)).numpy()
    assert accuracy(outputs, data.test_y) >= 97


@pytest.mark.parametrize("fmt", sorted(MAY_LOSE))
def test_quantized_accuracy(trained, data, fmt):
    network = import_module(trained, data.train_x[:2])
    graph = quantize_graph(network, data.train_x[:256], format=fmt)
    codes = golden.run(graph, graph.quantize_input(data.test_x))[graph.output]
    lost = accuracy(network.run(data.test_x), data.test_y) - accuracy(codes, data.test_y)
    assert lost <= MAY_LOSE[fmt]


def test_pixels_are_represented_exactly(trained, data):
    graph = quantize_graph(import_module(trained, data.train_x[:2]), data.train_x[:64], format="ternary",
                           method="nearest")
    tensor = graph.tensor(graph.input)
    codes = graph.quantize_input(data.test_x).astype(np.float64)
    np.testing.assert_array_equal((codes - tensor.zero_point) * 2.0**tensor.exponent, data.test_x)
