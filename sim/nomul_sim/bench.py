"""How long the generated hardware takes to elaborate, to build and to simulate on this machine.

    python -m nomul_sim.bench
    python -m nomul_sim.bench --config examples/ternary_16x16.toml --json
    python -m nomul_sim.bench --estimate resnet50

Everything cold is done in a cache folder of its own, in a process of its own.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from nomul.compiler import CompileError, compile_graph
from nomul.estimate import estimate_network
from nomul.frontend import UnsupportedError
from nomul.graph import Conv, Graph, Tensor
from nomul.inputs import InputError, load_shape
from nomul.scalesim import TopologyError
from nomul_hw.arithmetic import act_range, nearest_gain
from nomul_hw.config import ArrayConfig, ConfigError, load_config

from . import golden
from .build import BuildError, Optimize, compiler_name, find_compiler
from .verilated import VerilatedDevice, accelerator_verilog

__all__ = ["Measurement", "conv_graph", "machine", "measure", "measure_estimate"]

_COLD = """
import sys, time
started = time.perf_counter()
from nomul_hw.config import ArrayConfig
from nomul_sim.verilated import accelerator_library, accelerator_verilog
import json
config = ArrayConfig.from_dict(json.loads(sys.argv[1]))
accelerator_verilog(config)
elaborated = time.perf_counter()
accelerator_library(config, optimize=sys.argv[2])
print(elaborated - started, time.perf_counter() - elaborated)
"""


@dataclass(frozen=True)
class Measurement:
    """What :func:`measure` found. Times are wall seconds.

    Attributes
    ----------
    config : str
        Name of the configuration.
    elaborate_s : float
        From starting to import Amaranth to the Verilog text.
    verilog_lines : int
        Length of that text.
    build_cold_s : float
        From the Verilog text to the simulator, Verilator's run-time library included.
    build_cached_s : float
        From the configuration to a device that answers, when both are in the cache.
    layer : str
        What was simulated.
    layer_cycles : int
        Cycles of one run of it.
    cycles : int
        Clock cycles simulated, those of the host's transfers included.
    cycles_per_s, cycles_per_cpu_s : float
        Simulated clock cycles by wall time and by processor time, on one thread.
    macs_per_s : float
        Multiply-accumulates of the layer, by wall time.
    """

    config: str
    elaborate_s: float
    verilog_lines: int
    build_cold_s: float
    build_cached_s: float
    layer: str
    layer_cycles: int
    cycles: int
    cycles_per_s: float
    cycles_per_cpu_s: float
    macs_per_s: float


def machine() -> dict[str, str | int]:
    """Describe the machine: processor, cores, system, compiler, versions."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return {
        "processor": model,
        "cores": os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.machine()}",
        "compiler": compiler_name(find_compiler()),
        "python": platform.python_version(),
        "amaranth": metadata.version("amaranth"),
        "verilator": metadata.version("verilator"),
    }


def conv_graph(config: ArrayConfig, *, channels: int = 64, size: int = 16) -> Graph:
    """Make a convolution, 3x3 with padding, of as many output as input channels, with random weights."""
    rng = np.random.default_rng(0)
    low, high = act_range(config.act_bits)
    weights = rng.choice(config.format.levels, (channels, channels, 3, 3)).astype(np.int32)
    spread = (high - low) * float(np.std(weights)) * np.sqrt(9 * channels)
    gain = nearest_gain((high - low) / spread, terms=config.gain_terms, max_shift=config.max_gain_shift)
    zeros, ones = np.zeros(channels, dtype=np.int64), np.ones(channels, dtype=np.int64)
    node = Conv(name="conv", input="x", output="y", kernel=(3, 3), stride=(1, 1), padding=(1, 1, 1, 1),
                dilation=(1, 1), bias=zeros, multiplier=ones * gain.multiplier, shift=ones * gain.shift,
                low=low, high=high, weights=weights)
    tensors = (Tensor("x", channels, size, size, 0, 0), Tensor("y", channels, size, size, 0, 0))
    return Graph(config.format, config.act_bits, config.gain_terms, tensors, (node,), "x", "y", tensors[1].shape)


def _cold(config: ArrayConfig, optimize: Optimize) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, "-c", _COLD, json.dumps(config.to_dict()), optimize], text=True,
                              env={**os.environ, "NOMUL_CACHE": folder, "PYTHONPATH": os.pathsep.join(sys.path)},
                              stdout=subprocess.PIPE, check=True)
    elaborate, build = map(float, done.stdout.split())
    return elaborate, build


