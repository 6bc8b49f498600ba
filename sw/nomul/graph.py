"""The integer graph: a quantized network as plain data.

Nothing here computes. The golden model runs a graph, the quantizers and the importer make one, the compiler lowers it.
Every node's arithmetic is the contract of :mod:`nomul_hw.arithmetic`; scales are powers of two, gains lie on the
requantizer's lattice, so a graph holds no floating-point number.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from nomul_hw.arithmetic import MAX_SKIP_DROP, act_range, gain_multipliers, round_half_up
from nomul_hw.formats import WeightFormat

__all__ = ["Concat", "Conv", "Graph", "GraphError", "Node", "Operation", "Pool", "Tensor", "window_output"]

Int64Array = npt.NDArray[np.int64]


class GraphError(ValueError):
    """A graph that contradicts itself; the message names the node."""


@dataclass(frozen=True)
class Tensor:
    """An activation tensor of shape (channels, height, width); ``real = 2**exponent * (q - zero_point)``."""

    name: str
    channels: int
    height: int
    width: int
    exponent: int
    zero_point: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.channels, self.height, self.width


def window_output(size: int, kernel: int, stride: int, before: int, after: int, dilation: int = 1) -> int:
    """Output extent of a sliding window along one axis (0 or less where the window does not fit)."""
    return (size + before + after - dilation * (kernel - 1) - 1) // stride + 1


@dataclass(frozen=True, eq=False)
class Node:
    """What convolutions and pools share: a window over one tensor, then requantization per output channel.

    Parameters
    ----------
    name : str
        Unique; the module path of the layer it came from, such as ``features.3``.
    input, output : str
        Tensor names.
    kernel, stride, dilation : (int, int)
        Vertical, horizontal.
    padding : (int, int, int, int)
        Top, left, bottom, right.
    bias : int64 array, shape (out_channels,)
        Added to the accumulator; holds ``-zero_point * sum(weights)`` and the rounded real bias.
    multiplier, shift : int64 array, shape (out_channels,)
        Gain ``multiplier / 2**shift``, on the lattice of ``gain_terms``.
    low, high : int
        Clamp of the output codes: the activation function.
    skip : str, optional
        A tensor of the output's shape that is added before rounding: a residual connection. Its exponent is at most
        the output's, by up to 3.
    """

    name: str
    input: str
    output: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    bias: Int64Array
    multiplier: Int64Array
    shift: Int64Array
    low: int
    high: int
    skip: str | None = field(default=None, kw_only=True)

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the tensors that the node reads."""
        return (self.input,) if self.skip is None else (self.input, self.skip)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Output height and width for an input of this size."""
        top, left, bottom, right = self.padding
        return (window_output(height, self.kernel[0], self.stride[0], top, bottom, self.dilation[0]),
                window_output(width, self.kernel[1], self.stride[1], left, right, self.dilation[1]))


@dataclass(frozen=True, eq=False)
class Conv(Node):
    """A convolution, or a linear layer as the convolution whose kernel is the whole input map.

    Parameters
    ----------
    weights : int32 array, shape (out_channels, in_channels / groups, kernel height, kernel width)
        Levels of the node's weight format.
    groups : int
        Input and output channels fall into so many groups that do not mix; as many as there are channels make the
        convolution depthwise.
    format : WeightFormat, optional
        Format of the weights; the graph's where it is None.
    """

    weights: npt.NDArray[np.int32] = field(kw_only=True)
    groups: int = field(default=1, kw_only=True)
    format: WeightFormat | None = field(default=None, kw_only=True)


@dataclass(frozen=True, eq=False)
class Pool(Node):
    """Maximum, or sum, over a window per channel. An average is a sum with a gain of one over the window's size.

    Padding of ``"max"`` reads as the smallest code, of ``"sum"`` as the zero point. With ``v`` the maximum or the
    sum of the codes, requantization is as everywhere; a plain maximum has bias ``-zero_point`` and gain 1.
    """

    kind: Literal["max", "sum"] = field(kw_only=True)


@dataclass(frozen=True, eq=False)
class Concat:
    """Tensors one after the other along the channels. Nothing is computed: all have one scale and zero point.

    Parameters
    ----------
    name : str
        Unique among the nodes.
    inputs : tuple of str
        Names of the tensors, two or more.
    output : str
        Tensor name.
    """

    name: str
    inputs: tuple[str, ...]
    output: str

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the tensors that the node reads."""
        return self.inputs


