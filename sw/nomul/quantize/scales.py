"""Scales of all tensors of a network, planned together before any layer is quantized.

Alone, every tensor would have the scale that suits its values. But a residual addition shifts the added tensor by at
most a few places, an average passes on the part of its gain that the lattice lacks, and a convolution's gains end
somewhere. All of that depends on the float network and its calibration inputs only.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nomul.frontend import INPUT, FloatConv, FloatGraph, FloatLayer, FloatPool
from nomul_hw.arithmetic import MAX_SKIP_DROP, Gain, gain_multipliers, nearest_gain

from .activations import fit_exponent
from .config import QuantizeConfig, QuantizeError

__all__ = ["Scales", "mean_gain", "plan_scales"]

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scales:
    """What one count of every tensor is worth: ``factor * 2**exponent``, by the layer that makes it."""

    factors: dict[str, float]
    exponents: dict[str, int]


def mean_gain(layer: FloatPool, config: QuantizeConfig) -> Gain:
    """The gain on the lattice nearest to one over an average's divisor."""
    return nearest_gain(1 / layer.divisor, terms=config.gain_terms, max_shift=config.max_gain_shift)


def is_sum(layer: FloatLayer) -> bool:
    """Whether a layer does nothing but add its two inputs, which may then change places."""
    return isinstance(layer, FloatPool) and layer.skip is not None and layer.taps == layer.divisor == 1


def plan_scales(network: FloatGraph, real: Float64Array, config: QuantizeConfig) -> Scales:
    """Plan scales for calibration inputs ``real`` (N, C, H, W).

    Raises
    ------
    QuantizeError
        If there are none; the message names the layer.
    """
    factors = _factors(network, config)
    wanted = {INPUT: fit_exponent(real, config.act_bits, signed=bool(real.min() < 0))}
    signed = {INPUT: bool(real.min() < 0)}
    for layer, value in network.outputs(real):
        assert layer.input is not None
        if isinstance(layer, FloatPool) and layer.kind == "max":
            # The codes are what they are: another scale could only lose some.
            signed[layer.name], wanted[layer.name] = signed[layer.input], wanted[layer.input]
            continue
        signed[layer.name] = layer.low < 0 and (isinstance(layer, FloatConv) or signed[layer.input]
                                                or (layer.skip is not None and signed[layer.skip]))
        wanted[layer.name] = fit_exponent(value / factors[layer.name], config.act_bits, signed=signed[layer.name])
    return Scales(factors, _raised(network, wanted, factors, config))


def _factors(network: FloatGraph, config: QuantizeConfig) -> dict[str, float]:
    """Factors of all tensors.

    A convolution's gains absorb its input's factor and can give its output any. The network's output and tensors that
    are added must have given ones, which averages and maxima hand on to what they read.
    """
    demands: dict[str, set[float]] = {name: set() for name in (INPUT, *(layer.name for layer in network.layers))}
    demands[network.layers[-1].name].add(1.0)

    def only(name: str) -> float | None:
        """What is asked of a tensor's factor, None if nothing."""
        found = sorted(demands[name])
        if found and found[-1] / found[0] > 1 + 1e-9:
            raise QuantizeError(f"{name or 'the input'}: it is added, or averaged and added, at two scales "
                                f"({found[0]:.4g} and {found[-1]:.4g}), since an average pool's gain is not on the "
                                f"lattice of {config.gain_terms} terms")
        return found[0] if found else None

    for layer in reversed(network.layers):
        assert layer.input is not None
        if layer.skip is not None:
            demands[layer.name] |= {1.0} if not demands[layer.name] else set()
            demands[layer.skip].add(only(layer.name) or 1.0)
        asked = only(layer.name)
        if isinstance(layer, FloatPool) and asked is not None:
            demands[layer.input].add(asked * _loss(layer, config))
    asked = only(INPUT)
    if asked is not None and abs(asked - 1) > 1e-9:
        raise QuantizeError(f"An average pool's gain is not on the lattice of {config.gain_terms} terms, and the "
                            f"network has no convolution that could absorb the factor {1 / asked:.4g} that is left")
    factors = {INPUT: 1.0}
    for layer in network.layers:
        assert layer.input is not None
        asked = only(layer.name)
        if isinstance(layer, FloatPool):
            factors[layer.name] = factors[layer.input] / _loss(layer, config)
        else:
            factors[layer.name] = 1.0 if asked is None else asked
    return factors


def _loss(layer: FloatPool, config: QuantizeConfig) -> float:
    """The gain that an average has, over the one that it should have."""
    return layer.divisor * mean_gain(layer, config).value if layer.kind == "average" else 1.0


def _raised(network: FloatGraph, wanted: dict[str, int], factors: dict[str, float],
            config: QuantizeConfig) -> dict[str, int]:
    """The finest exponents, none below ``wanted``, that all layers can do with."""
    exponents = dict(wanted)
    bounds = [_bounds(layer, factors, config) for layer in network.layers]
    for _ in range(2 * len(network.layers) + 8):
        before = dict(exponents)
        for raise_exponents in bounds:
            raise_exponents(exponents)
        if exponents == before:
            return exponents
    raise QuantizeError(f"{next(layer.name for layer in network.layers if layer.skip is not None)}: no scales of the "
                        f"tensors that are added suit each other")


def _bounds(layer: FloatLayer, factors: dict[str, float],
            config: QuantizeConfig) -> Callable[[dict[str, int]], None]:
    """What raises the exponents of a layer's tensors as far as its gains and its addition ask for."""
    assert layer.input is not None
    source, out, skip = layer.input, layer.name, layer.skip
    reach = -np.inf  # octaves by which a gain's lowest place may lie above the input's
    if isinstance(layer, FloatConv) and np.abs(layer.weights).max(initial=0) > 0:
        largest = max(gain_multipliers(config.gain_terms)) * config.format.max_magnitude
        reach = np.ceil(np.log2(np.abs(layer.weights).max() * factors[source] / (largest * factors[out])))
    elif isinstance(layer, FloatPool) and layer.kind == "average":
        reach = -mean_gain(layer, config).shift

    def raise_exponents(exponents: dict[str, int]) -> None:
        if isinstance(layer, FloatPool) and layer.kind == "max":
            exponents[out] = exponents[source] = max(exponents[out], exponents[source])
            return
        # The place where the skip tensor ends is the lowest that a gain may have; without one it is the output's.
        base = out if skip is None else skip
        if is_sum(layer) and skip is not None:
            fine, coarse = sorted((source, skip), key=lambda name: exponents[name])
            exponents[out] = max(exponents[out], exponents[coarse])
            lowest = exponents[out] - (config.max_gain_shift if fine != coarse else MAX_SKIP_DROP)
            exponents[fine] = max(exponents[fine], lowest)
            exponents[coarse] = max(exponents[coarse], exponents[out] - MAX_SKIP_DROP)
            return
        if np.isfinite(reach):
            exponents[base] = max(exponents[base], exponents[source] + int(reach))
        if skip is not None:
            exponents[out] = max(exponents[out], exponents[skip])
            exponents[skip] = max(exponents[skip], exponents[out] - MAX_SKIP_DROP)

    return raise_exponents
