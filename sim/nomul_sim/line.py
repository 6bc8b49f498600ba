"""A serial line that damages what it carries, and a port at its end: for tests of the link, in simulated time.

Faults are seeded and counted. A line keeps the order of what it carries, as wires and USB converters do.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

__all__ = ["FAULTS", "FaultyLine", "LineDevice", "LinePort"]

#: What can happen to a byte: it is lost, doubled, changed in one bit, preceded by a random byte, or late, with all
#: that follow it.
FAULTS = ("dropped", "doubled", "flipped", "inserted", "delayed")


@dataclass
class FaultyLine:
    """One direction of a line.

    Parameters
    ----------
    rate : float
        Probability of each kind of fault, per byte.
    seed : int or sequence of int
        Of the faults.
    longest_delay : float
        Seconds that a delay takes at most.
    latency : float
        Seconds that every byte is under way.

    Attributes
    ----------
    faults : dict
        How often each kind of :data:`FAULTS` happened.
    """

    rate: float = 0.0
    seed: int | Sequence[int] = 0
    longest_delay: float = 0.0
    latency: float = 0.0
    faults: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FAULTS, 0))

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)
        self._held: deque[tuple[float, bytes]] = deque()
        self._late_until = 0.0

    def send(self, data: bytes, now: float) -> None:
        """Put bytes on the line, at a time in seconds."""
        start = 0
        if self.rate:
            for at in np.flatnonzero(self._rng.random(len(data)) < self.rate * len(FAULTS)).tolist():
                kind = FAULTS[int(self._rng.integers(len(FAULTS)))]
                self.faults[kind] += 1
                byte = data[at]
                if kind == "delayed":
                    self._hold(data[start:at], now)
                    self._late_until = max(self._late_until, now + self.longest_delay * float(self._rng.random()))
                    instead = bytes([byte])
                elif kind == "dropped":
                    instead = b""
                elif kind == "doubled":
                    instead = bytes([byte, byte])
                elif kind == "flipped":
                    instead = bytes([byte ^ 1 << int(self._rng.integers(8))])
                else:
                    instead = bytes([int(self._rng.integers(256)), byte])
                if kind != "delayed":
                    self._hold(data[start:at], now)
                self._hold(instead, now)
                start = at + 1
        self._hold(data[start:], now)

    def _hold(self, data: bytes, now: float) -> None:
        if data:
            self._held.append((max(now + self.latency, self._late_until), data))

    def receive(self, now: float) -> bytes:
        """Take what has arrived by now."""
        arrived = []
        while self._held and self._held[0][0] <= now:
            arrived.append(self._held.popleft()[1])
        return b"".join(arrived)


class LineDevice(Protocol):
    """What is at the other end of a simulated line."""

    @property
    def seconds(self) -> float:
        """Simulated time."""
        ...

    def exchange(self, data: bytes, seconds: float) -> bytes:
        """Queue bytes to send to the device, let this time pass, and return the bytes that it sent."""
        ...


class LinePort:
    """A serial port at the near end of a faulty line (:class:`nomul.wire.Port`), in the device's simulated time.

    Parameters
    ----------
    device : LineDevice
        What is at the far end.
    down, up : FaultyLine
        The line to the device, and from it.
    timeout : float
        Simulated seconds that :meth:`read` waits at most.
    step : float
        Simulated seconds between two looks at the line.
    """

    def __init__(self, device: LineDevice, down: FaultyLine, up: FaultyLine, *, timeout: float, step: float):
        self.device, self.down, self.up = device, down, up
        self.timeout, self.step = timeout, step
        self._received = b""

    def clock(self) -> float:
        """Simulated time in seconds."""
        return self.device.seconds

    @property
    def in_waiting(self) -> int:
        """Bytes that can be read at once."""
        return len(self._received)

    def write(self, data: bytes, /) -> int:
        """Send bytes; returns at once."""
        self.down.send(data, self.device.seconds)
        return len(data)

    def read(self, size: int = 1, /) -> bytes:
        """Let time pass until something comes, or until the timeout; return up to ``size`` bytes."""
        until = self.device.seconds + self.timeout
        while not self._received and self.device.seconds < until:
            self._step()
        data, self._received = self._received[:size], self._received[size:]
        return data

    def close(self) -> None:
        """Nothing to do."""

    def _step(self) -> None:
        sent = self.device.exchange(self.down.receive(self.device.seconds), self.step)
        self.up.send(sent, self.device.seconds)
        self._received += self.up.receive(self.device.seconds)
