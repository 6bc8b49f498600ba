"""What a user hands to a command: a model by name, arrays by file. Every fault is one sentence that names it.

The command line is the only caller; the functions are here so that they can be tested, and used, without it.
"""

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

    from .graph import Graph

__all__ = ["InputError", "graph_codes", "load_array", "load_model", "random_codes", "save_array"]


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
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.lib.format.write_array(file, array, allow_pickle=False)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
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
