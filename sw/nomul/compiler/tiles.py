"""Tiles: a layer's weights as the array and the window unit take them, and the proof that its sums are right.

**No sum overflows.** Accumulators and the shifts between planes are exact modulo ``2**acc_bits``: each is an
addition, or a multiplication by a power of two, whose upper bits are dropped. So it does not matter what a sum holds
on its way: if the number that the requantizer takes, the raw sum of all products, lies within ``acc_bits`` bits, then
it is right. So is what becomes of it, if the sum with its bias lies within ``acc_bits`` bits too
(:attr:`nomul_hw.config.ArrayConfig.requantize_bits`); the bias itself need not. What the array and the window unit
hand to the accumulators is as wide as it needs to be (:meth:`nomul_hw.config.ArrayConfig.sum_bits`).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nomul_hw.arithmetic import act_range
from nomul_hw.config import WINDOW, ArrayConfig
from nomul_hw.planes import split

from ..graph import Conv, Node, Pool
from .errors import CompileError
from .lanes import Lanes
from .loops import Geometry, Run
from .packing import pack_words

__all__ = ["Tiles", "check_sums", "conv_tiles", "depthwise_tiles"]

Int64Array = npt.NDArray[np.int64]


class Tiles(NamedTuple):
    """A layer's weights.

    Parameters
    ----------
    words : uint32 array, shape (words, host words)
        Weight memory, in the order of use.
    correction : int64 array, shape (out_channels,)
        What the bias must add: the inversions' ones, less what unused lanes and taps contribute.
    shifts : int
        Planes before which the accumulators shift, a bit each.
    """

    words: npt.NDArray[np.uint32]
    correction: Int64Array
    shifts: int


def check_sums(node: Node, config: ArrayConfig, correction: Int64Array | None = None) -> None:
    """Prove that a sum with its bias fits an accumulator, and a raw sum too if it is known, for any input.

    Parameters
    ----------
    correction : int64 array, shape (out_channels,), optional
        What the raw sums lack: see :class:`Tiles`.

    Raises
    ------
    CompileError
        If they do not; the message says what would do.
    """
    low, high = act_range(config.act_bits)
    if isinstance(node, Conv):
        weights = node.weights.reshape(len(node.weights), -1)
        negative, positive = (part.sum(axis=1, dtype=np.int64)
                              for part in (np.minimum(weights, 0), np.maximum(weights, 0)))
        least, most = low * positive + high * negative, high * positive + low * negative
    else:
        assert isinstance(node, Pool)
        taps = node.kernel[0] * node.kernel[1] if node.kind == "sum" else 1
        least, most = np.full_like(node.bias, low * taps), np.full_like(node.bias, high * taps)
    added = [node.bias] if correction is None else [node.bias, -correction]
    reached = int(min((least + each).min() for each in added)), int(max((most + each).max() for each in added))
    needed = 1 + max((value if value >= 0 else ~value).bit_length() for value in reached)
    if needed > config.acc_bits:
        raise CompileError(f"layer {node.name!r}: a sum could reach {reached[0]}..{reached[1]} with its bias, more "
                           f"than acc_bits = {config.acc_bits} hold: acc_bits = {needed} would do")


def conv_tiles(node: Conv, geometry: Geometry, zero_point: int) -> Tiles:
    """Lay a convolution's weights out for the array.

    The order of use is: run, block of output channels, plane, kernel row, kernel column, channel word, array row.

    Parameters
    ----------
    zero_point : int
        Of the input: what unused lanes read.
    """
    config, reads = geometry.config, geometry.reads
    # Unused lanes. In groups they may read anything, since a block does not end with the tensor; so may all lanes of a
    # weight of zero. Other formats take a weight that the layer has anyway, lest it take more planes.
    zero = geometry.layer.groups > 1 or config.format.zero
    filler = 0 if zero else int(node.weights.flat[np.abs(node.weights).argmin()])
    assert config.plane_shift is not None
    shifts, planes = _planes(node, filler, config)

    channels, inputs, height, width = node.weights.shape
    group = np.arange(channels) // (channels // node.groups)
    read = reads.positions[group[:, None] * inputs + np.arange(inputs)]  # lane that each weight reads
    block, column = np.divmod(geometry.writes.positions, config.cols)
    words, correction = [], np.zeros(channels, dtype=np.int64)
    for run in geometry.runs:
        here = np.flatnonzero((block >= run.first_block) & (block < run.first_block + run.blocks))
        index = block[here] - run.first_block
        lane = read[here] - (run.first_word + run.step * index)[:, None] * config.depth
        codes = np.empty((run.blocks, len(planes), run.words * config.depth, config.cols, height, width), np.uint8)
        unused = height * width * (run.words * config.depth - inputs)
        for plane, (weights, fill) in enumerate(planes):
            codes[:, plane] = config.format.encode(fill)
            codes[index[:, None], plane, lane, column[here][:, None]] = config.format.encode(weights[here])
            raw = config.product.corrections(weights[here]).sum(axis=(1, 2, 3))
            raw += config.product.corrections(fill) * unused
            places = config.plane_shift * sum(shifts[plane + 1:])
            correction[here] += raw << places
        correction[here] -= filler * zero_point * unused
        words.append(_conv_words(codes, run, config))
    return Tiles(np.concatenate(words), correction, sum(1 << plane for plane, shift in enumerate(shifts) if shift))


def _planes(node: Conv, filler: int, config: ArrayConfig
            ) -> tuple[tuple[bool, ...], list[tuple[npt.NDArray[np.int32], int]]]:
    """The planes of a convolution: before which to shift, and the weights and the filler's digit of each."""
    assert config.plane_shift is not None
    if filler in config.format.levels and config.format.holds(node.weights):
        return (False,), [(node.weights, filler)]
    planes = split(np.append(node.weights, filler), config.format, config.plane_shift)
    return planes.shifts, [(plane[:-1].reshape(node.weights.shape), int(plane[-1])) for plane in planes.weights]


