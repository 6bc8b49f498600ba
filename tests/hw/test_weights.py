"""The weight loader: which row of which tile is on its way when."""

import numpy as np
import pytest

from nomul_hw.config import ArrayConfig, MemoryConfig
from nomul_hw.weights import WeightLoader

from .simulate import trace
from .vectors import descriptor

DEPTH = 100


@pytest.mark.parametrize("rows", [1, 3, 4, 6])
@pytest.mark.parametrize("gaps", [False, True])
def test_tiles(rows, gaps):
    """A program of layers with some tiles each, tile after tile as soon as the loader is ready, or later."""
    rng = np.random.default_rng(rows)
    config = ArrayConfig("ternary", rows, 2, memory=MemoryConfig(weights=DEPTH))
    assert config.tile_cycles == max(rows, 4)

    # Layers lie anywhere. Each entry: strobe of this cycle, the address of the tile that it makes the loader load.
    layers = [(int(rng.integers(0, DEPTH - 6 * rows)), int(tiles)) for tiles in (1, 3, 1, 1, 6, 2)]
    events = {0: ("prime", layers[0][0])}
    weight_next = {}
    cycle = 0
    for index, (base, tiles) in enumerate(layers):
        following = layers[index + 1][0] if index + 1 < len(layers) else 0
        for tile in range(tiles):
            cycle += config.tile_cycles + (int(rng.integers(0, 6)) if gaps else 0)
            last = tile == tiles - 1
            events[cycle] = ("last" if last else "tile", following if last else base + (tile + 1) * rows)
            weight_next[cycle] = following
    cycles = cycle + config.tile_cycles + 4

    expected = {name: [0] * cycles for name in ("enable", "load")}
    addresses, ready = {}, [1] * cycles
    for start, (_, address) in events.items():
        for row in range(rows):
            # The address in the next cycles; the array's strobe two cycles later, beside the registered word.
            addresses[start + 1 + row] = address + row
            expected["enable"][start + 1 + row] = 1
            expected["load"][start + 3 + row] = 1 << row
        for later in range(start + 1, start + config.tile_cycles):
            ready[later] = 0

    outputs = trace(WeightLoader(config), {
        "prime": [int(events.get(c, ("",))[0] == "prime") for c in range(cycles)],
        "tile": [int(events.get(c, ("",))[0] in ("tile", "last")) for c in range(cycles)],
        "last_tile": [int(events[c][0] == "last") if c in events else int(rng.integers(2)) for c in range(cycles)],
        "prime_address": [events[0][1] if c == 0 else int(rng.integers(DEPTH)) for c in range(cycles)],
        "layer": [descriptor(weight_next=weight_next.get(c, int(rng.integers(DEPTH)))) for c in range(cycles)],
    }, ["address", "enable", "load", "ready"])
    assert outputs["enable"] == expected["enable"]
    assert outputs["load"] == expected["load"]
    assert outputs["ready"] == ready
    assert {c: outputs["address"][c] for c in addresses} == addresses
