"""``hessrmt density``: spectra of networks whose Hessian cannot be formed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hessrmt.cli import console
from hessrmt.cli.options import (
    ConfigOption,
    DataDirOption,
    DataOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    LossOption,
    ModelOption,
    SeedOption,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from hessrmt.curvature.density import DensityResult
    from hessrmt.curvature.lanczos import EdgeLevels

_SHOWN = 5
"""Levels of each end in the table."""


def density(
    model: ModelOption = None,
    data: DataOption = None,
    samples: Annotated[
        str | None,
        typer.Option(
            "--samples",
            help="The loss is the mean over so many samples from the start, or 'all'. "
            "\\[default: all]",
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option("--batch", help="Samples differentiated at a time. \\[default: 256]"),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="train or test. \\[default: test]")
    ] = None,
    loss: LossOption = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            help="State dict (.pt, .pth, .safetensors). \\[default: random initial values]",
        ),
    ] = None,
    operator: Annotated[
        str | None,
        typer.Option(
            "--operator", help="hessian, or ggn for generalised Gauss-Newton. \\[default: hessian]"
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            "--only", help="Pattern of the parameters to take, e.g. '7.*'. \\[default: all]"
        ),
    ] = None,
    probes: Annotated[
        int | None,
        typer.Option("--probes", help="Random vectors of the density. \\[default: 10]"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Lanczos steps from each. \\[default: 100]")
    ] = None,
    law: Annotated[
        str | None,
        typer.Option(
            "--law", help="Of the probes: rademacher or gaussian. \\[default: rademacher]"
        ),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option("--top", metavar="K", help="Certify the K largest levels. \\[default: 0]"),
    ] = None,
    bottom: Annotated[
        int | None,
        typer.Option("--bottom", metavar="K", help="Certify the K smallest levels. \\[default: 0]"),
    ] = None,
    largest: Annotated[
        int | None,
        typer.Option(
            "--largest",
            metavar="K",
            help="Certify the K levels of largest magnitude instead. \\[default: 0]",
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            help="Largest residual of these levels over the norm. \\[default: 1e-10]",
        ),
    ] = None,
    check_multiplicity: Annotated[
        bool | None,
        typer.Option(
            "--check-multiplicity/--no-check-multiplicity",
            help="Search again for further copies of multiple levels. \\[default: yes]",
        ),
    ] = None,
    trace: Annotated[
        str | None,
        typer.Option(
            "--trace", help="hutch++ or xtrace: trace and Frobenius norm. \\[default: neither]"
        ),
    ] = None,
    trace_products: Annotated[
        int | None,
        typer.Option("--trace-products", help="Products for the trace. \\[default: 60]"),
    ] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    seed: SeedOption = None,
    out: Annotated[Path, typer.Option("--out", help="Density file to write (HDF5).")] = Path(
        "density.h5"
    ),
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Picture (.png, .pdf, .svg).")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the file if it is there.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file if it is there.")
    ] = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Estimate the density of a Hessian's eigenvalues and certify its extreme levels.

    The Hessian of the mean loss over all samples is only multiplied with vectors, never formed, so
    networks of any size will do. Edge levels come with a bound each, and --resume continues with
    the first probe that is not done.
    """
    from hessrmt.config import DensityConfig, load_settings
    from hessrmt.workflows.density import prepare, run

    settings = load_settings(
        DensityConfig,
        config,
        model=model,
        data=data,
        samples=_number_or_all(samples),
        batch=batch,
        split=split,
        loss=loss,
        checkpoint=checkpoint,
        operator=operator,
        only=only,
        probes=probes,
        steps=steps,
        law=law,
        top=top,
        bottom=bottom,
        largest=largest,
        tolerance=tolerance,
        check_multiplicity=check_multiplicity,
        trace=trace,
        trace_products=trace_products,
        device=device,
        dtype=dtype,
        seed=seed,
    )
    if plot is not None:
        _require_picture(plot)
    prepared = prepare(settings, data_dir)
    for line in prepared.notes:
        console.note(line)
    with console.progress() as display:
        found = run(prepared, out, resume=resume, overwrite=overwrite, observer=_Meter(display))
    _show(found, console.results(json))
    console.note(f"written: {out}")
    if plot is not None:
        _draw(found, plot)
    if json:
        console.emit_json(_as_json(found, out))


def _number_or_all(value: str | None) -> int | str | None:
    if value is None or value == "all":
        return value
    try:
        return int(value)
    except ValueError:
        from hessrmt.errors import ConfigError

        raise ConfigError(
            f"--samples: should be a positive integer, or 'all' (got {value!r})"
        ) from None


def _require_picture(target: Path) -> None:
    """Refuse a picture that cannot be written before anything is computed."""
    from hessrmt.errors import ConfigError
    from hessrmt.plots.files import checked_ending

    if not target.suffix:
        raise ConfigError(f"--plot {target} has no ending; give a .png, .pdf or .svg")
    checked_ending(target.suffix[1:])
    if not target.resolve().parent.is_dir():
        raise ConfigError(f"there is no folder for the picture {target}")


class _Meter:
    """One bar for each phase."""

    def __init__(self, display: Progress) -> None:
        self._display = display
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, phase: str, done: int, total: int) -> None:
        if phase not in self._tasks:
            self._tasks[phase] = self._display.add_task(phase, total=total, rate="")
        self._display.update(self._tasks[phase], completed=done, total=total)


def _show(found: DensityResult, to: Console) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    name = {"hessian": "Hessian", "ggn": "Gauss-Newton matrix"}[found.operator]
    to.print(f"{name}, P = {found.dimension:,}, mean over {found.samples:,} samples")
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("", "value", "± standard error"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    moments, errors = found.quadrature.moments()
    for power, (value, error) in enumerate(zip(moments, errors, strict=True), 1):
        what = "mean eigenvalue" if power == 1 else f"mean of λ^{power}"
        table.add_row(what, f"{value:.5g}", _error(error))
    if found.traces is not None:
        table.add_section()
        table.add_row(
            f"trace, {found.traces.method}",
            f"{found.traces.trace:.7g}",
            _error(found.traces.trace_error),
        )
        table.add_row(
            "Frobenius norm",
            f"{found.traces.frobenius:.7g}",
            _error(found.traces.frobenius_error),
        )
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
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    to.print(f"{len(edges):,} edge levels (asked for: {edges.asked})")
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("end", "#", "λ", "|λ - eigenvalue| ≤", ""):
        table.add_column(heading, justify="right", no_wrap=True)
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
        f"{clear.sum():,} of {len(edges):,} levels are resolved: certainly not zero, and apart "
        "from their neighbours by more than both bounds. A bound holds for some eigenvalue; "
        "further copies of a multiple one may be missing."
    ]
    if edges.exhausted:
        lines.append(
            f"Only {len(edges) - edges.n_lower:,} levels at the top and {edges.n_lower:,} at the "
            f"bottom lie above the floor {edges.round_off:.1g}: what follows is zero or cannot be "
            "told from it."
        )
    if not edges.converged:
        lines.append("Not all that were asked for converged; allow a larger --tolerance.")
    for line in lines:
        to.print(line, soft_wrap=True)


def _error(value: float) -> str:
    return f"{value:.1g}" if value == value else "one probe"  # noqa: PLR0124


def _draw(found: DensityResult, target: Path) -> None:
    from hessrmt.errors import StoreError
    from hessrmt.plots.slq import spectral_density

    settings = found.provenance.config
    title = f"{console.source_in_words(settings)}, {found.samples:,} samples, {found.operator}"
    try:
        spectral_density(found, title).savefig(target, dpi=150)
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
