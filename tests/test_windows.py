"""All eigenvalues of a window: closed-form spectra, networks against LAPACK, completeness."""

import json
import math

import h5py
import numpy as np
import pytest
import torch
from dense_operator import DenseOperator, hessian_like, with_spectrum
from network_samples import attention, conv_net
from samples import by_double_backward, labelled, network
from scipy.linalg import eigvalsh_tridiagonal
from scipy.special import betainc
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import hessrmt as hr
from hessrmt.config import DensityConfig, load_settings, window_bounds
from hessrmt.curvature import windows
from hessrmt.curvature.density import DensityResult
from hessrmt.curvature.lanczos import EdgeLevels, tridiagonal
from hessrmt.curvature.linear import Operator
from hessrmt.curvature.rounding import round_off
from hessrmt.curvature.stochastic import Quadrature
from hessrmt.curvature.windows import Window, polynomials
from hessrmt.errors import (
    ConfigError,
    ConvergenceError,
    DataError,
    DeviceError,
    ProblemError,
    StoreError,
)
from hessrmt.runs.density import prepare, run

EPS = np.finfo(float).eps
CLUSTER = np.concatenate([np.linspace(0, 1, 220), 2 + 1e-6 * np.arange(30)])
SPECTRA = {
    "gaps": (hessian_like(), (0.35, 1.7, 0.011)),
    "indefinite": (np.sort(np.random.default_rng(0).normal(size=250)), (0.7, 1.9)),
    "cluster": (CLUSTER, (1.5, 0.9)),
    "within a cluster": (CLUSTER, (2 + 10.5e-6,)),
    "multiplicity 50": (np.concatenate([np.full(50, 3.0), np.linspace(-1, 1, 200)]), (2.0, 0.777)),
    "14 decades": (np.geomspace(1e-14, 1.0, 250), (3e-3, 3e-8)),
    "low rank": (np.concatenate([np.zeros(240), [-3.0, 0.5, 1.0, 1.0, 2.0]]), (0.7, 1e-3)),
    "identity": (np.ones(60), (0.5,)),
    "one": (np.array([2.5]), (1.0, 3.0)),
    "tiny numbers": (1e-100 * np.arange(1.0, 30.0), (4.5e-100,)),
}
CASES = [(kind, low) for kind, (_, bounds) in SPECTRA.items() for low in bounds]


def inside(values, low, high=math.inf):
    values = np.sort(values)
    return values[(values >= low) & (values <= high)]


def check(found, exact, size):
    """All of the window and nothing else, each within the bounds, with LAPACK's own rounding."""
    assert found.converged
    assert found.window.complete
    assert found.window.failure_probability <= 1e-6
    assert len(found) == len(exact)
    slack = size * EPS * found.norm
    assert (np.abs(found.values - exact) <= found.window.matched_bound + slack).all()
    # some eigenvalue lies within each value's own bound, which is that of a residual
    nearest = [np.abs(exact - value).min() for value in found.values]
    assert (nearest <= found.bounds + slack).all()


@pytest.mark.parametrize(("kind", "low"), CASES)
@pytest.mark.parametrize("end", ["top", "bottom"])
def test_all_eigenvalues_of_known_spectra(kind, low, end):
    values = SPECTRA[kind][0]
    values, bounds = (values, (low, None)) if end == "top" else (-values, (None, -low))
    operator = DenseOperator(with_spectrum(values))
    found = hr.eigsh(operator, window=bounds, tolerance=1e-10)
    ends = (low, math.inf) if end == "top" else (-math.inf, -low)
    check(found, inside(values, *ends), len(values))
    assert found.products == operator.count
    assert (found.window.low, found.window.high) == ends
    assert found.which == {"top": "LA", "bottom": "SA"}[end]
    assert found.window.ambiguous == found.window.beyond == 0
    vectors = found.vectors.numpy()
    assert np.abs(vectors.T @ vectors - np.eye(len(found))).max(initial=0) <= 1e-13
    matrix = operator.matrix.numpy()
    residuals = np.linalg.norm(matrix @ vectors - vectors * found.values, axis=0)
    assert (residuals <= found.bounds + len(values) * EPS * found.norm).all()


