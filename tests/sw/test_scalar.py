"""Scalar quantizers: the figures that follow from their formulas, and what holds for any weights."""

import math
from itertools import product
from statistics import NormalDist

import numpy as np
import pytest

from nomul.quantize import QuantizeError
from nomul.quantize.scalar import (
    GAUSSIAN,
    INQ,
    LAPLACIAN,
    APoT,
    Binary,
    Codebook,
    DeepShift,
    Exponential,
    LevelSet,
    Linear,
    LloydMax,
    LogNet,
    Sample,
    Ternary,
    TernaryTGA,
    UniformLaplacian,
    exact_format,
    laplacian_bits,
    laplacian_sqnr,
    laplacian_support,
    nearest_format,
    steps,
    tga_scale,
    tga_slopes,
)
from nomul_hw.formats import FORMATS, get_format

SQRT2 = math.sqrt(2)
TWO_MULTIPLES = LevelSet((-12, -8, -6, -4, -3, -2, -1.5, 0, 1.5, 2, 3, 4, 6, 8, 12))

#: Quantizer, then for Gaussian and Laplacian weights: SQNR in dB, rho (None where the literature gives only dB),
#: ratio, largest level.
REFERENCE = {
    "2 linear": (Linear(2), (9.25, 0.93870, None, None), (7.07, 0.89649, None, None)),
    "2 ternary": (Ternary(), (7.21, 0.89990, None, 1.224), (5.78, 0.85776, None, 1.414)),
    "2 exp": (Exponential(2), (9.30, 0.93942, 3.336, 1.510), (7.54, 0.90764, 4.369, 1.834)),
    "3 linear": (Linear(3), (14.27, 0.98110, None, None), (11.44, 0.96346, None, None)),
    "3 base 2": (Exponential(3, 2.0), (13.55, 0.97767, 2.0, 2.152), (11.80, 0.96638, 2.0, 2.815)),
    "3 base 2, 0": (Exponential(3, 2.0, zero=True), (13.23, 0.97593, 2.0, None), (11.51, 0.96401, 2.0, None)),
    "3 exp": (Exponential(3), (13.73, 0.97857, 1.863, 2.104), (11.97, 0.96774, 2.162, 3.042)),
    "3 Lloyd-Max": (LloydMax(3), (14.62, 0.98257, None, None), (12.64, 0.97238, None, None)),
    "4 linear": (Linear(4), (19.38, 0.99421, None, None), (15.96, 0.98724, None, None)),
    "4 base 2": (Exponential(4, 2.0), (14.23, 0.98095, 2.0, None), (14.17, 0.98068, 2.0, None)),
    "4 sqrt2, 0": (Exponential(4, SQRT2, zero=True), (18.87, None, SQRT2, None), (16.50, None, SQRT2, None)),
    "4 {1, 1.5}": (TWO_MULTIPLES, (18.54, None, None, None), (16.33, None, None, None)),
    "4 APoT": (APoT(4), (19.17, 0.99393, None, None), (16.91, 0.98976, None, None)),
    "4 exp": (Exponential(4), (18.54, 0.99298, 1.433, 2.675), (16.85, 0.98963, 1.556, 4.326)),
    "4 exp, 0": (Exponential(4, zero=True), (18.89, 0.99352, 1.398, None), (17.08, 0.99015, 1.518, None)),
    "5 linear": (Linear(5), (24.57, None, None, None), (20.60, None, None, None)),
    "5 base 2": (Exponential(5, 2.0), (14.23, None, 2.0, None), (14.18, None, 2.0, None)),
    "5 sqrt2": (Exponential(5, SQRT2), (20.05, None, SQRT2, None), (20.03, None, SQRT2, None)),
    "5 exp": (Exponential(5), (23.50, None, 1.230, None), (21.88, None, 1.286, None)),
    "5 exp, 0": (Exponential(5, zero=True), (24.12, None, None, None), (22.38, None, None, None)),
    "6 linear": (Linear(6), (29.83, None, None, None), (25.36, None, None, None)),
    "6 exp": (Exponential(6), (28.53, None, None, None), (26.99, None, None, None)),
    "6 exp, 0": (Exponential(6, zero=True), (29.25, None, None, None), (27.59, None, None, None)),
}

