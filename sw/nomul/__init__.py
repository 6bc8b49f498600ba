"""From a PyTorch network to a multiplier-free accelerator, exact to the bit and to the cycle.

    graph = nomul.quantize(model, calibration, format="ternary").graph   # needs nomul[torch]
    program = nomul.compile(graph, nomul.load_config("array.toml"))
    print(program.estimate().cycles)
    device = nomul.VerilatedDevice(program.config)                   # needs nomul[sim]
    outputs = device.run(program, graph.quantize_input(x)).outputs

Names are imported when they are first used, so that ``import nomul`` is quick and needs no optional package.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nomul_hw.config import ArrayConfig, ConfigError, MemoryConfig, load_config
    from nomul_hw.formats import FORMATS, WeightFormat
    from nomul_sim.devices import GoldenDevice
    from nomul_sim.verilated import VerilatedDevice

    from .compiler import CompileError, Program
    from .compiler import compile_network as compile
    from .driver import DeviceError, RunResult
    from .estimate import Estimate, estimate
    from .files import FileFormatError, load_graph, load_program, save_graph, save_program
    from .frontend import UnsupportedError
    from .graph import Graph, GraphError
    from .quantize import QuantizeConfig, QuantizedNetwork, QuantizeError, quantize, quantize_graph
    from .schedule import Schedule
    from .verify import Verification, verify
    from .wire import SerialDevice

__version__ = "0.1.0"

#: Where every public name lives.
_HOME = {
    name: module
    for module, names in {
        "nomul.compiler": ("CompileError", "Program", "compile"),
        "nomul.driver": ("DeviceError", "RunResult"),
        "nomul.estimate": ("Estimate", "estimate"),
        "nomul.files": ("FileFormatError", "load_graph", "load_program", "save_graph", "save_program"),
        "nomul.frontend": ("UnsupportedError",),
        "nomul.graph": ("Graph", "GraphError"),
        "nomul.schedule": ("Schedule",),
        "nomul.quantize": ("QuantizeConfig", "QuantizeError", "QuantizedNetwork", "quantize", "quantize_graph"),
        "nomul.verify": ("Verification", "verify"),
        "nomul.wire": ("SerialDevice",),
        "nomul_hw.config": ("ArrayConfig", "ConfigError", "MemoryConfig", "load_config"),
        "nomul_hw.formats": ("FORMATS", "WeightFormat"),
        "nomul_sim.devices": ("GoldenDevice",),
        "nomul_sim.verilated": ("VerilatedDevice",),
    }.items()
    for name in names
}

#: Public names that would hide a built-in function in their own module.
_RENAMED = {"compile": "compile_network"}

__all__ = [
    "FORMATS", "ArrayConfig", "CompileError", "ConfigError", "DeviceError", "Estimate", "FileFormatError",
    "GoldenDevice", "Graph", "GraphError", "MemoryConfig", "Program", "QuantizeConfig", "QuantizeError",
    "QuantizedNetwork", "RunResult", "Schedule", "SerialDevice", "UnsupportedError", "Verification", "VerilatedDevice",
    "WeightFormat", "__version__", "compile", "estimate", "load_config", "load_graph", "load_program", "quantize",
    "quantize_graph", "save_graph", "save_program", "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), _RENAMED.get(name, name))
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


class _Package(ModuleType):
    """This package, in which ``nomul.estimate`` stays the function when the module of that name is imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