@pytest.mark.parametrize(("low", "high"), [(0.5, 2.0), (1.5, 6.0), (-0.4, -0.02), (5.5, 6.5)])
def test_a_window_inside_the_spectrum_is_reached_from_its_end(low, high):
    values = hessian_like()
    found = hr.eigsh(DenseOperator(with_spectrum(values)), window=(low, high))
    check(found, inside(values, low, high), len(values))
    outside = values > high if low > 0 else values < low
    assert found.window.beyond == np.count_nonzero(outside)


@pytest.mark.parametrize("bounds", [(7.5, None), (None, -0.9), (7.5, 9.0), (math.inf, None)])
def test_an_empty_window_says_so(bounds):
    if bounds[0] == math.inf:
        with pytest.raises(ConfigError, match="below the upper"):
            hr.eigsh((torch.sin, 3), window=bounds)
        return
    values = hessian_like()
    found = hr.eigsh(DenseOperator(with_spectrum(values)), window=bounds)
    check(found, np.zeros(0), len(values))
    assert found.vectors.shape == (len(values), 0)
    empty = hr.eigsh(DenseOperator(np.zeros((30, 30))), window=(1.0, None))
    assert len(empty) == 0
    assert empty.window.complete


def test_an_eigenvalue_at_the_bound_is_given_and_called_ambiguous():
    values = np.concatenate([np.linspace(-1, 1, 150), [2.0, 2.0, 3.0, 4.0]])
    found = hr.eigsh(DenseOperator(with_spectrum(values)), window=(2.0, 4.0))
    check(found, np.array([2.0, 2.0, 3.0, 4.0]), len(values))
    assert found.window.ambiguous == 3


def test_single_precision():
    values = hessian_like()
    found = hr.eigsh(DenseOperator(with_spectrum(values), torch.float32), window=(0.35, None))
    exact = inside(values, 0.35)
    assert found.vectors.dtype == torch.float32
    assert found.window.complete
    assert len(found) == len(exact)
    # the matrix itself was rounded too
    rounded = len(values) ** 0.5 * np.finfo(np.float32).eps * found.norm
    assert (np.abs(found.values - exact) <= found.window.matched_bound + rounded).all()


def images(samples, channels, size):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(samples, channels, size, size, generator=generator, dtype=torch.float64)


def samples():
    torch.manual_seed(0)
    classes = torch.arange(12) % 3
    sequences = torch.randn(12, 5, 4, generator=torch.Generator().manual_seed(2)).double()
    return {
        "mlp": (network(6, 9, 3), *labelled((30, 6), 3), "cross-entropy"),
        "conv": (conv_net().double(), images(12, 4, 6), classes, "cross-entropy"),
        "transformer": (attention().double().eval(), sequences, classes, "cross-entropy"),
        "regression": (network(6, 4), labelled((30, 6), 3)[0], torch.ones(30, 4).double(), "mse"),
    }


@pytest.mark.parametrize("share", [0.3, 1e-3, -1e-3])
@pytest.mark.parametrize(
    "name", ["mlp", "conv", pytest.param("transformer", marks=pytest.mark.slow), "regression"]
)
def test_windows_of_networks_against_lapack(name, share):
    model, x, y, loss = samples()[name]
    problem = hr.Problem(model, loss, (x, y))
    with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
        dense = by_double_backward(model, problem.loss_function, x, y).numpy()
    exact = np.linalg.eigvalsh(dense)
    bound = share * np.abs(exact).max()
    # nothing lies on the bound itself, where either answer would be right
    assert np.abs(exact - bound).min() > 1e-9 * np.abs(exact).max()
    found = hr.eigsh(problem, window=(bound, None) if share > 0 else (None, bound), tolerance=1e-10)
    own = inside(exact, bound) if share > 0 else inside(exact, -math.inf, bound)
    check(found, own, len(dense))
    assert found.check < 1e-12
    if len(found):
        assert set(found.as_parameters(0)) == {name for name, _ in model.named_parameters()}


