"""Every kind of file that hessrmt writes is loaded, described, drawn and reported; no other is."""

import csv
import json
import shutil

import h5py
import numpy as np
import pytest
import torch
from kind_files import NET, write_stored
from store_samples import create, spectrum

import hessrmt as hr
from hessrmt.errors import HessrmtError
from hessrmt.runs.stored import facts
from hessrmt.store.search import Record, SearchFile

KINDS = {
    "spectra.h5": ("spectra", "Spectra"),
    "blocks.h5": ("spectra", None),
    "density.h5": ("density", "DensityResult"),
    "net.pt": ("training checkpoint", "Checkpoint"),
    "history.h5": ("training history", "Spectra"),
    "simulated.h5": ("spectra", "Spectra"),
    "landscape.h5": ("result", "Landscape"),
    "levels.h5": ("result", "LevelStatistics"),
    "track.h5": ("result", "Track"),
    "published.h5": ("spectra of the published code", "Spectra"),
}
"""File to the words on its kind, and what `hr.load` makes of it; None where it asks for a block."""


def some(names, slow):
    """Names as parameters, some of which take longer."""
    slow = slow.split()
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in slow)) for name in names]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with a file of each kind."""
    folder = tmp_path_factory.mktemp("kinds")
    write_stored(folder)
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_recognised(written, name):
    words, kind = KINDS[name]
    found = facts(written / name)
    assert (found["file"], found["kind"]) == (str(written / name), words)
    json.dumps(found)
    if kind is None:
        with pytest.raises(HessrmtError, match="blocks '1'"):
            hr.load(written / name, "2")
        assert len(hr.load(written / name, "1")) == len(hr.load(written / name)["1"]) == 2
    else:
        assert type(hr.load(written / name)).__name__ == kind


@pytest.mark.parametrize("name", some(KINDS, "simulated.h5 landscape.h5 levels.h5 history.h5"))
def test_every_kind_is_shown_drawn_and_reported(written, name, cli, tmp_path):
    shutil.copy(written / name, tmp_path)
    info = cli("info", name)
    assert info.returncode == 0
    assert f"kind: {KINDS[name][0]}\n" in info.stdout
    assert cli("plot", name, "--out", "drawn.svg").returncode == 0
    assert "</svg>" in (tmp_path / "drawn.svg").read_text()
    if name in {"net.pt", "blocks.h5"}:  # others: test_report.py
        assert cli("report", name, "--surrogates", 0).returncode == 0
        text = (tmp_path / "report.html").read_text()
        assert "<svg" in text
        assert ("blocks.h5, 1</h2>" in text) == (name == "blocks.h5")


def test_facts_are_those_of_the_run(written):
    about = facts(written / "spectra.h5")
    loaded = hr.load(written / "spectra.h5")
    assert about["rank"] == [item.rank for item in loaded]
    assert about["parameters"] == loaded[0].dimension == 21  # 6 inputs and a bias, 3 classes
    assert (about["batches done"], about["config batch"]) == (2, 10)
    assert facts(written / "history.h5")["epochs"] == [0, 1, 2]
    assert facts(written / "blocks.h5")["rank of 1"] == about["rank"]  # the only layer
    assert facts(written / "published.h5")["batches done"] == 2
    assert facts(written / "density.h5")["samples"] == 60
    assert facts(written / "landscape.h5")["result"] == "Landscape"
    assert facts(written / "track.h5")["steps"] == [0]


def test_a_file_without_a_finished_row(tmp_path, cli):
    create(tmp_path / "begun.h5").close()
    assert facts(tmp_path / "begun.h5")["batches done"] == 0
    assert cli("info", "begun.h5").returncode == 0
    with pytest.raises(HessrmtError, match="no spectrum"):
        hr.load(tmp_path / "begun.h5").plot()
    for command in ("plot", "report"):
        done = cli(command, "begun.h5")
        assert done.returncode == 2
        assert "no finished batch yet" in done.stderr


@pytest.mark.parametrize("share", [0.4, 0.95])
@pytest.mark.parametrize("name", KINDS)
def test_half_a_file_is_refused_in_one_sentence(written, name, share, tmp_path, refused):
    whole = (written / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(HessrmtError):
        hr.load(tmp_path / name)
    for command in ("info", "plot", "report"):
        assert len(refused([command, name], [name]).splitlines()) == 1


@pytest.fixture
def foreign(tmp_path):
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["x"] = 1
    for name, schema, version in (("newer", "hessrmt/result", 9), ("unknown", "hessrmt/x", 1)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file.attrs.update(schema=schema, schema_version=version)
    with h5py.File(tmp_path / "text.h5", "w") as file:
        file["hessian_evals"] = np.bytes_(b"none")
    with SearchFile(tmp_path / "search.h5", every=0) as search:
        assert not list(search.read())
        search.append(Record({"n": 1}, [np.ones(3)]))
    torch.save({"weight": torch.ones(2)}, tmp_path / "weights.pt")
    (tmp_path / "text.txt").write_text("no HDF5")
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    (tmp_path / "folder.h5").mkdir()


FOREIGN = {
    "foreign.h5": "no schema",
    "newer.h5": "version 9",
    "unknown.h5": "'hessrmt/x'",
    "text.h5": "real numbers",
    "search.h5": "not finished",
    "weights.pt": "not a checkpoint written by hessrmt",
    "text.txt": "HDF5",
    "table.csv": "table for other programs",
    "folder.h5": "directory",
    "none.h5": "no file",
    "none.pt": "does not exist",
}


@pytest.mark.usefixtures("foreign")
@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_none_of_ours_is_refused_in_one_sentence(name, tmp_path, refused):
    with pytest.raises(HessrmtError):
        hr.load(tmp_path / name)
    for command in ("info", "plot", "report"):
        assert len(refused([command, name], [name, FOREIGN[name]]).splitlines()) == 1


# What reporting commands print


NAME = "a|b\nc"
"""A name of a column of a table that Markdown would take for two."""

REPORTING = {
    "spectrum": f"spectrum {NET} --batch 10 --batches 2 --overwrite --out new.h5",
    "blocks": f"spectrum {NET} --batch 10 --batches 2 --blocks layer --overwrite --out new.h5",
    "train": f"train {NET} --batch 16 --epochs 2 --overwrite --out new.pt",
    "levels": "levels spectra.h5 --surrogates 0",
    "density": f"density {NET} --batch 60 --steps 8 --probes 2 --top 2 --overwrite --out new.h5",
    "landscape": f"landscape {NET} --batch 60 --points 5 --overwrite --out new.h5",
    "simulate": "simulate --samples 3 --dimension 20 --overwrite --out new.h5",
    "capacity": "capacity net.pt --min-size 1",
    "several": "capacity net.pt evil.pt --min-size 1",
    "normalize": f"normalize {NET} --checkpoint net.pt",
    "reproduce": "reproduce",
    "report": "report net.pt --overwrite --out new.html",
    "info": "info",
    "info of a file": "info spectra.h5",
    "data list": "data list",
}
QUICK = {"info", "info of a file", "data list"}
"""Those that print nothing beside the JSON, on standard error neither."""


@pytest.fixture
def place(written, tmp_path):
    for path in written.iterdir():
        shutil.copy(path, tmp_path)
    torch.save({NAME: torch.randn(8, 6), "other|": torch.randn(8, 6)}, tmp_path / "evil.pt")
    return tmp_path


def tables(text):
    """The tables in Markdown: of each its rows, of each of those its cells."""
    found, last = [], False
    for line in text.splitlines():
        if line.startswith("|"):
            cells = line.replace(r"\|", "").strip("|").split("|")
            found = [*found[:-1], [*found[-1], cells]] if last else [*found, [cells]]
        last = line.startswith("|")
    return found


@pytest.mark.parametrize("name", some(REPORTING, "spectrum levels landscape several"))
def test_what_reporting_commands_give_to_other_programs(place, cli, name):
    words = REPORTING[name].split()
    done = cli(*words, "--markdown", "--csv", "table.csv")
    assert done.returncode == 0, done.stderr
    assert not {"\x1b", "│", "─", "━"} & set(done.stdout)  # what only a terminal shows
    assert bool(done.stdout.strip()) == (name != "report")  # which prints nothing
    for head, rule, *rows in tables(done.stdout):
        assert {cell.strip() for cell in rule} == {"---"}
        assert {len(row) for row in [head, rule, *rows]} == {len(head)}
    with (place / "table.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) > 1 or name == "train"  # without a history there is no table
    assert len({len(row) for row in rows}) <= 1
    done = cli(*words, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert isinstance(json.loads(done.stdout), dict)
    assert not (done.stderr and name in QUICK)


def test_names_are_escaped_in_tables(place, cli):
    done = cli("capacity", "evil.pt", "--min-size", 1, "--markdown", "--csv", "table.csv")
    assert done.returncode == 0, done.stderr
    assert r"a\|b\\nc" in done.stdout
    with (place / "table.csv").open(newline="") as file:
        assert NAME.replace("\n", "\\n") in {row["name"] for row in csv.DictReader(file)}


def test_json_and_markdown_exclude_each_other(place, refused):
    refused(["info", "--json", "--markdown"], ["give one"])


def test_saved_spectrum_is_loaded(tmp_path):
    spectrum(0).save(tmp_path / "one.h5")
    assert facts(tmp_path / "one.h5")["batches done"] == 1
