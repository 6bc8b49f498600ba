# amaranth: UnusedElaboratable=no
"""The device's half of the serial link: words both ways over bytes that are lost, doubled and damaged.

The host repairs everything (:mod:`nomul.wire`). The device keeps two counts per direction, has no timer, and its rules
fit on a page, which is ``docs/wire.md``:

- a frame's commands are taken if the frame is whole, the next one, and there is room for all of them; each once, then;
- answers stay here until the host says that it has them;
- with a new round, answers are sent again from the first one that the host does not have;
- every frame is answered, by the next frame that goes out.
"""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import crc, data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..config import ConfigError
from ..descriptor import HOST_BITS
from ..layouts import fields_layout
from ..memory import BlockRAM
from .frames import ESCAPE, FLAG, FLIP, LINK_VERSION, POSITION_BITS, REPLY, REQUEST, header_words

__all__ = ["CRC32", "Deframer", "Framer", "Link"]

#: That of zlib, a byte at a time.
CRC32 = crc.catalog.CRC32_ISO_HDLC(data_width=8)

_BYTES = HOST_BITS // 8


class Deframer(wiring.Component):
    """Finds frames in bytes: undoes their stuffing, makes words of them, checks the CRC.

    It takes a byte every cycle. A word of a frame is shown when the one behind it is complete: so the CRC, which is the
    last, is never shown.

    Members
    -------
    i : In(stream.Signature(8, always_ready=True))
        Bytes.
    error : In(1)
        A byte was lost here.
    word : Out(32)
        A word of the frame, while ``valid``.
    valid : Out(1)
        For a cycle per word.
    done : Out(1)
        For a cycle behind a frame's last word.
    good : Out(1)
        While ``done``: the frame is whole. Else it is damaged, and what was shown of it must be forgotten.
    """

    i: In(stream.Signature(8, always_ready=True))
    error: In(1)
    word: Out(HOST_BITS)
    valid: Out(1)
    done: Out(1)
    good: Out(1)

    def elaborate(self, platform):
        m = Module()
        m.submodules.crc = checksum = CRC32.create()
        in_step = Signal()  # there was a flag, and no error since
        some = Signal()  # there was a byte since the flag
        escaped = Signal()
        part = Signal(range(_BYTES))  # bytes of the word so far
        complete = Signal()  # ``word`` is one
        coming = Signal(HOST_BITS)  # the word behind it

        byte = Signal(8)
        m.d.comb += [
            byte.eq(Mux(escaped, self.i.payload ^ FLIP, self.i.payload)),
            checksum.data.eq(byte),
            self.good.eq(checksum.match_detected & complete & (part == 0) & ~escaped & in_step),
        ]
        flag = self.i.valid & (self.i.payload == FLAG)
        with m.If(flag):
            m.d.comb += [self.done.eq(some), checksum.start.eq(1)]
            m.d.sync += [in_step.eq(1), some.eq(0), escaped.eq(0), part.eq(0), complete.eq(0)]
        with m.Elif(self.error):
            m.d.sync += [in_step.eq(0), some.eq(1)]
        with m.Elif(self.i.valid & in_step):
            m.d.sync += some.eq(1)
            with m.If(~escaped & (self.i.payload == ESCAPE)):
                m.d.sync += escaped.eq(1)
            with m.Else():
                m.d.comb += checksum.valid.eq(1)
                m.d.sync += [escaped.eq(0), part.eq(part + 1), coming.eq(Cat(coming[8:], byte))]
                with m.If(part == _BYTES - 1):
                    m.d.comb += self.valid.eq(complete)
                    m.d.sync += [self.word.eq(Cat(coming[8:], byte)), complete.eq(1)]
        return m


