"""What the tests of the GPU backend share: matrices, the tolerance, a compiler that fails."""

import numpy as np
import torch
from dense_symmetric import error

DTYPES = [torch.float64, torch.float32]
LIBRARY = "cupy.linalg.eigvalsh (cuSOLVER, cuda)"


def symmetric(n, dtype=torch.float64, seed=0):
    draw = np.random.default_rng([n, seed])
    a = draw.normal(size=(n, n))
    return torch.from_numpy(a + a.T).to(dtype)


def lower_only(matrix):
    """The same with NaN above the diagonal, where nobody may look."""
    n = matrix.shape[-1]
    above = torch.triu(torch.ones(n, n, dtype=torch.bool), 1)
    return torch.where(above, torch.nan, matrix)


def exact(matrix):
    return np.linalg.eigvalsh(matrix.double().numpy())


def close(found, matrix):
    """Backward stability of two solvers: a low multiple of n ε ‖A‖ (and Weyl)."""
    assert found.dtype == np.float64
    assert found.shape == (len(matrix),)
    assert np.all(np.diff(found) >= 0)
    numpy_type = {torch.float64: np.float64, torch.float32: np.float32}[matrix.dtype]
    return len(matrix) == 0 or error(found, exact(matrix), numpy_type) < 20


def fails(monkeypatch, fake, name):
    """Sources with this kernel do not compile, with an error of CuPy's kind."""
    build = fake.RawModule

    def compiler(*, code, options):
        if name in code:
            fake.compiled.append("failed")
            raise Exception("nvrtc: error: no such architecture")
        return build(code=code, options=options)

    monkeypatch.setattr(fake, "RawModule", compiler)
