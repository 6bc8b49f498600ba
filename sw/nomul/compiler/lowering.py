"""Lowering: from a graph's nodes to descriptors, parameters and weight tiles."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from nomul_hw.arithmetic import act_range
from nomul_hw.config import ArrayConfig
from nomul_hw.descriptor import DESCRIPTOR, DESCRIPTOR_WORDS, HOST_BITS, LayerOp, pack, to_host_words

from ..graph import Conv, Graph, Node, Operation, Pool
from ..shapes import network_shape
from .banks import copy_of, with_copies
from .errors import CompileError
from .input_packing import packed_graph
from .lanes import channel_lanes
from .loops import Geometry
from .parameters import pack_parameters
from .plan import plan_network
from .program import Layer, Program
from .tiles import Tiles, check_sums, conv_tiles, depthwise_tiles

__all__ = ["check_graph", "compile_graph"]

Words = npt.NDArray[np.uint32]


def compile_graph(graph: Graph, config: ArrayConfig) -> Program:
    """Compile a graph for an accelerator.

    Raises
    ------
    CompileError
        If the graph was quantized for another array, does not fit its memories, or an accumulator could overflow.
    """
    check_graph(graph, config)
    known, owners = with_known_gaps(graph, config)
    weights = {node.name: node.weights for node in graph.computing if isinstance(node, Conv)}
    plan = plan_network(network_shape(known), config, weights=weights)
    whole, _ = with_copies(packed_graph(known, plan.window))

    numbers: dict[str, dict[str, int]] = {}
    parameter_words, weight_words = list[Words](), list[Words]()
    pairs = {layer.node: bool(layer.values.get("pair")) for layer in plan.layers}
    for node, geometry in zip(whole.computing, plan.geometries, strict=True):
        tiles = _tiles(node, geometry, whole.tensor(node.input).zero_point, pair=pairs[node.name])
        check_sums(node, config, tiles.correction)
        weight_words.append(tiles.words)
        parameter_words.append(pack_parameters(
            whole, node, tiles.correction, geometry.writes.positions,
            geometry.parameter_words * config.requantize_lanes, config))
        numbers[node.name] = _numbers(whole, node, tiles)
    layers = tuple(Layer(owners.get(layer.owner, layer.owner), {**layer.values, **numbers[layer.node]}, layer.macs,
                         layer.weights) for layer in plan.layers)
    return Program(
        config=config,
        graph=graph,
        input_window=plan.window,
        layers=layers,
        placements={tensor.name: plan.placements[tensor.name] for tensor in graph.tensors
                    if tensor.name in plan.placements},
        descriptors=np.array([_pack_descriptor(layer) for layer in layers], dtype=np.uint32).reshape(-1),
        parameters=np.concatenate([words.reshape(-1) for words in parameter_words]),
        weights=np.concatenate([words.reshape(-1) for words in weight_words]),
    )


def check_graph(graph: Graph, config: ArrayConfig) -> None:
    """Refuse a graph that was quantized for another kind of array, or whose sums could overflow."""
    if graph.act_bits != config.act_bits:
        raise CompileError(f"the network has {graph.act_bits}-bit activations, the array {config.act_bits}-bit ones")
    for node in graph.computing:
        if not np.isin(node.multiplier, config.gain_multipliers).all():
            raise CompileError(f"layer {node.name!r}: its gains have more than the array's gain_terms = "
                               f"{config.gain_terms} signed digits: quantize with gain_terms={config.gain_terms}")
        if node.shift.max() > config.max_gain_shift:
            raise CompileError(f"layer {node.name!r}: a gain shifts by {node.shift.max()}, the array by at most "
                               f"{config.max_gain_shift} (its acc_bits less its act_bits)")
        check_sums(node, config)


def with_known_gaps(graph: Graph, config: ArrayConfig) -> tuple[Graph, Mapping[str, str]]:
    """See to it that gaps hold the zero point where they must, see :func:`nomul.compiler.lanes.channel_lanes`.

    They hold a layer's clamped zero point. If its clamp excludes the zero point, a copy of its output gets into place.

    Returns
    -------
    graph : Graph
    owners : mapping of str to str
        For every copying layer, the layer whose output it copies.
    """
    if config.format.zero:
        return graph, {}
    lanes = channel_lanes(network_shape(graph), config)
    tensors, nodes, owners = list(graph.tensors), list[Operation](), dict[str, str]()
    for node in graph.nodes:
        target = graph.tensor(node.output)
        if (isinstance(node, Node) and lanes[node.output].filled > target.channels
                and not node.low <= target.zero_point <= node.high):
            clamped = replace(target, name=f"{node.name} clamped to {node.low}..{node.high}")
            copy = replace(copy_of(replace(graph, tensors=(*graph.tensors, clamped)), clamped.name, node.output),
                           name=f"{node.name} copy")
            tensors.append(clamped)
            owners[copy.name] = node.name
            nodes += [replace(node, output=clamped.name), copy]
        else:
            nodes.append(node)
    return (replace(graph, tensors=tuple(tensors), nodes=tuple(nodes)) if owners else graph), owners


def _tiles(node: Node, geometry: Geometry, zero_point: int, *, pair: bool) -> Tiles:
    """A node's weights, if it has any; ``zero_point`` is that of its input."""
    if not isinstance(node, Conv):
        # The channel unit counts from the smallest code.
        taps = {LayerOp.MAX_POOL: 1, LayerOp.SUM_POOL: node.kernel[0] * node.kernel[1]}.get(geometry.op, 0)
        correction = np.full(len(node.bias), taps * act_range(geometry.config.act_bits)[0], dtype=np.int64)
        return Tiles(np.zeros((0, 1), dtype=np.uint32), correction, 0)
    if geometry.op is LayerOp.DEPTHWISE:
        return depthwise_tiles(node, geometry.writes, zero_point, pair=pair, config=geometry.config)
    return conv_tiles(node, geometry, zero_point)


def _numbers(graph: Graph, node: Node, tiles: Tiles) -> dict[str, int]:
    """Descriptor values that do not follow from shapes."""
    values = {
        "pad_low": int((isinstance(node, Pool) and node.kind == "max") or graph.tensor(node.input).zero_point != 0),
        "slack": (1 << graph.act_bits) - 1 - (node.high - node.low),
        "above": (node.high + 1) % (1 << graph.act_bits),
        "shifts": tiles.shifts,
    }
    if node.skip is not None:
        values["skip_drop"] = graph.skip_drop(node)
    return values


def _pack_descriptor(layer: Layer) -> list[int]:
    """Host words of a layer's descriptor."""
    try:
        word = pack(DESCRIPTOR, layer.values)
    except ValueError as error:
        raise CompileError(f"layer {layer.node!r} is too large for a descriptor: {error}") from None
    return to_host_words(word, DESCRIPTOR_WORDS * HOST_BITS)
