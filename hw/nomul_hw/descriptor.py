"""The words that the machine reads: layer descriptors, channel parameters, host commands, counters.

Each layout is defined here, once, as a list of fields. The hardware's struct, the compiler's packing and the
documentation all come from it. Plain Python: importing this module does not import Amaranth.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache

import numpy as np
import numpy.typing as npt

from .arithmetic import gain_digits, gain_positions
from .config import ArrayConfig
from .planes import MAX_PLANES

__all__ = ["ADDRESS_BITS", "CAUSES", "COUNTERS", "DESCRIPTOR", "DESCRIPTOR_WORDS", "HOST_BITS", "LOOPS", "Field",
           "LayerOp", "Opcode", "Target", "field_table", "pack", "parameter_fields", "parameter_values", "shift_stages",
           "target_depth", "target_word_bits", "to_host_words", "unpack"]

Int64Array = npt.NDArray[np.int64]

#: Width of the host stream.
HOST_BITS = 32

#: Nested loops of the address generator, innermost first.
LOOPS = 7


#: Width of a word address of an activation bank. Such addresses, and steps, are modulo ``2**ADDRESS_BITS``.
ADDRESS_BITS = 20


@dataclass(frozen=True)
class Field:
    """One field of a packed word: its name, width in bits, signedness and meaning."""

    name: str
    bits: int
    signed: bool
    doc: str


class LayerOp(IntEnum):
    """What a layer does. The loops' meaning follows from it, innermost first.

    ``CONV``: output column, output row, channel word, kernel column, kernel row, plane, block of output channels.
    The pools: kernel column, kernel row, output column, output row, channel word; two unused.
    The windows, which read every input word once: two unused, input column, input row, channel word; two unused.
    """

    CONV = 0
    MAX_POOL = 1
    SUM_POOL = 2
    DEPTHWISE = 3
    MAX_WINDOW = 4

    @property
    def is_window(self) -> bool:
        """Whether the layer runs in the window unit."""
        return self in (LayerOp.DEPTHWISE, LayerOp.MAX_WINDOW)

    @property
    def has_weights(self) -> bool:
        """Whether the layer has weight tiles."""
        return self in (LayerOp.CONV, LayerOp.DEPTHWISE)


class Opcode(IntEnum):
    """Host commands. A command is three words: opcode | target << 8, address, count; data follow a ``WRITE``."""

    WRITE = 1
    READ = 2
    RUN = 3


class Target(IntEnum):
    """What ``WRITE`` and ``READ`` reach. Addresses and counts are in words of the target."""

    PROGRAM = 0
    PARAMETER = 1
    WEIGHT = 2
    ACTIVATION_0 = 3
    ACTIVATION_1 = 4
    COUNTER = 5
    IDENTITY = 6


#: Where every cycle of a run goes; they sum to ``total``. The same names stand in the estimate and in reports.
COUNTERS: Mapping[str, str] = {
    "total": "cycles from the start of a run to its last write",
    "busy": "cycles in which the address generator issues an activation word",
    "weight": "cycles that wait for a weight tile to be loaded",
    "memory": "cycles that wait for weights from outside, beyond those",
    "requantize": "cycles that wait for the requantization lanes",
    "drain": "cycles in which the pipeline fills and empties between layers",
    "control": "cycles that fetch and start layers",
}


#: Causes of cycles, in the order in which the host reads them: all counters but their sum.
CAUSES = tuple(name for name in COUNTERS if name != "total")


def _loop_fields() -> Iterable[Field]:
    for level in range(LOOPS):
        yield Field(f"count_{level}", 12, False, f"iterations of loop {level}, less 1")
        yield Field(f"step_{level}", ADDRESS_BITS, False,
                    f"what a step of loop {level} adds to the word address, inner loops rewound (modulo "
                    f"2**{ADDRESS_BITS})")
        yield Field(f"x_step_{level}", 12, True, f"what a step of loop {level} adds to the input column")
        yield Field(f"y_step_{level}", 12, True, f"what a step of loop {level} adds to the input row")


#: A layer descriptor, least significant field first.
DESCRIPTOR: Sequence[Field] = (
    Field("op", 4, False, "LayerOp"),
    Field("in_bank", 1, False, "bank of the input tensor"),
    Field("out_bank", 1, False, "bank of the output tensor"),
    Field("pad_low", 1, False, "padding reads as the smallest code, not as 0"),
    Field("skip", 1, False, "a tensor of the other bank than the input's is added before rounding"),
    Field("skip_drop", 2, False, "exponent of the output less that tensor's"),
    Field("pair", 1, False, "a window moves by two columns, which are read at once"),
    Field("stride_columns", 1, False, "every second position of a row completes a window, not every one"),
    Field("stride_rows", 1, False, "every second row completes windows, not every one"),
    Field("skip_columns", 2, False, "positions of a row before the first that completes a window"),
    Field("skip_rows", 2, False, "rows before the first that completes windows"),
    Field("mask_columns", 2, False, "taps of a window's first columns that read as padding, one bit each"),
    Field("mask_rows", 2, False, "taps of a window's first rows that read as padding, one bit each"),
    Field("hold", 9, False, "cycles without a new word after one that completes an output pixel"),
    Field("edge_last", 9, False, "the last lane of the last input channel word; lanes beyond it read as padding"),
    Field("shifts", MAX_PLANES, False, "planes before which the accumulators shift, one bit each"),
    Field("weight_base", 22, False, "address of the layer's first weight word"),
    Field("parameter_base", 16, False, "address of the layer's first parameter word"),
    Field("slack", 8, False, "how many of the output's codes its clamp excludes"),
    Field("above", 8, False, "the code above the output's upper clamp (modulo the number of codes)"),
    Field("skip_address", ADDRESS_BITS, False, f"the added tensor's word address less the output's (modulo "
                                               f"2**{ADDRESS_BITS})"),
    Field("in_address", ADDRESS_BITS, False, f"word address of the first tap (modulo 2**{ADDRESS_BITS}; may point "
                                             f"before the tensor)"),
    Field("out_address", ADDRESS_BITS, False, "word address of the first output"),
    Field("out_plane", ADDRESS_BITS, False, "words from one output channel word to the next"),
    Field("in_width", 12, False, "columns of the input; outside them is padding"),
    Field("in_height", 12, False, "rows of the input; outside them is padding"),
    Field("x_start", 12, True, "input column of the first tap"),
    Field("y_start", 12, True, "input row of the first tap"),
    *_loop_fields(),
)


def total_bits(fields: Iterable[Field]) -> int:
    """Width of a packed word."""
    return sum(field.bits for field in fields)


#: Host words of one descriptor in program memory.
DESCRIPTOR_WORDS = -(-total_bits(DESCRIPTOR) // HOST_BITS)


def shift_stages(config: ArrayConfig) -> Sequence[tuple[int, int]]:
    """How a requantizer shifts right: stages of ``(places, choices)`` that shift by 0, 1 or 2 times ``places``.

    The first shifts least; together they reach ``config.max_gain_shift``.
    """
    stages = [(1, 2 if config.max_gain_shift < 18 else 3)]
    while (reach := stages[-1][0] * stages[-1][1]) <= config.max_gain_shift:
        stages.append((reach, min(3, config.max_gain_shift // reach + 1)))
    return stages


def parameter_fields(config: ArrayConfig) -> Sequence[Field]:
    """Layout of one output channel's parameters; :func:`parameter_values` makes them."""
    return _parameter_fields(config.requantize_bits, tuple(shift_stages(config)), config.gain_terms)


