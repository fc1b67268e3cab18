"""``hessrmt report``: what files of results hold, as one page that needs nothing else.

Conclusions come from :mod:`hessrmt.runs.findings`, HTML from :mod:`hessrmt.runs.page`; what numbers
mean is taken from the descriptions of the results themselves.
"""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import numpy as np

from hessrmt.capacity.correlation import Correlation
from hessrmt.capacity.report import METRICS, CapacityReport, Layer
from hessrmt.config import (
    CapacityConfig,
    DensityConfig,
    HistoryConfig,
    LandscapeConfig,
    LevelsConfig,
    Settings,
    SpectrumConfig,
    TrainConfig,
)
from hessrmt.curvature.density import DensityResult
from hessrmt.curvature.landscape import Landscape
from hessrmt.errors import ConfigError, HessrmtError, StoreError
from hessrmt.levels.analysis import MEASURES, SHORT, LawFit, LevelStatistics, analyze
from hessrmt.levels.histograms import mean_ratios, ratio_histogram
from hessrmt.levels.selection import select
from hessrmt.plots.training import history
from hessrmt.records import Provenance, Spectra, Spectrum, in_range, source_in_words
from hessrmt.results import plain
from hessrmt.runs.capacity import Series
from hessrmt.runs.findings import findings, in_words, sentence, threshold_name
from hessrmt.runs.page import Section, page, shown_columns
from hessrmt.runs.stored import contents, heading, provenance, require_finished, samples_in_words
from hessrmt.runs.tracking import Track
from hessrmt.runs.training import Checkpoint
from hessrmt.store.family import FamilyResult, Member
from hessrmt.store.history import HESSIAN, TRAINING, History
from hessrmt.tables import AtMost

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hessrmt.progress import Tick

_SPECTRUM = ("loss", "gradient_norm", "noise_floor", "rank", "check")
"""Columns of a table of spectra, beside the ends of each."""

_LAW = (
    *("excluded", "p_value", "sigmas", "mean_ratio", "mean_ratio_alike", "ratio_distance"),
    *("spacing_distance", "spacing_p_value", "log_likelihood_ratio", "log_likelihood_ratio_error"),
)
"""Columns of the table of laws."""

_LAYER = (
    *("name", "kind", "shape", "alpha", "alpha_error", "n_tail", "x_min", "ks_distance", "p_value"),
    *("lambda_max", "log_frobenius", "stable_rank", "rank", "entropy", "spikes", "soft_rank"),
    *("distance_frobenius", "skipped", "fit_failed"),
)
"""Columns of the table of layers."""

_CORRELATION = (
    "metric",
    "accuracy",
    "n",
    "kendall",
    "kendall_p",
    "spearman",
    "r_squared",
    "failed",
)
"""Columns of the table of correlations."""

_TOLD = {
    "lr": "The learning rate η.",
    "momentum": "The momentum β.",
    "minibatches": "Minibatches in an epoch; 1 is all samples in every step.",
    "sgd": "0 for an optimiser other than SGD.",
}
"""Numbers that a training loop tells."""

_OF_NETWORKS = {
    "alpha_hat": "α̂ of the network: the sum of α ln λ_max over layers, and over the slices of "
    "convolutions.",
    "alpha_hat_log10": "The same with logarithms to the base of ten.",
    "alpha_weighted": "Mean over layers of α log10 of weightwatcher's λ_max, which has no 1/N.",
    "mean_alpha": "Mean of α over layers.",
    "mean_log_norm": "Mean of ln‖W‖ (Frobenius norm) over layers.",
}
"""Numbers of a network, where those of layers have the same names."""

_IMAGES = (".png", ".svg", ".jpg")
"""Endings of pictures in the folder of an experiment that a page can show."""

_MANY = 3
"""Names of files that make a title."""

