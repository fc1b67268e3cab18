"""Files that are written: which names are refused, and what happens to links."""

import os
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from store_samples import BATCHES, SIZE, P, create, resume, spectrum

from hessrmt.errors import ConfigError, HessrmtWarning, StoreError, WriteError
from hessrmt.files import new_file, require_file, require_new
from hessrmt.plots.files import draw_each
from hessrmt.plots.style import Picture
from hessrmt.store.spectra import load


@pytest.mark.parametrize("way", ["resume", "overwrite"])
def test_a_link_stays_one_and_what_it_leads_to_is_replaced(tmp_path, way):
    (tmp_path / "far").mkdir()
    real, link = tmp_path / "far" / "real.h5", tmp_path / "link.h5"
    link.symlink_to(real)
    with create(link) as writer:  # nothing is there yet
        writer.write(0, spectrum(0))
    indices = np.arange(5 * SIZE).reshape(5, SIZE)
    with create(link, batch_indices=indices, **{way: True}) as writer:
        writer.write(4, spectrum(4))
        with pytest.raises(StoreError, match="another process"):
            resume(real)
    assert link.is_symlink()
    assert load(real).planned == load(link).planned == 5
    assert os.listdir(real.parent) == ["real.h5"]


@pytest.mark.parametrize("way", ["itself", "link", "link to a link", "folder"])
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/stdout.png", "/proc/self/fd/1", "/dev/new"])
def test_names_of_the_system_are_refused_whatever_they_lead_to(tmp_path, name, way):
    """Only looked at: nothing is ever written there."""
    file, folder = tmp_path / "a", os.path.dirname(name)
    if way == "itself":
        file = tmp_path / name
    elif way == "folder":
        (tmp_path / "there").symlink_to(folder)
        file = tmp_path / "there" / os.path.basename(name)
    else:
        file.symlink_to(name)
        if way != "link":
            (tmp_path / "b").symlink_to("a")
            file = tmp_path / "b"
    with pytest.raises(StoreError, match="is a device or a pipe"):
        require_new(file, may_exist=True)
    with pytest.raises(ConfigError, match=r"is a device or a pipe|a folder that doesn't exist"):
        require_file(file, "--csv")
    with pytest.raises(StoreError, match="is a device or a pipe"):
        new_file(file).__enter__()


def test_shared_memory_and_links_that_go_round_are_no_devices(tmp_path):
    require_new(tmp_path / "/dev/shm/hessrmt-test.h5", may_exist=False)
    (tmp_path / "a").symlink_to("a")
    require_new(tmp_path / "a", may_exist=False)


@pytest.mark.parametrize("batches", [BATCHES, BATCHES + 2])
@pytest.mark.parametrize("block", [None, "a/b"])
def test_what_a_damaged_row_holds_is_kept_also_when_the_file_grows(tmp_path, batches, block):
    path = tmp_path / "s.h5"
    dimension = P if block is None else {block: P}
    found = {
        row: spectrum(row) if block is None else {block: spectrum(row)} for row in range(batches)
    }
    with create(path, dimension=dimension) as writer:
        for row in range(BATCHES):
            writer.write(row, found[row])
    for time in ("", "-2", "-3"):
        raw = bytearray(path.read_bytes())
        place = raw.find(spectrum(1).eigenvalues.tobytes())
        raw[place + 2] ^= 1
        path.write_bytes(bytes(raw))
        indices = np.arange(batches * SIZE).reshape(batches, SIZE)
        grows = batches > BATCHES and not time
        said = pytest.warns(HessrmtWarning, match="row 1 is damaged") if grows else nullcontext()
        with said:
            writer = resume(path, dimension=dimension, batch_indices=indices)
        with writer:
            assert writer.done[:BATCHES].tolist() == [True, False, True]
            writer.write(1, found[1])
        name = "hessian_evals" if block is None else "blocks.a.b.hessian_evals"
        with np.load(tmp_path / f"s.h5.damaged-1{time}.npz") as kept:
            assert kept[name].tobytes() == bytes(raw[place : place + 8 * P])
            assert {value.dtype.kind for value in kept.values()} == set("fiuS")
    assert len(list(tmp_path.glob("*.npz"))) == 3


@pytest.mark.parametrize("writable", [True, False])
def test_rows_outlive_their_folder(tmp_path, monkeypatch, writable):
    """Written to where the command runs, if it can be written to."""
    (tmp_path / "gone").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    writer = create(Path("../gone/s.h5"))
    writer.write(0, spectrum(0))
    shutil.rmtree(tmp_path / "gone")
    if not writable:
        shutil.rmtree(tmp_path / "here")
    said = "are in s.h5.rows-" if writable else "cannot be kept elsewhere: No such file"
    with pytest.raises(WriteError, match=rf"^../gone/s\.h5 was removed .*{said}"):
        writer.write(1, spectrum(1))
    writer.close()
    if not writable:
        with pytest.raises(StoreError, match=r"^cannot write s\.h5: No such file"):
            create(Path("s.h5"))
    if writable:
        (kept,) = Path().glob("s.h5.rows-*.h5")
        assert load(kept).eigenvalues.shape == (2, P)


def test_pictures_replace_links_in_their_folder_not_what_these_lead_to(tmp_path):
    """Nobody has given these names, and one may lead to what the command reads."""
    (tmp_path / "s.h5").write_text("precious")
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.svg").symlink_to("../s.h5")
    draw_each({"a": Picture}, tmp_path / "p", "svg")
    assert (tmp_path / "s.h5").read_text() == "precious"
    assert "<svg" in (tmp_path / "p" / "a.svg").read_text()
