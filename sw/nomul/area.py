"""What an accelerator will take of a chip, without synthesizing it.

Every module is a sum of a few things that its configuration tells: products, bits of sums, registers, bits of words, a
constant. What each of them costs is fitted, without negative costs, to a stored sweep of small accelerators that were
synthesized (``python -m nomul_sim.area_sweep FAMILY``). What the logic of a product costs is no sum of simple things,
so the sweep has the elements of all formats by themselves too. Memories are computed: from what the chip can make them
of, as Yosys chooses it. How far off it is says the sweep itself: each of its accelerators is predicted from the others.
"""

import json
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nomul_hw.config import WINDOW, ArrayConfig
from nomul_hw.descriptor import DESCRIPTOR_WORDS, HOST_BITS, Target, target_word_bits
from nomul_hw.families import Cost

__all__ = ["ELEMENT_ACT_BITS", "ELEMENT_SUM_BITS", "AreaError", "Elements", "Errors", "Predictor", "Sample",
           "block_rams", "load_predictor", "load_sweep", "sweep_path"]

Float64Array = npt.NDArray[np.float64]

#: Kinds of cells that are fitted, and those whose errors are stated.
FITTED, STATED = ("lut", "carry", "ff"), ("lut", "ff")

#: Widths of the sum that the sweep's elements add to, and of their activations.
ELEMENT_SUM_BITS, ELEMENT_ACT_BITS = 24, 8


@dataclass(frozen=True)
class Ram:
    """What memories can be made of, with a port that reads and one that writes, and how Yosys weighs it.

    Parameters
    ----------
    words : int
        That it holds at its narrowest.
    widths : tuple of int
        Bits of a word that it can have; of each half as many words as of the one before.
    price : float
        In the measure of Yosys' ``memory_libmap``, in which a bit that is kept in a flip-flop has 1.
    cost : Cost
        Of one.
    scale : float
        Part of the price that counts by the bits that are used.
    byte : int
        Bits of a word that can be written by themselves; 0 if only the word can.
    shared : bool
        Whether the port that writes can read as well.
    skip : int
        How many of the widths cannot be written.
    """

    words: int
    widths: tuple[int, ...]
    price: float
    cost: Cost
    scale: float = 0
    byte: int = 9
    shared: bool = False
    skip: int = 0


_NARROW = (1, 2, 4, 9, 18)

#: By family, as its files for ``memory_libmap`` say (Yosys 0.70); of those of equal price the first is taken. The large
#: single-port memories of iCE40 UP5K are not used: Yosys takes them only if it is told to.
RAMS: Mapping[str, tuple[Ram, ...]] = {
    "ecp5": (Ram(16, (4,), 4, Cost(lut=6), byte=0),
             Ram(16384, _NARROW, 128, Cost(bram=1), shared=True),
             Ram(16384, (*_NARROW, 36), 128, Cost(bram=1), skip=3)),
    "ice40": (Ram(2048, (2, 4, 8, 16), 64, Cost(bram=1), byte=1),),
    "xilinx": (Ram(32, (6,), 8, Cost(lut=4), scale=7, byte=0), Ram(64, (3,), 8, Cost(lut=4), scale=7, byte=0),
               Ram(32, (4,), 8, Cost(lut=4), scale=8, byte=0, shared=True),
               Ram(64, (2,), 8, Cost(lut=4), scale=8, byte=0, shared=True),
               Ram(16384, _NARROW, 129, Cost(bram=1), shared=True),
               Ram(32768, (*_NARROW, 36), 257, Cost(bram=2), shared=True),
               Ram(65536, (1,), 513, Cost(bram=4), shared=True),
               Ram(16384, (*_NARROW, 36), 129, Cost(bram=1)),
               Ram(32768, (*_NARROW, 36, 72), 257, Cost(bram=2))),
    "gowin": (Ram(16, (4,), 4, Cost(lut=4), scale=4, byte=0),
              Ram(16384, _NARROW, 128, Cost(bram=1), shared=True),
              Ram(16384, (*_NARROW, 36), 128, Cost(bram=1))),
}

#: LUTs per bit that one more memory behind others takes, to choose its words; a LUT of six inputs does more.
CHOICE = {"ecp5": 0.85, "ice40": 0.9, "xilinx": 0.5, "gowin": 0.9}