# Completeness


@pytest.mark.parametrize("left_out", [0, 7, -1])
@pytest.mark.parametrize("values", [hessian_like(), CLUSTER], ids=["gaps", "cluster"])
def test_a_search_that_leaves_out_an_eigenvector_is_caught(values, left_out, monkeypatch):
    lock = windows._Space.lock
    calls = []

    def spoiled(self, found, rotation):
        upper = np.flatnonzero(found >= 0.5)
        kept = np.ones(len(found), dtype=bool)
        if not calls:
            kept[upper[left_out]] = False
        calls.append(int(kept.sum()))
        lock(self, found[kept], rotation[:, kept])

    monkeypatch.setattr(windows._Space, "lock", spoiled)
    found = hr.eigsh(DenseOperator(with_spectrum(values)), window=(0.5, None), tolerance=1e-10)
    assert len(calls) > 1  # it was looked for again
    check(found, inside(values, 0.5), len(values))


@pytest.mark.parametrize("left_out", [0, 7, -1])
def test_without_a_second_search_what_was_left_out_is_not_covered(left_out, monkeypatch):
    values, lock = hessian_like(), windows._Space.lock

    def spoiled(self, found, rotation):
        kept = np.ones(len(found), dtype=bool)
        kept[np.flatnonzero(found >= 0.5)[left_out]] = False
        lock(self, found[kept], rotation[:, kept])
        monkeypatch.setattr(windows._Search, "find", lambda *_: False)

    monkeypatch.setattr(windows._Space, "lock", spoiled)
    found = hr.eigsh(DenseOperator(with_spectrum(values)), window=(0.5, None))
    assert not found.window.complete
    assert not found.converged
    missing = inside(values, 0.5)[left_out]
    assert found.window.complete_from > missing


@pytest.mark.parametrize("seed", range(5))
def test_the_bound_on_what_is_left_is_one_and_becomes_sharp(seed):
    """x with Σ p_j(x)² = 1/γ² or more lies above the largest eigenvalue: no chance about it."""
    values = np.sort(np.random.default_rng(seed).normal(size=80))
    matrix = torch.from_numpy(np.diag(values))
    start = torch.from_numpy(np.random.default_rng(seed + 100).normal(size=(1, 80)))
    share = float(start[0, -1] / start.norm()) ** 2  # γ²
    slack = round_off(np.abs(values).max(), 80, torch.float64)
    for steps in (1, 2, 5, 10, 20, 40):
        ((diagonal, beta),) = tridiagonal(DenseOperator(matrix), start, steps)
        ((_, longer),) = tridiagonal(DenseOperator(matrix), start, steps + 1)
        beta = np.append(beta, longer[-1])
        largest = eigvalsh_tridiagonal(diagonal, beta[:-1])[-1]
        assert math.isnan(polynomials(diagonal, beta, largest - slack))
        # not a number below the largest Ritz value, which may be the eigenvalue already
        assert not polynomials(diagonal, beta, values[-1] - slack) > -math.log(share) + 1e-9
        at = windows._crossing(diagonal, beta, -math.log(share), largest, 1.0)
        assert at >= values[-1] - slack
    assert at == pytest.approx(values[-1], abs=1e-6)


@pytest.mark.parametrize("size", [2, 3, 10, 1000, 10**6])
@pytest.mark.parametrize("probability", [0.3, 1e-3, 5e-7])
def test_a_component_is_as_small_with_the_stated_probability_at_most(size, probability):
    """γ² of a uniform unit vector has the distribution Beta(1/2, (n-1)/2)."""
    small = math.pi * probability**2 / (2 * size)  # τ² of the check
    assert betainc(0.5, (size - 1) / 2, small) <= probability * (1 + 1e-12)


