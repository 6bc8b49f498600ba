"""Random graphs, grown node by node: such as an array can take, with numbers that are hard to get right."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import ceil, lcm, prod

import numpy as np
import numpy.typing as npt

from nomul.graph import Concat, Conv, Graph, Node, Operation, Pool, Tensor
from nomul_hw.arithmetic import MAX_SKIP_DROP, act_range
from nomul_hw.config import WINDOW, ArrayConfig
from nomul_hw.formats import WeightFormat

from . import golden
from .random_numbers import FORMATS, Weights, aim, random_clamp, random_codes, random_weights
from .random_shapes import Shape, map_size, random_channels, smallest_shape

__all__ = ["Builder", "Case"]

#: A node streams no more words than this through the array: enough for every boundary, cheap to simulate.
_MAX_WORDS = 1500


@dataclass(frozen=True, eq=False)
class Case:
    """A small network and inputs for it.

    Attributes
    ----------
    graph : Graph
        One node or more.
    inputs : int8 array, shape (batch, channels, height, width)
        Codes of the graph's input.
    """

    graph: Graph
    inputs: npt.NDArray[np.int8]


class Builder:
    """Grows a random graph for one array, with the golden codes of every tensor at hand.

    Parameters
    ----------
    config : ArrayConfig
        The array whose memories the network must fit.
    rng : numpy Generator
        Where all randomness comes from.
    share : float
        Part of every memory that one node may take.
    mixed : float
        Chance that a convolution has weights of another format than the array's.
    tame : bool
        Whether nearly all channels shall keep their spread, for nodes behind; else a good part saturate or vanish.
    batch : int
        Samples of the input.

    Attributes
    ----------
    graph : Graph
        What there is so far; its output is the last tensor made.
    """

    def __init__(self, config: ArrayConfig, rng: np.random.Generator, *, share: float, mixed: float,
                 tame: bool = False, batch: int = 2) -> None:
        self.config, self.rng = config, rng
        self._share, self._mixed, self._tame = share, mixed, tame
        source = self._tensor("input", random_channels(config, rng),
                              map_size(rng, int(config.memory.activations * share / 3)))
        self.graph = Graph(config.format, config.act_bits, config.gain_terms, (source,), (), source.name, source.name,
                           source.shape)
        self._codes = {source.name: random_codes(config, rng, (batch, *source.shape), tame=tame)}
        # Words of a pixel of every tensor, at most: the parts of a concatenation start new words and blocks.
        self._words = {source.name: ceil(source.channels / config.depth)}

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors made so far, the last one last."""
        return self.graph.tensors

    def case(self) -> Case:
        """Return the network as it is."""
        return Case(self.graph, self._codes[self.graph.input])

    def add(self, source: Tensor, shapes: Iterable[Shape | None], *, skips: Sequence[Tensor] = (),
            like: Tensor | None = None) -> Tensor:
        """Add a node of the first shape that the array can take, and return what it makes.

        Parameters
        ----------
        source : Tensor
            What the node reads.
        shapes : iterable of Shape or None
            Candidates; None is passed over. If none of them fits, the smallest possible node is taken.
        skips : sequence of Tensor
            One of those that have the output's shape is added to the output.
        like : Tensor, optional
            A tensor that the output shall have the scale and the zero point of, so that the two can be concatenated.
        """
        config, rng, name = self.config, self.rng, f"node{len(self.graph.nodes)}"
        shape, weights = self._first_that_fits(source, shapes)
        target = self._tensor(f"{name}.out", shape.channels, shape.size)
        drops = range(MAX_SKIP_DROP + 1)
        if like is not None:
            target = replace(target, exponent=like.exponent, zero_point=like.zero_point)
            skips = [skip for skip in skips if target.exponent - skip.exponent in drops]
        skips = [skip for skip in skips if skip.shape == target.shape]
        skip = skips[rng.integers(len(skips))] if skips else None
        if skip is not None and like is None:
            target = replace(target, exponent=skip.exponent + int(rng.choice(drops)))

        draft = self._draft(name, shape, source, target, weights)
        draft = replace(draft, shift=draft.shift + MAX_SKIP_DROP, skip=skip.name if skip else None)
        self._append(draft, target)
        # The golden sums of the draft decide which biases make the interesting cases.
        node = aim(config, rng, draft, golden.accumulators(self.graph, draft, self._codes[source.name]), target,
                   largest=self._largest_sum(shape, source, weights), drop=self.graph.skip_drop(draft),
                   tame=self._tame)
        self.graph = replace(self.graph, nodes=(*self.graph.nodes[:-1], node))
        self._codes = golden.run(self.graph, self._codes[self.graph.input])
        # What keeps the channels may keep their places too.
        self._words[target.name] = max(ceil(target.channels / config.depth), *(
            self._words[tied.name] for tied in (source, skip) if tied and tied.channels == target.channels), 0)
        return target

    def concat(self, parts: Sequence[Tensor]) -> Tensor | None:
        """Concatenate tensors; None if they are not of one size, scale and zero point, or too much."""
        config, name, pixels = self.config, f"node{len(self.graph.nodes)}", parts[0].height * parts[0].width
        if len({(part.height, part.width, part.exponent, part.zero_point) for part in parts}) > 1:
            return None
        words = sum(ceil(self._words[part.name] * config.depth / lcm(config.depth, config.cols))
                    for part in parts) * lcm(config.depth, config.cols) // config.depth
        if pixels * words > self._share * config.memory.activations:
            return None
        target = replace(parts[0], name=f"{name}.out", channels=sum(part.channels for part in parts))
        self._append(Concat(name, tuple(part.name for part in parts), target.name), target)
        self._codes[target.name] = np.concatenate([self._codes[part.name] for part in parts], axis=1)
        self._words[target.name] = words
        return target

    def _append(self, node: Operation, target: Tensor) -> None:
        self.graph = replace(self.graph, tensors=(*self.graph.tensors, target), nodes=(*self.graph.nodes, node),
                             output=target.name, output_shape=target.shape)

    def _tensor(self, name: str, channels: int, size: tuple[int, int]) -> Tensor:
        return Tensor(name, channels, *size, 0, int(self.rng.choice([0, act_range(self.config.act_bits)[0]])))

    def _first_that_fits(self, source: Tensor, shapes: Iterable[Shape | None]) -> tuple[Shape, Weights | None]:
        smallest = smallest_shape(source)
        for shape in chain(shapes, (smallest,)):
            if shape is None:
                continue
            if shape.kind != "conv":
                if self._fits(shape, source, None):
                    return shape, None
                continue
            # Weights of another format take planes, for which there may be no room.
            formats: list[WeightFormat | None] = [None]
            if self.rng.random() < self._mixed and shape is not smallest:
                formats.insert(0, FORMATS[self.rng.integers(len(FORMATS))])
            for fmt in formats:
                size = (shape.channels, source.channels // shape.groups, *shape.kernel)
                # On the array, a grouped convolution has zeros between its groups.
                zeros = shape.groups > 1 and not (fmt is None and self._in_window_unit(shape, source, surely=True))
                weights = random_weights(self.config, self.rng, size, fmt, zeros=zeros)
                if weights is not None and self._fits(shape, source, weights):
                    return shape, weights
        raise ValueError(f"The memories of {self.config.name} are too small for random layers")

    def _fits(self, shape: Shape, source: Tensor, weights: Weights | None) -> bool:
        """Whether a node takes at most its share of every memory, and few cycles."""
        config, memory, share = self.config, self.config.memory, self._share
        pixels, taps, in_words = prod(shape.size), prod(shape.kernel), self._words[source.name]
        blocks = ceil(shape.channels / config.cols)
        out_words = max(ceil(shape.channels / config.depth), in_words if source.channels == shape.channels else 0)
        words, tiles = pixels * taps * in_words, 0
        if weights is not None:
            # A convolution writes whole blocks of output channels.
            out_words = max(out_words, ceil(blocks * config.cols / config.depth))
            words *= blocks * weights.planes
            tiles = max(taps * in_words * blocks * weights.planes,
                        in_words * config.window_groups if self._in_window_unit(shape, source) else 0)
        rows = memory.accumulators // shape.size[1]
        return (
            words <= _MAX_WORDS
            and pixels * out_words <= share * memory.activations
            # Beyond the accumulators a layer runs as strips of rows, each with a descriptor of its own.
            and rows > 0 and ceil(shape.size[0] / rows) <= share * memory.layers
            and out_words * config.depth + config.cols <= share * memory.parameters * config.requantize_lanes
            and tiles * config.rows <= share * memory.weights
            # Half of the accumulator's range is left for the bias, whatever the weights.
            and self._largest_sum(shape, source, weights) < 1 << config.acc_bits - 2
            and (weights is not None or taps <= 1 << config.pool_bits - config.act_bits)
        )

    def _in_window_unit(self, shape: Shape, source: Tensor, *, surely: bool = False) -> bool:
        """Whether a convolution may run in the window unit; or surely can."""
        if not self.config.memory.lines or not shape.groups == shape.channels == source.channels:
            return False
        across = shape.padding[1] + source.width + shape.padding[3]
        return not surely or (max(shape.kernel) <= WINDOW and max(shape.stride) <= 2 and max(shape.dilation) == 1
                              and across <= self.config.memory.lines)

    def _largest_sum(self, shape: Shape, source: Tensor, weights: Weights | None) -> int:
        """Bound of a sum over a window: unused lanes, and what inversions leave to the bias, included."""
        most, taps = 1 << self.config.act_bits - 1, prod(shape.kernel)
        if weights is None:
            return taps * most
        used, lanes = source.channels // shape.groups, self._words[source.name] * self.config.depth
        if self._in_window_unit(shape, source):
            taps = max(taps, WINDOW * WINDOW)
        return taps * (most + 1) * (used * weights.reach + (lanes - used) * weights.filler)

    def _draft(self, name: str, shape: Shape, source: Tensor, target: Tensor, weights: Weights | None) -> Node:
        """Make the node with all but its final bias and gain."""
        low, high = random_clamp(self.config, self.rng, target.zero_point, tame=self._tame)
        node = Node(
            name=name, input=source.name, output=target.name, kernel=shape.kernel, stride=shape.stride,
            padding=shape.padding, dilation=shape.dilation, bias=np.zeros(target.channels, dtype=np.int64),
            multiplier=np.ones(target.channels, dtype=np.int64), shift=np.zeros(target.channels, dtype=np.int64),
            low=low, high=high,
        )
        fields = {field: getattr(node, field) for field in node.__dataclass_fields__}
        if weights is None:
            return Pool(**fields, kind="max" if shape.kind == "max" else "sum")
        return Conv(**fields, weights=weights.values, groups=shape.groups, format=weights.format)
