"""Post-training quantization: from a float network and calibration inputs to an integer graph."""

from .config import QuantizeConfig, QuantizeError
from .network import quantize, quantize_report
from .report import LayerReport, QuantizeReport

__all__ = ["LayerReport", "QuantizeConfig", "QuantizeError", "QuantizeReport", "quantize", "quantize_report"]
