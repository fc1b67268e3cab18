"""Spectrum files: the layout others rely on, rows complete or absent, and every way to fail."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import h5py
import hypothesis
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import xarray
from hypothesis import strategies as st

from hessrmt.errors import StoreError, WriteError
from hessrmt.records import Provenance, Spectrum
from hessrmt.store import writer as writer_module
from hessrmt.store.hdf5 import load
from hessrmt.store.writer import SpectrumWriter

P, BATCHES, SIZE = 7, 3, 4
IDENTITY = {"model": "mlp3", "batch": SIZE, "checkpoint_sha256": "ab" * 32}
CONFIG = {"model": "mlp3", "operator": "hessian", "dtype": "float64", "seed": 11, "batch": SIZE}
DISK_FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def create(path, dimension=P, **changes):
    arguments = {
        "identity": IDENTITY,
        "solver": "LAPACK syevd",
        "dimension": dimension,
        "batch_indices": np.arange(BATCHES * SIZE).reshape(BATCHES, SIZE),
        "provenance": Provenance(config=CONFIG, device="cpu (2 threads)", notes=("a", "b")),
    }
    return SpectrumWriter.create(path, **{**arguments, **changes})


def spectrum(row, dimension=P):
    levels = np.sort(np.random.default_rng(row).normal(size=dimension))
    return Spectrum(
        eigenvalues=levels,
        noise_floor=0.1,
        dimension=dimension,
        reduced_dimension=dimension - 1,
        loss=1.5 + row,
        gradient_norm=0.25,
        seconds={"matrix": 0.5, "eigenvalues": 0.125},
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "spectra.h5"


@pytest.fixture
def full(path):
    with create(path) as writer:
        for row in range(BATCHES):
            writer.write(row, spectrum(row))
    return path


# The layout


def test_layout_by_plain_h5py(full):
    with h5py.File(full) as file:
        expected = {
            "hessian_evals": ((BATCHES, P), np.float64),
            "batch_indices": ((BATCHES, SIZE), np.int64),
            "done": ((BATCHES,), np.uint8),
            "noise_floor": ((BATCHES,), np.float64),
            "rank": ((BATCHES,), np.int64),
            "reduced_dimension": ((BATCHES,), np.int64),
            "loss": ((BATCHES,), np.float64),
            "gradient_norm": ((BATCHES,), np.float64),
            "seconds_matrix": ((BATCHES,), np.float64),
            "seconds_eigenvalues": ((BATCHES,), np.float64),
        }
        for name, (shape, dtype) in expected.items():
            assert (file[name].shape, file[name].dtype) == (shape, dtype), name
        assert np.all(np.diff(file["hessian_evals"][:], axis=1) >= 0)
        assert np.array_equal(file["hessian_evals"][1], spectrum(1).eigenvalues)
        assert file["done"][:].tolist() == [1, 1, 1]
        assert file["loss"][:].tolist() == [1.5, 2.5, 3.5]
        assert file["rank"][:].tolist() == [spectrum(row).rank for row in range(BATCHES)]
        attributes = dict(file.attrs)
    assert attributes["schema"] == "hessrmt/spectra"
    assert attributes["schema_version"] == 1
    assert json.loads(attributes["config"]) == CONFIG
    assert json.loads(attributes["identity"]) == IDENTITY
    assert json.loads(attributes["notes"]) == ["a", "b"]
    assert {"hessrmt", "torch", "numpy", "h5py", "python"} <= set(
        json.loads(attributes["versions"])
    )
    assert attributes["seed"] == 11
    assert attributes["device"] == "cpu (2 threads)"
    assert attributes["solver"] == "LAPACK syevd"
    assert attributes["checkpoint_sha256"] == "ab" * 32
    assert attributes["created"].endswith("+00:00")


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


@hypothesis.settings(max_examples=25, deadline=None)
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
    assert (found.operator, found.dtype, found.solver) == ("hessian", "float64", "LAPACK syevd")
    assert found.provenance.config == CONFIG
    assert found.provenance.notes == ("a", "b")


def test_a_phase_that_was_not_timed_is_nan_on_disk_and_absent_in_memory(path):
    with create(path) as writer:
        writer.write(0, Spectrum(np.zeros(P), 0.0, P, P))
    assert load(path)[0].seconds == {}
    with h5py.File(path) as file:
        assert np.isnan(file["seconds_matrix"][0])


# One row is complete or absent


def test_rows_in_any_order(path):
    with create(path) as writer:
        writer.write(2, spectrum(2))
        assert writer.done.tolist() == [False, False, True]
    with SpectrumWriter.resume(path, IDENTITY) as writer:
        assert writer.done.tolist() == [False, False, True]
        writer.write(0, spectrum(0))
    found = load(path)
    assert np.array_equal(found.eigenvalues, [spectrum(r).eigenvalues for r in (0, 2)])
    assert found.batch_indices.tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]


@pytest.mark.parametrize("stored", range(9))
def test_row_abandoned_before_its_flag_is_absent(path, monkeypatch, stored):
    """The process dies after any number of the row's nine writes but the last, the flag's."""
    real, count = os.pwrite, 0

    def dying(*args):
        nonlocal count
        count += 1
        if count > stored:
            raise KeyboardInterrupt
        return real(*args)

    writer = create(path)
    writer.write(0, spectrum(0))
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", dying)
        with pytest.raises(KeyboardInterrupt):
            writer.write(1, spectrum(1))
    assert count == stored + 1
    assert len(load(path)) == 1
    writer.close()
    with SpectrumWriter.resume(path, IDENTITY) as again:
        assert again.done.tolist() == [True, False, False]
        again.write(1, spectrum(1))
    assert np.array_equal(load(path).eigenvalues, [spectrum(r).eigenvalues for r in (0, 1)])


def test_the_flag_is_the_last_write(path, monkeypatch):
    """... and everything else is on disk before it."""
    real, order = os.pwrite, []
    with create(path) as writer, monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda *args: order.append(args[2]) or real(*args))
        patch.setattr(os, "fsync", lambda descriptor: order.append("sync"))
        writer.write(1, spectrum(1))
    with h5py.File(path) as file:
        flag = file["done"].id.get_offset() + 1
    assert order.count("sync") == 2
    assert order[-3:] == ["sync", flag, "sync"]


WRITE_FOREVER = """
    import sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    import numpy as np
    from test_store import create, spectrum
    n, p = 400, 3000
    rows = [spectrum(row, p) for row in range(20)]
    with create(Path(sys.argv[1]), p, batch_indices=np.arange(n).reshape(n, 1)) as writer:
        print("ready", flush=True)
        while True:  # a second time the same numbers
            for row in range(n):
                writer.write(row, rows[row % 20])
