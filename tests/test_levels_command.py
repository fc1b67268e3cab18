"""``hessrmt levels``: its JSON, what it says, and one clear error for each mistake."""

import json

import numpy as np
import pytest
from level_samples import keep_surrogates, write_file

from hessrmt.ensembles import goe, goe2, gue, poisson
from hessrmt.records import Spectrum
from hessrmt.store.spectra import load

LAWS = ["goe", "gue", "gse", "poisson", "goe2"]

SETTINGS = {"cutoff", "window"}
"""Null where none was given."""


@pytest.fixture
def kept(monkeypatch, tmp_path_factory):
    keep_surrogates(monkeypatch, tmp_path_factory)


def make(path, ensemble, count, n, seed=0):
    return write_file(path, [ensemble(n, seed, index=index) for index in range(count)])


def parsed(result):
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def recognised(cli, path, ensemble, count, n):
    """What is true of controls of any size: the right law fits, GOE only if it is that."""
    make(path, ensemble, count, n)
    found = parsed(cli("levels", path, "--json"))
    name = ensemble.__name__
    assert found["n_levels"] == count * n
    assert found["n_discarded"] == found["n_ties"] == 0
    fit = found["laws"][name]
    assert abs(found["mean_ratio"] - fit["mean_ratio"]) < 3 * found["mean_ratio_error"]
    assert fit["ratio_p_value"] > 0.01
    assert fit["spacing_p_value"] > 0.01
    for other in set(LAWS) - {name}:
        assert found["laws"][other]["ratio_p_value"] < 0.01
        assert abs(found["laws"][other]["sigmas"]) > 3
        gain = found["laws"][other]["log_likelihood_ratio"]
        assert gain < fit["log_likelihood_ratio"]
    if name == "goe":
        assert fit["mean_ratio"] == 0.5307
        assert found["conclusion"].startswith("consistent with GOE (")
    else:
        assert found["conclusion"].startswith("GOE excluded")
        assert fit["log_likelihood_ratio"] > 5 * fit["log_likelihood_ratio_error"]
    words = {"poisson": "Poisson", "goe2": "two superposed GOE blocks fit", "gue": "GUE fits"}
    assert words.get(name, "") in found["conclusion"]
    return found


ENSEMBLES = [goe, poisson, goe2, gue]


@pytest.mark.parametrize("ensemble", ENSEMBLES, ids=lambda e: e.__name__)
def test_controls_are_recognised(kept, cli, path, ensemble):
    """40 matrices of 100 levels: ⟨r̃⟩ to 0.004, the nearest two laws are 0.037 apart."""
    recognised(cli, path, ensemble, 40, 100)


@pytest.mark.slow
@pytest.mark.parametrize("ensemble", ENSEMBLES, ids=lambda e: e.__name__)
def test_controls_of_full_size_are_recognised(kept, cli, path, ensemble):
    """200 matrices of 400 levels."""
    found = recognised(cli, path, ensemble, 200, 400)
    if ensemble is goe2:
        # 79,800 spacings tell shares below 0.45 from two equal blocks at three standard errors
        # (the likelihood is flat at 1/2: test_levels.py)
        assert 0.45 < found["superposition"] <= 0.5
    if ensemble is goe:
        # the published q of exact GOE spacings is 0.953 to 0.957 (test_levels.py); steps of
        # 1/133 leave it within a few errors
        assert abs(found["brody"] - 0.955) < 5 * found["brody_error"]


def nulls_have_reasons(found):
    reasons = found["not_computable"]
    assert all(reasons.values())
    flat = {name: value for name, value in found.items() if name not in SETTINGS}
    for law, fit in found["laws"].items():
        flat |= {f"{law}.{name}": value for name, value in fit.items()}
    flat |= {
        f"alike.{name}": value for name, pair in found["alike"].items() for value in pair.values()
    }
    missing = [name for name, value in flat.items() if value is None]
    assert all(name in reasons or name.split(".")[-1] in reasons for name in missing)
    return missing


def test_a_quantity_that_was_not_computed_is_null_with_a_reason(kept, cli, path):
    make(path, goe, 2, 4)
    missing = nulls_have_reasons(parsed(cli("levels", path, "--json", "--surrogates", "0")))
    assert {"goe.ratio_p_value", "goe.spacing_p_value", "goe.excluded"} <= set(missing)


