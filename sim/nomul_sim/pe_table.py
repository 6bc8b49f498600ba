"""What processing elements cost, one format and one family of chips after the other.

    python -m nomul_sim.pe_table                                  # all that is in docs/pe_area.md, from the cache
    python -m nomul_sim.pe_table --format ternary --format pot4 --family ecp5
    python -m nomul_sim.pe_table --liberty cells.lib --family cells
    python -m nomul_sim.pe_table --write docs/pe_table.json

An element adds its products to a sum of 24 bits from above, as every array with weights at rest does; its weight is
double-buffered, its activations of 8 bits go on to the right, and the registers of all that are its own. Elements of an
array share nothing, so that one element alone costs what each of an array costs. ``column`` is the mean over a column
of 16 elements as the product builds them: the first has no sum above it, and the sums grow with the row.

Baselines: the Booth multiplier in the same form as all others, and ``*``, which is what a synthesizer makes of
``psum + w * x`` if it has no multipliers to give away.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from nomul.area import ELEMENT_ACT_BITS as ACT_BITS
from nomul.area import ELEMENT_SUM_BITS as SUM_BITS
from nomul_hw.cells import find_liberty, synthesize_cells
from nomul_hw.config import ArrayConfig
from nomul_hw.fabric import FABRICS
from nomul_hw.families import FAMILIES as CHIPS
from nomul_hw.families import Cost
from nomul_hw.formats import get_format
from nomul_hw.pnr import default_device, nextpnr_version, place_and_route
from nomul_hw.product import ProductForm
from nomul_hw.synth import SynthesisError, synthesize, yosys_version

from .cache import cached_json
from .synthesis import how

__all__ = ["ELEMENTS", "FAMILIES", "LANES", "Element", "Measured", "clocks", "main", "measure"]

#: Rows of the product's own column.
ROWS = 16

#: Products of an element that can be asked for, and those of the documentation's chips.
LANES, USUAL_LANES = (1, 4, 8), (1, 8)

#: Seeds of placements, and the clock in MHz that they work towards.
SEEDS, CLOCK = (1, 2, 3), 250.0

#: What elements are made of: chips, and standard cells, which need a library.
FAMILIES = (*FABRICS, "cells")


@dataclass(frozen=True)
class Element:
    """A kind of element.

    Parameters
    ----------
    format : str
        Its weights.
    kind : str
        ``"shift"``, ``"multiplier"`` (Booth), or ``"*"``.
    """

    format: str
    kind: str

    @property
    def name(self) -> str:
        """For tables and the command line."""
        return {"shift": self.format, "multiplier": f"{self.format}_booth", "*": f"{self.format}_plain"}[self.kind]

    @property
    def form(self) -> ProductForm:
        """Its product; of ``*`` the form whose sums are as wide."""
        return ProductForm(get_format(self.format), "shift" if self.kind == "shift" else "multiplier")


#: The elements of the table.
ELEMENTS: tuple[Element, ...] = (
    *(Element(name, "shift") for name in ("binary", "ternary", "pot3", "pot3z", "pot4", "pot4z", "exp4", "exp4_sqrt2",
                                          "exp5", "fp4_e2m1", "int4")),
    *(Element(name, kind) for kind in ("multiplier", "*") for name in ("int4", "int8")),
)


@dataclass(frozen=True)
class Measured:
    """Cost of a product, that is of an element over its lanes.

    Attributes
    ----------
    element, family : str
        What was measured.
    lanes : int
        Products of the element.
    lut, carry, ff : float
        Per product, as :class:`nomul_hw.families.Cost` counts them.
    area : float
        Per product, in areas of the library's smallest NAND of two inputs; 0 on chips.
    column_lut : float
        LUTs per product in a column of 16 elements; of one lane only, else 0.
    fmax : dict of int to float
        Clock of an array by its registers (``array.pipeline``), in MHz: 4x4 elements of one product, or 2x2 of eight;
        the median of the seeds.
    """

    element: str
    family: str
    lanes: int
    lut: float = 0
    carry: float = 0
    ff: float = 0
    area: float = 0
    column_lut: float = 0
    fmax: dict[int, float] = field(default_factory=dict)


def _verilog(element: Element, lanes: int, rows: int | None, family: str | None) -> str:
    """Verilog of an element, or of a column of them."""
    # Amaranth is only imported where something has to be elaborated.
    from nomul_hw.bare import Column, bare_element
    from nomul_hw.verilog import to_verilog

    if rows is None:
        return to_verilog(bare_element(element.form, lanes, family, SUM_BITS, SUM_BITS, element.kind == "*"), "element")
    return to_verilog(Column(element.form, lanes, family, rows, element.kind == "*"), "element")


def measure(element: Element, family: str, lanes: int, liberty: Path | None = None, *, column: bool = True) -> Measured:
    """Measure an element, or find the result in the cache.

    Parameters
    ----------
    liberty : Path, optional
        Library of the standard cells, for ``family="cells"``; what :func:`nomul_hw.cells.find_liberty` finds, if none.
    column : bool
        Whether to measure the product's own column too: of one lane, on chips.

    Raises
    ------
    nomul_hw.synth.SynthesisError
        If Yosys is missing or fails, or there is no library of cells.
    ValueError
        If there is no such family.
    """
    if family == "cells":
        library = liberty or find_liberty()

        def gates(text: str) -> float:
            found = synthesize_cells(text, "element", library)
            return found.gates(found.total.total)

        area = _cached([library.read_text(encoding="utf-8"), how()], element, lanes, None, None, gates)
        return Measured(element.name, family, lanes, area=area / lanes)

    def cost(rows: int | None) -> Cost:
        def count(text: str) -> dict[str, int]:
            options = "-nodsp" if element.kind == "*" and family != "ice40" else ""
            return asdict(synthesize(text, "element", family, options).total)

        return Cost(**_cached([family], element, lanes, rows, family, count))

    one = cost(None)
    mean = cost(ROWS).lut / ROWS if column and lanes == 1 else 0
    return Measured(element.name, family, lanes, one.lut / lanes, one.carry / lanes, one.ff / lanes, column_lut=mean)


def clocks(element: Element, family: str, lanes: int, seeds: Sequence[int] = SEEDS) -> dict[int, float]:
    """Place and route an array, without registers and with all; or find the results in the cache.

    Returns
    -------
    dict
        Median of the seeds in MHz, by ``array.pipeline``.

    Raises
    ------
    nomul_hw.synth.SynthesisError
        If a tool is missing or fails.
    ValueError
        If nothing places and routes the family.
    """
    from nomul_hw.array import SystolicArray
    from nomul_hw.verilog import to_verilog

    found, size = {}, 4 if lanes == 1 else 2
    device = default_device(family)
    for pipeline in (0, element.form.max_pipeline(lanes)):
        config = ArrayConfig(element.form.format, size, size, lanes, element.kind, pipeline=pipeline, acc_bits=32)
        verilog = to_verilog(SystolicArray(config, family), "element")

        def reached(verilog: str = verilog) -> list[float]:
            return sorted(place_and_route(verilog, "element", device, clock=CLOCK, seeds=seeds).clocks.values())

        parts: list[str | bytes] = [verilog, device, str(seeds), str(CLOCK), yosys_version(), nextpnr_version(family),
                                    how()]
        found[pipeline] = cached_json("clocks", parts, reached)[len(seeds) // 2]
    return found


def _cached(parts: Iterable[str | bytes], element: Element, lanes: int, rows: int | None, family: str | None,
            count: Callable[[str], Any]) -> Any:
    verilog = _verilog(element, lanes, rows, None if element.kind == "*" else family)
    command = CHIPS[family].synthesis if family else ""
    return cached_json("elements", [verilog, element.kind, yosys_version(), command, *parts], lambda: count(verilog))


def _table(rows: Sequence[Measured]) -> str:
    """For people: one line per element and family, with its ratios to the multipliers there."""
    lines = ["element        family  lanes     LUT   carry     FF    area  column  / int8 *  / Booth8  / Booth4  MHz"]
    size = {(row.element, row.family, row.lanes): row.area or row.lut for row in rows}
    for row in rows:
        ratios = (size.get((name, row.family, row.lanes)) for name in ("int8_plain", "int8_booth", "int4_booth"))
        shown = [f"{size[row.element, row.family, row.lanes] / other:.2f}" if other else "-" for other in ratios]
        lines.append(f"{row.element:14} {row.family:7} {row.lanes:5} {row.lut:7.2f} {row.carry:7.2f} {row.ff:6.2f} "
                     f"{row.area:7.1f} {row.column_lut:7.2f} {shown[0]:>9} {shown[1]:>9} {shown[2]:>9}  "
                     + ", ".join(f"{clock:.0f} ({pipeline})" for pipeline, clock in row.fmax.items()))
    return "\n".join(lines)


def _document(rows: Iterable[Measured], path: Path | None = None) -> str:
    """JSON of what was measured, and of what else is in a file that the same tools measured."""
    data: dict[str, Any] = {"tools": [yosys_version()], "act_bits": ACT_BITS, "sum_bits": SUM_BITS, "rows": ROWS}
    before = json.loads(path.read_text(encoding="utf-8")) if path and path.exists() else {}
    same = all(before.get(key) == value for key, value in data.items())
    kept = {(row["element"], row["family"], row["lanes"]): row for row in before.get("elements", ()) if same}
    for row in rows:
        key = row.element, row.family, row.lanes
        new, old = json.loads(json.dumps(asdict(row))), kept.get(key, {})
        if {**new, "fmax": 0, "column_lut": 0} == {**old, "fmax": 0, "column_lut": 0}:  # what was not asked for stays
            new = {name: value or old[name] for name, value in new.items()}
        kept[key] = new
    order = [element.name for element in ELEMENTS]
    data["elements"] = [kept[key] for key in sorted(kept, key=lambda key: (
        FAMILIES.index(key[1]), key[2], order.index(key[0])))]
    return json.dumps(data, indent=1) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    names = {element.name: element for element in ELEMENTS}
    parser = argparse.ArgumentParser(prog="python -m nomul_sim.pe_table", description="What processing elements cost.")
    parser.add_argument("--format", action="append", choices=names, help="an element; all unless given")
    parser.add_argument("--family", action="append", choices=FAMILIES, help="a family; all chips unless given")
    parser.add_argument("--lanes", action="append", type=int, choices=LANES,
                        help="products of an element; 1 and 8 unless given")
    parser.add_argument("--liberty", type=Path, metavar="FILE.lib", help="standard cells, for --family cells")
    parser.add_argument("--no-column", action="store_true", help="leave out the product's own column")
    parser.add_argument("--fmax", action="store_true", help="place and route arrays too: minutes for each")
    parser.add_argument("--write", type=Path, metavar="FILE.json",
                        help="write what the documentation's tables show; what else is in the file stays")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    families = options.family or [*FABRICS, *(["cells"] if options.liberty else [])]
    rows = []
    try:
        for family in families:
            for lanes in options.lanes or USUAL_LANES:
                for name in options.format or names:
                    print(f"\r\033[K{family} {name} {lanes}", end="", file=sys.stderr, flush=True)
                    row = measure(names[name], family, lanes, options.liberty, column=not options.no_column)
                    if options.fmax and names[name].kind != "*":
                        row = replace(row, fmax=clocks(names[name], family, lanes))
                    rows.append(row)
    except (SynthesisError, ValueError, OSError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    print("\r\033[K", end="", file=sys.stderr)
    if options.write:
        options.write.write_text(_document(rows, options.write), encoding="utf-8")
    print(_document(rows) if options.json else _table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
