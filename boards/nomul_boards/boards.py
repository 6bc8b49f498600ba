"""Which boards there are: what is on them, where the serial line goes, and the array that is shipped for each.

Pins, clocks and packages are those of amaranth-boards' platforms, which are only imported where one is made.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from nomul import fit
from nomul_hw.config import ArrayConfig, load_config

from .errors import BuildError

__all__ = ["BOARDS", "Board", "find_board"]


@dataclass(frozen=True)
class Board:
    """A board.

    Attributes
    ----------
    name : str
        As on the command line, and in :data:`nomul.fit.BOARDS`, which has the chip.
    title : str
        As people call it.
    platform : str
        Module and class of the platform.
    source, clock : float
        Of the board's oscillator, and of the accelerator unless another is asked for; MHz.
    baud : int
        Bits per second on the serial line unless others are asked for.
    led : tuple
        Resource, number and, if there is one, part of the LED.
    wiring : str
        What has to be connected to what, for people.
    load : str
        Command that programs the board, with ``{file}`` for the bitstream.
    uart : tuple of str, optional
        Where the board's own serial line is not connected to a USB port: the connector, the pins ``rx`` and ``tx`` on
        it, and the attributes that the family's input and output cells need.
    suffix : str
        Of the bitstream's file.
    depth : int
        Words of the link's buffers.
    part : str
        The chip as Gowin's PLL tool wants it.
    """

    name: str
    title: str
    platform: str
    source: float
    clock: float
    baud: int
    led: tuple[Any, ...]
    wiring: str
    load: str
    uart: tuple[str, str, str, Mapping[str, str]] | None = None
    suffix: str = "bit"
    depth: int = 1024
    part: str = ""

    @property
    def size(self) -> fit.Board:
        """Its chip, and what there is on it."""
        return fit.BOARDS[self.name]

    @property
    def chip(self) -> str:
        """The chip's name."""
        return self.size.chip

    @property
    def family(self) -> str:
        """Of the chip: one of :data:`nomul_hw.families.FAMILIES`."""
        return self.size.family

    @property
    def open(self) -> bool:
        """Whether free tools make its bitstream."""
        return self.family != "xilinx"

    @property
    def config_path(self) -> Path:
        """The array that is shipped for it."""
        return Path(__file__).with_name("configs") / f"{self.name}.toml"

    def config(self) -> ArrayConfig:
        """The array that is shipped for it."""
        return load_config(self.config_path)

    def make_platform(self) -> Any:
        """A new platform of amaranth-boards."""
        module, _, name = self.platform.partition(":")
        return getattr(import_module(f"amaranth_boards.{module}"), name)()


_USB = "the board's USB port"

#: Boards by name.
BOARDS: Mapping[str, Board] = {board.name: board for board in (
    Board("ulx3s-85f", "ULX3S", "ulx3s:ULX3S_85F_Platform",
          25, 50, 3_000_000, ("led", 0), f"{_USB} US1", "openFPGALoader -b ulx3s {file}"),
    Board("ecpix5-85f", "ECPIX-5", "ecpix5:ECPIX585Platform",
          100, 50, 3_000_000, ("rgb_led", 0, "g"), f"{_USB} for debugging", "openFPGALoader -b ecpix5 {file}"),
    Board("orangecrab-25f", "OrangeCrab r0.2", "orangecrab_r0_2:OrangeCrabR0_2_25FPlatform",
          48, 48, 3_000_000, ("rgb_led", 0, "g"),
          "a 3.3 V USB converter: its TX to pin 0, its RX to pin 1, GND to GND",
          "dfu-util -d 1209:5af0 -a 0 -D {file}", uart=("io", "0", "1", {"IO_TYPE": "LVCMOS33"})),
    Board("icebreaker", "iCEBreaker", "icebreaker:ICEBreakerPlatform",
          12, 18, 3_000_000, ("led_g", 0), _USB, "iceprog {file}", suffix="bin", depth=256),
    Board("tang-nano-9k", "Tang Nano 9K", "tang_nano_9k:TangNano9kPlatform",
          27, 27, 1_000_000, ("led", 0), _USB, "openFPGALoader -b tangnano9k {file}", suffix="fs", depth=512,
          part="GW1NR-LV9QN88PC6/I5"),
    Board("arty-a7-35t", "Arty A7-35T", "arty_a7:ArtyA7_35Platform",
          100, 50, 3_000_000, ("led", 0), _USB, "openFPGALoader -b arty_a7_35t {file}"),
    # What is used of its pins are those of the Arty Z7-20, which has the same chip.
    Board("pynq-z2", "PYNQ-Z2", "arty_z7:ArtyZ720Platform",
          125, 50, 3_000_000, ("led", 0),
          "a 3.3 V USB converter on PMODA: its RX to pin 2, its TX to pin 3, GND to pin 5",
          "openFPGALoader -b pynq_z2 {file}", uart=("pmod", "3", "2", {"IOSTANDARD": "LVCMOS33"})),
)}


def find_board(name: str) -> Board:
    """The board of a name; underscores do as well.

    Raises
    ------
    BuildError
        If there is none.
    """
    board = BOARDS.get(name.lower().replace("_", "-"))
    if board is None:
        raise BuildError(f"there is no board {name!r}; there are {', '.join(BOARDS)}")
    return board
