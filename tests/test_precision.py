"""Certified eigenvalues against many-digit arithmetic: `tests/precision.py` on some problems."""

import numpy as np
import pytest
from precision import LOSSES, draw, exact_levels, judge, summary, sweep

import hessrmt as hr


@pytest.mark.parametrize(
    "first", [0, *(pytest.param(first, marks=pytest.mark.slow) for first in (30, 60))]
)
def test_a_sample_of_the_sweep(first):
    found = summary(sweep(first, 30))
    assert found["runs"] >= 40
    assert found["over"] == found["off"] == 0
    assert found["refused"] <= 2
    assert all("loss is inf" in said for said in found["said"])
    assert found["floor over error, median"] <= 50


@pytest.mark.slow
def test_the_sweep():
    found = summary(sweep(10_000, 1330, processes=2))
    assert found["kinds"] >= 60
    assert found["over"] == found["off 3"] == 0
    assert found["off"] <= 0.005 * found["runs"]
    assert found["refused"] <= 0.01 * found["runs"]
    assert found["floor over error, median"] <= 50


@pytest.mark.parametrize("number", [1, 8, 9])
def test_the_oracle_is_double_backward_where_rounding_is_small(number):
    drawn = draw(number)
    problem = hr.Problem(drawn.model, LOSSES[drawn.loss][0], (drawn.x, drawn.y))
    ours = np.linalg.eigvalsh(hr.hessian(problem))
    exact = np.array([float(level) for level in exact_levels(drawn)])
    assert np.abs(ours - exact).max() <= 1e-12 * np.abs(exact).max()


def test_an_error_is_seen(monkeypatch):
    """The sweep would see eigenvalues that are off by 10 floors, and ten too many."""
    real = hr.spectrum

    def wrong(problem, **options):
        found = real(problem, **options)
        moved = found.eigenvalues + 10 * found.noise_floor
        return hr.Spectrum(**{**vars(found), "eigenvalues": moved})

    monkeypatch.setattr(hr, "spectrum", wrong)
    found = summary(judge(3))
    assert found["off 3"] == 2
