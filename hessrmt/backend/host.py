"""This machine: how much memory is left, and how several processes share cores and GPUs."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import torch

from hessrmt.errors import ConfigError

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")

THREADS: tuple[str, ...] = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Read by the numerical libraries when they are loaded."""


def free_host_memory() -> int:
    """Bytes of main memory that can be allocated now.

    The least of what the system calls available, what the control group (Slurm, containers) has
    left and what the address-space limit has left.

    Returns:
        A number of bytes; at least 0.
    """
    return max(0, min(_available(), *_cgroup_left(), _address_space_left()))


def _available() -> int:
    for line in _text(_PROC / "meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cgroup_left() -> list[int]:
    """Memory left in this process's control group and its parents; empty where there is none."""
    left = []
    for entry in _text(_PROC / "self" / "cgroup").splitlines():
        _, controllers, path = entry.split(":", 2)
        if controllers == "":
            root, limit, usage = _CGROUP, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root = _CGROUP / "memory"
            limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        folder = root / path.lstrip("/")
        for level in [folder, *folder.parents]:
            if not level.is_relative_to(root):
                break
            allowed, used = _text(level / limit).strip(), _text(level / usage).strip()
            if allowed.isdecimal() and used.isdecimal():  # else absent, or the word "max"
                # file cache that the kernel gives up before it refuses memory
                cache = [line.split() for line in _text(level / "memory.stat").splitlines()]
                reclaimable = sum(int(n) for name, n in cache if name == "inactive_file")
                left.append(int(allowed) - int(used) + reclaimable)
    return left


def _address_space_left() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY:
        return 2**63 - 1
    pages = _text(_PROC / "self" / "statm").split()[:1]
    return soft - sum(map(int, pages)) * os.sysconf("SC_PAGE_SIZE")


def _text(file: Path) -> str:
    """What a file of the kernel says; nothing where it is absent."""
    try:
        return file.read_text(encoding="ascii")
    except OSError:
        return ""


def environments(workers: int, cores: int, device: str) -> list[dict[str, str]]:
    """Environment variables of each of several processes that compute at the same time.

    The cores are divided among them, rounded down, at least one each. ``OMP_NUM_THREADS``, where it
    is set, is the most that a process gets. ``MKL_CBWR`` makes MKL repeat itself to the last bit
    (:mod:`hessrmt.backend.cpu`). Each of several processes on GPUs sees one GPU of its own.

    Args:
        workers: Processes, at least 1.
        cores: Of the machine, at least 1.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.

    Returns:
        For each process, name to value.

    Raises:
        ConfigError: If there are more processes than GPUs, or they are to share a named one.
    """
    threads = max(1, cores // workers)
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given) > 0:
        threads = min(threads, int(given))
    common = {name: str(threads) for name in THREADS}
    common["MKL_CBWR"] = os.environ.get("MKL_CBWR", "AUTO")
    gpus = [] if device == "cpu" or workers == 1 else _gpus()
    if not gpus:
        return [dict(common) for _ in range(workers)]
    if device.startswith("cuda:"):
        raise ConfigError(f"{workers} workers cannot share {device}: take cuda, one worker a GPU")
    if workers > len(gpus):
        raise ConfigError(
            f"{workers} workers need as many GPUs, one each; this machine has {len(gpus)}: take "
            f"{len(gpus)} workers, or device cpu"
        )
    return [common | {"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus[:workers]]


def _gpus() -> list[str]:
    """Names of the GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` has them."""
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(number) for number in range(count)] if named is None else named.split(",")[:count]
