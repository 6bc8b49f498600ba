"""Lowering: from a graph's nodes to descriptors, parameters and weight tiles."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nomul_hw.config import ArrayConfig
from nomul_hw.descriptor import (
    DESCRIPTOR,
    DESCRIPTOR_WORDS,
    HOST_BITS,
    LOOPS,
    LayerOp,
    pack,
    parameter_fields,
    parameter_values,
    to_host_words,
)
from nomul_hw.timing import hold_cycles

from ..graph import Conv, Graph, Node, Pool, Tensor
from .allocation import CompileError, allocate
from .banks import with_copies
from .input_packing import packed_graph, packing_windows
from .packing import pack_fields, pack_words
from .program import Layer, Placement, Program

__all__ = ["CompileError", "compile_graph"]

Int64Array = npt.NDArray[np.int64]

#: Coordinates are compared modulo this: a map and its padding must not meet from both sides.
MAX_COORDINATE = 1 << 12


class _Loop(NamedTuple):
    """One loop of the address generator: iterations, and what an iteration moves."""

    iterations: int
    address: int = 0
    x: int = 0
    y: int = 0


def compile_graph(graph: Graph, config: ArrayConfig) -> Program:
    """Compile a graph for an accelerator.

    The weights' order in memory is the order of use: block of output channels, kernel row, kernel column, channel
    word, array row. A layer whose output has more pixels than there are accumulators runs as several strips of rows.
    A first convolution of few channels has its window packed into channels, as far as the memories allow.

    Raises
    ------
    CompileError
        If the graph was quantized for another array, does not fit its memories, or an accumulator could overflow.
    """
    _check_match(graph, config)
    for window in packing_windows(graph, config):
        try:
            return _lower(graph, window, config)
        except CompileError:
            if window == (1, 1):
                raise
    raise AssertionError("no packing is always possible")


def _lower(original: Graph, window: tuple[int, int], config: ArrayConfig) -> Program:
    """Compile a graph with a window of its first convolution packed into channels."""
    graph, owners = with_copies(packed_graph(original, window))
    placements = allocate(graph, config)

    layers: list[Layer] = []
    parameter_words: list[npt.NDArray[np.uint32]] = []
    weight_words: list[npt.NDArray[np.uint32]] = []
    parameter_at = weight_at = 0
    for node in graph.nodes:
        source, target = graph.tensor(node.input), graph.tensor(node.output)
        correction = np.zeros(target.channels, dtype=np.int64)
        if isinstance(node, Conv):
            tiles, correction = _weight_tiles(node, source, config)
            weight_words.append(tiles)
        parameters = _parameters(node, correction, target.zero_point, graph.skip_drop(node), config)
        parameter_words.append(parameters)
        for values in _descriptors(node, source, target, placements, config):
            if node.skip is not None:
                skip, output = placements[node.skip], placements[node.output]
                values.update(skip=1, skip_low=int(graph.tensor(node.skip).zero_point != 0),
                              skip_drop=graph.skip_drop(node),
                              skip_address=(skip.address - output.address) % (1 << 16))
            values.update(parameter_base=parameter_at, weight_base=weight_at)
            if isinstance(node, Conv):
                macs = values["count_0"] + 1
                macs *= (values["count_1"] + 1) * node.weights.size
            else:
                macs = 0
            layers.append(Layer(owners.get(node.name, node.name), values, macs))
        parameter_at += len(parameters)
        weight_at += len(tiles) if isinstance(node, Conv) else 0

    # The loader runs ahead: when a layer's last tile is in use it fetches the first tile of the next convolution.
    following = 0
    for index in reversed(range(len(layers))):
        values = {**layers[index].values, "weight_next": following}
        layers[index] = replace(layers[index], values=values)
        if values["op"] == LayerOp.CONV:
            following = values["weight_base"]

    for what, needed, depth in (("weights", weight_at, config.memory.weights),
                                ("parameters", parameter_at, config.memory.parameters),
                                ("layers", len(layers), config.memory.layers)):
        if needed > depth:
            raise CompileError(f"the network needs {needed} words of memory.{what}, the array has {depth}: "
                               f"set memory.{what} to at least {needed}")
    return Program(
        config=config,
        graph=original,
        input_window=window,
        layers=tuple(layers),
        placements={tensor.name: placements[tensor.name] for tensor in original.tensors},
        descriptors=np.array([_pack_descriptor(layer) for layer in layers], dtype=np.uint32).reshape(-1),
        parameters=np.concatenate(parameter_words).reshape(-1),
        weights=np.concatenate(weight_words).reshape(-1) if weight_words else np.zeros(0, dtype=np.uint32),
    )


def _check_match(graph: Graph, config: ArrayConfig) -> None:
    """Refuse a graph that was quantized for another kind of array."""
    if graph.format.levels != config.format.levels:
        raise CompileError(f"the network has {graph.format.name} weights, the array {config.format.name}: "
                           f"quantize for format {config.format.name!r} or choose another array")
    if graph.act_bits != config.act_bits:
        raise CompileError(f"the network has {graph.act_bits}-bit activations, the array {config.act_bits}-bit ones")
    for node in graph.nodes:
        if not np.isin(node.multiplier, config.gain_multipliers).all():
            raise CompileError(f"layer {node.name!r}: its gains have more than the array's gain_terms = "
                               f"{config.gain_terms} signed digits: quantize with gain_terms={config.gain_terms}")
        if node.shift.max() > config.max_gain_shift:
            raise CompileError(f"layer {node.name!r}: a gain shifts by {node.shift.max()}, the array by at most "
                               f"{config.max_gain_shift} (its acc_bits)")


def _weight_tiles(node: Conv, source: Tensor, config: ArrayConfig) -> tuple[npt.NDArray[np.uint32], Int64Array]:
    """Lay a convolution's weights out as tiles, and prove that its accumulators cannot overflow.

    Returns
    -------
    words : uint32 array, shape (tiles * rows, host words)
        Weight memory, in the order of use.
    correction : int64 array, shape (out_channels,)
        What the bias must add: the inversions' ones, less what unused lanes contribute.
    """
    out_channels, in_channels, height, width = node.weights.shape
    blocks, words = -(-out_channels // config.cols), -(-in_channels // config.depth)
    filler = int(config.format.decode(config.format.smallest_code))
    weights = np.full((blocks * config.cols, words * config.depth, height, width), filler, dtype=np.int32)
    weights[:out_channels, :in_channels] = node.weights

    # Unused lanes read the input's zero point: a constant that the bias takes back.
    used, unused = weights[:out_channels, :in_channels], weights[:out_channels, in_channels:]
    axes = (1, 2, 3)
    correction = config.product.corrections(used).sum(axis=axes)
    constant = (unused.astype(np.int64) * source.zero_point - config.product.corrections(unused)).sum(axis=axes)
    correction -= constant

    # The raw sums at any time, and after the bias: every prefix of a sum lies between its extremes.
    low, high = (bound.sum(axis=axes) for bound in config.product.raw_bounds(used, config.act_bits))
    bias = node.bias + correction
    least = min((low + np.minimum(constant, 0)).min(), (low + constant + bias).min())
    most = max((high + np.maximum(constant, 0)).max(), (high + constant + bias).max())
    needed = _signed_bits(least, most, bias.min(), bias.max())
    if needed > config.acc_bits:
        raise CompileError(f"layer {node.name!r}: an accumulator could reach {least}..{most}, more than acc_bits = "
                           f"{config.acc_bits} hold: acc_bits = {needed} would do")

    codes = config.format.encode(weights).reshape(blocks, config.cols, words, config.rows, config.lanes, height, width)
    codes = codes.transpose(0, 5, 6, 2, 3, 1, 4)  # (block, ky, kx, channel word, row, col, lane)
    return pack_words(codes.reshape(-1, config.cols * config.lanes), config.format.bits), correction


def _signed_bits(*values: np.int64) -> int:
    """Width of a two's-complement number that holds all values."""
    return 1 + max((int(v) if v >= 0 else ~int(v)).bit_length() for v in values)


