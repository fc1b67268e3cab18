"""The command line: what it prints where, its exit codes, and one clear error for each mistake."""

import json
import os
import re
import resource
import stat
import subprocess
import sys
import textwrap
import typing
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from level_samples import write_file
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from hessrmt import experiments  # noqa: F401
from hessrmt.cli import console, options
from hessrmt.config import Settings, SpectrumConfig, load_settings
from hessrmt.records import Spectrum
from hessrmt.store.spectra import load


def every_settings(kind):
    """Settings classes, those of experiments too."""
    return {found for sub in kind.__subclasses__() for found in ({sub} | every_settings(sub))}


def types_in(annotation):
    """All types that a setting may have."""
    parts = typing.get_args(annotation)
    return [found for part in parts for found in types_in(part)] or [annotation]


USER_CODE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        return self.layer(x)


class Crashing(Net):
    def forward(self, x):
        raise KeyError("who knows")


class Infinite(Net):
    def forward(self, x):  # infinite only for data with a value above 99
        return self.layer(x) * torch.where(x.max() > 99, torch.inf, 1.0)


class Stateful(Net):
    def forward(self, x):
        return self.layer(x) * torch.rand(())


def narrow():
    return nn.Linear(6, 2)


def flat():
    return nn.Sequential(nn.Linear(6, 1), nn.Flatten(0))


def wrong_input():
    return nn.Linear(5, 3)


def frozen():
    return Net().requires_grad_(False)


def failing():
    raise RuntimeError("no luck")


def number():
    return 3


constant = 3


