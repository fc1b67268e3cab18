"""Spectrum files: the layout others rely on, rows complete or absent, and every way to fail."""

import errno
import os
import tempfile
from pathlib import Path

import h5py
import hypothesis
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import xarray
from hypothesis import strategies as st
from properties import examples
from store_samples import (
    BATCHES,
    CONFIG,
    SIZE,
    P,
    create,
    resume,
    spectrum,
)

from hessrmt.errors import StoreError
from hessrmt.records import Spectrum
from hessrmt.store.hdf5 import text
from hessrmt.store.spectra import load

# The layout


def test_unwritten_rows_hold_no_numbers(path):
    create(path).close()
    with h5py.File(path) as file:
        assert np.isnan(file["hessian_evals"][:]).all()
        assert np.isnan(file["loss"][:]).all()
        assert file["rank"][:].tolist() == [-1] * BATCHES
        assert not file["done"][:].any()
    found = load(path)
    assert (len(found), found.planned) == (0, BATCHES)


def test_xarray_sees_named_dimensions(full):
    with xarray.open_dataset(full, engine="h5netcdf") as data:  # unnamed ones would be refused
        assert data["hessian_evals"].dims == ("batch", "level")
        assert data["batch_indices"].dims == ("batch", "sample")
        assert data["noise_floor"].dims == ("batch",)
        assert dict(data.sizes) == {"batch": BATCHES, "level": P, "sample": SIZE}
        assert float(data["hessian_evals"].sel(batch=2).max()) == spectrum(2).eigenvalues[-1]


FINITE = st.floats(allow_nan=False, allow_infinity=False)


@hypothesis.settings(max_examples=examples(25))
@hypothesis.given(
    levels=hnp.arrays(np.float64, st.integers(1, 9), elements=FINITE).map(np.sort),
    floor=st.floats(0, 1e300),
    loss=FINITE,
    norm=st.floats(0, 1e300),
    seconds=st.floats(0, 1e9),
)
def test_round_trip(levels, floor, loss, norm, seconds):
    given = Spectrum(
        levels,
        floor,
        dimension=len(levels),
        reduced_dimension=len(levels),
        loss=loss,
        gradient_norm=norm,
        seconds={"matrix": seconds, "eigenvalues": 0.0},
        solver="two-stage, ±",
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.h5"
        with create(file, dimension=len(levels)) as writer:
            writer.write(1, given)
        (found,) = load(str(file))
    assert np.array_equal(found.eigenvalues, levels)
    assert np.array_equal(np.signbit(found.eigenvalues), np.signbit(levels))
    for name in ("noise_floor", "dimension", "reduced_dimension", "loss", "gradient_norm", "rank"):
        assert getattr(found, name) == getattr(given, name), name
    assert dict(found.seconds) == dict(given.seconds)
    assert (found.operator, found.dtype, found.solver) == ("hessian", "float64", given.solver)
    assert found.provenance.config == CONFIG
    assert found.provenance.notes == ("a", "b")


def test_a_phase_that_was_not_timed_is_nan_on_disk_and_absent_in_memory(path):
    with create(path) as writer:
        writer.write(0, Spectrum(np.zeros(P), 0.0, P, P))
    assert load(path)[0].seconds == {}
    with h5py.File(path) as file:
        assert np.isnan(file["seconds_matrix"][0])


# Damaged, foreign and newer files


@pytest.fixture(params=["load", "resume"])
def opened(request):
    return {"load": load, "resume": lambda path: resume(path).close()}[request.param]


def test_truncated_at_any_length_or_not_hdf5(full, tmp_path, opened):
    whole = full.read_bytes()
    cut = tmp_path / "cut.h5"
    lengths = [*range(0, len(whole), 500), 1, 8, 96, len(whole) // 2, len(whole) - 1]
    for content in (*(whole[:length] for length in lengths), b"not HDF5 at all\n" * 99):
        cut.write_bytes(content)
        with pytest.raises(StoreError, match=r"cut\.h5"):
            opened(cut)


def test_missing_file_folder_and_unreachable_name(tmp_path, opened):
    with pytest.raises(StoreError, match=r"directory|is a folder"):
        opened(tmp_path)
    with pytest.raises(StoreError, match=r"no file|too long"):
        opened(tmp_path / ("x" * 5000))
    with pytest.raises(StoreError, match=r"no file .*absent\.h5"):
        load(tmp_path / "absent.h5")


def test_foreign_hdf5(path, opened):
    with h5py.File(path, "w") as file:
        file["eigenvalues"] = np.zeros((2, 2))
    with pytest.raises(StoreError, match="it has no schema attribute, expected 'hessrmt/spectra'"):
        opened(path)
    with h5py.File(path, "r+") as file:
        file.attrs["schema"] = "somebody/else"
    with pytest.raises(StoreError, match="its schema is 'somebody/else'"):
        opened(path)


@pytest.mark.parametrize("version", [3, 0, -1])
def test_schema_version_out_of_range(full, opened, version):
    with h5py.File(full, "r+") as file:
        file.attrs["schema_version"] = version
    with pytest.raises(StoreError, match=f"schema version {version}, this hessrmt reads"):
        opened(full)


@pytest.mark.parametrize("name", ["hessian_evals", "done", "loss", "rank"])
def test_missing_dataset(full, opened, name):
    with h5py.File(full, "r+") as file:
        del file[name]
    with pytest.raises(StoreError, match=f"(?s)spectra.h5 .*{name}"):
        opened(full)


MISSING = [(name, None) for name in ("config", "device", "versions", "notes", "created", "solver")]
BENT = [(name, "{no json") for name in ("config", "versions", "notes")] + [("config", "{}")]


@pytest.mark.parametrize(("name", "bent"), MISSING + BENT)
def test_missing_and_bent_attributes(full, name, bent):
    with h5py.File(full, "r+") as file:
        if name == "solver":
            del file[name]
        if bent is None:
            del file.attrs[name]
        else:
            file.attrs[name] = bent
    with pytest.raises(StoreError, match="damaged"):
        load(full)


def as_of_version_1(file):
    """Before rows had a solver and checksums."""
    for name in ("solver", "checksum", "seconds_checksum"):
        del file[name]
    file.attrs["schema_version"] = 1


def test_strings_of_the_other_kind(full):
    """Strings of any length, as h5py writes them."""
    with h5py.File(full, "r+") as file:
        for name in ("schema", "config", "device", "solver"):
            file.attrs[name] = text(file.attrs[name])
        as_of_version_1(file)
    assert load(full)[0].solver == "LAPACK syevd"


def test_a_file_that_has_one_solver_for_all_rows_is_read_and_extended(path):
    """As files were until the solver of each row was stored."""
    with create(path) as writer:
        writer.write(0, spectrum(0))
    with h5py.File(path, "r+") as file:
        as_of_version_1(file)
    with resume(path) as writer:
        writer.write(1, spectrum(1))
    assert [item.solver for item in load(path)] == ["LAPACK syevd"] * 2


# Names that are taken


@pytest.mark.parametrize("links", [True, False])
def test_create_never_replaces_a_file_that_appears_meanwhile(path, monkeypatch, links):
    real = os.fsync

    def appear(descriptor):
        path.write_text("precious")
        real(descriptor)

    def no_links(*args):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "fsync", appear)
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(StoreError, match="exists"):
        create(path)
    assert path.read_text() == "precious"
    assert os.listdir(path.parent) == [path.name]


def test_file_system_without_hard_links(path, monkeypatch):
    def no_links(*args):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_links)
    with create(path) as writer:
        writer.write(0, spectrum(0))
    assert len(load(path)) == 1
    assert os.listdir(path.parent) == [path.name]