_TERMS = {
    r"GOE|GUE|GSE": (
        "GOE, GUE, GSE",
        "Gaussian ensembles of random matrices: real symmetric, complex Hermitian, self-dual. "
        "Neighbouring eigenvalues repel each other, in the second and third more strongly.",
    ),
    r"Poisson|independent levels": (
        "Poisson",
        "Independent levels, as numbers thrown at random: neighbours don't repel each other.",
    ),
    r"GOE blocks": (
        "two GOE blocks",
        "The levels of two independent GOE matrices thrown together.",
    ),
    r"r̃": (
        "r̃, ⟨r̃⟩",
        "Ratio of the smaller to the larger of two neighbouring spacings, and its mean: 0.5307 for "
        "the GOE, 0.3863 for independent levels. It needs no unfolding.",
    ),
    r"GOE levels alike|levels alike": (
        "levels alike",
        "Surrogates: levels of a law, drawn in the number and with the density of the data.",
    ),
    r"unfold": (
        "unfolded",
        "Levels divided by their smoothed density, so that their mean spacing is 1. What a test of "
        "unfolded spacings says depends on how the density is smoothed.",
    ),
    r"noise floor|resolved|certified": (
        "noise floor",
        "The magnitude below which an eigenvalue can't be told from zero in the precision of the "
        "computation; one above it is certified. The number of those is the rank.",
    ),
    r"σ (from|away)|sigmas|\d σ": (
        "σ",
        "Standard deviation: here of the mean ratio over surrogates of the law.",
    ),
    r"p\(s\)|[Ee]xcluded": (
        "p, p(s)",
        "Probability that levels of the law are as far from it as the data; p(s) from the unfolded "
        "spacings. Below 0.003 a law is called excluded.",
    ),
    r"(?<!ln )λ_max|λ_min|largest eigenvalue": (
        "λ_max, λ_min",
        "The largest and the smallest eigenvalue of the Hessian, the matrix of second derivatives "
        "of the loss in the parameters: curvature along the sharpest and the most downward "
        "direction.",
    ),
    r"/η": (
        "η, β, 2/η",
        "η is the learning rate, β the momentum. Gradient descent on a quadratic diverges along "
        "every eigenvector whose eigenvalue exceeds 2/η (with momentum 2(1 + β)/η). Training on "
        "all samples at once often brings λ_max there and keeps it there, the edge of stability "
        "(Cohen et al. 2021). With minibatches, or measured on other samples than those of the "
        "training, it is a yardstick and no threshold.",
    ),
    r"α̂|[Mm]ean α|exponent α|α lies|\balpha": (
        "α, α̂",
        "α is the exponent of the power law that the largest eigenvalues of a layer's WᵀW/N "
        "follow; α̂ sums α ln λ_max over layers (Martin and Mahoney 2019).",
    ),
    r"Marchenko-Pastur": (
        "Marchenko-Pastur bulk",
        "Where the eigenvalues of WᵀW/N lie if the entries of W are independent noise.",
    ),
    r"[Tt]race\b": (
        "trace",
        "Sum of the diagonal elements of a matrix, and so of all its eigenvalues.",
    ),
    r"Frobenius": (
        "Frobenius norm",
        "Root of the sum of the squares of all elements of a matrix; of a symmetric one, of all "
        "its eigenvalues too.",
    ),
    r"are resolved|is resolved|\bresolved\n": (
        "resolved",
        "An eigenvalue that is certainly not zero, and whose distance from its neighbours exceeds "
        "the error bounds of both.",
    ),
    r"Brody": (
        "Brody parameter",
        "0 where levels are independent, 0.953 for the GOE, between them where neighbours repel "
        "each other less.",
    ),
    r"per decade": (
        "per decade",
        "In a stretch of the axis as long as that from 1 to 10. Where eigenvalues crowd in less "
        "than that, as around zero, the curve rises above their number.",
    ),
    r"2nd block": (
        "share of a 2nd block",
        "How many of the levels would be in the smaller one of two independent GOE blocks, if they "
        "were such a mixture; 0 is a single GOE.",
    ),
    r"⟨s²⟩": (
        "⟨s²⟩",
        "Mean square of the unfolded spacings: 1.29 for the GOE, 2 for independent levels.",
    ),
    r"Σ²\(5\)": (
        "Σ²(5)",
        "Number variance: that of how many unfolded levels lie in an interval of length 5; 5 for "
        "independent levels, below 1 for the GOE.",
    ),
    r"Δ₃\(5\)": (
        "Δ₃(5)",
        "Rigidity: mean square distance of the staircase of unfolded levels from its best line "
        "over a length of 5; 1/3 for independent levels, less for the GOE.",
    ),
    r"Kendall": (
        "Kendall's τ",
        "Rank correlation: 1 if two quantities order the networks alike, -1 if oppositely.",
    ),
    r"parabola": (
        "parabola",
        "What loss, slope and eigenvalue at the network predict along the eigenvector.",
    ),
}
"""Where a word occurs (a regular expression) to the word and what it means."""


