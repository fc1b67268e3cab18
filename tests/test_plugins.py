"""Users' files that import what lies beside them, apart from those of other folders."""

import os
import signal
import sys
import warnings

import numpy as np
import pytest
import torch
from store_samples import NET
from torch import nn

from hessrmt.errors import ProblemError, StoreError
from hessrmt.problems import losses, models, plugins
from hessrmt.problems.problem import Problem
from hessrmt.store.files import require_same


def folder(path, width):
    """A model file, a module and a package beside it, and a loss that imports the same module."""
    (path / "parts").mkdir(parents=True)
    (path / "layers.py").write_text(
        f"from torch import nn\nclass Layer(nn.Linear):\n    width = {width}\n"
        "    def __init__(self):\n        super().__init__(4, self.width)\n"
    )
    (path / "parts" / "inner.py").write_text("import layers\n")
    (path / "net.py").write_text(
        "from layers import Layer\n"
        "def make():\n"
        "    from parts.inner import layers  # only when it is called\n"
        "    assert layers.Layer is Layer\n"
        "    return Layer()\n"
    )
    (path / "loss.py").write_text(
        "from layers import Layer\ndef loss(out, target):\n    return Layer.width * out.sum()\n"
    )
    return path


@pytest.fixture
def folders(tmp_path):
    return [folder(tmp_path / name, width) for name, width in (("a", 3), ("b", 5))]


def test_neighbours_of_one_name_in_two_folders(folders):
    with plugins.contained():
        pass  # for which libraries import more of their own
    before = list(sys.path), {name for name in sys.modules if not name.startswith("_hessrmt")}
    made = [models.from_factory(f"{path}/net.py:make") for path in (*folders, *folders)]
    assert [net.out_features for net in made] == [3, 5, 3, 5]
    assert type(made[0]) is type(made[2])  # as of one import
    loss = losses.resolve(f"{folders[1]}/loss.py:loss")
    assert loss(torch.ones(2), None) == 10
    after = list(sys.path), {name for name in sys.modules if not name.startswith("_hessrmt")}
    assert after == before
    files = plugins.sources(f"{folders[0]}/net.py:make")
    assert [file.name for file in files] == ["net.py", "layers.py", "inner.py"]


def test_what_the_caller_has_imported_stays_his(folders, tmp_path, monkeypatch):
    theirs = folder(tmp_path / "theirs", 9)
    monkeypatch.syspath_prepend(str(theirs))
    import layers

    try:
        assert models.from_factory(f"{folders[0]}/net.py:make").out_features == 3
        assert sys.modules["layers"] is layers
        assert type(models.from_factory(f"{theirs}/net.py:make")) is layers.Layer
        assert sys.modules["layers"] is layers
    finally:
        del sys.modules["layers"]


def test_edited_neighbours_and_failing_ones(folders):
    net, layers = f"{folders[0]}/net.py:make", folders[0] / "layers.py"
    assert models.from_factory(net).out_features == 3
    layers.write_text(layers.read_text().replace("width = 3", "width = 77"))
    assert models.from_factory(net).out_features == 77
    layers.write_text("import sys\nsys.path.append('elsewhere')\nraise OSError('no such thing')\n")
    before = list(sys.path)
    with pytest.raises(ProblemError, match="OSError: no such thing"):
        models.from_factory(net)
    assert sys.path == before
    assert "layers" not in sys.modules


def test_a_file_of_a_package_imports_relatively(folders):
    path = folders[0]
    (path / "__init__.py").touch()
    (path / "relative.py").write_text(
        "from .layers import Layer\ndef make():\n    return Layer()\n"
    )
    assert models.from_factory(f"{path}/relative.py:make").out_features == 3
    assert path.name not in sys.modules


SPOILING = """
import os, random, signal, sys, warnings
import numpy as np, torch
from torch import nn

def spoil():
    print("printed")
    os.chdir(os.path.dirname(__file__) + "/..")
    torch.set_grad_enabled(False)
    torch.set_num_threads(3)
    torch.set_default_device("meta")
    torch.set_float32_matmul_precision("medium")
    torch.use_deterministic_algorithms(True)
    np.random.seed(1)
    np.seterr(all="raise")
    random.seed(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("error")

class Net(nn.Linear):
    def __init__(self):
        super().__init__(6, 3, device="cpu")

    def forward(self, x):
        if {talks}:
            print("printed"); os.write(1, b"written")
        if {leaves}:
            sys.exit(0)
        return super().forward(x)

{early}

def net():
    made = Net()
    {late}
    return made

def double():
    torch.manual_seed(1)
    torch.set_default_dtype(torch.float64)
    return Net()

def leaving():
    sys.exit(0)

def loss(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets)
"""


