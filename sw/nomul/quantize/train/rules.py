"""Weight rules: what makes integer levels of the real weights that training moves, and which gradients come back.

A rule is a frozen dataclass of choices with three functions and no state of its own. A layer owns the tensors: its
``weights`` (channels, inputs), of which every channel had the root mean square 1 when quantization began, and what the
rule ``learned`` beside them. ``quantize`` makes levels and steps of those; a weight's value is ``level * step``, so

    d value / d weight = step * d level / d weight        and        d value / d step = level

and a rule gives its ``levels`` the gradient that makes the first product what its paper says. Steps go through
``snap``, which moves them onto the requantizer's lattice and lets gradients through; whoever needs the step that the
machine will have takes it from there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from nomul_hw.formats import WeightFormat

from ..config import QuantizeError

__all__ = ["Absmean", "Discrete", "Start", "StraightThrough", "Tga", "Ttq", "WeightRule", "tail_mean"]

#: What a rule trains, or keeps, beside the weights, by name.
Learned = Mapping[str, torch.Tensor]

#: Moves steps (channels,), or (1,) for a layer, onto the lattice, (channels,); the gradient passes.
Snap = Callable[[torch.Tensor], torch.Tensor]

#: Statistics of one output channel, or of all of them together.
Per = Literal["channel", "layer"]

#: Share of a cell that weights keep from its border when they are put into it: float32 cannot tell less of int16.
MARGIN = 2.0**-5

#: Times that cells about a moving mean are followed.
MOVES = 8

#: Octaves by which a step moves when what is learned of it moves by 1: AdamW moves all at one pace.
PACE = 0.25


@dataclass(frozen=True, eq=False)
class Start:
    """A layer as post-training quantization leaves it.

    Parameters
    ----------
    format : WeightFormat
    weights : float64 Tensor, shape (channels, inputs)
        The float network's, the root mean square of every channel divided out.
    levels : float64 Tensor, shape (channels, inputs)
        Integers.
    steps : float64 Tensor, shape (channels,)
        On the lattice, for these weights.
    """

    format: WeightFormat
    weights: torch.Tensor
    levels: torch.Tensor
    steps: torch.Tensor


@dataclass(frozen=True)
class WeightRule:
    """What all rules are."""

    #: Names of what is learned by threshold descent, and of what is kept but not trained.
    thresholds: ClassVar[tuple[str, ...]] = ()

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of what belongs to the state of training without being trained."""
        return ()

    def start(self, start: Start) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Choose the weights (channels, inputs) that training begins with, and what is learned beside them.

        Raises
        ------
        QuantizeError
            If the rule has no use for the format.
        """
        raise NotImplementedError

    def quantize(self, weights: torch.Tensor, learned: Learned, fmt: WeightFormat,
                 snap: Snap) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute levels (channels, inputs), integers in floating point, and steps (channels,) on the lattice."""
        raise NotImplementedError

    def settle(self, weights: torch.Tensor, learned: Learned, fmt: WeightFormat, generator: torch.Generator) -> None:
        """Change weights in place after an optimizer's step; most rules leave them."""


@dataclass(frozen=True)
class StraightThrough(WeightRule):
    """The nearest level; gradients as if there were no rounding, none for weights beyond the largest level.

    With a learned step this is LSQ (arXiv 1902.08153) on any levels: a step gets ``level - weight / step`` per weight,
    the level alone beyond the largest. Training begins at the very levels of post-training quantization: weights are
    moved into the cell of the level they have there, no further.

    Parameters
    ----------
    learned_step : bool
        Whether steps are trained; else they stay as post-training quantization chose them.
    rounding : str
        ``"linear"``: nearest by difference. ``"log"``: by ratio, as DeepShift-Q rounds to powers of two
        (arXiv 1905.13298); a zero level then takes what is nearest to it by difference.
    """

    learned_step: bool = True
    rounding: Literal["linear", "log"] = "linear"

    @property
    def kept(self) -> tuple[str, ...]:
        return () if self.learned_step else ("step",)

    def start(self, start: Start) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        levels, thresholds = _grid(start.format, start.weights, self.rounding)
        ends = torch.cat([thresholds.new_tensor([-torch.inf]), thresholds, thresholds.new_tensor([torch.inf])])
        at = torch.searchsorted(levels, start.levels)
        low, high = ends[at], ends[at + 1]
        margin = MARGIN * torch.minimum(start.levels - low, high - start.levels)
        steps = start.steps[:, None]
        weights = torch.minimum(torch.maximum(start.weights, (low + margin) * steps), (high - margin) * steps)
        return weights, {"step": torch.log2(start.steps) / PACE}

    def quantize(self, weights: torch.Tensor, learned: Learned, fmt: WeightFormat,
                 snap: Snap) -> tuple[torch.Tensor, torch.Tensor]:
        levels, thresholds = _grid(fmt, weights, self.rounding)
        steps = snap(torch.exp2(learned["step"] * PACE))
        inside = (weights / steps[:, None]).clamp(float(levels[0]), float(levels[-1]))
        nearest = levels[torch.bucketize(inside.detach(), thresholds, right=True)]
        return _through(nearest, inside), steps


