"""Random integer graphs for tests: every node kind, window, padding, clamp, residual and corner of the arithmetic;
on demand groups, formats per layer and concatenations too."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from nomul.graph import Concat, Conv, Graph, Node, Operation, Pool, Tensor
from nomul_hw.arithmetic import MAX_SKIP_DROP, act_range, gain_multipliers
from nomul_hw.formats import WeightFormat, get_format

__all__ = ["input_codes", "random_graph"]

#: Largest gain shift where a residual is added: beyond, its sum is not exact in float64 (machines shift by up to 32).
RESIDUAL_SHIFT = 40

#: Formats of mixed graphs beyond those of random_graph: what only planes make of any array.
WIDE = ("int8", "int9", "int12", "int16")

#: Most channels of a concatenation: the naive model multiplies in Python.
MOST_JOINED = 20


def input_codes(graph: Graph, rng: np.random.Generator, batch: int) -> npt.NDArray[np.int8]:
    """Random input codes with all-smallest and all-largest samples among them where there is room."""
    low, high = act_range(graph.act_bits)
    codes = rng.integers(low, high, (batch, *graph.tensor(graph.input).shape), dtype=np.int8, endpoint=True)
    for sample, value in zip(codes[1:], (low, high), strict=False):
        sample[...] = value
    return codes


def random_graph(
    rng: np.random.Generator, *, nodes: int = 3, fmt: str | WeightFormat | None = None, act_bits: int | None = None,
    max_shift: int = 16, gain_terms: int | None = None, mixed: bool = False,
) -> Graph:
    """Make a valid network of random convolutions, linear layers and pools; some add an earlier tensor.

    Gains are mostly such that outputs spread over the codes, else anything from shift 0 to ``max_shift``, so that
    saturation, ties and outputs stuck at 0 all occur. A ``mixed`` network has depthwise and other grouped convolutions,
    layers of formats of their own, up to 16 bits, and concatenations besides its ``nodes``.
    """
    names = ["binary", "ternary", "pot3", "pot3z", "pot4", "exp4", "exp5", "fp4_e2m1", "int3", "int4", "int8"]
    fmt = rng.choice(names) if fmt is None else fmt
    fmt = fmt if isinstance(fmt, WeightFormat) else get_format(str(fmt))
    act_bits = int(rng.choice([8, 8, 8, 4, 2])) if act_bits is None else act_bits
    gain_terms = int(rng.integers(1, 4)) if gain_terms is None else gain_terms
    tensors = [_tensor(rng, "x", int(rng.integers(1, 9)), *rng.integers(1, 10, 2).tolist(), act_bits)]
    made: list[Operation] = []
    for index in range(nodes):
        own = get_format(str(rng.choice([*names, *WIDE]))) if mixed and rng.random() < 0.5 else None
        made.append(_node(rng, f"layer.{index}", tensors, own or fmt, act_bits, gain_terms, max_shift, mixed))
        if own and isinstance(made[-1], Conv):
            made[-1] = replace(made[-1], format=own)
        if mixed and rng.random() < 0.5:
            made += _concat(rng, f"concat.{index}", tensors)
    shape = tensors[-1].shape
    return Graph(fmt, act_bits, gain_terms, tuple(tensors), tuple(made), "x", tensors[-1].name,
                 shape if rng.random() < 0.5 else (int(np.prod(shape)),))


def _tensor(rng: np.random.Generator, name: str, channels: int, height: int, width: int, act_bits: int) -> Tensor:
    return Tensor(name, channels, height, width, int(rng.integers(-8, 4)),
                  0 if rng.random() < 0.5 else act_range(act_bits)[0])


def _node(rng: np.random.Generator, name: str, tensors: list[Tensor], fmt: WeightFormat, act_bits: int,
          gain_terms: int, max_shift: int, mixed: bool) -> Node:
    source = tensors[-1]
    kind = str(rng.choice(["conv", "conv", "conv", "linear", "max", "sum"]))
    keep = kind != "linear" and rng.random() < 0.4  # the shape, so that there is something to add
    if kind == "linear":
        kernel, stride, dilation, padding = (source.height, source.width), (1, 1), (1, 1), (0, 0, 0, 0)
    else:
        kernel = tuple(rng.integers(1, 4, 2).tolist())
        stride = tuple(rng.integers(1, 4, 2).tolist())
        dilation = tuple(rng.integers(1, 3, 2).tolist())
        top, left = (int(rng.integers(0, k + 1)) for k in kernel)
        # At least as much below and right as makes one window fit.
        spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
        bottom = max(spans[0] - top - source.height, 0) + int(rng.integers(0, 2))
        right = max(spans[1] - left - source.width, 0) + int(rng.integers(0, 2))
        padding = (top, left, bottom, right)
        if keep:
            stride = (1, 1)
            top, left = (int(rng.integers(0, span)) for span in spans)
            padding = (top, left, spans[0] - 1 - top, spans[1] - 1 - left)
    conv = kind in ("conv", "linear")
    channels = int(rng.integers(1, 12)) if conv and not keep else source.channels
    groups = 1
    if mixed and conv and rng.random() < 0.6:
        groups = int(rng.choice([n for n in range(1, source.channels + 1) if source.channels % n == 0]))
        channels = source.channels if keep else groups * int(rng.integers(1, 4))
    weights = rng.choice(fmt.levels, (channels, source.channels // groups, *kernel)).astype(np.int32)
    if rng.random() < 0.2:
        weights[...] = fmt.levels[0]
    taps = int(np.prod(kernel)) * (source.channels // groups if conv else 1)
    most = (1 << act_bits - 1) * taps * (fmt.max_magnitude if conv else 1)
    typical = int(np.log2(most) - act_bits / 2) if kind != "max" else 0
    multipliers = gain_multipliers(gain_terms)
    shift = np.full(channels, min(max(typical, 0), max_shift))
    if rng.random() < 0.3:
        shift = rng.choice([0, 1, 2, max_shift], channels)
    bound = most if rng.random() < 0.2 else 1 << act_bits
    low, high = act_range(act_bits)
    clamp = sorted(rng.integers(low, high, 2, endpoint=True).tolist()) if rng.random() < 0.3 else [low, high]
    draft = Node(
        name, source.name, f"{name}.out", kernel, stride, padding, dilation,
        rng.integers(-bound, bound, channels, dtype=np.int64, endpoint=True),
        rng.choice(multipliers, channels).astype(np.int64), shift.astype(np.int64), clamp[0], clamp[1],
    )
    target = _tensor(rng, draft.output, channels, *draft.output_size(source.height, source.width), act_bits)
    skips = [tensor for tensor in tensors if tensor.shape == target.shape]
    if skips and rng.random() < 0.8:
        skip = skips[rng.integers(len(skips))]
        drop = int(rng.integers(0, MAX_SKIP_DROP + 1))
        target = replace(target, exponent=skip.exponent + drop)
        draft = replace(draft, skip=skip.name, shift=np.clip(draft.shift, drop, RESIDUAL_SHIFT))
    elif mixed:  # the scale of an earlier tensor of the size, so that there is something to concatenate
        for alike in tensors:
            if alike.shape[1:] == target.shape[1:]:
                target = replace(target, exponent=alike.exponent, zero_point=alike.zero_point)
    tensors.append(target)
    common = {key: getattr(draft, key) for key in draft.__dataclass_fields__}
    return Conv(**common, weights=weights, groups=groups) if conv else Pool(**common, kind=kind)


def _concat(rng: np.random.Generator, name: str, tensors: list[Tensor]) -> list[Concat]:
    """Concatenate the last tensor with earlier ones of its size and scale, or with itself, if they are small enough."""
    *earlier, last = tensors
    alike = [tensor for tensor in earlier if replace(last, name=tensor.name, channels=tensor.channels) == tensor]
    alike = alike or [last]
    parts = [last, *(alike[rng.integers(len(alike))] for _ in range(rng.integers(1, 3)))]
    channels = sum(part.channels for part in parts)
    if channels > MOST_JOINED:
        return []
    rng.shuffle(parts)
    tensors.append(replace(last, name=f"{name}.out", channels=channels))
    return [Concat(name, tuple(part.name for part in parts), f"{name}.out")]
