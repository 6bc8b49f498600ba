"""How an accelerator is reached on a bus: what stands in ``nomul generate --top``, and which top it makes.

Amaranth is only imported where a top is made.
"""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from ..config import ArrayConfig, ConfigError
from ..contents import Table
from ..descriptor import HOST_BITS

__all__ = ["AxiBus", "AxiStreamBus", "WishboneBus"]


@dataclass(frozen=True)
class _Bus:
    """What all of them are.

    Attributes
    ----------
    name : str
        Part of file's and module's names.
    monitor : bool
        Whether the accelerator has to have a monitor.
    tables : tuple of Table
        Contents of memories of its own: none.
    """

    name: ClassVar[str]
    monitor: ClassVar[bool] = True
    tables: ClassVar[tuple[Table, ...]] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the manifest."""
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True)
class AxiStreamBus(_Bus):
    """AXI4-Lite registers; commands, answers and streamed weights as AXI4-Streams."""

    name: ClassVar[str] = "axi_stream"

    def around(self, accelerator):
        """Put the top around an accelerator, which has a monitor."""
        from .axi_stream import AxiStreamTop

        return AxiStreamTop(accelerator)


@dataclass(frozen=True)
class AxiBus(_Bus):
    """AXI4-Lite registers; commands and streamed weights are read from memory, answers are written there.

    Parameters
    ----------
    data_bits : int
        Width of a beat: 32, 64, 128, ... 1024.
    burst : int
        Beats of a burst at most, a power of two; a burst is not longer than 4 KiB.
    outstanding : int
        Bursts of commands, and of weights, that are read ahead at most, 1 to 64.
    address_bits : int
        Width of an address, 32 to 64.

    Raises
    ------
    ConfigError
        If a parameter is out of range.
    """

    name: ClassVar[str] = "axi"

    data_bits: int = 64
    burst: int = 16
    outstanding: int = 4
    address_bits: int = 32

    def __post_init__(self) -> None:
        if self.data_bits not in (HOST_BITS << places for places in range(6)):
            raise ConfigError(f"a beat must have 32, 64, 128, 256, 512 or 1024 bits, not {self.data_bits}")
        if self.burst not in (1 << places for places in range(9)) or self.burst * self.data_bits // 8 > 4096:
            raise ConfigError(f"a burst must have 1, 2, 4, ... or 256 beats and at most 4 KiB, not {self.burst} beats "
                              f"of {self.data_bits // 8} bytes")
        if not 1 <= self.outstanding <= 64:
            raise ConfigError(f"1 to 64 bursts can be outstanding, not {self.outstanding}")
        if not 32 <= self.address_bits <= 64:
            raise ConfigError(f"an address must have 32 to 64 bits, not {self.address_bits}")

    def around(self, accelerator):
        """Put the top around an accelerator, which has a monitor."""
        from .axi_master import AxiMasterTop

        return AxiMasterTop(accelerator, self)


@dataclass(frozen=True)
class WishboneBus(_Bus):
    """Wishbone registers; a processor writes the words of commands and reads those of answers."""

    name: ClassVar[str] = "wishbone"

    def around(self, accelerator):
        """Put the top around an accelerator, which has a monitor.

        Raises
        ------
        ConfigError
            If the accelerator's weights are streamed.
        """
        from .wishbone import WishboneTop

        _check_keeps_weights(accelerator.config)
        return WishboneTop(accelerator)


def _check_keeps_weights(config: ArrayConfig) -> None:
    if config.weights == "stream":
        raise ConfigError(f"{config.name}: weights cannot be streamed over Wishbone; set array.weights = \"memory\"")
