# amaranth: UnusedElaboratable=no
"""Block RAM: latency, enables, parts, and depths that are not powers of two."""

import numpy as np
import pytest

from nomul_hw.contents import Table
from nomul_hw.layouts import address_bits
from nomul_hw.memory import BlockRAM

from .simulate import trace
from .vectors import cells


@pytest.mark.parametrize("width, depth, parts", [(8, 16, 1), (12, 5, 3), (6, 2, 6), (1, 3, 1), (40, 7, 2)])
def test_model(width, depth, parts):
    """Random reads and writes; the word under the read port is never the one being written."""
    rng = np.random.default_rng(width)
    part = width // parts
    stimulus = {name: [] for name in ("read_address", "read_enable", "write_address", "write_enable", "write_data")}
    contents, shown, expected = [0] * depth, 0, []
    for _ in range(400):
        read, write = rng.choice(depth, 2, replace=False).tolist()
        read_enable, write_enable = int(rng.integers(2)), int(rng.integers(1 << parts))
        word = int.from_bytes(rng.bytes(5)) % (1 << width)
        for name, value in zip(stimulus, (read, read_enable, write, write_enable, word), strict=True):
            stimulus[name].append(value)
        expected.append(shown)
        if read_enable:
            shown = contents[read]
        mask = sum(((1 << part) - 1) << (index * part) for index in range(parts) if write_enable >> index & 1)
        contents[write] = contents[write] & ~mask | word & mask
    dut = BlockRAM(width=width, depth=depth, parts=parts)
    assert len(dut.read_address) == address_bits(depth)
    assert trace(dut, stimulus, ["read_data"])["read_data"] == expected


def test_table():
    """A memory that is only read, just as deep as its contents."""
    words = (5, 0, 255, 7, 1)
    dut = BlockRAM(width=8, depth=1000, table=Table("table.hex", 8, words))
    addresses = [0, 4, 2, 3, 1, 0]
    shown = trace(dut, {"read_address": addresses, "read_enable": [1] * 6, "write_address": addresses,
                        "write_enable": [1] * 6, "write_data": [99] * 6}, ["read_data"])["read_data"]
    assert shown == [0, *(words[address] for address in addresses[:-1])]
    assert dut.depth == 5 and "$memwr_v2" not in cells(dut)
    with pytest.raises(ValueError, match="Words of the table must have 9 bits, not 8"):
        BlockRAM(width=9, depth=5, table=Table("table.hex", 8, words))


def test_is_a_memory():
    """One memory with one port each, no logic around it."""
    assert cells(BlockRAM(width=16, depth=64, parts=2)) == {"$memrd_v2": 1, "$memwr_v2": 1, "$meminit_v2": 1}


def test_wrong_parts():
    with pytest.raises(ValueError, match="Width 8 must be a multiple of the number of parts, 3"):
        BlockRAM(width=8, depth=4, parts=3)
