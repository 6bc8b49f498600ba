"""Cross-layer equalisation: move scales of channels from one layer to the next where an activation lets them pass.

Activations have one scale per tensor. A channel that is much smaller than the largest of its tensor gets few of the
codes; depthwise networks have many such channels. Where a layer's clamp commutes with a positive factor (ReLU, none)
and nothing but convolutions read its output, the channel can be made larger there and its readers' weights smaller by
as much; the network computes the same in real arithmetic. Steps of weights need none of it: they are per channel.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, which balances ranges
of weights. Here it is the ranges of activations that are evened out, since weights have steps per channel.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from nomul.frontend import FloatConv, FloatGraph, FloatLayer, FloatOperation, FloatPool

__all__ = ["equalize"]

Float64Array = npt.NDArray[np.float64]

#: Largest factor of a channel, and the inverse of the smallest.
MOST = 16.0


def equalize(network: FloatGraph, inputs: npt.ArrayLike, *, strength: float = 0.5) -> FloatGraph:
    """Even out the ranges of channels, without any change to what the network computes.

    Parameters
    ----------
    network : FloatGraph
    inputs : array of real numbers, shape (N, ...)
        Typical inputs; they tell the channels' ranges.
    strength : float
        0 leaves every channel as it is, 1 makes all equally large. In between, a channel's range ``r`` becomes
        ``r**(1 - strength)`` times what all have in common, which leaves its readers' weights less uneven.

    Returns
    -------
    FloatGraph
        Equal in real arithmetic, up to rounding.

    Raises
    ------
    ValueError
        If the strength is not in 0..1, or the inputs do not suit the network.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"Strength must be in 0..1, not {strength}")
    factors = dict[str, Float64Array]()
    for layer, value in network.outputs(network.as_input(inputs)):
        if _may_scale(network, layer):
            spread = np.sqrt(np.square(value).mean(axis=(0, 2, 3)))
            alive = spread > 0
            factor = np.ones(len(spread))
            if alive.any():
                factor[alive] = np.clip((spread[alive].max() / spread[alive]) ** strength, 1.0, MOST)
            factors[layer.name] = factor
        elif isinstance(layer, FloatPool) and layer.skip is None and layer.sources[0] in factors:
            factors[layer.name] = factors[layer.sources[0]]
    return replace(network, layers=tuple(_scaled(layer, factors) for layer in network.layers))


def _may_scale(network: FloatGraph, layer: FloatOperation) -> bool:
    """Whether a layer's channels may have any scale: it has weights, and only weights read it, maybe through pools."""
    return (isinstance(layer, FloatConv) and layer.skip is None and layer.low in (0.0, -np.inf)
            and layer.high == np.inf and _absorbed(network, layer.name))


def _absorbed(network: FloatGraph, name: str) -> bool:
    readers = [layer for layer in network.layers if name in layer.sources]
    for reader in readers:
        if not isinstance(reader, FloatLayer) or name == reader.skip:
            return False
        if isinstance(reader, FloatPool) and (
                reader.skip is not None or reader.low not in (0.0, -np.inf) or reader.high != np.inf
                or not _absorbed(network, reader.name)):
            return False
    return bool(readers)


def _scaled(layer: FloatOperation, factors: dict[str, Float64Array]) -> FloatOperation:
    """The layer with its input's factors taken out of its weights and its output's put in."""
    if not isinstance(layer, FloatConv):
        return layer
    weights, bias = layer.weights, layer.bias
    taken = factors.get(layer.sources[0])
    if taken is not None:
        # Every output channel reads its group's share of the input channels.
        shares = taken.reshape(layer.groups, -1).repeat(len(weights) // layer.groups, axis=0)
        weights = weights / shares[:, :, None, None]
    given = factors.get(layer.name)
    if given is not None:
        weights, bias = weights * given[:, None, None, None], bias * given
    return replace(layer, weights=weights, bias=bias)
