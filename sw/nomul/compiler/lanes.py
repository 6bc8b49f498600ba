"""Lanes: where the channels of a tensor lie among the lanes of its words.

A word holds ``rows * lanes`` channels of a pixel, and the channels of a tensor fill lane after lane. A concatenation
moves nothing: its parts lie behind each other in one tensor, where each must start a word of its own, and a block of
output channels of its own, so that no layer writes into its neighbour's part. Where the channels of a part end in
between, lanes stay unused: the tensor has *gaps*.

What works channel by channel (pooling, depthwise convolution, residual addition) keeps every channel in its lane. So
tensors that such layers connect have gaps in the same places, all that any of them needs; a convolution mixes channels
and may write any lanes. That way no layer is ever needed to move channels from lane to lane.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import lcm

import numpy as np
import numpy.typing as npt

from nomul_hw.config import ArrayConfig

from ..graph import Concat
from ..shapes import NetworkShape
from .program import Segments, segment_lanes

__all__ = ["Lanes", "channel_lanes", "parents"]


@dataclass(frozen=True)
class Lanes:
    """The lanes of one tensor, counted on from word to word.

    Parameters
    ----------
    channels : int
        Channels of the tensor.
    depth : int
        Lanes of a word.
    segments : tuple of (int, int)
        Which lanes the channels lie in.
    filled : int
        Lanes that whatever writes the tensor fills: all up to the last channel's, at least.
    """

    channels: int
    depth: int
    segments: Segments
    filled: int

    @property
    def used(self) -> int:
        """Lanes up to the last channel's."""
        channel, lane = self.segments[-1]
        return lane + self.channels - channel

    @property
    def words(self) -> int:
        """Words of a pixel that have channels."""
        return -(-self.used // self.depth)

    @property
    def filled_words(self) -> int:
        """Words of a pixel that are written."""
        return -(-self.filled // self.depth)

    @property
    def gaps(self) -> bool:
        """Whether there are unused lanes below the last channel's."""
        return self.used > self.channels

    @cached_property
    def positions(self) -> npt.NDArray[np.int64]:
        """The lane of every channel, ascending, int64 (channels,)."""
        return segment_lanes(self.segments, self.channels)

    def lane(self, channel: int) -> int:
        """The lane of one channel."""
        first, lane = max(segment for segment in self.segments if segment[0] <= channel)
        return lane + channel - first


def parents(network: NetworkShape) -> dict[str, tuple[str, int]]:
    """Where parts lie: for every tensor that is a part, the concatenated one and the part's first channel there."""
    found: dict[str, tuple[str, int]] = {}
    for node in network.nodes:
        if isinstance(node, Concat):
            channel = 0
            for part in node.inputs:
                found[part] = (node.output, channel)
                channel += network.tensor(part).channels
    return found


def channel_lanes(network: NetworkShape, config: ArrayConfig) -> Mapping[str, Lanes]:
    """Lay out the channels of every tensor.

    Where the array's format has no zero, an unused lane is multiplied by some weight: then gaps have to hold the zero
    point, so all that writes a tensor with gaps, or next to others, fills the lanes up to where a neighbour may start.
    """
    concats = [node for node in network.nodes if isinstance(node, Concat)]
    if not concats:  # nothing to reconcile: the many networks that are planned by the thousand stay cheap
        return {tensor.name: Lanes(tensor.channels, config.depth, ((0, 0),), tensor.channels)
                for tensor in network.tensors}

    alike = _alike(network)
    breaks = {group: frozenset[int]() for group in alike.values()}
    joined = {alike[name] for node in concats for name in (*node.inputs, node.output)}
    before: dict[str, frozenset[int]] = {}
    while breaks != before:
        before = dict(breaks)
        for node in concats:
            whole, channel = alike[node.output], 0
            for name in node.inputs:
                part, end = alike[name], channel + network.tensor(name).channels
                breaks[whole] |= {channel + each for each in breaks[part]} | ({channel} if channel else set())
                breaks[part] |= {each - channel for each in breaks[whole] if channel < each < end}
                channel = end

    unit = lcm(config.depth, config.cols)
    lanes: dict[str, Lanes] = {}
    for tensor in network.tensors:
        group = alike[tensor.name]
        segments, channel, lane = [(0, 0)], 0, 0
        for start in sorted(breaks[group]):
            end = lane + start - channel
            channel, lane = start, -(-end // unit) * unit
            if lane > end:
                segments.append((channel, lane))
        used = lane + tensor.channels - channel
        filled = used if config.format.zero or group not in joined else -(-used // unit) * unit
        lanes[tensor.name] = Lanes(tensor.channels, config.depth, tuple(segments), filled)
    return lanes


def _alike(network: NetworkShape) -> dict[str, str]:
    """Tensors whose channels lie in the same lanes: a representative of every tensor's group."""
    group = {tensor.name: tensor.name for tensor in network.tensors}

    def find(name: str) -> str:
        while group[name] != name:
            group[name] = name = group[group[name]]
        return name

    for layer in network.layers:
        tied = [] if layer.skip is None else [layer.skip]
        if layer.kind != "conv" or network.depthwise(layer):
            tied.append(layer.input)
        for name in tied:
            group[find(name)] = find(layer.output)
    return {name: find(name) for name in group}
