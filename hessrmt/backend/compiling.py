"""Whether this package's kernels compile on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hessrmt.backend.cuda_kernels import KernelError, import_kernels
from hessrmt.backend.kernels import csrc

if TYPE_CHECKING:
    import torch


def compile_report(device: torch.device) -> dict[str, str]:
    """Try to compile every kernel source for a device.

    Args:
        device: Any device.

    Returns:
        For each file of csrc/, without its ending, ``"ok"`` or the reason why not; where nothing
        can be tried, one entry ``"all"`` that says why.
    """
    if device.type != "cuda":
        return {"all": "not tried: no CUDA device"}
    kernels = import_kernels(device)
    if kernels is None:
        return {"all": "not tried: CuPy is not installed"}
    found = {}
    for file in sorted(csrc().glob("*.cu")):
        try:
            kernels.compiled(file.stem)
        except KernelError as error:
            found[file.stem] = str(error).strip()
        else:
            found[file.stem] = "ok"
    return found
