"""``reproduce hessian-spacings``: Baskerville, Granziol and Keating (2022), Figs. 1 to 4.

Networks are trained, spectra computed before and after, and their level spacings compared with
random matrix theory, with the published cutoff and with the certified one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from pydantic import Field

from hessrmt.config import (
    CountOrAll,
    Dtype,
    LevelsConfig,
    Settings,
    SpectrumConfig,
    Split,
    TrainConfig,
)
from hessrmt.ensembles import goe
from hessrmt.experiments.experiment import (
    Column,
    Estimate,
    Experiment,
    Pictures,
    Presets,
    Work,
    keyed,
)
from hessrmt.plots import levels as plots
from hessrmt.runs import levels, training
from hessrmt.runs.run import make_folders
from hessrmt.tables import probability

if TYPE_CHECKING:
    from pathlib import Path

    from hessrmt.levels import LevelStatistics
    from hessrmt.levels.unfolding import Unfolded
    from hessrmt.records import Spectra

_SURROGATES = 200
"""For the bands of the histograms."""


class Unreduced(Settings):
    """Spectra by the published protocol: the whole matrix, nothing removed.

    Attributes:
        model: Registry name or ``file.py:factory``.
        dtype: Precision.
        batches: How many.
    """

    model: str
    dtype: Dtype = "float32"
    batches: CountOrAll = "all"


class SpacingsPreset(Settings):
    """One size of the experiment.

    Attributes:
        models: Networks.
        epochs: Of their training.
        splits: Whose batches are taken.
        batch: Samples in a batch.
        batches: How many.
        whole: Whether the Hessian of the whole split is computed too.
        unreduced: Spectra of whole matrices.
    """

    models: tuple[str, ...] = Field(min_length=1)
    epochs: int = Field(300, ge=1)
    splits: tuple[Split, ...] = Field(("test",), min_length=1)
    batch: int = Field(64, ge=1)
    batches: CountOrAll = "all"
    whole: bool = True
    unreduced: tuple[Unreduced, ...] = ()


class SpacingsConfig(Presets[SpacingsPreset]):
    """Settings of ``hessrmt reproduce hessian-spacings``.

    Attributes:
        data: Registry name, file or folder.
    """

    data: str = "mnist"


@dataclass(frozen=True)
class AnalysedFile:
    """One spectrum file, analysed.

    Attributes:
        parameters: ``untrained`` or ``trained``.
        settings: Of its spectra.
        spectra: All of the file.
        statistics: ``paper`` and ``certified`` to the statistics with that cutoff.
        unfolded: The same to the levels behind them.
    """

    parameters: str
    settings: SpectrumConfig
    spectra: Spectra = field(repr=False)
    statistics: Mapping[str, LevelStatistics] = field(repr=False)
    unfolded: Mapping[str, Unfolded] = field(repr=False)

    @property
    def name(self) -> str:
        """Of the file."""
        return _name(self.parameters, self.settings)

    @property
    def reduced(self) -> bool:
        """Whether null directions were removed before diagonalising."""
        return self.settings.reduce == "auto"


def _of(cutoff: str, get: Callable[[LevelStatistics], Any]) -> Callable[[AnalysedFile], Any]:
    return lambda entry: get(entry.statistics[cutoff])


def _certified(
    name: str, get: Callable[[LevelStatistics], Any], form: str = "", **options: Any
) -> Column[AnalysedFile]:
    return Column(name, _of("certified", get), form, **options)


def _mean_ratio(found: LevelStatistics) -> Estimate:
    return Estimate(found.mean_ratio, found.mean_ratio_error)


def _p(name: str, what: str) -> Column[AnalysedFile]:
    def cell(found: LevelStatistics) -> str:
        return probability(found.p(found.laws["goe"], what))

    return _certified(name, cell)


_NUMBERS: dict[str, Callable[[LevelStatistics], Any]] = {
    **{
        name: attrgetter(name)
        for name in (
            *("n_levels", "n_discarded", "n_zeros", "n_ties", "n_unresolved"),
            *("mean_ratio", "mean_ratio_error", "mean_ratio_density"),
            *("mean_ratio_fifths", "mean_ratio_fifths_error"),
            *("brody", "brody_error", "superposition", "superposition_error"),
            *("unfolding", "conclusion"),
        )
    },
    "sigmas_from_goe": lambda found: found.laws["goe"].sigmas,
    **{
        f"goe_{name}": lambda found, name=name: getattr(found.laws["goe"], name)
        for name in ("ratio_distance", "ratio_p_value", "spacing_distance", "spacing_p_value")
    },
    "goe2_ratio_p_value": lambda found: found.laws["goe2"].ratio_p_value,
}
"""What programs read of the statistics with each cutoff."""


class Spacings(Experiment[SpacingsConfig, SpacingsPreset, AnalysedFile]):
    """Level spacings of loss Hessians, published and certified."""

    settings = SpacingsConfig
    columns = (
        *keyed(run="name", model="settings.model", parameters="parameters"),
        *keyed(split="settings.split", batch="settings.batch", precision="settings.dtype"),
        *keyed(reduced="reduced"),
        Column("", lambda e: len(e.spectra), key="spectra"),
        Column("network", lambda e: f"{e.settings.model}, {e.parameters}"),
        Column("batch", lambda e: f"{e.settings.batch}, {e.settings.split}"),
        Column("matrix", lambda e: f"{'reduced' if e.reduced else 'whole'}, {e.settings.dtype}"),
        _certified("spectra", attrgetter("n_spectra")),
        Column("levels: published", _of("paper", attrgetter("n_levels")), ","),
        _certified("certified", attrgetter("n_levels"), ",", terminal="levels\n(certified)"),
        Column("⟨r̃⟩ published", _of("paper", _mean_ratio), ".4f", terminal="⟨r̃⟩\n(1e-20)"),
        _certified("⟨r̃⟩ certified", _mean_ratio, ".4f", terminal="⟨r̃⟩\n(certified)"),
        _certified("GOE, this density", attrgetter("mean_ratio_density"), ".4f"),
        _certified("σ from GOE", _NUMBERS["sigmas_from_goe"], "+.1f", terminal="σ from\nGOE"),
        _p("p(r̃)", "ratio_p_value"),
        _p("p(s)", "spacing_p_value"),
        _certified("Brody", attrgetter("brody"), ".3f"),
        *(
            Column("", _of(cutoff, get), key=f"{cutoff}.{name}")
            for cutoff in ("paper", "certified")
            for name, get in _NUMBERS.items()
        ),
    )

    def compute(self, work: Work[SpacingsConfig, SpacingsPreset]) -> list[AnalysedFile]:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        settings, out, size = work.settings, work.out, work.size
        make_folders(out, "checkpoints")
        same: dict[str, Any] = {"seed": settings.seed, "device": settings.device}
        given = {"data": settings.data, "epochs": size.epochs, **same}
        for model in work.each("training {}", size.models):
            wanted = TrainConfig(model=model, **given)
            training.run(wanted, _checkpoint(out, model), resume=True, folder=work.folder)
        files = {_name(*pair): pair for pair in _wanted(settings, size, out)}
        spectra = {
            name: work.spectra(name, files[name][1]) for name in work.each("spectra of {}", files)
        }
        chosen, found = LevelsConfig(compare=True, **same), []
        for name in work.each("levels of {}", files):
            statistics = levels.run(chosen, spectra[name], pool=work.pool)
            unfolded = levels.unfolded(chosen, spectra[name])
            found.append(AnalysedFile(*files[name], spectra[name], statistics, unfolded))
        return found

    def figures(self, entries: Sequence[AnalysedFile]) -> Pictures:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        seed, device = entries[0].settings.seed, entries[0].settings.device
        same: dict[str, Any] = {"surrogates": _SURROGATES, "seed": seed, "device": device}
        control = [goe(1000, seed, index).eigenvalues for index in range(20)]
        pictures: dict[str, Callable[[], Any]] = {
            "surmise": partial(plots.surmise, "Wigner's surmise and the exact GOE law")
        }
        for entry in entries:
            cutoffs = {entry.name: "certified"}
            if not entry.reduced:
                cutoffs[f"{entry.name}-published"] = "paper"
            for name, cutoff in cutoffs.items():
                unfolded = entry.unfolded[cutoff]
                own = unfolded.selection.levels
                found = {
                    "density": partial(levels.densities, {"GOE": control, name: own}, name),
                    "density-per-decade": partial(levels.decades, {name: own}, name),
                    **levels.histograms(unfolded, name, **same),
                }
                pictures |= {f"{name}-{kind}": draw for kind, draw in found.items()}
        return pictures

    def conclusions(self, entries: Sequence[AnalysedFile]) -> dict[str, str]:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        return {entry.name: entry.statistics["certified"].conclusion for entry in entries}


def _wanted(
    settings: SpacingsConfig, size: SpacingsPreset, out: Path
) -> list[tuple[str, SpectrumConfig]]:
    """Untrained or trained, and settings, of each spectrum file."""

    def both(model: str, **choice: Any) -> list[tuple[str, SpectrumConfig]]:
        make = partial(
            SpectrumConfig,
            model=model,
            data=settings.data,
            device=settings.device,
            seed=settings.seed,
            **choice,
        )
        return [("untrained", make()), ("trained", make(checkpoint=_checkpoint(out, model)))]

    runs, counts = [], [(size.batch, size.batches), *([("all", 1)] * size.whole)]
    for model in size.models:
        kinds = [
            both(model, split=split, batch=batch, batches=batches)
            for split in size.splits
            for batch, batches in counts
        ]
        runs += [kind[number] for number in (0, 1) for kind in kinds]
    for item in size.unreduced:
        given = item.model_dump() | {"split": size.splits[0], "batch": size.batch}
        runs += both(**given, reduce="none")
    return runs


def _name(parameters: str, settings: SpectrumConfig) -> str:
    parts = [settings.model, parameters, str(settings.batch), str(settings.split)]
    if settings.reduce == "none":
        double = settings.dtype == "float64"
        parts.append("unreduced" if double else f"unreduced-{settings.dtype}")
    return "-".join(part.replace("/", "_").replace(":", "_") for part in parts)


def _checkpoint(out: Path, model: str) -> Path:
    return out / "checkpoints" / f"{model.rpartition(':')[2]}.pt"
