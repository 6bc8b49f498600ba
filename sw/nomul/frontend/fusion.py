"""From the operators of a program to layers: activations and additions become part of the layers that they follow.

A layer can clamp its output, and add another tensor to it before that. Whether an operator can be part of a layer
depends on who else reads the layer's output, which is known only after the whole program was read.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .float_graph import INPUT, FloatConv, FloatLayer, FloatPool

__all__ = ["Step", "fuse"]


@dataclass(eq=False)
class Step:
    """One operator of a program: the input (no sources), a layer, a clamp, or a sum (two sources).

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
    name : callable
        Makes a name, should the step become a layer of its own.
    """

    shape: tuple[int, int, int]
    sources: "tuple[Step, ...]" = ()
    layer: FloatLayer | None = None
    clamp: tuple[float | None, float | None] | None = None
    name: Callable[[], str] = str


def fuse(steps: Sequence[Step], result: Step) -> tuple[FloatLayer, ...]:
    """Make the layers of a network, in execution order.

    Parameters
    ----------
    steps : sequence of Step
        All steps, each after its sources.
    result : Step
        The step whose output is the network's; what it does not need is left out.
    """
    live = {result}
    for step in reversed(steps):
        if step in live:
            live.update(step.sources)
    readers = Counter(source for step in live for source in step.sources)
    readers[result] += 1
    network = _Network()
    for step in steps:
        if step not in live or not step.sources:
            continue
        first, *others = step.sources
        if step.layer is not None:
            network.append(step, step.layer, first)
        elif step.clamp is not None:
            last = network.layer_of(first)
            if last is not None and readers[first] == 1:
                network.change(step, first, _clamped(last, *step.clamp))
            else:
                network.append(step, _clamped(FloatPool(step.name(), (1, 1), kind="max"), *step.clamp), first)
        else:
            _add(network, step, [s for s in (first, *others) if readers[s] == 1], first, others[0])
    return _hoist_clamps(list(network.layers.values()))


class _Network:
    """The layers so far, by name, in execution order."""

    def __init__(self) -> None:
        self.layers: dict[str, FloatLayer] = {}
        self.made: dict[Step, str] = {}  # name of the layer that computes a step

    def tensor(self, step: Step) -> str:
        return self.made.get(step, INPUT)

    def layer_of(self, step: Step) -> FloatLayer | None:
        return self.layers.get(self.tensor(step))

    def append(self, step: Step, layer: FloatLayer, source: Step, skip: Step | None = None) -> None:
        name, count = layer.name, 1
        while name in self.layers:
            count += 1
            name = f"{layer.name}_{count}"
        self.layers[name] = replace(layer, name=name, input=self.tensor(source),
                                    skip=None if skip is None else self.tensor(skip))
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
    # Now it also waits for the other operand.
    layer = network.layers.pop(network.tensor(chosen))
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


def _hoist_clamps(layers: list[FloatLayer]) -> tuple[FloatLayer, ...]:
    """Move clamps in front of the maximum pools that they follow.

    The result is the same, but then the layer before the pool knows that it need not represent what is clamped away.
    """
    index = {layer.name: at for at, layer in enumerate(layers)}
    readers = Counter(name for layer in layers for name in (layer.input, layer.skip))
    for at in range(len(layers) - 1, -1, -1):
        layer = layers[at]
        if isinstance(layer, FloatPool) and layer.kind == "max" and layer.input in index and readers[layer.input] == 1:
            before = index[layer.input]
            layers[before] = _clamped(layers[before], layer.low, layer.high)
            layers[at] = replace(layer, low=-np.inf, high=np.inf)
    return tuple(layers)
