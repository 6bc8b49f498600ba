"""What commands show: tables and remarks for people, one JSON document for programs, and the demo's picture.

Nothing is computed here. Results go to stdout; remarks and progress to stderr, so that stdout can be piped.
"""

import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from matplotlib.axes import Axes

    from nomul_boards.boards import Board
    from nomul_boards.build import Build
    from nomul_hw.cells import CellArea, CellSynthesis
    from nomul_hw.families import Cost
    from nomul_hw.pnr import Routing
    from nomul_hw.synth import Synthesis
    from nomul_hw.verilog import Generated

    from .compiler import Program
    from .demo import DemoResult, Row
    from .driver import RunResult
    from .energy import Energy
    from .estimate import Estimate
    from .fit import Fit
    from .graph import Graph
    from .quantize import QuantizeReport
    from .quantize.attribution import Attribution, LayerAttribution
    from .quantize.mixed import MixedResult
    from .schedule import Schedule
    from .verify import Verification

__all__ = ["attribution_table", "boards_table", "build_table", "demo_table", "energy_table", "estimate_table",
           "fit_table", "generated_table", "json_text", "plain", "plot_attribution", "plot_demo", "print_json",
           "print_text", "program_memory", "program_table", "quantize_table", "remark", "run_table", "search_table",
           "steps", "synthesis_table", "text_of", "verification_table"]

#: Width of tables that do not go to a terminal: nothing is cut short.
_FILE_WIDTH = 200


def plain(value: Any) -> Any:
    """Make data JSON-safe: infinite and undefined numbers become null, paths text, tuples lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def json_text(document: Mapping[str, Any]) -> str:
    """Write a result as JSON, with a newline at its end."""
    return json.dumps(plain(document), indent=2, allow_nan=False) + "\n"


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document on stdout."""
    sys.stdout.write(json_text(document))


def print_text(content: RenderableType) -> None:
    """Print text or a table on stdout."""
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else _FILE_WIDTH
    Console(file=sys.stdout, width=width, highlight=False).print(content)


def text_of(content: RenderableType) -> str:
    """A table as plain text, for a file."""
    file = StringIO()
    Console(file=file, width=_FILE_WIDTH, highlight=False).print(content)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def remark(message: str) -> None:
    """Tell the user something on stderr."""
    sys.stderr.write(f"{message}\n")


@contextmanager
def steps(first: str | None = None) -> Iterator[Callable[[str], None]]:
    """Tell on stderr what is being done: a line per step, with the time since the start; on a terminal a spinner too.

    Yields
    ------
    callable
        To be called with each further step.
    """
    since = time.monotonic()
    terminal = sys.stderr.isatty()
    console = Console(stderr=True, highlight=False)

    def tell(message: str) -> None:
        if terminal:
            console.print(Text(f"{time.monotonic() - since:6.1f} s  {message}", style="dim"))
        else:
            remark(message)

    with console.status("") if terminal else nullcontext():
        if first:
            tell(first)
        yield tell


def _table(*columns: str) -> Table:
    """A table whose columns are aligned to the right, but those that start with ``<``."""
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column.removeprefix("<"), justify="left" if column.startswith("<") else "right",
                         overflow="fold")
    return table


class _Fitting:
    """Shows the first of several forms that fits the width, or else the last."""

    def __init__(self, *forms: RenderableType):
        self.forms = forms

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        fitting = (form for form in self.forms
                   if Measurement.get(console, options.update(max_width=10_000), form).maximum <= options.max_width)
        yield next(fitting, self.forms[-1])


def _ratio(value: float) -> str:
    return f"{100 * value:.1f} %"


def _verdict(ok: bool, text: str) -> Text:
    return Text(text, style="bold green" if ok else "bold red")


