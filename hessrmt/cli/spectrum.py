"""``hessrmt spectrum``: the main job."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hessrmt.cli import console
from hessrmt.cli.options import (
    DataDir,
    Overwrite,
    Report,
    Resume,
    Scheduler,
    SpectrumFile,
    Workers,
    pool_of,
    with_settings,
)
from hessrmt.config import SpectrumConfig
from hessrmt.errors import ConfigError

if TYPE_CHECKING:
    from hessrmt.records import Spectra, Spectrum
    from hessrmt.store.writing import Row


@with_settings
def spectrum(
    settings: SpectrumConfig,
    out: SpectrumFile = Path("spectra.h5"),
    resume: Resume = False,
    overwrite: Overwrite = False,
    workers: Workers = None,
    scheduler: Scheduler = None,
    mpi: Annotated[
        str | None,
        typer.Option(
            "--mpi",
            metavar="SOLVER",
            help="Spread each Hessian over the processes of mpirun or srun: auto, elpa, scalapack "
            "or cusolvermp.",
        ),
    ] = None,
    data_dir: DataDir = None,
) -> Report | None:
    """Compute all eigenvalues of the loss Hessian, batch by batch, and certify them.

    Batches are taken in file order, unshuffled.

    The row of a finished batch is printed at once, on standard output.

    It is on disk, too: a run that was killed continues with --resume.

    Returns:
        What --json and --csv write; None on all processes of mpirun but the first.

    Raises:
        ConfigError: If Dask and MPI are both asked for.
    """
    from hessrmt.runs.spectrum import prepare, run

    rows = _Rows(console.source_in_words(settings.model_dump(mode="json")))
    options: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "folder": data_dir}
    if mpi is not None:
        if workers is not None or scheduler is not None:
            raise ConfigError("--mpi excludes --workers and --scheduler; give one of them")
        from hessrmt.runs.distributed import run_distributed

        found = run_distributed(
            settings, out, solver=mpi, tell=console.note, finished=rows.show, **options
        )
        if found is None:  # not the first process
            return None
    else:
        prepared = prepare(settings, data_dir)
        console.note(*prepared.notes)
        with (
            pool_of(workers, scheduler, settings.device) as pool,
            console.Meter(transient=True) as meter,
        ):
            meter("batches", 0, prepared.count)

            def finished(batch: int, item: Any) -> None:
                rows.seen += 1
                meter("batches", rows.seen, prepared.count)
                with meter.paused():
                    rows.show(batch, item)

            found = run(prepared, out, tick=meter, finished=finished, pool=pool, **options)
    _conclude(found, out)
    return Report(partial(_as_json, out), partial(_rows, out))


def _mean_ratio(item: Spectrum) -> float:
    from hessrmt.levels.histograms import mean_ratios

    return float(mean_ratios([item])[0, 0])


_LAYERS = 5
"""Blocks that are named above the table."""

_PHASES = {"reduction": "reduce", "matrix": "matrix", "eigenvalues": "eigen"}
"""Headings of the columns of seconds."""


class _Rows:
    """The table of results, a row for each batch as it comes; at most 80 characters wide."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._widths: tuple[int, ...] = ()
        self.seen = 0

    def show(self, batch: int, found: Row) -> None:
        """Print a row for a batch, or one for each of its blocks, the first below the heading."""
        items = found if isinstance(found, Mapping) else {"": found}
        rows = [self._cells(f"{batch} {name}".rstrip(), item) for name, item in items.items()]
        if not self._widths:
            item, size = next(iter(items.values())), max(i.dimension for i in items.values())
            of = f"{console.OPERATORS[item.operator]} of {self._source}"
            if isinstance(found, Mapping):
                console.show(f"{of}: the blocks of its layers", *_blocks(found))
            else:
                console.show(f"{of}, P = {size:,}")
            heading = self._heading([row[0] for row in rows], len(f"{size:,}"))
            console.show_row(heading, self._widths, heading=True)
        for row in rows:
            console.show_row(row, self._widths)

    def _heading(self, names: list[str], count: int) -> list[str]:
        """Columns as wide as their longest possible entry: later rows are not known yet."""
        first = "batch" if len(names) == 1 else "batch, layer"
        widths = {
            first: max(len(first), *(len(name) + 2 for name in names if len(names) > 1), 0),
            "λ min": len("-1.23e-05"),
            "λ max": len("-1.23e-05"),
            "floor": len("1e-15"),
            "rows": max(4, count),
            "certified": max(9, count),
            "⟨r̃⟩": len("0.5307"),
            **dict.fromkeys(_PHASES.values(), len("1234.5")),
        }
        self._widths = tuple(widths.values())
        return list(widths)

    def _cells(self, label: str, item: Spectrum) -> list[str]:
        return [
            label,
            f"{item.eigenvalues[0]:.3g}",
            f"{item.eigenvalues[-1]:.3g}",
            f"{item.noise_floor:.1g}",
            f"{item.reduced_dimension:,}",
            f"{item.rank:,}",
            console.number(_mean_ratio(item), ".4f"),
            *(console.number(item.seconds.get(phase), ".1f") for phase in _PHASES),
        ]


