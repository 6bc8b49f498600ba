"""Shapes of random nodes: maps of one pixel, one row or one column, partly filled words, windows in the padding."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from nomul.graph import Tensor, window_output
from nomul_hw.config import ArrayConfig

__all__ = ["Kind", "Shape", "any_shape", "map_size", "padded", "random_channels", "same_size",
           "smallest_shape"]

Kind = Literal["conv", "max", "sum"]

#: Chances of what a node is.
_KINDS = {"conv": 0.35, "grouped": 0.1, "depthwise": 0.15, "linear": 0.1, "max": 0.15, "sum": 0.1, "global": 0.05}


@dataclass(frozen=True)
class Shape:
    """A node before it has numbers; ``size`` is the height and width of what it makes."""

    kind: Kind
    channels: int
    size: tuple[int, int]
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


def random_channels(config: ArrayConfig, rng: np.random.Generator) -> int:
    """Channel counts around the widths that the machine works in, and small ones."""
    match rng.integers(4):
        case 0:
            return int(rng.integers(1, 5))
        case 1:
            return int(rng.integers(1, config.depth + 1))
        case 2:
            around = int(rng.choice([config.depth, config.cols])) * int(rng.integers(1, 3))
            return max(1, around + int(rng.integers(-1, 2)))
        case _:
            return int(rng.integers(1, 2 * max(config.depth, config.cols) + 2))


def map_size(rng: np.random.Generator, words: int) -> tuple[int, int]:
    """Height and width of a network's input, of at most so many pixels."""
    most = max(1, min(10, int(words ** 0.5)))
    match rng.integers(8):
        case 0:
            return 1, 1
        case 1:  # one row, as in convolutions over one dimension, or one column
            long = int(rng.integers(1, min(4 * most, most * most) + 1))
            return (1, long) if rng.random() < 0.7 else (long, 1)
        case _:
            height, width = rng.integers(1, most + 1, 2).tolist()
            return height, width


def smallest_shape(source: Tensor) -> Shape:
    """Make the node that takes least: one channel of few pixels."""
    return Shape("conv", 1, (window_output(source.height, 1, 3, 0, 0), window_output(source.width, 1, 3, 0, 0)),
                 stride=(3, 3))


def any_shape(config: ArrayConfig, rng: np.random.Generator, source: Tensor) -> Shape | None:
    """Draw a node of any kind that reads ``source``; None if its window does not fit."""
    match str(rng.choice(list(_KINDS), p=list(_KINDS.values()))):
        case "conv":
            return _windowed(rng, "conv", random_channels(config, rng), source)
        case "grouped":
            groups = _divisor(rng, source.channels)
            return _windowed(rng, "conv", groups * int(rng.integers(1, 4)), source, groups=groups)
        case "depthwise":
            return _windowed(rng, "conv", source.channels, source, groups=source.channels, small=rng.random() < 0.8)
        case "linear":
            return Shape("conv", random_channels(config, rng), (1, 1), (source.height, source.width))
        case "max":
            return _windowed(rng, "max", source.channels, source, small=rng.random() < 0.6)
        case "sum":
            return _windowed(rng, "sum", source.channels, source)
        case _:
            return Shape(rng.choice(["max", "sum"]), source.channels, (1, 1), (source.height, source.width))


def _divisor(rng: np.random.Generator, channels: int) -> int:
    """Draw a number of groups: neither one nor all channels, if there is such a number."""
    divisors = [count for count in range(2, channels) if channels % count == 0]
    return int(rng.choice(divisors or [channels]))


def _windowed(rng: np.random.Generator, kind: Kind, channels: int, source: Tensor, *, groups: int = 1,
              small: bool = False) -> Shape | None:
    """Draw a window; ``small`` ones are such as the window unit takes."""
    dilation = (1, 1)
    if small:
        kernel = (int(rng.choice([1, 2, 3, 3])), int(rng.choice([1, 2, 3, 3])))
        stride = (int(rng.integers(1, 3)), int(rng.integers(1, 3)))
    else:
        if rng.random() < 0.3:
            kernel = (1, 1) if rng.random() < 0.5 else (3, 3)
        else:
            kernel = (int(rng.integers(1, 6)), int(rng.integers(1, 6)))
        stride = (int(rng.choice([1, 1, 2, 3])), int(rng.choice([1, 1, 2, 3])))
        if rng.random() < 0.2:
            dilation = (int(rng.integers(1, 3)), int(rng.integers(1, 3)))
    # Up to the kernel's size: then a window lies in the padding altogether.
    top, left, bottom, right = (0, 0, 0, 0) if rng.random() < 0.3 else (
        int(rng.integers(0, kernel[side % 2] + (rng.random() < 0.2))) for side in range(4)
    )
    size = (window_output(source.height, kernel[0], stride[0], top, bottom, dilation[0]),
            window_output(source.width, kernel[1], stride[1], left, right, dilation[1]))
    if min(size) < 1:
        return None
    return Shape(kind, channels, size, kernel, stride, (top, left, bottom, right), dilation, groups)


def padded(kind: Kind, channels: int, source: Tensor, kernel: tuple[int, int], *, stride: int = 1,
           groups: int = 1) -> Shape:
    """Make a node of an odd window with padding around, as most layers of real networks have."""
    around = (kernel[0] // 2, kernel[1] // 2)
    size = ((source.height - 1) // stride + 1, (source.width - 1) // stride + 1)
    return Shape(kind, channels, size, kernel, (stride, stride), (*around, *around), groups=groups)


def same_size(rng: np.random.Generator, source: Tensor, channels: int) -> Shape:
    """Draw a node that keeps the height and width of ``source``; any kind, where it keeps the channels too."""
    kernel = (int(rng.choice([1, 3])), int(rng.choice([1, 3])))
    if channels != source.channels or rng.random() < 0.5:
        return padded("conv", channels, source, kernel)
    kind: Kind = rng.choice(["conv", "max", "sum"])
    return padded(kind, channels, source, kernel, groups=channels if kind == "conv" else 1)
