"""Where the accuracy went: every layer's part in the error of a quantized network.

Three networks run side by side on the same inputs: the float network, the integer network, and the integer network as
real numbers in PyTorch (:mod:`nomul.quantize.fake_quant`). The last two must agree in every code. What a layer's
output lacks by then says little about the layer itself. That is found by quantizing one thing at a time, a layer's
weights or the codes of its output, with all else in float, and looking at the network's output; and by quantizing layer
after layer, with the rest in float, since weights are fitted to make up for the errors of those before.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nomul.frontend import INPUT, FloatConv, FloatGraph, FloatLayer, FloatPool
from nomul.graph import Concat, Conv, Graph, Node, Pool, Tensor
from nomul_hw.arithmetic import act_range, requantize, round_half_up

from .config import QuantizeError
from .equalize import equalize
from .network import as_float_graph, imported
from .report import correlation, decibels, level_use, sqnr_db

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Attribution", "LayerAttribution", "attribute", "channel_steps", "changed_output", "real_conv",
           "unit_values"]

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

#: Activations of all tensors that are held at a time; samples beyond them follow in further parts.
PART_VALUES = 1 << 24

#: Beyond every code.
FAR = 1 << 60

#: Channels of weights this much larger than in float were not made by rounding.
GROWN = 2.0

#: A channel whose values move by less than this part of the tensor's largest is constant.
STILL = 2.0**-40


@dataclass(frozen=True)
class LayerAttribution:
    """One layer's part in the error.

    All ratios of signal to noise are in dB; infinite where nothing is lost, None where there is nothing to measure.

    Parameters
    ----------
    name, kind : str
        The layer; ``"input"``, ``"conv"``, ``"max"`` or ``"average"``.
    format : str or None
        Format of the weights.
    weights : int
        Number of weights.
    levels : mapping of int to int
        How many weights have each of the format's levels, ascending.
    weight_sqnr : float or None
        Power of the float weights over that of their error.
    rho : float or None
        Correlation of the float weights with the quantized ones, 0..1.
    growth : float or None
        The largest factor by which an output channel's weights are those of the float network: about 1, and less where
        a format is coarse; far more where the network was equalized and is compared with one that is not.
    fake_sqnr, integer_sqnr : float
        Power of the float network's tensor over that of the error so far, of fake quantization and of the integers.
    differences : int
        Codes in which these two differ: none, or there is a bug.
    from_weights, from_codes : float or None
        The same ratio at the network's output, if only this layer's weights and biases are quantized, and if only its
        output is rounded to codes.
    up_to_here : float
        The same, if the network runs in integers up to this layer, and in float after it.
    saturation : float
        Share of the output codes that the activation function would have let pass, but the code range does not.
    channels : int
        Output channels.
    dead, dead_float : int
        Channels whose codes are the same everywhere, and those for which that is true of the float network.
    """

    name: str
    kind: str
    format: str | None
    weights: int
    levels: Mapping[int, int]
    weight_sqnr: float | None
    rho: float | None
    growth: float | None
    fake_sqnr: float
    integer_sqnr: float
    differences: int
    from_weights: float | None
    from_codes: float | None
    up_to_here: float
    saturation: float
    channels: int
    dead: int
    dead_float: int

    @property
    def zeros(self) -> float | None:
        """Share of the weights that are 0."""
        return self.levels.get(0, 0) / self.weights if self.weights else None

    @property
    def unused(self) -> int:
        """Levels of the format that no weight has."""
        return sum(not count for count in self.levels.values())

    @property
    def entropy(self) -> float | None:
        """Bits per weight that an ideal code of the levels would take."""
        if not self.weights:
            return None
        shares = [count / self.weights for count in self.levels.values() if count]
        return abs(float(sum(share * np.log2(share) for share in shares)))

    @property
    def noise(self) -> float:
        """Power of the error that weights and codes bring to the network's output, over that of the output."""
        return sum(10 ** (-part / 10) for part in (self.from_weights, self.from_codes) if part is not None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {**asdict(self), "zeros": self.zeros, "unused": self.unused, "entropy": self.entropy,
                "noise": self.noise}


@dataclass(frozen=True)
class Attribution:
    """Every layer's part in the error of a network.

    Parameters
    ----------
    layers : tuple of LayerAttribution
        The input, then the layers that compute, in order of execution.
    samples : int
        Inputs that all figures are about.
    output_sqnr : float
        Power of the float network's output over that of the integer network's error, dB.
    agreement : float or None
        Share of the samples whose largest output is the same in float and in integers; None where an output is no
        vector.
    float_accuracy, integer_accuracy : float or None
        Share of the samples whose largest output is their label's, where there are labels.
    """

    layers: tuple[LayerAttribution, ...]
    samples: int
    output_sqnr: float
    agreement: float | None
    float_accuracy: float | None = None
    integer_accuracy: float | None = None

    @property
    def ok(self) -> bool:
        """Whether fake quantization and integers agree in every code."""
        return all(layer.differences == 0 for layer in self.layers)

    @property
    def parts_sqnr(self) -> float:
        """What :attr:`output_sqnr` would be if the errors of all layers simply added up."""
        noise = self.noise
        return -10 * float(np.log10(noise)) if noise else float("inf")

    @property
    def noise(self) -> float:
        """Power of all layers' errors at the network's output, over that of the output."""
        return sum(layer.noise for layer in self.layers)

    def share(self, part: float | None) -> float:
        """Share that a part (``from_weights`` or ``from_codes`` of a layer) has in the error of all, 0..1."""
        return 10 ** (-part / 10) / self.noise if part is not None and self.noise else 0.0

    @property
    def findings(self) -> tuple[str, ...]:
        """What is worth a look, in sentences, the gravest first."""
        return tuple(self._findings())

    def _findings(self) -> Iterator[str]:
        for layer in self.layers:
            if layer.differences:
                yield f"{layer.name}: {layer.differences:,} codes of fake quantization and integers differ: a bug"
        grown = [layer for layer in self.layers if layer.growth is not None and layer.growth > GROWN]
        if grown:
            most = max(grown, key=lambda layer: layer.growth or 0.0)
            yield (f"{most.name}: its integers stand for weights {most.growth:.1f} times those of the float network; "
                   f"if it was equalized, compare with what it was equalized to (--equalization, --calibration)")
        for layer in self.layers:
            if layer.weights and layer.levels.get(0, 0) == layer.weights:
                yield f"{layer.name}: all weights are 0"
        for layer in self.layers:
            if layer.dead > layer.dead_float:
                yield (f"{layer.name}: {layer.dead} of {layer.channels} output channels are constant, in float "
                       f"{layer.dead_float}")
        for layer in self.layers:
            if layer.saturation > 0.01:
                yield f"{layer.name}: {layer.saturation:.1%} of the output codes saturate"
        parts = [(self.share(part), layer.name, what) for layer in self.layers
                 for part, what in ((layer.from_weights, "weights"), (layer.from_codes, "output codes"))]
        for share, name, what in sorted(parts, reverse=True)[:3]:
            if share > 0.1:
                yield f"{name}: its {what} make {share:.0%} of what all parts cost on their own"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {**asdict(self), "ok": self.ok, "parts_sqnr": self.parts_sqnr, "findings": list(self.findings),
                "layers": [layer.to_dict() for layer in self.layers]}


def attribute(network: "nn.Module | FloatGraph", graph: Graph, inputs: "torch.Tensor | npt.ArrayLike",
              labels: npt.ArrayLike | None = None, *, equalization: float = 0.0,
              calibration: "torch.Tensor | npt.ArrayLike | None" = None,
              progress: Callable[[str], None] | None = None) -> Attribution:
    """Find out where the accuracy of a quantized network went.

    Parameters
    ----------
    network : nn.Module or FloatGraph
        The float network. Of a :class:`nomul.quantize.QuantizedNetwork` it is the one that its integers stand for,
        equalized if that was asked for.
    graph : Graph
        What quantization made of it.
    inputs : array or Tensor of real numbers, shape (N, C, H, W), (N, C, L) or (N, features)
        Typical inputs, some dozens as a rule; rather others than calibration saw.
    labels : array of int, shape (N,), optional
        Index of the output that should be the largest.
    equalization : float
        Of the :class:`nomul.quantize.QuantizeConfig` that the integers were made with: their layers stand for those of
        an equalized network, and are compared with these.
    calibration : array or Tensor of real numbers, optional
        The inputs that it was calibrated with; what equalization does depends on them.
    progress : callable, optional
        Called with what is being done.

    Raises
    ------
    nomul.frontend.UnsupportedError
        If the machine cannot run the module.
    QuantizeError
        If the integer network was not made from this float network, the inputs or labels do not suit it, or only one
        of ``equalization`` and ``calibration`` is there.
    """
    if bool(equalization) == (calibration is None):
        raise QuantizeError("An equalized network's report needs both: equalization, and the inputs that calibrated it")
    network, x = float_inputs(network, inputs)
    if calibration is not None:
        network = equalize(*as_float_graph(network, calibration), strength=equalization)
    classes = as_labels(network, labels, len(x))
    _check_match(network, graph)
    run = _Run(network, graph)
    total = sum(int(np.prod(tensor.shape)) for tensor in graph.tensors)
    size = max(1, PART_VALUES // total)
    for start in range(0, len(x), size):
        if progress:
            progress(f"samples {start + 1} to {min(start + size, len(x))} of {len(x)}")
        run.add(x[start : start + size])
    real, integer = np.concatenate(run.real_outputs), np.concatenate(run.integer_outputs)
    largest = real.argmax(axis=1), integer.argmax(axis=1)
    vector = is_vector(network)
    return Attribution(
        run.rows(), len(x), sqnr_db(real, integer),
        float((largest[0] == largest[1]).mean()) if vector else None,
        *((None, None) if classes is None else (float((found == classes).mean()) for found in largest)))


def float_inputs(network: "nn.Module | FloatGraph",
                 inputs: "torch.Tensor | npt.ArrayLike") -> tuple[FloatGraph, Float64Array]:
    """Import a module, if it is one, and bring its inputs to float64 (N, C, H, W).

    Raises
    ------
    QuantizeError
        If they do not suit the network.
    """
    if not isinstance(network, FloatGraph):
        from .module import QuantizedNetwork

        if isinstance(network, QuantizedNetwork):
            network = network.network
    array = np.asarray(inputs.detach().cpu() if hasattr(inputs, "detach") else inputs)
    if array.ndim < 2 or not len(array) or array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        raise QuantizeError(f"Inputs must be finite numbers of shape (N, C, H, W), (N, C, L) or (N, features), not "
                            f"{array.dtype}{array.shape}")
    return imported(network, array)


def is_vector(network: FloatGraph) -> bool:
    """Whether a sample's output is a vector of several values, so that one of them can be called the largest."""
    return 1 < max(network.output_shape) == int(np.prod(network.output_shape))


def as_labels(network: FloatGraph, labels: npt.ArrayLike | None, samples: int) -> Int64Array | None:
    """Check labels against a network's output.

    Raises
    ------
    QuantizeError
        If they are not one index per sample.
    """
    if labels is None:
        return None
    classes = np.asarray(labels)
    if not is_vector(network):
        raise QuantizeError(f"Labels go with a network whose output is a vector, not of shape {network.output_shape}")
    most = int(np.prod(network.output_shape))
    if classes.shape != (samples,) or classes.dtype.kind not in "iu" or classes.min() < 0 or classes.max() >= most:
        raise QuantizeError(f"Labels must be {samples} integers in 0..{most - 1}, one per input, not "
                            f"{classes.dtype}{classes.shape}")
    return classes.astype(np.int64)


# What integers stand for ---------------------------------------------------------------------------------------------


def unit_values(network: FloatGraph, graph: Graph) -> dict[str, float]:
    """What one count (a code less the zero point) of every tensor of a graph is worth, by the tensor's name.

    That is ``2**exponent``, but around an average whose gain the lattice cannot express: then the counts of its output
    are worth as much more as the gain is too small. What is added or concatenated has one scale. Input and output of
    the network are worth powers of two, and so is the first of the tensors that only depend on each other.
    """
    layers = {layer.name: layer for layer in network.layers}
    ties: dict[str, list[tuple[str, float]]] = {tensor.name: [] for tensor in graph.tensors}

    def tie(name: str, other: str, ratio: float) -> None:
        ties[name].append((other, ratio))
        ties[other].append((name, 1 / ratio))

    for node in graph.nodes:
        if isinstance(node, Concat):
            for name in node.inputs:
                tie(name, node.output, 1.0)
            continue
        layer = layers.get(node.name)
        if isinstance(node, Pool) and isinstance(layer, FloatPool):
            tie(node.input, node.output, 2.0 ** node.shift[0] / (node.multiplier[0] * layer.divisor))
        if node.skip is not None:
            tie(node.skip, node.output, 2.0 ** graph.skip_drop(node))
    units: dict[str, float] = {}
    for first in (graph.input, graph.output, *(tensor.name for tensor in graph.tensors)):
        if first in units:
            continue
        units[first] = 2.0 ** graph.tensor(first).exponent
        found = [first]
        for name in found:
            for other, ratio in ties[name]:
                if other not in units:
                    units[other] = units[name] * ratio
                    found.append(other)
    return units


def channel_steps(node: Conv, units: Mapping[str, float]) -> Float64Array:
    """What a weight level of 1 is worth in every output channel, (channels,)."""
    return np.ldexp(node.multiplier.astype(np.float64), -node.shift) * units[node.output] / units[node.input]


def real_conv(layer: FloatConv, node: Conv, graph: Graph, units: Mapping[str, float]) -> FloatConv:
    """The float layer with the weights and biases that its integers stand for."""
    steps = channel_steps(node, units)
    levels = node.weights.astype(np.float64)
    bias = node.bias + graph.tensor(node.input).zero_point * levels.sum(axis=(1, 2, 3))
    return replace(layer, weights=levels * steps[:, None, None, None], bias=bias * steps * units[node.input])


def changed_output(network: FloatGraph, values: Mapping[str, Float64Array],
                   changed: Mapping[str, Float64Array]) -> Float64Array:
    """Output (N, C, H, W) of a float network in which some layers' outputs, or the input, are others.

    Parameters
    ----------
    values : mapping of str to float64 array
        Output of every layer, and the input as :data:`nomul.frontend.INPUT`, as they were.
    changed : mapping of str to float64 array
        What some of them change to, by name.
    """
    now = dict(changed)
    for layer in network.layers:
        if layer.name not in now and not now.keys().isdisjoint(layer.sources):
            now[layer.name] = layer.run(*(now[read] if read in now else values[read] for read in layer.sources))
    last = network.layers[-1].name
    return now[last] if last in now else values[last]


def _check_match(network: FloatGraph, graph: Graph) -> None:
    """Refuse an integer network that is not this float network's."""
    layers = {layer.name: layer for layer in network.layers}
    nodes = {node.name: node for node in graph.nodes}
    wrong = "The integer network was not made from this float network: "
    if graph.tensor(graph.input).shape != network.input_shape:
        raise QuantizeError(f"{wrong}its input is {graph.tensor(graph.input).shape}, not {network.input_shape}")
    for name, layer in layers.items():
        node = nodes.get(name)
        if isinstance(layer, FloatConv):
            same = isinstance(node, Conv) and layer.weights.shape == node.weights.shape
        else:
            same = isinstance(node, Pool if isinstance(layer, FloatPool) else Concat)
        if not same:
            raise QuantizeError(f"{wrong}it has no layer {name!r} of the same kind and shape")
    for name, node in nodes.items():
        if name not in layers and isinstance(node, Conv):
            raise QuantizeError(f"{wrong}that has no layer {name!r}")


# Measuring -----------------------------------------------------------------------------------------------------------


class _Noise:
    """Power of a signal and of an approximation's error, summed over the parts of a batch."""

    def __init__(self) -> None:
        self.power = self.error = 0.0
        self.used = False

    def add(self, signal: Float64Array, approximation: Float64Array) -> None:
        self.used = True
        self.power += float(np.square(signal).sum())
        self.error += float(np.square(signal - approximation).sum())

    @property
    def sqnr(self) -> float:
        return decibels(self.power, self.error)

    @property
    def sqnr_if_used(self) -> float | None:
        return self.sqnr if self.used else None


class _Ends:
    """Smallest and largest value of every channel."""

    def __init__(self, channels: int) -> None:
        self.low, self.high = np.full(channels, np.inf), np.full(channels, -np.inf)

    def add(self, values: npt.NDArray[Any]) -> None:
        self.low = np.minimum(self.low, values.min(axis=(0, 2, 3)))
        self.high = np.maximum(self.high, values.max(axis=(0, 2, 3)))

    def constant(self) -> int:
        largest = max(np.abs(self.low).max(), np.abs(self.high).max())
        return int((self.high - self.low <= STILL * largest).sum())


class _Measured:
    """What is summed up for one tensor."""

    def __init__(self, channels: int) -> None:
        self.fake, self.integer, self.weights, self.codes, self.up_to_here = (_Noise() for _ in range(5))
        self.real_ends, self.code_ends = _Ends(channels), _Ends(channels)
        self.differences = self.saturated = self.count = 0


class _Run:
    """Runs the networks on one part of the samples after the other."""

    def __init__(self, network: FloatGraph, graph: Graph) -> None:
        from .fake_quant import FakeQuant

        self.network, self.graph = network, graph
        self.layers = {layer.name: layer for layer in network.layers}
        self.units = unit_values(network, graph)
        self.fake = FakeQuant(graph)
        self.quantized = {node.name: real_conv(self._float_conv(node), node, graph, self.units)
                          for node in graph.nodes if isinstance(node, Conv)}
        self._maker = {node.output: node.name for node in graph.nodes}
        self.measured = {tensor.name: _Measured(tensor.channels) for tensor in graph.tensors}
        self.real_outputs: list[Float64Array] = []
        self.integer_outputs: list[Float64Array] = []

    def _float_conv(self, node: Conv) -> FloatConv:
        layer = self.layers[node.name]
        assert isinstance(layer, FloatConv)
        return layer

    def add(self, x: Float64Array) -> None:
        """Run inputs (N, C, H, W)."""
        import torch

        graph, values = self.graph, {INPUT: x}
        values |= {layer.name: value for layer, value in self.network.outputs(x)}
        reals = {graph.input: x}
        for node in graph.nodes:
            # A copy in front of a concatenation is no layer of the float network.
            reals[node.output] = values[node.name] if node.name in values else reals[node.sources[0]]
        codes = self._integers(x)
        with torch.no_grad():
            fake_codes = {name: code.numpy() for name, code in self.fake.codes(torch.from_numpy(x)).items()}
        for name, real in reals.items():
            tensor, measured = graph.tensor(name), self.measured[name]
            measured.integer.add(real, self._real(codes[name], tensor))
            measured.fake.add(real, self._real(fake_codes[name], tensor))
            measured.differences += int((codes[name] != fake_codes[name]).sum())
            measured.real_ends.add(real)
            measured.code_ends.add(codes[name])
        self._one_at_a_time(values)
        self._one_after_another(values, codes)
        self.real_outputs.append(reals[graph.output].reshape(len(x), -1))
        self.integer_outputs.append(self._real(codes[graph.output], graph.tensor(graph.output)).reshape(len(x), -1))

    def _real(self, codes: npt.NDArray[np.int8], tensor: Tensor) -> Float64Array:
        return (codes.astype(np.float64) - tensor.zero_point) * self.units[tensor.name]

    def _integers(self, x: Float64Array) -> dict[str, npt.NDArray[np.int8]]:
        """Codes of all tensors, by the golden model's sums; counts what saturates on the way."""
        from nomul_sim.golden import accumulators

        graph = self.graph
        low, high = act_range(graph.act_bits)
        source = graph.tensor(graph.input)
        codes = {graph.input: graph.quantize_input(x)}
        rounded = round_half_up(x * 2.0**-source.exponent) + source.zero_point
        self._count(graph.input, (rounded < low) | (rounded > high))
        for node in graph.nodes:
            if isinstance(node, Concat):
                codes[node.output] = np.concatenate([codes[name] for name in node.inputs], axis=1)
                continue
            target, column = graph.tensor(node.output), (slice(None), None, None)
            skip = None if node.skip is None else (
                codes[node.skip].astype(np.int64) - graph.tensor(node.skip).zero_point)
            free = requantize(accumulators(graph, node, codes[node.input]), node.bias[column], node.multiplier[column],
                              node.shift[column], zero_point=target.zero_point, low=-FAR, high=FAR, skip=skip,
                              drop=graph.skip_drop(node))
            codes[node.output] = np.clip(free, node.low, node.high).astype(np.int8)
            # What the activation function takes away is no loss.
            below, above = self._activation(node)
            unit = self.units[node.output]
            self._count(node.output, (free < low) & (below / unit + target.zero_point < low)
                        | (free > high) & (above / unit + target.zero_point > high))
        return codes

    def _activation(self, node: Node) -> tuple[float, float]:
        layer = self.layers.get(node.name)
        return (layer.low, layer.high) if isinstance(layer, FloatLayer) else (-np.inf, np.inf)

    def _count(self, name: str, saturated: npt.NDArray[np.bool_]) -> None:
        self.measured[name].saturated += int(saturated.sum())
        self.measured[name].count += saturated.size

    def _one_at_a_time(self, values: Mapping[str, Float64Array]) -> None:
        """Quantize one layer's weights, or its output, and see what becomes of the float network's output."""
        graph, output = self.graph, values[self.network.layers[-1].name]

        def change(noise: _Noise, name: str, value: Float64Array) -> None:
            noise.add(output, changed_output(self.network, values, {name: value}))

        source = graph.tensor(graph.input)
        change(self.measured[source.name].codes, INPUT, self._real(graph.quantize_input(values[INPUT]), source))
        for node in graph.computing:
            layer, measured = self.layers.get(node.name), self.measured[node.output]
            # A copy's scale, and a maximum's, are those of other tensors: they lose nothing of their own.
            if layer is None or (isinstance(node, Pool) and node.kind == "max"):
                continue
            if isinstance(node, Conv):
                change(measured.weights, node.name,
                       self.quantized[node.name].run(*(values[name] for name in layer.sources)))
            target, unit = graph.tensor(node.output), self.units[node.output]
            counts = np.clip(round_half_up(values[node.name] / unit), node.low - target.zero_point,
                             node.high - target.zero_point)
            change(measured.codes, node.name, counts * unit)

    def _one_after_another(self, values: Mapping[str, Float64Array], codes: Mapping[str, npt.NDArray[np.int8]]) -> None:
        """Run the network in integers up to a layer, and in float after it; for every layer."""
        graph, output = self.graph, values[self.network.layers[-1].name]
        now = dict[str, Float64Array]()
        for tensor in graph.tensors:
            made = INPUT if tensor.name == graph.input else self._maker[tensor.name]
            if made in values:  # not a copy
                now[made] = self._real(codes[tensor.name], tensor)
            self.measured[tensor.name].up_to_here.add(output, changed_output(self.network, values, now))

    def rows(self) -> tuple[LayerAttribution, ...]:
        """What was found so far: the input, then the nodes that compute."""
        tensor = self.graph.tensor(self.graph.input)
        return (self._row(tensor.name, "input", tensor), *(
            self._row(node.name, {"sum": "average"}.get(node.kind, node.kind) if isinstance(node, Pool) else "conv",
                      self.graph.tensor(node.output), node) for node in self.graph.computing))

    def _row(self, name: str, kind: str, tensor: Tensor, node: Node | None = None) -> LayerAttribution:
        measured = self.measured[tensor.name]
        weights: dict[str, Any] = {"format": None, "weights": 0, "levels": {}, "weight_sqnr": None, "rho": None,
                                   "growth": None}
        if isinstance(node, Conv):
            real, quantized = self._float_conv(node).weights, self.quantized[node.name].weights
            fmt = self.graph.format_of(node)
            weights = {"format": fmt.name, "weights": node.weights.size,
                       "levels": {**dict.fromkeys(fmt.levels, 0), **level_use(node.weights)},
                       "weight_sqnr": sqnr_db(real, quantized),
                       "rho": correlation(real, quantized),
                       "growth": _growth(real, quantized)}
        return LayerAttribution(
            name, kind, **weights, fake_sqnr=measured.fake.sqnr, integer_sqnr=measured.integer.sqnr,
            differences=measured.differences, from_weights=measured.weights.sqnr_if_used,
            from_codes=measured.codes.sqnr_if_used, up_to_here=measured.up_to_here.sqnr,
            saturation=measured.saturated / measured.count, channels=tensor.channels,
            dead=measured.code_ends.constant(), dead_float=measured.real_ends.constant())


def _growth(real: Float64Array, quantized: Float64Array) -> float:
    """The largest factor by which a channel of weights has grown: the slope of the line through 0."""
    power = np.square(real).sum(axis=(1, 2, 3))
    alive = power > 0
    slopes = (real * quantized).sum(axis=(1, 2, 3))[alive] / power[alive]
    return float(slopes.max(initial=0.0))
