"""Parameters: the bias and the gain of every output channel."""

import numpy as np
import numpy.typing as npt

from nomul_hw.config import ArrayConfig
from nomul_hw.descriptor import parameter_fields, parameter_values

from ..graph import Graph, Node
from .packing import pack_fields

__all__ = ["pack_parameters"]

Int64Array = npt.NDArray[np.int64]


def pack_parameters(
    graph: Graph, node: Node, correction: Int64Array, positions: Int64Array, count: int, config: ArrayConfig
) -> npt.NDArray[np.uint32]:
    """Pack the parameters of a layer's output lanes; unused lanes become the zero point, whatever was summed up.

    Parameters
    ----------
    correction : int64 array, shape (out_channels,)
        What the bias must add.
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

    drop = graph.skip_drop(node)
    values = parameter_values(
        config, fill(node.bias + correction, 0), fill(node.multiplier, 0), fill(node.shift, drop),
        zero_point=graph.tensor(node.output).zero_point, low=node.low, drop=drop,
        skip_zero_point=None if node.skip is None else graph.tensor(node.skip).zero_point)
    return pack_fields(parameter_fields(config), values, config.requantize_lanes)
