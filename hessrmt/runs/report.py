"""``hessrmt report``: what files of results hold, as one page that needs nothing else.

Pictures are SVG inside the page, tables sort by a click, nothing is fetched. What the words mean is
taken from the descriptions of the results themselves.
"""

from __future__ import annotations

import inspect
import io
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np

from hessrmt.config import DensityConfig, LandscapeConfig, SpectrumConfig
from hessrmt.curvature.density import DensityResult
from hessrmt.curvature.landscape import Landscape
from hessrmt.errors import ConfigError, HessrmtError
from hessrmt.levels.analysis import SHORT, LawFit, LevelStatistics, analyze
from hessrmt.levels.histograms import mean_ratios, ratio_histogram
from hessrmt.levels.selection import select
from hessrmt.plots.training import history
from hessrmt.records import Provenance, Spectra, Spectrum
from hessrmt.results import plain
from hessrmt.runs.stored import contents, require_finished
from hessrmt.store.history import History

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

    from hessrmt.progress import Tick

_ROWS = 500
"""Of a table, beyond which it is cut, and the page says so."""

_OPEN = 40
"""Rows of a table that is shown without a click."""

_SPECTRUM = ("loss", "gradient_norm", "noise_floor", "rank", "check")
"""Columns of a table of spectra, beside the ends of each."""


