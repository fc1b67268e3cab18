"""Frozen results: what a computation hands to its user and to the file store."""

from __future__ import annotations

import datetime as dt
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from hessrmt.results import Result, fields_of, library, plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from hessrmt.arrays import Indices, Levels, Stack

PAPER_CUTOFF_SPACINGS = 1e-20
"""Baskerville, Granziol and Keating 2022, §6: smaller magnitudes are dropped before unfolding."""

PAPER_CUTOFF_RATIOS = 1e-10
"""Eigenvalues of smaller magnitude are dropped before taking ratios by the code of that paper."""

_NEAR = 1e4
"""Factor within which a gap counts as near the noise floor."""

_RECORDED_PACKAGES = ("hessrmt", "torch", "numpy", "scipy", "h5py")


@cache
def _versions() -> Mapping[str, str]:
    found = {"python": platform.python_version()}
    for name in _RECORDED_PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


SOURCE = "_source_sha256"
"""End of the name under which it is kept what tells whether a user's code is what it was."""


@dataclass(frozen=True)
class Provenance:
    """Where a result came from.

    Attributes:
        config: The run's full settings, as plain values.
        device: The device in words, e.g. ``"cpu (2 threads)"``.
        versions: Package name to version.
        created: UTC time of creation, ISO 8601.
        notes: Anything a reader must know, e.g. that embedded data were used.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    versions: Mapping[str, str] = field(default_factory=lambda: dict(_versions()))
    created: str = field(
        default_factory=lambda: dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    )
    notes: tuple[str, ...] = ()


def from_python(call: str, source: Any) -> dict[str, Any]:
    """Settings of a result that no command has computed: what a reader can know of its origin.

    Args:
        call: Which function of hessrmt, e.g. ``"hessrmt.spectrum"``.
        source: What it was given: a problem, or a matrix known by its products.

    Returns:
        Plain values for :attr:`Provenance.config`; ``script`` is the file that Python was started
        with, without its folder, where there is one.
    """
    found = {
        "call": call,
        "network": type(getattr(source, "model", source)).__name__,
        "parameters": int(source.dimension),
        "samples": getattr(source, "samples", 0),
    }
    return {name: value for name, value in found.items() if value} | script()


def script() -> dict[str, str]:
    """The file that Python was started with, without its folder, as ``script``; nothing if none."""
    path = getattr(sys.modules.get("__main__"), "__file__", None)
    return {"script": Path(path).name} if path else {}


def source_in_words(settings: Mapping[str, Any]) -> str:
    """What a result is about.

    Args:
        settings: The settings in its provenance.

    Returns:
        Model, data, split and batch size, or kernel and dimension, or class and size of a network
        from Python, as far as they are known; empty if nothing is.
    """
    if settings.get("ensemble") == "loss-model":
        outliers = settings.get("outliers") or 0
        count = outliers if isinstance(outliers, int) else len(outliers)
        parts = [f"loss model, kernel {settings['kernel']}", f"n = {settings['n']:,}"]
        parts += [f"{count} outliers"] if count else []
        parts += [f"{settings['degenerate']:,} degenerate"] if settings["degenerate"] else []
        return ", ".join(parts)
    parts = [str(settings[key]) for key in ("model", "data", "split") if settings.get(key)]
    parts += [f"batch {settings['batch']}"] if settings.get("batch") else []
    if not parts and settings.get("network"):
        parts = [settings["network"], f"{settings['parameters']:,} parameters"]
    return ", ".join(parts)


@dataclass(frozen=True)
class Spectrum(
    Result,
    axes={"index": "eigenvalues"},
    derived="rank",
    omitted="pairs",
    picture="certification.certification",
    writer="hessrmt.store.writing",
):
    """All eigenvalues of one curvature matrix, with what is needed to trust them.

    Attributes:
        eigenvalues: (P,) float64, ascending; eigenvalues known exactly to be zero are 0.0.
        noise_floor: Absolute bound below which an eigenvalue cannot be told from round-off, in
            the units of the eigenvalues.
        dimension: P, the number of trainable parameters.
        reduced_dimension: Dimension n of the matrix that was diagonalised, n <= P.
        loss: Mean loss.
        gradient_norm: Euclidean norm of its gradient.
        operator: ``"hessian"``, ``"ggn"``, ``"ensemble"`` for a random matrix, or ``"matrix"`` for
            one that was given.
        dtype: Precision of the computation.
        solver: Eigenvalue routine used.
        check: ‖Hv - Q(QᵀHQ)Qᵀv‖ / (‖H‖₂ ‖v‖) for a random v, Hv by an independent differentiation;
            likewise for the Gauss-Newton matrix. NaN where torch can differentiate one way alone.
            It may lie below the machine precision: most random v are stretched far less than by
            ‖H‖₂.
        seconds: Phase name to wall-clock seconds.
        provenance: Where it came from.
        pairs: Eigenpairs of largest magnitude if they were asked for, as of ``hessrmt.eigsh``; they
            are not stored in files.
    """

    eigenvalues: Levels
    noise_floor: float
    dimension: int
    reduced_dimension: int
    loss: float = float("nan")
    gradient_norm: float = float("nan")
    operator: str = "hessian"
    dtype: str = "float64"
    solver: str = "unknown"
    check: float = float("nan")
    seconds: Mapping[str, float] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=Provenance)
    pairs: Any = field(default=None, compare=False, repr=False)

    @property
    def vectors(self) -> Tensor | None:
        """(P, k) orthonormal eigenvectors as columns, to ascending ``pairs.values``."""
        return None if self.pairs is None else self.pairs.vectors

    @property
    def resolved(self) -> Levels:
        """The certified eigenvalues, ascending: every eigenvalue with |λ| above the noise floor."""
        return self.eigenvalues[np.abs(self.eigenvalues) > self.noise_floor]

    @property
    def rank(self) -> int:
        """Number of certified eigenvalues: the numerical rank."""
        return self.count_above(self.noise_floor)

    def count_above(self, cutoff: float) -> int:
        """Number of eigenvalues with |λ| > cutoff (cutoff in the units of the eigenvalues).

        Returns:
            A count.
        """
        return int(np.count_nonzero(np.abs(self.eigenvalues) > cutoff))

    @property
    def n_paper_cutoff(self) -> int:
        """Levels that the published cutoff for spacings, 1e-20, keeps of these eigenvalues."""
        return self.count_above(PAPER_CUTOFF_SPACINGS)

    @property
    def n_paper_cutoff_ratios(self) -> int:
        """Levels that the published code's cutoff for ratios, 1e-10, keeps of these eigenvalues."""
        return self.count_above(PAPER_CUTOFF_RATIOS)

    @property
    def resolved_spacings(self) -> int:
        """Spacings between neighbouring certified eigenvalues that exceed the noise floor."""
        return int(np.count_nonzero(np.diff(self.resolved) > self.noise_floor))

    @property
    def log_gap(self) -> tuple[float, float]:
        """The widest gap in log|λ| near the noise floor: largest |λ| below it, smallest above.

        Near means that the gap reaches within four decades of the floor. If the floor lies outside
        the widest gap, round-off and levels are not clearly apart. Exact zeros count as one
        magnitude, 0.0; both ends are NaN if nothing is certified.
        """
        size = np.unique(np.abs(self.eigenvalues))
        if not len(size) or size[-1] <= self.noise_floor:
            return float("nan"), float("nan")
        size = np.concatenate([[0.0], size[size > 0]])
        low, high = size[:-1], size[1:]
        near = (low <= self.noise_floor * _NEAR) & (high >= self.noise_floor / _NEAR)
        with np.errstate(divide="ignore"):
            width = np.where(near, np.log(high) - np.log(low), -np.inf)
        # the step from exact zero to the smallest magnitude is no gap if that is round-off itself
        if size[1] <= self.noise_floor:
            width[0] = -np.inf
        widest = int(np.argmax(width))
        return float(low[widest]), float(high[widest])

    @property
    def gap_decades(self) -> float:
        """Width of :attr:`log_gap` in decades; infinite if only exact zeros lie below it."""
        low, high = self.log_gap
        return float("inf") if low == 0 else float(np.log10(high) - np.log10(low))

    def shown(self) -> dict[str, str]:
        """The most important of it, for a terminal or a notebook."""
        return {
            "eigenvalues": f"{self.dimension:,}, from {self.eigenvalues.min(initial=np.inf):.3g} "
            f"to {self.eigenvalues.max(initial=-np.inf):.3g}",
            "diagonalised": f"{self.reduced_dimension:,} rows, {self.solver}, {self.dtype}",
            "certified eigenvalues": f"{self.rank:,}",
            "noise floor": f"{self.noise_floor:.2g}",
            "loss": f"{self.loss:.6g}",
            "gradient norm": f"{self.gradient_norm:.4g}",
        }

    def caption(self) -> str:
        """What matrix's."""
        return f"Spectrum ({self.operator})"


