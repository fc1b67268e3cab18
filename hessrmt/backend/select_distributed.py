"""The one place where the solver of a distributed run is chosen."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from hessrmt.backend.cusolvermp import CusolverMpBackend
from hessrmt.backend.elpa import ElpaBackend, load_elpa
from hessrmt.backend.scalapack import ScalapackBackend
from hessrmt.backend.world import World, connect
from hessrmt.errors import ConfigError, DeviceError

if TYPE_CHECKING:
    from hessrmt.backend.distributed import DistributedBackend

SOLVERS = ("auto", "elpa", "scalapack", "cusolvermp")


def select_distributed(
    solver: str = "auto",
    device: str = "auto",
    world: World | None = None,
    dtype: str = "float64",
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
    world = world or connect()
    with world.together():
        if solver not in SOLVERS:
            raise ConfigError(f"unknown solver {solver!r}; known are {', '.join(SOLVERS)}")
        if not re.fullmatch(r"auto|cpu|cuda", device):
            raise ConfigError(
                f"device {device!r} in a distributed run; known are auto, cpu and cuda, where each "
                "process of a machine takes a GPU of its own"
            )
        if (device == "cuda") != (solver == "cusolvermp") and "auto" not in {device, solver}:
            raise ConfigError(f"solver {solver} does not run on {device}")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if solver == "cusolvermp" or device == "cuda" or (device == solver == "auto" and gpus):
        with world.together():
            if world.neighbours > gpus:
                raise DeviceError(
                    f"{world.neighbours} processes on a machine with {gpus} GPUs; start one "
                    "process for each GPU"
                )
        return CusolverMpBackend(world, torch.device("cuda", world.local_rank))
    if solver == "auto":
        wanted = dtype == "float64" and _elpa_is_there()
        solver = "elpa" if all(world.gather(wanted)) else "scalapack"
    if solver == "elpa":
        return ElpaBackend(world)
    return ScalapackBackend(world)


def _elpa_is_there() -> bool:
    try:
        load_elpa()
    except DeviceError:
        return False
    return True
