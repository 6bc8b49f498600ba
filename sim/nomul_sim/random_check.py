"""Random cases on the Verilated RTL and on the golden model, compared in every bit and every cycle."""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from nomul.compiler import CompileError, Program, compile_graph
from nomul.driver import DeviceError
from nomul.estimate import estimate_alone
from nomul.graph import Concat, Conv, Graph, Node, Pool
from nomul_hw.config import ArrayConfig
from nomul_hw.descriptor import LayerOp

from . import golden
from .build import BuildError
from .random_nodes import Case
from .verilated import VerilatedDevice

__all__ = ["Maker", "Mismatch", "Report", "check_case", "check_cases", "command", "features", "generator"]

#: Makes a case for an array.
Maker = Callable[[ArrayConfig, np.random.Generator], Case]

#: Chances of a pause of the host per cycle.
_STALLS = (0.0, 0.0, 0.1, 0.5, 0.9)


@dataclass(frozen=True)
class Mismatch:
    """Where the hardware first differs from the golden model or from the cycle model, and how to see it again."""

    command: str
    config: str
    seed: int
    index: int
    message: str

    def __str__(self) -> str:
        return (f"{self.config}, case {self.index}: {self.message}\n    again: python -m nomul_sim.{self.command} "
                f"--config {self.config} --seed {self.seed} --first {self.index} --count 1")


