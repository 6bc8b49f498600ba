"""Passes: how often the array goes over a layer's input to hold its weights, see :mod:`nomul_hw.planes`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from nomul_hw.config import ArrayConfig
from nomul_hw.formats import WeightFormat
from nomul_hw.planes import MAX_PLANES, PlaneError, natural_shift, split

from ..shapes import LayerShape, NetworkShape
from .errors import CompileError
from .loops import fits_window

__all__ = ["with_passes"]


def with_passes(
    network: NetworkShape, config: ArrayConfig, weights: Mapping[str, npt.NDArray[np.int32]] | None = None
) -> NetworkShape:
    """Say of every convolution whether the array's format holds its weights, and how many planes they take.

    What is known already stays.

    Parameters
    ----------
    weights : mapping of str to int32 array, optional
        Weights by layer; without them, as many planes as a layer's format can need.

    Raises
    ------
    CompileError
        If an array cannot run a layer's weights at all.
    """
    nodes = []
    for node in network.nodes:
        if isinstance(node, LayerShape) and node.kind == "conv" and node.planes is None:
            fmt = node.format or config.format
            node = _with_passes(node, fmt.levels if weights is None else weights[node.name], network, config)
        nodes.append(node)
    return replace(network, nodes=tuple(nodes))


def _with_passes(layer: LayerShape, values: npt.ArrayLike, network: NetworkShape, config: ArrayConfig) -> LayerShape:
    native = _covers(config.format, layer.format or config.format) or config.format.holds(_signed(values))
    # Between its groups a convolution on the array has zeros.
    zeros = [0] if layer.groups > 1 else []
    if native and (config.format.zero or not zeros):
        return replace(layer, native=True, planes=1)
    values = np.append(_signed(values), zeros)
    try:
        planes = len(split(values, config.format, _places(config)).shifts)
    except PlaneError:
        if not (native and fits_window(layer, network, config)):
            raise CompileError(_refusal(layer, values, native, config)) from None
        planes = 0
    return replace(layer, native=native, planes=planes)


def _refusal(layer: LayerShape, values: npt.NDArray[Any], native: bool, config: ArrayConfig) -> str:
    fmt, places = config.format, natural_shift(config.format)
    what = f"{(layer.format or fmt).name} weights" + (" and the zeros between its groups" if layer.groups > 1 else "")
    advice = "choose an array whose format has a zero" if native else (
        f"quantize it for format {fmt.name!r} or choose another array")
    try:
        if places != config.plane_shift:
            split(values, fmt, places)
            advice = f"array.plane_shift = {places} would do"
    except PlaneError:
        pass
    return (f"layer {layer.name!r}: its {what} cannot be written as up to {MAX_PLANES} planes of {fmt.name} that are "
            f"{config.plane_shift} places apart: {advice}")


def _signed(values: npt.ArrayLike) -> npt.NDArray[Any]:
    return np.asarray(values, dtype=None if isinstance(values, np.ndarray) else np.int64)


def _places(config: ArrayConfig) -> int:
    assert config.plane_shift is not None  # the configuration has filled it in
    return config.plane_shift


def _covers(fmt: WeightFormat, other: WeightFormat) -> bool:
    """Whether a format has all levels of another."""
    return fmt.levels == other.levels or (other.levels[0] >= fmt.levels[0] and set(fmt.levels) >= set(other.levels))
