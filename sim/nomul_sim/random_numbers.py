"""Numbers of random nodes: activations at their ends, sums that end exactly between two codes, biases at the limit."""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt

from nomul.graph import Node, Tensor
from nomul_hw.arithmetic import act_range
from nomul_hw.config import ArrayConfig
from nomul_hw.formats import WeightFormat, get_format
from nomul_hw.planes import PlaneError, split

__all__ = ["FORMATS", "Weights", "aim", "random_clamp", "random_codes", "random_weights"]

#: Formats of layers that have one of their own. Wider ones would do too, but take long to write as planes.
FORMATS = (WeightFormat("odd", (-7, -5, -3, -1, 1, 3, 5, 7)), *(get_format(name) for name in (
    "binary", "ternary", "pot3", "pot3z", "pot4", "pot4z", "exp4", "exp4_sqrt2", "exp5", "fp4_e2m1",
    "int2", "int3", "int4", "int5", "int6", "int8", "int8", "int8", "int10", "int12")))


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights of a convolution, and what they take of an array.

    Attributes
    ----------
    values : int32 array, shape (out channels, in channels / groups, kernel height, kernel width)
        Levels of the format.
    format : WeightFormat, optional
        None for the array's.
    planes : int
        Passes that they take at most.
    reach, filler : int
        What the products of a weight, and of an unused lane, with an activation of 1 add up to at most.
    """

    values: npt.NDArray[np.int32]
    format: WeightFormat | None
    planes: int
    reach: int
    filler: int


def random_codes(config: ArrayConfig, rng: np.random.Generator, shape: tuple[int, ...], *,
                 tame: bool) -> npt.NDArray[np.int8]:
    """Draw activations: any, or only their ends, or few that are not 0; now and then a whole sample at one end."""
    low, high = act_range(config.act_bits)
    match 3 if tame else rng.integers(4):
        case 0:
            codes = rng.choice([low, high], shape)
        case 1:
            codes = rng.choice([low, -1, 0, 1, high], shape)
        case _:
            codes = rng.integers(low, high, shape, endpoint=True)
    if rng.random() < (0.05 if tame else 0.25):
        codes[rng.integers(len(codes))] = rng.choice([low, 0, high])
    return codes.astype(np.int8)


def random_weights(config: ArrayConfig, rng: np.random.Generator, shape: tuple[int, int, int, int],
                   fmt: WeightFormat | None, *, zeros: bool) -> Weights | None:
    """Draw weights: any level, or the outermost, or few that are not small; some output channels of one level only.

    Parameters
    ----------
    fmt : WeightFormat, optional
        Whose levels; the array's where it is None.
    zeros : bool
        Whether the array must hold zeros besides.

    Returns
    -------
    Weights or None
        None if no planes of the array hold them.
    """
    places = config.plane_shift
    assert places is not None  # the configuration has filled it in
    if not _writable(fmt or config.format, config.format, places, zeros):
        return None
    levels = np.asarray((fmt or config.format).levels, dtype=np.int32)
    if rng.random() < 0.2:
        weights = rng.choice(levels[[0, -1]], shape)
    elif rng.random() < 0.2:
        weights = np.where(rng.random(shape) < 0.1, rng.choice(levels, shape), levels[np.argmin(np.abs(levels))])
    else:
        weights = rng.choice(levels, shape)
    uniform = rng.random(shape[0]) < 0.1
    weights[uniform] = rng.choice(levels, (int(uniform.sum()), 1, 1, 1))
    planes = split(np.union1d(weights, 0) if zeros else weights, config.format, places)
    reach, filler = np.zeros(1, dtype=np.int64), 0
    for shift, plane in zip(planes.shifts, planes.weights, strict=True):
        reach = (reach << (places if shift else 0)) + np.abs(plane.astype(np.int64))
        filler = (filler << (places if shift else 0)) + min(map(abs, config.format.levels))
    return Weights(weights, fmt, len(planes.shifts), int(reach.max()), filler)


@cache
def _writable(fmt: WeightFormat, array: WeightFormat, places: int, zeros: bool) -> bool:
    """Whether any weights of a format, and zeros perhaps, can be written as planes of an array's."""
    try:
        split(np.union1d(fmt.levels, 0) if zeros else fmt.levels, array, places)
    except PlaneError:
        return False
    return True