ALL = {
    "linear": Linear(4), "clipped": Linear(4, "clipping"), "range": Linear(4, "range"), "exp": Exponential(4),
    "exp, 0": Exponential(4, zero=True), "exp range": Exponential(4, criterion="range"),
    "exp log": Exponential(4, partition="log"), "exp log, 0": Exponential(4, partition="log", zero=True),
    "laplacian": UniformLaplacian(9), "ternary": Ternary(), "twn": Ternary("twn"), "absmean": Ternary("absmean"),
    "tga": TernaryTGA(), "tga 5 %": TernaryTGA(share=0.05), "binary": Binary(), "binary, 2": Binary(power_of_two=True),
    "apot": APoT(5), "deepshift": DeepShift(), "inq": INQ(), "lognet": LogNet(4), "lognet sqrt2": LogNet(4, "sqrt2"),
    "lloyd": LloydMax(3), "format": LevelSet.of(get_format("exp4")),
}


def laplacian_sample(count=4096, seed=0, scale=0.05):
    return scale * np.random.default_rng(seed).laplace(size=(count // 16, 16))


# Figures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [GAUSSIAN, LAPLACIAN], ids=lambda density: density.name)
@pytest.mark.parametrize("name", REFERENCE)
def test_reference_table(name, density):
    quantizer, *rows = REFERENCE[name]
    sqnr, rho, ratio, largest = rows[density is LAPLACIAN]
    found = quantizer.fit(density)
    assert found.sqnr == pytest.approx(sqnr, abs=0.011)
    assert found.best_sqnr == pytest.approx(sqnr, abs=0.011)
    assert found.gain == pytest.approx(1, abs=1e-3)
    if rho is not None:
        assert found.rho == pytest.approx(rho, abs=2e-5)
    if ratio is not None:
        assert found.ratio == pytest.approx(ratio, rel=2e-3)
    if largest is not None:
        assert found.levels[-1] == pytest.approx(largest, rel=2e-3)


def test_part_one_compares_with_the_whole_range():
    """Its claim, a million Laplacian weights: an exponential code gains 5 to 6 dB, more than a bit."""
    weights = LAPLACIAN.among(10**6)
    for bits, linear, exponential in ((3, 4.54, 9.61), (4, 8.97, 15.40), (5, 14.74, 20.99)):
        assert Linear(bits, "range").fit(weights).best_sqnr == pytest.approx(linear, abs=0.03)
        assert Exponential(bits, criterion="range").fit(weights).best_sqnr == pytest.approx(exponential, abs=0.03)


def test_a_scale_for_all_channels_costs_every_code_but_base_two():
    spread = np.exp([0.8 * NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)])
    weights = np.random.default_rng(1).standard_normal((256, 128)) * spread[:, None]
    linear, ternary, base2 = (method.fit(weights).sqnr for method in (Linear(4), Ternary(), Exponential(4, 2.0)))
    assert linear < 12 and ternary < 4.5 and 13.6 < base2 < 14.3
    step = steps(weights, get_format("int4"))[:, None]
    error = weights - get_format("int4").nearest(weights / step) * step
    assert 10 * math.log10(np.square(weights).sum() / np.square(error).sum()) > 19


def test_optimal_ternary():
    for density, threshold, zeros in ((GAUSSIAN, 0.612, 0.46), (LAPLACIAN, 0.707, 0.63)):
        found = Ternary().fit(density)
        assert found.thresholds == pytest.approx([-threshold, threshold], abs=1e-3)
        assert found.zeros == pytest.approx(zeros, abs=0.005)


@pytest.mark.parametrize("a, h, slope", [(0.1, 0.8626, 0.6578), (0.25, 0.9636, 0.6875), (0.5, 1.1411, 0.7315),
                                         (1.0, 1.5251, 0.8009), (2.0, 2.3732, 0.8857)])
def test_tga(a, h, slope):
    assert tga_scale(a) == pytest.approx(h, abs=5e-5)
    assert tga_slopes(a)[0] == pytest.approx(slope, abs=5e-5)
    # The slopes are the derivatives; of other means and deviations too.
    t, mean, deviation, d = 0.3 * a, 0.1, 0.3, 1e-6
    for slope, change in zip(tga_slopes(t, deviation), np.eye(3) * d, strict=True):
        rise = tga_scale(t + change[0], mean + change[1], deviation + change[2]) - tga_scale(
            t - change[0], mean - change[1], deviation - change[2])
        assert slope == pytest.approx(rise / (2 * d), rel=1e-5)


def test_tga_starts_better_at_more_than_the_authors_threshold():
    """Their start is 5 % of the largest weight, about a fifth of a deviation in a usual layer."""
    gaussian = GAUSSIAN.among(10**5)
    assert TernaryTGA().fit(gaussian).best_sqnr - TernaryTGA(share=0.05).fit(gaussian).best_sqnr > 1.2


@pytest.mark.parametrize("bits, support, sqnr", [
    (2, 2.1748, 7.071), (3, 2.9237, 11.442), (4, 3.6880, 15.960), (6, 5.3018, 25.356), (8, 7.0201, 35.208),
    (9, 7.9060, 40.281), (10, 8.8041, 45.436), (11, 9.7115, 50.661), (12, 10.6262, 55.948), (14, 12.4717, 66.675),
    (16, 14.3334, 77.565)])
def test_laplacian_design(bits, support, sqnr):
    assert laplacian_support(bits) == pytest.approx(support, abs=1e-4)
    assert laplacian_sqnr(bits, support) == pytest.approx(sqnr, abs=1e-3)
    rule = laplacian_support(bits, "iterative")
    assert rule == pytest.approx(math.log(3 * 4**bits / (SQRT2 * rule)) / SQRT2)
    assert 0 <= sqnr + 1e-3 - laplacian_sqnr(bits, rule) < (0.07 if bits < 8 else 2e-3)


@pytest.mark.parametrize("bits", [2, 5, 9, 12])
@pytest.mark.parametrize("level", [-20.0, 0.0, 6.0])
def test_laplacian_closed_form_is_what_the_quantizer_does(bits, level):
    support = laplacian_support(bits)
    levels = np.arange(1.0 - 2**bits, 2**bits, 2) * support / 2**bits
    met = Codebook.nearest(LAPLACIAN, levels, 10 ** (-level / 20))
    assert met.sqnr == pytest.approx(laplacian_sqnr(bits, support, level), abs=1e-4)


def test_laplacian_bits():
    assert laplacian_bits(40.0) == 9
    assert laplacian_bits(laplacian_sqnr(12, laplacian_support(12))) == 12
    # 6.02 dB of mismatch are about a bit.
    for level in (-12.0, -24.0, -36.0):
        assert abs(laplacian_bits(35.0, (level, 0.0)) - laplacian_bits(35.0) + level / 6.02) < 1.1
    with pytest.raises(QuantizeError, match="No 24 bits reach 300 dB from 0 to 0 dB"):
        laplacian_bits(300.0)


# Any weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_what_a_codebook_says_is_true(name):
    weights = laplacian_sample()
    found = ALL[name].fit(weights)
    quantized = found.quantized
    assert quantized.shape == found.codes.shape == weights.shape
    assert (np.diff(found.levels) > 0).all() and len(found.thresholds) == len(found.levels) - 1
    assert set(np.unique(quantized)) <= set(found.levels)
    assert found.use == pytest.approx(np.bincount(found.codes.ravel(), minlength=len(found.levels)) / weights.size)
    assert found.zeros == pytest.approx(np.mean(quantized == 0))
    cross, energy, power = (weights * quantized).sum(), (quantized**2).sum(), (weights**2).sum()
    assert found.rho == pytest.approx(cross / math.sqrt(energy * power))
    assert found.gain == pytest.approx(cross / energy)
    assert found.sqnr == pytest.approx(10 * math.log10(power / np.square(weights - quantized).sum()))
    assert found.best_sqnr >= found.sqnr - 1e-9
    assert found.bits == (len(found.levels) - 1).bit_length()
    assert (np.abs(found.levels / found.scale) < 1e6).all()


@pytest.mark.parametrize("name", sorted(set(ALL) - {"deepshift", "inq", "lognet", "lognet sqrt2", "binary, 2"}))
def test_scale_of_the_weights_does_not_matter(name):
    weights = laplacian_sample()
    one, other = ALL[name].fit(weights), ALL[name].fit(weights * 3)
    assert np.mean(one.codes != other.codes) < 0.002
    assert other.levels == pytest.approx(one.levels * 3, rel=1e-3)


@pytest.mark.parametrize("name", ["linear", "exp", "exp, 0", "ternary", "lloyd", "format"])
def test_density_and_sample_agree(name):
    count = 40_000
    shares = (np.arange(count) + 0.5) / count
    sample = np.where(shares < 0.5, np.log(2 * shares), -np.log(2 * (1 - shares))) / SQRT2
    assert ALL[name].fit(sample).sqnr == pytest.approx(ALL[name].fit(LAPLACIAN).sqnr, abs=0.05)


@pytest.mark.parametrize("quantizer", [Linear(3), Exponential(3), Exponential(3, 2.0), LevelSet.of(FORMATS["pot3z"])],
                         ids=["linear", "exp", "base 2", "pot3z"])
def test_no_other_scale_is_better(quantizer):
    weights = laplacian_sample(512, seed=3)
    found = quantizer.fit(weights)
    others = [Codebook.nearest(weights, found.levels / found.scale, found.scale * 2.0**octave).sqnr
              for octave in np.linspace(-4, 2, 1501)]
    assert found.sqnr > max(others) - 1e-3


def test_ternary_is_the_best_of_all_ternary_weights():
    weights = np.random.default_rng(5).standard_normal(7)
    found = Ternary().fit(weights)
    signs = np.asarray(list(product((-1, 0, 1), repeat=7)))
    signs = signs[signs.any(axis=1)]
    rho = signs @ weights / np.sqrt((signs**2).sum(axis=1) * (weights**2).sum())
    assert found.rho == pytest.approx(rho.max(), rel=1e-12)
    assert found.gain == pytest.approx(1)


def test_lloyd_max_is_not_beaten():
    """Even on tails so heavy that evenly spaced levels are a bad start."""
    weights = np.random.default_rng(0).standard_t(2.5, size=4000)
    best = LloydMax(5).fit(weights).sqnr
    for other in (Linear(5), Exponential(5), Exponential(5, zero=True), APoT(5)):
        assert other.fit(weights).sqnr < best


@pytest.mark.parametrize("seed", range(4))
def test_no_ternary_rule_beats_the_best(seed):
    weights = np.random.default_rng(seed).standard_t(3, size=1000) + 0.05
    best = Ternary().fit(weights).rho
    for other in (Ternary("twn"), Ternary("absmean"), TernaryTGA(), TernaryTGA(share=0.05), Binary()):
        assert other.fit(weights).rho <= best + 1e-12


def test_ternary_of_few_values():
    found = Ternary().fit([1.0, -1.0, 1.0, 0.0])
    assert found.sqnr == math.inf and found.quantized.tolist() == [1, -1, 1, 0]
    assert Ternary().fit([2.0, -2.0]).codes.tolist() == [2, 0]


def test_rules():
    weights = np.asarray([0.9, -0.3, 0.02, -0.55, 0.1, -0.001])
    assert DeepShift(5).fit(weights).quantized == pytest.approx([1, -0.25, 2**-6, -0.5, 0.125, -(2**-10)])
    assert DeepShift(3).fit(weights).quantized == pytest.approx([1, -0.25, 0.25, -0.5, 0.25, -0.25])
    assert DeepShift(3).fit([0.0, -0.0, 0.5, -1e-9]).quantized == pytest.approx([0, 0, 0.5, -0.25])
    # The largest power of INQ: 2**floor(log2(4 * 0.9 / 3)) = 1; with 4 bits four of them and 0.
    assert INQ(4).fit(weights).levels[5:] == pytest.approx([0.125, 0.25, 0.5, 1])
    assert INQ(4).fit(weights).quantized == pytest.approx([1, -0.25, 0, -0.5, 0.125, 0])
    assert Binary().fit(weights).scale == pytest.approx(np.abs(weights).mean())
    assert Binary(power_of_two=True).fit(weights).scale == 0.25
    twn = Ternary("twn").fit(weights)
    assert twn.thresholds[1] == pytest.approx(0.75 * np.abs(weights).mean())
    assert twn.scale == pytest.approx((0.9 + 0.3 + 0.55) / 3)
    assert (APoT(4).levels[7:] * 10).tolist() == pytest.approx([0, 1, 2, 3, 4, 6, 8, 10])
    assert LogNet(4).fit(weights).ratio == 2


def test_log_partition():
    book = Exponential(3, 2.0, partition="log").fit(laplacian_sample())
    positive = book.levels[4:]
    assert book.thresholds[3] == 0
    assert book.thresholds[4:] == pytest.approx(positive[:-1] * SQRT2)
    book = Exponential(3, 2.0, zero=True, partition="log").fit(laplacian_sample())
    assert book.thresholds[3:] == pytest.approx(book.levels[4:] / SQRT2)


def test_counts_stand_for_repetition():
    weights, counts = np.asarray([0.5, -1.0, 2.0, 0.1]), [3, 1, 2, 5]
    one, other = Exponential(2).fit(Sample(weights, counts)), Exponential(2).fit(np.repeat(weights, counts))
    assert one.levels == pytest.approx(other.levels) and one.rho == pytest.approx(other.rho)
    assert one.sqnr == pytest.approx(other.sqnr) and one.use == pytest.approx(other.use)


def test_exact_weights_lose_nothing():
    step = 2.0**-5
    weights = np.random.default_rng(0).choice(get_format("pot3").levels, (8, 16)) * step
    assert steps(weights, get_format("pot3")) == pytest.approx(step)


# The machine -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantizer, name", [
    (Exponential(3, 2.0), "pot3"), (Exponential(3, 2.0, zero=True), "pot3z"), (Exponential(4, 2.0), "pot4"),
    (Exponential(4, SQRT2, zero=True), "exp4_sqrt2"), (Exponential(5, 2 ** (1 / 3), zero=True), "exp5"),
    (Exponential(3), "pot3"), (Exponential(5), "exp5"), (Exponential(6), "exp5"), (Linear(6), "int6"),
    (UniformLaplacian(10), "int10"), (Ternary(), "ternary"), (Ternary("twn"), "ternary"), (Binary(), "binary"),
], ids=repr)
@pytest.mark.parametrize("density", [GAUSSIAN, LAPLACIAN], ids=lambda density: density.name)
def test_nearest_format(quantizer, name, density):
    assert nearest_format(quantizer.fit(density)).name == name


