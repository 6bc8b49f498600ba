"""Input packing: a first layer of few channels, made to fill the array's rows.

An image has one or three channels, an array reduces ``rows * lanes`` of them per cycle. So the host sends the window of
the first convolution as channels: its columns, or all of it. The convolution that is left has a smaller kernel and the
same products; what the array runs is a graph like any other.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from nomul_hw.config import ArrayConfig

from ..graph import Conv, Graph
from ..shapes import LayerShape, NetworkShape, network_shape

__all__ = ["pack_input", "packed_graph", "packed_shape", "packing_windows"]

Window = tuple[int, int]
Codes = npt.NDArray[np.int8]


def packing_windows(network: NetworkShape, config: ArrayConfig) -> list[Window]:
    """List the windows (height, width) that may become channels, the fewest weight tiles first.

    The last one is (1, 1), no packing; those before it take fewer tiles than it, if the memories hold them.
    """
    first, none = network.nodes[0], (1, 1)
    readers = [node for node in network.nodes for name in node.sources if name == network.input]
    if not isinstance(first, LayerShape) or first.kind != "conv" or first.groups > 1 or readers != [first] or (
            network.output == network.input):
        return [none]
    height, width = first.kernel
    target, source = network.tensor(first.output), network.tensor(network.input)

    def cost(window: Window) -> tuple[int, int]:
        words = -(-source.channels * window[0] * window[1] // config.depth)
        tiles = words * (height // window[0]) * (width // window[1])
        rows = target.height if window[0] > 1 else source.height
        columns = target.width if window[1] > 1 else source.width
        return tiles, words * rows * columns

    windows = {none, (1, width), (height, width)}
    better = sorted((window for window in windows if cost(window)[0] < cost(none)[0]), key=cost)
    return [*better, none]


def packed_shape(network: NetworkShape, window: Window) -> NetworkShape:
    """Shape of the network whose input has the first convolution's window as channels.

    An axis that is packed has its stride, padding and dilation applied by the host.
    """
    if window == (1, 1):
        return network
    first = network.nodes[0]
    assert isinstance(first, LayerShape)
    source, target = network.tensor(network.input), network.tensor(first.output)
    tall, wide = window[0] > 1, window[1] > 1
    top, left, bottom, right = first.padding
    conv = replace(
        first,
        kernel=(1 if tall else first.kernel[0], 1 if wide else first.kernel[1]),
        stride=(1 if tall else first.stride[0], 1 if wide else first.stride[1]),
        dilation=(1 if tall else first.dilation[0], 1 if wide else first.dilation[1]),
        padding=(0 if tall else top, 0 if wide else left, 0 if tall else bottom, 0 if wide else right),
    )
    packed = replace(source, channels=source.channels * window[0] * window[1],
                     height=target.height if tall else source.height, width=target.width if wide else source.width)
    return replace(network, nodes=(conv, *network.nodes[1:]),
                   tensors=tuple(packed if tensor.name == network.input else tensor for tensor in network.tensors))


def packed_graph(graph: Graph, window: Window) -> Graph:
    """Do to a graph what :func:`packed_shape` does to its shape.

    Channel ``(ky * window width + kx) * channels + c`` holds what tap (ky, kx) of channel c reads.
    """
    if window == (1, 1):
        return graph
    network, first = packed_shape(network_shape(graph), window), graph.nodes[0]
    layer, source = network.layers[0], network.tensor(graph.input)
    assert isinstance(first, Conv)
    out_channels, channels, *_ = first.weights.shape
    weights = first.weights.reshape(out_channels, channels, layer.kernel[0], window[0], layer.kernel[1], window[1])
    weights = weights.transpose(0, 3, 5, 1, 2, 4)  # (out channel, ky, kx, channel, ky left, kx left)
    conv = replace(first, weights=np.ascontiguousarray(weights.reshape(out_channels, -1, *layer.kernel)),
                   kernel=layer.kernel, stride=layer.stride, dilation=layer.dilation, padding=layer.padding)
    packed = replace(graph.tensor(graph.input), channels=source.channels, height=source.height, width=source.width)
    return replace(graph, nodes=(conv, *graph.nodes[1:]),
                   tensors=tuple(packed if tensor.name == graph.input else tensor for tensor in graph.tensors))


def pack_input(graph: Graph, window: Window, codes: Codes) -> Codes:
    """Rearrange input codes of a graph for its packed twin: int8 (batch, channels, height, width) to the same."""
    if window == (1, 1):
        return codes
    first = graph.nodes[0]
    assert isinstance(first, Conv)
    source, target = graph.tensor(graph.input), graph.tensor(first.output)
    tall, wide = window[0] > 1, window[1] > 1
    top, left, bottom, right = first.padding
    pad = ((0, 0), (0, 0), (top, bottom) if tall else (0, 0), (left, right) if wide else (0, 0))
    padded = np.pad(codes, pad, constant_values=source.zero_point)
    rows = first.stride[0] * np.arange(target.height) if tall else np.arange(source.height)
    columns = first.stride[1] * np.arange(target.width) if wide else np.arange(source.width)
    taps = [padded[:, :, (rows + ky * first.dilation[0])[:, None], columns + kx * first.dilation[1]]
            for ky in range(window[0]) for kx in range(window[1])]
    return np.concatenate(taps, axis=1)