def test_the_polynomials_are_those_of_the_recurrence():
    diagonal, beta = np.array([0.3, -0.2, 0.5]), np.array([0.7, 0.4, 0.9])
    x, found = 2.0, [0.0, 1.0]
    for alpha, before, following in zip(diagonal, [0.0, *beta], beta, strict=False):
        found.append(((x - alpha) * found[-1] - before * found[-2]) / following)
    assert polynomials(diagonal, beta, x) == pytest.approx(math.log(np.square(found).sum()))
    assert polynomials(diagonal, np.array([0.7, 0.4, 0.0]), x) == math.inf
    huge = polynomials(np.zeros(900), np.ones(900), 1e9)  # p_900 is about 1e8100
    assert huge == pytest.approx(2 * 900 * math.log(1e9), rel=1e-9)


class Diagonal(Operator):
    """A diagonal matrix whose products may have errors of a stated size."""

    def __init__(self, values, dtype=torch.float64, error=0.0):
        self.values, self.dimension = torch.tensor(values, dtype=dtype), len(values)
        self.dtype, self.device, self.product_error = dtype, torch.device("cpu"), error
        self.stream = torch.Generator().manual_seed(0)

    def __call__(self, block):
        noise = torch.randn(block.shape, generator=self.stream, dtype=block.dtype)
        noise /= noise.norm(dim=1, keepdim=True) / block.norm(dim=1, keepdim=True)
        return block * self.values + 0.4 * self.product_error * noise


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("floors", [5, 8, 20, 100])
def test_eigenvalues_whose_share_of_a_random_vector_is_below_rounding(floors, dtype):
    """A product with a random vector has 1/100 of them: an invariant space says nothing."""
    size, copies = 10_000, 12
    value = floors * round_off(1.0, size, dtype)
    values = np.zeros(size)
    values[0], values[1 : 1 + copies] = 1.0, value
    found = hr.eigsh(Diagonal(values, dtype), window=(0.9 * value, None), tolerance=1e-6)
    assert len(found) == 1 + copies or not found.window.complete
    if floors >= 20:  # where the proof has room between rounding and the bound
        assert found.window.complete
    if floors <= 5:  # twice what rounding adds, for 13 vectors, is more than the bound
        assert found.window.complete_from > 2 * round_off(1.0, size, dtype)


@pytest.mark.parametrize("size", [1000, 10_000])
@pytest.mark.parametrize("share", [6, 8, 20, 60])
def test_eigenvalues_little_above_the_error_of_products(share, size):
    error = 1e-5
    values = np.zeros(size)
    values[:3] = 1.0, share * error, share * error
    for seed in range(3):
        window = (0.9 * share * error, None)
        found = hr.eigsh(Diagonal(values, error=error), window=window, seed=seed)
        assert len(found) == 3 or not found.window.complete
        assert found.window.complete == (share >= 20)  # 8 errors are what the proof subtracts


# What is refused


@pytest.mark.parametrize(
    ("window", "words"),
    [
        ((math.nan, None), "numbers, or None"),
        ((1.0, 1.0), "below the upper"),
        ((2.0, 1.0), "below the upper"),
        ((None, None), "holds zero"),
        ((-1.0, 1.0), "holds zero"),
        ((0.0, None), "holds zero or ends there"),
        ((None, 0.0), "stay off zero"),
        (("a", None), "numbers, or None"),
        ((True, None), "numbers, or None"),
        ((1j, None), "numbers, or None"),
        ((1.0,), "a pair"),
        ("1:2", "a pair"),
        (3.0, "a pair"),
        ((1e-15, None), "begins 1e-15 off zero"),
        ((None, -1e-15), "must stay off zero by more"),
    ],
)
def test_windows_that_cannot_be_searched(window, words):
    for search in (hr.eigsh, windows_of):
        with pytest.raises(ConfigError, match=words):
            search(DenseOperator(with_spectrum(hessian_like())), window=window)


def windows_of(operator, window):
    from hessrmt.curvature.lanczos import window_eigenvalues

    return window_eigenvalues(operator, window)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({"k": 3}, "leave out k"),
        ({"which": "SA"}, "leave out k"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"failure_probability": 0.0}, "failure_probability"),
        ({"failure_probability": 0.9}, "failure_probability"),
        ({"failure_probability": "x"}, "failure_probability"),
    ],
)
def test_what_does_not_go_with_a_window(words, why):
    with pytest.raises(ConfigError, match=why):
        hr.eigsh(DenseOperator(np.eye(40)), window=(0.5, None), **words)