#: What a graph is made of: nodes that compute, and concatenations.
Operation = Node | Concat


@dataclass(frozen=True, eq=False)
class Graph:
    """A quantized network.

    Parameters
    ----------
    format : WeightFormat
        Levels of the weights of every convolution that has no format of its own.
    act_bits : int
        Width of all activations.
    gain_terms : int
        Signed digits of the gains' multipliers.
    tensors : tuple of Tensor
        All activation tensors.
    nodes : tuple of Node or Concat
        In execution order.
    input, output : str
        Tensor names.
    output_shape : tuple of int
        Shape that a user sees for one sample's output: ``(10,)`` after a flatten, else (C, H, W).

    Raises
    ------
    GraphError
        If names, shapes or values contradict each other.
    """

    format: WeightFormat
    act_bits: int
    gain_terms: int
    tensors: tuple[Tensor, ...]
    nodes: tuple[Operation, ...]
    input: str
    output: str
    output_shape: tuple[int, ...]

    @cached_property
    def _by_name(self) -> dict[str, Tensor]:
        return {tensor.name: tensor for tensor in self.tensors}

    def tensor(self, name: str) -> Tensor:
        """Look a tensor up by name."""
        return self._by_name[name]

    def format_of(self, node: Conv) -> WeightFormat:
        """Format of a convolution's weights."""
        return self.format if node.format is None else node.format

    @property
    def computing(self) -> tuple[Node, ...]:
        """The nodes that compute, in execution order: all but the concatenations."""
        return tuple(node for node in self.nodes if isinstance(node, Node))

    def skip_drop(self, node: Node) -> int:
        """How much finer the scale of a node's skip tensor is than its output's, in powers of two; 0 without one."""
        return self.tensor(node.output).exponent - self.tensor(node.skip).exponent if node.skip is not None else 0

    def macs(self, node: Operation) -> int:
        """Multiply-accumulates of one sample, padding counted; 0 for what is not a convolution."""
        if not isinstance(node, Conv):
            return 0
        out = self.tensor(node.output)
        return out.height * out.width * node.weights.size

    def quantize_input(self, x: npt.ArrayLike) -> npt.NDArray[np.int8]:
        """Turn real inputs (batch, channels, height, width) into codes (int8), rounding half up and saturating."""
        tensor = self.tensor(self.input)
        low, high = act_range(self.act_bits)
        codes = round_half_up(np.asarray(x, dtype=np.float64) * 2.0**-tensor.exponent) + tensor.zero_point
        return np.clip(codes, low, high).astype(np.int8)

    def dequantize_output(self, codes: npt.NDArray[np.int8]) -> npt.NDArray[np.float64]:
        """Turn output codes (batch, ...) into reals."""
        tensor = self.tensor(self.output)
        return (codes.astype(np.float64) - tensor.zero_point) * 2.0**tensor.exponent

    def __post_init__(self) -> None:
        for problem in self._problems():
            raise GraphError(problem)

    def _problems(self) -> Iterator[str]:
        if not 2 <= self.act_bits <= 8:
            yield f"activations have 2 to 8 bits, not {self.act_bits}"
        if not 1 <= self.gain_terms <= 3:
            yield f"gains have 1 to 3 terms, not {self.gain_terms}"
        names = [tensor.name for tensor in self.tensors]
        low, high = act_range(self.act_bits)
        if len(set(names)) != len(names):
            yield "tensor names are not unique"
        if len({node.name for node in self.nodes}) != len(self.nodes):
            yield "node names are not unique"
        for tensor in self.tensors:
            if min(tensor.shape) < 1:
                yield f"tensor {tensor.name!r} has an empty shape {tensor.shape}"
            if tensor.zero_point not in (0, low):
                yield f"tensor {tensor.name!r} has zero point {tensor.zero_point}; it must be 0 or {low}"
            if not -64 <= tensor.exponent <= 64:
                yield f"tensor {tensor.name!r} has the exponent {tensor.exponent}, outside -64..64"
        if self.input not in self._by_name:
            yield f"the input {self.input!r} is not a tensor"
        known = {self.input}
        for node in self.nodes:
            where = f"node {node.name!r}"
            inputs = node.inputs if isinstance(node, Concat) else (node.input,)
            if not known.issuperset(inputs) or node.output not in self._by_name or node.output in known:
                yield (f"{where} reads {' and '.join(map(repr, inputs))} and writes {node.output!r}: not in "
                       f"execution order")
                return
            target = self.tensor(node.output)
            if isinstance(node, Concat):
                yield from self._concat_problems(node, target)
                known.add(node.output)
                continue
            source = self.tensor(node.input)
            if node.skip is not None:
                if node.skip not in known or self.tensor(node.skip).shape != target.shape:
                    yield f"{where} adds {node.skip!r}, which is not an earlier tensor of shape {target.shape}"
                    return
                if not 0 <= self.skip_drop(node) <= MAX_SKIP_DROP:
                    yield (f"{where} adds {node.skip!r} of exponent {self.tensor(node.skip).exponent} to an output of "
                           f"exponent {target.exponent}; the difference must be in 0..{MAX_SKIP_DROP}")
                if node.shift.size and node.shift.min() < self.skip_drop(node):
                    yield f"{where} has a gain shift below {self.skip_drop(node)}, where its skip tensor is added"
            known.add(node.output)
            if min(*node.kernel, *node.stride, *node.dilation) < 1 or min(node.padding) < 0:
                yield f"{where} has a kernel, stride, dilation or padding out of range"
            if node.output_size(source.height, source.width) != (target.height, target.width):
                yield (f"{where} makes {node.output_size(source.height, source.width)} pixels of "
                       f"{(source.height, source.width)}, but its output is {(target.height, target.width)}")
            if isinstance(node, Conv):
                if node.groups < 1 or source.channels % node.groups or target.channels % node.groups:
                    yield (f"{where} has {node.groups} groups, which do not divide its {source.channels} input and "
                           f"{target.channels} output channels")
                    return
                expected = (target.channels, source.channels // node.groups, *node.kernel)
                if node.weights.shape != expected:
                    yield f"{where} has weights of shape {node.weights.shape}; expected {expected}"
                elif not self.format_of(node).holds(node.weights):
                    yield f"{where} has weights that are not levels of format {self.format_of(node).name!r}"
            elif source.channels != target.channels:
                yield f"{where} changes the number of channels from {source.channels} to {target.channels}"
            for what, values in (("bias", node.bias), ("multiplier", node.multiplier), ("shift", node.shift)):
                if values.shape != (target.channels,) or values.dtype != np.int64:
                    yield f"{where} has {what} {values.dtype}{values.shape}; expected int64({target.channels},)"
                    return
            if not np.isin(node.multiplier, gain_multipliers(self.gain_terms)).all():
                yield f"{where} has a gain that is not on the lattice of {self.gain_terms} terms"
            if not (0 <= node.shift.min() and node.shift.max() <= 63):
                yield f"{where} has gain shifts {node.shift.min()}..{node.shift.max()}, outside 0..63"
            if not low <= node.low <= node.high <= high:
                yield f"{where} clamps to {node.low}..{node.high}, outside {low}..{high}"
        if self.output not in known:
            yield f"the output {self.output!r} is never written"
        elif int(np.prod(self.output_shape)) != int(np.prod(self.tensor(self.output).shape)):
            yield f"output shape {self.output_shape} does not hold {self.tensor(self.output).shape}"

    def _concat_problems(self, node: Concat, target: Tensor) -> Iterator[str]:
        parts = [self.tensor(name) for name in node.inputs]
        where = f"node {node.name!r}"
        if len(parts) < 2:
            yield f"{where} concatenates {len(parts)} tensors; it takes two or more"
        if sum(part.channels for part in parts) != target.channels:
            yield (f"{where} concatenates {' + '.join(str(part.channels) for part in parts)} channels, but its output "
                   f"has {target.channels}")
        for part in parts:
            if (part.height, part.width) != (target.height, target.width):
                yield f"{where} concatenates {part.name!r} of {part.shape} into an output of {target.shape}"
            if (part.exponent, part.zero_point) != (target.exponent, target.zero_point):
                yield (f"{where} concatenates {part.name!r} of exponent {part.exponent} and zero point "
                       f"{part.zero_point} into an output of {target.exponent} and {target.zero_point}; they must be "
                       f"the same")