def test_exact_formats():
    weights = np.random.default_rng(0).standard_normal(1000)
    assert exact_format("apot3", APoT(3).levels).levels == get_format("pot3z").levels
    assert exact_format("apot4", APoT(4).levels).magnitudes == (0, 1, 2, 3, 4, 6, 8, 10)
    assert exact_format("apot5", APoT(5).fit(GAUSSIAN)).bits == 5
    assert exact_format("inq4", INQ(4).fit(weights)).magnitudes == (0, 1, 2, 4, 8)
    assert exact_format("lognet", LogNet(4).fit(weights)).levels == get_format("pot4z").levels
    assert exact_format("fp4", [-1.5, -1, -0.5, 0.5, 1, 1.5]).levels == (-3, -2, -1, 1, 2, 3)
    for levels, message in ((Exponential(4, SQRT2).fit(weights), "no multiples of one number; nearest_format"),
                            ([0.0], "no multiples"), ([-2.0, -1.0, 1.0], "symmetric")):
        with pytest.raises(QuantizeError, match=message):
            exact_format("strange", levels)


def test_nearest_format_of_some():
    book = Exponential(4).fit(LAPLACIAN)
    assert nearest_format(book, [get_format("pot4"), get_format("exp4")]).name == "exp4"
    with pytest.raises(QuantizeError, match="No format has 4 bits or fewer"):
        nearest_format(book, [])


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "int8"])
def test_steps_are_the_best(name):
    fmt = get_format(name)
    rng = np.random.default_rng(2)
    weights = rng.laplace(size=(5, 400)) * np.geomspace(0.01, 10, 5)[:, None]
    importance = rng.random(400)
    found = steps(weights, fmt, importance=importance)

    def error(step):
        return np.square(weights - fmt.nearest(weights / step[:, None]) * step[:, None]) @ importance

    best = np.min([error(found * 2.0**octave) for octave in np.linspace(-3, 3, 601)], axis=0)
    assert (error(found) <= best * 1.02).all()  # coarse codes have many local optima


