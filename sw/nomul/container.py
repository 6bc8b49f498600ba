"""Folders that load to exactly what was saved, or not at all: the container of graphs and programs.

A folder holds a JSON document with everything that is small (sorted keys, integers and strings only, so that the same
input gives the same bytes) and a safetensors file with the arrays (integers only). Nothing is pickled. The document
carries its own SHA-256 and that of every array, with its type and shape. Folders are written beside their final place
and moved there when complete.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

__all__ = ["Arrays", "FileFormatError", "Layout", "Record", "integers", "read", "replace_folder", "sign", "write"]

#: Major version: readers refuse a newer one. Minor version: additions that a reader may ignore.
#: Version 2 added residuals, groups, formats per layer and concatenation; what version 1 could say still holds.
VERSION = (2, 0)

Json = Any
Arrays = dict[str, npt.NDArray[Any]]

#: safetensors' names of the types that files may hold.
_DTYPES = {"I8": "int8", "U8": "uint8", "I16": "int16", "U16": "uint16", "I32": "int32", "U32": "uint32",
           "I64": "int64", "U64": "uint64"}


class FileFormatError(ValueError):
    """A file that cannot be read or written; the message starts with its path."""


@dataclass(frozen=True)
class Layout:
    """One kind of folder.

    Parameters
    ----------
    kind : str
        What the document's ``format`` says.
    document, arrays : str
        File names.
    subfolders : dict of str to Layout
        Folders within the folder.
    """

    kind: str
    document: str
    arrays: str
    subfolders: Mapping[str, "Layout"]


# Folders --------------------------------------------------------------------------------------------------------

def replace_folder(path: Path, layout: Layout, fill: Callable[[Path], object]) -> None:
    """Make a folder by ``fill`` beside ``path``, then move it there in place of an older one of its kind.

    Raises
    ------
    FileFormatError
        If that fails, or if ``path`` holds anything that such a folder does not; what was there stays as it was.
    """
    try:
        target = path.resolve()  # A link stays a link: what it points at is replaced.
        _check_replaceable(path, target, layout)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        target.parent.mkdir(parents=True, exist_ok=True)
        _replace(target, temporary, fill)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links.
        raise FileFormatError(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}") from None


def _replace(target: Path, temporary: Path, fill: Callable[[Path], object]) -> None:
    old = temporary.with_suffix(".old")
    try:
        temporary.mkdir()
        fill(temporary)
        if target.exists():
            target.rename(old)
        try:
            temporary.rename(target)
        except BaseException:
            if old.exists():
                old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_replaceable(path: Path, target: Path, layout: Layout) -> None:
    if not target.exists():
        above = next(folder for folder in target.parents if folder.exists())
        if not above.is_dir():
            raise FileFormatError(f"{path}: cannot be written: {above} is not a folder")
        return
    if not target.is_dir():
        raise FileFormatError(f"{path}: exists and is not a folder")
    foreign = _foreign_entry(target, layout)
    if foreign is not None:
        raise FileFormatError(f"{path}: exists and is not a {layout.kind} ({foreign}): "
                              f"remove it or choose another name")


def _foreign_entry(folder: Path, layout: Layout) -> str | None:
    """What keeps a folder from being replaced: anything in it that we would not have written."""
    entries = sorted(entry.name for entry in folder.iterdir())
    if not entries:
        return None
    if layout.document not in entries:
        return f"it has no {layout.document}"
    for name in entries:
        inner = layout.subfolders.get(name)
        if inner is not None and (folder / name).is_dir():
            foreign = _foreign_entry(folder / name, inner)
            if foreign is not None:
                return f"in {name}: {foreign}"
        elif name not in (layout.document, layout.arrays) or not (folder / name).is_file():
            return f"it has the entry {name}"
    return None


# Documents and arrays -------------------------------------------------------------------------------------------

def _canonical(document: Mapping[str, Json]) -> bytes:
    return json.dumps(document, sort_keys=True, indent=1, allow_nan=False).encode() + b"\n"


def _little_endian(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))


def sign(layout: Layout, content: Mapping[str, Json], arrays: Arrays) -> dict[str, Json]:
    """Complete a document: its format and version, the table of its arrays and its SHA-256."""
    table = {name: {"dtype": array.dtype.name, "shape": integers(array.shape),
                    "sha256": hashlib.sha256(_little_endian(array).tobytes()).hexdigest()}
             for name, array in arrays.items()}
    document = {**content, "format": layout.kind, "version": f"{VERSION[0]}.{VERSION[1]}", "arrays": table}
    return {**document, "sha256": hashlib.sha256(_canonical(document)).hexdigest()}


def write(folder: Path, layout: Layout, content: Mapping[str, Json], arrays: Arrays) -> str:
    """Write a document and its arrays into an empty folder; return the document's SHA-256."""
    document = sign(layout, content, arrays)
    # Sorted, so that the bytes do not depend on the order of insertion.
    ordered = {name: _little_endian(arrays[name]) for name in sorted(arrays)}
    for name, data in ((layout.arrays, safetensors.numpy.save(ordered)), (layout.document, _canonical(document))):
        with (folder / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # The move to the final name must not overtake the contents.
    digest: str = document["sha256"]
    return digest


def read(folder: Path, layout: Layout, *, others: Mapping[str, Layout]) -> tuple["Record", Arrays]:
    """Read a folder, proving that document and arrays are what was written.

    Parameters
    ----------
    others : dict of str to Layout
        Kinds of folders that a user might mix up with this one, by what to say then.

    Raises
    ------
    FileFormatError
        If the folder is not of this kind or was damaged.
    """
    if not folder.is_dir():
        raise FileFormatError(f"{folder}: {'is a file, not a' if folder.exists() else 'no such'} folder")
    if not (folder / layout.document).exists():
        for advice, other in others.items():
            if (folder / other.document).exists():
                raise FileFormatError(f"{folder}: is a {other.kind}, not a {layout.kind}: {advice}")
    document = folder / layout.document
    content = _parse_document(document, _read_bytes(document), layout)
    arrays = _parse_arrays(folder / layout.arrays, _read_bytes(folder / layout.arrays), content.record("arrays"))
    return content, arrays


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise FileFormatError(f"{path}: is missing") from None
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read: {error.strerror or error}") from None


def _parse_document(path: Path, data: bytes, layout: Layout) -> "Record":
    def refuse(text: str) -> NoReturn:
        raise ValueError(f"{text} is not an integer")

    def distinct(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key occurs twice")
        return dict(pairs)

    try:
        document = json.loads(data.decode(), parse_float=refuse, parse_constant=refuse, object_pairs_hook=distinct)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path}: is corrupt: {error}") from None
    if not isinstance(document, dict):
        raise FileFormatError(f"{path}: is corrupt: not an object")
    content = Record(str(path), document)
    if content.string("format") != layout.kind:
        raise FileFormatError(f"{path}: is a {content.string('format')!r}, not a {layout.kind}")
    if content.string("version").partition(".")[0] not in map(str, range(1, VERSION[0] + 1)):
        raise FileFormatError(f"{path}: has version {content.string('version')!r}; "
                              f"this release of nomul reads 1.x to {VERSION[0]}.x")
    unsigned = {key: value for key, value in document.items() if key != "sha256"}
    if content.string("sha256") != hashlib.sha256(_canonical(unsigned)).hexdigest():
        raise FileFormatError(f"{path}: is corrupt: its SHA-256 does not match its contents")
    return content


def _parse_arrays(path: Path, data: bytes, table: "Record") -> Arrays:
    """Read the arrays that a document lists, no more and no fewer."""
    try:
        views = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
    except (safetensors.SafetensorError, ValueError) as error:
        raise FileFormatError(f"{path}: is corrupt: {error}") from None
    if set(views) != set(table.values):
        names = ", ".join(sorted(set(views) ^ set(table.values)))
        raise FileFormatError(f"{path}: does not hold the arrays that its document lists: {names}")
    arrays: Arrays = {}
    for name, view in views.items():
        entry, raw = table.record(name), bytes(view["data"])
        dtype, shape = _DTYPES.get(view["dtype"]), tuple(view["shape"])
        if dtype is None or dtype != entry.string("dtype") or shape != entry.integers("shape"):
            raise FileFormatError(f"{path}: array {name!r} is {dtype or view['dtype']}{list(shape)}; expected "
                                  f"{entry.string('dtype')}{list(entry.integers('shape'))}")
        if hashlib.sha256(raw).hexdigest() != entry.string("sha256"):
            raise FileFormatError(f"{path}: array {name!r} is corrupt: its SHA-256 does not match")
        arrays[name] = np.frombuffer(raw, np.dtype(dtype).newbyteorder("<")).reshape(shape).astype(dtype)
    return arrays


def integers(values: Iterable[int]) -> list[int]:
    return [int(value) for value in values]


@dataclass(frozen=True)
class Record:
    """A JSON object whose members are read with the type that they must have."""

    where: str
    values: dict[str, Json]

    def _get(self, key: str, kind: str, valid: Callable[[Json], bool]) -> Json:
        if key not in self.values:
            raise FileFormatError(f"{self.where}: {key} is missing")
        if not valid(self.values[key]):
            raise FileFormatError(f"{self.where}: {key} must be {kind}")
        return self.values[key]

    def integer(self, key: str) -> int:
        value: int = self._get(key, "an integer", _is_integer)
        return value

    def string(self, key: str) -> str:
        value: str = self._get(key, "a string", _is_string)
        return value

    def integers(self, key: str, length: int | None = None) -> tuple[int, ...]:
        kind = "a list of integers" if length is None else f"a list of {length} integers"
        return tuple(self._get(key, kind, lambda value: isinstance(value, list) and all(map(_is_integer, value))
                               and length in (None, len(value))))

    def strings(self, key: str) -> tuple[str, ...]:
        return tuple(self._get(key, "a list of strings", lambda value: isinstance(value, list)
                               and all(map(_is_string, value))))

    def record(self, key: str) -> "Record":
        return Record(f"{self.where}: {key}", self._get(key, "an object", lambda value: isinstance(value, dict)))

    def records(self, key: str) -> list["Record"]:
        values = self._get(key, "a list of objects", lambda value: isinstance(value, list)
                           and all(isinstance(item, dict) for item in value))
        return [Record(f"{self.where}: {key}[{index}]", value) for index, value in enumerate(values)]


def _is_integer(value: Json) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_string(value: Json) -> bool:
    with suppress(UnicodeEncodeError):  # JSON can spell half a surrogate pair; nothing can print it.
        return isinstance(value, str) and bool(value.encode() or True)
    return False