@cache
def _parameter_fields(offset_bits: int, stages: tuple[tuple[int, int], ...], gain_terms: int) -> Sequence[Field]:
    """Kept, since estimates ask for it layer by layer."""
    fields = [Field("offset", offset_bits, True, "added to the accumulator times the gain's multiplier")]
    fields += [Field(f"shift_{places}", (choices - 1).bit_length(), False, f"right shift by so many times {places}")
               for places, choices in stages]
    fields.append(Field("lead_negative", 1, False, "the multiplier's digit at position 0 is -1, not +1; without any "
                                                   "other digit it is 0"))
    positions = gain_positions(gain_terms)
    for digit, places in enumerate(positions):
        fields += [Field(f"digit_{digit}_not_at_{place}", 1, False, f"the multiplier has no digit at position {place}")
                   for place in places]
        if digit < len(positions) - 1:  # the last digit is positive
            fields.append(Field(f"digit_{digit}_inverted", 1, False, "its sign is not that of the digit at position 0"))
    return tuple(fields)


def parameter_values(
    config: ArrayConfig, bias: Int64Array, multiplier: Int64Array, shift: Int64Array, *,
    zero_point: int, low: int, skip_zero_point: int | None = None, drop: int = 0,
) -> dict[str, Int64Array]:
    """Make the parameters of output channels: what a requantizer must know to do as the contract says.

    A requantizer computes ``(acc * multiplier + offset >> shift)``, or, if a skip tensor's code is added,
    ``(acc * multiplier + offset >> shift - drop) + skip - 2**(act_bits - 1) >> drop``, and then clamps, with the lowest
    allowed code as 0. All that the contract adds is in the offset: the bias times the
    multiplier, half of the last place, the zero points; and what is taken away again, so that nothing that may end in
    the range of codes is negative in between. The offset is kept modulo its width, and so is the sum, which is right
    if the accumulator is, and the accumulator with its bias.

    Parameters
    ----------
    bias, multiplier, shift : int64 arrays, shape (n,)
        Of the channels, as in :func:`nomul_hw.arithmetic.requantize`; a multiplier of 0 makes a channel constant.
    zero_point, low, skip_zero_point, drop : int
        Of the layer: of its output, its lower clamp, and of the tensor that is added, if there is one.

    Returns
    -------
    dict
        Each field of :func:`parameter_fields`, int64 of (n,).
    """
    positions = gain_positions(config.gain_terms)
    values = {field.name: np.zeros(len(bias), dtype=np.int64) for field in parameter_fields(config)}
    offset = bias * multiplier + ((1 << shift) >> 1) + ((zero_point - low) << shift)
    if skip_zero_point is not None:
        offset += ((1 << config.act_bits - 1) - skip_zero_point) << (shift - drop)
    for places, choices in shift_stages(config):
        values[f"shift_{places}"] = shift // places % choices
    for each in np.unique(multiplier):
        where = multiplier == each
        lead, digits = gain_digits(int(each), config.gain_terms) if each else (-1, ())
        if lead < 0:
            # The requantizer inverts the accumulator, and -x = ~(x - 1).
            values["lead_negative"][where] = 1
            offset[where] -= each
        signs = {place: sign for sign, place in digits}
        for digit, places in enumerate(positions):
            for place in places:
                values[f"digit_{digit}_not_at_{place}"][where] = place not in signs
            inverted = lead < 0
            if digit < len(positions) - 1:
                inverted = any(signs.get(place, lead) != lead for place in places)
                values[f"digit_{digit}_inverted"][where] = inverted
            # What it inverts again, from the first position on, is that much less than its negative.
            offset[where] += inverted << places[0]
    half = 1 << config.requantize_bits - 1
    return {**values, "offset": (offset + half) % (2 * half) - half}


