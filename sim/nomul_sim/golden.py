"""The golden model: what an integer graph computes, in NumPy. It is normative.

PyTorch's fake quantization, the generated hardware and the documentation follow this module; where they differ, they
are wrong. It runs at BLAS speed: NumPy's integer matrix product is many times slower than its floating-point one, so
convolutions go through floating point, but only after the weights at hand have proven every partial sum to be an
integer that the floating-point type holds exactly, whatever the order of summation.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from nomul.graph import Concat, Conv, Graph, Node, Pool, Tensor
from nomul_hw.arithmetic import act_range, requantize

__all__ = ["IM2COL_BYTES", "GoldenError", "accumulators", "run"]

Int8Array = npt.NDArray[np.int8]
Int64Array = npt.NDArray[np.int64]

#: Largest im2col matrix; a batch, then the rows of a map, are cut to stay below it. More does not make it faster.
IM2COL_BYTES = 1 << 25

#: Integers of magnitude up to 2**n are exact in these types; float32 is twice as fast where it does.
_EXACT_BITS: tuple[tuple[type[np.floating], int], ...] = ((np.float32, 24), (np.float64, 53))


class GoldenError(ValueError):
    """Input codes that do not belong to the graph, or a node beyond exact arithmetic; the message names it."""


def run(graph: Graph, codes: npt.NDArray[np.int8]) -> dict[str, Int8Array]:
    """Run a graph on a batch of inputs.

    Parameters
    ----------
    graph : Graph
        The quantized network.
    codes : int8 array, shape (batch, channels, height, width)
        Codes of the input tensor.

    Returns
    -------
    dict of str to int8 array, shape (batch, channels, height, width)
        Codes of every tensor of the graph that is read or written, by name, in order of execution.

    Raises
    ------
    GoldenError
        If the codes do not belong to the input tensor or a node's sums could exceed exact arithmetic.
    """
    _check(graph, graph.tensor(graph.input), codes)
    tensors = {graph.input: codes}
    for node in graph.nodes:
        if isinstance(node, Concat):
            tensors[node.output] = np.concatenate([tensors[name] for name in node.inputs], axis=1)
            continue
        target = graph.tensor(node.output)
        _check_products(graph, node)
        # Channels first, so that one matrix product makes it; (channels, batch, height, width).
        result = np.empty((target.channels, len(codes), target.height, target.width), dtype=np.int8)
        skip = None
        if node.skip is not None:
            skip = tensors[node.skip].transpose(1, 0, 2, 3).astype(np.int64) - graph.tensor(node.skip).zero_point
        for batch, rows, acc in _blocks(graph, node, tensors[node.input]):
            result[:, batch, rows] = requantize(
                acc,
                *(values[:, np.newaxis, np.newaxis, np.newaxis] for values in (node.bias, node.multiplier, node.shift)),
                zero_point=target.zero_point, low=node.low, high=node.high,
                skip=None if skip is None else skip[:, batch, rows], drop=graph.skip_drop(node),
            )
        tensors[node.output] = np.ascontiguousarray(result.transpose(1, 0, 2, 3))
    return tensors


def accumulators(graph: Graph, node: Node, codes: npt.NDArray[np.int8]) -> Int64Array:
    """Compute what a node accumulates before bias and requantization.

    Parameters
    ----------
    graph : Graph
        The network that the node belongs to.
    node : Node
        The node.
    codes : int8 array, shape (batch, channels, height, width)
        Codes of the node's input tensor.

    Returns
    -------
    int64 array, shape (batch, out channels, out height, out width)
        Sums of weights times codes, or a pool's sum or maximum of codes; padding included.

    Raises
    ------
    GoldenError
        As :func:`run`.
    """
    _check(graph, graph.tensor(node.input), codes)
    target = graph.tensor(node.output)
    result = np.empty((target.channels, len(codes), target.height, target.width), dtype=np.int64)
    for batch, rows, acc in _blocks(graph, node, codes):
        result[:, batch, rows] = acc
    return np.ascontiguousarray(result.transpose(1, 0, 2, 3))


def _check(graph: Graph, tensor: Tensor, codes: npt.NDArray[np.int8]) -> None:
    if not isinstance(codes, np.ndarray) or codes.dtype != np.int8:
        got = f"{codes.dtype} array" if isinstance(codes, np.ndarray) else type(codes).__name__
        raise GoldenError(f"Codes of tensor {tensor.name!r} must be an int8 array, not {got}")
    if codes.ndim != 4 or codes.shape[1:] != tensor.shape:
        raise GoldenError(f"Codes of tensor {tensor.name!r} must have the shape (batch, {tensor.channels}, "
                          f"{tensor.height}, {tensor.width}), not {codes.shape}")
    low, high = act_range(graph.act_bits)
    if codes.size and not (low <= codes.min() and codes.max() <= high):
        raise GoldenError(f"Codes of tensor {tensor.name!r} must lie in {low}..{high}, "
                          f"not {codes.min()}..{codes.max()}")


def _magnitude(graph: Graph, node: Node) -> int:
    """Bound of a node's accumulators, from its own weights."""
    most = -act_range(graph.act_bits)[0]
    if isinstance(node, Conv):
        return most * int(np.abs(node.weights.astype(np.int64)).sum(axis=(1, 2, 3)).max())
    assert isinstance(node, Pool)
    return most * (node.kernel[0] * node.kernel[1] if node.kind == "sum" else 1)


