"""Other libraries' eigenvalue solvers on a GPU, for ``gpu_check.py``."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import torch
from gpu_parity import Log


def gpu_peers(log: Log) -> tuple[dict[str, Callable[..., Any]], dict[str, Callable[..., Any]]]:
    """Other libraries' eigenvalue solvers on a GPU.

    Args:
        log: Told which are missing.

    Returns:
        For one matrix and for stacks, from a library's name to a function of a tensor.
    """
    single: dict[str, Callable[..., Any]] = {"torch": torch.linalg.eigvalsh}
    stacked: dict[str, Callable[..., Any]] = {"torch": torch.linalg.eigvalsh}
    cupy = log.guarded("cupy as a peer", lambda: import_module("cupy"))
    if cupy is not None:

        def by_cupy(a: torch.Tensor) -> torch.Tensor:
            return torch.from_dlpack(cupy.linalg.eigvalsh(cupy.from_dlpack(a)))

        single["cupy"] = stacked["cupy"] = by_cupy
    solver = log.guarded("nvmath as a peer", lambda: import_module("nvmath.bindings.cusolverDn"))
    if solver is not None:
        stacked["nvmath"] = lambda a: _xsyev_batched(solver, a)
    return single, stacked


def _xsyev_batched(solver: Any, stack: torch.Tensor) -> torch.Tensor:
    """Eigenvalues of a stack by XsyevBatched of cuSOLVER, in a copy."""
    a = stack.clone()
    batch, n = a.shape[:2]
    kind = {torch.float32: 0, torch.float64: 1}[a.dtype]  # CUDA_R_32F, CUDA_R_64F
    w = a.new_empty(batch, n)
    info = torch.zeros(batch, dtype=torch.int32, device=a.device)
    handle, params = solver.create(), solver.create_params()
    try:
        solver.set_stream(handle, torch.cuda.current_stream(a.device).cuda_stream)
        # no vectors, lower triangle (column-major: the other one of a symmetric matrix)
        what = (handle, params, 0, 0, n, kind, a.data_ptr(), n, kind, w.data_ptr(), kind)
        device, host = solver.xsyev_batched_buffer_size(*what, batch)
        on_device = torch.empty(max(1, device), dtype=torch.uint8, device=a.device)
        on_host = np.empty(max(1, host), dtype=np.uint8)
        buffers = (on_device.data_ptr(), device, on_host.ctypes.data, host)
        solver.xsyev_batched(*what, *buffers, info.data_ptr(), batch)
        torch.cuda.synchronize(a.device)
    finally:
        solver.destroy_params(params)
        solver.destroy(handle)
    if int(info.abs().max()):
        raise RuntimeError(f"XsyevBatched reports {info.tolist()}")
    return w
