"""The accelerator on its serial line, simulated: behind a pseudo-terminal, or in simulated time over a faulty line.

    python -m nomul_sim.wire --frames 100000 --seed 1
    python -m nomul_sim.wire --network digits
    python -m nomul_sim.wire --network resnet8 --format exp4 --array 4x4x16

The RTL is that of a board: UART, link and accelerator (:class:`nomul_hw.bus.serial.SerialTop`). The first command lets
the driver write and read memories over a line that drops, doubles, flips, inserts and delays bytes, in simulated time,
so that a seed always gives the same run. The others run a network layer by layer over a pseudo-terminal that damages
bytes, with pyserial, and compare every bit with the golden model and every cycle with the estimate.
"""

import argparse
import ctypes
import os
import select
import sys
import threading
import time
import tty
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from nomul import digits
from nomul.compiler import CompileError, compile_graph
from nomul.driver import DeviceError
from nomul.graph import Graph
from nomul.inputs import InputError, parse_shape
from nomul.quantize import quantize_graph
from nomul.verify import Verification, verify
from nomul.wire import FRAME_WORDS, SerialDevice, SerialTransport, WireCounts
from nomul.zoo import MODELS, samples
from nomul_hw.config import ArrayConfig, ConfigError, MemoryConfig
from nomul_hw.contents import Contents
from nomul_hw.descriptor import HOST_BITS, Opcode, Target, target_word_bits
from nomul_hw.formats import get_format

from .build import BYTES, HANDLE, BuildError, Optimize, build_simulator, load_simulator
from .line import FAULTS, FaultyLine, LineDevice, LinePort
from .verilated import component_verilog

__all__ = ["BAUD", "CYCLES_PER_BIT", "DIGITS", "SMALL", "NetworkCheck", "PseudoTerminal", "SerialModel", "check_frames",
           "check_network", "efficiency", "main"]

#: Cycles per bit of the simulated line: the fewest that the UART takes, as every one has to be simulated.
CYCLES_PER_BIT = 3

#: Baud rate of the simulated line, in simulated time.
BAUD = 3_000_000

#: Name of the network that is trained, where the zoo's have seeded weights.
DIGITS = "digits"

_SHIM = Path(__file__).with_name("uart.cpp")
_FUNCTIONS = {
    "nomul_new": (HANDLE, ctypes.c_int),
    "nomul_free": (None, HANDLE),
    "nomul_exchange": (ctypes.c_int64, HANDLE, BYTES, ctypes.c_int64, BYTES, ctypes.c_int64),
    "nomul_cycles": (ctypes.c_uint64, HANDLE),
    "nomul_broken": (ctypes.c_uint64, HANDLE),
}