def test_overwrite(full):
    create(full, dimension=3, overwrite=True).close()
    assert load(full).planned == BATCHES
    assert len(load(full)) == 0
    full.write_text("not HDF5")
    create(full, overwrite=True).close()
    assert len(load(full)) == 0
    full.unlink()
    create(full, overwrite=True).close()
    assert os.listdir(full.parent) == [full.name]


@pytest.mark.parametrize("overwrite", [True, False])
def test_unwritable_places(tmp_path, overwrite):
    with pytest.raises(StoreError, match="No such file or directory"):
        create(tmp_path / "absent" / "a.h5", overwrite=overwrite)
    with pytest.raises(StoreError, match="is a folder"):
        create(tmp_path, overwrite=overwrite)
    with pytest.raises(StoreError, match="too long"):
        create(tmp_path / ("x" * 5000), overwrite=overwrite)
    assert os.listdir(tmp_path) == []


def change(file, name, make):
    data = make(np.asarray(file[name]))
    del file[name]
    file[name] = data


OTHER_TYPES = [
    ("hessian_evals", "f4"),
    ("hessian_evals", "i8"),
    ("hessian_evals", "c16"),
    ("noise_floor", "f2"),
    ("noise_floor", "i8"),
    ("rank", "f8"),
    ("loss", "c16"),
    ("check", "S8"),
    ("batch_indices", "f8"),
    ("done", "i8"),
]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("name", "kind"), OTHER_TYPES)
def test_numbers_of_another_type_are_refused(full, opened, name, kind, version):
    """Rounded once more, they aren't what was certified; nor would be what is added."""
    with h5py.File(full, "r+") as file:
        change(file, name, lambda data: data.astype(kind))
        if version == 1:
            as_of_version_1(file)
    with pytest.raises(StoreError, match=rf"damaged: {name} has numbers of another type"):
        opened(full)


@pytest.mark.parametrize("name", ["hessian_evals", "noise_floor", "batch_indices", "done"])
def test_numbers_of_another_shape_are_refused(full, opened, name):
    with h5py.File(full, "r+") as file:
        change(file, name, lambda data: data[..., None])
    with pytest.raises(StoreError, match=rf"damaged: {name} has the shape"):
        opened(full)


@pytest.mark.parametrize("gone", [["checksum"], ["checksum", "seconds_checksum"], []])
def test_files_with_checksums_are_not_read_without_them(full, opened, gone):
    with h5py.File(full, "r+") as file:
        file["hessian_evals"][0, 0] -= 1
        for name in gone:
            del file[name]
        file.attrs["schema_version"] = 2 if gone else 1
    with pytest.raises(StoreError, match=r"damaged: its rows have \d checksums"):
        opened(full)