def _check_products(graph: Graph, node: Node) -> None:
    """Refuse a node whose requantization could leave int64; Python integers, so this cannot itself."""
    bias = max(abs(int(node.bias.min())), abs(int(node.bias.max())))
    # Twice the product: requantize() keeps one more bit to round.
    skip = 0 if node.skip is None else 1 << (graph.act_bits + int(node.shift.max()))
    if 2 * ((_magnitude(graph, node) + bias) * int(node.multiplier.max()) + skip) >= 1 << 63:
        raise GoldenError(f"node {node.name!r}: accumulator, bias {bias} and gain exceed 64-bit arithmetic")


def _blocks(graph: Graph, node: Node, codes: Int8Array) -> Iterator[tuple[slice, slice, Int64Array]]:
    """Yield a node's accumulators by blocks: samples, output rows, int64 of (channels, samples, rows, width)."""
    target = graph.tensor(node.output)
    if not len(codes):
        return
    if isinstance(node, Conv):
        bound = _magnitude(graph, node)
        exact = [dtype for dtype, bits in _EXACT_BITS if bound < 1 << bits]
        if not exact:
            raise GoldenError(f"node {node.name!r}: accumulators up to {bound} are not exact in float64")
        # A matrix per group: (groups, output channels of a group, products per sum).
        weights = node.weights.reshape(node.groups, target.channels // node.groups, -1).astype(exact[0])
        row_bytes = node.groups * weights[0, 0].nbytes * target.width
    else:
        row_bytes = target.channels * target.width * np.dtype(np.int64).itemsize
    rows_at_once = max(1, min(target.height, IM2COL_BYTES // row_bytes))
    samples_at_once = max(1, IM2COL_BYTES // (row_bytes * rows_at_once)) if rows_at_once == target.height else 1
    padded = _pad(graph, node, codes)
    reach = node.dilation[0] * (node.kernel[0] - 1) + 1
    for first in range(0, len(codes), samples_at_once):
        batch = slice(first, min(first + samples_at_once, len(codes)))
        for top in range(0, target.height, rows_at_once):
            rows = slice(top, min(top + rows_at_once, target.height))
            block = padded[batch, :, rows.start * node.stride[0]:(rows.stop - 1) * node.stride[0] + reach]
            if isinstance(node, Conv):
                columns = _im2col(node, block, exact[0])
                acc = (weights @ columns.reshape(node.groups, weights.shape[2], -1)).astype(np.int64)
                shape = (target.channels, batch.stop - batch.start, rows.stop - rows.start, target.width)
                yield batch, rows, acc.reshape(shape)
            else:
                yield batch, rows, _pool(node, block, target.width).transpose(1, 0, 2, 3)


def _pad(graph: Graph, node: Node, codes: Int8Array) -> Int8Array:
    """Surround the codes of (batch, channels, height, width) by what padding reads as."""
    top, left, bottom, right = node.padding
    if not any(node.padding):
        return codes
    smallest = isinstance(node, Pool) and node.kind == "max"
    value = act_range(graph.act_bits)[0] if smallest else graph.tensor(node.input).zero_point
    return np.pad(codes, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=value)


def _im2col(node: Node, block: Int8Array, dtype: type[np.floating]) -> npt.NDArray[np.floating]:
    """Gather windows: (channels * kernel height * kernel width, batch * out height * out width)."""
    spans = tuple(dilation * (size - 1) + 1 for size, dilation in zip(node.kernel, node.dilation, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(block, spans, axis=(2, 3))
    windows = windows[:, :, ::node.stride[0], ::node.stride[1], ::node.dilation[0], ::node.dilation[1]]
    columns = windows.transpose(1, 4, 5, 0, 2, 3)  # (C, kh, kw, B, H, W)
    return columns.astype(dtype, order="C").reshape(np.prod(columns.shape[:3]), -1)


def _pool(node: Node, block: Int8Array, width: int) -> Int64Array:
    """Reduce windows per channel: (batch, channels, out height, out width)."""
    assert isinstance(node, Pool)
    rows = (block.shape[2] - node.dilation[0] * (node.kernel[0] - 1) - 1) // node.stride[0] + 1
    result: Int64Array | None = None
    for y in range(node.kernel[0]):
        for x in range(node.kernel[1]):
            top, left = y * node.dilation[0], x * node.dilation[1]
            taps = block[:, :, top:top + node.stride[0] * (rows - 1) + 1:node.stride[0],
                         left:left + node.stride[1] * (width - 1) + 1:node.stride[1]]
            if result is None:
                result = taps.astype(np.int64)
            elif node.kind == "max":
                np.maximum(result, taps, out=result)
            else:
                result += taps
    assert result is not None
    return result
