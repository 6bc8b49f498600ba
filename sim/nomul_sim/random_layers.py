"""Random layers, run on the golden model and on the Verilated RTL, compared in every bit and every cycle.

    python -m nomul_sim.random_layers --count 10000 --seed 1

Random here means random corners: maps of one pixel, channels that fill no array row, windows that lie in the padding,
gains from 1 to nothing, biases at the accumulator's limit, activations at their ends, sums that end exactly between
two codes. A case follows from the configuration and a seed alone.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import ceil, prod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from nomul.compiler import CompileError, Program, compile_graph
from nomul.driver import DeviceError
from nomul.estimate import estimate_alone
from nomul.graph import Conv, Graph, Node, Pool, Tensor, window_output
from nomul_hw.arithmetic import MAX_SKIP_DROP, act_range
from nomul_hw.config import ArrayConfig, MemoryConfig

from . import golden
from .build import BuildError
from .verilated import VerilatedDevice

__all__ = ["CONFIGS", "Case", "Mismatch", "Report", "check_case", "check_layers", "random_case"]

Int8Array = npt.NDArray[np.int8]
Int64Array = npt.NDArray[np.int64]

#: A layer of a case streams no more words than this through the array: enough for every boundary, cheap to simulate.
_MAX_WORDS = 1500

#: Parts of a memory that one layer of a case may take, so that up to three of them fit together.
_SHARE = 0.3

#: What is simulated by default: every format and kind of processing element, square, rectangular and single arrays,
#: 1 to 8 lanes, 1 to 3 gain terms, two widths of activations, accumulators from just enough to the most, and memories
#: of no round size, some so few accumulators that layers run as strips.
CONFIGS: tuple[ArrayConfig, ...] = tuple(ArrayConfig(**values) for values in (  # type: ignore[arg-type]
    {"format": "binary", "rows": 4, "cols": 4, "lanes": 8, "acc_bits": 20},
    {"format": "ternary", "rows": 1, "cols": 1, "memory": MemoryConfig(accumulators=20)},
    {"format": "ternary", "rows": 8, "cols": 2, "lanes": 4, "gain_terms": 3},
    {"format": "pot3", "rows": 3, "cols": 5},
    {"format": "pot3z", "rows": 2, "cols": 8, "lanes": 2, "gain_terms": 1},
    {"format": "pot4", "rows": 4, "cols": 4, "gain_terms": 3, "acc_bits": 32},
    {"format": "exp4", "rows": 4, "cols": 4, "memory": MemoryConfig(700, 3000, 150, 30, 50)},
    {"format": "exp5", "rows": 3, "cols": 5, "lanes": 2, "gain_terms": 1},
    {"format": "fp4_e2m1", "rows": 8, "cols": 2, "act_bits": 4, "acc_bits": 20},
    {"format": "int2", "rows": 2, "cols": 8, "act_bits": 4, "gain_terms": 3},
    {"format": "int3", "rows": 1, "cols": 1, "lanes": 8, "memory": MemoryConfig(accumulators=9)},
    {"format": "int4", "rows": 4, "cols": 4, "lanes": 2},
    {"format": "int4", "pe": "multiplier", "rows": 5, "cols": 3, "lanes": 4},
    {"format": "int8", "pe": "multiplier", "rows": 4, "cols": 6, "gain_terms": 1},
))

#: Chances of a pause of the host per cycle.
_STALLS = (0.0, 0.0, 0.1, 0.5, 0.9)

_Kind = Literal["conv", "linear", "max", "sum"]

#: Chance that a layer which keeps the shape of an earlier tensor adds it, and that a layer is made to keep it.
_RESIDUAL = 0.6


@dataclass(frozen=True, eq=False)
class Case:
    """A small network and inputs for it.

    Attributes
    ----------
    graph : Graph
        One to three layers.
    inputs : int8 array, shape (batch, channels, height, width)
        Codes of the graph's input.
    """

    graph: Graph
    inputs: Int8Array


@dataclass(frozen=True)
class _Shape:
    """A layer before it has numbers."""

    kind: _Kind
    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    size: tuple[int, int]


def random_case(config: ArrayConfig, rng: np.random.Generator, *, batch: int = 2) -> Case:
    """Make a network of one layer (mostly) to three, that fits the configuration's memories, and inputs for it."""
    layers = int(rng.choice([1, 1, 1, 2, 3]))
    size = _input_size(config, rng)
    tensors = [_tensor(config, rng, "input", _channels(config, rng), size)]
    codes = _codes(config, rng, (batch, *tensors[0].shape))
    graph = Graph(config.format, config.act_bits, config.gain_terms, tuple(tensors), (), "input", "input",
                  tensors[0].shape)
    current = codes
    for index in range(layers):
        name = f"layer{index}"
        source = tensors[-1]
        shape = _layer_shape(config, rng, source)
        target = _tensor(config, rng, f"{name}.out", shape.channels, shape.size)
        # A residual connection: an earlier tensor of the same shape, on the same or a finer scale.
        skips = [tensor for tensor in tensors if tensor.shape == target.shape]
        skip = skips[rng.integers(len(skips))] if skips and rng.random() < _RESIDUAL else None
        if skip is not None:
            target = replace(target, exponent=skip.exponent + int(rng.integers(0, MAX_SKIP_DROP + 1)))
        tensors.append(target)
        draft = _draft(config, rng, name, shape, source, target)
        draft = replace(draft, shift=draft.shift + MAX_SKIP_DROP, skip=skip.name if skip else None)
        graph = replace(graph, tensors=tuple(tensors), nodes=(*graph.nodes, draft), output=target.name,
                        output_shape=target.shape)
        # The golden sums of the draft decide which biases make the interesting cases.
        node = _aim(config, rng, draft, golden.accumulators(graph, draft, current), source, target,
                    graph.skip_drop(draft))
        graph = replace(graph, nodes=(*graph.nodes[:-1], node))
        current = golden.run(graph, codes)[target.name]
    return Case(graph, codes)