class Framer(wiring.Component):
    """Makes frames of words: adds the CRC, stuffs, and puts flags around.

    A byte leaves per cycle at best; a word is taken with its last byte.

    Members
    -------
    i : In(stream.Signature({word: 32, last: 1}))
        Words; the last one of a frame ends it.
    o : Out(stream.Signature(8))
        Bytes.
    """

    i: In(stream.Signature(data.StructLayout({"word": HOST_BITS, "last": 1})))
    o: Out(stream.Signature(8))

    def elaborate(self, platform):
        m = Module()
        m.submodules.crc = checksum = CRC32.create()
        part = Signal(range(_BYTES))
        escaped = Signal()  # the escape has been sent
        closing = Signal()  # the words have been sent, the CRC is

        word, byte, special = Signal(HOST_BITS), Signal(8), Signal()
        m.d.comb += word.eq(Mux(closing, checksum.crc, self.i.payload.word))
        with m.Switch(part):
            for index in range(_BYTES):
                with m.Case(index):
                    m.d.comb += byte.eq(word.word_select(index, 8))
        m.d.comb += [
            special.eq((byte == FLAG) | (byte == ESCAPE)),
            checksum.data.eq(byte),
        ]
        with m.FSM():
            with m.State("OPEN"):
                m.d.comb += [self.o.payload.eq(FLAG), self.o.valid.eq(self.i.valid), checksum.start.eq(1)]
                with m.If(self.i.valid & self.o.ready):
                    m.next = "BODY"
            with m.State("BODY"):
                m.d.comb += [
                    self.o.payload.eq(Mux(special & ~escaped, ESCAPE, Mux(special, byte ^ FLIP, byte))),
                    self.o.valid.eq(self.i.valid | closing),
                ]
                with m.If(self.o.valid & self.o.ready):
                    with m.If(special & ~escaped):
                        m.d.sync += escaped.eq(1)
                    with m.Else():
                        m.d.comb += checksum.valid.eq(~closing)
                        m.d.sync += [escaped.eq(0), part.eq(part + 1)]
                        with m.If(part == _BYTES - 1):
                            m.d.comb += self.i.ready.eq(~closing)
                            m.d.sync += closing.eq(self.i.payload.last & ~closing)
                            with m.If(closing):
                                m.next = "CLOSE"
            with m.State("CLOSE"):
                m.d.comb += [self.o.payload.eq(FLAG), self.o.valid.eq(1)]
                with m.If(self.o.ready):
                    m.next = "OPEN"
        return m


