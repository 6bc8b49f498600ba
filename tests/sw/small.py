"""A network and an array that are small enough for the tests of the command line."""

import numpy as np

from nomul.compiler import Program, compile_graph
from nomul.graph import Conv, Graph, Pool, Tensor
from nomul_hw.config import ArrayConfig, MemoryConfig
from nomul_hw.formats import get_format

__all__ = ["CONFIG", "CONFIG_TOML", "small_graph", "small_program"]

CONFIG_TOML = """
[array]
format = "ternary"
rows = 2
cols = 2

[memory]
activations = 64
weights = 128
parameters = 16
accumulators = 64
layers = 4
"""

CONFIG = ArrayConfig(
    get_format("ternary"), rows=2, cols=2,
    memory=MemoryConfig(activations=64, weights=128, parameters=16, accumulators=64, layers=4),
)


def small_graph(seed: int = 0) -> Graph:
    """(2, 4, 4) to a convolution, a pool and a linear layer of three outputs."""
    rng = np.random.default_rng(seed)

    def conv(name: str, source: str, target: str, kernel: int, padding: int, shape: tuple[int, int]) -> Conv:
        weights = rng.integers(-1, 1, (*shape, kernel, kernel), endpoint=True).astype(np.int32)
        channels = shape[0]
        return Conv(name, source, target, (kernel, kernel), (1, 1), (padding,) * 4, (1, 1),
                    rng.integers(-100, 100, channels), np.ones(channels, dtype=np.int64),
                    np.full(channels, 2, dtype=np.int64), -128, 127, weights=weights)

    pool = Pool("pool", "a", "b", (2, 2), (2, 2), (0, 0, 0, 0), (1, 1), np.full(4, 128), np.ones(4, dtype=np.int64),
                np.zeros(4, dtype=np.int64), -128, 127, kind="max")
    return Graph(
        get_format("ternary"), 8, 2,
        (Tensor("input", 2, 4, 4, -4, 0), Tensor("a", 4, 4, 4, -4, -128), Tensor("b", 4, 2, 2, -4, -128),
         Tensor("c", 3, 1, 1, -3, 0)),
        (conv("features.0", "input", "a", 3, 1, (4, 2)), pool, conv("classifier", "b", "c", 2, 0, (3, 4))),
        "input", "c", (3,),
    )


def small_program(seed: int = 0) -> Program:
    """The same, compiled."""
    return compile_graph(small_graph(seed), CONFIG)
