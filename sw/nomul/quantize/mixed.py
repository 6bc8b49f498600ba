"""Mixed precision: a weight format for every layer, the best that a budget allows.

Every layer is first quantized on its own, once per format, and the error that this brings to the float network's output
is measured. To first order the errors of all layers add up, and so do bits and cycles; choosing a format per layer is
then a knapsack problem, which is solved exactly. What it finds is a prediction, since layers make up for the errors of
those before: it is quantized as a whole, counted by the exact model and measured, beside every format alone. What does
best within the budget wins.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from glob import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nomul.compiler.errors import CompileError
from nomul.compiler.passes import with_passes
from nomul.estimate import estimate_network
from nomul.frontend import INPUT, FloatConv, FloatGraph
from nomul.graph import Conv, Graph
from nomul.shapes import LayerShape, NetworkShape, network_shape
from nomul_hw.config import ArrayConfig
from nomul_hw.formats import WeightFormat, get_format

from .attribution import as_labels, changed_output, float_inputs, is_vector, real_conv, unit_values
from .config import QuantizeConfig, QuantizeError
from .equalize import equalize
from .network import quantize_report
from .report import decibels, sqnr_db

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Budget", "Choice", "MixedResult", "search_formats", "sweep_formats"]

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

#: Choices of formats for the layers so far that the search keeps; below it is exact, beyond it keeps the best of every
#: small interval of cost.
MAX_STATES = 1 << 15

#: Times that the search lowers its limit because the exact cost is above the sum of the layers' costs.
TRIES = 16

#: Activations that are held at a time while a network is measured.
PART_VALUES = 1 << 24


@dataclass(frozen=True)
class Budget:
    """What a network may cost.

    Parameters
    ----------
    bits : float, optional
        Bits per weight, on average over all weights.
    cycles : int, optional
        Cycles of one sample on the array, by the exact model. Formats that the array does not hold run as planes.
    luts : int, optional
        Logic cells of the array. The array's format is chosen then, and without a budget of cycles, layers only have
        formats that the array holds as they are.

    Raises
    ------
    QuantizeError
        If there is none, or one of bits and one of cycles.
    """

    bits: float | None = None
    cycles: int | None = None
    luts: int | None = None

    def __post_init__(self) -> None:
        if self.bits is not None and self.cycles is not None:
            raise QuantizeError("A budget is of bits or of cycles, not of both")
        given = [value for value in (self.bits, self.cycles, self.luts) if value is not None]
        if not given or min(given) <= 0:
            raise QuantizeError("A budget is a positive number of bits per weight, of cycles or of LUTs")


@dataclass(frozen=True)
class Choice:
    """A format for every layer with weights, and what that costs and gives.

    Parameters
    ----------
    name : str
        ``"mixed"``, or the format that all layers have but those for which the configuration has another.
    formats : mapping of str to str
        Format of every layer.
    bits : float
        Bits per weight, on average.
    array : str or None
        Format of the array, where there is one.
    cycles : int or None
        Cycles of one sample on it, for any weights of the formats: those at hand may take fewer planes.
    luts : int or None
        Its logic cells.
    within : bool
        Whether all that is within the budget.
    predicted_sqnr : float
        Power of the float network's output over that of the error, dB, as the layers' errors add up.
    output_sqnr : float
        The same, measured on the integer network.
    agreement, accuracy : float or None
        Share of the samples whose largest output is that of the float network, and that of the label.
    """

    name: str
    formats: Mapping[str, str]
    bits: float
    array: str | None
    cycles: int | None
    luts: int | None
    within: bool
    predicted_sqnr: float
    output_sqnr: float
    agreement: float | None
    accuracy: float | None


@dataclass(frozen=True, eq=False)
class MixedResult:
    """What a search found.

    Parameters
    ----------
    budget : Budget
        What the network may cost.
    choices : tuple of Choice
        The mixed one first, if the budget allows one that is not one format for all; then every format alone.
    best : Choice
        The one within the budget whose integer network is nearest to the float network.
    graph : Graph
        Its integer network.
    config : QuantizeConfig
        What :func:`nomul.quantize` makes it with.
    sensitivity : mapping of str to mapping of str to float
        By layer and format: power of the float network's output over that of the error that the layer's weights alone
        bring, dB.
    float_accuracy : float or None
        Of the float network, where there are labels.
    """

    budget: Budget
    choices: tuple[Choice, ...]
    best: Choice
    graph: Graph
    config: QuantizeConfig
    sensitivity: Mapping[str, Mapping[str, float]]
    float_accuracy: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {"budget": asdict(self.budget), "best": self.best.name, "formats": dict(self.best.formats),
                "float_accuracy": self.float_accuracy, "choices": [asdict(choice) for choice in self.choices],
                "sensitivity": {name: dict(row) for name, row in self.sensitivity.items()}}


def search_formats(network: "nn.Module | FloatGraph", calibration: "torch.Tensor | npt.ArrayLike",
                   formats: Sequence[WeightFormat | str], budget: Budget, **options: Any) -> MixedResult:
    """Choose a format for every layer, within a budget: :func:`sweep_formats` with one, and its other arguments."""
    return sweep_formats(network, calibration, formats, [budget], **options)[0]


def sweep_formats(
    network: "nn.Module | FloatGraph", calibration: "torch.Tensor | npt.ArrayLike",
    formats: Sequence[WeightFormat | str], budgets: Sequence[Budget], *, config: QuantizeConfig | None = None,
    array: ArrayConfig | None = None, fit: bool = True, luts: Mapping[str, int] | None = None,
    inputs: "torch.Tensor | npt.ArrayLike | None" = None, labels: npt.ArrayLike | None = None,
    progress: Callable[[str], None] | None = None,
) -> tuple[MixedResult, ...]:
    """Choose a format for every layer, within each of some budgets; what they have in common is measured once.

    Parameters
    ----------
    network : nn.Module or FloatGraph
        The float network.
    calibration : array or Tensor of real numbers, shape (N, C, H, W), (N, C, L) or (N, features)
        Typical inputs, a few hundred as a rule.
    formats : sequence of WeightFormat or str
        What to choose from.
    budgets : sequence of Budget
        What the network may cost.
    config : QuantizeConfig, optional
        How to quantize; layers that its ``formats`` name keep the format that they have there.
    array : ArrayConfig, optional
        What cycles are counted on; a budget of cycles needs one.
    fit : bool
        As of :func:`nomul.estimate.estimate_network`.
    luts : mapping of str to int, optional
        Logic cells of the array by its format: what a budget of LUTs chooses the array from.
    inputs : array or Tensor of real numbers, optional
        Inputs to measure the choices on, rather others than the calibration's, which are taken if there are none.
    labels : array of int, shape (N,), optional
        Index of the output that should be the largest, for every one of ``inputs``.
    progress : callable, optional
        Called with what is being done.

    Raises
    ------
    QuantizeError
        If an argument is missing or impossible, or nothing is within the budget; the message says what would be.
    nomul.compiler.CompileError
        If the array cannot run the network at all.
    """
    for budget in budgets:
        if budget.cycles is not None and array is None and not luts:
            raise QuantizeError("A budget of cycles needs an array")
        if (budget.luts is None) != (not luts):
            raise QuantizeError("A budget of LUTs and a table of LUTs by format go together")
    choices = _known(formats)
    if labels is not None and inputs is None:
        raise QuantizeError("Labels go with inputs that are not the calibration's")
    network, x = float_inputs(network, calibration)
    config = replace(config or QuantizeConfig(choices[0]), format=choices[0])
    equalization = config.equalization
    if equalization:
        # Once, for all: a layer on its own has no readers, and would be fitted as if nothing were equalized.
        network, config = equalize(network, x, strength=equalization), replace(config, equalization=0.0)
    machines = [_machines(array, luts, budget) for budget in budgets]
    search = _Search(network, x, choices, config, fit, progress or (lambda _: None),
                     x if inputs is None else float_inputs(network, inputs)[1], labels)
    results = [search.run(budget, each) for budget, each in zip(budgets, machines, strict=True)]
    return tuple(replace(result, config=replace(result.config, equalization=equalization)) for result in results)


def _known(formats: Sequence[WeightFormat | str]) -> tuple[WeightFormat, ...]:
    """The formats, names looked up, each once."""
    try:
        known = dict.fromkeys(get_format(fmt) if isinstance(fmt, str) else fmt for fmt in formats)
    except ValueError as error:
        raise QuantizeError(str(error)) from None
    if not known:
        raise QuantizeError("There are no formats to choose from")
    return tuple(known)


@dataclass(frozen=True)
class _Machine:
    """An array, or none, and what it takes."""

    array: ArrayConfig | None
    luts: int | None = None


def _machines(array: ArrayConfig | None, luts: Mapping[str, int] | None, budget: Budget) -> tuple[_Machine, ...]:
    """The arrays that a budget allows, the smallest first."""
    if not luts or budget.luts is None:
        return (_Machine(array),)
    array = array or ArrayConfig(get_format("ternary"))
    try:
        made = [_Machine(replace(array, format=get_format(name), plane_shift=None), cells)
                for name, cells in sorted(luts.items(), key=lambda item: item[1]) if cells <= budget.luts]
    except ValueError as error:
        raise QuantizeError(str(error)) from None
    if not made:
        raise QuantizeError(f"No array has at most {budget.luts} LUTs; the smallest takes {min(luts.values())}")
    return tuple(made)


@dataclass(frozen=True, eq=False)
class _Quantized:
    """An integer network, and how near it is to the float network."""

    graph: Graph
    config: QuantizeConfig
    output_sqnr: float
    agreement: float | None
    accuracy: float | None


class _Search:
    """A search, for one budget after the other."""

    budget: Budget
    machines: tuple[_Machine, ...]

    def __init__(self, network: FloatGraph, x: Float64Array, formats: tuple[WeightFormat, ...], config: QuantizeConfig,
                 fit: bool, progress: Callable[[str], None], inputs: Float64Array,
                 labels: npt.ArrayLike | None) -> None:
        self.network, self.x, self.formats, self.inputs = network, x, formats, inputs
        self.config, self.fit, self.progress = config, fit, progress
        self.classes = as_labels(network, labels, len(inputs))
        self.convs = [layer for layer in network.layers if isinstance(layer, FloatConv)]
        if not self.convs:
            raise QuantizeError("The network has no layer with weights")
        self.weights = sum(layer.weights.size for layer in self.convs)
        #: By layer, the formats that it can have; those that the configuration names have one.
        self.options = {layer.name: list(dict.fromkeys(
            replace(config, format=fmt).format_of(layer) for fmt in formats)) for layer in self.convs}

    def run(self, budget: Budget, machines: tuple[_Machine, ...]) -> MixedResult:
        """Search within a budget, on the arrays that it allows."""
        self.budget, self.machines = budget, machines
        noise, found, alike = self._noise, list[tuple[Choice, _Quantized]](), []
        for fmt in self.formats:
            quantized = self._uniform[fmt.name]
            chosen = {layer.name: quantized.config.format_of(layer) for layer in self.convs}
            able = next((machine for machine in machines if self._within(chosen, machine)), None)
            found.append((self._choice(fmt.name, chosen, able, quantized), quantized))
            alike.append(chosen)
        mixed = self._solve(noise)
        if mixed is not None and mixed[0] not in alike:
            quantized = self._quantized("the mixed choice", self._config(mixed[0]))
            found.insert(0, (self._choice("mixed", *mixed, quantized), quantized))
        within = [(choice, quantized) for choice, quantized in found if choice.within]
        if not within:
            raise QuantizeError(self._refusal())
        best, quantized = max(within, key=lambda one: one[0].output_sqnr)
        sensitivity = {name: {fmt: decibels(1.0, value) for fmt, value in row.items()} for name, row in noise.items()}
        return MixedResult(budget, tuple(choice for choice, _ in found), best, quantized.graph, quantized.config,
                           sensitivity, self._accuracy(self._real))

    def _choice(self, name: str, chosen: Mapping[str, WeightFormat], machine: _Machine | None,
                quantized: _Quantized) -> Choice:
        """A choice of formats, on the array for it or, where none is within the budget, the largest."""
        array = (machine or self.machines[-1]).array
        cycles = None if array is None else self._cycles(chosen, array)
        return Choice(
            name, {layer: fmt.name for layer, fmt in chosen.items()}, self._bits(chosen) / self.weights,
            array.format.name if array and cycles is not None else None, cycles,
            machine.luts if machine else None, machine is not None,
            decibels(1.0, sum(self._noise[layer][fmt.name] for layer, fmt in chosen.items())), quantized.output_sqnr,
            quantized.agreement, quantized.accuracy)

    @cached_property
    def _real(self) -> Float64Array:
        """What the float network makes of the inputs, (N, values)."""
        return self._in_parts(self.inputs, lambda x: self.network.run(x).reshape(len(x), -1))

    def _accuracy(self, outputs: Float64Array) -> float | None:
        return None if self.classes is None else float((outputs.argmax(axis=1) == self.classes).mean())

    @cached_property
    def _uniform(self) -> dict[str, _Quantized]:
        """By format, the network that has it in all layers."""
        return {fmt.name: self._quantized(fmt.name, replace(self.config, format=fmt)) for fmt in self.formats}

    @cached_property
    def shape(self) -> NetworkShape:
        """Copies in front of concatenations count too, so that the shapes are those of an integer network."""
        return network_shape(self._uniform[self.formats[0].name].graph)

    def _in_parts(self, inputs: Float64Array, run: Callable[[Float64Array], Float64Array]) -> Float64Array:
        """Run a network on a part of the inputs after the other."""
        values = sum(value.size for _, value in self.network.outputs(inputs[:1]))
        size = max(1, PART_VALUES // values)
        return np.concatenate([run(inputs[start : start + size]) for start in range(0, len(inputs), size)])

    def _quantized(self, what: str, config: QuantizeConfig) -> _Quantized:
        self.progress(f"quantize to {what}")
        graph, _ = quantize_report(self.network, self.x, config)
        outputs = self._in_parts(self.inputs, lambda x: _outputs(graph, x))
        alike = float((outputs.argmax(axis=1) == self._real.argmax(axis=1)).mean())
        return _Quantized(graph, config, sqnr_db(self._real, outputs), alike if is_vector(self.network) else None,
                          self._accuracy(outputs))

    # Sensitivity -----------------------------------------------------------------------------------------------------

    @cached_property
    def _noise(self) -> dict[str, dict[str, float]]:
        """By layer and format: power of the error that the layer's weights bring to the output, over the output's.

        They are fitted to the calibration inputs and measured on as many others: a layer of many inputs per output and
        few pixels fits what it was fitted to too well.
        """
        fitted, values = self._values(self.x), self._values(self.inputs[: len(self.x)])
        output = values[self.network.layers[-1].name]
        power = float(np.square(output).sum()) or 1.0
        noise: dict[str, dict[str, float]] = {}
        for at, layer in enumerate(self.convs):
            self.progress(f"sensitivity of {layer.name}, layer {at + 1} of {len(self.convs)}")
            noise[layer.name] = {}
            for fmt in self.options[layer.name]:
                quantized = _alone(layer, fitted[layer.sources[0]], replace(self.config, format=fmt, formats={}))
                made = quantized.run(*(values[name] for name in layer.sources))
                changed = changed_output(self.network, values, {layer.name: made})
                noise[layer.name][fmt.name] = float(np.square(changed - output).sum()) / power
        return noise

    def _values(self, x: Float64Array) -> dict[str, Float64Array]:
        """Outputs of all layers, and the input."""
        return {INPUT: x, **{layer.name: value for layer, value in self.network.outputs(x)}}

    # Costs -----------------------------------------------------------------------------------------------------------

    def _bits(self, chosen: Mapping[str, WeightFormat]) -> int:
        return sum(layer.weights.size * chosen[layer.name].bits for layer in self.convs)

    def _shape(self, chosen: Mapping[str, WeightFormat]) -> NetworkShape:
        return replace(self.shape, nodes=tuple(
            replace(node, format=chosen[node.name]) if isinstance(node, LayerShape) and node.kind == "conv" else node
            for node in self.shape.nodes))

    def _cycles(self, chosen: Mapping[str, WeightFormat], array: ArrayConfig) -> int | None:
        """Cycles on an array; None if it cannot run the network."""
        try:
            return estimate_network(self._shape(chosen), array, fit=self.fit).cycles
        except CompileError:
            return None

    def _native(self, chosen: Mapping[str, WeightFormat], array: ArrayConfig) -> bool:
        """Whether an array holds all weights as they are."""
        try:
            return all(layer.planes == 1 for layer in with_passes(self._shape(chosen), array).layers)
        except CompileError:
            return False

    def _cost(self, chosen: Mapping[str, WeightFormat], machine: _Machine) -> int | None:
        """Bits or cycles, whichever the budget is of; None if the machine cannot run it."""
        if self.budget.cycles is not None and machine.array is not None:
            return self._cycles(chosen, machine.array)
        if self.budget.luts is not None and machine.array is not None and not self._native(chosen, machine.array):
            return None
        return self._bits(chosen)

    @property
    def _limit(self) -> int:
        """The budget, as a cost."""
        if self.budget.cycles is not None:
            return self.budget.cycles
        # Above what any format takes, where only the array is limited. A little more than the product, which may round.
        return int((self.budget.bits or 64) * self.weights + 1e-6)

    def _within(self, chosen: Mapping[str, WeightFormat], machine: _Machine) -> bool:
        cost = self._cost(chosen, machine)
        return cost is not None and cost <= self._limit

    def _refusal(self) -> str:
        """Why nothing is within the budget."""
        wanted = ", ".join(f"{value} {name}" for name, value in asdict(self.budget).items() if value is not None)
        least = [sum(min(costs.values()) for costs in table.values()) + base
                 for base, table in map(self._costs, self.machines) if table and all(table.values())]
        if not least:
            last = self.machines[-1]
            if self.budget.cycles is not None and last.array is not None:
                estimate_network(self._shape(self._first(last)), last.array, fit=self.fit)  # may say why
            return f"No choice among {', '.join(fmt.name for fmt in self.formats)} can run on the array within {wanted}"
        if self.budget.cycles is not None:
            return f"Nothing is within {wanted}; the least is about {min(least)} cycles"
        return f"Nothing is within {wanted} per weight; the least is {min(least) / self.weights:.2f} bits"

    # Choosing --------------------------------------------------------------------------------------------------------

    def _costs(self, machine: _Machine) -> tuple[int, dict[str, dict[WeightFormat, int]]]:
        """Cost of a network of first formats, and what each option of a layer adds, by layer.

        A layer that the machine cannot run has no options; if that is true of the first formats already, there is no
        layer.
        """
        first = self._first(machine)
        base = self._cost(first, machine)
        if base is None:
            return 0, {}
        table: dict[str, dict[WeightFormat, int]] = {}
        for name, options in self.options.items():
            costs = {fmt: self._cost({**first, name: fmt}, machine) for fmt in options}
            table[name] = {fmt: cost - base for fmt, cost in costs.items() if cost is not None}
        return base, table

    def _first(self, machine: _Machine) -> dict[str, WeightFormat]:
        """A format for every layer, the array's if there is one: then one that it cannot run stays out alone."""
        return {name: options[0] if machine.array is None or len(options) == 1 else machine.array.format
                for name, options in self.options.items()}

    def _solve(self, noise: Mapping[str, Mapping[str, float]]) -> tuple[dict[str, WeightFormat], _Machine] | None:
        """The choice of least predicted error within the budget, and the smallest array for it."""
        best: tuple[float, dict[str, WeightFormat], _Machine] | None = None
        for machine in self.machines:
            base, table = self._costs(machine)
            if not table or not all(table.values()):
                continue
            limit = self._limit
            for _ in range(TRIES):
                picks = _knapsack([(list(costs.values()), [noise[name][fmt.name] for fmt in costs])
                                   for name, costs in table.items()], limit - base)
                if picks is None:
                    break
                chosen = {name: list(costs)[pick] for (name, costs), pick in zip(table.items(), picks, strict=True)}
                cost = self._cost(chosen, machine)
                if cost is not None and cost <= self._limit:
                    total = sum(noise[name][fmt.name] for name, fmt in chosen.items())
                    if best is None or total < best[0]:
                        best = total, chosen, machine
                    break
                # Cycles of neighbouring layers overlap a little: their sum is not quite that of the layers alone.
                limit -= max(1, cost - self._limit if cost is not None else 1)
        return None if best is None else best[1:]

    def _config(self, chosen: Mapping[str, WeightFormat]) -> QuantizeConfig:
        """The configuration that quantizes to a choice: the most frequent format, and the exceptions by name."""
        frequent = Counter(chosen.values()).most_common(1)[0][0]
        return replace(self.config, format=frequent,
                       formats={escape(name): fmt for name, fmt in chosen.items() if fmt != frequent})


