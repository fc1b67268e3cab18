"""``--help``: there for every command, quick, without torch."""

import re
import resource
import subprocess
import sys
import textwrap

import numpy as np
import pytest

COMMANDS = [
    [],
    ["spectrum"],
    ["train"],
    ["levels"],
    ["plot"],
    ["density"],
    ["simulate"],
    ["capacity"],
    ["normalize"],
    ["reproduce"],
    ["info"],
    ["data"],
    ["data", "fetch"],
    ["data", "list"],
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
            sys.argv = ["hessrmt", *words.split(), "--help"]
            try:
                main()
            except SystemExit as end:
                assert not end.code, words
            heavy = {"torch", "scipy", "h5py", "matplotlib", "numpy", "cupy"} & set(sys.modules)
            assert not heavy, (words, heavy)
    """
    commands = [" ".join(words) for words in COMMANDS]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *commands],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for words in COMMANDS:
        assert f"Usage: hessrmt {' '.join(words)}".rstrip() in done.stdout


@pytest.mark.slow  # the one test that times anything: what it takes depends on the machine
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_takes_less_than_half_a_second(run_cli, words):
    # processor time: what a busy machine lets the command wait for is not the command's
    best = np.inf
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run_cli(*words, "--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
        if best < 0.5:
            return
    pytest.fail(f"{best:.2f} s")
