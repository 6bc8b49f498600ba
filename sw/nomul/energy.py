"""Energy of a sample, layer by layer: what an accelerator does and moves, counted exactly, times published figures.

The counts follow from the descriptors in closed form, as the cycles do, and are those of the hardware: every product
that the array forms, useful or not, and every word that a memory reads or writes. What an operation or a bit costs are
figures for 45 nm; so the sum is an estimate, good for comparing designs and not for promising a battery's life. Clocks,
registers, control and leakage, for which there are no such figures, are left out.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import log2, prod
from typing import TYPE_CHECKING, Any

from nomul_hw.config import WINDOW, ArrayConfig
from nomul_hw.descriptor import DESCRIPTOR_WORDS, HOST_BITS, LOOPS, LayerOp, Target, target_word_bits
from nomul_hw.formats import get_format
from nomul_hw.timing import weight_tiles, window_outputs

from .shapes import LayerShape, NetworkShape

if TYPE_CHECKING:
    from .estimate import Estimate

__all__ = ["PARTS", "Energy", "EnergyError", "EnergyModel", "LayerEnergy", "Work", "energy", "estimate_baseline",
           "layer_work"]

#: Memories of the window unit: two lines each for a word and for the left word of a pair.
LINES = 2 * (WINDOW - 1)

#: What energy is spent on.
PARTS = ("products", "sums", "pools", "requantization", "activations", "accumulators", "weights", "parameters",
         "outside")


class EnergyError(ValueError):
    """An estimate that does not say what is moved, or figures that are impossible."""


@dataclass(frozen=True)
class Work:
    """Operations, and bits that memories read and write.

    Parameters
    ----------
    products : int
        Products of the array and the window unit, an addition each included: those of idle elements too, since nothing
        stops them.
    multiples : int
        Additions that make odd multiples of activations, at the row edges and in front of the window unit.
    sums : int
        Additions of a column's sum to an accumulator.
    pooled : int
        Additions and comparisons of pools.
    requantized, residuals : int
        Channels that are requantized, and those to which another tensor is added.
    activation_reads, activation_writes : int
        Bits of the activation banks.
    accumulator_reads, accumulator_writes : int
        Bits of the accumulators.
    weight_reads, weight_writes : int
        Bits of weight memory, or of the queue in front of the array.
    line_reads, line_writes : int
        Bits of the window unit's lines.
    parameter_reads, descriptor_reads : int
        Bits of biases and gains, and of descriptors.
    streamed, host : int
        Bits of weights from outside, and bits between host and array, commands included.
    """

    products: int = 0
    multiples: int = 0
    sums: int = 0
    pooled: int = 0
    requantized: int = 0
    residuals: int = 0
    activation_reads: int = 0
    activation_writes: int = 0
    accumulator_reads: int = 0
    accumulator_writes: int = 0
    weight_reads: int = 0
    weight_writes: int = 0
    line_reads: int = 0
    line_writes: int = 0
    parameter_reads: int = 0
    descriptor_reads: int = 0
    streamed: int = 0
    host: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, times: int) -> "Work":
        return Work(*(getattr(self, f.name) * times for f in fields(self)))


def layer_work(config: ArrayConfig, layer: Mapping[str, int]) -> Work:
    """What a descriptor makes an accelerator do, in closed form; the hardware's own counts.

    Parameters
    ----------
    layer : mapping of str to int
        Descriptor values.
    """
    op = LayerOp(layer["op"])
    counts = [layer[f"count_{level}"] + 1 for level in range(LOOPS)]
    words, depth, word = prod(counts), config.depth, config.act_word_bits
    tiles, tile_words = weight_tiles(config, layer)
    weights = tiles * tile_words * config.weight_word_bits
    products = multiples = sums = pooled = 0
    adders = len(config.product.bases) - config.product.bases.count(1)
    if op is LayerOp.CONV:
        vectors, chunks = counts[0] * counts[1] * counts[6], config.column_chunks
        products, multiples, sums = words * config.macs_per_cycle, words * depth * adders, words * config.cols
    elif op.is_window:
        columns, rows = window_outputs(layer)
        vectors, chunks = columns * rows * counts[4], config.word_chunks
        if op is LayerOp.DEPTHWISE:
            products = words * depth * WINDOW * WINDOW
            multiples = words * depth * WINDOW * (1 + layer.get("pair", 0)) * adders
        else:
            pooled = words * depth * 2 * (WINDOW - 1)  # within the newest column, and over the columns
    else:
        vectors, chunks = prod(counts[2:5]), config.word_chunks
        pooled = words * depth
    between = (words - vectors) * config.cols * config.acc_bits if op is LayerOp.CONV else 0
    written = vectors * chunks
    lines = LINES * words * word if config.memory.lines else 0
    streams = config.weights == "stream"
    channels, skip, pair = written * config.requantize_lanes, layer.get("skip", 0), layer.get("pair", 0)
    return Work(
        products=products, multiples=multiples, sums=sums, pooled=pooled,
        requantized=channels, residuals=channels * skip,
        activation_reads=(words * (1 + pair) + written * skip) * word, activation_writes=channels * config.act_bits,
        accumulator_reads=between, accumulator_writes=between,
        weight_reads=weights, weight_writes=weights if streams else 0,
        line_reads=lines, line_writes=lines if op.is_window else 0,
        parameter_reads=(written + 1) * target_word_bits(config, Target.PARAMETER),
        descriptor_reads=DESCRIPTOR_WORDS * HOST_BITS,
        streamed=weights if streams else 0)


@dataclass(frozen=True)
class EnergyModel:
    """What operations and bits cost, in pJ, at 45 nm and 0.9 V.

    Parameters
    ----------
    add_8, add_32, multiply_8 : float
        Integer additions of 8 and 32 bits, and a multiplication of 8 by 8 bits: M. Horowitz, "Computing's energy
        problem (and what we can do about it)", ISSCC 2014, figure 1.1.9. Other widths of additions lie on the line
        through both; a multiplication costs as the product of the widths.
    shift_8, shift_32 : float
        Shifts of 8 and 32 bits: You et al., "ShiftAddNet", NeurIPS 2020, table 1.
    memory : tuple of (int, float)
        Bytes of a memory, ascending, and what an access of 64 bits costs: Horowitz's caches. Sizes between lie on the
        line through their logarithms, and others on its ends.
    outside : float
        A bit that comes from or goes outside the chip. 200 pJ for 16 bits is a customary figure; Horowitz has 1.3 to
        2.6 nJ for 64 bits of DRAM, 20 to 41 pJ a bit.

    Raises
    ------
    EnergyError
        If a figure is not positive, or the memories are fewer than two or not ascending.
    """

    add_8: float = 0.03
    add_32: float = 0.1
    multiply_8: float = 0.2
    shift_8: float = 0.024
    shift_32: float = 0.13
    memory: tuple[tuple[int, float], ...] = ((8 << 10, 10.0), (32 << 10, 20.0), (1 << 20, 100.0))
    outside: float = 200 / 16

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name != "memory" and not value > 0:
                raise EnergyError(f"{f.name} must be a positive number of pJ, not {value!r}")
        sizes = [size for size, _ in self.memory]
        if len(sizes) < 2 or sizes != sorted(set(sizes)) or not all(size > 0 and pj > 0 for size, pj in self.memory):
            raise EnergyError(f"memory must be two or more pairs of bytes, ascending, and pJ, not {self.memory!r}")

    def add(self, bits: float) -> float:
        """An addition of so many bits."""
        return _line(bits, 8, self.add_8, 32, self.add_32)

    def shift(self, bits: float) -> float:
        """A shift of so many bits by any number of places."""
        return _line(bits, 8, self.shift_8, 32, self.shift_32)

    def multiply(self, bits: int, other: int) -> float:
        """A multiplication."""
        return self.multiply_8 * bits * other / 64

    def memory_bit(self, size: int) -> float:
        """Reading or writing a bit of an on-chip memory of ``size`` bits."""
        wanted = log2(max(1, size) / 8)
        known = [(log2(at), log2(energy)) for at, energy in self.memory]
        at = next((index for index in range(1, len(known) - 1) if wanted < known[index][0]), len(known) - 1)
        (left, low), (right, high) = known[at - 1], known[at]
        return float(2 ** (low + (high - low) * (wanted - left) / (right - left))) / 64

    def product(self, config: ArrayConfig) -> float:
        """One product of a processing element, and its addition to the sum that passes; averaged over the rows."""
        width = sum(config.sum_bits(row) for row in range(config.rows)) / config.rows
        if config.pe == "multiplier":
            form = self.multiply(config.format.bits, config.act_bits)
        else:
            form = self.shift(config.act_bits) if any(term.shifts > 1 for term in config.product.terms) else 0.0
        return form + self.add(width)

    def parts(self, work: Work, config: ArrayConfig, words: Mapping[str, int]) -> dict[str, float]:
        """Energy of some work by :data:`PARTS`, in pJ.

        Parameters
        ----------
        words : mapping of str to int
            Words of the memories, by the names of :class:`nomul_hw.config.MemoryConfig`.
        """
        parameter, requantize = target_word_bits(config, Target.PARAMETER), config.requantize_bits

        def memory(name: str, width: int, *bits: int) -> float:
            return self.memory_bit(words[name] * width) * sum(bits) if sum(bits) else 0.0

        return {
            "products": work.products * self.product(config) + work.multiples * self.add(config.act_bits + 1),
            "sums": work.sums * self.add(config.acc_bits),
            "pools": work.pooled * self.add(config.pool_bits),
            "requantization": work.requantized * (
                config.gain_terms * self.add(requantize) + (config.gain_terms + 1) * self.shift(requantize))
            + work.residuals * self.add(requantize),
            "activations": memory("activations", config.act_word_bits, work.activation_reads, work.activation_writes)
            + memory("lines", config.act_word_bits, work.line_reads, work.line_writes),
            "accumulators": memory("accumulators", config.cols * config.acc_bits, work.accumulator_reads,
                                   work.accumulator_writes),
            "weights": memory("weights", config.weight_word_bits, work.weight_reads, work.weight_writes),
            "parameters": memory("parameters", parameter, work.parameter_reads)
            + memory("layers", DESCRIPTOR_WORDS * HOST_BITS, work.descriptor_reads),
            "outside": self.outside * (work.streamed + work.host),
        }


def _line(at: float, left: int, low: float, right: int, high: float) -> float:
    """A line through two points; below the first one, the one through 0."""
    return low * at / left if at < left else low + (high - low) * (at - left) / (right - left)


@dataclass(frozen=True)
class LayerEnergy:
    """Energy of one layer for one sample.

    Parameters
    ----------
    name : str
        The node; ``"host"`` for what goes between host and array beside the layers.
    macs : int
        Multiply-accumulates of the network, padding counted.
    work : Work
        What is done and moved.
    parts : mapping of str to float
        pJ by :data:`PARTS`.
    """

    name: str
    macs: int
    work: Work
    parts: Mapping[str, float]

    @property
    def total(self) -> float:
        """All parts, pJ."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Energy:
    """Energy of one sample.

    Parameters
    ----------
    config : ArrayConfig
        The accelerator.
    layers : tuple of LayerEnergy
        In execution order, the host last.
    """

    config: ArrayConfig
    layers: tuple[LayerEnergy, ...]

    @property
    def parts(self) -> dict[str, float]:
        """pJ by :data:`PARTS`, over all layers."""
        return {part: sum(layer.parts[part] for layer in self.layers) for part in PARTS}

    @property
    def total(self) -> float:
        """All layers, pJ."""
        return sum(layer.total for layer in self.layers)

    @property
    def on_chip(self) -> float:
        """All but what goes outside the chip, pJ."""
        return self.total - self.parts["outside"]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the network, padding counted."""
        return sum(layer.macs for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``; energies in pJ."""
        return {"array": self.config.name, "total": self.total, "on_chip": self.on_chip, "macs": self.macs,
                "parts": self.parts,
                "layers": [{"name": layer.name, "total": layer.total, "parts": dict(layer.parts),
                            "work": asdict(layer.work)} for layer in self.layers]}


