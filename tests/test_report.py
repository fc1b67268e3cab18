"""Reports: one page, complete, offline, with every name escaped."""

import json
import re
import shlex
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

import hessrmt as hr
from hessrmt.errors import ConfigError, StoreError
from hessrmt.runs.report import report

EVIL = "<script>alert(1)</script> & more"


class Page(HTMLParser):
    """Tags that were opened and not closed, addresses that would be fetched, text."""

    VOID = ("meta", "br", "img", "link", "input")

    def __init__(self, text):
        super().__init__()
        self.open, self.fetched, self.text, self.tags = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            outside = name in {"src", "href", "xlink:href", "data"} and not value.startswith("#")
            self.fetched += [value] * outside

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    torch.manual_seed(0)
    x, y = torch.randn(30, 6), torch.arange(30) % 3
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    problem = hr.Problem(model, "cross-entropy", (x, y))
    hr.spectrum(problem).save(folder / "one.h5")
    hr.density(problem, probes=2, steps=10, top=2).save(folder / "density.h5")
    hr.landscape(problem, 2, points=5).save(folder / "landscape.h5")
    tracker = hr.Tracker(problem, every=1, out=folder / "track.h5")
    tracker(0, lr=0.1)
    tracker(1, lr=0.1)
    tracker.close()
    levels = [np.sort(np.random.default_rng(i).normal(size=60)) for i in range(2)]
    hr.levels.analyze(levels, surrogates=20).save(folder / "levels.h5")
    hr.capacity.analyze({"layer": np.random.default_rng(0).normal(size=(40, 60))}).save(
        folder / "capacity.h5"
    )
    return folder


NAMES = ("one", "density", "landscape", "track", "levels", "capacity")


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_file(files, name):
    page = Page(report([files / f"{name}.h5"], surrogates=20))
    assert page.open == []
    assert not page.fetched
    assert "svg" in page.tags or name == "levels"
    assert ("Laws" in page.text) == (name in {"one", "levels"})
    assert f"{name}.h5" in page.text
    assert "What the words mean" in page.text
    assert not re.search(r"``|:\w+:`", " ".join(page.text))  # markup of docstrings


def test_several_files_side_by_side(files):
    text = report([files / f"{name}.h5" for name in NAMES], EVIL, surrogates=0)
    page = Page(text)
    assert page.open == []
    assert not page.fetched
    assert page.tags.count("svg") >= len(NAMES)
    assert "Side by side" in page.text
    assert EVIL not in text
    assert EVIL in page.text


def test_names_from_files_are_escaped(files):
    path = files / "<b>one & two.h5"
    shutil.copy(files / "one.h5", path)
    text = report([path], surrogates=0)
    assert "<b>one" not in text
    assert path.name in Page(text).text


def test_the_numbers_are_those_of_the_file(files):
    spectrum = hr.load(files / "one.h5")[0]
    page = Page(report([files / "one.h5"], surrogates=0))
    for number in (spectrum.eigenvalues[-1], spectrum.loss, spectrum.noise_floor):
        assert f"{number:.6g}" in page.text
    assert str(spectrum.rank) in page.text


def test_what_cannot_be_reported(files, tmp_path):
    with pytest.raises(ConfigError, match="no file"):
        report([])
    with pytest.raises(StoreError):
        report([tmp_path / "missing.h5"])


def test_the_command_names_what_differs_from_the_defaults(cli, tmp_path):
    made = "spectrum --model logistic --batches 1 --batch 8 --out run.h5"
    assert cli(*made.split()).returncode == 0
    found = json.loads(cli("report", "run.h5", "--surrogates", 0, "--json").stdout)
    assert found == {"file": "report.html", "files": ["run.h5"]}
    text = (tmp_path / "report.html").read_text()
    (shown,) = re.findall(r"<pre>(.*?)</pre>", text)
    again = cli(*shlex.split(shown)[1:], "--out", "again.h5")
    assert again.returncode == 0
    one, two = hr.load(tmp_path / "run.h5"), hr.load(tmp_path / "again.h5")
    assert one.eigenvalues.tolist() == two.eigenvalues.tolist()
    assert cli("report", "run.h5").returncode == 2  # report.html is there


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
def test_a_browser_shows_it_without_a_complaint(files, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(report([files / f"{name}.h5" for name in NAMES], surrogates=0))
    words = (
        "--headless --no-sandbox --disable-gpu --enable-logging=stderr --virtual-time-budget=3000"
    )
    for width in (400, 1400):
        how = [*words.split(), f"--window-size={width},2000", f"--user-data-dir={tmp_path}/{width}"]
        script = "document.title=document.documentElement.scrollWidth+' '+innerWidth"
        wide = path.read_text().replace("</body>", f"<script>{script}</script></body>")
        (tmp_path / "wide.html").write_text(wide)
        done = subprocess.run(
            ["chromium", *how, "--dump-dom", (tmp_path / "wide.html").as_uri()],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert ":CONSOLE" not in done.stderr
        content, inner = map(int, re.search(r"<title>(\d+) (\d+)</title>", done.stdout).groups())
        assert content <= inner  # nothing sticks out at the side
