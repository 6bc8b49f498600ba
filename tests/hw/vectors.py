"""Packed words, as the components' ports hold them."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from amaranth.back import rtlil

from nomul_hw.arithmetic import act_range
from nomul_hw.config import ArrayConfig
from nomul_hw.descriptor import DESCRIPTOR, pack, parameter_fields, parameter_values
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


def parameter(config: ArrayConfig, bias: int, multiplier: int, shift: int, *, zero_point: int = 0,
              low: int | None = None, drop: int = 0, skip_zero_point: int | None = None) -> int:
    """Pack a channel's bias and gain, for a layer of these codes."""
    low = act_range(config.act_bits)[0] if low is None else low
    values = parameter_values(config, *(np.array([each]) for each in (bias, multiplier, shift)),
                              zero_point=zero_point, low=low, drop=drop, skip_zero_point=skip_zero_point)
    return pack(parameter_fields(config), {name: int(each[0]) for name, each in values.items()})
