"""Synthesis to the standard cells of a chip of one's own: area, module by module of the machine.

Memories are left out: on such a chip they are macros, made by a generator of the process. Their bits are counted.
Yosys maps flip-flops by ``dfflibmap`` and logic by ABC, without constraints of time or load, so that this is the area
before a clock is asked for, and before placement.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .synth import TOP, SynthesisError, apart, module_bodies, run_yosys, top_instances

__all__ = ["CellArea", "CellSynthesis", "find_liberty", "synthesize_cells"]

#: Where Debian's package of the library that is taken if none is named puts it: OSU's for a process of 0.18 µm.
_LIBRARY = Path("/usr/share/qflow/tech/osu018/osu018_stdcells.lib")


@dataclass(frozen=True)
class CellArea:
    """Area of standard cells.

    Attributes
    ----------
    combinational, sequential : float
        Of logic, and of flip-flops, in the library's unit: square micrometres.
    memory : int
        Bits of memories, which are not part of the areas.
    """

    combinational: float = 0.0
    sequential: float = 0.0
    memory: int = 0

    @property
    def total(self) -> float:
        """Logic and flip-flops."""
        return self.combinational + self.sequential

    def __add__(self, other: "CellArea") -> "CellArea":
        return CellArea(self.combinational + other.combinational, self.sequential + other.sequential,
                        self.memory + other.memory)


@dataclass(frozen=True)
class CellSynthesis:
    """A design in standard cells.

    Attributes
    ----------
    library : str
        The library's name.
    nand2 : float
        Area of its smallest NAND of two inputs: a gate equivalent.
    tool : str
        Yosys and its version.
    modules : mapping of str to CellArea
        Of every instance below the top, largest first; ``"top"`` is the top module's own.
    """

    library: str
    nand2: float
    tool: str
    modules: Mapping[str, CellArea]

    @property
    def total(self) -> CellArea:
        """All modules together."""
        return sum(self.modules.values(), CellArea())

    def gates(self, area: float) -> float:
        """An area in gate equivalents."""
        return area / self.nand2

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"family": "cells", "library": self.library, "nand2": self.nand2, "tool": self.tool,
                "modules": {name: asdict(area) for name, area in self.modules.items()},
                "total": asdict(self.total), "gates": self.gates(self.total.total)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "CellSynthesis":
        """Undo :meth:`to_dict`."""
        return cls(data["library"], data["nand2"], data["tool"],
                   {name: CellArea(**area) for name, area in data["modules"].items()})


def find_liberty() -> Path:
    """Find a library for those who name none.

    Raises
    ------
    SynthesisError
        If none is installed; the message says which one would do.
    """
    if not _LIBRARY.is_file():
        raise SynthesisError("standard cells need a library: name one with --liberty FILE.lib, or install Debian's "
                             "package qflow-tech-osu018")
    return _LIBRARY


def synthesize_cells(verilog: str, top: str, liberty: Path) -> CellSynthesis:
    """Synthesize a design to standard cells and add up their areas.

    Parameters
    ----------
    verilog : str
        Content of one self-contained file, as :func:`nomul_hw.verilog.to_verilog` makes it.
    top : str
        Its top module.
    liberty : Path
        The library, in Liberty format.

    Raises
    ------
    SynthesisError
        If Yosys is missing or fails, or the library cannot be read or has no NAND of two inputs.
    """
    try:
        library = liberty.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise SynthesisError(f"{liberty}: {error.strerror}") from None
    costs = _costs(library)
    nands = [area.total for cell, area in costs.items() if re.match(r"(\w*_)?NAND2", cell, re.IGNORECASE)]
    if not nands:
        raise SynthesisError(f"{liberty}: has no cell of a NAND of two inputs")
    name = re.search(r"\blibrary\s*\(\s*\"?([\w.-]+)", library)
    instances = top_instances(verilog, top)
    bodies = module_bodies(verilog)
    memories = {module: bits for module, body in bodies.items() if (bits := _memory_bits(body))}
    file = f'"{liberty.absolute().as_posix()}"'
    stat, version = run_yosys([
        *apart(top, instances.values(), memories),
        f"synth -top {top}", f"dfflibmap -liberty {file}", f"abc -liberty {file}", "opt_clean -purge",
        "tee -q -o result stat -json",
    ], verilog)
    found = {module.removeprefix("\\"): counted for module, counted in json.loads(stat)["modules"].items()}

    def area(module: str) -> CellArea:
        total = CellArea(memory=memories.get(module, 0))
        for cell, count in found.get(module, {}).get("num_cells_by_type", {}).items():
            if cell in costs:
                total += CellArea(costs[cell].combinational * count, costs[cell].sequential * count)
            elif cell in memories:
                total += CellArea(memory=memories[cell] * count)
            elif cell.startswith("$_"):
                raise SynthesisError(f"{liberty}: has no cell for {cell}")
        return total

    modules = {instance: area(module) for instance, module in instances.items()}
    modules[TOP] = area(top)
    ordered = dict(sorted(modules.items(), key=lambda item: item[1].total, reverse=True))
    return CellSynthesis(name[1] if name else liberty.stem, min(nands), version, ordered)


def _costs(library: str) -> dict[str, CellArea]:
    """Area of each cell of a library."""
    costs = {}
    for text in re.split(r"^\s*cell\s*\(", library, flags=re.MULTILINE)[1:]:
        name, area = re.match(r"\s*\"?(\w+)", text), re.search(r"\barea\s*:\s*([\d.]+)", text)
        if name and area:
            keeps = re.search(r"\b(ff|latch)\s*\(", text) is not None
            costs[name[1]] = CellArea(*((0.0, float(area[1])) if keeps else (float(area[1]), 0.0)))
    return costs


def _memory_bits(body: str) -> int:
    """Bits of the memories that a module holds itself."""
    return sum((int(high or 0) + 1) * (int(last) + 1) for high, last in
               re.findall(r"^  reg (?:\[(\d+):0\] )?\S+ \[(\d+):0\];", body, re.MULTILINE))
