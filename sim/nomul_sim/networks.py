"""Networks of the zoo, whole on the Verilated RTL: all bits of all layers and all cycles are compared.

    python -m nomul_sim.networks ds_cnn mobilenet_v1_025 --format exp4 --array 4x4x16
    python -m nomul_sim.networks resnet18 --format exp4 --array 4x4x16 --stream

The networks have seeded weights and are quantized after one look at a few seeded inputs: what they compute means
nothing, what is compared is everything. The array gets the memories that the networks need.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from nomul.compiler import CompileError, compile_graph, fitted
from nomul.graph import Graph
from nomul.inputs import InputError, parse_shape
from nomul.quantize import QuantizeError, quantize_graph
from nomul.shapes import network_shape
from nomul.verify import Verification, verify
from nomul.zoo import MODELS, samples
from nomul_hw.config import ArrayConfig, ConfigError, MemoryConfig

from .build import BuildError
from .verilated import VerilatedDevice

__all__ = ["NetworkRun", "common_config", "main", "quantized", "run_network"]

#: Words of the buffer in front of an array whose weights are streamed, in tiles.
STREAM_TILES = 4


@dataclass(frozen=True)
class NetworkRun:
    """One network on one array.

    Parameters
    ----------
    network, format : str
        Name in the zoo, and of its weights' format.
    config : ArrayConfig
        The array.
    macs : int
        Multiply-accumulates of a sample.
    verification : Verification
        What the comparison found.
    build_s, run_s : float
        Seconds to build or find the simulator, and for all runs on it, golden model included.
    """

    network: str
    format: str
    config: ArrayConfig
    macs: int
    verification: Verification
    build_s: float
    run_s: float

    @property
    def utilisation(self) -> float:
        """Share of the array's products that the network needed, 0..1."""
        return self.macs / (self.verification.cycles[0] * self.config.macs_per_cycle)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {"network": self.network, "format": self.format, "array": self.config.name,
                "memory": vars(self.config.memory), "utilisation": self.utilisation, "build_s": self.build_s,
                "run_s": self.run_s, **self.verification.to_dict()}


def quantized(network: str, fmt: str, *, seed: int = 0, count: int = 2) -> Graph:
    """Quantize a network of the zoo with seeded weights, after ``count`` seeded inputs."""
    model = MODELS[network](seed=seed)
    return quantize_graph(model, samples(model.input_shape, count, seed=seed), format=fmt, method="nearest")


def run_network(network: str, graph: Graph, config: ArrayConfig, *, images: int = 1, layers: bool = True,
                seed: int = 1) -> NetworkRun:
    """Run a graph on the RTL of an array, and compare it with golden model and estimate.

    Parameters
    ----------
    images : int
        Samples to run whole.
    layers : bool
        Whether one of them runs layer by layer too.

    Raises
    ------
    CompileError, BuildError
        If the array cannot run the network, or the simulator cannot be built.
    """
    program = compile_graph(graph, config)
    started = time.perf_counter()
    device = VerilatedDevice(config, optimize="run" if program.estimate().cycles > 1_000_000 else "build")
    built = time.perf_counter()
    x = samples(graph.tensor(graph.input).shape, images, seed=seed)
    result = verify(program, graph.quantize_input(x.numpy()), device, layers=layers)
    return NetworkRun(network, graph.format.name, config, program.estimate().macs, result, built - started,
                      time.perf_counter() - built)


def common_config(graphs: Iterable[Graph], config: ArrayConfig) -> ArrayConfig:
    """Give an array memories that hold any one of these graphs.

    Of the configuration's own memories only the buffer of an array whose weights are streamed counts.
    """
    memories = [fitted(network_shape(graph), config).memory for graph in graphs]
    return replace(config, memory=MemoryConfig(**{
        field.name: max(getattr(memory, field.name) for memory in memories) for field in fields(MemoryConfig)}))


def _line(run: NetworkRun) -> str:
    check = run.verification
    verdict = "every bit and cycle equal" if check.ok else f"DIFFERS: {check.first or 'in its cycles'}"
    return (f"{run.network} ({run.format}) on {run.config.name}: {check.cycles[0]:,} cycles = estimate "
            f"{check.estimated_cycles:,}, utilisation {run.utilisation:.1%}; {len(check.layers)} layers, {verdict}; "
            f"simulator {run.build_s:.0f} s, runs {run.run_s:.0f} s")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 1 if anything differs, 2 for a mistake."""
    parser = argparse.ArgumentParser(prog="python -m nomul_sim.networks", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("networks", nargs="+", choices=sorted(MODELS), metavar="NETWORK",
                        help=f"of the zoo: {', '.join(MODELS)}")
    parser.add_argument("--format", action="append", help="weights of array and network; again for more "
                                                          "(default: exp4)")
    parser.add_argument("--array", default="4x4x16", help="ROWSxCOLS or ROWSxLANESxCOLS (default: %(default)s)")
    parser.add_argument("--array-format", help="format of the array, where it is another: the network runs as planes")
    parser.add_argument("--stream", action="store_true", help="stream the weights instead of keeping them")
    parser.add_argument("--no-layers", action="store_true", help="run whole only, not layer by layer too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    runs = []
    try:
        rows, lanes, cols = parse_shape(options.array)
        for fmt in options.format or ["exp4"]:
            config = ArrayConfig(options.array_format or fmt, rows, cols, lanes)
            if options.stream:
                config = replace(config, weights="stream", memory=MemoryConfig(weights=STREAM_TILES * rows))
            graphs = {network: quantized(network, fmt) for network in options.networks}
            config = common_config(graphs.values(), config)
            for network, graph in graphs.items():
                runs.append(run_network(network, graph, config, layers=not options.no_layers))
                if not options.json:
                    print(_line(runs[-1]), flush=True)
    except (BuildError, CompileError, ConfigError, InputError, QuantizeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps([run.to_dict() for run in runs]))
    return 0 if all(run.verification.ok for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
