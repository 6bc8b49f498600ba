"""Memory allocation: where every activation tensor lies, and when its words are free again."""

from nomul_hw.config import ArrayConfig

from ..graph import Conv, Graph, Tensor
from .banks import opposite_banks
from .program import Placement

__all__ = ["CompileError", "allocate"]


class CompileError(ValueError):
    """A graph that an accelerator cannot run; the message names the layer and what would do."""


def tensor_words(tensor: Tensor, config: ArrayConfig, group: int = 1) -> int:
    """Words of a tensor, one per pixel and ``rows * lanes`` channels, that has whole groups of channels."""
    channels = -(-tensor.channels // group) * group
    return -(-channels // config.depth) * tensor.height * tensor.width


def allocate(graph: Graph, config: ArrayConfig) -> dict[str, Placement]:
    """Place all tensors, first fit. A tensor's words are free after its last reader.

    The output of a node goes to the other bank than its input where there is room; a skip tensor always lies in the
    other bank than the input that is read beside it.

    Raises
    ------
    CompileError
        If a tensor finds no room; the message says how much would do.
    """
    depth = config.memory.activations
    last_use = {name: index for index, node in enumerate(graph.nodes) for name in (node.input, node.skip) if name}
    last_use[graph.output] = len(graph.nodes)
    placements: dict[str, Placement] = {}
    tied = opposite_banks(graph)

    def place(tensor: Tensor, now: int, prefer: int, reader: str, group: int = 1) -> None:
        # A convolution writes whole blocks of output channels. What lies beyond the tensor's last word is only in the
        # way while it runs.
        words = tensor_words(tensor, config, group)
        # A tensor that is added to the result of another, or that another is added to, has its bank given by that.
        given = {placements[name].bank ^ side for name, side in tied[tensor.name].items() if name in placements}
        for bank in given or (prefer, 1 - prefer):
            live = sorted((p.address, p.address + p.words) for name, p in placements.items()
                          if p.bank == bank and last_use.get(name, -1) >= now)
            address = 0
            for start, end in live:
                if address + words <= start:
                    break
                address = max(address, end)
            if address + words <= depth:
                placements[tensor.name] = Placement(bank, address, tensor_words(tensor, config))
                return
        held = sum(p.words for name, p in placements.items() if last_use.get(name, -1) >= now)
        raise CompileError(
            f"{reader}: a tensor of {words} words ({tensor.channels} x {tensor.height} x {tensor.width}) does not fit "
            f"in two banks of memory.activations = {depth} words beside {held} words in use: "
            f"memory.activations = {words + held} would do"
        )

    place(graph.tensor(graph.input), 0, 0, f"input {graph.input!r}")
    for index, node in enumerate(graph.nodes):
        place(graph.tensor(node.output), index, 1 - placements[node.input].bank, f"layer {node.name!r}",
              config.cols if isinstance(node, Conv) else 1)
    return placements
