"""Files that are written: which names are refused, and what happens to links."""

import os

import numpy as np
import pytest
from store_samples import SIZE, create, resume, spectrum

from hessrmt.errors import StoreError
from hessrmt.store.spectra import load


@pytest.mark.parametrize("way", ["resume", "overwrite"])
def test_a_link_stays_one_and_what_it_leads_to_is_replaced(tmp_path, way):
    (tmp_path / "far").mkdir()
    real, link = tmp_path / "far" / "real.h5", tmp_path / "link.h5"
    link.symlink_to(real)
    with create(link) as writer:  # nothing is there yet
        writer.write(0, spectrum(0))
    indices = np.arange(5 * SIZE).reshape(5, SIZE)
    with create(link, batch_indices=indices, **{way: True}) as writer:
        writer.write(4, spectrum(4))
        with pytest.raises(StoreError, match="another process"):
            resume(real)
    assert link.is_symlink()
    assert load(real).planned == load(link).planned == 5
    assert os.listdir(real.parent) == ["real.h5"]
