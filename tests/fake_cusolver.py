"""A cuSOLVER whose device is main memory: its functions, with cusolverDn.h's types, by LAPACK.

Every function is called through a C function pointer of the header's types, so that what a caller
passes is converted as it would be for the library itself; before, the types that the caller has
declared are compared with the header's.
"""

import ctypes
import re

import numpy as np

HEADER = """
cusolverStatus_t cusolverGetProperty(libraryPropertyType type, int *value);
cusolverStatus_t cusolverDnCreate(cusolverDnHandle_t *handle);
cusolverStatus_t cusolverDnDestroy(cusolverDnHandle_t handle);
cusolverStatus_t cusolverDnSetStream(cusolverDnHandle_t handle, cudaStream_t streamId);
cusolverStatus_t cusolverDnCreateParams(cusolverDnParams_t *params);
cusolverStatus_t cusolverDnDestroyParams(cusolverDnParams_t params);
cusolverStatus_t cusolverDnXsyevBatched_bufferSize(
    cusolverDnHandle_t handle, cusolverDnParams_t params, cusolverEigMode_t jobz,
    cublasFillMode_t uplo, int64_t n, cudaDataType dataTypeA, const void *A, int64_t lda,
    cudaDataType dataTypeW, const void *W, cudaDataType computeType,
    size_t *workspaceInBytesOnDevice, size_t *workspaceInBytesOnHost, int64_t batchSize);
cusolverStatus_t cusolverDnXsyevBatched(
    cusolverDnHandle_t handle, cusolverDnParams_t params, cusolverEigMode_t jobz,
    cublasFillMode_t uplo, int64_t n, cudaDataType dataTypeA, void *A, int64_t lda,
    cudaDataType dataTypeW, void *W, cudaDataType computeType, void *bufferOnDevice,
    size_t workspaceInBytesOnDevice, void *bufferOnHost, size_t workspaceInBytesOnHost,
    int *info, int64_t batchSize);
"""
"""As in the public documentation of cuSOLVER."""

ENUMS = "libraryPropertyType", "cusolverEigMode_t", "cublasFillMode_t", "cudaDataType"
KINDS = {
    **dict.fromkeys(ENUMS, ctypes.c_int),
    "int64_t": ctypes.c_int64,
    "size_t": ctypes.c_size_t,
}
NUMBERS = {0: np.float32, 1: np.float64}  # CUDA_R_32F, CUDA_R_64F
INVALID_VALUE = 3
LIMIT = 2**31 - 1


def prototypes(text=HEADER):
    """From a function's name to the ctypes of its parameters; handles and pointers are void *."""
    found = {}
    for name, inside in re.findall(r"cusolverStatus_t (\w+)\(([^)]*)\);", text):
        words = [" ".join(word.replace("const ", "").split()) for word in inside.split(",")]
        kinds = [re.fullmatch(r"(\w+) \*?\w+", word)[1] for word in words]
        found[name] = tuple(
            ctypes.c_void_p if "*" in word else KINDS.get(kind, ctypes.c_void_p)
            for word, kind in zip(words, kinds, strict=True)
        )
    return found


class Function:
    """One function of the library: what a caller sets on it, and what happens in a call."""

    restype, argtypes = None, None

    def __init__(self, name, types, does):
        self.name, self.types = name, types
        self._pointer = ctypes.CFUNCTYPE(ctypes.c_int, *types)(does)

    def __call__(self, *arguments):
        assert self.restype is ctypes.c_int, self.name
        assert self.argtypes is not None, self.name
        assert tuple(self.argtypes) == self.types, self.name
        assert len(arguments) == len(self.types), self.name  # ctypes allows more
        return self._pointer(*arguments)


def address(place, kind, count):
    """Numbers that lie somewhere in memory."""
    return np.ctypeslib.as_array((kind * count).from_address(place))