def quantize_table(graph: "Graph", report: "QuantizeReport") -> RenderableType:
    """Where the accuracy went, layer by layer."""
    from .graph import Conv

    table = _table("<layer", "<kind", "<weights", "<output", "rho", "weights dB", "output dB", "zero weights",
                   "<exponents used", "saturated", "scale")
    for node, layer in zip(graph.computing, report.layers, strict=True):
        shape = graph.tensor(node.output).shape
        table.add_row(layer.name, layer.kind, graph.format_of(node).name if isinstance(node, Conv) else "",
                      " x ".join(map(str, shape)),
                      "" if layer.rho is None else f"{layer.rho:.4f}",
                      "" if layer.weight_sqnr is None else f"{layer.weight_sqnr:.1f}", f"{layer.output_sqnr:.1f}",
                      "" if layer.zeros is None else _ratio(layer.zeros),
                      _exponents(layer.exponents), _ratio(layer.saturation),
                      f"2^{layer.exponent}")
    note = ("dB: power of the float values over that of the error, on the calibration inputs; rho: correlation of the\n"
            "float weights with the quantized ones; exponents: the lowest of the levels in use, and per cent of\n"
            "the weights with it, with the next, and so on")
    return Group(table, "", Text(note, style="dim"))


def _exponents(shares: Mapping[int, float]) -> str:
    return f"{min(shares)}: {' '.join(f'{100 * share:.0f}' for share in shares.values())}" if shares else ""


def attribution_table(result: "Attribution") -> RenderableType:
    """Every layer's part in the error, and what is worth a look."""
    table = _table("<\nlayer", "<\nkind", "<\nweights", "zero\nweights", "levels\nused", "entropy\nbits",
                   "weights\ndB", "layer, dB\nfake", "\ninteger", "network, dB\nup to here", "weights\nalone",
                   "codes\nalone", "\nsaturated", "dead\nchannels")

    def decibels(value: float | None) -> str:
        return "" if value is None else f"{value:.1f}"

    for layer in result.layers:
        weights = [""] * 4
        if layer.zeros is not None and layer.entropy is not None:
            weights = [_ratio(layer.zeros), f"{len(layer.levels) - layer.unused} of {len(layer.levels)}",
                       f"{layer.entropy:.2f}", decibels(layer.weight_sqnr)]
        table.add_row(layer.name, layer.kind, layer.format or "", *weights,
                      decibels(layer.fake_sqnr), decibels(layer.integer_sqnr), decibels(layer.up_to_here),
                      decibels(layer.from_weights), decibels(layer.from_codes), _ratio(layer.saturation),
                      f"{layer.dead} of {layer.channels}" if layer.dead else "",
                      style="bold red" if layer.differences else "")
    parts = decibels(result.parts_sqnr)
    lines = [f"{result.samples} samples: output {decibels(result.output_sqnr)} dB; all parts' errors added: {parts}"]
    if result.agreement is not None:
        lines.append(f"largest output as in float: {_ratio(result.agreement)}")
    if result.float_accuracy is not None and result.integer_accuracy is not None:
        lines.append(f"accuracy: {_ratio(result.float_accuracy)} in float, {_ratio(result.integer_accuracy)} in "
                     f"integers")
    note = ("dB: power of the float values over that of the error; layer: of its output; network: of the network's\n"
            "output, in integers up to here and in float after it, or all in float but these weights or these codes")
    findings = [Text(f"- {finding}", style="" if result.ok else "bold red") for finding in result.findings]
    return Group(table, Text(note, style="dim"), "", *lines, *findings)


def search_table(result: "MixedResult") -> RenderableType:
    """What every format costs every layer, and how the choices compare."""
    best, names = result.best, list(dict.fromkeys(name for row in result.sensitivity.values() for name in row))
    layers = _table("<layer", *names, "<chosen")
    for name, row in result.sensitivity.items():
        layers.add_row(name, *(f"{row[fmt]:.1f}" if fmt in row else "" for fmt in names), best.formats[name])
    note = "dB: power of the network's output over that of the error that a layer's weights alone bring"
    first = result.choices[0]
    table = _table("<formats", "bits", *(["<array", "cycles"] if first.cycles is not None else []),
                   *(["LUTs"] if result.budget.luts is not None else []), "predicted dB", "measured dB",
                   *(["as in float"] if first.agreement is not None else []),
                   *(["accuracy"] if first.accuracy is not None else []), "<")
    for choice in result.choices:
        table.add_row(
            choice.name, f"{choice.bits:.2f}",
            *([choice.array or "", f"{choice.cycles:,}" if choice.cycles else ""] if first.cycles is not None else []),
            *([f"{choice.luts:,}" if choice.luts else ""] if result.budget.luts is not None else []),
            f"{choice.predicted_sqnr:.1f}", f"{choice.output_sqnr:.1f}",
            *([] if choice.agreement is None else [_ratio(choice.agreement)]),
            *([] if choice.accuracy is None else [_ratio(choice.accuracy)]),
            "chosen" if choice is best else "" if choice.within else "beyond the budget",
            style="bold" if choice is best else "" if choice.within else "dim")
    lines = [] if result.float_accuracy is None else [f"accuracy in float: {_ratio(result.float_accuracy)}"]
    return Group(layers, Text(note, style="dim"), table, *lines)


