"""Packed words, as the components' ports hold them."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from amaranth.back import rtlil

from nomul_hw.arithmetic import gain_digits
from nomul_hw.config import ArrayConfig
from nomul_hw.descriptor import DESCRIPTOR, pack, parameter_fields
from nomul_hw.layouts import token_layout

__all__ = ["MULTIPLIERS", "cells", "descriptor", "join", "parameter", "signed", "split", "token"]

#: Cells that a machine without a multiplier must not have.
MULTIPLIERS = {"$mul", "$macc", "$macc_v2", "$alu", "$div", "$divfloor", "$mod", "$modfloor", "$pow"}


def cells(component: Any) -> Counter[str]:
    """How often each of Yosys' cells occurs in a component and all that it is made of."""
    return Counter(re.findall(r"^\s*cell (\$\w+) ", rtlil.convert(component, emit_src=False), re.MULTILINE))


def join(values: Iterable[int], bits: int) -> int:
    """Pack integers into a word, the first least significant."""
    word = 0
    for index, value in enumerate(values):
        word |= (int(value) & ((1 << bits) - 1)) << (index * bits)
    return word


def split(word: int, bits: int, count: int) -> list[int]:
    """Undo :func:`join` for signed integers."""
    return [signed(word >> (index * bits), bits) for index in range(count)]


def signed(word: int, bits: int) -> int:
    """Read the low bits of a word as two's complement."""
    value = word & ((1 << bits) - 1)
    return value - (1 << bits) if value >> (bits - 1) else value


def token(config: ArrayConfig, **fields: int) -> int:
    """Pack a token; it is valid unless told otherwise."""
    return token_layout(config).const({"valid": 1, **fields}).as_bits()


def descriptor(**values: int) -> int:
    """Pack a layer descriptor."""
    return pack(DESCRIPTOR, values)


def parameter(config: ArrayConfig, bias: int, multiplier: int, shift: int) -> int:
    """Pack a channel's bias and gain."""
    lead, digits = gain_digits(multiplier, config.gain_terms)
    values: dict[str, int] = {"bias": bias, "shift": shift}
    if lead < 0:
        values["lead_negative"] = 1
    # The last digit is never negative and has no sign: fewer digits than there is room for stand at the end.
    free = config.gain_terms - 1 - len(digits)
    for index, (sign, position) in enumerate(digits, start=free):
        values |= {f"digit_{index}_enable": 1, f"digit_{index}_position": position - 1}
        if sign < 0:
            values[f"digit_{index}_negative"] = 1
    return pack(parameter_fields(config), values)


