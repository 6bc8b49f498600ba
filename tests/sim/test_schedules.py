"""Networks that do not fit their array, piece by piece on the generated RTL."""

from dataclasses import replace

import numpy as np
import pytest

from nomul.compiler import CompileError, compile_network
from nomul.driver import host_words
from nomul.schedule import Schedule
from nomul.verify import verify
from nomul_hw.config import MemoryConfig
from nomul_sim.random_networks import random_network
from nomul_sim.verilated import VerilatedDevice
from tests.sw.small import CONFIG

#: What random networks are made for: the same array with large memories.
LARGE = replace(CONFIG, acc_bits=CONFIG.acc_bits, memory=MemoryConfig(8192, 16384, 2048, 64, 200))


@pytest.mark.parametrize("word_cycles", [0, 1])
def test_networks_that_do_not_fit(word_cycles: int) -> None:
    """Every layer's bits, every cycle by cause, with pauses of the host; by steps as by layers."""
    device = VerilatedDevice(CONFIG)
    ran = banded = several = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        case = random_network(LARGE, rng)
        try:
            schedule = compile_network(case.graph, CONFIG, word_cycles=word_cycles)
        except CompileError as error:
            assert "does not fit" in str(error)
            continue
        if isinstance(schedule, Schedule):
            device.transport.stall(float(rng.choice([0, 0.5])), float(rng.choice([0, 0.5])), seed)
            found = verify(schedule, case.inputs, device)
            assert found.ok, (seed, found.first)
            assert host_words(schedule) == schedule.estimate().host_words
            ran += 1
            banded += any(len(step.turns) > 1 for step in schedule.steps)
            several += any(step.program.graph.more_inputs for step in schedule.steps)
    assert ran >= 20 and banded >= 5 and several >= 5
