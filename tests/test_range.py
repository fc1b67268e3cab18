"""A basis of the range, by products alone: complete, orthonormal, and no larger than the rank."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import examples

from hessrmt.curvature.certify import Reference
from hessrmt.curvature.range import WIDTH, range_of, rank_at_least
from hessrmt.curvature.rounding import gaussian
from hessrmt.errors import NonFiniteError, StoreError
from hessrmt.store.search import SearchFile

EPS = float(np.finfo(np.float64).eps)


def matrix_of(eigenvalues, size, seed=0):
    """Products with a symmetric matrix of given nonzero eigenvalues."""
    values = torch.as_tensor(np.asarray(eigenvalues, dtype=np.float64))
    drawn = gaussian((size, len(values)), values, "test of range", seed=seed)
    vectors = torch.linalg.qr(drawn).Q
    return lambda rows: (rows @ vectors * values) @ vectors.T


def like(size):
    return torch.zeros(size, dtype=torch.float64)


def bound_and_error(eigenvalues, size, found, product):
    """What is said of the largest error of an eigenvalue, and what it is."""
    exact = np.zeros(size)
    exact[: len(eigenvalues)] = eigenvalues
    values = np.zeros(size)
    values[: len(found)] = torch.linalg.eigvalsh(found.matrix).numpy()
    apart = np.abs(np.sort(values) - np.sort(exact)).max()
    rows = gaussian((5, size), like(size), "test of range", "check")
    beside = Reference(rows, product(rows), 0.0).beside(
        lambda v: found.basis.lift(found.basis.project(v) @ found.matrix)
    )
    return beside.rounding + found.basis.shift(found.matrix), apart


def assert_right(eigenvalues, size, found, product):
    """All eigenvalues within n·ε·‖H‖ plus the stated bound, and the bound not absurd."""
    bound, apart = bound_and_error(eigenvalues, size, found, product)
    norm = np.abs(eigenvalues).max(initial=0.0)
    assert apart <= bound + size * EPS * norm
    # the products that are compared round too, along vectors of length √n
    assert bound <= 50 * size * EPS * norm


CASES = {
    "nothing": ([], 40),
    "rank 1": ([3.0], 300),
    "one parameter": ([-2.0], 1),
    "full rank": (np.linspace(-1, 2, 150), 150),
    "both signs": (np.concatenate([np.linspace(-1, -0.1, 90), np.linspace(0.2, 3, 110)]), 700),
    "multiplicity 50": ([1.0] * 50 + [2.0] * 50 + list(np.linspace(3, 4, 20)), 600),
    "multiplicity above the width": ([1.0] * (2 * WIDTH) + [-5.0], 500),
    "14 decades": (10.0 ** -np.linspace(0, 14, 150), 500),
    "a cluster and one far away": ([1e6, *np.linspace(1, 1 + 1e-9, 80)], 400),
}


@pytest.mark.parametrize("name", CASES)
def test_spectra_in_closed_form(name):
    eigenvalues, size = CASES[name]
    product = matrix_of(eigenvalues, size)
    found = range_of(product, like(size))
    assert found.complete
    assert_right(eigenvalues, size, found, product)
    norm = np.abs(eigenvalues).max(initial=0.0)
    above = int((np.abs(eigenvalues) > 4 * size * EPS * norm).sum())
    assert above <= len(found)
    assert len(found) <= 1.02 * len(eigenvalues) + 3


@settings(max_examples=examples(25))
@given(
    st.integers(1, 120),
    st.integers(0, 120),
    st.floats(0, 15),
    st.sampled_from([1, 3, 16, WIDTH]),
    st.integers(0, 99),
)
def test_random_spectra(size, rank, decades, width, seed):
    rank = min(size, rank)
    eigenvalues = 10.0 ** -np.linspace(0, decades, rank) * (-1.0) ** np.arange(rank)
    product = matrix_of(eigenvalues, size, seed)
    found = range_of(product, like(size), width=width)
    assert found.complete
    assert found.at_least == len(found)
    assert_right(eigenvalues, size, found, product)


@pytest.mark.parametrize("size", [40, 120, 360])
def test_floors_are_not_much_larger_than_errors(size):
    """The median over spectra of floor / max(error, ε‖H‖) is at most half the dimension."""
    ratios = []
    for seed, decades in enumerate(np.linspace(0, 12, 9)):
        values = 10.0 ** -np.linspace(0, decades, size // 2) * (-1.0) ** np.arange(size // 2)
        product = matrix_of(values, size, seed)
        found = range_of(product, like(size))
        bound, apart = bound_and_error(values, size, found, product)
        ratios.append(max(bound, len(found) * EPS) / max(apart, EPS))  # ‖H‖ = 1
    assert np.median(ratios) <= size / 2


def test_one_product_a_dimension():
    found = range_of(matrix_of(np.linspace(1, 2, 640), 4000), like(4000))
    # all of them lie far from zero: there rounding brings in a block of null vectors (Lanczos finds
    # the eigenvalue zero as well)
    assert 640 <= len(found) <= 640 + WIDTH
    assert found.products <= len(found) + 2 * WIDTH


def test_the_limit():
    product = matrix_of(np.linspace(1, 2, 200), 300)
    found = range_of(product, like(300), limit=100)
    assert not found.complete
    assert 100 < found.at_least <= 200
    assert len(found) <= 100 + WIDTH


@pytest.mark.parametrize("decades", [0, 3, 10])
def test_a_rank_far_above_the_limit_is_seen_early(decades):
    weights = torch.logspace(0, -decades, 18_000, dtype=torch.float64)
    weights = torch.nn.functional.pad(weights, (0, 2_000))
    found = range_of(lambda rows: rows * weights, like(20_000), limit=1_000)
    assert not found.complete
    assert 1_000 < found.at_least <= 18_000
    assert found.products <= {0: WIDTH, 3: 4 * WIDTH, 10: 12 * WIDTH}[decades]


@pytest.mark.parametrize("rank", [0, 1, 1_000, 3_000])
def test_a_lower_bound_on_the_rank(rank):
    draw = torch.Generator().manual_seed(rank)
    weights = torch.randn(rank, generator=draw, dtype=torch.float64)
    weights = torch.nn.functional.pad(weights, (0, 3_000 - rank))
    least = rank_at_least(lambda rows: rows * weights, like(3_000), 32)
    assert rank / 2 - 200 < least <= rank  # 5 √(n/2) = 194


def test_progress_and_products_that_are_not_finite():
    told = []
    range_of(matrix_of([1.0] * 100, 200), like(200), expected=90, tick=lambda *x: told.append(x))
    assert told[-1] == ("dimensions", 100, 100)
    with pytest.raises(NonFiniteError):
        range_of(lambda rows: rows * math.nan, like(9))


@pytest.mark.parametrize("spoiled", ["left out", "not orthogonal", "wrong entry"])
@pytest.mark.parametrize("size", [2, 10, 100, 1e6])
def test_a_spoiled_basis_is_seen(spoiled, size):
    """What is wrong by so many floors is covered by the bound."""
    dimension = 200
    product = matrix_of(np.linspace(0.5, 2, 80), dimension)
    found = range_of(product, like(dimension))
    exact = torch.linalg.eigvalsh(found.matrix)
    error = size * dimension * EPS * 2
    rows = found.basis.rows(slice(0, len(found)))
    small = found.matrix.clone()
    if spoiled == "left out":  # a direction along which H has an eigenvalue of that size
        extra = torch.linalg.qr(torch.cat([rows, gaussian((1, dimension), rows, "extra")]).T).Q
        true = product
        product = lambda v: true(v) + error * torch.outer(v @ extra[:, -1], extra[:, -1])  # noqa: E731
    elif spoiled == "not orthogonal":
        found.basis.parts.__next__()[1][3] += error * rows[4]
    else:
        small[3, 5] += error
        small[5, 3] += error
    check = gaussian((5, dimension), rows, "test of range", "check")
    beside = Reference(check, product(check), 0.0).beside(
        lambda v: found.basis.lift(found.basis.project(v) @ small)
    )
    bound = beside.rounding + found.basis.shift(small)
    wrong = float((torch.linalg.eigvalsh(small) - exact).abs().max())
    wrong = error if spoiled == "left out" else wrong
    assert wrong <= bound
    if size >= 10:
        assert bound >= error / 2


class Counted:
    """A product that counts its calls, and fails at one of them."""

    def __init__(self, product, fails=0):
        self.product, self.fails, self.calls = product, fails, 0

    def __call__(self, rows):
        self.calls += 1
        if self.calls == self.fails:
            raise KeyboardInterrupt
        return self.product(rows)


def keep(product, path, **options):
    with SearchFile(path, **options) as kept:
        return range_of(product, like(900), kept=kept)


def test_a_search_is_kept_and_continued(tmp_path):
    product, path = matrix_of(np.linspace(1, 2, 300), 900), tmp_path / "a.search"
    undisturbed, killed, resumed = Counted(product), Counted(product, fails=4), Counted(product)
    whole = range_of(undisturbed, like(900))
    with pytest.raises(KeyboardInterrupt):
        keep(killed, path, every=0)
    again = keep(resumed, path, every=1e9)
    # three calls were kept; one looks whether what was kept belongs to this matrix
    assert resumed.calls == undisturbed.calls - 3 + 1
    assert torch.equal(again.matrix, whole.matrix)
    assert again.products == whole.products
    with path.open("ab") as file:  # killed while it wrote
        file.write(path.read_bytes()[20:3000])
    cut = keep(product, path)
    assert torch.equal(cut.matrix, whole.matrix)


def test_searches_that_cannot_be_continued(tmp_path):
    path, product = tmp_path / "a.search", matrix_of(np.linspace(1, 2, 99), 300)
    with SearchFile(path, every=0) as kept:
        range_of(product, like(300), kept=kept)
        with pytest.raises(StoreError, match="another process"):
            range_of(product, like(300), kept=SearchFile(path))
    nearly = matrix_of(np.linspace(1, 2, 99) * (1 + 1e-9), 300)
    for other, size in (
        (matrix_of([1.0] * 99, 300), 300),
        (nearly, 300),
        (matrix_of([1.0], 299), 299),
    ):
        with pytest.raises(StoreError, match="another matrix"), SearchFile(path) as kept:
            range_of(other, like(size), kept=kept)
    path.write_bytes(b"something else")
    with pytest.raises(StoreError, match="no search"):
        SearchFile(path)
    with pytest.raises(StoreError, match="cannot read"):
        SearchFile(tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 17, 40])
def test_a_file_that_was_cut_early_begins_anew(tmp_path, kept):
    path, product = tmp_path / "a.search", matrix_of(np.linspace(1, 2, 99), 300)
    with SearchFile(path, every=0) as file:
        whole = range_of(product, like(300), kept=file)
    path.write_bytes(path.read_bytes()[:kept])
    with SearchFile(path, every=0) as file:
        again = range_of(product, like(300), kept=file)
    assert torch.equal(again.matrix, whole.matrix)
    with SearchFile(path) as file:
        assert torch.equal(range_of(product, like(300), kept=file).matrix, whole.matrix)
        file.remove()
    assert not path.exists()


def test_a_disk_that_refuses_ends_nothing(tmp_path):
    kept = SearchFile(tmp_path / "missing" / "a.search", every=0)
    with pytest.warns(UserWarning, match="can't be kept"):
        found = range_of(matrix_of([1.0] * 9, 30), like(30), kept=kept)
    assert len(found) == 9


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (torch.float64, 1e-200),
        (torch.float64, 1e160),
        (torch.float32, 1e-30),
        (torch.float32, 1e25),
    ],
)
def test_scales_at_which_squares_vanish_or_overflow(dtype, size):
    of_one = matrix_of(np.linspace(0.5, 1, 60), 200)
    one = torch.zeros(200, dtype=dtype)
    found = range_of(lambda rows: (of_one(rows.double()) * size).to(dtype), one)
    values = torch.linalg.eigvalsh(found.matrix.double() / size)
    eps = torch.finfo(dtype).eps
    assert (
        float((values[-60:] - torch.linspace(0.5, 1, 60, dtype=torch.float64)).abs().max())
        <= 200 * eps
    )
    shift = found.basis.shift(found.matrix) / size
    assert 0 < shift <= 200 * eps
    next(found.basis.parts)[1][7] *= 1.01  # of which the bound must tell
    assert found.basis.shift(found.matrix) / size >= 0.005


def test_nothing_at_all():
    found = range_of(lambda rows: rows, like(0))
    assert found.complete
    assert found.matrix.shape == (0, 0)
