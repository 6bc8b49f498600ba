"""The bench of post-training quantization: weights from files, and what the command says."""

import json

import numpy as np
import pytest
import torch
import typer
from torch import nn

from nomul import zoo
from nomul.bench.networks import BenchError, ds_cnn, keywords, photos
from nomul.bench.post_training import main


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A seeded keyword network as Keras would store it, and clips that it labels itself."""
    folder = tmp_path_factory.mktemp("keywords")
    network = zoo.ds_cnn(seed=0)
    arrays, at = {}, 0
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3
            values = {"gamma": module.weight, "beta": module.bias, "moving_mean": module.running_mean,
                      "moving_variance": module.running_var}
        elif isinstance(module, nn.Linear):
            values = {"kernel": module.weight.T, "bias": module.bias}
        elif isinstance(module, nn.Conv2d):
            depthwise = module.groups > 1
            values = {"depthwise_kernel" if depthwise else "kernel":
                      module.weight.permute((2, 3, 0, 1) if depthwise else (2, 3, 1, 0)), "bias": module.bias}
        else:
            continue
        arrays |= {f"L{at}.{name}": value.detach().numpy() for name, value in values.items()}
        at += 1
    x = zoo.samples((1, 49, 10), 212, seed=1)
    with torch.no_grad():
        wanted = network(x).numpy()
    np.savez(folder / "weights.npz", **arrays)
    np.savez(folder / "clips.npz", mfcc=x[:, 0].numpy(), y=wanted.argmax(axis=1).astype(np.uint8))
    return folder, wanted


def test_weights_come_from_files(files):
    folder, wanted = files
    x, labels = keywords(folder / "clips.npz")
    outputs = ds_cnn(folder / "weights.npz").run(x[:8])
    np.testing.assert_allclose(outputs, wanted[:8], rtol=1e-4, atol=1e-4)
    assert (outputs.argmax(axis=1) == labels[:8]).all()


def test_weights_of_another_network_are_refused(tmp_path, files):
    arrays = dict(np.load(files[0] / "weights.npz"))
    arrays["L0.kernel"] = arrays["L0.kernel"][:-1]
    np.savez(tmp_path / "wrong.npz", **arrays)
    with pytest.raises(BenchError, match=r"weight has the shape \(64, 1, 9, 4\) where the network has \(64, 1, 10"):
        ds_cnn(tmp_path / "wrong.npz")


def test_command_compares(files, capsys):
    folder, _ = files
    main("ds_cnn", folder / "weights.npz", clips=folder / "clips.npz", formats="int8", methods="nearest", as_json=True)
    result = json.loads(capsys.readouterr().out)
    assert (result["format"], result["method"]) == ("int8", "nearest")
    assert result["logit_sqnr"] > 15 and result["accuracy"] == result["first"] > 0.5


@pytest.mark.parametrize(("network", "message"), [
    ("alexnet", "Network must be one of ds_cnn, mobilenet_v2, squeezenet, not 'alexnet'"),
    ("ds_cnn", "ds_cnn wants its clips: --keywords FILE"),
])
def test_command_says_what_is_wrong(files, capsys, network, message):
    with pytest.raises(typer.Exit) as exit_of:
        main(network, files[0] / "weights.npz")
    assert exit_of.value.exit_code == 2 and message in capsys.readouterr().err


def test_photos_become_crops_and_mirror_images(tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    views = photos([tmp_path / "photo.png"] * 2, "mobilenet_v2")
    assert views.shape == (2, 16, 3, 224, 224) and views.dtype == np.float32
    assert views.min() >= -1 and views.max() <= 1
    np.testing.assert_array_equal(views[:, 0], views[:, 1, :, :, ::-1])
    assert photos([tmp_path / "photo.png"], "squeezenet").shape == (1, 16, 3, 227, 227)
