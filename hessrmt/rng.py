"""One seed, many independent named streams: the only source of randomness in the package.

A stream is named by words ("init", "shuffle", ...) and numbers (an epoch). The same seed and name
give the same numbers whatever else was drawn before, so a resumed run equals an uninterrupted one.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from hessrmt.checks import require_whole

if TYPE_CHECKING:
    import torch


def seed_sequence(seed: int, *names: str | int) -> np.random.SeedSequence:
    """Seed sequence of a named stream.

    Args:
        seed: The run's seed, any non-negative integer.
        names: What the stream is for, e.g. ``"shuffle", epoch``.

    Returns:
        A ``SeedSequence`` that depends on the seed and on every name.

    Raises:
        ConfigError: If the seed is negative or no whole number.
    """
    require_whole(0, seed=seed)
    # a name in a file may be no text in UTF-8
    texts = [str(name).encode(errors="surrogatepass") for name in names]
    key = [int.from_bytes(hashlib.sha256(text).digest()[:8], "little") for text in texts]
    return np.random.SeedSequence([seed, *key])


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """NumPy generator of a named stream (arguments as in :func:`seed_sequence`).

    Returns:
        A PCG64 generator.
    """
    return np.random.default_rng(seed_sequence(seed, *names))


def torch_generator(seed: int, *names: str | int) -> "torch.Generator":
    """Torch CPU generator of a named stream (arguments as in :func:`seed_sequence`).

    Returns:
        A seeded generator; draw on the CPU and move the result, so that devices agree.
    """
    import torch

    return torch.Generator().manual_seed(_word(seed, *names))


@contextmanager
def torch_seeded(seed: int, *names: str | int) -> Iterator[None]:
    """Seed torch's global CPU generator inside a ``with`` block and restore it afterwards.

    For code that only draws from the global generator, such as ``torch.nn``'s initialisation.

    Yields:
        None.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_word(seed, *names))
        yield


def _word(seed: int, *names: str | int) -> int:
    return int(seed_sequence(seed, *names).generate_state(1, np.uint64)[0] >> 1)
