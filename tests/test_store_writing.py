"""Writing a spectrum file: rows complete or absent, one writer, full disks."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pytest
from store_samples import (
    BATCHES,
    DISK_FULL,
    IDENTITY,
    P,
    create,
    resume,
    spectrum,
)

from hessrmt.errors import StoreError, WriteError
from hessrmt.files import new_file
from hessrmt.runs.training import TrainingFile
from hessrmt.store.density import DensityWriter
from hessrmt.store.spectra import load

# One row is complete or absent


def test_rows_in_any_order(path):
    with create(path) as writer:
        writer.write(2, spectrum(2))
        assert writer.done.tolist() == [False, False, True]
    with resume(path) as writer:
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
    with resume(path) as again:
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
        last = [file[n].id.get_offset() + 8 for n in ("checksum", "seconds_checksum")]
        flag = file["done"].id.get_offset() + 1
    assert order.count("sync") == 2
    assert order[-5:] == ["sync", *last, flag, "sync"]


def python(code, *args):
    """A Python process that runs a piece of code."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/"
    )


# One writer


def test_second_writer_in_this_process_is_refused(path):
    with create(path) as writer:
        with pytest.raises(StoreError, match="another process is writing"):
            resume(path)
        with pytest.raises(StoreError, match="another process is writing"):
            create(path, overwrite=True)
        writer.write(0, spectrum(0))
        assert len(load(path)) == 1
    resume(path).close()


@pytest.mark.parametrize("how", ["replaced", "removed", "moved"])
@pytest.mark.parametrize("when", ["between rows", "after the last"])
def test_a_run_says_where_its_rows_are_if_its_file_was_taken_away(path, how, when):
    other = path.with_name("other")
    other.write_text("of another program")

    def take_away():
        if how == "replaced":
            os.replace(other, path)
        elif how == "removed":
            path.unlink()
        else:
            path.rename(path.with_name("moved.h5"))

    def write():
        with create(path) as writer:
            writer.write(0, spectrum(0))
            if when == "after the last":
                writer.write(1, spectrum(1))
            take_away()
            if when == "between rows":
                writer.write(1, spectrum(1))

    with pytest.raises(WriteError, match="during this run; all 2 finished rows are in ") as error:
        write()
    where = Path(str(error.value).rpartition(" --out ")[2])
    assert (where.name == "moved.h5") == (how == "moved")
    assert np.array_equal(load(where).eigenvalues, [spectrum(r).eigenvalues for r in (0, 1)])
    if how == "replaced":
        assert path.read_text() == "of another program"
    with resume(where) as writer:
        assert writer.done.tolist() == [True, True, False]


def test_temporary_names_are_those_of_one_process_on_one_machine(path, monkeypatch):
    # another host, or another container on a shared folder, may have the same process number
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with new_file(path) as first, new_file(path) as second:
        first.write_text("first")
        second.write_text("second")
        assert first != second
    assert path.read_text() == "first"  # which was put in place last
    assert list(path.parent.iterdir()) == [path]


def test_every_kind_of_file_has_one_writer(path):
    checkpoint = path.with_suffix(".pt")
    for make in (
        lambda: DensityWriter(path, overwrite=True),
        lambda: TrainingFile(checkpoint, {}, overwrite=True),
    ):
        with make(), pytest.raises(StoreError, match="another process is writing"):
            make()
        make().close()


def test_file_with_the_name_of_the_lock_is_kept(path):
    other = path.with_name(f".{path.name}.lock")
    other.write_text("precious")
    with pytest.raises(StoreError, match=r"has the name of .* lock .* move it away"):
        create(path)
    assert other.read_text() == "precious"
    assert not path.exists()


def test_any_hdf5_program_respects_the_lock(path):
    with create(path), pytest.raises(BlockingIOError):
        h5py.File(path, "r+", locking=True)


