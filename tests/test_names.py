"""Names out of files are data: no terminal, browser, spreadsheet or picture does what they say."""

import csv
import re

import pytest
import torch
from matplotlib.text import Text
from safetensors.torch import save_file

import hessrmt as hr
from hessrmt.plots.style import panels
from hessrmt.tables import printable, to_csv

NAMES = {
    "\x1b]52;c;ZXZpbA==\x07": "\\x1b]52;c;ZXZpbA==\\x07",
    "a\nb": "a\\nb",
    "x\u202egnp": "x\\u202egnp",
    "[bold]w[/bold]": "[bold]w[/bold]",
    "$\\frac{a$": "$\\frac{a$",
    "<script>alert(1)</script>": "<script>alert(1)</script>",
    "=cmd|' /C calc'!A0": "=cmd|' /C calc'!A0",
}
HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")


@pytest.fixture
def evil(tmp_path):
    draw = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(20, 12, generator=draw) for name in NAMES}
    save_file(weights, tmp_path / "evil.safetensors")
    return "evil.safetensors"


@pytest.mark.parametrize("extra", [[], ["--markdown"]])
def test_a_terminal_shows_names_escaped(evil, cli, extra):
    done = cli("capacity", evil, "--min-size", 1, *extra)
    assert done.returncode == 0
    assert not HARMFUL.search(done.stdout + done.stderr)
    if not extra:
        assert all(shown in done.stdout for shown in NAMES.values())


def test_errors_show_names_escaped(evil, refused):
    assert not HARMFUL.search(refused(["capacity", evil, "--only", "absent"], ["\\x1b]52"]))


def test_cells_of_tables_are_no_formulas(evil, cli, tmp_path):
    assert cli("capacity", evil, "--min-size", 1, "--csv", "t.csv").returncode == 0
    with open(tmp_path / "t.csv", newline="") as file:
        names = [row["name"] for row in csv.DictReader(file)]
    assert sorted(names) == sorted("'" + v if v[0] == "=" else v for v in NAMES.values())
    plain = {"a": -1.5, "b": "-0.5 ± 0.1", "c": "-", "d": "+3", "e": None, "f": "-inf", "g": "@x"}
    assert to_csv([plain]) == "a,b,c,d,e,f,g\n-1.5,-0.5 ± 0.1,-,+3,,-inf,'@x\n"


@pytest.mark.parametrize(
    "cell",
    [
        "-2+3+cmd|' /C calc'!A0",
        "+1+cmd|'x'!A",
        "-.5+cmd|''!A",
        "-1-1",
        "-1 *SUM(A1)",
        "- 2+cmd|'x'!A",
        "-2 a|b",
        "-x",
        "- a",
    ],
)
def test_what_begins_like_a_number_may_be_a_formula(cell):
    assert next(csv.reader(to_csv([{cell: 1}]).splitlines())) == [f"'{cell}"]


@pytest.mark.parametrize(
    "cell", ["-12.04 to 10.58", "+1e-3", "-5%", "-1,234", "-0.6 … 0.8", "- 0.2"]
)
def test_numbers_and_ranges_of_them_are_cells_as_they_are(cell):
    assert next(csv.reader(to_csv([{cell: 1}]).splitlines())) == [cell]


@pytest.mark.parametrize("character", ["\xad", "\u200d", "\ufff9", "\U000e0041", "\ue000", "\t"])
def test_characters_that_are_not_seen_are_escaped(character):
    assert printable(f"a{character}b") == f"a{ascii(character)[1:-1]}b"


def test_every_layer_has_a_picture_of_its_own(tmp_path, cli):
    """Also where names differ in what files can't have in theirs, or are longer."""
    draw = torch.Generator().manual_seed(0)
    names = ["<a>", "(a)", "{A}", "x" * 5000, "x" * 4999 + "y", "_a_-2"]
    save_file(
        {name: torch.randn(9, 8, generator=draw) for name in names}, tmp_path / "n.safetensors"
    )
    done = cli("capacity", "n.safetensors", "--min-size", 1, "--plot", "p", "--format", "svg")
    assert done.returncode == 0
    found = {path.name.casefold() for path in (tmp_path / "p").glob("layer-*")}
    assert len(found) == len(names)


def test_names_that_are_no_text_are_names(tmp_path, cli):
    torch.save({"\ud800.weight": torch.randn(9, 8)}, tmp_path / "n.pt")
    done = cli("capacity", "n.pt", "--min-size", 1, "--csv", "t.csv", "--out", "o.h5")
    assert done.returncode == 0, done.stderr
    assert "\\ud800" in done.stdout
    assert "\\ud800" in (tmp_path / "t.csv").read_text()


def test_a_page_holds_names_as_text(evil, cli, tmp_path):
    hr.capacity.analyze(str(tmp_path / evil), min_size=1).save(tmp_path / "e.h5")
    assert cli("report", "e.h5").returncode == 0
    page = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in page
    assert not HARMFUL.search(page)


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_shows_any_name(name, tmp_path):
    figure, axes = panels(name)
    axes[0, 0].plot([1, 2], label=name)
    axes[0, 0].legend()
    figure.savefig(tmp_path / "p.svg")
    words = [text.get_text() for text in figure.findobj(Text)]
    assert NAMES[name] in words or name.replace("\n", "") in [w.replace("\n", "") for w in words]


def test_printable_leaves_ordinary_text_alone():
    for text in ("λ_max ‖W‖ → 0.5 ± 0.1 ⟨r̃⟩", "тест 测试 עברית", "a\nb", "🙂"):
        assert printable(text, lines=True) == text
