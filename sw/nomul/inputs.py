"""What a user hands to a command: a model by name, arrays by file. Every fault is one sentence that names it.

The command line is the only caller; the functions are here so that they can be tested, and used, without it.
"""

import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from nomul_hw.config import ConfigError

if TYPE_CHECKING:
    import torch

    from .graph import Graph
    from .shapes import NetworkShape

__all__ = ["InputError", "graph_codes", "load_array", "load_model", "load_shape", "parse_clock", "parse_shape",
           "random_codes", "save_array", "save_text"]


class InputError(ValueError):
    """A model or an array that a command cannot use."""


def load_array(path: str | Path) -> npt.NDArray[Any]:
    """Read an array of numbers from a ``.npy`` file.

    Raises
    ------
    InputError
        If the file cannot be read, is not in NumPy's format, or holds something else than finite numbers.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path}: not a NumPy array file (.npy) of numbers: {error}") from None
    if array.dtype.kind not in "iuf":
        raise InputError(f"{path}: an array of numbers is needed, not of {array.dtype}")
    if not np.isfinite(array).all():
        raise InputError(f"{path}: the array has values that are not finite numbers")
    return array


def save_array(path: str | Path, array: npt.NDArray[Any]) -> None:
    """Write an array to a ``.npy`` file, whole or not at all; its folder is made if it does not exist.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    _save(Path(path), lambda file: np.lib.format.write_array(file, array, allow_pickle=False))


def save_text(path: str | Path, text: str) -> None:
    """Write a text file as :func:`save_array` writes an array."""
    _save(Path(path), lambda file: file.write(text.encode()))


def _save(path: Path, write: Callable[[BinaryIO], object]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            write(file)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise InputError(f"{path}: {error.strerror}") from None


def graph_codes(graph: "Graph", array: npt.NDArray[Any], *, source: str) -> npt.NDArray[np.int8]:
    """Turn an array into a batch of a graph's input codes.

    Parameters
    ----------
    array : float, uint8 or int8 array, shape (batch, channels, height, width) or (channels, height, width)
        int8 is taken as codes; every other type as real values, which the graph quantizes.
    source : str
        What the message calls the array.

    Returns
    -------
    int8 array, shape (batch, channels, height, width)

    Raises
    ------
    InputError
        If the shape is not that of the graph's input, or codes are out of range.
    """
    shape = graph.tensor(graph.input).shape
    batch = array[np.newaxis] if array.shape == shape else array
    if batch.ndim != 4 or batch.shape[1:] != shape or not len(batch):
        raise InputError(f"{source}: the network's input has the shape (batch, {', '.join(map(str, shape))}), "
                         f"the array {array.shape}")
    if batch.dtype != np.int8:
        return graph.quantize_input(batch)
    low, high = -(1 << (graph.act_bits - 1)), (1 << (graph.act_bits - 1)) - 1
    if batch.min() < low or batch.max() > high:
        raise InputError(f"{source}: codes of {graph.act_bits} bits lie in {low}..{high}, "
                         f"the array's in {batch.min()}..{batch.max()}")
    return batch


def random_codes(graph: "Graph", images: int, seed: int) -> npt.NDArray[np.int8]:
    """Make random input codes, shape (images, channels, height, width), int8: the extremes as often as all others."""
    rng = np.random.default_rng(seed)
    low, high = -(1 << (graph.act_bits - 1)), (1 << (graph.act_bits - 1)) - 1
    shape = (images, *graph.tensor(graph.input).shape)
    codes = rng.integers(low, high, size=shape, endpoint=True)
    extremes = rng.choice([low, high], size=shape)
    return np.where(rng.random(shape) < 0.5, codes, extremes).astype(np.int8)


def _load_module(name: str) -> ModuleType:
    """Import ``path/to/file.py`` or ``package.module``."""
    if not name.endswith(".py"):
        if (cwd := str(Path.cwd())) not in sys.path:
            sys.path.insert(0, cwd)  # as `python -m` does; a console script lacks it
        return importlib.import_module(name)
    path = Path(name).resolve()
    if not path.is_file():
        raise InputError(f"{name}: No such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses and pickles look their module up
    sys.path.insert(0, str(path.parent))  # its neighbours, as if it were run
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def _blame(what: str, error: Exception) -> InputError:
    """Describe an exception in a user's own code: what it said, and the line that raised it."""
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, SyntaxError):  # names its own line, and was raised by no line of the user's
        return InputError(f"{what}: {said}")
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return InputError(f"{what}: {said} ({frame.filename}, line {frame.lineno})")


def load_model(spec: str, weights: str | Path | None = None) -> "torch.nn.Module":
    """Make the module that ``file.py:callable`` or ``package.module:callable`` names, in evaluation mode.

    Parameters
    ----------
    spec : str
        Where the callable is. Without arguments it returns a ``torch.nn.Module``: a function or the class itself. A
        module object is taken as it is.
    weights : path, optional
        A ``.safetensors`` file with the module's state dictionary.

    Raises
    ------
    InputError
        If there is no such callable, if it fails, returns something else, or the weights do not fit.
    """
    import torch

    where, colon, name = spec.rpartition(":")
    if not colon or not where or not name.isidentifier():
        raise InputError(f"a model is named as path/to/file.py:callable or package.module:callable, not {spec!r}")
    try:
        module = _load_module(where)
    except InputError:
        raise
    except ModuleNotFoundError as error:
        if error.name and (where == error.name or where.startswith(f"{error.name}.")):
            raise InputError(f"{where}: no such module; a file is named with its .py") from None
        raise _blame(where, error) from None
    except Exception as error:
        raise _blame(where, error) from None
    if not hasattr(module, name):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")
                 and getattr(value, "__module__", None) == module.__name__]
        raise InputError(f"{where} has no {name!r}" + (f"; it has {', '.join(known)}" if known else ""))
    made = getattr(module, name)
    if not isinstance(made, torch.nn.Module):
        if not callable(made):
            raise InputError(f"{spec} is of type {type(made).__name__}, not something that returns a torch.nn.Module")
        try:
            inspect.signature(made).bind()
        except TypeError as error:
            raise InputError(f"{spec} cannot be called without arguments: {error}") from None
        try:
            made = made()
        except Exception as error:
            raise _blame(spec, error) from None
    if not isinstance(made, torch.nn.Module):
        raise InputError(f"{spec} returned something of type {type(made).__name__}, not a torch.nn.Module")
    if weights is not None:
        _load_weights(made, Path(weights))
    return made.eval()


