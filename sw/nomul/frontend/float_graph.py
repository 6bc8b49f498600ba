"""The float graph: an imported network before quantization, and its exact meaning in float64.

Batch norms are folded, activations and additions are part of the layer before them, reshapes are gone: what is left are
convolutions, pools and concatenations, which is what a quantizer wants to see. A linear layer is the convolution whose
kernel is the whole input map; what works on one dimension works on maps of height 1; an addition that no layer can take
over is an average over one pixel that adds another tensor.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = ["INPUT", "FloatConcat", "FloatConv", "FloatGraph", "FloatLayer", "FloatOperation", "FloatPool", "patches",
           "taps"]

Float64Array = npt.NDArray[np.float64]

#: What stands for the network's input where layers are named.
INPUT = ""

#: Values that :func:`patches` holds at a time, more only for one large sample. More does not make it faster.
PATCH_VALUES = 1 << 21


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
    def sources(self) -> tuple[str, ...]:
        """Names of what the layer reads: its input, and what it adds."""
        assert self.input is not None
        return (self.input,) if self.skip is None else (self.input, self.skip)

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
    weights : float64 array, shape (out_channels, in_channels / groups, kernel height, kernel width)
    bias : float64 array, shape (out_channels,)
    groups : int
        Input and output channels fall into so many groups that do not mix.
    """

    weights: Float64Array = field(kw_only=True)
    bias: Float64Array = field(kw_only=True)
    groups: int = field(default=1, kw_only=True)

    @property
    def matrices(self) -> Float64Array:
        """The weights as one matrix per group: (groups, out_channels / groups, inputs of an output)."""
        return self.weights.reshape(self.groups, len(self.weights) // self.groups, -1)

    def output_shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        """(channels, height, width) of the output for an input of this shape."""
        return len(self.weights), *super().output_shape(channels, height, width)[1:]

    def linear(self, x: Float64Array) -> Float64Array:
        """Convolve and add the bias."""
        result = np.empty((len(x), *self.output_shape(*x.shape[1:])))
        channels, height, width = result.shape[1:]
        for samples, columns in patches(x, self):
            rows = (self.matrices @ columns).reshape(channels, -1, height, width)
            result[samples] = rows.transpose(1, 0, 2, 3)
        result += self.bias[:, None, None]
        return result


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
            return reduce(np.maximum, taps(x, self, -np.inf))
        return reduce(np.add, taps(x, self)) / self.divisor


@dataclass(frozen=True, eq=False)
class FloatConcat:
    """Tensors of one height and width, one after the other along the channels.

    Parameters
    ----------
    name : str
        Unique among the layers.
    inputs : tuple of str
        Names of the layers whose outputs it takes, or :data:`INPUT`.
    """

    name: str
    inputs: tuple[str, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of what it reads."""
        return self.inputs

    def run(self, *parts: Float64Array) -> Float64Array:
        """Concatenate arrays (N, C, H, W)."""
        return np.concatenate(parts, axis=1)


#: What a float graph is made of: layers that compute, and concatenations.
FloatOperation = FloatLayer | FloatConcat


@dataclass(frozen=True, eq=False)
class FloatGraph:
    """A network of float layers.

    Parameters
    ----------
    input_shape : (int, int, int)
        (channels, height, width) of one sample; a vector of features has height and width 1, a sequence height 1.
    layers : tuple of FloatLayer or FloatConcat
        In execution order; the last one's output is the network's. No layer's ``input`` is None here.
    output_shape : tuple of int
        Shape that a user sees for one sample's output: ``(10,)`` after a flatten.

    Raises
    ------
    ValueError
        If a layer reads what no layer before it makes, two have the same name, or a maximum pool adds.
    """

    input_shape: tuple[int, int, int]
    layers: tuple[FloatOperation, ...]
    output_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        known, layers = [INPUT], list[FloatOperation]()
        for layer in self.layers:
            if isinstance(layer, FloatLayer) and layer.input is None:
                layer = replace(layer, input=known[-1])
            for name in layer.sources:
                if name not in known:
                    raise ValueError(f"Layer {layer.name!r} reads {name!r}, which no layer before it makes")
            if layer.name in known:
                raise ValueError(f"There are two layers {layer.name!r}")
            if isinstance(layer, FloatPool) and layer.kind == "max" and layer.skip is not None:
                raise ValueError(f"Layer {layer.name!r} is a maximum pool, which cannot add")
            known.append(layer.name)
            layers.append(layer)
        object.__setattr__(self, "layers", tuple(layers))

    def last_readers(self) -> dict[str, int]:
        """Index of the last layer that reads each tensor, by the tensor's name; who reads last may drop it."""
        return {name: at for at, layer in enumerate(self.layers) for name in layer.sources}

    def outputs(self, x: Float64Array) -> Iterator[tuple[FloatOperation, Float64Array]]:
        """Run inputs (N, C, H, W), and yield every layer with its output (N, C', H', W')."""
        values, last = {INPUT: x}, self.last_readers()
        for at, layer in enumerate(self.layers):
            value = layer.run(*(values[name] for name in layer.sources))
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


def taps(x: Float64Array, layer: FloatLayer, fill: float = 0.0) -> Iterator[Float64Array]:
    """What every position of a layer's window sees, row by row of the window: views (N, C, H', W') of (N, C, H, W).

    ``fill`` is what padding reads as.
    """
    top, left, bottom, right = layer.padding
    _, height, width = layer.output_shape(*x.shape[1:])
    if any(layer.padding):
        x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    for row in range(0, layer.kernel[0] * layer.dilation[0], layer.dilation[0]):
        for column in range(0, layer.kernel[1] * layer.dilation[1], layer.dilation[1]):
            yield x[:, :, row : row + (height - 1) * layer.stride[0] + 1 : layer.stride[0],
                    column : column + (width - 1) * layer.stride[1] + 1 : layer.stride[1]]


def patches(x: Float64Array, layer: FloatConv) -> Iterator[tuple[slice, Float64Array]]:
    """The columns of a convolution's matrix product, a part of the batch at a time.

    Yields
    ------
    slice
        The samples of (N, C, H, W) that the part holds.
    float64 array, shape (groups, inputs of an output, samples * H' * W')
        What the weights are multiplied with, one column per output pixel.
    """
    _, height, width = layer.output_shape(*x.shape[1:])
    step = max(1, PATCH_VALUES // (height * width * x.shape[1] * layer.taps))
    for start in range(0, len(x), step):
        part = slice(start, min(start + step, len(x)))
        columns = np.stack([tap.transpose(1, 0, 2, 3) for tap in taps(x[part], layer)], axis=1)
        yield part, columns.reshape(layer.groups, -1, (part.stop - part.start) * height * width)
