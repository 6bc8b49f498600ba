"""Baked programs: what an accelerator's memories hold from power-up on, so that nobody has to load it.

In Verilog the words stand in files of hexadecimal numbers beside it (``$readmemh``): simulators and synthesizers read
them in no time, but take minutes for as many lines of Verilog. Plain Python: importing this module does not import
Amaranth.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .config import ArrayConfig
from .descriptor import HOST_BITS, Target, target_word_bits

__all__ = ["Contents", "Table"]


@dataclass(frozen=True)
class Table:
    """Words of a memory that is only read.

    Parameters
    ----------
    file : str
        Name of the file that Verilog reads them from.
    bits : int
        Bits of a word.
    words : tuple of int
        At least two; the memory is just as deep.
    """

    file: str
    bits: int
    words: tuple[int, ...]

    @cached_property
    def text(self) -> str:
        """What the file holds: a word a line."""
        digits = -(-self.bits // 4)
        return "".join(f"{word:0{digits}x}\n" for word in self.words)

    def write(self, path: Path) -> None:
        """Write the file."""
        path.write_text(self.text, encoding="utf-8")


@dataclass(frozen=True, eq=False)
class Contents:
    """A program that is part of an accelerator.

    Parameters
    ----------
    tables : mapping of Target to Table
        Contents of the program, parameter and weight memories; not of weights that come from a stream.
    """

    tables: Mapping[Target, Table]

    @classmethod
    def from_host_words(cls, config: ArrayConfig, *, program: npt.NDArray[np.uint32],
                        parameters: npt.NDArray[np.uint32], weights: npt.NDArray[np.uint32]) -> "Contents":
        """Make contents of what a host would write to each memory, uint32 (words * host words of a word,)."""
        host_words = {Target.PROGRAM: program, Target.PARAMETER: parameters}
        if config.weights != "stream":
            host_words[Target.WEIGHT] = weights
        tables = {}
        for target, words in host_words.items():
            bits = target_word_bits(config, target)
            size = -(-bits // HOST_BITS) * HOST_BITS // 8
            data = np.ascontiguousarray(words, dtype="<u4").tobytes()
            values = tuple(int.from_bytes(data[at:at + size], "little") & (1 << bits) - 1
                           for at in range(0, len(data), size))
            tables[target] = Table(f"{target.name.lower()}.hex", bits, values + (0,) * (2 - len(values)))
        return cls(tables)

    @cached_property
    def identity(self) -> int:
        """What the device answers for its program: 32 bits of a hash, never 0."""
        digest = hashlib.sha256()
        for table in self.tables.values():
            digest.update(hashlib.sha256(table.text.encode()).digest())
        return int(digest.hexdigest()[:8], 16) or 1