def program_memory(program: "Program | Schedule") -> dict[str, dict[str, Any]]:
    """Words that a program takes of its array's memories: ``used``, ``of``, and what a word ``holds``.

    Of a schedule, ``used`` is the most that one of its programs takes.
    """
    from nomul_hw.descriptor import HOST_BITS, Target, target_word_bits

    from .schedule import Schedule

    if isinstance(program, Schedule):
        each = [program_memory(step.program) for step in program.steps]
        return {name: max((memory[name] for memory in each), key=lambda use: int(use["used"])) for name in each[0]}
    config = program.config

    def words(array: "npt.NDArray[np.uint32]", target: Target) -> int:
        return array.size // -(-target_word_bits(config, target) // HOST_BITS)

    uses = {
        f"activations_{bank}": (max((place.address + place.words for place in program.placements.values()
                                     if place.bank == bank), default=0),
                                config.memory.activations, f"{config.depth} channels")
        for bank in (0, 1)
    }
    uses["weights"] = (words(program.weights, Target.WEIGHT), config.memory.weights,
                       f"{config.cols * config.lanes} codes")
    uses["parameters"] = (words(program.parameters, Target.PARAMETER), config.memory.parameters,
                          f"{config.requantize_lanes} channels")
    uses["layers"] = (len(program.layers), config.memory.layers, "one descriptor")
    return {name: dict(zip(("used", "of", "holds"), use, strict=True)) for name, use in uses.items()}


def program_table(program: "Program | Schedule") -> RenderableType:
    """What a program takes of its array's memories."""
    from .schedule import Schedule

    table = _table("<memory", "words used", "of", "share", "<a word holds")
    for name, use in program_memory(program).items():
        table.add_row(name, f"{use['used']:,}", f"{use['of']:,}", _ratio(use["used"] / use["of"]), use["holds"])
    if isinstance(program, Schedule):
        traffic = _traffic(program.estimate())
        return Group(table, "", f"does not fit as a whole: {len(program.steps)} programs; {traffic}")
    return table


def _traffic(estimate: "Estimate") -> str:
    return f"{estimate.runs:,} runs and {estimate.host_words:,} words between host and array for a sample"


def generated_table(made: "Generated") -> RenderableType:
    """What was generated, and what the linters said."""
    manifest = made.manifest
    modules = manifest["modules"]
    table = _table("<", "<")
    table.show_header = False
    table.add_row("Verilog", str(made.verilog))
    table.add_row("manifest", str(made.manifest_path))
    table.add_row("top module", str(manifest["top"]))
    table.add_row("modules", f"{modules['distinct']}, instantiated {modules['instances']} times")
    if baked := manifest.get("baked"):
        table.add_row("program", f"{baked['identity']:08x}, built in from {', '.join(baked['files'])}")
    for result in made.lint.results if made.lint else ():
        told = f"{result.tool} {result.version}".rstrip()
        table.add_row("lint", _verdict(result.status in ("clean", "not run"), f"{told}: {result.status}"))
        for message in result.messages:
            table.add_row("", message)
    return table


