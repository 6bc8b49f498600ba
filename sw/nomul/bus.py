"""Driving an accelerator on a bus: its registers, and memory that it shares with the host.

What a system offers for that (``/dev/mem`` and a buffer for DMA, PYNQ's ``MMIO`` and ``allocate``, a simulated bus) is
behind :class:`Bus`. :class:`MemoryTransport` makes of it what :class:`nomul.driver.StreamDevice` speaks to.
"""

import time
from typing import Protocol

import numpy as np
import numpy.typing as npt

from nomul_hw.bus.registers import REGISTER_MAPS, RegisterMap
from nomul_hw.config import ArrayConfig

from .driver import DeviceError

__all__ = ["Bus", "MemoryTransport", "RegisterTransport", "Registers"]

Words = npt.NDArray[np.uint32]

#: The buffers begin at multiples of so many bytes; no beat is longer.
ALIGNMENT = 4096


class Bus(Protocol):
    """Reaches an accelerator's registers, and the memory that it shares with the host."""

    def read(self, address: int) -> int:
        """Read the register at a byte address."""
        ...

    def write(self, address: int, value: int) -> None:
        """Write the register at a byte address."""
        ...

    def read_memory(self, address: int, count: int) -> Words:
        """Read ``count`` words of 32 bits, as the accelerator wrote them, from a byte address of its memory."""
        ...

    def write_memory(self, address: int, words: Words) -> None:
        """Write words of 32 bits, so that the accelerator reads them."""
        ...

    def wait(self) -> None:
        """Wait for the accelerator's interrupt, or for a while."""
        ...


class Registers:
    """The registers of a top, by name.

    Parameters
    ----------
    bus : Bus
        How to reach them.
    registers : RegisterMap
        Which top it is.

    Raises
    ------
    DeviceError
        If another one answers.
    """

    def __init__(self, bus: Bus, registers: RegisterMap):
        self._bus = bus
        self._map = registers
        version = bus.read(registers["version"].address)
        if version != registers.version:
            raise DeviceError(f"the registers answer as version {version:08x}, expected {registers.version:08x}: "
                              f"another top, or another version of nomul made it")

    def read(self, name: str) -> dict[str, int]:
        """Fields of a register."""
        register = self._map[name]
        return register.unpack(self._bus.read(register.address))

    def write(self, name: str, **fields: int) -> None:
        """Write a register; fields that are not given become 0."""
        register = self._map[name]
        self._bus.write(register.address, register.pack(**fields))


