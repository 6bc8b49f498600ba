"""Where the accuracy went: one line per layer."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["LayerReport", "QuantizeReport", "correlation", "decibels", "level_use", "sqnr_db"]


@dataclass(frozen=True)
class LayerReport:
    """What quantization did to one layer, on the calibration inputs.

    Parameters
    ----------
    name : str
        The layer.
    kind : str
        ``"conv"``, ``"max"`` or ``"average"``.
    weight_sqnr : float or None
        Power of the weights over that of their error, dB.
    output_sqnr : float
        Power of the float network's output of this layer over that of the error so far, dB.
    zeros : float or None
        Share of the weights that are 0.
    saturation : float
        Share of the output codes that the activation function would have let pass, but the code range does not.
    exponent : int
        Scale of the output codes, a power of two.
    rho : float or None
        Correlation of the weights with the quantized ones, 0..1.
    levels : mapping of int to int
        How many weights have each level that occurs, ascending; empty without weights.
    """

    name: str
    kind: str
    weight_sqnr: float | None
    output_sqnr: float
    zeros: float | None
    saturation: float
    exponent: int
    rho: float | None = None
    levels: Mapping[int, int] = field(default_factory=dict)

    @property
    def exponents(self) -> dict[int, float]:
        """Share of the weights by the exponent of their level, ``floor(log2 |level|)``; zeros have none."""
        counts: Counter[int] = Counter()
        for level, count in self.levels.items():
            if level:
                counts[abs(level).bit_length() - 1] += count
        total = sum(self.levels.values())
        return {at: counts[at] / total for at in range(min(counts), max(counts) + 1)} if counts else {}


@dataclass(frozen=True)
class QuantizeReport:
    """One entry per layer, in order of execution."""

    layers: tuple[LayerReport, ...]

    def to_dict(self) -> list[dict[str, Any]]:
        """Plain data, one dictionary per layer."""
        return [{**asdict(layer), "exponents": layer.exponents} for layer in self.layers]

    def __str__(self) -> str:
        rows: Iterable[tuple[str, ...]] = [
            ("layer", "kind", "rho", "weights dB", "output dB", "zeros", "saturated", "scale"),
            *((layer.name, layer.kind, "" if layer.rho is None else f"{layer.rho:.4f}",
               "" if layer.weight_sqnr is None else f"{layer.weight_sqnr:.1f}", f"{layer.output_sqnr:.1f}",
               "" if layer.zeros is None else f"{layer.zeros:.0%}",
               f"{layer.saturation:.2%}", f"2^{layer.exponent}") for layer in self.layers)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                         for row in rows)


def sqnr_db(signal: npt.NDArray[np.float64], approximation: npt.NDArray[np.float64]) -> float:
    """Signal-to-quantization-noise ratio in dB; infinite where nothing is lost."""
    return decibels(float(np.square(signal).sum()), float(np.square(signal - approximation).sum()))


def correlation(weights: npt.NDArray[np.float64], quantized: npt.NDArray[np.float64]) -> float:
    """Correlation about 0 of weights with what they are quantized to, 0..1; 0 if either is all zero."""
    norm = float(np.sqrt(np.square(weights).sum() * np.square(quantized).sum()))
    return float((weights * quantized).sum()) / norm if norm else 0.0


def level_use(levels: npt.NDArray[Any]) -> dict[int, int]:
    """How many weights have each level, ascending."""
    found, counts = np.unique(levels, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def decibels(power: float, noise: float) -> float:
    """The ratio of a signal's power to that of its noise in dB; infinite where there is no noise."""
    if noise == 0.0:
        return float("inf")
    return 10 * float(np.log10(power / noise)) if power else float("-inf")
