"""The golden model as a device: the same driver call as for an accelerator, at the speed of NumPy."""

from collections.abc import Iterator

from nomul.compiler import Program
from nomul.driver import Codes, RunResult, check_codes

from .golden import run

__all__ = ["GoldenDevice"]


class GoldenDevice:
    """Runs the graph that a program was compiled from.

    It takes programs for any array, and counts no cycles: :meth:`Program.estimate` knows them.
    """

    def run(self, program: Program, codes: Codes) -> RunResult:
        """Run a program's graph on input codes, int8 (batch, channels, height, width).

        Raises
        ------
        DeviceError
            If the codes do not belong to the network's input.
        GoldenError
            If the network leaves exact arithmetic.
        """
        graph = program.graph
        codes = check_codes(codes, graph.tensor(graph.input))
        return RunResult(run(graph, codes)[graph.output], ())

    def run_layers(self, program: Program, sample: Codes) -> Iterator[tuple[str, Codes, dict[str, int]]]:
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
        tensors = run(graph, check_codes(sample[None], graph.tensor(graph.input)))
        for node in graph.computing:
            yield node.name, tensors[node.output][0], {}
