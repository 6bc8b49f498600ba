"""A quantized network as a PyTorch module: in float, in the integers' own arithmetic with gradients, or as integers.

Post-training quantization settles the scales of all tensors and a first set of integers. From there the parameters of
the module are real weights and biases, and rules (:mod:`nomul.quantize.train.rules`) make levels and steps of them.
In mode ``"fake"`` every forward pass makes these integers anew and computes with them on real numbers that floating
point holds exactly, layer by layer in the narrowest type that does. So what training sees is what the machine
computes, to the bit; gradients pass the roundings as if there were none.
"""

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from nomul.frontend import INPUT, FloatConcat, FloatConv, FloatGraph, FloatLayer, FloatOperation, FloatPool
from nomul_hw.arithmetic import act_range, round_half_up

from ..graph import Concat, Conv, Graph
from .config import QuantizeConfig, QuantizeError, passes_on
from .fake_quant import FakeLayer, FakeQuant, Join, convolve, largest_count, quantize_real
from .lattice import StepLattice
from .network import as_config, as_float_graph, constant_channels, quantize_planned, sum_bounds
from .report import QuantizeReport
from .train.rules import Start, StraightThrough, WeightRule

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Mode", "QuantizedNetwork", "quantize"]

Float64Array = npt.NDArray[np.float64]

Mode = Literal["float", "fake", "integer"]

#: A bias moves by this share of its output's codes when its parameter moves by 1: AdamW moves all at one pace.
BIAS_PACE = 1 / 8


def quantize(network: "nn.Module | FloatGraph", calibration: "torch.Tensor | npt.ArrayLike",
             config: QuantizeConfig | None = None, **choices: Any) -> "QuantizedNetwork":
    """Quantize a network to integers; the result can be used at once, or trained.

    Parameters
    ----------
    network : nn.Module or FloatGraph
        The float network; a module is imported first, and stays as it is.
    calibration : array or Tensor of real numbers, shape (N, C, H, W), (N, C, L) or (N, features)
        Typical inputs, a few hundred as a rule.
    config : QuantizeConfig, optional
        Format and method.
    **choices
        Fields of :class:`QuantizeConfig`, such as ``format="ternary"``: instead of ``config``, or to change it.

    Returns
    -------
    QuantizedNetwork
        In mode ``"fake"``; its ``graph`` is what :func:`quantize_graph` returns.

    Raises
    ------
    nomul.frontend.UnsupportedError
        If the machine cannot run the module.
    QuantizeError
        If the network cannot be quantized as asked for.
    """
    config = as_config(config, choices)
    floats, real = as_float_graph(network, calibration)
    graph, report, prepared, scales = quantize_planned(floats, real, config)
    return QuantizedNetwork(prepared, graph, report, config, scales.factors)


