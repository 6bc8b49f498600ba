"""Plans: everything that the compiler decides without weights.

A plan says which layers run, in which strips, from and to which words, and what that takes of every memory. Lowering
adds numbers to it; an estimate needs no more. So the two cannot differ.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from nomul_hw.config import ArrayConfig
from nomul_hw.descriptor import LayerOp

from ..shapes import NetworkShape
from .allocation import CompileError, allocate
from .banks import copied_shape
from .input_packing import packed_shape, packing_windows
from .loops import ADDRESSES, operation, parameter_words, strips, weight_words
from .program import Placement

__all__ = ["MAX_STRIP", "Plan", "PlannedLayer", "plan_network", "with_enough_accumulators"]

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
    """

    node: str
    owner: str
    values: dict[str, int]
    macs: int


@dataclass(frozen=True)
class Plan:
    """How an accelerator runs a network.

    Parameters
    ----------
    window : (int, int)
        Height and width of the first convolution's window that the host packs into channels; (1, 1) for none.
    layers : tuple of PlannedLayer
        In execution order.
    placements : mapping of str to Placement
        Where each tensor lies in the activation banks; the input as it is sent, packed.
    memory : mapping of str to int
        Words needed, by the names of :class:`nomul_hw.config.MemoryConfig`.
    """

    window: tuple[int, int]
    layers: tuple[PlannedLayer, ...]
    placements: Mapping[str, Placement]
    memory: Mapping[str, int]


def plan_network(network: NetworkShape, config: ArrayConfig, *, fit: bool = True) -> Plan:
    """Plan how an accelerator runs a network.

    A layer whose output has more pixels than there are accumulators runs as several strips of rows. A first
    convolution of few channels has its window packed into channels, as far as the memories allow.

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
    for window in packing_windows(network, config):
        try:
            return _plan(network, window, config, fit)
        except CompileError:
            if window == (1, 1):
                raise
    raise AssertionError("no packing is always possible")


def _plan(original: NetworkShape, window: tuple[int, int], config: ArrayConfig, fit: bool) -> Plan:
    """Plan a network with a window of its first convolution packed into channels."""
    network, owners = copied_shape(packed_shape(original, window))
    placements, activations = allocate(network, config, config.memory.activations if fit else None)
    layers: list[PlannedLayer] = []
    parameters = weights = accumulators = 0
    for layer in network.layers:
        source, target = network.tensor(layer.input), network.tensor(layer.output)
        read, written = placements[layer.input], placements[layer.output]
        where = {"in_bank": read.bank, "out_bank": written.bank, "out_plane": target.pixels,
                 "parameter_base": parameters, "weight_base": weights}
        if layer.skip is not None:
            where |= {"skip": 1, "skip_address": (placements[layer.skip].address - written.address) % ADDRESSES}
        for strip in strips(layer, source, target, config):
            strip.values.update(where, in_address=(read.address + strip.first_tap) % ADDRESSES,
                                out_address=written.address + strip.first_output)
            layers.append(PlannedLayer(layer.name, owners.get(layer.name, layer.name), strip.values, strip.macs))
            accumulators = max(accumulators, strip.sums)
        parameters += parameter_words(layer, target, config)
        weights += weight_words(layer, source, target, config)

    # The loader runs ahead: when a layer's last tile is in use it fetches the first tile of the next convolution.
    following = 0
    for planned in reversed(layers):
        planned.values["weight_next"] = following
        if planned.values["op"] == LayerOp.CONV:
            following = planned.values["weight_base"]

    memory = {"activations": activations, "weights": weights, "parameters": parameters, "accumulators": accumulators,
              "layers": len(layers)}
    for what in ("weights", "parameters", "layers") if fit else ():
        depth = getattr(config.memory, what)
        if memory[what] > depth:
            raise CompileError(f"the network needs {memory[what]} words of memory.{what}, the array has {depth}: "
                               f"set memory.{what} to at least {memory[what]}")
    return Plan(window, tuple(layers), placements, memory)


def with_enough_accumulators(network: NetworkShape, config: ArrayConfig) -> ArrayConfig:
    """Give an array the accumulators that a network can use: its largest map, or strips of :data:`MAX_STRIP` pixels."""
    maps = [network.tensor(layer.output) for layer in network.layers if operation(layer, config) is LayerOp.CONV]
    needed = max((max(tensor.width, min(tensor.pixels, MAX_STRIP)) for tensor in maps), default=2)
    return replace(config, memory=replace(config.memory, accumulators=max(2, needed)))
