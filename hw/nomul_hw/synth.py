"""Synthesis: what an accelerator costs in a chip's logic cells, module by module of the machine.

Yosys reads the generated Verilog and maps it to the cells of a family. The modules right below the top stay apart, so
that every cell belongs to one of them; what lies inside such a module is synthesized as a whole. What remains at the
top are the multiplexers between the modules and the registers of tokens on their way.
"""

import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .families import FAMILIES, Cost, Family
from .lint import Tool, find_yosys

__all__ = ["TOP", "Synthesis", "SynthesisError", "apart", "module_bodies", "run_yosys", "synthesize",
           "top_instances", "yosys_version"]

#: Row of what belongs to the top module itself.
TOP = "top"


class SynthesisError(RuntimeError):
    """Yosys is not installed, or does not accept a netlist; the message is Yosys' own."""


@dataclass(frozen=True)
class Synthesis:
    """What a design occupies.

    Attributes
    ----------
    family : str
        One of :data:`nomul_hw.families.FAMILIES`.
    tool : str
        Yosys and its version.
    command : str
        What was run, without the program's path and the name of the file.
    modules : mapping of str to Cost
        Cost of every instance below the top, largest first; ``"top"`` is the top module's own.
    """

    family: str
    tool: str
    command: str
    modules: Mapping[str, Cost]

    @property
    def total(self) -> Cost:
        """All modules together."""
        return sum(self.modules.values(), Cost())

    @property
    def array(self) -> Cost:
        """The processing elements and what feeds them."""
        return self.modules.get("array", Cost())

    @property
    def beside(self) -> Cost:
        """Everything but the array."""
        return sum((cost for name, cost in self.modules.items() if name != "array"), Cost())

    @property
    def overhead(self) -> float:
        """LUTs beside the array, over the array's; infinite without an array."""
        return self.beside.lut / self.array.lut if self.array.lut else float("inf")

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "family": self.family, "tool": self.tool, "command": self.command,
            "modules": {name: asdict(cost) for name, cost in self.modules.items()},
            "total": asdict(self.total), "array": asdict(self.array), "beside": asdict(self.beside),
            "overhead": self.overhead,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Synthesis":
        """Undo :meth:`to_dict`."""
        return cls(data["family"], data["tool"], data["command"],
                   {name: Cost(**cost) for name, cost in data["modules"].items()})


def _yosys() -> Tool:
    """The Yosys that there is."""
    found = find_yosys()
    if found is None:
        raise SynthesisError("synthesis needs Yosys, which is not installed: pip install 'nomul[synth]'")
    return found


def yosys_version() -> str:
    """Name the Yosys that :func:`synthesize` runs.

    Raises
    ------
    SynthesisError
        If there is none.
    """
    return _yosys().version


def synthesize(verilog: str, top: str, family: str = "ecp5", options: str = "",
               left_out: Collection[str] = ()) -> Synthesis:
    """Synthesize a design and count its cells.

    Parameters
    ----------
    verilog : str
        Content of one self-contained file, as :func:`nomul_hw.verilog.to_verilog` makes it.
    top : str
        Its top module.
    family : str
        One of :data:`nomul_hw.families.FAMILIES`.
    options : str
        More options of the family's command.
    left_out : collection of str
        Instances below the top whose insides are not synthesized, and which are not counted.

    Raises
    ------
    SynthesisError
        If Yosys is missing or fails, or leaves a cell whose cost is unknown.
    ValueError
        If there is no such family.
    """
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, not {family!r}")
    chips, instances = FAMILIES[family], top_instances(verilog, top)
    passes = [*apart(top, instances.values(), [instances[name] for name in left_out]),
              " ".join(filter(None, [chips.synthesis, chips.apart, options, "-top", top]))]
    stat, version = run_yosys([*passes, "tee -q -o result stat -json"], verilog)
    counted = _count(stat)
    modules = {name: _cost(counted, module, chips) for name, module in instances.items() if name not in left_out}
    modules[TOP] = _cost(counted, top, chips, set(instances.values()))
    ordered = dict(sorted(modules.items(), key=lambda item: item[1].lut, reverse=True))
    return Synthesis(family, version, "; ".join(passes), ordered)


