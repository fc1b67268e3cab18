"""Density files, ``hessrmt/density`` version 2: small, and each version of one is complete.

A file holds a few random vectors' quadratures and some thousand eigenvalues at most, so every
change writes a new file beside the old one and puts it in its place at once: whatever interrupts a
run, the file is that of the last finished probe, trace or set of extreme eigenvalues.

==================  ===============================================================================
dataset             meaning
==================  ===============================================================================
``nodes``           (probes, steps) float64, ascending; NaN where a probe has no more of them, and
                    in rows that are not done
``weights``         (probes, steps) float64; 0 where there is no node
``done``            (probes,) uint8
``edges/values``    (n,) float64, ascending, those of the lower end first; only when complete
``edges/residuals`` (n,) float64
==================  ===============================================================================

Groups ``edges`` and ``traces`` carry their single numbers as attributes, the root carries the
settings, versions and everything else that a spectrum file has.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from hessrmt.files import require_new, write_whole
from hessrmt.store.files import ResumableFile, reading, require_one
from hessrmt.store.hdf5 import dataset, hdf5_bytes, put_attributes, text

SCHEMA = "hessrmt/density"
VERSION = 2


class Content(NamedTuple):
    """What is in a file.

    Attributes:
        attributes: Name to number or text; of a group as ``"edges/norm"``.
        arrays: Name of the dataset to its values.
    """

    attributes: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]


def read(path: str | Path) -> Content:
    """Everything in a density file; also while a run is writing it.

    Args:
        path: The file.

    Returns:
        Its content.
    """
    with reading(path, SCHEMA, VERSION) as file:
        attributes, arrays = _values(file), {}

        def visit(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                arrays[name] = np.asarray(dataset(file, name))
            else:
                attributes.update({f"{name}/{key}": v for key, v in _values(item).items()})

        file.visititems(visit)
    return Content(attributes, arrays)


class DensityWriter(ResumableFile):
    """The one writer of a density file.

    Args:
        path: The file; its folder must exist.
        resume: It may be there, and is continued.
        overwrite: It may be there, and is replaced.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path, *, resume: bool = False, overwrite: bool = False) -> None:
        require_one(resume=resume, overwrite=overwrite)
        require_new(path, may_exist=resume or overwrite)
        super().__init__(path)

    def write(self, content: Content) -> None:
        """Put a new version of the file in place of the old one.

        Args:
            content: All of it.
        """

        def fill(file: h5py.File) -> None:
            for name, values in content.arrays.items():
                file.create_dataset(name, data=values)
            for name, value in content.attributes.items():
                group, _, key = name.rpartition("/")
                put_attributes(file.require_group(group) if group else file, {key: value})

        write_whole(self.path, hdf5_bytes(fill))


def _values(place: h5py.File | h5py.Group) -> dict[str, Any]:
    return {k: text(v) if isinstance(v, bytes) else v for k, v in place.attrs.items()}
