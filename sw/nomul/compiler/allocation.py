"""Memory allocation: where every activation tensor lies, and when its words are free again."""

from collections.abc import Mapping

from nomul_hw.config import ArrayConfig

from ..graph import Concat
from ..shapes import NetworkShape
from .banks import opposite_banks
from .errors import CompileError
from .lanes import Lanes, parents
from .program import Placement

__all__ = ["allocate"]


def allocate(
    network: NetworkShape, lanes: Mapping[str, Lanes], written: Mapping[str, int], config: ArrayConfig,
    depth: int | None,
) -> tuple[dict[str, Placement], int]:
    """Place all tensors, first fit. A tensor's words are free after its last reader.

    The output of a layer goes to the other bank than its input where there is room; a skip tensor always lies in the
    other bank than the input that is read beside it. A concatenated tensor gets its place when its first part does.

    Parameters
    ----------
    network : NetworkShape
        With its copies.
    lanes : mapping of str to Lanes
        Where the channels of every tensor lie.
    written : mapping of str to int
        Words of a pixel that a tensor's layer writes, by tensor.
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
    origin = _origins(network, lanes, config)
    room: dict[str, int] = {}  # of a pixel, with all that the layers of the parts write
    for name, (whole, word) in origin.items():
        room[whole] = max(room.get(whole, 0), word + max(lanes[name].filled_words, written.get(name, 0)))
    joined = {whole for name, (whole, _) in origin.items() if name != whole}
    last_use: dict[str, int] = {}
    for index, node in enumerate(network.nodes):
        last_use |= {origin[name][0]: index for name in node.sources}
    last_use[origin[network.output][0]] = len(network.nodes)
    places: dict[str, tuple[int, int]] = {}  # bank and address
    live: list[dict[str, tuple[int, int]]] = [{}, {}]  # first word and end of the tensors in each bank
    most = 0
    tied = opposite_banks(network)

    def place(name: str, now: int, prefer: int, reader: str) -> None:
        nonlocal most
        whole = origin[name][0]
        if whole in places:
            return
        tensor = network.tensor(whole)
        words = room[whole] * tensor.pixels
        # A convolution writes whole blocks of output channels. What lies beyond the tensor's last word is only in the
        # way while it runs; but the layers that write parts run at other times.
        kept = words if whole in joined else lanes[whole].filled_words * tensor.pixels
        # A tensor that is added to the result of another, or that another is added to, has its bank given by that.
        given = {places[other][0] ^ side for other, side in tied[whole].items() if other in places}
        for bank in (0, 1):
            live[bank] = {other: span for other, span in live[bank].items() if last_use.get(other, -1) >= now}
        for bank in given or (prefer, 1 - prefer):
            address = 0
            for start, end in sorted(live[bank].values()):
                if address + words <= start:
                    break
                address = max(address, end)
            if depth is None or address + words <= depth:
                places[whole] = bank, address
                live[bank][whole] = (address, address + kept)
                most = max(most, address + words)
                return
        held = sum(end - start for spans in live for start, end in spans.values())
        raise CompileError(
            f"{reader}: a tensor of {words} words ({tensor.channels} x {tensor.height} x {tensor.width}) does not fit "
            f"in two banks of memory.activations = {depth} words beside {held} words in use: "
            f"memory.activations = {words + held} would do"
        )

    for index, node in enumerate(network.nodes):
        for name in node.sources:  # what no layer makes is the network's input
            place(name, index, 0, f"input {name!r}")
        if not isinstance(node, Concat):
            place(node.output, index, 1 - places[origin[node.input][0]][0], f"layer {node.name!r}")

    placements = {}
    for name, (whole, word) in origin.items():
        if whole in places:
            (bank, address), pixels = places[whole], network.tensor(name).pixels
            placements[name] = Placement(bank, address + word * pixels, lanes[name].filled_words * pixels,
                                         lanes[name].segments)
    return placements, most


def _origins(network: NetworkShape, lanes: Mapping[str, Lanes], config: ArrayConfig) -> dict[str, tuple[str, int]]:
    """Where every tensor begins: the outermost tensor that it is a part of (itself if of none), and the word there."""
    inside = parents(network)
    origins = {}
    for tensor in network.tensors:
        name, word = tensor.name, 0
        while name in inside:
            name, channel = inside[name]
            word += lanes[name].lane(channel) // config.depth
        origins[tensor.name] = (name, word)
    return origins
