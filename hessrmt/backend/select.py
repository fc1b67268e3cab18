"""The one place where hardware is chosen."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from hessrmt.errors import DeviceError

if TYPE_CHECKING:
    from hessrmt.backend.base import Backend


def select(device: str | torch.device = "auto") -> Backend:
    """Backend for a device specification.

    Args:
        device: ``"auto"`` (the first GPU, else the CPU), ``"cpu"``, ``"cuda"`` or ``"cuda:N"``; or
            a ``torch.device``.

    Returns:
        The backend; decided once, then passed on.

    Raises:
        DeviceError: If the word is unknown or the device is not there.
    """
    device = str(device)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        from hessrmt.backend.cpu import CpuBackend

        return CpuBackend()
    if re.fullmatch(r"cuda(:\d+)?", device):
        from hessrmt.backend.cuda import cuda_backend

        return cuda_backend(torch.device(device))
    raise DeviceError(f"unknown device {device!r}; known are auto, cpu, cuda and cuda:N")
