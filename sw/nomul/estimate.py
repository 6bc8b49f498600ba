"""Exact cycles of a network, per layer and by cause: equal to the hardware's counters, not an approximation.

A network's shapes are enough (:func:`estimate_network`): the compiler plans with nothing else.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from nomul_hw.config import ArrayConfig, ConfigError, MemoryConfig
from nomul_hw.descriptor import COUNTERS, HOST_BITS
from nomul_hw.timing import WeightSource, run_cycles

from .compiler.errors import CompileError
from .compiler.passes import with_passes
from .compiler.plan import Plan, plan_network, plan_passes, with_enough_memory
from .compiler.program import Placement, Program
from .compiler.tiling import tile_network
from .compiler.traffic import run_words
from .driver import host_words
from .energy import Work, layer_work
from .schedule import Schedule
from .shapes import NetworkShape

__all__ = ["WAITS", "Estimate", "LayerEstimate", "estimate", "estimate_alone", "estimate_network"]

#: The causes that stand for waiting: neither work nor what starting and ending a layer costs.
WAITS = tuple(name for name in COUNTERS if name not in ("total", "busy", "drain", "control"))


@dataclass(frozen=True)
class LayerEstimate:
    """Cycles of one layer (all strips of a node).

    Parameters
    ----------
    name : str
        The node.
    macs : int
        Multiply-accumulates of one sample, padding counted.
    counters : mapping of str to int
        Cycles by cause, the names of :data:`nomul_hw.descriptor.COUNTERS`.
    descriptors : tuple of (mapping of str to int, int)
        Descriptors, by their values, and how often each is run; none where another machine's model counts.
    """

    name: str
    macs: int
    counters: Mapping[str, int]
    descriptors: tuple[tuple[Mapping[str, int], int], ...] = field(default=(), kw_only=True, compare=False, repr=False)

    @property
    def cycles(self) -> int:
        """All cycles of the layer."""
        return self.counters["total"]

    @property
    def waits(self) -> int:
        """Cycles in which the layer waits."""
        return sum(self.counters[name] for name in WAITS)


@dataclass(frozen=True)
class Estimate:
    """Cycles of one sample.

    Parameters
    ----------
    config : ArrayConfig
        The accelerator.
    layers : tuple of LayerEstimate
        In execution order.
    memory : mapping of str to int
        Words that the network takes, by the names of :class:`nomul_hw.config.MemoryConfig`; empty where that was not
        asked for.
    model : str
        What counts the cycles: ``"nomul"``, or a name of :data:`nomul.scalesim.MODELS`.
    runs, host_words : int, optional
        Of a schedule: how often the accelerator runs for a sample, and how many words go between it and the host, the
        programs' own among them. The cycles are those of the runs.
    host : Work, optional
        What the host moves for a sample: its words, and what it writes and reads of the activation banks.
    """

    config: ArrayConfig
    layers: tuple[LayerEstimate, ...]
    memory: Mapping[str, int] = field(default_factory=dict)
    model: str = "nomul"
    runs: int | None = None
    host_words: int | None = None
    host: Work | None = None

    @cached_property
    def accounting(self) -> dict[str, int]:
        """Cycles by cause over all layers; every entry but ``total`` adds up to ``total``."""
        return {name: sum(layer.counters[name] for layer in self.layers) for name in COUNTERS}

    @cached_property
    def work(self) -> tuple[Work, ...]:
        """What each layer computes and moves. Only energy follows from it, so that it is counted when asked for."""
        return tuple(sum((layer_work(self.config, values) * turns for values, turns in layer.descriptors), Work())
                     for layer in self.layers)

    @property
    def cycles(self) -> int:
        """Cycles of a run, from its start to its last write."""
        return self.accounting["total"]

    @property
    def macs(self) -> int:
        """Multiply-accumulates, padding counted."""
        return sum(layer.macs for layer in self.layers)

    @property
    def utilisation(self) -> float:
        """Share of the array's products that the network needs: ``macs / (cycles * rows * lanes * cols)``, 0..1."""
        return self.share(self.macs, self.cycles)

    def share(self, macs: int, cycles: int) -> float:
        """Share that multiply-accumulates are of the products that the array could form in some cycles, 0..1."""
        return macs / (cycles * self.config.macs_per_cycle) if cycles else 0.0

    @property
    def problem(self) -> str | None:
        """Why no array can have the memory that the network takes; None if one can."""
        try:
            MemoryConfig(**{name: max(2, words) for name, words in self.memory.items()})
        except ConfigError as error:
            return str(error)
        return None

    def to_dict(self, megahertz: float | None = None) -> dict[str, Any]:
        """Plain data for ``--json``; with a clock also times."""
        return {
            "array": self.config.name,
            "model": self.model,
            "cycles": self.cycles,
            "macs": self.macs,
            "utilisation": self.utilisation,
            **({} if megahertz is None else {
                "clock_mhz": megahertz,
                "milliseconds": self.milliseconds(megahertz),
                "inferences_per_second": 1e3 / self.milliseconds(megahertz),
            }),
            "accounting": self.accounting,
            **({} if self.runs is None else {"runs": self.runs, "host_words": self.host_words}),
            **({"memory": dict(self.memory)} if self.memory else {}),
            "layers": [
                {
                    "name": layer.name,
                    "cycles": layer.cycles,
                    "macs": layer.macs,
                    "utilisation": self.share(layer.macs, layer.cycles),
                    "accounting": dict(layer.counters),
                }
                for layer in self.layers
            ],
        }

    def milliseconds(self, megahertz: float) -> float:
        """Time of one sample at a clock."""
        return self.cycles / megahertz / 1e3


