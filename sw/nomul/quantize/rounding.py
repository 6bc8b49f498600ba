"""AdaRound: learn which of two neighbouring levels every weight of a layer is rounded to.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020 (arXiv 2004.10568). There,
levels are integers; here they are those of any format, so that the way to the next one differs from weight to weight. A
weight is ``step (low + h(v) (high - low))`` with ``h(v) = clip(1.2 sigmoid(v) - 0.1, 0, 1)``, and the ``v`` of a layer
are learned: so that its output, after addition and activation function, comes near to that of the float layer, while
``1 - |2 h - 1|**beta`` with falling ``beta`` drives every ``h`` to 0 or 1.

What error compensation cannot know, this does: that what an activation function cuts off is no error. Since the search
by gradients is the weaker one of the two, it starts from what compensation found, and channels may stay with that.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from nomul_hw.formats import WeightFormat

from .lattice import StepLattice
from .weights import Fit

__all__ = ["BATCH", "LayerOutputs", "fit_learned"]

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

#: Steps of the optimizer (Adam), pixels that each looks at, and its rate.
STEPS, BATCH, RATE = 600, 512, 0.05

#: Exponent of what drives weights to levels, from the first step to the last along a cosine; and what an undecided
#: weight costs, in shares of the channel's error at the start.
BETAS, DECIDE = (20.0, 2.0), 1.0

#: ``h`` of the level that a weight starts from; that of the other one is the rest.
START = 0.9

#: What ``h`` stretches the sigmoid by at either end, so that it reaches 0 and 1.
STRETCH = 0.1


@dataclass(frozen=True, eq=False)
class LayerOutputs:
    """What a layer is to make of its inputs at some pixels, all as real numbers.

    Parameters
    ----------
    inputs : float32 array, shape (groups, inputs, pixels)
        What the integer network feeds it; less the means where the bias restores the mean of the output.
    base : float32 array, shape (groups, channels, pixels)
        What is added to the products: bias, and the tensor that the layer adds.
    wanted : float32 array, shape (groups, channels, pixels)
        The float layer's output.
    low, high : float
        Clamp of the output, the activation function.
    """

    inputs: Float32Array
    base: Float32Array
    wanted: Float32Array
    low: float
    high: float


def fit_learned(start: Fit, weights: Float64Array, outputs: LayerOutputs, fmt: WeightFormat, lattice: StepLattice,
                lowest: Int64Array, highest: Int64Array, *, damping: float = 0.1) -> Fit:
    """Learn the rounding of a layer, from where another method has come; deterministic.

    Every weight chooses between its level of ``start`` and the next one on the side where the float weight lies. Then
    the steps next to a channel's on the lattice are tried. A channel for which nothing is better keeps what it had.

    Parameters
    ----------
    start : Fit
        Levels and steps of another method.
    weights : float64 array, shape (groups, channels, inputs)
        The float weights.
    outputs : LayerOutputs
        A sample of pixels.
    fmt : WeightFormat
    lattice : StepLattice
    lowest, highest : int64 arrays, shape (groups, channels)
        Indices of every channel's smallest and largest step.
    damping : float
        Share of the mean input power that the error of a weight costs on its own, as in error compensation.
    """
    draw = torch.Generator().manual_seed(0)
    x, base, wanted = (torch.from_numpy(part) for part in (outputs.inputs, outputs.base, outputs.wanted))
    real, levels = torch.from_numpy(weights.astype(np.float32)), torch.tensor(fmt.levels, dtype=torch.float32)
    first, steps = torch.from_numpy(start.levels).float(), _steps(lattice, start.index)
    at = torch.searchsorted(levels, first)
    other = (at + torch.where(real >= first * steps, 1, -1)).clamp(0, len(levels) - 1)
    low, high = levels[torch.minimum(at, other)], levels[torch.maximum(at, other)]
    ridge = damping * x.var(dim=2, correction=0).mean(dim=1)[:, None]

    def error(rounded: torch.Tensor, steps: torch.Tensor, pixels: torch.Tensor | slice) -> torch.Tensor:
        """Error of every channel, (groups, channels)."""
        made = torch.baddbmm(base[:, :, pixels], rounded * steps, x[:, :, pixels])
        off = made.clamp(outputs.low, outputs.high) - wanted[:, :, pixels]
        return off.square().mean(dim=2) + ridge * (rounded * steps - real).square().sum(dim=2)

    every, count = slice(None), x.shape[2]
    best = error(first, steps, every)
    scale = weights.shape[2] / best.clamp(min=1e-12)
    share = torch.where(at > other, START, 1 - START)
    v = torch.logit((share + STRETCH) / (1 + 2 * STRETCH)).requires_grad_()
    optimizer = torch.optim.Adam([v], lr=RATE)
    for step in range(STEPS):
        pixels = torch.randint(count, (min(BATCH, count),), generator=draw)
        beta = BETAS[1] + (BETAS[0] - BETAS[1]) * (1 + np.cos(np.pi * step / STEPS)) / 2
        with torch.enable_grad():  # whatever the caller does
            h = (torch.sigmoid(v) * (1 + 2 * STRETCH) - STRETCH).clamp(0, 1)
            loss = ((error(low + h * (high - low), steps, pixels) * scale).sum()
                    + DECIDE * (1 - (2 * h - 1).abs() ** beta).sum())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    learned = torch.where(v > 0, high, low)
    chosen, index = start.levels, start.index
    for tried in (start.index, start.index - 1, start.index + 1):
        tried = np.clip(tried, lowest, highest)
        found = error(learned, _steps(lattice, tried), every)
        better, best = (found < best).numpy(), torch.minimum(found, best)
        index = np.where(better, tried, index)
        chosen = np.where(better[:, :, None], learned.numpy().astype(np.int64), chosen)
    return Fit(chosen, index)


def _steps(lattice: StepLattice, index: Int64Array) -> torch.Tensor:
    return torch.from_numpy(lattice.steps[index].astype(np.float32))[:, :, None]
