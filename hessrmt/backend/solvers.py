"""Which eigenvalue solver a GPU takes at which size, and the memory that each needs.

The one table of thresholds. None of it has been measured on a GPU yet: the values come from a model
of an H100 (:data:`BASIS`), to be replaced by those that ``scripts/gpu_check.py`` proposes once it
has run on one and its record is in ``benchmarks/results``. ``HESSRMT_SOLVER`` overrules it.
"""

from __future__ import annotations

import itertools
import math
import os
from bisect import bisect_right
from typing import NamedTuple

from hessrmt.checks import one_of
from hessrmt.errors import ConfigError, DeviceError

POLICIES = ("auto", "two-stage", "library")
"""What may be asked for; the last two are also the routes that a matrix may take."""

XSYEV, BATCHED = "XsyevBatched", "batched two-stage"
"""Routes of a stack: cuSOLVER's solver for batches, and ours."""

VARIABLE = "HESSRMT_SOLVER"
"""Environment variable that holds the policy."""

BASIS = "modelled, not measured"
"""What the thresholds of this file rest on."""

TWO_STAGE_FROM: dict[str, int | None] = {"float64": 8_000, "float32": 14_000}
"""Smallest n at which the two-stage solver is taken before a one-stage cuSOLVER; None: never.

Where the slower estimate of ours meets the faster one of cuSOLVER 12.0 (CUDA 13.0). That streams
the matrix through memory, half as long in float32; panels and bulge chase wait as long in both.
"""

OWN_TWO_STAGE = (12, 4, 1)
"""The cuSOLVER (CUDA 13.5) that first has two stages of its own: from it on the library is taken at
every n, until ours is measured against it."""

BATCH_LIMIT = 3_000
"""Largest n of which several matrices are solved in one stack; larger ones fill a GPU alone."""

BATCHED_FROM: int | None = None
"""Smallest n at which a stack takes the batched two-stage solver though cuSOLVER has one for
batches; None: only where it has none."""

SPEED = 100
"""Times more work than a CPU gets that a batch is made of, so that it fills a GPU; not measured."""

HALF_WIDTHS = (64, 32, 16)
"""Half-widths of the band; the first whose two blocks fit in shared memory is taken."""

BATCH_HALF_WIDTH = 32
"""Largest half-width of a batch's bands: panels and chase cost less, small products more."""

BATCH_TILE = 256
"""Rows and columns of a batch's matrices that are mirrored at a time."""

COLLECTED = 512
"""Columns that stage 1 collects before it updates the matrix (double blocking); not measured."""

PANEL_ROWS = 128
"""Rows of a panel in each block of csrc/panel_qr.cu, more where blocks run out; not measured."""

SMALL_LIMIT = 160
"""Largest n of one block per matrix, where shared memory holds it; not measured."""

LIBRARY_NUMBERS = 2**31 - 1
"""Numbers in one call of XsyevBatched, n · lda · batch; torch from 2.12 on calls nothing else."""

OPT_IN = 48 * 1024
"""Bytes of dynamic shared memory above which a block must ask for it."""

_STATIC_SHARED = 896
"""Static shared memory of csrc/batched_small.cu, 800 bytes, and some room."""

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


def policy(given: str | None = None) -> str:
    """The solver for GPUs that was asked for.

    Args:
        given: One of :data:`POLICIES`; by default what the environment variable says, and
            ``"auto"`` without it.

    Returns:
        One of :data:`POLICIES`.

    Raises:
        ConfigError: If it is none of them.
    """
    asked = given or os.environ.get(VARIABLE, "auto")
    one_of(f"eigenvalue solver ({VARIABLE})", asked, POLICIES, error=ConfigError)
    return asked


def two_stage_from(dtype: str, version: tuple[int, ...] | None) -> int | None:
    """Smallest n of the two-stage solver where nothing is forced.

    Args:
        dtype: ``"float64"`` or ``"float32"``.
        version: Of the cuSOLVER that would be taken instead; None if it is not known.

    Returns:
        A dimension; None: the library is taken at every n.
    """
    return None if version is None or version >= OWN_TWO_STAGE else TWO_STAGE_FROM[dtype]


