"""Quantize a network, layer after layer.

Two copies of the calibration inputs go through the network side by side: one in float, one through the integer
layers made so far, exactly as the machine will compute them. Each layer is fitted so that it makes of the second what
the float layer makes of the first, and so mends what the layers before it broke. Its bias restores the float mean.

A tensor's codes stand for ``factor * 2**exponent * (q - zero_point)``. The factor is 1 but after an average pool
whose gain the lattice cannot express (1/9 becomes 7/64): it is known, and the next convolution's gains absorb it, or
the gains of the convolution before where the network ends with the pool or its output is added to another tensor.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nomul.frontend import INPUT, FloatConv, FloatGraph, FloatLayer, FloatPool, import_module
from nomul.frontend.float_graph import patches, windows
from nomul.graph import Conv, Graph, Node, Pool, Tensor
from nomul_hw.arithmetic import Gain, act_range, requantize, round_half_up, zero_point

from .config import QuantizeConfig, QuantizeError
from .lattice import StepLattice
from .report import LayerReport, QuantizeReport, sqnr_db
from .scales import Scales, is_sum, mean_gain, plan_scales
from .weights import Fit, fit_compensated, fit_nearest

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["quantize", "quantize_report"]

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

#: A channel whose inputs move its output by less than this many codes is a constant.
CONSTANT = 2.0**-8

#: Inputs per output channel beyond which the moments that ``"gptq"`` works with take gigabytes.
MAX_INPUTS = 10_240

#: Beyond every code.
FAR = 1 << 60


def quantize(network: "nn.Module | FloatGraph", calibration: "torch.Tensor | npt.ArrayLike",
             config: QuantizeConfig | None = None, **choices: Any) -> Graph:
    """Quantize a network to integers.

    Parameters
    ----------
    network : nn.Module or FloatGraph
        The float network; a module is imported first.
    calibration : array or Tensor of real numbers, shape (N, C, H, W) or (N, features)
        Typical inputs, a few hundred as a rule.
    config : QuantizeConfig, optional
        Format and method.
    **choices
        Fields of :class:`QuantizeConfig`, such as ``format="ternary"``: instead of ``config``, or to change it.

    Raises
    ------
    nomul.frontend.UnsupportedError
        If the machine cannot run the module.
    QuantizeError
        If the network cannot be quantized as asked for.
    """
    return quantize_report(network, calibration, config, **choices)[0]


def quantize_report(network: "nn.Module | FloatGraph", calibration: "torch.Tensor | npt.ArrayLike",
                    config: QuantizeConfig | None = None, **choices: Any) -> tuple[Graph, QuantizeReport]:
    """Quantize a network as :func:`quantize` does, and account for every layer."""
    config = QuantizeConfig(**choices) if config is None else replace(config, **choices)
    if hasattr(calibration, "detach"):
        calibration = calibration.detach().cpu()
    samples = np.asarray(calibration)
    if samples.ndim < 2 or not len(samples):
        raise QuantizeError(f"Calibration inputs must be (N, C, H, W) or (N, features), not {samples.shape}")
    if not np.isfinite(samples).all():
        raise QuantizeError("Calibration inputs must be finite numbers")
    if not isinstance(network, FloatGraph):
        # Two samples, so that a reshape that mixes them cannot pass for one that does not.
        network = import_module(network, samples[[0, -1]])
    try:
        real = network.as_input(samples)
    except ValueError as error:
        raise QuantizeError(f"Calibration: {error}") from None
    return _Quantizer(network, config).run(real)


@dataclass(frozen=True, eq=False)
class _Activations:
    """Calibration inputs at one tensor: what the float network holds there, and what the integer network does."""

    tensor: Tensor
    factor: float
    real: Float64Array  #: (N, C, H, W)
    counts: Float64Array  #: codes less the zero point, (N, C, H, W)

    @property
    def unit(self) -> float:
        """What one count is worth."""
        return _unit(self.tensor, self.factor)

    @property
    def signed(self) -> bool:
        """Whether the tensor's codes can stand for negative numbers."""
        return self.tensor.zero_point == 0


def _unit(tensor: Tensor, factor: float) -> float:
    return factor * 2.0**tensor.exponent


