"""``hessrmt normalize``: losses and margins of a trained network with its scale taken out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hessrmt.cli import console
from hessrmt.cli.options import (
    DataDir,
    PictureFormat,
    PlotFolder,
    Report,
    check_pictures,
    with_settings,
)
from hessrmt.config import NormalizeConfig
from hessrmt.errors import ConfigError

if TYPE_CHECKING:
    from hessrmt.runs.normalize import NormalizeResult, TableFit


@with_settings
def normalize(
    settings: NormalizeConfig,
    data_dir: DataDir = None,
    plot: PlotFolder = None,
    picture: PictureFormat = "png",
) -> Report:
    """Divide every layer of a trained network by its norm and measure what that reveals.

    f = Πρ f̃ with ρ the norm of a layer's weight: classification stays the same, and over networks
    of one architecture the training loss of f̃ tells its test loss. BatchNorm is folded first. All
    of it is computed in float64; a network for which it is not exact is refused.

    With --fit the line of test against training losses of networks that were measured elsewhere.

    Returns:
        What --json prints; --csv writes the norms of the layers, or the networks of --fit.

    Raises:
        ConfigError: If a picture is asked for of what has none.
    """
    from hessrmt.plots.files import draw_each
    from hessrmt.runs.normalize import fit_table, run

    check_pictures(plot, picture)
    if settings.fit is not None:
        found = fit_table(settings)
        _show_fit(found)
        if plot is not None:
            console.drawn(draw_each({"line": found.plot}, plot, picture), plot)
        return Report(found.to_dict(), lambda: [point.to_dict() for point in found.points])
    if plot is not None:
        raise ConfigError("--plot draws the line of --fit; without a table there is no picture")

    with console.Meter() as tick:
        result = run(settings, folder=data_dir, tick=tick)
    norm = _number(settings.norm)
    _show(result, norm)
    config = {**settings.model_dump(mode="json"), "norm": norm}
    plain = {**result.to_dict(), "norm": norm, "config": config}
    return Report(plain, lambda: [{"layer": k, "norm": v} for k, v in result.factors.items()])


def _show(result: NormalizeResult, norm: float | str) -> None:
    console.note(*result.notes)
    splits = {"train": result.train, "test": result.test}
    shown = {name: found for name, found in splits.items() if found is not None}
    rows = [
        ["loss", *(f"{found.loss:.6f}" for found in shown.values())],
        ["loss, normalised", *(f"{found.normalized_loss:.8f}" for found in shown.values())],
    ]
    margins = [found.margins for found in shown.values() if found.margins is not None]
    if len(margins) == len(shown):
        rows += [
            ["classification error", *(f"{one.error:.4f}" for one in margins)],
            ["smallest margin η", *(f"{one.minimum:.6g}" for one in margins)],
            ["η, normalised", *(f"{one.normalized_minimum:.6g}" for one in margins)],
            ["median margin", *(f"{one.quantiles([0.5])[0.5]:.6g}" for one in margins)],
            ["1/η", *(f"{one.bound:.6g}" for one in margins)],
            ["support examples", *(", ".join(map(str, one.support(3))) for one in margins)],
        ]
    factors = {**result.factors, "product": result.product}
    console.show(
        console.table(("", *shown), rows, "before and after normalisation"),
        console.table(
            ("layer", f"ρ (L{norm})"), ((k, f"{v:.6g}") for k, v in factors.items()), "norms"
        ),
    )
    if result.folded:
        console.note(f"folded into the layers next to them: {', '.join(result.folded)}")
    console.note(
        f"the normalised network times the product equals the network to {result.deviation:.1e}"
    )


def _show_fit(found: TableFit) -> None:
    line, number, with_error = found.line, console.number, console.with_error
    train, test = found.columns
    rows = (
        (
            point.name,
            number(point.train, ".7g"),
            number(point.test, ".7g"),
            number(point.predicted, ".7g"),
            f"{point.lower:.7g} to {point.upper:.7g}",
            {True: "inside", False: "outside", None: "predicted"}[point.inside],
        )
        for point in found.points
    )
    headings = ("", "train", "test", "predicted", f"{found.level:.0%} from the others", "")
    console.show(console.table(headings, rows))
    console.facts(
        {
            f"{test} = slope · {train} + intercept": f"slope "
            f"{with_error(line.slope, line.slope_error, '.5g')}, intercept "
            f"{with_error(line.intercept, line.intercept_error, '.5g')}, {line.n} networks",
            "R², adjusted, RMSE": f"{line.r2:.6g}, {line.adjusted_r2:.6g}, {line.rmse:.3g}",
            "outside of their interval": f"{found.outside} of {line.n}; {1 - found.level:.0%} are "
            "expected of networks on a line with normal errors",
        }
    )
    console.note(*found.notes)


def _number(norm: float) -> float | str:
    # JSON has no infinity
    return "inf" if norm == float("inf") else int(norm) if norm == int(norm) else norm
