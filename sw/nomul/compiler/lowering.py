"""Lowering: from a graph's nodes to descriptors, parameters and weight tiles."""

import numpy as np
import numpy.typing as npt

from nomul_hw.arithmetic import gain_digits
from nomul_hw.config import ArrayConfig
from nomul_hw.descriptor import (
    DESCRIPTOR,
    DESCRIPTOR_WORDS,
    HOST_BITS,
    pack,
    parameter_fields,
    to_host_words,
)

from ..graph import Conv, Graph, Node, Pool, Tensor
from ..shapes import network_shape
from .allocation import CompileError
from .banks import with_copies
from .input_packing import packed_graph
from .packing import pack_fields, pack_words
from .plan import plan_network
from .program import Layer, Program

__all__ = ["CompileError", "compile_graph"]

Int64Array = npt.NDArray[np.int64]


def compile_graph(graph: Graph, config: ArrayConfig) -> Program:
    """Compile a graph for an accelerator.

    The weights' order in memory is the order of use: block of output channels, kernel row, kernel column, channel
    word, array row.

    Raises
    ------
    CompileError
        If the graph was quantized for another array, does not fit its memories, or an accumulator could overflow.
    """
    _check_match(graph, config)
    plan = plan_network(network_shape(graph), config)
    whole, _ = with_copies(packed_graph(graph, plan.window))
    numbers: dict[str, dict[str, int]] = {}
    parameter_words: list[npt.NDArray[np.uint32]] = []
    weight_words: list[npt.NDArray[np.uint32]] = []
    for node in whole.computing:
        source, target = whole.tensor(node.input), whole.tensor(node.output)
        correction = np.zeros(target.channels, dtype=np.int64)
        if isinstance(node, Conv):
            tiles, correction = _weight_tiles(node, source, config)
            weight_words.append(tiles)
        parameter_words.append(_parameters(node, correction, whole.skip_drop(node), config))
        numbers[node.name] = {
            "pad_low": int((isinstance(node, Pool) and node.kind == "max") or source.zero_point != 0),
            "zero_point": target.zero_point, "low": node.low, "high": node.high,
        }
        if node.skip is not None:
            numbers[node.name] |= {"skip_low": int(whole.tensor(node.skip).zero_point != 0),
                                   "skip_drop": whole.skip_drop(node)}
    layers = tuple(Layer(layer.owner, {**layer.values, **numbers[layer.node]}, layer.macs) for layer in plan.layers)
    return Program(
        config=config,
        graph=graph,
        input_window=plan.window,
        layers=layers,
        placements={tensor.name: plan.placements[tensor.name] for tensor in graph.tensors},
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
    for node in graph.computing:
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


def _parameters(node: Node, correction: Int64Array, drop: int, config: ArrayConfig) -> npt.NDArray[np.uint32]:
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
    values = {field.name: np.zeros(count, dtype=np.int64) for field in parameter_fields(config)}
    values["bias"], values["shift"] = fill(bias, 0), fill(node.shift - drop, 0)
    multiplier = fill(node.multiplier, 1)
    for each in np.unique(multiplier):
        where = multiplier == each
        lead, digits = gain_digits(int(each), config.gain_terms)
        if lead < 0:
            values["lead_negative"][where] = 1
        # The last digit has no sign field; the only digit, or the highest, goes there.
        for slot, (sign, position) in zip(range(config.gain_terms - 1 - len(digits), config.gain_terms - 1), digits,
                                          strict=True):
            values[f"digit_{slot}_enable"][where] = 1
            values[f"digit_{slot}_position"][where] = position - 1
            if sign < 0:
                values[f"digit_{slot}_negative"][where] = 1
    return pack_fields(parameter_fields(config), values, config.requantize_lanes)


def _pack_descriptor(layer: Layer) -> list[int]:
    """Host words of a layer's descriptor."""
    try:
        word = pack(DESCRIPTOR, layer.values)
    except ValueError as error:
        raise CompileError(f"layer {layer.node!r}: {error}") from None
    return to_host_words(word, DESCRIPTOR_WORDS * HOST_BITS)
