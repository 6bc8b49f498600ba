"""Plans: everything that the compiler decides without weights.

A plan says which layers run, in which strips, from and to which words, and what that takes of every memory. Lowering
adds numbers to it; an estimate needs no more. So the two cannot differ.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from nomul_hw.config import MAX_LINES, ArrayConfig

from ..shapes import NetworkShape
from .allocation import allocate
from .banks import copied_shape
from .errors import CompileError
from .input_packing import packed_shape, packing_windows
from .lanes import channel_lanes
from .loops import ADDRESSES, Geometry, window_lines
from .passes import with_passes
from .program import Placement

__all__ = ["MAX_STRIP", "Plan", "PlannedLayer", "fitted", "plan_network", "with_enough_memory"]

#: Output pixels of the strips that an array gets accumulators for, where it may have as many as a network needs: what
#: a strip costs beside its products is the drain.
MAX_STRIP = 4096


class PlannedLayer(NamedTuple):
    """One descriptor, as far as it does not depend on numbers.

    Parameters
    ----------
    node : str
        Layer of the network, packed and with its copies.
    owner : str
        Layer of the network as it was: the same, or the one that a copy is made for.
    values : dict of str to int
        Descriptor values, by field.
    macs : int
        Multiply-accumulates of one sample, padding counted; 0 for a pool.
    weights : range
        Words of weight memory that it reads.
    """

    node: str
    owner: str
    values: dict[str, int]
    macs: int
    weights: range


@dataclass(frozen=True)
class Plan:
    """How an accelerator runs a network.

    Parameters
    ----------
    window : (int, int)
        Height and width of the first convolution's window that the host packs into channels; (1, 1) for none.
    layers : tuple of PlannedLayer
        In execution order.
    geometries : tuple of Geometry
        Of the layers of the network, packed and with its copies; what the array's memories of weights and parameters
        hold follows them.
    placements : mapping of str to Placement
        Where each tensor lies in the activation banks; the input as it is sent, packed.
    memory : mapping of str to int
        Words needed, by the names of :class:`nomul_hw.config.MemoryConfig`.
    """

    window: tuple[int, int]
    layers: tuple[PlannedLayer, ...]
    geometries: tuple[Geometry, ...]
    placements: Mapping[str, Placement]
    memory: Mapping[str, int]


def plan_network(network: NetworkShape, config: ArrayConfig, *, fit: bool = True) -> Plan:
    """Plan how an accelerator runs a network.

    A layer whose output has more pixels than there are accumulators runs as several strips of rows. A first
    convolution of few channels has its window packed into channels, and a grouped one runs as several descriptors,
    as far as the memories allow.

    Parameters
    ----------
    fit : bool
        Whether the network must fit the memories; if not, only the number of accumulators counts, and
        :attr:`Plan.memory` says how large the others would have to be.

    Raises
    ------
    CompileError
        If the accelerator cannot run a layer, or the network does not fit its memories.
    """
    network = with_passes(network, config)
    grouped = any(layer.groups > 1 for layer in network.layers)
    choices = [(window, compact) for window in packing_windows(network, config)
               for compact in ((False, True) if grouped and fit else (False,))]
    for window, compact in choices:
        try:
            return _plan(network, window, config, fit, compact)
        except CompileError:
            if (window, compact) == choices[-1]:
                raise
    raise AssertionError("no packing is always possible")


def _plan(original: NetworkShape, window: tuple[int, int], config: ArrayConfig, fit: bool, compact: bool) -> Plan:
    """Plan a network with a window of its first convolution packed into channels."""
    network, owners = copied_shape(packed_shape(original, window))
    lanes = channel_lanes(network, config)
    geometries = [
        Geometry(layer, network.tensor(layer.input), network.tensor(layer.output), lanes[layer.input],
                 lanes[layer.output], network.depthwise(layer), config, compact) for layer in network.layers]
    written = {geometry.target.name: geometry.written_words for geometry in geometries}
    placements, activations = allocate(network, lanes, written, config, config.memory.activations if fit else None)
    layers: list[PlannedLayer] = []
    parameters = weights = accumulators = 0
    for geometry in geometries:
        layer, target = geometry.layer, geometry.target
        read, put = placements[layer.input], placements[layer.output]
        where = {"in_bank": read.bank, "out_bank": put.bank, "out_plane": target.pixels % ADDRESSES}
        if layer.skip is not None:
            where |= {"skip": 1, "skip_address": (placements[layer.skip].address - put.address) % ADDRESSES}
        for strip in geometry.strips(pair=read.bank != put.bank):
            used = range(weights + strip.weights.start, weights + strip.weights.stop)
            strip.values.update(where, in_address=(read.address + strip.first_tap) % ADDRESSES,
                                out_address=put.address + strip.first_output,
                                parameter_base=parameters + strip.first_parameter,
                                weight_base=used.start if used and config.weights == "memory" else 0)
            layers.append(PlannedLayer(layer.name, owners.get(layer.name, layer.name), strip.values, strip.macs, used))
            accumulators = max(accumulators, strip.sums)
        parameters += geometry.parameter_words
        weights += geometry.weight_words

    memory = {"activations": activations, "weights": weights, "parameters": parameters, "accumulators": accumulators,
              "layers": len(layers)}
    limited = ["parameters", "layers"] if config.weights == "stream" else ["weights", "parameters", "layers"]
    for what in limited if fit else ():
        depth = getattr(config.memory, what)
        if memory[what] > depth:
            raise CompileError(f"the network needs {memory[what]} words of memory.{what}, the array has {depth}: "
                               f"set memory.{what} to at least {memory[what]}")
    return Plan(window, tuple(layers), tuple(geometries), placements, memory)


def with_enough_memory(network: NetworkShape, config: ArrayConfig) -> ArrayConfig:
    """Give an array the accumulators and lines that a network can use.

    That is accumulators for its largest map, or for strips of :data:`MAX_STRIP` pixels, and a window unit if there is
    anything for it to do.
    """
    maps = [network.tensor(layer.output) for layer in network.layers if layer.kind == "conv"]
    accumulators = max((max(tensor.width, min(tensor.pixels, MAX_STRIP)) for tensor in maps), default=2)
    lines = max((lines for layer in network.layers if (lines := window_lines(layer, network)) <= MAX_LINES), default=0)
    return replace(config, memory=replace(config.memory, accumulators=max(2, accumulators), lines=lines))


def fitted(network: NetworkShape, config: ArrayConfig) -> ArrayConfig:
    """Give an array memories that are just large enough for a network.

    Raises
    ------
    CompileError
        If the array cannot run a layer.
    nomul_hw.config.ConfigError
        If no array can have memories as large.
    """
    config = with_enough_memory(network, config)
    memory = {name: max(2, words) for name, words in plan_network(network, config, fit=False).memory.items()}
    if config.weights == "stream":
        memory["weights"] = config.memory.weights
    return replace(config, memory=replace(config.memory, **memory))
