"""The accelerator: the array and the machine around it, behind one pair of host streams.

    host -> HostPort -> program, parameters, weights, activation banks
    activation bank -> AddressGenerator, Padding -> SystolicArray -> Accumulator -> OutputStage -> activation bank
                                                 -> ChannelUnit, WindowUnit  ----^
    weight memory, or a queue of the weight stream -> WeightLoader -> SystolicArray, WindowUnit
    Sequencer: starts layer after layer, counts cycles

From the word that the address generator issues to the last write, every stage has a fixed latency and never refuses a
word. Time is therefore decided in one place, the address generator, and the cycles of a layer are a closed form of its
descriptor: see :mod:`nomul_hw.timing`.
"""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from .accumulator import Accumulator
from .array import SystolicArray
from .channel import ChannelUnit
from .config import ArrayConfig
from .contents import Contents
from .descriptor import CAUSES, HOST_BITS, LayerOp, Target
from .fetch import AddressGenerator, Padding
from .host import HostPort
from .layouts import token_layout
from .memory import BlockRAM
from .output import OutputStage
from .sequencer import Sequencer
from .weights import WeightLoader
from .window import WindowUnit

__all__ = ["Accelerator"]


class Accelerator(wiring.Component):
    """A complete accelerator.

    Parameters
    ----------
    config : ArrayConfig
        What to build.
    contents : Contents, optional
        A program to bake in: then the host writes the input, runs it and reads the output, and loads nothing.
    monitor : bool
        Whether to show what a bus around the accelerator reports of it.
    family : str, optional
        Chips that the array is made for, one of :data:`nomul_hw.fabric.FABRICS`: what it does stays the same.

    Members
    -------
    i, o : In, Out(stream.Signature(32))
        Host commands and answers: see :mod:`nomul_hw.host`.
    weights : In(stream.Signature(cols * lanes * format.bits))
        If weights come from a stream: the words of one run after the other, each in the order of use.
    busy : Out(1)
        If weights come from a stream, or with a monitor: a run is under way. A source that offers the words of a run
        from its first cycle on, and the next run's not before that begins, is what :mod:`nomul_hw.timing` counts.
    last, idle : Out(1)
        With a monitor: the word that ``o`` offers ends an answer; no command is under way.
    unused : Out(1)
        With a monitor, if weights come from a stream: a word is there that no layer has taken yet.
    cause, cycles : In(3), Out(32)
        With a monitor: the cycles of a cause in :data:`nomul_hw.descriptor.CAUSES`, of the latest run, or of this one
        so far.
    """

    def __init__(self, config: ArrayConfig, contents: Contents | None = None, *, family: str | None = None,
                 monitor: bool = False):
        self.config = config
        self.family = family
        self.contents = contents
        self.monitor = monitor
        super().__init__({
            "i": In(stream.Signature(HOST_BITS)),
            "o": Out(stream.Signature(HOST_BITS)),
            **({"weights": In(stream.Signature(config.weight_word_bits))} if config.weights == "stream" else {}),
            **({"busy": Out(1)} if config.weights == "stream" or monitor else {}),
            **({"last": Out(1), "idle": Out(1), "cause": In(range(len(CAUSES))), "cycles": Out(HOST_BITS)}
               if monitor else {}),
            **({"unused": Out(1)} if config.weights == "stream" and monitor else {}),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        tables, baked = (self.contents.tables, self.contents.identity) if self.contents else ({}, 0)
        m.submodules.host = host = HostPort(config, baked)
        m.submodules.sequencer = sequencer = Sequencer(config, tables.get(Target.PROGRAM), monitor=self.monitor)
        m.submodules.generator = generator = AddressGenerator(config)
        m.submodules.padding = padding = Padding(config)
        m.submodules.loader = loader = WeightLoader(config)
        m.submodules.array = array = SystolicArray(config, self.family)
        m.submodules.accumulator = accumulator = Accumulator(config)
        m.submodules.channel = channel = ChannelUnit(config)
        m.submodules.output = output = OutputStage(config, tables.get(Target.PARAMETER))
        banks = []
        for index in range(2):
            m.submodules[f"bank_{index}"] = bank = BlockRAM(
                width=config.act_word_bits, depth=config.memory.activations, parts=config.word_chunks,
                second=bool(config.memory.lines))
            banks.append(bank)

        wiring.connect(m, wiring.flipped(self.i), host.i)
        wiring.connect(m, host.o, wiring.flipped(self.o))

        if config.weights == "stream" or self.monitor:
            m.d.comb += self.busy.eq(sequencer.busy)
        if self.monitor:
            m.d.comb += [
                self.last.eq(host.last),
                self.idle.eq(host.idle),
                sequencer.watched.eq(self.cause),
                self.cycles.eq(sequencer.watched_cycles),
            ]

        # Sequencer
        layer = sequencer.layer
        m.d.comb += [
            sequencer.run.eq(host.run),
            sequencer.run_address.eq(host.address),
            sequencer.run_layers.eq(host.count),
            host.busy.eq(sequencer.busy),
            sequencer.cause.eq(host.address),
            host.cycles.eq(sequencer.cycles),
            sequencer.issuing.eq(generator.token.valid),
            sequencer.issued_last.eq(generator.token.valid & generator.token.layer_last),
            sequencer.waits_for_weights.eq(generator.waits_for_weights & ~loader.due),
            sequencer.waits_for_memory.eq(generator.waits_for_weights & loader.due),
            sequencer.holds.eq(generator.holds),
            sequencer.done.eq(output.done),
        ]
        for follower in (generator, output):
            m.d.comb += [follower.upcoming.eq(sequencer.upcoming), follower.start.eq(sequencer.start)]
        for follower in (generator, output, padding, loader, channel):
            m.d.comb += follower.layer.eq(layer)

        # Weights
        m.d.comb += [
            generator.weights_ready.eq(loader.ready),
            loader.upcoming.eq(sequencer.upcoming),
            loader.fetched.eq(sequencer.fetched),
            loader.tile.eq(generator.token.valid & generator.token.tile),
            loader.last_tile.eq(generator.last_tile),
            array.weights.eq(loader.weights),
            array.load.eq(loader.load[:config.rows]),
        ]
        if config.weights == "stream":
            m.submodules.weight_queue = weights = SyncFIFOBuffered(
                width=config.weight_word_bits, depth=config.memory.weights)
            wiring.connect(m, wiring.flipped(self.weights), weights.w_stream)
            wiring.connect(m, weights.r_stream, loader.words)
            if self.monitor:
                m.d.comb += self.unused.eq(weights.r_rdy)
        else:
            m.submodules.weight_memory = weights = BlockRAM(
                width=config.weight_word_bits, depth=config.memory.weights, table=tables.get(Target.WEIGHT))
            m.d.comb += [
                weights.read_address.eq(loader.address),
                weights.read_enable.eq(loader.enable),
                loader.data.eq(weights.read_data),
                weights.write_address.eq(host.address),
                weights.write_enable.eq(host.write[Target.WEIGHT]),
                weights.write_data.eq(host.word(Target.WEIGHT)),
            ]

        # Activations. The word leaves the padding two cycles after it was issued; so does its token. So does what the
        # host reads, which is never padded.
        bank_at_memory = Signal()
        m.d.sync += bank_at_memory.eq(Mux(sequencer.busy, layer.in_bank, host.bank))
        word = Signal(config.act_word_bits)
        m.d.comb += [
            word.eq(Mux(bank_at_memory, banks[1].read_data, banks[0].read_data)),
            padding.outside.eq(generator.outside),
            padding.edge.eq(generator.edge),
            padding.data.eq(word),
            host.bank_word.eq(padding.word),
        ]
        is_conv = Signal()
        m.d.sync += is_conv.eq(layer.op == LayerOp.CONV)  # known before the layer's first word comes from memory
        at_memory = _delay(m, "memory", generator.token, 1)
        at_word = _delay(m, "word", at_memory, 1)
        m.d.comb += [
            array.act.eq(padding.word),
            array.swap.eq(at_word.valid & at_word.tile),
            channel.word.eq(padding.word),
            channel.token.eq(at_word),
        ]
        if config.memory.lines:
            is_window = Signal()
            m.d.sync += is_window.eq(layer.op.matches(LayerOp.DEPTHWISE, LayerOp.MAX_WINDOW))
            place_at_memory = _delay(m, "place", generator.window, 1)
            m.submodules.window_unit = window = WindowUnit(config)
            # The left word of a pair comes from the write port of the input's bank.
            m.submodules.padding_before = before = Padding(config)
            m.d.comb += [
                before.layer.eq(layer),
                before.outside.eq(generator.window.before_outside),
                before.data.eq(Mux(bank_at_memory, banks[1].second_data, banks[0].second_data)),
                window.layer.eq(layer),
                window.next_valid.eq(at_memory.valid),
                window.next_place.eq(place_at_memory),
                window.place.eq(_delay(m, "word_place", place_at_memory, 1)),
                window.token.eq(at_word),
                window.token.valid.eq(at_word.valid & is_window),
                window.word.eq(padding.word),
                window.before.eq(before.word),
                window.load.eq(loader.load),
                window.weights.eq(loader.weights),
                channel.token.valid.eq(at_word.valid & ~is_conv & ~is_window),
            ]
            from_window = Signal()
            m.d.sync += from_window.eq(is_window)
            m.d.comb += output.pool_token.eq(Mux(from_window, window.upcoming, channel.upcoming))
            pooled = [Mux(from_window, window.result[lane], channel.result[lane]) for lane in range(config.depth)]
        else:
            m.d.comb += [channel.token.valid.eq(at_word.valid & ~is_conv), output.pool_token.eq(channel.upcoming)]
            pooled = channel.result

        # Sums: the accumulators want the token two cycles ahead of them, and the output stage ahead of their totals.
        array_token = Signal(token_layout(config))
        m.d.comb += [array_token.eq(at_word), array_token.valid.eq(at_word.valid & is_conv)]
        m.d.comb += [
            accumulator.ahead.eq(_delay(m, "sum", array_token, array.latency - 2)),
            accumulator.sums.eq(array.sums),
            output.total_token.eq(accumulator.upcoming),
            output.totals.eq(accumulator.totals),
            *(output.pooled[lane].eq(pooled[lane]) for lane in range(config.depth)),
        ]

        # Memory ports: the machine's while it runs, a cycle late, else the host's: a run's first cycles read and write
        # nothing. The input's bank is read for the address generator, the other one for the skip tensor.
        running = Signal()
        m.d.sync += running.eq(sequencer.busy)
        m.d.comb += output.skip_word.eq(Mux(bank_at_memory, banks[0].read_data, banks[1].read_data))
        for index, bank in enumerate(banks):
            target = (Target.ACTIVATION_0, Target.ACTIVATION_1)[index]
            write_address = output.address
            if config.memory.lines:
                write_address = Mux(layer.pair & (layer.in_bank == index), generator.address - 1, output.address)
                m.d.comb += bank.second_enable.eq(layer.pair & (layer.in_bank == index) & generator.reads)
            m.d.comb += [
                bank.read_address.eq(Mux(running, Mux(
                    layer.in_bank == index, generator.address, output.skip_address), host.address)),
                bank.read_enable.eq(Mux(layer.in_bank == index, generator.reads, output.skip_read) | host.read[index]),
                bank.write_address.eq(Mux(running, write_address, host.address)),
                bank.write_data.eq(Mux(running, output.code.as_value().replicate(config.word_chunks),
                                       host.word(target))),
                bank.write_enable.eq(Mux(
                    running, output.parts & (layer.out_bank == index).replicate(config.word_chunks),
                    host.write[target].replicate(config.word_chunks))),
            ]
        m.d.comb += [
            output.parameter_address.eq(host.address),
            output.parameter_write.eq(host.write[Target.PARAMETER]),
            output.parameter_data.eq(host.word(Target.PARAMETER)),
            sequencer.program_address.eq(host.address),
            sequencer.program_write.eq(host.write[Target.PROGRAM]),
            sequencer.program_data.eq(host.word(Target.PROGRAM)),
        ]
        return m


def _delay(m: Module, name: str, token, cycles: int):
    """Delay a token, or what accompanies it."""
    for index in range(cycles):
        later = Signal.like(token, name=f"{name}_token_{index}")
        m.d.sync += later.eq(token)
        token = later
    return token
