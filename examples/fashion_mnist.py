"""Fashion-MNIST with a ResNet-8: trained in float, then with power-of-two, exponential, ternary or few-bit weights.

    python examples/fashion_mnist.py DATA_FOLDER --method float pot3 exp4 ternary w4a4 --seed 0 1 2

The folder holds the four IDX files of the data set, as they are distributed (compressed or not); nothing is downloaded.
Every method starts at the float network of its seed, which is trained first if ``--out`` does not have it. What is
interrupted goes on where it was. A line of JSON per result is added to ``results.jsonl`` in ``--out``.
"""

import argparse
import gzip
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from nomul import save_graph, zoo
from nomul.quantize import QuantizeConfig, QuantizedNetwork, quantize
from nomul.quantize.train import (
    Absmean,
    Discrete,
    StraightThrough,
    Tga,
    TrainConfig,
    Ttq,
    WeightRule,
    accuracy,
    show,
    train,
)

CLASSES = 10
CALIBRATION = 256


@dataclass(frozen=True)
class Method:
    """Format of the weights, how they are trained, width of the activations, largest learning rate."""

    format: str
    rule: WeightRule = field(default_factory=StraightThrough)
    act_bits: int = 8
    rate: float = 1e-3


METHODS = {
    "pot3": Method("pot3"),
    "exp4": Method("exp4"),
    # Thresholds and scales of each channel: there is no batch norm any more that would even out a layer's.
    "ternary": Method("ternary", Tga(per="channel", centre=False), rate=3e-4),
    "ternary-layer": Method("ternary", Tga(), rate=1e-4),
    "ternary-ste": Method("ternary"),
    "ternary-ttq": Method("exp4", Ttq(), rate=2e-3),
    "ternary-absmean": Method("ternary", Absmean(), rate=2e-3),
    "w4a4": Method("pot4z", act_bits=4),
    "w4a4-discrete": Method("pot4z", Discrete(), act_bits=4),
}


def load(folder: Path) -> dict[str, torch.Tensor]:
    """Images (N, 1, 28, 28) as multiples of 1/256 in 0..1, and classes (N,), of both parts."""
    data = {}
    for part, prefix in (("train", "train"), ("test", "t10k")):
        data[f"{part}_x"] = torch.from_numpy(_read(folder, f"{prefix}*-images-idx3-ubyte*")[:, None] / np.float32(256))
        data[f"{part}_y"] = torch.from_numpy(_read(folder, f"{prefix}*-labels-idx1-ubyte*").astype(np.int64))
    return data


def _read(folder: Path, pattern: str) -> np.ndarray:
    files = sorted(folder.glob(pattern))
    if not files:
        sys.exit(f"{folder}: there is no file {pattern}")
    raw = files[0].read_bytes()
    raw = gzip.decompress(raw) if files[0].suffix == ".gz" else raw
    shape = np.frombuffer(raw, ">i4", raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror half of the images, and move all of them by up to two pixels."""
    mirrored = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
    down, right = torch.randint(-2, 3, (2,), generator=generator).tolist()
    x = torch.where(mirrored, x.flip(3), x)
    return nn.functional.pad(x, (2 + right, 2 - right, 2 + down, 2 - down))[:, :, 2:30, 2:30]


def build(seed: int) -> nn.Module:
    """MLPerf Tiny's ResNet-8 for one channel; the memory format is the one that CPUs convolve fastest in."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = zoo.resnet8(CLASSES)
        model[0] = nn.Conv2d(1, 16, 3, padding=1, bias=False)
    model.input_shape = (1, 28, 28)
    return model.to(memory_format=torch.channels_last)


def train_float(data: dict[str, torch.Tensor], seed: int, epochs: int, out: Path) -> nn.Module:
    """Train in float, or read what was trained."""
    config = TrainConfig(epochs, rate=5e-3, decay=0.05, smoothing=0.05, seed=seed)
    return train(build(seed), data["train_x"], data["train_y"], config, augment=augment, progress=show,
                 checkpoint=out / f"float-{seed}.pt")


def train_quantized(data: dict[str, torch.Tensor], model: nn.Module, name: str, seed: int, epochs: int,
                    out: Path) -> tuple[QuantizedNetwork, dict[str, float]]:
    """Quantize the float network, then train what came out; also returns the accuracies before and after."""
    method = METHODS[name]
    network = quantize(model, data["train_x"][:CALIBRATION], QuantizeConfig(method.format, act_bits=method.act_bits))
    network = network.with_rule(method.rule)
    network.mode = "integer"
    started = accuracy(network, data["test_x"], data["test_y"])
    # One pass per batch trains thresholds and weights together, in half the time of TGA's two.
    config = TrainConfig(epochs, rate=method.rate, smoothing=0.05, threshold_pass=False, threshold_rate=1e-3, seed=seed)
    train(network, data["train_x"], data["train_y"], config, augment=augment, progress=show,
          checkpoint=out / f"{name}-{seed}.pt")
    network.mode = "integer"
    return network, {"started": started, "accuracy": accuracy(network, data["test_x"], data["test_y"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--method", nargs="+", choices=["float", *METHODS], default=["float"])
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=4, help="of the quantized training")
    parser.add_argument("--float-epochs", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("build/fashion_mnist"))
    arguments = parser.parse_args()
    data = load(arguments.folder)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seed:
        model = train_float(data, seed, arguments.float_epochs, arguments.out)
        for name in arguments.method:
            began, result = time.monotonic(), {"method": name, "seed": seed, "float_epochs": arguments.float_epochs}
            if name == "float":
                result["accuracy"] = accuracy(model, data["test_x"], data["test_y"])
            else:
                network, found = train_quantized(data, model, name, seed, arguments.epochs, arguments.out)
                result |= {"epochs": arguments.epochs, **found}
                save_graph(network.graph, arguments.out / f"{name}-{seed}")
            result |= {"images": len(data["test_x"]), "seconds": round(time.monotonic() - began)}
            print(json.dumps(result), flush=True)
            with (arguments.out / "results.jsonl").open("a") as file:
                file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
