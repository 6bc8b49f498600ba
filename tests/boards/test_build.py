# amaranth: UnusedElaboratable=no
"""`nomul build`: what it writes, what it refuses, and what it does when timing is missed. No tool of a family runs."""

import json
import re
import tkinter

import pytest
from typer.testing import CliRunner

from nomul.cli import app
from nomul.files import load_program, save_graph, save_program
from nomul_boards import boards as boards_module
from nomul_boards import build as build_module
from nomul_boards import placing, tools
from nomul_boards.boards import BOARDS
from nomul_boards.build import build
from nomul_boards.errors import BuildError
from nomul_hw.config import load_config
from nomul_hw.pnr import Hop, Route, Routing
from nomul_hw.verilog import Generated
from tests.sw.small import CONFIG, CONFIG_TOML, small_graph, small_program


def run(*arguments):
    return CliRunner().invoke(app, ["build", *map(str, arguments)])


@pytest.fixture
def network(tmp_path):
    """A network's folder."""
    return save_graph(small_graph(), tmp_path / "net.nomul")


@pytest.fixture(autouse=True)
def small_arrays(monkeypatch):
    """Boards with small arrays: what is shipped for them takes many seconds to be written."""
    monkeypatch.setattr(boards_module.Board, "config", lambda board: CONFIG)


@pytest.fixture
def placed(monkeypatch):
    """No generation, no place and route: returns what they were given, and the clock that is achieved."""
    given = {"achieved": 60.0}

    def generate(config, directory, *, contents, bus, family, lint):
        given.update(config=config, bus=bus, family=family)
        directory.mkdir(parents=True)
        (directory / "machine.v").write_text("module machine; endmodule\n")
        for table in contents.tables.values() if contents else ():
            (directory / table.file).write_text(table.text)
        return Generated(directory / "machine.v", directory / "manifest.json", {"top": "machine"}, None)

    def place(board, top, files, folder, *, clock, seeds, progress):
        given.update(top=top, files=files, clock=clock, seeds=tuple(seeds))
        folder.mkdir()
        bitstream = folder / f"top.{board.suffix}"
        bitstream.write_bytes(b"bits")
        (folder / "placed.json").write_text("{}")
        routing = Routing(board.chip, "", "", ("Yosys", "nextpnr"), "nextpnr", {1: given["achieved"]},
                          Route("generator.a", "array.b", 16.7, 9.0, (Hop("generator", 3, 9.0), Hop("array", 2, 7.7))),
                          {"TRELLIS_COMB": (1000, 83640), "TBUF": (3, 0)}, {"array": {"TRELLIS_COMB": 900}})
        return routing, bitstream if given["achieved"] >= clock else None

    monkeypatch.setattr(build_module, "generate", generate)
    monkeypatch.setattr(build_module, "place", place)
    monkeypatch.setattr(build_module, "check_tools", lambda board: None)
    return given


def test_list():
    done = run("--list", "--json")
    boards = json.loads(done.stdout)["boards"]
    assert set(boards) == set(BOARDS)
    assert {"family", "chip", "clock", "array", "lut"} <= set(boards["icebreaker"])
    assert "iCE40UP5K" in run("--list").stdout


def test_what_is_written(network, placed, tmp_path):
    out = tmp_path / "out"
    done = run("ulx3s-85f", network, "--out", out, "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert sorted(path.name for path in out.iterdir()) == [
        "array.toml", "program.nomul", "project", "report.json", "report.txt", "ulx3s-85f.bit", "verilog"]
    assert (out / "ulx3s-85f.bit").read_bytes() == b"bits"
    assert not (out / "project" / "placed.json").exists()
    program = load_program(out / "program.nomul")
    assert program.config == CONFIG == load_config(out / "array.toml")
    report = json.loads((out / "report.json").read_text())
    assert report["clock_mhz"] == 50 and report["met"] and report["cycles"] == program.estimate().cycles
    assert report["routing"]["used"] == {"TRELLIS_COMB": [1000, 83640], "TBUF": [3, 0]}
    assert "generator.a to array.b" in (out / "report.txt").read_text()
    assert document["commands"] == [
        f"openFPGALoader -b ulx3s {out}/ulx3s-85f.bit",
        f"nomul run {out}/program.nomul INPUT.npy --port /dev/ttyUSB0 --baud 3000000"]
    # The PLL makes the clock that the serial line counts on.
    assert placed["top"].pll and "pll.v" in placed["files"] and placed["clock"] == 50
    assert placed["bus"].clock == 50_000_000 and placed["family"] == "ecp5"
    # A second build takes the place of the first.
    assert run("ulx3s-85f", network, "--out", out).exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.nomul", "out"]