def report(
    files: Sequence[str | Path], title: str = "", *, surrogates: int = 200, tick: Tick | None = None
) -> str:
    """A page about files of results, in the order given; of a file of blocks, about each of them.

    Args:
        files: Of anything that :func:`hessrmt.load` reads, or folders of ``hessrmt reproduce``, one
            or more.
        title: Of the page; if empty, what the files are about, and the names of several.
        surrogates: Of the level statistics of spectra; 0 for none, which is faster.
        tick: Told of progress.

    Returns:
        HTML.

    Raises:
        ConfigError: If there is no file.
    """
    if not files:
        raise ConfigError("no file is given; name one or several files of results")
    sections = []
    for place, file in enumerate(files):
        if tick is not None:
            tick("report", place, len(files))
        sections += sections_of(Path(file), surrogates)
    if tick is not None:
        tick("report", len(files), len(files))
    names = list(dict.fromkeys(Path(file).name for file in files))
    if not title:
        title = ", ".join(names) if len(names) <= _MANY else f"{len(names)} files of results"
        subjects = [one.heading.partition(": ")[2].split(", ") for one in sections]
        alike = takewhile(lambda parts: len(set(parts)) == 1, zip(*subjects, strict=False))
        title = ": ".join(filter(None, [", ".join(parts[0] for parts in alike), title]))
        title = sections[0].heading if len(sections) == 1 else title
    version = Provenance().versions["hessrmt"]
    return page(sections, title, _terms(sections), f"hessrmt {version}")


def sections_of(file: Path, surrogates: int = 200) -> list[Section]:
    """What there is to say of one file.

    Args:
        file: Of results, or a folder of ``hessrmt reproduce``.
        surrogates: As of :func:`report`.

    Returns:
        A section; of a file of blocks one for each.

    Raises:
        StoreError: If a folder has no results.
    """
    name = file.name or file.resolve().name
    if file.is_dir():
        if not (file / "results.h5").exists():
            raise StoreError(
                f"{file} is a directory without results.h5, which hessrmt reproduce writes at its "
                "end: give the same command again, which computes nothing anew, or name files"
            )
        file /= "results.h5"
    parts = contents(file)[1]
    for found in parts.values():
        require_finished(file, found)
    return [
        _section_of(file, name, found, surrogates)
        if block is None
        else _section_of(file, f"{name}, {block or '(root)'}", _as_block(found, block), surrogates)
        for block, found in parts.items()
    ]


def _as_block(found: Any, block: str) -> Any:
    """Spectra of a block whose settings say which."""
    source = found.provenance
    return replace(found, provenance=replace(source, config={**source.config, "block": block}))


