"""Banks: a layer reads its input and its skip tensor at once, so the two must lie in different banks."""

from dataclasses import replace

import numpy as np

from nomul_hw.arithmetic import act_range

from ..graph import Graph, Node, Pool

__all__ = ["opposite_banks", "with_copies"]


def opposite_banks(graph: Graph) -> dict[str, dict[str, int]]:
    """Say which tensors' banks depend on each other.

    Returns
    -------
    dict of dict
        For every tensor, all tensors tied to it: 0 for the same bank, 1 for the other.

    Raises
    ------
    ValueError
        Never for a graph that :func:`with_copies` returned.
    """
    groups: dict[str, dict[str, int]] = {tensor.name: {tensor.name: 0} for tensor in graph.tensors}
    for node in graph.nodes:
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


def with_copies(graph: Graph) -> tuple[Graph, dict[str, str]]:
    """Copy the skip tensors whose banks would contradict, such as in ``x + conv(x)``.

    Returns
    -------
    graph : Graph
        With a node that copies the tensor in front of each such node.
    owners : dict of str
        For every copying node, the node that it was made for.
    """
    groups: dict[str, dict[str, int]] = {tensor.name: {tensor.name: 0} for tensor in graph.tensors}
    tensors, nodes, owners = list(graph.tensors), list[Node](), dict[str, str]()
    for node in graph.nodes:
        if node.skip is not None and not _tie(groups, node.input, node.skip):
            tensor = graph.tensor(node.skip)
            copy = f"{node.name} copy of {node.skip}"
            tensors.append(replace(tensor, name=copy))
            low, high = act_range(graph.act_bits)
            nodes.append(Pool(
                copy, node.skip, copy, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1),
                bias=np.full(tensor.channels, -tensor.zero_point, dtype=np.int64),
                multiplier=np.ones(tensor.channels, dtype=np.int64), shift=np.zeros(tensor.channels, dtype=np.int64),
                low=low, high=high, kind="max"))
            owners[copy] = node.name
            node = replace(node, skip=copy)
            groups[copy] = {copy: 0}
            _tie(groups, node.input, copy)
        nodes.append(node)
    return (replace(graph, tensors=tuple(tensors), nodes=tuple(nodes)) if owners else graph), owners