def test_missed_timing(network, placed, tmp_path):
    placed["achieved"] = 47.25
    done = run("ulx3s-85f", network, "--out", tmp_path / "out", "--seeds", 3)
    assert done.exit_code == 1
    assert placed["seeds"] == (1, 2, 3)
    assert done.stderr.splitlines()[-1] == (
        "the clock is missed: 47.2 MHz of 50 MHz, by a path through generator, array (generator.a to array.b); nothing "
        "was written")
    assert "openFPGALoader" not in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.nomul"]


def test_choices(network, placed, tmp_path):
    (tmp_path / "array.toml").write_text(CONFIG_TOML.replace("layers = 4", "layers = 8"))
    done = run("icebreaker", network, "--out", tmp_path / "out", "--config", tmp_path / "array.toml",
               "--clock", "12MHz", "--baud", 115200)
    assert done.exit_code == 0, done.stderr
    assert placed["config"].memory.layers == 8
    assert (placed["bus"].clock, placed["bus"].baud) == (12_000_000, 115200)
    assert not placed["top"].pll
    assert "--baud 115200" in done.stdout


def test_a_program_for_another_array(placed, tmp_path):
    program = save_program(small_program(), tmp_path / "program.nomul")
    (tmp_path / "array.toml").write_text(CONFIG_TOML.replace("layers = 4", "layers = 8"))
    done = run("ulx3s-85f", program, "--out", tmp_path / "out", "--config", tmp_path / "array.toml")
    assert done.exit_code == 0, done.stderr
    assert load_program(tmp_path / "out" / "program.nomul").config.memory.layers == 8


def test_self_test(network, placed, tmp_path):
    out = tmp_path / "out"
    done = run("tang-nano-9k", network, "--out", out, "--selftest")
    assert done.exit_code == 0, done.stderr
    assert not placed["top"].serial
    assert any(name.endswith(".hex") for name in placed["files"])
    assert json.loads((out / "report.json").read_text())["baud"] is None
    assert "the LED blinks as long as all is right" in done.stdout and "nomul run" not in done.stdout


