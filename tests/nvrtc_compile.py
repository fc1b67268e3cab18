"""Compile all of csrc/ with one NVRTC library, as CuPy 14 does, without a GPU.

    python nvrtc_compile.py LIBRARY ARCHITECTURE OPTION...

LIBRARY is a ``libnvrtc.so.*``, ARCHITECTURE a number such as 90, the options are those given to
``cupy.RawModule``. Prints one JSON object: the library's version, the options as passed, and for
each file ``"ok"`` or what is wrong. A process of its own for each library: two versions in one
process would take each other's symbols.
"""

import ctypes
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

VARIABLE = "HESSRMT_NVRTC"
"""Environment variable: a folder with NVRTC packages unpacked below it (scripts/nvrtc.sh)."""


def cupy_options(given):
    """What NVRTC gets for ``RawModule(code=..., options=given)`` before the architecture.

    As in CuPy 14.0 to 14.2: cupy/_core/core.pyx, ``assemble_cupy_compiler_options`` (places of
    headers, at which our self-contained text never looks), then cupy/cuda/compiler.py,
    ``_compile_with_cache_cuda``.
    """
    headers = "/nowhere/cupy/_core/include"
    cccl = [f"-I{headers}/cupy/_cccl/{name}" for name in ("cub", "thrust", "libcudacxx")]
    standard = [] if any("-std=" in option for option in given) else ["--std=c++17"]
    return [
        *cccl,
        *given,
        *standard,
        f"-I{headers}",
        "-I/nowhere/cuda/include",
        "-ftz=true",
    ]


def compile_text(nvrtc, name, text, options):
    """Machine code of a program, or what the compiler says."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    source, file = text.encode(), f"{name}.cu".encode()
    status = nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, file, 0, None, None)
    if status:
        raise RuntimeError(f"nvrtcCreateProgram: {status}")
    words = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    status = nvrtc.nvrtcCompileProgram(program, len(options), words)
    if status:
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        return f"status {status}: {log.value.decode(errors='replace').strip()}"
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    code = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetCUBIN(program, code)
    return code.raw


def libraries():
    """NVRTC libraries of installed packages and below the variable's folder.

    From (major, minor) to the file of the compiler and that of its built-in part, whose name tells
    the minor version.
    """
    spec = find_spec("nvidia")
    places = list((spec.submodule_search_locations if spec else None) or [])
    if folder := os.environ.get(VARIABLE):
        places.append(folder)
    found = {}
    for place in places:
        for part in sorted(Path(place).rglob("libnvrtc-builtins.so.*")):
            version = tuple(map(int, part.name.rsplit(".so.", 1)[1].split(".")[:2]))
            file = part.with_name(f"libnvrtc.so.{version[0]}")
            if file.is_file():
                found.setdefault(version, (file, part))
    return found


def main(library, architecture, *given):
    from hessrmt.backend import kernels

    for part in Path(library).parent.glob("libnvrtc-builtins.so.*"):
        ctypes.CDLL(str(part))  # so that the compiler finds it wherever it lies
    nvrtc = ctypes.CDLL(library)
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    options = cupy_options(given)
    ours = [*options, f"-arch=sm_{architecture}", "--device-as-default-execution-space"]
    # CuPy compiles an empty text first, for the key of its cache (_preprocess)
    said = compile_text(nvrtc, "empty", "", [*options, f"-arch=compute_{architecture}"])
    files = {"empty": said if isinstance(said, str) else "ok"}
    for file in kernels.csrc().glob("*.cu"):
        name, text = file.stem, kernels.source(file.stem)
        found = compile_text(nvrtc, name, text, ours)
        if isinstance(found, bytes):
            missing = [k for k in kernels.names(text) if k.encode() not in found]
            found = f"not in the machine code: {missing}" if missing else "ok"
        files[name] = found
    print(json.dumps({"version": [major.value, minor.value], "options": ours, "files": files}))


if __name__ == "__main__":
    main(*sys.argv[1:])
