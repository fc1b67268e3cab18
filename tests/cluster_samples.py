"""Two workers of a Dask cluster, and what is compared with one process."""

from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from store_samples import NET

from hessrmt.config import SpectrumConfig

dask_pool = pytest.importorskip("hessrmt.runs.dask_pool", reason="needs the extra cluster")

# In a worker: all batches but one say that they have begun, and wait for the file "go"
HELD = (
    NET
    + f"""
import multiprocessing
import os
import sys
from pathlib import Path

if multiprocessing.parent_process() is not None:
    sys.path.append({str(Path(__file__).parent)!r})
    import gate
    from hessrmt.runs import spectrum

    folder, compute = Path(__file__).parent, spectrum.compute

    def held(*arguments, **options):
        try:
            (folder / "first").touch(exist_ok=False)
        except FileExistsError:
            (folder / f"begun-{{os.getpid()}}").touch()
            gate.wait_for((folder / "go").exists)
        return compute(*arguments, **options)

    spectrum.compute = held
"""
)


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


def six_batches(folder, data, source=NET):
    """Settings of a spectrum of six batches, of a network in a file of its own."""
    (folder / "net.py").write_text(source)
    return SpectrumConfig(
        model=f"{folder}/net.py:net", data=str(data), batch=10, batches="all", device="cpu"
    )


def worker_processes(parent):
    """Worker processes that a process started, which are those that multiprocessing spawned."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            mother = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if mother == parent and "spawn_main" in (folder / "cmdline").read_text():
                found.append(int(folder.name))
        except OSError:
            continue
    return found