def synthesis_table(result: "Synthesis") -> RenderableType:
    """What every module occupies, all of them, and how that compares with the array."""
    array = result.array
    table = _table("<module", "logic", "carry", "LUTs", "of the array's", "logic only", "FF", "block RAM",
                   "multipliers")

    def add(name: str, cost: "Cost") -> None:
        table.add_row(name, f"{cost.logic:,}", f"{cost.carry:,}", f"{cost.lut:,}", _ratio(cost.lut / array.lut),
                      _ratio(cost.logic / array.logic), f"{cost.ff:,}", str(cost.bram),
                      _verdict(not cost.dsp, str(cost.dsp)))

    for name, cost in result.modules.items():
        add(name, cost)
    table.add_section()
    add("beside the array", result.beside)
    add("total", result.total)
    return Group(table, f"{result.family}, {result.tool}; carry: LUTs in carry cells, which are not logic")


def cells_table(result: "CellSynthesis") -> RenderableType:
    """What every module takes in standard cells, and all of them."""
    table = _table("<module", "logic, µm²", "flip-flops, µm²", "gate equivalents", "memory, bits")

    def add(name: str, area: "CellArea") -> None:
        table.add_row(name, f"{area.combinational:,.0f}", f"{area.sequential:,.0f}",
                      f"{result.gates(area.total):,.0f}", f"{area.memory:,}")

    for name, area in result.modules.items():
        add(name, area)
    table.add_section()
    add("total", result.total)
    return Group(table, f"{result.library}, {result.tool}; a gate equivalent is a NAND of two inputs, "
                        f"{result.nand2:g} µm²; memories are not part of the areas")


def routing_table(result: "Synthesis", routing: "Routing", macs_per_cycle: int) -> RenderableType:
    """What was synthesized, what it takes up on the chip, the highest clock and the slowest path."""
    chip = " ".join(part for part in (routing.device, routing.package, routing.speed) if part)
    clocks = ", ".join(f"{clock:.1f} (seed {seed})" for seed, clock in routing.clocks.items())
    return Group(
        synthesis_table(result), "", _placed_table(routing),
        f"{chip}: occupied after packing, with the harness; {routing.tools[1]}", "", *_path_table(routing), "",
        f"highest clock: {routing.fmax:.1f} MHz, {routing.fmax * macs_per_cycle / 1e3:,.1f} GMAC/s; "
        f"all seeds, MHz: {clocks}")


def _placed_table(routing: "Routing") -> Table:
    """What is occupied on the chip, module by module."""
    # Buffers of pins are no cells of their own: some chips count none of them.
    kinds = [kind for kind, (used, available) in routing.used.items()
             if used > 1 and available and not kind.endswith(("IO", "IOB"))]
    cells = _table("<module", *kinds)
    for name, counts in routing.modules.items():
        if any(kind in counts for kind in kinds):
            cells.add_row(name, *(f"{counts.get(kind, 0):,}" for kind in kinds))
    cells.add_section()
    cells.add_row("total", *(f"{routing.used[kind][0]:,}" for kind in kinds), style="bold")
    cells.add_row("of the chip's", *(_ratio(routing.used[kind][0] / routing.used[kind][1]) for kind in kinds))
    return cells


def _path_table(routing: "Routing") -> tuple[RenderableType, ...]:
    """The slowest path, module by module, and where it begins and ends."""
    path = routing.path
    hops = _table("<slowest path", "cells", "ns")
    for hop in path.hops:
        hops.add_row(hop.module, str(hop.cells), f"{hop.delay:.2f}")
    return hops, f"from {path.source} to {path.sink}: {path.delay:.2f} ns, of which {path.wires:.2f} in wires"


def boards_table(boards: "Iterable[Board]") -> RenderableType:
    """Boards, what is on them and what is shipped for them."""
    table = _table("<board", "<chip", "<family", "LUTs", "MHz", "<array", "products", "<tools")
    for board in boards:
        config = board.config()
        table.add_row(board.name, board.chip, board.family, f"{board.size.lut:,}", f"{board.clock:g}", config.name,
                      str(config.macs_per_cycle), "free" if board.open else "Vivado")
    return table


