"""Compare the scalar quantizers on Gaussian and Laplacian weights, and on those of real networks.

    python -m nomul.bench.quantizers
    python -m nomul.bench.quantizers resnet20.th mobilenet.npz --bits 3,4,5
    python -m nomul.bench.quantizers --plot quantizers.svg

One scale per layer, as in the papers; for the machine's formats a step per channel too. A free gain is granted to all,
so the figures are ``-10 log10(1 - rho²)``; those of several layers are the mean of their decibels.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nomul.quantize import QuantizeError
from nomul.quantize.scalar import (
    GAUSSIAN,
    INQ,
    LAPLACIAN,
    APoT,
    Binary,
    DeepShift,
    Density,
    Exponential,
    LevelSet,
    Linear,
    LloydMax,
    LogNet,
    Quantizer,
    Sample,
    Ternary,
    TernaryTGA,
    nearest_format,
    steps,
)
from nomul.report import print_json, print_text
from nomul_hw.formats import FORMATS, WeightFormat, get_format

__all__ = ["Comparison", "Formats", "Method", "compare", "compare_formats", "load_layers", "methods"]

Float64Array = npt.NDArray[np.float64]

#: Weights of the layer that a density stands for where a method looks at the largest weight.
WEIGHTS = 10**6

#: Layers of fewer weights, and tensors of one dimension, are left out: codes of up to 64 levels would fit them exactly.
SMALLEST = 256

#: Names of rows that are compared with each other, and which with which.
PART_I, PART_II, WITH_ZERO = "exponential, range", "exponential, best", "exponential with 0, best"
RANGE, CLIPPED, BEST = "linear, range", "linear, 99.9 % clipped", "linear, best"
VERSUS = ((PART_I, RANGE), (PART_II, CLIPPED), (PART_II, BEST), (WITH_ZERO, BEST))


@dataclass(frozen=True)
class Method:
    """What a method does to the layers of one network, or to one density.

    Attributes
    ----------
    method : str
    bits : int
    sqnr : tuple of float
        Decibels of every layer, with the best gain.
    rho : tuple of float
        Correlation of every layer.
    zeros : tuple of float
        Share of zeros of every layer.
    ratio : tuple of float or None
        Of neighbouring levels.
    format : tuple of str
        The nearest hardware format of every layer, for searched ratios.
    """

    method: str
    bits: int
    sqnr: tuple[float, ...]
    rho: tuple[float, ...]
    zeros: tuple[float, ...]
    ratio: tuple[float | None, ...]
    format: tuple[str, ...]

    @property
    def mean_sqnr(self) -> float:
        """Mean of the layers' decibels."""
        return float(np.mean(self.sqnr))


@dataclass(frozen=True)
class Formats:
    """What a hardware format does to the layers of one network: decibels of every layer with one step, and a step per
    channel."""

    format: str
    bits: int
    layer: tuple[float, ...]
    channel: tuple[float, ...]


@dataclass(frozen=True)
class Comparison:
    """All methods on one density or one network."""

    name: str
    layers: tuple[str, ...]
    methods: tuple[Method, ...]
    formats: tuple[Formats, ...]

    def find(self, method: str, bits: int) -> Method | None:
        """What a method does with so many bits, or None if it has none of these."""
        return next((each for each in self.methods if (each.method, each.bits) == (method, bits)), None)


def methods(bits: int) -> dict[str, Quantizer]:
    """Every quantizer that has so many bits, 1 to 6, by the name of its row."""
    if bits == 1:
        return {BEST: Linear(1), "binary, power of two": Binary(power_of_two=True)}
    rows: dict[str, Quantizer] = {
        RANGE: Linear(bits, "range"), CLIPPED: Linear(bits, "clipping"), BEST: Linear(bits),
        PART_I: Exponential(bits, criterion="range"), PART_II: Exponential(bits),
    }
    if bits == 2:
        rows |= {"ternary, best": Ternary(), "ternary, TWN": Ternary("twn"), "ternary, absmean": Ternary("absmean"),
                 "ternary, TGA at 0.6": TernaryTGA(), "ternary, TGA at 5 %": TernaryTGA(share=0.05)}
    else:
        rows |= {WITH_ZERO: Exponential(bits, zero=True), "base 2": Exponential(bits, 2.0),
                 "base 2 with 0": Exponential(bits, 2.0, zero=True),
                 "base sqrt(2) with 0": Exponential(bits, math.sqrt(2), zero=True), "APoT": APoT(bits),
                 "DeepShift-Q": DeepShift(bits), "INQ": INQ(bits), "LogNet": LogNet(bits),
                 "LogNet, sqrt(2)": LogNet(bits, "sqrt2")}
    return rows | {"Lloyd-Max": LloydMax(bits)}


#: All rows, in the order of the tables.
ROWS = tuple(dict.fromkeys([*methods(3), *methods(2), *methods(1)]))

#: Rows whose ratio was searched, and so need a hardware format.
_SEARCHED = (PART_II, WITH_ZERO)


