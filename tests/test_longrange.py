"""Number variance, rigidity and form factor against direct sums and the laws of the ensembles."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import examples
from scipy import stats

from hessrmt import rng, theory
from hessrmt.ensembles import gaussian_levels
from hessrmt.errors import DataError
from hessrmt.levels import form_factor, number_variance, rigidity

STATISTICS = (number_variance, rigidity, form_factor)
EPS = np.finfo(float).eps


def poisson(n, *names):
    return np.cumsum(rng.stream(5, *names).exponential(size=n))


def goe(n, *names):
    """Unfolded bulk of a GOE spectrum."""
    levels = gaussian_levels(1, n, rng.stream(5, *names))
    unfolded = n * theory.semicircle_cdf(levels, theory.semicircle_radius(n))
    return unfolded[n // 5 : -n // 5]


def ensemble(draw, size, n):
    return [draw(n, "ensemble", k) for k in range(size)]


def within_error(values, law, standard_errors=4):
    """The mean of independent values against what it should be."""
    values = np.asarray(values)
    assert np.all(np.abs(values.mean(axis=0) - law) < standard_errors * stats.sem(values, axis=0))


def window_starts(levels, L):
    """The documented windows of the rigidity."""
    step = L / (int(2 * L) + 1) if L >= 0.5 else max(L, (3 - 5**0.5) / 2)
    return levels[0] + step * np.arange(int((levels[-1] - levels[0] - L) / step) + 1)


def count(levels, x, L):
    return np.count_nonzero((levels > x) & (levels <= x + L))


def deviation(levels, x, L):
    """Least squares by its normal equations: N, 1 and t integrated piece by piece over a window."""
    first, last = np.searchsorted(levels, x, side="right"), np.searchsorted(levels, x + L)
    t = levels[first:last] - (x + L / 2)
    edges = [-L / 2, *t, L / 2]
    height = np.arange(len(t) + 1) - (len(t) + 1) // 2
    one, two = np.diff(edges), np.diff(np.square(edges)) / 2
    mean, slope = (height @ one) / L, (height @ two) / (L**3 / 12)
    return (height**2 @ one) / L - mean**2 - slope**2 * L**2 / 12


# every window, by hand


@pytest.mark.parametrize("L", [0.3, 1.0, 4.7, 30.0])
def test_number_variance_is_the_average_over_every_window(L):
    levels = poisson(80, "by hand")
    levels[7] = levels[8]
    edges = np.unique(np.concatenate([levels, levels - L]))
    edges = edges[(edges >= levels[0]) & (edges <= levels[-1] - L)]
    edges = np.append(edges, levels[-1] - L)
    widths = np.diff(edges)
    counts = np.array([count(levels, x, L) for x in edges[:-1] + widths / 2])
    mean = widths @ counts / widths.sum()
    expected = widths @ (counts - mean) ** 2 / widths.sum()
    assert number_variance(levels, L) == pytest.approx(expected, abs=1e-10)


def test_number_variance_in_chunks_is_that_of_random_windows():
    levels, windows = poisson(20_000, "chunks"), 20_000
    draw = rng.stream(5, "windows")
    for L in (1.5, 40.0):
        x = draw.uniform(levels[0], levels[-1] - L, windows)
        inside = np.searchsorted(levels, x + L, "right") - np.searchsorted(levels, x, "right")
        squares = (inside - inside.mean()) ** 2
        assert abs(squares.mean() - number_variance(levels, L)) < 4 * stats.sem(squares)


@pytest.mark.parametrize("L", [0.01, 0.3, 0.45, 0.5, 0.7, 1.0, 3.3, 10.0, 77.7, 150.0])
def test_rigidity_is_the_average_over_its_windows(L):
    levels = poisson(200, "by hand")
    levels[7] = levels[8]
    expected = np.mean([deviation(levels, x, L) for x in window_starts(levels, L)])
    assert rigidity(levels, L) == pytest.approx(expected, abs=1e-10)


def test_rigidity_loses_no_digits_in_long_spectra():
    # sums about the first level would lose ε (2e4)² n ≈ 1e-3; here every sum is local
    levels = 1e4 + poisson(20_000, "long")
    for L in (2.0, 60.0):
        expected = np.mean([deviation(levels, x, L) for x in window_starts(levels, L)])
        assert rigidity(levels, L) == pytest.approx(expected, abs=1e-8)
    L = float(int(levels[-1] - levels[0])) - 1.5
    starts = window_starts(levels, L)
    assert 2 <= len(starts) <= 6
    # N² ~ 1e8 is lost against Δ₃ ~ 1e3: eighteen digits leave more than the ten that are asked for
    long = levels.astype(np.longdouble), starts.astype(np.longdouble), np.longdouble(L)
    expected = float(np.mean([deviation(long[0], x, long[2]) for x in long[1]]))
    assert rigidity(levels, L) == pytest.approx(expected, rel=1e-10, abs=1e-8)


def test_form_factor_is_the_windowed_sum():
    levels = poisson(300, "by hand")
    tau = np.array([0.0, 0.013, 0.7, 2.5])
    position = levels - levels[0]
    for span, block in ((position[-1], 1e3), (100.0, 100.0)):
        windows = 1 + int(np.ceil(2 * (position[-1] - span) / span))
        power, norm = np.zeros(4), 0.0
        for a in np.linspace(0, position[-1] - span, windows):
            w = np.where((position >= a) & (position <= a + span), 1.0, 0.0)
            w *= np.sin(np.pi * (position - a) / span) ** 2
            wave = np.exp(2j * np.pi * np.outer(tau, levels))  # not shifted: only a phase
            power += np.abs(wave @ w) ** 2
            norm += w @ w
        np.testing.assert_allclose(form_factor(levels, tau, block=block), power / norm, atol=1e-9)


# equally spaced levels


def test_equally_spaced_levels_fluctuate_by_one_level_at_most():
    levels = np.arange(2001.0)
    L = np.array([0.25, 1.0, 2.5, 3.0, 10.9])
    found = number_variance(levels, L)
    # a period that is cut off at the end changes the integrals of N - L and (N - L)² by less than 1
    assert np.all(np.abs(found - L % 1 * (1 - L % 1)) < 2 / (2000 - L))
    np.testing.assert_allclose(found[L % 1 == 0], 0, atol=100 * EPS)


@pytest.mark.parametrize("L", [1.0, 2.0, 7.0, 50.0])
def test_rigidity_of_equally_spaced_levels_approaches_one_twelfth(L):
    # the sawtooth's variance 1/12, less a slope of at most 1/L² fitted to it: 12 (L/12)²/L⁴
    deficit = 1 / 12 - rigidity(np.arange(1001.0), L)
    assert -1e-12 <= deficit <= 1 / (12 * L**2) + 1e-12


def test_form_factor_of_equally_spaced_levels_is_the_windows_alone():
    T = 500
    levels = np.arange(T + 1.0)
    assert form_factor(levels, 0.0) == pytest.approx(2 * T / 3)
    assert form_factor(levels, 1.0) == pytest.approx(2 * T / 3)
    tau = np.linspace(4 / T, 0.5, 301)
    # as documented, and as much again from the harmonic at τ = 1
    assert np.all(form_factor(levels, tau) < 2 * T * (tau * T) ** -6.0 / 12 + EPS)


# what is a sum of squares is not negative, and not lost either


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e9])
@pytest.mark.parametrize("spacing", [0.3, 1.9, 9.9])
def test_numbers_that_never_change_have_no_variance(spacing, offset):
    levels = offset + spacing * np.arange(80)
    for cells in (1, 3, 7, 17, 41):
        found = number_variance(levels, cells * spacing)
        # N is `cells` but where a level, rounded by ε of its size, is early or late: 80 of these
        # differ by 1, over a share 2 ε (offset + T)/T · 80 of the range T - L > T/3
        end = 80 * spacing
        assert 0 <= found <= 80 * 3 * 4 * EPS * (offset + end) / end


def test_rigidity_of_windows_without_a_level_is_zero():
    # clusters of levels far apart, where no window of this length that begins at a level, or 0.25
    # later, and so on, has a level inside: a straight line fits each of them
    levels = np.repeat(6.0 * np.arange(10), 6)
    assert rigidity(levels, 0.5 - 2.0**-40) >= 0
    spacings = [0, 0, 24, 24, 0, 24, 0, 0]
    assert rigidity(np.cumsum(spacings) / 8, 0.125) == 0
    # spectra of clusters: large deviations in one window of a hundred, none in the others
    draw = rng.stream(0, "clusters")
    for _ in range(300):
        spacings = draw.choice([0, 0, 0, 0, 24, 24, 24, 12, 1], size=draw.integers(8, 40))
        levels = np.cumsum(spacings) / 8
        for L in (0.125, 0.25, 0.5, 1.0, 1.875):
            if levels[-1] - levels[0] > L and levels[-1] - levels[0] > 0.1 * len(levels):
                assert rigidity(levels, L) >= 0


def test_number_variance_far_from_zero():
    # 1e16 + 0.5 is no float64: windows that begin at the first level must not shrink to nothing
    levels = np.array([0.0, 2.0, 4.0])
    expected = number_variance(levels, 3.5)
    assert expected == 0  # (0, 0.5], both levels are inside
    assert number_variance(levels + 1e16, 3.5) == expected
    levels = 2 * poisson(50, "far").round()
    assert number_variance(levels + 2.0**53, 2.5) == number_variance(levels, 2.5)


# ensembles


def test_independent_levels():
    spectra = ensemble(poisson, 60, 2000)
    L = np.array([0.7, 3.0, 10.0])
    # ⟨N⟩ is taken from the same windows and varies by L²/T
    span = np.mean([levels[-1] - levels[0] for levels in spectra])
    variance = theory.number_variance(L, "poisson") - L**2 / span
    within_error([number_variance(levels, L) for levels in spectra], variance)
    within_error([rigidity(levels, L) for levels in spectra], theory.rigidity(L, "poisson"))
    tau = np.linspace(0.1, 2, 20)
    within_error([form_factor(levels, tau).mean() for levels in spectra], 1.0)


@pytest.fixture(scope="module")
def goe_spectra():
    return ensemble(goe, 60, 1000)


def test_goe_number_variance_and_rigidity(goe_spectra):
    L = np.array([0.5, 2.0, 5.0, 20.0])
    variances = [number_variance(levels, L) for levels in goe_spectra]
    rigidities = [rigidity(levels, L) for levels in goe_spectra]
    within_error(variances, theory.number_variance(L, "goe"))
    within_error(rigidities, theory.rigidity(L, "goe"))
    # at L = 20 the asymptotic formulas leave out less than these errors
    within_error(np.array(variances)[:, -1], theory.number_variance_asymptotic(20.0, "goe"))
    within_error(np.array(rigidities)[:, -1], theory.rigidity_asymptotic(20.0, "goe"))
    assert not np.allclose(np.mean(variances, axis=0), L, rtol=0.1)


def test_goe_form_factor(goe_spectra):
    for low, high in ((0.05, 0.2), (0.2, 0.5), (0.5, 1.0), (1.0, 2.0)):
        tau = np.linspace(low, high, 100)
        found = [form_factor(levels, tau).mean() for levels in goe_spectra]
        within_error(found, theory.form_factor(tau, "goe").mean())


# several spectra, shapes, invariances


def test_several_spectra_are_pooled_by_their_windows():
    spectra = [poisson(n, "pool", n) for n in (100, 400, 30)]
    L = 5.0
    values = [rigidity(levels, L) for levels in spectra]
    windows = [len(window_starts(levels, L)) for levels in spectra]
    assert rigidity(spectra, L) == pytest.approx(np.average(values, weights=windows))
    # the same spectrum twice is no news, and one that is shorter than L counts for nothing
    for statistic, at in ((number_variance, 50.0), (rigidity, 50.0), (form_factor, 0.3)):
        once = statistic(spectra[0], at)
        assert statistic([spectra[0], spectra[0]], at) == pytest.approx(once)
        if statistic is not form_factor:
            assert statistic([spectra[0], spectra[2]], at) == once
    # means pooled over the windows, not spectrum by spectrum
    sparse = number_variance([np.arange(101.0) * 2, np.arange(201.0)], 2.0)
    assert sparse == pytest.approx(0.25, abs=0.01)  # N is 1 or 2 in half of the windows each


@pytest.mark.parametrize("statistic", STATISTICS)
def test_shapes(statistic):
    levels = poisson(100, "shapes")
    one = statistic(levels, 2)
    assert type(one) is float
    several = statistic(levels, [2, 3.5])
    assert several.shape == (2,)
    assert several.dtype == np.float64
    assert several[0] == pytest.approx(one, rel=1e-12)
    assert statistic(levels, []).shape == (0,)
    assert statistic(levels.tolist(), 2) == one
    rows = np.stack([levels, levels + 1])
    assert statistic(rows, 2) == pytest.approx(one)
    given_levels = levels[::-1].copy()
    statistic(given_levels, 2)
    np.testing.assert_array_equal(given_levels, levels[::-1])


@settings(max_examples=examples(60))
@given(
    spacings=st.lists(st.integers(0, 24), min_size=8, max_size=40).filter(lambda s: sum(s) > 32),
    length=st.integers(1, 16),
    shift=st.integers(-10_000, 10_000),
    seed=st.integers(0, 100),
)
def test_neither_order_nor_origin_matters(spacings, length, shift, seed):
    levels = np.cumsum(spacings) / 8  # with ties, and windows that end on levels
    L = length / 8
    mixed = rng.stream(seed, "order").permutation(levels)
    for statistic in STATISTICS:
        once = statistic(levels, L)
        assert once >= 0
        assert statistic(mixed, L) == once
        # positions are rounded to ε·1e4 = 2e-12, and there are at most 40 levels over at least L
        assert statistic(levels + shift + 0.1, L) == pytest.approx(once, rel=1e-8, abs=1e-8)


# what cannot be used

BAD_LEVELS = [
    ([0.0, 1.0, np.nan], "finite, got 1 NaN or infinite of 3"),
    ([0.0, 1.0], "got 2 levels, expected at least 3"),
    ([], "got 0 levels"),
    ([np.arange(9.0), [0.0, 1.0]], "spectrum 1: got 2 levels"),
    (np.zeros((2, 3, 4)), r"spectrum 0: levels must have 1 dimension.*\(3, 4\)"),
    (3.0, r"1 dimension.*, got shape \(\)"),
    ([0.0, [1.0, 2.0]], "cannot be used as an array"),
    (np.arange(9) * 1j, "real numbers, got dtype complex128"),
    ("levels", "1 dimension"),
    (np.linspace(0, 1e-3, 50), "mean spacing 2.04e-05, expected about 1; unfold them first"),
    (np.arange(9.0) * 1e9, "unfold them first"),
]


@pytest.mark.parametrize("statistic", STATISTICS)
def test_unusable_levels_lengths_and_times_are_refused(statistic):
    for levels, message in BAD_LEVELS:
        with pytest.raises(DataError, match=message):
            statistic(levels, 1.0)
    name = "tau" if statistic is form_factor else "L"
    for bad in (-1.0, np.nan, np.inf, [1.0, -2.0], [[1.0]], "one", None, 1j):
        with pytest.raises(DataError, match=f"^{name} must be"):
            statistic(np.arange(9.0), bad)


@pytest.mark.parametrize("statistic", [number_variance, rigidity])
def test_windows_must_fit(statistic):
    with pytest.raises(DataError, match="L must be positive, got 0"):
        statistic(np.arange(9.0), 0)
    message = "L = 8 fits: the longest spectrum spans 8 mean"
    with pytest.raises(DataError, match=message):
        statistic([np.arange(9.0), np.arange(5.0)], [2.0, 8.0])
    with pytest.raises(DataError, match="spans 0 mean"):
        statistic([1.0, 1.0, 1.0], 1e-9)


def test_form_factor_needs_distinct_levels_and_one_block():
    with pytest.raises(DataError, match="needs distinct levels"):
        form_factor([1.0, 1.0, 1.0], 0.5)
    for bad in (0, -1.0, np.nan, [1.0, 2.0]):
        with pytest.raises(DataError, match=r"^block must be"):
            form_factor(np.arange(9.0), 0.5, block=bad)
