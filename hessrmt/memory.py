"""How much main memory is left on this machine."""

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
