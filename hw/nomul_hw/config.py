"""The configuration of one accelerator: what is generated, and what programs are compiled for.

Configurations are frozen dataclasses, loaded from TOML (:func:`load_config`) or made in Python. Everything else
about the machine's shape is derived from them here, once.
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from math import gcd
from pathlib import Path
from typing import Any

from .arithmetic import gain_multipliers, max_gain_shift
from .formats import MAX_BITS, WeightFormat, get_format
from .planes import natural_shift
from .product import PE_KINDS, ProductForm

__all__ = ["MAX_LINES", "WEIGHT_SOURCES", "WINDOW", "ArrayConfig", "ConfigError", "MemoryConfig", "load_config",
           "parse_config"]

#: Where the weights come from.
WEIGHT_SOURCES = ("memory", "stream")

#: Taps of the window unit, along each axis.
WINDOW = 3

#: Columns of the widest map that a window unit can be built for.
MAX_LINES = 1 << 11

#: Version of everything that a program depends on beyond the configuration: descriptor layout, host protocol, timing.
MACHINE_VERSION = 4


class ConfigError(ValueError):
    """A configuration that cannot be built; the message says what is wrong and what would do."""


def _integer(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{name} must be an integer, not {value!r}")
    if not low <= value <= high:
        raise ConfigError(f"{name} must be in {low}..{high}, not {value}")


@dataclass(frozen=True)
class MemoryConfig:
    """Depths of the on-chip memories.

    Parameters
    ----------
    activations : int
        Words of ``rows * lanes`` channels in each of the two activation banks.
    weights : int
        Words of one array row (``cols * lanes`` codes); a weight tile takes ``rows`` of them.
    parameters : int
        Words of ``requantize_lanes`` channels' bias and gain.
    accumulators : int
        Output pixels whose partial sums can be held (one sum per array column each).
    layers : int
        Layer descriptors.
    lines : int
        Columns of the widest map that the window unit takes, which runs depthwise convolutions and 3x3 maximum pools
        at one word per cycle; 0 builds none, and the array runs depthwise convolutions.
    """

    activations: int = 2048
    weights: int = 4096
    parameters: int = 256
    accumulators: int = 1024
    layers: int = 64
    lines: int = 0

    def __post_init__(self) -> None:
        _integer("memory.activations", self.activations, 2, 1 << 20)
        _integer("memory.weights", self.weights, 2, 1 << 22)
        _integer("memory.parameters", self.parameters, 2, 1 << 16)
        _integer("memory.accumulators", self.accumulators, 2, 1 << 16)
        _integer("memory.layers", self.layers, 1, 1 << 12)
        _integer("memory.lines", self.lines, 0, MAX_LINES)
        if self.lines == 1:
            raise ConfigError("memory.lines must be 0 (no window unit) or at least 2, not 1")


@dataclass(frozen=True)
class ArrayConfig:
    """A weight-stationary array and the machine around it.

    Parameters
    ----------
    format : WeightFormat
        The weights of the array (a name such as ``"ternary"`` is accepted and looked up).
    rows, cols : int
        Processing elements: ``rows`` along the reduction, ``cols`` output channels.
    lanes : int
        Products that one processing element adds per cycle; the reduction is ``rows * lanes`` wide.
    pe : str
        ``"shift"``, or ``"multiplier"`` for the Booth baseline on a uniform format.
    pipeline : int
        Registers on a product's way to the sum from the row above, each a cycle of the array's latency. 1: the sum of
        an element's products is registered. 2: each product is, too. 3: so are sums of a part of them. An element that
        forms one product (one lane, and no multiplier) has at most 1.
    act_bits : int
        Width of an activation.
    acc_bits : int
        Width of an accumulator.
    gain_terms : int
        Signed binary digits of a requantization gain: 1 (a shift), 2 or 3.
    requantize_lanes : int
        Channels that are requantized and written per cycle: a common divisor of ``rows * lanes`` and ``cols``; 0 is the
        greatest. With fewer there is less logic beside the array, and every output pixel takes as many
        cycles as its channels need.
    plane_shift : int, optional
        Places by which the accumulators can shift left between the planes of weights that the format cannot hold
        (:mod:`nomul_hw.planes`); 0 saves the shifter. None is what suits the format.
    weights : str
        Where weights come from: ``"memory"``, loaded by the host, or ``"stream"``, from outside in the order of use;
        then ``memory.weights`` words are a buffer in front of the array.
    memory : MemoryConfig
        Depths of the memories.

    Raises
    ------
    ConfigError
        If a value is impossible, alone or together with another.
    """

    format: WeightFormat
    rows: int = 16
    cols: int = 16
    lanes: int = 1
    pe: str = "shift"
    pipeline: int = 0
    act_bits: int = 8
    acc_bits: int = 24
    gain_terms: int = 2
    requantize_lanes: int = 0
    plane_shift: int | None = None
    weights: str = "memory"
    memory: MemoryConfig = field(default_factory=MemoryConfig)

    def __post_init__(self) -> None:
        if isinstance(self.format, str):
            try:
                object.__setattr__(self, "format", get_format(self.format))
            except ValueError as error:
                raise ConfigError(f"array.format: {error}") from None
        if not isinstance(self.format, WeightFormat):
            raise ConfigError(f"array.format must be the name of a weight format or a WeightFormat, "
                              f"not {self.format!r}")
        if self.format.bits > MAX_BITS:
            raise ConfigError(f"array.format: an array holds weights of up to {MAX_BITS} bits, not {self.format.name}; "
                              f"layers of {self.format.name} run on any array, as planes")
        _integer("array.rows", self.rows, 1, 256)
        _integer("array.cols", self.cols, 1, 256)
        _integer("array.lanes", self.lanes, 1, 64)
        _integer("array.act_bits", self.act_bits, 2, 8)
        _integer("array.acc_bits", self.acc_bits, 12, 32)
        _integer("array.gain_terms", self.gain_terms, 1, 3)
        most = gcd(self.depth, self.cols)
        _integer("array.requantize_lanes", self.requantize_lanes, 0, 256)
        if self.requantize_lanes == 0:
            object.__setattr__(self, "requantize_lanes", most)
        if most % self.requantize_lanes:
            raise ConfigError(f"array.requantize_lanes must divide rows * lanes = {self.depth} and cols = {self.cols}, "
                              f"which {self.requantize_lanes} does not: {_divisors(most)} would do")
        if self.plane_shift is None:
            object.__setattr__(self, "plane_shift", natural_shift(self.format))
        _integer("array.plane_shift", self.plane_shift, 0, 8)
        if self.weights not in WEIGHT_SOURCES:
            raise ConfigError(f"array.weights must be one of {', '.join(WEIGHT_SOURCES)}, not {self.weights!r}")
        if self.depth > 512:
            raise ConfigError(f"array.rows * array.lanes must be at most 512, not {self.rows} * {self.lanes}")
        if self.pe not in PE_KINDS:
            raise ConfigError(f"array.pe must be one of {', '.join(PE_KINDS)}, not {self.pe!r}")
        if not isinstance(self.memory, MemoryConfig):
            raise ConfigError(f"memory must be a MemoryConfig, not {self.memory!r}")
        if self.weights == "stream" and self.memory.weights < 3:
            raise ConfigError(f"memory.weights must be at least 3 where it is a buffer of the weight stream, "
                              f"not {self.memory.weights}")
        try:
            needed = self.column_sum_bits
        except ValueError as error:
            raise ConfigError(f"array: {error}") from None
        _integer("array.pipeline", self.pipeline, 0, self.product.max_pipeline(self.lanes))
        if needed > self.acc_bits:
            raise ConfigError(
                f"array.acc_bits = {self.acc_bits} cannot hold one column sum of {self.depth} {self.format.name} "
                f"products: at least {needed} bits are needed"
            )
        if self.memory.lines and self.window_bits > self.acc_bits:
            raise ConfigError(
                f"array.acc_bits = {self.acc_bits} cannot hold a window of {WINDOW}x{WINDOW} {self.format.name} "
                f"products: at least {self.window_bits} bits are needed, or memory.lines = 0 for no window unit"
            )

    # Shape -----------------------------------------------------------------------------------------------------

    @cached_property
    def name(self) -> str:
        """Short name for files and tables, ``<format>[_mul]_<rows>x[<lanes>x]<cols>``."""
        lanes = f"{self.lanes}x" if self.lanes > 1 else ""
        kind = "_mul" if self.pe == "multiplier" else ""
        return f"{self.format.name}{kind}_{self.rows}x{lanes}{self.cols}"

    @cached_property
    def depth(self) -> int:
        """Reduction inputs per cycle (``P``): channels of an activation word."""
        return self.rows * self.lanes

    @cached_property
    def macs_per_cycle(self) -> int:
        """Products that the array forms per cycle."""
        return self.depth * self.cols

    @cached_property
    def product(self) -> ProductForm:
        """How a processing element forms its products."""
        return ProductForm(self.format, self.pe)

    @cached_property
    def column_chunks(self) -> int:
        """Cycles to requantize the ``cols`` channels of one output pixel of the array."""
        return self.cols // self.requantize_lanes

    @cached_property
    def word_chunks(self) -> int:
        """Cycles to requantize the channels of one whole activation word (the channel unit's output)."""
        return self.depth // self.requantize_lanes

    @cached_property
    def array_cycles(self) -> int:
        """Cycles from an activation vector to its sums."""
        return self.rows + self.cols + self.pipeline

    def sum_bits(self, row: int) -> int:
        """Width of the partial sum that leaves array row ``row``: it grows with the row."""
        return self.product.sum_bits((row + 1) * self.lanes, self.act_bits)

    @cached_property
    def column_sum_bits(self) -> int:
        """Width of the sum at the bottom of a column."""
        return self.sum_bits(self.rows - 1)

    @cached_property
    def pool_bits(self) -> int:
        """Width of the channel unit's sums, which are never negative: windows of up to 256 taps."""
        return min(self.act_bits + 8, self.acc_bits - 1)

    @cached_property
    def window_bits(self) -> int:
        """Width of the window unit's sums."""
        return self.product.sum_bits(WINDOW * WINDOW, self.act_bits)

    @cached_property
    def channel_bits(self) -> int:
        """Width of what the channel unit and the window unit hand on, with its sign."""
        return max(self.pool_bits + 1, self.window_bits) if self.memory.lines else self.pool_bits + 1

    @cached_property
    def tile_cycles(self) -> int:
        """Fewest cycles from one weight tile to the next: a row is loaded per cycle, and an accumulator that a tile
        has read is written three cycles later."""
        return max(self.rows, 4)

    @cached_property
    def window_groups(self) -> int:
        """Groups of ``rows`` weight words in a depthwise tile: the columns of an array row stand for taps."""
        return -(-WINDOW * WINDOW // self.cols)

    @cached_property
    def window_tile_cycles(self) -> int:
        """Fewest cycles from a weight tile to a depthwise one: all of it must be there when it becomes active."""
        return max(self.rows * self.window_groups + 1, 4)

    # Memory words ----------------------------------------------------------------------------------------------

    @cached_property
    def act_word_bits(self) -> int:
        """Bits of an activation word: ``rows * lanes`` channels of one pixel."""
        return self.depth * self.act_bits

    @cached_property
    def weight_word_bits(self) -> int:
        """Bits of a weight word: the codes of one array row, ``cols * lanes`` of them."""
        return self.cols * self.lanes * self.format.bits

    @cached_property
    def max_gain_shift(self) -> int:
        """Largest right shift of a gain."""
        return max_gain_shift(self.acc_bits, self.act_bits)

    @cached_property
    def requantize_bits(self) -> int:
        """Width of a requantizer's sum: any accumulator times any multiplier, and what its channel adds to that.

        The channel's part is the bias times the multiplier and less than twice as many places of the largest shift as
        there are codes.
        """
        return self.acc_bits + (max(self.gain_multipliers) + 4).bit_length()

    @cached_property
    def gain_multipliers(self) -> tuple[int, ...]:
        """Multipliers of the gain lattice."""
        return gain_multipliers(self.gain_terms)

    # Identity --------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain data, complete: what the hash is taken of."""
        return {
            "array": {
                **{f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("format", "memory")},
                "format": self.format.to_dict(),
            },
            "memory": {f.name: getattr(self.memory, f.name) for f in fields(self.memory)},
            "machine": MACHINE_VERSION,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ArrayConfig":
        """Rebuild a configuration from :meth:`to_dict`."""
        array = dict(data["array"])
        array["format"] = WeightFormat.from_dict(array["format"])
        return cls(**array, memory=MemoryConfig(**data["memory"]))

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the configuration and the machine's version, in hex."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def identity(self) -> int:
        """The 32 bits of the hash that the device's identity register holds."""
        return int(self.hash[:8], 16)


def _divisors(number: int) -> str:
    return ", ".join(str(divisor) for divisor in range(1, number + 1) if number % divisor == 0)


def _parse_format(value: object) -> WeightFormat:
    """Read ``array.format``: a name, or a table ``{name, multiples, shifts, zero}`` or ``{name, levels}``."""
    try:
        if isinstance(value, str):
            return get_format(value)
        if isinstance(value, Mapping):
            keys = set(value)
            for key in keys & {"levels", "multiples"}:
                if not isinstance(value[key], list):
                    raise ValueError(f"{key} must be a list of integers, not {value[key]!r}")
            if keys == {"name", "levels"}:
                return WeightFormat(value["name"], tuple(value["levels"]))
            if keys == {"name", "multiples", "shifts", "zero"}:
                if not isinstance(value["zero"], bool):
                    raise ValueError(f"zero must be true or false, not {value['zero']!r}")
                return WeightFormat.from_products(
                    value["name"], value["multiples"], value["shifts"], zero=value["zero"]
                )
            raise ValueError("a table has the keys name, levels, or name, multiples, shifts, zero; "
                             f"not {', '.join(sorted(keys))}")
        raise ValueError(f"must be a name or a table, not {value!r}")
    except (TypeError, ValueError) as error:
        raise ConfigError(f"array.format: {error}") from None


def parse_config(data: Mapping[str, Any], *, source: str = "configuration") -> ArrayConfig:
    """Build a configuration from TOML's nested tables ``[array]`` and ``[memory]``.

    Raises
    ------
    ConfigError
        For an unknown or missing key or an impossible value; the message starts with ``source``.
    """
    known = {"array": {f.name for f in fields(ArrayConfig)} - {"memory"},
             "memory": {f.name for f in fields(MemoryConfig)}}
    try:
        for table, content in data.items():
            if table not in known:
                raise ConfigError(f"unknown table [{table}]; known: [array], [memory]")
            if not isinstance(content, Mapping):
                raise ConfigError(f"[{table}] must be a table, not {content!r}")
            for key in content:
                if key not in known[table]:
                    raise ConfigError(f"unknown key {table}.{key}; known: {', '.join(sorted(known[table]))}")
        if "format" not in data.get("array", {}):
            raise ConfigError('array.format is missing, for example format = "ternary"')
        array = dict(data["array"])
        array["format"] = _parse_format(array["format"])
        return ArrayConfig(**array, memory=MemoryConfig(**data.get("memory", {})))
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def load_config(path: str | Path) -> ArrayConfig:
    """Read a configuration from a TOML file.

    Raises
    ------
    ConfigError
        If the file cannot be read, is not TOML, or describes an impossible array.
    """
    path = Path(path)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, absurd numbers, absurd nesting
        raise ConfigError(f"{path}: not TOML: {error}") from None
    return parse_config(data, source=str(path))