def build_table(build: "Build") -> RenderableType:
    """What was built for a board: utilisation, slowest path, clock; and what to type next."""
    board, routing = build.board, build.routing
    parts: list[RenderableType] = []
    if routing is not None:
        clocks = ", ".join(f"{clock:.1f} (seed {seed})" for seed, clock in routing.clocks.items())
        parts += [_placed_table(routing), "", *_path_table(routing), "",
                  f"highest clock, MHz: {clocks}; wanted: {build.clock:g}"]
    else:
        parts.append("a project for Vivado, which has the last word on fit and timing")
    if build.met:
        line = f"serial line: {board.wiring}" if build.serial else "a self-test: the LED blinks as long as all is right"
        parts += ["", line, *(f"  {command}" for command in build.commands)]
    return Group(f"{board.title}, {board.chip}: {build.config.name} at {build.clock:g} MHz; a sample takes "
                 f"{build.cycles:,} cycles, {build.cycles / build.clock / 1e3:.3f} ms", "", *parts)


def run_table(program: "Program | Schedule", result: "RunResult", *, most: int = 20) -> RenderableType:
    """The first samples' largest outputs and cycles."""
    graph = program.graph
    exponent, zero_point = graph.tensor(graph.output).exponent, graph.tensor(graph.output).zero_point
    table = _table("sample", "largest output", "its code", "its value", *(["cycles"] if result.counters else []))
    flat = result.outputs.reshape(len(result.outputs), -1)
    for index, codes in enumerate(flat[:most]):
        at = int(codes.argmax())
        table.add_row(str(index), str(at), str(codes[at]), f"{(int(codes[at]) - zero_point) * 2.0**exponent:g}",
                      *([f"{result.counters[index]['total']:,}"] if result.counters else []))
    more = [f"... and {len(flat) - most} more samples"] if len(flat) > most else []
    code = f"(code + {-zero_point})" if zero_point else "code"
    return Group(table, *more, f"output: codes of shape {graph.output_shape}; value = 2^{exponent} * {code}")


def estimate_table(estimate: "Estimate", megahertz: float | None = None) -> RenderableType:
    """Cycles per layer and cause, with their sum; and times, if there is a clock."""
    exact = estimate.model == "nomul"
    causes = [name for name, cycles in estimate.accounting.items() if name != "total" and (exact or cycles)]
    table = _table("<layer", "cycles", "utilisation", "MACs", *causes)
    for layer in estimate.layers:
        table.add_row(layer.name, f"{layer.cycles:,}", _ratio(estimate.share(layer.macs, layer.cycles)),
                      f"{layer.macs:,}", *(f"{layer.counters[cause]:,}" for cause in causes))
    table.add_section()
    table.add_row("all", f"{estimate.cycles:,}", _ratio(estimate.utilisation), f"{estimate.macs:,}",
                  *(f"{estimate.accounting[cause]:,}" for cause in causes), style="bold")
    lines = [f"{estimate.config.name}: {estimate.config.macs_per_cycle} products per cycle; cycles of one sample, "
             + ("exact" if exact else f"by the model {estimate.model}")]
    if estimate.runs is not None:
        lines.append(f"does not fit as a whole: {_traffic(estimate)}")
    if estimate.memory:
        lines.append("memory, in words: " + ", ".join(f"{words:,} {name}" for name, words in estimate.memory.items()))
    if megahertz is not None:
        time = estimate.milliseconds(megahertz)
        lines.append(f"{megahertz:g} MHz: {time:,.3f} ms, {1e3 / time:,.1f} samples per second")
    return Group(table, "", *lines)


def fit_table(result: "Fit", megahertz: float | None = None, *, most: int = 8) -> RenderableType:
    """The fastest arrays that fit a board."""
    table = _table("<array", "products", "cycles", *(["ms"] if megahertz else []), "LUTs", "of all", "FF", "of all",
                   "block RAMs", "of all")
    board = result.board
    for candidate in result.candidates[:most]:
        cost = candidate.cost
        table.add_row(
            candidate.config.name, str(candidate.config.macs_per_cycle), f"{candidate.cycles:,}",
            *([f"{candidate.cycles / megahertz / 1e3:,.3f}"] if megahertz else []), f"{cost.lut:,}",
            _ratio(cost.lut / board.lut), f"{cost.ff:,}", _ratio(cost.ff / board.ff), str(cost.bram),
            _ratio(cost.bram / board.bram), style="bold" if candidate is result.best else "")
    note = (f"{board.name}: {board.chip}; cycles of one sample, exact; LUTs and flip-flops predicted:\n"
            f"in the sweep {result.errors} off")
    return Group(table, Text(note, style="dim"))


