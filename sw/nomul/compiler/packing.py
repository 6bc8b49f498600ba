"""Bits: how codes, activations and parameters become words of the host stream. Vectorised."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from nomul_hw.descriptor import HOST_BITS, Field

__all__ = ["pack_fields", "pack_words", "unpack_words"]

Words = npt.NDArray[np.uint32]


def _bits(values: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.uint8]:
    """Bits of integers (two's complement), least significant first: (...) -> (..., width)."""
    return ((values[..., None] >> np.arange(width)) & 1).astype(np.uint8)


def _to_words(bits: npt.NDArray[np.uint8]) -> Words:
    """Pack rows of bits into host words, padded with 0: (n, width) -> (n, ceil(width / 32))."""
    rows, width = bits.shape
    padded = np.zeros((rows, -(-width // HOST_BITS) * HOST_BITS), dtype=np.uint8)
    padded[:, :width] = bits
    return np.packbits(padded, axis=1, bitorder="little").view("<u4").astype(np.uint32, copy=False)


def pack_words(values: npt.ArrayLike, width: int) -> Words:
    """Pack rows of ``width``-bit integers into host words, the first element least significant.

    Parameters
    ----------
    values : integer array, shape (n, k)
        Each row is one memory word.

    Returns
    -------
    uint32 array, shape (n, ceil(k * width / 32))
    """
    values = np.asarray(values)
    rows, count = values.shape
    if width == 8 and count % 4 == 0:  # what images take: no detour through single bits
        return np.ascontiguousarray(values.astype(np.uint8)).view("<u4").astype(np.uint32, copy=False)
    return _to_words(_bits(values.astype(np.int64), width).reshape(rows, count * width))


def unpack_words(words: Words, width: int, count: int) -> npt.NDArray[np.int64]:
    """Undo :func:`pack_words` for signed integers: (n, ceil(count * width / 32)) -> (n, count)."""
    rows = words.shape[0]
    raw = np.ascontiguousarray(words.astype("<u4", copy=False)).view(np.uint8)
    if width == 8:
        return raw[:, :count].view(np.int8).astype(np.int64)
    bits = np.unpackbits(raw, axis=1, bitorder="little")[:, :count * width].reshape(rows, count, width)
    unsigned = (bits.astype(np.int64) << np.arange(width)).sum(axis=2)
    return unsigned - ((unsigned >> (width - 1)) << width)


def pack_fields(fields: Sequence[Field], values: Mapping[str, npt.NDArray[np.int64]], per_word: int) -> Words:
    """Pack records, ``per_word`` of them into each memory word, first field and first record least significant.

    Parameters
    ----------
    values : mapping of str to int64 array, shape (n,)
        Each field's values; ``n`` is a multiple of ``per_word``.

    Returns
    -------
    uint32 array, shape (n / per_word, host words)
    """
    records = np.concatenate([_bits(values[field.name], field.bits) for field in fields], axis=1)
    return _to_words(records.reshape(-1, per_word * records.shape[1]))
