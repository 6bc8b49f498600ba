"""The levels that no others of their number beat."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .codebook import Codebook, cells, midpoints, quality
from .exponential import Exponential
from .levels import check_bits
from .linear import Linear
from .source import Source, Weights, as_source

__all__ = ["LloydMax"]

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LloydMax:
    """Levels of least squared error among all of their number (Lloyd 1957, Max 1960): what others are measured by.

    Means of cells and thresholds between means, in turn, until they settle. For a density the result is the optimum;
    for other weights it may be a local one, but never worse than the best linear and exponential levels, since it
    starts at these.

    Parameters
    ----------
    bits : int
        1 to 6.
    """

    bits: int

    #: Iterations at most, and the change of the levels, in deviations, that counts as none.
    ITERATIONS, SETTLED = 3000, 1e-7

    def __post_init__(self) -> None:
        check_bits(self, self.bits, 1, 6)

    def fit(self, weights: Weights) -> Codebook:
        """Quantize weights of any shape, or a density."""
        source = as_source(weights)
        found = [self._settle(source, start) for start in self._starts(source)]
        best = max(found, key=lambda levels: float(quality(source, levels, midpoints(levels))))
        return Codebook.nearest(source, best, 1.0)

    def _starts(self, source: Source) -> list[Float64Array]:
        starts = [Linear(self.bits).fit(source).levels]
        if self.bits >= 2:
            starts.append(Exponential(self.bits).fit(source).levels)
        if self.bits >= 3:
            with_zero = Exponential(self.bits, zero=True).fit(source).levels
            at = len(with_zero) // 2  # one level more, where they are dense
            starts.append(np.insert(with_zero, at, with_zero[at - 1] / 2))
        return starts

    def _settle(self, source: Source, levels: Float64Array) -> Float64Array:
        for _ in range(self.ITERATIONS):
            mass, moment = cells(source, midpoints(levels))
            # A cell without weights keeps its level.
            moved = np.divide(moment, mass, out=levels.copy(), where=mass > 0)
            change = np.abs(moved - levels).max()
            levels = moved
            if change < self.SETTLED * math.sqrt(source.power):
                break
        return levels
