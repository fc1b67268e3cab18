"""``hessrmt spectrum``: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hessrmt.cli import console
from hessrmt.cli.options import (
    DataDir,
    Json,
    Overwrite,
    Resume,
    Scheduler,
    Workers,
    pool_of,
    with_settings,
)
from hessrmt.config import SpectrumConfig

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from hessrmt.records import Spectra, Spectrum


@with_settings
def spectrum(
    settings: SpectrumConfig,
    out: Annotated[Path, typer.Option("--out", "-o", help="Spectrum file to write (HDF5).")] = Path(
        "spectra.h5"
    ),
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
    json: Json = False,
) -> None:
    """Compute all eigenvalues of the loss Hessian, batch by batch, and certify them.

    Batches are taken in file order, unshuffled.

    The row of a finished batch is printed at once, on standard output.

    It is on disk, too: a run that was killed continues with --resume.
    """
    from hessrmt.runs.spectrum import prepare, run
    from hessrmt.store.spectra import load_all

    to = console.results(json)
    rows = _Rows(console.source_in_words(settings.model_dump(mode="json")))

    def show(batch: int, item: Any, display: Progress | None = None) -> None:
        text = rows.text(batch, item)
        with console.paused(display):
            to.print(text, markup=False, soft_wrap=True)

    if mpi is not None:
        _require_alone(workers, scheduler)
        from hessrmt.runs.distributed import run_distributed

        shared = run_distributed(
            settings,
            out,
            folder=data_dir,
            solver=mpi,
            resume=resume,
            overwrite=overwrite,
            tell=console.note,
            finished=show,
        )
        if shared is None:  # not the first process
            return
        _conclude(shared, out, to)
    else:
        prepared = prepare(settings, data_dir)
        for line in prepared.notes:
            console.note(line)
        with (
            pool_of(workers, scheduler, settings.device) as pool,
            console.progress(transient=True) as display,
        ):
            meter, seen = console.Meter(display), 0
            meter("batches", 0, prepared.count)

            def finished(batch: int, item: Any) -> None:
                nonlocal seen
                seen += 1
                meter("batches", seen, prepared.count)
                show(batch, item, display)

            found = run(
                prepared,
                out,
                resume=resume,
                overwrite=overwrite,
                tick=meter,
                finished=finished,
                pool=pool,
                folder=data_dir,
            )
        _conclude(found, out, to)
    if json:
        whole = load_all(out)
        console.emit_json(
            {name: _as_json(spectra, out) for name, spectra in whole.items()}
            if isinstance(whole, dict)
            else _as_json(whole, out)
        )


def _require_alone(workers: int | None, scheduler: str | None) -> None:
    from hessrmt.errors import ConfigError

    if workers is not None or scheduler is not None:
        raise ConfigError("--mpi excludes --workers and --scheduler; give one of them")


def _mean_ratio(item: Spectrum) -> float:
    from hessrmt.levels.spacings import mean_ratio

    return mean_ratio(item.resolved)


_PHASES = {"reduction": "reduce", "matrix": "matrix", "eigenvalues": "eigen"}
"""Headings of the columns of seconds."""


class _Rows:
    """The table of results, a row for each batch as it comes; at most 80 characters wide."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._widths: tuple[int, ...] = ()

    def text(self, batch: int, found: Spectrum | dict[str, Spectrum]) -> str:
        """The row of a batch, or a row for each of its blocks, the first one below the heading."""
        items = found if isinstance(found, dict) else {"": found}
        names = {name: f"{batch} {name}".rstrip() for name in items}
        lines = [] if self._widths else self._heading(list(items.values()), list(names.values()))
        rows = [self._line(*self._cells(names[name], item)) for name, item in items.items()]
        return "\n".join([*lines, *rows])

    def _heading(self, items: list[Spectrum], names: list[str]) -> list[str]:
        """Columns as wide as their longest possible entry: later rows are not known yet."""
        item, size = items[0], max(item.dimension for item in items)
        count = len(f"{size:,}")
        first = "batch" if len(items) == 1 else "batch, layer"
        widths = {
            first: max(len(first), *(len(name) + 2 for name in names if len(items) > 1), 0),
            "λ min": len("-1.23e-05"),
            "λ max": len("-1.23e-05"),
            "floor": len("1e-15"),
            "rows": max(4, count),
            "certified": max(9, count),
            "⟨r̃⟩": len("0.5307"),
            **dict.fromkeys(_PHASES.values(), len("1234.5")),
        }
        self._widths = tuple(widths.values())
        name = {"hessian": "Hessian", "ggn": "Gauss-Newton matrix"}[item.operator]
        what = f"P = {size:,}" if len(items) == 1 else f"own blocks, P up to {size:,}"
        return [f"{name} of {self._source}, {what}", self._line(*widths)]

    def _cells(self, label: str, item: Spectrum) -> tuple[str, ...]:
        return (
            label,
            f"{item.eigenvalues[0]:.3g}",
            f"{item.eigenvalues[-1]:.3g}",
            f"{item.noise_floor:.1g}",
            f"{item.reduced_dimension:,}",
            f"{item.rank:,}",
            console.number(_mean_ratio(item), ".4f"),
            *(console.number(item.seconds.get(phase), ".1f") for phase in _PHASES),
        )

    def _line(self, *cells: str) -> str:
        from rich.cells import cell_len

        return " ".join(
            " " * (width - cell_len(cell)) + cell
            for cell, width in zip(cells, self._widths, strict=True)
        )


