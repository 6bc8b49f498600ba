"""A whole network on an AXI top."""

import os
from pathlib import Path
from typing import Any

import cocotb
import numpy as np

from nomul.compiler import Program
from nomul.files import load_program

from ..random_nodes import Case
from .axi import check
from .bus import BENCH_INPUTS, BENCH_PAUSE, BENCH_PROGRAM, start


@cocotb.test()
async def network(dut: Any) -> None:
    """Some samples; weights come late."""
    program = load_program(Path(os.environ[BENCH_PROGRAM]))
    assert isinstance(program, Program)
    pause = float(os.environ[BENCH_PAUSE])
    host = await start(dut, pause, seed=8)
    host.delay_weights(max(0.3, pause))
    case = Case(program.graph, np.load(os.environ[BENCH_INPUTS]))
    await check(host, await host.device(), case, program)
    counted = await host.counters()
    cocotb.log.info("a run of %d cycles, of which %d wait for weights from outside",
                    counted["total"], counted["memory"])