def loss_per_sample(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="none")
"""


@pytest.fixture
def place(tmp_path, tiny_npz):
    """A folder with everything that can be wrong in it."""
    (tmp_path / "user.py").write_text(USER_CODE)
    (tmp_path / "broken.py").write_text("import no_such_module_here\n")
    (tmp_path / "syntax.py").write_text("def f(:\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "taken.h5").write_text("precious")
    (tmp_path / "type.toml").write_text('batch = "many"\n')
    (tmp_path / "key.toml").write_text(f"a{'.a' * 2000} = 1\n")
    (tmp_path / "name.toml").write_text('"a\\nb\\u001b" = 1\n')
    (tmp_path / "names.toml").write_text("".join(f"k{i} = 1\n" for i in range(2000)))
    (tmp_path / "deep.toml").write_text(f"batch = {'[' * 2000}\n")
    with np.load(tiny_npz) as tiny:
        x, y = tiny["x"], tiny["y"]
    for name, row, value in (("inf", 17, np.inf), ("late", 25, 100)):
        changed = x.copy()
        changed[row, 2] = value
        np.savez(tmp_path / f"{name}.npz", x=changed, y=y)
    net = nn.Linear(6, 3).state_dict()
    good = {f"1.{name}": value for name, value in net.items()}
    torch.save(good, tmp_path / "good.pt")
    torch.save(net, tmp_path / "names.pt")
    save_file({**good, "1.bias": torch.tensor([0, np.nan, 0])}, tmp_path / "nan.safetensors")
    return tmp_path


RUN = ["spectrum", "--model", "logistic", "--data", "tiny.npz", "--batch", "10", "--batches", "2"]
SMALL = ["--model", "logistic", "--data", "tiny.npz"]

BAD = {
    "argument": ([*RUN, "stray"], ["stray"]),
    "data": ([*RUN, "--data", "cifar"], ["cifar", "mnist", "npz"]),
    "device number": ([*RUN, "--device", "cuda:99"], ["'cuda:99'"]),
    "seed word": ([*RUN, "--seed", "x"], ["--seed", "integer"]),
    "seed huge": ([*RUN, "--seed", str(2**64)], ["seed", "18446744073709551615"]),
    "workers": ([*RUN, "--workers", str(10**20)], ["--workers", "4096"]),
    "toml deep": ([*RUN, "--config", "deep.toml"], ["deep.toml", "nested too deep"]),
    "batch word": ([*RUN, "--batch", "many"], ["batch", "integer", "'many'"]),
    "batch fraction": ([*RUN, "--batch", "2.5"], ["batch", "integer", "'2.5'"]),
    "batches odd": ([*RUN, "--batches", "²"], ["batches", "'all'", "'²'"]),
    "checkpoint names": ([*RUN, "--checkpoint", "names.pt"], ["does not fit", "1.weight"]),
    "checkpoint NaN": ([*RUN, "--checkpoint", "nan.safetensors"], ["NaN", "'1.bias'"]),
    "checkpoint kind": ([*RUN, "--checkpoint", "user.py"], ["user.py", ".safetensors"]),
    "inf data": ([*RUN, "--data", "inf.npz"], ["inf.npz", "infinite", "row 17"]),
    "out is folder": ([*RUN, "--out", "folder"], ["folder", "is a folder"]),
    "out is folder, overwrite": ([*RUN, "--out", "folder", "--overwrite"], ["is a folder"]),
    "out long": ([*RUN, "--out", "x" * 300], ["too long"]),
    "toml key": ([*RUN, "--config", "key.toml"], ["key.toml", "nested too deep"]),
    "toml name": ([*RUN, "--config", "name.toml"], [r"a\nb\x1b: there is no such setting"]),
    "toml names": ([*RUN, "--config", "names.toml"], ["k7: there", "and 1,992 more like it"]),
    "batches of all": ([*RUN, "--batch", "all"], ["batch = all", "one batch of the split, not 2"]),
    "toml type": (["spectrum", "--config", "type.toml"], ["batch", "integer", "'many'"]),
    "toml missing": ([*RUN, "--config", "no.toml"], ["no.toml", "No such file"]),
    "plugin no name": ([*RUN, "--model", "user.py:"], ["file.py:name"]),
    "plugin import": ([*RUN, "--model", "broken.py:f"], ["broken.py", "no_such_module_here"]),
    "plugin syntax": ([*RUN, "--model", "syntax.py:f"], ["syntax.py", "SyntaxError"]),
    "factory raises": ([*RUN, "--model", "user.py:failing"], ["RuntimeError", "no luck"]),
    "factory number": ([*RUN, "--model", "user.py:number"], ["int", "torch.nn.Module"]),
    "factory constant": ([*RUN, "--model", "user.py:constant"], ["not callable"]),
    "few outputs": ([*RUN, "--model", "user.py:narrow"], ["labels run from 0 to 2", "2 outputs"]),
    "flat outputs": ([*RUN, "--model", "user.py:flat"], ["(batch, classes)", "(10,)"]),
    "wrong input": ([*RUN, "--model", "user.py:wrong_input"], ["RuntimeError", "10x6"]),
    "frozen": ([*RUN, "--model", "user.py:frozen"], ["no trainable parameters"]),
    "forward raises": ([*RUN, "--model", "user.py:Crashing"], ["batch 0", "KeyError", "who knows"]),
    "random": ([*RUN, "--model", "user.py:Stateful"], ["batch 0", "deterministic", "eval()"]),
    "loss vector": ([*RUN, "--loss", "user.py:loss_per_sample"], ["one number", "(10,)"]),
    "lenet on features": ([*RUN, "--model", "lenet5"], ["lenet5", "images", "(6,)"]),
    "plot foreign": (["plot", "user.py"], ["user.py", "HDF5"]),
    "plot no file": (["plot"], ["file", "plot --help"]),
}

"""Beside those whose messages are in tests/golden/."""


def the_error(result):
    """The text of the one error on standard error."""
    assert "Traceback" not in result.stderr
    paragraphs = re.findall(r"^error: (.+)$", result.stderr, re.MULTILINE)
    assert len(paragraphs) == 1, result.stderr
    assert result.stderr.count("error:") == 1
    return result.stderr[result.stderr.index("error:") :]


@pytest.mark.parametrize("mistake", BAD)
def test_bad_input(place, refused, mistake):
    """No file is made, so that the corrected command runs as it is."""
    arguments, words = BAD[mistake]
    refused([*arguments, *(["--json"] if arguments[0] == "spectrum" else [])], words)


def test_settings_as_windows_saves_them(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text('model = "mlp3"\ndata = "mnist"\n', encoding="utf-8-sig")
    assert load_settings(SpectrumConfig, file).model == "mlp3"


# Output


def test_error_text_is_not_markup(capsys):
    console.fail("outputs [bold] and [/nothing] of a.h5")
    assert capsys.readouterr().err == "error: outputs [bold] and [/nothing] of a.h5\n"


# Runs that fail on the way


def test_non_finite_loss_in_a_later_batch(place, cli):
    run = ["spectrum", "--model", "user.py:Infinite", "--data", "late.npz", "--batch", "10"]
    result = cli(*run, "--batches", "all", "--out", "a.h5")
    assert result.returncode == 1
    said = the_error(result)
    assert [row.split()[0] for row in result.stdout.splitlines()[2:]] == ["0", "1"]
    assert "batch 2" in said
    assert "inf" in said or "nan" in said
    with h5py.File(place / "a.h5") as file:
        assert file["done"][:].tolist() == [1, 1, 0, 0, 0, 0]
        assert np.isnan(file["hessian_evals"][2:]).all()
    assert len(load(place / "a.h5")) == 2


def test_too_little_memory_makes_no_file_and_costs_none(place, refused):
    (place / "wide.py").write_text(
        "from torch import nn\n"
        "def wide():\n"
        "    hidden = 100_000\n"
        "    return nn.Sequential(nn.Linear(6, hidden), nn.Tanh(), nn.Linear(hidden, 3))\n"
    )
    for how in (["--out", "taken.h5", "--overwrite"], ["--reduce", "none", "--out", "new.h5"]):
        command = [*RUN, "--model", "wide.py:wide", *how]
        refused(command, ["the largest that fits here", "GiB free"])


def test_a_failing_model_does_not_cost_the_file_it_was_to_replace(place, refused):
    refused([*RUN, "--model", "user.py:Crashing", "--out", "taken.h5", "--overwrite"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--batches", "1"], ["batches (2 in the file, only 1 now)"]),
        (["--checkpoint", "good.pt"], ["checkpoint_sha256 (''", "parameters_sha256"]),
        (["--data", "late.npz"], ["data_sha256", "'late.npz' now"]),
        (["--loss", "mse"], ["'mse' now"]),
    ],
)
def test_resume_with_another_configuration(place, cli, refused, change, words):
    assert cli(*RUN, "--out", "a.h5").returncode == 0
    refused([*RUN, *change, "--out", "a.h5", "--resume"], [*words, "a.h5", "--out"])


def test_resume_without_a_file_starts_one_and_with_more_batches_extends_it(place, cli):
    assert cli(*RUN, "-o", "a.h5", "--resume").returncode == 0
    first = load(place / "a.h5")
    assert cli(*RUN, "-o", "a.h5", "--resume", "--batches", 3).returncode == 0
    assert cli(*RUN, "-o", "b.h5", "--batches", 3).returncode == 0
    longer, whole = load(place / "a.h5"), load(place / "b.h5")
    np.testing.assert_array_equal(longer.eigenvalues, whole.eigenvalues)
    np.testing.assert_array_equal(longer.eigenvalues[:2], first.eigenvalues)


# plot


def test_plot_names_its_file(place, cli, refused):
    assert cli(*RUN, "--out", "a.h5").returncode == 0
    for arguments, name in (([], "a.png"), (["--out", "noending"], "noending.png")):
        assert cli("plot", "a.h5", *arguments).stderr == f"written: {name}\n"
        assert (place / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    refused(["plot", "a.h5", "--out", "folder"], ["is a folder"])


@pytest.mark.parametrize(
    ("words", "others"),
    [
        (["plot", "a.h5", "--out", "p.png"], []),
        (["plot", "a.h5", "--out", "p"], []),  # which becomes p.png
        (
            ["density", *SMALL, "--samples", 20, "--steps", 3, "--probes", 1, "--plot", "p.png"],
            ["--resume"],
        ),
        (["landscape", *SMALL, "--batch", 20, "--points", 3, "--plot", "p.png"], []),
    ],
    ids=lambda words: words[0] if words else "",
)
def test_a_picture_is_replaced_only_if_asked_for(place, cli, refused, words, others):
    (place / "p.png").write_bytes(b"mine")
    write_file(place / "a.h5", [Spectrum(np.arange(1.0, 9), 0.0, 8, 8)])
    refused(words, ["p.png exists", "--overwrite replaces it"])
    assert not (place / "density.h5").exists()
    for how in ("--overwrite", *others):
        (place / "p.png").write_bytes(b"mine")
        assert cli(*words, how).returncode == 0
        assert (place / "p.png").read_bytes().startswith(b"\x89PNG")


# output never destroys input


@pytest.mark.parametrize(
    "words",
    [
        [*RUN, "--out", "tiny.npz", "--overwrite"],
        [*RUN, "--out", "link.npz", "--overwrite"],
        [*RUN, "--out", "./folder/../tiny.npz", "--overwrite"],
        [*RUN, "--out", "hard.npz", "--overwrite"],
        [*RUN, "--model", "user.py:factory", "--out", "user.py", "--overwrite"],
        [*RUN, "--config", "run.toml", "--out", "run.toml", "--overwrite"],
        [*RUN, "--checkpoint", "names.pt", "--csv", "names.pt"],
        ["train", "--data", "tiny.npz", "--history", "tiny.npz", "--overwrite"],
        ["density", "--data", "tiny.npz", "--plot", "tiny.npz"],
        ["capacity", "names.pt", "--csv", "names.pt"],
        ["capacity", "tiny.npz", "names.pt", "--csv", "names.pt"],
        ["levels", "a.h5", "--csv", "a.h5"],
        ["report", "a.h5", "--out", "a.h5", "--overwrite"],
        ["plot", "a.png"],
        ["plot", "a.h5", "--out", "a.h5"],
        ["info", "a.h5", "--csv", "a.h5"],
    ],
    ids=" ".join,
)
def test_output_never_destroys_input(place, refused, words):
    (place / "link.npz").symlink_to("tiny.npz")
    (place / "hard.npz").hardlink_to(place / "tiny.npz")
    (place / "run.toml").write_text("batch = 10\n")
    (place / "a.h5").write_bytes(b"anything")
    (place / "a.png").write_bytes(b"anything")
    before = {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}
    refused(words, ["which is read"])
    assert before == {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    "words",
    [
        ["capacity", "sh", "--csv", "sh/model-00002-of-00002.safetensors"],
        [
            "capacity",
            "sh/model.safetensors.index.json",
            "--csv",
            "sh/model-00001-of-00002.safetensors",
        ],
        ["capacity", "sh", "--csv", "sh/model.safetensors.index.json"],
        ["capacity", "sh", "--csv", "sh/config.json"],
        ["capacity", "sh/model-00001-of-00002.safetensors", "--csv", "sh/adapter_config.json"],
        ["capacity", "--against", "of.csv", "--csv", "sh/model-00001-of-00002.safetensors"],
        ["capacity", "--against", "of.csv", "--out", "in.h5", "--overwrite"],
        [*RUN, "--checkpoint", "sh", "--out", "sh/model-00001-of-00002.safetensors", "--overwrite"],
        [*RUN, "--data", "idx", "--out", "idx/t10k-labels-idx1-ubyte", "--overwrite"],
        [*RUN, "--data", "mnist", "--data-dir", ".", "--out", "idx.link", "--overwrite"],
        [*RUN, "--model", "uses.py:net", "--out", "helper.py", "--overwrite"],
        [*RUN, "--model", "pkg/deep.py:net", "--csv", "pkg/part.py"],
        [*RUN, "--model", "uses.py:net", "--out", "pkg/__init__.py", "--overwrite"],
    ],
    ids=" ".join,
)
def test_output_never_destroys_a_file_behind_an_input(place, refused, words):
    texts = {
        "uses.py": "import helper\n",
        "helper.py": "import pkg.part\n",
        "pkg/__init__.py": "",
        "pkg/deep.py": "from . import part\n",
        "pkg/part.py": "",
        "sh/model.safetensors.index.json": "{}",
        "sh/config.json": "{}",
        "sh/adapter_config.json": "{}",
        "of.csv": "path,top1\nsh,0.5\nin.h5,0.6\n",
        "in.h5": "weights",
        **{f"sh/model-0000{i}-of-00002.safetensors": "weights" for i in (1, 2)},
        **{
            f"{folder}/{split}-{kind}-ubyte": "data"
            for folder in ("idx", "MNIST/raw")
            for split in ("train", "t10k")
            for kind in ("images-idx3", "labels-idx1")
        },
    }
    for name, text in texts.items():
        (place / name).parent.mkdir(exist_ok=True, parents=True)
        (place / name).write_text(text)
    (place / "idx.link").symlink_to("MNIST/raw/train-images-idx3-ubyte")
    refused(words, ["which is read"])
    assert texts == {name: (place / name).read_text() for name in texts}


def test_results_may_be_kept_among_what_is_read(place):
    (place / "sh").mkdir()
    for name in ("sh/old.csv", "sh/old.h5", "sh/run.pt", "other.py", "net.py"):
        (place / name).write_text("")
    for word, out in (("sh", "sh/old.csv"), ("sh", "sh/run.pt"), ("net.py:net", "other.py")):
        options._keep_inputs({"paths": [str(place / word)], "out": place / out}, None)


def test_two_results_need_two_files(place, refused):
    refused([*RUN, "--out", "new.h5", "--csv", "./new.h5"], ["--out and --csv both name"])
    assert not (place / "new.h5").exists()


@pytest.mark.parametrize("option", ["--out", "--csv"])
def test_devices_and_pipes_are_no_files(place, refused, option):
    os.mkfifo(place / "pipe")
    for name in ("pipe", os.devnull):
        refused([*RUN, option, name, "--overwrite"], ["is a device or a pipe"])
    assert stat.S_ISFIFO((place / "pipe").stat().st_mode)


def test_pictures_that_need_another_program(place, refused, monkeypatch):
    monkeypatch.setenv("PATH", str(place))  # no TeX
    levels = np.arange(1.0, 9)
    write_file(
        place / "a.h5", [Spectrum(levels, noise_floor=0.0, dimension=8, reduced_dimension=8)]
    )
    refused(["plot", "a.h5", "--out", "a.pgf"], ["matplotlib can't write .pgf here", "xelatex"])


def test_the_largest_seed(place, cli):
    assert cli(*RUN, "--seed", str(2**64 - 1), "--out", "seed.h5").returncode == 0
    assert load(place / "seed.h5").provenance.config["seed"] == 2**64 - 1


def test_a_reader_who_has_enough_of_the_help_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    words = [str(Path(sys.executable).parent / "hessrmt"), "spectrum", "--help"]
    done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_json_without_standard_output(place):
    words = [str(Path(sys.executable).parent / "hessrmt"), *RUN, "--out", "closed.h5", "--json"]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *words],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "standard output is closed" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(load(place / "closed.h5")) == 2  # what was computed stays


TALKING = """
import os
from torch import nn

