"""The host port: commands come in, answers go out, on one stream of 32-bit words each way.

A command is three words: ``opcode | target << 8``, address, count (:mod:`nomul_hw.descriptor`). ``WRITE`` is followed
by ``count`` words of the target, each as ``ceil(bits / 32)`` host words, least significant first; ``READ`` is answered
by as many. ``RUN`` runs ``count`` layers, the first at word ``address`` of program memory. Commands are executed one
after the other: a ``READ`` behind a ``RUN`` is answered when the run is over.
"""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .config import ArrayConfig
from .descriptor import COUNTERS, HOST_BITS, Opcode, Target, target_word_bits

__all__ = ["HostPort"]


class HostPort(wiring.Component):
    """Loader and reader: moves words between the host stream and the memories, and starts runs.

    Writing takes a host word every cycle without a pause. A word that is read takes two cycles before its first host
    word. Reads of targets other than the activation banks, the counters and the identity return 0; unknown opcodes
    are ignored. The identity's word 0 is the configuration's, word 1 that of the program that is baked in.

    Parameters
    ----------
    config : ArrayConfig
        Widths of the targets' words, and the identity.
    baked : int
        Identity of the program that is baked in; 0 for none.

    Members
    -------
    i, o : In, Out(stream.Signature(32))
        The host streams.
    address : Out(24)
        Word address in the target of a read or a write.
    write : Out(len(Target))
        One bit per target: write ``data`` in this cycle.
    data : Out
        Word to write; narrower targets take its low bits.
    read : Out(2)
        One bit per activation bank: read in this cycle.
    bank_data : In(ArrayLayout(rows * lanes * act_bits, 2))
        What was read, one cycle later.
    counters : In(ArrayLayout(32, len(COUNTERS)))
        Counters of the latest run.
    run : Out(1)
        Start a run of ``count`` layers at ``address``.
    count : Out(24)
        Number of layers.
    busy : In(1)
        A run is under way; it rises in the cycle after ``run``.
    """

    def __init__(self, config: ArrayConfig, baked: int = 0):
        self.config = config
        self.baked = baked
        self.data_bits = max(target_word_bits(config, target) for target in Target)
        super().__init__({
            "i": In(stream.Signature(HOST_BITS)),
            "o": Out(stream.Signature(HOST_BITS)),
            "address": Out(24),
            "write": Out(len(Target)),
            "data": Out(self.data_bits),
            "read": Out(2),
            "bank_data": In(data.ArrayLayout(config.act_word_bits, 2)),
            "counters": In(data.ArrayLayout(32, len(COUNTERS))),
            "run": Out(1),
            "count": Out(24),
            "busy": In(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        host_words = {target: -(-target_word_bits(config, target) // HOST_BITS) for target in Target}
        most = max(host_words.values())

        opcode, target = Signal(8), Signal(8)
        part = Signal(range(most))  # host word within a word of the target
        last_part = Signal()
        with m.Switch(target):
            for each, words in host_words.items():
                with m.Case(each):
                    m.d.comb += last_part.eq(part == words - 1)
            with m.Default():
                m.d.comb += last_part.eq(1)

        assembled = Signal(most * HOST_BITS)
        m.d.comb += self.data.eq(assembled)
        for index in range(most):
            with m.If(self.i.valid & self.i.ready & (part == index)):
                m.d.sync += assembled.word_select(index, HOST_BITS).eq(self.i.payload)

        # A complete word is written in the cycle after its last part, while the next word comes in.
        complete = Signal()
        m.d.sync += complete.eq(0)
        with m.If(complete):
            m.d.sync += self.address.eq(self.address + 1)
            with m.Switch(target):
                for each in Target:
                    with m.Case(each):
                        m.d.comb += self.write[each].eq(1)

        # Words that were read wait here to be sent.
        outgoing = Signal(max(host_words[t] for t in (Target.ACTIVATION_0, Target.COUNTER)) * HOST_BITS)
        m.d.comb += self.o.payload.eq(outgoing[:HOST_BITS])

        with m.FSM():
            with m.State("OPCODE"):
                m.d.comb += self.i.ready.eq(~complete)
                m.d.sync += part.eq(0)
                with m.If(self.i.valid & self.i.ready):
                    m.d.sync += [opcode.eq(self.i.payload[:8]), target.eq(self.i.payload[8:16])]
                    m.next = "ADDRESS"
            with m.State("ADDRESS"):
                m.d.comb += self.i.ready.eq(1)
                with m.If(self.i.valid):
                    m.d.sync += self.address.eq(self.i.payload)
                    m.next = "COUNT"
            with m.State("COUNT"):
                m.d.comb += self.i.ready.eq(1)
                with m.If(self.i.valid):
                    m.d.sync += self.count.eq(self.i.payload)
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
                    m.d.sync += part.eq(part + 1)
                    with m.If(last_part):
                        m.d.sync += [part.eq(0), complete.eq(1), self.count.eq(self.count - 1)]
                        with m.If(self.count == 1):
                            m.next = "OPCODE"
            with m.State("READ"):
                m.d.comb += [self.read[0].eq(target == Target.ACTIVATION_0),
                             self.read[1].eq(target == Target.ACTIVATION_1)]
                m.next = "CAPTURE"
            with m.State("CAPTURE"):
                with m.Switch(target):
                    with m.Case(Target.ACTIVATION_0):
                        m.d.sync += outgoing.eq(self.bank_data[0])
                    with m.Case(Target.ACTIVATION_1):
                        m.d.sync += outgoing.eq(self.bank_data[1])
                    with m.Case(Target.COUNTER):
                        with m.Switch(self.address):
                            for index in range(len(COUNTERS)):
                                with m.Case(index):
                                    m.d.sync += outgoing.eq(self.counters[index])
                            with m.Default():
                                m.d.sync += outgoing.eq(0)
                    with m.Case(Target.IDENTITY):
                        m.d.sync += outgoing.eq(Mux(self.address[0], self.baked, config.identity))
                    with m.Default():
                        m.d.sync += outgoing.eq(0)
                m.d.sync += [self.address.eq(self.address + 1), self.count.eq(self.count - 1)]
                m.next = "SEND"
            with m.State("SEND"):
                m.d.comb += self.o.valid.eq(1)
                with m.If(self.o.ready):
                    m.d.sync += [outgoing.eq(outgoing >> HOST_BITS), part.eq(part + 1)]
                    with m.If(last_part):
                        m.d.sync += part.eq(0)
                        with m.If(self.count == 0):
                            m.next = "OPCODE"
                        with m.Else():
                            m.next = "READ"
            with m.State("RUN"):
                m.d.comb += self.run.eq(1)
                m.next = "WAIT"
            with m.State("WAIT"):
                with m.If(~self.busy):
                    m.next = "OPCODE"
        return m
