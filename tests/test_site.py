"""The site: every public name and command has its entry, links lead somewhere, code runs.

What needs mkdocs (`pip install ".[docs]"`) is marked slow; .ci/run does it.
"""

import copy
import importlib
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import numpy as np
import pytest
import torch
import yaml
from test_readme import blocks, commands
from torch import nn
from typer.testing import CliRunner

import hessrmt as hr
from hessrmt.cli.app import app
from hessrmt.config import TrainConfig
from hessrmt.problems import data

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = {page.relative_to(DOCS).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
PACKAGES = ("capacity", "ensembles", "generalization", "levels", "lossmodel", "theory")


def nav():
    """Every page that mkdocs.yml puts into the menu."""
    found = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    while not all(isinstance(item, str) for item in found):
        parts = [[item] if isinstance(item, str) else next(iter(item.values())) for item in found]
        found = [page for part in parts for page in ([part] if isinstance(part, str) else part)]
    return found


def object_of(path):
    """What a path stands for in mkdocstrings, where a submodule hides what is called like it."""
    found, parts = importlib.import_module("hessrmt"), path.split(".")[1:]
    name = "hessrmt"
    for part in parts:
        name += f".{part}"
        submodule = isinstance(found, ModuleType) and hasattr(found, "__path__") and find_spec(name)
        found = importlib.import_module(name) if submodule else getattr(found, part)
    return found


def documented():
    """Every object that has an entry in the reference, by the path of its entry."""
    return {
        path: object_of(path)
        for text in TEXTS.values()
        for path in re.findall(r"^::: (hessrmt[\w.]+)$", text, re.MULTILINE)
    }


def public(module):
    """Names that a package gives to its users."""
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    ]
    return {f"{module.__name__}.{name}": getattr(module, name) for name in names}


def test_every_public_name_has_its_entry():
    wanted = public(hr)
    for name in PACKAGES:
        assert f"# hessrmt.{name}\n" in TEXTS[f"reference/{name}.md"]
        assert wanted.pop(f"hessrmt.{name}") is importlib.import_module(f"hessrmt.{name}")
        wanted |= public(importlib.import_module(f"hessrmt.{name}"))
    assert len(wanted) > 150
    there = {id(value) for value in documented().values()}
    missing = [name for name, value in wanted.items() if id(value) not in there]
    assert not missing, "add `::: NAME` to a page in docs/reference"


def test_every_command_has_its_page():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        made = importlib.import_module("site_pages").command_pages()
    finally:
        sys.path.pop(0)
    top = CliRunner().invoke(app, ["--help"])
    assert top.exit_code == 0
    for name in re.findall(r"^│ ([a-z]+) ", top.output, re.MULTILINE):
        assert any(re.search(rf"commands/{name}(-\w+)?\.md$", page) for page in made), name
    for page, text in made.items():
        assert page in nav(), f"add {page} to mkdocs.yml"
        name, *_ = re.findall(r"^# (hessrmt .*)$", text, re.MULTILINE)
        (example,) = (words for block in blocks(text, "bash") for words in commands(block.text))
        assert " ".join(example).startswith(name)
        # --help of the command itself has every option of the table
        shown = CliRunner().invoke(app, [*name.split()[1:], "--help"], env={"COLUMNS": "200"})
        options = re.findall(r"^\| `(--[\w-]+)`", text, re.MULTILINE)
        assert all(option in shown.output for option in options), name


def test_every_page_is_in_the_menu():
    assert set(TEXTS) <= set(nav())
    assert len(nav()) == len(set(nav()))