def in_range(counts: Sequence[int]) -> str:
    """Counts in words: ``"3 to 5"``, one number where all are the same, nothing of none."""
    ends = sorted({min(counts), max(counts)}) if counts else []
    return " to ".join(f"{count:,}" for count in ends)


@dataclass(frozen=True)
class Spectra(
    Result,
    Sequence[Spectrum],
    axes={"batch index": "eigenvalues", "batch sample": "batch_indices"},
    picture="certification.certification",
    writer="hessrmt.store.writing",
):
    """The complete spectra of one file, in batch order.

    Indexing and iteration give :class:`Spectrum` objects; a slice gives a tuple of them.

    Attributes:
        items: The spectra.
        batch_indices: (batches, B) positions of each batch's samples in its split.
        planned: Batches that the run was to compute; more than ``len`` if it was cut short.
        provenance: Where they came from.
        damaged: Rows of the file that don't match their checksum, and are left out.
    """

    items: tuple[Spectrum, ...]
    batch_indices: Indices
    planned: int
    provenance: Provenance
    damaged: tuple[int, ...] = ()

    def __getattr__(self, name: str) -> Any:
        known = name in Spectrum.__annotations__ or hasattr(Spectrum, name)
        one = known and not name.startswith("_")
        hint = f"; each of them has, such as spectra[0].{name}" if one else ""
        raise AttributeError(f"the spectra of a file have no {name!r}{hint}", name=name, obj=self)

    @property
    def eigenvalues(self) -> Stack:
        """All eigenvalues, one row for each spectrum, (batches, P) float64."""
        return np.stack([item.eigenvalues for item in self.items])

    def rows(self) -> list[dict[str, Any]]:
        """One row for each spectrum.

        Returns:
            Its numbers, without the eigenvalues.
        """
        return [_numbers(item) for item in self.items]

    def shown(self) -> dict[str, str]:
        """What file it is of."""
        return {
            "spectra": f"{len(self)} of {self.planned} planned",
            "eigenvalues of each": f"{self.items[0].dimension:,}" if self.items else "",
            "certified eigenvalues": in_range([item.rank for item in self.items]),
            **{name: str(value) for name, value in self.provenance.config.items()},
        }

    def caption(self) -> str:
        """What it is."""
        return "Spectra of one file"

    @overload
    def __getitem__(self, index: int) -> Spectrum: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Spectrum, ...]: ...
    def __getitem__(self, index: int | slice) -> Spectrum | tuple[Spectrum, ...]:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)