def _conclude(found: Spectra, out: Path, to: Console) -> None:
    """Print what the columns mean and what was found, below the rows."""
    from hessrmt.theory.ratios import MEAN_RATIO_GOE, MEAN_RATIO_POISSON

    first = found[0]
    lines = (
        f"{len(found)} {'batch' if len(found) == 1 else 'batches'}, {first.dtype}, "
        f"{found.provenance.device}, {first.solver}",
        "floor: what is smaller can't be told from round-off; certified: how many are larger",
        f"⟨r̃⟩: their mean spacing ratio (GOE {MEAN_RATIO_GOE}, Poisson {MEAN_RATIO_POISSON:.4f}); "
        "last three: seconds",
    )
    for line in lines:
        to.print(line, markup=False)
    if not found.provenance.config.get("blocks"):
        to.print(_round_off(first), markup=False)
    console.note(f"written: {out}")


def _round_off(item: Spectrum) -> str:
    """What the published cutoff would have kept of the first batch beside real eigenvalues."""
    if item.reduced_dimension == item.dimension:
        low, high = item.log_gap
        false = max(0, item.n_paper_cutoff - item.rank)
        return (
            f"The published cutoff |λ| > 1e-20 keeps {item.n_paper_cutoff:,} eigenvalues of batch "
            f"0; {false:,} of them ({false / max(1, item.n_paper_cutoff):.0%}) lie below the noise "
            "floor, where none can be told from round-off. The widest gap in |λ| is from "
            f"{low:.1e} to {high:.1e}, {item.gap_decades:.1f} decades."
        )
    false = item.dimension - item.rank
    return (
        f"Batch 0 has {item.dimension - item.reduced_dimension:,} exact null directions, removed "
        f"before diagonalising. Without that the published cutoff |λ| > 1e-20 would keep up to "
        f"{false:,} eigenvalues that are round-off ({false / item.dimension:.0%} of "
        f"{item.dimension:,}); --reduce none counts them."
    )


def _as_json(found: Spectra, out: Path) -> dict[str, Any]:
    return {
        "file": str(out),
        "dimension": found[0].dimension,
        "batches_planned": found.planned,
        "config": dict(found.provenance.config),
        "device": found.provenance.device,
        "versions": dict(found.provenance.versions),
        "created": found.provenance.created,
        "notes": list(found.provenance.notes),
        "batches": [
            {
                "batch": number,
                "rank": item.rank,
                "noise_floor": item.noise_floor,
                "reduced_dimension": item.reduced_dimension,
                "n_resolved": len(item.resolved),
                "resolved_spacings": item.resolved_spacings,
                "n_paper_cutoff": item.n_paper_cutoff,
                "n_paper_cutoff_ratios": item.n_paper_cutoff_ratios,
                "gap_decades": item.gap_decades,
                "check": item.check,
                "mean_ratio": _mean_ratio(item),
                "lambda_min": item.eigenvalues[0],
                "lambda_max": item.eigenvalues[-1],
                "loss": item.loss,
                "gradient_norm": item.gradient_norm,
                "seconds": dict(item.seconds),
            }
            for number, item in enumerate(found)
        ],
    }