class MemoryTransport:
    """Transport to an accelerator that reads and writes memory: a top ``axi``.

    Parameters
    ----------
    config : ArrayConfig
        The accelerator.
    bus : Bus
        How to reach it.
    address, size : int
        Bytes of memory for commands, answers and streamed weights; the address is a multiple of 4096.
    timeout_s : float
        Seconds after which a transfer is given up.

    Raises
    ------
    DeviceError
        If another top answers, or the address is none.
    """

    def __init__(self, config: ArrayConfig, bus: Bus, address: int, size: int, *, timeout_s: float = 60):
        if address % ALIGNMENT:
            raise DeviceError(f"the buffer must begin at a multiple of {ALIGNMENT} bytes, not at {address:#x}")
        self._config = config
        self._bus = bus
        self._address, self._size = address, size
        self._weights_at = size
        self.timeout_s = timeout_s
        self.registers = Registers(bus, REGISTER_MAPS["axi"])
        self.registers.write("interrupt_enable", done=1)

    @property
    def config(self) -> ArrayConfig:
        """The accelerator at the other end."""
        return self._config

    def feed(self, words: Words) -> None:
        """Lay the weights of every run from now on at the end of the memory.

        Raises
        ------
        DeviceError
            If they do not fit.
        """
        at = (self._size - 4 * len(words)) // ALIGNMENT * ALIGNMENT
        if at < 0:
            raise DeviceError(f"the weights take {4 * len(words):,} bytes, the buffer has {self._size:,}")
        self._weights_at = at
        self._bus.write_memory(self._address + at, words)
        self._set("weight", at, len(words))

    def transfer(self, words: Words, replies: int) -> Words:
        """Send ``words`` and return the ``replies`` words that the accelerator answers.

        Raises
        ------
        DeviceError
            If they do not fit into memory, or the accelerator reports an error or does not end.
        """
        answer_at = -(-4 * len(words) // ALIGNMENT) * ALIGNMENT
        if answer_at + 4 * replies > self._weights_at:
            raise DeviceError(f"{len(words):,} words of commands and {replies:,} of answers do not fit into the "
                              f"{self._weights_at:,} bytes of the buffer that no weights take")
        self._bus.write_memory(self._address, words)
        self._set("command", 0, len(words))
        self._set("answer", answer_at, replies)
        self.registers.write("interrupt", done=1, error=1)
        self.registers.write("control", start=1)
        status = self._wait()
        errors = [name for name, value in status.items() if value and name.endswith("_error")]
        if errors:
            raise DeviceError(f"the transfer ended early: {', '.join(errors).replace('_', ' ')}"
                              + (f" (response {status['response']})" if status["response"] else ""))
        return self._bus.read_memory(self._address + answer_at, replies)

    def _wait(self) -> dict[str, int]:
        """Wait for the end of a transfer; return the status."""
        deadline = time.monotonic() + self.timeout_s
        while (status := self.registers.read("status"))["active"]:
            self._bus.wait()
            if time.monotonic() > deadline:
                self.registers.write("control", stop=1)
                raise DeviceError(f"the transfer did not end within {self.timeout_s} s, and was stopped")
        return status

    def _set(self, what: str, offset: int, words: int) -> None:
        """Tell where something lies."""
        high, low = divmod(self._address + offset, 1 << 32)
        self.registers.write(f"{what}_address", value=low)
        self.registers.write(f"{what}_address_high", value=high)
        self.registers.write(f"{what}_words", value=words)


class RegisterTransport:
    """Transport to an accelerator whose commands and answers are words of a register: a top ``wishbone``.

    Parameters
    ----------
    config : ArrayConfig
        The accelerator.
    bus : Bus
        How to reach its registers; it needs no memory.
    timeout_s : float
        Seconds without a word that moves, after which a transfer is given up.

    Raises
    ------
    DeviceError
        If another top answers.
    """

    def __init__(self, config: ArrayConfig, bus: Bus, *, timeout_s: float = 60):
        self._config = config
        self._bus = bus
        self.timeout_s = timeout_s
        self.registers = Registers(bus, REGISTER_MAPS["wishbone"])
        self.registers.write("interrupt_enable", run=1, answer=1)

    @property
    def config(self) -> ArrayConfig:
        """The accelerator at the other end."""
        return self._config

    def feed(self, words: Words) -> None:
        """Weights cannot come from outside here."""
        raise DeviceError("an accelerator on Wishbone keeps its weights")

    def transfer(self, words: Words, replies: int) -> Words:
        """Send ``words`` and return the ``replies`` words that the accelerator answers.

        Raises
        ------
        DeviceError
            If no word moves for too long.
        """
        sent, received = 0, list[int]()
        deadline = time.monotonic() + self.timeout_s
        while sent < len(words) or len(received) < replies:
            status = self.registers.read("status")
            if status["offers"] and len(received) < replies:
                received.append(self.registers.read("data")["value"])
            elif status["accepts"] and sent < len(words):
                self.registers.write("data", value=int(words[sent]))
                sent += 1
            else:
                if time.monotonic() > deadline:
                    raise DeviceError(f"no word moved for {self.timeout_s} s: {sent} of {len(words)} words sent, "
                                      f"{len(received)} of {replies} replies received")
                self.registers.write("interrupt", run=1, answer=1)
                self._bus.wait()
                continue
            deadline = time.monotonic() + self.timeout_s
        return np.array(received, dtype=np.uint32)
