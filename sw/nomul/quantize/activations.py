"""Scales of activation tensors: a power of two each, by least squared error or by what may saturate."""

import numpy as np
import numpy.typing as npt

from nomul_hw.arithmetic import act_range, round_half_up, zero_point

from .config import QuantizeConfig

__all__ = ["fit_exponent"]

#: Values that the search looks at; more would not move it.
SAMPLES = 1 << 18

#: Octaves below the scale that saturates nothing. Further down, saturation costs more than any finer step can gain.
REACH = 6


def fit_exponent(values: npt.NDArray[np.float64], config: QuantizeConfig, *, signed: bool) -> int:
    """Find the exponent whose codes represent ``values`` best.

    Parameters
    ----------
    values : float64 array of any shape
        What the tensor holds on calibration inputs.
    config : QuantizeConfig
        Width of the codes, and what best means: the least squared error, or the finest scale at which a share of the
        values or none saturates.
    signed : bool
        Whether the tensor's zero point is 0 (else the smallest code).
    """
    flat = values.reshape(-1)
    flat = flat[:: max(1, flat.size // SAMPLES)]
    low, high = (code - zero_point(config.act_bits, signed=signed) for code in act_range(config.act_bits))
    if config.activations == "percentile" and flat.size:
        # Of the values alone that are not zero: after a ReLU most may be, and they fit any scale.
        used = np.maximum(flat / high, flat / low if low else 0.0)
        flat = flat[used <= np.percentile(used[used > 0], config.percentile)] if (used > 0).any() else flat
    largest = max(float(flat.max(initial=0.0)) / high, float(flat.min(initial=0.0)) / low if low else 0.0)
    if largest == 0.0:
        return 0
    top = int(np.ceil(np.log2(largest)))
    if config.activations != "error":
        return top

    def error(exponent: int) -> float:
        codes = np.clip(round_half_up(flat * 2.0**-exponent), low, high)
        return float(np.square(codes * 2.0**exponent - flat).sum())

    # The coarsest of equally good scales: it leaves room for inputs that calibration has not seen.
    return min(range(top, top - REACH, -1), key=error)