print("imported")


class Net(nn.Linear):
    def __init__(self):
        super().__init__(6, 3)
        os.system("echo of a child")

    def forward(self, x):
        print("computing")
        os.write(1, b"of the system")
        {more}
        return super().forward(x)
"""


def test_users_code_may_print_beside_json(place, cli):
    (place / "talking.py").write_text(TALKING.format(more=""))
    result = cli(*RUN[:1], "--model", "talking.py:Net", *RUN[3:], "--json", "--out", "json.h5")
    assert result.returncode == 0
    assert len(json.loads(result.stdout)["batches"]) == 2
    assert "computing" in result.stderr


def test_users_code_that_ends_the_process_is_an_error(place, cli):
    (place / "leaving.py").write_text(TALKING.format(more="raise SystemExit(0)"))
    result = cli(*RUN[:1], "--model", "leaving.py:Net", *RUN[3:], "--out", "left.h5")
    assert result.returncode == 1
    assert "error: code of the model or the loss ended the process: sys.exit(0)" in result.stderr


CLOSED = """
import os, subprocess, sys
from hessrmt.cli.console import take_descriptors

{before}
take_descriptors()
nothing = os.stat(os.devnull)
for number in ({numbers}):
    assert os.path.samestat(os.fstat(number), nothing), number
