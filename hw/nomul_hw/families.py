"""Families of chips: how Yosys maps a design to their cells, and what each cell occupies."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

__all__ = ["FAMILIES", "Cost", "Family"]


@dataclass(frozen=True)
class Cost:
    """What something occupies.

    Attributes
    ----------
    lut : int
        LUTs, with those that carry chains and small memories are made of.
    carry : int
        Those among them that are parts of carry cells: a bit each.
    ff : int
        Flip-flops.
    bram : int
        Block RAMs.
    dsp : int
        Multipliers.
    """

    lut: int = 0
    carry: int = 0
    ff: int = 0
    bram: int = 0
    dsp: int = 0

    @property
    def logic(self) -> int:
        """LUTs but for those of carry chains."""
        return self.lut - self.carry

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(**{name: value + getattr(other, name) for name, value in asdict(self).items()})

    def __mul__(self, count: int) -> "Cost":
        return Cost(**{name: value * count for name, value in asdict(self).items()})


@dataclass(frozen=True)
class Family:
    """A family of chips.

    Attributes
    ----------
    synthesis : str
        Yosys' command, less the name of the top module.
    apart : str
        The command's options by which modules stay apart, and ports without pads: to count cells.
    cells : mapping of str to Cost
        What each cell of the result occupies.
    """

    synthesis: str
    apart: str
    cells: Mapping[str, Cost]


def _each(cost: Cost, *names: str) -> Mapping[str, Cost]:
    return dict.fromkeys(names, cost)


def _flip_flops(prefix: str, *kinds: str) -> Mapping[str, Cost]:
    return _each(Cost(ff=1), *(prefix + kind for kind in kinds))


#: Families that can be synthesized for. In all of them, LUTs stay as they are, without the wide multiplexers behind
#: them that some chips have: so they count the same. No part of the machine reads a word of a memory in the cycle in
#: which it is written, so that no logic needs to make up for what a block RAM does then.
FAMILIES: Mapping[str, Family] = {
    "ecp5": Family(
        "synth_ecp5 -nowidelut -no-rw-check", "-noflatten",
        {
            "LUT4": Cost(lut=1),
            "CCU2C": Cost(lut=2, carry=2),
            "TRELLIS_DPR16X4": Cost(lut=6),  # four hold the words, two are lost to the write port
            "TRELLIS_FF": Cost(ff=1),
            "DP16KD": Cost(bram=1),
            **_each(Cost(dsp=1), "MULT18X18D", "ALU54B"),
        },
    ),
    "ice40": Family(
        "synth_ice40 -no-rw-check", "-noflatten",
        {
            "SB_LUT4": Cost(lut=1),
            "SB_CARRY": Cost(),  # in the same logic cell as the LUT that adds
            **_flip_flops("SB_DFF", "", "E", "R", "S", "SR", "SS", "ER", "ES", "ESR", "ESS"),
            "SB_RAM40_4K": Cost(bram=1),
            "SB_MAC16": Cost(dsp=1),
        },
    ),
    "xilinx": Family(
        "synth_xilinx -family xc7 -nowidelut", "-noiopad -noclkbuf",
        {
            **_each(Cost(lut=1), *(f"LUT{inputs}" for inputs in range(1, 7)), "INV", "SRL16E", "SRLC32E"),
            "CARRY4": Cost(),  # behind LUTs, which are counted
            **_each(Cost(lut=2), "RAM32X1D", "RAM64X1D"),
            **_each(Cost(lut=4), "RAM32M", "RAM64M", "RAM128X1D"),
            **_flip_flops("FD", "RE", "SE", "CE", "PE"),
            "RAMB18E1": Cost(bram=1),  # of 18 kbit
            "RAMB36E1": Cost(bram=2),
            "DSP48E1": Cost(dsp=1),
        },
    ),
    "gowin": Family(
        "synth_gowin -nowidelut -no-rw-check", "-noflatten -noiopads",
        {
            **_each(Cost(lut=1), *(f"LUT{inputs}" for inputs in range(1, 5))),
            "ALU": Cost(lut=1, carry=1),
            "RAM16SDP4": Cost(lut=4),
            **_flip_flops("DFF", "", "E", "R", "S", "C", "P", "RE", "SE", "CE", "PE"),
            **_each(Cost(bram=1), "SDPB", "SDPX9B", "DPB", "DPX9B"),
            **_each(Cost(dsp=1), "MULT9X9", "MULT18X18", "MULT36X36", "MULTADDALU18X18", "MULTALU18X18"),
            **_each(Cost(), "GND", "VCC"),
        },
    ),
}
