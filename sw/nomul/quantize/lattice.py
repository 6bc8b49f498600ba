"""The steps that a layer's weights may have.

A weight level of 1 is worth ``step`` in real terms, and ``step * in_unit / out_unit`` is the gain of the channel's
requantizer. The machine only has the gains of a lattice, so the step is chosen on the lattice and the weights are
quantized to it; rounding the gain afterwards would scale the whole channel by up to a fifth.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from nomul_hw.arithmetic import gain_multipliers

__all__ = ["StepLattice"]


@dataclass(frozen=True)
class StepLattice:
    """All steps of one layer, ascending.

    Parameters
    ----------
    terms, max_shift : int
        The requantizer: signed digits of a gain's multiplier, largest right shift.
    unit : float
        Step whose gain is 1: what one output code is worth over what one input code is worth.
    min_shift : int
        Smallest right shift.
    """

    terms: int
    max_shift: int
    unit: float
    min_shift: int = 0

    @cached_property
    def _table(self) -> npt.NDArray[np.int64]:
        gains = [(m, n) for m in gain_multipliers(self.terms) for n in range(self.min_shift, self.max_shift + 1)]
        return np.asarray(sorted(gains, key=lambda gain: gain[0] / 2.0 ** gain[1]), dtype=np.int64)

    @cached_property
    def multipliers(self) -> npt.NDArray[np.int64]:
        """Gain multiplier of every step, int64."""
        return self._table[:, 0]

    @cached_property
    def shifts(self) -> npt.NDArray[np.int64]:
        """Gain shift of every step, int64."""
        return self._table[:, 1]

    @cached_property
    def steps(self) -> npt.NDArray[np.float64]:
        """Every step, ascending, float64."""
        return self.multipliers / 2.0**self.shifts * self.unit

    def nearest(self, steps: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Indices of the steps nearest by ratio (of any shape); values beyond the lattice get its ends."""
        logs = np.log2(self.steps)
        return np.searchsorted((logs[1:] + logs[:-1]) / 2, np.log2(np.maximum(steps, self.steps[0] / 2)))
