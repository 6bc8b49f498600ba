"""The window unit: depthwise convolutions and maximum pools of up to 3x3 taps, every input word read once."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .adders import multiple_bits, odd_part
from .arithmetic import act_range
from .config import WINDOW, ArrayConfig
from .descriptor import LayerOp
from .layouts import descriptor_layout, token_layout, window_layout
from .memory import BlockRAM
from .pe import Multiples, WeightDecoder, balanced_sum, raw_products

__all__ = ["WindowLane", "WindowUnit"]


class WindowUnit(wiring.Component):
    """Slides a 3x3 window over the words of a map, a position per cycle.

    Line buffers keep the two rows above, registers the two columns before; what lies outside the map, or is no part
    of a smaller kernel, reads as padding. Every channel has nine products of its own, made as in a processing element,
    so a word of ``rows * lanes`` channels is convolved in one cycle. At stride 2 a position is a pair of columns: both
    are read at once, and the window moves by two.

    The latency from a position to its result is three cycles; a result is kept until the next one. A row of the map
    has at least two positions.

    Parameters
    ----------
    config : ArrayConfig
        Shape, format and width of the lines.

    Members
    -------
    layer : In(descriptor)
        The running layer.
    next_valid, next_place : In(1), In(window_layout)
        A word arrives one cycle later, and where it stands.
    token, place : In(token_layout), In(window_layout)
        The token of ``word``, and where it stands.
    word : In(ArrayLayout(signed(act_bits), rows * lanes))
        The word of a position; of a pair the right one.
    before : In(ArrayLayout(signed(act_bits), rows * lanes))
        The left word of a pair.
    load : In(rows * window_groups)
        One bit per weight word of a depthwise tile: ``weights`` are that word.
    weights : In(cols * lanes * format.bits)
        A weight word: the code of tap ``group * cols + col`` of lane ``lane`` has index ``col * lanes + lane``.
    upcoming : Out(token_layout)
        The token of the position that completed a window, two cycles before its ``result``; not valid in other cycles.
    result : Out(ArrayLayout(signed(channel_bits), rows * lanes))
        Raw sum, or maximum.
    """

    def __init__(self, config: ArrayConfig):
        self.config = config
        word = data.ArrayLayout(signed(config.act_bits), config.depth)
        super().__init__({
            "layer": In(descriptor_layout()),
            "next_valid": In(1),
            "next_place": In(window_layout(config)),
            "token": In(token_layout(config)),
            "place": In(window_layout(config)),
            "word": In(word),
            "before": In(word),
            "load": In(config.rows * config.window_groups),
            "weights": In(config.weight_word_bits),
            "upcoming": Out(token_layout(config)),
            "result": Out(data.ArrayLayout(signed(config.channel_bits), config.depth)),
        })

    def elaborate(self, platform):
        m = Module()
        config, layer, place, token = self.config, self.layer, self.place, self.token
        words = self._column(m, "line", self.word.as_value())
        befores = self._column(m, "before_line", self.before.as_value())

        # Above the first row, and in what a smaller kernel lacks, everything is padding.
        row_masked = Signal(WINDOW)
        m.d.comb += row_masked.eq(Cat(place.row_0 | place.row_1 | layer.mask_rows[0], place.row_0 | layer.mask_rows[1]))
        # So it is in front of the first column. Of a pair only what came before it was there before.
        one_masked, two_masked = Signal(), Signal(WINDOW)
        m.d.comb += [
            one_masked.eq(place.first_column | Mux(layer.pair, layer.mask_columns[0], layer.mask_columns[1])),
            two_masked.eq(Mux(layer.pair, row_masked | layer.mask_columns[1].replicate(WINDOW),
                              (place.first_column | layer.mask_columns[0]).replicate(WINDOW))),
        ]

        # The token of what is in the taps; then those of a complete window are in the sums of rows.
        in_taps, complete = Signal.like(token), Signal()
        m.d.comb += [self.upcoming.eq(in_taps), self.upcoming.valid.eq(in_taps.valid & in_taps.last)]
        m.d.sync += [in_taps.eq(token), complete.eq(self.upcoming.valid)]
        starts_row = Signal()
        m.d.sync += starts_row.eq(place.first_column)

        take_max = Signal()
        m.d.comb += take_max.eq(layer.op == LayerOp.MAX_WINDOW)
        decoded = []
        for col in range(min(config.cols, WINDOW * WINDOW)):
            for lane in range(config.lanes):
                m.submodules[f"decoder_{col}_{lane}"] = decoder = WeightDecoder(product=config.product)
                m.d.comb += decoder.code.eq(self.weights.word_select(col * config.lanes + lane, config.format.bits))
                decoded.append(decoder.controls)

        for channel in range(config.depth):
            m.submodules[f"lane_{channel}"] = lane = WindowLane(config)
            row, part = divmod(channel, config.lanes)
            m.d.comb += [
                lane.words.eq(Cat(word.word_select(channel, config.act_bits) for word in words)),
                lane.befores.eq(Cat(word.word_select(channel, config.act_bits) for word in befores)),
                lane.row_masked.eq(row_masked),
                lane.one_masked.eq(one_masked),
                lane.two_masked.eq(two_masked),
                lane.mask_columns.eq(layer.mask_columns),
                lane.pair.eq(layer.pair),
                lane.pad_low.eq(layer.pad_low),
                lane.take_max.eq(take_max),
                lane.enter.eq(token.valid),
                lane.swap.eq(token.valid & token.tile),
                lane.entered.eq(in_taps.valid),
                lane.starts_row.eq(starts_row),
                lane.finish.eq(complete),
                lane.load.eq(Cat(self.load[group * config.rows + row] for group in range(config.window_groups))),
                lane.weights.eq(Cat(decoded[part::config.lanes])),
                self.result[channel].eq(lane.result),
            ]
        return m

    def _column(self, m: Module, name: str, word) -> list:
        """Three rows of the column that arrives: two from lines, and the word itself. The lines take it in turn."""
        rows = [word]
        for index in range(WINDOW - 1):
            m.submodules[f"{name}_{index}"] = line = BlockRAM(width=len(word), depth=self.config.memory.lines)
            m.d.comb += [
                line.read_address.eq(self.next_place.column),
                line.read_enable.eq(self.next_valid),
                line.write_address.eq(self.place.column),
                line.write_enable.eq(self.token.valid),
                line.write_data.eq(rows[0]),
            ]
            rows.insert(0, line.read_data)
        return rows


class WindowLane(wiring.Component):
    """One channel of the window unit: nine taps, their weights, products and sum, and the window's maximum.

    The taps of a row are ``newest``, ``one`` (the column before it) and ``two`` (the one before that). Of a pair,
    ``two`` takes the left column, and ``one`` still is what was newest; the compiler orders weights accordingly.

    Parameters
    ----------
    config : ArrayConfig
        Format and widths.

    Members
    -------
    words, befores : In(3 * act_bits)
        The arriving column, top row first, and the one to the left of it in a pair.
    row_masked, one_masked, two_masked : In(3), In(1), In(3)
        What enters these taps is padding: of ``newest`` and ``two`` per row.
    mask_columns, pair, pad_low, take_max : In
        Of the layer.
    enter, swap : In(1)
        A column arrives; it is the first of a tile.
    entered, starts_row : In(1)
        A column arrived in the cycle before; it was the first of a row.
    finish : In(1)
        The sums of rows, or the maxima of columns, belong to a window that is complete.
    load : In(window_groups)
        ``weights`` belong to these taps.
    weights : In(min(cols, 9) * control_bits)
        Control words of as many taps.
    result : Out(signed(window_bits))
        Raw sum or maximum, one cycle after ``finish``; kept.
    """

    def __init__(self, config: ArrayConfig):
        self.config = config
        self.taps_at_once = min(config.cols, WINDOW * WINDOW)
        super().__init__({
            "words": In(WINDOW * config.act_bits),
            "befores": In(WINDOW * config.act_bits),
            "row_masked": In(WINDOW),
            "one_masked": In(1),
            "two_masked": In(WINDOW),
            "mask_columns": In(2),
            "pair": In(1),
            "pad_low": In(1),
            "take_max": In(1),
            "enter": In(1),
            "swap": In(1),
            "entered": In(1),
            "starts_row": In(1),
            "finish": In(1),
            "load": In(config.window_groups),
            "weights": In(self.taps_at_once * config.product.control_bits),
            "result": Out(signed(config.window_bits)),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        controls = self._weights(m)

        lowest = act_range(config.act_bits)[0]
        smallest = Mux(self.pad_low, Const(lowest, config.act_bits), 0)
        sums, newest = [], []
        for row in range(WINDOW):
            taps = self._taps(m, row)
            products = []
            for index, bundle in enumerate(taps):
                products += raw_products(m, f"tap_{row}_{index}", config.product, config.act_bits,
                                         controls.word_select(WINDOW * row + index, config.product.control_bits),
                                         bundle)
            total = Signal(signed(config.window_bits), name=f"sum_{row}", reset_less=True)
            m.d.sync += total.eq(balanced_sum(products))
            sums.append(total)
            value = Signal(signed(config.act_bits), name=f"value_{row}", reset_less=True)
            with m.If(self.enter):
                m.d.sync += value.eq(Mux(self.row_masked[row], smallest,
                                         self.words.word_select(row, config.act_bits)))
            newest.append(value)

        # A maximum goes by columns: only one is new.
        maxima = [Signal(signed(config.act_bits), name=f"column_{index}", reset_less=True) for index in range(WINDOW)]
        with m.If(self.entered):
            m.d.sync += maxima[2].eq(_maximum(m, "newest", newest))
            for index in (1, 0):
                with m.If(self.starts_row | self.mask_columns[index]):
                    m.d.sync += maxima[index].eq(lowest)
                with m.Else():
                    m.d.sync += maxima[index].eq(maxima[index + 1])
        largest = _maximum(m, "largest", maxima)
        result = Signal.like(self.result, reset_less=True)
        with m.If(self.finish):
            m.d.sync += result.eq(Mux(self.take_max, largest, balanced_sum(sums)))
        m.d.comb += self.result.eq(result)
        return m

    def _weights(self, m: Module):
        """Control words of all taps: the next ones are loaded while the current ones are in use."""
        bits = self.config.product.control_bits
        count = WINDOW * WINDOW
        shadow, active = Signal(count * bits, reset_less=True), Signal(count * bits, reset_less=True)
        for tap in range(count):
            group, col = divmod(tap, self.taps_at_once)
            with m.If(self.load[group]):
                m.d.sync += shadow.word_select(tap, bits).eq(self.weights.word_select(col, bits))
        with m.If(self.swap):
            m.d.sync += active.eq(shadow)
        return active

    def _taps(self, m: Module, row: int) -> list:
        """Registers of the taps of a row, in the order of their weights: each holds the odd multiples of a value."""
        config = self.config
        widths = multiple_bits(config.product, config.act_bits)
        lowest = act_range(config.act_bits)[0]
        padding = Mux(self.pad_low, Cat(Const(odd_part(base) * lowest, signed(width))
                                        for base, width in zip(config.product.bases, widths, strict=True)), 0)
        arriving = []
        for name, source in (("word", self.words), ("before", self.befores)):
            m.submodules[f"multiples_{name}_{row}"] = multiples = Multiples(
                product=config.product, act_bits=config.act_bits)
            m.d.comb += multiples.act.eq(source.word_select(row, config.act_bits))
            arriving.append(multiples.multiples)
        newest, one, two = (Signal(sum(widths), name=f"{name}_{row}", reset_less=True)
                            for name in ("newest", "one", "two"))
        with m.If(self.enter):
            for register, masked, value in (
                (newest, self.row_masked[row], arriving[0]),
                (one, self.one_masked, newest),
                (two, self.two_masked[row], Mux(self.pair, arriving[1], one)),
            ):
                with m.If(masked):
                    m.d.sync += register.eq(padding)
                with m.Else():
                    m.d.sync += register.eq(value)
        return [two, one, newest]


def _maximum(m: Module, name: str, values):
    """The largest of signed values."""
    largest = values[0]
    for index, value in enumerate(values[1:]):
        chosen = Signal.like(value, name=f"{name}_{index}")
        m.d.comb += chosen.eq(Mux(value > largest, value, largest))
        largest = chosen
    return largest
