"""Exact cycles of a network, per layer and by cause: equal to the hardware's counters, not an approximation.

A network's shapes are enough (:func:`estimate_network`): the compiler plans with nothing else.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from nomul_hw.config import ArrayConfig, ConfigError, MemoryConfig
from nomul_hw.descriptor import COUNTERS
from nomul_hw.timing import WeightSource, run_cycles

from .compiler.errors import CompileError
from .compiler.passes import with_passes
from .compiler.plan import Plan, plan_network, plan_passes, with_enough_memory
from .compiler.program import Program
from .compiler.tiling import tile_network
from .driver import host_words
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
    """

    name: str
    macs: int
    counters: Mapping[str, int]

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
    """

    config: ArrayConfig
    layers: tuple[LayerEstimate, ...]
    memory: Mapping[str, int] = field(default_factory=dict)
    model: str = "nomul"
    runs: int | None = None
    host_words: int | None = None

    @cached_property
    def accounting(self) -> dict[str, int]:
        """Cycles by cause over all layers; every entry but ``total`` adds up to ``total``."""
        return {name: sum(layer.counters[name] for layer in self.layers) for name in COUNTERS}

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
        return Estimate(program.config, _count(
            program.config, ((layer.node, layer.values, layer.macs) for layer in program.layers), source))
    graph = program.graph
    counted = {node.name: dict.fromkeys(COUNTERS, 0) for node in graph.computing}
    for step in program.steps:
        _add(counted, estimate(step.program, source).layers, len(step.turns))
    # What neighbouring bands both compute is work of the array, but not of the network.
    layers = tuple(LayerEstimate(node.name, graph.macs(node), counted[node.name]) for node in graph.computing)
    return Estimate(program.config, layers, runs=program.runs, host_words=host_words(program))


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
    return Estimate(config, _count_plan(plan, config), plan.memory)


def _estimate_pieces(network: NetworkShape, config: ArrayConfig) -> Estimate:
    """Count the cycles of a network that does not fit as a whole."""
    network = with_passes(network, config)
    tiling = tile_network(network, config)
    turns = Counter(piece.network for piece in tiling.pieces)
    counted = {layer.name: dict.fromkeys(COUNTERS, 0) for layer in network.layers}
    for shape, count in turns.items():
        _add(counted, _count_plan(plan_passes(shape, config), config), count)
    layers = tuple(LayerEstimate(layer.name, network.macs(layer), counted[layer.name]) for layer in network.layers)
    return Estimate(config, layers, runs=len(tiling.pieces), host_words=tiling.host_words)


def _count_plan(plan: Plan, config: ArrayConfig) -> tuple[LayerEstimate, ...]:
    return _count(config, ((layer.owner, layer.values, layer.macs) for layer in plan.layers))


def _add(counted: Mapping[str, dict[str, int]], layers: Iterable[LayerEstimate], turns: int) -> None:
    """Add the cycles of a run's layers, ``turns`` times, to those of the network's layers."""
    for layer in layers:
        for cause in COUNTERS:
            counted[layer.name][cause] += turns * layer.counters[cause]


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
    for (name, _, macs), counters in zip(strips, cycles, strict=True):
        so_far = merged.get(name)
        if so_far is not None:
            macs += so_far.macs
            counters = {cause: count + so_far.counters[cause] for cause, count in counters.items()}
        merged[name] = LayerEstimate(name, macs, counters)
    return tuple(merged.values())
