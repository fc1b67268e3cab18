"""What a run printed and wrote as a tree of plain values, and how two such trees are compared.

The tree has no clock, no version, no path and no name of a machine in it, and no round-off: an
eigenvalue below the noise floor of its own spectrum is nothing that a run says about a network.
"""

import csv
import functools
import json
import math
import operator
import re
from typing import Any

import h5py
import numpy as np
import torch

EPS = np.finfo(float).eps
SINGLE = 1e3 * float(np.finfo(np.float32).eps)
"""Relative error of what was trained or computed in single precision: a few hundred steps."""

DOUBLE = 1e-9
"""Relative error of statistics in double precision.

Levels have errors of n·ε·‖H‖ with n < 1000, 2e-13·‖H‖; statistics divide them by a spacing, which
is 1e-3·‖H‖ in the mean and seldom below 1e-4·‖H‖.
"""

LEVELS = 300 * 100 * EPS
"""Of eigenvalues and their norm over the largest: a few hundred ε·n, with n around 100."""

_LEVELS = {"hessian_evals", "lambda_min", "lambda_max"}

_FLOORS = {"noise_floor", "noise floors", "round_off", "product_error"}
"""They have a measured part, the residual of the solver's eigenvalues: known to a factor of two or
three."""

_TAILS = {"p_value"}
TAIL = 1e-7
"""Absolute error of tails far out, which are read off tables of a law."""

WIDTH = 150
"""Of the lines of a golden file, where that is possible."""

REPEATED = 150
"""Characters from which on a part of a golden file is written only once."""

AS_IN = "as in"

ENTRIES = 5
"""Entries kept of a large array, beside its extremes and sums."""

SMALL = 8
"""Arrays of so many entries are kept as they are."""

_MASKED = {
    "seconds": "<seconds>",
    "created": "<created>",
    "library": "<version>",
    "check": "<round-off>",
    "deviation": "<round-off>",
    "residuals": "<round-off>",
    "bounds": "<round-off>",
    "joint_bound": "<round-off>",
    "free memory GiB": "<memory>",
}
"""Keys whose values say nothing about the result, and what stands for their numbers."""

_UNREDUCED = {"n_paper_cutoff", "n_paper_cutoff_ratios", "gap_decades"}
"""They count round-off where there are eigenvalues below the noise floor."""

_ROUND_OFF = 1e-13
"""Numbers in tables that are as small as this are round-off; JSON and files have them exactly."""

_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")

_PUBLISHED = re.compile(r"unreduced-float32 |\| whole, float32 \|")
"""Rows of ``hessian-spacings`` by the published protocol, in single precision."""

_WORDS = (
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+\d:]*"), "<created>"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "<sha256>"),
    (re.compile(r"try: .*?hessrmt\b"), "try: hessrmt"),  # the tests may be started in many ways
    (re.compile(r"sha256 [0-9a-f]+"), "sha256 …"),
    (re.compile(r"\(\d+ threads?\)"), "(N threads)"),
    (re.compile(r"[─━═]{4,}"), "───"),
    (re.compile(r"The widest gap in .* decades\."), "The widest gap …"),  # between round-off
)


def plain(value, folder):
    """A tree of plain values without what changes from run to run; numbers to 12 digits."""
    if isinstance(value, dict):
        return {str(key): _of_key(str(key), item, value, folder) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, folder) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist(), folder)
    if isinstance(value, bytes):
        return plain(value.decode(), folder)
    if isinstance(value, str):
        return words(value, folder)
    if isinstance(value, float):
        return float(f"{value:.12g}") if math.isfinite(value) else str(value)
    if value is None or isinstance(value, bool | int):
        return value
    return f"<{type(value).__name__}>"


def _of_key(key, value, around, folder):
    name = key.rpartition(", ")[2]
    if name in _MASKED or name.startswith("seconds_"):
        return _mask(value, _MASKED.get(name, "<seconds>"))
    if name == "versions":
        return f"<versions of {', '.join(value)}>"
    if name.startswith("version "):
        return "<version>"
    # what the published cutoff takes of eigenvalues that are round-off
    if name == "paper" and around.get("reduced") is False:
        return _mask(value, "<round-off>")
    if name == "lambda_min" and abs(value) <= around.get("noise_floor", 0):
        return "<round-off>"
    if name in _UNREDUCED and around.get("reduced_dimension", 0) > around.get("rank", 0):
        return "<round-off>"
    return plain(value, folder)


