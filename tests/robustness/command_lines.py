"""Give every command words that are wrong, and see whether each is refused in one sentence.

    python tests/robustness/command_lines.py [--count 200] [--seed 0] [--all] [--real 10]

Options that don't exist, values of the wrong kind, out of range, far too large, empty or NaN;
inputs that are missing, folders, devices, pipes, empty or noise; outputs that are inputs or no
files; options that exclude each other; settings and tables that are malformed. Each must end with
exit status 2 and one sentence on standard error, nothing on standard output, and all files as they
were.
"""

from __future__ import annotations

import argparse
import collections
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).parents[1]))

from cases import NET, WARM, write_inputs
from disk_full import sentence
from faults import POSSIBLE, Outcome, Program

from hessrmt.cli.app import app

RIGHT = {
    "spectrum": f"{NET} --batch 10 --batches 1 --out new.h5",
    "train": f"{NET} --batch 16 --epochs 1 --out new.pt",
    "levels": "s.h5 --surrogates 0",
    "plot": "s.h5 --out new.png",
    "density": f"{NET} --batch 60 --steps 4 --probes 1 --out new.h5",
    "landscape": f"{NET} --batch 60 --points 3 --out new.h5",
    "simulate": "--samples 1 --dimension 6 --out new.h5",
    "capacity": "n.pt",
    "normalize": f"{NET} --checkpoint n.pt --batch 10",
    "reproduce": "settings.toml --out new",
    "report": "s.h5 --surrogates 0 --out new.html",
    "info": "s.h5",
    "data list": "",
}
"""Command to words that would be right."""

BEFORE = (
    f"train {NET} --batch 16 --epochs 1 --out n.pt -q",
    "simulate --samples 2 --dimension 12 --out s.h5 -q",
)

FREE = {"--title"}
"""Options whose value may be any text."""

EMPTY = {"--data-dir", "--columns"}
"""... nothing: the current folder, all columns."""

NEGATIVE = {"--given-loss"}
"""... any number."""

INFINITE = {"--norm"}

FOLDERS = {("--plot", "levels"), ("--plot", "capacity"), ("--plot", "normalize")}
"""... nothing, too."""

SCARY = {
    "not there": "absent",
    "a folder": "folder",
    "a device": "/dev/zero",
    "a pipe": "pipe",
    "empty": "empty",
    "noise": "noise",
}

INPUTS = {
    "--data": (".npz", "spectrum train density landscape normalize"),
    "--checkpoint": (".pt", "spectrum density landscape normalize"),
    "--model": (".py:net", "spectrum train density landscape normalize"),
    "--loss": (".py:loss", "spectrum train density landscape"),
    "--config": (".toml", "spectrum train levels density landscape simulate capacity normalize"),
    "--against": (".csv", "capacity"),
    "--base": (".pt", "capacity"),
    "--initial": (".pt", "capacity"),
    "": (".h5", "levels plot capacity reproduce report info"),
}
"""Option, or the argument, to the ending of its file and the commands that have it."""

OUTPUTS = {
    "--out": "spectrum train plot density landscape simulate report",
    "--csv": "spectrum train levels density landscape simulate capacity normalize report info",
    "--plot": "density landscape",
    "--history": "train",
}

CONTRADICTORY = [
    ("spectrum", "--resume --overwrite"),
    ("train", "--resume --overwrite"),
    ("density", "--resume --overwrite"),
    ("simulate", "--resume --overwrite"),
    ("spectrum", "--json --markdown"),
    ("info", "--json --markdown"),
    ("spectrum", "--workers 2 --scheduler tcp://127.0.0.1:1"),
    ("spectrum", "--out new.h5 --csv new.h5"),
    ("train", "--history new.pt"),
    ("spectrum", "--batch 61"),
    ("spectrum", "--batches 7"),
    ("density", "--samples 61"),
    ("density", "--window 0.5:0.1"),
    ("density", "--window 0.1:0.5 --top 3"),
    ("levels", "--window 5:1"),
    ("levels", "--compare --cutoff 0.1"),
    ("levels", "--unfold polynomial:degree=-1"),
    ("levels", "--unfold polynomial:order=7"),
    ("levels", "--block layer"),
    ("plot", "--block layer"),
    ("plot", "--out new.docx"),
    ("landscape", "--points 4"),
    ("landscape", "--directions 3"),
    ("simulate", "--kernel p-spin --p 1"),
    ("simulate", "--kernel matern --nu 1"),
    ("simulate", "--kernel mixed-spherical"),
    ("simulate", "--coefficients 1,x"),
    ("simulate", "--outlier-values 1,,nan"),
    ("simulate", "--outliers 2 --outlier-values 3"),
    ("capacity", "--side-by-side"),
    ("capacity", "--columns nothing"),
    ("capacity", "--only nothing.*"),
    ("capacity", "--x-max nothing"),
    ("train", "--decay-start 9 --decay-end 3"),
    ("train", "--out new.txt"),
    ("train", "--history new.h5 --history-batch 61"),
    ("train", "--history new.h5 --history-epochs 9"),
    ("train", "--history-epochs 0,1"),
    ("reproduce", "--preset nothing"),
    ("reproduce", "--out s.h5"),
]

