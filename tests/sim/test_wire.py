"""The serial link's RTL at the far end of lines that damage what they carry, and of pseudo-terminals."""

import json
import os
import time
from contextlib import suppress

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from nomul import digits
from nomul.cli import app
from nomul.compiler import compile_graph
from nomul.driver import DeviceError
from nomul.files import save_program
from nomul.quantize import quantize_graph
from nomul.wire import SerialDevice, SerialTransport
from nomul_hw.config import ArrayConfig
from nomul_hw.descriptor import Opcode, Target
from nomul_sim.line import FAULTS, FaultyLine, LinePort
from nomul_sim.networks import common_config
from nomul_sim.wire import BAUD, SMALL, PseudoTerminal, SerialModel, check_frames, check_network, efficiency, main

from ..link import ModelDevice, echo


def words(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint32)


@pytest.fixture(scope="module")
def model() -> SerialModel:
    return SerialModel(SMALL, depth=64, frame_words=16)


# Simulated time ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [3e-4, 3e-3])
def test_frames_over_a_faulty_line(rate):
    wrong, transport, port = check_frames(1500, seed=5, rate=rate)
    assert wrong == 0
    assert all(port.down.faults[kind] + port.up.faults[kind] for kind in FAULTS)
    counts = transport.counts
    assert counts.rounds and counts.words_again and counts.damaged_here and counts.damaged_there
    assert counts.frames_sent + counts.frames_received >= 1500


def test_a_seed_gives_one_run():
    first, second = (check_frames(200, seed=3, rate=1e-3) for _ in range(2))
    assert first[1].counts == second[1].counts and first[2].clock() == second[2].clock()


def test_a_line_that_is_beyond_repair_is_reported(model):
    port = LinePort(model, FaultyLine(0.1, 0), FaultyLine(0.1, 1), timeout=1e-4, step=1e-4)
    with pytest.raises(DeviceError, match="does not answer after 5 attempts"):
        SerialTransport(SMALL, port, baud=BAUD, latency=1e-3, attempts=5, clock=port.clock)


# Pseudo-terminals -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    data = digits.load()
    return quantize_graph(digits.build_model(), data.train_x[:16], format="ternary", method="nearest")


@pytest.fixture(scope="module")
def config(graph):
    return common_config([graph], ArrayConfig("ternary", 4, 4))


def test_digits_layer_by_layer_over_a_pseudo_terminal(graph, config):
    """pyserial, a terminal that damages bytes, the RTL: results of the golden model, cycles of the estimate."""
    codes = graph.quantize_input(digits.load().test_x[:2])
    check = check_network(graph, config, codes, seed=1, rate=2e-5)
    assert check.verification.ok and len(check.verification.layers) == len(graph.computing)
    assert check.faults and check.counts.rounds


def test_bulk_transfers_fill_the_line(config):
    """The window covers a round trip of some milliseconds; what is lost are headers, flags, escapes, one round trip."""
    writes, reads = efficiency(SerialModel(config), 0.001)
    assert 0.85 < writes < 0.97 and 0.85 < reads < 0.97


def test_the_command_line_on_a_board(graph, config, tmp_path):
    """`run` and `verify` with a port give what they give without one."""
    codes = graph.quantize_input(digits.load().test_x[:2])
    np.save(tmp_path / "codes.npy", codes)
    program = save_program(compile_graph(graph, config), tmp_path / "program")
    with PseudoTerminal(SerialModel(config)) as terminal:
        board = ["--port", terminal.name, "--baud", "115200", "--latency", "2", "--json"]
        results = [CliRunner().invoke(app, ["run", str(program), str(tmp_path / "codes.npy"), *more])
                   for more in (["--json"], board)]
        assert [result.exit_code for result in results] == [0, 0], results[1].output
        runs = [json.loads(result.stdout) for result in results]
        done = CliRunner().invoke(app, ["verify", str(program), "--images", "1", *board])
    assert runs[1]["device"] == terminal.name and runs[1]["largest"] == runs[0]["largest"]
    assert runs[1]["wire"]["words_sent"] > 0
    cycles = compile_graph(graph, config).estimate().cycles
    assert [counters["total"] for counters in runs[1]["counters"]] == [cycles, cycles]
    assert done.exit_code == 0 and json.loads(done.stdout)["ok"]


@pytest.mark.sweep
@pytest.mark.timeout(3600)
def test_networks_over_a_pseudo_terminal():
    assert main(["--network", "digits", "--format", "ternary", "--rate", "1e-5"]) == 0
    assert main(["--network", "resnet8", "--rate", "1e-5"]) == 0


@pytest.mark.sweep
@pytest.mark.timeout(3600)
def test_100_000_frames(capsys):
    assert main(["--frames", "100000"]) == 0
    assert "0 wrong words" in capsys.readouterr().out


def test_another_array_is_refused(model):
    other = ArrayConfig("ternary", 2, 2)
    message = f"the device answers as {SMALL.identity:08x}, expected {other.identity:08x}"
    with PseudoTerminal(model) as terminal, pytest.raises(DeviceError, match=message):
        SerialDevice(other, terminal.name, baud=115_200, latency=0.5)


def test_a_terminal_nobody_answers():
    master, slave = os.openpty()
    with pytest.raises(DeviceError, match="does not answer after 2 attempts"):
        SerialTransport(SMALL, os.ttyname(slave), baud=115_200, latency=0.02, attempts=2)
    os.close(master)
    os.close(slave)


def test_a_terminal_that_goes_away():
    """A cable that is pulled in the middle of a transfer."""
    with PseudoTerminal(ModelDevice(depth=1024)) as terminal:
        link = SerialTransport(SMALL, terminal.name, baud=115_200, latency=0.1, attempts=2)
        link.transfer(words(*range(100)), sum(len(echo(word)) for word in range(100)))
    with pytest.raises(DeviceError):
        link.transfer(words(1, 2, 3), 3)


def test_an_interrupted_program_leaves_nothing_behind(model):
    """The next one resets the machine: neither the rest of a command nor answers that nobody read are in its way."""
    with PseudoTerminal(model) as terminal:
        for _ in range(2):
            link = SerialTransport(SMALL, terminal.name, baud=115_200, latency=0.5)
            # A write that lacks most of its data, behind a read whose answers are not asked for.
            with suppress(DeviceError):  # more answers than asked for
                link.transfer(words(Opcode.READ | Target.ACTIVATION_0 << 8, 0, 30,
                                    Opcode.WRITE | Target.ACTIVATION_1 << 8, 0, 100, 1, 2, 3), 0)
            link.close()
        device = SerialDevice(SMALL, terminal.name, baud=115_200, latency=0.5)
        assert device.transport.counts.words_received == 2
        device.transport.close()


def test_time_stands_still_while_nothing_happens(model):
    with PseudoTerminal(model, idle=0.01) as terminal:
        SerialTransport(SMALL, terminal.name, baud=115_200, latency=0.5).close()
        deadline = time.monotonic() + 20
        before = -1
        while model.cycles != before and time.monotonic() < deadline:
            before = model.cycles
            time.sleep(0.2)
        assert model.cycles == before
