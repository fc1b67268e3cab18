"""The one place where hardware is chosen, and the solver of a distributed run."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from hessrmt.backend import solvers
from hessrmt.backend.base import Backend
from hessrmt.checks import one_of
from hessrmt.errors import ConfigError, DeviceError

if TYPE_CHECKING:
    from hessrmt.backend.distributed import DistributedBackend
    from hessrmt.backend.world import World

SOLVERS = ("auto", "elpa", "scalapack", "cusolvermp")


def select(device: str | torch.device | Backend = "auto") -> Backend:
    """Backend for a device specification.

    Args:
        device: ``"auto"`` (the first GPU, else the CPU), ``"cpu"``, ``"cuda"`` or ``"cuda:N"``; or
            a ``torch.device``; a backend that has been chosen is returned as it is.

    Returns:
        The backend; decided once, then passed on.

    Raises:
        DeviceError: If the word is unknown or the device is not there.
    """
    if isinstance(device, Backend):
        return device
    solvers.policy()  # a wrong word is wrong on every device
    device = str(device)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        from hessrmt.backend.cpu import CpuBackend

        return CpuBackend()
    if found := re.fullmatch(r"cuda(?::(0|[1-9][0-9]*))?", device):
        from hessrmt.backend.cuda import cuda_backend

        return cuda_backend(int(found[1] or 0))
    raise DeviceError(f"unknown device {device!r}; known are auto, cpu, cuda and cuda:N")


def select_distributed(
    solver: str = "auto", device: str = "auto", world: World | None = None, dtype: str = "float64"
) -> DistributedBackend:
    """The processes of this run with a solver.

    Args:
        solver: ``"auto"`` (cuSOLVERMp on GPUs; on CPUs ELPA where every process finds it, else
            ScaLAPACK, also for float32, which many builds of ELPA lack), ``"elpa"``,
            ``"scalapack"`` or ``"cusolvermp"``.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``: one GPU for each process of a machine.
        world: The processes; by default those that ``mpirun`` or ``srun`` started.
        dtype: Precision of the matrices to come.

    Returns:
        The backend; decided once, then passed on.

    Raises:
        ConfigError: If solver and device exclude each other, or a word is unknown.
        DeviceError: If a library or device is not there.
    """
    from hessrmt.backend import world as processes
    from hessrmt.backend.cpu_processes import ElpaBackend, ScalapackBackend, load_elpa
    from hessrmt.backend.cusolvermp import CusolverMpBackend

    world = world or processes.connect()
    with world.together():
        one_of("solver", solver, SOLVERS, error=ConfigError)
        one_of("device of a distributed run", device, ("auto", "cpu", "cuda"), error=ConfigError)
        if (device == "cuda") != (solver == "cusolvermp") and "auto" not in {device, solver}:
            raise ConfigError(f"solver {solver} does not run on {device}")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if solver == "cusolvermp" or device == "cuda" or (device == solver == "auto" and gpus):
        with world.together():
            if world.neighbours > gpus:
                given = f"{world.neighbours} processes on a machine with {gpus} GPUs"
                raise DeviceError(f"{given}; start one process for each GPU")
        return CusolverMpBackend(world, torch.device("cuda", world.local_rank))
    if solver == "auto":
        wanted = dtype == "float64"
        try:
            wanted = wanted and bool(load_elpa())
        except DeviceError:
            wanted = False
        solver = "elpa" if all(world.gather(wanted)) else "scalapack"
    return ElpaBackend(world) if solver == "elpa" else ScalapackBackend(world)
