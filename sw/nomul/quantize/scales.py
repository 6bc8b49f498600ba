"""Scales of all tensors of a network, planned together before any layer is quantized.

Alone, every tensor would have the scale that suits its values. But a residual addition shifts the added tensor by at
most a few places, concatenated tensors have one scale, an average passes on the part of its gain that the lattice
lacks, and a convolution's gains end somewhere. All of that depends on the float network and its calibration inputs
only.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nomul.frontend import INPUT, FloatConcat, FloatConv, FloatGraph, FloatLayer, FloatOperation, FloatPool
from nomul_hw.arithmetic import MAX_SKIP_DROP, Gain, gain_multipliers, nearest_gain

from .activations import fit_exponent
from .config import QuantizeConfig, QuantizeError

__all__ = ["Scales", "is_sum", "mean_gain", "plan_scales"]

Float64Array = npt.NDArray[np.float64]

#: What stands for the number 1 among the tensors whose factors are tied to each other.
ONE = None


@dataclass(frozen=True)
class Scales:
    """Scale and sign of every tensor, by the layer that makes it: a count is worth ``factor * 2**exponent``."""

    factors: dict[str, float]
    exponents: dict[str, int]
    signed: dict[str, bool]


def is_sum(layer: FloatOperation) -> bool:
    """Whether a layer does nothing but add its two inputs, which may then change places."""
    return isinstance(layer, FloatPool) and layer.skip is not None and layer.taps == layer.divisor == 1


def mean_gain(layer: FloatPool, factors: dict[str, float], config: QuantizeConfig) -> Gain:
    """The gain of an average whose output has the scale of its input but for the factors."""
    wanted = factors[layer.sources[0]] / factors[layer.name] / layer.divisor
    return nearest_gain(wanted, terms=config.gain_terms, max_shift=config.max_gain_shift)


def plan_scales(network: FloatGraph, real: Float64Array, config: QuantizeConfig) -> tuple[FloatGraph, Scales]:
    """Plan scales for calibration inputs ``real`` (N, C, H, W).

    Also returns the network, with a copy of a tensor in front of a concatenation where the tensor's own scale cannot
    be that of the others.

    Raises
    ------
    QuantizeError
        If there are none; the message names the layer.
    """
    factors, apart = _factors(network, frozenset(), config)
    parts = {(layer.name, part) for layer in network.layers if isinstance(layer, FloatConcat) for part in layer.inputs}
    for copied in (apart, parts):
        changed, copies = _with_copies(network, copied)
        factors, _ = _factors(changed, copies, config)
        signed = _signed(changed, real)
        wanted = {INPUT: fit_exponent(real, config, signed=signed[INPUT])}
        for layer, value in changed.outputs(real):
            if isinstance(layer, FloatPool) and layer.kind == "max":
                # The codes are what they are: another scale could only lose some.
                wanted[layer.name] = wanted[layer.sources[0]]
            elif isinstance(layer, FloatConcat):
                wanted[layer.name] = max(wanted[part] for part in layer.inputs)
            else:
                wanted[layer.name] = fit_exponent(value / factors[layer.name], config,
                                                  signed=signed[layer.name])
        exponents = _raised(changed, wanted, factors, config)
        if exponents is not None:
            return changed, Scales(factors, exponents, signed)
    name = next(layer.name for layer in network.layers if isinstance(layer, FloatLayer) and layer.skip is not None)
    raise QuantizeError(f"{name}: no scales of the tensors that are added suit each other")


def _with_copies(network: FloatGraph, parts: Collection[tuple[str, str]]) -> tuple[FloatGraph, frozenset[str]]:
    """Copy the tensors that are listed with a concatenation, for it alone; also returns the copies' names.

    A copy is an average over one pixel: requantization gives it whatever scale.
    """
    names, layers, copies = {layer.name for layer in network.layers}, list[FloatOperation](), set[str]()
    for layer in network.layers:
        if isinstance(layer, FloatConcat):
            for part in sorted({part for part in layer.inputs if (layer.name, part) in parts}):
                name = f"{part or 'input'}.copy"
                while name in names:
                    name += "_"
                names.add(name)
                copies.add(name)
                layers.append(FloatPool(name, (1, 1), kind="average", input=part))
                layer = replace(layer, inputs=tuple(name if read == part else read for read in layer.inputs))
        layers.append(layer)
    return replace(network, layers=tuple(layers)), frozenset(copies)


def _signed(network: FloatGraph, real: Float64Array) -> dict[str, bool]:
    """Which tensors have codes for negative numbers; the same for all that are concatenated."""
    signed = {INPUT: bool(real.min() < 0), **{layer.name: False for layer in network.layers}}
    before = None
    while before != signed:
        before = dict(signed)
        for layer in network.layers:
            negative = any(signed[name] for name in layer.sources)
            if isinstance(layer, FloatConcat) or (isinstance(layer, FloatPool) and layer.kind == "max"):
                signed |= dict.fromkeys((layer.name, *layer.sources), negative or signed[layer.name])
            else:
                signed[layer.name] |= layer.low < 0 and (isinstance(layer, FloatConv) or negative)
    return signed


class _Ratios:
    """Positive numbers, some of which are known to be in a certain ratio."""

    def __init__(self) -> None:
        self.tied: dict[str | None, dict[str | None, float]] = {}

    def tie(self, name: str | None, other: str | None, ratio: float) -> bool:
        """Let ``name`` be ``ratio`` times ``other``; False, and nothing changes, if another ratio is known."""
        left, right = self.tied.setdefault(name, {name: 1.0}), self.tied.setdefault(other, {other: 1.0})
        found = right[other] * ratio / left[name]
        if left is right:
            return abs(found - 1) < 1e-9
        for member, value in left.items():
            right[member] = value * found
            self.tied[member] = right
        return True

    def value(self, name: str, order: list[str | None]) -> float:
        """A number, if the first of those tied to it in ``order`` is 1."""
        tied = self.tied.get(name, {name: 1.0})
        return tied[name] / tied[next(member for member in order if member in tied)]


def _factors(network: FloatGraph, copies: frozenset[str],
             config: QuantizeConfig) -> tuple[dict[str, float], list[tuple[str, str]]]:
    """Factors of all tensors, and the parts of concatenations, with these, for which there is none.

    A convolution's gains absorb its input's factor and can give its output any; a copy's do so nearly. Everything else
    ties factors together: additions, maxima and concatenations, and averages by what their gains lack. The network's
    input and output have the factor 1.
    """
    ratios = _Ratios()

    def settle(layer: str, name: str | None, other: str | None, ratio: float) -> None:
        if not ratios.tie(name, other, ratio):
            raise QuantizeError(f"{layer}: it is added, averaged or returned at two scales, since an average pool's "
                                f"gain is not on the lattice of {config.gain_terms} terms and no convolution in "
                                f"between could absorb what is left")

    settle(INPUT, INPUT, ONE, 1.0)
    for layer in network.layers:
        if isinstance(layer, FloatConcat):
            continue
        if isinstance(layer, FloatPool) and layer.name not in copies:
            settle(layer.name, layer.name, layer.sources[0], 1 / _loss(layer, config))
        if layer.skip is not None:
            settle(layer.name, layer.name, layer.skip, 1.0)
    last = network.layers[-1].name
    settle(last, last, ONE, 1.0)
    apart = [(layer.name, part) for layer in network.layers if isinstance(layer, FloatConcat)
             for part in layer.inputs if not ratios.tie(part, layer.name, 1.0)]
    order = [ONE, INPUT, *(layer.name for layer in network.layers)]
    return {name: ratios.value(name, order) for name in order if name is not ONE}, apart


def _loss(layer: FloatPool, config: QuantizeConfig) -> float:
    """The gain that an average has, over the one that it should have."""
    if layer.kind == "max":
        return 1.0
    gain = nearest_gain(1 / layer.divisor, terms=config.gain_terms, max_shift=config.max_gain_shift)
    return layer.divisor * gain.value


def _raised(network: FloatGraph, wanted: dict[str, int], factors: dict[str, float],
            config: QuantizeConfig) -> dict[str, int] | None:
    """The finest exponents, none below ``wanted``, that all layers can do with; None if there are none."""
    exponents = dict(wanted)
    bounds = [_bounds(layer, factors, config) for layer in network.layers]
    for _ in range(2 * len(network.layers) + 8):
        before = dict(exponents)
        for raise_exponents in bounds:
            raise_exponents(exponents)
        if exponents == before:
            return exponents
    return None


def _bounds(layer: FloatOperation, factors: dict[str, float],
            config: QuantizeConfig) -> Callable[[dict[str, int]], None]:
    """What raises the exponents of a layer's tensors as far as its gains and its addition ask for."""
    source, out = layer.sources[0], layer.name
    skip = layer.skip if isinstance(layer, FloatLayer) else None
    reach = -np.inf  # octaves by which a gain's lowest place may lie above the input's
    if isinstance(layer, FloatConv) and np.abs(layer.weights).max(initial=0) > 0:
        largest = max(gain_multipliers(config.gain_terms)) * config.format_of(layer).max_magnitude
        reach = np.ceil(np.log2(np.abs(layer.weights).max() * factors[source] / (largest * factors[out])))
    elif isinstance(layer, FloatPool) and layer.kind == "average":
        reach = -mean_gain(layer, factors, config).shift

    def raise_exponents(exponents: dict[str, int]) -> None:
        if isinstance(layer, FloatConcat) or (isinstance(layer, FloatPool) and layer.kind == "max"):
            names = (out, *layer.sources)
            exponents |= dict.fromkeys(names, max(exponents[name] for name in names))
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