def test_mistakes(network, placed, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    (tmp_path / "file").touch()
    for arguments, message in [
        (["ulx3s-85f"], "give a board and a network, or --list"),
        (["ulx4s", network], "there is no board 'ulx4s'; there are ulx3s-85f, "),
        (["ulx3s-85f", tmp_path / "nothing"], "nothing: "),
        (["ulx3s-85f", network, "-o", tmp_path / "other"], "is not what `nomul build` wrote (it has mine.txt)"),
        (["ulx3s-85f", network, "-o", tmp_path / "file"], "file: is not a folder"),
        (["ulx3s-85f", network, "--clock", "fast"], "a clock is a frequency"),
        (["icebreaker", network, "--baud", "9600", "--selftest"], "--baud goes with a serial line"),
    ]:
        done = run(*arguments)
        assert done.exit_code == 2, arguments
        assert message in done.stderr and done.stderr.count("\n") <= 3
        assert not done.stdout
    assert (tmp_path / "other" / "mine.txt").exists()


def test_missing_tools(network, monkeypatch):
    monkeypatch.setattr(tools.util, "find_spec", lambda name: None)
    monkeypatch.setattr(tools.shutil, "which", lambda name: None)
    done = run("icebreaker", network)
    assert done.exit_code == 2
    assert done.stderr == "nomul: this needs icepack, which is not installed: pip install 'nomul[boards]'\n"
    with pytest.raises(BuildError, match=r"gowin_pack"):
        placing.check_tools(BOARDS["tang-nano-9k"])


# Vivado --------------------------------------------------------------------------------------------------------------

#: Vivado's commands that a script may use: each is a line of what was run.
VIVADO = ("create_project", "add_files", "read_xdc", "synth_design", "opt_design", "place_design", "route_design",
          "phys_opt_design", "report_timing", "report_timing_summary", "report_utilization", "report_io",
          "report_control_sets", "report_clock_utilization", "report_route_status", "report_drc", "report_methodology",
          "report_power", "write_checkpoint", "write_bitstream", "write_cfgmem", "set_property", "current_design",
          "get_cells", "get_pins", "get_ports", "get_nets", "get_iobanks", "create_clock", "set_false_path")


def dry_run(project, slack):
    """Run a project's script and constraints with commands that only say that they were called."""
    tcl = tkinter.Tcl()
    for command in VIVADO:
        tcl.eval(f"proc {command} args {{ lappend ::called [list {command} {{*}}$args]; return {{}} }}")
    tcl.eval(f"proc get_timing_paths args {{ return path }}; proc get_property args {{ return {slack} }}")
    tcl.eval("set ::called {}; set ::said {}; proc puts text { lappend ::said $text }")
    tcl.eval("proc exit {{code 0}} { return -code error \"exit $code\" }; proc quit {} { exit 0 }")
    for name in ("top.xdc", "top.tcl"):
        text = (project / name).read_text()
        assert tcl.eval(f"info complete {{{text}}}") == "1"
    tcl.eval((project / "top.xdc").read_text())
    with pytest.raises(tkinter.TclError) as ended:
        tcl.eval((project / "top.tcl").read_text())
    called = [tcl.splitlist(line) for line in tcl.splitlist(tcl.eval("set ::called"))]
    return str(ended.value), called, tcl.eval("set ::said")


@pytest.mark.parametrize("name", ["arty-a7-35t", "pynq-z2"])
def test_vivado_project(name, placed, tmp_path):
    board = BOARDS[name]
    built = build(board, small_graph(), tmp_path / "out")
    project = tmp_path / "out" / "project"
    assert built.routing is None and built.commands[0].endswith("vivado -mode batch -source top.tcl)")
    ended, called, _ = dry_run(project, slack=0.1)
    commands = [line[0] for line in called]
    assert ended == "exit 0" and "write_bitstream" in commands
    assert commands.index("route_design") < commands.index("write_bitstream")
    read = [line[1] for line in called if line[0] in ("add_files", "read_xdc")]
    assert all((project / file).is_file() for file in read) and {"top.v", "pll.v", "top.xdc"} < set(read)
    part = next(line[line.index("-part") + 1] for line in called if line[0] == "create_project")
    assert part.startswith({"arty-a7-35t": "xc7a35ti", "pynq-z2": "xc7z020"}[name])
    # Every port has a place and a standard.
    ports = set(re.search(r"^module top\((.*?)\);", (project / "top.v").read_text(), re.MULTILINE)[1].split(", "))
    constrained = set(re.findall(r'^set_property (LOC|IOSTANDARD) \S+ \[get_ports "(\w+)"\]',
                                 (project / "top.xdc").read_text(), re.MULTILINE))
    assert constrained == {(kind, port) for kind in ("LOC", "IOSTANDARD") for port in ports} and len(ports) == 4
    # One timing that is missed, and there is no bitstream.
    ended, called, said = dry_run(project, slack=-0.2)
    assert ended == "exit 1" and "write_bitstream" not in [line[0] for line in called]
    assert "the clock is missed: setup slack -0.2 ns" in said


def test_vivados_pll_is_one(placed, tmp_path):
    build(BOARDS["arty-a7-35t"], small_graph(), tmp_path / "out", clock=62.5)
    text = (tmp_path / "out" / "project" / "pll.v").read_text()
    period, multiply, divide = (float(re.search(rf"{name}\(([\d.]+)\)", text)[1])
                                for name in ("CLKIN1_PERIOD", "CLKFBOUT_MULT", "CLKOUT0_DIVIDE"))
    assert 800 <= 1e3 / period * multiply <= 1600
    assert 1e3 / period * multiply / divide == 62.5
