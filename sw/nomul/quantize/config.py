"""What a user may choose about quantization, and the error that quantization raises."""

from dataclasses import dataclass
from typing import Literal, get_args

from nomul_hw.arithmetic import gain_multipliers
from nomul_hw.formats import WeightFormat, get_format

__all__ = ["Method", "QuantizeConfig", "QuantizeError"]

Method = Literal["nearest", "gptq"]


class QuantizeError(ValueError):
    """A network or a choice that cannot be quantized; the message says what would do."""


@dataclass(frozen=True)
class QuantizeConfig:
    """How to quantize a network.

    Parameters
    ----------
    format : WeightFormat
        Levels of all weights (a name such as ``"ternary"`` is accepted and looked up).
    act_bits : int
        Width of all activations.
    gain_terms : int
        Signed digits of the requantization gains: 1, 2 or 3.
    acc_bits : int
        Width of the accumulators: no sum may need more, no gain shifts further.
    method : str
        ``"gptq"`` chooses the weights of an output channel together, each making up for the errors of those before
        it; ``"nearest"`` rounds each weight on its own.
    bias_correction : bool
        Restore the mean of every output channel, as calibration sees it.

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
    bias_correction: bool = True

    def __post_init__(self) -> None:
        try:
            if isinstance(self.format, str):
                object.__setattr__(self, "format", get_format(self.format))
            gain_multipliers(self.gain_terms)
        except ValueError as error:
            raise QuantizeError(str(error)) from None
        if not isinstance(self.format, WeightFormat):
            raise QuantizeError(f"Format must be a WeightFormat or the name of one, not {self.format!r}")
        for name, low, high in (("act_bits", 2, 8), ("acc_bits", 12, 32)):
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise QuantizeError(f"{name} must be an integer in {low}..{high}, not {value!r}")
        if self.method not in get_args(Method):
            raise QuantizeError(f"Method must be one of {', '.join(get_args(Method))}, not {self.method!r}")

    @property
    def max_gain_shift(self) -> int:
        """Largest right shift of a gain."""
        return self.acc_bits
