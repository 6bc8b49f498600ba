"""What the carry chains of a family of chips can take in: see :mod:`nomul_hw.adders`.

Plain Python: importing this module does not import Amaranth.
"""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["FABRICS", "Fabric"]


@dataclass(frozen=True)
class Fabric:
    """What a family's carry chains can take in.

    Attributes
    ----------
    fused : str
        The part of a product that is left to the adder: ``"stage"``, the last stage of the shifter, or where nothing
        is shifted the sign and the gate; ``"sign"``, the inversion alone; ``"none"``; or ``"lut"``, all that the LUT of
        each place has room for.
    signs : bool
        Whether an adder can take in the signs of both its operands.
    chain : int
        Products that are added one after the other before sums are added in a tree.
    """

    fused: str
    signs: bool
    chain: int


#: The families with a leaf of their own.
FABRICS: Mapping[str, Fabric] = {
    "ecp5": Fabric("stage", signs=True, chain=4),
    "ice40": Fabric("none", signs=True, chain=2),
    "xilinx": Fabric("lut", signs=False, chain=4),
    "gowin": Fabric("sign", signs=False, chain=2),
}
