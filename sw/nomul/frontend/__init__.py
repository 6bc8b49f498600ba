"""From a PyTorch module to a float graph of the few layers that the machine runs.

Importing this package does not import torch; only :func:`import_module` does.
"""

from .float_graph import INPUT, FloatConcat, FloatConv, FloatGraph, FloatLayer, FloatOperation, FloatPool
from .importer import import_module
from .operators import Offender, UnsupportedError

__all__ = [
    "INPUT", "FloatConcat", "FloatConv", "FloatGraph", "FloatLayer", "FloatOperation", "FloatPool", "Offender",
    "UnsupportedError", "import_module",
]