class QuantizedNetwork(nn.Module):
    """A quantized network that computes, and that can be trained.

    Inputs and outputs are real numbers in all modes: (batch, *input_shape) to (batch, *output_shape), float32. In mode

    - ``"fake"`` the parameters make the integers of ``graph`` and the module computes with them on real numbers: the
      same outputs as ``"integer"``, to the bit, and gradients;
    - ``"integer"`` it runs ``graph``, without gradients;
    - ``"float"`` it is the float network that was quantized, batch norms folded. Training does not change that.

    Parameters
    ----------
    network : FloatGraph
        The float network, as :func:`nomul.quantize.network.quantize_planned` returns it.
    start : Graph
        What post-training quantization made of it.
    report : QuantizeReport
        What that cost, layer by layer; training does not bring it up to date.
    config : QuantizeConfig
    factors : mapping of str to float
        What the counts of each layer's output stand for beyond a power of two.
    rule : WeightRule
        How layers make levels of weights.
    rules : mapping of str to WeightRule
        Other rules for some layers, by patterns of their names; the first that matches decides.

    Raises
    ------
    QuantizeError
        If a rule does not suit its layer's format; the message names the layer.
    """

    def __init__(self, network: FloatGraph, start: Graph, report: QuantizeReport, config: QuantizeConfig,
                 factors: Mapping[str, float], rule: WeightRule | None = None,
                 rules: Mapping[str, WeightRule] | None = None) -> None:
        super().__init__()
        self.network, self.start, self.report, self.config, self.factors = network, start, report, config, dict(factors)
        self.rule, self.rules = StraightThrough() if rule is None else rule, dict(rules or {})
        names = [node.name for node in start.nodes if isinstance(node, Conv)]
        for pattern in self.rules:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise QuantizeError(f"No layer with weights has a name like {pattern!r}; there are {', '.join(names)}")
        self.layers = nn.ModuleList(self._layer(node, layer)
                                    for node, layer in zip(start.nodes, network.layers, strict=True))
        self.reference = _FloatNetwork(network)
        self._mode: Mode = "fake"

    def _layer(self, node: Any, layer: FloatOperation) -> nn.Module:
        if isinstance(node, Concat):
            return Join()
        if not isinstance(node, Conv):
            return FakeLayer(self.start, node, torch.float32)
        assert isinstance(layer, FloatConv)
        rule = next((rule for pattern, rule in self.rules.items() if fnmatchcase(node.name, pattern)), self.rule)
        factors = (self.factors[INPUT if node.input == self.start.input else node.input], self.factors[node.name])
        try:
            return TrainedConv(layer, self.start, node, self.config, factors, rule)
        except QuantizeError as error:
            raise QuantizeError(f"{node.name}: {error}") from None

    @property
    def mode(self) -> Mode:
        """What a forward pass computes: ``"float"``, ``"fake"`` or ``"integer"``."""
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        if mode not in get_args(Mode):
            raise QuantizeError(f"Mode must be one of {', '.join(get_args(Mode))}, not {mode!r}")
        self._mode = mode

    @property
    def graph(self) -> Graph:
        """The integers that the parameters make now.

        Raises
        ------
        QuantizeError
            If sums do not fit the accumulators for some input; the message names the layer.
        """
        nodes = tuple(layer.integers() if isinstance(layer, TrainedConv) else node
                      for node, layer in zip(self.start.nodes, self.layers, strict=True))
        return replace(self.start, nodes=nodes)

    def with_rule(self, rule: WeightRule, rules: Mapping[str, WeightRule] | None = None) -> "QuantizedNetwork":
        """A new network that begins at the same post-training quantization, with other rules; see the class.

        Rules that have no use for its integers begin at the float weights.
        """
        return QuantizedNetwork(self.network, self.start, self.report, self.config, self.factors, rule, rules)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute real outputs (batch, *output_shape) from real inputs, in the mode that is set."""
        source = self.start.tensor(self.start.input)
        if x.ndim < 2 or x[0].numel() != np.prod(source.shape) or (x.ndim == 4 and tuple(x.shape[1:]) != source.shape):
            raise QuantizeError(f"Inputs must be (samples, {source.channels}, {source.height}, {source.width}), not "
                                f"{tuple(x.shape)}")
        x = x.reshape(-1, *source.shape)
        if self.mode == "float":
            y: torch.Tensor = self.reference(x.float())
        elif self.mode == "integer":
            with torch.no_grad():
                y = FakeQuant(self.graph).to(x.device)(x).float()
        else:
            y = self.tensors(x)[self.start.output]
        return y.reshape(len(x), *self.start.output_shape)

    def tensors(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Every tensor of the graph as mode ``"fake"`` computes it, (batch, channels, height, width) in reals, by name.
        """
        source = self.start.tensor(self.start.input)
        reals = {source.name: quantize_real(x.double(), source, act_range(self.start.act_bits)).float()}
        for node, layer in zip(self.start.nodes, self.layers, strict=True):
            reals[node.output] = layer(*(reals[name] for name in node.sources))
        return reals

    # What an optimizer wants to know ---------------------------------------------------------------------------------

    def _trained(self) -> "Iterator[TrainedConv]":
        return (layer for layer in self.layers if isinstance(layer, TrainedConv) and not bool(layer.frozen.all()))

    def weights(self) -> list[nn.Parameter]:
        """The real weights, of rms 1 per channel to begin with."""
        return [layer.weight for layer in self._trained()]

    def thresholds(self) -> list[nn.Parameter]:
        """What rules train by threshold descent."""
        return [layer.learned[name] for layer in self._trained() for name in layer.rule.thresholds]

    def others(self) -> list[nn.Parameter]:
        """Biases, and what else rules train."""
        return [parameter for layer in self._trained()
                for parameter in (layer.bias, *(layer.learned[name] for name in sorted(layer.learned)
                                                if name not in {*layer.rule.thresholds, *layer.rule.kept}))]

    @torch.no_grad()
    def settle(self, generator: torch.Generator) -> None:
        """Let rules have their way with the weights after an optimizer's step; draws come from the generator."""
        for layer in self._trained():
            layer.rule.settle(layer.weight.view(len(layer.weight), -1), dict(layer.learned), layer.format, generator)