# Shapes ------------------------------------------------------------------------------------------------------------


def _channels(config: ArrayConfig, rng: np.random.Generator) -> int:
    """Channel counts around the widths that the machine works in, and small ones."""
    match rng.integers(4):
        case 0:
            return int(rng.integers(1, 5))
        case 1:
            return int(rng.integers(1, config.depth + 1))
        case 2:
            around = int(rng.choice([config.depth, config.cols])) * int(rng.integers(1, 3))
            return max(1, around + int(rng.integers(-1, 2)))
        case _:
            return int(rng.integers(1, 2 * max(config.depth, config.cols) + 2))


def _input_size(config: ArrayConfig, rng: np.random.Generator) -> tuple[int, int]:
    most = max(1, min(10, int((config.memory.activations * _SHARE / 3) ** 0.5)))
    if rng.random() < 0.1:
        return 1, 1
    height, width = rng.integers(1, most + 1, 2).tolist()
    return height, width


def _tensor(config: ArrayConfig, rng: np.random.Generator, name: str, channels: int,
            size: tuple[int, int]) -> Tensor:
    return Tensor(name, channels, *size, 0, int(rng.choice([0, act_range(config.act_bits)[0]])))


def _layer_shape(config: ArrayConfig, rng: np.random.Generator, source: Tensor) -> _Shape:
    """Draw shapes until one fits; 1x1 with one channel always does."""
    for attempt in range(1000):
        shape = _draw_shape(config, rng, source, plain=attempt > 900)
        if shape is not None and _fits(config, shape, source):
            return shape
    raise ValueError(f"The memories of {config.name} are too small for random layers")