def _section_of(file: Path, name: str, found: Any, surrogates: int) -> Section:
    if type(found).__name__ == "Kept":  # a part of an experiment, with its settings
        found = found.result
    source = provenance(file, found)
    config = source.config
    about = ", ".join(filter(None, [source_in_words(config), samples_in_words(found, config)]))
    if hasattr(found, "conclusions"):
        about = found.caption()
    made = Section(
        name,
        ": ".join(filter(None, [heading(found), about])),
        _sentence(type(found)),
        conclusions=list(findings(found)),
        settings=dict(config),
        notes=tuple(source.notes),
        words=_meanings(type(found)),
    )
    versions = ", ".join(f"{name} {number}" for name, number in source.versions.items())
    made.source = {"computed on": source.device, "created": source.created, "with": versions}
    made.command = command_of(found, config)
    made.origin = _origin(found, config, made.command)
    facts = {k: v for k, v in found.shown().items() if k not in {"provenance", *config} and v}
    _draw_all(made, found, file)
    _add_tables(made, found, surrogates)
    facts = {} if isinstance(found, LevelStatistics) else facts
    columns = {name for rows in made.tables.values() for name in shown_columns(rows)}
    listed = {name for rows in made.tables.values() for name in rows[0]}
    if getattr(found, "planned", 0) == len(getattr(found, "quadrature", ())):
        facts.pop("planned", None)
    facts = {k: v for k, v in facts.items() if _says(k, v, listed)}
    made.facts = {_FACTS.get(str(k), str(k)): v for k, v in facts.items()} | made.facts
    occurring = columns | set(made.facts)
    made.words = {name: sentence(text) for name, text in made.words.items() if name in occurring}
    return made


def _add_tables(made: Section, found: Any, surrogates: int) -> None:
    """What a kind of result has beside its sentences, and what its numbers mean."""
    if isinstance(found, Landscape):
        made.tables["Directions"] = [
            {"eigenvalue": float(value), "eigenvalue_bound": float(bound), "slope": float(slope)}
            for value, bound, slope in zip(
                found.eigenvalues, found.bounds, found.slopes, strict=True
            )
        ]
        made.tables["Points"] = found.rows()
    elif isinstance(found, DensityResult) and found.edges is not None and len(found.edges):
        edges = found.edges
        columns = zip(edges.values, edges.bounds, edges.is_resolved, strict=True)
        made.tables["Eigenvalues found"] = [
            {"eigenvalue": float(x), "eigenvalue_bound": float(e), "resolved": bool(clear)}
            for x, e, clear in list(columns)[::-1]
        ]
    elif isinstance(found, CapacityReport):
        made.tables["Layers"] = _layers(found)
        made.words |= _meanings(Layer) | _OF_NETWORKS
        made.notes += found.notes
    elif isinstance(found, Series):
        _add_networks(made, found)
    elif isinstance(found, History):
        made.words |= _OF_NETWORKS | TRAINING | HESSIAN
    elif isinstance(found, FamilyResult):
        made.words |= _meanings(Member)
    elif isinstance(found, Spectra):
        made.tables["Spectra"] = [_ends(number, one) for number, one in enumerate(found)]
        made.words = _meanings(Spectrum) | made.words | _ENDS
        made.brief = {
            "eigenvalues": f"{found[0].dimension:,}",
            "rank": in_range([one.rank for one in found]),
            "smallest": in_words([one.eigenvalues[0] for one in found]),
            "largest": in_words([one.eigenvalues[-1] for one in found]),
        }
        _add_levels(made, found, surrogates)
    elif isinstance(found, LevelStatistics):
        _add_statistics(made, found)
    elif isinstance(found, Track):
        made.tables["Measurements"] = _measurements(found)
        made.words["step"] = made.words.pop("steps")
        made.words |= _TOLD
    rows = [] if made.tables else getattr(found, "table", None) or found.rows()
    if len(rows) > 1:
        names = getattr(found, "column_names", {})
        made.tables["Table"] = [{names.get(k, k): v for k, v in row.items()} for row in rows]
        made.words |= {shown: made.words[name] for name, shown in names.items()}


def _says(name: str, text: str, columns: set[str]) -> bool:
    """Whether a line of a result's short text says what its table and sentences do not."""
    if name in columns or name.removesuffix("s") in columns or name in {"conclusion", "notes"}:
        return False
    return not re.fullmatch(r"[\d,]+ items?|[\d,× ]+ values?\b.*|[A-Z]\w+", text)