def test_file_system_without_locks(path, monkeypatch):
    def unsupported(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with create(path) as writer:
        writer.write(0, spectrum(0))
    resume(path).close()
    assert len(load(path)) == 1


# Resuming


def test_resume_names_what_differs(full):
    before = full.read_bytes()
    with pytest.raises(StoreError) as error:
        resume(full, identity={**IDENTITY, "batch": 32, "extra": 1})
    for part in ("batch (4 in the file, 32 now)", "extra (None in the file, 1 now)", "--out"):
        assert part in str(error.value)
    assert "mlp3" not in str(error.value)
    assert full.read_bytes() == before


def counted(batches):
    indices = np.arange(batches * 2).reshape(batches, 2)
    return {"identity": {**IDENTITY, "batches": batches}, "batch_indices": indices}


def test_a_file_is_extended_by_more_batches(path):
    with create(path, **counted(2)) as writer:
        writer.write(1, spectrum(1))
    with resume(path, **counted(5)) as writer:
        assert writer.done.tolist() == [False, True, False, False, False]
        writer.write(4, spectrum(4))
    found = load(path)
    assert found.planned == 5
    assert np.array_equal(found.eigenvalues, [spectrum(r).eigenvalues for r in (1, 4)])
    assert found.batch_indices.tolist() == [[2, 3], [8, 9]]
    assert found.provenance.notes[-1] == "extended from 2 rows to 5"
    with pytest.raises(StoreError, match=r"batches \(5 in the file, only 2 now\)"):
        resume(path, **counted(2))
    with pytest.raises(StoreError, match="other batches than the first 5"):
        resume(path, **{**counted(6), "batch_indices": np.zeros((6, 2))})
    assert load(path).planned == 5


def test_a_full_disk_loses_nothing_of_a_file_that_is_extended(path, monkeypatch):
    with create(path, **counted(2)) as writer:
        writer.write(1, spectrum(1))
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(DISK_FULL))
        with pytest.raises(StoreError, match="No space left"):
            resume(path, **counted(5))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_resume_of_a_rewritten_layout_is_refused(full, tmp_path):
    """Another program may store the rows compressed: readable, but rows have no fixed place."""
    packed = tmp_path / "packed.h5"
    with h5py.File(full) as old, h5py.File(packed, "w") as new:
        new.attrs.update(old.attrs)
        for name in old:
            new.create_dataset(name, data=old[name][:], chunks=True)
    assert np.array_equal(load(packed).eigenvalues, load(full).eigenvalues)
    with pytest.raises(StoreError, match="stored anew"):
        resume(packed)


def test_row_of_the_wrong_size_is_refused(path):
    with create(path) as writer:
        before = path.read_bytes()
        with pytest.raises(StoreError, match="does not fit"):
            writer.write(0, spectrum(0, P + 1))
        with pytest.raises(StoreError, match="does not fit"):
            writer.write(BATCHES, spectrum(0))
    assert path.read_bytes() == before


# Full disks


def test_disk_full_at_creation(full, monkeypatch):
    def refuse(*args):
        raise DISK_FULL

    before = full.read_bytes()
    monkeypatch.setattr(os, "fsync", refuse)
    for path in (full, full.with_name("new.h5")):
        with pytest.raises(StoreError, match=f"writing .*{path.name} failed: No space") as error:
            create(path, overwrite=True)
        assert error.value.exit_code == 1
    assert full.read_bytes() == before
    assert os.listdir(full.parent) == [full.name]


@pytest.mark.parametrize("verb", ["pwrite", "fsync"])
def test_disk_full_during_the_run(path, monkeypatch, verb):
    def refuse(*args):
        raise DISK_FULL

    with create(path) as writer:
        writer.write(0, spectrum(0))
        with monkeypatch.context() as patch:
            patch.setattr(os, verb, refuse)
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
    from store_samples import create, spectrum
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    writer = create(Path(sys.argv[1]), 2000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
    try:
        for row in range(3):
            writer.write(row, spectrum(row, 2000))
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_a_disk_that_is_really_full_during_the_run(path):
    """A limit on file sizes is a full disk that needs no privilege."""
    with create(path, dimension=2000):
        pass
    with h5py.File(path) as file:
        limit = file["hessian_evals"].id.get_offset() + 2000 * 8 + 100  # within the second row
    path.unlink()
    process = python(LIMITED, path, Path(__file__).parent, limit)
    out, err = process.communicate()
    said = {-signal.SIGSEGV: "crashed"}.get(process.returncode, out)
    assert said.startswith("WriteError writing batch "), err
    assert said.endswith("File too large\n")
    assert (process.returncode, err) == (0, "")
    found = load(path)
    for row, item in enumerate(found):
        assert np.array_equal(item.eigenvalues, spectrum(row, 2000).eigenvalues)
    with resume(path) as writer:
        for row in np.flatnonzero(~writer.done):
            writer.write(int(row), spectrum(int(row), 2000))
    assert len(load(path)) == BATCHES
