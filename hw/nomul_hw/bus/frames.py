"""Frames of the serial link, defined once for the hardware, the driver and the documentation.

A frame is framed as in HDLC on asynchronous lines (RFC 1662): a flag byte, the stuffed body, a flag byte. The body is
made of 32-bit words, least significant byte first: a header, the payload, and the CRC-32 of both. The flag appears
nowhere else, so a receiver is back in step at the next one, whatever happened before. Plain Python: importing this
module does not import Amaranth.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ..descriptor import HOST_BITS, Field, pack, total_bits, unpack

__all__ = ["ESCAPE", "FLAG", "FLIP", "LINK_VERSION", "POSITION_BITS", "REPLY", "REQUEST", "BadFrame", "Deframer",
           "decode_body", "encode_frame", "header_words", "stuffed"]

#: Begins and ends a frame; two in a row hold nothing between them.
FLAG = 0x7E

#: Says that the byte behind it has been changed by :data:`FLIP`, because it is a flag or an escape.
ESCAPE = 0x7D

#: Difference between a byte and what stands for it behind an escape.
FLIP = 0x20

#: Version of the protocol; both ends must have the same.
LINK_VERSION = 1

#: Width of a position in a stream of words. Positions count from 0 on since the session was opened, modulo
#: ``2**POSITION_BITS``; buffers are at most half as deep, so that no two words in flight share a position.
POSITION_BITS = 16

_COMMON = (
    Field("session", 16, False, "number that the host chose for the session; 0 before the first one"),
    Field("round", 8, False, "number of the round (modulo 256)"),
    Field("version", 4, False, f"version of the protocol, {LINK_VERSION}"),
)

#: Header of a frame from the host to the device.
REQUEST: Sequence[Field] = (
    *_COMMON,
    Field("open", 1, False, "opens the session: if it is not open yet, resets the accelerator, buffers and positions"),
    Field("reserved", 3, False, "0"),
    Field("position", POSITION_BITS, False, "position of the first payload word in the stream of commands"),
    Field("received", POSITION_BITS, False, "the host has all answers before this position"),
)

#: Header of a frame from the device to the host.
REPLY: Sequence[Field] = (
    *_COMMON,
    Field("gap", 1, False, "a frame of this round was damaged, or not the next one: the host has to begin a new round"),
    Field("reserved", 3, False, "0"),
    Field("position", POSITION_BITS, False, "position of the first payload word in the stream of answers"),
    Field("accepted", POSITION_BITS, False, "the device has all commands before this position"),
    Field("limit", POSITION_BITS, False, "the device has room for the commands before this position"),
    Field("damaged", 16, False, "damaged frames that the device received so far (modulo 2**16)"),
)


class BadFrame(ValueError):
    """Bytes between two flags that are no frame: damaged on the way."""


def header_words(header: Sequence[Field]) -> int:
    """Words of a header."""
    return total_bits(header) // HOST_BITS


def stuffed(body: bytes) -> bytes:
    """Replace flags and escapes in a body by two bytes each."""
    for byte in (ESCAPE, FLAG):  # in this order: what stands for a flag contains an escape
        body = body.replace(bytes([byte]), bytes([ESCAPE, byte ^ FLIP]))
    return body


def encode_frame(header: Sequence[Field], values: Mapping[str, int],
                 payload: npt.NDArray[np.uint32] | Sequence[int] = ()) -> bytes:
    """Make a frame, flags included.

    Parameters
    ----------
    header : sequence of Field
        :data:`REQUEST` or :data:`REPLY`.
    values : mapping
        Of the header's fields; the version is added.
    payload : uint32 array, shape (n,)
        Words behind the header.
    """
    word = pack(header, {"version": LINK_VERSION, **values})
    body = word.to_bytes(4 * header_words(header), "little") + np.asarray(payload, dtype="<u4").tobytes()
    body += zlib.crc32(body).to_bytes(4, "little")
    flag = bytes([FLAG])
    return flag + stuffed(body) + flag


def decode_body(header: Sequence[Field], stuffed_body: bytes) -> tuple[dict[str, int], npt.NDArray[np.uint32]]:
    """Read what stands between two flags: the header's fields and the payload, uint32 (n,).

    Raises
    ------
    BadFrame
        If it is damaged.
    """
    body = stuffed_body
    for byte in (FLAG, ESCAPE):
        body = body.replace(bytes([ESCAPE, byte ^ FLIP]), bytes([byte]))
    size = 4 * header_words(header)
    if len(body) % 4 or len(body) < size + 4 or zlib.crc32(body[:-4]) != int.from_bytes(body[-4:], "little"):
        raise BadFrame(f"{len(stuffed_body)} bytes that are no frame")
    return unpack(header, int.from_bytes(body[:size], "little")), np.frombuffer(body[size:-4], dtype="<u4")


class Deframer:
    """Finds frames in bytes that come in pieces of any size.

    Parameters
    ----------
    header : sequence of Field
        :data:`REQUEST` or :data:`REPLY`, whichever comes in.
    longest : int
        Bytes without a flag that are kept at most: what is longer is no frame.

    Attributes
    ----------
    bad : int
        Frames that were damaged so far.
    """

    def __init__(self, header: Sequence[Field], longest: int = 1 << 20):
        self.header = header
        self.longest = longest
        self.bad = 0
        self._tail = b""
        self._in_step = False  # whether a flag has been seen: what comes before the first is no frame

    def feed(self, data: bytes) -> Iterator[tuple[dict[str, int], npt.NDArray[np.uint32]]]:
        """Take received bytes; yield header and payload of every whole frame in them."""
        *bodies, self._tail = (self._tail + data).split(bytes([FLAG]))
        self._tail = self._tail[:self.longest]
        for body in bodies:
            if body and self._in_step:
                try:
                    yield decode_body(self.header, body)
                except BadFrame:
                    self.bad += 1
            self._in_step = True
