"""Weight rules against their formulas: levels, steps, and the gradients of values ``level * step``."""

import numpy as np
import pytest
import torch

from nomul.quantize.train.rules import Absmean, Discrete, Start, StraightThrough, Tga, Ttq, tail_mean
from nomul_hw.formats import get_format

TERNARY = get_format("ternary")


def same(steps: torch.Tensor) -> torch.Tensor:
    """A lattice that has every step."""
    return steps


def weights(channels: int = 4, inputs: int = 50, seed: int = 0) -> torch.Tensor:
    values = torch.randn(channels, inputs, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return values / values.square().mean(1, keepdim=True).sqrt()


def start(rows: torch.Tensor, name: str = "ternary", step: float = 1.0) -> Start:
    fmt = get_format(name)
    steps = torch.full((len(rows),), step, dtype=torch.float64)
    return Start(fmt, rows, torch.from_numpy(fmt.nearest((rows / step).numpy()).astype(np.float64)), steps)


def gradients(rule, rows, learned, fmt=TERNARY):
    """Values, and what the gradient ``g`` of every value comes to, for fixed random ``g``."""
    rows = rows.clone().requires_grad_()
    learned = {name: value.clone().requires_grad_() for name, value in learned.items()}
    levels, steps = rule.quantize(rows, learned, fmt, same)
    values = levels * steps[:, None]
    g = torch.randn(values.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    values.backward(g)
    return levels.detach(), steps.detach(), g, rows.grad, {name: value.grad for name, value in learned.items()}


# TGA -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "h", "slope"), [(0.1, 0.8626, 0.6578), (0.25, 0.9636, 0.6875), (0.5, 1.1411, 0.7315),
                                               (1.0, 1.5251, 0.8009), (2.0, 2.3732, 0.8857)])
def test_tga_scale(a, h, slope):
    """Its value and its derivative by the threshold, both in deviations."""
    value = torch.tensor(a, dtype=torch.float64, requires_grad=True)
    mean = tail_mean(value)
    mean.backward()
    assert (round(float(mean.detach()), 4), round(float(value.grad), 4)) == (h, slope)


@pytest.mark.parametrize("delta", [0.3, -0.7, 5.0])
def test_tga_gradients(delta):
    """Straight through to a weight, whole; through the scale to threshold, mean and deviation, as the paper has it."""
    rows, rule = weights() + 0.1, Tga(gain=False)
    learned = {"threshold": torch.tensor([delta], dtype=torch.float64), "gain": torch.zeros(4, dtype=torch.float64)}
    levels, steps, g, found, others = gradients(rule, rows, learned)
    mean, sigma = rows.mean(), rows.std(correction=0)
    clipped = min(abs(delta), 3 * float(sigma))
    a = clipped / sigma
    h = tail_mean(a)
    torch.testing.assert_close(steps, (mean + sigma * h).expand(4))
    expected = (rows > mean + clipped).double() - (rows < mean - clipped).double()
    assert torch.equal(levels, expected)
    total, free = (g * levels).sum(), abs(delta) < 3 * sigma
    torch.testing.assert_close(others["threshold"][0], total * h * (h - a) * np.sign(delta) * free)
    # dS/dmu = 1; dS/dsigma = h (1 + a² - a h) while the threshold is free, h where it is 3 sigma.
    through = h * (1 + a**2 - a * h) if free else h
    torch.testing.assert_close(found, g + total * (1 + through * (rows - mean) / sigma) / rows.numel())


@pytest.mark.parametrize("per", ["channel", "layer"])
def test_tga_begins_at_given_levels(per):
    rng, rows = np.random.default_rng(0), weights() + 0.2
    levels = torch.from_numpy(rng.integers(-1, 1, rows.shape, endpoint=True).astype(np.float64))
    steps = torch.tensor([0.1, 0.5, 1.0, 1.5], dtype=torch.float64)
    moved, learned = Tga(per=per).start(Start(TERNARY, rows, levels, steps))
    learned = {name: value.float() for name, value in learned.items()}
    got, kept = Tga(per=per).quantize(moved.float(), learned, TERNARY, same)
    assert torch.equal(got.double(), levels)
    torch.testing.assert_close(kept, steps.float())


def test_tga_begins_at_least_error_and_the_papers_start():
    rows = weights(2, 4000)
    rows[1] = rows[1].sign() * rows[1].abs() ** 3
    for rule in (Tga(start_at="normal"), Tga(per="channel", start_at="normal")):
        _, learned = rule.start(start(rows))
        levels, steps = rule.quantize(rows, learned, TERNARY, same)
        torch.testing.assert_close(steps, (rows * levels).sum(1) / levels.abs().sum(1))
    assert float(1 - (levels[0] * steps[0] - rows[0]).square().mean()) == pytest.approx(0.90**2, abs=0.01)
    threshold = Tga(start_at="max").start(start(rows))[1]["threshold"]
    torch.testing.assert_close(threshold, 0.05 * rows.abs().max().reshape(1))


# The others ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["binary", "pot3", "pot4z", "exp4", "int4"])
def test_straight_through_begins_at_given_levels(name):
    """Even where they are not the nearest, as error compensation chooses them; weights move no more than they must."""
    rng, rows, fmt = np.random.default_rng(0), weights(), get_format(name)
    levels = torch.from_numpy(rng.choice(fmt.levels, rows.shape).astype(np.float64))
    steps = torch.tensor([0.1, 0.5, 1.0, 1.5], dtype=torch.float64)
    for rounding in ("linear", "log"):
        rule = StraightThrough(rounding=rounding)
        moved, learned = rule.start(Start(fmt, rows, levels, steps))
        got, kept = rule.quantize(moved, learned, fmt, same)
        assert torch.equal(got, levels)
        torch.testing.assert_close(kept, steps)
    nearest = torch.from_numpy(fmt.nearest((rows / steps[:, None]).numpy()).astype(np.float64))
    moved, _ = StraightThrough().start(Start(fmt, rows, nearest, steps))
    assert float((moved - rows).abs().max()) < 0.05 * float(steps.max()) * max(np.diff(fmt.levels))