class BlockSpectra(
    Result,
    dict[str, Any],
    picture="certification.certification",
    writer="hessrmt.store.writing",
):
    """Name of a block of a matrix to its :class:`Spectrum`, or to the :class:`Spectra` of a file.

    A block is the matrix in some of the parameters, with all others held constant.
    """

    @property
    def provenance(self) -> Provenance:
        """Where they came from: that of the first."""
        return next(iter(self.values())).provenance

    def rows(self) -> list[dict[str, Any]]:
        """One row for each spectrum of each block.

        Returns:
            The name of the block and the spectrum's numbers, without the eigenvalues.
        """
        return [{"block": k} | _numbers(item) for k, part in self.items() for item in _items(part)]

    def to_xarray(self) -> Any:
        """The eigenvalues of each block under its name, each along an axis of its own.

        Returns:
            An ``xarray.Dataset``.
        """
        arrays = {
            name: (("batch",) * (part.eigenvalues.ndim - 1) + (f"index of {name}",), part)
            for name, part in self.items()
        }
        arrays = {name: (axes, part.eigenvalues) for name, (axes, part) in arrays.items()}
        return library("xarray", "to_dict()").Dataset(arrays)

    def shown(self) -> dict[str, str]:
        """Size, ends and rank of each."""
        found = {}
        for name, part in self.items():
            ranks = sorted({item.rank for item in _items(part)})
            ends = [item.eigenvalues[[0, -1]] for item in _items(part)]
            found[name or "(root)"] = (
                f"{part[0].dimension if isinstance(part, Spectra) else part.dimension:,} "
                f"eigenvalues, from {np.min(ends):.3g} to {np.max(ends):.3g}; certified: "
                + (f"{ranks[0]:,}" if len(ranks) == 1 else f"{ranks[0]:,} to {ranks[-1]:,}")
            )
        return found

    def caption(self) -> str:
        """What they are of."""
        return "Spectra of blocks, each with all other parameters held constant"

    def _values(self) -> dict[str, Any]:
        return dict(self)


def _items(part: Spectrum | Spectra) -> Sequence[Spectrum]:
    return part.items if isinstance(part, Spectra) else (part,)


def _numbers(item: Spectrum) -> dict[str, Any]:
    """A spectrum's numbers and words, without the eigenvalues."""
    found = plain(fields_of(item)) | {"rank": item.rank}
    return {k: v for k, v in found.items() if not isinstance(v, list | dict | None)}
