"""Scalar quantizers of the literature: weights in, levels and codes out, nothing else looked at.

Every quantizer is a frozen dataclass with one method, ``fit(weights) -> Codebook``; weights are an array of any shape,
or one of the densities :data:`GAUSSIAN` and :data:`LAPLACIAN`, for which everything is exact. They say how good a set
of levels can be, and which one suits a layer. :func:`exact_format`, :func:`nearest_format` and :func:`steps` lead from
there to what the machine has. Pure NumPy.
"""

from typing import Protocol

from .codebook import Codebook
from .exponential import Exponential
from .hardware import StepRule, exact_format, nearest_format, steps
from .levels import INQ, APoT, DeepShift, LevelSet, LogNet
from .linear import Linear, UniformLaplacian, laplacian_bits, laplacian_sqnr, laplacian_support
from .lloyd import LloydMax
from .source import GAUSSIAN, LAPLACIAN, Density, Sample, Weights
from .ternary import Binary, Ternary, TernaryTGA, tga_scale, tga_slopes

__all__ = [
    "GAUSSIAN", "INQ", "LAPLACIAN", "APoT", "Binary", "Codebook", "DeepShift", "Density", "Exponential", "LevelSet",
    "Linear", "LloydMax", "LogNet", "Quantizer", "Sample", "StepRule", "Ternary", "TernaryTGA", "UniformLaplacian",
    "exact_format", "laplacian_bits", "laplacian_sqnr", "laplacian_support", "nearest_format", "steps", "tga_scale",
    "tga_slopes",
]


class Quantizer(Protocol):
    """What all of them are."""

    def fit(self, weights: Weights) -> Codebook:
        """Quantize weights of any shape, or a density."""
        ...