def energy_table(energy: "Energy", multipliers: "Energy") -> RenderableType:
    """Energy per layer and part, and that of an array of multipliers."""
    from .energy import PARTS

    table = _table("<layer, nJ", "energy", "pJ a MAC", *PARTS)

    def add(name: str, total: float, macs: int, parts: Mapping[str, float], style: str = "") -> None:
        table.add_row(name, f"{total / 1e3:,.1f}", f"{total / macs:.2f}" if macs else "",
                      *(f"{parts[part] / 1e3:,.1f}" if parts[part] else "" for part in PARTS), style=style)

    for layer in energy.layers:
        add(layer.name, layer.total, layer.macs, layer.parts)
    table.add_section()
    add("all", energy.total, energy.macs, energy.parts, "bold")
    add(f"all, {multipliers.config.name}", multipliers.total, multipliers.macs, multipliers.parts)
    share = multipliers.on_chip / energy.on_chip
    line = f"on the chip {energy.on_chip / 1e3:,.1f} nJ, with 8-bit multipliers {share:.2f} times as much"
    note = ("published figures for 45 nm times exact counts; without clocks, registers and leakage; outside: from and\n"
            "to the host, and streamed weights")
    return Group(table, "", line, Text(note, style="dim"))


def verification_table(verification: "Verification") -> RenderableType:
    """What a comparison with the golden model and the estimate found."""
    table = _table("<layer, run on its own", "wrong bits", "RTL cycles", "estimated")
    for layer in verification.layers:
        ok = not layer.mismatches and layer.cycles == layer.estimated_cycles
        table.add_row(layer.name, f"{layer.mismatches:,}", f"{layer.cycles:,}", f"{layer.estimated_cycles:,}",
                      style="" if ok else "bold red")
    counters = _table("<one whole sample", *verification.accounting)
    counters.add_row("RTL", *(f"{cycles:,}" for cycles in verification.accounting.values()))
    counters.add_row("estimated", *(f"{cycles:,}" for cycles in verification.estimated_accounting.values()))
    lines: list[RenderableType] = [table, "", counters, ""]
    lines.append(_verdict(
        verification.ok,
        f"{verification.images} samples: {verification.mismatches:,} of {verification.bits:,} output bits differ, "
        f"{verification.cycle_differences} samples differ in their cycles"))
    if verification.first is not None:
        lines.append(_verdict(False, f"first: {verification.first}"))
    fake = verification.fake
    if fake.skipped:
        lines.append(f"fake quantization was not compared: {fake.skipped}")
    else:
        lines.append(_verdict(not fake.mismatches, f"fake quantization in PyTorch: {fake.mismatches:,} of "
                                                   f"{fake.bits:,} bits of all layers' codes differ"))
    if fake.first is not None:
        lines.append(_verdict(False, f"first: {fake.first}"))
    if verification.suspect is not None:
        lines.append(_verdict(False, f"two of the three agree: look at the {verification.suspect}"))
    return Group(*lines)


def demo_table(result: "DemoResult") -> RenderableType:
    """The demo's table: one row per format; on a narrow terminal the Verilog files stand below it."""
    rows = result.rows
    headings = ("<\nweights", "\nbits", "accuracy\nfloat", "accuracy\ninteger", "wrong\nbits", "cycles\nRTL",
                "cycles\nestimate", "\nused")
    wide, narrow = _table(*headings, "<\nVerilog"), _table(*headings)
    for row in rows:
        cells = (row.label, str(row.bits_per_weight), _ratio(row.float_accuracy), _ratio(row.quantized_accuracy),
                 f"{row.mismatches:,}", f"{row.rtl_cycles:,}", f"{row.estimated_cycles:,}", _ratio(row.utilisation))
        style = "" if row.ok else "bold red"
        wide.add_row(*cells, str(row.verilog), style=style)
        narrow.add_row(*cells, style=style)
    wrong = [row.label for row in rows if not row.ok]
    verdict = _verdict(not wrong, f"RTL differs from the golden model or the estimate: {', '.join(wrong)}" if wrong
                       else "RTL, golden model and estimate agree in every bit and every cycle")
    note = (f"accuracy on {result.test_images} test images; RTL against the golden model on {rows[0].images} of them;\n"
            f"cycles of one image; used: share of the array's products")
    return Group(_Fitting(wide, Group(narrow, *(str(row.verilog) for row in rows), "")), Text(note, style="dim"), "",
                 verdict)


