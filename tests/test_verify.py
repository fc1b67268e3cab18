"""``hessrmt info --verify``: each kind of file as it was written, or its damage by name."""

import json
from zipfile import ZipFile

import h5py
import numpy as np
import pytest
from kind_files import CHECKED, READERS, UNCHECKED, write_all

from hessrmt.errors import StoreError
from hessrmt.runs.verify import verify
from hessrmt.store.search import Record, SearchFile
from hessrmt.store.spectra import CHECKSUM, load


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verified")
    write_all(folder)
    return folder


def damaged_copy(folder, kind, tmp_path, bit, of=None):
    raw = bytearray((folder / kind).read_bytes() if of is None else of)
    raw[bit // 8] ^= 1 << bit % 8
    path = tmp_path / kind
    path.write_bytes(bytes(raw))
    return path


@pytest.mark.parametrize("kind", READERS)
def test_whole_files_are_verified_and_what_carries_nothing_says_so(folder, kind):
    found = verify(folder / kind)
    assert found.damage == []
    assert found.state == ("no checksums" if kind in UNCHECKED else "verified")
    if kind == "spectra.h5":
        assert found.checked == {"seal": 1, "row": len(load(folder / kind))}
        assert found.words.startswith(f"verified: 1 seal, {found.checked['row']} row")


@pytest.mark.parametrize("kind", [kind for kind in CHECKED if kind.endswith(".h5")])
def test_every_flipped_bit_of_our_hdf5_files_is_damage(folder, tmp_path, kind):
    size, draw = (folder / kind).stat().st_size, np.random.default_rng(1)
    for bit in draw.integers(0, 8 * size, 12).tolist():
        found = verify(damaged_copy(folder, kind, tmp_path, bit))
        assert found.state == "damaged", bit
        assert all("\n" not in words for words in found.damage)


@pytest.mark.parametrize("kind", ["net.pt", "weights.pt", "weights.npz", "images-idx3-ubyte.gz"])
def test_damaged_numbers_of_packed_files_are_named(folder, tmp_path, kind):
    size = (folder / kind).stat().st_size
    states = {
        verify(damaged_copy(folder, kind, tmp_path, bit)).state
        for bit in range(4 * size, 4 * size + 64)  # in the middle
    }
    assert states == {"damaged"}
    path = tmp_path / kind
    path.write_bytes((folder / kind).read_bytes()[: size // 2])
    assert verify(path).state == "damaged"


def test_a_damaged_row_is_named_and_the_others_are_counted(folder, tmp_path):
    with h5py.File(folder / "spectra.h5") as file:
        place = file["hessian_evals"].id.get_offset()
        rows = len(file[CHECKSUM])
    found = verify(damaged_copy(folder, "spectra.h5", tmp_path, 8 * place + 4))
    assert found.damage == ["row 0 doesn't match its checksum or can't be a spectrum"]
    assert found.checked == {"seal": 1, "row": rows - 1}


def test_a_file_that_another_program_changed_has_lost_its_seal(folder, tmp_path):
    for kind in ("spectra.h5", "density.h5"):
        path = tmp_path / kind
        path.write_bytes((folder / kind).read_bytes())
        with h5py.File(path, "r+") as file:
            file.attrs["added"] = 1
        found = verify(path)
        assert found.state == "damaged"
        assert "its seal is missing" in found.words


def test_searches_count_whole_records(tmp_path):
    path = tmp_path / "a.search"
    with SearchFile(path) as kept:
        assert list(kept.read()) == []
        for number in range(3):
            kept.append(Record({"number": number}, [np.arange(5.0)]))
    assert verify(path).words == "verified: 3 records"
    path.write_bytes(path.read_bytes()[:-8])
    assert verify(path).words.startswith("verified: 2 records; ")


@pytest.mark.parametrize("kind", ["|O", "<M8[s]", "<f8"])
def test_a_search_takes_no_memory_for_what_it_only_claims(tmp_path, kind):
    path = tmp_path / "a.search"
    head = {"numbers": {}, "arrays": [[kind, [1 << 40]]], "crc32": 0}
    path.write_bytes(b"hessrmt/search 1\n" + json.dumps(head).encode() + b"\n" + bytes(64))
    with SearchFile(path) as kept:
        assert list(kept.read()) == []


def test_the_command_tells_all_files_and_ends_with_1(folder, tmp_path, cli, refused):
    (tmp_path / "good.h5").write_bytes((folder / "spectra.h5").read_bytes())
    (tmp_path / "table.csv").write_bytes((folder / "table.csv").read_bytes())
    bad = damaged_copy(folder, "density.h5", tmp_path, 8000)
    well = cli("info", "--verify", "good.h5", "table.csv")
    assert (well.returncode, well.stderr) == (0, "")
    assert "good.h5: verified: 1 seal, " in well.stdout
    assert "table.csv: no checksums in this format" in well.stdout
    ill = cli("info", "good.h5", bad.name, "--verify")
    assert ill.returncode == 1
    assert "good.h5: verified" in ill.stdout
    assert "density.h5: damaged: " in ill.stdout
    said = cli("info", "--verify", "--json", "good.h5", bad.name)
    assert said.returncode == 1
    found = json.loads(said.stdout)
    assert found["damaged"] == 1
    assert [item["state"] for item in found["files"]] == ["verified", "damaged"]
    refused(["info", "--verify"], ["names of files"])
    refused(["info", "--verify", "nothing.h5"], ["nothing.h5 does not exist"])
    refused(["info", "good.h5", "table.csv"], ["--verify"])
    with pytest.raises(StoreError, match="is no file"):
        verify(tmp_path)


def test_a_pickle_that_ends_too_early_is_damage_with_a_reason(tmp_path):
    path = tmp_path / "early.pt"
    with ZipFile(path, "w") as archive:
        archive.writestr("early/data.pkl", b"\x80\x02")
    assert verify(path).damage == ["EOFError"]
