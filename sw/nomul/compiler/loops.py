"""Loops: how the address generator walks a layer, from shapes alone.

This decides the cycles of a layer, for the compiler as for the estimate of a network that has no weights yet.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from nomul_hw.config import ArrayConfig
from nomul_hw.descriptor import DESCRIPTOR, LOOPS, LayerOp
from nomul_hw.timing import hold_cycles

from ..shapes import LayerShape, TensorShape
from .allocation import CompileError

__all__ = ["ADDRESSES", "MAX_COORDINATE", "Strip", "operation", "parameter_words", "strips", "weight_words"]

#: Coordinates are compared modulo this: a map and its padding must not meet from both sides.
MAX_COORDINATE = 1 << 12

#: Word addresses, and steps between them, are modulo this.
ADDRESSES = 1 << 16

#: Descriptor fields of every loop.
_LOOP_FIELDS = [(f"count_{level}", f"step_{level}", f"x_step_{level}", f"y_step_{level}") for level in range(LOOPS)]

#: What a layer can be too large for: descriptor fields, their smallest and largest value.
_BOUNDS = [(field.name, -(1 << field.bits - 1) if field.signed else 0, (1 << field.bits - field.signed) - 1)
           for field in DESCRIPTOR
           if field.name.startswith(("count_", "x_", "y_", "hold", "edge_lanes", "in_width", "in_height"))]


class _Loop(NamedTuple):
    """One loop of the address generator: iterations, and what an iteration moves."""

    iterations: int
    address: int = 0
    x: int = 0
    y: int = 0


class Strip(NamedTuple):
    """A layer, or as many of its output rows as run at once.

    Parameters
    ----------
    values : dict of str to int
        Descriptor values: the operation, its loops, its window, the hold. What cycles depend on is among them.
    first_tap, first_output : int
        Word addresses, from the start of the input and of the output tensor.
    sums : int
        Accumulators that it takes; 0 where no sum is kept.
    macs : int
        Multiply-accumulates of one sample, padding counted; 0 for a pool.
    """

    values: dict[str, int]
    first_tap: int
    first_output: int
    sums: int
    macs: int


def operation(layer: LayerShape, config: ArrayConfig) -> LayerOp:
    """What runs a layer.

    Raises
    ------
    CompileError
        If nothing does.
    """
    if layer.kind == "max":
        return LayerOp.MAX_POOL
    if layer.kind == "sum":
        return LayerOp.SUM_POOL
    if layer.groups > 1:
        raise CompileError(f"layer {layer.name!r}: convolutions in groups, depthwise ones among them, are not "
                           f"supported yet")
    if layer.format is not None and layer.format.levels != config.format.levels:
        raise CompileError(f"layer {layer.name!r} has {layer.format.name} weights, the array {config.format.name}: "
                           f"weights of several planes are not supported yet")
    return LayerOp.CONV


def weight_words(layer: LayerShape, source: TensorShape, target: TensorShape, config: ArrayConfig) -> int:
    """Words of weight memory that a layer takes."""
    if operation(layer, config) is not LayerOp.CONV:
        return 0
    tiles = -(-target.channels // config.cols) * layer.taps * -(-source.channels // config.depth)
    return tiles * config.rows


def parameter_words(layer: LayerShape, target: TensorShape, config: ArrayConfig) -> int:
    """Words of parameter memory that a layer takes: whole blocks of output channels."""
    group = config.cols if operation(layer, config) is LayerOp.CONV else config.depth
    return -(-target.channels // group) * group // config.requantize_lanes


def strips(layer: LayerShape, source: TensorShape, target: TensorShape, config: ArrayConfig) -> Iterator[Strip]:
    """Make the strips of a layer: one, or several where it has more output pixels than there are accumulators.

    Raises
    ------
    CompileError
        If the array cannot run the layer.
    """
    op, words, taps = operation(layer, config), -(-source.channels // config.depth), layer.taps
    height = target.height
    keeps_sums = op is LayerOp.CONV and words * taps > 1
    if keeps_sums:
        height = min(height, config.memory.accumulators // target.width)
        if not height:
            raise CompileError(f"layer {layer.name!r}: a row of {target.width} output pixels needs "
                               f"memory.accumulators of at least {target.width}, not {config.memory.accumulators}")
    if op is LayerOp.SUM_POOL and taps > 1 << (config.pool_bits - config.act_bits):
        raise CompileError(f"layer {layer.name!r}: a window of {taps} pixels is too large to sum, the array sums "
                           f"{1 << (config.pool_bits - config.act_bits)}")
    for axis, size, padding in (("height", source.height, layer.padding[::2]),
                                ("width", source.width, layer.padding[1::2])):
        if size + sum(padding) > MAX_COORDINATE:
            raise CompileError(f"layer {layer.name!r}: an input {axis} of {size} with its padding is more than the "
                               f"{MAX_COORDINATE} that a descriptor reaches")
    kernel = (
        _Loop(layer.kernel[1], layer.dilation[1], x=layer.dilation[1]),
        _Loop(layer.kernel[0], layer.dilation[0] * source.width, y=layer.dilation[0]),
    )
    channels = _Loop(words, source.pixels)
    blocks = _Loop(-(-target.channels // config.cols))
    hold, weights = hold_cycles(config, op, taps), target.channels * source.channels // layer.groups * taps
    for top in range(0, target.height, height):
        rows = min(height, target.height - top)
        y_start, x_start = top * layer.stride[0] - layer.padding[0], -layer.padding[1]
        pixels = (
            _Loop(target.width, layer.stride[1], x=layer.stride[1]),
            _Loop(rows, layer.stride[0] * source.width, y=layer.stride[0]),
        )
        loops = (*pixels, channels, *kernel, blocks) if op is LayerOp.CONV else (*kernel, *pixels, channels, _Loop(1))
        values = {
            "op": int(op),
            "hold": hold,
            "edge_lanes": source.channels - (words - 1) * config.depth,
            "in_width": source.width,
            "in_height": source.height,
            "x_start": x_start,
            "y_start": y_start,
        }
        _add_loops(values, loops)
        for name, low, high in _BOUNDS:
            if not low <= values[name] <= high:
                raise CompileError(f"layer {layer.name!r} is too large for a descriptor: field {name} must be in "
                                   f"{low}..{high}, not {values[name]}")
        count = rows * target.width
        yield Strip(values, y_start * source.width + x_start, top * target.width, count if keeps_sums else 0,
                    count * weights if op is LayerOp.CONV else 0)


def _add_loops(values: dict[str, int], loops: Sequence[_Loop]) -> None:
    """Add the descriptor values of a loop nest: a step of a loop also rewinds the loops inside it."""
    address = x = y = 0  # what the loops inside have moved
    for (count, step, x_step, y_step), (iterations, by_address, by_x, by_y) in zip(_LOOP_FIELDS, loops, strict=True):
        values[count] = last = iterations - 1
        values[step] = (by_address - address) % ADDRESSES
        values[x_step] = by_x - x
        values[y_step] = by_y - y
        address += last * by_address
        x += last * by_x
        y += last * by_y
