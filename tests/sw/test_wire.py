"""The host's half of the serial link, against a model of the device's, over lines that damage what they carry."""

import sys

import numpy as np
import pytest

from nomul.driver import DeviceError
from nomul.wire import HostLink, SerialTransport
from nomul_hw.bus.frames import ESCAPE, FLAG, REPLY, REQUEST, BadFrame, Deframer, decode_body, encode_frame
from nomul_hw.config import ArrayConfig
from nomul_sim.line import FAULTS, FaultyLine, LinePort

from ..link import ModelDevice, echo

CONFIG = ArrayConfig("ternary", 1, 1)
BAUD = 1_000_000
LATENCY = 0.002


def transport(device: ModelDevice, *, rate: float = 0.0, seed: int = 0, **options) -> SerialTransport:
    down, up = (FaultyLine(rate, (seed, index), 2 * LATENCY) for index in range(2))
    port = LinePort(device, down, up, timeout=LATENCY / 4, step=LATENCY / 10)
    return SerialTransport(CONFIG, port, baud=BAUD, clock=port.clock,
                           **{"latency": LATENCY, "frame_words": 16, "session": 77, **options})


def answers(words) -> list[int]:
    return [answer for word in words for answer in echo(int(word))]


def exchange(link: SerialTransport, rng: np.random.Generator, size: int) -> np.ndarray:
    """Send random words, among them many that must be escaped, and check what comes back."""
    words = rng.choice([rng.integers(1 << 32), 0x7E7D7E7D, 0x5D5E7D7E], size).astype(np.uint32)
    expected = answers(words)
    np.testing.assert_array_equal(link.transfer(words, len(expected)), np.array(expected, dtype=np.uint32))
    return words


# Frames ----------------------------------------------------------------------------------------------------------


def test_frames_survive_any_bytes():
    rng = np.random.default_rng(0)
    for _ in range(200):
        header = {"session": 0x7D7E, "round": 0x5E, "position": int(rng.integers(1 << 16))}
        words = rng.choice([FLAG, ESCAPE, 0x5E, 0x5D, 0], (int(rng.integers(5)), 4)).astype(np.uint8).view(np.uint32)
        frame = encode_frame(REQUEST, header, words.reshape(-1))
        assert frame[0] == frame[-1] == FLAG and FLAG not in frame[1:-1]
        fields, payload = decode_body(REQUEST, frame[1:-1])
        assert fields | header == fields
        np.testing.assert_array_equal(payload, words.reshape(-1))


