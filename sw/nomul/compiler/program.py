"""Programs: what a device is loaded with, and what is known about it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from nomul_hw.config import ArrayConfig
from nomul_hw.contents import Contents
from nomul_hw.descriptor import HOST_BITS

from ..graph import Graph

if TYPE_CHECKING:
    from ..estimate import Estimate

__all__ = ["Layer", "Placement", "Program", "Segments", "segment_lanes"]

#: Channels without a gap between them: the first of each segment, and its lane. The first segment is (0, 0).
Segments = tuple[tuple[int, int], ...]


def segment_lanes(segments: Segments, channels: int) -> npt.NDArray[np.int64]:
    """The lane of every channel, int64 (channels,)."""
    lanes = np.arange(channels, dtype=np.int64)
    for channel, lane in segments:
        lanes[channel:] = np.arange(lane, lane + channels - channel)
    return lanes


@dataclass(frozen=True)
class Placement:
    """Where a tensor lies: channel word ``c``, row ``y``, column ``x`` is word ``address + (c * H + y) * W + x``.

    Parameters
    ----------
    bank, address, words : int
        The bank, the first word in it, and the number of words.
    segments : tuple of (int, int)
        Which lanes its channels lie in, counted on from channel word to channel word.
    """

    bank: int
    address: int
    words: int
    segments: Segments = ((0, 0),)

    def lanes(self, channels: int) -> npt.NDArray[np.int64]:
        """The lane of every channel of the tensor, int64 (channels,)."""
        return segment_lanes(self.segments, channels)


@dataclass(frozen=True)
class Layer:
    """One descriptor: a node of the graph, or some of its output rows and channels.

    Parameters
    ----------
    node : str
        Name of the node.
    values : mapping of str to int
        Descriptor values, by field.
    macs : int
        Multiply-accumulates of one sample, padding counted; 0 for a pool.
    weights : range
        Words of weight memory that it reads, in this order.
    """

    node: str
    values: Mapping[str, int]
    macs: int
    weights: range = range(0)


@dataclass(frozen=True, eq=False)
class Program:
    """A graph compiled for one accelerator.

    Parameters
    ----------
    config : ArrayConfig
        The accelerator.
    graph : Graph
        The network.
    layers : tuple of Layer
        In execution order.
    placements : mapping of str to Placement
        Where each tensor lies in the activation banks; the input as it is sent, packed.
    input_window : (int, int)
        Height and width of the first convolution's window that the host packs into channels; (1, 1) for none.
    descriptors, parameters, weights : uint32 array
        Contents of the memories in host words, in the order of addresses.
    """

    config: ArrayConfig
    graph: Graph
    layers: tuple[Layer, ...]
    placements: Mapping[str, Placement]
    input_window: tuple[int, int]
    descriptors: npt.NDArray[np.uint32]
    parameters: npt.NDArray[np.uint32]
    weights: npt.NDArray[np.uint32]

    @property
    def weight_stream(self) -> npt.NDArray[np.uint32]:
        """What one run takes of weights, in the order of use: host words, for arrays that do not keep their weights."""
        words = self.weights.reshape(-1, -(-self.config.weight_word_bits // HOST_BITS))
        used = [words[layer.weights.start:layer.weights.stop] for layer in self.layers]
        return np.concatenate(used or [words]).reshape(-1)

    @cached_property
    def contents(self) -> Contents:
        """The program as a part of an accelerator, to generate one that has it built in."""
        return Contents.from_host_words(self.config, program=self.descriptors, parameters=self.parameters,
                                        weights=self.weights)

    def estimate(self) -> "Estimate":
        """Exact cycles of one sample, per layer and cause."""
        from ..estimate import estimate

        return estimate(self)