@dataclass(frozen=True)
class Tga(WeightRule):
    """Ternary weights whose threshold is trained with them (TGA, arXiv 1810.01018).

    With the mean ``mu`` and the deviation ``sigma`` of the weights and ``a = min(|delta|, 3 sigma) / sigma``: a weight
    is 1 above ``mu + a sigma``, -1 below ``mu - a sigma``, and the scale is what a normal distribution has beyond
    ``a`` on average, ``S = mu + sigma h(a)``. Mean and deviation are part of the gradient: a weight gets the gradient
    of its value, whole, and what comes through the scale.

    Parameters
    ----------
    per : str
        Whose statistics: of the ``"layer"``, as in the paper, or of each ``"channel"``.
    start_at : str
        Where to begin: ``"levels"``, at those of post-training quantization, weights being moved into their cells; or
        at the float weights, with the threshold that is best for normal weights, 0.612 deviations (``"normal"``), or
        the paper's 0.05 of the largest weight (``"max"``).
    centre : bool
        Whether the mean counts; else it is taken for 0.
    gain : bool
        Whether every channel has a trained factor, as batch norm has in the paper. Here batch norms are folded.
    """

    per: Per = "layer"
    start_at: Literal["levels", "normal", "max"] = "levels"
    centre: bool = True
    gain: bool = True

    thresholds: ClassVar[tuple[str, ...]] = ("threshold",)

    @property
    def kept(self) -> tuple[str, ...]:
        return () if self.gain else ("gain",)

    def start(self, start: Start) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if tuple(start.format.levels) != (-1, 0, 1):
            raise QuantizeError(f"TGA makes ternary weights, not {start.format.name!r}")
        weights = start.weights
        if self.start_at == "max":
            threshold = 0.05 * _largest(weights, self.per)
        else:
            threshold = 0.612 * self._statistics(weights)[1]
        if self.start_at == "levels":
            weights = self._moved(weights, start.levels, threshold)
        learned = {"threshold": threshold[:, 0], "gain": torch.zeros_like(weights[:, 0])}
        if self.gain:
            hard, scale = self.quantize(weights, learned, start.format, lambda steps: steps)
            # As post-training quantization has it, else what makes the squared error of the channel least.
            wanted = start.steps if self.start_at == "levels" else (
                (weights * hard).sum(1) / hard.square().sum(1).clamp(min=1)).clamp(0.25 * scale, 4 * scale)
            learned["gain"] = torch.log2(wanted / scale) / PACE
        return weights.clone(), learned

    def quantize(self, weights: torch.Tensor, learned: Learned, fmt: WeightFormat,
                 snap: Snap) -> tuple[torch.Tensor, torch.Tensor]:
        mean, deviation = self._statistics(weights)
        delta = torch.minimum(learned["threshold"].abs()[:, None], 3 * deviation)
        scale = mean + deviation * tail_mean(delta / deviation)
        # Beyond a threshold the mean of a handful of weights can be anything; the scale of all is positive.
        scale = torch.maximum(scale, 0.1 * deviation)
        steps = snap((scale * torch.exp2(learned["gain"] * PACE)[:, None])[:, 0])
        hard = (weights > mean + delta).to(weights) - (weights < mean - delta).to(weights)
        return _through(hard, weights / scale.detach()), steps

    def _moved(self, weights: torch.Tensor, levels: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
        """Weights in the cells of these levels, moved no further than that takes."""
        near, far = (1 - MARGIN) * threshold, (1 + MARGIN) * threshold
        for _ in range(MOVES):  # cells lie about the mean, which moves with the weights
            mean, _ = self._statistics(weights)
            inside = torch.minimum(torch.maximum(weights, mean - near), mean + near)
            outside = mean + levels * torch.maximum(levels * (weights - mean), far)
            weights = torch.where(levels == 0, inside, outside)
        return weights

    def _statistics(self, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation, (channels, 1) or (1, 1)."""
        rows = weights if self.per == "channel" else weights.reshape(1, -1)
        mean = rows.mean(1, keepdim=True) if self.centre else torch.zeros_like(rows[:, :1])
        return mean, (rows - mean).square().mean(1, keepdim=True).clamp(min=1e-12).sqrt()


@dataclass(frozen=True)
class Ttq(WeightRule):
    """Three values of which both ends are trained (TTQ, arXiv 1612.01064).

    On the machine a channel has one gain. So the two ends are levels of the format: the pair of magnitudes whose ratio
    is nearest to that of the trained ends. A ternary format has but one, which leaves their geometric mean.

    Parameters
    ----------
    threshold : float
        Share of the largest weight below which weights are 0.
    per : str
        Whose ends: of each ``"channel"``, or of the ``"layer"``, as in the paper.
    """

    threshold: float = 0.05
    per: Per = "channel"

    def start(self, start: Start) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if not start.format.zero:
            raise QuantizeError(f"TTQ needs a format with a zero, not {start.format.name!r}")
        rows = start.weights if self.per == "channel" else start.weights.reshape(1, -1)
        size = self._limit(start.weights).expand_as(start.weights).reshape(rows.shape)
        ends = {}
        for name, part in (("positive", rows > size), ("negative", rows < -size)):
            mean = (rows.abs() * part).sum(1) / part.sum(1).clamp(min=1)
            ends[name] = torch.log2(torch.where(part.any(1), mean, rows.square().mean(1).sqrt().clamp(min=1e-6))) / PACE
        return start.weights.clone(), ends

    def quantize(self, weights: torch.Tensor, learned: Learned, fmt: WeightFormat,
                 snap: Snap) -> tuple[torch.Tensor, torch.Tensor]:
        positive, negative = (torch.exp2(learned[name] * PACE) for name in ("positive", "negative"))
        magnitudes = weights.new_tensor([magnitude for magnitude in fmt.magnitudes if magnitude])
        # Of all pairs with one ratio the one with the smallest levels: the sums are the smallest too.
        pairs = torch.cartesian_prod(magnitudes, magnitudes)
        pairs = pairs[torch.argsort(pairs.sum(1), stable=True)]
        ratios = torch.log2(pairs[:, 0] / pairs[:, 1])
        best = (ratios - torch.log2(positive / negative).detach()[:, None]).abs().argmin(1)
        up, down = pairs[best, 0][:, None], pairs[best, 1][:, None]
        steps = snap(torch.sqrt(positive * negative / (up * down)[:, 0]).detach())
        limit = self._limit(weights)
        above, below = (weights > limit).to(weights), (weights < -limit).to(weights)
        positive, negative = positive[:, None], negative[:, None]
        # A weight's gradient is scaled by the end that it belongs to, by 1 at zero.
        pace = torch.where(above > 0, positive, torch.where(below > 0, negative, torch.ones_like(weights))).detach()
        value = positive * above - negative * below + pace * weights
        return _through(up * above - down * below, value / steps[:, None]), steps

    def _limit(self, weights: torch.Tensor) -> torch.Tensor:
        return self.threshold * _largest(weights.detach(), self.per)


@dataclass(frozen=True)
class Absmean(WeightRule):
    """The nearest level after division by the mean magnitude (BitNet b1.58, arXiv 2402.17764).

    The gradient of a weight is that of its value; none goes through the scale. Meant for ternary weights.

    Parameters
    ----------
    per : str
        Whose mean: of each ``"channel"``, or of the ``"layer"``, as in the paper.
    """

    per: Per = "channel"

    def start(self, start: Start) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return start.weights.clone(), {}

    def quantize(self, weights: torch.Tensor, learned: Learned, fmt: WeightFormat,
                 snap: Snap) -> tuple[torch.Tensor, torch.Tensor]:
        levels, thresholds = _grid(fmt, weights)
        sizes = weights.detach().abs()
        steps = snap((sizes.mean(1) if self.per == "channel" else sizes.mean().reshape(1)).clamp(min=1e-6))
        counts = weights / steps[:, None]
        return _through(levels[torch.bucketize(counts.detach(), thresholds, right=True)], counts), steps


@dataclass(frozen=True)
class Discrete(WeightRule):
    """Weights that are levels all the time: the optimizer's increment moves them along the levels, by chance.

    There is no real weight behind a level (after "discrete state transition", arXiv 1705.09283). An increment moves a
    weight by the whole gaps between levels that it spans; the rest of it, ``r``, by one gap more with the probability
    ``tanh(theta |r| / gap)``. :class:`StraightThrough` with ``learned_step=False`` is the same with real weights.

    Parameters
    ----------
    theta : float
        How readily a weight moves.
    """

    theta: float = 3.0

    @property
    def kept(self) -> tuple[str, ...]:
        return "step", "state"

    def start(self, start: Start) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return (start.levels * start.steps[:, None]).clone(), {"step": start.steps, "state": start.levels.clone()}

    def quantize(self, weights: torch.Tensor, learned: Learned, fmt: WeightFormat,
                 snap: Snap) -> tuple[torch.Tensor, torch.Tensor]:
        steps = snap(learned["step"])
        return _through(learned["state"], weights / steps[:, None]), steps

    def settle(self, weights: torch.Tensor, learned: Learned, fmt: WeightFormat, generator: torch.Generator) -> None:
        levels, _ = _grid(fmt, weights)
        steps, last = learned["step"][:, None], len(levels) - 1
        at = torch.searchsorted(levels, learned["state"].contiguous())
        rest = weights / steps - learned["state"]
        for _ in range(last):
            gap = self._gap(levels, at, rest)
            moves = rest.abs() >= gap
            if not moves.any():
                break
            at = torch.where(moves, at + rest.sign().long(), at)
            rest = torch.where(moves, rest - rest.sign() * gap, rest)
        gap = self._gap(levels, at, rest)
        chance = torch.rand(rest.shape, generator=generator).to(rest)
        moves = (chance < torch.tanh(self.theta * rest.abs() / gap)) & torch.isfinite(gap)
        at = torch.where(moves, at + rest.sign().long(), at)
        learned["state"].copy_(levels[at])
        weights.copy_(levels[at] * steps)

    @staticmethod
    def _gap(levels: torch.Tensor, at: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        """Distance to the next level where ``rest`` points; infinite at the ends."""
        padded = torch.cat([levels.new_tensor([-torch.inf]), levels, levels.new_tensor([torch.inf])])
        return torch.where(rest < 0, padded[at + 1] - padded[at], padded[at + 2] - padded[at + 1])


def tail_mean(a: torch.Tensor) -> torch.Tensor:
    """Mean of a standard normal variable beyond ``a``: ``h = phi(a) / (1 - Phi(a))``; its derivative is ``h (h - a)``.
    """
    density = torch.exp(-a.square() / 2) / (2 * torch.pi) ** 0.5
    return density / (0.5 * torch.erfc(a / 2**0.5))


def _largest(weights: torch.Tensor, per: Per) -> torch.Tensor:
    """Largest magnitude, (channels, 1) or (1, 1)."""
    sizes = weights.abs()
    return sizes.amax(1, keepdim=True) if per == "channel" else sizes.max().reshape(1, 1)


def _through(values: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """``values``, with the gradient of ``counts``."""
    return values + (counts - counts.detach())


def _grid(fmt: WeightFormat, like: torch.Tensor,
          rounding: Literal["linear", "log"] = "linear") -> tuple[torch.Tensor, torch.Tensor]:
    """Levels, ascending, and the thresholds between them."""
    levels = torch.tensor(list(fmt.levels), dtype=like.dtype, device=like.device)
    low, high = levels[:-1], levels[1:]
    middle = (low + high) / 2
    if rounding == "log":
        middle = torch.where(low * high > 0, low.sign() * (low * high).abs().sqrt(), middle)
    return levels, middle
