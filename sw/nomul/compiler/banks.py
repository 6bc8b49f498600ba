"""Banks: which tensors must lie in the same bank, which in different ones, and what is copied where that contradicts.

A layer reads its input and its skip tensor at once, so the two must lie in different banks; the parts of a
concatenated tensor lie in its bank, where each is in one place only.
"""

from dataclasses import replace

import numpy as np

from nomul_hw.arithmetic import act_range

from ..graph import Concat, Graph, Node, Operation, Pool
from ..shapes import LayerShape, NetworkShape, network_shape

__all__ = ["copied_shape", "copy_of", "opposite_banks", "with_copies"]

Ties = dict[str, dict[str, int]]


def opposite_banks(network: NetworkShape) -> Ties:
    """Say which tensors' banks depend on each other.

    Returns
    -------
    dict of dict
        For every tensor, all tensors tied to it: 0 for the same bank, 1 for the other.

    Raises
    ------
    ValueError
        Never for what :func:`copied_shape` returned.
    """
    ties = _untied(network)
    for node in network.nodes:
        if isinstance(node, Concat):
            for part in node.inputs:
                if not _tie(ties, node.output, part, 0):
                    raise ValueError(f"tensors {node.output!r} and {part!r} would have to lie in different banks")
        elif node.skip is not None and not _tie(ties, node.input, node.skip, 1):
            raise ValueError(f"tensors {node.input!r} and {node.skip!r} would have to lie in one bank")
    return ties


def _untied(network: NetworkShape) -> Ties:
    return {tensor.name: {tensor.name: 0} for tensor in network.tensors}


def _tie(ties: Ties, left: str, right: str, side: int) -> bool:
    """Note that two tensors lie in the same bank (0) or not (1); False if what is known already says otherwise."""
    if right in ties[left]:
        return ties[left][right] == side
    # Merge: everything seen from one tensor is seen from the other, across the side between them.
    merged = dict(ties[left])
    merged |= {name: side ^ each for name, each in ties[right].items()}
    for name in merged:
        ties[name] = {other: each ^ merged[name] for other, each in merged.items()}
    return True


def copied_shape(network: NetworkShape) -> tuple[NetworkShape, dict[str, str]]:
    """Copy what cannot lie where it should: skip tensors, as in ``x + conv(x)``, and parts of two concatenations.

    A concatenation that begins, or goes on, with the parts of an earlier one takes that one as a part.

    Returns
    -------
    network : NetworkShape
        With layers that copy a tensor, and have its copy's name, in front of what needs the copy.
    owners : dict of str
        For every copying layer, the layer that it was made for; of a concatenation the layer that comes next, or last.
    """
    ties = _untied(network)
    tensors, nodes, owners = list(network.tensors), list[LayerShape | Concat](), dict[str, str]()
    joined: list[Concat] = []  # as they were
    parts: set[str] = set()

    def copy(name: str, tensor: str) -> str:
        copied = f"{name} copy of {tensor}"
        while copied in ties:
            copied += "'"
        tensors.append(replace(network.tensor(tensor), name=copied))
        nodes.append(LayerShape(copied, "max", tensor, copied))
        owners[copied] = name
        ties[copied] = {copied: 0}
        return copied

    for node in network.nodes:
        if isinstance(node, Concat):
            inputs = []
            for part in _nested(node, joined, parts):
                if part in parts or not _tie(ties, node.output, part, 0):
                    part = copy(node.name, part)
                    _tie(ties, node.output, part, 0)
                parts.add(part)
                inputs.append(part)
            joined.append(node)
            if tuple(inputs) != node.inputs:
                node = replace(node, inputs=tuple(inputs))
        elif node.skip is not None and not _tie(ties, node.input, node.skip, 1):
            node = replace(node, skip=copy(node.name, node.skip))
            assert node.skip is not None
            _tie(ties, node.input, node.skip, 1)
        nodes.append(node)
    if not owners and nodes == list(network.nodes):
        return network, owners

    # A concatenation is no layer: what is copied for it counts as a part of one that is.
    heir = {node.name: node.name for node in network.layers}
    following = network.layers[-1].name if network.layers else None
    for original in reversed(network.nodes):
        if isinstance(original, Concat):
            heir[original.name] = following or original.name
        else:
            following = original.name
    return (replace(network, tensors=tuple(tensors), nodes=tuple(nodes)),
            {copied: heir[name] for copied, name in owners.items()})


def _nested(node: Concat, earlier: list[Concat], parts: set[str]) -> tuple[str, ...]:
    """The parts of a concatenation, whole earlier ones among them where their parts follow each other in it."""
    inputs = node.inputs
    for other in reversed(earlier):
        count = len(other.inputs)
        starts = [at for at in range(len(inputs) - count + 1) if inputs[at:at + count] == other.inputs]
        if starts and count < len(inputs) and other.output not in parts:
            inputs = (*inputs[:starts[0]], other.output, *inputs[starts[0] + count:])
    return inputs


def with_copies(graph: Graph) -> tuple[Graph, dict[str, str]]:
    """Do to a graph what :func:`copied_shape` does to its shape."""
    network, owners = copied_shape(network_shape(graph))
    by_name: dict[str, Operation] = {node.name: node for node in graph.nodes}
    tensors, nodes = list(graph.tensors), list[Operation]()
    for layer in network.nodes:
        if isinstance(layer, Concat):
            nodes.append(layer)
        elif layer.name in owners:
            tensors.append(replace(graph.tensor(layer.input), name=layer.output))
            nodes.append(copy_of(graph, layer.input, layer.output))
        else:
            node = by_name[layer.name]
            assert isinstance(node, Node)
            nodes.append(node if node.skip == layer.skip else replace(node, skip=layer.skip))
    return (replace(graph, tensors=tuple(tensors), nodes=tuple(nodes)) if nodes != list(graph.nodes) else graph), owners


def copy_of(graph: Graph, tensor: str, copied: str) -> Pool:
    """A layer that copies a tensor, and has its copy's name: the maximum of one code."""
    source = graph.tensor(tensor)
    low, high = act_range(graph.act_bits)
    ones = np.ones(source.channels, dtype=np.int64)
    return Pool(copied, tensor, copied, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), bias=-source.zero_point * ones,
                multiplier=ones, shift=0 * ones, low=low, high=high, kind="max")