def spoiling(path, early="", late="", *, talks=False, leaves=False):
    path.write_text(SPOILING.format(early=early, late=late, talks=talks, leaves=leaves))
    return path


def state():
    return (
        *(get() for get, _ in plugins._CHANGED),
        *(repr(np.asarray(part).tolist()) for get, _ in plugins._DRAWN for part in get()[:2]),
        signal.getsignal(signal.SIGINT),
        list(warnings.filters),
        os.getcwd(),
    )


def test_what_users_code_changes_for_the_process_is_put_back(tmp_path, capsys):
    before = state()
    calm = spoiling(tmp_path / "calm.py")
    early = spoiling(tmp_path / "early.py", "spoil()")
    late = spoiling(tmp_path / "late.py", late="spoil()")
    made = [models.build(f"{path}:net", (6,), 3, 0) for path in (calm, early, late)]
    assert all(torch.equal(net.weight, made[0].weight) for net in made)
    losses.resolve(f"{early}:loss")
    assert models.build(f"{calm}:double", (6,), 3, 0).weight.dtype == torch.float64  # as they want
    assert state() == before
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["leaving", "net"])
def test_sys_exit_in_users_code_is_an_error(tmp_path, name):
    file = spoiling(tmp_path / "a.py", "" if name == "leaving" else "sys.exit(0)")
    with pytest.raises(ProblemError, match="failed: SystemExit: 0"):
        models.build(f"{file}:{name}", (6,), 3, 0)


@pytest.mark.parametrize(
    "command",
    [
        "spectrum --batch 8 --batches 1 --out out.h5",
        "density --probes 1 --steps 5 --out out.h5",
        "train --epochs 1 --out out.pt",
    ],
)
def test_code_that_was_changed_continues_nothing(cli, tmp_path, tiny_npz, command):
    def make(unit):
        # beside it, so that what it imports counts, too
        (tmp_path / "units.py").write_text(f"from torch.nn import {unit} as Unit\n")

    (tmp_path / "net.py").write_text(NET.replace("nn.Tanh", "Unit") + "\nfrom units import Unit\n")
    make("Tanh")
    words = [*command.split(), "--model", "net.py:net", "--data", tiny_npz]
    longer = ["--epochs", "2"] if "train" in command else []
    assert cli(*words).returncode == 0
    make("ReLU")
    refused = cli(*words, *longer, "--resume")
    assert refused.returncode == 2
    assert "the code of the model (its file has changed since)" in refused.stderr
    make("Tanh")
    assert cli(*words, *longer, "--resume").returncode == 0


def test_files_from_before_the_code_was_kept_are_continued(tmp_path):
    path = tmp_path / "old.h5"
    require_same(path, {"model": "net.py:net"}, {"model": "net.py:net", "model_source_sha256": "a"})
    with pytest.raises(StoreError, match="the code of the loss"):
        require_same(path, {"loss_source_sha256": "a"}, {"loss_source_sha256": "b"})


def test_a_model_on_the_meta_device_is_refused(tmp_path):
    (tmp_path / "a.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Linear(6, 3, device='meta')\n"
    )
    with pytest.raises(ProblemError, match="a model whose weight is on the meta device"):
        models.build(f"{tmp_path / 'a.py'}:net", (6,), 3, 0)
    data = torch.zeros(2, 6), torch.zeros(2, dtype=torch.long)
    with pytest.raises(ProblemError, match="weight is on the meta device"):
        Problem(nn.Linear(6, 3, device="meta"), "cross-entropy", data)


FOLDER_CHANGED = """
import os
from torch import nn


class Net(nn.Linear):
    def forward(self, x):
        os.chdir(os.path.dirname(__file__) + "/..")
        return super().forward(x)


def make():
    return Net(6, 3)
"""


@pytest.mark.parametrize(
    "words",
    [
        "spectrum --model net.py:make --data tiny.npz --batch 10 --batches 1 --out o.h5",
        pytest.param(
            "density --model net.py:make --data tiny.npz --out o.h5", marks=pytest.mark.slow
        ),
        "train --model net.py:make --data tiny.npz --epochs 1 --batch 10 --out o.pt",
    ],
)
def test_a_network_that_changes_the_folder_leaves_outputs_where_they_belong(
    cli, tmp_path, tiny_npz, words
):
    (tmp_path / "net.py").write_text(FOLDER_CHANGED)
    done = cli(*words.split())
    assert done.returncode == 0, done.stderr
    assert (tmp_path / words.split()[-1]).is_file()
    assert os.getcwd() == str(tmp_path)
