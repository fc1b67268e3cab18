"""Damaged files are refused or read as written; nothing hangs, crashes or takes memory."""

import pytest
from kind_files import CHECKED, READERS, write_all
from mutations import Reader, damaged, sweep


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    write_all(folder)
    return folder


@pytest.fixture(scope="module")
def reader(folder):
    reader = Reader(folder)
    yield reader
    reader.close()


def check(folder, reader, kind, files):
    counts, wrong = sweep(folder, kind, files, reader)
    assert not wrong
    if kind in CHECKED:
        assert {outcome for _, outcome in counts} <= {"refused", "equal", "rows left out"}
    return counts


@pytest.mark.parametrize("kind", ["spectra.h5", "density.h5", "net.pt"])
def test_a_sample_of_damaged_files(folder, reader, kind):
    whole = (folder / kind).read_bytes()
    counts = check(folder, reader, kind, damaged(whole, 25, 25, seed=1, step=29))
    assert counts["flip", "refused"] > 0
    assert counts["zeroed", "refused"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", READERS)
def test_every_kind_of_damage(folder, reader, kind):
    """The whole: ``python tests/robustness/mutations.py``."""
    whole = (folder / kind).read_bytes()
    check(folder, reader, kind, damaged(whole, 100, 100, seed=2, step=4))


def test_rows_that_are_damaged_are_named_and_computed_again(folder, tmp_path, cli, monkeypatch):
    import h5py
    import numpy as np

    import hessrmt as hr
    from hessrmt.errors import HessrmtWarning

    whole = folder / "spectra.h5"
    with h5py.File(whole) as file:
        place = file["hessian_evals"].id.get_offset()
    raw = bytearray(whole.read_bytes())
    raw[place + 3] ^= 16
    (tmp_path / "s.h5").write_bytes(bytes(raw))
    (tmp_path / "tiny.npz").write_bytes((folder / "tiny.npz").read_bytes())
    with pytest.warns(HessrmtWarning, match=r"s\.h5: row 0 is damaged and left out"):
        found = hr.load(tmp_path / "s.h5")
    assert (len(found), found.damaged) == (1, (0,))
    assert "warning: s.h5: row 0 is damaged" in cli("info", "s.h5").stderr
    arguments = "spectrum --model logistic --data tiny.npz --device cpu --batch 10 --batches 2"
    again = cli(*arguments.split(), "--out", "s.h5", "--resume")
    assert again.returncode == 0, again.stderr
    assert np.array_equal(hr.load(tmp_path / "s.h5").eigenvalues, hr.load(whole).eigenvalues)
    with np.load(tmp_path / "s.h5.damaged-0.npz") as kept:
        assert kept["hessian_evals"].tobytes() == bytes(raw[place : place + 21 * 8])
