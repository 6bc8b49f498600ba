"""Synthesis to the standard cells of a chip of one's own: area, module by module of the machine.

Memories are left out: on such a chip they are macros, made by a generator of the process. Their bits are counted.
Adders are ripple carry, of the library's own full adders where it has them: the smallest, and the slowest. Yosys maps
flip-flops by ``dfflibmap`` and all other logic by ABC, without constraints of time or load. So this is the area before
a clock is asked for, and before placement.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .synth import TOP, SynthesisError, apart, module_bodies, run_yosys, top_instances

__all__ = ["CellArea", "CellSynthesis", "find_liberty", "how", "synthesize_cells"]

#: Where Debian's package of the library that is taken if none is named puts it: OSU's for a process of 0.18 µm.
_LIBRARY = Path("/usr/share/qflow/tech/osu018/osu018_stdcells.lib")

#: How adders are mapped.
_RIPPLE = Path(__file__).parent / "leaves" / "ripple.v"

#: Truth tables of three inputs and of what a full adder makes of them; the first input is the lowest bit of the index.
_INPUTS, _SUM, _CARRY = (0b10101010, 0b11001100, 0b11110000), 0b10010110, 0b11101000


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
    stat, version = run_yosys([*apart(top, instances.values(), memories), *_passes(top, liberty, library),
                               "tee -q -o result stat -json"], verilog)
    found = {module.removeprefix("\\"): counted for module, counted in json.loads(stat)["modules"].items()}

    def area(module: str) -> CellArea:
        total = CellArea(memory=memories.get(module, 0))
        for cell, count in found.get(module, {}).get("num_cells_by_type", {}).items():
            if cell in costs:
                total += CellArea(costs[cell].combinational * count, costs[cell].sequential * count)
            elif cell in memories:
                total += CellArea(memory=memories[cell] * count)
            elif cell.startswith("$"):
                raise SynthesisError(f"{liberty}: has no cell for {cell}")
        return total

    modules = {instance: area(module) for instance, module in instances.items()}
    modules[TOP] = area(top)
    ordered = dict(sorted(modules.items(), key=lambda item: item[1].total, reverse=True))
    return CellSynthesis(name[1] if name else liberty.stem, min(nands), version, ordered)


def how() -> bytes:
    """All that decides how a design is mapped, but for the library and the tools: for a cache's keys."""
    return Path(__file__).read_bytes() + _RIPPLE.read_bytes()


def _passes(top: str, liberty: Path, library: str) -> list[str]:
    """Yosys' passes that map a design to a library, of which both the file and its content are given."""
    file = f'"{liberty.absolute().as_posix()}"'
    ripple, macros = f'techmap -map "{_RIPPLE.as_posix()}"', _full_adder(library)
    adders = " -D ".join([ripple, *(f"{name}={value}" for name, value in (macros or {"GATES": "1"}).items())])
    return [
        f"synth -top {top} -run begin:fine -noalumacc",
        # Sums one by one, as they stand in the source: `alumacc` would merge them, all as wide as the widest. The
        # second time for bits whose carry the first has made constant.
        ripple, "opt", ripple, "opt", adders,
        # Products, which only what ours is compared with has. Of narrow ones, Booth's rows are not worth their logic.
        "booth r:A_WIDTH>=8 r:B_WIDTH>=8 %i",
        "alumacc", "opt", f"synth -top {top} -run fine:check",
        # What else is a full adder, in products above all.
        *(["extract_fa -fa", adders, "opt -fast"] if macros else []),
        f"dfflibmap -liberty {file}", f"abc -liberty {file}", "opt_clean -purge",
    ]


def _cells(library: str) -> dict[str, str]:
    """What a library says of each of its cells."""
    found = {}
    for text in re.split(r"^\s*cell\s*\(", library, flags=re.MULTILINE)[1:]:
        if name := re.match(r"\s*\"?(\w+)", text):
            found[name[1]] = text
    return found


def _costs(library: str) -> dict[str, CellArea]:
    """Area of each cell of a library."""
    costs = {}
    for name, text in _cells(library).items():
        if (area := _area(text)) is not None:
            keeps = re.search(r"\b(ff|latch)\s*\(", text) is not None
            costs[name] = CellArea(*((0.0, area) if keeps else (area, 0.0)))
    return costs


def _area(text: str) -> float | None:
    """What a library says of a cell's area."""
    found = re.search(r"\barea\s*:\s*([\d.]+)", text)
    return float(found[1]) if found else None


def _full_adder(library: str) -> dict[str, str] | None:
    """Find the smallest full adder of a library: the macros for ``ripple.v``; None if there is none."""
    found = []
    for cell, text in _cells(library).items():
        pins = dict(re.findall(r"\bpin\s*\(\s*\"?(\w+)\"?\s*\)(.*?)(?=\bpin\s*\(|\Z)", text, re.DOTALL))
        inputs = [pin for pin, of in pins.items() if re.search(r"\bdirection\s*:\s*\"?input", of)]
        outputs = {pin: function[1] for pin, of in pins.items()
                   if (function := re.search(r"\bfunction\s*:\s*\"([^\"]*)\"", of))}
        if (len(inputs), len(outputs), len(pins)) != (3, 2, 5) or re.search(r"\bdont_use\s*:\s*\"?true", text):
            continue
        tables = {_table(function, dict(zip(inputs, _INPUTS, strict=True))): pin for pin, function in outputs.items()}
        if tables.keys() == {_SUM, _CARRY} and (area := _area(text)) is not None:
            found.append((area, dict(zip(("CELL", "A", "B", "C", "SUM", "CARRY"),
                                         (cell, *inputs, tables[_SUM], tables[_CARRY]), strict=True))))
    return min(found, key=lambda one: one[0])[1] if found else None


def _table(function: str, inputs: Mapping[str, int]) -> int | None:
    """Evaluate a function of a library: its truth table, from its inputs'; None if it is more than logic of those.

    An inversion binds closest, ``^`` closer than an and, and that closer than an or: as in Liberty's reference manual.
    """
    tokens = re.findall(r"\w+|[^\s\w]", function)[::-1]
    everything = 0b11111111

    def operand() -> int:
        token = tokens.pop()
        if token == "!":
            return operand() ^ everything
        if token == "(":
            value = either()
            if tokens.pop() != ")":
                raise ValueError
        else:
            value = {"0": 0, "1": everything, **inputs}[token]
        while tokens and tokens[-1] == "'":
            tokens.pop()
            value ^= everything
        return value

    def differ() -> int:
        value = operand()
        while tokens and tokens[-1] == "^":
            tokens.pop()
            value ^= operand()
        return value

    def both() -> int:
        value = differ()
        while tokens and tokens[-1] not in "+|)":
            if tokens[-1] in "*&":
                tokens.pop()
            value &= differ()
        return value

    def either() -> int:
        value = both()
        while tokens and tokens[-1] in "+|":
            tokens.pop()
            value |= both()
        return value

    try:
        value = either()
    except (KeyError, IndexError, ValueError):
        return None
    return None if tokens else value


def _memory_bits(body: str) -> int:
    """Bits of the memories that a module holds itself."""
    return sum((int(high or 0) + 1) * (int(last) + 1) for high, last in
               re.findall(r"^  reg (?:\[(\d+):0\] )?\S+ \[(\d+):0\];", body, re.MULTILINE))
