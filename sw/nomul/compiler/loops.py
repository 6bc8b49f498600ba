"""Loops: how the address generator walks a layer, from shapes alone.

This decides the cycles of a layer, for the compiler as for the estimate of a network that has no weights yet.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf, lcm
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nomul_hw.config import WINDOW, ArrayConfig
from nomul_hw.descriptor import ADDRESS_BITS, DESCRIPTOR, LOOPS, LayerOp
from nomul_hw.timing import hold_cycles, run_cycles

from ..shapes import LayerShape, NetworkShape, TensorShape
from .errors import CompileError
from .lanes import Lanes

__all__ = ["ADDRESSES", "MAX_COORDINATE", "Geometry", "Run", "Strip", "fits_window", "window_lines"]

Int64Array = npt.NDArray[np.int64]

#: Coordinates are compared modulo this: a map and its padding must not meet from both sides.
MAX_COORDINATE = 1 << 12

#: Word addresses, and steps between them, are modulo this.
ADDRESSES = 1 << ADDRESS_BITS

#: Descriptor fields of every loop.
_LOOP_FIELDS = [(f"count_{level}", f"step_{level}", f"x_step_{level}", f"y_step_{level}") for level in range(LOOPS)]

#: Smallest and largest value of every descriptor field.
_BOUNDS = {field.name: (-(1 << field.bits - 1) if field.signed else 0, (1 << field.bits - field.signed) - 1)
           for field in DESCRIPTOR}


class _Loop(NamedTuple):
    """One loop of the address generator: iterations, and what an iteration moves."""

    iterations: int
    address: int = 0
    x: int = 0
    y: int = 0


#: A loop that goes nowhere.
_ONCE = _Loop(1)


class Run(NamedTuple):
    """Blocks of output channels that one descriptor goes through, and the input words that each of them reads.

    Block ``first_block + i`` reads ``words`` channel words from ``first_word + i * step`` on. Between the words of its
    groups a block of a grouped convolution has nothing but zeros as weights, which need not be multiplied.
    """

    first_block: int
    blocks: int
    first_word: int
    step: int
    words: int


class Strip(NamedTuple):
    """One descriptor: a run of a layer, or as many of its output rows as run at once.

    Parameters
    ----------
    values : dict of str to int
        Descriptor values: the operation, its loops, its window, the hold. What cycles depend on is among them.
    first_tap, first_output : int
        Word addresses, from the start of the input and of the output tensor.
    first_parameter : int
        Word of parameters, from the layer's first.
    weights : range
        Words of weights, from the layer's first.
    sums : int
        Accumulators that it takes; 0 where no sum is kept.
    macs : int
        Multiply-accumulates of one sample, padding counted; 0 for a pool.
    """

    values: dict[str, int]
    first_tap: int
    first_output: int
    first_parameter: int
    weights: range
    sums: int
    macs: int


@dataclass(frozen=True, eq=False)
class Geometry:
    """A layer on an array: what runs it, and the loops of its descriptors.

    Parameters
    ----------
    layer : LayerShape
        The layer.
    source, target : TensorShape
        What it reads and writes.
    reads, writes : Lanes
        Where their channels lie.
    depthwise : bool
        Whether the layer is a convolution of every channel on its own.
    config : ArrayConfig
        The array.
    compact : bool
        Whether fewer descriptors are better than fewer cycles.
    """

    layer: LayerShape
    source: TensorShape
    target: TensorShape
    reads: Lanes
    writes: Lanes
    depthwise: bool
    config: ArrayConfig
    compact: bool = False

    @cached_property
    def op(self) -> LayerOp:
        """What runs the layer: the unit that takes the fewest cycles for it.

        Raises
        ------
        CompileError
            If nothing does.
        """
        layer, config = self.layer, self.config
        if layer.kind == "sum":
            return LayerOp.SUM_POOL
        plain, window = ((LayerOp.CONV, LayerOp.DEPTHWISE) if layer.kind == "conv" else
                         (LayerOp.MAX_POOL, LayerOp.MAX_WINDOW))
        if not 0 < _window_lines(layer, self.target, self.depthwise) <= config.memory.lines:
            return plain
        if layer.planes == 0:
            return window
        # Whether pairs of columns can be read at once turns out when there are addresses; mostly they can.
        return min((self._cycles(window, self._pairs(window)), window), (self._cycles(plain), plain),
                   key=lambda candidate: candidate[0])[1]

    def _pairs(self, op: LayerOp) -> bool:
        """Whether the layer could move by pairs of columns."""
        return op is LayerOp.DEPTHWISE and self.layer.stride[1] == 2

    def _cycles(self, op: LayerOp, pair: bool = False) -> float:
        """Cycles of the layer, run on its own; infinite if it cannot run so."""
        try:
            return _total_cycles(self.config, self._strips(op, pair))
        except CompileError:
            return inf

    @property
    def blocks(self) -> int:
        """Blocks of output channels that the array computes."""
        return -(-self.writes.filled // self.config.cols)

    @property
    def written_words(self) -> int:
        """Words of an output pixel that are written, those among them that no channel lies in."""
        if self.op is LayerOp.CONV:
            return -(-self.blocks * self.config.cols // self.config.depth)
        return self.writes.filled_words

    @property
    def parameter_words(self) -> int:
        """Words of parameter memory: of all channels that are written."""
        lanes = self.blocks * self.config.cols if self.op is LayerOp.CONV else (
            self.writes.filled_words * self.config.depth)
        return lanes // self.config.requantize_lanes

    @property
    def weight_words(self) -> int:
        """Words of weight memory."""
        if self.op is LayerOp.CONV:
            return sum(self._run_weights(run) for run in self.runs)
        return self._tiles_weights if self.op is LayerOp.DEPTHWISE else 0

    def strips(self, *, pair: bool) -> Sequence[Strip]:
        """Make the layer's descriptors, in execution order.

        Parameters
        ----------
        pair : bool
            Whether input and output lie in different banks, so that two columns can be read at once.

        Raises
        ------
        CompileError
            If the array cannot run the layer.
        """
        return tuple(self._strips(self.op, pair and self._pairs(self.op)))

    def _strips(self, op: LayerOp, pair: bool = False) -> Iterator[Strip]:
        layer, config = self.layer, self.config
        for axis, size, padding in (("height", self.source.height, layer.padding[::2]),
                                    ("width", self.source.width, layer.padding[1::2])):
            if size + sum(padding) > MAX_COORDINATE:
                raise CompileError(f"layer {layer.name!r}: an input {axis} of {size} with its padding is more than the "
                                   f"{MAX_COORDINATE} that a descriptor reaches")
        if op is LayerOp.SUM_POOL and layer.taps > 1 << (config.pool_bits - config.act_bits):
            raise CompileError(f"layer {layer.name!r}: a window of {layer.taps} pixels is too large to sum, the array "
                               f"sums {1 << (config.pool_bits - config.act_bits)}")
        return (self._window_strips(op, pair) if op.is_window else
                self._conv_strips(self.runs) if op is LayerOp.CONV else self._pool_strips(op))

    # Pools -----------------------------------------------------------------------------------------------------

    def _pool_strips(self, op: LayerOp) -> Iterator[Strip]:
        values = self._values(op, [*self._kernel, *self._pixels(self.target.height),
                                   _Loop(self.writes.filled_words, self.source.pixels), _ONCE, _ONCE])
        yield self._strip(values)

    @property
    def _kernel(self) -> tuple[_Loop, _Loop]:
        """Loops over the taps of a window."""
        layer = self.layer
        return (_Loop(layer.kernel[1], layer.dilation[1], x=layer.dilation[1]),
                _Loop(layer.kernel[0], layer.dilation[0] * self.source.width, y=layer.dilation[0]))

    def _pixels(self, rows: int) -> tuple[_Loop, _Loop]:
        """Loops over output pixels."""
        layer = self.layer
        return (_Loop(self.target.width, layer.stride[1], x=layer.stride[1]),
                _Loop(rows, layer.stride[0] * self.source.width, y=layer.stride[0]))

    # Convolutions on the array ---------------------------------------------------------------------------------

    def _conv_strips(self, runs: Iterable[Run]) -> Iterator[Strip]:
        """As many output rows at once as there are accumulators for, for one run after the other."""
        layer, config, target = self.layer, self.config, self.target
        first_weight = 0
        for run in runs:
            rows = target.height
            keeps_sums = run.words * layer.taps * layer.planes > 1
            if keeps_sums:
                rows = min(rows, config.memory.accumulators // target.width)
                if not rows:
                    raise CompileError(
                        f"layer {layer.name!r}: a row of {target.width} output pixels needs memory.accumulators of at "
                        f"least {target.width}, not {config.memory.accumulators}")
            weights = range(first_weight, first_weight + self._run_weights(run))
            first_weight = weights.stop
            lane = run.first_block * config.cols
            channels = self._channels(lane, lane + run.blocks * config.cols)
            products = channels * (self.source.channels // layer.groups) * layer.taps
            for top in range(0, target.height, rows):
                height = min(rows, target.height - top)
                values = self._values(LayerOp.CONV, [
                    *self._pixels(height), _Loop(run.words, self.source.pixels), *self._kernel, _Loop(layer.planes),
                    _Loop(run.blocks, run.step * self.source.pixels)], top * layer.stride[0] - layer.padding[0])
                pixels = height * target.width
                yield self._strip(
                    values, weights=weights, sums=pixels if keeps_sums else 0, macs=pixels * products,
                    first_word=run.first_word, first_parameter=lane // config.requantize_lanes,
                    first_output=lane // config.depth * target.pixels + top * target.width)

    def _run_weights(self, run: Run) -> int:
        return run.blocks * run.words * self.layer.taps * self.layer.planes * self.config.rows

    def _channels(self, start: int, stop: int) -> int:
        """How many output channels lie in a range of lanes."""
        if not self.writes.gaps:
            return min(stop, self.target.channels) - start
        positions = self.writes.positions
        return int(np.searchsorted(positions, stop) - np.searchsorted(positions, start))

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """How a convolution's blocks of output channels are shared out among descriptors."""
        if self.layer.groups == 1:
            return (Run(0, self.blocks, 0, 0, self.reads.words),)
        first, last = self._needed_words()
        whole = self._run(first, last, 0, self.blocks)
        if self.compact or whole.words == max(last - first) + 1:
            return (whole,)
        # The cheapest way to cut: of all cuts before a block, the best is the best before the last run, and that run.
        # A run starts with a word of the output, so some blocks belong together.
        together = lcm(self.config.cols, self.config.depth) // self.config.cols
        cuts = [*range(0, self.blocks, together), self.blocks]
        best: dict[int, tuple[float, tuple[Run, ...]]] = {0: (0, ())}
        for index, stop in enumerate(cuts[1:], start=1):
            runs = [(start, self._run(first, last, start, stop)) for start in cuts[:index]]
            best[stop] = min(((best[start][0] + _total_cycles(self.config, self._conv_strips([run])),
                               (*best[start][1], run)) for start, run in runs), key=lambda candidate: candidate[0])
        return best[self.blocks][1]

    def _needed_words(self) -> tuple[Int64Array, Int64Array]:
        """First and last word that each block of output channels reads, int64 (blocks,)."""
        inputs = self.source.channels // self.layer.groups
        group = np.arange(self.target.channels) // (self.target.channels // self.layer.groups)
        words = self.reads.positions // self.config.depth
        block = self.writes.positions // self.config.cols
        first, last = np.full(self.blocks, self.reads.words - 1), np.zeros(self.blocks, dtype=np.int64)
        np.minimum.at(first, block, words[group * inputs])
        np.maximum.at(last, block, words[(group + 1) * inputs - 1])
        for empty in np.setdiff1d(np.arange(self.blocks), block):  # they may read anything, such as their neighbour's
            first[empty], last[empty] = first[empty - 1], last[empty - 1]
        return first, last

    def _run(self, first: Int64Array, last: Int64Array, start: int, stop: int) -> Run:
        """The fewest words that the blocks ``start..stop`` can read, if every block starts ``step`` words later."""
        first, last, blocks = first[start:stop], last[start:stop], stop - start
        slope = int(first[-1] - first[0]) // max(blocks - 1, 1)
        found = []
        for step in {0, slope, slope + 1}:
            moved = step * np.arange(blocks)
            word = int((first - moved).min())
            words = int((last - moved).max()) + 1 - word
            if word >= 0 and word + step * (blocks - 1) + words <= self.reads.words:
                found.append(Run(start, blocks, word, step, words))
        return min(found, key=lambda run: (run.words, run.step))

    # The window unit -------------------------------------------------------------------------------------------

    @property
    def _tiles_weights(self) -> int:
        return self.writes.filled_words * self.config.rows * self.config.window_groups

    def _window_strips(self, op: LayerOp, pair: bool) -> Iterator[Strip]:
        layer, source, target = self.layer, self.source, self.target
        rows = _Visits.along(layer.kernel[0], layer.stride[0], layer.padding[0], target.height)
        columns = _Visits.along(layer.kernel[1], layer.stride[1], layer.padding[1], target.width,
                                at_once=1 + pair, least=2)
        step = 1 + pair
        values = self._values(op, [
            _ONCE, _ONCE, _Loop(columns.positions, step, x=step), _Loop(rows.positions, source.width, y=1),
            _Loop(self.writes.filled_words, source.pixels), _ONCE, _ONCE], rows.start, columns.start)
        values |= {
            "pair": int(pair),
            "stride_columns": int(layer.stride[1] == 2 and not pair),
            "stride_rows": int(layer.stride[0] == 2),
            "skip_columns": columns.skip,
            "skip_rows": rows.skip,
            "mask_columns": (1 << WINDOW - layer.kernel[1]) - 1,
            "mask_rows": (1 << WINDOW - layer.kernel[0]) - 1,
        }
        conv = op is LayerOp.DEPTHWISE
        yield self._strip(values, weights=range(self._tiles_weights if conv else 0),
                          macs=target.pixels * target.channels * layer.taps if conv else 0)

    # All of them -----------------------------------------------------------------------------------------------

    def _values(self, op: LayerOp, loops: Sequence[_Loop], y_start: int | None = None,
                x_start: int | None = None) -> dict[str, int]:
        """Descriptor values of loops that start at an input row and column, by default the window's first tap."""
        layer, config = self.layer, self.config
        # In groups, unused lanes have a weight of zero: the last word that a block reads need not be the tensor's last.
        edge = self.reads.used - (self.reads.words - 1) * config.depth if layer.groups == 1 else config.depth
        values = {
            "op": int(op),
            "hold": hold_cycles(config, op, layer.taps),
            "edge_last": edge - 1,
            "in_width": self.source.width,
            "in_height": self.source.height,
            "x_start": -layer.padding[1] if x_start is None else x_start,
            "y_start": -layer.padding[0] if y_start is None else y_start,
        }
        _add_loops(values, loops)
        return values

    def _strip(self, values: dict[str, int], *, first_word: int = 0, first_output: int = 0, first_parameter: int = 0,
               weights: range = range(0), sums: int = 0, macs: int = 0) -> Strip:
        for name, value in values.items():
            low, high = _BOUNDS[name]
            if not low <= value <= high:
                raise CompileError(f"layer {self.layer.name!r} is too large for a descriptor: field {name} must be in "
                                   f"{low}..{high}, not {value}")
        first_tap = first_word * self.source.pixels + values["y_start"] * self.source.width + values["x_start"]
        return Strip(values, first_tap, first_output, first_parameter, weights, sums, macs)


