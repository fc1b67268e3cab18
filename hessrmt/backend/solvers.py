"""Which eigenvalue solver a GPU takes at which size, and the memory that each needs.

The one table of thresholds. None of it has been measured on a GPU yet: until
``scripts/gpu_check.py`` has run on one and its record is in ``benchmarks/results``, every size goes
to the library (cuSOLVER) unless the two-stage solver is asked for (``HESSRMT_SOLVER=two-stage``).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import NamedTuple

from hessrmt.errors import DeviceError

POLICIES = ("auto", "two-stage", "library")
"""What may be asked for; the last two are also the routes that a matrix may take."""

VARIABLE = "HESSRMT_SOLVER"
"""Environment variable that holds the policy."""

TWO_STAGE_FROM: dict[str, int | None] = {"float64": None, "float32": None}
"""Smallest n at which the two-stage solver is faster; None: not measured, the library is taken."""

HALF_WIDTHS = (64, 32, 16)
"""Half-widths of the band; the first whose two blocks fit in shared memory is taken."""

COLLECTED = 512
"""Columns that stage 1 collects before it updates the matrix (double blocking); not measured."""

PANEL_ROWS = 128
"""Rows of a panel in each block of csrc/panel_qr.cu, more where blocks run out; not measured."""

SMALL_LIMIT = 160
"""Largest n of one block per matrix, where shared memory holds it; not measured."""

LIBRARY_NUMBERS = 2**31 - 1
"""Numbers in one call of torch's solver on a GPU, n · lda · batch (torch 2.12 and later)."""

OPT_IN = 48 * 1024
"""Bytes of dynamic shared memory above which a block must ask for it."""

_STATIC_SHARED = 896
"""Static shared memory of csrc/batched_small.cu, 800 bytes in float64, and some room."""

_FIXED = 64 * 2**20
"""What cuBLAS, cuSOLVER and small temporaries are allowed beside what is counted."""


class SolverMemory(NamedTuple):
    """Memory of one eigenvalue problem, in bytes.

    Attributes:
        matrix: The matrix itself, which the caller holds already.
        workspace: What the solver allocates beside it. cuSOLVER's own workspace is known only
            through the fixed allowance.
    """

    matrix: int
    workspace: int


def route(policy: str, n: int, dtype: str) -> str:
    """The solver for one matrix.

    Args:
        policy: What was asked for.
        n: Dimension.
        dtype: ``"float64"`` or ``"float32"``.

    Returns:
        Its name.
    """
    if policy != "auto":
        return policy
    threshold = TWO_STAGE_FROM[dtype]
    return "library" if threshold is None or n < threshold else "two-stage"


def table(policy: str, library: str, two_stage: str, *, kernels: bool) -> dict[str, str]:
    """The routes in words, for people.

    Args:
        policy: What was asked for.
        library: The library's solver in words.
        two_stage: The two-stage solver in words.
        kernels: Whether kernels can be compiled at all.

    Returns:
        From a range of sizes to its route.
    """
    rows = {}
    for dtype, threshold in TWO_STAGE_FROM.items():
        if not kernels or policy == "library":
            rows[f"{dtype}, any n"] = library
        elif policy == "two-stage":
            rows[f"{dtype}, any n"] = f"{two_stage}, forced by {VARIABLE}"
        elif threshold is None:
            rows[f"{dtype}, any n"] = f"{library}; two-stage not measured yet on a GPU"
        else:
            rows[f"{dtype}, n < {threshold:,}"] = library
            rows[f"{dtype}, n >= {threshold:,}"] = two_stage
    small = kernels and policy != "library"
    one = "one block per matrix, where shared memory holds it; not measured yet on a GPU"
    return rows | {f"batches, n <= {SMALL_LIMIT}": one if small else "torch.linalg.eigvalsh"}