def _mask(value, mark):
    if isinstance(value, dict):
        return {str(key): _mask(item, mark) for key, item in value.items()}
    return None if value is None else mark


def words(text, folder):
    """Text without paths, dates, hashes and the number of threads; blanks collapsed."""
    for pattern, mark in _WORDS:
        text = pattern.sub(mark, text.replace(f"{folder}/", "").replace(str(folder), "."))
    return " ".join(text.split())


def lines(text, folder):
    """The lines of what people read.

    Seconds at the end of a row of ``hessrmt spectrum`` go, and the numbers of rows about round-off.
    """
    text = re.sub(r"\b(version \w+: )\S+", r"\1<version>", text)
    text = re.sub(r"(?m)^(\s*\d+\s.*?)(?:\s+(?:\d+\.\d|-)){3}$", r"\1 <seconds>", text)
    found = [line for line in (words(line, folder) for line in text.splitlines()) if line]
    return [_NUMBER.sub("#", line) if _PUBLISHED.search(line) else line for line in found]


# Files


def numbers(values, floor: Any = 0.0):
    """An array in short: type and shape; its values, or some values, extremes and sums."""
    values = np.asarray(values)
    if values.dtype.kind in "SO":
        values = values.astype(str)
    head, flat = _head(values), values.ravel()
    if values.dtype.kind == "f":
        flat = np.where(np.abs(flat) <= floor, 0.0, flat)
    if flat.size <= SMALL or flat.dtype.kind == "U":
        return [head, plain(flat, "")]
    places = np.linspace(0, flat.size - 1, ENTRIES).round().astype(int)
    known = flat[np.isfinite(flat)]
    extremes = [known.min(), known.max()] if known.size else []
    sums = [known.sum(), np.abs(known).sum(), known.size]
    return [head, plain([*flat[places], *extremes], ""), plain(sums, "")]


def _head(array):
    kind = "text" if np.asarray(array[()]).dtype.kind in "SOU" else array.dtype.str
    return f"{kind} {'x'.join(map(str, array.shape))}"


