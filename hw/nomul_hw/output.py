"""The output stage: takes finished sums, requantizes them a few channels per cycle, and writes the output tensor."""

from itertools import pairwise

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .config import ArrayConfig
from .contents import Table
from .descriptor import LayerOp
from .layouts import address_bits, descriptor_layout, parameter_layout, token_layout
from .memory import BlockRAM
from .requantize import Requantizer
from .timing import OUTPUT_LATENCY

__all__ = ["LEAD", "OutputStage"]

#: Cycles from a vector's token to the vector.
LEAD = 2


class OutputStage(wiring.Component):
    """Requantizes vectors of the accumulators or of the channel unit and writes them to activation memory.

    A vector has ``cols`` (array) or ``rows * lanes`` (channel unit) channels; ``requantize_lanes`` of them, a *chunk*,
    are done per cycle. The next vector must not arrive before the last chunk of this one is taken: the ``hold`` of
    the address generator sees to it. A chunk is written :attr:`latency` cycles after it is taken. Output channels are
    numbered on through a layer, chunk by chunk; a chunk is a part of an activation word.

    Tokens come :data:`LEAD` cycles before their vectors: memory is far from logic, so that a chunk's parameters take a
    cycle to where they are read, and one from there.

    Parameters
    ----------
    config : ArrayConfig
        Shape, widths and depths.
    table : Table, optional
        Contents of parameter memory, if they are baked in.

    Members
    -------
    upcoming, layer : In(descriptor)
        The layer that ``start`` begins, and the running layer.
    start : In(1)
        Begin a layer in the next cycle.
    total_token, totals
        Sums of the accumulators, and two cycles before them their token.
    pool_token, pooled
        Results of the channel unit or the window unit, and two cycles before them their token.
    parameter_address, parameter_write, parameter_data
        Write port of parameter memory.
    skip_address, skip_read, skip_word
        Read port of the bank that holds the skip tensor; the word comes one cycle after its address.
    address, parts, code : Out
        Write port of the output bank: word address, one bit per chunk of a word, and the codes of the chunk.
    done : Out(1)
        The layer's last chunk is being written.
    """

    #: Cycles from taking a chunk to writing it: requantization.
    latency = OUTPUT_LATENCY

    def __init__(self, config: ArrayConfig, table: Table | None = None):
        self.config = config
        self.table = table
        layout, token = descriptor_layout(), token_layout(config)
        super().__init__({
            "upcoming": In(layout),
            "layer": In(layout),
            "start": In(1),
            "total_token": In(token),
            "totals": In(data.ArrayLayout(signed(config.acc_bits), config.cols)),
            "pool_token": In(token),
            "pooled": In(data.ArrayLayout(signed(config.channel_bits), config.depth)),
            "parameter_address": In(address_bits(config.memory.parameters)),
            "parameter_write": In(1),
            "parameter_data": In(config.requantize_lanes * parameter_layout(config).size),
            "skip_address": Out(address_bits(config.memory.activations)),
            "skip_read": Out(1),
            "skip_word": In(data.ArrayLayout(signed(config.act_bits), config.depth)),
            "address": Out(address_bits(config.memory.activations)),
            "parts": Out(config.word_chunks),
            "code": Out(data.ArrayLayout(signed(config.act_bits), config.requantize_lanes)),
            "done": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config, layer = self.config, self.layer
        lanes = config.requantize_lanes
        most_chunks = max(config.column_chunks, config.word_chunks)

        is_conv = Signal()
        with m.If(self.start):
            m.d.sync += is_conv.eq(self.upcoming.op == LayerOp.CONV)

        # A token arrives; in this and the following cycles it is decided where the chunks of its vector belong, so many
        # cycles before they are taken.
        arrived = Signal(token_layout(config))
        current = Signal(token_layout(config))
        m.d.comb += arrived.eq(Mux(is_conv, self.total_token, self.pool_token))
        arrives = Signal()
        m.d.comb += arrives.eq(Mux(is_conv, self.total_token.valid & self.total_token.last, self.pool_token.valid))

        chunk = Signal(range(most_chunks + 1))
        taking, last_chunk = Signal(), Signal()
        m.d.comb += [
            taking.eq(arrives | (chunk != 0)),
            last_chunk.eq(chunk == Mux(is_conv, config.column_chunks - 1, config.word_chunks - 1)),
            current.eq(arrived),
        ]
        if most_chunks > 1:
            kept = Signal.like(arrived)
            with m.If(arrives):
                m.d.sync += kept.eq(arrived)
            with m.Else():
                m.d.comb += current.eq(kept)
        with m.If(taking):
            m.d.sync += chunk.eq(Mux(last_chunk, 0, chunk + 1))

        # Where the chunk belongs: a part of a word, a plane of words, a word of parameters. A block of channels
        # starts where the one before it ended, so the position is kept twice: of this chunk, and of the block.
        position = data.StructLayout({
            "part": config.word_chunks,
            "plane": address_bits(config.memory.activations),
            "parameters": address_bits(config.memory.parameters),
        })
        here, block, following, upcoming = Signal(position), Signal(position), Signal(position), Signal(position)
        m.d.comb += [
            following.part.eq(Cat(here.part[-1], here.part[:-1])),
            following.plane.eq(Mux(here.part[-1], here.plane + layer.out_plane[:len(here.plane)], here.plane)),
            following.parameters.eq(here.parameters + 1),
            upcoming.eq(following),
        ]
        with m.If(self.start):
            m.d.comb += [
                upcoming.part.eq(1),
                upcoming.plane.eq(self.upcoming.out_address),
                upcoming.parameters.eq(self.upcoming.parameter_base),
            ]
            m.d.sync += block.eq(upcoming)
        with m.Elif(taking & last_chunk):
            with m.If(current.block_last):
                m.d.sync += block.eq(following)
            with m.Else():
                # If every chunk is a whole vector, the block's position is where it is.
                m.d.comb += upcoming.eq(block if most_chunks > 1 else here)
        with m.If(self.start | taking):
            m.d.sync += here.eq(upcoming)

        # A chunk's parameters are read when the position has just come to it, and are in a register when its sums are
        # there. So memory is not enabled by what only then decides where the next chunk belongs.
        moved = Signal()
        m.d.sync += moved.eq(self.start | taking)
        m.submodules.parameters = parameters = BlockRAM(
            width=len(self.parameter_data), depth=config.memory.parameters, table=self.table)
        m.d.comb += [
            parameters.read_address.eq(here.parameters),
            parameters.read_enable.eq(moved),
            parameters.write_address.eq(self.parameter_address),
            parameters.write_enable.eq(self.parameter_write),
            parameters.write_data.eq(self.parameter_data),
        ]
        gains = Signal.like(parameters.read_data, reset_less=True)
        read, taken = Signal.like(chunk), Signal.like(chunk)  # the chunk whose parameters are read, that is taken
        m.d.sync += [gains.eq(parameters.read_data), read.eq(chunk), taken.eq(read)]

        # What is written follows the codes through the pipeline.
        write = data.StructLayout({"valid": 1, "done": 1, "address": len(self.address), "part": config.word_chunks})
        stages = [Signal(write, name=f"write_{index}") for index in range(LEAD + self.latency + 1)]
        m.d.comb += [
            stages[0].valid.eq(taking),
            stages[0].done.eq(taking & last_chunk & current.layer_last),
            stages[0].address.eq(here.plane + current.pixel),
            stages[0].part.eq(here.part),
            self.address.eq(stages[-1].address),
            self.parts.eq(stages[-1].part & stages[-1].valid.replicate(config.word_chunks)),
            self.done.eq(stages[-1].done),
        ]
        m.d.sync += [later.eq(stage) for stage, later in pairwise(stages)]

        # The skip tensor's chunk is read where the output will be written, and is in a register at the end of the gain.
        before = stages[LEAD - 1]
        m.d.sync += [
            self.skip_address.eq(before.address + layer.skip_address[:len(self.address)]),
            self.skip_read.eq(before.valid & layer.skip),
        ]
        skip = Signal(data.ArrayLayout(signed(config.act_bits), lanes), reset_less=True)
        for lane in range(lanes):
            m.d.sync += skip[lane].eq(_one_of(stages[LEAD + 1].part, [
                self.skip_word[index * lanes + lane] for index in range(config.word_chunks)]))

        for lane in range(lanes):
            m.submodules[f"requantizer_{lane}"] = requantizer = Requantizer(config)
            m.d.comb += [
                requantizer.acc.eq(Mux(
                    is_conv,
                    _pick(m, f"array_{lane}", taken, [self.totals[at + lane] for at in range(0, config.cols, lanes)]),
                    _pick(m, f"pool_{lane}", taken, [self.pooled[at + lane] for at in range(0, config.depth, lanes)]),
                )),
                requantizer.parameters.eq(gains.word_select(lane, parameter_layout(config).size)),
                requantizer.skip.eq(skip[lane]),
                requantizer.adds.eq(layer.skip),
                requantizer.drop.eq(layer.skip_drop),
                requantizer.slack.eq(layer.slack),
                requantizer.above.eq(layer.above),
                self.code[lane].eq(requantizer.code),
            ]
        return m


def _one_of(select, values):
    """Pick a value by a one-hot selection."""
    picked = 0
    for index, value in enumerate(values):
        picked = picked | (value.as_unsigned() & select[index].replicate(len(value)))
    return picked if len(values) > 1 else values[0]


def _pick(m: Module, name: str, index, values):
    """Multiplex equally shaped signed values by an index."""
    if len(values) == 1:
        return values[0]
    picked = Signal(values[0].shape(), name=f"pick_{name}")
    with m.Switch(index):
        for position, value in enumerate(values):
            with m.Case(position):
                m.d.comb += picked.eq(value)
    return picked
