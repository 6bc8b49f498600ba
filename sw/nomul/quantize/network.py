"""Quantize a network, layer after layer.

Two copies of the calibration inputs go through the network side by side: one in float, one through the integer
layers made so far, exactly as the machine will compute them. Each layer is fitted so that it makes of the second what
the float layer makes of the first, and so mends what the layers before it broke. Its bias restores the float mean.

A tensor's codes stand for ``factor * 2**exponent * (q - zero_point)``. The factor is 1 but around an average pool
whose gain the lattice cannot express (1/9 becomes 7/64): it is known, and the next convolution's gains absorb it, or
the gains of the convolution before where the network ends with the pool, or its output is added to another tensor or
concatenated with one.
"""

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nomul.frontend import (
    INPUT,
    FloatConcat,
    FloatConv,
    FloatGraph,
    FloatLayer,
    FloatPool,
    import_module,
)
from nomul.frontend.float_graph import patches, taps
from nomul.graph import Concat, Conv, Graph, Node, Operation, Pool, Tensor
from nomul_hw.arithmetic import Gain, act_range, requantize, round_half_up, zero_point
from nomul_hw.formats import WeightFormat

from .config import QuantizeConfig, QuantizeError, passes_on
from .equalize import equalize
from .lattice import StepLattice
from .report import LayerReport, QuantizeReport, correlation, level_use, sqnr_db
from .scalar.hardware import steps as rule_steps
from .scales import Scales, is_sum, mean_gain, plan_scales
from .weights import Fit, fit_compensated, fit_nearest

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["as_config", "as_float_graph", "constant_channels", "imported", "quantize_graph", "quantize_planned",
           "quantize_report", "sum_bounds"]

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

#: What method ``"best"`` tries for every layer: method and damping.
TRIALS: dict[str, dict[str, Any]] = {
    "gptq": {"method": "gptq"},
    "gptq, damped": {"method": "gptq", "damping": 1.0},
    "nearest": {"method": "nearest"},
    "adaround": {"method": "adaround"},
}

#: Of the calibration inputs one in so many is kept from the trials, to judge them.
JUDGES = 4

#: A channel whose inputs move its output by less than this many codes is a constant.
CONSTANT = 2.0**-8

#: Inputs per output channel beyond which the moments that ``"gptq"`` works with take gigabytes.
MAX_INPUTS = 10_240

#: Pixels that ``"adaround"`` looks at, fewer where that were more values than these.
PIXELS, PIXEL_VALUES = 1 << 13, 1 << 25

#: Inputs per output channel, those of a depthwise convolution, up to which ``"adaround"`` finds nothing that ``"gptq"``
#: has not found.
FEW_INPUTS = 16

#: Share of the accumulators that sums may take before biases are corrected.
SUMS_SHARE = 0.96

#: Largest weight that a channel of integers must still be able to have where its sums would not fit else.
MIN_MAGNITUDE = 16

#: Beyond every code.
FAR = 1 << 60


