# amaranth: UnusedElaboratable=no
"""The table of boards: their arrays, their pins."""

import re

import pytest

from nomul.area import block_rams
from nomul.compiler import compile_graph
from nomul_boards.boards import BOARDS, find_board
from nomul_boards.errors import BuildError
from nomul_boards.placing import prepare
from nomul_boards.top import BoardTop
from nomul_hw.families import FAMILIES
from tests.sw.small import small_graph

MODULE = "module machine(input clk, input rst, input rx, output tx, output led); endmodule\n"

#: Pins of clock, LED, rx and tx, from the boards' schematics.
PINS = {
    "ulx3s-85f": ("G2", "B2", "M1", "L4"), "ecpix5-85f": ("K23", "R21", "R26", "R24"),
    "orangecrab-25f": ("A9", "M3", "N17", "M18"), "icebreaker": ("35", "37", "6", "9"),
    "tang-nano-9k": ("52", "10", "18", "17"), "arty-a7-35t": ("E3", "H5", "A9", "D10"),
    "pynq-z2": ("H16", "R14", "Y16", "Y19"),
}


@pytest.mark.parametrize("name", BOARDS)
def test_shipped_array(name):
    board = BOARDS[name]
    config = board.config()
    assert board.family in FAMILIES
    assert config.weights == "memory"  # a serial line has no way for weights
    link = 2 * -(-board.depth * 32 // 16384)
    assert block_rams(config, board.family) + link <= board.size.bram
    assert compile_graph(small_graph(), config).config == config
    assert "{file}" in board.load
    assert f"nomul build {name} NETWORK -o build/{name}" in board.config_path.read_text(encoding="utf-8")


def test_names():
    assert find_board("Arty_A7-35T") is BOARDS["arty-a7-35t"]
    with pytest.raises(BuildError, match=r"^there is no board 'de10'; there are ulx3s-85f, .*pynq-z2$"):
        find_board("de10")


@pytest.mark.parametrize("name", BOARDS)
@pytest.mark.parametrize("pll", [False, True], ids=["direct", "pll"])
def test_pins(name, pll):
    board = BOARDS[name]
    plan = prepare(board, BoardTop(board, "machine", pll=pll), {"machine.v": MODULE})
    (text,) = [text for file, text in plan.files.items() if file.endswith((".lpf", ".pcf", ".cst", ".xdc"))]
    found = dict(
        re.findall(r'LOCATE COMP "(\w+)" SITE "(\w+)"', text) + re.findall(r"set_io (\w+) (\w+)", text)
        + re.findall(r'IO_LOC "(\w+)" (\w+)', text)
        + [(port, pin) for pin, port in re.findall(r'LOC (\w+) \[get_ports "(\w+)"\]', text)])
    clock, led, rx, tx = PINS[name]
    placed = {kind: pin for port, pin in found.items()
              for kind in ("clk", "led", "rx", "tx") if re.search(rf"(^|_){kind}", port)}
    assert placed == {"clk": clock, "led": led, "rx": rx, "tx": tx}
    if board.family in ("ecp5", "ice40", "xilinx"):
        assert re.search({"ecp5": rf'FREQUENCY PORT "\w+" {board.source * 1e6:.1f} HZ',
                          "ice40": rf"set_frequency \w+ {board.source:g}",
                          "xilinx": rf"create_clock -name \w+ -period {1e3 / board.source:g}"}[board.family], text)


@pytest.mark.parametrize("name", BOARDS)
def test_clock_is_the_platforms(name):
    board = BOARDS[name]
    assert board.make_platform().default_clk_frequency == board.source * 1e6


def test_self_test_has_no_serial_line():
    board = BOARDS["orangecrab-25f"]
    plan = prepare(board, BoardTop(board, "machine", pll=False, serial=False), {"machine.v": MODULE})
    assert set(re.findall(r'LOCATE COMP "(\w+)"', plan.files["top.lpf"])) == {"clk_0__io", "rgb_led_0__g__io"}
