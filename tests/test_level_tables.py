"""Tables of eigenvalues: the same levels as of arrays, or refused; never the labels of a table."""

import h5py
import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

import hessrmt as hr
from hessrmt.cli.app import app
from hessrmt.errors import DataError, StoreError
from hessrmt.levels import analyze, select

pd = pytest.importorskip("pandas")


@pytest.fixture(scope="module")
def rows():
    generator = np.random.default_rng(0)
    return np.array([np.linalg.eigvalsh(a + a.T) for a in generator.normal(size=(5, 40, 40))])


SEVERAL = {
    "table": pd.DataFrame,
    "named columns": lambda e: pd.DataFrame(e, index=list("abcde")).add_prefix("level_"),
    "index of two levels": lambda e: pd.DataFrame(e).stack(),
    "table of pandas' own floats": lambda e: pd.DataFrame(e).astype("Float64"),
    "table of objects": lambda e: pd.DataFrame(e, dtype=object),
    "series of arrays": lambda e: pd.Series(list(e)),
    "list of series": lambda e: [row for _, row in pd.DataFrame(e).iterrows()],
    "array": lambda e: xr.DataArray(e, dims=("batch", "level")),
    "transposed array": lambda e: xr.DataArray(e.T, dims=("level", "batch")),
    "dataset": lambda e: xr.Dataset({"loss": 1.0, "hessian_evals": (("batch", "level"), e)}),
    "mapping": lambda e: dict(enumerate(e)),
    "object array": lambda e: np.array([*e, None], dtype=object)[:-1],
}


@pytest.mark.parametrize("table", SEVERAL.values(), ids=SEVERAL)
def test_tables_are_the_arrays_in_them(rows, table):
    found = select(table(rows))
    assert found.cutoff is None
    np.testing.assert_array_equal(found.levels, rows)


def test_one_spectrum_and_whole_analyses(rows):
    for table in (pd.Series, pd.Index, lambda e: pd.DataFrame({"x": e}), xr.DataArray):
        np.testing.assert_array_equal(select(table(rows[0])).levels, rows[:1])
    expected = analyze(rows, surrogates=0)
    assert analyze(pd.DataFrame(rows), surrogates=0).mean_ratio == expected.mean_ratio


def test_noise_floors_of_a_dataset_are_used(rows):
    floors = np.abs(rows).max(axis=1) / 4
    data = xr.Dataset(
        {"hessian_evals": (("level", "batch"), rows.T), "noise_floor": ("batch", floors)}
    )
    found = select(data)
    assert found.cutoff == "certified"
    np.testing.assert_array_equal(found.floors, floors)
    assert found.n_levels == np.sum(np.abs(rows) > floors[:, None])
    with pytest.raises(DataError, match="5 spectra with 4 noise floors"):
        select(xr.Dataset({"levels": (("b", "level"), rows), "noise_floor": ("c", floors[1:])}))