class TrainedConv(nn.Module):
    """A convolution or linear layer whose integers are made of real parameters.

    Parameters
    ----------
    layer : FloatConv
        The float layer.
    graph : Graph
    node : Conv
        What post-training quantization made of it.
    config : QuantizeConfig
    factors : (float, float)
        Of the input and the output.
    rule : WeightRule

    Attributes
    ----------
    weight : Parameter, float32, (out_channels, in_channels / groups, kernel height, kernel width)
        In units of ``size``, of which every channel has one.
    bias : Parameter, float64, (out_channels,)
        In units of an eighth of the output's codes.
    learned : ParameterDict
        What the rule trains, or keeps, beside the weights.
    frozen : bool Tensor, (out_channels,)
        Channels that stay as they are: constants, and those that only pass an input on.
    """

    size: torch.Tensor
    frozen: torch.Tensor
    steps: torch.Tensor
    middles: torch.Tensor
    gains: torch.Tensor
    multipliers: torch.Tensor
    shifts: torch.Tensor
    kept_levels: torch.Tensor
    kept_index: torch.Tensor
    kept_offset: torch.Tensor

    def __init__(self, layer: FloatConv, graph: Graph, node: Conv, config: QuantizeConfig,
                 factors: tuple[float, float], rule: WeightRule) -> None:
        super().__init__()
        self.node, self.rule, self.format = node, rule, graph.format_of(node)
        self.source, self.target = graph.tensor(node.input), graph.tensor(node.output)
        self.act_bits, self.acc_limit = graph.act_bits, 1 << (config.acc_bits - 1)
        self.drop = 0 if node.skip is None else graph.skip_drop(node)
        #: Largest count of the skip tensor.
        self.skip_most = 0 if node.skip is None else largest_count(graph.act_bits, graph.tensor(node.skip).zero_point)
        self.in_unit, self.out_unit = (factor * 2.0**tensor.exponent for factor, tensor
                                       in zip(factors, (self.source, self.target), strict=True))
        lattice = StepLattice(graph.gain_terms, config.max_gain_shift, self.out_unit / self.in_unit, self.drop)
        index = _lattice_index(lattice, node)

        floats, levels = layer.weights.reshape(len(layer.weights), -1), node.weights.reshape(len(node.weights), -1)
        frozen = constant_channels(floats, self.in_unit, self.out_unit, graph.act_bits) | passes_on(layer)
        size = np.sqrt(np.square(floats).mean(axis=1))
        size[size == 0] = 1.0
        offset = node.bias + self.source.zero_point * levels.sum(axis=1, dtype=np.int64)
        self._keep("size", size)
        self._keep("frozen", frozen)
        self._keep("steps", lattice.steps)
        self._keep("middles", (np.log2(lattice.steps[1:]) + np.log2(lattice.steps[:-1])) / 2)
        self._keep("multipliers", lattice.multipliers)
        self._keep("shifts", lattice.shifts)
        # Real numbers per real number, without the factors: a power of two times an integer.
        self._keep("gains", np.ldexp(lattice.multipliers.astype(np.float64),
                                     self.target.exponent - self.source.exponent - lattice.shifts))
        for name, values in (("levels", levels.astype(np.float64)), ("index", index), ("offset", offset)):
            self._keep(f"kept_{name}", values)

        weights, learned = rule.start(Start(
            self.format, torch.from_numpy(floats / size[:, None]), torch.from_numpy(levels.astype(np.float64)),
            torch.from_numpy(lattice.steps[index] / size)))
        self.weight = nn.Parameter(weights.float().reshape(node.weights.shape))
        self.learned = nn.ParameterDict({name: nn.Parameter(value.float(), requires_grad=name not in rule.kept)
                                         for name, value in learned.items()})
        self.bias = nn.Parameter(torch.from_numpy(layer.bias / self.bias_unit))
        with torch.no_grad():
            made, _ = rule.quantize(self.weight.flatten(1), dict(self.learned), self.format, self._snap)
        if torch.equal(made.double(), self.kept_levels):
            # Post-training quantization corrected the biases for these levels, and for no others.
            self.bias.data.copy_(torch.from_numpy(offset * lattice.steps[index] * self.in_unit / self.bias_unit))

    def _keep(self, name: str, values: npt.ArrayLike) -> None:
        # All of it follows from the network that training began with: a checkpoint has no need of it.
        self.register_buffer(name, torch.from_numpy(np.array(values)), persistent=False)

    @property
    def bias_unit(self) -> float:
        """What a bias parameter of 1 is worth."""
        return BIAS_PACE * self.out_unit * (1 << self.act_bits)

    def _snap(self, steps: torch.Tensor) -> torch.Tensor:
        """Move steps, in units of ``size``, onto the lattice."""
        wanted = steps.detach().double() * self.size  # one per channel, be it the same for all
        # A step so small that the bias alone would overflow is no choice, however small the weights.
        least = self.bias.detach().abs() * (self.bias_unit / self.in_unit / (self.acc_limit / 4))
        index = torch.maximum(self._index(wanted), torch.searchsorted(self.steps, least.clamp(max=self.steps[-1])))
        return steps + ((self.steps[index] / self.size).to(steps) - steps.detach())

    def _index(self, steps: torch.Tensor) -> torch.Tensor:
        return torch.bucketize(torch.log2(steps.clamp(min=float(self.steps[0]) / 2)), self.middles)

    def _integers(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Levels (channels, inputs), steps and their indices, and offsets: biases as the accumulator has them."""
        levels, steps = self.rule.quantize(self.weight.flatten(1), dict(self.learned), self.format, self._snap)
        index = torch.where(self.frozen, self.kept_index, self._index(steps.detach().double() * self.size))
        levels = torch.where(self.frozen[:, None], self.kept_levels.to(levels), levels)
        offset = torch.floor(self.bias.detach() * (self.bias_unit / self.in_unit) / self.steps[index] + 0.5)
        return levels, steps, index, torch.where(self.frozen, self.kept_offset.double(), offset)

    def forward(self, x: torch.Tensor, skip: torch.Tensor | None = None) -> torch.Tensor:
        """(N, C, H, W) on the grid of the input to (N, C', H', W') on that of the output, float32."""
        levels, steps, index, offset = self._integers()
        gains = self.gains[index]
        # The values are exact, the gradients those of the real step and bias.
        slope = steps.double() * (self.size * (self.in_unit / self.out_unit * 2.0**(
            self.target.exponent - self.source.exponent)))
        gains = gains + (slope - slope.detach())
        line = self.bias * (self.bias_unit / self.out_unit * 2.0**self.target.exponent)
        bias = offset * gains.detach() * 2.0**self.source.exponent + (line - line.detach())
        dtype = self._dtype(levels.detach(), index, offset)
        weights = (levels.to(dtype) * gains.to(dtype)[:, None]).reshape(self.weight.shape)
        # What CPUs convolve fastest.
        weights = weights.contiguous(memory_format=torch.channels_last)
        y = convolve(self.node, x.to(dtype), weights, bias.to(dtype), self.node.groups)
        y = y if skip is None else y + skip
        return quantize_real(y, self.target, (self.node.low, self.node.high)).float()

    def _dtype(self, levels: torch.Tensor, index: torch.Tensor, offset: torch.Tensor) -> torch.dtype:
        """The narrowest type that holds all sums exactly: multiples of ``2**-shift`` of a code."""
        most = largest_count(self.act_bits, self.source.zero_point)
        reach = levels.double().abs().sum(1) * most + offset.abs()
        # The skip tensor, and the half that rounds.
        beside = (self.skip_most + 1) * torch.exp2((self.shifts[index] - self.drop).double())
        total = reach * self.multipliers[index] + beside
        return torch.float32 if 2 * float(total.max()) < 1 << 24 else torch.float64

    @torch.no_grad()
    def integers(self) -> Conv:
        """The node that the parameters make now."""
        levels, _, index, offset = (part.cpu().numpy() for part in self._integers())
        levels, offset = levels.astype(np.int64), round_half_up(offset).astype(np.int64)
        bias = offset - self.source.zero_point * levels.sum(axis=1)
        self._check_sums(levels, bias)
        return replace(self.node, weights=levels.reshape(self.node.weights.shape).astype(np.int32), bias=bias,
                       multiplier=self.multipliers.cpu().numpy()[index], shift=self.shifts.cpu().numpy()[index])

    def _check_sums(self, levels: npt.NDArray[np.int64], bias: npt.NDArray[np.int64]) -> None:
        bound = int(sum_bounds(levels, bias, self.act_bits).max())
        if bound >= self.acc_limit:
            raise QuantizeError(f"{self.node.name}: sums reach {bound}; acc_bits = {bound.bit_length() + 1} would do")


class _FloatNetwork(nn.Module):
    """The float graph in PyTorch, float32, for comparison and as a teacher."""

    def __init__(self, network: FloatGraph) -> None:
        super().__init__()
        self.network = network
        for at, layer in enumerate(network.layers):
            if isinstance(layer, FloatConv):
                for name, values in (("weights", layer.weights), ("bias", layer.bias)):
                    self.register_buffer(f"{name}{at}", torch.from_numpy(values).float(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values, last = {INPUT: x}, self.network.last_readers()
        for at, layer in enumerate(self.network.layers):
            x = values[layer.name] = self._run(at, layer, *(values[name] for name in layer.sources))
            values = {name: kept for name, kept in values.items() if last.get(name, -1) > at}
        return x

    def _run(self, at: int, layer: FloatOperation, *sources: torch.Tensor) -> torch.Tensor:
        if isinstance(layer, FloatConcat):
            return torch.cat(sources, dim=1)
        x = sources[0]
        top, left, bottom, right = layer.padding
        sides = (left, right, top, bottom)
        if isinstance(layer, FloatConv):
            y = functional.conv2d(functional.pad(x, sides), self.get_buffer(f"weights{at}"),
                                  self.get_buffer(f"bias{at}"), layer.stride, 0, layer.dilation, layer.groups)
        else:
            assert isinstance(layer, FloatPool)
            y = self._pool(layer, x, sides)
        return self._finish(layer, y, *sources[1:])

    @staticmethod
    def _pool(layer: FloatPool, x: torch.Tensor, sides: tuple[int, int, int, int]) -> torch.Tensor:
        if layer.kind == "max":
            return functional.max_pool2d(functional.pad(x, sides, value=-torch.inf), layer.kernel, layer.stride,
                                         dilation=layer.dilation)
        ones = torch.full((x.shape[1], 1, *layer.kernel), 1 / layer.divisor, dtype=x.dtype, device=x.device)
        return functional.conv2d(functional.pad(x, sides), ones, None, layer.stride, 0, layer.dilation, x.shape[1])

    @staticmethod
    def _finish(layer: FloatLayer, y: torch.Tensor, skip: torch.Tensor | None = None) -> torch.Tensor:
        return (y if skip is None else y + skip).clamp(layer.low, layer.high)


def _lattice_index(lattice: StepLattice, node: Conv) -> npt.NDArray[np.int64]:
    """Where the gains of a node stand on the lattice."""
    at = {gain: index for index, gain in enumerate(zip(lattice.multipliers.tolist(), lattice.shifts.tolist(),
                                                       strict=True))}
    return np.asarray([at[gain] for gain in zip(node.multiplier.tolist(), node.shift.tolist(), strict=True)])