#: Share of the flip-flops that take a LUT's place: where both are one cell, a flip-flop without a LUT of its own leaves
#: none for others. Chosen from placed machines, two of iCE40 and two builds of one of Gowin: docs/fit.md.
LONE = {"ice40": 0.7, "gowin": 0.62}

#: LUTs, per LUT in a carry chain, that place and route puts at the ends of chains. That of ECP5 is of a placed machine:
#: 62 chains of 960 LUTs there, two for each.
FED = {"ecp5": 0.13, "gowin": 0.2}


class AreaError(ValueError):
    """A family without a sweep, or a sweep that cannot be read."""


@dataclass(frozen=True)
class Sample:
    """A synthesized accelerator: its configuration, and the cost of every module."""

    config: ArrayConfig
    modules: Mapping[str, Cost]

    @property
    def total(self) -> Cost:
        """All modules together."""
        return sum(self.modules.values(), Cost())


def sweep_path(family: str) -> Path:
    """Where the package keeps the sweep of a family."""
    return Path(__file__).with_name(f"area_{family}.json")


def load_sweep(path: Path) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Read what ``python -m nomul_sim.area_sweep`` wrote: accelerators and arrays, and elements by themselves.

    Raises
    ------
    AreaError
        If there is no such file, or it is none.
    """
    def samples(key: str) -> tuple[Sample, ...]:
        return tuple(Sample(ArrayConfig.from_dict(one["config"]), {
            name: Cost(**cost) for name, cost in one["modules"].items()}) for one in data[key])

    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return samples("results"), samples("elements")
    except FileNotFoundError:
        raise AreaError(f"{path}: no such sweep; python -m nomul_sim.area_sweep makes it") from None
    except (ValueError, KeyError, TypeError) as error:
        raise AreaError(f"{path}: not a sweep ({error})") from None


# What modules are made of --------------------------------------------------------------------------------------------


def _made_of(config: ArrayConfig) -> Float64Array:
    """What the products of an element are made of, in bits: gates, shifters, selections, sums."""
    terms, bits = config.product.terms, config.act_bits
    widest = bits + max(abs(base).bit_length() for base in config.product.bases) - 1
    count = config.lanes * len(terms)
    return np.asarray([count * bits * terms[0].zero, count * widest * terms[0].shift_bits,
                       count * widest * terms[0].select_bits,
                       (count - 1) * config.product.sum_bits(2, bits), config.lanes * bits], dtype=np.float64)


class Elements:
    """Logic of the products of an element, without its sum: measured, or else a sum of things that is fitted to that.

    Parameters
    ----------
    samples : sequence of Sample
        Elements as arrays of one row and one column; their module is ``"element"``.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._measured: dict[tuple[tuple[int, ...], str], dict[int, int]] = {}
        for one in samples:
            of_kind = self._measured.setdefault(self._kind(one.config), {})
            of_kind[one.config.lanes] = max(0, one.modules["element"].lut - ELEMENT_SUM_BITS)
        self._fit = np.zeros(5)
        if samples:
            matrix = np.stack([_made_of(one.config) for one in samples])
            wanted = np.asarray([self._measured[self._kind(one.config)][one.config.lanes] for one in samples],
                                dtype=np.float64)
            weights = 1 / (ELEMENT_SUM_BITS + wanted)
            self._fit = _nonnegative(matrix * weights[:, None], wanted * weights)

    @staticmethod
    def _kind(config: ArrayConfig) -> tuple[tuple[int, ...], str]:
        return tuple(config.format.levels), config.pe

    def logic(self, config: ArrayConfig) -> float:
        """LUTs of an element's products: linear in their number, and in proportion to the activations' width."""
        fitted = float(_made_of(config) @ self._fit)
        known = sorted(self._measured.get(self._kind(config), {}).items())
        if not known:
            return fitted
        if len(known) == 1:
            known.insert(0, (0, 0))
        after = min(max(1, bisect_right(known, config.lanes, key=lambda one: one[0])), len(known) - 1)
        (fewer, low), (more, high) = known[after - 1:after + 1]
        found = low + (high - low) * (config.lanes - fewer) / (more - fewer)
        usual = float(_made_of(replace(config, act_bits=ELEMENT_ACT_BITS)) @ self._fit)
        return found * fitted / usual if usual else found