class Link(wiring.Component):
    """Carries words between the host at the other end of the bytes and an accelerator's host streams.

    Parameters
    ----------
    depth : int
        Words of each of the two buffers, a power of two: the commands that the host can send ahead, and the answers
        that can be on the way to it.
    frame_words : int
        Payload words of a frame to the host, at most.

    Members
    -------
    rx : In(stream.Signature(8, always_ready=True)), tx : Out(stream.Signature(8))
        Bytes from and to the host.
    error : In(1)
        A byte from the host was lost.
    o : Out(stream.Signature(32)), i : In(stream.Signature(32))
        Commands to the accelerator, and its answers.
    reset : Out(1)
        For a cycle: the host opens a session, forget what was under way.

    Raises
    ------
    ConfigError
        If the depth is no power of two, or out of range.
    """

    def __init__(self, *, depth: int = 1024, frame_words: int = 128):
        if depth not in (1 << bits for bits in range(4, POSITION_BITS)):
            raise ConfigError(f"the buffers of the link must hold a power of two of words, 16 to "
                              f"{1 << POSITION_BITS - 1}, not {depth}")
        if not 1 <= frame_words <= depth:
            raise ConfigError(f"a frame must have 1 to {depth} words, not {frame_words}")
        self.depth = depth
        self.frame_words = frame_words
        super().__init__({
            "rx": In(stream.Signature(8, always_ready=True)),
            "error": In(1),
            "tx": Out(stream.Signature(8)),
            "o": Out(stream.Signature(HOST_BITS)),
            "i": In(stream.Signature(HOST_BITS)),
            "reset": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        depth = self.depth
        m.submodules.deframer = deframer = Deframer()
        m.submodules.framer = framer = Framer()
        m.submodules.commands = commands = BlockRAM(width=HOST_BITS, depth=depth)
        m.submodules.answers = answers = BlockRAM(width=HOST_BITS, depth=depth)
        wiring.connect(m, wiring.flipped(self.rx), deframer.i)
        wiring.connect(m, framer.o, wiring.flipped(self.tx))
        m.d.comb += deframer.error.eq(self.error)

        def position(name):
            return Signal(POSITION_BITS, name=name)

        session, round, gap, damaged = Signal(16), Signal(8), Signal(), Signal(16)
        accepted, consumed, told = position("accepted"), position("consumed"), position("told")
        produced, released, following = position("produced"), position("released"), position("following")
        answer = Signal()  # a frame has to go out even if it has no words
        clear = Signal()  # a session has been opened
        again = Signal()  # behind the frame that is being sent, go on from ``released`` again

        # A request: header, then payload, which goes into the buffer behind what has been accepted. It counts as soon
        # as the frame turns out to be whole and the next one.
        request = Signal(fields_layout(REQUEST))
        request_words = header_words(REQUEST)
        header = request.as_value()
        index = Signal(range(request_words + 1))
        payload = Signal(POSITION_BITS)  # words of it; saturates
        room, ahead = position("room"), position("ahead")
        m.d.comb += [
            room.eq(depth - (accepted - consumed)),
            ahead.eq(request.position - accepted),
            commands.write_address.eq(accepted + payload),
            commands.write_data.eq(deframer.word),
            commands.write_enable.eq(deframer.valid & (index == request_words) & (payload < room)),
        ]
        with m.If(deframer.valid):
            with m.If(index != request_words):
                m.d.sync += [index.eq(index + 1), header.eq(Cat(header[HOST_BITS:], deframer.word))]
            with m.Elif(~payload.all()):
                m.d.sync += payload.eq(payload + 1)
        with m.If(deframer.done):
            m.d.sync += [index.eq(0), payload.eq(0)]

        # Commands: out of the buffer into the read port's register, from there to the accelerator.
        fetch = Signal()
        m.d.comb += [
            fetch.eq((consumed != accepted) & (~self.o.valid | self.o.ready)),
            commands.read_address.eq(consumed),
            commands.read_enable.eq(fetch),
            self.o.payload.eq(commands.read_data),
        ]
        with m.If(fetch):
            m.d.sync += [self.o.valid.eq(1), consumed.eq(consumed + 1)]
        with m.Elif(self.o.ready):
            m.d.sync += self.o.valid.eq(0)

        # Answers: into the buffer.
        taken = position("taken")
        m.d.comb += [
            taken.eq(produced - released),
            self.i.ready.eq(taken[depth.bit_length() - 1:] == 0),
            answers.write_address.eq(produced),
            answers.write_data.eq(self.i.payload),
            answers.write_enable.eq(self.i.valid & self.i.ready),
        ]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += produced.eq(produced + 1)

        # The host may have no other way to learn that there is room again.
        with m.If((consumed - told)[depth.bit_length() - 2:] != 0):
            m.d.sync += answer.eq(1)

        # Replies: header, then all answers that there are and that fit. Where a frame begins must not change while it
        # is sent.
        reply = Signal(fields_layout(REPLY))
        reply_words = header_words(REPLY)
        m.d.comb += [
            reply.session.eq(session), reply.round.eq(round), reply.version.eq(LINK_VERSION), reply.gap.eq(gap),
            reply.position.eq(following), reply.accepted.eq(accepted), reply.limit.eq(consumed + depth),
            reply.damaged.eq(damaged),
        ]
        longest = reply_words + self.frame_words
        sent = Signal(range(longest + 1))  # words of the frame before the present one
        word, valid, last = Signal(HOST_BITS), Signal(), Signal()  # the word that the framer has, and whether it has
        reading = Signal()  # it comes out of the buffer
        between, start = Signal(), Signal()
        m.d.comb += [
            framer.i.valid.eq(valid),
            framer.i.payload.word.eq(word),
            framer.i.payload.last.eq(last),
            answers.read_address.eq(following),
            between.eq((sent == 0) & ~valid),
            start.eq(between & ~again & ~clear & (answer | (following != produced))),
        ]
        with m.If(framer.i.ready):
            m.d.sync += [valid.eq(0), last.eq(0)]
            with m.If(last):
                m.d.sync += sent.eq(0)
        with m.If(between & again):
            m.d.sync += [again.eq(0), following.eq(released)]
        with m.If(start):
            m.d.sync += [answer.eq(0), told.eq(consumed)]
        with m.If(reading):
            m.d.sync += [reading.eq(0), valid.eq(1), word.eq(answers.read_data)]
        with m.Elif(start | ((sent != 0) & ~valid)):
            m.d.sync += sent.eq(sent + 1)
            with m.Switch(sent):
                for at in range(reply_words):
                    with m.Case(at):
                        m.d.sync += [word.eq(reply.as_value().word_select(at, HOST_BITS)), valid.eq(1)]
                        if at == reply_words - 1:
                            m.d.sync += last.eq(following == produced)
                with m.Default():
                    m.d.comb += answers.read_enable.eq(1)
                    m.d.sync += [
                        reading.eq(1), following.eq(following + 1),
                        last.eq((following + 1 == produced) | (sent == longest - 1)),
                    ]

        # What a whole request means; each is answered.
        whole = Signal()
        m.d.comb += whole.eq(deframer.done & deframer.good & (index == request_words) & ~clear)
        with m.If(deframer.done & ~deframer.good & (session != 0)):
            m.d.sync += [damaged.eq(damaged + 1), gap.eq(1), answer.eq(1)]
        with m.If(whole):
            m.d.sync += answer.eq(1)
        with m.If(whole & (request.version == LINK_VERSION)):
            with m.If(request.session == session):
                m.d.sync += released.eq(request.received)
                with m.If(request.round != round):
                    m.d.sync += [round.eq(request.round), gap.eq(0), again.eq(1)]
                with m.If((payload != 0) & (ahead != 0) & ~ahead[-1]):
                    m.d.sync += gap.eq(1)
                with m.If((ahead == 0) & (payload <= room)):
                    m.d.sync += accepted.eq(accepted + payload)
            with m.Elif(request.open):
                m.d.sync += [session.eq(request.session), round.eq(request.round), clear.eq(1)]
        # A new session begins behind the frame that is being sent, which belongs to the old one.
        with m.If(clear & between):
            m.d.comb += self.reset.eq(1)
            m.d.sync += [each.eq(0) for each in (
                clear, gap, again, accepted, consumed, told, produced, released, following, self.o.valid)]
        return m
