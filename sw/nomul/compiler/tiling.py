"""Tiling: a network that an accelerator cannot hold, cut into pieces that it can.

A piece is a run of consecutive layers that ends in one tensor. It runs as a whole, or, where that does not fit, in
*bands* of the rows of its last tensor: each needs some rows of what the piece reads, and between its layers some rows
of what they make, more than the last one's by what its window reaches over (the *halo*, which neighbouring bands both
compute). A single layer can be cut into *blocks* of output channels too.

What takes fewest cycles wins; of equals, what moves fewest words between the host and the machine. A word can count as
cycles too, which it is to a host that waits for both: then layers are run together that would else hand everything to
the host and take it back, though neighbouring bands compute more twice.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import inf
from typing import NamedTuple

from nomul_hw.config import ArrayConfig
from nomul_hw.descriptor import DESCRIPTOR_WORDS, Target
from nomul_hw.timing import FETCH_CYCLES, run_cycles

from ..graph import Concat
from ..shapes import LayerShape, NetworkShape
from .cutting import Nodes, Piece, cut_piece, needed_rows
from .errors import CompileError
from .plan import plan_passes
from .traffic import run_words, transfer_words

__all__ = ["Tiling", "tile_network"]

#: Layers of a piece that runs in bands, at most.
_MOST_FUSED = 6

@dataclass(frozen=True)
class Tiling:
    """A network in pieces.

    Parameters
    ----------
    pieces : tuple of Piece
        In execution order. Concatenations that are in none of them are left to the host.
    host_words : int
        Words between the host and the accelerator for one sample, both ways, the programs' own among them; less where
        one program happens to have the words of the one before it.
    """

    pieces: tuple[Piece, ...]
    host_words: int


class _Cost(NamedTuple):
    """What is minimized, in this order; ``time`` is cycles, and words by what one counts as."""

    time: float = 0
    cycles: int = 0
    words: int = 0
    runs: int = 0

    def plus(self, other: "_Cost", times: int = 1) -> "_Cost":
        return _Cost(*(mine + times * its for mine, its in zip(self, other, strict=True)))  # type: ignore[arg-type]


class _Cut(NamedTuple):
    """Layers, and what they are cut into: block after block, all in the same bands."""

    nodes: Nodes
    bands: Sequence[range]
    blocks: Sequence[range | None]
    own_skips: bool

    def piece(self, network: NetworkShape, band: int, block: int) -> Piece | None:
        return cut_piece(network, self.nodes, self.bands[band], self.blocks[block], own_skips=self.own_skips)

    def pieces(self, network: NetworkShape) -> Iterator[Piece]:
        for block in range(len(self.blocks)):
            for band in range(len(self.bands)):
                piece = self.piece(network, band, block)
                assert piece is not None
                yield piece


class _Way(NamedTuple):
    """A way to run some layers."""

    cost: _Cost = _Cost()
    cuts: tuple[_Cut, ...] = ()

    def then(self, other: "_Way") -> "_Way":
        return _Way(self.cost.plus(other.cost), self.cuts + other.cuts)


class _Price(NamedTuple):
    """What one run takes: cycles, the host's words for its tensors, for its descriptors, and for its constants."""

    cycles: int
    tensors: int
    descriptors: int
    constants: int
    window: tuple[int, int]


def tile_network(network: NetworkShape, config: ArrayConfig, *, word_cycles: float = 0) -> Tiling:
    """Cut a network into pieces that fit an accelerator's memories.

    Parameters
    ----------
    network : NetworkShape
        Its convolutions know what their weights take (:func:`nomul.compiler.passes.with_passes`).
    word_cycles : float
        Cycles that a word between the host and the machine counts as; the host stream takes one at the least.

    Raises
    ------
    CompileError
        If a layer does not fit, even row by row; the message says what would do.
    """
    way = _Search(network, config, word_cycles).cheapest()
    return Tiling(tuple(piece for cut in way.cuts for piece in cut.pieces(network)), way.cost.words)


