"""Exact cycles of a program, per layer and by cause: equal to the hardware's counters, not an approximation."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nomul_hw.config import ArrayConfig
from nomul_hw.descriptor import COUNTERS
from nomul_hw.timing import run_cycles

from .compiler.program import Program

__all__ = ["Estimate", "LayerEstimate", "estimate", "estimate_alone"]


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


@dataclass(frozen=True)
class Estimate:
    """Cycles of one sample.

    Parameters
    ----------
    config : ArrayConfig
        The accelerator.
    layers : tuple of LayerEstimate
        In execution order.
    """

    config: ArrayConfig
    layers: tuple[LayerEstimate, ...]

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
        return self.macs / (self.cycles * self.config.macs_per_cycle)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {
            "array": self.config.name,
            "cycles": self.cycles,
            "macs": self.macs,
            "utilisation": self.utilisation,
            "accounting": self.accounting,
            "layers": [
                {
                    "name": layer.name,
                    "cycles": layer.cycles,
                    "macs": layer.macs,
                    "utilisation": layer.macs / (layer.cycles * self.config.macs_per_cycle),
                    "accounting": dict(layer.counters),
                }
                for layer in self.layers
            ],
        }


def estimate(program: Program) -> Estimate:
    """Count the cycles that one run of a program takes, in closed form."""
    merged: dict[str, LayerEstimate] = {}
    for layer, counters in zip(program.layers,
                               run_cycles(program.config, [layer.values for layer in program.layers]), strict=True):
        so_far = merged.get(layer.node, LayerEstimate(layer.node, 0, dict.fromkeys(COUNTERS, 0)))
        merged[layer.node] = LayerEstimate(
            layer.node, so_far.macs + layer.macs, {name: so_far.counters[name] + counters[name] for name in COUNTERS})
    return Estimate(program.config, tuple(merged.values()))


def estimate_alone(program: Program, node: str) -> dict[str, int]:
    """Count the cycles of one node, by cause, when it is run on its own: it then waits for its first weights."""
    strips = list(run_cycles(program.config, [layer.values for layer in program.layers if layer.node == node]))
    return {name: sum(strip[name] for strip in strips) for name in COUNTERS}
