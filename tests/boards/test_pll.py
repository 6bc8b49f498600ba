"""PLLs: what the families' tools make."""

import re

import pytest

from nomul_boards.boards import BOARDS
from nomul_boards.errors import BuildError
from nomul_boards.pll import make_pll


@pytest.mark.parametrize(("name", "clock", "made"), [
    ("ulx3s-85f", 50, 50), ("icebreaker", 18, 18), ("tang-nano-9k", 36, 36), ("arty-a7-35t", 66.5, 66.667),
    ("pynq-z2", 50, 50),
])
def test_clocks(name, clock, made):
    board = BOARDS[name]
    pll = make_pll(board.family, board.part, board.source, clock)
    assert pll.clock == pytest.approx(made, abs=1e-3)
    ports = re.search(r"module pll\s*\((.*?)\);", re.sub("//.*", "", pll.verilog), re.DOTALL)[1]
    assert set(re.findall(r"(\w+)\s*(?:,|$)", ports)) == {"clock_in", "clock_out", "locked"}


def test_what_a_pll_cannot_make():
    with pytest.raises(BuildError, match=r"^the board's PLL cannot make 3 MHz of 100 MHz; the nearest is 6.25 MHz$"):
        make_pll("xilinx", "", 100, 3)
    with pytest.raises(BuildError, match=r"^icepll: "):
        make_pll("ice40", "", 12, 1)
