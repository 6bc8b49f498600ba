"""Programs: what a device is loaded with, and what is known about it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from nomul_hw.config import ArrayConfig

from ..graph import Graph

if TYPE_CHECKING:
    from ..estimate import Estimate

__all__ = ["Layer", "Placement", "Program"]


@dataclass(frozen=True)
class Placement:
    """Where a tensor lies: channel word ``c``, row ``y``, column ``x`` is word ``address + (c * H + y) * W + x``."""

    bank: int
    address: int
    words: int


@dataclass(frozen=True)
class Layer:
    """One descriptor: a node of the graph, or a strip of its output rows.

    Parameters
    ----------
    node : str
        Name of the node.
    values : mapping of str to int
        Descriptor values, by field.
    macs : int
        Multiply-accumulates of one sample, padding counted; 0 for a pool.
    """

    node: str
    values: Mapping[str, int]
    macs: int


@dataclass(frozen=True, eq=False)
class Program:
    """A graph compiled for one accelerator.

    Parameters
    ----------
    config : ArrayConfig
        The accelerator.
    graph : Graph
        The network.
    layers : tuple of Layer
        In execution order.
    placements : mapping of str to Placement
        Where each tensor lies in the activation banks; the input as it is sent, packed.
    input_window : (int, int)
        Height and width of the first convolution's window that the host packs into channels; (1, 1) for none.
    descriptors, parameters, weights : uint32 array
        Contents of the memories in host words, in the order of addresses.
    """

    config: ArrayConfig
    graph: Graph
    layers: tuple[Layer, ...]
    placements: Mapping[str, Placement]
    input_window: tuple[int, int]
    descriptors: npt.NDArray[np.uint32]
    parameters: npt.NDArray[np.uint32]
    weights: npt.NDArray[np.uint32]

    def estimate(self) -> "Estimate":
        """Exact cycles of one sample, per layer and cause."""
        from ..estimate import estimate

        return estimate(self)
