"""From the operators of a program to layers: many an operator becomes part of the layer before or behind it.

A layer can clamp its output, and add another tensor to it before that; its window can skip pixels and reach beyond the
edge. Whether an operator can be part of a layer depends on who else reads the layer's output, which is known only
after the whole program was read.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from .float_graph import INPUT, FloatConcat, FloatConv, FloatLayer, FloatOperation, FloatPool

__all__ = ["Step", "fuse"]


@dataclass(eq=False)
class Step:
    """One operator of a program: the input (no sources), a layer, a clamp, or one that joins its sources.

    Parameters
    ----------
    shape : (int, int, int)
        (channels, height, width) of what it makes.
    sources : tuple of Step
        What it reads.
    layer : FloatLayer, optional
        The layer, without its input.
    clamp : (float or None, float or None), optional
        Bounds, None for none.
    join : str, optional
        ``"sum"`` of two sources or ``"concat"`` of any number.
    name : callable
        Makes a name, should the step become a layer of its own.
    """

    shape: tuple[int, int, int]
    sources: "tuple[Step, ...]" = ()
    layer: FloatLayer | None = None
    clamp: tuple[float | None, float | None] | None = None
    join: Literal["sum", "concat"] | None = None
    name: Callable[[], str] = str


def fuse(steps: Sequence[Step], result: Step) -> tuple[FloatOperation, ...]:
    """Make the layers of a network, in execution order.

    Parameters
    ----------
    steps : sequence of Step
        All steps, each after its sources.
    result : Step
        The step whose output is the network's; what it does not need is left out.
    """
    steps = _clamp_parts(steps, result)
    readers = _readers(steps, result)
    network = _Network()
    for step in steps:
        if step not in readers or not step.sources:
            continue
        first, *others = step.sources
        if step.layer is not None:
            network.append(step, step.layer, first)
        elif step.join == "sum":
            _add(network, step, [s for s in (first, *others) if readers[s] == 1], first, others[0])
        elif step.join == "concat":
            network.concatenate(step)
        else:
            assert step.clamp is not None
            last = network.layer_of(first)
            if last is not None and readers[first] == 1:
                network.change(step, first, _clamped(last, *step.clamp))
            else:
                network.append(step, _clamped(FloatPool(step.name(), (1, 1), kind="max"), *step.clamp), first)
    return _hoist_clamps(_fold_moves(list(network.layers.values()), network.tensor(result)))


def _readers(steps: Sequence[Step], result: Step) -> Counter[Step]:
    """How often every step that the result needs is read; the result itself once more."""
    readers = Counter([result])
    for step in reversed(steps):
        if step in readers:
            readers.update(step.sources)
    return readers


def _clamp_parts(steps: Sequence[Step], result: Step) -> list[Step]:
    """Clamp what is concatenated instead of the concatenation, where nothing else reads that."""
    readers = _readers(steps, result)
    done = list[Step]()

    def clamp_parts(step: Step) -> None:
        if step.clamp is not None and step.sources[0].join == "concat" and readers[step.sources[0]] == 1:
            (concat,) = step.sources
            parts = [Step(part.shape, (part,), clamp=step.clamp, name=step.name) for part in concat.sources]
            for part in parts:
                readers[part] = 1
                clamp_parts(part)
            step.join, step.clamp, step.sources, step.name = "concat", None, tuple(parts), concat.name
        done.append(step)

    for step in steps:
        clamp_parts(step)
    return done


class _Network:
    """The layers so far, by name, in execution order."""

    def __init__(self) -> None:
        self.layers: dict[str, FloatOperation] = {}
        self.made: dict[Step, str] = {}  # name of the layer that computes a step

    def tensor(self, step: Step) -> str:
        return self.made.get(step, INPUT)

    def layer_of(self, step: Step) -> FloatLayer | None:
        """The layer that computes a step, if one does."""
        layer = self.layers.get(self.tensor(step))
        return layer if isinstance(layer, FloatLayer) else None

    def append(self, step: Step, layer: FloatLayer, source: Step, skip: Step | None = None) -> None:
        self._append(step, replace(layer, input=self.tensor(source), skip=None if skip is None else self.tensor(skip)))

    def concatenate(self, step: Step) -> None:
        self._append(step, FloatConcat(step.name(), tuple(self.tensor(source) for source in step.sources)))

    def _append(self, step: Step, layer: FloatOperation) -> None:
        name, count = layer.name, 1
        while name in self.layers:
            count += 1
            name = f"{layer.name}_{count}"
        self.layers[name] = replace(layer, name=name)
        self.made[step] = name

    def change(self, step: Step, source: Step, layer: FloatLayer) -> None:
        """Let the layer of ``source``, which nothing else reads, do ``step`` too."""
        self.layers[layer.name] = layer
        self.made[step] = self.made[source]


def _add(network: _Network, step: Step, alone: list[Step], left: Step, right: Step) -> None:
    """Add within the later one of the layers that made the operands, or in a layer of its own.

    ``alone`` are the operands that nothing else reads.
    """
    order = list(network.layers)
    able = [source for source in alone if _can_add(network.layer_of(source))]
    if not able:
        network.append(step, FloatPool(step.name(), (1, 1), kind="average"), left, right)
        return
    chosen = max(able, key=lambda source: order.index(network.tensor(source)))
    layer = network.layer_of(chosen)
    assert layer is not None
    del network.layers[layer.name]  # to the end: now it also waits for the other operand
    network.change(step, chosen, replace(layer, skip=network.tensor(right if chosen is left else left)))


def _can_add(layer: FloatLayer | None) -> bool:
    """Whether a layer can add a tensor to its output: it does nothing else yet to what it computed."""
    linear = isinstance(layer, FloatConv) or (isinstance(layer, FloatPool) and layer.kind == "average")
    return linear and layer is not None and layer.skip is None and (layer.low, layer.high) == (-np.inf, np.inf)


def _clamped(layer: FloatLayer, low: float | None, high: float | None) -> FloatLayer:
    """A layer with a further clamp behind its own."""
    lower = -np.inf if low is None else float(low)
    upper = np.inf if high is None else float(high)
    # np.minimum last, as in PyTorch: where the bounds cross, the upper one wins.
    return replace(layer, low=float(np.minimum(np.maximum(layer.low, lower), upper)),
                   high=float(np.minimum(np.maximum(layer.high, lower), upper)))


def _fold_moves(layers: list[FloatOperation], result: str) -> list[FloatOperation]:
    """Let windows skip pixels and pad by themselves what layers before them skip and pad.

    An average over one pixel may do nothing else. Where a window cannot do the same it remains.
    """
    made: dict[str, FloatOperation] = {}
    for layer in layers:
        while isinstance(layer, FloatLayer) and (move := _move_before(layer, made)) is not None:
            stride = (layer.stride[0] * move.stride[0], layer.stride[1] * move.stride[1])
            layer = replace(layer, input=move.input, stride=stride, padding=_together(layer, move))
        made[layer.name] = layer
    needed = {result}
    for layer in reversed(made.values()):
        if layer.name in needed:
            needed.update(layer.sources)
    return [layer for layer in made.values() if layer.name in needed]


def _together(layer: FloatLayer, move: FloatLayer) -> tuple[int, int, int, int]:
    """Padding of two layers in one."""
    top, left, bottom, right = (a + b for a, b in zip(layer.padding, move.padding, strict=True))
    return top, left, bottom, right


def _move_before(layer: FloatLayer, made: dict[str, FloatOperation]) -> FloatPool | None:
    """The layer that only moves pixels to where another one reads them, if that could get them itself."""
    move = made.get(layer.sources[0])
    if not (isinstance(move, FloatPool) and move.kind == "average" and move.taps == move.divisor == 1
            and move.skip is None and (move.low, move.high) == (-np.inf, np.inf)):
        return None
    if move.stride != (1, 1) and (layer.taps > 1 or any(layer.padding)):
        return None  # its window would have holes
    if isinstance(layer, FloatPool) and layer.kind == "max" and any(move.padding):
        # Padding never wins a maximum, and these zeros never should.
        reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel, strict=True)] * 2
        inside = all(side <= most for side, most in zip(_together(layer, move), reach, strict=True))
        if not (inside and _positive(move.sources[0], made)):
            return None
    return move


def _positive(name: str, made: dict[str, FloatOperation]) -> bool:
    """Whether a layer's output is never negative, as far as clamps tell."""
    layer = made.get(name)
    if isinstance(layer, FloatLayer) and layer.low >= 0:
        return True
    passes_on = isinstance(layer, FloatConcat) or (
        isinstance(layer, FloatPool) and layer.skip is None and layer.high >= 0)
    return passes_on and layer is not None and all(_positive(source, made) for source in layer.sources)


def _hoist_clamps(layers: list[FloatOperation]) -> tuple[FloatOperation, ...]:
    """Move clamps in front of the maximum pools that they follow.

    The result is the same, but then the layer before the pool knows that it need not represent what is clamped away.
    """
    index = {layer.name: at for at, layer in enumerate(layers)}
    readers = Counter(name for layer in layers for name in layer.sources)
    for at in range(len(layers) - 1, -1, -1):
        layer = layers[at]
        if isinstance(layer, FloatPool) and layer.kind == "max" and readers[layer.sources[0]] == 1:
            before = layers[index.get(layer.sources[0], at)]
            if isinstance(before, FloatLayer) and before is not layer:
                layers[index[before.name]] = _clamped(before, layer.low, layer.high)
                layers[at] = replace(layer, low=-np.inf, high=np.inf)
    return tuple(layers)