def route(policy: str, n: int, dtype: str, version: tuple[int, ...] | None) -> str:
    """The solver for one matrix.

    Args:
        policy: What was asked for.
        n: Dimension.
        dtype: ``"float64"`` or ``"float32"``.
        version: Of the cuSOLVER that would be taken instead; None if it is not known.

    Returns:
        Its name.
    """
    if policy != "auto":
        return policy
    threshold = two_stage_from(dtype, version)
    return "library" if threshold is None or n < threshold else "two-stage"


def batch_routes(policy: str, n: int) -> tuple[str, ...]:
    """Solvers for a stack of matrices of more than :data:`SMALL_LIMIT` rows, the first one first.

    Args:
        policy: What was asked for.
        n: Dimension.

    Returns:
        Their names; after them, one matrix after another.
    """
    if n > BATCH_LIMIT:
        return ()
    if policy != "auto":
        return (BATCHED,) if policy == "two-stage" else (XSYEV,)
    ours_first = BATCHED_FROM is not None and n >= BATCHED_FROM
    return (BATCHED, XSYEV) if ours_first else (XSYEV, BATCHED)


def table(
    policy: str,
    words: dict[str, str],
    batches: dict[str, str],
    *,
    kernels: bool,
    version: tuple[int, ...] | None,
) -> dict[str, str]:
    """The routes in words, for people, with the reason.

    Args:
        policy: What was asked for.
        words: For each route of one matrix.
        batches: For each route of a stack that is there.
        kernels: Whether kernels can be compiled at all.
        version: Of the cuSOLVER that is called for one matrix; None if it is not known.

    Returns:
        From a range of sizes to its route.
    """
    library, two_stage, rows = words["library"], words["two-stage"], {}
    cusolver = "cuSOLVER of unknown version" if version is None else f"cuSOLVER {dotted(version)}"
    for dtype in TWO_STAGE_FROM:
        threshold = two_stage_from(dtype, version)
        if policy == "library":
            rows[f"{dtype}, any n"] = f"{library}, forced by {VARIABLE}"
        elif not kernels:
            rows[f"{dtype}, any n"] = f"{library}; the two-stage solver needs CuPy"
        elif policy == "two-stage":
            rows[f"{dtype}, any n"] = f"{two_stage}, forced by {VARIABLE}"
        elif threshold is None:
            own = version is not None and version >= OWN_TWO_STAGE
            why = f"{cusolver} has two stages of its own, " if own else f"{cusolver}, "
            why += "against which the two-stage solver is not measured"
            rows[f"{dtype}, any n"] = f"{library}; {why}"
        else:
            why = f"{cusolver} has one stage; the threshold is {BASIS}"
            rows[f"{dtype}, n < {threshold:,}"] = f"{library}; {why}"
            rows[f"{dtype}, n >= {threshold:,}"] = f"{two_stage}; {why}"
    small = f"one block per matrix, where shared memory holds it; the threshold is {BASIS}"
    ours = kernels and policy != "library"
    rows[f"batches, n <= {SMALL_LIMIT}"] = small if ours else "torch.linalg.eigvalsh"
    begin, end = SMALL_LIMIT + 1, BATCH_LIMIT + 1
    starts = [begin, *([BATCHED_FROM] if BATCHED_FROM and begin < BATCHED_FROM < end else [])]
    for start, stop in itertools.pairwise([*starts, end]):
        taken = next((r for r in batch_routes(policy, start) if r in batches), None)
        said = "one after another" if taken is None else batches[taken]
        if taken and policy == "auto":
            unknown = taken == XSYEV and BATCHED_FROM is None
            said += "; the batched two-stage solver is not measured against it" if unknown else ""
            said += "" if unknown else f"; the threshold is {BASIS}"
        rows[f"batches, {start - 1:,} < n <= {stop - 1:,}"] = said
    return rows


def dotted(version: tuple[int, ...]) -> str:
    """A version in words.

    Args:
        version: Its numbers.

    Returns:
        E.g. ``"12.0.4"``.
    """
    return ".".join(map(str, version))