def test_a_matrix_that_is_not_symmetric_is_refused():
    matrix = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 40)))
    with pytest.raises(ProblemError, match="not symmetric"):
        hr.eigsh((matrix.mv, 40), window=(0.5, None))


def test_an_empty_window_has_no_spectrum():
    settings = {"probes": 1, "steps": 5}
    problem = hr.Problem(network(4, 3), "cross-entropy", labelled((8, 4), 3))
    found = hr.density(problem, window=(1e3, None), **settings)
    assert found.edges.window.complete
    with pytest.raises(DataError, match="complete part holds 0"):
        found.spectra()


@pytest.mark.parametrize(("size", "vectors"), [(30, 30), (400, 80)])
def test_the_least_memory_in_words(size, vectors):
    with pytest.raises(DeviceError, match=rf"at least {vectors} vectors of {size} .* \d\.\d MiB, "):
        hr.eigsh(DenseOperator(np.eye(size)), window=(0.5, None), memory=1000)


def test_memory():
    values = np.concatenate([np.linspace(-0.3, 1, 900), np.geomspace(1.05, 6, 60)])
    operator = DenseOperator(with_spectrum(values))
    with pytest.raises(DeviceError, match="a basis of at least 80 vectors of 960"):
        hr.eigsh(operator, window=(1.02, None), memory=500_000)
    assert operator.count == 0
    with pytest.raises(DeviceError, match="more eigenvalues than there is memory for") as refused:
        hr.eigsh(operator, window=(0.5, None), memory=1_500_000)
    # the window that is proposed instead fits
    low = float(str(refused.value).split("ends at ")[1].split()[0])
    found = hr.eigsh(operator, window=(low, None), memory=1_500_000)
    assert np.abs(found.values - inside(values, low)).max() <= found.window.matched_bound + 1e-12
    # restarts: little memory, the same eigenvalues
    found = hr.eigsh(operator, window=(1.8, None), memory=1_500_000, tolerance=1e-10)
    check(found, inside(values, 1.8), len(values))


def test_where_the_check_has_no_room_completeness_is_not_claimed():
    values = np.concatenate([np.linspace(-0.3, 1, 900), np.geomspace(1.05, 6, 60)])
    found = hr.eigsh(DenseOperator(with_spectrum(values)), window=(1.02, None), memory=1_500_000)
    assert not found.window.complete
    assert found.window.complete_from > 1.02
    above = found.values[found.values >= found.window.complete_from]
    own = inside(values, found.window.complete_from)
    assert np.abs(above - own).max() <= found.window.matched_bound + 1e-12


def test_too_few_products(monkeypatch):
    monkeypatch.setattr(windows, "PATIENCE", 0.1)
    values = np.random.default_rng(0).normal(size=400)
    operator = DenseOperator(with_spectrum(values))
    with pytest.raises(ConvergenceError, match="no eigenvalue of the window"):
        hr.eigsh(operator, window=(0.5, None), tolerance=1e-13)


# hessrmt density --window


WORDS = ["--model", "mlp2", "--batch", "40", "--probes", "3", "--steps", "12", "--device", "cpu"]


pytestmark = pytest.mark.usefixtures("products_anew")


@pytest.fixture
def exact(cli, digits, tmp_path):
    words = ["--model", "mlp2", "--data", digits, "--split", "test", "--batch", "all"]
    assert cli("spectrum", *words, "--device", "cpu", "--out", tmp_path / "s.h5").returncode == 0
    (found,) = hr.load(tmp_path / "s.h5")
    return found


