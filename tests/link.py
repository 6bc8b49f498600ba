"""The device's half of the serial link in Python: what :mod:`nomul_hw.bus.link` does, without its timing."""

from collections.abc import Callable, Iterable

import numpy as np

from nomul_hw.bus.frames import LINK_VERSION, POSITION_BITS, REPLY, REQUEST, Deframer, encode_frame

__all__ = ["ModelDevice", "echo"]

POSITIONS = 1 << POSITION_BITS


def echo(word: int) -> list[int]:
    """Answer of an imaginary accelerator: none, one or two words per command word, which tell where they come from."""
    return [(word ^ 0xFFFFFFFF) - index & 0xFFFFFFFF for index in range(word % 3)]


class ModelDevice:
    """A device at the end of a line (:class:`nomul_sim.line.LineDevice`).

    Parameters
    ----------
    answer : callable
        What the accelerator answers to a command word.
    depth : int
        Words of each of the two buffers.
    frame_words : int
        Words of a frame at most.
    baud : int
        How fast it sends.
    thinking : callable
        Whether the accelerator takes no word at this moment.
    """

    def __init__(self, answer: Callable[[int], Iterable[int]] = echo, *, depth: int = 64, frame_words: int = 16,
                 baud: int = 1_000_000, thinking: Callable[[], bool] = lambda: False):
        self.answer, self.depth, self.frame_words, self.thinking = answer, depth, frame_words, thinking
        self.baud = baud
        self.seconds = 0.0
        self.version = LINK_VERSION
        #: All command words that the accelerator has taken since the session was opened.
        self.taken: list[int] = []
        self.power_up()

    def power_up(self) -> None:
        self.session = self.round = self.damaged = 0
        self.deframer = Deframer(REQUEST)
        self.arriving = self.line = b""
        self.open()

    def open(self) -> None:
        self.accepted = self.consumed = self.produced = self.released = self.next = self.told = 0
        self.commands: list[int] = []
        self.answers: list[int] = []  # all since the session was opened
        self.taken = []
        self.gap = self.speak = False

    def exchange(self, data: bytes, seconds: float) -> bytes:
        """Queue bytes to send to the device, let this time pass, and return the bytes that it sent."""
        before = self.deframer.bad
        count = round(self.baud / 10 * seconds)
        self.arriving += data
        data, self.arriving = self.arriving[:count], self.arriving[count:]
        for request, payload in self.deframer.feed(data):
            self.take(request, payload.tolist())
        if self.deframer.bad > before and self.session:
            self.damaged += self.deframer.bad - before
            self.gap = self.speak = True
        self.compute()
        self.seconds += seconds
        if self.consumed - self.told >= self.depth // 2:
            self.speak = True
        while (self.speak or self.next != self.produced) and len(self.line) < count:
            self.send()
        sent, self.line = self.line[:count], self.line[count:]
        return sent

    def take(self, request: dict[str, int], payload: list[int]) -> None:
        self.speak = True
        if request["version"] != self.version:
            return
        if request["open"] and request["session"] != self.session:
            self.session, self.round = request["session"], request["round"]
            self.open()
            self.speak = True
            return
        if request["session"] != self.session:
            return
        self.released += (request["received"] - self.released) % POSITIONS
        if request["round"] != self.round:
            self.round, self.gap, self.next = request["round"], False, self.released
        ahead = (request["position"] - self.accepted) % POSITIONS
        if payload and 0 < ahead < POSITIONS // 2:
            self.gap = True
        if ahead == 0 and len(payload) <= self.depth - (self.accepted - self.consumed):
            self.accepted += len(payload)
            self.commands += payload

    def compute(self) -> None:
        while self.commands and not self.thinking():
            answers = list(self.answer(self.commands[0]))
            if self.produced - self.released + len(answers) > self.depth:
                break
            self.answers += answers
            self.produced += len(answers)
            self.taken.append(self.commands.pop(0))
            self.consumed += 1

    def send(self) -> None:
        words = self.answers[self.next:self.next + self.frame_words]
        self.told = self.consumed
        self.speak = False
        self.line += encode_frame(REPLY, {
            "version": self.version, "session": self.session, "round": self.round, "gap": self.gap,
            "position": self.next % POSITIONS, "accepted": self.accepted % POSITIONS,
            "limit": (self.consumed + self.depth) % POSITIONS, "damaged": self.damaged % POSITIONS},
            np.array(words, dtype=np.uint32))
        self.next += len(words)
