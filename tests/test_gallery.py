"""The gallery: every picture of the documentation, and every function, with code that draws."""

import importlib
import inspect
import pkgutil
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from hessrmt import plots

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

sys.path.insert(0, str(ROOT / "scripts"))
gallery = importlib.import_module("gallery")
sys.path.pop(0)

PARTS = gallery.parts(gallery.PAGE.read_text(encoding="utf-8"))
TEXTS = {path: path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md")}
TEXTS |= {ROOT / "README.md": (ROOT / "README.md").read_text(encoding="utf-8")}


def shown(path):
    """Pictures of a page."""
    links = re.findall(r"!\[[^\]]*\]\(([^)\s]+)", TEXTS[path])
    return {(path.parent / link).resolve() for link in links}


def test_every_picture_of_the_documentation_has_its_code():
    drawn = [(DOCS / target).resolve() for part in PARTS for target in part.pictures]
    assert len(drawn) == len(set(drawn)) > 50
    assert shown(gallery.PAGE) == set(drawn)  # none without the file that the code writes
    for path in TEXTS:
        missing = shown(path) - set(drawn)
        assert not missing, f"{path}: add to docs/gallery.md"
    there = {path.resolve() for path in (DOCS / "figures").iterdir()}
    assert there <= set(drawn)
    assert all(path.exists() for path in drawn)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_the_code_says_where_it_writes(part):
    code = "\n".join(text for _, text in part.code)
    for target, written in part.pictures.items():
        first = written.partition("/")[0]
        # hessrmt plot FILE writes FILE.png
        names = [f'"{first}"', f"'{first}'", f" {first}", f"plot {Path(first).stem}.h5"]
        assert any(name in code for name in names), target
        if "reproduce" not in code:
            assert part.minutes < 60


def test_every_drawing_function_is_in_the_gallery():
    named = {name for part in PARTS for name in part.functions}
    wanted = set()
    for module in pkgutil.iter_modules(plots.__path__):
        found = importlib.import_module(f"hessrmt.plots.{module.name}")
        for name, function in inspect.getmembers(found, inspect.isfunction):
            public = function.__module__ == found.__name__ and not name.startswith("_")
            if public and str(inspect.signature(function).return_annotation) == "Figure":
                wanted.add(f"{module.name}.{name}")
        for name in [name for name in named if name.startswith(f"{module.name}.")]:
            assert hasattr(found, name.partition(".")[2]), name
    assert len(wanted) > 40
    assert wanted <= named


def test_a_part_is_drawn(tmp_path):
    (part,) = (part for part in PARTS if part.name == "capacity-scan")
    gallery.draw(part, tmp_path / "work", tmp_path / "docs")
    (target,) = part.pictures
    old, new = (Image.open(folder / target) for folder in (DOCS, tmp_path / "docs"))
    assert new.size == old.size
    assert min(old.size) > 300
    assert len(new.getcolors() or ()) > 10  # there is something to see


def test_code_that_fails_or_writes_nothing_is_told_of(tmp_path):
    for code, said in (("exit 3", "exit code 3"), ("true", "writes no b.png")):
        part = gallery.Part({"a.png": "b.png"}, [], [("bash", code)])
        with pytest.raises(RuntimeError, match=said):
            gallery.draw(part, tmp_path / "work", tmp_path)


def test_how_long_a_part_takes():
    page = '![x](figures/a.png "a.png")\n\n```bash\none  # 2 hours\ntwo  # 3 minutes\n```\n'
    (part,) = gallery.parts(page)
    assert part.minutes == 123
    assert part.pictures == {"figures/a.png": "a.png"}
