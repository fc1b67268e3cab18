"""How several processes on this machine share its cores and GPUs."""

from __future__ import annotations

import os

import torch

from hessrmt.errors import ConfigError

THREADS: tuple[str, ...] = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Read by the numerical libraries when they are loaded."""


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