def estimate(program: Program | Schedule, source: WeightSource | None = None) -> Estimate:
    """Count the cycles that a program, or all runs of a schedule, take for one sample, in closed form.

    Parameters
    ----------
    source : WeightSource, optional
        Where streamed weights come from; one that is always ahead if not given.
    """
    if isinstance(program, Program):
        graph = program.graph
        return Estimate(program.config, _count(
            program.config, ((layer.node, layer.values, layer.macs) for layer in program.layers), source),
            host=_host(program.config, program.placements, graph.inputs, graph.output))
    sums = _Sums((node.name, program.graph.macs(node)) for node in program.graph.computing)
    for step in program.steps:
        sums.add(estimate(step.program, source), len(step.turns))
    return sums.estimate(program.config, program.runs, host_words(program))


def estimate_network(network: NetworkShape, config: ArrayConfig, *, fit: bool = True) -> Estimate:
    """Count the cycles that a network would take, from its shapes: the same as those of its program.

    Parameters
    ----------
    fit : bool
        Whether the network must fit the array's memories. If not, the array is taken to have what the network needs,
        which :attr:`Estimate.memory` tells, with accumulators for strips of
        :data:`nomul.compiler.plan.MAX_STRIP` pixels.

    Raises
    ------
    CompileError
        If the array cannot run a layer, or the network does not fit.
    """
    if not fit:
        config = with_enough_memory(network, config)
    try:
        plan = plan_network(network, config, fit=fit)
    except CompileError:
        if not fit:
            raise
        return _estimate_pieces(network, config)
    return _estimate_plan(plan, network, config)


def _estimate_pieces(network: NetworkShape, config: ArrayConfig) -> Estimate:
    """Count the cycles of a network that does not fit as a whole."""
    network = with_passes(network, config)
    tiling = tile_network(network, config)
    turns = Counter(piece.network for piece in tiling.pieces)
    sums = _Sums((layer.name, network.macs(layer)) for layer in network.layers)
    for shape, count in turns.items():
        sums.add(_estimate_plan(plan_passes(shape, config), shape, config), count)
    return sums.estimate(config, len(tiling.pieces), tiling.host_words)


def _estimate_plan(plan: Plan, network: NetworkShape, config: ArrayConfig) -> Estimate:
    layers = _count(config, ((layer.owner, layer.values, layer.macs) for layer in plan.layers))
    return Estimate(config, layers, plan.memory,
                    host=_host(config, plan.placements, (network.input, *network.more_inputs), network.output))


class _Sums:
    """Sums over the runs of a network's pieces, by its layers and their MACs.

    What neighbouring bands both compute is work of the array, but not of the network.
    """

    def __init__(self, layers: Iterable[tuple[str, int]]) -> None:
        self.layers = {name: LayerEstimate(name, macs, dict.fromkeys(COUNTERS, 0)) for name, macs in layers}
        self.host = Work()

    def add(self, run: Estimate, turns: int) -> None:
        """Add a run that there are ``turns`` of."""
        for layer in run.layers:
            so_far = self.layers[layer.name]
            counters = {cause: so_far.counters[cause] + turns * layer.counters[cause] for cause in COUNTERS}
            more = tuple((values, count * turns) for values, count in layer.descriptors)
            self.layers[layer.name] = replace(so_far, counters=counters, descriptors=so_far.descriptors + more)
        assert run.host is not None
        self.host += run.host * turns

    def estimate(self, config: ArrayConfig, runs: int, words: int) -> Estimate:
        """All of it; the host's words include those of the programs."""
        return Estimate(config, tuple(self.layers.values()), runs=runs, host_words=words,
                        host=replace(self.host, host=words * HOST_BITS))


def _host(config: ArrayConfig, placements: Mapping[str, Placement], inputs: Iterable[str], output: str) -> Work:
    """What the host moves for a run on a sample; a table of layers need not have one input and one output."""
    written = [placements[name].words for name in inputs if name in placements]
    read = [placements[output].words] if output in placements else []
    word = config.act_word_bits
    return Work(activation_writes=sum(written) * word, activation_reads=sum(read) * word,
                host=run_words(config, [*written, *read]) * HOST_BITS)


def estimate_alone(program: Program | Schedule, node: str, source: WeightSource | None = None) -> dict[str, int]:
    """Count the cycles of one node, by cause, when it is run on its own: it then waits for its first weights."""
    if isinstance(program, Schedule):
        alone = [(len(step.turns), estimate_alone(step.program, node, source))
                 for step in program.steps if node in step.nodes]
        return {name: sum(turns * counters[name] for turns, counters in alone) for name in COUNTERS}
    strips = list(run_cycles(program.config, [layer.values for layer in program.layers if layer.node == node], source))
    return {name: sum(strip[name] for strip in strips) for name in COUNTERS}


def _count(config: ArrayConfig, layers: Iterable[tuple[str, Mapping[str, int], int]],
           source: WeightSource | None = None) -> tuple[LayerEstimate, ...]:
    """Count the cycles of the layers (name, descriptor values, MACs) of a run; those of one name are one."""
    strips = list(layers)
    merged: dict[str, LayerEstimate] = {}
    cycles = run_cycles(config, [values for _, values, _ in strips], source)
    for (name, values, macs), counters in zip(strips, cycles, strict=True):
        descriptors: tuple[tuple[Mapping[str, int], int], ...] = ((values, 1),)
        if (so_far := merged.get(name)) is not None:
            macs += so_far.macs
            counters = {cause: count + so_far.counters[cause] for cause, count in counters.items()}
            descriptors = so_far.descriptors + descriptors
        merged[name] = LayerEstimate(name, macs, counters, descriptors=descriptors)
    return tuple(merged.values())