def _load_weights(model: "torch.nn.Module", path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        model.load_state_dict(load_file(path))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except SafetensorError as error:
        raise InputError(f"{path}: not a safetensors file: {error}") from None
    except RuntimeError as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from None


def parse_shape(text: str) -> tuple[int, int, int]:
    """Read ``ROWSxCOLS`` or ``ROWSxLANESxCOLS``: (rows, lanes, cols).

    Raises
    ------
    ConfigError
        If it is neither.
    """
    sizes = text.split("x")
    if len(sizes) not in (2, 3) or not all(size.isdecimal() for size in sizes):
        raise ConfigError(f"an array is ROWSxCOLS or ROWSxLANESxCOLS, such as 16x16 or 8x2x16, not {text!r}")
    rows, *lanes, cols = map(int, sizes)
    return rows, (lanes or [1])[0], cols


def parse_clock(text: str) -> float:
    """Read a clock such as ``50MHz``, ``12.5 MHz`` or ``50``: megahertz.

    Raises
    ------
    InputError
        If it is none, or not positive.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kMG]?)(?:Hz)?", text.strip(), re.IGNORECASE)
    megahertz = float(found[1]) * {"k": 1e-3, "g": 1e3}.get(found[2].lower(), 1.0) if found else 0.0
    if not megahertz:
        raise InputError(f"a clock is a frequency such as 50MHz, or a number of megahertz, not {text!r}")
    return megahertz


def load_shape(spec: str, input_shape: str | None = None) -> "NetworkShape":
    """Find out the shapes of a network that is not quantized.

    Parameters
    ----------
    spec : str
        A table of layers (``.csv``), a network of :data:`nomul.zoo.MODELS`, or a module as in :func:`load_model`.
    input_shape : str, optional
        Shape of one sample such as ``3x32x32``; a module that has an ``input_shape`` needs none.

    Raises
    ------
    InputError
        If there is no such network, or the shape of its input is not known.
    """
    from .scalesim import load_topology
    from .shapes import network_shape

    if spec.endswith(".csv"):
        return load_topology(spec)

    from .frontend import import_module
    from .zoo import MODELS

    if ":" not in spec and spec not in MODELS:
        raise InputError(f"{spec!r} is not a folder that nomul wrote, a table of layers (.csv), a module "
                         f"(path/to/file.py:callable) or a network of the zoo ({', '.join(MODELS)})")
    module = MODELS[spec]() if spec in MODELS else load_model(spec)
    if input_shape is not None:
        sizes = input_shape.split("x")
        if not 1 <= len(sizes) <= 3 or not all(size.isdecimal() and int(size) for size in sizes):
            raise InputError(f"the shape of an input is CHANNELSxHEIGHTxWIDTH, such as 3x32x32, not {input_shape!r}")
        shape = tuple(map(int, sizes))
    elif isinstance(known := getattr(module, "input_shape", None), tuple):
        shape = known
    else:
        raise InputError(f"{spec}: the shape of its input is not known: give --input-shape, such as 3x32x32")
    # Two samples, so that a reshape that mixes them cannot pass for one that does not.
    return network_shape(import_module(module, np.zeros((2, *shape), dtype=np.float32)))