def small_shared_bytes(n: int) -> int:
    """Dynamic shared memory of a block of csrc/batched_small.cu.

    Args:
        n: Dimension.

    Returns:
        A number of bytes.
    """
    return 8 * (4 * n + n * (n + 1) // 2)


def small_limit(shared: int) -> int:
    """Largest n of csrc/batched_small.cu.

    Args:
        shared: Bytes of shared memory that a block may ask for.

    Returns:
        A dimension, at most :data:`SMALL_LIMIT`; 0 if none fits.
    """
    room = shared - _STATIC_SHARED
    sizes = range(SMALL_LIMIT, 0, -1)
    return next((n for n in sizes if small_shared_bytes(n) <= room), 0)


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


def batched_panel_bytes(rows: int, b: int) -> int:
    """Dynamic shared memory of a block of csrc/panel_batch.cu.

    Args:
        rows: Of a panel.
        b: Its columns.

    Returns:
        A number of bytes.
    """
    return 8 * (rows + 34 * b)


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


def widest_band(shared: int, itemsize: int, threads: int) -> int:
    """Largest half-width of a band that csrc/bulge_chase.cu takes.

    Args:
        shared: Bytes of shared memory that a block may ask for.
        itemsize: Bytes of a number.
        threads: Threads of a block.

    Returns:
        A half-width; at least 1, since such a band needs no chase.
    """
    widths = range(math.isqrt(shared // (2 * itemsize)), 1, -1)
    return next((b for b in widths if chase_shared_bytes(b, itemsize, threads) <= shared), 1)


def banded_bytes(n: int, width: int) -> int:
    """Memory of one band on a device: as it comes, packed for the chase, and stage 3.

    Args:
        n: Dimension.
        width: Its half-width r.

    Returns:
        Bytes, in float64.
    """
    return 8 * n * (width + 1 + 2 * width + 1 + 2 + 3) + 4 * (n + 2) + 16


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


def together(solver: str, n: int, free: int) -> int:
    """How many float64 matrices are solved in one stack.

    Ours: the copy of a matrix, a panel with its products, both sides of an update, the band, d
    and e, flags, and stage 3. XsyevBatched: the copy, and as much for its workspace,
    whose size the library itself says once the stack is there.

    Args:
        solver: Of :func:`batch_routes`.
        n: Dimension.
        free: Bytes free beside the matrices that were given.

    Returns:
        A number of matrices; 0 if none fits.
    """
    tiles = 3 * min(n, BATCH_TILE) ** 2
    each = 16 * n * n + 8 * n
    if solver == BATCHED:
        b = min(max(HALF_WIDTHS), BATCH_HALF_WIDTH)
        numbers = n * (n + 9 * b + (2 * b + 1) + 2) + 4 * b * b + tiles
        each = 8 * (numbers + 3 * n + 2) + 4 * (n + 1)
    most = max(0, free - _FIXED) // each
    return min(most, LIBRARY_NUMBERS // (n * n))


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


def in_place(n: int, itemsize: int, room: int) -> str:
    """The advice to take the solver that works in place.

    Args:
        n: Dimension.
        itemsize: Bytes of a number.
        room: Bytes for the matrix and the solver's workspace.

    Returns:
        Empty if it would not fit either.
    """
    needed = sum(plan("two-stage", n, itemsize))
    if needed > room:
        return ""
    return (
        f" {VARIABLE}=two-stage (it needs CuPy) works in place and would fit, with "
        f"{needed / 2**30:.1f} GiB;"
    )


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
    hint = in_place(n, itemsize, matrix + free) if solver == "library" else ""
    raise DeviceError(
        f"the eigenvalues of a {n:,} x {n:,} matrix by the {solver} solver need {workspace:,} "
        f"bytes beside the matrix's {matrix:,}, and {device} has {free:,} free; the largest that "
        f"fits has {fits:,} rows. Otherwise:{hint} take a smaller problem, float32, or a device "
        "with more memory"
    )