class SerialModel:
    """The Verilated RTL of an accelerator with its serial port (:class:`nomul_sim.line.LineDevice`).

    Parameters
    ----------
    config : ArrayConfig
        What to simulate.
    contents : Contents, optional
        A program that is baked in.
    depth, frame_words : int
        Of the link, as for :class:`nomul_hw.bus.link.Link`.
    optimize : str
        ``"build"`` or ``"run"``: what to be quick at.

    Raises
    ------
    BuildError
        If the simulator cannot be built.
    """

    def __init__(self, config: ArrayConfig, contents: Contents | None = None, *, depth: int = 1024,
                 frame_words: int = FRAME_WORDS, optimize: Optimize = "build"):
        self.config = config

        def make() -> object:
            from nomul_hw.accelerator import Accelerator
            from nomul_hw.bus.serial import SerialBus

            return SerialBus(CYCLES_PER_BIT * BAUD, BAUD, depth, frame_words).around(Accelerator(config, contents))

        verilog = component_verilog(make, "serial", config.hash, f"{CYCLES_PER_BIT} {depth} {frame_words}",
                                    contents=contents)
        self._library = load_simulator(build_simulator(verilog, "serial", shim=_SHIM, optimize=optimize), _FUNCTIONS)
        self._handle = self._library.nomul_new(CYCLES_PER_BIT)

    def __del__(self) -> None:
        if handle := getattr(self, "_handle", None):
            self._library.nomul_free(handle)

    @property
    def cycles(self) -> int:
        """Clock cycles simulated so far."""
        return int(self._library.nomul_cycles(self._handle))

    @property
    def seconds(self) -> float:
        """Simulated time."""
        return self.cycles / (CYCLES_PER_BIT * BAUD)

    def exchange(self, data: bytes, seconds: float) -> bytes:
        """Queue bytes to send to the device, let this time pass, and return the bytes that it sent.

        Raises
        ------
        DeviceError
            If the device sends something without a start or a stop bit.
        """
        cycles = max(1, round(seconds * CYCLES_PER_BIT * BAUD))
        received = np.empty(cycles // (9 * CYCLES_PER_BIT) + 2, dtype=np.uint8)
        given = np.frombuffer(data + b"\0", dtype=np.uint8)  # an empty array may have no address
        count = self._library.nomul_exchange(self._handle, given, len(data), received, cycles)
        if self._library.nomul_broken(self._handle):
            raise DeviceError("the device sends bytes without a start or a stop bit")
        return received[:count].tobytes()


class PseudoTerminal:
    """A simulated device behind a pseudo-terminal, which a program opens as it would open a serial port.

    The simulation runs in a thread, from the first byte that comes until nothing has happened for a while.

    Parameters
    ----------
    device : LineDevice
        What is simulated.
    rate, seed : float, int
        Of the faults on the line, as for :class:`FaultyLine`.
    idle : float
        Simulated seconds without a byte in either direction after which time stands still.

    Attributes
    ----------
    name : str
        Path of the terminal to open.
    down, up : FaultyLine
        The line, in both directions.
    """

    #: Simulated seconds between two looks at the terminal.
    STEP = 2e-4

    def __init__(self, device: LineDevice, *, rate: float = 0.0, seed: int = 0, idle: float = 0.05):
        self.device, self.idle = device, idle
        self.down, self.up = (FaultyLine(rate, (seed, index), 1e-2) for index in range(2))
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self.name = os.ttyname(self._slave)
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="pseudo-terminal", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        os.close(self._master)
        os.close(self._slave)
        if self._error:
            raise self._error

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:  # belongs to whoever leaves the context
            self._error = error

    def _serve(self) -> None:
        device, back = self.device, b""
        quiet_since = float("-inf")
        while not self._over.is_set():
            asleep = device.seconds - quiet_since > self.idle and not back
            readable, _, _ = select.select([self._master], [], [], 0.05 if asleep else 0)
            if readable:
                self.down.send(os.read(self._master, 4096), device.seconds)
                quiet_since = device.seconds
            elif asleep:
                continue
            sent = device.exchange(self.down.receive(device.seconds), self.STEP)
            if sent:
                self.up.send(sent, device.seconds)
                quiet_since = device.seconds
            back += self.up.receive(device.seconds)
            try:
                back = back[os.write(self._master, back):] if back else back
            except BlockingIOError:
                time.sleep(0.001)  # nobody reads


# The checks -------------------------------------------------------------------------------------------------------

#: A machine with next to no array: what counts here is the link, and the memories behind it.
SMALL = ArrayConfig(get_format("ternary"), 1, 1, memory=MemoryConfig(activations=256, weights=2, parameters=2,
                                                                     accumulators=2, layers=1))


def check_frames(frames: int, *, seed: int = 0, rate: float = 3e-4) -> "tuple[int, SerialTransport, LinePort]":
    """Write and read an accelerator's memories over a faulty line until so many frames have crossed it.

    Every word that is read is compared with what was written. Now and then there is noise on the line, and another
    driver takes over.

    Parameters
    ----------
    frames : int
        Whole frames, both directions together.
    rate : float
        Probability of each of five kinds of fault, per byte.

    Returns
    -------
    wrong : int
        Words that differed.
    transport, port
        With the counts of what happened.

    Raises
    ------
    DeviceError
        If the driver reports a fault that it could not recover from.
    """
    rng = np.random.default_rng(seed)
    device = SerialModel(SMALL, depth=64, frame_words=16)
    latency = 1e-3
    port = LinePort(device, FaultyLine(rate, (seed, 0), 2 * latency), FaultyLine(rate, (seed, 1), 2 * latency),
                    timeout=latency / 2, step=latency / 10)

    def connect() -> SerialTransport:
        made = SerialTransport(SMALL, port, baud=BAUD, latency=latency, attempts=50, clock=port.clock,
                               frame_words=int(rng.integers(1, 17)), session=int(rng.integers(1, 1 << 16)))
        if transport is not None:
            # One line, one count.
            for name, value in vars(transport.counts).items():
                setattr(made.counts, name, getattr(made.counts, name) + value)
        return made

    transport: SerialTransport | None = None
    transport = connect()
    held = {bank: rng.integers(256, size=256, dtype=np.uint32) for bank in (Target.ACTIVATION_0, Target.ACTIVATION_1)}
    for bank, values in held.items():
        transport.transfer(np.concatenate([_command(Opcode.WRITE, bank, 0, 256), values]), 0)
    wrong = 0
    while transport.counts.frames_sent + transport.counts.frames_received < frames:
        commands, expected = [], []
        for _ in range(int(rng.integers(1, 9))):
            bank = Target(int(rng.choice(list(held))))
            start, count = int(rng.integers(200)), int(rng.integers(1, 57))
            if rng.random() < 0.5:
                values = rng.choice([0x7D, 0x7E, 0x5D, *rng.integers(256, size=5)], count).astype(np.uint32)
                held[bank][start:start + count] = values
                commands += [_command(Opcode.WRITE, bank, start, count), values]
            else:
                commands.append(_command(Opcode.READ, bank, start, count))
                expected.append(held[bank][start:start + count].copy())
        words = np.concatenate([np.zeros(0, dtype=np.uint32), *expected])
        answer = transport.transfer(np.concatenate(commands), len(words))
        wrong += int(np.count_nonzero(answer != words))
        if rng.random() < 0.01:
            port.write(rng.bytes(int(rng.integers(1, 200))))
            transport = connect()
    return wrong, transport, port


def _command(opcode: Opcode, target: Target, address: int, count: int) -> npt.NDArray[np.uint32]:
    return np.array([opcode | target << 8, address, count], dtype=np.uint32)


def efficiency(model: SerialModel, latency: float, chunks: int = 32) -> tuple[float, float]:
    """Share of the line's time that the bytes of host words take, without faults: for writes, and for reads.

    Parameters
    ----------
    latency : float
        Seconds from the host to the device and back: the USB converter's and the operating system's.
    chunks : int
        KiB to move each way.
    """
    port = LinePort(model, FaultyLine(latency=latency / 2), FaultyLine(latency=latency / 2), timeout=1e-3, step=1e-5)
    link = SerialTransport(model.config, port, baud=BAUD, latency=latency + 0.1, clock=port.clock, session=1)
    bank, words = Target.ACTIVATION_0, 256
    size = -(-target_word_bits(model.config, bank) // HOST_BITS)
    data = np.random.default_rng(0).integers(1 << 32, size=words, dtype=np.uint32)
    write, read = (_command(opcode, bank, 0, words // size) for opcode in (Opcode.WRITE, Opcode.READ))
    shares = []
    for commands, replies in (([write, data], 0), ([read], words)):
        started = model.seconds
        link.transfer(np.concatenate(commands * chunks), replies * chunks)
        shares.append(4 * words * chunks * 10 / BAUD / (model.seconds - started))
    return shares[0], shares[1]


def _print_efficiency() -> int:
    model = SerialModel(SMALL)
    print("latency  writes   reads")
    for latency in (0, 1, 4, 16):
        print(f"{latency:4} ms  {'  '.join(f'{share:6.1%}' for share in efficiency(model, latency / 1e3))}")
    return 0


def _check_frames(options: argparse.Namespace) -> int:
    started = time.perf_counter()
    wrong, transport, port = check_frames(options.frames, seed=options.seed, rate=options.rate)
    counts = transport.counts
    faults = {kind: port.down.faults[kind] + port.up.faults[kind] for kind in FAULTS}
    print(f"{counts.frames_sent + counts.frames_received:,} frames, {sum(faults.values()):,} faults ("
          + ", ".join(f"{kind} {count:,}" for kind, count in faults.items()) + f"): {wrong} wrong words\n{counts}\n"
          f"{port.device.seconds:.1f} s on the line at {BAUD / 1e6:g} Mbaud, "
          f"{time.perf_counter() - started:.0f} s of simulation")
    return int(wrong > 0)


@dataclass(frozen=True)
class NetworkCheck:
    """A network over a pseudo-terminal.

    Attributes
    ----------
    verification : Verification
        What the comparison with golden model and estimate found.
    counts : WireCounts
        What went over the line.
    faults : int
        Bytes that the line damaged.
    cycles : int
        Simulated clock cycles, those of the line included.
    """

    verification: Verification
    counts: WireCounts
    faults: int
    cycles: int


def check_network(graph: Graph, config: ArrayConfig, codes: npt.NDArray[np.int8], *, seed: int = 0,
                  rate: float = 0.0, optimize: Optimize = "build") -> NetworkCheck:
    """Run a network whole and layer by layer over a pseudo-terminal, and compare every bit and every cycle.

    Parameters
    ----------
    codes : int8 array, shape (batch, channels, height, width)
        Inputs; the first one runs layer by layer, too.
    rate : float
        Probability of each of five kinds of fault, per byte.
    """
    program = compile_graph(graph, config)
    model = SerialModel(config, optimize=optimize)
    with PseudoTerminal(model, rate=rate, seed=seed) as terminal:
        # A simulated line is much slower than a real one: an answer may be long under way.
        device = SerialDevice(config, terminal.name, baud=115_200, latency=1.0)
        with device.transport as transport:
            verification = verify(program, codes, device)
    faults = sum(sum(line.faults.values()) for line in (terminal.down, terminal.up))
    return NetworkCheck(verification, transport.counts, faults, model.cycles)


def _check_network(options: argparse.Namespace) -> int:
    from .networks import common_config, quantized

    rows, lanes, cols = parse_shape(options.array)
    if options.network == DIGITS:
        data = digits.load()
        graph = quantize_graph(digits.train(), data.train_x[:256], format=options.format)
        codes = graph.quantize_input(data.test_x[:4])
    else:
        graph = quantized(options.network, options.format)
        codes = graph.quantize_input(samples(graph.tensor(graph.input).shape, 1, seed=options.seed).numpy())
    config = common_config([graph], ArrayConfig(options.format, rows, cols, lanes))
    started = time.perf_counter()
    check = check_network(graph, config, codes, seed=options.seed, rate=options.rate, optimize="run")
    result = check.verification
    verdict = "every bit and cycle equal" if result.ok else f"DIFFERS: {result.first or 'in its cycles'}"
    print(f"{options.network} ({options.format}) on {config.name} over a pseudo-terminal: {len(codes)} samples whole, "
          f"one as {len(result.layers)} layers, {result.cycles[0]:,} cycles, {verdict}; {check.faults} faults\n"
          f"{check.counts}\n"
          f"{check.cycles / 1e6:.1f} M cycles, {time.perf_counter() - started:.0f} s of simulation")
    return int(not result.ok)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 1 if a word is wrong or the link failed, 2 for a mistake."""
    parser = argparse.ArgumentParser(prog="python -m nomul_sim.wire", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--frames", type=int, default=100_000, help="frames to let cross (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of data and faults (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=3e-4,
                        help="probability of each of five kinds of fault, per byte (default: %(default)s)")
    parser.add_argument("--network", choices=[DIGITS, *sorted(MODELS)], metavar="NETWORK",
                        help=f"run this over a pseudo-terminal instead: {DIGITS}, {', '.join(MODELS)}")
    parser.add_argument("--efficiency", action="store_true",
                        help="tell instead how much of the line's time carries words, at several latencies")
    parser.add_argument("--format", default="exp4", help="weights of network and array (default: %(default)s)")
    parser.add_argument("--array", default="4x4x16", help="ROWSxCOLS or ROWSxLANESxCOLS (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        if options.efficiency:
            return _print_efficiency()
        return _check_network(options) if options.network else _check_frames(options)
    except DeviceError as error:
        print(f"reported: {error}", file=sys.stderr)
        return 1
    except (BuildError, CompileError, ConfigError, InputError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
