"""Choose the weights of a layer and their steps: nearest levels, or levels that make up for each other's errors.

A layer is a matrix ``weights`` (channels, inputs) here. What a choice ``q`` of levels with steps ``s`` costs is the
squared error of the channel's output, ``(w - s·q)ᵀ H (w - s·q)``, with ``H`` (inputs, inputs) the second moment of the
inputs about their mean (a constant error is the bias's to correct).
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

#: Share of the mean input power that is added to every input. It keeps weights near their float values where
#: calibration has little to say: more than the customary 0.01, since weights also follow the errors of earlier layers.
DAMPING = 0.1

#: Times that steps are refitted to the weights and the weights to the steps.
ROUNDS = 2

#: Further steps that every round tries, as factors.
NEIGHBOURS = (1.0, 1.25, 0.8)

#: Inputs whose errors are spread at once.
BLOCK = 64

#: Passes that improve one weight after the other, all others given.
SWEEPS = 4


@dataclass(frozen=True)
class Fit:
    """Levels ``q`` (channels, inputs), int64, and for every channel the index of its step, int64."""

    levels: Int64Array
    index: Int64Array


class _Levels:
    """Nearest levels of a format, fast enough for an inner loop."""

    def __init__(self, fmt: WeightFormat):
        self.levels = np.asarray(fmt.levels, dtype=np.float64)
        self.thresholds = (self.levels[1:] + self.levels[:-1]) / 2

    def nearest(self, values: Float64Array) -> Float64Array:
        return self.levels[np.searchsorted(self.thresholds, values, side="right")]


def _candidates(weights: Float64Array, fmt: WeightFormat, lattice: StepLattice, lowest: Int64Array) -> Int64Array:
    """Indices of the steps worth trying, (candidates, channels); none below ``lowest``."""
    largest = lattice.nearest(np.abs(weights).max(axis=1) / fmt.max_magnitude)
    per_octave = len(set(lattice.multipliers.tolist()))
    offsets = np.arange(2, -REACH * per_octave - 1, -1)[:, None]
    return np.clip(largest + offsets, lowest, len(lattice.steps) - 1)


def fit_nearest(weights: Float64Array, importance: Float64Array, fmt: WeightFormat, lattice: StepLattice,
                lowest: Int64Array) -> Fit:
    """Round every weight to the nearest level, with the step of least error, inputs weighted by ``importance``."""
    grid = _Levels(fmt)
    best = np.full(len(weights), np.inf)
    index, levels = lowest.copy(), np.zeros_like(weights)
    for candidate in _candidates(weights, fmt, lattice, lowest):
        steps = lattice.steps[candidate][:, None]
        tried = grid.nearest(weights / steps)
        error = np.square(weights - steps * tried) @ importance
        better = error < best
        best[better], index[better], levels[better] = error[better], candidate[better], tried[better]
    return Fit(levels.astype(np.int64), index)


def fit_compensated(weights: Float64Array, moment: Float64Array, cross: Float64Array, fmt: WeightFormat,
                    lattice: StepLattice, lowest: Int64Array) -> Fit:
    """Choose a channel's weights together, so that later ones make up for the errors of earlier ones.

    With ``x`` the inputs that the float network feeds the layer and ``y`` those that the integer network does, the aim
    is ``s·q·y`` near ``w·x``. ``moment`` is ``E[y yᵀ]`` and ``cross`` is ``E[x yᵀ]``, both about the means; so the
    weights to come near are ``w E[x yᵀ] E[y yᵀ]⁻¹``, and how near is measured by ``E[y yᵀ]``.

    Starts at :func:`fit_nearest`; then alternates the least-squares step, snapped to the lattice, with a choice of the
    weights for it and for a few steps around it. Every channel keeps the best that it saw.
    """
    ridge = np.eye(len(moment)) * (DAMPING * moment.diagonal().mean() or 1.0)
    damped = moment + ridge
    weights = np.asarray(np.linalg.solve(damped, (cross + ridge).T @ weights.T).T, dtype=np.float64)
    start = fit_nearest(weights, damped.diagonal(), fmt, lattice, lowest)
    # Strong inputs first, while there are many others to make up for their errors. Channels are columns from here on:
    # the inner loops go over inputs.
    order = np.argsort(-damped.diagonal(), kind="stable")
    damped = damped[np.ix_(order, order)]
    problem = _Problem(np.ascontiguousarray(weights[:, order].T), damped, _Levels(fmt))
    index, levels = start.index, np.ascontiguousarray(start.levels[:, order].T.astype(np.float64))
    cost = problem.cost(levels, lattice.steps[index])
    wanted = index
    for _ in range(ROUNDS):
        best_cost = np.full_like(cost, np.inf)
        best_levels, best_index = levels, index
        for factor in NEIGHBOURS:
            tried = np.maximum(lattice.nearest(lattice.steps[wanted] * factor), lowest)
            found = problem.compensate(lattice.steps[tried])
            found_cost = problem.cost(found, lattice.steps[tried])
            better = found_cost < best_cost
            best_cost = np.where(better, found_cost, best_cost)
            best_index, best_levels = np.where(better, tried, best_index), np.where(better, found, best_levels)
        best_levels = problem.descend(best_levels, lattice.steps[best_index])
        wanted = np.maximum(lattice.nearest(problem.best_steps(best_levels, lattice.steps[best_index])), lowest)
        for tried in (best_index, wanted):
            found_cost = problem.cost(best_levels, lattice.steps[tried])
            better = found_cost < cost
            cost = np.where(better, found_cost, cost)
            index, levels = np.where(better, tried, index), np.where(better, best_levels, levels)
    result = np.empty_like(levels)
    result[order] = levels
    return Fit(result.T.astype(np.int64), index)


@dataclass(frozen=True, eq=False)
class _Problem:
    """Weights (inputs, channels) to be matched by levels and steps, errors weighted by ``moment`` (inputs, inputs)."""

    weights: Float64Array
    moment: Float64Array
    grid: _Levels

    @cached_property
    def _spread(self) -> Float64Array:
        """The upper triangular ``U`` of ``H⁻¹ = Uᵀ U``: what rounding one input asks of those still to come."""
        return np.linalg.cholesky(np.linalg.inv(self.moment)).T

    def cost(self, levels: Float64Array, steps: Float64Array) -> Float64Array:
        """Squared error of every channel."""
        error = self.weights - levels * steps
        return np.einsum("ij,ij->j", error, self.moment @ error)

    def best_steps(self, levels: Float64Array, steps: Float64Array) -> Float64Array:
        """Least-squares steps for given levels; a channel for which there is none keeps the step that it has."""
        weighted = self.moment @ levels
        numerator = np.einsum("ij,ij->j", weighted, self.weights)
        denominator = np.einsum("ij,ij->j", weighted, levels)
        return np.divide(numerator, denominator, out=steps.copy(), where=(numerator > 0) & (denominator > 0))

    def compensate(self, steps: Float64Array) -> Float64Array:
        """One pass of error compensation (GPTQ): round input after input, move each error onto those still to come."""
        rest = self.weights.copy()
        levels = np.empty_like(rest)
        for start in range(0, len(rest), BLOCK):
            stop = min(start + BLOCK, len(rest))
            errors = np.empty((stop - start, rest.shape[1]))
            for at in range(start, stop):
                levels[at] = self.grid.nearest(rest[at] / steps)
                errors[at - start] = (rest[at] - levels[at] * steps) / self._spread[at, at]
                rest[at + 1 : stop] -= self._spread[at, at + 1 : stop, None] * errors[at - start]
            rest[stop:] -= self._spread[start:stop, stop:].T @ errors
        return levels

    def descend(self, levels: Float64Array, steps: Float64Array) -> Float64Array:
        """Give one input after the other its best level, all others as they are; never raises the error."""
        levels = levels.copy()
        slope = self.moment @ (self.weights - levels * steps) / steps
        for _ in range(SWEEPS):
            before = levels.copy()
            for at, power in enumerate(self.moment.diagonal()):
                wanted = self.grid.nearest(levels[at] + slope[at] / power)
                change = wanted - levels[at]
                if change.any():
                    levels[at] = wanted
                    slope -= self.moment[at, :, None] * change
            if np.array_equal(before, levels):
                break
        return levels