def energy(estimate: "Estimate", model: EnergyModel | None = None, *, fit: bool = True) -> Energy:
    """Energy of what an estimate counted.

    Parameters
    ----------
    estimate : Estimate
        Of this machine, not by another's cycle model.
    model : EnergyModel, optional
        What operations and bits cost.
    fit : bool
        As of :func:`nomul.estimate.estimate_network`: whether the memories have the array's sizes, or those that the
        network needs.

    Raises
    ------
    EnergyError
        If the estimate does not say what is moved.
    """
    model, config = model or EnergyModel(), estimate.config
    if estimate.model != "nomul" or estimate.host is None:
        raise EnergyError(f"Energy follows from what this machine moves, which the model {estimate.model} does not say")
    words: dict[str, int] = asdict(config.memory) if fit else {**asdict(config.memory), **estimate.memory}
    layers = [(layer.name, layer.macs, work) for layer, work in zip(estimate.layers, estimate.work, strict=True)]
    return Energy(config, tuple(LayerEnergy(name, macs, work, model.parts(work, config, words))
                                for name, macs, work in (*layers, ("host", 0, estimate.host))))


def estimate_baseline(network: NetworkShape, config: ArrayConfig, *, fit: bool = True) -> "Estimate":
    """Estimate the same network in ``int8`` on the same array of 8-bit multipliers.

    Its memories are as large as the array's, or as it needs if that is more.

    Raises
    ------
    nomul.compiler.CompileError, nomul_hw.config.ConfigError
        If there is no such array, or it cannot run the network.
    """
    from .compiler.plan import plan_network
    from .estimate import estimate_network

    int8 = get_format("int8")
    nodes = tuple(replace(node, format=int8) if isinstance(node, LayerShape) and node.kind == "conv" else node
                  for node in network.nodes)
    network = replace(network, nodes=nodes)
    config = replace(config, format=int8, pe="multiplier", plane_shift=None)
    if fit and config.weights == "memory":
        needed = plan_network(network, config, fit=False).memory["weights"]
        memory = replace(config.memory, weights=max(config.memory.weights, needed))
        config = replace(config, memory=memory)
    return estimate_network(network, config, fit=fit)
