"""The driver's end of the serial link: host words over a line that loses, doubles and damages bytes.

:class:`HostLink` is the protocol without any input or output: it says which bytes to send and is told which came, at
which time. :class:`SerialTransport` runs it over pyserial. All that is repaired is repaired from this side: the device
has no timer and repeats nothing on its own. ``docs/wire.md`` describes the protocol, :mod:`nomul_hw.bus.frames` defines
its frames.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from nomul_hw.bus.frames import LINK_VERSION, POSITION_BITS, REPLY, REQUEST, Deframer, encode_frame
from nomul_hw.config import ArrayConfig

from .driver import DeviceError, StreamDevice

__all__ = ["FRAME_WORDS", "HostLink", "Port", "SerialDevice", "SerialTransport", "WireCounts"]

Words = npt.NDArray[np.uint32]

#: Payload words of a frame, at most: 3 % of a full frame is overhead.
FRAME_WORDS = 128

_POSITIONS = 1 << POSITION_BITS
_ROUNDS = 1 << 8

#: Bits on the line per byte: a start bit, eight data bits, a stop bit.
_BITS_PER_BYTE = 10


@dataclass
class WireCounts:
    """What went over a serial link, and what had to be repaired.

    Attributes
    ----------
    frames_sent, frames_received : int
        Frames, the damaged ones not among those received.
    words_sent, words_received : int
        Words of commands and answers, each counted once.
    words_again : int
        Words that were sent again.
    damaged_here, damaged_there : int
        Damaged frames that host and device received.
    rounds : int
        Times that both ends went back to what the other one had confirmed, timeouts included.
    timeouts : int
        Times that nothing came for so long that frames must have been lost.
    polls : int
        Times that the device was asked whether it is there, while it had nothing to say.
    """

    frames_sent: int = 0
    frames_received: int = 0
    words_sent: int = 0
    words_received: int = 0
    words_again: int = 0
    damaged_here: int = 0
    damaged_there: int = 0
    rounds: int = 0
    timeouts: int = 0
    polls: int = 0

    def __str__(self) -> str:
        return ", ".join(f"{field.name.replace('_', ' ')} {getattr(self, field.name):,}" for field in fields(self))


class HostLink:
    """The host's half of the protocol; it does no input or output and knows no clock but what it is told.

    Parameters
    ----------
    baud : int
        Bits per second on the line: how long sent bytes take.
    latency : float
        Seconds that an answer may be under way, besides its time on the line: the operating system's and the USB
        converter's. Frames are given up for lost after that.
    attempts : int
        Timeouts in a row after which the link is given up.
    patience : float
        Seconds that a device that does answer may take without a command or an answer moving: longer than any run.
    frame_words : int
        Payload words of a frame, at most. Fewer suit a line that damages many.

    Attributes
    ----------
    counts : WireCounts
        What happened so far.
    """

    def __init__(self, *, baud: int, latency: float = 0.1, attempts: int = 10, patience: float = 60.0,
                 frame_words: int = FRAME_WORDS):
        self.counts = WireCounts()
        self.latency, self.attempts, self.patience, self.frame_words = latency, attempts, patience, frame_words
        self._byte_s = _BITS_PER_BYTE / baud
        self._deframer = Deframer(REPLY)
        self._session = self._round = 0
        self._opening = False
        self._begun = False  # whether a round has begun of which the device knows nothing yet
        self._speak = False  # whether a frame has to go out even if it has no words
        self._quiet_at = 0.0  # when the line will have carried all that was sent
        self._damaged = 0
        self._forget()
        self.begin(np.zeros(0, dtype=np.uint32), 0, 0.0)

    def _forget(self) -> None:
        # Positions; Python's integers do not wrap.
        self._start = self._accepted = self._sent = self._farthest = self._limit = self._received = 0

    # What there is to do -----------------------------------------------------------------------------------------

    def open(self, session: int, now: float) -> None:
        """Open a session, which resets the device; :attr:`done` says when it is open.

        Parameters
        ----------
        session : int
            1..65535, and not the device's present one: that would not be reset.
        """
        self._session, self._opening = session, True
        self._forget()
        self.begin(np.zeros(0, dtype=np.uint32), 0, now)
        self._speak = True

    def begin(self, words: Words, replies: int, now: float) -> None:
        """Start to send words and to collect replies; :attr:`done` says when that is over, :attr:`replies` has them."""
        self._words = words
        self._start = self._accepted
        self.replies = np.zeros(replies, dtype=np.uint32)
        self._got = 0
        self._lost = 0  # timeouts in a row
        self._heard = self._moved = now

    @property
    def done(self) -> bool:
        """Whether the device has all words, and all replies have come."""
        return not self._opening and self._accepted == self._end and self._got == len(self.replies)

    @property
    def _end(self) -> int:
        return self._start + len(self._words)

    # Sending -----------------------------------------------------------------------------------------------------

    def outgoing(self, now: float) -> bytes:
        """Return the next frame to send, empty if there is none now.

        Raises
        ------
        DeviceError
            If the device does not answer any more, or its accelerator does not.
        """
        if self.done:
            return b""
        if now >= self._deadline:
            self._give_up_waiting(now)
        if now - self._moved > self.patience:
            raise DeviceError(f"the device answers, but for {self.patience:g} s its accelerator has neither taken a "
                              f"command nor given an answer; {self._progress()}")
        left = self._end - self._sent
        count = 0 if self._opening else max(0, min(self.frame_words, left, self._limit - self._sent))
        # While commands are under way a part of a frame does not go, as there may soon be room for all of it. And as
        # long as nothing comes, one frame at a time does: the device may be there, but slow.
        under_way = self._sent > self._accepted
        if not self._speak and (count == 0 or (under_way and (self._lost or count < min(self.frame_words, left)))):
            return b""
        payload = self._words[self._sent - self._start:][:count]
        frame = encode_frame(REQUEST, {
            "session": self._session, "round": self._round, "open": self._opening,
            "position": self._sent % _POSITIONS, "received": self._received % _POSITIONS}, payload)
        self._sent += count
        fresh = max(0, self._sent - self._farthest)
        self._farthest += fresh
        self.counts.frames_sent += 1
        self.counts.words_sent += fresh
        self.counts.words_again += count - fresh
        self._speak = self._begun = False
        self._quiet_at = max(now, self._quiet_at) + len(frame) * self._byte_s
        return frame

    def wait(self, now: float) -> float:
        """Seconds after which :meth:`outgoing` has something to say even if nothing comes."""
        return max(0.0, self._deadline - now)

    @property
    def _deadline(self) -> float:
        # Besides what is under way, the longest frame may have begun just before, all of its bytes escaped. If that was
        # not enough, the line is slower than it is said to be.
        longest = 8 * (self.frame_words + 8) * self._byte_s
        return max(self._heard, self._quiet_at) + longest + self.latency * (1 + self._lost)

    def _give_up_waiting(self, now: float) -> None:
        self._lost += 1
        if self._lost > self.attempts:
            raise DeviceError(f"the device does not answer after {self.attempts} attempts: is it connected, "
                              f"configured, and as fast as the host?; {self._progress()}")
        if self._opening or self._sent > self._accepted:
            self.counts.timeouts += 1
        else:
            self.counts.polls += 1
        self._heard = now
        self._begin_round()

    def _begin_round(self, *, resend: bool = True) -> None:
        """Let the device go back to what was received here, and go back to what it has accepted."""
        if not self._begun:
            self._round = (self._round + 1) % _ROUNDS
            self._begun = self._speak = True
            self.counts.rounds += 1
        if resend:
            self._sent = self._accepted

    # Receiving ---------------------------------------------------------------------------------------------------

    def incoming(self, data: bytes, now: float) -> None:
        """Take bytes that came.

        Raises
        ------
        DeviceError
            If the device was reset, speaks another version, or answers more than was asked for.
        """
        before = self._deframer.bad
        for reply, payload in self._deframer.feed(data):
            if reply["version"] != LINK_VERSION:
                raise DeviceError(f"the device speaks version {reply['version']} of the link's protocol, this is "
                                  f"version {LINK_VERSION}: build both from the same nomul")
            if reply["session"] == self._session:
                self._take(reply, payload, now)
            elif not self._opening:
                raise DeviceError("the device was reset, or another program has taken it over")
        if self._deframer.bad > before:
            self.counts.damaged_here += self._deframer.bad - before
            self._begin_round(resend=False)

    def _take(self, reply: dict[str, int], payload: Words, now: float) -> None:
        self._heard, self._lost = now, 0
        self.counts.frames_received += 1
        self.counts.damaged_there += (reply["damaged"] - self._damaged) % (1 << 16) if not self._opening else 0
        self._damaged = reply["damaged"]
        self._opening = False
        accepted = self._accepted + (reply["accepted"] - self._accepted) % _POSITIONS
        if accepted <= self._farthest:
            limit = accepted + (reply["limit"] - reply["accepted"]) % _POSITIONS
            if (accepted, limit) > (self._accepted, self._limit) or payload.size:
                self._moved = now
            self._accepted, self._limit = accepted, max(limit, self._limit)
            self._sent = max(self._sent, accepted)
        ahead = (reply["position"] - self._received + _POSITIONS // 2) % _POSITIONS - _POSITIONS // 2
        if ahead <= 0 and len(new := payload[-ahead:]):
            if len(new) > len(self.replies) - self._got:
                raise DeviceError(f"the device answers more than the {len(self.replies)} words that it was asked for")
            self.replies[self._got:self._got + len(new)] = new
            self._got += len(new)
            self._received += len(new)
            self.counts.words_received += len(new)
            self._speak = True  # so that the device can forget them
        # Frames keep their order: words in front of this one were lost. In a round that is over it means nothing.
        if (reply["gap"] or ahead > 0) and reply["round"] == self._round and not self._begun:
            self._begin_round()

    def _progress(self) -> str:
        return (f"{self._accepted - self._start} of {len(self._words)} words sent, {self._got} of "
                f"{len(self.replies)} received; since the link was opened: {self.counts}")


class Port(Protocol):
    """What is needed of a serial port; pyserial's ``Serial`` has it."""

    @property
    def in_waiting(self) -> int:
        """Bytes that can be read at once."""
        ...

    def read(self, size: int = 1, /) -> bytes:
        """Read up to ``size`` bytes; less if they do not come within the port's timeout."""
        ...

    def write(self, data: bytes, /) -> int | None:
        """Send bytes."""
        ...

    def close(self) -> None:
        """Close the port."""
        ...