def _terms(sections: Sequence[Section]) -> dict[str, str]:
    """Words of the subject that the page says."""
    said = [one.heading for one in sections]
    for one in sections:
        said += [*one.conclusions, *one.facts, *one.pictures, *one.notes]
        for rows in one.tables.values():
            said += [*shown_columns(rows), *(str(next(iter(row.values()))) for row in rows[:100])]
    text = "\n".join(said).replace("_value", " value")
    return dict(words for form, words in _TERMS.items() if re.search(form, text))


# What a kind of result has beside its sentences

_ENDS = {
    "batch": "Number of the spectrum in the file, from 0.",
    "smallest": "The smallest eigenvalue.",
    "largest": "The largest eigenvalue.",
    "rank": "Eigenvalues whose magnitude exceeds the noise floor.",
}


_FACTS = {
    "planned": "random vectors planned",
    "numbers": "numbers in all tensors of its state dict",
}
"""Names of facts that say nothing by themselves to what a page calls them."""

_VERDICTS = {True: "excluded", False: "not excluded", None: "too few levels"}
"""What the ratios say of a law."""

_OF_LAWS = {
    "excluded": "Whether the ratios exclude the law: p value below 0.003.",
    "p_value": "Probability that levels of the law, drawn with the density of the data, are as far "
    "from it in ⟨r̃⟩ or in the shape of P(r̃); no smaller than 1e-06 is given.",
    "sigmas": "⟨r̃⟩ of the data less that of levels alike, in their standard deviations.",
    "spacing_p_value": "The same probability of the unfolded spacings, from the surrogates alone: "
    "no smaller than one in their number.",
}


def _ends(number: int, one: Spectrum) -> dict[str, Any]:
    return {
        "batch": number,
        "smallest": float(one.eigenvalues[0]),
        "largest": float(one.eigenvalues[-1]),
        **{name: plain(getattr(one, name)) for name in _SPECTRUM},
    }


def _add_levels(made: Section, found: Spectra, surrogates: int) -> None:
    """Level statistics of spectra: a sentence and a picture, or why there are none."""
    try:
        statistics = analyze(found, surrogates=surrogates)
    except HessrmtError as error:
        made.notes += (f"no level statistics: {error}",)
        return
    made.conclusions += findings(statistics)
    _add_statistics(made, statistics)
    made.brief["⟨r̃⟩"] = statistics.shown()["⟨r̃⟩"]
    made.brief["GOE"] = _VERDICTS[statistics.laws["goe"].excluded]
    _draw(made, "Ratios of neighbouring spacings", lambda: ratio_histogram(select(found)).plot())


def _add_statistics(made: Section, found: LevelStatistics) -> None:
    made.notes += found.notes
    shown = {name: text for name, text in found.shown().items() if name not in found.laws}
    names = {"levels": "levels used", "discarded": "levels discarded"}
    made.facts |= {names.get(name, name): text for name, text in shown.items()}
    rows = []
    for name, law in found.laws.items():
        numbers = plain(law)
        numbers |= {name: found.p(law, name) for name in ("p_value", "spacing_p_value")}
        few = {key: _rounded(numbers[key]) for key in _LAW}
        rows.append({"law": SHORT.get(name, name)} | few)
    made.tables["Reference laws"] = rows
    made.tables["Of unfolded levels, beside surrogates through the same unfolding"] = [
        {
            "measure": words,
            "data": getattr(found, name),
            "data_error": getattr(found, f"{name}_error", None),
            "GOE": found.alike[name].goe,
            "Poisson": found.alike[name].poisson,
        }
        for name, words in MEASURES.items()
        if np.isfinite(getattr(found, name))
    ]
    if not made.tables[(last := list(made.tables)[-1])]:
        del made.tables[last]
    made.words |= _meanings(LawFit) | _OF_LAWS