def _conv_words(codes: npt.NDArray[np.uint8], run: Run, config: ArrayConfig) -> npt.NDArray[np.uint32]:
    """Order codes (block, plane, lane of the words, column, ky, kx) as they are used."""
    blocks, planes, _, cols, height, width = codes.shape
    codes = codes.reshape(blocks, planes, run.words, config.rows, config.lanes, cols, height, width)
    codes = codes.transpose(0, 1, 6, 7, 2, 3, 5, 4)  # (block, plane, ky, kx, word, row, column, lane)
    return pack_words(codes.reshape(-1, cols * config.lanes), config.format.bits)


def depthwise_tiles(node: Conv, lanes: Lanes, zero_point: int, *, pair: bool, config: ArrayConfig) -> Tiles:
    """Lay a depthwise convolution's weights out for the window unit: a tile per channel word.

    Parameters
    ----------
    lanes : Lanes
        Of input and output.
    zero_point : int
        Of the input: what the taps read that a smaller kernel does not have.
    pair : bool
        Whether two columns are read at once.
    """
    fmt = config.format
    filler = int(fmt.decode(fmt.smallest_code))
    channels, _, height, width = node.weights.shape
    window = np.full((channels, WINDOW, WINDOW), filler, dtype=np.int32)
    window[:, WINDOW - height:, WINDOW - width:] = node.weights[:, 0]
    correction = config.product.corrections(window).sum(axis=(1, 2))
    correction -= filler * zero_point * (WINDOW * WINDOW - height * width)

    # The middle column of a window is what was newest before; of a pair that is the first column.
    taps = window[:, :, [1, 0, 2] if pair else [0, 1, 2]].reshape(channels, -1)
    words, groups = lanes.filled_words, config.window_groups
    levels = np.full((words * config.depth, groups * config.cols), filler, dtype=np.int32)
    levels[lanes.positions, :WINDOW * WINDOW] = taps
    codes = fmt.encode(levels).reshape(words, config.rows, config.lanes, groups, config.cols)
    codes = codes.transpose(0, 3, 1, 4, 2)  # (word, group, row, column, lane)
    return Tiles(pack_words(codes.reshape(-1, config.cols * config.lanes), fmt.bits), correction, 0)