def compare(name: str, layers: Mapping[str, Float64Array | Density], bits: Sequence[int]) -> Comparison:
    """Run all methods of so many bits on weights of any shape."""
    sources = [weights if isinstance(weights, Density) else Sample(weights) for weights in layers.values()]
    found = []
    for width in bits:
        for method, quantizer in methods(width).items():
            if isinstance(quantizer, DeepShift) and any(isinstance(source, Density) for source in sources):
                continue  # it has no scale, and weights of unit variance are not below 1
            books = [quantizer.fit(source) for source in sources]
            formats = tuple(nearest_format(book).name for book in books) if method in _SEARCHED else ()
            found.append(Method(method, width, tuple(book.best_sqnr for book in books),
                                tuple(book.rho for book in books), tuple(book.zeros for book in books),
                                tuple(book.ratio for book in books), formats))
    arrays = {layer: weights for layer, weights in layers.items() if not isinstance(weights, Density)}
    return Comparison(name, tuple(layers), tuple(found), compare_formats(arrays, bits) if arrays else ())


def compare_formats(layers: Mapping[str, Float64Array], bits: Sequence[int]) -> tuple[Formats, ...]:
    """Nearest levels of the hardware's formats of so many bits, for weights (channels, ...)."""
    formats = [fmt for fmt in FORMATS.values() if fmt.bits in bits]
    formats += [get_format(f"int{width}") for width in bits if width > 1 and f"int{width}" not in FORMATS]
    found = []
    for fmt in sorted(formats, key=lambda fmt: fmt.bits):
        pairs = [(LevelSet.of(fmt).fit(weights).sqnr, _channel_sqnr(weights, fmt)) for weights in layers.values()]
        found.append(Formats(fmt.name, fmt.bits, tuple(layer for layer, _ in pairs),
                             tuple(channel for _, channel in pairs)))
    return tuple(found)


def _channel_sqnr(weights: Float64Array, fmt: WeightFormat) -> float:
    rows = weights.reshape(len(weights), -1)
    step = steps(rows, fmt)[:, None]
    error = rows - fmt.nearest(np.divide(rows, step, out=np.zeros_like(rows), where=step > 0)) * step
    return 10 * math.log10(float(np.square(rows).sum()) / max(float(np.square(error).sum()), 1e-300))


def load_layers(path: Path, *, channels_last: bool = False) -> dict[str, Float64Array]:
    """Read the weights of a network.

    Parameters
    ----------
    path : Path
        ``.npz`` (float arrays; an integer array ``X/code`` with a float array ``X/codebook`` is weights too),
        ``.safetensors``, or a state dictionary of PyTorch (``.pt``, ``.pth``, ``.th``).
    channels_last : bool
        Output channels are the last axis, as in TensorFlow; the one before it where the last has one element.

    Returns
    -------
    dict of str to float64 array, shape (channels, ...)
        Tensors of two dimensions and more.

    Raises
    ------
    QuantizeError
        If the file cannot be read, or holds no weights.
    """
    found = {}
    try:
        for name, values in _tensors(path):
            weights = np.asarray(values, dtype=np.float64)
            if weights.ndim < 2 or weights.size < SMALLEST or not weights.any():
                continue
            axis = -1 if channels_last else 0
            if weights.shape[axis] == 1:
                axis = -2 if channels_last else -1
            found[name] = np.ascontiguousarray(np.moveaxis(weights, axis, 0))
    except ModuleNotFoundError:
        raise
    except Exception as error:  # files can be broken in as many ways as there are readers
        if isinstance(error, FileNotFoundError):
            raise QuantizeError(f"{path}: no such file") from None
        raise QuantizeError(f"{path}: not a file of weights ({error})") from None
    if not found:
        raise QuantizeError(f"{path}: no float tensor of two dimensions and at least {SMALLEST} weights")
    return found


