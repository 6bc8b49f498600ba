"""The whole path in one run: train, quantize, compile, verify on RTL, for several weight formats on one array.

Every format runs the same network on the same images. What takes long is kept for the next time: the trained weights
and the simulators, each under the hash of what it was made from.
"""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nomul_hw.config import ArrayConfig, ConfigError
from nomul_hw.formats import get_format
from nomul_sim import golden
from nomul_sim.cache import cached, content_hash
from nomul_sim.verilated import VerilatedDevice, accelerator_library, accelerator_verilog

from . import digits
from .compiler import Program, compile_graph
from .driver import Codes
from .frontend import import_module
from .inputs import InputError, parse_shape
from .quantize import QuantizeConfig, quantize_graph
from .report import json_text, plot_demo
from .verify import Verification, verify

if TYPE_CHECKING:
    from torch import nn

__all__ = ["CALIBRATION_IMAGES", "DEFAULT_FORMATS", "MULTIPLIER", "RTL_IMAGES", "DemoResult", "Row", "parse_shape",
           "run_demo"]

#: What the demo compares; the last one is the baseline with multipliers.
DEFAULT_FORMATS = ("ternary", "pot3", "exp4", "int4", "int8_multiplier")

#: Ending of a name that asks for the array with multipliers.
MULTIPLIER = "_multiplier"

#: Images of the training split that the quantizer sees.
CALIBRATION_IMAGES = 256

#: Images that run on RTL unless told otherwise: seconds per format.
RTL_IMAGES = 128

#: Simulators that are built at a time; a build takes about one core and 600 MB.
_BUILDERS = 2


@dataclass(frozen=True)
class Row:
    """One format's results.

    Parameters
    ----------
    name : str
        What was asked for, such as ``ternary`` or ``int8_multiplier``.
    config : ArrayConfig
        The accelerator.
    float_accuracy, quantized_accuracy : float
        Share of the test split that is recognized, 0..1: by the float network, and by the golden model.
    verification : Verification
        RTL against golden model and estimate.
    utilisation : float
        Share of the array's products that the network needs, 0..1.
    verilog : Path
        The Verilog that was simulated.
    """

    name: str
    config: ArrayConfig
    float_accuracy: float
    quantized_accuracy: float
    verification: Verification
    utilisation: float
    verilog: Path

    @property
    def baseline(self) -> bool:
        """Whether the array has multipliers."""
        return self.config.pe == "multiplier"

    @property
    def label(self) -> str:
        """Name for people."""
        return self.name.replace("_", " ")

    @property
    def bits_per_weight(self) -> int:
        """Bits of a stored weight."""
        return self.config.format.bits

    @property
    def images(self) -> int:
        """Images that ran on RTL."""
        return self.verification.images

    @property
    def mismatches(self) -> int:
        """Output bits of the RTL that differ from the golden model's, over all images."""
        return self.verification.mismatches

    @property
    def rtl_cycles(self) -> int:
        """Cycles of an image on RTL; where they differ between images, those furthest from the estimate."""
        return max(self.verification.cycles, key=lambda cycles: abs(cycles - self.estimated_cycles))

    @property
    def estimated_cycles(self) -> int:
        """Cycles of an image by the estimate."""
        return self.verification.estimated_cycles

    @property
    def ok(self) -> bool:
        """Whether RTL, golden model and estimate agree entirely."""
        return self.verification.ok

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {
            "array": self.config.name,
            "bits_per_weight": self.bits_per_weight,
            "float_accuracy": self.float_accuracy,
            "quantized_accuracy": self.quantized_accuracy,
            "images": self.images,
            "mismatches": self.mismatches,
            "rtl_cycles": self.rtl_cycles,
            "estimated_cycles": self.estimated_cycles,
            "cycle_differences": self.verification.cycle_differences,
            "accounting": dict(self.verification.accounting),
            "utilisation": self.utilisation,
            "verilog": str(self.verilog),
            "ok": self.ok,
        }


