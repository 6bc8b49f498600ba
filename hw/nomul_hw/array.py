"""The weight-stationary systolic array: ``rows x cols`` processing elements of ``lanes`` products each."""

from amaranth.hdl import Cat, Module, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .config import ArrayConfig
from .pe import Multiples, ProcessingElement, WeightDecoder

__all__ = ["SystolicArray"]


class SystolicArray(wiring.Component):
    """Computes ``sum_k w[k, c] * x[k]`` for every column ``c``, one activation vector a cycle.

    Activations enter at the left, skewed by one cycle a row, and travel right; partial sums travel down and grow with
    the row; at the bottom the columns are aligned again. Sums leave :attr:`latency` cycles after their activations.
    They are raw: each still lacks the correction of its column's weights (:mod:`nomul_hw.product`).

    Weights are double-buffered. ``load[r]`` with ``weights`` stores one row of a tile in the shadow registers;
    ``swap``, beside the first activation vector of a tile, makes the shadow weights active for that vector and all
    later ones. Both travel as a wavefront, so tiles follow each other without a bubble: row ``r`` must be loaded at
    latest ``r - 1`` cycles after the swap that uses it enters, and not before the previous swap is ``r`` cycles old
    (loading row after row from the cycle of a swap on is always right).

    Parameters
    ----------
    config : ArrayConfig
        Shape and format.
    family : str, optional
        Chips that the elements are made for: one of :data:`nomul_hw.fabric.FABRICS`.

    Members
    -------
    act : In(ArrayLayout(signed(act_bits), rows * lanes))
        Activation vector; element ``r * lanes + l`` is lane ``l`` of row ``r``.
    swap : In(1)
        ``act`` is the first vector of a new tile.
    load : In(rows)
        One bit per row: ``weights`` belong to that row.
    weights : In(cols * lanes * format.bits)
        Codes of one row; the code of lane ``l`` of column ``c`` has index ``c * lanes + l``.
    sums : Out(ArrayLayout(signed(column_sum_bits), cols))
        Raw column sums.
    """

    def __init__(self, config: ArrayConfig, family: str | None = None):
        self.config = config
        self.family = family
        super().__init__({
            "act": In(data.ArrayLayout(signed(config.act_bits), config.depth)),
            "swap": In(1),
            "load": In(config.rows),
            "weights": In(config.weight_word_bits),
            "sums": Out(data.ArrayLayout(signed(config.column_sum_bits), config.cols)),
        })

    @property
    def latency(self) -> int:
        """Cycles from an activation vector to its sums."""
        return self.config.array_cycles

    def elaborate(self, platform):
        m = Module()
        config = self.config
        rows, cols, lanes = config.rows, config.cols, config.lanes

        elements = [[ProcessingElement(product=config.product, lanes=lanes, act_bits=config.act_bits,
                                       psum_in_bits=config.sum_bits(row - 1) if row else 0,
                                       psum_out_bits=config.sum_bits(row), pipeline=config.pipeline,
                                       family=self.family)
                     for _ in range(cols)] for row in range(rows)]

        act_row_bits = lanes * config.act_bits
        acts = _skew(m, "act", self.act.as_value(), act_row_bits)
        swaps = _skew(m, "swap", self.swap.replicate(rows), 1)
        weights = _skew(m, "weight", self.weights, lanes * config.format.bits)

        # Left edge: the odd multiples of every lane, registered.
        for row in range(rows):
            bundles = []
            for lane in range(lanes):
                m.submodules[f"multiples_{row}_{lane}"] = multiples = Multiples(
                    product=config.product, act_bits=config.act_bits)
                m.d.comb += multiples.act.eq(acts[row].word_select(lane, config.act_bits))
                bundles.append(multiples.multiples)
            edge = Signal(elements[row][0].act_bundle_bits, name=f"edge_{row}", reset_less=True)
            m.d.sync += edge.eq(Cat(bundles))
            m.d.comb += [
                elements[row][0].act_i.eq(edge),
                elements[row][0].swap_i.eq(swaps[row]),
                elements[row][0].load_i.eq(self.load[row]),
            ]

        # Top edge: the column's weight bus, decoded once per column.
        for col in range(cols):
            bus = []
            for lane in range(lanes):
                m.submodules[f"decoder_{col}_{lane}"] = decoder = WeightDecoder(product=config.product)
                m.d.comb += decoder.code.eq(weights[col].word_select(lane, config.format.bits))
                bus.append(decoder.controls)
            for row in range(rows):
                m.d.comb += elements[row][col].weight_i.eq(Cat(bus))

        for row in range(rows):
            for col in range(cols):
                m.submodules[f"pe_{row}_{col}"] = element = elements[row][col]
                if row:
                    m.d.comb += element.psum_i.eq(elements[row - 1][col].psum_o)
                if col:
                    left = elements[row][col - 1]
                    m.d.comb += [element.act_i.eq(left.act_o), element.load_i.eq(left.load_o),
                                 element.swap_i.eq(left.swap_o)]

        # Bottom edge: column c is c cycles late; delay the others until all are aligned with the last.
        bottom = Cat(elements[-1][col].psum_o for col in reversed(range(cols)))
        aligned = _skew(m, "sum", bottom, config.column_sum_bits)
        m.d.comb += self.sums.eq(Cat(reversed(aligned)))
        return m


def _skew(m: Module, name: str, value, width: int) -> list:
    """Delay element ``i`` of a packed vector by ``i`` cycles; returns the elements.

    One register per stage holds all elements that still have to wait, so the triangle is a handful of signals.
    """
    count = len(value) // width
    elements, stage = [value[:width]], value
    for index in range(1, count):
        register = Signal(width * (count - index), name=f"{name}_skew_{index}", reset_less=name != "swap")
        m.d.sync += register.eq(stage[width:])
        elements.append(register[:width])
        stage = register
    return elements