def test_the_command_gives_all_of_a_window(cli, digits, exact, tmp_path):
    levels = exact.eigenvalues
    low = 1e-3 * levels.max()
    done = cli("density", *WORDS, "--data", digits, "--window", f"{low}:", "--json")
    assert done.returncode == 0
    answer = json.loads(done.stdout)
    own, edges = inside(levels, low), answer["edges"]
    assert edges["found"] == len(own) > 10
    window = edges["window"]
    slack = window["matched_bound"] + exact.noise_floor
    assert (np.abs(np.array(edges["values"]) - own) <= slack).all()
    assert window["complete"] is True
    assert window["complete_from"] <= low
    assert window["failure_probability"] <= 1e-6
    assert window["high"] is None
    fewest, most = answer["window_count"]
    assert 0 <= fewest <= most <= answer["dimension"]
    wider = 2 * math.sqrt(2 * len(own) / answer["probes"])  # 4 standard errors in all
    assert fewest - wider <= len(own) <= most + wider
    # statistics are of the complete stretch
    (run_,) = hr.load_density(tmp_path / "density.h5").spectra()
    assert run_.eigenvalues.tolist() == edges["values"]
    words = ["levels", "density.h5", "--surrogates", 0, "--json"]
    assert cli(*words).returncode == 0
    with h5py.File(tmp_path / "density.h5") as file:
        assert file["edges/window"].attrs["complete_from"] == window["complete_from"]
    shown = cli("density", *WORDS, "--data", digits, "--window", f"{low}:", "--overwrite").stdout
    assert f"these {len(own):,} are all" in " ".join(shown.split())
    empty = cli("density", *WORDS, "--data", digits, "--window", "1e9:", "--overwrite").stdout
    assert "The window is complete: no eigenvalue lies in it" in " ".join(empty.split())


def test_the_lower_end_and_a_part_in_the_middle(cli, digits, exact):
    levels = exact.eigenvalues
    high = 1e-2 * levels.min()
    for text, own in (
        (f":{high}", inside(levels, -math.inf, high)),
        (f"{0.5 * levels.min()}:{high}", inside(levels, 0.5 * levels.min(), high)),
    ):
        words = [*WORDS, "--data", digits, "--window", text, "--overwrite", "--json"]
        answer = json.loads(cli("density", *words).stdout)["edges"]
        assert answer["window"]["complete"]
        assert np.abs(np.array(answer["values"]) - own).max() < 1e-12


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--window", "1"], "two numbers with a colon"),
        (["--window", "a:"], "two numbers with a colon"),
        (["--window", "1:2:3"], "two numbers with a colon"),
        (["--window", "2:1"], "below the upper one"),
        (["--window", "nan:"], "numbers, or None"),
        (["--window", "-1:1"], "holds zero"),
        (["--window", ":"], "holds zero"),
        (["--window", "1:", "--top", "3"], "leave out top"),
        (["--window", "1e-18:"], "stay off zero by more"),
        (["--window", "1:", "--failure-probability", "0"], "greater than 0"),
    ],
)
def test_the_command_refuses(cli, digits, words, why):
    done = cli("density", *WORDS, "--data", digits, *words)
    assert done.returncode == 2
    assert why in " ".join(done.stderr.split())


def test_bounds_in_words():
    assert window_bounds("0.5:") == (0.5, None)
    assert window_bounds(":-1e-3") == (None, -1e-3)
    assert window_bounds("1:inf") == (1.0, math.inf)


class StopError(Exception):
    pass


def test_a_run_that_died_goes_on_and_older_files_are_read(digits, tmp_path):
    options = {"data": str(digits), "batch": 40, "probes": 3, "steps": 12, "model": "mlp2"}
    prepared = prepare(load_settings(DensityConfig, window="0.05:", **options))
    whole, torn = tmp_path / "whole.h5", tmp_path / "torn.h5"
    expected = run(prepared, whole).edges

    def die(phase, done, total):
        if phase == "window":
            raise StopError

    with pytest.raises(StopError):
        run(prepared, torn, tick=die)
    assert hr.load_density(torn).edges is None
    found = run(prepared, torn, resume=True).edges
    assert found.window == expected.window
    assert np.array_equal(found.values, expected.values)
    assert hr.load_density(torn).edges.window == expected.window
    other = prepare(load_settings(DensityConfig, window="0.06:", **options))
    with pytest.raises(StoreError, match="window"):
        run(other, torn, resume=True)
    # a file from before there were windows goes on without one
    plain, old = prepare(load_settings(DensityConfig, top=2, **options)), tmp_path / "old.h5"
    run(plain, old)
    with h5py.File(old, "r+") as file:
        identity = json.loads(file.attrs["identity"])
        del identity["window"], identity["failure_probability"]
        file.attrs["identity"] = json.dumps(identity)
        assert "window" not in file["edges"]
    assert run(plain, old, resume=True).edges.window is None


