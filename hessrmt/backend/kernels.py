"""CUDA kernels as text: csrc/ files with their headers inlined, ready for a compiler.

CuPy's cache key ignores headers found through ``-I``, so headers are inlined. The same text is
compiled at run time by NVRTC, ahead of time by nvcc and, through a shim, by a host compiler.
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from hessrmt.errors import DeviceError

OPTIONS = ("--std=c++17", "-prec-div=true", "-prec-sqrt=true", "-fmad=true")
"""Compiler options shared by NVRTC and nvcc; no fast-math. CuPy adds ``-ftz=true`` by itself, which
NVRTC up to 12.8 refuses to see twice, with whatever value; it concerns float32 alone: numbers below
1.2e-38 become 0, far below the n ε ‖A‖ that every kernel allows for a scaled matrix."""

_HEADER = "common.cuh"
_ENTRY = re.compile(
    r'^extern "C" __global__ void\s(?:\s*__launch_bounds__\(\d+\))?\s*(\w+)\(', re.M
)
_INCLUDE = re.compile(r'^#include "(\w+\.cuh)"$', re.MULTILINE)


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


def names(text: str) -> list[str]:
    """Kernels that a source offers.

    Args:
        text: Of a file of csrc/.

    Returns:
        Names by which they are launched, in order.
    """
    return _ENTRY.findall(text)


def source(name: str) -> str:
    """Self-contained text of one kernel file.

    Args:
        name: File name without its ending, e.g. ``"symmetrize"``.

    Returns:
        The file's text with every header of csrc/ in place of its first include line.
    """
    folder, seen = csrc(), set()
    text = (folder / f"{name}.cu").read_text(encoding="utf-8")
    while include := _INCLUDE.search(text):
        header = "" if include[1] in seen else (folder / include[1]).read_text(encoding="utf-8")
        seen.add(include[1])
        text = text[: include.start()] + header + text[include.end() :]
    return text
