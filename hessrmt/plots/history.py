"""Exponents, norms and the Hessian of a network against the epochs of its training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hessrmt import theory
from hessrmt.errors import StoreError
from hessrmt.levels import resampling
from hessrmt.levels.spacings import ratios
from hessrmt.plots import style

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Float64
    from matplotlib.axes import Axes

    from hessrmt.plots.picture import Picture
    from hessrmt.store.history import History

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX"
_MOST_LAYERS = 7
_PANEL = (5.0, 2.7)
_FEW = 10
_LINEAR = 0.4
"""Width of the axis from 0 to the first epoch, in decades."""


def history(found: History, title: str = "") -> Picture:
    """Six panels against the epoch, the untrained network at 0.

    Exponent α of every layer with its standard error, hollow where it rests on fewer than ten
    eigenvalues; ln‖W‖_F less its value at the first epoch;
    losses and errors; the Hessian's largest eigenvalue and the magnitude of its smallest; its
    certified levels; and their mean ratio ⟨r̃⟩ with a standard error from stretches of the spectrum.

    Args:
        found: At least one epoch. Of more than seven layers those with most eigenvalues in their
            tails are drawn.
        title: Above the picture.

    Returns:
        The picture.

    Raises:
        StoreError: If no epoch is complete yet.
    """
    if not len(found):
        raise StoreError("the history has no finished epoch yet; continue it with --resume")
    width, height = _PANEL
    picture = style.new_picture(title, width=2 * width, height=3 * height)
    panels = picture.subplots(3, 2, sharex=True)
    draws = (_exponents, _norms, _losses, _extremes, _ranks, _mean_ratios)
    for axes, draw in zip(panels.ravel(), draws, strict=True):
        draw(axes, found)
        _epochs(axes, found)
    for axes in panels[-1]:
        axes.set_xlabel("epochs of training")
    return picture


def side_by_side(histories: Mapping[str, History], title: str = "") -> Picture:
    """Several networks, a column each: exponents, norms, ends of the Hessian's spectrum, losses.

    Args:
        histories: What to call the networks to at least one epoch of each.
        title: Above the picture.

    Returns:
        The picture.

    Raises:
        StoreError: If there is no network, or one without a finished epoch.
    """
    empty = [name for name, found in histories.items() if not len(found)]
    if empty or not histories:
        raise StoreError(f"no finished epoch of {empty[0] if empty else 'any network'} to draw")
    draws = (_exponents, _norms, _extremes, _losses)
    width, height = _PANEL
    picture = style.new_picture(title, width * len(histories), height * len(draws))
    panels = picture.subplots(len(draws), len(histories), squeeze=False, sharex="col")
    for column, (name, found) in zip(panels.T, histories.items(), strict=True):
        for axes, draw in zip(column, draws, strict=True):
            draw(axes, found)
            _epochs(axes, found)
        column[-1].set_xlabel(f"epochs of training, {name}")
    return picture


def _epochs(axes: Axes, found: History) -> None:
    axes.set_xscale("symlog", linthresh=1, linscale=_LINEAR)
    axes.set_xlim(-0.15, max(1, int(found.epochs[-1])) * 1.15)
    axes.set_xticks(*_ticks(found.epochs.tolist()))
    axes.set_xticks([], minor=True)
    style.bare(axes)


def _ticks(epochs: Sequence[int]) -> tuple[list[int], list[str]]:
    """Recorded epochs that have room for their number, the last one first of all."""
    place = [_LINEAR + np.log10(n) if n else 0.0 for n in epochs]
    kept = [len(epochs) - 1]
    for i in reversed(range(len(epochs) - 1)):
        if place[kept[-1]] - place[i] > 0.055 * (place[-1] or 1.0):
            kept.append(i)
    return [epochs[i] for i in kept[::-1]], [str(epochs[i]) for i in kept[::-1]]


def _layers(found: History) -> list[int]:
    sizes = np.nan_to_num(found.capacity["n_tail"]).max(axis=0)
    largest = np.argsort(-sizes, kind="stable")[:_MOST_LAYERS]
    return sorted(int(i) for i in largest)


def _exponents(axes: Axes, found: History) -> None:
    alpha, sigma = found.capacity["alpha"], found.capacity["sigma"]
    few = found.capacity["n_tail"] < _FEW
    drawn = _layers(found)
    for place, layer in enumerate(drawn):
        shift = 1 + 0.02 * (place - (len(drawn) - 1) / 2)  # so that bars don't cover each other
        x = np.where(found.epochs > 0, found.epochs * shift, 2 * (shift - 1))
        look = {"color": _COLOURS[place], "marker": _MARKERS[place], "ms": 4}
        name = found.layers[layer].removesuffix(".weight")
        axes.errorbar(x, alpha[:, layer], sigma[:, layer], lw=1.1, elinewidth=0.8, **look)
        axes.plot([], [], lw=1.1, label=name, **look)
        hollow = np.where(few[:, layer], alpha[:, layer], np.nan)
        axes.plot(x, hollow, ls="", mfc="white", zorder=4, **look)
    if few.any():
        axes.plot([], [], alpha=0, label=f"hollow: tail of fewer than {_FEW}")
    axes.set_ylabel("α ± σ of the layers")
    style.legend(axes)


def _norms(axes: Axes, found: History) -> None:
    norms = found.capacity["log_frobenius"]
    for place, layer in enumerate(_layers(found)):
        change = norms[:, layer] - norms[0, layer]
        name = found.layers[layer].removesuffix(".weight")
        _line(axes, found, change, place, f"{name}, from {norms[0, layer]:.2f}")
    axes.set_ylabel("growth of ln ‖W‖$_F$")
    style.legend(axes)


def _losses(axes: Axes, found: History) -> None:
    for place, split in enumerate(("train", "test")):
        loss = found.training[f"{split}_loss"]
        error = 1 - found.training[f"{split}_accuracy"]
        if np.isfinite(loss).any():
            _line(axes, found, loss, place, f"loss, {split}")
        if np.isfinite(error).any():
            _line(axes, found, error, place, f"error, {split}", dashes=(0, (3, 2)))
    axes.set(yscale="log", ylabel="loss, share of errors")
    style.legend(axes)


def _extremes(axes: Axes, found: History) -> None:
    levels = found.spectra.eigenvalues
    _line(axes, found, levels[:, -1], 0, "λ$_{max}$")
    if (levels[:, 0] < 0).any():
        negative = np.where(levels[:, 0] < 0, -levels[:, 0], np.nan)
        _line(axes, found, negative, 1, "-λ$_{min}$")
    axes.set(yscale="log", ylabel="ends of the Hessian's spectrum")
    style.legend(axes)


def _ranks(axes: Axes, found: History) -> None:
    spectra = found.spectra
    _line(axes, found, np.array([item.rank for item in spectra], dtype=float), 0, "certified")
    positive = [np.count_nonzero(item.resolved > 0) for item in spectra]
    _line(axes, found, np.array(positive, dtype=float), 1, "positive")
    axes.set_ylabel(f"levels of {spectra[0].dimension:,}")
    axes.set_ylim(bottom=0)
    style.legend(axes)


def _mean_ratios(axes: Axes, found: History) -> None:
    means = [resampling.mean_and_error([ratios(item.resolved)]) for item in found.spectra]
    mean, error = np.array(means).T
    axes.errorbar(
        found.epochs,
        mean,
        yerr=error,
        color=style.INK,
        marker="o",
        ms=3.5,
        lw=1.1,
        label="measured",
    )
    for law in ("goe", "goe2", "poisson"):
        label, colour, dashes, width = style.LAWS[law]
        axes.axhline(theory.mean_ratio(law), color=colour, ls=dashes, lw=width, label=label)
    axes.set_ylabel("⟨r̃⟩ of certified levels")
    style.legend(axes)


def _line(
    axes: Axes,
    found: History,
    values: Float64[np.ndarray, " n"],
    place: int,
    label: str,
    dashes: str | tuple[int, tuple[float, ...]] = "-",
) -> None:
    axes.plot(
        found.epochs,
        values,
        color=_COLOURS[place],
        marker=_MARKERS[place],
        ms=3.5,
        lw=1.1,
        ls=dashes,
        label=label,
    )
