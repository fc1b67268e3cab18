"""csrc/ compiled by NVRTC itself with the options that CuPy passes, without a GPU.

The libraries are NVIDIA's packages on PyPI: those beside a CUDA build of torch, and what
``bash scripts/nvrtc.sh FOLDER`` has put where HESSRMT_NVRTC says. Where there are none, skipped;
.ci/run brings them.
"""

import json
import subprocess
import sys
from pathlib import Path

import nvrtc_compile
import pytest

from hessrmt.backend import kernels

LIBRARIES = nvrtc_compile.libraries()
WANTED = {(12, 4): (80, 90), (12, 8): (80, 90, 100), (13, 0): (80, 90, 100)}
"""Architectures of each version; later ones take the last entry's."""


def pairs():
    """Every version to be tried, whether its library is here or not, with each architecture."""
    versions = sorted({*WANTED, *(v for v in LIBRARIES if v > max(WANTED))})
    return [
        pytest.param(v, sm, id=f"{v[0]}.{v[1]}-sm_{sm}")
        for v in versions
        for sm in WANTED.get(v, WANTED[max(WANTED)])
    ]


def compiled(version, architecture, options):
    if version not in LIBRARIES:
        name = f"nvidia-cuda-nvrtc{'-cu12' if version[0] == 12 else ''}"
        pytest.skip(f"{name} {version[0]}.{version[1]} is missing (bash scripts/nvrtc.sh FOLDER)")
    program = [sys.executable, str(Path(nvrtc_compile.__file__))]
    command = [*program, str(LIBRARIES[version][0]), str(architecture), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert tuple(found["version"]) == version
    assert len(found["files"]) == 1 + len(list(kernels.csrc().glob("*.cu")))
    return found["files"]


@pytest.mark.parametrize(("version", "architecture"), pairs())
def test_every_kernel_compiles_as_cupy_compiles_it(version, architecture):
    files = compiled(version, architecture, kernels.OPTIONS)
    assert {name: said for name, said in files.items() if said != "ok"} == {}


@pytest.mark.parametrize("version", [(12, 4), (12, 8)], ids=["12.4", "12.8"])
def test_an_option_given_twice_is_refused(version):
    """What happened while OPTIONS said -ftz=false: CuPy says -ftz=true, and no file compiled."""
    files = compiled(version, 90, ("-ftz=false", *kernels.OPTIONS))
    assert all("-ftz" in said for said in files.values()), files


def test_no_option_is_one_that_cupy_adds():
    names = [option.split("=")[0].lstrip("-") for option in kernels.OPTIONS]
    added = {"ftz", "arch", "gpu-architecture", "device-as-default-execution-space"}
    assert not added & set(names)