@dataclass(frozen=True)
class DemoResult:
    """All rows, and the picture of them."""

    rows: tuple[Row, ...]
    test_images: int
    seed: int
    plot: Path

    @property
    def ok(self) -> bool:
        """Whether every row is."""
        return all(row.ok for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``: per format, by name."""
        return {
            "ok": self.ok,
            "seed": self.seed,
            "test_images": self.test_images,
            "plot": str(self.plot),
            "formats": {row.name: row.to_dict() for row in self.rows},
        }


def _configs(base: ArrayConfig, formats: Sequence[str]) -> dict[str, ArrayConfig]:
    configs = {}
    for name in formats:
        try:
            fmt = base.format if name == base.format.name else get_format(name.removesuffix(MULTIPLIER))
        except ValueError as error:
            raise ConfigError(f"{error}; with multipliers: int4{MULTIPLIER}, int8{MULTIPLIER}") from None
        configs[name] = replace(base, format=fmt, pe="multiplier" if name.endswith(MULTIPLIER) else "shift")
    return configs


def _trained(seed: int) -> "nn.Module":
    """Train the network, or take the weights of the last time."""
    import torch
    from safetensors.torch import load_file, save_file

    def make(path: Path) -> None:
        save_file(digits.train(seed).state_dict(), path)

    key = content_hash(str(seed), torch.__version__, Path(digits.__file__).read_bytes())
    model = digits.build_model()
    model.load_state_dict(load_file(cached("digits", f"{key}.safetensors", make)))
    return model.eval()


def _float_accuracy(model: "nn.Module", data: digits.Digits) -> float:
    import torch

    with torch.no_grad():
        classes = model(torch.from_numpy(data.test_x)).argmax(dim=1).numpy()
    return float(np.mean(classes == data.test_y))


def run_demo(
    base: ArrayConfig,
    formats: Sequence[str] = DEFAULT_FORMATS,
    *,
    output: Path,
    images: int = RTL_IMAGES,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> DemoResult:
    """Train on handwritten digits, then quantize, compile and verify on RTL, once per format.

    Parameters
    ----------
    base : ArrayConfig
        The array; its format and kind of element are replaced by each of ``formats``.
    formats : sequence of str
        Names of weight formats; with the ending ``_multiplier`` on an array of multipliers.
    output : Path
        Folder for the Verilog, the picture and ``results.json``.
    images : int
        Images of the test split that run on RTL; the golden model runs all of them.
    seed : int
        Of the training.
    progress : callable, optional
        Called with what is done next.

    Raises
    ------
    ConfigError
        If a format does not exist or does not fit the array.
    InputError
        If there are not so many images, or the folder cannot be written.
    """
    tell = progress or (lambda _: None)
    existing = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"{existing}: is not a folder that can be written")
    configs = _configs(base, formats)
    data = digits.load()
    if not 1 <= images <= len(data.test_x):
        raise InputError(f"the test split has {len(data.test_x)} images, {images} of them cannot be run")

    # A fresh interpreter per builder: this one will have torch's threads, which do not survive a fork.
    builders = ProcessPoolExecutor(min(_BUILDERS, len(configs)), multiprocessing.get_context("spawn"))
    # One format runs on RTL, outside Python, while the next one is quantized.
    runners = ThreadPoolExecutor(1)
    try:
        simulators = {name: builders.submit(accelerator_library, config) for name, config in configs.items()}
        tell("train the network; meanwhile build the simulators")
        model = _trained(seed)
        float_accuracy = _float_accuracy(model, data)
        network = import_module(model, data.train_x[:2])
        pending = []
        for name, config in configs.items():
            tell(f"{name}: quantize and compile")
            graph = quantize_graph(network, data.train_x[:CALIBRATION_IMAGES], QuantizeConfig(
                config.format, act_bits=config.act_bits, gain_terms=config.gain_terms, acc_bits=config.acc_bits))
            program = compile_graph(graph, config)
            codes = graph.quantize_input(data.test_x)
            classes = golden.run(graph, codes)[graph.output].reshape(len(codes), -1).argmax(axis=1)
            checked = runners.submit(_verified, name, program, codes[:images], simulators[name], tell)
            pending.append((name, program, float(np.mean(classes == data.test_y)), checked))
        rows = tuple(
            Row(name, program.config, float_accuracy, accuracy, checked.result(), program.estimate().utilisation,
                _write_verilog(program.config, output))
            for name, program, accuracy, checked in pending
        )
    finally:  # after a failure the message comes first, then the end of what is being built
        runners.shutdown(wait=False, cancel_futures=True)
        builders.shutdown(wait=False, cancel_futures=True)
    plot = output / "demo.png"
    lanes = f" of {base.lanes} lanes" if base.lanes > 1 else ""
    plot_demo(rows, plot, title=f"Handwritten digits on {base.rows} x {base.cols} processing elements{lanes}")
    result = DemoResult(rows, len(data.test_x), seed, plot)
    (output / "results.json").write_text(json_text(result.to_dict()), encoding="utf-8")
    return result


def _verified(name: str, program: Program, codes: Codes, simulator: "Future[Path]", tell: Callable[[str], None]
              ) -> Verification:
    """Verify a program on RTL once its simulator is built."""
    if not simulator.done():
        tell(f"{name}: wait for the simulator")
    simulator.result()
    tell(f"{name}: run {len(codes)} images on RTL")
    return verify(program, codes, VerilatedDevice(program.config))


def _write_verilog(config: ArrayConfig, output: Path) -> Path:
    """Write the Verilog that was simulated to the output folder."""
    path = output / "verilog" / f"{config.name}.v"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(accelerator_verilog(config), encoding="utf-8")
    return path
