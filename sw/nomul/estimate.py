"""Exact cycles of a network, per layer and by cause: equal to the hardware's counters, not an approximation.

A network's shapes are enough (:func:`estimate_network`): the compiler plans with nothing else.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from nomul_hw.config import ArrayConfig, ConfigError, MemoryConfig
from nomul_hw.descriptor import COUNTERS
from nomul_hw.timing import run_cycles

from .compiler.plan import plan_network, with_enough_memory
from .compiler.program import Program
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
    """

    config: ArrayConfig
    layers: tuple[LayerEstimate, ...]
    memory: Mapping[str, int] = field(default_factory=dict)
    model: str = "nomul"

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


def estimate(program: Program) -> Estimate:
    """Count the cycles that one run of a program takes, in closed form."""
    return Estimate(program.config, _count(program.config,
                                           ((layer.node, layer.values, layer.macs) for layer in program.layers)))


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
    plan = plan_network(network, config, fit=fit)
    return Estimate(config, _count(config, ((layer.owner, layer.values, layer.macs) for layer in plan.layers)),
                    plan.memory)


def estimate_alone(program: Program, node: str) -> dict[str, int]:
    """Count the cycles of one node, by cause, when it is run on its own: it then waits for its first weights."""
    strips = list(run_cycles(program.config, [layer.values for layer in program.layers if layer.node == node]))
    return {name: sum(strip[name] for strip in strips) for name in COUNTERS}


def _count(config: ArrayConfig, layers: Iterable[tuple[str, Mapping[str, int], int]]) -> tuple[LayerEstimate, ...]:
    """Count the cycles of the layers (name, descriptor values, MACs) of a run; those of one name are one."""
    strips = list(layers)
    merged: dict[str, LayerEstimate] = {}
    for (name, _, macs), counters in zip(strips, run_cycles(config, [values for _, values, _ in strips]), strict=True):
        so_far = merged.get(name)
        if so_far is not None:
            macs += so_far.macs
            counters = {cause: cycles + so_far.counters[cause] for cause, cycles in counters.items()}
        merged[name] = LayerEstimate(name, macs, counters)
    return tuple(merged.values())