def measure(config: ArrayConfig, *, optimize: Optimize = "run", seconds: float = 5.0) -> Measurement:
    """Measure a configuration; the simulation runs for about ``seconds``.

    Raises
    ------
    BuildError
        If the simulator cannot be built.
    CompileError
        If the layer does not fit the configuration's memories.
    """
    graph = conv_graph(config)
    program = compile_graph(graph, config)
    elaborate, cold = _cold(config, optimize)
    VerilatedDevice(config, optimize=optimize)  # now it is in the user's cache
    started = time.perf_counter()
    device = VerilatedDevice(config, optimize=optimize)
    cached = time.perf_counter() - started

    low, high = act_range(config.act_bits)
    codes = np.random.default_rng(1).integers(low, high, (1, *graph.tensor("x").shape), dtype=np.int8, endpoint=True)
    result = device.run(program, codes)
    if not np.array_equal(result.outputs, golden.run(graph, codes)["y"]):
        raise AssertionError("the simulated layer differs from the golden model: what it costs does not matter")
    runs, before = 0, device.transport.cycles
    started, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - started < seconds:
        device.run(program, codes)
        runs += 1
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    cycles = device.transport.cycles - before
    source, target = graph.tensor("x"), graph.tensor("y")
    return Measurement(
        config=config.name, elaborate_s=elaborate, verilog_lines=accelerator_verilog(config).count("\n"),
        build_cold_s=cold, build_cached_s=cached,
        layer=f"conv 3x3, {source.shape} -> {target.shape}", layer_cycles=result.counters[0]["total"], cycles=cycles,
        cycles_per_s=cycles / wall, cycles_per_cpu_s=cycles / cpu,
        macs_per_s=runs * program.estimate().macs / wall,
    )


def measure_estimate(network: str, config: ArrayConfig, *, runs: int = 50) -> dict[str, Any]:
    """Measure how long the estimate of a network takes once its shapes are known: the quickest of some runs.

    Parameters
    ----------
    network : str
        As in :func:`nomul.inputs.load_shape`.
    """
    shape, times = load_shape(network), list[float]()
    for _ in range(runs):
        started = time.perf_counter()
        found = estimate_network(shape, config, fit=False)
        times.append(1e3 * (time.perf_counter() - started))
    return {"network": network, "config": config.name, "layers": len(found.layers), "cycles": found.cycles,
            "utilisation": found.utilisation, "estimate_ms": min(times)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m nomul_sim.bench",
                                     description="Time elaboration, build and simulation of an accelerator.")
    parser.add_argument("--config", help="a configuration in TOML (default: exp4, 16x16)")
    parser.add_argument("--optimize", choices=["build", "run"], default="run",
                        help="what the simulator is compiled to be quick at (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of the simulation (default: %(default)s)")
    parser.add_argument("--estimate", metavar="NETWORK",
                        help="time the estimate of a network instead: of the zoo, a module or a table of layers")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args(arguments)
    try:
        config = load_config(chosen.config) if chosen.config else ArrayConfig("exp4")  # type: ignore[arg-type]
        if chosen.estimate:
            estimate = measure_estimate(chosen.estimate, config)
            print(json.dumps({"machine": machine(), **estimate}, indent=2) if chosen.json else
                  "{network} on {config}: {layers} layers, {cycles:,} cycles, utilisation {utilisation:.1%}; "
                  "counted in {estimate_ms:.1f} ms".format(**estimate))
            return 0
        found = measure(config, optimize=chosen.optimize, seconds=chosen.seconds)
    except (ConfigError, CompileError, BuildError, InputError, TopologyError, UnsupportedError) as error:
        print(error, file=sys.stderr)
        return 2
    if chosen.json:
        print(json.dumps({"machine": machine(), "optimize": chosen.optimize, **asdict(found)}, indent=2))
        return 0
    for name, value in machine().items():
        print(f"{name:10} {value}")
    print(f"{found.config}, simulator compiled to be quick to {chosen.optimize}")
    print(f"  Verilog, cold start     {found.elaborate_s:9.1f} s   ({found.verilog_lines} lines)")
    print(f"  simulator, cold         {found.build_cold_s:9.1f} s")
    print(f"  both from the cache     {found.build_cached_s:9.2f} s")
    print(f"  {found.layer}: {found.layer_cycles} cycles")
    print(f"  simulated cycles per s  {found.cycles_per_s:9.0f}     "
          f"(one thread; {found.cycles_per_cpu_s:.0f} per CPU s)")
    print(f"  simulated MAC per s     {found.macs_per_s:9.3g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
