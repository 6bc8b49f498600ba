"""Parameters: the bias and the gain of every output channel."""

import numpy as np
import numpy.typing as npt

from nomul_hw.config import ArrayConfig
from nomul_hw.descriptor import parameter_fields, parameter_values

from ..graph import Node
from .packing import pack_fields

__all__ = ["pack_parameters"]

Int64Array = npt.NDArray[np.int64]


def pack_parameters(
    node: Node, correction: Int64Array, zero_point: int, drop: int, positions: Int64Array, count: int,
    config: ArrayConfig
) -> npt.NDArray[np.uint32]:
    """Pack the parameters of a layer's output lanes; unused lanes become the zero point, whatever was summed up.

    Parameters
    ----------
    correction : int64 array, shape (out_channels,)
        What the bias must add.
    zero_point, drop : int
        Of the output; exponent of the output less that of the tensor that is added.
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

    values = parameter_values(config, fill(node.bias + correction, 0), fill(node.multiplier, 0),
                              fill(node.shift, drop), zero_point=zero_point, low=node.low, drop=drop)
    return pack_fields(parameter_fields(config), values, config.requantize_lanes)
