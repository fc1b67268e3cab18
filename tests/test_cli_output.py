"""What is printed where: results on standard output as they come, everything else on the other."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from gate import open_gate

from hessrmt.cli import console
from hessrmt.config import SpectrumConfig
from hessrmt.runs import spectrum
from hessrmt.store.spectra import load

HESSRMT = Path(sys.executable).parent / "hessrmt"
BATCHES = 3
RUN = [
    *("spectrum", "--model", "logistic", "--data", "tiny.npz", "--device", "cpu"),
    *("--batch", "10", "--batches", str(BATCHES), "--out", "a.h5"),
]
HEADING = "batch λ min λ max floor rows certified ⟨r̃⟩ reduce matrix eigen"


def rows_of(text):
    """Cells of the rows of a table of results."""
    return [line.split() for line in text.splitlines() if re.match(r" *\d+ .*\d$", line)]


def numbers(text):
    return [int(row[0]) for row in rows_of(text)]


@pytest.fixture
def held(start_cli, tiny_npz, monkeypatch):
    """Start a run that stops before its second batch, with buffers, as people have them."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    return lambda *words: start_cli(*RUN, *words, stop=("hessrmt.runs.spectrum:compute", 2))


def printed_so_far(process):
    """What is in the pipe of standard output, without waiting for more."""
    return os.read(process.stdout.fileno(), 65536).decode()


def test_a_row_is_there_before_the_next_batch_is_done(held, tmp_path):
    process = held()
    os.set_blocking(process.stdout.fileno(), False)
    first = printed_so_far(process)
    assert numbers(first) == [0]
    assert len(load(tmp_path / "a.h5")) == 1
    os.set_blocking(process.stdout.fileno(), True)
    open_gate(tmp_path)
    rest, _ = process.communicate()
    assert process.returncode == 0
    assert numbers(first + rest) == [0, 1, 2]


def test_what_was_printed_stays_after_an_interrupt_and_is_printed_again_by_resume(held, cli):
    process = held()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130
    assert numbers(out) == [0]
    assert "interrupted" in err
    resumed = cli(*RUN, "--resume")
    assert resumed.returncode == 0
    assert numbers(resumed.stdout) == [0, 1, 2]
    assert rows_of(resumed.stdout)[0] == rows_of(out)[0]
    # when everything is there already, too
    assert rows_of(cli(*RUN, "--resume").stdout) == rows_of(resumed.stdout)


def test_redirected_to_a_file(tmp_path, tiny_npz):
    command = f"{HESSRMT} {' '.join(RUN)} > out.txt 2> err.txt"
    assert subprocess.run(["bash", "-c", command], cwd=tmp_path, check=False).returncode == 0
    out, err = ((tmp_path / name).read_text("utf-8") for name in ("out.txt", "err.txt"))
    title, heading, *lines = out.splitlines()
    assert title == "Hessian of logistic, tiny.npz, batch 10, P = 21"
    assert " ".join(heading.split()) == HEADING
    spectra = load(tmp_path / "a.h5")
    for number, (row, item) in enumerate(zip(rows_of(out), spectra, strict=True)):
        ends = [f"{item.eigenvalues[place]:.3g}" for place in (0, -1)]
        sizes = [str(item.reduced_dimension), str(item.rank)]
        assert row[:6] == [str(number), *ends, f"{item.noise_floor:.1g}", *sizes]
    # fixed columns: all right edges are those of the heading
    edges = [[found.end() for found in re.finditer(r"\S+", line)] for line in lines[:BATCHES]]
    assert all(line == edges[0] for line in edges)
    assert f"{BATCHES} batches, float64, cpu" in out
    assert "directions the loss is exactly constant" in out
    assert not re.search(r"[\x1b\r…]", out + err)
    for note in ("data: ", "parameters: random initialisation", "written: a.h5"):
        assert note in err
        assert note not in out


def test_json_alone_on_standard_output(held, tmp_path):
    process = held("--json")
    os.set_blocking(process.stdout.fileno(), False)
    with pytest.raises(BlockingIOError):
        printed_so_far(process)
    os.set_blocking(process.stdout.fileno(), True)
    open_gate(tmp_path)
    out, err = process.communicate()
    assert process.returncode == 0
    assert out.count("\n") == 1
    assert len(json.loads(out)["batches"]) == BATCHES
    assert numbers(err) == [0, 1, 2]


def test_rows_come_in_the_order_in_which_batches_are_done(tmp_path, tiny_npz):
    class Backwards:
        local, width, words = True, 1, ""

        def map_unordered(self, function, items):
            items = list(items)
            for index in reversed(range(len(items))):
                yield index, function(items[index])

    config = SpectrumConfig(model="logistic", data=str(tiny_npz), batch=10, batches=BATCHES)
    seen = []

    def finished(batch, found):
        # on disk before it is told
        assert any(item.loss == found.loss for item in load(tmp_path / "a.h5"))
        seen.append((batch, found.loss))

    prepared = spectrum.prepare(config)
    spectra = spectrum.run(prepared, tmp_path / "a.h5", finished=finished, pool=Backwards())
    assert seen == [(number, spectra[number].loss) for number in (2, 1, 0)]