REFUSED = {
    "each column were a spectrum": lambda e: pd.DataFrame(e.T),
    "other things than numbers": lambda e: pd.DataFrame(e).assign(name="a"),
    "a row for each eigenvalue": lambda e: pd.DataFrame(e).stack().rename("x").reset_index(),
    "NaN": lambda e: pd.DataFrame(e).where(pd.DataFrame(e) < 0),
    "masked": lambda e: np.ma.masked_greater(e, 0),
    "expected hessian_evals or": lambda e: xr.Dataset({"a": ("x", e[0]), "b": ("x", e[1])}),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_no_table_of_spectra(rows, reason):
    with pytest.raises(DataError, match=reason):
        select(REFUSED[reason](rows))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_files_of_the_published_code(rows, dtype, tmp_path):
    """Eigenvalues alone; what is round-off follows from the digits that they have."""
    values = rows.astype(dtype).astype(np.float64)
    values[:, :3] = 1e-9  # round-off in single precision, not in double
    values = values.astype(dtype).astype(np.float64)
    with h5py.File(tmp_path / "p.h5", "w") as file:
        file["hessian_evals"] = values
    with h5py.File(tmp_path / "one.h5", "w") as file:
        file["hessian_evals"] = values[0]
    assert len(hr.load(tmp_path / "one.h5")) == 1
    spectra = hr.load(tmp_path / "p.h5")
    np.testing.assert_array_equal(spectra.eigenvalues, np.sort(values))
    floors = 40 * np.finfo(dtype).eps * np.abs(values).max(axis=1)
    np.testing.assert_allclose([one.noise_floor for one in spectra], floors, rtol=1e-15)
    kept = 37 if dtype == "float32" else 40
    assert {one.rank for one in spectra} == {kept}
    run = CliRunner().invoke(app, ["levels", str(tmp_path / "p.h5"), "--surrogates", "0", "--json"])
    assert run.exit_code == 0, run.output
    assert f'"n_levels": {5 * kept}' in run.stdout
    for command in ("info", f"plot --out {tmp_path / 'pictures'}"):
        run = CliRunner().invoke(app, [*command.split(), str(tmp_path / "p.h5")])
        assert run.exit_code == 0, run.output


def test_a_published_file_reads_no_other_file(tmp_path):
    np.ones(40).tofile(tmp_path / "raw")
    with h5py.File(tmp_path / "external.h5", "w") as file:
        places = [(str(tmp_path / "raw"), 0, 320)]
        file.create_dataset("hessian_evals", (1, 40), "f8", external=places)
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["hessian_evals"] = h5py.ExternalLink("external.h5", "hessian_evals")
    for name in ("external", "link"):
        with pytest.raises(StoreError, match=r"in another file|is a link"):
            hr.load(tmp_path / f"{name}.h5")
    with h5py.File(tmp_path / "nan.h5", "w") as file:
        file["hessian_evals"] = np.full((2, 5), np.nan)
    with pytest.raises(StoreError, match="NaN"):
        hr.load(tmp_path / "nan.h5")


def test_a_series_of_several_spectra_below_each_other_is_refused(rows):
    """As one spectrum they would look like independent levels."""
    names = np.repeat(range(len(rows)), rows.shape[1])
    with pytest.raises(DataError, match="entries that repeat"):
        analyze(pd.Series(rows.ravel(), index=names), surrogates=0)
    assert analyze(pd.Series(rows[0]), surrogates=0).n_spectra == 1


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("levels.npz", "hr.levels.analyze"),
        ("levels.csv", "hr.levels.analyze"),
        ("net.pt", "hessrmt capacity"),
        ("net.safetensors", "hessrmt capacity"),
    ],
)
def test_files_that_are_no_spectra_say_where_they_go(cli, tmp_path, name, where):
    (tmp_path / name).write_text("1, 2, 3")
    result = cli("levels", name)
    assert result.returncode == 2
    assert where in result.stderr


def test_words_on_labels_in_tables_can_be_followed():
    rows = pd.DataFrame(np.sort(np.random.default_rng(0).normal(size=(4, 30))))
    with pytest.raises(DataError, match=r"table.drop\(columns='batch'\)"):
        hr.levels.select(rows.assign(batch=range(4)))
    columns = {"spectrum": np.repeat(range(2), 30), "level": np.tile(range(30), 2)}
    long = pd.DataFrame(columns | {"eigenvalue": np.sort(np.random.default_rng(0).normal(size=60))})
    with pytest.raises(DataError, match=r"group\['eigenvalue'\].*groupby\('spectrum'\)"):
        hr.levels.select(long)


@pytest.mark.parametrize("window", [(None, 0.0), (0.0, None)])
def test_a_window_may_be_open_at_one_end(window):
    levels = np.sort(np.random.default_rng(0).normal(size=50))
    inside = levels[levels <= 0] if window[0] is None else levels[levels >= 0]
    assert hr.levels.select(levels, window=window).levels[0].tolist() == inside.tolist()


@pytest.mark.parametrize("size", [100, 400])
def test_evenly_spaced_levels_allow_no_conclusion(size):
    found = hr.levels.analyze(0.7 * np.arange(size), surrogates=0)
    assert found.laws["goe"].excluded is None
    assert found.conclusion.startswith("no conclusion")
