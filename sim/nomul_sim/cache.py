"""Where generated files that can always be made again are kept: simulator libraries, elaborated Verilog.

An entry's name is the hash of everything that it was made from, so an entry is never out of date and never changed.
Deleting the folder is always safe.
"""

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not a POSIX system: two builders then do the same work twice, and the later result stays
    fcntl = None  # type: ignore[assignment]

__all__ = ["cache_folder", "cached", "cached_json", "content_hash"]


def cache_folder() -> Path:
    """Folder of all cached files: ``$NOMUL_CACHE``, else the platform's place for the user's caches."""
    if chosen := os.environ.get("NOMUL_CACHE"):
        return Path(chosen)
    home = Path.home()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "nomul" / "cache"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "nomul"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "nomul"


def content_hash(*parts: str | bytes) -> str:
    """Hash texts, in order, to 32 hex digits; where one part ends and the next begins counts."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:32]


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Let one process at a time make an entry, so that others wait for it instead of repeating the work."""
    if fcntl is None:
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def cached(kind: str, name: str, make: Callable[[Path], None]) -> Path:
    """Return the file ``name`` of the cache's folder ``kind``; let ``make(path)`` write it if it is not there.

    ``make`` gets a path in a scratch folder of its own, where it may leave other files too; the finished file moves
    into place in one step. So an entry is complete or absent, whatever is interrupted and however many build it.
    """
    folder = cache_folder() / kind
    entry = folder / name
    if entry.exists():
        return entry
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder / f".{name}.lock"):
        if not entry.exists():
            with tempfile.TemporaryDirectory(dir=folder, prefix=".make-") as scratch:
                path = Path(scratch) / name
                make(path)
                path.replace(entry)
    return entry


def cached_json(kind: str, parts: Iterable[str | bytes], make: Callable[[], Any]) -> Any:
    """Return what ``make()`` returns, which is plain data; the cache keeps it under the hash of ``parts``."""
    def write(path: Path) -> None:
        path.write_text(json.dumps(make()), encoding="utf-8")

    entry = cached(kind, f"{content_hash(*parts)}.json", write)
    return json.loads(entry.read_text(encoding="utf-8"))