def _blocks(found: Mapping[str, Spectrum]) -> tuple[str, str]:
    """Which layers' blocks these are, and what a block is."""
    named = [f"{name or '(root)'} (P = {item.dimension:,})" for name, item in found.items()]
    more = len(named) - _LAYERS
    words = ", ".join(named[:_LAYERS]) + (f" and {more} more" if more > 0 else "")
    return words, "each in the parameters of that layer alone, with all others held constant"


def _conclude(found: Spectra, out: Path) -> None:
    """Print what the columns mean and what was found, below the rows."""
    from hessrmt.theory.ratios import MEAN_RATIO_GOE, MEAN_RATIO_POISSON

    first = found[0]
    console.show(
        f"{len(found)} {'batch' if len(found) == 1 else 'batches'}, {first.dtype}, "
        f"{found.provenance.device}, {first.solver}",
        "floor: what is smaller can't be told from round-off; certified: how many are larger",
        f"⟨r̃⟩: their mean spacing ratio (GOE {MEAN_RATIO_GOE}, Poisson {MEAN_RATIO_POISSON:.4f}); "
        "last three: seconds",
    )
    if not found.provenance.config.get("blocks"):
        console.show(_of_first(first))
    console.note(f"written: {out}")


def _of_first(item: Spectrum) -> str:
    """What became of all eigenvalues of the first batch."""
    null = item.dimension - item.reduced_dimension
    small = item.reduced_dimension - item.rank
    counted = f"Batch 0: rank {item.rank:,} of {item.dimension:,}"
    if null:
        counted += (
            f"; along {null:,} directions the loss is exactly constant, and these were left out "
            "before diagonalising"
        )
    if small:
        counted += f"; {small:,} eigenvalues lie below the floor, where none is told from round-off"
    low, high = item.log_gap
    if not null and low > 0:
        decades = item.gap_decades
        counted += f". The widest gap in |λ| is from {low:.1e} to {high:.1e}, {decades:.1f} decades"
    return f"{counted}."


def _as_json(out: Path) -> dict[Any, Any]:
    """The whole file as plain values, by blocks if it has some."""
    from hessrmt.store.spectra import load_all

    whole = {name: _plain(spectra, out) for name, spectra in load_all(out).items()}
    return whole.get(None, whole)


def _rows(out: Path) -> list[dict[str, Any]]:
    """A row for each batch, or for each batch of each block."""
    from hessrmt.results import flat
    from hessrmt.store.spectra import load_all

    return [
        ({} if name is None else {"block": name}) | flat(batch)
        for name, spectra in load_all(out).items()
        for batch in _plain(spectra, out)["batches"]
    ]


def _plain(found: Spectra, out: Path) -> dict[str, Any]:
    from hessrmt.store.spectra import COLUMNS

    stored = [name for name in COLUMNS if not name.startswith("seconds_")]
    return {
        "file": str(out),
        "dimension": found[0].dimension,
        "batches_planned": found.planned,
        **vars(found.provenance),
        "batches": [
            {
                "batch": number,
                **{name: getattr(item, name) for name in stored},
                "n_resolved": len(item.resolved),
                "mean_ratio": _mean_ratio(item),
                "lambda_min": item.eigenvalues[0],
                "lambda_max": item.eigenvalues[-1],
                "seconds": dict(item.seconds),
            }
            for number, item in enumerate(found)
        ],
    }