def pack(fields: Iterable[Field], values: Mapping[str, int]) -> int:
    """Pack a word, first field least significant; fields that are not given are 0.

    Raises
    ------
    ValueError
        If a value does not fit its field, or names none.
    """
    values = dict(values)
    word = at = 0
    for field in fields:
        value = values.pop(field.name, 0)
        low, high = (-(1 << field.bits - 1), (1 << field.bits - 1) - 1) if field.signed else (0, (1 << field.bits) - 1)
        if not low <= value <= high:
            raise ValueError(f"field {field.name} must be in {low}..{high}, not {value}")
        word |= (value & ((1 << field.bits) - 1)) << at
        at += field.bits
    if values:
        raise ValueError(f"no such field: {', '.join(values)}")
    return word


def unpack(fields: Iterable[Field], word: int) -> dict[str, int]:
    """Undo :func:`pack`."""
    values = {}
    for field in fields:
        value = word & ((1 << field.bits) - 1)
        if field.signed and value >> (field.bits - 1):
            value -= 1 << field.bits
        values[field.name] = value
        word >>= field.bits
    return values


def to_host_words(word: int, bits: int) -> list[int]:
    """Split a memory word into the host words that carry it, least significant first."""
    return [(word >> at) & ((1 << HOST_BITS) - 1) for at in range(0, bits, HOST_BITS)]


def target_word_bits(config: ArrayConfig, target: Target) -> int:
    """Bits of one word of a target; the host moves it as ``ceil(bits / 32)`` words, least significant first."""
    match target:
        case Target.PARAMETER:
            return config.requantize_lanes * total_bits(parameter_fields(config))
        case Target.WEIGHT:
            return config.weight_word_bits
        case Target.ACTIVATION_0 | Target.ACTIVATION_1:
            return config.act_word_bits
        case _:
            return HOST_BITS


def target_depth(config: ArrayConfig, target: Target) -> int:
    """Words of a target: a command must not reach beyond them."""
    memory = config.memory
    match target:
        case Target.PROGRAM:
            return memory.layers * DESCRIPTOR_WORDS
        case Target.PARAMETER:
            return memory.parameters
        case Target.WEIGHT:
            return memory.weights
        case Target.ACTIVATION_0 | Target.ACTIVATION_1:
            return memory.activations
        case Target.COUNTER:
            return len(CAUSES)
        case Target.IDENTITY:
            return 2


def field_table(fields: Iterable[Field]) -> str:
    """Markdown table of a layout, for the documentation."""
    rows = ["| bits | field | meaning |", "|---|---|---|"]
    at = 0
    for field in fields:
        sign = ", signed" if field.signed else ""
        rows.append(f"| {at + field.bits - 1}:{at} | `{field.name}` | {field.doc}{sign} |")
        at += field.bits
    return "\n".join(rows) + "\n"