def top_instances(verilog: str, top: str) -> dict[str, str]:
    """Modules that the top module instantiates, by the instance's name.

    Raises
    ------
    SynthesisError
        If there is no such top module.
    """
    modules = module_bodies(verilog)
    if top not in modules:
        raise SynthesisError(f"there is no module {top!r}")
    # A name that is a keyword of the language is escaped, and ends with a space.
    found = re.findall(r"^  (\w+) \\?(\w+) +\($", modules[top], re.MULTILINE)
    return {name: module for module, name in found if module in modules}


def module_bodies(verilog: str) -> dict[str, str]:
    """What stands in each module, ports first, by the module's name."""
    return dict(re.findall(r"^module (\w+)(.*?)^endmodule", verilog, re.MULTILINE | re.DOTALL))


def apart(top: str, kept: Iterable[str], left_out: Iterable[str] = ()) -> list[str]:
    """Yosys' passes that flatten a design but for some modules, which stay whole.

    Parameters
    ----------
    top : str
        The top module.
    kept : iterable of str
        Modules that stay apart.
    left_out : iterable of str
        Modules among them whose insides are not to be synthesized.
    """
    kept, left_out = (" ".join(sorted(set(names))) for names in (kept, left_out))
    return [
        f"hierarchy -top {top}",  # not yet checked: a family's own cells are unknown until its synthesis begins
        *([f"setattr -mod -set keep_hierarchy 1 {kept}"] if kept else []),
        *([f"blackbox {left_out}"] if left_out else []),
        # ABC's results come back under the wires' names: those of a structure's members clash with the structure's.
        "rename -hide w:*", "flatten", "rename -hide w:*",
    ]


def run_yosys(passes: Sequence[str], verilog: str) -> tuple[str, str]:
    """Let Yosys run passes on a design; returns what they write to the file ``result``, and Yosys' version.

    Every call is a process of its own: what Yosys makes of a design depends on what it did before.

    Raises
    ------
    SynthesisError
        If Yosys is missing or fails.
    """
    yosys = _yosys()
    with tempfile.TemporaryDirectory(prefix="nomul-synth-") as folder:
        (Path(folder) / "design.v").write_text(verilog, encoding="utf-8")
        done = subprocess.run([*yosys.program, "-p", ";".join(["read_verilog design.v", *passes])], cwd=folder,
                              capture_output=True, text=True, errors="replace", check=False)
        result = Path(folder) / "result"
        if done.returncode or not result.exists():
            lines = [line for line in (done.stdout + done.stderr).splitlines() if "ERROR" in line]
            raise SynthesisError(lines[-1] if lines else f"Yosys ended with status {done.returncode}")
        return result.read_text(encoding="utf-8"), yosys.version


def _count(stat: str) -> dict[str, Counter[str]]:
    """How often each cell occurs in each module, submodules apart."""
    modules = json.loads(stat)["modules"]
    return {name.removeprefix("\\"): Counter(module["num_cells_by_type"]) for name, module in modules.items()}


def _cost(counted: Mapping[str, Counter[str]], module: str, family: Family, rows: Collection[str] = ()) -> Cost:
    """Cost of a module's cells and of the modules inside it, but for those that have rows of their own.

    Equal modules are one in Verilog: a memory inside a module that is like one below the top stays apart as well.
    """
    total = Cost()
    for cell, count in counted[module].items():
        if cell in family.cells:
            total += family.cells[cell] * count
        elif cell in rows:
            continue
        elif cell in counted:
            total += _cost(counted, cell, family) * count
        elif not cell.startswith("$"):
            raise SynthesisError(f"what a cell {cell} costs is unknown")
    return total
