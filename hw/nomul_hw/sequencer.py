"""The sequencer: runs a list of layers without the host, and accounts for every cycle."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from .config import ArrayConfig
from .contents import Table
from .descriptor import CAUSES, DESCRIPTOR_WORDS, HOST_BITS
from .layouts import address_bits, descriptor_layout
from .memory import BlockRAM

__all__ = ["Sequencer"]


class Sequencer(wiring.Component):
    """Fetches layer descriptors, starts layers one after the other, and counts.

    A layer starts when the one before it has written its last output. Its descriptor is fetched meanwhile, word by
    word from a memory as wide as the host stream, so that a layer boundary costs one cycle of control; fetching takes
    :data:`nomul_hw.timing.FETCH_CYCLES` cycles.

    Parameters
    ----------
    config : ArrayConfig
        Depth of program memory.
    table : Table, optional
        Contents of program memory, if they are baked in.

    Members
    -------
    program_address, program_write, program_data : In
        Write port of program memory, in host words.
    run : In(1)
        Run ``run_layers`` layers, the first of which lies at word ``run_address``.
    busy : Out(1)
        A run is under way.
    upcoming, layer : Out(descriptor)
        The layer that ``start`` begins, and the running layer.
    fetched : Out(1)
        ``upcoming`` is complete; from some cycles after the start of the layer before, or of the run, until its own.
    start : Out(1)
        Begin a layer in the next cycle.
    issuing, issued_last, waits_for_weights, waits_for_memory, holds : In(1)
        The address generator issues a word, issues the layer's last word, waits for weights to be loaded, to come from
        outside, is held.
    done : In(1)
        The layer's last output is being written.
    cause : In(3)
        Index of a cause in :data:`nomul_hw.descriptor.CAUSES`, while no run is under way.
    cycles : Out(32)
        The latest run's cycles of that cause.
    """

    def __init__(self, config: ArrayConfig, table: Table | None = None):
        self.config = config
        self.table = table
        self.program_words = config.memory.layers * DESCRIPTOR_WORDS
        address = address_bits(self.program_words)
        super().__init__({
            "program_address": In(address),
            "program_write": In(1),
            "program_data": In(HOST_BITS),
            "run": In(1),
            "run_address": In(address),
            "run_layers": In(address_bits(config.memory.layers + 1)),
            "busy": Out(1),
            "upcoming": Out(descriptor_layout()),
            "layer": Out(descriptor_layout()),
            "fetched": Out(1),
            "start": Out(1),
            "issuing": In(1),
            "issued_last": In(1),
            "waits_for_weights": In(1),
            "waits_for_memory": In(1),
            "holds": In(1),
            "done": In(1),
            "cause": In(range(len(CAUSES))),
            "cycles": Out(HOST_BITS),
        })

    def elaborate(self, platform):
        m = Module()
        # All that the address reaches: a power of two needs no multiplexer behind block RAMs.
        m.submodules.program = program = BlockRAM(
            width=HOST_BITS, depth=1 << len(self.program_address), table=self.table)
        m.d.comb += [
            program.write_address.eq(self.program_address),
            program.write_enable.eq(self.program_write),
            program.write_data.eq(self.program_data),
        ]

        # Fetch: a bit walks along the words of a descriptor, one cycle behind the address.
        address = Signal.like(program.read_address)
        fetching, arriving = Signal(DESCRIPTOR_WORDS), Signal(DESCRIPTOR_WORDS)
        begin_fetch = Signal()
        m.d.comb += [program.read_address.eq(address), program.read_enable.eq(fetching.any())]
        m.d.sync += [fetching.eq((fetching << 1) | begin_fetch), arriving.eq(fetching)]
        with m.If(fetching.any()):
            m.d.sync += address.eq(address + 1)
        for index in range(DESCRIPTOR_WORDS):
            with m.If(arriving[index]):
                m.d.sync += self.upcoming.as_value().word_select(index, HOST_BITS).eq(program.read_data)
        with m.If(arriving[-1]):
            m.d.sync += self.fetched.eq(1)

        left = Signal.like(self.run_layers)
        because = {name: Signal(name=f"because_{name}") for name in CAUSES}
        begin = Signal()
        with m.FSM():
            with m.State("IDLE"):
                with m.If(self.run & (self.run_layers != 0)):
                    m.d.comb += [begin.eq(1), begin_fetch.eq(1)]
                    m.d.sync += [
                        address.eq(self.run_address),
                        left.eq(self.run_layers),
                    ]
                    m.next = "START"
            with m.State("START"):
                m.d.comb += [self.busy.eq(1), because["control"].eq(1)]
                with m.If(self.fetched):
                    m.d.comb += [self.start.eq(1), begin_fetch.eq(left != 1)]
                    m.d.sync += [
                        self.layer.eq(self.upcoming),
                        self.fetched.eq(0),
                        left.eq(left - 1),
                    ]
                    m.next = "ISSUE"
            with m.State("ISSUE"):
                m.d.comb += [
                    self.busy.eq(1),
                    because["busy"].eq(self.issuing),
                    because["weight"].eq(self.waits_for_weights),
                    because["memory"].eq(self.waits_for_memory),
                    because["requantize"].eq(self.holds),
                ]
                with m.If(self.issued_last):
                    m.next = "DRAIN"
            with m.State("DRAIN"):
                m.d.comb += [self.busy.eq(1), because["drain"].eq(1)]
                with m.If(self.done):
                    with m.If(left == 0):
                        m.next = "IDLE"
                    with m.Else():
                        m.next = "START"
        self._count(m, begin, because)
        return m

    def _count(self, m: Module, begin, because):
        """Count cycles by cause in a small memory, one word a cause: there is exactly one in every cycle of a run.

        A cycle is counted in the one after it. Nobody can ask for the counts so soon.
        """
        m.submodules.counters = memory = Memory(shape=HOST_BITS, depth=1 << len(self.cause), init=[])
        read, write = memory.read_port(domain="comb"), memory.write_port()

        # A run begins with as many cycles of control as there are words: meanwhile they are cleared, one after another.
        clearing, cleared = Signal(), Signal.like(self.cause)
        began, counting = Signal(), Signal()
        m.d.sync += [began.eq(begin), counting.eq(self.busy)]
        with m.If(began):
            m.d.sync += [clearing.eq(1), cleared.eq(0)]
        with m.Elif(clearing):
            m.d.sync += [clearing.eq(~cleared.all()), cleared.eq(cleared + 1)]
        first = Mux(cleared == CAUSES.index("control"), memory.depth, 0)

        cause = Signal.like(self.cause)
        for index, name in enumerate(CAUSES):
            with m.If(because[name]):
                m.d.sync += cause.eq(index)
        m.d.comb += [
            read.addr.eq(Mux(counting, cause, self.cause)),
            self.cycles.eq(read.data),
            write.en.eq(counting),
            write.addr.eq(Mux(clearing, cleared, cause)),
            write.data.eq(Mux(clearing, first, read.data + 1)),
        ]
