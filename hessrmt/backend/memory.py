"""How much memory this process may still take: machine, control group and resource limit."""

from __future__ import annotations

import os
import resource
from pathlib import Path

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")


def free_host_memory() -> int:
    """Bytes of main memory that can be allocated now.

    The least of what the system calls available, what the control group (Slurm, containers) has
    left and what the address-space limit has left.

    Returns:
        A number of bytes; at least 0.
    """
    return max(0, min(_available(), *_cgroup_left(), _address_space_left()))


def _available() -> int:
    try:
        for line in (_PROC / "meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cgroup_left() -> list[int]:
    """Memory left in this process's control group and its parents; empty where there is none."""
    left = []
    try:
        entries = (_PROC / "self" / "cgroup").read_text(encoding="ascii").splitlines()
    except OSError:
        return []
    for entry in entries:
        _, controllers, path = entry.split(":", 2)
        if controllers == "":
            root, limit, usage = _CGROUP, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root, limit, usage = (
                _CGROUP / "memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
            )
        else:
            continue
        folder = root / path.lstrip("/")
        for level in [folder, *folder.parents]:
            if not level.is_relative_to(root):
                break
            allowed, used = _number(level / limit), _number(level / usage)
            if allowed is not None and used is not None:
                left.append(allowed - used + _reclaimable(level))
    return left


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):  # absent, or the word "max"
        return None


def _reclaimable(level: Path) -> int:
    """File cache that the kernel gives up before it refuses memory."""
    try:
        lines = (level / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))


def _address_space_left() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY:
        return 2**63 - 1
    try:
        pages = int((_PROC / "self" / "statm").read_text(encoding="ascii").split()[0])
    except OSError:
        return soft
    return soft - pages * os.sysconf("SC_PAGE_SIZE")
