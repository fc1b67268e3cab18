"""This machine: how much memory is free, and how workers share its cores and GPUs."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch

from hessrmt import memory
from hessrmt.backend import host
from hessrmt.backend.cpu import CpuBackend
from hessrmt.errors import ConfigError


@pytest.mark.parametrize(
    ("workers", "cores", "limit", "threads"),
    [(1, 8, "", 8), (3, 8, "", 2), (8, 8, "", 1), (9, 8, "", 1), (2, 8, "3", 3), (2, 8, "9", 4)],
)
def test_cores_are_divided(monkeypatch, workers, cores, limit, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    monkeypatch.delenv("MKL_CBWR", raising=False)
    found = host.environments(workers, cores, "cpu")
    assert found == [{**dict.fromkeys(host.THREADS, str(threads)), "MKL_CBWR": "AUTO"}] * workers


def test_each_worker_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-3a,7")
    for device in ("auto", "cuda"):
        found = host.environments(2, 8, device)
        assert [item["CUDA_VISIBLE_DEVICES"] for item in found] == ["5", "GPU-3a"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    found = host.environments(2, 8, "auto")
    assert [item["CUDA_VISIBLE_DEVICES"] for item in found] == ["0", "1"]
    for workers, device in ((4, "cpu"), (1, "cuda:1")):
        assert "CUDA_VISIBLE_DEVICES" not in host.environments(workers, 8, device)[0]
    with pytest.raises(ConfigError, match="this machine has 2"):
        host.environments(3, 8, "cuda")
    with pytest.raises(ConfigError, match="one worker a GPU"):
        host.environments(2, 8, "cuda:1")


def test_free_memory_is_positive_and_at_most_the_machines():
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < CpuBackend().free_memory() <= physical


def test_address_space_limit():
    code = """
        import resource
        from hessrmt.memory import free_host_memory
        free = free_host_memory()
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * resource.getpagesize() + 512 * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        left = free_host_memory()
        assert 0 < left < min(513 * 2**20, free + 1), (left, free)
        room = bytearray(int(0.9 * left))
        assert free_host_memory() <= left - len(room)
        try:
            bytearray(left + 2**20)
        except MemoryError:
            print("good")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "good\n", done.stderr


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A made-up /proc and /sys/fs/cgroup with 8 GiB available and no address-space limit."""
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    groups.mkdir()
    monkeypatch.setattr(memory, "_PROC", proc)
    monkeypatch.setattr(memory, "_CGROUP", groups)
    monkeypatch.setattr(memory, "_address_space_left", lambda: 2**63 - 1)
    (proc / "meminfo").write_text(f"MemTotal: 999 kB\nMemAvailable:   {8 * 2**20} kB\n")

    def group(path, **files):
        folder = groups / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name.replace("__", ".")).write_text(f"{content}\n")

    def member(text):
        (proc / "self" / "cgroup").write_text(text)

    group.member, group.proc = member, proc
    return group


GIB = 2**30


def test_no_meminfo(machine):
    (machine.proc / "meminfo").unlink()
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory.free_host_memory() == physical


CACHE = f"anon 5\ninactive_file {GIB // 2}\nactive_file {GIB // 4}"
V1 = "memory__limit_in_bytes", "memory__usage_in_bytes"


@pytest.mark.parametrize(
    ("groups", "member", "left"),
    [
        ({}, None, 8),
        ({"slurm/job_1": (4, 1)}, "0::/slurm/job_1\n", 3),
        # file cache can be reclaimed
        ({"job": (4, 2, CACHE)}, "0::/job\n", 2.5),
        # parents count
        ({"slurm": (2, 1), "slurm/job/step": (7, 1)}, "0::/slurm/job/step\n", 1),
        ({"job": ("max", 1)}, "0::/job\n", 8),
        # the path may name a group that a container cannot see; its own limit is at the root
        ({".": (2, 1)}, "0::/../../outside/scope\n", 1),
        # over its limit
        ({"job": (1, 2)}, "0::/job\n", 0),
        # version 1, with a limit and without
        ({"memory/job": (5, 1)}, "12:cpu,cpuacct:/other\n4:memory:/job\n0::/\n", 4),
        ({"memory": (2**33 - 1, 1)}, "4:memory:/\n", 8),
    ],
)
def test_control_groups(machine, groups, member, left):
    for path, (limit, used, *stat) in groups.items():
        names = V1 if path.startswith("memory") else ("memory__max", "memory__current")
        numbers = (limit if limit == "max" else limit * GIB, used * GIB, *stat)
        machine(path, **dict(zip((*names, "memory__stat"), numbers, strict=False)))
    if member:
        machine.member(member)
    assert memory.free_host_memory() == left * GIB
