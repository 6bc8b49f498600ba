"""SCALE-Sim: its tables of layers, its report, and cycle models of other arrays to compare with.

A table has a line per layer, after a line of headings. A convolution is

    name, input height, input width, kernel height, kernel width, channels, filters, stride

where the input has its padding already, and a window that hangs over the bottom or right edge counts. A matrix product
of M x K and K x N values, in a table whose headings are M, N, K, is

    name, M, N, K

Convolutions that are such products (1x1 kernels; one channel and a kernel as wide as the input, one row high) are
taken as them. Lines may end with commas; further columns are notes, but for a batch size or a sparsity, which must be 1
and 1:1.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import NamedTuple

from nomul_hw.config import ArrayConfig, ConfigError
from nomul_hw.descriptor import COUNTERS

from .estimate import Estimate, LayerEstimate
from .shapes import LayerShape, NetworkShape, TensorShape

__all__ = ["MODELS", "TopologyError", "estimate_by", "load_topology", "parse_topology", "report_csv"]


class TopologyError(ValueError):
    """A table of layers that cannot be read; the message names file and line."""


# Tables ------------------------------------------------------------------------------------------------------------


def load_topology(path: str | Path) -> NetworkShape:
    """Read a table of layers from a ``.csv`` file.

    The layers run one after the other, each on an input of its own.

    Raises
    ------
    TopologyError
        If the file cannot be read, or a line is no layer.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise TopologyError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TopologyError(f"{path}: not a text file") from None
    return parse_topology(text, source=str(path))


def parse_topology(text: str, *, source: str = "topology") -> NetworkShape:
    """Read a table of layers as :func:`load_topology` does; messages start with ``source``."""
    tensors, layers, names = list[TensorShape](), list[LayerShape](), set[str]()
    headings: list[str] | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        cells = [cell.strip() for cell in line.split(",")]
        if headings is None:
            headings = [cell.lower() for cell in cells]
            continue
        if not any(cells):
            continue
        try:
            row = _parse_row(headings, cells)
        except TopologyError as error:
            raise TopologyError(f"{source}:{number}: {error}") from None
        name, count = cells[0] or f"layer {len(layers) + 1}", 1
        while name in names:
            count += 1
            name = f"{cells[0] or 'layer'}_{count}"
        names.add(name)
        tensors += [TensorShape(f"{name} input", *row.input), TensorShape(name, row.filters, *row.output)]
        layers.append(LayerShape(name, "conv", f"{name} input", name, row.kernel, row.stride, (0, 0, *row.overhang)))
    if not layers:
        raise TopologyError(f"{source}: no layers; a line of headings comes first, then a line per layer")
    return NetworkShape(tuple(tensors), tuple(layers), layers[0].input, layers[-1].output)


