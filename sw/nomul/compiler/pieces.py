"""Pieces: lowering a network that an accelerator cannot hold as one program."""

from dataclasses import replace
from itertools import groupby

from nomul_hw.config import ArrayConfig

from ..graph import Concat, Conv, Graph, Node, Operation
from ..schedule import Part, Schedule, Step
from ..shapes import LayerShape, network_shape
from .cutting import Piece
from .errors import CompileError
from .lowering import check_graph, compile_graph
from .passes import with_passes
from .program import Program
from .tiling import tile_network

__all__ = ["compile_network"]


def compile_network(graph: Graph, config: ArrayConfig, *, word_cycles: float = 0) -> Program | Schedule:
    """Compile a graph for an accelerator: one program if it fits, else a schedule of programs.

    Parameters
    ----------
    graph : Graph
        The quantized network.
    config : ArrayConfig
        The accelerator.
    word_cycles : float
        What a schedule shall take as few of as possible: cycles, and words between the host and the accelerator, of
        which each counts as so many cycles.

    Raises
    ------
    CompileError
        If the graph was quantized for another array, an accumulator could overflow, or a layer does not fit the
        memories even row by row.
    """
    try:
        return compile_graph(graph, config)
    except CompileError:
        check_graph(graph, config)
    weights = {node.name: node.weights for node in graph.computing if isinstance(node, Conv)}
    network = with_passes(network_shape(graph), config, weights)
    pieces = tile_network(network, config, word_cycles=word_cycles).pieces
    steps = []
    for _, turns in groupby(pieces, key=lambda piece: (piece.network, piece.block)):
        first, *others = turns
        steps.append(Step(compile_graph(piece_graph(graph, first), config),
                          (first.parts, *(piece.parts for piece in others))))
    return Schedule(config, graph, tuple(steps))


def piece_graph(graph: Graph, piece: Piece) -> Graph:
    """Cut a piece out of a graph."""
    by_name = {node.name: node for node in graph.nodes}
    network = piece.network
    tensors = {shape.name: replace(graph.tensor(piece.parts[shape.name].tensor), name=shape.name,
                                   channels=shape.channels, height=shape.height) for shape in network.tensors}
    nodes = list[Operation]()
    for layer in network.nodes:
        node = by_name[layer.name]
        if isinstance(layer, Concat):
            nodes.append(layer)
        else:
            assert isinstance(node, Node)
            nodes.append(_cut_node(node, layer, piece.parts[layer.output]))
    return Graph(graph.format, graph.act_bits, graph.gain_terms, tuple(tensors.values()), tuple(nodes), network.input,
                 network.output, tensors[network.output].shape, network.more_inputs)


def _cut_node(node: Node, layer: LayerShape, part: Part) -> Node:
    """A node for some rows and channels of its output."""
    cut = replace(node, input=layer.input, skip=layer.skip, padding=layer.padding, bias=node.bias[part.channels],
                  multiplier=node.multiplier[part.channels], shift=node.shift[part.channels])
    return replace(cut, weights=cut.weights[part.channels], groups=layer.groups) if isinstance(cut, Conv) else cut
