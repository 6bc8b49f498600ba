"""Random layers, run on the golden model and on the Verilated RTL, compared in every bit and every cycle.

    python -m nomul_sim.random_layers --count 10000 --seed 1

One layer, or up to three behind each other. A case follows from the configuration and a seed alone.
"""

import sys
from collections.abc import Sequence

import numpy as np

from nomul_hw.config import ArrayConfig

from .random_arrays import CONFIGS
from .random_check import command
from .random_nodes import Builder, Case
from .random_shapes import any_shape, same_size

__all__ = ["main", "random_layers"]

#: Chance that a layer which keeps the shape of an earlier tensor adds it.
_RESIDUAL = 0.6

#: Chance that a layer is made to keep it.
_KEEP = 0.15

#: Part of a memory that one layer takes at most, so that three of them fit together.
_SHARE = 0.3

#: Chance of weights of another format than the array's.
_MIXED = 0.25


def random_layers(config: ArrayConfig, rng: np.random.Generator) -> Case:
    """Make a network of one layer (mostly) to three, that fits the configuration's memories, and inputs for it."""
    builder = Builder(config, rng, share=_SHARE, mixed=_MIXED)
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        source = builder.tensors[-1]
        shapes = (same_size(rng, source, source.channels) if rng.random() < _KEEP else any_shape(config, rng, source)
                  for _ in range(1000))
        builder.add(source, shapes, skips=builder.tensors if rng.random() < _RESIDUAL else ())
    return builder.case()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    return command("random_layers", "Compare random layers on Verilated RTL with the golden model and the estimate.",
                   random_layers, CONFIGS, 500, arguments)


if __name__ == "__main__":
    sys.exit(main())
