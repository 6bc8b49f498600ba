"""Banks: a layer reads its input and its skip tensor at once, so the two must lie in different banks."""

from dataclasses import replace

import numpy as np

from nomul_hw.arithmetic import act_range

from ..graph import Concat, Graph, Node, Operation, Pool
from ..shapes import LayerShape, NetworkShape, network_shape

__all__ = ["copied_shape", "opposite_banks", "with_copies"]


def opposite_banks(network: NetworkShape) -> dict[str, dict[str, int]]:
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
    groups: dict[str, dict[str, int]] = {tensor.name: {tensor.name: 0} for tensor in network.tensors}
    for node in network.layers:
        if node.skip is not None and not _tie(groups, node.input, node.skip):
            raise ValueError(f"tensors {node.input!r} and {node.skip!r} would have to lie in one bank")
    return groups


def _tie(groups: dict[str, dict[str, int]], left: str, right: str) -> bool:
    """Note that two tensors lie in different banks; False if what is known already says otherwise."""
    if right in groups[left]:
        return groups[left][right] == 1
    # Merge: everything seen from one side is on the other side as seen from the other.
    merged = dict(groups[left])
    merged |= {name: 1 - side for name, side in groups[right].items()}
    for name in merged:
        groups[name] = {other: side ^ merged[name] for other, side in merged.items()}
    return True


def copied_shape(network: NetworkShape) -> tuple[NetworkShape, dict[str, str]]:
    """Copy the skip tensors whose banks would contradict, such as in ``x + conv(x)``.

    Returns
    -------
    network : NetworkShape
        With a layer that copies the tensor, and has its copy's name, in front of each such layer.
    owners : dict of str
        For every copying layer, the layer that it was made for.
    """
    groups: dict[str, dict[str, int]] = {tensor.name: {tensor.name: 0} for tensor in network.tensors}
    tensors, nodes, owners = list(network.tensors), list[LayerShape | Concat](), dict[str, str]()
    for node in network.nodes:
        skip = node.skip if isinstance(node, LayerShape) else None
        if isinstance(node, LayerShape) and skip is not None and not _tie(groups, node.input, skip):
            copy = f"{node.name} copy of {skip}"
            tensors.append(replace(network.tensor(skip), name=copy))
            nodes.append(LayerShape(copy, "max", skip, copy))
            owners[copy] = node.name
            node = replace(node, skip=copy)
            groups[copy] = {copy: 0}
            _tie(groups, node.input, copy)
        nodes.append(node)
    return (replace(network, tensors=tuple(tensors), nodes=tuple(nodes)) if owners else network), owners


def with_copies(graph: Graph) -> tuple[Graph, dict[str, str]]:
    """Do to a graph what :func:`copied_shape` does to its shape."""
    network, owners = copied_shape(network_shape(graph))
    if not owners:
        return graph, owners
    low, high = act_range(graph.act_bits)
    by_name: dict[str, Operation] = {node.name: node for node in graph.nodes}
    tensors, nodes = list(graph.tensors), list[Operation]()
    for layer in network.nodes:
        node = by_name.get(layer.name)
        if node is None:
            assert isinstance(layer, LayerShape)
            tensor = replace(graph.tensor(layer.input), name=layer.name)
            tensors.append(tensor)
            node = Pool(
                layer.name, layer.input, layer.name, layer.kernel, layer.stride, layer.padding, layer.dilation,
                bias=np.full(tensor.channels, -tensor.zero_point, dtype=np.int64),
                multiplier=np.ones(tensor.channels, dtype=np.int64), shift=np.zeros(tensor.channels, dtype=np.int64),
                low=low, high=high, kind="max")
        elif isinstance(layer, LayerShape) and isinstance(node, Node):
            node = replace(node, skip=layer.skip)
        nodes.append(node)
    return replace(graph, tensors=tuple(tensors), nodes=tuple(nodes)), owners
