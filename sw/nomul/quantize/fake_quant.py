"""An integer graph as real arithmetic in PyTorch, equal to the golden model to the bit.

Every scale is a power of two and every gain a small integer over a power of two. So the real numbers that stand for
a layer's integers, their products and their sums are themselves floating-point numbers: rounding never happens but
where the contract rounds, in ``floor(x + 0.5)``. That holds while the integers fit the significand; the constructor
proves it per layer from the weights at hand.

The real numbers are what a user compares with the float network; the codes are what the machine computes. Gradients go
straight through the rounding, and end where a value saturates.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from nomul_hw.arithmetic import act_range

from ..graph import Concat, Conv, Graph, Node, Pool, Tensor
from .config import QuantizeError

__all__ = ["FakeLayer", "FakeQuant", "Join", "codes_of", "convolve", "largest_count", "quantize_real"]


class FakeQuant(torch.nn.Module):
    """Run a graph in PyTorch on real numbers that lie on the grids of its tensors.

    Parameters
    ----------
    graph : Graph
        The quantized network.
    dtype : torch.dtype
        ``torch.float64``, or ``torch.float32`` where its 24 bits are enough.

    Raises
    ------
    QuantizeError
        If a layer's integers do not fit ``dtype``; the message names the first such node.
    """

    def __init__(self, graph: Graph, *, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        if dtype not in (torch.float64, torch.float32):
            raise QuantizeError(f"Fake quantization runs in torch.float64 or torch.float32, not {dtype}")
        self.graph = graph
        self.dtype = dtype
        self.layers = torch.nn.ModuleList(Join() if isinstance(node, Concat) else FakeLayer(graph, node, dtype)
                                          for node in graph.nodes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute real outputs (batch, *output_shape) from real inputs (batch, channels, height, width)."""
        return self.tensors(x)[self.graph.output].reshape(len(x), *self.graph.output_shape)

    def tensors(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute every tensor of the graph, (batch, channels, height, width) in reals, by name."""
        source = self.graph.tensor(self.graph.input)
        if x.ndim != 4 or tuple(x.shape[1:]) != source.shape:
            raise QuantizeError(f"Input must have the shape (batch, {source.channels}, {source.height}, "
                                f"{source.width}), not {tuple(x.shape)}")
        # In float64 whatever the dtype: adding 0.5 to a float32 could round.
        reals = {source.name: quantize_real(x.double(), source, act_range(self.graph.act_bits)).to(self.dtype)}
        for node, layer in zip(self.graph.nodes, self.layers, strict=True):
            reals[node.output] = layer(*(reals[name] for name in node.sources))
        return reals

    def codes(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute the codes (int8) of every tensor of the graph from real inputs, by name."""
        return codes_of(self.graph, self.tensors(x))


def codes_of(graph: Graph, reals: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Codes (int8) of real numbers that lie on the grids of a graph's tensors, by the tensors' names."""
    codes = {}
    for name, real in reals.items():
        tensor = graph.tensor(name)
        codes[name] = (real * 2.0**-tensor.exponent + tensor.zero_point).to(torch.int8)
    return codes


class Join(torch.nn.Module):
    """A concatenation: its tensors already lie on one grid."""

    def forward(self, *parts: torch.Tensor) -> torch.Tensor:
        return torch.cat(parts, dim=1)


class FakeLayer(torch.nn.Module):
    """One node that computes: real input codes to real output codes, each on its grid."""

    weights: torch.Tensor
    bias: torch.Tensor

    def __init__(self, graph: Graph, node: Node, dtype: torch.dtype) -> None:
        super().__init__()
        self.node, self.target = node, graph.tensor(node.output)
        source = graph.tensor(node.input)
        if isinstance(node, Conv):
            levels, self.groups = node.weights.astype(np.int64), node.groups
        else:
            assert isinstance(node, Pool)
            taps = node.kernel if node.kind == "sum" else (1, 1)
            levels, self.groups = np.ones((source.channels, 1, *taps), dtype=np.int64), source.channels
        # The zero point's share of the accumulator is a constant: here it moves to the bias, and padding is real 0.
        bias = node.bias + source.zero_point * levels.sum(axis=(1, 2, 3))
        _check_exact(graph, node, levels, bias, dtype)
        gain = np.ldexp(node.multiplier.astype(np.float64), self.target.exponent - node.shift)
        self._add("weights", levels * (np.ldexp(gain, -source.exponent))[:, None, None, None], dtype)
        self._add("bias", bias * gain, dtype)
        self.lowest = float(np.ldexp(act_range(graph.act_bits)[0] - source.zero_point, source.exponent))

    def _add(self, name: str, values: npt.ArrayLike, dtype: torch.dtype) -> None:
        self.register_buffer(name, torch.from_numpy(np.array(values, dtype=np.float64)).to(dtype), persistent=False)

    def forward(self, x: torch.Tensor, skip: torch.Tensor | None = None) -> torch.Tensor:
        node = self.node
        if isinstance(node, Pool) and node.kind == "max":
            # Padding reads as the smallest code; PyTorch's own padding of a maximum is at most half a window.
            top, left, bottom, right = node.padding
            x = functional.pad(x, (left, right, top, bottom), value=self.lowest)
            x = functional.max_pool2d(x, node.kernel, node.stride, dilation=node.dilation)
            y = x * self.weights.reshape(-1, 1, 1) + self.bias.reshape(-1, 1, 1)
        else:
            y = convolve(node, x, self.weights, self.bias, self.groups)
        return quantize_real(y if skip is None else y + skip, self.target, (node.low, node.high))


def convolve(node: Node, x: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor, groups: int) -> torch.Tensor:
    """Slide a node's window over (N, C, H, W), by algorithms that do not round what needs no rounding.

    NNPACK and cuDNN multiply by Winograd's transforms, which round.
    """
    top, left, bottom, right = node.padding
    with (torch.backends.nnpack.flags(enabled=False) if x.dtype == torch.float32 else nullcontext(),
          torch.backends.cudnn.flags(enabled=False) if x.is_cuda else nullcontext()):
        if (top, left) == (bottom, right):
            return functional.conv2d(x, weights, bias, node.stride, (top, left), node.dilation, groups)
        x = functional.pad(x, (left, right, top, bottom))
        return functional.conv2d(x, weights, bias, node.stride, 0, node.dilation, groups)


class _Quantize(torch.autograd.Function):
    """Round to multiples of ``unit``, half up, and saturate; the gradient is that of the saturation alone."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, unit: float, low: int, high: int) -> torch.Tensor:
        counts = (x * (1 / unit)).add_(0.5).floor_()  # the unit is a power of two
        inside = counts.clamp(low, high)
        ctx.save_for_backward(counts == inside)
        return inside.mul_(unit)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[torch.Tensor, None, None, None]:
        return gradients[0] * ctx.saved_tensors[0], None, None, None


def quantize_real(x: torch.Tensor, tensor: Tensor, clamp: Sequence[int]) -> torch.Tensor:
    """Round to a tensor's grid, half up, and saturate; gradients go straight through, but for what saturates."""
    low, high = (code - tensor.zero_point for code in clamp)
    rounded: torch.Tensor = _Quantize.apply(x, 2.0**tensor.exponent, low, high)  # type: ignore[no-untyped-call]
    return rounded


def largest_count(act_bits: int, zero_point: int) -> int:
    """Largest magnitude of a code less the zero point."""
    low, high = act_range(act_bits)
    return max(zero_point - low, high - zero_point)


def _check_exact(graph: Graph, node: Node, levels: npt.NDArray[np.int64], bias: npt.NDArray[np.int64],
                 dtype: torch.dtype) -> None:
    """Prove that every partial sum of a node is an integer multiple of one unit that ``dtype`` holds exactly."""
    most = largest_count(graph.act_bits, graph.tensor(node.input).zero_point)
    skip_most, drop = 0, graph.skip_drop(node)
    if node.skip is not None:
        skip_most = largest_count(graph.act_bits, graph.tensor(node.skip).zero_point)
    bits = 1 - int(np.log2(torch.finfo(dtype).eps))
    for taps, extra, multiplier, shift in zip(np.abs(levels).sum(axis=(1, 2, 3)).tolist(), bias.tolist(),
                                              node.multiplier.tolist(), node.shift.tolist(), strict=True):
        total = (taps * most + abs(extra)) * multiplier + (skip_most << (shift - drop))
        bound = 2 * total  # twice: for the 0.5 of the rounding
        if bound >= 1 << bits:
            raise QuantizeError(f"node {node.name!r}: sums up to {bound} are not exact in {dtype}, "
                                f"which holds integers up to 2**{bits}")
    # Units as real numbers must not underflow either.
    unit = min(graph.tensor(node.input).exponent, graph.tensor(node.output).exponent) - int(node.shift.max())
    if unit - graph.tensor(node.input).exponent < int(np.log2(torch.finfo(dtype).tiny)):
        raise QuantizeError(f"node {node.name!r}: a shift of {int(node.shift.max())} underflows {dtype}")
