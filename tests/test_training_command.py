"""``hessrmt train`` as a command."""

import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from hessrmt.cli.train import train as train_command
from hessrmt.errors import (
    ConfigError,
)
from hessrmt.problems import checkpoints


@pytest.fixture
def command():
    app = typer.Typer()
    app.command("train")(train_command)
    return app


def test_command_prints_one_json_object(digits, tmp_path, command):
    (tmp_path / "run.toml").write_text(f'model = "logistic"\ndata = "{digits}"\nepochs = 5\n')
    out = tmp_path / "c.pt"
    options = ["--config", str(tmp_path / "run.toml"), "--epochs", "2", "--out", str(out), "--json"]
    result = CliRunner().invoke(command, options, catch_exceptions=False)
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert answer["epochs"] == answer["config"]["epochs"] == 2
    assert answer["sha256"] == checkpoints.sha256(out)
    assert str(digits) in result.stderr


def test_command_names_the_checkpoint_after_the_model(digits, tmp_path, command, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import torch\ndef tiny():\n    return torch.nn.Linear(6, 2)\n"
    )
    monkeypatch.chdir(tmp_path)
    for model, name in (("logistic", "logistic.pt"), ("mine.py:tiny", "tiny.pt")):
        options = ["--model", model, "--data", str(digits), "--epochs", "1"]
        CliRunner().invoke(command, options, catch_exceptions=False)
        assert (tmp_path / name).is_file()


def test_command_lets_package_errors_through(digits, command, tmp_path):
    options = ["--data", str(digits), "--lr", "-1", "--out", str(tmp_path / "c.pt")]
    with pytest.raises(ConfigError, match="lr"):
        CliRunner().invoke(command, options, catch_exceptions=False)


def test_importing_the_command_does_not_import_torch():
    code = "import sys, hessrmt.cli.train; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
