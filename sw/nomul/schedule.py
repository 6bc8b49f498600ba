"""Schedules: networks that do not fit an accelerator as a whole, run piece by piece.

A piece is a run of the network's nodes as a program of its own, on some rows and channels of their tensors. Between
pieces, tensors lie in the host's memory: the host sends each piece what it reads and takes back what it wrote. All
samples of a batch go through a piece before the next is loaded.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from nomul_hw.config import ArrayConfig
from nomul_hw.descriptor import COUNTERS

from .graph import Concat, Graph

if TYPE_CHECKING:
    from .compiler import Program
    from .driver import RunResult
    from .estimate import Estimate

__all__ = ["Part", "Schedule", "Step", "layers_by_steps", "run_by_steps"]

Codes = npt.NDArray[np.int8]

#: Runs a program on its inputs, each int8 (batch, channels, height, width).
Run = Callable[["Program", tuple[Codes, ...]], "RunResult"]

#: Runs a program on one sample of its inputs, layer by layer: name, output, counters.
RunLayers = Callable[["Program", tuple[Codes, ...]], Iterator[tuple[str, Codes, Mapping[str, int]]]]


class Part(NamedTuple):
    """Channels and rows of a tensor: ``[channel, channel_end)`` and ``[row, row_end)``."""

    tensor: str
    channel: int
    channel_end: int
    row: int
    row_end: int

    @property
    def channels(self) -> slice:
        """The channels, as an index."""
        return slice(self.channel, self.channel_end)

    @property
    def rows(self) -> slice:
        """The rows, as an index."""
        return slice(self.row, self.row_end)


@dataclass(frozen=True, eq=False)
class Step:
    """A program, and the parts of the network's tensors that it runs on, one after the other.

    Parameters
    ----------
    program : Program
        Its graph is a piece of the network: the nodes have the network's names.
    turns : tuple of mapping of str to Part
        One run each: for every tensor of the program's graph, the part of a tensor of the network that it is then.
    """

    program: "Program"
    turns: tuple[Mapping[str, Part], ...]

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the network's nodes that run."""
        return tuple(node.name for node in self.program.graph.nodes)


@dataclass(frozen=True, eq=False)
class Schedule:
    """A graph compiled for one accelerator that cannot hold it as one program.

    Devices and files take it wherever they take a :class:`Program`.

    Parameters
    ----------
    config : ArrayConfig
        The accelerator.
    graph : Graph
        The network.
    steps : tuple of Step
        In execution order. Concatenations that are in no step are the host's.
    """

    config: ArrayConfig
    graph: Graph
    steps: tuple[Step, ...]

    @property
    def runs(self) -> int:
        """How often the accelerator runs for one sample."""
        return sum(len(step.turns) for step in self.steps)

    def estimate(self) -> "Estimate":
        """Exact cycles of one sample, per layer and cause."""
        from .estimate import estimate

        return estimate(self)


def run_by_steps(schedule: Schedule, codes: Codes, run: Run) -> "RunResult":
    """Run a schedule on input codes, int8 (batch, channels, height, width), with something that runs programs."""
    from .driver import RunResult

    batch = len(codes)
    tensors = _Tensors(schedule.graph, codes)
    totals = [dict.fromkeys(COUNTERS, 0) for _ in codes]
    counted = False
    for index, step in enumerate(schedule.steps):
        graph = step.program.graph
        # The turns of a step are one batch to the device.
        inputs = tuple(np.concatenate([tensors.read(turn[name]) for turn in step.turns]) for name in graph.inputs)
        result = run(step.program, inputs)
        for turn, outputs in zip(step.turns, result.outputs.reshape(len(step.turns), batch, *result.outputs.shape[1:]),
                                 strict=True):
            tensors.write(turn[graph.output], outputs)
        for run_index, counters in enumerate(result.counters):
            counted = True
            for name in COUNTERS:
                totals[run_index % batch][name] += counters[name]
        tensors.keep(part.tensor for later in schedule.steps[index + 1:] for turn in later.turns[:1]
                     for part in (turn[name] for name in later.program.graph.inputs))
    return RunResult(tensors.whole(schedule.graph.output), tuple(totals) if counted else ())


def layers_by_steps(schedule: Schedule, sample: Codes, run_layers: RunLayers
                    ) -> Iterator[tuple[str, Codes, dict[str, int]]]:
    """Run one sample of a schedule layer by layer, int8 (channels, height, width).

    Yields
    ------
    name : str
        Name of the node.
    output : int8 array, shape (channels, height, width)
        All that it wrote, in all turns.
    counters : dict
        Sum of what it takes in each turn, run on its own.
    """
    tensors = _Tensors(schedule.graph, sample[np.newaxis])
    for _, steps in groupby(schedule.steps, key=lambda step: step.nodes):
        counted: dict[str, dict[str, int]] = {}
        for step in steps:
            graph = step.program.graph
            outputs = {node.name: node.output for node in graph.computing}
            for turn in step.turns:
                inputs = tuple(tensors.read(turn[name])[0] for name in graph.inputs)
                for name, output, counters in run_layers(step.program, inputs):
                    tensors.write(turn[outputs[name]], output[np.newaxis])
                    so_far = counted.setdefault(name, dict.fromkeys(counters, 0))
                    counted[name] = {cause: so_far[cause] + cycles for cause, cycles in counters.items()}
        for name, counters in counted.items():
            yield name, tensors.whole(outputs[name])[0], counters


class _Tensors:
    """The network's tensors in the host's memory, of one batch."""

    def __init__(self, graph: Graph, codes: Codes):
        self._graph = graph
        self._batch = len(codes)
        self._held = {graph.input: codes}
        self._joined = {node.output: node for node in graph.nodes if isinstance(node, Concat)}

    def whole(self, name: str) -> Codes:
        """A tensor, int8 (batch, channels, height, width)."""
        if name not in self._held:
            self._held[name] = np.concatenate([self.whole(part) for part in self._joined[name].inputs], axis=1)
        return self._held[name]

    def read(self, part: Part) -> Codes:
        """Part of a tensor, int8 (batch, channels, height, width)."""
        return self.whole(part.tensor)[:, part.channels, part.rows]

    def write(self, part: Part, codes: Codes) -> None:
        """Write part of a tensor."""
        if part.tensor not in self._held:
            shape = (self._batch, *self._graph.tensor(part.tensor).shape)
            self._held[part.tensor] = np.empty(shape, dtype=np.int8)
        self._held[part.tensor][:, part.channels, part.rows] = codes

    def keep(self, names: Iterable[str]) -> None:
        """Forget all tensors but these, the output, and what they are concatenated from."""
        needed, found = [self._graph.output, *names], set[str]()
        while needed:
            name = needed.pop()
            if name not in found:
                found.add(name)
                if name in self._joined and name not in self._held:
                    needed += self._joined[name].inputs
        self._held = {name: codes for name, codes in self._held.items() if name in found}