class _Row(NamedTuple):
    """One line of a table: a convolution."""

    input: tuple[int, int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    filters: int

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of the output: every window that starts on the map, even if it hangs over its edge."""
        height, width = (-(-(size - kernel) // stride) + 1
                         for size, kernel, stride in zip(self.input[1:], self.kernel, self.stride, strict=True))
        return height, width

    @property
    def overhang(self) -> tuple[int, int]:
        """How far the last windows hang over the bottom and the right edge."""
        bottom, right = (
            max(0, (count - 1) * stride + kernel - size) for count, stride, kernel, size
            in zip(self.output, self.stride, self.kernel, self.input[1:], strict=True))
        return bottom, right


_PRODUCT = "name, M, N, K"
_CONVOLUTION = "name, input height, input width, kernel height, kernel width, channels, filters, stride"


def _parse_row(headings: list[str], cells: list[str]) -> _Row:
    """Understand a line; messages do not say where it is."""
    expected = _PRODUCT if headings[1:4] == ["m", "n", "k"] else _CONVOLUTION
    needed = len(expected.split(","))
    if len(cells) < needed:
        raise TopologyError(f"a line of {len(cells)} columns; expected {expected}")
    for heading, cell in list(zip(headings, cells, strict=False))[needed:]:
        if ("batch" in heading and cell not in ("", "1")) or (
                "sparsity" in heading and len(set(cell.split(":"))) > 1):
            raise TopologyError(f"a {heading} of {cell} is not supported")
    if expected is _PRODUCT:
        m, n, k = map(_positive, cells[1:needed])
        return _product(m, k, n)
    height, width, kernel_height, kernel_width, channels, filters, stride = map(_positive, cells[1:needed])
    # SCALE-Sim itself writes two strides.
    across = stride
    if headings[needed : needed + 1] == ["stride width"]:
        across = _positive(cells[needed] if len(cells) > needed else "")
    if kernel_height > height or kernel_width > width:
        raise TopologyError(f"a kernel of {kernel_height} x {kernel_width} is larger than its input of "
                            f"{height} x {width}")
    if (stride, across) == (1, 1):
        if (kernel_height, kernel_width) == (1, 1):
            return _product(height * width, channels, filters)
        if (kernel_height, kernel_width, channels) == (1, width, 1):
            return _product(height, width, filters)
    return _Row((channels, height, width), (kernel_height, kernel_width), (stride, across), filters)


def _product(m: int, k: int, n: int) -> _Row:
    """A product of M x K and K x N values: M pixels, as square as they go."""
    height = next(height for height in range(isqrt(m), 0, -1) if m % height == 0)
    return _Row((k, height, m // height), (1, 1), (1, 1), n)


def _positive(cell: str) -> int:
    if not cell.isascii() or not cell.isdecimal() or not int(cell):
        raise TopologyError(f"{cell!r} is not a positive integer")
    return int(cell)


# Models ------------------------------------------------------------------------------------------------------------


class _Cost(NamedTuple):
    """What a model says of one matrix product."""

    cycles: int
    busy: int  #: cycles in which operands stream in
    spent: int  #: cycles that the report's compute utilisation is of


def _output_stationary(m: int, k: int, n: int, rows: int, cols: int) -> _Cost:
    folds, fold = -(-m // rows) * -(-n // cols), k + rows + cols - 2
    return _Cost(folds * fold - 1, folds * k, folds * fold)


def _weight_stationary(m: int, k: int, n: int, rows: int, cols: int) -> _Cost:
    folds, fold = -(-k // rows) * -(-n // cols), 2 * rows + cols + m - 2
    return _Cost(folds * fold - 1, folds * m, folds * (fold + cols - 1))


def _gemmini(m: int, k: int, n: int, rows: int, cols: int) -> _Cost:
    if rows != cols:
        raise ConfigError(f"Gemmini's arrays are square, not {rows} x {cols}")
    folds = -(-k // rows) * -(-n // cols)
    cycles = folds * -(-m // rows) * rows
    return _Cost(cycles, folds * m, cycles)


def _overlapped(m: int, k: int, n: int, rows: int, cols: int) -> _Cost:
    folds = -(-k // rows) * -(-n // cols)
    cycles = folds * max(m, rows) + 2 * rows + cols - 2
    return _Cost(cycles, folds * m, cycles)


#: Cycle models of other arrays, of a product of M x K and K x N values on R x C processing elements:
#:
#: - ``scalesim-os``: ``ceil(M/R) * ceil(N/C) * (K + R + C - 2) - 1``, as SCALE-Sim counts an output-stationary array;
#: - ``scalesim-ws``: ``ceil(K/R) * ceil(N/C) * (2R + C + M - 2) - 1``, as it counts a weight-stationary one;
#: - ``gemmini``: ``ceil(M/R) * ceil(K/R) * ceil(N/R) * R``, what Gemmini's square array takes at best;
#: - ``overlapped``: ``ceil(K/R) * ceil(N/C) * max(M, R)`` and one fill of ``2R + C - 2`` per layer, what a
#:   weight-stationary array takes that loads weights beside its work.
MODELS: dict[str, Callable[[int, int, int, int, int], _Cost]] = {
    "scalesim-os": _output_stationary,
    "scalesim-ws": _weight_stationary,
    "gemmini": _gemmini,
    "overlapped": _overlapped,
}


@dataclass(frozen=True)
class _PeerLayer(LayerEstimate):
    """A layer by another model, whose report counts compute utilisation over ``spent`` cycles."""

    spent: int


def estimate_by(model: str, network: NetworkShape, config: ArrayConfig) -> Estimate:
    """Count a network's cycles by another array's model (a name of :data:`MODELS`).

    The array has ``rows * lanes`` rows. Only convolutions count; one in groups is as many products.

    Raises
    ------
    ConfigError
        If the model knows no such array.
    """
    def layers() -> Iterator[LayerEstimate]:
        for layer in network.layers:
            if layer.kind == "conv":
                source, target = network.tensor(layer.input), network.tensor(layer.output)
                each = MODELS[model](target.pixels, source.channels // layer.groups * layer.taps,
                                     target.channels // layer.groups, config.depth, config.cols)
                cycles, busy, spent = (layer.groups * number for number in each)
                busy = min(busy, cycles)  # an output-stationary array of one element is a cycle short
                counters = {**dict.fromkeys(COUNTERS, 0), "total": cycles, "busy": busy, "drain": cycles - busy}
                yield _PeerLayer(layer.name, network.macs(layer), counters, spent)

    return Estimate(config, tuple(layers()), model=model)


# Report ------------------------------------------------------------------------------------------------------------


def report_csv(estimate: Estimate) -> str:
    """Write an estimate as SCALE-Sim's ``COMPUTE_REPORT.csv``: one line per layer, by number.

    Total cycles hold stall cycles, which are waits for weights or for requantization. Overall utilisation is the share
    of the products that all cycles could form, compute utilisation of those that are no stalls, mapping efficiency of
    those in which operands stream in.
    """
    lines = ["LayerID, Total Cycles, Stall Cycles, Overall Util %, Mapping Efficiency %, Compute Util %,"]
    for index, layer in enumerate(estimate.layers):
        spent = layer.spent if isinstance(layer, _PeerLayer) else layer.cycles - layer.waits
        shares = (100 * estimate.share(layer.macs, cycles) for cycles in (layer.cycles, layer.counters["busy"], spent))
        lines.append(", ".join(map(str, (index, layer.cycles, layer.waits, *shares))) + ",")
    return "\n".join(lines) + "\n"