@dataclass
class Report:
    """What was compared.

    Attributes
    ----------
    cases, layers : int
        Networks and layers run.
    codes : int
        Output codes compared.
    cycles : int
        Cycles of the device's counters compared.
    arrays : int
        Configurations.
    seconds : float
        Wall time, building the simulators included.
    features : Counter of str
        What the programs had, and how often; see :func:`features`.
    mismatches : list of Mismatch
        At most one per case.
    """

    cases: int = 0
    layers: int = 0
    codes: int = 0
    cycles: int = 0
    arrays: int = 0
    seconds: float = 0.0
    features: Counter[str] = field(default_factory=Counter)
    mismatches: list[Mismatch] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {**vars(self), "features": dict(sorted(self.features.items())), "mismatches": [
            asdict(mismatch) for mismatch in self.mismatches]}

    def add(self, other: "Report") -> None:
        """Add what was compared elsewhere."""
        for name in ("cases", "layers", "codes", "cycles", "arrays", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.features += other.features
        self.mismatches += other.mismatches

    def __str__(self) -> str:
        return (f"{self.cases} cases, {self.layers} layers, {self.codes} codes, {self.cycles} cycles on {self.arrays} "
                f"arrays: {len(self.mismatches)} mismatches")


def features(program: Program) -> Iterator[str]:
    """Say what a program has, in a word or more for every descriptor and concatenation: what a test must have met."""
    graph, config = program.graph, program.config
    nodes = {node.name: node for node in graph.computing}
    for layer in program.layers:
        values, node, op = layer.values, nodes[layer.node], LayerOp(layer.values["op"])
        kind = op.name.lower().replace("_", " ")
        if op is LayerOp.MAX_POOL and not (isinstance(node, Pool) and node.kind == "max"):
            kind = "copy"
        yield kind
        if values.get("skip"):
            yield f"residual in {kind}"
        if op.is_window:
            yield f"{kind}, rows by {values['stride_rows'] + 1}"
            yield f"{kind}, columns by " + ("pairs" if values["pair"] else str(values["stride_columns"] + 1))
            if op is LayerOp.DEPTHWISE:
                yield f"window of {config.window_groups} groups of taps"
        elif isinstance(node, Conv):
            if node.groups > 1:
                yield "groups on the array"
            if node.groups == graph.tensor(node.input).channels > 1 and config.memory.lines:
                yield "depthwise on the array beside a window unit"
            if values["count_5"]:
                yield "planes with shifts" if values["shifts"] else "planes without shifts"
    for concat in graph.nodes:
        if isinstance(concat, Concat):
            yield "concat"
            if any(graph.tensor(part).channels % config.depth for part in concat.inputs[:-1]):
                yield "concat with gaps"


def check_case(device: VerilatedDevice, program: Program, inputs: npt.NDArray[np.int8]) -> str | None:
    """Run a program on the RTL and compare it with the golden model and the estimate.

    The first sample runs layer by layer, each on its own, so that every layer's output and cycles are seen; then in
    runs of the first layer, the first two, and so on, for what layers do to those behind them. At last the batch runs
    as it would for a user.

    Parameters
    ----------
    device : VerilatedDevice
        An accelerator of the program's configuration.
    program : Program
        What to run.
    inputs : int8 array, shape (batch, channels, height, width)
        Input codes.

    Returns
    -------
    str or None
        What differs first: layer, element, both values; or None.

    Raises
    ------
    DeviceError
        If the device does not answer.
    """
    graph = program.graph
    expected = golden.run(graph, inputs)
    for node, (name, output, counters) in zip(graph.computing, device.run_layers(program, inputs[0]), strict=True):
        assert name == node.name
        if problem := (_compare_codes(output, expected[node.output][0])
                       or _compare_counters(counters, estimate_alone(program, name))):
            return f"{_describe(graph, node)}: {problem}"
    for node in graph.computing[:-1]:
        start = _until(program, node)
        if problem := _check_run(device, start, inputs[:1], expected[node.output]):
            return f"{_describe(graph, node)}, all layers up to it in one run: {problem}"
    if problem := _check_run(device, program, inputs, expected[graph.output]):
        return f"whole run, {problem}"
    if device.transport.settle(8):
        return "the device offers a word that nobody asked for"
    return None


def _until(program: Program, node: Node) -> Program:
    """The first layers of a program, up to a node whose output is then the network's."""
    count = 1 + max(index for index, layer in enumerate(program.layers) if layer.node == node.name)
    graph = replace(program.graph, output=node.output, output_shape=program.graph.tensor(node.output).shape)
    return replace(program, graph=graph, layers=program.layers[:count])


def _check_run(device: VerilatedDevice, program: Program, inputs: npt.NDArray[np.int8],
               expected: npt.NDArray[np.int8]) -> str | None:
    result = device.run(program, inputs)
    estimate = program.estimate().accounting
    for sample, counters in enumerate(result.counters):
        if problem := (_compare_codes(result.outputs[sample], expected[sample])
                       or _compare_counters(counters, estimate)):
            return f"sample {sample}: {problem}"
    return None


def _compare_codes(got: npt.NDArray[np.int8], expected: npt.NDArray[np.int8]) -> str | None:
    wrong = got != expected
    if not wrong.any():
        return None
    at = tuple(int(i) for i in np.argwhere(wrong)[0])
    return (f"channel {at[0]}, row {at[1]}, column {at[2]} is {got[at]} in RTL and {expected[at]} in the golden model; "
            f"{int(wrong.sum())} of {wrong.size} codes differ")


def _compare_counters(got: Mapping[str, int], expected: Mapping[str, int]) -> str | None:
    return ", ".join(f"{name} is {got[name]} in RTL and {expected[name]} in the estimate"
                     for name in expected if got[name] != expected[name]) or None


def _describe(graph: Graph, node: Node) -> str:
    source, target = graph.tensor(node.input), graph.tensor(node.output)
    kind = f"{node.kind} pool" if isinstance(node, Pool) else "conv"
    if isinstance(node, Conv):
        kind = f"{graph.format_of(node).name} conv" + (f" of {node.groups} groups" if node.groups > 1 else "")
    return (f"{node.name} ({kind} {node.kernel}, stride {node.stride}, padding {node.padding}, dilation "
            f"{node.dilation}, {source.shape} -> {target.shape}, zero points {source.zero_point} -> "
            f"{target.zero_point})")


def generator(config: ArrayConfig, seed: int, index: int) -> np.random.Generator:
    """Source of all randomness of a case."""
    return np.random.default_rng((seed, index, config.identity))


def check_cases(name: str, make: Maker, config: ArrayConfig, count: int, seed: int, *, first: int = 0) -> Report:
    """Check random cases on one array, with random pauses of the host on both streams.

    Parameters
    ----------
    name : str
        Of the command that makes such cases.
    make : callable
        Makes a case.
    config : ArrayConfig
        What to simulate.
    count, first : int
        Cases ``first .. first + count - 1`` are run.
    seed : int
        Together with a case's number and the configuration this makes the case.
    """
    report = Report(arrays=1)
    started = time.perf_counter()
    device = VerilatedDevice(config)
    for index in range(first, first + count):
        rng = generator(config, seed, index)
        case = make(config, rng)
        graph, batch = case.graph, len(case.inputs)
        report.cases += 1
        report.layers += len(graph.computing)
        problem: str | None
        try:
            program = compile_graph(graph, config)
            cycles = program.estimate().cycles
            device.transport.stall(float(rng.choice(_STALLS)), float(rng.choice(_STALLS)), index)
            device.transport.max_idle_cycles = 10_000 + 4 * cycles
            problem = check_case(device, program, case.inputs)
            report.codes += batch * sum(prod(graph.tensor(node.output).shape) for node in graph.computing)
            report.cycles += cycles * batch
            report.features.update(features(program))
        except (CompileError, DeviceError) as error:
            problem = str(error)
        if problem is not None:
            report.mismatches.append(Mismatch(name, config.name, seed, index, problem))
            device = VerilatedDevice(config)  # whatever state the fault has left it in
    report.seconds = time.perf_counter() - started
    return report


def command(name: str, description: str, make: Maker, configs: Sequence[ArrayConfig], count: int,
            arguments: Sequence[str] | None) -> int:
    """Run the command line of a module that makes random cases; return its exit code.

    Parameters
    ----------
    name, description : str
        Of the command.
    make : callable
        Makes a case.
    configs : sequence of ArrayConfig
        Arrays to run on.
    count : int
        Default number of cases.
    arguments : sequence of str, optional
        What was typed; None for the process's own.
    """
    parser = argparse.ArgumentParser(prog=f"python -m nomul_sim.{name}", description=description)
    parser.add_argument("--count", type=int, default=count, help="cases in total (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of all random numbers (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case of each configuration")
    parser.add_argument("--config", action="append", choices=[config.name for config in configs], metavar="NAME",
                        help="one of: %(choices)s; may be repeated (default: all of them)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    chosen = parser.parse_args(arguments)
    configs = [config for config in configs if not chosen.config or config.name in chosen.config]
    report = Report()
    for number, config in enumerate(configs):
        share = (chosen.count * (number + 1)) // len(configs) - (chosen.count * number) // len(configs)
        try:
            part = check_cases(name, make, config, share, chosen.seed, first=chosen.first)
        except BuildError as error:
            print(error, file=sys.stderr)
            return 2
        report.add(part)
        if not chosen.json:
            print(f"{config.name:20} {part.cases:6} cases {part.layers:6} layers {part.codes:9} codes "
                  f"{part.cycles:10} cycles {part.seconds:7.1f} s", flush=True)
    if chosen.json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        for mismatch in report.mismatches:
            print(mismatch)
        print(report)
    return 1 if report.mismatches else 0