_OF_HDF5 = {"CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "_Netcdf4Dimid", "long_name"}
"""Attributes of datasets that only name things."""


def hdf5(path, folder):
    """All datasets and attributes of a file, those attributes that are JSON as trees."""
    found = {}

    def visit(name, item):
        if item.attrs:
            given = {key: value for key, value in item.attrs.items() if key not in _OF_HDF5}
            parsed = {key: _parsed(given[key]) for key in sorted(given)}
            if parsed:
                found[f"{name} attributes"] = plain(parsed, folder)
        if isinstance(item, h5py.Dataset):
            # of eigenvalues to the last bit, which not every machine has
            found[name] = "<checksum>" if name.endswith("checksum") else _dataset(item)

    with h5py.File(path) as file:
        visit("", file)
        file.visititems(visit)
    return found


def _parsed(value):
    value = value.decode() if isinstance(value, bytes) else value
    return json.loads(value) if isinstance(value, str) and value[:1] in {"{", "["} else value


def _dataset(item):
    """A dataset in short; of clocks and round-off only what it looks like."""
    name = item.name.rpartition("/")[2]
    masked = name.startswith("seconds") or name in {"check", "residuals"}
    if name in _UNREDUCED:
        masked |= bool((item.parent["reduced_dimension"][()] > item.parent["rank"][()]).any())
    if masked:
        return [_head(item)]
    floor = 0.0
    if name == "hessian_evals":
        floor = np.repeat(np.nan_to_num(item.parent["noise_floor"][()]), item.shape[1])
    return numbers(item[()], floor)


def _table(path, folder):
    with path.open(newline="", encoding="utf-8") as file:
        heading, *rows = csv.reader(file)
    for row in rows:
        if _PUBLISHED.match(f"{row[0].rpartition('-test-')[2]} "):
            row[1:] = [_NUMBER.sub("#", cell) for cell in row[1:]]
    rows = [[_cell(cell, folder) for cell in row] for row in rows]
    return {"columns": ", ".join(heading), "rows": rows}


def _cell(text, folder):
    try:
        return plain(float(text), folder)
    except ValueError:
        return words(text, folder)


def _checkpoint(path, folder):
    content = torch.load(path, weights_only=True)
    state = content.get("state_dict") if isinstance(content, dict) else None
    if state is None:
        return "<checkpoint>"
    shapes = {name: "x".join(map(str, value.shape)) for name, value in state.items()}
    every = torch.cat([value.double().flatten() for value in state.values()])
    return {
        "dtypes": sorted({str(value.dtype) for value in state.values()}),
        "shapes": shapes,
        "all": numbers(every.numpy()),
    }


_KINDS = {
    ".h5": hdf5,
    ".csv": _table,
    ".json": lambda path, folder: plain(json.loads(path.read_text("utf-8")), folder),
    ".md": lambda path, folder: lines(path.read_text("utf-8"), folder),
    ".pt": _checkpoint,
}


def content(path, folder, brief=False):
    """What is in a file, or of a picture that it is one."""
    if path.name == "results.h5":
        return "<what results.md and results.json say>"
    if brief and path.suffix == ".h5":
        return {name: part for name, part in hdf5(path, folder).items() if name in _LEVELS}
    read = _KINDS.get(path.suffix)
    return read(path, folder) if read else f"<{path.suffix[1:]}>"


# Runs

_PROGRESS = re.compile(r"(?m)^.*, [\d,]+ of [\d,]+\n")


class Run:
    """Runs commands in a folder and keeps what they leave."""

    def __init__(self, cli, folder):
        self.cli, self.folder = cli, folder
        self.kept, self.tolerances = {}, {}

    def __call__(self, name, command, tolerance=DOUBLE, code=0, brief=False):
        """Run a command; of ``brief`` ones only the eigenvalues in their files are kept."""
        before = self._files()
        result = self.cli(*command.split())
        assert result.returncode == code, f"{command}: {result}"
        found = {"command": command, "code": code}
        if "--json" in command and code == 0:
            (line,) = result.stdout.splitlines()
            found["json"] = plain(json.loads(line), self.folder)
        else:
            found["stdout"] = lines(result.stdout, self.folder)
        if "json" not in found or command.startswith("reproduce"):
            # how often a log is told of progress is a matter of time
            told = _PROGRESS.sub("", result.stderr)
            found["stderr"] = lines(
                told if command.startswith("reproduce") else result.stderr, self.folder
            )
        after = self._files()
        if changed := sorted(path for path in after if after[path] != before.get(path)):
            found["files"] = {
                str(path.relative_to(self.folder)): content(path, self.folder, brief)
                for path in changed
            }
        if gone := sorted(str(path.relative_to(self.folder)) for path in set(before) - set(after)):
            found["gone"] = gone
        self._keep(name, found, tolerance)

    def note(self, name, found, tolerance=DOUBLE):
        """Keep a tree of values."""
        self._keep(name, plain(found, self.folder), tolerance)

    def _keep(self, name, found, tolerance):
        assert name not in self.kept, name
        self.kept[name], self.tolerances[name] = found, tolerance

    def mistakes(self, *commands):
        """Run commands that are refused."""
        for command in commands:
            self(command, command, code=2)

    def _files(self):
        found = (path for path in self.folder.rglob("*") if path.is_file())
        return {
            path: (path.stat().st_mtime_ns, path.stat().st_size)
            for path in found
            if "__pycache__" not in path.parts
        }


# Comparison


def differences(kept, found, tolerance, where=""):
    """Where two trees differ, a line each.

    Args:
        kept: The tree of the golden file.
        found: The tree of today.
        tolerance: Largest relative difference of numbers; in a list, relative to the largest.
        where: Path to these trees.

    Yields:
        The path, what was kept and what is found.
    """
    if isinstance(kept, dict) and isinstance(found, dict):
        for key in [*kept, *(key for key in found if key not in kept)]:
            if key not in found:
                yield f"{where}/{key}: gone (was {_short(kept[key])})"
            elif key not in kept:
                yield f"{where}/{key}: new ({_short(found[key])})"
            else:
                name = key.rpartition("/")[2]
                close = 0.7 if name in _FLOORS else tolerance
                if name in _TAILS and _near(kept[key], found[key], TAIL):
                    continue
                if tolerance == DOUBLE and name in _LEVELS:
                    close = LEVELS
                yield from _of_one(kept[key], found[key], close, f"{where}/{key}", 0.0)
    elif isinstance(kept, list) and isinstance(found, list):
        if len(kept) != len(found):
            yield f"{where}: {len(kept)} entries were, {len(found)} are: {_short(found)}"
        else:
            yield from _of_one(kept, found, tolerance, where, 0.0)
    else:
        yield from _of_one(kept, found, tolerance, where, 0.0)


def _of_one(kept: Any, found: Any, tolerance, where, scale):
    if isinstance(kept, list) and isinstance(found, list) and len(kept) == len(found):
        scale = max([scale, *(abs(value) for value in kept if _is_number(value))])
        for place, (one, other) in enumerate(zip(kept, found, strict=True)):
            yield from _of_one(one, other, tolerance, f"{where}/{place}", scale)
    elif isinstance(kept, dict | list) and isinstance(found, dict | list):
        yield from differences(kept, found, tolerance, where)
    elif _is_number(kept) and _is_number(found):
        if not _same_number(kept, found, tolerance, scale):
            yield f"{where}: {kept!r} was, {found!r} is"
    elif isinstance(kept, str) and isinstance(found, str):
        if not same_words(kept, found, tolerance):
            yield f"{where}: words: {kept!r} was, {found!r} is"
    elif kept != found or type(kept) is not type(found):
        yield f"{where}: {_short(kept)} was, {_short(found)} is"


def _same_number(kept: Any, found: Any, tolerance, scale):
    if isinstance(kept, int) and isinstance(found, int):
        return kept == found
    allowed = tolerance * max(abs(kept), abs(found), scale)
    if tolerance < 0.5:  # of what is as small as this, noise floors alone say something
        allowed = max(allowed, 4 * EPS, 1e-6 * tolerance)
    return abs(kept - found) <= allowed


def _near(kept, found, most):
    return _is_number(kept) and _is_number(found) and abs(kept - found) <= most


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def same_words(kept, found, tolerance):
    """Whether two texts agree, their numbers to one unit of the last digit shown."""
    if kept == found:
        return True
    if _NUMBER.split(kept) != _NUMBER.split(found):
        return False
    pairs = zip(_NUMBER.findall(kept), _NUMBER.findall(found), strict=True)
    return all(_same_shown(one, other, tolerance) for one, other in pairs)


def _same_shown(one, other, tolerance):
    a, b = (float(text.replace(",", "")) for text in (one, other))
    if max(abs(a), abs(b)) < _ROUND_OFF:
        return True
    shown = [text for text in (one, other) if "." in text or "e" in text]
    unit = max((10.0 ** _last_digit(text) for text in shown), default=0.0)
    return abs(a - b) <= max(1.01 * unit, tolerance * max(abs(a), abs(b)) if shown else 0)


def _last_digit(text):
    mantissa, _, exponent = text.partition("e")
    return int(exponent or 0) - len(mantissa.partition(".")[2])


def shortened(tree, seen=None, path=()):
    """The tree with every larger part that was there before in it named by its place."""
    seen = {} if seen is None else seen
    if not isinstance(tree, dict | list):
        return tree
    line = json.dumps(tree)
    if path and len(line) > REPEATED:
        if line in seen:
            return {AS_IN: list(seen[line])}
        seen[line] = path
    if isinstance(tree, dict):
        return {key: shortened(entry, seen, (*path, key)) for key, entry in tree.items()}
    return [shortened(entry, seen, (*path, place)) for place, entry in enumerate(tree)]


def expanded(tree, root=None):
    """The whole of a shortened tree, which is changed in place."""
    root = tree if root is None else root
    for key, entry in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(entry, dict) and AS_IN in entry:
            tree[key] = functools.reduce(operator.getitem, entry[AS_IN], root)
        elif isinstance(entry, dict | list):
            expanded(entry, root)
    return tree


def compact(tree, indent=""):
    """JSON in which what is short stands on one line."""
    line = json.dumps(tree, ensure_ascii=False)
    if not isinstance(tree, dict | list) or len(indent) + len(line) <= WIDTH:
        return line
    if isinstance(tree, list) and not any(isinstance(entry, dict | list | str) for entry in tree):
        return line
    deeper = indent + " "
    names = tree if isinstance(tree, dict) else None
    entries = tree.values() if isinstance(tree, dict) else tree
    parts = [compact(entry, deeper) for entry in entries]
    if names is not None:
        keys = (json.dumps(name, ensure_ascii=False) for name in names)
        parts = [f"{key}: {part}" for key, part in zip(keys, parts, strict=True)]
    opening, closing = "[]" if names is None else "{}"
    inner = f",\n{deeper}".join(parts)
    return f"{opening}\n{deeper}{inner}\n{indent}{closing}"


def _short(value):
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 80 else text[:77] + "..."
