"""Write the tables of the documentation that the code defines; ``--check`` only compares.

    python docs/tables.py

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``. What is printed there is never edited by hand.
"""

import json
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from nomul.bench.quantizers import ROWS, WEIGHTS, compare
from nomul.estimate import estimate_network
from nomul.quantize.scalar import GAUSSIAN, LAPLACIAN
from nomul.scalesim import MODELS, estimate_by, load_topology
from nomul_hw.bus.frames import REPLY, REQUEST
from nomul_hw.bus.registers import REGISTER_MAPS
from nomul_hw.config import ArrayConfig
from nomul_hw.descriptor import COUNTERS, DESCRIPTOR, LayerOp, Opcode, Target, field_table, parameter_fields
from nomul_hw.descriptor import target_word_bits as word_bits
from nomul_hw.fabric import FABRICS
from nomul_hw.formats import FORMATS, get_format
from nomul_hw.product import ProductForm

DOCS = Path(__file__).parent

#: The configuration whose widths the pages show.
EXAMPLE = ArrayConfig(get_format("ternary"))


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def _formats() -> str:
    rows = []
    for name, fmt in FORMATS.items():
        levels = (f"{fmt.levels[0]}..{fmt.levels[-1]}" if fmt.is_uniform
                  else ", ".join(f"±{magnitude}" if magnitude else "0" for magnitude in fmt.magnitudes))
        try:
            product = ProductForm(fmt)
            element = f"{len(product.bases)} : 1, {fmt.shifts} : 1"
            multiples = ", ".join(map(str, fmt.multiples))
        except ValueError:
            element, multiples = "multiplier only", f"{len(fmt.multiples)} of them"
        rows.append((f"`{name}`", fmt.bits, levels, multiples, element))
    return _table(("format", "bits", "levels", "odd multiples", "select, shift"), rows)


def _enum(kind: type[LayerOp | Opcode | Target]) -> str:
    return _table(("value", "name"), [(member.value, f"`{member.name}`") for member in kind])


def _targets() -> str:
    return _table(("value", "name", f"bits of a word ({EXAMPLE.name})", "host words"),
                  [(target.value, f"`{target.name}`", bits := word_bits(EXAMPLE, target), -(-bits // 32))
                   for target in Target])


def _models() -> str:
    rows = []
    for path in sorted((DOCS.parent / "examples" / "topologies").glob("*.csv")):
        network = load_topology(path)
        found = [estimate_network(network, EXAMPLE, fit=False), *(estimate_by(model, network, EXAMPLE)
                                                                  for model in MODELS)]
        rows.append((f"`{path.name}`", f"{found[0].macs / 1e6:,.1f} M",
                     *(f"{each.cycles:,} ({each.utilisation:.1%})" for each in found)))
    return _table(("layers", "MACs", "`nomul`", *(f"`{model}`" for model in MODELS)), rows)


def _quantizers() -> str:
    bits = range(1, 7)
    both = [compare(density.name, {density.name: density.among(WEIGHTS)}, bits) for density in (GAUSSIAN, LAPLACIAN)]
    rows = []
    for name in ROWS:
        found = [[comparison.find(name, width) for comparison in both] for width in bits]
        if not any(each for pair in found for each in pair):
            continue
        rows.append((name, *(" / ".join(f"{each.mean_sqnr:.1f}" for each in pair if each) for pair in found)))
    return _table(("method", *(f"{width} bit" for width in bits)), rows)


def _elements(family: str) -> str:
    """LUTs of processing elements, or areas of cells, from ``pe_table.json``; the baselines beside."""
    data = json.loads((DOCS / "pe_table.json").read_text(encoding="utf-8"))
    found = {(row["element"], row["lanes"]): row for row in data["elements"] if row["family"] == family}
    lanes = sorted({lanes for _, lanes in found})
    # What is compared: elements of so many products, and on chips the column.
    sizes = {name: [found.get((name, each), {}).get("area" if family == "cells" else "lut") for each in lanes]
             + [found.get((name, 1), {}).get("column_lut")] * (family != "cells")
             for name in dict.fromkeys(row["element"] for row in data["elements"] if row["family"] == family)}

    def shown(values: Sequence[float | None], digits: int = 1) -> str:
        return " / ".join(f"{value:.{digits}f}".removesuffix(".0") if value else "-" for value in values)

    def ratios(name: str, base: str) -> str:
        return shown([size and other and size / other for size, other in zip(sizes[name], sizes[base], strict=True)], 2)

    def clocks(name: str) -> str:
        both = (found[name, each].get("fmax", {}) for each in lanes if (name, each) in found)
        return "; ".join(", ".join(f"{clock:.0f}" for clock in each.values()) for each in both if each)

    rows = []
    for name, size in sizes.items():
        compared = [ratios(name, base) for base in ("int8_plain", "int8_booth", "int4_booth")]
        rows.append((f"`{name}`", shown(size), *compared) if family == "cells" else
                    (f"`{name}`", shown(size), shown([found.get((name, each), {}).get("ff") for each in lanes]),
                     *compared, clocks(name)))
    against = ("/ int8 `*`", "/ int8 Booth", "/ int4 Booth")
    return _table(("element", "gate equivalents", *against) if family == "cells" else
                  ("element", "LUT", "FF", *against, "MHz"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "formats": _formats,
    "opcodes": lambda: _enum(Opcode),
    "targets": _targets,
    "operations": lambda: _enum(LayerOp),
    "descriptor": lambda: field_table(DESCRIPTOR),
    "parameters": lambda: field_table(parameter_fields(EXAMPLE)),
    "wire_request": lambda: field_table(REQUEST),
    "wire_reply": lambda: field_table(REPLY),
    "models": _models,
    "quantizers": _quantizers,
    **{f"registers_{top}": registers.table for top, registers in REGISTER_MAPS.items()},
    **{f"elements_{family}": partial(_elements, family) for family in (*FABRICS, "cells")},
    "counters": lambda: _table(("counter", "meaning"), [(f"`{name}`", text) for name, text in COUNTERS.items()]),
}

_PLACE = re.compile(r"(?<=<!-- table: )(\w+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)


def updated(text: str) -> str:
    """Return a page with its tables written anew."""
    return _PLACE.sub(lambda match: f"{match[1]}{match[2]}\n{TABLES[match[1]]()}\n", text)


def main(arguments: Sequence[str]) -> int:
    """Update all pages; with ``--check``, name those that are out of date."""
    stale = []
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if updated(text) != text:
            stale.append(page.name)
            if "--check" not in arguments:
                page.write_text(updated(text), encoding="utf-8")
    if stale:
        print(f"{'out of date, run `make docs`' if '--check' in arguments else 'updated'}: {', '.join(stale)}")
    return int(bool(stale) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
