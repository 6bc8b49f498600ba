"""Quantization: from a float network and calibration inputs to integers, which can then be trained.

Names are imported when they are first used: post-training quantization of a float graph needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .config import QuantizeConfig, QuantizeError
from .equalize import equalize
from .network import quantize_graph, quantize_report
from .report import LayerReport, QuantizeReport

if TYPE_CHECKING:
    from .module import QuantizedNetwork, quantize

__all__ = ["LayerReport", "QuantizeConfig", "QuantizeError", "QuantizeReport", "QuantizedNetwork", "equalize",
           "quantize", "quantize_graph", "quantize_report"]


def __getattr__(name: str) -> Any:
    if name not in ("QuantizedNetwork", "quantize"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".module", __name__), name)