def targets(page):
    """Links of a page of docs/ to files: text of the link, and the file."""
    prose = re.sub(r"^```.*?^```", "", TEXTS[page], flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", prose):
        yield link, (DOCS / page).parent / link


@pytest.mark.parametrize("page", TEXTS)
def test_links_to_files(page):
    # pages that are made when the site is built: of commands, bibliography, changes
    made = {DOCS / name for name in nav()} - set(PAGES)
    for link, path in targets(page):
        assert path.exists() or Path(os.path.normpath(path)) in made, link


@pytest.mark.parametrize("page", TEXTS)
def test_commands_parse(page):
    for block in blocks(TEXTS[page], "bash"):
        for words in commands(block.text):
            result = CliRunner().invoke(app, [*words[1:], "--help"])
            assert result.exit_code == 0, f"{page}, line {block.line}: {' '.join(words)}"


def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    return hr.Problem(model, "cross-entropy", (torch.randn(40, 6), torch.randint(0, 3, (40,))))


def histories():
    for name in ("mlp3", "lenet5"):
        words = ["train", "--model", "logistic", "--epochs", "5", "--history-epochs", "0,5"]
        words += ["--out", f"{name}.pt", "--history", f"{name}.h5", "-q"]
        assert CliRunner().invoke(app, words).exit_code == 0
    return {"hr": hr}


def trained():
    torch.manual_seed(0)
    x, y = data.load("mnist", "test").tensors(slice(200), torch.float32)
    layers = nn.Linear(784, 8, bias=False), nn.ReLU(), nn.Linear(8, 10, bias=False)
    model = nn.Sequential(nn.Flatten(), *layers)
    descent = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(200):
        descent.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        descent.step()
    return {"hr": hr, "model": model, "x": x, "y": y, "test_loader": [(x, y)]}


def averaged():
    layers = nn.Linear(784, 4), nn.BatchNorm1d(4), nn.Linear(4, 10)
    found = {"model": nn.Sequential(nn.Flatten(), *layers), "loss": nn.CrossEntropyLoss()}
    found |= {"other": copy.deepcopy(found["model"]), "data": data.load("mnist", "test")}
    settings = TrainConfig(epochs=16, batch=500, decay_start=10, decay_end=15)
    return found | {"settings": settings, "device": torch.device("cpu"), "steps_per_epoch": 4}


GIVEN = {
    "results.md": lambda: {"problem": problem()},
    "large-networks.md": lambda: {"hr": hr, "problem": problem()},
    "normalize.md": trained,
    "training-history.md": histories,
    "gallery.md": histories,
    "iterate-averaging.md": averaged,
    "training-budget.md": lambda: {
        "epochs": np.array([5, 10, 20, 40, 80]),
        "best_losses": 0.1 + np.array([5.0, 10, 20, 40, 80]) ** -0.5,
        "standard_errors": np.full(5, 0.01),
    },
}
"""What a page takes for given: the names that its code starts from."""

ELSEWHERE = {"problems.md": "test_readme.py", "distributed.md": "test_parallel.py"}
CLUSTER = "dask_jobqueue"
"""Blocks that import it need a cluster."""

QUICK = {"start.md", "how-to/own-model.md", "how-to/layer-block.md"}
RUN = [
    pytest.param(page, marks=[] if page in QUICK else pytest.mark.slow)
    for page in TEXTS
    if blocks(TEXTS[page], "python") and page not in ELSEWHERE
]


@pytest.mark.parametrize("page", RUN)
def test_python_runs(page, tmp_path, monkeypatch):
    code = [block for block in blocks(TEXTS[page], "python") if CLUSTER not in block.text]
    for library in (
        "transformers",
        "timm",
        "lightning",
        "transformer_lens",
        "curvlinops",
        "h5netcdf",
        "pandas",
    ):
        if any(library in block.text for block in code):
            pytest.importorskip(library, exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    namespace = {"__name__": "page", **GIVEN.get(page, dict)()}
    for block in code:
        text = "\n" * (block.line - 1) + block.text  # line numbers of the page in tracebacks
        exec(compile(text, str(DOCS / page), "exec"), namespace)


class Html(HTMLParser):
    """Anchors and links of a page of the built site, and what it fetches."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.fetched = set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors |= {found.get("id"), found.get("name")}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        elif tag == "link":
            self.fetched.append(found["href"])
        elif found.get("src"):
            self.fetched.append(found["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if "HESSRMT_SITE" in os.environ:  # .ci/run has built it
        folder = Path(os.environ["HESSRMT_SITE"])
    else:
        pytest.importorskip("mkdocs", reason="needs the extra docs")
        folder = tmp_path_factory.mktemp("site")
        words = ["mkdocs", "build", "--strict", "-q", "--site-dir", str(folder)]
        command = [sys.executable, "-m", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr).decode()
    pages = {page.relative_to(folder).as_posix(): Html(page) for page in folder.rglob("*.html")}
    return pages, folder


@pytest.mark.slow
def test_site_is_whole(site):
    pages, folder = site
    assert {page.removesuffix(".md") + ".html" for page in nav()} <= set(pages)
    for name, page in pages.items():
        for link in page.links + page.fetched:
            path, _, anchor = unquote(link).partition("#")
            if re.match(r"[a-z]+:", path):
                assert link in page.links, f"{name} fetches {link}"
                continue
            target = Path(os.path.normpath(folder / Path(name).parent / path.partition("?")[0]))
            target = folder / name if not path else target
            assert target.exists(), f"{name}: {link}"
            if anchor and target.suffix == ".html" and anchor != "__skip":
                assert anchor in pages[target.relative_to(folder).as_posix()].anchors, (name, link)


@pytest.mark.slow
def test_site_has_every_name_and_source(site):
    pages, folder = site
    for name in pages:  # roles of docstrings have become links or code
        text = (folder / name).read_text(encoding="utf-8")
        assert not re.search(r":[a-z]+:<code>|<autoref", text), name
    anchors = set().union(*(page.anchors for page in pages.values()))
    assert set(documented()) <= anchors
    sources = (DOCS / "references.bib").read_text(encoding="utf-8")
    keys = set(re.findall(r"^@\w+\{(\w+),", sources, re.MULTILINE))
    assert keys <= pages["reference/bibliography.html"].anchors
