"""The accelerator: the array and the machine around it, behind one pair of host streams.

    host -> HostPort -> program, parameters, weights, activation banks
    activation bank -> AddressGenerator, Padding -> SystolicArray -> Accumulator -> OutputStage -> activation bank
                                                 -> ChannelUnit  ----------------^
    weight memory -> WeightLoader -> SystolicArray
    Sequencer: starts layer after layer, counts cycles

From the word that the address generator issues to the last write, every stage has a fixed latency and never refuses a
word. Time is therefore decided in one place, the address generator, and the cycles of a layer are a closed form of its
descriptor: see :mod:`nomul_hw.timing`.
"""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .accumulator import Accumulator
from .array import SystolicArray
from .channel import ChannelUnit
from .config import ArrayConfig
from .descriptor import HOST_BITS, LayerOp, Target
from .fetch import AddressGenerator, Padding
from .host import HostPort
from .layouts import token_layout
from .memory import BlockRAM
from .output import OutputStage
from .sequencer import Sequencer
from .weights import WeightLoader

__all__ = ["Accelerator"]


class Accelerator(wiring.Component):
    """A complete accelerator.

    Parameters
    ----------
    config : ArrayConfig
        What to build.

    Members
    -------
    i, o : In, Out(stream.Signature(32))
        Host commands and answers: see :mod:`nomul_hw.host`.
    """

    def __init__(self, config: ArrayConfig):
        self.config = config
        super().__init__({"i": In(stream.Signature(HOST_BITS)), "o": Out(stream.Signature(HOST_BITS))})

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.host = host = HostPort(config)
        m.submodules.sequencer = sequencer = Sequencer(config)
        m.submodules.generator = generator = AddressGenerator(config)
        m.submodules.padding = padding = Padding(config)
        m.submodules.loader = loader = WeightLoader(config)
        m.submodules.array = array = SystolicArray(config)
        m.submodules.accumulator = accumulator = Accumulator(config)
        m.submodules.channel = channel = ChannelUnit(config)
        m.submodules.output = output = OutputStage(config)
        m.submodules.weights = weights = BlockRAM(width=config.weight_word_bits, depth=config.memory.weights)
        banks = []
        for index in range(2):
            m.submodules[f"bank_{index}"] = bank = BlockRAM(
                width=config.act_word_bits, depth=config.memory.activations, parts=config.word_chunks)
            banks.append(bank)

        wiring.connect(m, wiring.flipped(self.i), host.i)
        wiring.connect(m, host.o, wiring.flipped(self.o))

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
            sequencer.waits_for_weights.eq(generator.waits_for_weights),
            sequencer.holds.eq(generator.holds),
            sequencer.done.eq(output.done),
        ]
        for follower in (generator, output):
            m.d.comb += [follower.upcoming.eq(sequencer.upcoming), follower.start.eq(sequencer.start)]
        for follower in (generator, output, padding, loader, channel):
            m.d.comb += follower.layer.eq(layer)

        # Weights
        tile = Signal()
        weight_word = Signal(config.weight_word_bits, reset_less=True)
        m.d.comb += [
            tile.eq(generator.token.valid & generator.token.tile),
            generator.weights_ready.eq(loader.ready),
            loader.prime.eq(sequencer.start & sequencer.prime),
            loader.prime_address.eq(sequencer.upcoming.weight_base),
            loader.tile.eq(tile),
            loader.last_tile.eq(generator.last_tile),
            weights.read_address.eq(loader.address),
            weights.read_enable.eq(loader.enable),
            array.weights.eq(weight_word),
            array.load.eq(loader.load),
        ]
        m.d.sync += weight_word.eq(weights.read_data)

        # Activations. The word leaves the padding two cycles after it was issued; so does its token.
        bank_at_memory = Signal()
        m.d.sync += bank_at_memory.eq(Mux(sequencer.busy, layer.in_bank, host.bank))
        word = Signal(config.act_word_bits)
        m.d.comb += [
            word.eq(Mux(bank_at_memory, banks[1].read_data, banks[0].read_data)),
            padding.outside.eq(generator.outside),
            padding.edge.eq(generator.edge),
            padding.data.eq(word),
            host.bank_word.eq(word),
        ]
        is_conv = Signal()
        m.d.comb += is_conv.eq(layer.op == LayerOp.CONV)
        at_word = _delay(m, "word", generator.token, 2, config)
        m.d.comb += [
            array.act.eq(padding.word),
            array.swap.eq(at_word.valid & at_word.tile),
            channel.word.eq(padding.word),
            channel.token.eq(at_word),
            channel.token.valid.eq(at_word.valid & ~is_conv),
        ]

        # Sums: the accumulators want the token two cycles ahead of them.
        array_token = Signal(token_layout(config))
        m.d.comb += [array_token.eq(at_word), array_token.valid.eq(at_word.valid & is_conv)]
        m.d.comb += [
            accumulator.ahead.eq(_delay(m, "sum", array_token, array.latency - 2, config)),
            accumulator.sums.eq(array.sums),
            output.total_token.eq(accumulator.token),
            output.totals.eq(accumulator.totals),
            output.pool_token.eq(channel.done),
            output.pooled.eq(channel.result),
        ]

        # Memory ports: the machine's while it runs, else the host's.
        m.d.comb += output.skip_word.eq(Mux(bank_at_memory, banks[0].read_data, banks[1].read_data))
        for index, bank in enumerate(banks):
            target = (Target.ACTIVATION_0, Target.ACTIVATION_1)[index]
            m.d.comb += [
                bank.read_address.eq(Mux(sequencer.busy, Mux(
                    layer.in_bank == index, generator.address, output.skip_address), host.address)),
                bank.read_enable.eq(Mux(sequencer.busy, Mux(
                    layer.in_bank == index, generator.token.valid, output.skip_enable), host.read[index])),
                bank.write_address.eq(Mux(sequencer.busy, output.address, host.address)),
                bank.write_data.eq(Mux(sequencer.busy, output.code.as_value().replicate(config.word_chunks),
                                       host.word(target))),
                bank.write_enable.eq(Mux(
                    sequencer.busy, output.parts & (layer.out_bank == index).replicate(config.word_chunks),
                    host.write[target].replicate(config.word_chunks))),
            ]
        m.d.comb += [
            weights.write_address.eq(host.address),
            weights.write_enable.eq(host.write[Target.WEIGHT]),
            weights.write_data.eq(host.word(Target.WEIGHT)),
            output.parameter_address.eq(host.address),
            output.parameter_write.eq(host.write[Target.PARAMETER]),
            output.parameter_data.eq(host.word(Target.PARAMETER)),
            sequencer.program_address.eq(host.address),
            sequencer.program_write.eq(host.write[Target.PROGRAM]),
            sequencer.program_data.eq(host.word(Target.PROGRAM)),
        ]
        return m


def _delay(m: Module, name: str, token, cycles: int, config: ArrayConfig):
    """Delay a token."""
    for index in range(cycles):
        later = Signal(token_layout(config), name=f"{name}_token_{index}")
        m.d.sync += later.eq(token)
        token = later
    return token