@pytest.mark.parametrize("steps", [2, 5, 20, 60])
@pytest.mark.parametrize("seed", range(3))
def test_the_count_holds_what_the_vectors_have_of_the_window(steps, seed):
    """Bounds of each probe against the spectral measure of the vector, which has no chance."""
    values = np.sort(np.random.default_rng(seed).normal(size=120))
    start = np.random.default_rng(seed + 50).normal(size=(1, 120))
    measure = (start[0] / np.linalg.norm(start)) ** 2
    operator = DenseOperator(np.diag(values))
    ((diagonal, beta),) = tridiagonal(operator, torch.from_numpy(start), steps)
    nodes, turn = np.linalg.eigh(np.diag(diagonal) + np.diag(beta, 1) + np.diag(beta, -1))
    quadrature = Quadrature(nodes[None], turn[None, 0] ** 2, 120)
    between, slack = 0, 120 * EPS
    shared = ("values", "residuals", "round_off", "dimension", "norm", "n_lower", "asked")
    for low, high in [(0.1, math.inf), (0.4, 0.9), (1.3, 1.31), (-math.inf, -0.5), (5.0, 6.0)]:
        window = Window(low, high, low if low > 0 else high, 1e-6)
        levels = (np.zeros(0), np.zeros(0), 0.0, 120, 1.0, 0, "")
        edges = EdgeLevels(window=window, **dict(zip(shared, levels, strict=True)))
        found = DensityResult(quadrature, 1, 120, 1, 0.0, 0.0, "hessian", "float64", edges)
        fewest, most = found._measure(0, window)
        exact = measure[(values >= low) & (values <= high)].sum()
        assert fewest - slack <= exact <= most + slack
        between += most > fewest
        # of one probe the spread of a random vector is added, two standard errors
        count = np.count_nonzero((values >= low) & (values <= high))
        assert found.window_count[0] <= 120 * exact <= found.window_count[1] + 120 * slack
        assert abs(120 * exact - count) <= 4 * math.sqrt(2 * count)
    assert between


def test_only_the_complete_part_goes_to_level_statistics():
    values = np.array([1.0, 2.0, 3.0, 4.0, 4.0 + 1e-13, 5.0])
    parts = {"values": values, "residuals": np.zeros(6), "round_off": 1e-12, "dimension": 50}
    parts |= {"norm": 5.0, "n_lower": 0, "asked": ""}
    window = Window(
        low=0.5, high=math.inf, complete_from=2.5, failure_probability=1e-6, matched_bound=1e-11
    )
    found = hr.curvature.lanczos.EdgeLevels(**parts, window=window)
    assert not window.complete
    assert [run.tolist() for run in found.runs()] == [values[2:].tolist()]
    assert found.certain_spacing == 2e-11
    below = Window(low=-math.inf, high=-0.5, complete_from=-0.4, failure_probability=1e-6)
    assert below.complete
    assert below.reaches(-values).all()


def test_linear_regression_has_copies_for_each_output():
    torch.manual_seed(0)
    model, (x, _) = nn.Linear(20, 10).double(), labelled((60, 20), 2)
    y = torch.randn(60, 10, dtype=torch.float64)
    problem = hr.Problem(model, "mse", (x, y))
    dense = by_double_backward(model, problem.loss_function, x, y).numpy()
    exact = np.linalg.eigvalsh(dense)
    low = float(np.median(exact)) * 1.01
    found = hr.eigsh(problem, window=(low, None), tolerance=1e-10)
    check(found, inside(exact, low), len(exact))