def _parameters(node: Node, correction: Int64Array, zero_point: int, drop: int,
                config: ArrayConfig) -> npt.NDArray[np.uint32]:
    """Pack a node's biases and gains, (words, host words); channels beyond the last have gain 1 and bias 0.

    Where a skip tensor is added, the gain's last ``drop`` places are shifted out after it.
    """
    channels = len(node.bias)
    group = config.cols if isinstance(node, Conv) else config.depth
    count = -(-channels // group) * group

    def fill(values: Int64Array, default: int) -> Int64Array:
        filled = np.full(count, default, dtype=np.int64)
        filled[:channels] = values
        return filled

    bias = node.bias + correction
    if _signed_bits(bias.min(), bias.max()) > config.acc_bits:
        raise CompileError(f"layer {node.name!r}: a bias of {bias[np.abs(bias).argmax()]} needs more than "
                           f"acc_bits = {config.acc_bits}")
    values = parameter_values(config, fill(bias, 0), fill(node.multiplier, 1), fill(node.shift, drop),
                              zero_point=zero_point, low=node.low, drop=drop)
    return pack_fields(parameter_fields(config), values, config.requantize_lanes)


def _descriptors(
    node: Node, source: Tensor, target: Tensor, placements: dict[str, Placement], config: ArrayConfig
) -> Iterator[dict[str, int]]:
    """Make the descriptors of a node: one, or one per strip of output rows."""
    words = -(-source.channels // config.depth)
    taps = node.kernel[0] * node.kernel[1]
    if isinstance(node, Pool):
        op = LayerOp.MAX_POOL if node.kind == "max" else LayerOp.SUM_POOL
        if op is LayerOp.SUM_POOL and taps > 1 << (config.pool_bits - config.act_bits):
            raise CompileError(f"layer {node.name!r}: a window of {taps} pixels is too large to sum, the array sums "
                               f"{1 << (config.pool_bits - config.act_bits)}")
        strip = target.height
    else:
        op = LayerOp.CONV
        strip = target.height
        if words * taps > 1:  # else no sum is ever kept
            strip = min(strip, config.memory.accumulators // target.width)
            if not strip:
                raise CompileError(f"layer {node.name!r}: a row of {target.width} output pixels needs "
                                   f"memory.accumulators of at least {target.width}, not {config.memory.accumulators}")

    for axis, size, padding in (("height", source.height, node.padding[::2]),
                                ("width", source.width, node.padding[1::2])):
        if size + sum(padding) > MAX_COORDINATE:
            raise CompileError(f"layer {node.name!r}: an input {axis} of {size} with its padding is more than the "
                               f"{MAX_COORDINATE} that a descriptor reaches")
    for top in range(0, target.height, strip):
        rows = min(strip, target.height - top)
        y_start, x_start = top * node.stride[0] - node.padding[0], -node.padding[1]
        pixels = [
            _Loop(target.width, node.stride[1], x=node.stride[1]),
            _Loop(rows, node.stride[0] * source.width, y=node.stride[0]),
        ]
        kernel = [
            _Loop(node.kernel[1], node.dilation[1], x=node.dilation[1]),
            _Loop(node.kernel[0], node.dilation[0] * source.width, y=node.dilation[0]),
        ]
        channels = _Loop(words, source.height * source.width)
        if op is LayerOp.CONV:
            loops = [*pixels, channels, *kernel, _Loop(-(-target.channels // config.cols))]
        else:
            loops = [*kernel, *pixels, channels, _Loop(1)]
        values = {
            "op": int(op),
            "in_bank": placements[node.input].bank,
            "out_bank": placements[node.output].bank,
            "pad_low": int(op is LayerOp.MAX_POOL or source.zero_point != 0),
            "hold": hold_cycles(config, op, taps),
            "edge_lanes": source.channels - (words - 1) * config.depth,
            "zero_point": target.zero_point,
            "low": node.low,
            "high": node.high,
            "in_address": (placements[node.input].address + y_start * source.width + x_start) % (1 << 16),
            "out_address": placements[node.output].address + top * target.width,
            "out_plane": target.height * target.width,
            "in_width": source.width,
            "in_height": source.height,
            "x_start": x_start,
            "y_start": y_start,
            **_loop_values(loops),
        }
        try:
            pack(DESCRIPTOR, values)
        except ValueError as error:
            raise CompileError(f"layer {node.name!r} is too large for a descriptor: {error}") from None
        yield values


def _loop_values(loops: Sequence[_Loop]) -> dict[str, int]:
    """Descriptor fields of a loop nest: a step of a loop also rewinds the loops inside it."""
    values: dict[str, int] = {}
    rewind = np.zeros(3, dtype=np.int64)  # (address, x, y)
    assert len(loops) == LOOPS
    for level, loop in enumerate(loops):
        move = np.array(loop[1:])
        step = move - rewind
        values |= {
            f"count_{level}": loop.iterations - 1,
            f"step_{level}": int(step[0]) % (1 << 16),
            f"x_step_{level}": int(step[1]),
            f"y_step_{level}": int(step[2]),
        }
        rewind += (loop.iterations - 1) * move
    return values


def _pack_descriptor(layer: Layer) -> list[int]:
    """Host words of a layer's descriptor."""
    try:
        word = pack(DESCRIPTOR, layer.values)
    except ValueError as error:
        raise CompileError(f"layer {layer.node!r}: {error}") from None
    return to_host_words(word, DESCRIPTOR_WORDS * HOST_BITS)
