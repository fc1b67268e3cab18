"""The CUDA sources without a GPU: executed on the CPU from the same text, and compiled by nvcc.

What a backend gives by them is in test_backend.py, the kernels with a method of their own in files
with their names.
"""

import shutil
import subprocess

import numpy as np
import pytest
from host_kernels import Module

from hessrmt.backend import kernels
from hessrmt.backend.cuda_kernels import TILE, TILE_BLOCK

COUNTER = """
extern "C" void atomics(long long *count) { *count = host_atomics.exchange(0); }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return Module(tmp_path_factory.mktemp("csrc"), "symmetrize", COUNTER)


@pytest.fixture(scope="module")
def symmetrize(library):
    """The kernel's launch on the CPU: array in place, returns what the backend returns."""

    def run(a):
        worst, tiles = np.zeros(1, np.uint64), -(-len(a) // TILE)
        library.launch("symmetrize", (tiles, tiles), TILE_BLOCK, a, len(a), worst)
        return worst.view(np.float64)[0]

    return run


def test_symmetrize_takes_one_atomic_a_block(symmetrize, library):
    count = np.zeros(1, np.int64)
    library.call("atomics", count)
    symmetrize(np.random.default_rng(0).normal(size=(100, 100)))
    library.call("atomics", count)
    tiles = -(-100 // TILE)
    assert 0 < count[0] <= tiles * (tiles + 1) // 2


def test_source_is_self_contained():
    for file in kernels.csrc().glob("*.cu"):
        text = kernels.source(file.stem)
        assert "#include" not in text
        assert "ordered_bits(double" in text


@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc")
@pytest.mark.parametrize(
    "architecture",
    ["sm_80", "sm_90", *(pytest.param(a, marks=pytest.mark.slow) for a in ("sm_75", "sm_100"))],
)
@pytest.mark.parametrize("file", sorted(path.stem for path in kernels.csrc().glob("*.cu")))
def test_compiles_for_every_architecture(tmp_path, file, architecture):
    supported = subprocess.run(
        ["nvcc", "--list-gpu-code"], capture_output=True, text=True, check=True
    )
    if architecture not in supported.stdout.split():
        pytest.skip(f"this nvcc does not know {architecture}")
    text = tmp_path / f"{file}.cu"
    text.write_text(kernels.source(file))
    strict = ["-Werror", "all-warnings", "-cubin", f"-arch={architecture}"]
    command = ["nvcc", *kernels.OPTIONS, "-ftz=true", *strict]  # -ftz as CuPy adds
    done = subprocess.run(
        [*command, text, "-o", tmp_path / "a.cubin"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.cubin").stat().st_size > 0