def test_a_reader_that_leaves_ends_the_run(tmp_path, tiny_npz):
    command = f"({HESSRMT} {' '.join(RUN)}; echo code $? >&2) | true"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.stderr.endswith("code 1\n")
    assert len(load(tmp_path / "a.h5")) >= 1


def test_quiet(tmp_path, tiny_npz, cli):
    done = cli(*RUN, "-q")
    assert (done.returncode, done.stderr) == (0, "")
    assert numbers(done.stdout) == [0, 1, 2]
    assert "error: " in cli(*RUN, "-q").stderr  # the file exists


@pytest.mark.slow
def test_standard_output_that_knows_no_greek(run_cli, tiny_npz, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = run_cli(*RUN)
    assert done.returncode == 0, done.stderr
    assert numbers(done.stdout) == [0, 1, 2]


# On a terminal


def on_terminal(command, place, columns):
    """What a command sends to a terminal."""
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (50, columns))
    environment = {**os.environ, "TERM": "xterm-256color"}
    for name in ("NO_COLOR", "COLUMNS", "LINES", "FORCE_COLOR", "TTY_INTERACTIVE"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [HESSRMT, *command],
        cwd=place,
        env=environment,
        stdin=follower,
        stdout=follower,
        stderr=follower,
    )
    os.close(follower)
    sent = b""
    try:
        while piece := os.read(leader, 65536):
            sent += piece
    except OSError:  # the other end is closed
        pass
    os.close(leader)
    assert process.wait() == 0
    return sent.decode()


def screen(sent):
    """The lines that a terminal shows after what was sent to it."""
    lines, row, column = [""], 0, 0
    for text, number, letter in re.findall(r"([^\x1b]+)|\x1b\[([?\d;]*)([A-Za-z])", sent):
        if letter == "A":
            row = max(0, row - int(number or 1))
        elif letter == "K":
            assert number == "2"
            lines[row] = ""
        else:
            assert text or letter in "mhl"  # colours, cursor on and off
        for character in text:
            if character == "\r":
                column = 0
            elif character == "\n":
                row += 1
                lines += [""] * (row + 1 - len(lines))
            else:
                line = lines[row].ljust(column)
                lines[row] = line[:column] + character + line[column + 1 :]
                column += 1
    return [line.rstrip() for line in lines]


@pytest.mark.parametrize("columns", [pytest.param(80, marks=pytest.mark.slow), 120])
def test_bars_and_rows_on_one_terminal(tmp_path, tiny_npz, columns):
    sent = on_terminal(RUN, tmp_path, columns)
    assert f"{BATCHES - 1}/{BATCHES}" in sent  # there were bars
    shown = screen(sent)
    assert "data: " in shown[0]
    begin = shown.index("Hessian of logistic, tiny.npz, batch 10, P = 21")
    assert " ".join(shown[begin + 1].split()) == HEADING
    for number in range(BATCHES):
        assert re.fullmatch(rf" +{number} .*\d", shown[begin + 2 + number])
    assert shown[begin + 2 + BATCHES].startswith(f"{BATCHES} batches, float64")
    assert "written: a.h5" in shown
    assert not any("━" in line for line in shown)  # and they are gone


def test_a_log_gets_a_line_for_every_tenth(capsys):
    for quiet in (True, False):
        console.begin(quiet=quiet, json=False)
        with console.Meter(lines=True) as tick, console.Meter() as silent:
            for done in range(41):
                tick("training: loss 0.5", done, 40)
                silent("other", done, 40)
            for done in (2, 5, 1, 3, 10):  # a search that begins again
                tick("products", done, 10)
            tick("one step", 1, 1)
    told = capsys.readouterr().err.splitlines()
    steps = [f"training: loss 0.5, {done} of 40" for done in range(4, 41, 4)]
    assert told == [*steps, *(f"products, {done} of 10" for done in (2, 5, 10))]


def test_a_log_of_many_kinds_of_work_gets_a_line_every_ten_seconds(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console.time, "perf_counter", lambda: now[0])
    console.begin(quiet=False, json=False)
    with console.Meter(one=True, lines=True) as tick:
        for item in range(5):
            tick(f"levels of {item}", item, 5)
            now[0] += 6
        now[0] += 60
        tick("levels of 4", 4, 5)  # told already
    told = capsys.readouterr().err.splitlines()
    assert told == [f"levels of {item}, {item} of 5" for item in (0, 2, 4)]