SETTINGS = {
    "boolean for a number": "batch = true",
    "text for a number": 'batch = "many"',
    "a list for a number": "batch = [1, 2]",
    "a fraction for a number": "batch = 1.5",
    "NaN": "seed = nan",
    "infinity": "batch = inf",
    "huge": f"batch = 1{'0' * 20}",
    "negative": "seed = -3",
    "unknown name": "bach = 3",
    "a table": "[batch]\nsize = 3",
    "a date": "seed = 2026-01-01",
    "twice": "seed = 1\nseed = 2",
    "no value": "seed =",
    "open text": 'model = "logistic',
    "no TOML": "seed: 3",
    "deep": f"seed = {'[' * 5000}",
    "thousands of digits": f"seed = 1{'0' * 5000}",
    "nothing for a word": 'device = ""',
    "a number for a word": "device = 3",
    "zero bytes": "seed = 1\0",
}
"""Of any command that has ``batch`` and ``seed``."""

TABLES = {
    "no columns": "",
    "one column": "name\nn.pt\n",
    "a row too long": "path,top1\nn.pt,0.5,0.7\n",
    "no number": "path,top1\nn.pt,high\n",
    "a column twice": "path,top1,top1\nn.pt,0.5,0.6\n",
    "no such file": "path,top1\nabsent.pt,0.5\n",
    "an open quote": 'path,top1\n"n.pt,0.5\n',
    "another separator": "path|top1\nn.pt|0.5\n",
    "no header": "n.pt,0.5\n",
    "not a word of UTF-8": b"path,top1\n\xff\xfe,0.5\n",
    "zero bytes": b"path,top1\nn.pt\0,0.5\n",
}


def options():
    """Every option of every command: (command, option, type, whether it takes a value)."""
    found = []

    def look(name, command):
        for word, below in getattr(command, "commands", {}).items():
            look(f"{name} {word}".strip(), below)
        if name in RIGHT:
            for one in command.params:
                if one.opts[0].startswith("--"):
                    kind = one.type_descriptor.annotation
                    found.append((name, one.opts[0], kind, not one.is_flag))

    look("", typer.main.get_command(app))
    return found


def every_line():
    """All wrong command lines that there are, by what is wrong.

    Returns:
        Kind to a list of words and of the files that they need, name to content.
    """
    found = collections.defaultdict(list)

    def add(kind, command, more, files=None):
        words = [*command.split(), *RIGHT[command].split(), *more]
        found[kind].append((words, files or {}))

    for command, option, kind, valued in options():
        add("unknown option", command, [f"{option}x"])
        if not valued:
            add("a value for a flag", command, [f"{option}=maybe"])
            continue
        add("no value", command, [option])
        if option not in FREE | EMPTY and (option, command) not in FOLDERS:
            add("empty", command, [option, ""])
        text = "int" not in str(kind) and "float" not in str(kind)
        numbers = ["x", "", "1,5", "½", "1e400", "nan", "--"]
        if not text:
            for value in numbers + (["1.5", "0x10"] if "int" in str(kind) else []):
                if value == "1e400" and option in INFINITE:
                    continue
                add("no number", command, [option, value])
            if option not in NEGATIVE:
                add("negative", command, [option, "-3"])
            if "int" in str(kind):
                add("huge", command, [option, f"1{'0' * 20}"])
        elif option not in FREE and "Path" not in str(kind):
            add("no such word", command, [option, "nothing.*" if option == "--only" else "nothing"])
    for option, (ending, commands) in INPUTS.items():
        for command in commands.split():
            for kind, name in SCARY.items():
                if option == "--config" and kind == "empty":
                    continue  # no settings
                named = name if name.startswith("/") or name == "folder" else f"{name}{ending}"
                words = [*command.split(), *RIGHT[command].split(), *([option] * bool(option))]
                if option:
                    found[f"input {kind}"].append(([*words, named], {}))
                else:
                    given = [named, *RIGHT[command].split()[1:]]
                    found[f"input {kind}"].append(([*command.split(), *given], {}))
    for option, commands in OUTPUTS.items():
        ending = {"--csv": ".csv", "--plot": ".png", "--history": ".h5"}
        for command in commands.split():
            own = next((w for w in RIGHT[command].split() if w.startswith("new.")), "new.csv")
            last = ending.get(option, Path(own).suffix)
            names = ["folder", f"pipe{last}", f"absent/new{last}", ""]
            names += ["/dev/full"] if command != "plot" else []  # which adds its ending
            for kind in (*names, *(["tiny.npz"] if "tiny.npz" in RIGHT[command] else [])):
                more = ["--overwrite"] if "--overwrite" in str(options_of(command)) else []
                add("output", command, [option, kind, *more])
    for command, more in CONTRADICTORY:
        add("contradictory", command, more.split())
    for command in INPUTS["--config"][1].split():
        for content in SETTINGS.values():
            if "batch" not in content or "--batch" in options_of(command):
                kept = without(RIGHT[command].split(), "--batch", "--seed", "--device")
                words = [command, *kept, "--config", "wrong.toml"]
                found["settings"].append((words, {"wrong.toml": content}))
    for content in TABLES.values():
        add("table", "capacity", ["--against", "wrong.csv"], {"wrong.csv": content})
    for command in RIGHT:
        add("too many words", command, ["one", "more"])
        found["unknown command"].append(([f"{command}s"], {}))
    found["unknown command"] += [(["--nothing"], {}), ([""], {}), (["data", "nothing"], {})]
    return found


