"""A small, complete example: scikit-learn's handwritten digits and a network that is trained on them in seconds.

    from nomul import digits

    data = digits.load()
    model = digits.train()

The images ship inside scikit-learn, 1,797 of them with 8x8 pixels, so nothing is downloaded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Digits", "build_model", "load", "train"]

#: Share of the images that is kept for testing: one in four.
TEST_SHARE = 0.25

EPOCHS = 12
BATCH = 64
LEARNING_RATE = 1e-2


@dataclass(frozen=True, eq=False)
class Digits:
    """The data set, split.

    Parameters
    ----------
    train_x, test_x : float32 array, shape (N, 1, 8, 8)
        Images; pixels are 0 (paper) to 1 (ink) in steps of 1/16.
    train_y, test_y : int64 array, shape (N,)
        The digit that each image shows.
    """

    train_x: npt.NDArray[np.float32]
    train_y: npt.NDArray[np.int64]
    test_x: npt.NDArray[np.float32]
    test_y: npt.NDArray[np.int64]


def load() -> Digits:
    """Load the images and split them, always in the same way."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = (bunch.images[:, np.newaxis] / 16).astype(np.float32)  # (1797, 1, 8, 8)
    y = bunch.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(x))
    test, training = order[: int(TEST_SHARE * len(x))], order[int(TEST_SHARE * len(x)) :]
    return Digits(x[training], y[training], x[test], y[test])


def build_model() -> "nn.Module":
    """Build the network, untrained: three convolutions, two pools, one linear layer.

    Channels are multiples of 16, so that they fill an array of 16 rows and 16 columns; the first layer, with its one
    input channel, cannot.
    """
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),   # (16, 8, 8)
        nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),  # (32, 8, 8)
        nn.MaxPool2d(2),                                                             # (32, 4, 4)
        nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),  # (64, 4, 4)
        nn.AvgPool2d(2),                                                             # (64, 2, 2)
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(256, 10),
    )


def train(seed: int = 0, epochs: int = EPOCHS, progress: Callable[[int, float], None] | None = None) -> "nn.Module":
    """Train the network on the training split; the same seed gives the same network.

    Parameters
    ----------
    seed : int
        Of the initial weights and the order of the images.
    epochs : int
        Passes over the training split.
    progress : callable, optional
        Called after every epoch with its number, from 1, and the mean loss.

    Returns
    -------
    nn.Module
        The trained network, in evaluation mode.
    """
    import torch
    from torch import nn

    data = load()
    x, y = torch.from_numpy(data.train_x), torch.from_numpy(data.train_y)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in another order would be another network
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build_model()
            steps = -(-len(x) // BATCH) * epochs
            optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
            loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
            model.train()
            for epoch in range(1, epochs + 1):
                total = 0.0
                order = torch.randperm(len(x))
                for start in range(0, len(x), BATCH):
                    batch = order[start : start + BATCH]
                    loss = loss_of(model(x[batch]), y[batch])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    total += float(loss.detach()) * len(batch)
                if progress:
                    progress(epoch, total / len(x))
    finally:
        torch.set_num_threads(threads)
    return model.eval()
