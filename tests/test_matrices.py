"""Matrices of other libraries where an operator is taken, and operators where scipy takes one."""

import numpy as np
import pytest
import scipy.sparse
import torch
from scipy.sparse.linalg import aslinearoperator
from scipy.sparse.linalg import eigsh as reference

import hessrmt as hr
from hessrmt.errors import ConfigError, NonFiniteError, ProblemError

N, K = 40, 3
EPS = np.finfo(float).eps
DRAWN = np.random.default_rng(0).normal(size=(N, N))
A = (DRAWN + DRAWN.T) / 2
LEVELS = np.linalg.eigvalsh(A)
NORM = np.abs(LEVELS).max()


class Foreign:
    """As an operator of curvlinops looks: ``shape``, torch's ``dtype`` and ``device``, ``@``."""

    shape, dtype, device = (N, N), torch.float64, torch.device("cpu")

    def __matmul__(self, columns):
        assert isinstance(columns, torch.Tensor)
        return torch.from_numpy(A) @ columns


class Halves(Foreign):
    dtype = torch.float16


class Wrong(Foreign):
    def __matmul__(self, columns):
        return columns[:2]


KINDS = {
    "array": A,
    "tensor": torch.from_numpy(A),
    "sparse matrix": scipy.sparse.csr_matrix(A),
    "operator of scipy": aslinearoperator(A),
    "operator of tensors": Foreign(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_matrix_of_any_library_has_its_eigenvalues(kind):
    pairs = hr.eigsh(KINDS[kind], K, "LM")
    expected = np.sort(reference(A, K, which="LM", return_eigenvectors=False))
    assert (np.abs(pairs.values - expected) <= pairs.bounds + N * EPS * NORM).all()
    assert pairs.to_dict()["check"] is None
    assert "check" in pairs.to_dict()["not_computable"]
    found = hr.spectrum(KINDS[kind])
    assert np.abs(found.eigenvalues - LEVELS).max() <= found.noise_floor
    assert found.rank == N


def test_a_density_of_a_matrix_comes_back_from_its_file(tmp_path):
    found = hr.density(scipy.sparse.csr_array(A), 2, N, top=2)
    assert np.abs(found.edges.values - LEVELS[-2:]).max() <= found.edges.bounds.max()
    plain = found.to_dict()
    assert plain["loss"] is None
    assert "loss" in plain["not_computable"]
    found.save(tmp_path / "d.h5")
    assert hr.load(tmp_path / "d.h5").to_dict() == plain


@pytest.mark.parametrize("share", [1.0, 1e-3, 1e-6])
def test_what_is_not_symmetric_is_refused(share):
    for given in (A + share * DRAWN, aslinearoperator(A + share * DRAWN)):
        for take in (hr.eigsh, hr.spectrum, hr.density):
            with pytest.raises(ProblemError, match="not symmetric"):
                take(given)


def test_what_is_hardly_asymmetric_widens_the_bounds():
    skew = (DRAWN - DRAWN.T) * 1e-10
    off = np.linalg.norm(skew, 2)
    pairs, found = hr.eigsh(A + skew, K, tolerance=1e-14), hr.spectrum(A + skew)
    assert min(pairs.bounds.min(), found.noise_floor) >= off
    assert np.abs(found.eigenvalues - LEVELS).max() <= found.noise_floor


REFUSED = {
    "not square": (np.ones((3, 4)), ConfigError, "square"),
    "complex": (A + 1j, ConfigError, "complex"),
    "NaN": (np.full((3, 3), np.nan), NonFiniteError, "NaN"),
    "products in half precision": (Halves(), ConfigError, "too few digits"),
    "another shape": (Wrong(), ConfigError, "keeps the shape"),
    "nothing": ("matrix", ConfigError, "shape and @"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_real_square_matrix_is_refused(kind):
    given, error, words = REFUSED[kind]
    for take in (hr.eigsh, hr.spectrum, hr.density):
        with pytest.raises(error, match=words):
            take(given)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_scipy_takes_an_operator(dtype):
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    problem = hr.Problem(torch.nn.Linear(3, 4), "cross-entropy", (x, torch.arange(8) % 4))
    given = hr.Hessian(problem, dtype=dtype).to_scipy()
    assert given.dtype == np.dtype(dtype)
    expected = np.linalg.eigvalsh(hr.hessian(problem))[-K:]
    found = np.sort(reference(given, K, which="LA", return_eigenvectors=False))
    assert np.abs(found - expected).max() < 100 * 16 * np.finfo(dtype).eps * expected[-1]
