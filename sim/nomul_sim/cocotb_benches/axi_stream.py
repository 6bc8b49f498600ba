"""The top with AXI4-Streams, driven by cocotbext-axi's master, sources and sink."""

import json
import os
from typing import Any

import cocotb
import numpy as np
import numpy.typing as npt
from cocotb.task import bridge, resume
from cocotb.triggers import ClockCycles, RisingEdge, with_timeout
from cocotbext.axi import AxiResp, AxiStreamBus, AxiStreamSink, AxiStreamSource

from nomul.compiler import Program
from nomul.driver import StreamDevice
from nomul.random_cases import Case
from nomul_hw.bus.axi_stream import weight_beat_bits
from nomul_hw.bus.registers import STREAM
from nomul_hw.config import ArrayConfig
from nomul_hw.descriptor import HOST_BITS, Opcode, Target

from .. import golden
from .accelerator import find_case
from .bus import RegisterAccess, Trace, pauses, reset, start_clock
from .runner import BENCH_CONFIG

CONFIG = ArrayConfig.from_dict(json.loads(os.environ[BENCH_CONFIG]))
Words = npt.NDArray[np.uint32]