def small_shared_bytes(n: int, itemsize: int) -> int:
    """Dynamic shared memory of a block of csrc/batched_small.cu.

    Args:
        n: Dimension.
        itemsize: Bytes of a number.

    Returns:
        A number of bytes.
    """
    return 16 * n + itemsize * (2 * n + n * (n + 1) // 2)


def small_limit(shared: int, itemsize: int) -> int:
    """Largest n of csrc/batched_small.cu.

    Args:
        shared: Bytes of shared memory that a block may ask for.
        itemsize: Bytes of a number.

    Returns:
        A dimension, at most :data:`SMALL_LIMIT`; 0 if none fits.
    """
    room = shared - _STATIC_SHARED
    sizes = range(SMALL_LIMIT, 0, -1)
    return next((n for n in sizes if small_shared_bytes(n, itemsize) <= room), 0)


def chase_shared_bytes(b: int, itemsize: int, threads: int) -> int:
    """Dynamic shared memory of a block of csrc/bulge_chase.cu.

    Args:
        b: Half-width of the bands.
        itemsize: Bytes of a number.
        threads: Threads of a block.

    Returns:
        A number of bytes.
    """
    return 8 + itemsize * (2 * b * (b + 1) + 2 * max(b, threads) + 4 * b)


def half_width(shared: int, itemsize: int, threads: int) -> int:
    """Half-width of the band between the stages.

    Args:
        shared: Bytes of shared memory that a block may ask for.
        itemsize: Bytes of a number.
        threads: Threads of a block of the bulge chase.

    Returns:
        The first of :data:`HALF_WIDTHS` whose blocks fit, else the last.
    """
    fits = (b for b in HALF_WIDTHS if chase_shared_bytes(b, itemsize, threads) <= shared)
    return next(fits, HALF_WIDTHS[-1])


def panel_rows(shared: int, b: int, itemsize: int, threads: int) -> int:
    """Rows of a panel that a block of csrc/panel_qr.cu can hold.

    Args:
        shared: Bytes of shared memory that a block may ask for.
        b: Columns of the panel.
        itemsize: Bytes of a number.
        threads: Threads of a block.

    Returns:
        A number of rows; none where a block can't hold :data:`PANEL_ROWS`.
    """
    rows = (shared - panel_shared_bytes(0, b, itemsize, threads)) // (itemsize * (b + 1))
    return rows if rows >= PANEL_ROWS else 0


def panel_shared_bytes(rows: int, b: int, itemsize: int, threads: int) -> int:
    """Dynamic shared memory of a block of csrc/panel_qr.cu.

    Args:
        rows: Of the panel, in each block.
        b: Columns of the panel.
        itemsize: Bytes of a number.
        threads: Threads of a block.

    Returns:
        A number of bytes.
    """
    return 8 + itemsize * (rows * (b + 1) + max(b, threads) + 3 * b)


def panel_share(m: int, rows: int, most: int) -> int:
    """Rows that each block of csrc/panel_qr.cu gets.

    Args:
        m: Rows of the panel, at least 1.
        rows: What a block can hold (:func:`panel_rows`).
        most: Blocks that run at the same time.

    Returns:
        At most ``rows``, with ``most`` blocks or fewer; 0 if the panel does not fit.
    """
    share = min(max(-(-m // most), PANEL_ROWS), m)
    return share if share <= rows else 0


def panel_numbers(n: int, b: int) -> int:
    """Numbers that csrc/panel_qr.cu works with beside the panels of a matrix.

    Args:
        n: Rows of the matrix.
        b: Columns of a panel.

    Returns:
        How many.
    """
    blocks = -(-n // PANEL_ROWS)
    return 2 * b * (blocks + 1) + blocks * b * b


def plan(solver: str, n: int, itemsize: int) -> SolverMemory:
    """Memory of one eigenvalue problem.

    Two-stage: V and Z on both sides of an update, a panel with its products, the band, d and e,
    sums of the panel's QR, flags, and stage 3 in float64. Library: a copy of the matrix, which it
    overwrites.

    Args:
        solver: Which.
        n: Dimension.
        itemsize: Bytes of a number: 8 or 4.

    Returns:
        Bytes of the matrix and of the workspace beside it.
    """
    matrix = n * n * itemsize
    if solver == "library":
        return SolverMemory(matrix, matrix + 8 * n + _FIXED)
    b = max(HALF_WIDTHS)
    numbers = n * (4 * max(b, COLLECTED) + 8 * b + (2 * b + 1) + 2) + panel_numbers(n, b)
    return SolverMemory(matrix, numbers * itemsize + 8 * (3 * n + 2) + 4 * (2 * n + 3) + _FIXED)


def largest(solver: str, total: int, itemsize: int) -> int:
    """Largest n whose matrix and workspace fit.

    Args:
        solver: Which.
        total: Bytes for both.
        itemsize: Bytes of a number.

    Returns:
        A dimension; 0 if none fits.
    """
    sizes = range(1, 2 + math.isqrt(max(total, 0) // itemsize))
    return bisect_right(sizes, total, key=lambda n: sum(plan(solver, n, itemsize)))


def require_memory(solver: str, n: int, itemsize: int, free: int, device: str) -> None:
    """Refuse, before anything is allocated, a workspace that cannot fit.

    Args:
        solver: Which.
        n: Dimension of the matrix, which is on the device already.
        itemsize: Bytes of a number.
        free: Bytes free beside it.
        device: Its name.

    Raises:
        DeviceError: If the workspace does not fit.
    """
    matrix, workspace = plan(solver, n, itemsize)
    if workspace <= free:
        return
    fits = largest(solver, matrix + free, itemsize)
    hint = ""
    if solver == "library" and plan("two-stage", n, itemsize).workspace <= free:
        hint = f" {VARIABLE}=two-stage works in place and would fit;"
    raise DeviceError(
        f"the eigenvalues of a {n:,} x {n:,} matrix by the {solver} solver need {workspace:,} "
        f"bytes beside the matrix's {matrix:,}, and {device} has {free:,} free; the largest that "
        f"fits has {fits:,} rows. Otherwise:{hint} take a smaller problem, float32, or a device "
        "with more memory"
    )
