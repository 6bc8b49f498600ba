"""Parameters: the bias and the gain of every output channel."""

import numpy as np
import numpy.typing as npt

from nomul_hw.arithmetic import gain_digits
from nomul_hw.config import ArrayConfig
from nomul_hw.descriptor import parameter_fields

from ..graph import Node
from .packing import pack_fields

__all__ = ["pack_parameters"]

Int64Array = npt.NDArray[np.int64]


def pack_parameters(
    node: Node, correction: Int64Array, drop: int, positions: Int64Array, count: int, config: ArrayConfig
) -> npt.NDArray[np.uint32]:
    """Pack the parameters of a layer's output lanes.

    Where a skip tensor is added, the gain's last ``drop`` places are shifted out after it. Unused lanes get the bias 0
    and the largest shift, so that they become the zero point whatever was summed up: any ``v`` of ``acc_bits`` bits
    rounds to ``(v + 2**(acc_bits - 1)) >> acc_bits = 0``, and one that is shifted further does too.

    Parameters
    ----------
    correction : int64 array, shape (out_channels,)
        What the bias must add. Only ``acc_bits`` bits of the bias are kept: sums are modulo ``2**acc_bits`` anyway.
    positions : int64 array, shape (out_channels,)
        The lane of every channel.
    count : int
        Lanes that are written.

    Returns
    -------
    uint32 array, shape (words, host words)
    """

    def fill(values: Int64Array, default: int) -> Int64Array:
        filled = np.full(count, default, dtype=np.int64)
        filled[positions] = values
        return filled

    values = {field.name: np.zeros(count, dtype=np.int64) for field in parameter_fields(config)}
    values["bias"] = fill(node.bias + correction, 0)
    values["shift"] = fill(node.shift - drop, config.max_gain_shift)
    multiplier = fill(node.multiplier, 1)
    for each in np.unique(multiplier):
        where = multiplier == each
        lead, digits = gain_digits(int(each), config.gain_terms)
        if lead < 0:
            values["lead_negative"][where] = 1
        # The last digit has no sign field; the only digit, or the highest, goes there.
        for slot, (sign, position) in zip(range(config.gain_terms - 1 - len(digits), config.gain_terms - 1), digits,
                                          strict=True):
            values[f"digit_{slot}_enable"][where] = 1
            values[f"digit_{slot}_position"][where] = position - 1
            if sign < 0:
                values[f"digit_{slot}_negative"][where] = 1
    return pack_fields(parameter_fields(config), values, config.requantize_lanes)