"""


def python(code, *args):
    """A Python process that runs a piece of code."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/"
    )


@pytest.mark.parametrize("delay", [0.003, 0.021, 0.047])
def test_killed_while_writing_rows(path, delay):
    process = python(WRITE_FOREVER, path, Path(__file__).parent)
    assert process.stdout.readline() == "ready\n"
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(delay)
    seen = len(load(path))  # while it is being written
    process.kill()
    process.communicate()
    found = load(path)
    assert seen <= len(found) <= found.planned == 400
    for row, item in enumerate(found):
        assert np.array_equal(item.eigenvalues, spectrum(row % 20, 3000).eigenvalues)
        assert item.loss == 1.5 + row % 20
    SpectrumWriter.resume(path, IDENTITY).close()  # the lock died with the process


# One writer


def test_second_writer_in_this_process_is_refused(path):
    with create(path) as writer:
        with pytest.raises(StoreError, match="another process is writing"):
            SpectrumWriter.resume(path, IDENTITY)
        with pytest.raises(StoreError, match="another process is writing"):
            create(path, overwrite=True)
        writer.write(0, spectrum(0))
        assert len(load(path)) == 1
    SpectrumWriter.resume(path, IDENTITY).close()


def test_second_writer_in_another_process_is_refused(path):
    code = """
        import sys
        from pathlib import Path
        from hessrmt.errors import StoreError
        from hessrmt.store.hdf5 import load
        from hessrmt.store.writer import SpectrumWriter
        try:
            SpectrumWriter.resume(Path(sys.argv[1]), {})
        except StoreError as error:
            print(error)
        print(len(load(sys.argv[1])))
    """
    with create(path) as writer:
        writer.write(0, spectrum(0))
        out, err = python(code, path).communicate()
    said, rows = out.splitlines()
    assert "another process is writing" in said, err
    assert rows == "1"