def _draw_shape(config: ArrayConfig, rng: np.random.Generator, source: Tensor, *, plain: bool) -> _Shape | None:
    if plain:
        return _Shape("conv", 1, (1, 1), (3, 3), (0, 0, 0, 0), (1, 1),
                      (window_output(source.height, 1, 3, 0, 0), window_output(source.width, 1, 3, 0, 0)))
    if rng.random() < _RESIDUAL / 4:
        kernel = (int(rng.choice([1, 3])), int(rng.choice([1, 3])))
        around = (kernel[0] // 2, kernel[1] // 2)
        return _Shape(rng.choice(["conv", "conv", "sum"]), source.channels, kernel, (1, 1), (*around, *around), (1, 1),
                      (source.height, source.width))
    kind: _Kind = rng.choice(["conv", "linear", "max", "sum"], p=[0.6, 0.1, 0.15, 0.15])
    channels = _channels(config, rng) if kind in ("conv", "linear") else source.channels
    if kind == "linear":
        return _Shape(kind, channels, (source.height, source.width), (1, 1), (0, 0, 0, 0), (1, 1), (1, 1))
    if rng.random() < 0.3:
        kernel = (1, 1) if rng.random() < 0.5 else (3, 3)
    else:
        kernel = (int(rng.integers(1, 6)), int(rng.integers(1, 6)))
    stride = (int(rng.choice([1, 1, 2, 3])), int(rng.choice([1, 1, 2, 3])))
    dilation = (int(rng.integers(1, 3)), int(rng.integers(1, 3))) if rng.random() < 0.2 else (1, 1)
    # Up to the kernel's size: then a window lies in the padding altogether.
    top, left, bottom, right = (0, 0, 0, 0) if rng.random() < 0.3 else (
        int(rng.integers(0, kernel[side % 2] + (rng.random() < 0.2))) for side in range(4)
    )
    size = (window_output(source.height, kernel[0], stride[0], top, bottom, dilation[0]),
            window_output(source.width, kernel[1], stride[1], left, right, dilation[1]))
    if min(size) < 1:
        return None
    return _Shape(kind, channels, kernel, stride, (top, left, bottom, right), dilation, size)


def _fits(config: ArrayConfig, shape: _Shape, source: Tensor) -> bool:
    memory = config.memory
    pixels, taps = prod(shape.size), prod(shape.kernel)
    in_words, out_words = ceil(source.channels / config.depth), ceil(shape.channels / config.depth)
    blocks = ceil(shape.channels / config.cols)
    conv = shape.kind in ("conv", "linear")
    group = config.cols if conv else config.depth
    streamed = pixels * taps * in_words * (blocks if conv else 1)
    return (
        streamed <= _MAX_WORDS
        and pixels * out_words <= _SHARE * memory.activations
        # Beyond the accumulators a layer runs as strips of rows, each with a descriptor of its own.
        and shape.size[1] <= memory.accumulators
        and ceil(shape.size[0] / (memory.accumulators // shape.size[1])) <= _SHARE * memory.layers
        and ceil(shape.channels / group) * group <= _SHARE * memory.parameters * config.requantize_lanes
        and (not conv or taps * in_words * blocks * config.rows <= _SHARE * memory.weights)
        # Half of the accumulator's range is left for the bias, whatever the weights.
        and _largest_sum(config, taps, source.channels, conv=conv) < 1 << config.acc_bits - 2
        and (conv or taps <= 1 << config.pool_bits - config.act_bits)
    )


def _largest_sum(config: ArrayConfig, taps: int, channels: int, *, conv: bool) -> int:
    """Bound of a sum over a window: unused lanes, and what inversions leave to the bias, included."""
    most = 1 << config.act_bits - 1
    if not conv:
        return taps * most
    lanes = ceil(channels / config.depth) * config.depth
    filler = min(map(abs, config.format.levels))
    return taps * (most + 1) * (lanes * config.format.max_magnitude + (lanes - channels) * filler)


# Numbers -----------------------------------------------------------------------------------------------------------


def _codes(config: ArrayConfig, rng: np.random.Generator, shape: tuple[int, ...]) -> Int8Array:
    """Activations: any, or only their ends, or few that are not 0; now and then a whole sample at one end."""
    low, high = act_range(config.act_bits)
    match rng.integers(4):
        case 0:
            codes = rng.choice([low, high], shape)
        case 1:
            codes = rng.choice([low, -1, 0, 1, high], shape)
        case _:
            codes = rng.integers(low, high, shape, endpoint=True)
    if rng.random() < 0.25:
        codes[rng.integers(len(codes))] = rng.choice([low, 0, high])
    return codes.astype(np.int8)


def _weights(config: ArrayConfig, rng: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[np.int32]:
    """Weights: any level, or the outermost; some output channels of one level only."""
    levels = np.asarray(config.format.levels, dtype=np.int32)
    if rng.random() < 0.2:
        weights = rng.choice(levels[[0, -1]], shape)
    elif rng.random() < 0.2:
        weights = np.where(rng.random(shape) < 0.1, rng.choice(levels, shape), levels[np.argmin(np.abs(levels))])
    else:
        weights = rng.choice(levels, shape)
    uniform = rng.random(shape[0]) < 0.1
    weights[uniform] = rng.choice(levels, (int(uniform.sum()), 1, 1, 1))
    return weights


def _clamp(config: ArrayConfig, rng: np.random.Generator, zero_point: int) -> tuple[int, int]:
    low, high = act_range(config.act_bits)
    match rng.integers(5):
        case 0 | 1:
            return low, high
        case 2:  # ReLU
            return zero_point, high
        case 3:  # ReLU6: ends somewhere above
            return zero_point, int(rng.integers(zero_point, high, endpoint=True))
        case _:
            least, most = sorted(rng.integers(low, high, 2, endpoint=True).tolist())
            return least, most


def _draft(config: ArrayConfig, rng: np.random.Generator, name: str, shape: _Shape, source: Tensor,
           target: Tensor) -> Node:
    """Make the node with all but its final bias and gain."""
    low, high = _clamp(config, rng, target.zero_point)
    node = Node(
        name=name, input=source.name, output=target.name, kernel=shape.kernel, stride=shape.stride,
        padding=shape.padding, dilation=shape.dilation, bias=np.zeros(target.channels, dtype=np.int64),
        multiplier=np.ones(target.channels, dtype=np.int64), shift=np.zeros(target.channels, dtype=np.int64),
        low=low, high=high,
    )
    fields = {field: getattr(node, field) for field in node.__dataclass_fields__}
    if shape.kind in ("max", "sum"):
        return Pool(**fields, kind="max" if shape.kind == "max" else "sum")
    return Conv(**fields, weights=_weights(config, rng, (target.channels, source.channels, *shape.kernel)))


def _aim(config: ArrayConfig, rng: np.random.Generator, node: Node, acc: Int64Array, source: Tensor,
         target: Tensor, drop: int) -> Node:
    """Give a node gains and biases, most of them such that sums end near or exactly between two codes.

    ``acc`` holds the node's sums, int64 of (batch, channels, height, width). A sum ``v`` is a tie where ``v`` is an
    odd multiple of half of ``2**shift``, whatever the (odd) multiplier.
    """
    channels = target.channels
    room = (1 << config.acc_bits - 1) - 1 - _largest_sum(config, prod(node.kernel), source.channels,
                                                         conv=isinstance(node, Conv))
    multiplier = rng.choice(config.gain_multipliers, channels).astype(np.int64)

    # A shift that spreads this layer's sums over the codes, give or take; or anything.
    spread = acc.max(axis=(0, 2, 3)) - acc.min(axis=(0, 2, 3))
    typical = np.log2((spread + 1) * multiplier) - config.act_bits + rng.integers(-2, 3, channels)
    shift = np.clip(np.round(typical).astype(np.int64), 0, config.max_gain_shift)
    wild = rng.random(channels) < 0.25
    shift[wild] = rng.choice([0, 1, 2, config.max_gain_shift - 1, config.max_gain_shift,
                              int(rng.integers(0, config.max_gain_shift + 1))], int(wild.sum()))
    shift = np.maximum(shift, drop)  # the skip tensor is added that many places below the point

    # Aim one sum of every channel at a place between two codes, or one unit beside it.
    sums = acc.transpose(1, 0, 2, 3).reshape(channels, -1)
    aimed = sums[np.arange(channels), rng.integers(0, sums.shape[1], channels)]
    code = rng.integers(node.low - 2, node.high + 2, channels, endpoint=True) - target.zero_point
    # The v of the tie below `code` is (2 code - 1) 2**(shift - 1) / multiplier, at the odd multiple nearest to it.
    half = np.int64(1) << np.maximum(shift - 1, 0)
    odd = 2 * ((2 * code - 1) // (2 * multiplier)) + 1
    bias = odd * half - aimed + rng.choice([0, 0, 0, -1, 1], channels)
    other = rng.random(channels)
    bias = np.where(other < 0.1, 0, bias)
    bias = np.where((other >= 0.1) & (other < 0.2), rng.choice([-room, room], channels), bias)
    bias = np.where((other >= 0.2) & (other < 0.3), rng.integers(-room, room, channels, endpoint=True), bias)
    return replace(node, bias=np.clip(bias, -room, room), multiplier=multiplier, shift=shift)


# Checking ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mismatch:
    """Where the hardware first differs from the golden model or from the cycle model, and how to see it again."""

    config: str
    seed: int
    index: int
    message: str

    def __str__(self) -> str:
        return (f"{self.config}, case {self.index}: {self.message}\n    again: python -m nomul_sim.random_layers "
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
    seconds : float
        Wall time, building the simulators included.
    mismatches : list of Mismatch
        At most one per case.
    """

    cases: int = 0
    layers: int = 0
    codes: int = 0
    cycles: int = 0
    seconds: float = 0.0
    mismatches: list[Mismatch] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return asdict(self)


def _compare_codes(where: str, got: npt.NDArray[np.int8], expected: npt.NDArray[np.int8]) -> str | None:
    wrong = got != expected
    if not wrong.any():
        return None
    at = tuple(int(i) for i in np.argwhere(wrong)[0])
    return (f"{where}: channel {at[-3]}, row {at[-2]}, column {at[-1]} is {got[at]} in RTL and {expected[at]} in the "
            f"golden model; {int(wrong.sum())} of {wrong.size} codes differ")


def _compare_counters(where: str, got: Mapping[str, int], expected: Mapping[str, int]) -> str | None:
    wrong = [f"{name} is {got[name]} in RTL and {expected[name]} in the estimate"
             for name in expected if got[name] != expected[name]]
    return f"{where}: {', '.join(wrong)}" if wrong else None


def _describe(graph: Graph, node: Node) -> str:
    source, target = graph.tensor(node.input), graph.tensor(node.output)
    kind = node.kind if isinstance(node, Pool) else "conv"
    return (f"{node.name} ({kind} {node.kernel}, stride {node.stride}, padding {node.padding}, dilation "
            f"{node.dilation}, {source.shape} -> {target.shape}, zero points {source.zero_point} -> "
            f"{target.zero_point})")


def check_case(device: VerilatedDevice, program: Program, inputs: Int8Array) -> str | None:
    """Run a program on the RTL and compare it with the golden model and the estimate.

    The batch runs as it would for a user; then its first sample runs layer by layer, so that every layer's output
    and cycles are seen.

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
    result = device.run(program, inputs)
    for node, (name, output, counters) in zip(graph.computing, device.run_layers(program, inputs[0]), strict=True):
        assert name == node.name
        where = _describe(graph, node)
        if problem := (_compare_codes(where, output, expected[node.output][0])
                       or _compare_counters(where, counters, estimate_alone(program, name))):
            return problem
    estimate = program.estimate().accounting
    for sample, total in enumerate(result.counters):
        where = f"whole run, sample {sample}"
        if problem := (_compare_codes(where, result.outputs[sample], expected[graph.output][sample])
                       or _compare_counters(where, total, estimate)):
            return problem
    if device.transport.settle(8):
        return "the device offers a word that nobody asked for"
    return None


def check_layers(config: ArrayConfig, count: int, seed: int, *, first: int = 0,
                 report: Report | None = None) -> Report:
    """Check random cases of a configuration, with random pauses of the host on both streams.

    Parameters
    ----------
    config : ArrayConfig
        What to simulate.
    count, first : int
        Cases ``first .. first + count - 1`` are run.
    seed : int
        Together with a case's number this makes the case.
    report : Report, optional
        What to add to.
    """
    report = Report() if report is None else report
    started = time.perf_counter()
    device = VerilatedDevice(config)
    for index in range(first, first + count):
        rng = np.random.default_rng((seed, index, config.identity))
        case = random_case(config, rng)
        report.cases += 1
        report.layers += len(case.graph.nodes)
        problem: str | None
        try:
            program = compile_graph(case.graph, config)
            cycles = program.estimate().cycles
            device.transport.stall(float(rng.choice(_STALLS)), float(rng.choice(_STALLS)), index)
            device.transport.max_idle_cycles = 10_000 + 4 * cycles
            problem = check_case(device, program, case.inputs)
            report.codes += case.inputs.shape[0] * sum(prod(case.graph.tensor(node.output).shape)
                                                       for node in case.graph.nodes)
            report.cycles += cycles * case.inputs.shape[0]
        except (CompileError, DeviceError) as error:
            problem = str(error)
        if problem is not None:
            report.mismatches.append(Mismatch(config.name, seed, index, problem))
            device = VerilatedDevice(config)  # whatever state the fault has left it in
    report.seconds += time.perf_counter() - started
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m nomul_sim.random_layers",
        description="Compare random layers on Verilated RTL with the golden model and the cycle estimate.")
    parser.add_argument("--count", type=int, default=500, help="cases in total (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of all random numbers (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case of each configuration")
    parser.add_argument("--config", action="append", choices=[config.name for config in CONFIGS], metavar="NAME",
                        help="one of: %(choices)s; may be repeated (default: all of them)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    chosen = parser.parse_args(arguments)
    configs = [config for config in CONFIGS if not chosen.config or config.name in chosen.config]
    report = Report()
    for number, config in enumerate(configs):
        count = (chosen.count * (number + 1)) // len(configs) - (chosen.count * number) // len(configs)
        before = replace(report)
        try:
            check_layers(config, count, chosen.seed, first=chosen.first, report=report)
        except BuildError as error:
            print(error, file=sys.stderr)
            return 2
        if not chosen.json:
            print(f"{config.name:20} {report.cases - before.cases:6} cases {report.layers - before.layers:6} layers "
                  f"{report.codes - before.codes:9} codes {report.cycles - before.cycles:10} cycles "
                  f"{report.seconds - before.seconds:7.1f} s", flush=True)
    if chosen.json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        for mismatch in report.mismatches:
            print(mismatch)
        print(f"{report.cases} cases, {report.layers} layers, {report.codes} codes, {report.cycles} cycles: "
              f"{len(report.mismatches)} mismatches")
    return 1 if report.mismatches else 0


if __name__ == "__main__":
    sys.exit(main())