with open("a", "wb") as file:
    assert file.fileno() > 2, file.fileno()
look = "import os; [os.fstat(number) for number in range(3)]"
assert subprocess.run([sys.executable, "-c", look], close_fds=True).returncode == 0
"""


@pytest.mark.parametrize("numbers", [(0,), (1,), (2,), (0, 1, 2)])
def test_files_never_have_the_numbers_of_closed_streams(tmp_path, numbers):
    before = "".join(f"os.close({number});" for number in numbers)
    program = CLOSED.format(before=before, numbers="".join(f"{number}, " for number in numbers))
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=False)
    assert done.returncode == 0


NUMBERS = [
    (kind, name)
    for kind in sorted(every_settings(Settings), key=lambda kind: kind.__name__)
    for name, field in kind.model_fields.items()
    if {int, float} & {*types_in(field.annotation)} and bool not in types_in(field.annotation)
]


@pytest.mark.parametrize(
    ("kind", "name"), NUMBERS, ids=lambda part: getattr(part, "__name__", part)
)
@pytest.mark.parametrize("value", [True, False, [True]])
def test_truth_values_are_no_numbers(kind, name, value):
    with pytest.raises(ValidationError) as error:
        kind.model_validate({name: value})
    assert name in [item["loc"][0] for item in error.value.errors() if item["loc"]]


# --help: there for every command, quick, without torch


COMMANDS = [
    *("", "spectrum", "train", "levels", "plot", "density", "simulate", "capacity", "normalize"),
    *("reproduce", "info", "data", "data fetch", "data list"),
]


def test_no_command_shows_the_help(run_cli):
    result = run_cli()
    assert result.returncode == 2
    assert "spectrum" in result.stdout + result.stderr
    assert "error:" not in result.stderr


def test_version(cli):
    result = cli("--version")
    assert result.returncode == 0
    assert re.fullmatch(r"hessrmt \d+\.\d+\.\d+\S*\n", result.stdout)


def test_help_imports_no_torch(tmp_path):
    code = """
        import sys
        from hessrmt.cli.app import main
        for words in sys.argv[1:]:
            sys.argv = ["hessrmt", *words.split(), "-h"]
            try:
                main()
            except SystemExit as end:
                assert not end.code, words
            heavy = {"torch", "scipy", "h5py", "matplotlib", "numpy", "cupy"} & set(sys.modules)
            assert not heavy, (words, heavy)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *COMMANDS],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for words in COMMANDS:
        assert f"Usage: hessrmt {words}".rstrip() in done.stdout
    # all but hessrmt itself
    assert done.stdout.count("Example: hessrmt ") == len(COMMANDS) - 1


@pytest.mark.slow  # the one test that times anything: what it takes depends on the machine
@pytest.mark.parametrize("words", COMMANDS)
def test_help_takes_less_than_half_a_second(run_cli, words):
    # processor time: what a busy machine lets the command wait for is not the command's
    best = np.inf
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run_cli(*words.split(), "--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
        if best < 0.5:
            return
    pytest.fail(f"{best:.2f} s")
