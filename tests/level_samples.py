"""Spectrum files of random matrices, and surrogates kept between the tests of level statistics."""

import numpy as np

from hessrmt.records import Provenance
from hessrmt.store.writing import SpectrumWriter


def keep_surrogates(monkeypatch, tmp_path_factory):
    """One cache for all tests that don't test the cache: surrogates take seconds to draw."""
    folder = tmp_path_factory.getbasetemp() / "kept-surrogates"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))


def write_file(path, spectra):
    """A spectrum file that holds some spectra of equal dimension."""
    settings = {"model": "control", "data": "none", "split": "test", "batch": 1, "seed": 0}
    config = {**settings, "operator": spectra[0].operator, "dtype": spectra[0].dtype}
    with SpectrumWriter(
        path,
        identity=config,
        solver=spectra[0].solver,
        dimension=spectra[0].dimension,
        batch_indices=np.arange(len(spectra)).reshape(-1, 1),
        provenance=Provenance(config=config),
    ) as writer:
        for row, spectrum in enumerate(spectra):
            writer.write(row, spectrum)
    return path