class _Visits(NamedTuple):
    """What the window unit visits along one axis of a map.

    Parameters
    ----------
    start : int
        Coordinate of the first position, the later one of a pair.
    positions : int
        Positions; the last completes a window.
    skip : int
        Positions before the first that completes one.
    """

    start: int
    positions: int
    skip: int

    @classmethod
    def along(cls, kernel: int, stride: int, before: int, outputs: int, at_once: int = 1, least: int = 1
              ) -> "_Visits":
        """Visit an axis that has ``before`` coordinates of padding in front, ``at_once`` coordinates per position.

        In front of the first position everything reads as padding, so it need not lie before the map; unless it takes
        that to make ``least`` positions.
        """
        complete = kernel - 1 - before  # the coordinate that completes the first window
        start = complete % at_once if complete >= 0 else complete
        start -= at_once * max(0, least - 1 - (complete + (outputs - 1) * stride - start) // at_once)
        return cls(start, (complete + (outputs - 1) * stride - start) // at_once + 1, (complete - start) // at_once)


def fits_window(layer: LayerShape, network: NetworkShape, config: ArrayConfig) -> bool:
    """Whether the window unit can run a layer."""
    return 0 < window_lines(layer, network) <= config.memory.lines


def window_lines(layer: LayerShape, network: NetworkShape) -> int:
    """Columns that the window unit's lines need for a layer; 0 if it could not run it whatever they are."""
    return _window_lines(layer, network.tensor(layer.output), network.depthwise(layer))


def _window_lines(layer: LayerShape, target: TensorShape, depthwise: bool) -> int:
    if max(layer.kernel) > WINDOW or max(layer.stride) > 2:
        return 0
    if any(dilation > 1 and size > 1 for dilation, size in zip(layer.dilation, layer.kernel, strict=True)):
        return 0
    if not (depthwise and layer.native if layer.kind == "conv" else layer.kind == "max" and layer.taps > 1):
        return 0
    return _Visits.along(layer.kernel[1], layer.stride[1], layer.padding[1], target.width, least=2).positions


def _total_cycles(config: ArrayConfig, strips: Iterable[Strip]) -> int:
    return sum(counters["total"] for counters in run_cycles(config, [strip.values for strip in strips]))


def _add_loops(values: dict[str, int], loops: Sequence[_Loop]) -> None:
    """Add the descriptor values of a loop nest: a step of a loop also rewinds the loops inside it.

    A loop of one iteration takes no step.
    """
    address = x = y = 0  # what the loops inside have moved
    for (count, step, x_step, y_step), (iterations, by_address, by_x, by_y) in zip(_LOOP_FIELDS, loops, strict=True):
        values[count] = last = iterations - 1
        if last:
            values[step] = (by_address - address) % ADDRESSES
            values[x_step] = by_x - x
            values[y_step] = by_y - y
            address += last * by_address
            x += last * by_x
            y += last * by_y
