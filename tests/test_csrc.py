"""The CUDA sources without a GPU: executed on the CPU from the same text, and compiled by nvcc."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from hessrmt.backend import kernels

TILE, BLOCK = 32, (32, 8)  # as backend/cuda_kernels.py launches it
SIZES = [1, 2, 31, 32, 33, 100]

LAUNCHERS = """
extern "C" void run_f64(unsigned tiles, double *a, long long n, u64 *worst) {
    launch(dim3{tiles, tiles, 1}, dim3{32, 8, 1}, symmetrize_f64, a, n, worst);
}
extern "C" void run_f32(unsigned tiles, float *a, long long n, u64 *worst) {
    launch(dim3{tiles, tiles, 1}, dim3{32, 8, 1}, symmetrize_f32, a, n, worst);
}
extern "C" unsigned long long atomics() { return host_atomics.exchange(0); }
"""


@pytest.fixture(scope="module")
def symmetrize(tmp_path_factory):
    """The kernel's launch on the CPU: array in place, returns what the backend returns."""
    if not shutil.which("g++"):
        pytest.skip("no g++")
    folder = tmp_path_factory.mktemp("csrc")
    text = folder / "symmetrize.cpp"
    text.write_text('#include "host_shim.hpp"\n' + kernels.source("symmetrize") + LAUNCHERS)
    library = folder / "symmetrize.so"
    flags = ["-std=c++20", "-O1", "-Wall", "-Werror", "-Wno-unknown-pragmas"]
    flags += ["-shared", "-fPIC", "-pthread"]
    include = f"-I{Path(__file__).parent}"
    subprocess.run(["g++", *flags, include, text, "-o", library], check=True)
    loaded = ctypes.CDLL(str(library))

    def run(a):
        worst = np.zeros(1, np.uint64)
        n = len(a)
        function = {8: loaded.run_f64, 4: loaded.run_f32}[a.itemsize]
        function(
            ctypes.c_uint(-(-n // TILE)),
            a.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_longlong(n),
            worst.ctypes.data_as(ctypes.c_void_p),
        )
        return worst.view(np.float64)[0]

    run.atomics = loaded.atomics
    run.atomics.restype = ctypes.c_ulonglong
    return run


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("n", SIZES)
def test_symmetrize(symmetrize, n, dtype):
    a = np.random.default_rng(n).normal(size=(n, n)).astype(dtype)
    # one addition, one exact division: the same bits as NumPy's
    expected, worst = (a + a.T) / 2, np.abs(a - a.T).max()
    assert symmetrize(a) == worst
    assert np.array_equal(a, expected)
    assert symmetrize(a) == 0
    assert np.array_equal(a, expected)


def test_symmetrize_takes_one_atomic_a_block(symmetrize):
    symmetrize.atomics()
    symmetrize(np.random.default_rng(0).normal(size=(100, 100)))
    tiles = -(-100 // TILE)
    assert symmetrize.atomics() <= tiles * (tiles + 1) // 2


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (0, 32), (32, 0), (3, 1), (32, 32)])
def test_symmetrize_reports_what_is_not_finite(symmetrize, dtype, value, place):
    a = np.random.default_rng(0).normal(size=(33, 33)).astype(dtype)
    a[place] = value
    assert not np.isfinite(symmetrize(a))


def test_symmetrize_writes_nothing_outside(symmetrize):
    room = np.full(33 * 33 + 2000, 7.0)
    room[: 33 * 33] = np.arange(33 * 33)
    assert symmetrize(room[: 33 * 33].reshape(33, 33)) == 32 * 33 - 32
    assert np.all(room[33 * 33 :] == 7)


def test_the_grid_is_the_backends():
    from hessrmt.backend import cuda_kernels

    assert (cuda_kernels.TILE, cuda_kernels.TILE_BLOCK) == (TILE, BLOCK)


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
    command = [
        "nvcc",
        *kernels.OPTIONS,
        "-ftz=true",  # as CuPy adds
        "-Werror",
        "all-warnings",
        "-cubin",
        f"-arch={architecture}",
    ]
    done = subprocess.run(
        [*command, text, "-o", tmp_path / "a.cubin"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.cubin").stat().st_size > 0
