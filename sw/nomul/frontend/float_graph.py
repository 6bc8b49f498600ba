"""The float graph: an imported network before quantization, and its exact meaning in float64.

Batch norms are folded, activations and additions are part of the layer before them, reshapes are gone: what is left are
convolutions and pools, which is what a quantizer wants to see. A linear layer is the convolution whose kernel is the
whole input map; an addition that no layer can take over is an average over one pixel that adds another tensor.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = ["INPUT", "FloatConv", "FloatGraph", "FloatLayer", "FloatPool", "patches", "windows"]

Float64Array = npt.NDArray[np.float64]

#: What stands for the network's input where layers are named.
INPUT = ""

#: Values that :func:`patches` holds at a time; larger batches are cut.
PATCH_VALUES = 1 << 23


@dataclass(frozen=True, eq=False)
class FloatLayer:
    """What convolutions and pools share: a window that slides over the input, an addition, and a clamp of the output.

    Parameters
    ----------
    name : str
        Unique; the module path of the layer it came from.
    kernel, stride, dilation : (int, int)
        Vertical, horizontal.
    padding : (int, int, int, int)
        Top, left, bottom, right.
    low, high : float
        Clamp of the output, the activation function; infinite where there is none.
    input : str, optional
        Name of the layer whose output it reads, or :data:`INPUT`; None for the layer before it.
    skip : str, optional
        Name of the layer whose output is added before the clamp, or :data:`INPUT`.
    """

    name: str
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    low: float = field(default=-np.inf, kw_only=True)
    high: float = field(default=np.inf, kw_only=True)
    input: str | None = field(default=None, kw_only=True)
    skip: str | None = field(default=None, kw_only=True)

    @property
    def taps(self) -> int:
        """Positions of the window."""
        return self.kernel[0] * self.kernel[1]

    def output_shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        """(channels, height, width) of the output for an input of this shape."""
        top, left, bottom, right = self.padding
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True)]
        return (channels, (height + top + bottom - spans[0]) // self.stride[0] + 1,
                (width + left + right - spans[1]) // self.stride[1] + 1)

    def linear(self, x: Float64Array) -> Float64Array:
        """Apply the layer without addition and clamp: (N, C, H, W) to (N, C', H', W')."""
        raise NotImplementedError

    def run(self, x: Float64Array, skip: Float64Array | None = None) -> Float64Array:
        """Apply the layer: (N, C, H, W), and what it adds, to (N, C', H', W')."""
        linear = self.linear(x)
        return np.clip(linear if skip is None else linear + skip, self.low, self.high)


@dataclass(frozen=True, eq=False)
class FloatConv(FloatLayer):
    """A convolution or a linear layer, batch norm folded.

    Parameters
    ----------
    weights : float64 array, shape (out_channels, in_channels, kernel height, kernel width)
    bias : float64 array, shape (out_channels,)
    """

    weights: Float64Array = field(kw_only=True)
    bias: Float64Array = field(kw_only=True)

    def output_shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        """(channels, height, width) of the output for an input of this shape."""
        return len(self.weights), *super().output_shape(channels, height, width)[1:]

    def linear(self, x: Float64Array) -> Float64Array:
        """Convolve and add the bias."""
        _, height, width = self.output_shape(*x.shape[1:])
        flat = self.weights.reshape(len(self.weights), -1).T  # (C * kh * kw, C')
        rows = np.concatenate([part @ flat for part in patches(x, self, 0.0)])
        return (rows + self.bias).reshape(len(x), height, width, -1).transpose(0, 3, 1, 2)


@dataclass(frozen=True, eq=False)
class FloatPool(FloatLayer):
    """Maximum, or sum over ``divisor``, over a window per channel. Padding never wins a maximum and adds 0 to a sum.

    Parameters
    ----------
    kind : str
        ``"max"`` or ``"average"``.
    divisor : int
        What an average divides the sum by, the size of the window as a rule.
    """

    kind: Literal["max", "average"] = field(kw_only=True)
    divisor: int = field(default=1, kw_only=True)

    def linear(self, x: Float64Array) -> Float64Array:
        """Pool."""
        if self.kind == "max":
            return windows(x, self, -np.inf).max(axis=(4, 5))
        return windows(x, self, 0.0).sum(axis=(4, 5)) / self.divisor


@dataclass(frozen=True, eq=False)
class FloatGraph:
    """A network of float layers.

    Parameters
    ----------
    input_shape : (int, int, int)
        (channels, height, width) of one sample; a vector of features has height and width 1.
    layers : tuple of FloatLayer
        In execution order; the last one's output is the network's. Their ``input`` is never None here.
    output_shape : tuple of int
        Shape that a user sees for one sample's output: ``(10,)`` after a flatten.

    Raises
    ------
    ValueError
        If a layer reads what no layer before it makes, two have the same name, or a maximum pool adds.
    """

    input_shape: tuple[int, int, int]
    layers: tuple[FloatLayer, ...]
    output_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        known, layers = [INPUT], list[FloatLayer]()
        for layer in self.layers:
            layer = layer if layer.input is not None else replace(layer, input=known[-1])
            for name in (layer.input, layer.skip):
                if name is not None and name not in known:
                    raise ValueError(f"Layer {layer.name!r} reads {name!r}, which no layer before it makes")
            if layer.name in known:
                raise ValueError(f"There are two layers {layer.name!r}")
            if layer.skip is not None and isinstance(layer, FloatPool) and layer.kind == "max":
                raise ValueError(f"Layer {layer.name!r} is a maximum pool, which cannot add")
            known.append(layer.name)
            layers.append(layer)
        object.__setattr__(self, "layers", tuple(layers))

    def last_readers(self) -> dict[str, int]:
        """Index of the last layer that reads each tensor, by the tensor's name; who reads last may drop it."""
        return {name: at for at, layer in enumerate(self.layers) for name in (layer.input, layer.skip)
                if name is not None}

    def outputs(self, x: Float64Array) -> Iterator[tuple[FloatLayer, Float64Array]]:
        """Run inputs (N, C, H, W), and yield every layer with its output (N, C', H', W')."""
        values, last = {INPUT: x}, self.last_readers()
        for at, layer in enumerate(self.layers):
            assert layer.input is not None
            value = layer.run(values[layer.input], None if layer.skip is None else values[layer.skip])
            yield layer, value
            values[layer.name] = value
            values = {name: kept for name, kept in values.items() if last.get(name, -1) > at}

    def run(self, x: npt.ArrayLike) -> Float64Array:
        """Run real inputs (N, ...) through the graph in float64; returns (N, *output_shape)."""
        value = self.as_input(x)
        *_, (_, value) = [(None, value), *self.outputs(value)]
        return value.reshape(len(value), *self.output_shape)

    def as_input(self, x: npt.ArrayLike) -> Float64Array:
        """Bring inputs of any dtype to float64 (N, channels, height, width).

        Raises
        ------
        ValueError
            If the samples do not have the shape of the graph's input.
        """
        array = np.asarray(x, dtype=np.float64)
        if array.ndim < 2 or array[0].size != np.prod(self.input_shape) or (
                array.ndim == 4 and array.shape[1:] != self.input_shape):
            raise ValueError(f"Inputs must be (samples, {', '.join(map(str, self.input_shape))}), not {array.shape}")
        return array.reshape(len(array), *self.input_shape)


def windows(x: Float64Array, layer: FloatLayer, fill: float) -> Float64Array:
    """Every position of a layer's window, as a view: (N, C, H, W) to (N, C, H', W', kh, kw)."""
    top, left, bottom, right = layer.padding
    padded = x
    if any(layer.padding):
        padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    spans = tuple(d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel, strict=True))
    view = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=(2, 3))
    return view[:, :, :: layer.stride[0], :: layer.stride[1], :: layer.dilation[0], :: layer.dilation[1]]


def patches(x: Float64Array, layer: FloatLayer, fill: float) -> Iterator[Float64Array]:
    """The rows of a convolution's matrix product, in order: arrays (pixels, C * kh * kw), a part of the batch each."""
    _, height, width = layer.output_shape(*x.shape[1:])
    columns = x.shape[1] * layer.taps
    step = max(1, PATCH_VALUES // (height * width * columns))
    for start in range(0, len(x), step):
        view = windows(x[start : start + step], layer, fill)
        yield view.transpose(0, 2, 3, 1, 4, 5).reshape(-1, columns)
