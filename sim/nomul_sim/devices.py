"""The golden model as a device: the same driver call as for an accelerator, at the speed of NumPy."""

from collections.abc import Iterator

from nomul.compiler import Program
from nomul.driver import Codes, RunResult, check_inputs, check_sample
from nomul.schedule import Schedule, layers_by_steps, run_by_steps

from .golden import run

__all__ = ["GoldenDevice"]


class GoldenDevice:
    """Runs the graph that a program was compiled from.

    It takes programs for any array, and counts no cycles: :meth:`Program.estimate` knows them. A schedule it runs step
    by step, as an accelerator would.
    """

    def run(self, program: Program | Schedule, codes: Codes | tuple[Codes, ...]) -> RunResult:
        """Run a program's graph on input codes, int8 (batch, channels, height, width).

        A program whose graph has several inputs takes a tuple of them.

        Raises
        ------
        DeviceError
            If the codes do not belong to the network's input.
        GoldenError
            If the network leaves exact arithmetic.
        """
        graph = program.graph
        inputs = check_inputs(codes, graph)
        if isinstance(program, Schedule):
            return run_by_steps(program, inputs[0], self.run)
        return RunResult(run(graph, inputs)[graph.output], ())

    def run_layers(self, program: Program | Schedule, sample: Codes | tuple[Codes, ...]
                   ) -> Iterator[tuple[str, Codes, dict[str, int]]]:
        """Run one sample layer by layer, int8 (channels, height, width).

        Yields
        ------
        name : str
            Name of the node; concatenations compute nothing and have no turn.
        output : int8 array, shape (channels, height, width)
            What it wrote.
        counters : dict
            Empty.
        """
        graph = program.graph
        inputs = check_sample(sample, graph)
        if isinstance(program, Schedule):
            yield from layers_by_steps(program, inputs[0][0], self.run_layers)
            return
        tensors = run(graph, inputs)
        for node in graph.computing:
            yield node.name, tensors[node.output][0], {}