def test_straight_through_gradients():
    """LSQ: a weight inside the range gets all, one beyond nothing; a step gets level - weight / step, or the level."""
    fmt, rows, rule = get_format("pot3"), weights(), StraightThrough()
    learned = {"step": torch.full((4,), -3.0, dtype=torch.float64) / 0.25}
    levels, steps, g, found, others = gradients(rule, rows, learned, fmt)
    counts = rows / steps[:, None]
    inside = counts.abs() <= fmt.max_magnitude
    assert 0 < inside.double().mean() < 1
    torch.testing.assert_close(found, g * inside)
    by_step = (g * torch.where(inside, levels - counts, levels)).sum(1)
    torch.testing.assert_close(others["step"], by_step * steps * np.log(2) * 0.25)


def test_deepshift_rounds_by_ratio():
    rule, fmt = StraightThrough(False, "log"), get_format("pot4")
    rows = torch.tensor([[1.3, 1.5, 2.7, 2.9, -1.3, -1.5, 0.01, 500.0]], dtype=torch.float64)
    levels, _ = rule.quantize(rows, {"step": torch.zeros(1, dtype=torch.float64)}, fmt, same)
    assert levels.tolist() == [[1, 2, 2, 4, -1, -2, 1, 128]]
    assert rule.kept == ("step",) and StraightThrough().kept == ()


def test_ttq_gradients():
    """An end gets the sum over its weights; a weight its own times its end, times 1 at zero."""
    fmt, rows, rule = get_format("exp4"), weights(), Ttq(threshold=0.2)
    _, learned = rule.start(start(rows, "exp4"))
    learned["positive"] = learned["positive"] + torch.log2(torch.tensor(1.5)) / 0.25
    levels, steps, g, found, others = gradients(rule, rows, learned, fmt)
    limit = 0.2 * rows.abs().amax(1, keepdim=True)
    above, below = rows > limit, rows < -limit
    ends = {name: torch.exp2(value * 0.25) for name, value in learned.items()}
    for channel in range(4):
        values = set(levels[channel].tolist())
        assert len(values) == 3 and min(values) < 0 < max(values) and 0 in values
        wanted, made = ends["positive"][channel] / ends["negative"][channel], max(values) / -min(values)
        assert abs(np.log2(made / float(wanted))) < 0.25
        product = steps[channel] ** 2 * max(values) * -min(values)
        torch.testing.assert_close(product, ends["positive"][channel] * ends["negative"][channel])
    slope = 0.25 * np.log(2)
    torch.testing.assert_close(others["positive"], (g * above).sum(1) * ends["positive"] * slope)
    torch.testing.assert_close(others["negative"], -(g * below).sum(1) * ends["negative"] * slope)
    pace = torch.where(above, ends["positive"][:, None], torch.where(below, ends["negative"][:, None], 1.0))
    torch.testing.assert_close(found, g * pace)


@pytest.mark.parametrize("per", ["channel", "layer"])
def test_absmean(per):
    rows = weights() * torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    levels, steps, g, found, _ = gradients(Absmean(per), rows, {})
    mean = rows.abs().mean(1, keepdim=True) if per == "channel" else rows.abs().mean().reshape(1, 1)
    torch.testing.assert_close(steps, mean[:, 0])
    assert torch.equal(levels, torch.floor(rows / mean + 0.5).clamp(-1, 1))
    torch.testing.assert_close(found, g)


def test_discrete_weights_move_by_whole_gaps_and_by_chance():
    """Along uneven levels: gaps that an increment spans are certain, the rest is a draw of the stated odds."""
    fmt, rule, count = get_format("pot3z"), Discrete(theta=2.0), 40_000  # -4 -2 -1 0 1 2 4
    cases = [  # state, increment in steps, where it may end, the odds of the further one
        (0, 0.25, (0, 1), np.tanh(2 * 0.25)), (0, -1.0, (-1, -1), 0.0), (1, 1.5, (2, 4), np.tanh(2 * 0.5 / 2)),
        (4, 3.0, (4, 4), 0.0), (-4, 3.5, (-1, 0), np.tanh(2 * 0.5)), (2, -2.25, (0, -1), np.tanh(2 * 0.25)),
        (1, 100.0, (4, 4), 0.0)]
    step = torch.full((len(cases),), 0.5, dtype=torch.float64)
    state = torch.tensor([[float(case[0])] * count for case in cases], dtype=torch.float64)
    increments = torch.tensor([[case[1]] for case in cases], dtype=torch.float64)
    rows, learned = (state + increments) * step[:, None], {"step": step, "state": state.clone()}
    rule.settle(rows, learned, fmt, torch.Generator().manual_seed(0))
    torch.testing.assert_close(rows, learned["state"] * step[:, None], rtol=0, atol=0)
    for case, found in zip(cases, learned["state"], strict=True):
        near, far = case[2]
        assert set(found.tolist()) <= {near, far}, case
        if near != far:
            assert float((found == far).double().mean()) == pytest.approx(case[3], abs=0.01), case


def test_discrete_weights_are_levels_from_the_start():
    rows = weights()
    began = start(rows, "pot3z", 0.25)
    values, learned = Discrete().start(began)
    torch.testing.assert_close(values, began.levels * 0.25, rtol=0, atol=0)
    levels, _, g, found, _ = gradients(Discrete(), values, learned, began.format)
    assert torch.equal(levels, began.levels)
    torch.testing.assert_close(found, g)