@dataclass
class Section:
    """What the page says of one file.

    Attributes:
        name: Of the file.
        kind: What it holds, in a sentence.
        conclusions: Sentences.
        facts: Name to value, in words.
        pictures: Caption to figure.
        tables: Caption to rows, flat dictionaries with the same keys.
        words: Name of a number to what it means.
        command: That gives such a file; empty where no one command does.
        settings: Of the run.
        source: Machine, versions and time.
        notes: Anything a reader must know.
    """

    name: str
    kind: str
    conclusions: list[str] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, Figure] = field(default_factory=dict)
    tables: dict[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    command: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def report(
    files: Sequence[str | Path], title: str = "", *, surrogates: int = 200, tick: Tick | None = None
) -> str:
    """A page about files of results, in the order given; of a file of blocks, about each of them.

    Args:
        files: Of anything that :func:`hessrmt.load` reads, one or more.
        title: Of the page; the names of the files if empty.
        surrogates: Of the level statistics of spectra; 0 for none, which is faster.
        tick: Told of progress.

    Returns:
        HTML.

    Raises:
        ConfigError: If there is no file.
    """
    if not files:
        raise ConfigError("no file is given; name one or several files of results")
    sections = []
    for place, file in enumerate(files):
        if tick is not None:
            tick("report", place, len(files))
        sections += sections_of(Path(file), surrogates)
    if tick is not None:
        tick("report", len(files), len(files))
    return page(sections, title or ", ".join(one.name for one in sections))


def sections_of(file: Path, surrogates: int = 200) -> list[Section]:
    """What there is to say of one file.

    Args:
        file: Of results.
        surrogates: As of :func:`report`.

    Returns:
        A section; of a file of blocks one for each.
    """
    parts = contents(file)[1]
    for found in parts.values():
        require_finished(file, found)
    return [
        _section_of(file.name if block is None else f"{file.name}, {block}", found, surrogates)
        for block, found in parts.items()
    ]


def _section_of(name: str, found: Any, surrogates: int) -> Section:
    shown = {name: text for name, text in found.shown().items() if name != "provenance"}
    made = Section(name, _sentence(type(found)), facts=shown)
    source = getattr(found, "provenance", None) or getattr(
        getattr(found, "spectra", None), "provenance", None
    )
    if isinstance(source, Provenance):
        made.settings, made.notes = dict(source.config), source.notes
        versions = ", ".join(f"{name} {number}" for name, number in source.versions.items())
        made.source = {"computed on": source.device, "created": source.created, "with": versions}
        made.facts = {k: v for k, v in made.facts.items() if k not in made.settings}
        made.command = command_of(found, source.config)
    if isinstance(found, History):
        _draw(made, "history", lambda: history(found, mean_ratios(found.spectra)))
    else:
        _draw(made, _drawn_by(found), found.plot)
    made.words = _meanings(type(found))
    if isinstance(found, Spectra):
        made.tables["Spectra"] = [_ends(number, one) for number, one in enumerate(found)]
        made.words = _meanings(Spectrum) | made.words
        _add_levels(made, found, surrogates)
    elif isinstance(found, LevelStatistics):
        _add_statistics(made, found)
    rows = [] if made.tables else found.rows()
    if len(rows) > 1:
        made.tables["Table"] = rows
    return made


def _add_levels(made: Section, found: Spectra, surrogates: int) -> None:
    """Level statistics of spectra: a sentence and a picture, or why there are none."""
    try:
        statistics = analyze(found, surrogates=surrogates)
    except HessrmtError as error:
        made.notes += (f"no level statistics: {error}",)
        return
    _add_statistics(made, statistics)
    _draw(made, "Ratios of neighbouring spacings", lambda: ratio_histogram(select(found)).plot())


def _add_statistics(made: Section, found: LevelStatistics) -> None:
    made.conclusions.append(found.conclusion)
    made.notes += found.notes
    shown = {name: text for name, text in found.shown().items() if name not in found.laws}
    made.facts |= {f"level statistics: {name}": text for name, text in shown.items()}
    laws = {SHORT.get(name, name): plain(law) for name, law in found.laws.items()}
    made.tables["Laws"] = [{"law": name, **numbers} for name, numbers in laws.items()]
    made.words = _meanings(LawFit) | made.words


def _ends(number: int, one: Spectrum) -> dict[str, Any]:
    return {
        "batch": number,
        "smallest": float(one.eigenvalues[0]),
        "largest": float(one.eigenvalues[-1]),
        **{name: plain(getattr(one, name)) for name in _SPECTRUM},
    }


def _draw(made: Section, caption: str, draw: Callable[[], Figure]) -> None:
    try:
        made.pictures[caption] = draw()
    except HessrmtError as error:
        made.notes += (f"no picture: {error}",)


def command_of(found: Any, config: Mapping[str, Any]) -> str:
    """The command that gives such a result.

    Args:
        found: The result.
        config: Its settings.

    Returns:
        What to type, with all that differs from the defaults; empty where no one command made it.
    """
    kinds = {Spectra: SpectrumConfig, DensityResult: DensityConfig, Landscape: LandscapeConfig}
    kind = kinds.get(type(found))
    if kind is None or not {"model", "data"} <= config.keys() or isinstance(found, History):
        return ""
    if "micro_batch" in config:  # what a density file calls it
        config = {**config, "batch": config["micro_batch"]}
    words = ["hessrmt", kind.__name__.removesuffix("Config").lower()]
    for name, item in kind.model_fields.items():
        value = config.get(name, item.default)
        if value is None or value == item.default:
            continue
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(option if value else f"--no-{option[2:]}")
        else:
            words += [option, shlex.quote(str(value))]
    return " ".join(words)


def _drawn_by(found: Any) -> str:
    """What a picture of a result shows: the first sentence of what draws it."""
    module, name = (found._picture or "results.columns").split(".")
    return _sentence(getattr(import_module(f"hessrmt.plots.{module}"), name))


def _sentence(described: Any) -> str:
    """The first sentence that a class or a function says of itself."""
    text = inspect.cleandoc(described.__doc__ or described.__name__)
    return _without_markup(text.split("\n\n")[0])


def _without_markup(text: str) -> str:
    """Words of a docstring in one line: names alone, without markup."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", " ".join(text.split()))
    return text.replace("``", "").replace("`", "")


def _meanings(kind: type) -> dict[str, str]:
    """Attributes of a class to what its description says of them."""
    text = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:")[2]
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE)
    return {name: _without_markup(words) for name, words in found}


# The page


def page(sections: Sequence[Section], title: str) -> str:
    """HTML of some sections.

    Args:
        sections: Each of a file.
        title: Of the page.

    Returns:
        A whole document.
    """
    parts = [f"<h1>{escape(title)}</h1>"]
    if len(sections) > 1:
        links = (
            f'<li><a href="#file-{i}">{escape(one.name)}</a>: {escape(one.kind)}</li>'
            for i, one in enumerate(sections)
        )
        parts += ["<nav><ol>", *links, "</ol></nav>", _compared(sections)]
    parts += [_section(i, one) for i, one in enumerate(sections)]
    return _PAGE.format(title=escape(title), body="\n".join(parts), style=_STYLE, script=_SCRIPT)


def _compared(sections: Sequence[Section]) -> str:
    """Facts that several files share, side by side."""
    names = list(dict.fromkeys(name for one in sections for name in one.facts))
    shared = [name for name in names if sum(name in one.facts for one in sections) > 1]
    if not shared:
        return ""
    heads = [f"{i}. {one.name}" for i, one in enumerate(sections, 1)]
    rows = []
    for name in shared:
        values = (one.facts.get(name, "") for one in sections)
        rows.append({"": name, **dict(zip(heads, values, strict=True))})
    return f"<h2>Side by side</h2>{_table(rows)}"


def _section(number: int, one: Section) -> str:
    parts = [f'<section id="file-{number}"><h2>{escape(one.name)}</h2><p>{escape(one.kind)}</p>']
    parts += [f"<pre>{escape(one.command)}</pre>"] if one.command else []
    parts += [f'<p class="conclusion">{escape(text)}</p>' for text in one.conclusions]
    if one.facts:
        parts.append(_facts(one.facts))
    for caption, picture in one.pictures.items():
        parts.append(f"<figure>{_svg(picture)}<figcaption>{escape(caption)}</figcaption></figure>")
    for caption, rows in one.tables.items():
        if len(rows) <= _OPEN:
            parts.append(f"<h3>{escape(caption)}</h3>{_table(rows)}")
        else:
            head = f"<summary>{escape(caption)}, {len(rows):,} rows</summary>"
            parts.append(f"<details>{head}{_table(rows)}</details>")
    if one.notes:
        parts.append("<h3>Notes</h3><ul>")
        parts += [f"<li>{escape(note)}</li>" for note in one.notes]
        parts.append("</ul>")
    if one.settings:
        settings = {name: _cell(value) for name, value in one.settings.items()}
        parts.append(f"<details><summary>Settings</summary>{_facts(settings)}</details>")
    if one.source:
        parts.append(f"<details><summary>Where it was made</summary>{_facts(one.source)}</details>")
    if one.words:
        parts.append(
            f"<details><summary>What the words mean</summary>{_facts(one.words)}</details>"
        )
    return "\n".join([*parts, "</section>"])


def _facts(facts: Mapping[str, str]) -> str:
    named = ((name.replace("_", " "), text) for name, text in facts.items())
    rows = (f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in named)
    return f"<dl>{''.join(rows)}</dl>"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{escape(str(name).replace('_', ' '))}</th>" for name in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(_cell(value))}</td>" for value in row.values()) + "</tr>"
        for row in rows[:_ROWS]
    )
    more = f"<p>{len(rows) - _ROWS:,} more rows</p>" if len(rows) > _ROWS else ""
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide">{table}</div>{more}'


def _cell(value: Any) -> str:
    """A value as text; what isn't known is a dash."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_cell(v)}" for k, v in value.items())
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(map(_cell, value))
    return str(value)


def _svg(picture: Figure) -> str:
    """A picture for the inside of a page, with its text as text."""
    image = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none"}):
        picture.savefig(image, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = image.getvalue()
    return re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)


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
<footer>made by hessrmt</footer>
<script>{script}</script>
</body>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --ground: #ffffff; --line: #c9cfd8;
  --soft: #f2f4f7; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --ground: #14181f; --line: #3a4250; --soft: #1e242e; } }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1, h2, h3 { line-height: 1.2; overflow-wrap: anywhere; }
section { border-top: 1px solid var(--line); }
.conclusion { border-left: 4px solid #0072b2; padding: .3rem .8rem; background: var(--soft); }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .1rem 1rem; }
dt { font-weight: 600; overflow-wrap: anywhere; } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 34rem) { dl { grid-template-columns: 1fr; } dd { padding-left: 1rem; } }
pre { white-space: pre-wrap; overflow-wrap: anywhere; padding: .4rem .8rem;
  background: var(--soft); }
figure { margin: 1rem 0; padding: .5rem; background: #ffffff; border: 1px solid var(--line); }
figure svg { max-width: 100%; height: auto; display: block; margin: 0 auto; }
figcaption { color: #1d2430; font-size: .9rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .15rem .6rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { cursor: pointer; background: var(--soft); }
summary { cursor: pointer; font-weight: 600; padding: .3rem 0; }
footer { text-align: center; font-size: .8rem; padding: 1rem; }
@media print { :root { --ink: #000; --ground: #fff; --soft: #fff; } figure { break-inside: avoid; }
  .wide { overflow: visible; } }
"""

_SCRIPT = """
for (const head of document.querySelectorAll("thead th")) {
  head.addEventListener("click", () => {
    const place = [...head.parentNode.children].indexOf(head);
    const body = head.closest("table").tBodies[0];
    const up = head.dataset.order !== "up";
    for (const other of head.parentNode.children) delete other.dataset.order;
    head.dataset.order = up ? "up" : "down";
    const of = (row) => row.children[place].textContent;
    const number = (text) => Number(text.replaceAll(",", ""));
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [number(of(a)), number(of(b))];
      const by = Number.isNaN(x) || Number.isNaN(y) ? of(a).localeCompare(of(b)) : x - y;
      return up ? by : -by;
    });
    body.append(...rows);
  });
}
"""
