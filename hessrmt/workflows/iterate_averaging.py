"""``reproduce iterate-averaging``: the last iterate against averages of iterates ([B], §8, Fig. 7).

Every network is trained at every learning rate with the same budget, and three points of each run
are compared: the last iterate, Polyak's average of all iterates, and the average of the tail. Of
the first seeds the Hessians are computed at all three, on the same training samples.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from hessrmt import rng
from hessrmt.config import SpectrumConfig, TrainConfig
from hessrmt.workflows import spectrum, trajectory
from hessrmt.workflows.averaged import (
    CURVATURES,
    POINTS,
    POLYAK,
    QUANTITIES,
    TAIL,
    Entry,
    Estimate,
    estimate,
    gains,
)
from hessrmt.workflows.cluster import SERIAL
from hessrmt.workflows.reproduce import (
    Observer,
    make_folders,
    preset_of,
    silent,
    table_in_markdown,
)
from hessrmt.workflows.trajectory import LAST, Plan, Trajectory

if TYPE_CHECKING:
    from pathlib import Path

    from hessrmt.config import (
        AveragedNetwork,
        AveragedRate,
        IterateAveragingConfig,
        IterateAveragingPreset,
    )
    from hessrmt.records import Spectra
    from hessrmt.workflows.cluster import Pool

SHOWN = {
    "test loss": "test loss",
    "test error %": "test\nerror %",
    "λ max": "λ max",
}
"""Columns for the terminal, and their headings there."""


def run(
    settings: IterateAveragingConfig,
    preset: str,
    out: Path,
    *,
    folder: Path | None = None,
    observer: Observer | None = None,
    pool: Pool = SERIAL,
) -> list[Entry]:
    """Do everything that is not done yet, and read all of it.

    Args:
        settings: Of the experiment.
        preset: Which size.
        out: Folder for checkpoints and spectra; a folder of an earlier run is continued.
        folder: Where to look for data first.
        observer: Told of progress.
        pool: Where networks are trained and the batches of each spectrum file computed; see
            :func:`hessrmt.workflows.trajectory.run_all`.

    Returns:
        One entry for each network, learning rate and point.
    """
    size = preset_of(settings, preset)
    observer = observer or silent
    make_folders(out, "checkpoints", "spectra")
    plans = [
        _plan(settings, size, network, rate, seed)
        for network in size.networks
        for rate in size.rates
        for seed in range(size.seeds)
    ]
    done = iter(
        trajectory.run_all(plans, out / "checkpoints", folder=folder, observer=observer, pool=pool)
    )
    runs = {
        (network.model, rate.name): list(islice(done, size.seeds))
        for network in size.networks
        for rate in size.rates
    }
    entries = []
    for network in size.networks:
        for rate in size.rates:
            for point in POINTS:
                found = runs[network.model, rate.name]
                name = f"{_stem(network.model)}-{rate.name}-{point}"
                spectra = []
                for number, item in enumerate(found[: network.spectra]):
                    observer(f"spectra of {name}", number, min(network.spectra, len(found)))
                    spectra.append(_spectra(settings, network, item, point, out, folder, pool))
                entries.append(
                    Entry(
                        name,
                        network.model,
                        rate.name,
                        rate.lr,
                        rate.final_lr,
                        point,
                        found,
                        spectra,
                    )
                )
    observer("done", 1, 1)
    return entries


def table(entries: list[Entry]) -> list[dict[str, Any]]:
    """Rows of the results table.

    Args:
        entries: From :func:`run`.

    Returns:
        One row for each entry, as plain values: means over the seeds, standard errors, and under
        ``seeds`` the single values.
    """
    rows = []
    for entry in entries:
        values = {what: entry.values(what) for what in QUANTITIES}
        values |= {what: entry.curvature(what) for what in CURVATURES}
        estimates = {what: estimate(found) for what, found in values.items()}
        rows.append(
            {
                "run": entry.name,
                "model": entry.model,
                "rate": entry.rate,
                "lr": entry.lr,
                "final_lr": entry.final_lr,
                "point": entry.point,
                "epochs": entry.runs[0].measured[-1]["epoch"],
                "averaged": entry.runs[0].measured[-1][entry.point].get("count", 1),
                "data": entry.runs[0].origin,
                **{what: mean for what, (mean, _) in estimates.items()},
                **{f"{what}_error_of_mean": error for what, (_, error) in estimates.items()},
                "seeds": {what: found.tolist() for what, found in values.items()},
            }
        )
    return rows


def columns(entry: Entry) -> dict[str, str]:
    """One row of the table for people.

    Args:
        entry: One point.

    Returns:
        Heading to cell.
    """
    lr = f"{entry.lr:g}" if entry.final_lr is None else f"{entry.lr:g} to {entry.final_lr:g}"
    return {
        "network": entry.model,
        "learning rate": f"{entry.rate}, {lr}",
        "point": entry.point,
        "train loss": _cell(entry.values("train_loss"), 4),
        "test loss": _cell(entry.values("test_loss"), 4),
        "test error %": _cell(100 * entry.values("test_error"), 2),
        "‖w - last‖": "0" if entry.point == LAST else _cell(entry.values("distance"), 2),
        "λ max": _cell(entry.curvature("largest"), 1),
        "trace": _cell(entry.curvature("trace"), 0),
        # a convex loss has no negative level, but round-off has a sign
        "λ min": _cell(entry.curvature("smallest").round(6) + 0.0, 2),
        "certified": _cell(entry.curvature("certified"), 0),
        "negative": _cell(entry.curvature("negative"), 0),
    }


def markdown(entries: list[Entry]) -> str:
    """The results table for people.

    Args:
        entries: From :func:`run`.

    Returns:
        Markdown.
    """
    return table_in_markdown([columns(entry) for entry in entries])


def fits(entries: list[Entry]) -> list[dict[str, Any]]:
    """The gains as plain values.

    Args:
        entries: From :func:`run`.

    Returns:
        One row for each network, rate and average.
    """
    return [
        {
            "model": model,
            "rate": rate,
            "point": point,
            **{what: mean for what, (mean, _) in values.items()},
            **{f"{what}_error_of_mean": error for what, (_, error) in values.items()},
        }
        for (model, rate), points in gains(entries).items()
        for point, values in points.items()
    ]


def sentences(entries: list[Entry]) -> dict[str, str]:
    """What averaging gains, in a sentence for each network and rate.

    Args:
        entries: From :func:`run`.

    Returns:
        Network and rate to its sentence.
    """
    found = {}
    for (model, rate), points in gains(entries).items():
        parts = []
        for point, values in points.items():
            loss, error, sharp = values["test_loss"], values["test_error"], values["largest"]
            text = f"{point}: test loss lower by {_pm(loss, 4)}"
            if np.isfinite(error[0]):
                text += f", error by {_pm((100 * error[0], 100 * error[1]), 2)} %"
            if np.isfinite(sharp[0]):
                text += f", λ max times {_pm(sharp, 2)}"
            parts.append(text)
        found[f"{model}, {rate}"] = "; ".join(parts) + "."
    return found


def _plan(
    settings: IterateAveragingConfig,
    size: IterateAveragingPreset,
    network: AveragedNetwork,
    rate: AveragedRate,
    number: int,
) -> Plan:
    # the same seeds for all networks and rates: what differs is what is compared
    seed = int(rng.seed_sequence(settings.seed, "iterate-averaging", number).generate_state(1)[0])
    constant = rate.final_lr is None
    training = TrainConfig(
        model=network.model,
        data=settings.data,
        epochs=size.epochs,
        batch=size.batch,
        lr=rate.lr,
        final_lr=rate.lr if rate.final_lr is None else rate.final_lr,
        decay_start=0 if constant else size.epochs // 2,
        decay_end=0 if constant else 9 * size.epochs // 10,
        momentum=size.momentum,
        weight_decay=size.weight_decay,
        device=settings.device,
        seed=seed,
    )
    return Plan(
        f"{_stem(network.model)}-{rate.name}-{number}",
        training,
        {POLYAK: 0, TAIL: size.tail_start},
        measure_every=size.measure_every,
    )


def _spectra(
    settings: IterateAveragingConfig,
    network: AveragedNetwork,
    item: Trajectory,
    point: str,
    out: Path,
    folder: Path | None,
    pool: Pool,
) -> Spectra:
    prepared = spectrum.prepare(
        SpectrumConfig(
            model=network.model,
            data=settings.data,
            batch=network.batch,
            batches=1 if network.batch == "all" else network.batches,
            split="train",
            checkpoint=item.files[point],
            only=network.only,
            device=settings.device,
            seed=item.plan.settings.seed,
        ),
        folder,
    )
    file = out / "spectra" / f"{item.plan.name}-{point}.h5"
    return spectrum.run(prepared, file, resume=True, pool=pool)


def _stem(model: str) -> str:
    return model.rpartition(":")[2].replace("/", "_")


def _cell(values: np.ndarray, digits: int) -> str:
    return _pm(estimate(values), digits)


def _pm(found: Estimate, digits: int) -> str:
    mean, error = found
    if not np.isfinite(mean):
        return "-"
    return f"{mean:,.{digits}f}" + (f" ± {error:.{digits}f}" if np.isfinite(error) else "")
