"""Cutting: a piece of a network, for some rows and channels of what it makes.

From its last tensor backwards, a piece takes the rows of every tensor that its layers need, and what is left of their
padding above and below.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..graph import Concat
from ..schedule import Part
from ..shapes import LayerShape, NetworkShape, TensorShape

__all__ = ["Nodes", "Piece", "cut_piece", "needed_rows"]

Nodes = Sequence[LayerShape | Concat]


@dataclass(frozen=True, eq=False)
class Piece:
    """One run of the machine: some layers, on some rows and channels.

    Parameters
    ----------
    network : NetworkShape
        What runs. Layers, and the tensors that they make, have the whole network's names.
    parts : mapping of str to Part
        For every tensor of it, the part of the whole network's tensor that it is.
    """

    network: NetworkShape
    parts: Mapping[str, Part]

    @classmethod
    def of(cls, network: NetworkShape, nodes: Nodes, inputs: Sequence[str], output: str, parts: Mapping[str, Part]
           ) -> "Piece":
        """Make a piece of a network from its nodes, which read and write ``parts``."""
        tensors = tuple(TensorShape(name, part.channel_end - part.channel, part.row_end - part.row,
                                    network.tensor(part.tensor).width) for name, part in parts.items())
        return cls(NetworkShape(tensors, tuple(nodes), inputs[0], output, tuple(inputs[1:])), parts)

    @property
    def padded(self) -> bool:
        """Whether there is padding above or below."""
        return any(isinstance(node, LayerShape) and (node.padding[0] or node.padding[2]) for node in self.network.nodes)

    @property
    def block(self) -> tuple[int, int]:
        """First output channel and the end: together with the layers, they say which weights the piece has."""
        part = self.parts[self.network.output]
        return part.channel, part.channel_end


def cut_piece(network: NetworkShape, nodes: Nodes, rows: range, channels: range | None = None, *,
              own_skips: bool = False) -> Piece | None:
    """Cut out layers, for some rows and channels of what the last one makes.

    Parameters
    ----------
    channels : range, optional
        All of them if not given; of several layers, or a grouped convolution, they must be given together.
    own_skips : bool
        Whether skip tensors that come from outside are inputs of their own, even where another input is the same.

    Returns
    -------
    Piece or None
        None if the layers do not go together: they would have to make different rows of a tensor for different
        readers, or read nothing but padding.
    """
    try:
        return _Cutter(network, nodes, own_skips).cut(rows, channels)
    except _Apart:
        return None


class _Apart(Exception):
    """Layers that do not go together."""


class _Cutter:
    """Cuts a piece out of a network, backwards from its last tensor."""

    def __init__(self, network: NetworkShape, nodes: Nodes, own_skips: bool):
        self._network, self._nodes, self._own_skips = network, nodes, own_skips
        self._made = {node.output for node in nodes}
        self._parts: dict[str, Part] = {}  # by name in the piece
        self._given: list[str] = []  # names of those that the piece does not make
        self._shared: list[str] = []  # those among them that any layer may read

    def cut(self, rows: range, channels: range | None) -> Piece:
        last = self._network.tensor(self._nodes[-1].output)
        self._parts[last.name] = _part(last, rows, range(last.channels) if channels is None else channels)
        whole = rows == range(last.height)
        cut = [self._concat(node) if isinstance(node, Concat) else self._layer(node, whole)
               for node in reversed(self._nodes)][::-1]
        first = cut[0]
        assert isinstance(first, LayerShape)
        # The first layer's input is the one that may be packed.
        inputs = sorted(self._given, key=lambda name: name != first.input)
        return Piece.of(self._network, cut, inputs, last.name, self._parts)

    def _concat(self, node: Concat) -> Concat:
        rows, _ = self._wanted(node)
        for name in node.inputs:
            tensor = self._network.tensor(name)
            self._take(_part(tensor, rows, range(tensor.channels)))
        return node

    def _layer(self, node: LayerShape, whole: bool) -> LayerShape:
        rows, channels = self._wanted(node)
        source = self._network.tensor(node.input)
        top, left, bottom, right = node.padding
        needed = range(source.height)
        if not whole:
            needed, top, bottom = needed_rows(node, source.height, rows)
        # A layer that works group by group, or channel by channel, needs the channels of the groups that it makes.
        reads, groups = range(source.channels), node.groups
        if node.kind != "conv":
            reads = channels
        elif groups > 1:
            outputs, inputs = self._network.tensor(node.output).channels // groups, source.channels // groups
            reads = range(channels.start // outputs * inputs, channels.stop // outputs * inputs)
            groups = len(channels) // outputs
        skip = node.skip
        if skip is not None:
            skip = self._take(_part(self._network.tensor(skip), rows, channels), own=self._own_skips)
        return replace(node, input=self._take(_part(source, needed, reads)), skip=skip,
                       padding=(top, left, bottom, right), groups=groups)

    def _wanted(self, node: LayerShape | Concat) -> tuple[range, range]:
        """Rows and channels of a node's output."""
        part = self._parts[node.output]
        return range(part.row, part.row_end), range(part.channel, part.channel_end)

    def _take(self, part: Part, *, own: bool = False) -> str:
        """Find the name that a part has in the piece, as an input of its own or not."""
        if part.row >= part.row_end:
            raise _Apart
        if part.tensor in self._made:
            if self._parts.setdefault(part.tensor, part) != part:
                raise _Apart
            return part.tensor
        for name in () if own else self._shared:
            if self._parts[name] == part:
                return name
        name = part.tensor
        while name in self._parts or name in self._made:
            name += "'"
        self._parts[name] = part
        self._given.append(name)
        if not own:
            self._shared.append(name)
        return name


def _part(tensor: TensorShape, rows: range, channels: range) -> Part:
    return Part(tensor.name, channels.start, channels.stop, rows.start, rows.stop)


def needed_rows(layer: LayerShape, height: int, rows: range) -> tuple[range, int, int]:
    """Rows of an input of some height that a layer needs for some output rows, and the padding above and below."""
    first = rows.start * layer.stride[0] - layer.padding[0]
    end = (rows.stop - 1) * layer.stride[0] - layer.padding[0] + (layer.kernel[0] - 1) * layer.dilation[0] + 1
    needed = range(max(0, first), min(height, end))
    return needed, needed.start - first, end - needed.stop