def test_rules_for_steps():
    weights = np.asarray([[0.5, -1.0, 0.25], [0.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    assert steps(weights, get_format("pot4"), "range") == pytest.approx([1 / 128, 0, 3 / 128])
    assert steps(weights, get_format("binary"), "mean") == pytest.approx([1.75 / 3, 0, 1])
    assert steps(weights, get_format("ternary"), "mean") == pytest.approx([1.75 / 3, 0, 1])
    assert steps(weights, get_format("ternary"))[1:] == pytest.approx([0, 3])
    deviation = np.sqrt(np.square(weights).mean(axis=1))
    assert steps(weights, get_format("int10"), "laplacian") == pytest.approx(8.8041 * deviation / 512, rel=1e-4)


# Mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make, message", [
    (lambda: Exponential(1), "Exponential has 2 to 8 bits, not 1"),
    (lambda: Exponential(2, zero=True), "Exponential has 3 to 8 bits, not 2"),
    (lambda: Exponential(3, 1.0), "must be above 1, not 1.0"),
    (lambda: Exponential(3, criterion="best"), "criterion must be one of correlation, range, not 'best'"),
    (lambda: Exponential(3, partition="best"), "partition must be one of nearest, log, not 'best'"),
    (lambda: Exponential(3, criterion="range").fit(GAUSSIAN), "Exponential looks at the largest weight"),
    (lambda: Linear(13), "Linear has 1 to 12 bits"),
    (lambda: Linear(3, "all"), "criterion must be one of correlation, clipping, range"),
    (lambda: Linear(3, "clipping", keep=0.0), "keep must be a share"),
    (lambda: Linear(3, "range").fit(LAPLACIAN), "a density has one `among"),
    (lambda: INQ().fit(GAUSSIAN), "INQ looks at the largest weight"),
    (lambda: APoT(7), "APoT has 2 to 6 bits"),
    (lambda: LogNet(4, "3"), "Base of LogNet"),
    (lambda: UniformLaplacian(9, "best"), "rule must be iterative or optimal"),
    (lambda: Ternary("best"), "rule must be one of correlation, twn, absmean"),
    (lambda: TernaryTGA(-0.1), "must not be negative"),
    (lambda: TernaryTGA().fit([1.0, 1.0]), "TGA has no scale"),
    (lambda: TernaryTGA().fit([0.1, 0.1, 0.1]), "TGA has no scale"),
    (lambda: LevelSet((1.0, 0.0)), "in ascending order"),
    (lambda: Linear(3).fit([]), "these are none"),
    (lambda: Linear(3).fit([0.0]), "these are all zero"),
    (lambda: Linear(3).fit([1.0, math.nan]), "these are not all finite"),
    (lambda: steps([1.0], get_format("pot3")), r"shape \(channels, inputs\), not \(1,\)"),
    (lambda: steps([[1.0]], get_format("pot3"), "best"), "rule must be one of correlation, range"),
    (lambda: steps([[1.0]], get_format("pot3"), "laplacian"), "for int2..int16, not pot3"),
    (lambda: steps([[1.0]], get_format("pot3"), importance=[1, 2]), r"Importance must be of shape \(1,\)"),
], ids=range(26))
def test_mistakes(make, message):
    with pytest.raises(QuantizeError, match=message):
        make()
