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
    from collections.abc import Iterator

    from hessrmt.curvature.density import DensityResult
    from hessrmt.curvature.lanczos import EdgeLevels
    from hessrmt.curvature.windows import Window

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
        f"{found.loss:.6g}; two {ways} agree to {found.check:.1g} of the norm; "
        f"{found.dtype}, {found.provenance.device}"
    )
    if differences:
        console.show(
            "Not exact: products are finite differences of the gradient, with an error of at most "
            f"{found.product_error:.1g} each for unit vectors. It is in all error bounds."
        )


def _show_edges(edges: EdgeLevels, counted: tuple[float, float] | None) -> None:
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
    resolved = (
        f"{clear.sum():,} of {len(edges):,} are resolved: certainly not zero, and apart "
        "from their neighbours by more than both bounds."
    )
    if edges.window is None:
        copies = "further copies of a multiple one may be missing."
        console.show(f"{resolved} A bound holds for some eigenvalue; {copies}")
    else:
        console.show(resolved, *_completeness(edges.window, len(edges), counted))
    if edges.exhausted:
        console.show(
            f"Only {len(edges) - n_lower:,} eigenvalues at the top and {n_lower:,} at the bottom "
            f"lie above the floor {edges.round_off:.1g}: what follows is zero or cannot be told "
            "from it."
        )
    if not edges.converged:
        console.show("Not all that were asked for converged; allow a larger --tolerance.")


def _completeness(window: Window, found: int, counted: tuple[float, float] | None) -> Iterator[str]:
    """What is known of a window, sentence by sentence."""
    side = "above" if window.low > 0 else "below"
    trust = f"up to a failure probability of {window.failure_probability:.1g}"
    if window.complete and not found:
        yield f"The window is complete: no eigenvalue lies in it, {trust}."
    elif window.complete:
        yield (
            f"The window is complete: these {found:,} are all, counted with multiplicity, each "
            f"within {window.matched_bound:.1g} of its eigenvalue, {trust}."
        )
    else:
        yield (
            f"Completeness not proved: eigenvalues may be missing unless they lie {side} "
            f"{window.complete_from:.6g}, where these are all {trust}."
        )
    if window.ambiguous:
        yield f"{window.ambiguous:,} of them lie so close to a bound that they may be outside."
    if window.beyond:
        yield f"{window.beyond:,} more lie {side} the window, up to the end of the spectrum."
    if counted is not None:
        yield (
            f"The quadratures count between {counted[0]:.4g} and {counted[1]:.4g}, two standard "
            "errors included."
        )


def _error(value: float) -> str:
    return f"{value:.1g}" if value == value else "one probe"  # noqa: PLR0124
