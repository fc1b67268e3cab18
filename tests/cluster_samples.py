"""Two workers of a Dask cluster, and what is compared with one process."""

from contextlib import contextmanager
from pathlib import Path

import h5py
import pytest
import torch

from hessrmt.config import SpectrumConfig

dask_pool = pytest.importorskip("hessrmt.workflows.dask_pool", reason="needs the extra cluster")

SLOW = """
import time
from torch import nn


class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, x):
        time.sleep(0.02)
        return self.layers(x)
"""


@contextmanager
def two_workers(tmp_path_factory):
    """A pool of two processes of one thread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        # not the folder of this process: nothing that it keeps is found by the workers
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache of the workers")))
        with dask_pool.open_pool(2, device="cpu") as opened:
            yield opened


@contextmanager
def as_one_worker():
    """This process computes with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def slow_spectrum(folder, data):
    """Settings of a spectrum of six batches that takes a while without keeping a core busy."""
    (folder / "slow.py").write_text(SLOW)
    return SpectrumConfig(
        model=f"{folder}/slow.py:Slow", data=str(data), batch=10, batches="all", device="cpu"
    )


def contents(path):
    """Bytes of every dataset but the timings."""
    with h5py.File(path) as file:
        return {name: file[name][()].tobytes() for name in file if not name.startswith("seconds_")}


def worker_processes(parent):
    """Worker processes that a process started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            mother = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if mother == parent and "dask_worker" in (folder / "cmdline").read_text():
                found.append(int(folder.name))
        except OSError:
            continue
    return found