def quantize_graph(network: "nn.Module | FloatGraph", calibration: "torch.Tensor | npt.ArrayLike",
                   config: QuantizeConfig | None = None, **choices: Any) -> Graph:
    """Quantize a network to integers, as plain data; :func:`nomul.quantize` makes a module of it that can be trained.

    Parameters
    ----------
    network : nn.Module or FloatGraph
        The float network; a module is imported first.
    calibration : array or Tensor of real numbers, shape (N, C, H, W), (N, C, L) or (N, features)
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
    """Quantize a network as :func:`quantize_graph` does, and account for every layer."""
    config = as_config(config, choices)
    floats, real = as_float_graph(network, calibration)
    return quantize_planned(floats, real, config)[:2]


def quantize_planned(network: FloatGraph, real: Float64Array, config: QuantizeConfig
                     ) -> tuple[Graph, QuantizeReport, FloatGraph, Scales]:
    """Quantize a float graph with calibration inputs (N, C, H, W).

    Also returns the float network that the integers belong to, equalized if so configured, and its scales.
    """
    quantizer = _Quantizer(network, config)
    graph, report = quantizer.run(real)
    return graph, report, quantizer.network, quantizer.scales


def as_config(config: QuantizeConfig | None, choices: dict[str, Any]) -> QuantizeConfig:
    """A configuration and changes to it, or its fields alone, as a configuration."""
    return QuantizeConfig(**choices) if config is None else replace(config, **choices)


def as_float_graph(network: "nn.Module | FloatGraph",
                   calibration: "torch.Tensor | npt.ArrayLike") -> tuple[FloatGraph, Float64Array]:
    """The float graph of a network, and the calibration inputs as it takes them, (N, C, H, W).

    Raises
    ------
    nomul.frontend.UnsupportedError, QuantizeError
        As :func:`quantize_graph`.
    """
    if hasattr(calibration, "detach"):
        calibration = calibration.detach().cpu()
    samples = np.asarray(calibration)
    if samples.ndim < 2 or not len(samples):
        raise QuantizeError(f"Calibration inputs must be (N, C, H, W), (N, C, L) or (N, features), not {samples.shape}")
    if not np.isfinite(samples).all():
        raise QuantizeError("Calibration inputs must be finite numbers")
    return imported(network, samples, "Calibration: ")


def imported(network: "nn.Module | FloatGraph", samples: npt.NDArray[Any], what: str = ""
             ) -> tuple[FloatGraph, Float64Array]:
    """Import a network, if it is a module, and bring samples to what it takes, (N, C, H, W); ``what`` begins errors.
    """
    if not isinstance(network, FloatGraph):
        # Two samples, so that a reshape that mixes them cannot pass for one that does not.
        network = import_module(network, samples[[0, -1]])
    try:
        return network, network.as_input(samples)
    except ValueError as error:
        raise QuantizeError(f"{what}{error}") from None


def sum_bounds(levels: Int64Array, bias: Int64Array, act_bits: int) -> Int64Array:
    """Bounds of the sums of levels (..., inputs) with biases (...) for any input, bias included or not."""
    low, high = act_range(act_bits)
    positive, negative = np.maximum(levels, 0).sum(axis=-1), np.minimum(levels, 0).sum(axis=-1)
    most, least = high * positive + low * negative, low * positive + high * negative
    # One more of every weight: what the hardware's inverted products move to the bias.
    spare = positive - negative
    return np.asarray(np.max(np.abs([most, least, bias, most + bias, least + bias]), axis=0) + spare)


def constant_channels(weights: Float64Array, in_unit: float, out_unit: float, act_bits: int) -> npt.NDArray[np.bool_]:
    """Which channels of weights (channels, inputs) no input moves by a code that counts, (channels,)."""
    reach = np.abs(weights).sum(axis=1) * in_unit * (1 << act_bits)
    return np.asarray(reach < CONSTANT * out_unit)


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

    def part(self, samples: slice | npt.NDArray[np.bool_]) -> "_Activations":
        """Those of some of the inputs."""
        return replace(self, real=self.real[samples], counts=self.counts[samples])


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
        config = self.config
        self._check()
        if config.equalization:
            self.network = equalize(self.network, real, strength=config.equalization)
        self.network, self.scales = plan_scales(self.network, real, config)
        layers, name = self.network.layers, "input"
        while name in {layer.name for layer in layers}:
            name += "_"
        tensor = self._tensor(INPUT, real)
        low, high = self._counts(tensor)
        tensor = replace(tensor, name=name)
        at = _Activations(tensor, 1.0, real, np.clip(round_half_up(real / _unit(tensor, 1.0)), low, high))
        made, last = {INPUT: at}, self.network.last_readers()
        tensors, nodes = [tensor], list[Operation]()
        for index, layer in enumerate(layers):
            sources = [made[name] for name in layer.sources]
            node: Operation
            if isinstance(layer, FloatConv):
                node, at = self._conv(layer, self._choice(index, layer, made), *sources)
            elif isinstance(layer, FloatPool):
                node, at = self._pool(layer, *sources)
            else:
                assert isinstance(layer, FloatConcat)
                node, at = self._concat(layer, *sources)
            tensors.append(at.tensor)
            nodes.append(node)
            made[layer.name] = at
            made = {name: kept for name, kept in made.items() if last.get(name, -1) > index}
        graph = Graph(config.format, config.act_bits, config.gain_terms, tuple(tensors), tuple(nodes), name,
                      at.tensor.name, self.network.output_shape)
        return graph, QuantizeReport(tuple(self.reports))

    def _concat(self, layer: FloatConcat, *sources: _Activations) -> tuple[Concat, _Activations]:
        real, counts = (np.concatenate(parts, axis=1) for parts in ([s.real for s in sources],
                                                                    [s.counts for s in sources]))
        node = Concat(layer.name, tuple(source.tensor.name for source in sources), layer.name)
        return node, _Activations(self._tensor(layer.name, real), self.scales.factors[layer.name], real, counts)

    def _check(self) -> None:
        """Refuse choices and layers that no calibration could help."""
        names = [layer.name for layer in self.network.layers if isinstance(layer, FloatConv)]
        for pattern in self.config.formats:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise QuantizeError(f"No layer with weights has a name like {pattern!r}; there are {', '.join(names)}")
        for layer in self.network.layers:
            if isinstance(layer, FloatPool) and layer.kind == "average" and (
                    layer.taps << self.config.act_bits >= self.limit):
                raise QuantizeError(f"{layer.name}: a sum of {layer.taps} codes of {self.config.act_bits} bits does "
                                    f"not fit acc_bits = {self.config.acc_bits}")
            if isinstance(layer, FloatConv) and not (np.isfinite(layer.weights).all()
                                                     and np.isfinite(layer.bias).all()):
                raise QuantizeError(f"{layer.name}: weights and biases must be finite numbers")

    # Pools -------------------------------------------------------------------------------------------------------

    def _pool(self, layer: FloatPool, source: _Activations,
              skip: _Activations | None = None) -> tuple[Pool, _Activations]:
        if skip is not None and is_sum(layer) and skip.tensor.exponent < source.tensor.exponent:
            source, skip = skip, source  # the coarser one is added
        real = layer.run(source.real, None if skip is None else skip.real)
        target = self._tensor(layer.name, real)
        if layer.kind == "max":
            gain = Gain(1, 0)
            sums = reduce(np.maximum, taps(source.counts, layer, self._counts(source.tensor)[0]))
            offset = -source.tensor.zero_point
        else:
            # A finer scale where averaging leaves only small values.
            mean = mean_gain(layer, self.scales.factors, self.config)
            gain = Gain(mean.multiplier, mean.shift + target.exponent - source.tensor.exponent)
            if gain.shift > self.config.max_gain_shift:
                raise QuantizeError(f"{layer.name}: its output's scale is 2**{gain.shift} times its input's, more than "
                                    f"acc_bits = {self.config.acc_bits} can shift")
            sums = reduce(np.add, taps(source.counts, layer))
            offset = -source.tensor.zero_point * layer.taps
        node = Pool(**self._geometry(layer, source, skip), **self._clamp(layer, target),
                    bias=np.full(target.channels, offset, dtype=np.int64),
                    multiplier=np.full(target.channels, gain.multiplier, dtype=np.int64),
                    shift=np.full(target.channels, gain.shift, dtype=np.int64),
                    kind="max" if layer.kind == "max" else "sum")
        after, saturation = self._requantize(layer, node, target, sums, real, skip)
        self.reports.append(LayerReport(layer.name, layer.kind, None, sqnr_db(real, after.counts * after.unit), None,
                                        saturation, target.exponent))
        return node, after

    # Convolutions ------------------------------------------------------------------------------------------------

    def _conv(self, layer: FloatConv, choice: QuantizeConfig, source: _Activations,
              skip: _Activations | None = None) -> tuple[Conv, _Activations]:
        linear = layer.linear(source.real)
        node, steps = self._node(layer, choice, linear, source, skip)
        real = np.clip(linear if skip is None else linear + skip.real, layer.low, layer.high)
        after, saturation = self._apply(layer, node, real, source, skip)
        levels = node.weights.reshape(len(steps), -1)
        weights, quantized = layer.weights.reshape(levels.shape), levels * steps[:, None]
        self.reports.append(LayerReport(
            layer.name, "conv", sqnr_db(weights, quantized), sqnr_db(real, after.counts * after.unit),
            float((levels == 0).mean()), saturation, after.tensor.exponent, correlation(weights, quantized),
            level_use(levels)))
        return node, after

    def _choice(self, index: int, layer: FloatConv, made: dict[str, _Activations]) -> QuantizeConfig:
        """How to quantize a layer: the configuration, or what does best of several trials.

        Each is fitted to some of the calibration inputs, and judged by the others: the layer's integers as they would
        be, and from there on the float network, against the float network's output. An output that errs less is not
        enough, neither is one that errs less on what it was fitted to.
        """
        if self.config.method != "best":
            return self.config
        trials = [replace(self.config, **trial) for trial in TRIALS.values()]
        count = len(made[layer.sources[0]].real)
        every = min(JUDGES, count)
        judges = np.arange(count) % every == every - 1
        if passes_on(layer) or judges.all():
            return trials[0]
        train, test = ([made[name].part(part) for name in layer.sources] for part in (~judges, judges))
        linear = layer.linear(train[0].real)
        real = layer.run(*(source.real for source in test))
        live = {name: at.part(judges) for name, at in made.items()}
        aim = self._rest(index, {**{name: at.real for name, at in live.items()}, layer.name: real})
        values = {name: at.counts * at.unit for name, at in live.items()}

        def error(trial: QuantizeConfig) -> float:
            node, _ = self._node(layer, trial, linear, *train)
            after, _ = self._apply(layer, node, real, *test)
            return float(np.square(self._rest(index, {**values, layer.name: after.counts * after.unit}) - aim).sum())

        return min(trials, key=error)

    def _rest(self, index: int, values: dict[str, Float64Array]) -> Float64Array:
        """The output of the float network, given all tensors that the layers after one of its layers read."""
        last, output = self.network.last_readers(), self.network.layers[-1].name
        for at, layer in enumerate(self.network.layers[index + 1 :], index + 1):
            values[layer.name] = layer.run(*(values[name] for name in layer.sources))
            values = {name: kept for name, kept in values.items() if last.get(name, -1) > at or name == output}
        return values[output]

    def _node(self, layer: FloatConv, choice: QuantizeConfig, linear: Float64Array, source: _Activations,
              skip: _Activations | None = None) -> tuple[Conv, Float64Array]:
        """Quantize a layer whose output, but for addition and clamp, is ``linear``; also returns the steps."""
        config, factor, fmt = self.config, self.scales.factors[layer.name], self.config.format_of(layer)
        mean = linear.mean(axis=(0, 2, 3))
        target = self._tensor(layer.name, linear)
        drop = 0 if skip is None else target.exponent - skip.tensor.exponent
        weights = layer.weights.reshape(len(layer.weights), -1)
        lattice = StepLattice(config.gain_terms, config.max_gain_shift, _unit(target, factor) / source.unit, drop)
        # A step so small that the bias alone would overflow is no choice, however small the weights.
        least = np.maximum(np.abs(layer.bias), np.abs(mean)) / source.unit / (self.limit / 4)
        lowest = np.minimum(np.searchsorted(lattice.steps, least), len(lattice.steps) - 1)
        lowest = lowest.reshape(layer.groups, -1)
        fit = self._fit_sums(layer, choice, source, fmt, lattice, lowest)
        if choice.method == "adaround" and not passes_on(layer) and layer.matrices.shape[2] > FEW_INPUTS:
            fit = self._learned(layer, choice, fit, linear, source, skip, fmt, lattice, lowest)
        levels, index = fit.levels.reshape(weights.shape), fit.index.reshape(-1)
        multiplier, shift, steps = lattice.multipliers[index], lattice.shifts[index], lattice.steps[index]
        sums = self._sums(layer, levels, source)
        offset = layer.bias / (source.unit * steps)
        if config.bias_correction:
            offset = mean / (source.unit * steps) - sums.mean(axis=(0, 2, 3))
        offset = round_half_up(offset).astype(np.int64)

        clamp = self._clamp(layer, target)
        ends = clamp["low"] - target.zero_point, clamp["high"] - target.zero_point
        if skip is not None:  # no skip tensor brings what lies beyond back into the range
            ends = -2 << config.act_bits, 2 << config.act_bits
        unit = _unit(target, factor)
        for channel in np.flatnonzero(constant_channels(weights, source.unit, unit, config.act_bits)):
            count = int(np.clip(round_half_up(mean[channel] / unit), *ends))
            levels[channel], offset[channel], shift[channel] = self._constant(count, levels.shape[1], fmt, ends, drop)
            multiplier[channel], steps[channel] = 1, lattice.unit / 2.0 ** shift[channel]
        node = Conv(**self._geometry(layer, source, skip), **clamp,
                    bias=offset - source.tensor.zero_point * levels.sum(axis=1), multiplier=multiplier, shift=shift,
                    weights=levels.reshape(layer.weights.shape).astype(np.int32), groups=layer.groups,
                    format=None if fmt == config.format else fmt)
        self._check_sums(layer, levels, node.bias)
        return node, steps

    def _apply(self, layer: FloatConv, node: Conv, real: Float64Array, source: _Activations,
               skip: _Activations | None = None) -> tuple[_Activations, float]:
        """What a quantized layer makes of its inputs, beside the float layer's ``real``; and the share that saturates.
        """
        levels = node.weights.reshape(len(node.weights), -1).astype(np.int64)
        bias = node.bias + source.tensor.zero_point * levels.sum(axis=1)
        sums = self._sums(layer, levels, source) + bias[:, None, None]
        return self._requantize(layer, node, self._tensor(layer.name, real), sums, real, skip)

    def _fit_sums(self, layer: FloatConv, choice: QuantizeConfig, source: _Activations, fmt: WeightFormat,
                  lattice: StepLattice, lowest: Int64Array) -> Fit:
        """Choose levels and steps, coarser ones where sums would else not fit the accumulators.

        Formats with a wide range lose a bit or two by that; others could lose most of their levels.
        """
        fit = self._fit(layer, choice, source, fmt, lattice, lowest)
        steps, excess = lattice.steps[fit.index], self._bound(layer, fit, source, lattice) / (self.limit * SUMS_SHARE)
        if not 1 < excess.max() <= fmt.max_magnitude / MIN_MAGNITUDE:
            return fit
        coarser = np.minimum(np.searchsorted(lattice.steps, steps * excess), len(lattice.steps) - 1)
        return self._fit(layer, choice, source, fmt, lattice, np.where(excess > 1, coarser, lowest))

    def _fit(self, layer: FloatConv, choice: QuantizeConfig, source: _Activations, fmt: WeightFormat,
             lattice: StepLattice, lowest: Int64Array) -> Fit:
        """Choose levels and steps, given what the integer network feeds the layer."""
        inputs = layer.matrices.shape[2]
        highest = None
        if choice.steps != "error" and not passes_on(layer):
            rule = rule_steps(layer.weights.reshape(len(layer.weights), -1), fmt, choice.steps)
            lowest = highest = np.maximum(lattice.nearest(rule.reshape(lowest.shape)), lowest)
        if choice.method == "nearest" or passes_on(layer):
            power = np.stack([tap.var(axis=(0, 2, 3)) for tap in taps(source.counts, layer)], axis=1)
            return fit_nearest(layer.matrices, power.reshape(layer.groups, inputs), fmt, lattice, lowest, highest)
        if inputs > MAX_INPUTS:
            raise QuantizeError(f'{layer.name}: method "{choice.method}" takes at most {MAX_INPUTS} inputs per output '
                                f'channel, not {inputs}; use method "nearest"')
        total, real_total, count = np.zeros((layer.groups, inputs, 1)), np.zeros((layer.groups, inputs, 1)), 0
        moment, cross = np.zeros((2, layer.groups, inputs, inputs))
        for (_, part), (_, real) in zip(patches(source.counts, layer), patches(source.real / source.unit, layer),
                                        strict=True):
            total += part.sum(axis=2, keepdims=True)
            real_total += real.sum(axis=2, keepdims=True)
            count += part.shape[2]
            moment += part @ part.swapaxes(1, 2)
            cross += real @ part.swapaxes(1, 2)
        moment = moment / count - total * total.swapaxes(1, 2) / count**2
        cross = cross / count - real_total * total.swapaxes(1, 2) / count**2
        # Moments of few pixels and many inputs are mostly noise.
        damping = choice.damping * (1 + inputs / count)
        return fit_compensated(layer.matrices, moment, cross, fmt, lattice, lowest, highest, damping=damping)

    def _learned(self, layer: FloatConv, choice: QuantizeConfig, fit: Fit, linear: Float64Array, source: _Activations,
                 skip: _Activations | None, fmt: WeightFormat, lattice: StepLattice, lowest: Int64Array) -> Fit:
        """Learn the rounding of a layer, on a sample of its pixels, from what ``"gptq"`` made of it."""
        from .rounding import BATCH, LayerOutputs, fit_learned

        groups, inputs, total = layer.groups, layer.matrices.shape[2], linear[:, 0].size
        chosen = np.zeros(total, dtype=bool)
        most = max(BATCH, min(PIXELS, PIXEL_VALUES // (groups * inputs)))
        chosen[np.random.default_rng(0).permutation(total)[:most]] = True

        def pixels(values: Float64Array) -> Float64Array:
            return values.transpose(1, 0, 2, 3).reshape(groups, -1, total)[:, :, chosen]

        each = total // len(linear)
        x = source.unit * np.concatenate([part[:, :, chosen[samples.start * each : samples.stop * each]]
                                          for samples, part in patches(source.counts, layer)], axis=2)
        wanted, base = pixels(linear), layer.bias
        if self.config.bias_correction:
            x -= x.mean(axis=2, keepdims=True)
            base = linear.mean(axis=(0, 2, 3))
        base = np.broadcast_to(base.reshape(groups, -1, 1), wanted.shape)
        if skip is not None:
            base, wanted = base + pixels(skip.counts) * skip.unit, wanted + pixels(skip.real)
        outputs = LayerOutputs(x.astype(np.float32), base.astype(np.float32),
                               np.clip(wanted, layer.low, layer.high).astype(np.float32), layer.low, layer.high)
        highest = fit.index if choice.steps != "error" else np.full_like(fit.index, len(lattice.steps) - 1)
        learned = fit_learned(fit, layer.matrices, outputs, fmt, lattice, np.minimum(lowest, highest), highest,
                              damping=choice.damping * (1 + inputs / total))
        # Sums that were made to fit the accumulators shall still do so.
        worse = self._bound(layer, learned, source, lattice) > np.maximum(self._bound(layer, fit, source, lattice),
                                                                          self.limit * SUMS_SHARE)
        return Fit(np.where(worse[:, :, None], fit.levels, learned.levels), np.where(worse, fit.index, learned.index))

    def _bound(self, layer: FloatConv, fit: Fit, source: _Activations, lattice: StepLattice) -> Int64Array:
        """Bounds of a fit's sums, before biases are corrected, (groups, channels)."""
        steps = lattice.steps[fit.index]
        offset = round_half_up(layer.bias.reshape(steps.shape) / (source.unit * steps)).astype(np.int64)
        return sum_bounds(fit.levels, offset - source.tensor.zero_point * fit.levels.sum(axis=2), self.config.act_bits)

    def _constant(self, count: int, inputs: int, fmt: WeightFormat, ends: tuple[int, int],
                  drop: int) -> tuple[Int64Array, int, int]:
        """Levels, bias and gain shift, at least ``drop``, of a channel that is constant.

        ``ends`` are the counts of the clamp.

        With a zero among the levels that is exact. Without one the smallest weights remain, signs alternating, and a
        large bias with a gain as small drowns them: exactly at the ends of the clamp (a dead ReLU) and in layers that
        are not too deep, else to one code.
        """
        smallest = min(abs(level) for level in fmt.levels)
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
        bound = int(sum_bounds(levels, bias, self.config.act_bits).max())
        if bound >= self.limit:
            raise QuantizeError(f"{layer.name}: sums reach {bound}, more than acc_bits = {self.config.acc_bits} holds; "
                                f"acc_bits = {bound.bit_length() + 1} would do")

    # Both --------------------------------------------------------------------------------------------------------

    def _tensor(self, name: str, real: Float64Array) -> Tensor:
        """A tensor for these values (N, C, H, W), with the scale that was planned."""
        _, channels, height, width = real.shape
        return Tensor(name, channels, height, width, self.scales.exponents[name],
                      zero_point(self.config.act_bits, signed=self.scales.signed[name]))

    def _counts(self, tensor: Tensor) -> tuple[int, int]:
        """Smallest and largest code less the zero point."""
        return self.range[0] - tensor.zero_point, self.range[1] - tensor.zero_point

    def _geometry(self, layer: FloatLayer, source: _Activations, skip: _Activations | None) -> dict[str, Any]:
        return {"name": layer.name, "input": source.tensor.name, "output": layer.name,
                "skip": None if skip is None else skip.tensor.name, "kernel": layer.kernel, "stride": layer.stride,
                "padding": layer.padding, "dilation": layer.dilation}

    def _clamp(self, layer: FloatLayer, target: Tensor) -> dict[str, Any]:
        """The activation function as the lowest and the highest output code."""
        unit = _unit(target, self.scales.factors[layer.name])
        ends = np.clip(np.asarray([layer.low, layer.high]) / unit, *self._counts(target))
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
