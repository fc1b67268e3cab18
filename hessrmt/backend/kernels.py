"""CUDA kernels as text: csrc/ files with ``common.cuh`` inlined, ready for a compiler.

CuPy's cache key ignores headers found through ``-I``, so the one header is inlined. The same text
is compiled at run time by NVRTC, ahead of time by nvcc and, through a shim, by a host compiler.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from hessrmt.errors import DeviceError

OPTIONS = ("--std=c++17", "-ftz=false", "-prec-div=true", "-prec-sqrt=true", "-fmad=true")
"""Compiler options shared by NVRTC and nvcc; no fast-math."""

_HEADER = "common.cuh"


def csrc() -> Path:
    """Folder of the kernel sources: in the wheel, or beside the package in a source tree.

    Returns:
        An existing folder.

    Raises:
        DeviceError: If the installation lacks it.
    """
    package = Path(str(resources.files("hessrmt")))
    for folder in (package / "csrc", package.parent / "csrc"):
        if (folder / _HEADER).is_file():
            return folder
    raise DeviceError("the CUDA sources (csrc/) are missing; reinstall hessrmt from its wheel")


def source(name: str) -> str:
    """Self-contained text of one kernel file.

    Args:
        name: File name without its ending, e.g. ``"symmetrize"``.

    Returns:
        The file's text with ``common.cuh`` in place of its include line.
    """
    folder = csrc()
    header = (folder / _HEADER).read_text(encoding="utf-8")
    text = (folder / f"{name}.cu").read_text(encoding="utf-8")
    return text.replace(f'#include "{_HEADER}"', header)
