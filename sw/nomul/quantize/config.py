"""What a user may choose about quantization, and the error that quantization raises."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal, get_args

import numpy as np

from nomul.frontend import FloatConv
from nomul_hw.arithmetic import gain_multipliers, max_gain_shift
from nomul_hw.formats import WeightFormat, get_format

__all__ = ["Calibration", "Method", "QuantizeConfig", "QuantizeError", "Steps"]

Method = Literal["nearest", "gptq", "adaround", "best"]

Calibration = Literal["error", "percentile", "max"]

Steps = Literal["error", "correlation", "range", "mean", "laplacian"]


class QuantizeError(ValueError):
    """A network or a choice that cannot be quantized; the message says what would do."""


@dataclass(frozen=True)
class QuantizeConfig:
    """How to quantize a network.

    Parameters
    ----------
    format : WeightFormat
        Levels of the weights (a name such as ``"ternary"`` is accepted and looked up).
    act_bits : int
        Width of all activations.
    gain_terms : int
        Signed digits of the requantization gains: 1, 2 or 3.
    acc_bits : int
        Width of the accumulators: no sum may need more, and gains shift no further than suits it.
    method : str
        ``"gptq"`` chooses the weights of an output channel together, each making up for the errors of those before
        it; ``"nearest"`` rounds each weight on its own. ``"adaround"`` goes on from ``"gptq"``: it learns which of two
        neighbouring levels each weight gets, with the activation function in view, and takes a few times as long; it
        needs torch. ``"best"`` tries these and others for every layer, and keeps what moves the network's output least
        on calibration inputs that the trial did not see; it takes as long as all of them.
    steps : str
        How the step of an output channel is chosen among those that the requantizer has. ``"error"``: with the levels,
        by the least error of the layer's output. Else by one of the rules of :func:`nomul.quantize.scalar.steps`, which
        look at the weights alone, snapped to the nearest: ``"correlation"``, ``"range"``, ``"mean"`` (XNOR's and
        absmean's scale; a power of two with ``gain_terms=1``), ``"laplacian"`` (uniform formats).
    damping : float
        Share of the mean input power that ``"gptq"`` adds to every input. It keeps weights near their float values
        where calibration has little to say: more than the customary 0.01, since weights also follow the errors of
        earlier layers. A layer that sees fewer pixels than it has inputs gets more of it.
    activations : str
        How scales of activations are chosen: ``"error"`` by least squared error, ``"percentile"`` so that
        ``percentile`` per cent of the values do not saturate, ``"max"`` so that none does.
    percentile : float
        For ``activations="percentile"``, 50 to 100.
    equalization : float
        How far channels of one tensor are made equally large before anything else, 0 (not at all) to 1; see
        :func:`nomul.quantize.equalize`.
    bias_correction : bool
        Restore the mean of every output channel, as calibration sees it.
    formats : mapping of str to WeightFormat
        Other formats for some layers, by patterns of their names, such as ``{"conv1": "int8", "*.fc": "int8"}``. The
        first pattern that matches decides.

    Raises
    ------
    QuantizeError
        If a value is impossible.
    """

    format: WeightFormat
    act_bits: int = 8
    gain_terms: int = 2
    acc_bits: int = 24
    method: Method = "gptq"
    steps: Steps = "error"
    damping: float = 0.1
    activations: Calibration = "error"
    percentile: float = 99.99
    equalization: float = 0.0
    bias_correction: bool = True
    formats: Mapping[str, WeightFormat] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "format", _format(self.format))
            object.__setattr__(self, "formats", {name: _format(value) for name, value in self.formats.items()})
            gain_multipliers(self.gain_terms)
        except ValueError as error:
            raise QuantizeError(str(error)) from None
        for name, low, high in (("act_bits", 2, 8), ("acc_bits", 12, 32)):
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise QuantizeError(f"{name} must be an integer in {low}..{high}, not {value!r}")
        for name, choices in (("method", get_args(Method)), ("steps", get_args(Steps)),
                              ("activations", get_args(Calibration))):
            if getattr(self, name) not in choices:
                raise QuantizeError(f"{name.capitalize()} must be one of {', '.join(choices)}, "
                                    f"not {getattr(self, name)!r}")
        for name, least, most in (("damping", 1e-6, 1e6), ("percentile", 50.0, 100.0), ("equalization", 0.0, 1.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
                raise QuantizeError(f"{name} must be a number in {least:g}..{most:g}, not {value!r}")

    def format_of(self, layer: FloatConv) -> WeightFormat:
        """Format of a layer's weights.

        A layer that only passes channels on, its weights 0 and 1, gets ternary ones where else it would have no zero.
        """
        fmt = next((value for pattern, value in self.formats.items() if fnmatchcase(layer.name, pattern)), self.format)
        return fmt if fmt.zero or not passes_on(layer) else get_format("ternary")

    @property
    def max_gain_shift(self) -> int:
        """Largest right shift of a gain."""
        return max_gain_shift(self.acc_bits, self.act_bits)


def passes_on(layer: FloatConv) -> bool:
    """Whether every output channel is one of the input channels, or zero."""
    return layer.taps == 1 and bool(np.isin(layer.weights, (0.0, 1.0)).all() and layer.weights.sum(axis=1).max() <= 1)


def _format(value: WeightFormat | str) -> WeightFormat:
    if isinstance(value, str):
        return get_format(value)
    if not isinstance(value, WeightFormat):
        raise QuantizeError(f"Format must be a WeightFormat or the name of one, not {value!r}")
    return value