def test_an_unfolding_that_cannot_follow(kept, cli, path, tmp_path):
    """Levels over 17 decades: no polynomial of degree 9 is their staircase."""
    levels = np.exp(np.linspace(0, 40, 300) + 0.01 * np.sin(np.arange(300.0)))
    curved = Spectrum(levels, noise_floor=0.0, dimension=300, reduced_dimension=300)
    write_file(path, [curved])
    options = ["--unfold", "polynomial", "--surrogates", "10", "--plot", tmp_path / "pictures"]
    result = cli("levels", path, "--json", *options)
    found = parsed(result)
    missing = nulls_have_reasons(found)
    assert {"mean_spacing", "brody", "superposition", "goe.spacing_distance"} <= set(missing)
    assert found["mean_ratio"] is not None
    assert found["laws"]["goe"]["ratio_p_value"] is not None
    # one line for all of it, and no picture of what there is not
    assert result.stderr.count("not computable: spacings: spectrum 0:") == 1
    assert "not drawn: spectrum 0:" in result.stderr
    assert "nan" not in result.stderr
    table = cli("levels", path, *options[:4], "-q").stdout
    assert "unfolding: none (spectrum 0:" in " ".join(
        table.split()
    )  # not a note that -q leaves out
    assert "through the same unfolding" not in table


def test_a_cache_that_cannot_be_written(cli, path, tmp_path, monkeypatch):
    make(path, goe, 3, 20)
    command = ["levels", path, "--json", "--surrogates", "5"]
    expected = cli(*command)
    (tmp_path / "file").write_text("precious")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cli(*command) == expected
    assert (tmp_path / "file").read_text() == "precious"


def test_comparison_of_cutoffs_on_an_unreduced_spectrum(kept, cli, tmp_path, tiny_npz):
    """Softmax regression: shifts of all classes are null directions, which round-off fills."""
    made = ["--model", "logistic", "--data", "tiny.npz", "--batch", "20", "--batches", "3"]
    assert cli("spectrum", *made, "--reduce", "none", "--out", "tiny.h5").returncode == 0
    result = cli("levels", "tiny.h5", "--compare", "--json", "--surrogates", "10")
    found = parsed(result)
    assert list(found) == ["paper", "certified"]
    spectra = load(tmp_path / "tiny.h5")
    values = np.abs(spectra.eigenvalues)
    floors = np.array([[item.noise_floor] for item in spectra])
    assert found["paper"]["n_discarded"] == np.count_nonzero(values <= 1e-20)
    assert found["certified"]["n_discarded"] == np.count_nonzero(values <= floors)
    # 7 of the 21 directions of each batch: 6 weights and a bias
    assert found["certified"]["n_discarded"] == 3 * 7
    for name in found:
        assert found[name]["n_levels"] + found[name]["n_discarded"] == values.size
        assert found[name]["n_zeros"] == np.count_nonzero(values == 0)
        assert found[name]["cutoff"] == name
    false = found["paper"]["n_levels"] - found["certified"]["n_levels"]
    assert f"{false} of the {found['paper']['n_levels']} levels" in result.stderr
    assert "round-off" in result.stderr


def test_cutoff_and_window(kept, cli, path):
    levels = np.concatenate(
        [-(np.arange(1.0, 9.0) ** 1.3), [0.0, 1e-9], np.arange(1.0, 9.0) ** 1.7]
    )
    spectrum = Spectrum(np.sort(levels), noise_floor=1e-6, dimension=18, reduced_dimension=18)
    write_file(path, [spectrum])

    def counts(*options):
        found = parsed(cli("levels", path, "--json", "--surrogates", "0", *options))
        return found["n_levels"], found["n_discarded"], found["n_zeros"], found["n_ratios"]

    # no ratio bridges the two in the middle
    assert counts() == (16, 2, 1, 6 + 6)
    assert counts("--cutoff", "paper") == (17, 1, 1, 6 + 7)
    assert counts("--cutoff", "0.5") == (16, 2, 1, 6 + 6)
    assert counts("--window", "0.5:") == (8, 10, 1, 6)
    assert counts("--window=-100:-2") == (7, 11, 1, 5)


def test_pictures(kept, cli, path, tmp_path):
    make(path, goe, 3, 60)
    options = ["--compare", "--surrogates", "0", "--plot", "new/pictures", "--format", "svg"]
    result = cli("levels", path, *options)
    assert result.returncode == 0, result.stderr
    for cutoff in ("paper", "certified"):
        drawn = {item.name for item in (tmp_path / "new" / "pictures" / cutoff).iterdir()}
        assert {"spacings.svg", "ratios.svg"} <= drawn
        assert f"written: new/pictures/{cutoff}/spacings.svg" in result.stderr
