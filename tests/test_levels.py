"""Spacing ratios against their laws."""

import numpy as np
import pytest
from scipy import stats

import hessrmt as hr
from hessrmt import rng
from hessrmt.levels import mean_ratio
from hessrmt.theory.ratios import MEAN_RATIO_GOE, MEAN_RATIO_GOE_SURMISE, MEAN_RATIO_POISSON


def test_ratios_by_hand():
    # spacings 1, 2, 1 whatever the order the levels come in
    np.testing.assert_allclose(hr.levels.ratios([3.0, 0.0, 1.0, 4.0]), [0.5, 0.5])
    assert len(hr.levels.ratios([1.0, 2.0])) == 0
    assert np.isnan(mean_ratio([1.0]))
    np.testing.assert_allclose(hr.levels.ratios([0.0, 0.0, 0.0, 1.0]), [0.0])
    with pytest.raises(ValueError, match="one-dimensional"):
        hr.levels.ratios(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="finite"):
        hr.levels.ratios([0.0, np.nan, 1.0])


def test_constants_are_means_of_their_laws():
    r = np.linspace(0, 1, 200_001)
    surmise = 2 * 27 / 8 * (r + r**2) / (1 + r + r**2) ** 2.5
    assert np.trapezoid(surmise * r, r) == pytest.approx(MEAN_RATIO_GOE_SURMISE, abs=1e-9)
    assert np.trapezoid(2 / (1 + r) ** 2 * r, r) == pytest.approx(MEAN_RATIO_POISSON, abs=1e-9)


def test_goe_and_poisson_ensembles_have_their_means():
    draw = rng.stream(3, "levels")
    samples = 40
    goe = []
    for _ in range(samples):
        a = draw.normal(size=(300, 300))
        goe.append(mean_ratio(np.linalg.eigvalsh(a + a.T)))
    poisson = [mean_ratio(draw.uniform(size=300)) for _ in range(samples)]
    for found, law in ((goe, MEAN_RATIO_GOE), (poisson, MEAN_RATIO_POISSON)):
        assert abs(np.mean(found) - law) < 4 * stats.sem(found)