class _Search:
    """The search for the cheapest pieces of a network."""

    def __init__(self, network: NetworkShape, config: ArrayConfig, word_cycles: float):
        self._network = network
        self._config = config
        self._word_cycles = word_cycles
        self._prices: dict[NetworkShape, _Price | None] = {}
        self._last_reader = {name: index for index, node in enumerate(network.nodes) for name in node.sources}
        self._last_reader[network.output] = len(network.nodes)

    def cheapest(self) -> _Way:
        """The cheapest way to run all layers, from the cheapest ways to run the first ones."""
        nodes = self._network.nodes
        ways = [_Way()]
        for end in range(1, len(nodes) + 1):
            best = ways[-1].then(self._single(nodes[end - 1]))
            whole = True
            for start in range(end - 2, -1, -1):
                run = nodes[start:end]
                if not whole and len(run) > _MOST_FUSED:
                    break
                if not self._is_piece(start, end):
                    continue
                found = self._whole(run) if whole else None
                if found is None:
                    whole = False  # nor will more layers fit
                    if len(run) <= _MOST_FUSED:
                        found = self._in_bands(run, best.cost.time - ways[start].cost.time)
                if found is not None:
                    best = min(best, ways[start].then(found), key=lambda way: way.cost)
            ways.append(best)
        return ways[-1]

    def _is_piece(self, start: int, end: int) -> bool:
        """Whether layers end in one tensor, and concatenate only what they make."""
        nodes = self._network.nodes[start:end]
        made = {node.output for node in nodes}
        return sum(self._last_reader.get(name, end) >= end for name in made) == 1 and all(
            made.issuperset(node.inputs) for node in nodes if isinstance(node, Concat))

    # Ways to run some layers -----------------------------------------------------------------------------------

    def _single(self, node: LayerShape | Concat) -> _Way:
        """One layer, whole if that fits, else in bands and blocks."""
        if isinstance(node, Concat):
            return _Way()
        found = self._whole([node]) or self._in_bands([node], inf)
        if found is None:
            raise CompileError(self._refusal(node))
        return found

    def _whole(self, nodes: Nodes) -> _Way | None:
        return self._way(nodes, [range(self._network.tensor(nodes[-1].output).height)], [None])

    def _in_bands(self, nodes: Nodes, limit: float) -> _Way | None:
        """Run layers in bands; None if they do not fit, or are known to take more time than ``limit`` that way."""
        if not _makes_all(self._network, nodes):
            return None
        height = self._network.tensor(nodes[-1].output).height
        fewest = self._fewest_cycles(nodes)
        found: _Way | None = None
        for blocks in self._blocks(nodes):
            for rows in _shares(height):
                bands = [range(top, min(top + rows, height)) for top in range(0, height, rows)]
                if fewest + len(blocks) * len(bands) * FETCH_CYCLES > limit:
                    break
                way = self._way(nodes, bands, blocks)
                if way is not None and (found is None or way.cost < found.cost):
                    found, limit = way, min(limit, way.cost.time)
        return found

    def _blocks(self, nodes: Nodes) -> Iterator[list[range | None]]:
        """Ways to share out output channels, in as many runs; of several layers only all at once."""
        node = nodes[0]
        yield [None]
        if len(nodes) == 1 and isinstance(node, LayerShape):
            channels = self._network.tensor(node.output).channels
            unit = self._config.depth
            if node.kind == "conv":
                unit = self._config.cols if node.groups == 1 else channels // node.groups
                if self._network.depthwise(node):
                    unit = self._config.depth
            for units in _shares(-(-channels // unit)):
                if units * unit < channels:
                    yield [range(first, min(first + units * unit, channels))
                           for first in range(0, channels, units * unit)]

    def _fewest_cycles(self, nodes: Nodes) -> float:
        """Cycles that layers take at the least, as far as can be said before they are cut."""
        piece = cut_piece(self._network, nodes, range(self._network.tensor(nodes[-1].output).height))
        assert piece is not None
        try:
            plan = plan_passes(piece.network, self._config, fit=False)
        except CompileError:
            return 0
        return sum(cycles["busy"] for cycles in run_cycles(self._config, [layer.values for layer in plan.layers]))

    # What a way costs ------------------------------------------------------------------------------------------

    def _way(self, nodes: Nodes, bands: Sequence[range], blocks: Sequence[range | None]) -> _Way | None:
        """The cheaper way of having skip tensors as inputs of their own or not; None if neither fits."""
        cuts = [_Cut(nodes, bands, blocks, own_skips)
                for own_skips in ((False, True) if _reads_twice(nodes) else (False,))]
        ways = [_Way(cost, (cut,)) for cut in cuts if (cost := self._cost(cut)) is not None]
        return min(ways, key=lambda way: way.cost, default=None)

    def _cost(self, cut: _Cut) -> _Cost | None:
        """Add up what all pieces take; None if there is one that does not fit."""
        cost = _Cost()
        loaded: _Price | None = None
        for _, alike in groupby(range(len(cut.blocks)), key=lambda block: len(cut.blocks[block] or ())):
            block, *others = alike
            prices = self._band_prices(cut, block)
            if prices is None:
                return None
            cost = cost.plus(self._block_cost(prices, loaded))
            loaded = prices[-1]
            cost = cost.plus(self._block_cost(prices, loaded), len(others))
        return cost

    def _block_cost(self, prices: Sequence[_Price], loaded: _Price | None) -> _Cost:
        """What a block takes after a run whose descriptors may be the same; its constants are other ones."""
        cycles = words = 0
        window = None
        for price in prices:
            cycles += price.cycles
            words += price.tensors
            words += price.descriptors if price is not loaded else 0
            words += price.constants if price.window != window else 0
            loaded, window = price, price.window
        return _Cost(cycles + self._word_cycles * words, cycles, words, len(prices))

    def _band_prices(self, cut: _Cut, block: int) -> list[_Price] | None:
        """What every band of a block takes; None if there is one that does not fit.

        Bands between two that need no padding need none either: they all take the same.
        """
        prices: dict[int, _Price] = {}
        inner: _Price | None = None
        for order in (range(len(cut.bands)), reversed(range(len(cut.bands)))):
            for band in order:
                if band in prices:
                    break
                piece = cut.piece(self._network, band, block)
                price = None if piece is None else self._price(piece.network)
                if piece is None or price is None:
                    return None
                prices[band] = price
                if len(cut.bands[band]) == len(cut.bands[0]) and not piece.padded:
                    inner = price
                    break
        assert inner is not None or len(prices) == len(cut.bands)
        return [prices.get(band, inner or prices[0]) for band in range(len(cut.bands))]

    def _price(self, network: NetworkShape) -> _Price | None:
        """What a run of a piece takes; None if it does not fit."""
        if network not in self._prices:
            self._prices[network] = self._find_price(network)
        return self._prices[network]

    def _find_price(self, network: NetworkShape) -> _Price | None:
        config = self._config
        try:
            plan = plan_passes(network, config)
        except CompileError:
            return None

        tensors = [plan.placements[name].words for name in (network.input, *network.more_inputs, network.output)]
        return _Price(
            sum(cycles["total"] for cycles in run_cycles(config, [layer.values for layer in plan.layers])),
            run_words(config, tensors),
            transfer_words(config, Target.PROGRAM, len(plan.layers) * DESCRIPTOR_WORDS),
            transfer_words(config, Target.PARAMETER, plan.memory["parameters"]) + (
                transfer_words(config, Target.WEIGHT, plan.memory["weights"]) if config.weights == "memory" else 0),
            plan.window,
        )

    def _refusal(self, node: LayerShape) -> str:
        """Say what a layer lacks that does not fit in the smallest of bands and blocks."""
        height = self._network.tensor(node.output).height
        *_, blocks = self._blocks([node])
        pieces = [cut_piece(self._network, [node], range(row, row + 1), block)
                  for block in blocks for row in range(height)]
        least = f"one row of {len(blocks[0] or range(self._network.tensor(node.output).channels))} output channels"
        if None in pieces:
            pieces = [cut_piece(self._network, [node], range(height))]
            least = "all of it, as some of its rows read nothing but padding,"
        needed: dict[str, int] = {}
        for network in {piece.network for piece in pieces if piece is not None}:
            try:
                memory = plan_passes(network, self._config, fit=False).memory
            except CompileError as error:
                return str(error)
            needed |= {what: max(words, needed.get(what, 0)) for what, words in memory.items()}
        lacking = [f"memory.{what} = {words} would do, not {getattr(self._config.memory, what)}"
                   for what, words in needed.items() if words > getattr(self._config.memory, what)]
        return f"layer {node.name!r} does not fit: {least} is the least that runs at a time: {', '.join(lacking)}"


def _shares(total: int) -> Iterator[int]:
    """The sizes of the largest of 1, 2, 3, ... shares of about one size, each size once."""
    size = total + 1
    for count in range(1, total + 1):
        if -(-total // count) < size:
            size = -(-total // count)
            yield size


def _makes_all(network: NetworkShape, nodes: Nodes) -> bool:
    """Whether layers that run in bands make all rows of the tensors between them: who looks at one must find them."""
    outputs = {node.output for node in nodes}
    read = {name for node in nodes for name in node.sources}
    for node in nodes:
        if isinstance(node, LayerShape):
            height = network.tensor(node.input).height
            rows = range(network.tensor(node.output).height)
            reach = (node.kernel[0] - 1) * node.dilation[0] + 1
            if reach < node.stride[0] or needed_rows(node, height, rows)[0] != range(height):
                read.discard(node.input)
    return len(outputs - read) == 1


def _reads_twice(nodes: Nodes) -> bool:
    """Whether a skip tensor that the layers do not make is also read otherwise."""
    sources = [name for node in nodes for name in node.sources]
    made = {node.output for node in nodes}
    return any(isinstance(node, LayerShape) and node.skip is not None and node.skip not in made
               and sources.count(node.skip) > 1 for node in nodes)
