"""The arrays that random layers and networks run on: every kind of part, small enough to build in seconds."""

from nomul_hw.config import ArrayConfig, MemoryConfig

__all__ = ["CONFIGS", "NETWORK_CONFIGS"]


def _large(lines: int = 0, weights: int = 1 << 15) -> MemoryConfig:
    """Memories for networks of many nodes whose tensors are long in use."""
    return MemoryConfig(activations=8192, weights=weights, parameters=4096, accumulators=60, layers=400, lines=lines)


#: Arrays for networks, and for layers too. Some maps are too wide for their window units.
NETWORK_CONFIGS: tuple[ArrayConfig, ...] = tuple(ArrayConfig(**values) for values in (  # type: ignore[arg-type]
    {"format": "ternary", "rows": 3, "cols": 10, "acc_bits": 32, "memory": _large(12)},  # one group of taps
    {"format": "pot3", "rows": 3, "cols": 5, "pipeline": 1, "memory": _large(7)},  # no zero; two groups of taps
    {"format": "exp4", "rows": 4, "cols": 4, "gain_terms": 3, "requantize_lanes": 2,
     "memory": _large(9)},  # three groups of taps
    {"format": "binary", "rows": 2, "cols": 9, "memory": _large(6)},
    {"format": "fp4_e2m1", "rows": 8, "cols": 2, "act_bits": 4, "acc_bits": 20, "memory": _large(10)},
    {"format": "int4", "rows": 4, "cols": 4, "lanes": 2, "pipeline": 2, "acc_bits": 28, "memory": _large()},
    {"format": "int8", "pe": "multiplier", "pipeline": 3, "rows": 2, "cols": 3, "acc_bits": 28, "memory": _large(16)},
    {"format": "exp4", "rows": 4, "cols": 10, "pipeline": 1, "weights": "stream", "memory": _large(8, weights=50)},
    {"format": "pot3", "rows": 2, "cols": 4, "lanes": 2, "weights": "stream", "memory": _large(9, weights=3)},
))

#: All arrays: every format and kind of processing element, square, rectangular and single arrays, 1 to 8 lanes, 1 to 3
#: gain terms, as many requantization lanes as go or fewer, activations of 2, 4 and 8 bits, accumulators from just
#: enough to the most, no to three registers on the way of a product, window units of one to nine groups of taps,
#: planes with and without shifts, weights kept and streamed through a large and a tiny queue, and memories of no round
#: size, some so few accumulators that layers run as strips.
CONFIGS: tuple[ArrayConfig, ...] = (*NETWORK_CONFIGS, *(ArrayConfig(**values) for values in (  # type: ignore[arg-type]
    {"format": "binary", "rows": 2, "cols": 4, "lanes": 8, "pipeline": 3, "acc_bits": 20, "plane_shift": 1},
    {"format": "ternary", "rows": 1, "cols": 1, "memory": MemoryConfig(accumulators=20, lines=5)},
    {"format": "ternary", "rows": 4, "cols": 2, "lanes": 4, "pipeline": 2, "gain_terms": 3, "plane_shift": 2},
    {"format": "pot3z", "rows": 2, "cols": 8, "lanes": 2, "gain_terms": 1, "memory": MemoryConfig(lines=16)},
    {"format": "pot4", "rows": 4, "cols": 4, "pipeline": 1, "gain_terms": 3, "acc_bits": 32, "requantize_lanes": 1},
    {"format": "exp4", "rows": 5, "cols": 4, "memory": MemoryConfig(700, 3000, 150, 30, 50), "plane_shift": 0},
    {"format": "exp4_sqrt2", "rows": 1, "cols": 4, "lanes": 2, "memory": MemoryConfig(lines=9)},  # no multiple is 1
    {"format": "exp5", "rows": 3, "cols": 5, "lanes": 2, "pipeline": 1, "gain_terms": 1},
    {"format": "int2", "rows": 2, "cols": 8, "act_bits": 2, "gain_terms": 3},
    {"format": "int3", "rows": 1, "cols": 1, "lanes": 8, "memory": MemoryConfig(accumulators=9, lines=2)},
    {"format": "int4", "pe": "multiplier", "rows": 5, "cols": 3, "lanes": 2},
    {"format": "int8", "pe": "multiplier", "rows": 3, "cols": 9, "gain_terms": 1, "acc_bits": 32, "weights": "stream",
     "memory": MemoryConfig(weights=7)},
)))
