"""Choose the weights of a layer and their steps: nearest levels, or levels that make up for each other's errors.

A layer is a matrix ``weights`` (channels, inputs) per group of channels here: one group as a rule, as many as there are
channels in a depthwise convolution. What a choice ``q`` of levels with steps ``s`` costs is the squared error of the
channel's output, ``(w - s·q)ᵀ H (w - s·q)``, with ``H`` (inputs, inputs) the second moment of the group's inputs about
their mean (a constant error is the bias's to correct).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from nomul_hw.formats import WeightFormat

from .lattice import StepLattice

__all__ = ["Fit", "fit_compensated", "fit_nearest"]

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

#: Octaves below the step that saturates no weight; heavy tails and coarse formats like to saturate.
REACH = 4

#: Times that steps are refitted to the weights and the weights to the steps.
ROUNDS = 3

#: Further steps that every round tries, as factors.
NEIGHBOURS = (1.0, 1.25, 0.8, 1.12, 0.89)

#: Inputs whose errors are spread at once.
BLOCK = 64

#: Weights that are looked at together: what fits a core's caches.
CHUNK = 1 << 15

#: Largest level of a format whose nearest levels are looked up in a table.
MAX_TABLE = 1 << 16

#: Passes that improve one weight after the other, all others given.
SWEEPS = 12


@dataclass(frozen=True)
class Fit:
    """Levels ``q`` (groups, channels, inputs), int64, and for every channel the index of its step, int64."""

    levels: Int64Array
    index: Int64Array


class _Levels:
    """Nearest levels of a format, fast enough for an inner loop."""

    def __init__(self, fmt: WeightFormat):
        self.levels = np.asarray(fmt.levels, dtype=np.float64)
        self.thresholds = (self.levels[1:] + self.levels[:-1]) / 2
        # Levels are integers, so thresholds are multiples of a half: a table knows the level for every half.
        self.ends = 2 * self.levels[0], 2 * self.levels[-1]
        if fmt.max_magnitude <= MAX_TABLE:
            halves = np.arange(self.ends[0], self.ends[1] + 1)
            self.table = self.levels[np.searchsorted(self.thresholds, halves / 2, side="right")]

    def nearest(self, values: Float64Array) -> Float64Array:
        if not hasattr(self, "table"):
            return self.levels[np.searchsorted(self.thresholds, values, side="right")]
        halves = np.floor(values * 2)
        np.clip(halves, *self.ends, out=halves)
        halves -= self.ends[0]
        return self.table.take(halves.astype(np.intp), mode="clip")


def _candidates(weights: Float64Array, fmt: WeightFormat, lattice: StepLattice, lowest: Int64Array,
                highest: Int64Array) -> Int64Array:
    """Indices of the steps worth trying for weights (channels, inputs), within bounds: (candidates, channels)."""
    largest = lattice.nearest(np.abs(weights).max(axis=1) / fmt.max_magnitude)
    per_octave = len(set(lattice.multipliers.tolist()))
    offsets = np.arange(2, -REACH * per_octave - 1, -1)[:, None]
    return np.clip(largest + offsets, lowest, highest)


def _highest(lattice: StepLattice, lowest: Int64Array, highest: Int64Array | None) -> Int64Array:
    return np.full_like(lowest, len(lattice.steps) - 1) if highest is None else highest


def fit_nearest(weights: Float64Array, importance: Float64Array, fmt: WeightFormat, lattice: StepLattice,
                lowest: Int64Array, highest: Int64Array | None = None) -> Fit:
    """Round every weight to the nearest level, with the step of least error.

    Parameters
    ----------
    weights : float64 array, shape (groups, channels, inputs)
    importance : float64 array, shape (groups, inputs)
        What squared errors count.
    fmt : WeightFormat
    lattice : StepLattice
    lowest, highest : int64 arrays, shape (groups, channels)
        Indices of every channel's smallest and largest step, the lattice's largest unless given; equal for a step that
        is known.
    """
    grid, inputs = _Levels(fmt), weights.shape[2]
    rows, group = weights.reshape(-1, inputs), np.arange(lowest.size) // weights.shape[1]
    index, levels = lowest.reshape(-1).copy(), np.empty(rows.shape, dtype=np.int64)
    most = _highest(lattice, lowest, highest).reshape(-1)
    for start in range(0, len(rows), max(1, CHUNK // inputs)):
        chunk = slice(start, start + max(1, CHUNK // inputs))
        part, counts = rows[chunk], importance[group[chunk]]
        best = np.full(len(part), np.inf)
        for candidate in _candidates(part, fmt, lattice, index[chunk], most[chunk]):
            steps = lattice.steps[candidate][:, None]
            error = grid.nearest(part / steps)
            error *= steps
            error -= part
            error *= error
            total = np.einsum("ij,ij->i", error, counts)
            index[chunk] = np.where(total < best, candidate, index[chunk])
            np.minimum(best, total, out=best)
        levels[chunk] = grid.nearest(part / lattice.steps[index[chunk]][:, None])
    return Fit(levels.reshape(weights.shape), index.reshape(lowest.shape))


def fit_compensated(weights: Float64Array, moment: Float64Array, cross: Float64Array, fmt: WeightFormat,
                    lattice: StepLattice, lowest: Int64Array, highest: Int64Array | None = None, *,
                    damping: float = 0.1) -> Fit:
    """Choose a channel's weights together, so that later ones make up for the errors of earlier ones.

    With ``x`` the inputs that the float network feeds the layer and ``y`` those that the integer network does, the aim
    is ``s·q·y`` near ``w·x``. ``moment`` is ``E[y yᵀ]`` and ``cross`` is ``E[x yᵀ]``, both about the means and of shape
    (groups, inputs, inputs); so the weights to come near are ``w E[x yᵀ] E[y yᵀ]⁻¹``, and how near is measured by
    ``E[y yᵀ]``. Both get ``damping`` times the mean input power added to their diagonals, for what calibration does not
    know.

    Starts at :func:`fit_nearest`; then alternates the least-squares step, snapped to the lattice, with a choice of the
    weights for it and for a few steps around it. Every channel keeps the best that it saw. Bounds of the steps
    are as for :func:`fit_nearest`.
    """
    highest = _highest(lattice, lowest, highest)
    power = damping * moment.diagonal(axis1=1, axis2=2).mean(axis=1)
    ridge = np.eye(moment.shape[1]) * np.where(power > 0, power, 1.0)[:, None, None]
    damped = moment + ridge
    # Channels are columns from here on: the inner loops go over inputs.
    columns = np.asarray(np.linalg.solve(damped, (cross + ridge).swapaxes(1, 2) @ weights.swapaxes(1, 2)), np.float64)
    importance = damped.diagonal(axis1=1, axis2=2)
    start = fit_nearest(np.ascontiguousarray(columns.swapaxes(1, 2)), importance, fmt, lattice, lowest, highest)
    # Strong inputs first, while there are many others to make up for their errors.
    order = np.argsort(-importance, axis=1, kind="stable")[:, :, None]
    damped = np.take_along_axis(np.take_along_axis(damped, order, 1), order.swapaxes(1, 2), 2)
    problem = _Problem(np.take_along_axis(columns, order, 1), damped, _Levels(fmt))
    index = start.index
    levels = np.take_along_axis(start.levels.swapaxes(1, 2).astype(np.float64), order, 1)
    cost = problem.cost(levels, lattice.steps[index])
    wanted = index
    for _ in range(ROUNDS):
        best_cost = np.full_like(cost, np.inf)
        best_levels, best_index = levels, index
        for factor in NEIGHBOURS:
            tried = np.clip(lattice.nearest(lattice.steps[wanted] * factor), lowest, highest)
            found = problem.compensate(lattice.steps[tried])
            found_cost = problem.cost(found, lattice.steps[tried])
            better = found_cost < best_cost
            best_cost = np.where(better, found_cost, best_cost)
            best_index, best_levels = np.where(better, tried, best_index), _where(better, found, best_levels)
        best_levels = problem.descend(best_levels, lattice.steps[best_index])
        wanted = np.clip(lattice.nearest(problem.best_steps(best_levels, lattice.steps[best_index])), lowest, highest)
        for tried in (best_index, wanted):
            found_cost = problem.cost(best_levels, lattice.steps[tried])
            better = found_cost < cost
            cost = np.where(better, found_cost, cost)
            index, levels = np.where(better, tried, index), _where(better, best_levels, levels)
    result = np.empty(weights.shape, dtype=np.int64)
    np.put_along_axis(result, order.swapaxes(1, 2), levels.swapaxes(1, 2).astype(np.int64), 2)
    return Fit(result, index)


def _where(channels: npt.NDArray[np.bool_], columns: Float64Array, others: Float64Array) -> Float64Array:
    """Columns (groups, inputs, channels) of the channels that are marked (groups, channels), else of the others."""
    return np.where(channels[:, None, :], columns, others)


@dataclass(frozen=True, eq=False)
class _Problem:
    """Weights (groups, inputs, channels) to be matched by levels and steps (groups, channels).

    Errors are weighted by ``moment`` (groups, inputs, inputs).
    """

    weights: Float64Array
    moment: Float64Array
    grid: _Levels

    @cached_property
    def _spread(self) -> Float64Array:
        """The upper triangular ``U`` of ``H⁻¹ = Uᵀ U``: what rounding one input asks of those still to come."""
        return np.linalg.cholesky(np.linalg.inv(self.moment)).swapaxes(1, 2)

    def cost(self, levels: Float64Array, steps: Float64Array) -> Float64Array:
        """Squared error of every channel."""
        error = self.weights - levels * steps[:, None]
        return np.einsum("gij,gij->gj", error, self.moment @ error)

    def best_steps(self, levels: Float64Array, steps: Float64Array) -> Float64Array:
        """Least-squares steps for given levels; a channel for which there is none keeps the step that it has."""
        weighted = self.moment @ levels
        numerator = np.einsum("gij,gij->gj", weighted, self.weights)
        denominator = np.einsum("gij,gij->gj", weighted, levels)
        return np.divide(numerator, denominator, out=steps.copy(), where=(numerator > 0) & (denominator > 0))

    def compensate(self, steps: Float64Array) -> Float64Array:
        """One pass of error compensation (GPTQ): round input after input, move each error onto those still to come."""
        rest = self.weights.copy()
        levels = np.empty_like(rest)
        groups, inputs, channels = rest.shape
        for start in range(0, inputs, BLOCK):
            stop = min(start + BLOCK, inputs)
            errors = np.empty((groups, stop - start, channels))
            for at in range(start, stop):
                levels[:, at] = self.grid.nearest(rest[:, at] / steps)
                error = (rest[:, at] - levels[:, at] * steps) / self._spread[:, at, at, None]
                rest[:, at + 1 : stop] -= self._spread[:, at, at + 1 : stop, None] * error[:, None]
                errors[:, at - start] = error
            rest[:, stop:] -= self._spread[:, start:stop, stop:].swapaxes(1, 2) @ errors
        return levels

    def descend(self, levels: Float64Array, steps: Float64Array) -> Float64Array:
        """Give one input after the other its best level, all others as they are; never raises the error."""
        levels = levels.copy()
        slope = self.moment @ (self.weights - levels * steps[:, None]) / steps[:, None]
        for _ in range(SWEEPS):
            changed = False
            for start in range(0, levels.shape[1], BLOCK):
                block = slice(start, start + BLOCK)
                before = levels[:, block].copy()
                for at in range(*block.indices(levels.shape[1])):
                    wanted = self.grid.nearest(levels[:, at] + slope[:, at] / self.moment[:, at, at, None])
                    slope[:, block] -= self.moment[:, at, block, None] * (wanted - levels[:, at])[:, None]
                    levels[:, at] = wanted
                # The others hear of all changes at once.
                changes = levels[:, block] - before
                if changes.any():
                    changed = True
                    slope[:, :start] -= self.moment[:, :start, block] @ changes
                    slope[:, start + BLOCK :] -= self.moment[:, start + BLOCK :, block] @ changes
            if not changed:
                break
        return levels
