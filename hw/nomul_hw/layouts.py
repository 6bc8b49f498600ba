"""The hardware's structs, made from the field lists of :mod:`nomul_hw.descriptor`."""

from collections.abc import Iterable

from amaranth.hdl import signed, unsigned
from amaranth.lib import data

from .config import ArrayConfig
from .descriptor import DESCRIPTOR, Field, parameter_fields

__all__ = ["address_bits", "descriptor_layout", "fields_layout",
           "parameter_layout", "token_layout", "window_layout"]


def fields_layout(fields: Iterable[Field]) -> data.StructLayout:
    """A word that is made of these fields."""
    return data.StructLayout({
        field.name: signed(field.bits) if field.signed else unsigned(field.bits) for field in fields
    })


def descriptor_layout() -> data.StructLayout:
    """A layer descriptor."""
    return fields_layout(DESCRIPTOR)


def parameter_layout(config: ArrayConfig) -> data.StructLayout:
    """One channel's bias and gain."""
    return fields_layout(parameter_fields(config))


def address_bits(depth: int) -> int:
    """Width of an address into ``depth`` words."""
    return max(1, (depth - 1).bit_length())


def token_layout(config: ArrayConfig) -> data.StructLayout:
    """What accompanies an activation word on its way through the machine.

    ``valid``: there is a word. ``first``, ``last``: it is the first, the last to be added to its output pixel (both,
    where there is only one). ``tile``: it is the first word of a weight tile. ``shift``: the accumulators shift before
    its products are added. ``pixel``: index of the output pixel. ``block_last``: it completes the last pixel of a block
    of output channels. ``layer_last``: the layer's last word.
    """
    return data.StructLayout({
        "valid": 1, "first": 1, "last": 1, "tile": 1, "shift": 1, "block_last": 1, "layer_last": 1,
        "pixel": address_bits(max(config.memory.accumulators, config.memory.activations)),
    })


def window_layout(config: ArrayConfig) -> data.StructLayout:
    """Where a word stands in a map that the window unit reads.

    ``column``: index of its position in the row. ``first_column``: that is 0. ``row_0``, ``row_1``: it is in the first,
    the second row. ``before_outside``: in a pair, the column in front of the word lies outside the map.
    """
    return data.StructLayout({
        "column": address_bits(max(2, config.memory.lines)),
        "first_column": 1, "row_0": 1, "row_1": 1, "before_outside": 1,
    })
