"""HTML of a report: one document that fetches nothing, on phone, screen or paper, dark or light.

What it is filled with comes from :mod:`hessrmt.runs.report`; all text is escaped here.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from hessrmt.plots.style import NIGHT, at_night, to_phone
from hessrmt.tables import AtMost, measured, probability
from hessrmt.tables import html_words as _words

if TYPE_CHECKING:
    from pathlib import Path

_ROWS = 500
"""Of a table, beyond which it is cut, and the page says so."""

_OPEN = 40
"""Rows of a table that is shown without a click."""

_SHORT = 3
"""Sentences of each of several files at the top."""

_FILES = 6
"""Files above which there is one sentence of each, or of files of one kind a row of a table."""

_SOME = 10
"""Columns beyond which a table is set in smaller letters."""

_ERRORS = ("_error", "_bound")
"""Ends of the names of columns that belong to the one without them."""

_DIGITS = 7
"""Of a number with its error in a table; all of them are in the file."""

_MAPPED = "by-number"
"""Mark of what a picture's colour bar gives its colours: those stay on a dark ground."""

_SHRUNK = 0.85
"""Of a picture's own size, below which it scrolls, so that its words can be read; on a phone there
is another one in its place."""

_PIXELS = 96 / 72
"""In a point."""


@dataclass
class Section:
    """What the page says of one file.

    Attributes:
        name: Of the file.
        heading: What it is about, in a few words.
        kind: What it holds, in a sentence.
        conclusions: Sentences.
        facts: Name to value, in words.
        pictures: Caption to figure, which the page changes, or to the file of one.
        tables: Caption to rows, flat dictionaries with the same keys.
        words: Name of a number to what it means.
        command: That gives such a file; empty where no one command does.
        origin: Where it came from, in a sentence.
        settings: Of the run.
        source: Machine, versions and time.
        notes: Anything a reader must know.
        brief: Name to value, in words: its row where many of its kind stand in a table.
    """

    name: str
    heading: str
    kind: str
    conclusions: list[str] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, Figure | Path] = field(default_factory=dict)
    tables: dict[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    command: str = ""
    origin: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    brief: dict[str, str] = field(default_factory=dict)


def page(sections: Sequence[Section], title: str, terms: Mapping[str, str], version: str) -> str:
    """HTML of some sections.

    Args:
        sections: Each of a file, or of a block in one.
        title: Of the page.
        terms: What the words of the subject mean, as far as they occur.
        version: That made it.

    Returns:
        A whole document.
    """
    colours: set[str] = set()
    several = len(sections) > 1
    parts = [f"<h1>{_words(title)}</h1>"]
    if several:
        table = _rows_of(sections)
        parts += ["<h2>In short</h2>", table or _in_short(sections)]
        parts += [] if table else [_compared(sections)]
    parts += [_section(i, one, title, colours) for i, one in enumerate(sections)]
    if words := dict(terms) | {k: v for k, v in _meanings(sections).items() if k not in terms}:
        parts.append(f'<section id="words"><h2>What the words mean</h2>{_facts(words)}</section>')
    dark = "".join(f"--c-{colour}: {_on_dark(colour)};" for colour in sorted(colours))
    style = _STYLE.replace("/* colours of pictures */", dark)
    name = title if several or sections[0].name in title else f"{title}: {sections[0].name}"
    return _PAGE.format(
        title=_words(name), body="\n".join(parts), style=style, script=_SCRIPT, made=_words(version)
    )


def _rows_of(sections: Sequence[Section]) -> str:
    """A table with a row for each of many sections of one kind; nothing for others."""
    names = list(dict.fromkeys(name for one in sections for name in one.brief or one.facts))
    if len(sections) <= _FILES or len({one.kind for one in sections}) > 1 or not names:
        return ""
    rows = [
        {"": one.name} | {name: (one.brief or one.facts).get(name, "") for name in names}
        for one in sections
    ]
    return _table(rows, sections[0].words, linked=True)


def _in_short(sections: Sequence[Section]) -> str:
    """A list of what each section says: of many the first sentence alone."""
    entries, count = "", 1 if len(sections) > _FILES else _SHORT
    for number, one in enumerate(sections):
        said = " ".join(one.conclusions[:count]) or one.kind
        entries += f'<li><a href="#file-{number}">{_words(one.name)}</a>: {_words(said)}</li>'
    return f"<ol>{entries}</ol>"


def _compared(sections: Sequence[Section]) -> str:
    """Facts that several files share, side by side where they differ."""
    names = list(dict.fromkeys(name for one in sections for name in one.facts))
    shared = [name for name in names if sum(name in one.facts for one in sections) > 1]
    heads = [f"{i}. {one.name}" for i, one in enumerate(sections, 1)]
    rows, same = [], {}
    for name in shared:
        values = [one.facts.get(name) for one in sections]
        if len(set(values)) == 1:
            same[name] = str(values[0])
        else:
            rows.append({"": name.replace("_", " "), **dict(zip(heads, values, strict=True))})
    alike = f"<p>The same in all: {_words(_listed(same))}.</p>" if same else ""
    return f"<h2>Side by side</h2>{_table(rows)}{alike}" if rows or same else ""


def _listed(named: Mapping[str, str]) -> str:
    return "; ".join(f"{name.replace('_', ' ')} {text}" for name, text in named.items())


def _meanings(sections: Sequence[Section]) -> dict[str, str]:
    """Each word once: with all that it means, where that differs from file to file."""
    found: dict[str, dict[str, str]] = {}
    for one in sections:
        for name, words in one.words.items():
            found.setdefault(name, {}).setdefault(words, one.name)
    return {
        name.replace("_", " "): next(iter(known))
        if len(known) == 1
        else " ".join(f"In {of}: {words}" for words, of in known.items())
        for name, known in found.items()
    }


def _section(number: int, one: Section, title: str, colours: set[str]) -> str:
    parts = [f'<section id="file-{number}"><h2>{_words(one.name)}</h2>']
    parts += [f"<p><strong>{_words(one.heading)}</strong></p>"] if one.heading != title else []
    said = "".join(f"<li>{_words(text)}</li>" for text in one.conclusions)
    parts += [f'<ul class="conclusions">{said}</ul>'] if said else [f"<p>{_words(one.kind)}</p>"]
    for caption, picture in one.pictures.items():
        label = _words(caption)
        parts.append(
            f'<figure><div class="wide" tabindex="0" role="img" aria-label="{label}">'
            f"{_drawn(picture, colours)}</div><figcaption>{label}</figcaption></figure>"
        )
    if one.facts:
        facts = {name.replace("_", " "): text for name, text in one.facts.items()}
        parts.append(f"<h3>In numbers</h3>{_facts(facts)}")
    for caption, rows in one.tables.items():
        if len(rows) <= _OPEN:
            parts.append(f"<h3>{_words(caption)}</h3>{_table(rows, one.words)}")
        else:
            head = f"<summary>{_words(caption)}, {len(rows):,} rows</summary>"
            parts.append(f"<details>{head}{_table(rows, one.words)}</details>")
    if one.notes:
        parts.append("<h3>Notes</h3><ul>")
        parts += [f"<li>{_words(note)}</li>" for note in one.notes]
        parts.append("</ul>")
    parts.append("<h3>How it was made</h3>")
    parts += [f"<p>{_words(one.origin)}</p>"] if one.origin else []
    parts += [f"<pre>{_command(one.command)}</pre>"] if one.command else []
    if one.settings:
        settings = {k.replace("_", " "): cell(value) for k, value in one.settings.items()}
        parts.append(f"<details><summary>Settings</summary>{_facts(settings)}</details>")
    if one.source:
        head = "<summary>Machine, versions, time</summary>"
        parts.append(f"<details>{head}{_facts(one.source)}</details>")
    return "\n".join([*parts, "</section>"])


def _command(text: str) -> str:
    """A command that breaks between its options: not in one, nor between it and its value."""
    parts = re.split(r" (?=--?\w)", text)
    return " ".join(f"<span>{_words(part)}</span>" for part in parts)


def _facts(facts: Mapping[str, str]) -> str:
    rows = (f"<dt>{_words(name)}</dt><dd>{_words(text)}</dd>" for name, text in facts.items())
    return f"<dl>{''.join(rows)}</dl>"


# Tables


class _Shown(NamedTuple):
    """A column: its head, the text of every cell, and the numbers to sort by, if it has any."""

    head: str
    cells: list[str]
    numbers: list[float] | None


def _table(
    rows: Sequence[Mapping[str, Any]],
    words: Mapping[str, str] | None = None,
    *,
    linked: bool = False,
) -> str:
    """A table that sorts; if linked, its rows lead to the sections in their order."""
    if not rows:
        return ""
    columns, same = _columns(rows[:_ROWS])
    heads = ""
    for column in columns:
        told = (words or {}).get(column.head, "")
        hint = f' title="{_words(told)}"' if told else ""
        name = _words(column.head.replace("_", " "))
        heads += f'<th scope="col" tabindex="0"{hint}>{name}</th>'
    body = ""
    for place in range(min(len(rows), _ROWS)):
        cells = ""
        for column in columns:
            number = "" if column.numbers is None else f' data-v="{float(column.numbers[place])!r}"'
            text = _words(column.cells[place])
            if linked and not cells:
                text = f'<a href="#file-{place}">{text}</a>'
            cells += f"<td{number}>{text}</td>"
        body += f"<tr>{cells}</tr>"
    more = f"<p>{len(rows) - _ROWS:,} more rows</p>" if len(rows) > _ROWS else ""
    more += f"<p>In every row: {_words(_listed(same))}.</p>" if same else ""
    kind = ' class="many"' if len(columns) > _SOME else ""
    table = f"<table{kind}><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide" tabindex="0">{table}</div>{more}'


def _columns(rows: Sequence[Mapping[str, Any]]) -> tuple[list[_Shown], dict[str, str]]:
    """Columns without empty ones, errors beside their numbers; and words that never change."""
    left = shown_columns(rows)
    every = {name: [row.get(name) for row in rows] for name in rows[0]}
    shown, same = [], {}
    for place, (name, known) in enumerate((n, v) for n, v in every.items() if n in left):
        if place and len(rows) > 1 and isinstance(known[0], str) and len(set(known)) == 1:
            same[name] = known[0]
            continue
        error = next((every[name + end] for end in _ERRORS if name + end in every), None)
        texts = [cell(value) for value in known]
        if error is not None:
            pairs = zip(known, error, strict=True)
            texts = [cell(x) if x is None else measured(x, e, most=_DIGITS) for x, e in pairs]
        numeric = all(isinstance(value, int | float | None) for value in known)
        numbers: list[float] | None = None
        if numeric:
            numbers = [float("nan") if x is None else float(x) for x in known]
        shown.append(_Shown(name, texts, numbers))
    return shown, same


def shown_columns(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Names of the columns that a table shows: not empty ones, nor errors of numbers beside them.

    Args:
        rows: Of the table, with the same keys.

    Returns:
        The names.
    """
    left = {name for name in rows[0] if not all(_empty(row.get(name)) for row in rows[:_ROWS])}
    return {x for x in left if not (x.endswith(_ERRORS) and x[: x.rindex("_")] in left)}


def _empty(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and np.isnan(value))


def cell(value: Any) -> str:
    """A value as text; what isn't known is a dash.

    Args:
        value: A plain value.

    Returns:
        The text.
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if _empty(value):
        return "-"
    if isinstance(value, float):
        return probability(value) if isinstance(value, AtMost) else f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {cell(v)}" for k, v in value.items())
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(map(cell, value)) or "-"
    return str(value)


# Pictures


def _drawn(picture: Figure | Path, colours: set[str]) -> str:
    """A picture for the inside of the page; the colours in it that a dark page changes are kept."""
    if isinstance(picture, Figure):
        wide = _svg(picture, colours)
        to_phone(picture)
        narrow = _svg(picture, colours, "tight")
        return f'<div class="roomy">{wide}</div><div class="tight">{narrow}</div>'
    kind, content = picture.suffix.lower().removeprefix("."), picture.read_bytes()
    kind = "svg+xml" if kind == "svg" else kind
    return f'<img alt="" src="data:image/{kind};base64,{base64.b64encode(content).decode()}">'


def _svg(picture: Figure, colours: set[str], look: str = "") -> str:
    """A picture as SVG, with its text as text and its colours as variables."""
    for item in picture.findobj():
        if isinstance(item, ScalarMappable) and item.get_array() is not None:
            item.set_gid(_MAPPED)
    image = io.StringIO()
    # each look has names of its own for shared parts: browsers don't find those in hidden pictures
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": f"hessrmt {look}"}):
        picture.savefig(image, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = image.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    width = float(text.split('width="', 1)[1].split("pt", 1)[0])
    least = f"min-width: {_SHRUNK * _PIXELS * width:.0f}px" if not look else "width: 100%"
    text = text.replace("<svg", f'<svg style="{least}"', 1)
    return _with_variables(text, colours)


def _with_variables(text: str, colours: set[str]) -> str:
    """Colours of an SVG as variables of the page, except for what a colour bar explains."""
    found, depth, inside = [], 0, 0
    for part in re.split(r"(<g\b[^>]*>|</g>)", text):
        if part.startswith("<g"):
            depth += not part.endswith("/>")
            inside = inside or (depth if f'id="{_MAPPED}"' in part else 0)
        elif part == "</g>":
            inside = 0 if depth == inside else inside
            depth -= 1
        found.append(part if inside else re.sub(r"(?<=: )#[0-9a-f]{6}\b", _variable, part))
    colours |= set(re.findall(r"--c-([0-9a-f]{6})", "".join(found)))
    return "".join(found)


def _variable(found: re.Match[str]) -> str:
    return f"var(--c-{found[0][1:]}, {found[0]})"


def _on_dark(colour: str) -> str:
    """White is the ground of every picture."""
    return NIGHT[0] if colour == "ffffff" else at_night(f"#{colour}")


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
<footer>made by {made}</footer>
<script>{script}</script>
</body>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --ground: #ffffff; --line: #c9cfd8;
  --soft: #f2f4f7; --link: #0b57a4; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --ground: #14181f; --line: #3a4250; --soft: #1e242e; --link: #8ab8f0;
    --c-000000: #e3e6eb; --c-ffffff: #1b1f27; /* colours of pictures */ }
  figure img { filter: invert(.9) hue-rotate(180deg); } }
@media print { :root { color-scheme: light; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 84rem; margin: 0 auto; padding: 1rem; }
h1, h2, h3 { line-height: 1.2; overflow-wrap: anywhere; }
p, li, dl, pre { max-width: 56rem; }
a { color: var(--link); }
section { border-top: 1px solid var(--line); margin-top: 2rem; }
li { overflow-wrap: anywhere; }
.conclusions { list-style: none; padding: 0; }
.conclusions li { border-left: 4px solid #0072b2; padding: .3rem .8rem; margin: .3rem 0;
  background: var(--soft); }
dl { display: grid; grid-template-columns: minmax(8rem, 16rem) 1fr; gap: .1rem 1rem; }
dt { font-weight: 600; overflow-wrap: anywhere; } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 34rem) { dl { grid-template-columns: 1fr; } dd { padding-left: 1rem; } }
pre { white-space: pre-wrap; overflow-wrap: anywhere; padding: .4rem .8rem;
  background: var(--soft); }
pre span { display: inline-block; max-width: 100%; }
figure { margin: 1rem 0; padding: .5rem; max-width: 66rem; border: 1px solid var(--line);
  background: var(--c-ffffff, #ffffff); }
figure svg, figure img { max-width: 100%; height: auto; display: block; margin: 0 auto; }
figure img { min-width: 34rem; }
figure svg { fill: var(--c-000000, #000000); }
.tight { display: none; }
@media screen and (max-width: 38rem) { .roomy { display: none; } .tight { display: block; }
  figure img { min-width: 0; } }
figcaption { font-size: .9rem; padding-top: .3rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .15rem .6rem; text-align: right; border-bottom: 1px solid var(--line); }
th { vertical-align: bottom; } td { white-space: nowrap; }
.many { font-size: .8rem; } .many th, .many td { padding: .15rem .35rem; }
th:first-child, td:first-child { text-align: left; }
thead th { cursor: pointer; background: var(--soft); }
th[aria-sort=ascending]::after { content: " \\2191"; }
th[aria-sort=descending]::after { content: " \\2193"; }
summary { cursor: pointer; font-weight: 600; padding: .3rem 0; }
footer { text-align: center; font-size: .8rem; padding: 1rem; }
@media print { main { max-width: none; padding: 0; } body { font-size: 10pt; }
  figure, tr, .conclusions li { break-inside: avoid; } h2, h3 { break-after: avoid; }
  figure svg { min-width: 0 !important; max-width: 14cm; } .wide { overflow: visible; }
  table { font-size: 7.5pt; } th, td { padding: .1rem .25rem; } }
"""

_SCRIPT = """
for (const head of document.querySelectorAll("thead th")) {
  const sort = () => {
    const place = [...head.parentNode.children].indexOf(head);
    const body = head.closest("table").tBodies[0];
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const text = (row) => row.children[place].textContent;
    const number = (row) => Number(row.children[place].dataset.v ?? text(row).replaceAll(",", ""));
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [number(a), number(b)];
      if (Number.isNaN(x) && Number.isNaN(y)) return (up ? 1 : -1) * text(a).localeCompare(text(b));
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;
      return up ? x - y : y - x;
    });
    body.append(...rows);
  };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", (key) => { if (key.key === "Enter") sort(); });
}
addEventListener("beforeprint", () => {
  for (const one of document.querySelectorAll("details")) one.open = true;
});
"""
