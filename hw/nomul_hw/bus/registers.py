"""The registers of a bus top, defined once for the hardware, the driver and the documentation.

All registers are 32 bits wide, at byte addresses that are multiples of 4. Plain Python: importing this module does not
import Amaranth.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ..config import MACHINE_VERSION
from ..descriptor import CAUSES, COUNTERS, HOST_BITS, Field, pack, unpack

__all__ = ["ADDRESS_BITS", "COUNTERS_AT", "COUNTER_REGISTERS", "REGISTER_MAPS", "REGISTER_VERSION", "Access",
           "Register", "RegisterMap"]

#: Width of a register's byte address: the smallest window that address editors give a slave.
ADDRESS_BITS = 12

#: Version of the register maps.
REGISTER_VERSION = 1

#: Byte address of the first counter.
COUNTERS_AT = 0x40

#: Names of the counters' registers, in the order of their addresses.
COUNTER_REGISTERS = tuple(f"cycles_{cause}" for cause in CAUSES)


class Access(StrEnum):
    """What reads and writes of a register do."""

    READ = "r"
    """Reads show the machine's state; writes are errors."""
    WRITE = "rw"
    """Reads show what was written."""
    CLEAR = "r, 1 clears"
    """Bits that the machine sets and that writing a 1 clears."""
    PULSE = "w"
    """Writing a 1 does something, once; reads as 0."""
    WORD = "stream"
    """Writes give words, one after the other, and reads take words."""


@dataclass(frozen=True)
class Register:
    """A register: name, byte address, what accesses do, fields from bit 0 on, and its meaning."""

    name: str
    address: int
    access: Access
    fields: Sequence[Field]
    doc: str

    def pack(self, **values: int) -> int:
        """Word of the fields that are given, the others 0."""
        return pack(self.fields, values)

    def unpack(self, word: int) -> dict[str, int]:
        """Fields of a word."""
        return unpack(self.fields, word)


class RegisterMap(Mapping[str, Register]):
    """The registers of a top, by name, in the order of their addresses.

    Parameters
    ----------
    kind : int
        Number of the map.
    registers : iterable of Register
        What there is.

    Raises
    ------
    ValueError
        If two registers share an address or a name, or one lies outside the window.
    """

    def __init__(self, kind: int, registers: Iterable[Register]):
        self.kind = kind
        ordered = sorted(registers, key=lambda register: register.address)
        self._registers = {register.name: register for register in ordered}
        addresses = {register.address for register in ordered}
        if not len(self._registers) == len(addresses) == len(ordered):
            raise ValueError("registers must differ in name and address")
        if any(address % 4 or not 0 <= address < 1 << ADDRESS_BITS for address in addresses):
            raise ValueError(f"registers must lie at multiples of 4 below {1 << ADDRESS_BITS:#x}")

    def __getitem__(self, name: str) -> Register:
        return self._registers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._registers)

    def __len__(self) -> int:
        return len(self._registers)

    @property
    def version(self) -> int:
        """What the register ``version`` reads as."""
        return self["version"].pack(registers=REGISTER_VERSION, top=self.kind, machine=MACHINE_VERSION)

    def table(self) -> str:
        """Markdown table, for the documentation."""
        rows = ["| address | register | access | bits | field | meaning |", "|---|---|---|---|---|---|"]
        for register in self.values():
            head = f"| `{register.address:#05x}` | `{register.name}` | {register.access} |"
            if len(register.fields) == 1 and register.fields[0].name == "value":
                (field,) = register.fields
                rows.append(f"{head} {field.bits - 1}:0 | | {register.doc} |")
                continue
            rows.append(f"{head} | | {register.doc} |")
            at = 0
            for field in register.fields:
                bits = str(at) if field.bits == 1 else f"{at + field.bits - 1}:{at}"
                rows.append(f"| | | | {bits} | `{field.name}` | {field.doc} |")
                at += field.bits
        return "\n".join(rows) + "\n"


def _word(name: str, address: int, access: Access, doc: str) -> Register:
    """A register that is one word."""
    return Register(name, address, access, (Field("value", HOST_BITS, False, doc),), doc)