def _array_luts(config: ArrayConfig, elements: Elements) -> list[float]:
    rows, lanes, cols, product = config.rows, config.lanes, config.cols, config.product
    count = lanes * len(product.terms)
    return [
        rows * cols * elements.logic(config),
        cols * product.sum_bits(lanes, config.act_bits),  # the first row has no sum above
        cols * sum(config.sum_bits(row) for row in range(1, rows)),
        config.depth * (len(product.bases) - product.bases.count(1)) * config.act_bits,  # multiples, at the left edge
        cols * lanes * product.control_bits,  # decoders, at the top
        # A product that is registered is formed in front of the register, rather than in the adder.
        rows * cols * count * product.sum_bits(1, config.act_bits) * (config.pipeline > (count > 1)),
    ]


def _array_ffs(config: ArrayConfig) -> list[float]:
    """Registers as :mod:`nomul_hw.array` has them; fitted is only what synthesis saves."""
    rows, lanes, cols, product, bits = config.rows, config.lanes, config.cols, config.product, config.act_bits
    passed = lanes * sum(bits + (base // (base & -base)).bit_length() - 1 for base in product.bases)
    waiting = ((bits * lanes + 1) * rows * (rows - 1)
               + (lanes * config.format.bits + config.column_sum_bits) * cols * (cols - 1)) / 2
    held = (rows * cols * 2 * lanes * product.control_bits + rows * (cols * passed + 2 * (cols - 1))
            + cols * sum(config.sum_bits(row) for row in range(rows)) + waiting)
    # Of a product that is neither selected nor shifted, what is registered is what goes on to the right, and its sign.
    count, term = lanes * len(product.terms), product.terms[0]
    formed = 2 + bits * bool(term.shift_bits or term.select_bits)
    late = [formed if count == 1 else product.sum_bits(lanes, bits), count * formed, count * (bits + 2) / 2]
    return [held, rows * cols * sum(late[:config.pipeline])]


def _output(config: ArrayConfig) -> list[float]:
    lanes, bits = config.requantize_lanes, config.requantize_bits
    chosen = lanes * ((config.column_chunks - 1) * config.acc_bits + (config.word_chunks - 1) * config.channel_bits)
    return [lanes * bits, lanes * bits * config.gain_terms, chosen, bool(chosen), 1]


def _accumulator(config: ArrayConfig) -> list[float]:
    bits = config.cols * config.acc_bits
    return [bits, bits * bool(config.plane_shift), log2(config.memory.accumulators), 1]


def _channel(config: ArrayConfig) -> list[float]:
    return [config.depth * config.pool_bits, config.depth, 1]


def _window(config: ArrayConfig) -> list[float]:
    products = config.depth * WINDOW * WINDOW
    terms, bits = config.product.terms, config.act_bits
    widest = bits + max(abs(base).bit_length() for base in config.product.bases) - 1
    return [products, products * bits, products * widest * terms[0].shift_bits,
            products * widest * terms[0].select_bits, products * bits * (len(terms) - 1),
            config.depth * config.window_bits, products * config.product.control_bits,
            config.depth * bits * len(config.product.bases), 1]


def _other(config: ArrayConfig) -> list[float]:
    return [config.act_word_bits, config.act_word_bits * bool(config.memory.lines),
            config.act_word_bits * (config.word_chunks > 1), config.weight_word_bits, config.depth,
            log2(config.memory.activations), log2(config.memory.layers), 1]


def _host(config: ArrayConfig) -> list[float]:
    """It collects a word of any target, of so many of the host's words."""
    widest = max(target_word_bits(config, target) for target in Target)
    return [-(-widest // HOST_BITS) * HOST_BITS, *_other(config)]


def _top(config: ArrayConfig) -> list[float]:
    return [config.rows, config.cols, *_other(config)]


#: By the name of an instance; the array has its own, all others are :func:`_other`.
FEATURES: Mapping[str, Callable[[ArrayConfig], list[float]]] = {
    "output": _output, "accumulator": _accumulator, "channel": _channel, "window_unit": _window, "host": _host,
    "top": _top}


def _memory(family: str, depth: int, width: int, parts: int = 1, second: bool = False) -> Cost:
    """Cost of a memory of so many words, of parts of a width that are written by themselves, and ports that read.

    Yosys takes what is cheapest by its own measure: of every kind of memory in every width so many that hold all parts
    of all words, side by side where parts of them are written by themselves; half of what chooses between them by bits
    that are read, and by parts that are written; 2 for every port that only reads. For a port more than there is,
    all is kept twice. Or all bits stand in flip-flops. What is read of LUTs and flip-flops gets a register.
    """
    bits, reads = width * parts, 1 + second
    best, chosen = float(bits * depth), Cost(
        lut=round(CHOICE[family] * (depth - 1) * bits * reads), ff=bits * depth + bits * reads)
    for ram in RAMS[family]:
        copies = 1 if ram.shared else reads
        for halved, unit in list(enumerate(ram.widths))[ram.skip:]:
            byte = min(ram.byte, unit) or unit
            slices = -(-depth // (ram.words >> halved))
            count = -(-slices * parts * -(-width // byte) * byte // unit)
            price = (copies * ((ram.price - ram.scale) * count + ram.scale * slices * bits / unit)
                     + (slices - 1) * bits * reads / 2 + (slices * parts / 2 if slices > 1 else 0) + 2 * copies)
            if price < best:
                best = price
                chosen = ram.cost * (count * copies) + Cost(
                    lut=round(CHOICE[family] * (slices - 1) * bits * reads),
                    ff=(bits * reads if not ram.cost.bram else 0) + (slices - 1).bit_length() * reads)
    return chosen


def _memories(config: ArrayConfig, family: str) -> dict[str, Cost]:
    """Memories by the module that they are in."""
    memory, word, parts, second = config.memory, config.act_word_bits, config.word_chunks, bool(config.memory.lines)
    bank = _memory(family, memory.activations, word // parts, parts, second)
    return {
        "bank_0": bank, "bank_1": bank,
        "weight_queue" if config.weights == "stream" else "weight_memory":
            _memory(family, memory.weights, config.weight_word_bits),
        "output": _memory(family, memory.parameters, target_word_bits(config, Target.PARAMETER)),
        "accumulator": _memory(family, memory.accumulators, config.cols * config.acc_bits),
        "sequencer": _memory(family, 1 << (memory.layers * DESCRIPTOR_WORDS - 1).bit_length(), HOST_BITS),
        **({"window_unit": _memory(family, memory.lines, word) * 4} if second else {}),
    }


def block_rams(config: ArrayConfig, family: str) -> int:
    """Block RAMs of an accelerator: every memory in the shape that takes fewest; small ones take none."""
    return sum(cost.bram for cost in _memories(config, family).values())


# Fitting -------------------------------------------------------------------------------------------------------------


def _nonnegative(matrix: Float64Array, wanted: Float64Array) -> Float64Array:
    """Least squares without negative coefficients: Lawson and Hanson, Solving Least Squares Problems (1974), 23."""
    scale = np.sqrt(np.square(matrix).sum(axis=0))
    scale[scale == 0] = 1.0
    matrix = matrix / scale
    found, free = np.zeros(matrix.shape[1]), np.zeros(matrix.shape[1], dtype=bool)
    enough = 1e-9 * max(1.0, float(np.abs(matrix.T @ wanted).max(initial=0.0)))
    for _ in range(3 * len(found)):
        gain = np.where(free, 0.0, matrix.T @ (wanted - matrix @ found))
        if gain.max(initial=0.0) <= enough:
            break
        free[gain.argmax()] = True
        while True:
            best = np.zeros(len(found))
            best[free] = np.linalg.lstsq(matrix[:, free], wanted, rcond=None)[0]
            below = free & (best <= 0)
            if not below.any():
                break
            step = (found[below] / np.maximum(found[below] - best[below], 1e-30)).min()  # up to the first that ends
            found = found + step * (best - found)
            free &= found > 1e-12
        found = best
    return np.asarray(found / scale)


@dataclass(frozen=True)
class Errors:
    """How far predictions of a sweep's accelerators and arrays are off, each from the others; shares of the truth.

    Parameters
    ----------
    mean, worst : mapping of str to float
        Of the magnitudes, by ``"lut"`` and ``"ff"``.
    """

    mean: Mapping[str, float]
    worst: Mapping[str, float]

    def __str__(self) -> str:
        return ", ".join(f"{name.upper()} {self.mean[name]:.1%} on average and {self.worst[name]:.1%} at worst"
                         for name in STATED)


class Predictor:
    """Predicts what accelerators take of a family's chips.

    Parameters
    ----------
    family : str
        One of :data:`nomul_hw.families.FAMILIES`.
    samples : sequence of Sample
        Accelerators and arrays that were synthesized.
    elements : sequence of Sample
        Elements that were.
    """

    def __init__(self, family: str, samples: Sequence[Sample], elements: Sequence[Sample] = ()) -> None:
        self.family, self.samples, self.elements = family, tuple(samples), tuple(elements)
        self._products = Elements(elements)
        if not self.samples:
            raise AreaError(f"{family}: the sweep is empty")
        self._fits = {name: self._fit(name) for name in sorted({name for one in samples for name in one.modules})}

    def _features(self, module: str, kind: str, config: ArrayConfig) -> Float64Array:
        if module != "array":
            found = FEATURES.get(module, _other)(config)
        else:
            found = _array_ffs(config) if kind == "ff" else _array_luts(config, self._products)
        return np.asarray(found, dtype=np.float64)

    def _fit(self, module: str) -> dict[str, Float64Array]:
        """Coefficients of a module, by kind of cell. Errors count as shares of whole accelerators."""
        having = [one for one in self.samples if module in one.modules]
        memories = [_memories(one.config, self.family).get(module, Cost()) for one in having]
        result = {}
        for kind in FITTED:
            matrix = np.stack([self._features(module, kind, one.config) for one in having])
            weights = 1 / np.asarray([max(1, getattr(one.total, kind)) for one in having], dtype=np.float64)
            wanted = np.asarray([getattr(one.modules[module], kind) - getattr(memory, kind)
                                 for one, memory in zip(having, memories, strict=True)], dtype=np.float64)
            result[kind] = _nonnegative(matrix * weights[:, None], wanted * weights)
        return result

    def modules(self, config: ArrayConfig) -> dict[str, Cost]:
        """Cost of the modules that there are."""
        absent = {"weight_memory" if config.weights == "stream" else "weight_queue",
                  *([] if config.memory.lines else ["window_unit", "padding_before"])}
        result = _memories(config, self.family)
        for module, fits in self._fits.items():
            if module not in absent:
                result[module] = result.get(module, Cost()) + Cost(**{
                    kind: round(float(self._features(module, kind, config) @ found)) for kind, found in fits.items()})
        return result

    def predict(self, config: ArrayConfig) -> Cost:
        """Cost of an accelerator; its LUTs with those that carry chains begin with, and whose places flip-flops take.

        Raises
        ------
        AreaError
            If nothing with its kind of processing elements was swept.
        """
        if all(one.config.pe != config.pe for one in self.samples):
            raise AreaError(f"No array with pe = {config.pe!r} is in the sweep of {self.family}")
        total = sum(self.modules(config).values(), Cost())
        return total + Cost(lut=round(LONE.get(self.family, 0) * total.ff + FED.get(self.family, 0) * total.carry))

    @cached_property
    def errors(self) -> Errors:
        """How far off it is, by leaving out one of the sweep after the other; what no other has does not count."""
        found: dict[str, list[float]] = {kind: [] for kind in STATED}
        for at, one in enumerate(self.samples):
            others = Predictor(self.family, [*self.samples[:at], *self.samples[at + 1 :]], self.elements)
            guess, known = others.modules(one.config), [name for name in one.modules if name in others._fits]
            for kind in STATED:
                truth = sum(getattr(one.modules[name], kind) for name in known)
                found[kind].append(abs(sum(getattr(guess[name], kind) for name in known) - truth) / max(1, truth))
        return Errors({kind: float(np.mean(values)) for kind, values in found.items()},
                      {kind: max(values) for kind, values in found.items()})


@cache
def load_predictor(family: str) -> Predictor:
    """The predictor of a family, from the sweep that the package has.

    Raises
    ------
    AreaError
        If there is no sweep of the family.
    """
    return Predictor(family, *load_sweep(sweep_path(family)))