def _tensors(path: Path) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """All float tensors of a file."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            for name in arrays.files:
                values, codebook = arrays[name], f"{name.removesuffix('/code')}/codebook"
                if values.dtype.kind in "ui" and name.endswith("/code") and codebook in arrays.files:
                    yield name.removesuffix("/code"), arrays[codebook][values]
                elif values.dtype.kind == "f":
                    yield name, values
    elif path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        yield from ((name, values) for name, values in load_file(path).items() if values.dtype.kind == "f")
    elif path.suffix in (".pt", ".pth", ".th"):
        import torch

        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, values in state.get("state_dict", state).items():
            if isinstance(values, torch.Tensor) and values.is_floating_point():
                yield name, values.double().numpy()
    else:
        raise QuantizeError(f"{path}: expected .npz, .safetensors, .pt, .pth or .th")


def _document(comparison: Comparison) -> dict[str, Any]:
    return {"name": comparison.name, "layers": list(comparison.layers),
            "methods": [asdict(each) | {"mean_sqnr": each.mean_sqnr} for each in comparison.methods],
            "formats": [asdict(each) for each in comparison.formats]}


def _print(comparison: Comparison, bits: Sequence[int]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    layers = len(comparison.layers)
    table = Table(title=f"{comparison.name}: SQNR in dB" + (f", mean of {layers} layers" if layers > 1 else ""),
                  box=SIMPLE_HEAD, title_justify="left")
    table.add_column("method")
    for width in bits:
        table.add_column(f"{width} bit", justify="right")
    for name in ROWS:
        found = [comparison.find(name, width) for width in bits]
        if any(found):
            table.add_row(name, *("" if each is None else f"{each.mean_sqnr:.2f}" for each in found))
    table.add_section()
    for name, other in VERSUS:
        cells = []
        for width in bits:
            one, two = comparison.find(name, width), comparison.find(other, width)
            if one is None or two is None:
                cells.append("")
                continue
            wins = sum(left > right for left, right in zip(one.sqnr, two.sqnr, strict=True))
            cells.append(f"{one.mean_sqnr - two.mean_sqnr:+.2f}" + (f" ({wins}/{layers})" if layers > 1 else ""))
        table.add_row(f"{name} against {other}" + (" (layers won)" if layers > 1 else ""), *cells)
    print_text(table)
    if comparison.formats:
        table = Table(title=f"{comparison.name}: formats of the machine, nearest levels, SQNR in dB", box=SIMPLE_HEAD,
                      title_justify="left")
        for heading in ("format", "bits", "a step per layer", "a step per channel", "gained"):
            table.add_column(heading, justify="left" if heading == "format" else "right")
        for each in comparison.formats:
            layer, channel = float(np.mean(each.layer)), float(np.mean(each.channel))
            table.add_row(each.format, str(each.bits), f"{layer:.2f}", f"{channel:.2f}", f"{channel - layer:+.2f}")
        print_text(table)


#: Rows of the picture.
_LINES = (RANGE, CLIPPED, BEST, PART_I, PART_II, WITH_ZERO, "base 2")


def plot(comparisons: Sequence[Comparison], bits: Sequence[int], path: Path) -> None:
    """Draw SQNR over bits, one panel per density or network."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "nomul"
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(comparisons), figsize=(1 + 3.6 * len(comparisons), 4), sharey=True,
                                  squeeze=False, layout="constrained")
    for axes, comparison in zip(panels[0], comparisons, strict=True):
        for name in _LINES:
            points = [(each.bits, each.mean_sqnr) for width in bits if (each := comparison.find(name, width))]
            colour = "C0" if name.startswith("linear") else "C3" if name.startswith("exponential") else "0.5"
            style = ":" if "range" in name else "--" if name in (CLIPPED, PART_II) else "-"
            axes.plot(*zip(*points, strict=True), style, color=colour, marker=".", label=name)
        axes.set(title=comparison.name, xlabel="bits, sign included", xticks=list(bits))
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("SQNR, dB")
    panels[0][0].legend(fontsize=8)
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, metadata=metadata)
    plt.close(figure)


def _widths(text: str) -> tuple[int, ...]:
    try:
        widths = tuple(int(part) for part in text.split(","))
    except ValueError:
        widths = ()
    if not widths or not all(1 <= width <= 6 for width in widths):
        raise argparse.ArgumentTypeError(f"expected numbers from 1 to 6 with commas, such as 3,4,5, not {text!r}")
    return widths


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m nomul.bench.quantizers",
                                     description="Compare scalar quantizers on densities and on networks' weights.")
    parser.add_argument("weights", nargs="*", type=Path, metavar="WEIGHTS",
                        help="weights of a network: .npz, .safetensors, .pt, .pth, .th")
    parser.add_argument("--bits", type=_widths, default=(1, 2, 3, 4, 5, 6), metavar="N,N",
                        help="bits to compare at (default: 1,2,3,4,5,6)")
    parser.add_argument("--channels-last", action="store_true",
                        help="output channels are the last axis of the tensors, as in TensorFlow")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a picture too")
    parser.add_argument("--json", action="store_true", help="print one JSON document, with figures of every layer")
    chosen = parser.parse_args(arguments)
    try:
        inputs: list[tuple[str, Mapping[str, Float64Array | Density]]] = [
            *((density.name, {density.name: density.among(WEIGHTS)}) for density in (GAUSSIAN, LAPLACIAN)),
            *((path.name, load_layers(path, channels_last=chosen.channels_last)) for path in chosen.weights)]
        comparisons = []
        for name, layers in inputs:
            comparisons.append(compare(name, layers, chosen.bits))
            if not chosen.json:
                _print(comparisons[-1], chosen.bits)
        if chosen.json:
            print_json({"comparisons": [_document(comparison) for comparison in comparisons]})
        if chosen.plot:
            plot(comparisons, chosen.bits, chosen.plot)
    except QuantizeError as error:
        print(error, file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        extra = {"torch": "torch", "matplotlib": "demo"}.get(error.name or "")
        if extra is None:
            raise
        print(f"this needs the package {error.name!r}: pip install 'nomul[{extra}]'", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