def test_any_hdf5_program_respects_the_lock(path):
    with create(path), pytest.raises(BlockingIOError):
        h5py.File(path, "r+", locking=True)


def test_file_system_without_locks(path, monkeypatch):
    def unsupported(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with create(path) as writer:
        writer.write(0, spectrum(0))
    SpectrumWriter.resume(path, IDENTITY).close()
    assert len(load(path)) == 1


# Resuming


def test_resume_names_what_differs(full):
    before = full.read_bytes()
    with pytest.raises(StoreError) as error:
        SpectrumWriter.resume(full, {**IDENTITY, "batch": 32, "extra": 1})
    for part in ("batch (4 in the file, 32 now)", "extra (None in the file, 1 now)", "--out"):
        assert part in str(error.value)
    assert "mlp3" not in str(error.value)
    assert full.read_bytes() == before


def test_resume_of_a_rewritten_layout_is_refused(full, tmp_path):
    """Another program may store the rows compressed: readable, but rows have no fixed place."""
    packed = tmp_path / "packed.h5"
    with h5py.File(full) as old, h5py.File(packed, "w") as new:
        new.attrs.update(old.attrs)
        for name in old:
            new.create_dataset(name, data=old[name][:], chunks=True)
    assert np.array_equal(load(packed).eigenvalues, load(full).eigenvalues)
    with pytest.raises(StoreError, match="stored anew"):
        SpectrumWriter.resume(packed, IDENTITY)


def test_row_of_the_wrong_size_is_refused(path):
    with create(path) as writer:
        before = path.read_bytes()
        with pytest.raises(StoreError, match="does not fit"):
            writer.write(0, spectrum(0, P + 1))
        with pytest.raises(StoreError, match="does not fit"):
            writer.write(BATCHES, spectrum(0))
    assert path.read_bytes() == before


# Damaged, foreign and newer files


@pytest.fixture(params=["load", "resume"])
def opened(request):
    def resume(path):
        SpectrumWriter.resume(path, IDENTITY).close()

    return {"load": load, "resume": resume}[request.param]


def test_truncated_at_any_length(full, tmp_path, opened):
    whole = full.read_bytes()
    cut = tmp_path / "cut.h5"
    for length in [*range(0, len(whole), 500), 1, 8, 96, len(whole) // 2, len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(StoreError, match=r"cut\.h5"):
            opened(cut)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "HDF5"), (b"not HDF5 at all\n" * 99, "HDF5"), (b"\x89HDF\r\n\x1a\n", "HDF5")],
)
def test_not_hdf5(path, opened, content, words):
    path.write_bytes(content)
    with pytest.raises(StoreError, match=words):
        opened(path)


def test_missing_file_folder_and_unreachable_name(tmp_path, opened):
    with pytest.raises(StoreError, match=r"no file .*absent\.h5"):
        opened(tmp_path / "absent.h5")
    with pytest.raises(StoreError, match="directory"):
        opened(tmp_path)
    with pytest.raises(StoreError, match="no file"):
        opened(tmp_path / ("x" * 5000))


def test_foreign_hdf5(path, opened):
    with h5py.File(path, "w") as file:
        file["hessian_evals"] = np.zeros((2, 2))
    with pytest.raises(StoreError, match="it has no schema attribute, expected 'hessrmt/spectra'"):
        opened(path)
    with h5py.File(path, "r+") as file:
        file.attrs["schema"] = "somebody/else"
    with pytest.raises(StoreError, match="its schema is 'somebody/else'"):
        opened(path)


@pytest.mark.parametrize("version", [2, 0, -1])
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
        if bent is None:
            del file.attrs[name]
        else:
            file.attrs[name] = bent
    with pytest.raises(StoreError, match="damaged"):
        load(full)


def test_strings_of_the_other_kind(full):
    """Fixed-length strings, as other HDF5 libraries write them."""
    with h5py.File(full, "r+") as file:
        for name in ("schema", "config", "device", "solver"):
            file.attrs[name] = np.bytes_(file.attrs[name])
    assert load(full)[0].solver == "LAPACK syevd"


# Names that are taken


