"""``hessrmt density``: spectra of networks whose Hessian cannot be formed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hessrmt.cli import console
from hessrmt.cli.options import DataDir, Json, Overwrite, Resume, with_settings
from hessrmt.config import DensityConfig

if TYPE_CHECKING:
    from rich.console import Console

    from hessrmt.curvature.density import DensityResult
    from hessrmt.curvature.lanczos import EdgeLevels

_SHOWN = 5
"""Eigenvalues of each end in the table."""


@with_settings
def density(
    settings: DensityConfig,
    out: Annotated[Path, typer.Option("--out", "-o", help="Density file to write (HDF5).")] = Path(
        "density.h5"
    ),
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Picture (.png, .pdf, .svg).")
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Estimate the density of a Hessian's eigenvalues and compute extreme ones with error bounds.

    The Hessian of the mean loss over all samples is only multiplied with vectors, never formed, so
    networks of any size will do. --resume continues with the first probe that is not done.
    """
    from hessrmt.runs.density import prepare, run

    if plot is not None:
        _require_picture(plot)
    prepared = prepare(settings, data_dir)
    for line in prepared.notes:
        console.note(line)
    with console.progress() as display:
        found = run(prepared, out, resume=resume, overwrite=overwrite, tick=console.Meter(display))
    _show(found, console.results(json))
    console.note(f"written: {out}")
    if plot is not None:
        _draw(found, plot)
    if json:
        console.emit_json(_as_json(found, out))


def _require_picture(target: Path) -> None:
    """Refuse a picture that cannot be written before anything is computed."""
    from hessrmt.errors import ConfigError
    from hessrmt.plots.files import checked_ending

    if not target.suffix:
        raise ConfigError(f"--plot {target} has no ending; give a .png, .pdf or .svg")
    checked_ending(target.suffix[1:])
    if not target.resolve().parent.is_dir():
        raise ConfigError(f"there is no folder for the picture {target}")


def _show(found: DensityResult, to: Console) -> None:
    name = {"hessian": "Hessian", "ggn": "Gauss-Newton matrix"}[found.operator]
    to.print(f"{name}, P = {found.dimension:,}, mean over {found.samples:,} samples")
    table = console.table("", "value", "± standard error")
    moments, errors = found.quadrature.moments()
    for power, (value, error) in enumerate(zip(moments, errors, strict=True), 1):
        what = "mean eigenvalue" if power == 1 else f"mean of λ^{power}"
        table.add_row(what, f"{value:.5g}", _error(error))
    if found.traces is not None:
        table.add_section()
        traces = found.traces
        table.add_row(f"trace, {traces.method}", f"{traces.trace:.7g}", _error(traces.trace_error))
        error = _error(traces.frobenius_error)
        table.add_row("Frobenius norm", f"{traces.frobenius:.7g}", error)
    to.print(table)
    if found.edges is not None:
        _show_edges(found.edges, to)
    to.print(
        f"{len(found.quadrature)} probes, {found.quadrature.nodes.shape[1]} steps; loss "
        f"{found.loss:.6g}; two ways of differentiating agree to {found.check:.1g} of the norm; "
        f"{found.dtype}, {found.provenance.device}",
        soft_wrap=True,
    )


def _show_edges(edges: EdgeLevels, to: Console) -> None:
    to.print(f"{len(edges):,} extreme eigenvalues (asked for: {edges.asked})")
    table = console.table("end", "#", "λ", "|λ - eigenvalue| ≤", "")
    upper = range(len(edges) - 1, edges.n_lower - 1, -1)
    clear = edges.is_resolved
    for end, places in (("top", upper), ("bottom", range(edges.n_lower))):
        for number, place in enumerate(places, 1):
            if number > _SHOWN:
                table.add_row(end, f"… {len(places):,}", "", "", "")
                break
            table.add_row(
                end,
                str(number),
                f"{edges.values[place]:.12g}",
                f"{edges.bounds[place]:.1g}",
                "" if clear[place] else "not resolved",
            )
    to.print(table)
    lines = [
        f"{clear.sum():,} of {len(edges):,} are resolved: certainly not zero, and apart "
        "from their neighbours by more than both bounds. A bound holds for some eigenvalue; "
        "further copies of a multiple one may be missing."
    ]
    if edges.exhausted:
        lines.append(
            f"Only {len(edges) - edges.n_lower:,} eigenvalues at the top and {edges.n_lower:,} at "
            f"the bottom lie above the floor {edges.round_off:.1g}: what follows is zero or cannot "
            "be told from it."
        )
    if not edges.converged:
        lines.append("Not all that were asked for converged; allow a larger --tolerance.")
    for line in lines:
        to.print(line, soft_wrap=True)


def _error(value: float) -> str:
    return f"{value:.1g}" if value == value else "one probe"  # noqa: PLR0124


def _draw(found: DensityResult, target: Path) -> None:
    from hessrmt.errors import StoreError
    from hessrmt.plots.certification import lanczos_density

    settings = found.provenance.config
    title = f"{console.source_in_words(settings)}, {found.samples:,} samples, {found.operator}"
    try:
        lanczos_density(found, title).savefig(target, dpi=150)
    except OSError as error:
        raise StoreError(f"cannot write {target}: {error.strerror or error}") from error
    console.note(f"written: {target}")


def _as_json(found: DensityResult, out: Path) -> dict[str, Any]:
    return {
        "file": str(out),
        **found.to_dict(),
        "config": dict(found.provenance.config),
        "device": found.provenance.device,
        "versions": dict(found.provenance.versions),
        "created": found.provenance.created,
        "notes": list(found.provenance.notes),
    }
