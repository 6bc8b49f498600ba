"""Scales of activation tensors: a power of two each, by least squared error."""

import numpy as np
import numpy.typing as npt

from nomul_hw.arithmetic import act_range, round_half_up, zero_point

__all__ = ["fit_exponent"]

#: Values that the search looks at; more would not move it.
SAMPLES = 1 << 18

#: Octaves below the scale that saturates nothing. Further down, saturation costs more than any finer step can gain.
REACH = 6


def fit_exponent(values: npt.NDArray[np.float64], act_bits: int, *, signed: bool) -> int:
    """Find the exponent whose codes represent ``values`` with the least squared error.

    Parameters
    ----------
    values : float64 array of any shape
        What the tensor holds on calibration inputs.
    act_bits : int
        Width of the codes.
    signed : bool
        Whether the tensor's zero point is 0 (else the smallest code).
    """
    flat = values.reshape(-1)
    flat = flat[:: max(1, flat.size // SAMPLES)]
    low, high = (code - zero_point(act_bits, signed=signed) for code in act_range(act_bits))
    largest = max(float(flat.max(initial=0.0)) / high, float(flat.min(initial=0.0)) / low if low else 0.0)
    if largest == 0.0:
        return 0
    top = int(np.ceil(np.log2(largest)))

    def error(exponent: int) -> float:
        codes = np.clip(round_half_up(flat * 2.0**-exponent), low, high)
        return float(np.square(codes * 2.0**exponent - flat).sum())

    # The coarsest of equally good scales: it leaves room for inputs that calibration has not seen.
    return min(range(top, top - REACH, -1), key=error)
