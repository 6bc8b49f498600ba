"""The host port: commands come in, answers go out, on one stream of 32-bit words each way.

A command is three words: ``opcode | target << 8``, address, count (:mod:`nomul_hw.descriptor`). ``WRITE`` is followed
by ``count`` words of the target, each as ``ceil(bits / 32)`` host words, least significant first; ``READ`` is answered
by as many. ``RUN`` runs ``count`` layers, the first at word ``address`` of program memory. Commands are executed one
after the other: a ``READ`` behind a ``RUN`` is answered when the run is over.
"""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .config import ArrayConfig
from .descriptor import HOST_BITS, Opcode, Target, target_depth, target_word_bits
from .layouts import address_bits

__all__ = ["HostPort"]


class HostPort(wiring.Component):
    """Loader and reader: moves words between the host stream and the memories, and starts runs.

    Writing takes a host word every cycle without a pause. A word that is read takes two cycles before its first
    host word. Reads of targets other than the activation banks, the counters and the identity return 0; unknown opcodes
    are ignored. The identity's word 0 is the configuration's, word 1 that of the program that is baked in.

    Parameters
    ----------
    config : ArrayConfig
        Widths of the targets' words, depths of the memories, and the identity.
    baked : int
        Identity of the program that is baked in; 0 for none.

    Members
    -------
    i, o : In, Out(stream.Signature(32))
        The host streams.
    address : Out
        Word address in the target of a read or a write: wide enough for the deepest.
    write : Out(len(Target))
        One bit per target: write :meth:`word` in this cycle.
    data : Out
        The latest host words of a write, the last one most significant.
    read : Out(2)
        One bit per activation bank: read in this cycle.
    bank : Out(1)
        The bank that is read or was read.
    bank_word : In(rows * lanes * act_bits)
        What was read, from two cycles later until the next read.
    cycles : In(32)
        The latest run's cycles of the cause at ``address``.
    run : Out(1)
        Start a run of ``count`` layers at ``address``.
    count : Out
        Number of layers.
    busy : In(1)
        A run is under way; it rises in the cycle after ``run``.
    last : Out(1)
        The word that is on offer is the last one of an answer.
    idle : Out(1)
        No command is under way.
    """

    def __init__(self, config: ArrayConfig, baked: int = 0):
        self.config = config
        self.baked = baked
        self.host_words = {target: -(-target_word_bits(config, target) // HOST_BITS) for target in Target}
        # Counts that are larger would wrap; the driver refuses programs that have such.
        deepest = max(target_depth(config, target) for target in Target)
        super().__init__({
            "i": In(stream.Signature(HOST_BITS)),
            "o": Out(stream.Signature(HOST_BITS)),
            "address": Out(address_bits(deepest)),
            "write": Out(len(Target)),
            "data": Out(max(self.host_words.values()) * HOST_BITS),
            "read": Out(2),
            "bank": Out(1),
            "bank_word": In(config.act_word_bits),
            "cycles": In(HOST_BITS),
            "run": Out(1),
            "count": Out(address_bits(deepest + 1)),
            "busy": In(1),
            "last": Out(1),
            "idle": Out(1),
        })

    def word(self, target: Target):
        """The word of a target that is being written."""
        bits = target_word_bits(self.config, target)
        return self.data[-self.host_words[target] * HOST_BITS:][:bits]

    def elaborate(self, platform):
        m = Module()

        opcode, target = Signal(8), Signal(8)
        part = Signal(range(max(self.host_words.values())))  # host word within a word of the target
        last_part = Signal()
        with m.Switch(target):
            for each, words in self.host_words.items():
                with m.Case(each):
                    m.d.comb += last_part.eq(part == words - 1)
            with m.Default():
                m.d.comb += last_part.eq(1)

        # A complete word is written in the cycle after its last part, while the next word comes in.
        complete, sent, begin_address, begin_count = Signal(), Signal(), Signal(), Signal()
        with m.If(begin_address | complete | sent):
            m.d.sync += self.address.eq(Mux(begin_address, self.i.payload, self.address + 1))
        m.d.sync += complete.eq(0)
        with m.If(complete):
            with m.Switch(target):
                for each in Target:
                    with m.Case(each):
                        m.d.comb += self.write[each].eq(1)

        # A bank keeps what was read while it is sent; the other sources are as wide as the stream.
        bank_part = Signal(HOST_BITS)
        bank_words = [self.bank_word[at:at + HOST_BITS] for at in range(0, len(self.bank_word), HOST_BITS)]
        with m.Switch(part[:(len(bank_words) - 1).bit_length()]):
            for index, word in enumerate(bank_words[:-1]):
                with m.Case(index):
                    m.d.comb += bank_part.eq(word)
            with m.Default():
                m.d.comb += bank_part.eq(bank_words[-1])
        of_bank, of_counter, of_identity = Signal(), Signal(), Signal()
        m.d.comb += [
            of_bank.eq((target == Target.ACTIVATION_0) | (target == Target.ACTIVATION_1)),
            of_counter.eq(target == Target.COUNTER),
            of_identity.eq(target == Target.IDENTITY),
            self.bank.eq(target == Target.ACTIVATION_1),
            self.o.payload.eq(Mux(
                of_counter | of_identity,
                Mux(of_identity, Mux(self.address[0], self.baked, self.config.identity), self.cycles),
                Mux(of_bank, bank_part, 0))),
        ]

        # Host words of a write or a read, counted.
        moved = Signal()
        m.d.comb += self.last.eq(last_part & (self.count == 1))
        with m.If(moved):
            m.d.sync += part.eq(part + 1)
            with m.If(last_part):
                m.d.sync += part.eq(0)
        with m.If(begin_count | (moved & last_part)):
            m.d.sync += self.count.eq(Mux(begin_count, self.i.payload, self.count - 1))

        with m.FSM():
            with m.State("OPCODE"):
                m.d.comb += [self.i.ready.eq(~complete), self.idle.eq(1)]
                with m.If(self.i.valid & self.i.ready):
                    m.d.sync += [opcode.eq(self.i.payload[:8]), target.eq(self.i.payload[8:16])]
                    m.next = "ADDRESS"
            with m.State("ADDRESS"):
                m.d.comb += self.i.ready.eq(1)
                with m.If(self.i.valid):
                    m.d.comb += begin_address.eq(1)
                    m.next = "COUNT"
            with m.State("COUNT"):
                m.d.comb += self.i.ready.eq(1)
                with m.If(self.i.valid):
                    m.d.comb += begin_count.eq(1)
                    m.next = "OPCODE"
                    with m.If(self.i.payload[:len(self.count)] != 0):
                        with m.Switch(opcode):
                            with m.Case(Opcode.WRITE):
                                m.next = "WRITE"
                            with m.Case(Opcode.READ):
                                m.next = "READ"
                            with m.Case(Opcode.RUN):
                                m.next = "RUN"
            with m.State("WRITE"):
                m.d.comb += self.i.ready.eq(1)
                with m.If(self.i.valid):
                    m.d.comb += moved.eq(1)
                    m.d.sync += [self.data.eq(Cat(self.data[HOST_BITS:], self.i.payload)), complete.eq(last_part)]
                    with m.If(self.last):
                        m.next = "OPCODE"
            with m.State("READ"):
                m.d.comb += [self.read[0].eq(target == Target.ACTIVATION_0), self.read[1].eq(self.bank)]
                m.next = "FETCH"
            with m.State("FETCH"):
                m.next = "SEND"
            with m.State("SEND"):
                m.d.comb += self.o.valid.eq(1)
                with m.If(self.o.ready):
                    m.d.comb += [moved.eq(1), sent.eq(last_part)]
                    with m.If(self.last):
                        m.next = "OPCODE"
                    with m.Elif(last_part):
                        m.next = "READ"
            with m.State("RUN"):
                m.d.comb += self.run.eq(1)
                m.next = "WAIT"
            with m.State("WAIT"):
                with m.If(~self.busy):
                    m.next = "OPCODE"
        return m