def options_of(command):
    return [option for name, option, _, _ in options() if name == command]


def without(words, *left_out):
    """Words without some options and their values."""
    drop = {i + k for i, word in enumerate(words) if word in left_out for k in (0, 1)}
    return [word for i, word in enumerate(words) if i not in drop]


def drawn(count, seed):
    """Some of all lines, as many of each kind as there are."""
    every, draw, found = every_line(), np.random.default_rng(seed), []
    for kind in every:
        draw.shuffle(every[kind])
    while len(found) < count and any(every.values()):
        found += [(kind, *every[kind].pop()) for kind in every if every[kind]]
    return found[:count]


class Place:
    """A folder with inputs, right ones and others."""

    def __init__(self, program, folder):
        self.folder = write_inputs(folder)
        for words in BEFORE:
            done = program.run(words.split(), folder)
            assert done.code == 0, done.err
        (folder / "folder").mkdir()
        (folder / "settings.toml").write_text('experiment = "gp-loss-model"\n')
        draw = np.random.default_rng(0)
        endings = {ending.partition(":")[0] for ending, _ in INPUTS.values()}
        for last in endings:
            (folder / f"empty{last}").touch()
            (folder / f"noise{last}").write_bytes(draw.bytes(700))
        for last in endings | {".png", ".html"}:
            os.mkfifo(folder / f"pipe{last}")
        self.program = program

    def state(self):
        """All files; what Python keeps of modules left out."""
        found = {}
        for path in self.folder.rglob("*"):
            if "__pycache__" not in path.parts and "cache" not in path.parts:
                found[path.name] = path.read_bytes() if path.is_file() else path.lstat().st_mode
        return found

    def wrong(self, words, files, real=False):
        """What is wrong with how words are refused."""
        for name, content in files.items():
            put = content.encode() if isinstance(content, str) else content
            (self.folder / name).write_bytes(put)
        before = self.state()
        done = self.apart(words) if real else self.program.run(words, self.folder)
        found = sentence(done, 2)
        if done.out.strip():
            found.append(f"standard output: {done.out[:200]}")
        if self.state() != before:
            changed = {n for n, v in self.state().items() if before.get(n) != v}
            found.append(f"files have changed: {sorted(changed)}")
            for name in changed - before.keys():
                (self.folder / name).unlink(missing_ok=True)
        if done.seconds > 30:
            found.append(f"it took {done.seconds:.0f} s")
        return found

    def apart(self, words):
        """Run as a user does."""
        begun, program = time.monotonic(), Path(sys.executable).parent / "hessrmt"
        try:
            done = subprocess.run(
                [program, *words],
                cwd=self.folder,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            return Outcome(-9, "", "HANG", 0, 0, 0, 60.0)
        seconds = time.monotonic() - begun
        return Outcome(done.returncode, done.stdout, done.stderr, 0, 0, 0, seconds)


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--count", type=int, default=200)
    arguments.add_argument("--all", action="store_true", help="every line that there is")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument(
        "--real", type=int, default=10, help="of them, as processes of their own"
    )
    chosen = arguments.parse_args()
    if not POSSIBLE:
        sys.exit("this needs Linux and a C compiler")
    counts, worst, begun = collections.Counter(), 0, time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        with Program(WARM, write_inputs(folder / "warm")) as program:
            place = Place(program, folder / "place")
            lines = drawn(10**6 if chosen.all else chosen.count, chosen.seed)
            for number, (kind, words, files) in enumerate(lines):
                faults = place.wrong(words, files, real=number < chosen.real)
                counts[kind] += 1
                worst += bool(faults)
                if faults:
                    print(" ".join(word or "''" for word in words), files or "")
                    for fault in faults:
                        print("   ", fault)
                    sys.stdout.flush()
    print(", ".join(f"{kind} {count}" for kind, count in counts.items()))
    print(f"{sum(counts.values())} lines, {worst} faults ({time.monotonic() - begun:.0f} s)")
    return worst > 0


if __name__ == "__main__":
    sys.exit(main())
