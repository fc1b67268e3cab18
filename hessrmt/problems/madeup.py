"""Made-up images in the published format of CIFAR-100, for machines that don't have the real ones.

100 classes in 20 superclasses of five. An image is the sum of two coarse patterns, one of its
class and one of its superclass, moved by up to two pixels, of a pattern of its own and of noise.
All of it is computed in integers, so that it is the same everywhere. Nothing that is found with
these images says anything about photographs.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import numpy as np

from hessrmt import rng
from hessrmt.files import write_whole
from hessrmt.problems.formats import SETS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.random import Generator

MADE_UP = "made-up-cifar100"
"""Name of the data set."""

COUNTS = {"train": 1_000, "test": 500}
"""Images of each split, as many of each class."""

CLASSES, _SUPERCLASSES = 100, 20
_SIDE, _CELLS = 32, 8
_SIZES = {"class": 30, "superclass": 30, "own": 44, "noise": 52}
"""Largest value of each part of a pixel, of 255."""


def write_cifar100(folder: Path, counts: Mapping[str, int] = COUNTS, seed: int = 0) -> None:
    """Write the batches ``train`` and ``test`` as CIFAR-100's "python version" has them.

    Args:
        folder: Where; it must exist.
        counts: Split to its number of images.
        seed: Of all of them.
    """
    for split, (file,) in SETS["cifar100"].batches.items():
        draw = rng.stream(seed, MADE_UP, split)
        fine = draw.permutation(np.arange(counts[split]) % CLASSES)
        images = _images(fine, seed, draw)
        batch = {
            "filenames": [f"{split}_{place:05}.png" for place in range(len(fine))],
            "batch_label": f"{split}ing batch 1 of 1",
            "fine_labels": fine.tolist(),
            "coarse_labels": (fine % _SUPERCLASSES).tolist(),
            "data": images.reshape(len(images), -1),
        }
        write_whole(folder / file, pickle.dumps(batch, protocol=2))


def _images(fine: np.ndarray, seed: int, draw: Generator) -> np.ndarray:
    """(N, 3, 32, 32) uint8."""
    of_class = _patterns(CLASSES, _SIZES["class"], rng.stream(seed, MADE_UP, "classes"))
    of_super = _patterns(_SUPERCLASSES, _SIZES["superclass"], rng.stream(seed, MADE_UP, "super"))
    own = _patterns(len(fine), _SIZES["own"], draw)
    noise = draw.integers(-_SIZES["noise"], _SIZES["noise"] + 1, size=own.shape)
    shifts = draw.integers(-2, 3, size=(len(fine), 2)).tolist()
    common = of_class[fine] + of_super[fine % _SUPERCLASSES]
    moved = [np.roll(one, shift, (1, 2)) for one, shift in zip(common, shifts, strict=True)]
    return np.clip(128 + np.array(moved) + own + noise, 0, 255).astype(np.uint8)


def _patterns(count: int, size: int, draw: Generator) -> np.ndarray:
    """(count, 3, 32, 32) integers that are constant on cells."""
    cells = draw.integers(-size, size + 1, size=(count, 3, _CELLS, _CELLS))
    return cells.repeat(_SIDE // _CELLS, axis=2).repeat(_SIDE // _CELLS, axis=3)
