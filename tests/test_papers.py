"""docs/papers.md has a row for every figure, table, theorem and lemma, and its commands exist."""

import csv
import re
import tomllib
from pathlib import Path

import pytest

from hessrmt.experiments import names

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "papers.md"
TITLES = {
    "martin2019": "Martin and Mahoney 2019",
    "puzzles2020": "Generalization puzzles 2020",
    "poggio2020": "Poggio, Banburski and Liao 2020",
    "baskerville2022": "Baskerville, Granziol and Keating 2022",
}
AGREES = {"yes", "partly", "no", "-"}
NUMBERED = {  # as counted in the papers; parts and panels are rows of their own
    ("martin2019", "figure"): {"1", "2", "3", "4"},
    ("puzzles2020", "figure"): {str(n) for n in range(1, 21)},
    ("poggio2020", "figure"): {"1", "2", "3"},
    ("poggio2020", "theorem"): {"1", "2", "3", "4"},
    ("poggio2020", "lemma"): {"1", "2", "3", "4", "5"},
    ("baskerville2022", "figure"): {str(n) for n in range(1, 9)},
    ("baskerville2022", "theorem"): {"8.1", "8.2"},
}


def claims():
    with (ROOT / "tests" / "data" / "papers.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def tables():
    """Paper to the rows of its table: lists of six cells."""
    parts = re.split(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    found = {}
    for paper, title in TITLES.items():
        lines = [line for line in sections[title].splitlines() if line.startswith("| ")]
        # |λ| is the only vertical bar inside a cell
        parted = [line.replace("|λ|", "abs λ").strip()[1:-1].split("|") for line in lines]
        cells = [[cell.strip() for cell in row] for row in parted]
        assert {len(row) for row in cells} == {6}
        assert cells[0] == ["what", "claim", "command", "what we find", "agrees", "why"]
        found[paper] = cells[2:]
    return found


def commands():
    rows = [(paper, row) for paper, part in tables().items() for row in part]
    return [
        pytest.param(command, id=f"{paper}-{row[0]}-{n}")
        for paper, row in rows
        for n, command in enumerate(re.findall(r"`([^`]+)`", row[2]))
    ]


def test_the_list_holds_every_number():
    for (paper, kind), wanted in NUMBERED.items():
        found = [row["number"] for row in claims() if (row["paper"], row["kind"]) == (paper, kind)]
        bases = {re.search(r"\d+(\.\d+)?", number)[0] for number in found}
        if paper == "poggio2020":
            bases = {base.partition(".")[0] for base in bases}
        assert bases == wanted
    keys = [(row["paper"], row["number"]) for row in claims()]
    assert len(keys) == len(set(keys))


def test_every_entry_of_the_list_has_its_row_and_no_row_is_without_one():
    found = {paper: [row[0] for row in rows] for paper, rows in tables().items()}
    for paper in TITLES:
        wanted = [row["number"] for row in claims() if row["paper"] == paper]
        assert found[paper] == wanted


def test_rows_say_what_was_found_or_why_nothing_was():
    for rows in tables().values():
        for row in rows:
            _, claim, command, found, agrees, why = row
            assert claim
            assert found
            assert agrees in AGREES, row
            if not command:
                assert agrees == "-"
                assert why, row
            elif agrees != "yes":
                assert why, row


@pytest.mark.parametrize("command", commands())
def test_commands_exist(command):
    """Experiments, options, scripts, tests and the words that choose among them."""
    program, *words = command.split()
    if program == "hessrmt":
        options = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
        section = options.partition(f"## hessrmt {words[0]}\n")[2].partition("\n## ")[0]
        assert section, command
        given = [word for word in words if word.startswith("--")]
        assert all(f"`{word}`" in section for word in given), command
        if words[0] == "reproduce":
            assert words[1] in names()
            settings = tomllib.loads((ROOT / "configs" / f"{words[1]}.toml").read_text("utf-8"))
            assert "--preset" not in words or words[-1] in settings["presets"]
    elif program == "python":
        assert (ROOT / words[0]).is_file()
        text = (ROOT / words[0]).read_text(encoding="utf-8")
        assert all(f'"{word}"' in text for word in words[1:])
    elif program == "pytest":
        text = (ROOT / words[0]).read_text(encoding="utf-8")
        tests = re.findall(r"^def (test_\w+)", text, re.MULTILINE)
        for word in re.findall(r"\w+", " ".join(words[2:])):
            assert word == "or" or any(word in test for test in tests), (command, word)
    else:
        import hessrmt as hr

        value = hr
        for part in command.split(".")[1:]:
            value = getattr(value, part)


def test_links_lead_somewhere():
    text = PAGE.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert (PAGE.parent / target).is_file(), target


def test_every_experiment_stands_in_the_table_of_presets():
    text = PAGE.read_text(encoding="utf-8").partition("## Presets that have been run")[2]
    rows = re.findall(r"^\| ([a-z][a-z0-9-]*) \|", text, re.MULTILINE)
    assert set(rows) - {"experiment"} == set(names())
    assert len(rows) == len(set(rows))