class _Quantizer:
    """Quantizes one network."""

    scales: Scales

    def __init__(self, network: FloatGraph, config: QuantizeConfig):
        self.network = network
        self.config = config
        self.range = act_range(config.act_bits)
        self.limit = 1 << (config.acc_bits - 1)  #: accumulators are below this
        self.reports: list[LayerReport] = []

    def run(self, real: Float64Array) -> tuple[Graph, QuantizeReport]:
        """Quantize with these calibration inputs (N, C, H, W)."""
        config, layers = self.config, self.network.layers
        self._check()
        self.scales = plan_scales(self.network, real, config)
        name = "input"
        while name in {layer.name for layer in layers}:
            name += "_"
        tensor = self._tensor(INPUT, real, signed=bool(real.min() < 0))
        low, high = self._counts(tensor)
        tensor = replace(tensor, name=name)
        at = _Activations(tensor, 1.0, real, np.clip(round_half_up(real / _unit(tensor, 1.0)), low, high))
        made, last = {INPUT: at}, self.network.last_readers()
        tensors, nodes = [tensor], list[Node]()
        node: Node
        for index, layer in enumerate(layers):
            assert layer.input is not None
            source, skip = made[layer.input], None if layer.skip is None else made[layer.skip]
            if isinstance(layer, FloatConv):
                node, at = self._conv(layer, source, skip)
            else:
                assert isinstance(layer, FloatPool)
                node, at = self._pool(layer, source, skip)
            tensors.append(at.tensor)
            nodes.append(node)
            made[layer.name] = at
            made = {name: kept for name, kept in made.items() if last.get(name, -1) > index}
        graph = Graph(config.format, config.act_bits, config.gain_terms, tuple(tensors), tuple(nodes), name,
                      at.tensor.name, self.network.output_shape)
        return graph, QuantizeReport(tuple(self.reports))

    def _check(self) -> None:
        """Refuse layers that no calibration could help."""
        for layer in self.network.layers:
            if isinstance(layer, FloatPool) and layer.kind == "average" and (
                    layer.taps << self.config.act_bits >= self.limit):
                raise QuantizeError(f"{layer.name}: a sum of {layer.taps} codes of {self.config.act_bits} bits does "
                                    f"not fit acc_bits = {self.config.acc_bits}")
            if isinstance(layer, FloatConv) and not (np.isfinite(layer.weights).all()
                                                     and np.isfinite(layer.bias).all()):
                raise QuantizeError(f"{layer.name}: weights and biases must be finite numbers")

    # Pools -------------------------------------------------------------------------------------------------------

    def _pool(self, layer: FloatPool, source: _Activations, skip: _Activations | None) -> tuple[Pool, _Activations]:
        if skip is not None and is_sum(layer) and skip.tensor.exponent < source.tensor.exponent:
            source, skip = skip, source  # the coarser one is added
        real = layer.run(source.real, None if skip is None else skip.real)
        factor = self.scales.factors[layer.name]
        if layer.kind == "max":
            target = replace(source.tensor, name=layer.name, height=real.shape[2], width=real.shape[3])
            gain = Gain(1, 0)
            sums = windows(source.counts, layer, self._counts(source.tensor)[0]).max(axis=(4, 5))
            offset = -source.tensor.zero_point
        else:
            signed = layer.low < 0 and (source.signed or (skip is not None and skip.signed))
            target = self._tensor(layer.name, real, signed=signed)
            # A finer scale where averaging leaves only small values.
            mean = mean_gain(layer, self.config)
            gain = Gain(mean.multiplier, mean.shift + target.exponent - source.tensor.exponent)
            if gain.shift > self.config.max_gain_shift:
                raise QuantizeError(f"{layer.name}: its output's scale is 2**{gain.shift} times its input's, more than "
                                    f"acc_bits = {self.config.acc_bits} can shift")
            sums = windows(source.counts, layer, 0.0).sum(axis=(4, 5))
            offset = -source.tensor.zero_point * layer.taps
        node = Pool(**self._geometry(layer, source, skip), **self._clamp(layer, target, factor),
                    bias=np.full(target.channels, offset, dtype=np.int64),
                    multiplier=np.full(target.channels, gain.multiplier, dtype=np.int64),
                    shift=np.full(target.channels, gain.shift, dtype=np.int64),
                    kind="max" if layer.kind == "max" else "sum")
        after, saturation = self._requantize(layer, node, target, sums, real, skip)
        self.reports.append(LayerReport(layer.name, layer.kind, None, sqnr_db(real, after.counts * after.unit), None,
                                        saturation, target.exponent))
        return node, after

    # Convolutions ------------------------------------------------------------------------------------------------

    def _conv(self, layer: FloatConv, source: _Activations, skip: _Activations | None) -> tuple[Conv, _Activations]:
        config, factor = self.config, self.scales.factors[layer.name]
        linear = layer.linear(source.real)
        real = np.clip(linear if skip is None else linear + skip.real, layer.low, layer.high)
        mean = linear.mean(axis=(0, 2, 3))
        target = self._tensor(layer.name, real, signed=layer.low < 0)
        drop = 0 if skip is None else target.exponent - skip.tensor.exponent
        weights = layer.weights.reshape(len(layer.weights), -1)
        lattice = StepLattice(config.gain_terms, config.max_gain_shift, _unit(target, factor) / source.unit, drop)
        # A step so small that the bias alone would overflow is no choice, however small the weights.
        least = np.maximum(np.abs(layer.bias), np.abs(mean)) / source.unit / (self.limit / 4)
        lowest = np.minimum(np.searchsorted(lattice.steps, least), len(lattice.steps) - 1)
        fit = self._fit(layer, weights, source, lattice, lowest)
        levels, multiplier, shift = fit.levels, lattice.multipliers[fit.index], lattice.shifts[fit.index]
        steps = lattice.steps[fit.index]
        offset = layer.bias / (source.unit * steps)
        if config.bias_correction:
            offset = mean / (source.unit * steps) - self._sums(layer, levels, source).mean(axis=(0, 2, 3))
        offset = round_half_up(offset).astype(np.int64)

        clamp = self._clamp(layer, target, factor)
        ends = clamp["low"] - target.zero_point, clamp["high"] - target.zero_point
        if skip is not None:  # no skip tensor brings what lies beyond back into the range
            ends = -2 << config.act_bits, 2 << config.act_bits
        reach = np.abs(weights).sum(axis=1) * source.unit * (1 << config.act_bits)
        for channel in np.flatnonzero(reach < CONSTANT * _unit(target, factor)):
            count = int(np.clip(round_half_up(mean[channel] / _unit(target, factor)), *ends))
            levels[channel], offset[channel], shift[channel] = self._constant(count, levels.shape[1], ends, drop)
            multiplier[channel], steps[channel] = 1, lattice.unit / 2.0 ** shift[channel]
        node = Conv(**self._geometry(layer, source, skip), **clamp,
                    bias=offset - source.tensor.zero_point * levels.sum(axis=1), multiplier=multiplier, shift=shift,
                    weights=levels.reshape(layer.weights.shape).astype(np.int32))
        self._check_sums(layer, levels, node.bias)
        sums = self._sums(layer, levels, source) + offset[:, None, None]
        after, saturation = self._requantize(layer, node, target, sums, real, skip)
        self.reports.append(LayerReport(
            layer.name, "conv", sqnr_db(weights, levels * steps[:, None]), sqnr_db(real, after.counts * after.unit),
            float((levels == 0).mean()), saturation, target.exponent))
        return node, after

    def _fit(self, layer: FloatConv, weights: Float64Array, source: _Activations, lattice: StepLattice,
             lowest: Int64Array) -> Fit:
        """Choose levels and steps, given what the integer network feeds the layer."""
        inputs = weights.shape[1]
        total, count = np.zeros(inputs), 0
        if self.config.method == "nearest":
            power = np.zeros(inputs)
            for part in patches(source.counts, layer, 0.0):
                total, count = total + part.sum(axis=0), count + len(part)
                power += np.square(part).sum(axis=0)
            return fit_nearest(weights, power / count - np.square(total / count), self.config.format, lattice, lowest)
        if inputs > MAX_INPUTS:
            raise QuantizeError(f'{layer.name}: method "gptq" takes at most {MAX_INPUTS} inputs per output channel, '
                                f'not {inputs}; use method "nearest"')
        real_total = np.zeros(inputs)
        moment, cross = np.zeros((2, inputs, inputs))
        for part, real in zip(patches(source.counts, layer, 0.0), patches(source.real / source.unit, layer, 0.0),
                              strict=True):
            total, real_total, count = total + part.sum(axis=0), real_total + real.sum(axis=0), count + len(part)
            moment += part.T @ part
            cross += real.T @ part
        moment = moment / count - np.outer(total, total) / count**2
        cross = cross / count - np.outer(real_total, total) / count**2
        return fit_compensated(weights, moment, cross, self.config.format, lattice, lowest)

    def _constant(self, count: int, inputs: int, ends: tuple[int, int], drop: int) -> tuple[Int64Array, int, int]:
        """Levels, bias and gain shift, at least ``drop``, of a channel that is constant.

        ``ends`` are the counts of the clamp.

        With a zero among the levels that is exact. Without one the smallest weights remain, signs alternating, and a
        large bias with a gain as small drowns them: exactly at the ends of the clamp (a dead ReLU) and in layers that
        are not too deep, else to one code.
        """
        smallest = min(abs(level) for level in self.config.format.levels)
        if smallest == 0:
            return np.zeros(inputs, dtype=np.int64), count << drop, drop
        levels = np.where(np.arange(inputs) % 2, -smallest, smallest).astype(np.int64)
        most = inputs * smallest << self.config.act_bits
        shift = drop
        # Half of the accumulator stays free for what the lanes of an array that the layer does not fill contribute.
        while (abs(count) << (shift + 1)) + 2 * most < self.limit // 2 and shift < self.config.max_gain_shift:
            shift += 1
        return levels, (count << shift) + {ends[0]: -most, ends[1]: most}.get(count, 0), shift

    def _sums(self, layer: FloatConv, levels: Int64Array, source: _Activations) -> Float64Array:
        """Sums of levels times counts, (N, C', H', W'); integers."""
        weights = levels.reshape(layer.weights.shape).astype(np.float64)
        return replace(layer, weights=weights, bias=np.zeros(len(levels))).linear(source.counts)

    def _check_sums(self, layer: FloatConv, levels: Int64Array, bias: Int64Array) -> None:
        """Refuse sums that do not fit the accumulators for some input."""
        low, high = self.range
        positive, negative = np.maximum(levels, 0).sum(axis=1), np.minimum(levels, 0).sum(axis=1)
        most, least = high * positive + low * negative, low * positive + high * negative
        # One more of every weight: what the hardware's inverted products move to the bias.
        spare = positive - negative
        bound = int((np.max(np.abs([most, least, bias, most + bias, least + bias]), axis=0) + spare).max())
        if bound >= self.limit:
            raise QuantizeError(f"{layer.name}: sums reach {bound}, more than acc_bits = {self.config.acc_bits} holds; "
                                f"acc_bits = {bound.bit_length() + 1} would do")

    # Both --------------------------------------------------------------------------------------------------------

    def _tensor(self, name: str, real: Float64Array, *, signed: bool) -> Tensor:
        """A tensor for these values (N, C, H, W), with the scale that was planned."""
        _, channels, height, width = real.shape
        return Tensor(name, channels, height, width, self.scales.exponents[name],
                      zero_point(self.config.act_bits, signed=signed))

    def _counts(self, tensor: Tensor) -> tuple[int, int]:
        """Smallest and largest code less the zero point."""
        return self.range[0] - tensor.zero_point, self.range[1] - tensor.zero_point

    def _geometry(self, layer: FloatLayer, source: _Activations, skip: _Activations | None) -> dict[str, Any]:
        return {"name": layer.name, "input": source.tensor.name, "output": layer.name,
                "skip": None if skip is None else skip.tensor.name, "kernel": layer.kernel, "stride": layer.stride,
                "padding": layer.padding, "dilation": layer.dilation}

    def _clamp(self, layer: FloatLayer, target: Tensor, factor: float) -> dict[str, Any]:
        """The activation function as the lowest and the highest output code."""
        ends = np.clip(np.asarray([layer.low, layer.high]) / _unit(target, factor), *self._counts(target))
        low, high = round_half_up(ends).astype(np.int64) + target.zero_point
        return {"low": int(low), "high": int(high)}

    def _requantize(self, layer: FloatLayer, node: Node, target: Tensor, sums: Float64Array, real: Float64Array,
                    skip: _Activations | None) -> tuple[_Activations, float]:
        """Requantize sums of counts, bias included; also returns the share that saturates."""
        column = (slice(None), None, None)
        free = requantize(sums.astype(np.int64), np.zeros(1, dtype=np.int64), node.multiplier[column],
                          node.shift[column], zero_point=0, low=-FAR, high=FAR,
                          skip=None if skip is None else skip.counts.astype(np.int64),
                          drop=0 if skip is None else target.exponent - skip.tensor.exponent)
        low, high = self._counts(target)
        factor = self.scales.factors[layer.name]
        unit = _unit(target, factor)
        lost = (free < low) & (layer.low / unit < low) | (free > high) & (layer.high / unit > high)
        counts = np.clip(free, node.low - target.zero_point, node.high - target.zero_point).astype(np.float64)
        return _Activations(target, factor, real, counts), float(lost.mean())