class FakeCusolver:
    """Stands where a ctypes library does; ``calls`` has the batches' arguments, by name.

    ``statuses`` makes a function fail, ``failing`` a matrix (its info, by its number of the call).
    Each matrix takes ``workspace`` bytes on the device and 8 in main memory.
    """

    HANDLE, PARAMS = 0x7F00_0000_1000, 0x7F00_0000_2000  # more than 32 bits

    def __init__(self, version=(12, 0, 4), *, batched=True, workspace=64):
        self.version, self.workspace = version, workspace
        self.calls, self.streams, self.alive = [], [], []
        self.statuses, self.failing = {}, {}
        does = {
            "cusolverGetProperty": self._property,
            "cusolverDnCreate": self._create,
            "cusolverDnDestroy": self._destroy,
            "cusolverDnCreateParams": self._create_params,
            "cusolverDnDestroyParams": self._destroy_params,
            "cusolverDnSetStream": self._set_stream,
            "cusolverDnXsyevBatched_bufferSize": self._buffer_size,
            "cusolverDnXsyevBatched": self._solve,
        }
        for name, types in prototypes().items():
            if batched or "Batched" not in name:
                setattr(self, name, Function(name, types, self._guarded(name, does[name])))

    def _guarded(self, name, does):
        """An exception would be lost in a callback: it becomes a status, and is raised later."""

        def run(*arguments):
            if name in self.statuses:
                return self.statuses[name]
            try:
                return does(*arguments) or 0
            except Exception as error:
                self.error = error
                return 7

        return run

    error = None

    def _property(self, which, value):
        address(value, ctypes.c_int, 1)[0] = self.version[which]

    def _create(self, handle):
        ctypes.c_void_p.from_address(handle).value = self.HANDLE
        self.alive.append("handle")

    def _destroy(self, handle):
        assert handle == self.HANDLE
        self.alive.remove("handle")

    def _create_params(self, params):
        ctypes.c_void_p.from_address(params).value = self.PARAMS
        self.alive.append("params")

    def _destroy_params(self, params):
        assert params == self.PARAMS
        self.alive.remove("params")

    def _set_stream(self, handle, stream):
        assert handle == self.HANDLE
        self.streams.append(stream or 0)

    def _allowed(self, handle, params, jobz, uplo, n, kind, a, lda, kind_w, w, computed, batch):
        """What the documentation asks for, and that no vectors and the lower triangle are meant."""
        assert (handle, params) == (self.HANDLE, self.PARAMS)
        assert (jobz, uplo) == (0, 0)
        assert kind in NUMBERS
        assert kind == kind_w == computed
        return n > 0 and lda >= n and batch > 0 and n * lda * batch <= LIMIT

    def _buffer_size(self, *arguments):
        *matrices, device, host, batch = arguments
        if not self._allowed(*matrices, batch):
            return INVALID_VALUE
        address(device, ctypes.c_size_t, 1)[0] = self.workspace * batch
        address(host, ctypes.c_size_t, 1)[0] = 8 * batch
        return 0

    def _solve(self, *arguments):
        *matrices, device, bytes_d, host, bytes_h, info, k = arguments
        _, _, _, _, n, kind, a, lda, _, w, _ = matrices
        if not self._allowed(*matrices, k):
            return INVALID_VALUE
        if bytes_d < self.workspace * k or bytes_h < 8 * k:
            return INVALID_VALUE
        type_ = np.ctypeslib.as_ctypes_type(NUMBERS[kind])
        stack = address(a, type_, k * lda * n).reshape(k, n, lda)
        levels, infos = address(w, type_, k * n).reshape(k, n), address(info, ctypes.c_int, k)
        # the workspaces are the library's: nothing of the caller's may lie there
        address(device, ctypes.c_ubyte, bytes_d)[:] = 0xA5
        address(host, ctypes.c_ubyte, bytes_h)[:] = 0xA5
        for m in range(k):
            column_major = stack[m, :, :n].T
            levels[m] = np.linalg.eigvalsh(column_major, "L")
            infos[m] = self.failing.get(m, 0)
        stack[:] = np.nan  # overwritten
        self.calls.append({"n": n, "lda": lda, "batch": k, "type": kind})
        return 0