# Colours that stay apart in print and for colour-blind readers.
_INK, _MUTED, _ACCENT, _BASELINE, _WRONG = "#1f2933", "#7b8794", "#0b7285", "#adb5bd", "#c92a2a"


def plot_demo(rows: Sequence["Row"], path: Path, *, title: str) -> None:
    """Draw the demo's rows: accuracy, weight bits and cycles, one line per format.

    Parameters
    ----------
    rows : sequence of Row
        In the order of drawing, top to bottom.
    path : Path
        The PNG file to write.
    title : str
        What was run.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    places = list(range(len(rows)))
    colours = [_BASELINE if row.baseline else _ACCENT for row in rows]
    figure = Figure(figsize=(10, 1.6 + 0.45 * len(rows)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.012, ha="left", fontsize=12, color=_INK, weight="bold")
    accuracy, bits, cycles = figure.subplots(1, 3, sharey=True, width_ratios=[1.5, 1, 1])

    values = [100 * row.quantized_accuracy for row in rows]
    floats = [100 * row.float_accuracy for row in rows]
    accuracy.axvline(floats[0], color=_MUTED, linestyle="--", linewidth=1)
    accuracy.hlines(places, values, floats, color=colours, linewidth=2)
    accuracy.scatter(values, places, s=60, color=colours, zorder=3, clip_on=False)
    for place, value in zip(places, values, strict=True):
        accuracy.annotate(f"{value:.1f}", (value, place), (0, 6), textcoords="offset points", ha="center", fontsize=9,
                          color=_INK)
    # Never less than two points: differences of single images are noise, and should look like it.
    low = min([*values, *floats])
    accuracy.locator_params(axis="x", nbins=5)
    accuracy.set_xlim(min(low - 0.05 * (100 - low), 98.0), 100.1)
    accuracy.grid(axis="x", color="#e4e7eb", linewidth=0.8)
    accuracy.set_axisbelow(True)
    accuracy.set_yticks(places, [row.label for row in rows])
    accuracy.set_ylim(len(rows) - 0.5, -0.5)

    _bars(bits, [row.bits_per_weight for row in rows], colours)
    agree = all(row.ok for row in rows)
    _bars(cycles, [row.rtl_cycles for row in rows],
          [colour if row.ok else _WRONG for row, colour in zip(rows, colours, strict=True)])
    for axis, what in ((accuracy, f"accuracy on the test split, %   (dashed: float, {floats[0]:.1f})"),
                       (bits, "bits per weight"),
                       (cycles, "cycles per image   " + ("(RTL = estimate)" if agree else "(red: RTL differs)"))):
        axis.set_title(what, loc="left", fontsize=9, color=_MUTED)
        axis.tick_params(length=0, colors=_INK, labelsize=9)
        axis.spines[:].set_visible(False)
    accuracy.tick_params(axis="x", colors=_MUTED, labelsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": "nomul"})


def plot_attribution(result: "Attribution", path: Path, *, title: str) -> None:
    """Draw every layer's part in the error: what it loses, which channels are dead, which exponents its weights use.

    Parameters
    ----------
    path : Path
        The file to write, PNG or SVG by its ending.
    title : str
        What was quantized.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layers = result.layers
    places = list(range(len(layers)))
    figure = Figure(figsize=(11, 1.9 + 0.3 * len(layers)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.012, ha="left", fontsize=12, color=_INK, weight="bold")
    lost, dead, use = figure.subplots(1, 3, sharey=True, width_ratios=[2, 0.7, 1.3])

    for values, name, style in (
            ([layer.integer_sqnr for layer in layers], "the layer's output",
             {"color": _BASELINE, "linewidth": 1.5, "linestyle": "--"}),
            ([layer.up_to_here for layer in layers], "the network's output, integers up to here",
             {"color": _INK, "linewidth": 1.5}),
            ([layer.from_weights for layer in layers], "only these weights quantized",
             {"color": _ACCENT, "marker": "o", "linestyle": ""}),
            ([layer.from_codes for layer in layers], "only these output codes",
             {"color": _ACCENT, "marker": "o", "linestyle": "", "markerfacecolor": "white"})):
        # Infinite where nothing is lost: nothing to draw.
        points = [(value, place) for value, place in zip(values, places, strict=True)
                  if value is not None and math.isfinite(value)]
        lost.plot([value for value, _ in points], [place for _, place in points], label=name, **style)
    lost.grid(axis="x", color="#e4e7eb", linewidth=0.8)
    lost.set_axisbelow(True)
    lost.set_yticks(places, [f"{layer.name}  {layer.format or ''}".rstrip() for layer in layers])
    lost.set_ylim(len(layers) - 0.5, -0.5)
    figure.legend(loc="outside lower left", fontsize=8, frameon=False, ncols=4, labelcolor=_INK)

    shares = [100 * layer.dead / layer.channels for layer in layers]
    dead.barh(places, shares, height=0.55, color=_BASELINE)
    for place, layer in zip(places, layers, strict=True):
        if layer.dead:
            dead.annotate(str(layer.dead), (shares[place], place), (3, 0), textcoords="offset points", va="center",
                          fontsize=8, color=_INK)
    dead.set_xlim(0, 1.3 * max(*shares, 1.0))

    start = [0.0] * len(layers)
    for octave in range(-1, _OCTAVES):
        widths = [_octave_share(layer, octave) for layer in layers]
        use.barh(places, widths, left=start, height=0.7, color="white" if octave < 0 else _shade(octave),
                 edgecolor=_MUTED if octave < 0 else "white", linewidth=0.5)
        start = [left + width for left, width in zip(start, widths, strict=True)]
    use.set_xlim(0, 1)
    for axis, what in ((lost, "signal over error, dB"), (dead, "dead channels, %"),
                       (use, "weights: zero (white), then by exponent,\nthe largest darkest")):
        axis.set_title(what, loc="left", fontsize=9, color=_MUTED)
        axis.tick_params(length=0, colors=_INK, labelsize=8)
        axis.spines[:].set_visible(False)
    dead.set_xticks([])
    use.set_xticks([])
    path.parent.mkdir(parents=True, exist_ok=True)
    # The same figures, the same bytes.
    with rc_context({"svg.hashsalt": "nomul"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else {"Software": "nomul"})


#: Exponents that the picture tells apart, from the largest down; what lies below counts as the last.
_OCTAVES = 8


def _octave_share(layer: "LayerAttribution", octave: int) -> float:
    """Share of a layer's weights that lie so many octaves below its format's largest level; of zeros for -1."""
    if not layer.weights:
        return 0.0
    top = max(map(abs, layer.levels)).bit_length()
    found = sum(count for level, count in layer.levels.items()
                if octave == (min(top - abs(level).bit_length(), _OCTAVES - 1) if level else -1))
    return found / layer.weights


def _shade(octave: int) -> tuple[float, float, float]:
    """From the accent colour towards white."""
    part = 0.9 * octave / _OCTAVES
    red, green, blue = (int(_ACCENT[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return red + part * (1 - red), green + part * (1 - green), blue + part * (1 - blue)


def _bars(axis: "Axes", lengths: Sequence[int], colours: Sequence[str]) -> None:
    """Draw horizontal bars with their lengths written at the end."""
    axis.barh(range(len(lengths)), lengths, height=0.55, color=colours)
    for place, length in enumerate(lengths):
        axis.annotate(f"{length:,}", (length, place), (4, 0), textcoords="offset points", va="center", fontsize=9,
                      color=_INK)
    axis.set_xticks([])
    axis.set_xlim(0, 1.25 * max(lengths))
