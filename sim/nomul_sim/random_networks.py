"""Random small networks, run on the golden model and on the Verilated RTL, compared in every bit and every cycle.

    python -m nomul_sim.random_networks --count 300 --seed 1

Networks of some 4 to 15 nodes, made of what real ones are made of: residual blocks, branches that are concatenated,
dense blocks, depthwise-separable convolutions, pools, layers of other formats. Each runs as a whole and layer by layer.
"""

import sys
from collections.abc import Sequence
from itertools import chain

import numpy as np

from nomul.graph import Tensor
from nomul_hw.config import ArrayConfig

from .random_arrays import NETWORK_CONFIGS
from .random_check import command
from .random_nodes import Builder, Case
from .random_shapes import any_shape, padded, random_channels, same_size

__all__ = ["main", "random_network"]

#: Part of a memory that one node takes at most: with copies there may be twice as many tensors as nodes.
_SHARE = 1 / 40

#: Chance that a block reads any earlier tensor, not the last one.
_BRANCH = 0.2


def random_network(config: ArrayConfig, rng: np.random.Generator) -> Case:
    """Make a network of 4 to some 15 nodes that fits the configuration's memories, and inputs for it."""
    builder = Builder(config, rng, share=_SHARE, mixed=float(rng.choice([0.0, 0.2, 0.5])), tame=True)
    blocks = (_layer, _residual, _residual, _separable, _branches, _branches, _dense, _join)
    nodes = int(rng.integers(4, 13))
    while len(builder.graph.nodes) < nodes:
        tensors = builder.tensors
        source = tensors[rng.integers(len(tensors))] if rng.random() < _BRANCH else tensors[-1]
        blocks[rng.integers(len(blocks))](builder, source)
    return builder.case()


def _layer(builder: Builder, source: Tensor) -> None:
    """Any layer."""
    shapes = (any_shape(builder.config, builder.rng, source) for _ in range(100))
    builder.add(source, shapes, skips=builder.tensors if builder.rng.random() < 0.3 else ())


def _keep(builder: Builder, source: Tensor, channels: int, *, skips: Sequence[Tensor] = (),
          like: Tensor | None = None) -> Tensor:
    """A layer that keeps the height and width."""
    shapes = (same_size(builder.rng, source, channels) for _ in range(20))
    return builder.add(source, chain(shapes, (padded("conv", 1, source, (1, 1)),)), skips=skips, like=like)


def _residual(builder: Builder, source: Tensor) -> None:
    """One or two layers, and around them nothing or a convolution that does to the map what they do."""
    rng, inner, shortcut, channels = builder.rng, source, source, source.channels
    if rng.random() < 0.3:
        channels = random_channels(builder.config, rng)
        inner = builder.add(source, [padded("conv", channels, source, (3, 3), stride=2)])
        shortcut = builder.add(source, [padded("conv", channels, source, (1, 1), stride=2)])
    elif rng.random() < 0.5:
        inner = _keep(builder, source, random_channels(builder.config, rng))
    _keep(builder, inner, shortcut.channels, skips=[shortcut])


def _separable(builder: Builder, source: Tensor) -> None:
    """A depthwise convolution and a pointwise one."""
    rng = builder.rng
    depthwise = padded("conv", source.channels, source, (3, 3), stride=int(rng.integers(1, 3)),
                       groups=source.channels)
    middle = builder.add(source, [depthwise])
    builder.add(middle, [padded("conv", random_channels(builder.config, rng), middle, (1, 1))])


def _branches(builder: Builder, source: Tensor) -> None:
    """Branches of one or two layers, concatenated; some with the source itself among them."""
    rng = builder.rng
    parts = [source] if rng.random() < 0.3 else []
    for _ in range(int(rng.integers(2, 4))):
        branch = source
        if rng.random() < 0.3:
            branch = _keep(builder, branch, random_channels(builder.config, rng))
        branch = _keep(builder, branch, random_channels(builder.config, rng), like=parts[0] if parts else None)
        parts.append(branch)
    rng.shuffle(parts)
    builder.concat(parts)


def _dense(builder: Builder, source: Tensor) -> None:
    """Layers whose outputs are concatenated to their inputs."""
    for _ in range(int(builder.rng.integers(1, 4))):
        more = _keep(builder, source, random_channels(builder.config, builder.rng), like=source)
        source = builder.concat([source, more]) or more


def _join(builder: Builder, source: Tensor) -> None:
    """The source, and earlier tensors that can be concatenated with it: the same one twice, perhaps."""
    like = [tensor for tensor in builder.tensors if (tensor.height, tensor.width, tensor.exponent, tensor.zero_point)
            == (source.height, source.width, source.exponent, source.zero_point)]
    count = int(builder.rng.integers(1, 3))
    builder.concat([source, *(like[builder.rng.integers(len(like))] for _ in range(count))])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    return command("random_networks",
                   "Compare random small networks on Verilated RTL with the golden model and the estimate.",
                   random_network, NETWORK_CONFIGS, 100, arguments)


if __name__ == "__main__":
    sys.exit(main())
