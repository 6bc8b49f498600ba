"""Float networks of the zoo with published weights, and inputs for them, from files that a user has.

The files are those of MLPerf Tiny (DS-CNN), of Google's quantized MobileNetV2 and of SqueezeNet after Deep Compression,
as NumPy archives; nothing is downloaded.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from nomul import zoo
from nomul.frontend import FloatGraph, import_module

__all__ = ["BenchError", "NETWORKS", "ds_cnn", "keywords", "mobilenet_v2", "photos", "squeezenet"]

Float32Array = npt.NDArray[np.float32]

#: What a crop of a photo leaves out at the left, the top, the right and the bottom, as shares of the shorter side.
CROPS = [(left, top, right, bottom) for left, top, right, bottom in (
    (0.0, 0.0, 0.0, 0.0), (0.15, 0.15, 0.15, 0.15), (0.25, 0.0, 0.0, 0.25), (0.0, 0.25, 0.25, 0.0),
    (0.0, 0.0, 0.3, 0.3), (0.3, 0.3, 0.0, 0.0), (0.1, 0.2, 0.2, 0.1), (0.2, 0.1, 0.1, 0.2))]


class BenchError(ValueError):
    """A file that does not hold what it should; the message says what is wrong."""


def ds_cnn(weights: Path) -> FloatGraph:
    """MLPerf Tiny's keyword network, with the float weights that Keras names ``L<layer>.<name>``."""
    arrays = np.load(weights)
    network = zoo.ds_cnn()
    at = 0
    with torch.no_grad():
        for module in network.modules():
            if not isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
                continue
            values = {name.split(".")[1]: arrays[name] for name in arrays if name.startswith(f"L{at}.")}
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-3
                _set(module, weight=values["gamma"], bias=values["beta"], running_mean=values["moving_mean"],
                     running_var=values["moving_variance"])
            elif isinstance(module, nn.Linear):
                _set(module, weight=values["kernel"].T, bias=values["bias"])
            else:
                depthwise = "depthwise_kernel" in values
                kernel = values["depthwise_kernel" if depthwise else "kernel"]
                _set(module, weight=kernel.transpose((2, 3, 0, 1) if depthwise else (3, 2, 0, 1)), bias=values["bias"])
            at += 1
    return _imported(network)


def mobilenet_v2(weights: Path) -> FloatGraph:
    """MobileNetV2 of a quantized TFLite file: its 8-bit weights as real numbers.

    ``weights`` holds the constants by their tensors' numbers, ``t<number>``; a JSON file beside it, of the same name,
    lists tensors and operations.
    """
    arrays, listing = np.load(weights), json.loads(weights.with_suffix(".json").read_text())
    scales = {tensor["id"]: (tensor["scale"], tensor["zero_point"]) for tensor in listing["tensors"]}

    def real(tensor: int) -> npt.NDArray[np.float64]:
        (scale,), (zero,) = scales[tensor]
        return (arrays[f"t{tensor}"].astype(np.float64) - zero) * scale

    operations = iter([op for op in listing["ops"] if op["op"].endswith("CONV_2D")])
    network = zoo.mobilenet_v2(1001).double()
    _without_norms(network)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                operation = next(operations)
                kernel = real(operation["inputs"][1])
                kernel = kernel.transpose((3, 0, 1, 2) if operation["op"].startswith("DEPTH") else (0, 3, 1, 2))
                _set(module, weight=kernel.reshape(module.weight.shape), bias=real(operation["inputs"][2]))
    return _imported(network)


def squeezenet(weights: Path) -> FloatGraph:
    """SqueezeNet 1.0 after Deep Compression: for every layer codes, a codebook and biases."""
    arrays = np.load(weights)
    names = list(dict.fromkeys(name.rsplit("/", 1)[0] for name in arrays))
    network = zoo.squeezenet()
    network.input_shape = (3, 227, 227)
    with torch.no_grad():
        modules = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
        modules[-1].padding = (1, 1)  # as published; it averages over the border too
        for module, name in zip(modules, names, strict=True):
            _set(module, weight=arrays[f"{name}/codebook"][arrays[f"{name}/code"]], bias=arrays[f"{name}/b"])
    return _imported(network)


#: Networks with published weights, by the name that the command takes.
NETWORKS = {"ds_cnn": ds_cnn, "mobilenet_v2": mobilenet_v2, "squeezenet": squeezenet}


def keywords(path: Path) -> tuple[Float32Array, npt.NDArray[np.int64]]:
    """Features (N, 1, 49, 10) and labels (N,) of an archive with ``mfcc`` and ``y``."""
    arrays = np.load(path)
    return arrays["mfcc"][:, None], arrays["y"].astype(np.int64)


def photos(paths: Sequence[Path], network: str) -> Float32Array:
    """Crops of photos and their mirror images, (photos, crops, 3, height, width), as a network wants its input."""
    from PIL import Image

    size = {"mobilenet_v2": 224, "squeezenet": 227}[network]
    result = list[Float32Array]()
    for path in paths:
        image = Image.open(path).convert("RGB")
        for left, top, right, bottom in CROPS:
            side = min(image.size)
            box = (round(left * side), round(top * side), round(image.width - right * side),
                   round(image.height - bottom * side))
            crop = image.crop(box)
            short = min(crop.size)
            x, y = (crop.width - short) // 2, (crop.height - short) // 2
            pixels = np.asarray(crop.crop((x, y, x + short, y + short)).resize((size, size), Image.Resampling.BILINEAR))
            for view in (pixels, pixels[:, ::-1]):
                result.append(_prepared(view.astype(np.float32).transpose(2, 0, 1), network))
    return np.stack(result).reshape(len(paths), 2 * len(CROPS), 3, size, size)


def _prepared(pixels: Float32Array, network: str) -> Float32Array:
    """Pixels 0..255, RGB, as the network wants them."""
    if network == "mobilenet_v2":
        return pixels / 127.5 - 1
    # Caffe: BGR, less the mean of ImageNet.
    return pixels[::-1] - np.asarray([104, 117, 123], np.float32)[:, None, None]


def _set(module: nn.Module, **values: npt.NDArray[Any]) -> None:
    for name, value in values.items():
        parameter = getattr(module, name)
        if tuple(parameter.shape) != value.shape:
            raise BenchError(f"{name} has the shape {value.shape} where the network has {tuple(parameter.shape)}")
        parameter.copy_(torch.from_numpy(np.array(value)))


def _without_norms(network: nn.Module) -> None:
    """Give convolutions biases in place of the batch norms after them."""
    for module in _parents(network):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
            elif isinstance(child, nn.Conv2d) and child.bias is None:
                child.bias = nn.Parameter(child.weight.new_zeros(child.out_channels))


def _parents(network: nn.Module) -> Iterable[nn.Module]:
    return [module for module in network.modules() if list(module.children())]


def _imported(network: zoo.Network) -> FloatGraph:
    dtype = next(network.parameters()).dtype
    return import_module(network.eval(), torch.zeros(2, *network.input_shape, dtype=dtype))
