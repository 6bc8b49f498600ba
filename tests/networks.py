"""Random networks of what mobile networks are made of: depthwise convolutions, pools, residuals, concatenations."""

from dataclasses import replace

import numpy as np

from nomul.graph import Concat, Conv, Graph, Node, Operation, Pool, Tensor, window_output
from nomul_hw.arithmetic import act_range, gain_multipliers
from nomul_hw.formats import WeightFormat, get_format

__all__ = ["random_network"]


def random_network(rng: np.random.Generator, fmt: WeightFormat, *, nodes: int = 6, gain_terms: int = 2,
                   formats: tuple[str, ...] = (), most: int = 20) -> Graph:
    """Make a valid network whose layers mostly suit the window unit, and whose tensors are mostly alike.

    Parameters
    ----------
    formats : tuple of str
        Formats that some layers have instead of ``fmt``.
    most : int
        Channels of a tensor, at most.
    """
    zero_points = [0, act_range(8)[0]]
    common = int(rng.choice(zero_points))
    tensors = [Tensor("x", int(rng.integers(1, most // 2)), *rng.integers(3, 9, 2).tolist(), 0, common)]
    made: list[Operation] = []
    for index in range(nodes):
        # Go on from the last tensor mostly: what is never read again proves little.
        source = tensors[-1] if rng.random() < 0.7 else tensors[rng.integers(len(tensors))]
        kind = rng.choice(["depthwise", "depthwise", "max", "conv", "grouped", "sum", "concat", "concat", "add"])
        name = f"{index} {kind}"
        if kind == "concat":
            alike = [t for t in tensors if replace(source, name=t.name, channels=t.channels) == t]
            parts = [source, *(alike[rng.integers(len(alike))] for _ in range(rng.integers(1, 4)))]
            rng.shuffle(parts)
            if sum(part.channels for part in parts) > most:
                continue
            tensors.append(replace(source, name=f"{name}.out", channels=sum(part.channels for part in parts)))
            made.append(Concat(name, tuple(part.name for part in parts), tensors[-1].name))
            continue
        node = _layer(rng, str(kind), name, source, fmt, gain_terms, most)
        if node is None:
            continue
        size = node.output_size(source.height, source.width)
        target = Tensor(node.output, len(node.bias), *size, 0, common if rng.random() < 0.8 else
                        int(rng.choice(zero_points)))
        alike = [t for t in tensors if t.shape == target.shape]
        if alike and (kind == "add" or rng.random() < 0.3):
            skip = alike[rng.integers(len(alike))]
            target = replace(target, exponent=skip.exponent + int(rng.integers(0, 2)))
            node = replace(node, skip=skip.name, shift=np.maximum(node.shift, 1))
        if isinstance(node, Conv) and formats and rng.random() < 0.3:
            own = get_format(str(rng.choice(formats)))
            node = replace(node, format=own, weights=rng.choice(own.levels, node.weights.shape).astype(np.int32))
        if rng.random() < 0.2:
            low, high = sorted(rng.integers(-128, 127, 2, endpoint=True).tolist())
            node = replace(node, low=low, high=high)
        tensors.append(target)
        made.append(node)
    if not made:
        return random_network(rng, fmt, nodes=nodes, gain_terms=gain_terms, formats=formats, most=most)
    output = tensors[-1]
    return Graph(fmt, 8, gain_terms, tuple(tensors), tuple(made), "x", output.name, output.shape)


def _layer(rng: np.random.Generator, kind: str, name: str, source: Tensor, fmt: WeightFormat, gain_terms: int,
           most: int) -> Node | None:
    same = rng.random() < 0.4
    kernel = (1, 1) if kind == "add" else (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
    stride = (1, 1) if same or kind == "add" else (int(rng.integers(1, 3)), int(rng.integers(1, 3)))
    before = [int(rng.integers(0, size)) for size in kernel]
    after = [size - 1 - pad if same else int(rng.integers(0, size + 1))
             for size, pad in zip(kernel, before, strict=True)]
    padding = (*before, *after)
    size = [window_output(extent, k, s, b, a) for extent, k, s, b, a in
            zip((source.height, source.width), kernel, stride, before, after, strict=True)]
    if min(size) < 1:
        return None
    channels, groups = source.channels, 1
    if kind == "depthwise":
        groups = channels
    elif kind == "grouped":
        groups = int(rng.choice([n for n in range(1, channels + 1) if channels % n == 0]))
        channels = groups * int(rng.integers(1, max(2, most // groups)))
    elif kind == "conv":
        channels = int(rng.integers(1, most))
    convolves = kind in ("depthwise", "grouped", "conv")
    taps = int(np.prod(kernel)) * (source.channels // groups if convolves else 1)
    reach = 0 if kind == "max" else int(np.log2(taps * (fmt.max_magnitude if convolves else 1)) + 1) // 2
    values = {
        "bias": rng.integers(-200, 200, channels, dtype=np.int64),
        "multiplier": rng.choice(gain_multipliers(gain_terms), channels).astype(np.int64),
        "shift": rng.integers(max(0, reach - 1), reach + 3, channels, dtype=np.int64),
    }
    if kind == "max" and rng.random() < 0.5:
        values = {"bias": np.full(channels, -source.zero_point), "multiplier": np.ones(channels, dtype=np.int64),
                  "shift": np.zeros(channels, dtype=np.int64)}
    common = (name, source.name, f"{name}.out", kernel, stride, padding, (1, 1))
    if convolves:
        weights = rng.choice(fmt.levels, (channels, source.channels // groups, *kernel)).astype(np.int32)
        return Conv(*common, **values, low=-128, high=127, weights=weights, groups=groups)
    return Pool(*common, **values, low=-128, high=127, kind="max" if kind == "max" else "sum")
