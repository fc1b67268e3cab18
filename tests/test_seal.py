"""Seals and files of which anyone could have made a part: refused in words, in bounded time."""

import json
import struct
import zlib

import h5py
import numpy as np
import pytest
from store_samples import SIZE, create, resume, spectrum

from hessrmt.errors import StoreError
from hessrmt.runs.verify import verify
from hessrmt.store.hdf5 import dataset, hdf5_bytes, opened
from hessrmt.store.seal import is_sealed, padding
from hessrmt.store.spectra import load


def resealed(path, about):
    """An HDF5 file with this JSON in its seal, whose own checksum is right."""
    with h5py.File(path, "w") as file:
        file["hessian_evals"] = np.arange(8.0).reshape(1, 8)
    content = path.read_bytes()
    content += bytes(padding(len(content)))
    if isinstance(about, dict):
        about = {"size": len(content), "crc32": zlib.crc32(content), **about}
    text = about if isinstance(about, bytes) else json.dumps(about).encode()
    path.write_bytes(
        content + text + struct.pack("<8sII", b"hrmtseal", len(text), zlib.crc32(text))
    )
    return path


@pytest.mark.parametrize(
    "about",
    [
        [],
        5,
        None,
        b"[" * 100_000,
        b"\xff\xfe",
        {},
        {"rows": 5},
        {"rows": [[10**18, 1]]},
        {"rows": [[0, 10**30]]},
        {"rows": [[-5, 1]]},
        {"rows": [[5, -1]]},
        {"rows": [["a", 1]]},
        {"rows": [[1, 2, 3]]},
        {"rows": [[0.5, 1]]},
        {"rows": [[8, 8], [0, 8]]},
        {"rows": [], "size": "4096"},
        {"rows": [], "crc32": None},
    ],
)
def test_a_seal_that_cannot_be_one_is_refused(tmp_path, about):
    with pytest.raises(StoreError, match="damaged: it doesn't match the checksum"):
        is_sealed(resealed(tmp_path / "s.h5", about))


def test_a_seal_that_is_one_is_accepted(tmp_path):
    assert is_sealed(resealed(tmp_path / "s.h5", {"rows": []}))
    (tmp_path / "own.h5").write_bytes(hdf5_bytes(lambda file: None))
    assert is_sealed(tmp_path / "own.h5")


@pytest.mark.parametrize("dtype", ["u1", "f8"])
def test_numbers_that_a_file_only_claims_are_counted_as_float64(tmp_path, dtype):
    path = tmp_path / "s.h5"
    with h5py.File(path, "w") as file:
        shape = (1, 140_000_000)
        file.create_dataset("hessian_evals", shape=shape, dtype=dtype, fillvalue=1)
    with pytest.raises(StoreError, match="hessian_evals claims"):
        load(path)
    content = hdf5_bytes(lambda file: file.create_dataset("a", shape=shape, dtype=dtype) and None)
    path.write_bytes(content)
    with opened(path) as file, pytest.raises(ValueError, match="a claims"):
        dataset(file, "a")


@pytest.mark.parametrize("count", [1, 2])
def test_what_a_file_claims_is_added_up(tmp_path, count):
    """Each data set has less than 256 MiB, two of them have more; a kilobyte holds neither."""
    path = tmp_path / "s.h5"
    with h5py.File(path, "w") as file:
        for name in "ab":
            file.create_dataset(name, shape=(18_000_000,), dtype="f8", fillvalue=1)
    with opened(path) as file:
        for _ in range(2):
            assert dataset(file, "a").shape == (18_000_000,)
        if count == 2:
            with opened(path), pytest.raises(ValueError, match="b claims 288,000,000 bytes"):
                dataset(file, "b")
    with opened(path) as file:
        dataset(file, "b")


def layout_of(file):
    """Of a virtual dataset with the spectra of a file."""
    layout = h5py.VirtualLayout((1, 8), "f8")
    layout[:] = h5py.VirtualSource(file, "hessian_evals", (1, 8))
    return layout


def test_what_is_not_read_beside_the_spectra_does_no_harm(tmp_path):
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["hessian_evals"] = np.arange(8.0).reshape(1, 8)
        file["nothing"] = h5py.Empty("f8")
        file["none of many"] = np.empty((0, 3))
        file.create_dataset("mask", shape=(200_000_000,), dtype="u1", chunks=(10**6,))
        file.create_dataset("room", shape=(10**12,), dtype="f8", chunks=(10**6,))
        file.create_virtual_dataset("same", layout_of("s.h5"))
        file.create_virtual_dataset("other", layout_of("other.h5"))
    assert load(tmp_path / "s.h5").eigenvalues.tolist() == [np.arange(8.0).tolist()]
    assert verify(tmp_path / "s.h5").state == "no checksums"
    with opened(tmp_path / "s.h5") as file, pytest.raises(KeyError, match="is no dataset"):
        dataset(file, "nothing")
    for name, said in (("room", "claims"), ("same", "another file"), ("other", "another file")):
        with opened(tmp_path / "s.h5") as file, pytest.raises(ValueError, match=said):
            dataset(file, name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("versions", "[]"),
        ("versions", "null"),
        ("config", "5"),
        ("notes", "[null]"),
        ("notes", "{}"),
        ("extra", '[["a"]]'),
        ("extra", '"a"'),
        ("blocks", "[[]]"),
        ("identity", "[]"),
    ],
)
def test_attributes_of_another_kind_are_refused(tmp_path, cli, name, value):
    """In an unsealed file of version 1, where nothing else tells."""
    path = tmp_path / "s.h5"
    with create(path) as writer:
        writer.write(0, spectrum(0))
    with h5py.File(path, "r+") as file:
        for kind in ("checksum", "seconds_checksum"):
            del file[kind]
        file.attrs["schema_version"] = 1
        file.attrs[name] = value
    info = cli("info", "s.h5")
    if name != "identity":  # only a run that continues the file reads it
        assert info.returncode == 2
        assert "s.h5 is damaged: an attribute that must list" in info.stderr
    with pytest.raises(StoreError, match="an attribute that must list"):
        resume(path, batch_indices=np.arange(5 * SIZE).reshape(5, SIZE))
