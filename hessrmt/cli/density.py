"""``hessrmt density``: spectra of networks whose Hessian cannot be formed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hessrmt.cli import console
from hessrmt.cli.options import (
    DataDir,
    Overwrite,
    PictureFile,
    Report,
    Resume,
    check_picture,
    with_settings,
)
from hessrmt.config import DensityConfig

if TYPE_CHECKING:
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
    plot: PictureFile = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    data_dir: DataDir = None,
) -> Report:
    """Estimate the density of a Hessian's eigenvalues and compute extreme ones with error bounds.

    The Hessian of the mean loss over all samples is only multiplied with vectors, never formed, so
    networks of any size will do. --resume continues with the first probe that is not done.

    Returns:
        What --json prints; --csv writes the eigenvalues with their bounds, if there are any.
    """
    from hessrmt.plots.certification import lanczos_density
    from hessrmt.plots.files import save
    from hessrmt.results import flat
    from hessrmt.runs.density import prepare, run

    check_picture(plot, may_exist=resume or overwrite)
    prepared = prepare(settings, data_dir)
    console.note(*prepared.notes)
    with console.Meter(lines=True) as tick:
        found = run(prepared, out, resume=resume, overwrite=overwrite, tick=tick)
    _show(found)
    console.note(f"written: {out}")
    source = found.provenance
    if plot is not None:
        what = console.source_in_words(source.config)
        title = f"{what}, {found.samples:,} samples, {found.operator}"
        save(lanczos_density(found, title), plot, replace=resume or overwrite)
        console.note(f"written: {plot}")
    edges = () if found.edges is None else found.edges.rows()
    numbers = flat({k: v for k, v in found.to_dict().items() if not isinstance(v, list)})
    return Report(
        {"file": str(out), **found.to_dict(), **vars(source)}, lambda: list(edges) or [numbers]
    )


def _show(found: DensityResult) -> None:
    name = console.OPERATORS[found.operator]
    console.show(f"{name}, P = {found.dimension:,}, mean over {found.samples:,} samples")
    rows = []
    for power, (value, error) in enumerate(zip(*found.quadrature.moments(), strict=True), 1):
        what = "mean eigenvalue" if power == 1 else f"mean of λ^{power}"
        rows.append((what, f"{value:.5g}", _error(error)))
    if (traces := found.traces) is not None:
        rows += [
            (f"trace, {traces.method}", f"{traces.trace:.7g}", _error(traces.trace_error)),
            ("Frobenius norm", f"{traces.frobenius:.7g}", _error(traces.frobenius_error)),
        ]
    console.show(console.table(("", "value", "± standard error"), rows))
    if found.edges is not None:
        _show_edges(found.edges, found.window_count)
    differences = found.products_by == "finite-difference"
    ways = "steps of the differences" if differences else "ways of differentiating"
    console.show(
        f"{len(found.quadrature)} probes, {found.quadrature.nodes.shape[1]} steps; loss "
        f"{found.loss:.6g}; two {ways} differ by {found.check:.1g} of ‖H‖₂ on a random vector; "
        f"{found.dtype}, {found.provenance.device}"
    )
    if differences:
        console.show(
            "Not exact: products are finite differences of the gradient, with an error of at most "
            f"{found.product_error:.1g} each for unit vectors. It is in all error bounds."
        )


def _show_edges(edges: EdgeLevels, counted: tuple[float, float] | None) -> None:
    from hessrmt.runs.findings import of_edges

    rows, clear, n_lower = [], edges.is_resolved, edges.n_lower
    ends = {"top": range(len(edges) - 1, n_lower - 1, -1), "bottom": range(n_lower)}
    for end, places in ends.items():
        for number, place in enumerate(places[:_SHOWN], 1):
            value, bound = f"{edges.values[place]:.12g}", f"{edges.bounds[place]:.1g}"
            rows.append((end, str(number), value, bound, "" if clear[place] else "not resolved"))
        if len(places) > _SHOWN:
            rows.append((end, f"… {len(places):,}", "", "", ""))
    kind = "extreme eigenvalues" if edges.window is None else "eigenvalues"
    console.show(f"{len(edges):,} {kind} (asked for: {edges.asked})")
    if rows:
        console.show(console.table(("end", "#", "λ", "|λ - eigenvalue| ≤", ""), rows))
    console.show(*of_edges(edges, counted))


def _error(value: float) -> str:
    return f"{value:.1g}" if value == value else "one probe"  # noqa: PLR0124
