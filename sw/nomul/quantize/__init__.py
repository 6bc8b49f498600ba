"""Post-training quantization: from a float network and calibration inputs to an integer graph."""

from .config import QuantizeConfig, QuantizeError
from .equalize import equalize
from .network import quantize, quantize_report
from .report import LayerReport, QuantizeReport

__all__ = ["LayerReport", "QuantizeConfig", "QuantizeError", "QuantizeReport", "equalize", "quantize",
           "quantize_report"]