def test_create_never_replaces(full):
    before = full.read_bytes()
    with pytest.raises(StoreError, match=r"exists; --resume .* --overwrite"):
        create(full)
    assert full.read_bytes() == before


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


def test_writer_whose_file_was_replaced_is_refused(full, monkeypatch):
    real = fcntl.flock

    def replaced_just_before(descriptor, how):
        full.unlink()
        full.write_bytes(b"new")
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", replaced_just_before)
    with pytest.raises(StoreError, match="replaced"):
        SpectrumWriter.resume(full, IDENTITY)


@pytest.mark.parametrize("overwrite", [True, False])
def test_unwritable_places(tmp_path, overwrite):
    with pytest.raises(StoreError, match="No such file or directory"):
        create(tmp_path / "absent" / "a.h5", overwrite=overwrite)
    with pytest.raises(StoreError, match="is a folder"):
        create(tmp_path, overwrite=overwrite)
    with pytest.raises(StoreError, match="too long"):
        create(tmp_path / ("x" * 5000), overwrite=overwrite)
    assert os.listdir(tmp_path) == []


# Full disks


def test_disk_full_at_creation(full, monkeypatch):
    def refuse(*args):
        raise DISK_FULL

    before = full.read_bytes()
    monkeypatch.setattr(os, "pwrite", refuse)
    for path in (full, full.with_name("new.h5")):
        with pytest.raises(StoreError, match=f"cannot write .*{path.name}: No space left") as error:
            create(path, overwrite=True)
        assert error.value.exit_code == 2
    assert full.read_bytes() == before
    assert os.listdir(full.parent) == [full.name]


@pytest.mark.parametrize("verb", ["pwrite", "fsync"])
def test_disk_full_during_the_run(path, monkeypatch, verb):
    def refuse(*args):
        raise DISK_FULL

    with create(path) as writer:
        writer.write(0, spectrum(0))
        with monkeypatch.context() as patch:
            patch.setattr(writer_module.os, verb, refuse)
            with pytest.raises(WriteError, match=r"batch 1 .*No space left on device") as error:
                writer.write(1, spectrum(1))
        assert error.value.exit_code == 1
        assert writer.done.tolist() == [True, False, False]
    assert np.array_equal(load(path).eigenvalues, [spectrum(0).eigenvalues])


def test_short_writes_are_continued(path, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, bytes(data[:100]), at))
    with create(path, dimension=50) as writer:
        writer.write(2, spectrum(2, 50))
    assert np.array_equal(load(path)[0].eigenvalues, spectrum(2, 50).eigenvalues)


LIMITED = """
    import resource, signal, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    from test_store import SpectrumWriter, create, spectrum
    path, limit, when = Path(sys.argv[1]), int(sys.argv[3]), sys.argv[4]
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    writer = create(path, 2000) if when == "run" else None
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        if writer is None:
            create(path, 2000)
        for row in range(3):
            writer.write(row, spectrum(row, 2000))
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.mark.parametrize("limit", [0, 100, 30_000])
def test_a_disk_that_is_really_full_at_creation(path, limit):
    """A limit on file sizes is a full disk that needs no privilege."""
    process = python(LIMITED, path, Path(__file__).parent, limit, "creation")
    out, err = process.communicate()
    assert out == f"StoreError cannot write {path}: File too large\n", err
    assert (process.returncode, err) == (0, "")
    assert os.listdir(path.parent) == []


def test_a_disk_that_is_really_full_during_the_run(path):
    with create(path, dimension=2000):
        pass
    with h5py.File(path) as file:
        limit = file["hessian_evals"].id.get_offset() + 2000 * 8 + 100  # within the second row
    path.unlink()
    process = python(LIMITED, path, Path(__file__).parent, limit, "run")
    out, err = process.communicate()
    said = {-signal.SIGSEGV: "crashed"}.get(process.returncode, out)
    assert said.startswith("WriteError writing batch "), err
    assert said.endswith("File too large\n")
    assert (process.returncode, err) == (0, "")
    found = load(path)
    for row, item in enumerate(found):
        assert np.array_equal(item.eigenvalues, spectrum(row, 2000).eigenvalues)
    with SpectrumWriter.resume(path, IDENTITY) as writer:
        for row in np.flatnonzero(~writer.done):
            writer.write(int(row), spectrum(int(row), 2000))
    assert len(load(path)) == BATCHES