def _alone(layer: FloatConv, x: Float64Array, config: QuantizeConfig) -> FloatConv:
    """The layer with weights and biases as they are if nothing else is quantized."""
    bare = replace(layer, input=INPUT, skip=None, low=-np.inf, high=np.inf)
    shape = bare.output_shape(*x.shape[1:])
    single = FloatGraph(x.shape[1:], (bare,), shape)
    graph, _ = quantize_report(single, x, config)
    node = graph.nodes[0]
    assert isinstance(node, Conv)
    return real_conv(layer, node, graph, unit_values(single, graph))


def _outputs(graph: Graph, x: Float64Array) -> Float64Array:
    """Real outputs (N, values) of an integer network, by the golden model."""
    from nomul_sim import golden

    codes = golden.run(graph, graph.quantize_input(x))[graph.output]
    return graph.dequantize_output(codes).reshape(len(x), -1)


def _knapsack(layers: Sequence[tuple[Sequence[int], Sequence[float]]], limit: int) -> list[int] | None:
    """Pick one option of every layer, so that the sum of noise is least and that of costs within a limit.

    Layer after layer, of all sums so far those are kept that no other beats in both cost and noise.

    Parameters
    ----------
    layers : sequence of (costs, noises)
        One of each per option.

    Returns
    -------
    list of int or None
        The option of every layer; None if nothing is within the limit.
    """
    cheapest = np.cumsum([0, *(min(costs) for costs, _ in reversed(layers))])[::-1]
    costs, noises = np.zeros(1, dtype=np.int64), np.zeros(1)
    steps: list[tuple[Int64Array, Int64Array]] = []
    for at, (option_costs, option_noises) in enumerate(layers):
        sums = (costs[:, None] + np.asarray(option_costs, dtype=np.int64)).ravel()
        noise = (noises[:, None] + np.asarray(option_noises)).ravel()
        possible = np.flatnonzero(sums + cheapest[at + 1] <= limit)
        if not len(possible):
            return None
        order = possible[np.lexsort((noise[possible], sums[possible]))]
        least = np.minimum.accumulate(noise[order])
        kept = order[np.append(True, least[1:] < least[:-1])]
        if len(kept) > MAX_STATES:
            # The best, and so the last, of every interval of cost.
            low, high = sums[kept[0]], sums[kept[-1]]
            interval = (sums[kept] - low) * MAX_STATES // (high - low + 1)
            kept = kept[np.append(interval[1:] != interval[:-1], True)]
        steps.append((kept // len(option_costs), kept % len(option_costs)))
        costs, noises = sums[kept], noise[kept]
    state, picks = len(costs) - 1, list[int]()
    for parents, options in reversed(steps):
        picks.append(int(options[state]))
        state = int(parents[state])
    return picks[::-1]