def _layers(report: CapacityReport) -> list[dict[str, Any]]:
    """What of the layers fits into a table; the file has more."""
    rows = []
    for layer, row in zip(report.layers, report.rows(), strict=True):
        known = row | {"p_value": report.p(layer), "alpha_error": row["sigma"]}
        rows.append({name: known[name] for name in _LAYER})
    return rows


def _add_networks(made: Section, found: Series) -> None:
    """Tables of several networks: their numbers, correlations with accuracies, layers."""
    made.tables["Networks"] = [
        {"network": label, "layers": report.counts["analyzed"]}
        | {name: getattr(report, name) for name in METRICS}
        | {name: values[place] for name, values in found.accuracies.items()}
        for place, (label, report) in enumerate(zip(found.labels, found.networks, strict=True))
    ]
    if found.correlations:
        made.tables["Correlations"] = [
            {name: plain(getattr(one, name)) for name in _CORRELATION}
            | {"kendall_p": one.p("kendall")}
            for one in found.correlations
        ]
    made.tables["Layers"] = [
        {"network": label} | row
        for label, report in zip(found.labels, found.networks, strict=True)
        for row in _layers(report)
    ]
    made.words |= _meanings(Layer) | _meanings(Correlation) | _OF_NETWORKS
    made.notes += found.notes
    made.notes += tuple(f"{one.source}: {note}" for one in found.networks for note in one.notes)


def _rounded(value: Any) -> Any:
    """A number to the digits of a table that nobody computes with."""
    exact = not isinstance(value, float) or isinstance(value, AtMost)
    return value if exact else float(f"{value:.4g}")


def _measurements(found: Track) -> list[dict[str, Any]]:
    """Its table with the threshold beside λ_max."""
    name, edge = threshold_name(found), found.threshold
    rows = []
    for place, row in enumerate(found.rows()):
        bound, step = row.pop("largest_bound"), row.pop("steps")
        first = {key: row.pop(key) for key in ("loss", "gradient_norm", "largest")}
        first |= {"largest_bound": bound, name: float(edge[place])}
        first |= {f"largest/({name})": float(found.largest[place] / edge[place])}
        rows.append({"step": int(step), **first, **row})
    return rows


def _draw_all(made: Section, found: Any, file: Path) -> None:
    folder = file.parent / "figures"
    if hasattr(found, "conclusions") and folder.is_dir():
        images = sorted(one for one in folder.iterdir() if one.suffix.lower() in _IMAGES)
        made.pictures |= {one.stem.replace("-", " "): one for one in images}
    elif isinstance(found, History):
        _draw(made, _drawn_by(found), lambda: history(found, mean_ratios(found.spectra)))
    else:
        _draw(made, _drawn_by(found), found.plot)


def _draw(made: Section, caption: str, draw: Callable[[], Figure]) -> None:
    try:
        made.pictures[caption] = draw()
    except HessrmtError as error:
        made.notes += (f"no picture: {error}",)


# Where it came from


def _origin(found: Any, config: Mapping[str, Any], command: str) -> str:
    """Where a result came from, in a sentence."""
    if command or config.get("command"):
        return "By this command, or one that came to the same settings:"
    if "call" in config:
        count = f"{config['parameters']:,} parameters"
        data = f", {config['samples']:,} samples" if "samples" in config else ""
        script = f", in {config['script']}" if "script" in config else ""
        return (
            f"Computed from Python by {config['call']}: {config['network']}, {count}{data}{script}."
        )
    if config.get("ensemble"):
        return "Sampled random matrices; the settings say of which law."
    script = f" in {config['script']}" if "script" in config else ""
    source = getattr(found, "source", "")
    if isinstance(found, Series):
        source = ", ".join(one.source for one in found.networks)
    elif isinstance(found, LevelStatistics) and (about := source_in_words(config)):
        source = f"the spectra of {about}"
    if source:
        return f"Of {source}; saved from Python{script}."
    return f"Saved from Python{script}; such a file doesn't say of which network or data it is."


