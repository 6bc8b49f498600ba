"""The training loop: what is deterministic, what a checkpoint restores, and what the digits come to."""

import re

import pytest
import torch
from torch import nn

from nomul import digits
from nomul.quantize import QuantizeError, quantize
from nomul.quantize.train import (
    Discrete,
    Progress,
    StraightThrough,
    Tga,
    TrainConfig,
    accuracy,
    show,
    train,
    training_device,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data():
    bunch = digits.load()
    return {name: torch.from_numpy(getattr(bunch, name)) for name in ("train_x", "train_y", "test_x", "test_y")}


@pytest.fixture(scope="module")
def trained():
    return digits.train(epochs=8)


@pytest.fixture(scope="module")
def ternary(trained, data):
    return quantize(trained, data["train_x"][:256], format="ternary")


def small() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(64, 10))


def state(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def assert_same(left: nn.Module, right: nn.Module) -> None:
    left, right = left.state_dict(), right.state_dict()
    assert list(left) == list(right)
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("rule", [Tga(), StraightThrough(), Discrete()], ids=lambda rule: type(rule).__name__)
def test_a_run_that_was_interrupted_ends_with_the_same_bits(rule, ternary, data, tmp_path):
    x, y = data["train_x"][:200], data["train_y"][:200]
    config = TrainConfig(epochs=3, batch=64, seed=3)

    def shift(batch, generator):
        return torch.roll(batch, int(torch.randint(-1, 2, (), generator=generator)), 3)

    whole = train(ternary.with_rule(rule), x, y, config, augment=shift)

    class Interruption(Exception):
        pass

    def stop(progress):
        if (progress.epoch, progress.step) == (3, 2):
            raise Interruption

    path = tmp_path / "run.pt"
    with pytest.raises(Interruption):
        train(ternary.with_rule(rule), x, y, config, augment=shift, checkpoint=path, progress=stop)
    seen = []
    resumed = train(ternary.with_rule(rule), x, y, config, augment=shift, checkpoint=path, progress=seen.append)
    assert [(progress.epoch, progress.step) for progress in seen] == [(3, 1), (3, 2), (3, 3), (3, 4)]
    assert_same(whole, resumed)
    assert_same(train(ternary.with_rule(rule), x, y, config, checkpoint=path), whole)  # done: nothing left to do


def test_the_seed_settles_everything_and_leaves_the_global_generator_alone(data):
    x, y = data["train_x"], data["train_y"]
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = (train(small(), x, y, TrainConfig(epochs=2, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert_same(first, again)
    assert not torch.equal(first[2].weight, other[2].weight)


def test_progress(data, capsys):
    seen = []
    train(small(), data["train_x"][:300], data["train_y"][:300], TrainConfig(epochs=2), progress=seen.append)
    assert [(p.epoch, p.step) for p in seen] == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]
    assert seen[-1].eta == 0 and all(p.epochs == 2 and p.steps == 3 for p in seen)
    show(Progress(1, 2, 1, 3, 0.5, 1.0, 5.0))
    show(Progress(1, 2, 3, 3, 0.5, 3.0, 3.0))
    assert capsys.readouterr().err == "epoch 1/2, step 3/3, loss 0.5000, 3 s, 3 s to go\n"


def test_a_teacher_is_followed(trained, data):
    """With nothing but the teacher in the loss, labels do not count."""
    x, wrong = data["train_x"], torch.zeros(len(data["train_x"]), dtype=torch.int64)
    network = train(small(), x, wrong, TrainConfig(epochs=6, batch=64, rate=1e-2, distill=1.0), teacher=trained)
    assert accuracy(network, data["test_x"], data["test_y"]) > 0.8


def test_threshold_passes(ternary, data):
    """Thresholds move in a pass of their own, or together with the weights; by no more than the clamp allows."""
    x, y = data["train_x"][:128], data["train_y"][:128]
    start = ternary.with_rule(Tga())
    for both in (True, False):
        network = ternary.with_rule(Tga())
        train(network, x, y, TrainConfig(epochs=1, threshold_pass=both, threshold_rate=0.5, threshold_clamp=1e-2))
        for moved, began in zip(network.thresholds(), start.thresholds(), strict=True):
            assert 0 < float((moved - began).detach().abs().max()) <= 0.5 * 1e-2 + 1e-6


def test_digits_trained_ternary(trained, ternary, data):
    """TGA in all layers, first and last too: within a point of float."""
    x, y = data["test_x"], data["test_y"]
    network = ternary.with_rule(Tga())
    train(network, data["train_x"], data["train_y"],
          TrainConfig(epochs=5, batch=64, rate=2e-3, threshold_pass=False, threshold_rate=1e-2))
    assert all(set(node.weights.ravel().tolist()) <= {-1, 0, 1} for node in network.graph.nodes
               if hasattr(node, "weights"))
    network.mode = "integer"
    assert accuracy(network, x, y) >= accuracy(trained, x, y) - 0.01


@pytest.mark.parametrize(("choices", "message"), [
    ({"epochs": -1}, "epochs must be an integer of at least 0, not -1"),
    ({"batch": 0}, "batch must be an integer of at least 1, not 0"),
    ({"distill": 1.5}, "distill must lie in 0..1, not 1.5"),
    ({"rate": 0.0}, "rate must be a positive number, not 0.0"),
])
def test_impossible_choices(choices, message):
    with pytest.raises(QuantizeError, match=f"^{re.escape(message)}$"):
        TrainConfig(**choices)


def test_wrong_arguments(data, tmp_path):
    x, y, path = data["train_x"][:64], data["train_y"][:64], tmp_path / "run.pt"
    with pytest.raises(QuantizeError, match=r"^There must be as many classes as inputs, and some: not 63 and 64$"):
        train(small(), x, y[1:])
    with pytest.raises(QuantizeError, match=r"^distill needs a teacher$"):
        train(small(), x, y, TrainConfig(distill=0.5))
    train(small(), x, y, TrainConfig(epochs=1), checkpoint=path)
    with pytest.raises(QuantizeError, match=r"is the checkpoint of a run with other choices: epochs, seed$"):
        train(small(), x, y, TrainConfig(epochs=2, seed=1), checkpoint=path)
    with pytest.raises(QuantizeError, match=r"is the checkpoint of another network$"):
        train(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), x, y, TrainConfig(epochs=1), checkpoint=path)
    with pytest.raises(QuantizeError, match=r"^The loss is nan in step 1 of epoch 1; a smaller rate than 0\.001 may"):
        train(small(), x * torch.nan, y, TrainConfig(epochs=1))


def test_where_to_train(monkeypatch, data):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert training_device() == torch.device("cpu") == training_device("cpu")
    for wanted, message in (("cuda", "no GPU 'cuda' that PyTorch can use; device='cpu'"),
                            ("abacus", "no device 'abacus'")):
        with pytest.raises(QuantizeError, match=message):
            train(small(), data["train_x"], data["train_y"], device=wanted)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert training_device() == torch.device("cuda") == training_device("cuda")
    with pytest.raises(QuantizeError, match="'cuda:1'"):
        training_device("cuda:1")