def random_clamp(config: ArrayConfig, rng: np.random.Generator, zero_point: int, *, tame: bool) -> tuple[int, int]:
    """Draw the lowest and highest code of a node's output."""
    low, high = act_range(config.act_bits)
    match rng.integers(4 if tame else 5):
        case 0 | 1:
            return low, high
        case 2:  # ReLU
            return zero_point, high
        case 3:  # ReLU6: ends somewhere above
            return zero_point, int(rng.integers(high // 2 if tame else zero_point, high, endpoint=True))
        case _:
            least, most = sorted(rng.integers(low, high, 2, endpoint=True).tolist())
            return least, most


def aim(config: ArrayConfig, rng: np.random.Generator, node: Node, acc: npt.NDArray[np.int64], target: Tensor, *,
        largest: int, drop: int, tame: bool) -> Node:
    """Give a node gains and biases, most of them such that sums end near or exactly between two codes.

    A sum ``v`` is such a tie where it is an odd multiple of half of ``2**shift``, whatever the (odd) multiplier.

    Parameters
    ----------
    acc : int64 array, shape (batch, channels, height, width)
        The node's sums.
    target : Tensor
        What the node writes.
    largest : int
        Bound of its sums, whatever the input.
    drop : int
        How much finer the scale of its skip tensor is.
    tame : bool
        Whether nearly all channels shall keep their spread, for nodes behind; else a good part saturate or vanish.
    """
    channels = target.channels
    room = (1 << config.acc_bits - 1) - 1 - largest
    multiplier = rng.choice(config.gain_multipliers, channels).astype(np.int64)

    # A shift that spreads this layer's sums over the codes, give or take; or anything.
    spread = acc.max(axis=(0, 2, 3)) - acc.min(axis=(0, 2, 3))
    typical = np.log2((spread + 1) * multiplier) - config.act_bits + rng.integers(-2, 3, channels)
    shift = np.clip(np.round(typical).astype(np.int64), 0, config.max_gain_shift)
    wild = rng.random(channels) < (0.05 if tame else 0.25)
    shift[wild] = rng.choice([0, 1, 2, config.max_gain_shift - 1, config.max_gain_shift,
                              int(rng.integers(0, config.max_gain_shift + 1))], int(wild.sum()))
    shift = np.maximum(shift, drop)  # the skip tensor is added that many places below the point

    # Aim one sum of every channel at a place between two codes, or one unit beside it.
    sums = acc.transpose(1, 0, 2, 3).reshape(channels, -1)
    aimed = sums[np.arange(channels), rng.integers(0, sums.shape[1], channels)]
    code = rng.integers(node.low - 2, node.high + 2, channels, endpoint=True) - target.zero_point
    # The v of the tie below `code` is (2 code - 1) 2**(shift - 1) / multiplier, at the odd multiple nearest to it.
    half = np.int64(1) << np.maximum(shift - 1, 0)
    odd = 2 * ((2 * code - 1) // (2 * multiplier)) + 1
    bias = odd * half - aimed + rng.choice([0, 0, 0, -1, 1], channels)
    other = rng.random(channels) + (0.25 if tame else 0)
    bias = np.where(other < 0.1, 0, bias)
    bias = np.where((other >= 0.1) & (other < 0.2), rng.choice([-room, room], channels), bias)
    bias = np.where((other >= 0.2) & (other < 0.3), rng.integers(-room, room, channels, endpoint=True), bias)
    return replace(node, bias=np.clip(bias, -room, room), multiplier=multiplier, shift=shift)