def command_of(found: Any, config: Mapping[str, Any]) -> str:
    """The command that gives such a result.

    Args:
        found: The result.
        config: Its settings.

    Returns:
        What to type, with all that differs from the defaults; empty where no one command made it.
    """
    if "command" in config:
        return str(config["command"])
    kinds: dict[type, type[Settings]] = {
        Spectra: SpectrumConfig,
        DensityResult: DensityConfig,
        Landscape: LandscapeConfig,
        Checkpoint: TrainConfig,
    }
    if "sources" in config:
        files = [shlex.quote(str(source)) for source in config["sources"]]
        words = [*files, *_options(CapacityConfig, config), "--out", "capacity.h5"]
        return " ".join(["hessrmt capacity", *words])
    if isinstance(found, LevelStatistics):
        return _of_levels(config["levels"]) if "levels" in config else ""
    if isinstance(found, History):
        return _of_history(found, config) if "training" in config else ""
    kind = kinds.get(type(found))
    if kind is None or not {"model", "data"} <= config.keys():
        return ""
    if "micro_batch" in config:  # what a density file calls it
        config = {**config, "batch": config["micro_batch"]}
    return " ".join(
        ["hessrmt", kind.__name__.removesuffix("Config").lower(), *_options(kind, config)]
    )


def _of_levels(asked: Mapping[str, Any]) -> str:
    block = ["--block", shlex.quote(asked["block"])] if "block" in asked else []
    words = [shlex.quote(asked["file"]), *_options(LevelsConfig, asked), *block]
    return " ".join(["hessrmt levels", *words, "--out", "levels.h5"])


def _of_history(found: History, config: Mapping[str, Any]) -> str:
    asked = {"batch": config.get("batch"), "only": config.get("only"), "conv": config["conv"]}
    words = _options(HistoryConfig, asked, "history-")
    epochs = ",".join(map(str, found.epochs.tolist()))
    words += ["--history-epochs", epochs, "--history", "history.h5"]
    return " ".join(["hessrmt train", *_options(TrainConfig, config["training"]), *words])


def _options(kind: type[Settings], config: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Options of a command for all that differs from its defaults."""
    words = []
    for name, item in kind.model_fields.items():
        value = config.get(name, item.default)
        value = tuple(value) if isinstance(value, list) else value
        if value is None or value == item.default:
            continue
        option = f"{prefix}{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, tuple):
            repeated = get_origin(get_args(item.annotation)[0]) is Literal
            for one in value if repeated else [",".join(map(str, value))]:
                words += [f"--{option}", shlex.quote(str(one))]
        else:
            words += [f"--{option}", shlex.quote(str(value))]
    return words


# Words of docstrings


def _drawn_by(found: Any) -> str:
    """What a picture of a result shows: the first sentence of what draws it."""
    if not found._picture:
        return "The columns of the table, one panel each."
    module, name = found._picture.split(".")
    return _sentence(getattr(import_module(f"hessrmt.plots.{module}"), name))


def _sentence(described: Any) -> str:
    """The first sentence that a class or a function says of itself."""
    text = inspect.cleandoc(described.__doc__ or described.__name__)
    return _without_markup(text.split("\n\n")[0])


def _without_markup(text: str) -> str:
    """Words of a docstring in one line: names alone, without markup."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", " ".join(text.split()))
    text = text.replace("``", "").replace("`", "").replace(", else None", "")
    return re.sub(r"\b(NaN|None)\b(?= (where|if|with|from))", "a dash", text)


def _meanings(kind: type) -> dict[str, str]:
    """Attributes of a class to what its description says of them, without shapes of arrays."""
    found = []
    for base in reversed(kind.__mro__):
        text = inspect.cleandoc(base.__doc__ or "").partition("Attributes:")[2]
        found += re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE)
    plain_words = ((name, _without_markup(words)) for name, words in found)
    return {name: re.sub(r"^\([\w, ]+\) ", "", words) for name, words in plain_words}
