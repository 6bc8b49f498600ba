"""Memory allocation: where every activation tensor lies, and when its words are free again."""

from nomul_hw.config import ArrayConfig

from ..graph import Concat
from ..shapes import NetworkShape, TensorShape
from .banks import opposite_banks
from .program import Placement

__all__ = ["CompileError", "allocate"]


class CompileError(ValueError):
    """A graph that an accelerator cannot run; the message names the layer and what would do."""


def tensor_words(tensor: TensorShape, config: ArrayConfig, group: int = 1) -> int:
    """Words of a tensor, one per pixel and ``rows * lanes`` channels, that has whole groups of channels."""
    channels = -(-tensor.channels // group) * group
    return -(-channels // config.depth) * tensor.pixels


def allocate(network: NetworkShape, config: ArrayConfig, depth: int | None) -> tuple[dict[str, Placement], int]:
    """Place all tensors, first fit. A tensor's words are free after its last reader.

    The output of a layer goes to the other bank than its input where there is room; a skip tensor always lies in the
    other bank than the input that is read beside it.

    Parameters
    ----------
    depth : int, optional
        Words of a bank; None for as many as it takes.

    Returns
    -------
    placements : dict of str to Placement
    words : int
        Words of a bank that are in use at some time.

    Raises
    ------
    CompileError
        If a tensor finds no room; the message says how much would do.
    """
    last_use = {name: index for index, node in enumerate(network.nodes) for name in node.sources}
    last_use[network.output] = len(network.nodes)
    placements: dict[str, Placement] = {}
    live: list[dict[str, tuple[int, int]]] = [{}, {}]  # first word and end of the tensors in each bank
    most = 0
    tied = opposite_banks(network)

    def place(name: str, now: int, prefer: int, reader: str, group: int = 1) -> None:
        nonlocal most
        tensor = network.tensor(name)
        # A convolution writes whole blocks of output channels. What lies beyond the tensor's last word is only in the
        # way while it runs.
        words = tensor_words(tensor, config, group)
        # A tensor that is added to the result of another, or that another is added to, has its bank given by that.
        given = {placements[other].bank ^ side for other, side in tied[name].items() if other in placements}
        for bank in (0, 1):
            live[bank] = {other: span for other, span in live[bank].items() if last_use.get(other, -1) >= now}
        for bank in given or (prefer, 1 - prefer):
            address = 0
            for start, end in sorted(live[bank].values()):
                if address + words <= start:
                    break
                address = max(address, end)
            if depth is None or address + words <= depth:
                placements[name] = Placement(bank, address, tensor_words(tensor, config))
                live[bank][name] = (address, address + placements[name].words)
                most = max(most, address + words)
                return
        held = sum(end - start for spans in live for start, end in spans.values())
        raise CompileError(
            f"{reader}: a tensor of {words} words ({tensor.channels} x {tensor.height} x {tensor.width}) does not fit "
            f"in two banks of memory.activations = {depth} words beside {held} words in use: "
            f"memory.activations = {words + held} would do"
        )

    for index, node in enumerate(network.nodes):
        if isinstance(node, Concat):
            raise CompileError(f"layer {node.name!r}: concatenations are not supported yet")
        for name in node.sources:
            if name not in placements:  # no layer makes it: the network's input
                place(name, index, 0, f"input {name!r}")
        place(node.output, index, 1 - placements[node.input].bank, f"layer {node.name!r}",
              config.cols if node.kind == "conv" else 1)
    return placements, most