def _bit(name: str, doc: str) -> Field:
    return Field(name, 1, False, doc)


def _common(status: Sequence[Field], control: Sequence[Field], events: Sequence[Field]) -> list[Register]:
    """What every top has."""
    return [
        Register("version", 0x00, Access.READ, (
            Field("registers", 8, False, f"version of the register maps, {REGISTER_VERSION}"),
            Field("top", 8, False, "which map this is: 1 streams, 2 master, 3 processor"),
            Field("machine", 8, False, f"version of descriptors, host protocol and timing, {MACHINE_VERSION}"),
        ), "what answers"),
        _word("identity", 0x04, Access.READ, "first 32 bits of the configuration's hash"),
        _word("program", 0x08, Access.READ, "the same of a program that is built in; 0: none"),
        Register("status", 0x0C, Access.READ, (
            _bit("running", "a run is under way"),
            _bit("idle", "no command is under way"),
            *status,
        ), "what is the case"),
        Register("control", 0x10, Access.PULSE, (*control,), "what is to be done"),
        Register("interrupt_enable", 0x14, Access.WRITE, (*events,), "events that raise the interrupt"),
        Register("interrupt", 0x18, Access.CLEAR, (*events,),
                 "events so far; the interrupt is high while one is set that is enabled"),
        *(_word(name, COUNTERS_AT + 4 * index, Access.READ, f"{COUNTERS[cause]}, of the latest run")
          for index, (name, cause) in enumerate(zip(COUNTER_REGISTERS, CAUSES, strict=True))),
    ]


_RESET = _bit("reset", "forget the command that is under way, and the run; memories keep their words")
_RUN_EVENT = _bit("run", "a run has ended")

#: Registers of the top whose commands, answers and weights are streams.
STREAM = RegisterMap(1, _common([], [_RESET], [_RUN_EVENT]))

#: Registers of the top that reads commands and weights from memory and writes answers there.
MASTER = RegisterMap(2, [
    *_common([
        _bit("active", "a transfer is under way"),
        _bit("read_error", "memory answered a read of the latest transfer with an error"),
        _bit("write_error", "memory answered a write of the latest transfer with an error"),
        Field("response", 2, False, "the first such answer, AXI's RRESP or BRESP: 2 slave error, 3 decode error"),
        _bit("address_error", "an address of the latest transfer is not a multiple of the bytes of a beat"),
        _bit("length_error", "the commands of the latest transfer end within one, have more or fewer words of answers "
                             "than its length says, or a run took fewer weights"),
    ], [
        _bit("start", "begin a transfer; without effect while one is under way"),
        _bit("stop", "end the transfer that is under way: bursts that have begun are ended, then the accelerator is "
                     "reset; memories keep their words"),
    ], [
        _RUN_EVENT,
        _bit("done", "a transfer has ended"),
        _bit("error", "a transfer has ended early, by an error"),
    ]),
    *(_word(f"{what}_{name}", at + offset, Access.WRITE, doc)
      for at, what, meaning in ((0x80, "command", "commands"), (0x90, "answer", "answers"),
                                (0xA0, "weight", "the weights of every run"))
      for offset, name, doc in ((0, "address", f"where {meaning} lie, in bytes"),
                                (4, "address_high", "upper half of that address"),
                                (8, "words", f"host words of {meaning}"))),
])

#: Registers of the top whose commands and answers are words that a processor writes and reads.
PROCESSOR = RegisterMap(3, [
    *_common([
        _bit("accepts", "a word that is written to `data` is taken at once"),
        _bit("offers", "a word can be read from `data` at once"),
        _bit("last", "it is the last one of an answer"),
    ], [_RESET], [_RUN_EVENT, _bit("answer", "a word of an answer is there")]),
    _word("data", 0x20, Access.WORD, "writes give a word of a command, reads take a word of an answer; all four bytes"),
])

#: All register maps, by the name of their top.
REGISTER_MAPS: Mapping[str, RegisterMap] = {"axi_stream": STREAM, "axi": MASTER, "wishbone": PROCESSOR}