def test_every_flipped_bit_is_found():
    frame = encode_frame(REPLY, {"session": 1, "position": 0x7E}, [0x7D, 1, 2])
    for bit in range(8, 8 * len(frame) - 8):
        damaged = bytearray(frame)
        damaged[bit // 8] ^= 1 << bit % 8
        deframer = Deframer(REPLY)
        assert list(deframer.feed(bytes(damaged))) == []
        assert deframer.bad


def test_too_short_frames_are_bad():
    for body in (b"\x00", b"\x00" * 8, b"\x00" * 17):
        with pytest.raises(BadFrame):
            decode_body(REPLY, body)


def test_frames_in_pieces():
    frames = b"noise" + b"".join(encode_frame(REPLY, {"session": index}, [index] * index) for index in range(5))
    deframer = Deframer(REPLY)
    found = [fields["session"] for at in range(len(frames)) for fields, _ in deframer.feed(frames[at:at + 1])]
    assert found == list(range(5)) and not deframer.bad


# Transfers -------------------------------------------------------------------------------------------------------


def test_a_clean_line_repairs_nothing():
    device = ModelDevice()
    link, rng = transport(device), np.random.default_rng(1)
    for size in (0, 1, 15, 16, 17, 1000):
        exchange(link, rng, size)
    assert link.counts.rounds == link.counts.words_again == 0
    assert link.counts.words_sent == 1049 == len(device.taken)


@pytest.mark.parametrize("rate", [0.0002, 0.002])
@pytest.mark.parametrize("seed", range(2))
def test_a_faulty_line_changes_no_word(rate, seed):
    rng = np.random.default_rng(seed)
    device = ModelDevice(thinking=lambda: rng.random() < 0.5)
    link = transport(device, rate=rate, seed=seed, frame_words=int(rng.integers(1, 17)), attempts=1000)
    sent = np.concatenate([exchange(link, rng, int(rng.integers(200))) for _ in range(20)])
    assert device.taken == sent.tolist()
    if rate > 0.001:
        assert link.counts.rounds and link.counts.damaged_here and link.counts.damaged_there


def test_positions_wrap():
    device = ModelDevice(lambda word: [word], depth=1024, frame_words=128)
    link = transport(device, rate=1e-4, frame_words=128)
    for start in range(0, 90_000, 10_000):
        words = np.arange(start, start + 10_000, dtype=np.uint32)
        np.testing.assert_array_equal(link.transfer(words, len(words)), words)
    assert link.counts.words_again


@pytest.mark.parametrize("kind", FAULTS)
def test_each_kind_of_fault(kind, monkeypatch):
    monkeypatch.setattr("nomul_sim.line.FAULTS", (kind,))
    link, rng = transport(ModelDevice(), rate=0.01, attempts=100), np.random.default_rng(2)
    for _ in range(5):
        exchange(link, rng, 100)
    assert link._port.down.faults[kind] and link._port.up.faults[kind]


def test_a_new_session_forgets_the_old_one():
    device = ModelDevice()
    for session in (5, 5, 4, 1, 65535):
        link = transport(device, session=session)
        exchange(link, np.random.default_rng(3), 100)
        # What an interrupted program leaves behind: commands, answers that nobody read.
        link._link.begin(np.arange(50, dtype=np.uint32), 0, link._clock())
        link._port.write(link._link.outgoing(link._clock()))
        link._port.read()
    assert device.session == 65535


def test_an_interrupted_transfer_is_not_gone_on_with(monkeypatch):
    link = transport(ModelDevice())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(link._port, "read", lambda size: (_ for _ in ()).throw(KeyboardInterrupt))
        link.transfer(np.arange(9, dtype=np.uint32), 0)
    with pytest.raises(DeviceError, match="a transfer was interrupted"):
        link.transfer(np.arange(9, dtype=np.uint32), 0)


# Failures --------------------------------------------------------------------------------------------------------


def test_nobody_there():
    with pytest.raises(DeviceError, match="does not answer after 3 attempts"):
        transport(ModelDevice(), rate=0.2, attempts=3)


def test_a_device_that_loses_power():
    device = ModelDevice()
    link = transport(device)
    exchange(link, np.random.default_rng(0), 10)
    device.power_up()
    with pytest.raises(DeviceError, match="was reset, or another program"):
        link.transfer(np.arange(10, dtype=np.uint32), 10)
    with pytest.raises(DeviceError, match="failed before"):
        link.transfer(np.arange(10, dtype=np.uint32), 0)


def test_an_accelerator_that_does_not_answer():
    link = transport(ModelDevice(lambda word: []), patience=0.5)
    with pytest.raises(DeviceError, match=r"answers, but for 0\.5 s its accelerator"):
        link.transfer(np.arange(3, dtype=np.uint32), 1)
    assert link.counts.polls > 10  # it was asked all the time


def test_an_accelerator_that_thinks_long():
    device = ModelDevice(depth=8, thinking=lambda: device.seconds < 1)
    link = transport(device)
    exchange(link, np.random.default_rng(0), 100)
    assert device.seconds > 1 and link.counts.timeouts == 0 and link.counts.words_again == 0


def test_more_answers_than_asked_for():
    link = transport(ModelDevice(lambda word: [word] * 5))
    with pytest.raises(DeviceError, match="more than the 2 words"):
        link.transfer(np.arange(4, dtype=np.uint32), 2)


def test_another_version():
    device = ModelDevice()
    device.version = 3
    with pytest.raises(DeviceError, match="version 3 of the link's protocol"):
        transport(device)


def test_no_stream_of_weights():
    with pytest.raises(DeviceError, match="takes its weights from a stream"):
        transport(ModelDevice()).feed(np.zeros(1, dtype=np.uint32))


def test_a_port_that_is_not_there():
    with pytest.raises(DeviceError, match="/dev/no-such-port"):
        SerialTransport(CONFIG, "/dev/no-such-port")


def test_a_missing_pyserial_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "serial", None)
    with pytest.raises(ModuleNotFoundError, match="serial"):
        SerialTransport(CONFIG, "/dev/ttyUSB0")


def test_the_window_fills_the_line():
    """Bulk writes take little more than the bytes' time on the line, with room in the device for a round trip."""
    device = ModelDevice(lambda word: [], depth=1024, frame_words=128)
    link = transport(device, frame_words=128)
    start, count = device.seconds, 20_000
    link.transfer(np.full(count, 0x01020304, dtype=np.uint32), 0)
    assert 4 * count * 10 / BAUD / (device.seconds - start) > 0.9


def test_frames_go_out_whole():
    """A device that frees its buffer word by word does not get frames of a word."""
    link = HostLink(baud=BAUD)
    link.open(1, 0.0)
    link.outgoing(0.0)
    link.incoming(encode_frame(REPLY, {"session": 1, "limit": 150}), 0.0)
    link.begin(np.zeros(1000, dtype=np.uint32), 0, 0.0)
    assert len(link.outgoing(0.0)) > 4 * 128
    assert link.outgoing(0.0) == b""
    link.incoming(encode_frame(REPLY, {"session": 1, "limit": 200, "accepted": 64}), 0.0)
    assert link.outgoing(0.0) == b""
