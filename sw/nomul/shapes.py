"""Shapes: a network without its numbers, which is all that cycles and memories depend on.

They come from an integer graph, from a float graph (an imported PyTorch module), or from a table of layers
(:mod:`nomul.scalesim`). The compiler plans with shapes alone; numbers only fill in what it planned.
"""

from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Literal

from nomul_hw.formats import WeightFormat

from .frontend.float_graph import INPUT, FloatConcat, FloatConv, FloatGraph, FloatPool
from .graph import Concat, Conv, Graph, Node, Pool

__all__ = ["LayerShape", "NetworkShape", "TensorShape", "network_shape"]


@dataclass(frozen=True)
class TensorShape:
    """Name and shape (channels, height, width) of an activation tensor."""

    name: str
    channels: int
    height: int
    width: int

    @property
    def pixels(self) -> int:
        """Positions of the map."""
        return self.height * self.width


@dataclass(frozen=True)
class LayerShape:
    """A layer: a window over one tensor.

    Parameters
    ----------
    name : str
        Unique.
    kind : str
        ``"conv"`` (a linear layer too), ``"max"`` or ``"sum"``.
    input, output : str
        Tensor names.
    kernel, stride, dilation : (int, int)
        Vertical, horizontal.
    padding : (int, int, int, int)
        Top, left, bottom, right.
    groups : int
        Of a convolution, as in :class:`nomul.graph.Conv`.
    planes : int, optional
        Passes over the input that a weight takes on the array: 1 where its format holds the weights, and the zeros
        between the groups; 0 where no number of passes does. None where that is not known yet
        (:func:`nomul.compiler.passes.with_passes`).
    native : bool
        Whether the array's format holds the weights as they are.
    format : WeightFormat, optional
        Of the weights; the array's where it is None.
    skip : str, optional
        A tensor that is added to the output.
    """

    name: str
    kind: Literal["conv", "max", "sum"]
    input: str
    output: str
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = field(default=1, kw_only=True)
    planes: int | None = field(default=None, kw_only=True)
    native: bool = field(default=True, kw_only=True)
    format: WeightFormat | None = field(default=None, kw_only=True)
    skip: str | None = field(default=None, kw_only=True)

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the tensors that the layer reads."""
        return (self.input,) if self.skip is None else (self.input, self.skip)

    @property
    def taps(self) -> int:
        """Positions of the window."""
        return prod(self.kernel)


@dataclass(frozen=True)
class NetworkShape:
    """A network's layers and the tensors between them.

    Parameters
    ----------
    tensors : tuple of TensorShape
        All of them. What no layer makes, the network's input among it, is there when the first layer reads it.
    nodes : tuple of LayerShape or Concat
        In execution order.
    input, output : str
        Tensor names.
    """

    tensors: tuple[TensorShape, ...]
    nodes: tuple[LayerShape | Concat, ...]
    input: str
    output: str

    @cached_property
    def _by_name(self) -> dict[str, TensorShape]:
        return {tensor.name: tensor for tensor in self.tensors}

    def tensor(self, name: str) -> TensorShape:
        """Look a tensor up by name."""
        return self._by_name[name]

    @property
    def layers(self) -> tuple[LayerShape, ...]:
        """The layers that compute, in execution order: all nodes but the concatenations."""
        return tuple(node for node in self.nodes if isinstance(node, LayerShape))

    def depthwise(self, layer: LayerShape) -> bool:
        """Whether a layer is a convolution of every channel on its own."""
        return layer.kind == "conv" and (
            layer.groups == self.tensor(layer.input).channels == self.tensor(layer.output).channels)

    def macs(self, layer: LayerShape) -> int:
        """Multiply-accumulates of one sample, padding counted; 0 for what is not a convolution."""
        if layer.kind != "conv":
            return 0
        source, target = self.tensor(layer.input), self.tensor(layer.output)
        return target.pixels * target.channels * (source.channels // layer.groups) * layer.taps


def network_shape(network: Graph | FloatGraph) -> NetworkShape:
    """Forget a network's numbers."""
    return _float_shape(network) if isinstance(network, FloatGraph) else _graph_shape(network)


def _graph_shape(graph: Graph) -> NetworkShape:
    return NetworkShape(
        tuple(TensorShape(tensor.name, *tensor.shape) for tensor in graph.tensors),
        tuple(node if isinstance(node, Concat) else _node_shape(graph, node) for node in graph.nodes),
        graph.input, graph.output)


def _node_shape(graph: Graph, node: Node) -> LayerShape:
    same = (node.input, node.output, node.kernel, node.stride, node.padding, node.dilation)
    if isinstance(node, Conv):
        return LayerShape(node.name, "conv", *same, groups=node.groups, format=graph.format_of(node),
                          skip=node.skip)
    assert isinstance(node, Pool)
    return LayerShape(node.name, node.kind, *same, skip=node.skip)


def _float_shape(graph: FloatGraph) -> NetworkShape:
    name = "input"
    while name in {layer.name for layer in graph.layers}:
        name += "_"
    tensors = {INPUT: TensorShape(name, *graph.input_shape)}
    nodes: list[LayerShape | Concat] = []
    for layer in graph.layers:
        sources = [tensors[source] for source in layer.sources]
        first = sources[0]
        if isinstance(layer, FloatConcat):
            nodes.append(Concat(layer.name, tuple(source.name for source in sources), layer.name))
            shape = (sum(source.channels for source in sources), first.height, first.width)
        else:
            assert isinstance(layer, FloatConv | FloatPool)
            same = (first.name, layer.name, layer.kernel, layer.stride, layer.padding, layer.dilation)
            skip = sources[1].name if len(sources) > 1 else None
            if isinstance(layer, FloatConv):
                nodes.append(LayerShape(layer.name, "conv", *same, groups=layer.groups, skip=skip))
            else:
                nodes.append(LayerShape(layer.name, "max" if layer.kind == "max" else "sum", *same, skip=skip))
            shape = layer.output_shape(first.channels, first.height, first.width)
        tensors[layer.name] = TensorShape(layer.name, *shape)
    return NetworkShape(tuple(tensors.values()), tuple(nodes), name, graph.layers[-1].name)