class SerialTransport:
    """An accelerator at the end of a serial line (:class:`nomul_hw.bus.serial.SerialTop`), as a driver's transport.

    Whatever bytes the line loses, doubles, damages or delays, words arrive once and in order; a line that is beyond
    repair ends in a :class:`DeviceError`, and then a new transport is needed. Opening one resets the accelerator's
    logic, so that nothing is left of what another program, which perhaps was interrupted, wanted of it.

    Parameters
    ----------
    config : ArrayConfig
        The array that should be there; :class:`StreamDevice` asks whether it is.
    port : str or Port
        Name of a serial port such as ``/dev/ttyUSB0``, which pyserial opens (the extra ``serial``); or one that is
        open.
    baud : int
        Bits per second; must be the device's.
    latency, attempts, patience, frame_words
        As for :class:`HostLink`.
    clock : callable
        Time in seconds; that of a simulated port is simulated.
    session : int, optional
        1..65535: the session's number, a random one if not given.

    Raises
    ------
    DeviceError
        If the port cannot be opened, or nothing answers there.
    """

    def __init__(self, config: ArrayConfig, port: str | Port, *, baud: int = 3_000_000, latency: float = 0.1,
                 attempts: int = 10, patience: float = 60.0, frame_words: int = FRAME_WORDS,
                 clock: Callable[[], float] = time.monotonic, session: int | None = None):
        self.config = config
        self._clock = clock
        self._port = _open(port, baud, latency / 4) if isinstance(port, str) else port
        self._name = port if isinstance(port, str) else "the port"
        self._failure: str | None = None
        self._link = HostLink(baud=baud, latency=latency, attempts=attempts, patience=patience,
                              frame_words=frame_words)
        first = random.SystemRandom().randrange(1, 1 << 16) if session is None else session
        try:
            # Whichever session the device is in, one of the two is another and resets it.
            for each in (first ^ 1 or 2, first):
                self._link.open(each, self._clock())
                self._pump()
        except DeviceError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the port."""
        self._port.close()

    @property
    def counts(self) -> WireCounts:
        """What went over the line so far, and what had to be repaired."""
        return self._link.counts

    def transfer(self, words: Words, replies: int) -> Words:
        """Send words and return the ``replies`` words that the accelerator answers.

        Raises
        ------
        DeviceError
            If the line or the device fails; every later transfer then fails too.
        """
        if self._failure:
            raise DeviceError(f"the link to {self._name} failed before: {self._failure}")
        self._failure = "a transfer was interrupted"
        self._link.begin(np.ascontiguousarray(words, dtype=np.uint32).reshape(-1), replies, self._clock())
        try:
            self._pump()
        except DeviceError as error:
            self._failure = str(error)
            raise
        self._failure = None
        return self._link.replies

    def feed(self, words: Words) -> None:
        """Refuse: a serial line has no stream of weights."""
        raise DeviceError(f"{self.config.name} takes its weights from a stream, which a serial line does not have")

    def _pump(self) -> None:
        """Send and receive until the link is done."""
        try:
            while not self._link.done:
                frame = self._link.outgoing(self._clock())
                if frame:
                    self._port.write(frame)
                waiting = self._port.in_waiting
                # Where nothing could be sent, there is time to wait for what comes, within the port's timeout.
                if waiting or not frame:
                    self._link.incoming(self._port.read(max(1, waiting)), self._clock())
        except DeviceError as error:
            raise DeviceError(f"{self._name}: {error}") from None
        except OSError as error:  # pyserial's exceptions are such
            raise DeviceError(f"{self._name}: {error}") from None


class SerialDevice(StreamDevice):
    """An accelerator at the end of a serial line.

    Parameters
    ----------
    config, port, baud
        As for :class:`SerialTransport`, as is all else.

    Raises
    ------
    DeviceError
        If nothing answers, or something that was generated from another configuration.
    """

    transport: SerialTransport

    def __init__(self, config: ArrayConfig, port: str | Port, *, baud: int = 3_000_000, **options: Any):
        transport = SerialTransport(config, port, baud=baud, **options)
        try:
            super().__init__(transport)
        except DeviceError:
            transport.close()
            raise


def _open(name: str, baud: int, timeout: float) -> Port:
    import serial

    try:
        port = serial.Serial(name, baud, timeout=timeout, write_timeout=10.0, exclusive=True)
    except (OSError, ValueError) as error:
        raise DeviceError(f"{name}: {error}") from None
    try:
        # USB converters collect bytes for as long as 16 ms before they pass them on, unless they are told not to.
        port.set_low_latency_mode(True)
    except (AttributeError, NotImplementedError, OSError, ValueError):
        pass  # other systems, other drivers: slower, and still right
    port.reset_input_buffer()
    return port
