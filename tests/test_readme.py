"""README.md is true: its Python runs, its set-up commands are the promised ones, its options exist.

The set-up commands themselves are run by .ci/run, word for word, in an empty environment.
"""

import os
import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.testing import CliRunner

from hessrmt.cli.app import app

README = Path(__file__).parents[1] / "README.md"
SETUP = (
    "pip install -c constraints.txt . && hessrmt spectrum --model mlp3 --data mnist --batch 64",
    'pip install -c constraints.txt ".[test]" && pytest',
)


class Block(NamedTuple):
    language: str
    line: int
    """Line of README.md, from 1, on which the text starts."""
    text: str


def blocks(text, language):
    """Fenced code blocks of one language, in order."""
    fenced = re.finditer(r"^```(\w+)[^\n]*\n(.*?)^```\s*$", text, re.DOTALL | re.MULTILINE)
    return [
        Block(found[1], text.count("\n", 0, found.start(2)) + 1, found[2])
        for found in fenced
        if found[1] == language
    ]


def commands(script):
    """Words of every ``hessrmt ...`` command of a bash script, redirections left out."""
    found = []
    for line in script.replace("\\\n", " ").splitlines():
        plain = re.sub(r"(?<=\s)\d(?=>)", "", line)  # without the 2 of 2>
        lexer = shlex.shlex(plain, posix=True, punctuation_chars=";&|<>")
        lexer.whitespace_split = True  # :-0.001 is one word
        words, redirected = [], False
        for token in [*lexer, ";"]:
            if set(token) <= set(";&|"):
                # variables set for one command come before its name
                while words and re.match(r"\w+=", words[0]):
                    words.pop(0)
                if words and words[0] == "hessrmt":
                    found.append(words)
                words = []
            elif set(token) <= set("<>"):
                redirected = True
            elif redirected:
                redirected = False
            else:
                words.append(token)
    return found


TEXT = README.read_text(encoding="utf-8")
PYTHON = blocks(TEXT, "python")
COMMANDS = [words for block in blocks(TEXT, "bash") for words in commands(block.text)]


class Script:
    """One namespace in which the README's Python is run from the top."""

    def __init__(self):
        self.namespace = {"__name__": "readme"}
        self.done = 0

    def run_through(self, number):
        """Run every block up to this one that has not run yet, so that one test can run alone."""
        while self.done <= number:
            block = PYTHON[self.done]
            # line numbers of README.md in tracebacks
            code = compile("\n" * (block.line - 1) + block.text, str(README), "exec")
            exec(code, self.namespace)
            self.done += 1


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """The script in an empty folder; pictures are drawn without a screen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("readme"))
        patch.setenv("MPLBACKEND", "agg")
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        yield Script()


@pytest.mark.parametrize("number", range(len(PYTHON)), ids=lambda n: f"line-{PYTHON[n].line}")
def test_python_runs(script, number):
    script.run_through(number)


def test_the_page_on_problems_runs():
    page = README.parent / "docs" / "problems.md"
    namespace = {"__name__": "problems"}
    for block in blocks(page.read_text(encoding="utf-8"), "python"):
        exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), namespace)
    assert set(namespace["spectra"]) == {"0", "2"}
    assert namespace["last"].shape == (27, 27)


@pytest.mark.parametrize("command", SETUP, ids=["run", "test"])
def test_setup_command_is_there_word_for_word(command):
    lines = [line for block in blocks(TEXT, "bash") for line in block.text.splitlines()]
    assert lines.count(command) == 1


def test_cpu_build_of_torch_is_the_pinned_one():
    # another version would be replaced by the next command
    (asked,) = re.findall(r"^pip install torch==(\S+) --index-url \S+/cpu$", TEXT, re.MULTILINE)
    pins = (README.parent / "constraints.txt").read_text(encoding="utf-8")
    assert f"\ntorch=={asked}\n" in pins


def test_sample_of_the_table_has_the_columns_that_are_printed(tmp_path):
    (sample,) = (block.text.splitlines() for block in blocks(TEXT, "text"))
    words = ["spectrum", "--model", "logistic", "--batches", "1", "--out", str(tmp_path / "a.h5")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    _, heading, _, *legend = result.stdout.splitlines()
    assert sample[1].split() == heading.split()
    assert sample[-2:] == legend[1:3]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_command_parses(words):
    # --help ends the command after its words were parsed and before it runs
    result = CliRunner().invoke(app, [*words[1:], "--help"])
    assert result.exit_code == 0, result.output
