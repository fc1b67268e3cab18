"""Samples with and without power laws in their tails."""

import numpy as np

from hessrmt import rng


def pareto(n, *name, alpha=2.5):
    return (1 - rng.stream(0, "fit", "pareto", *name).random(n)) ** (-1 / (alpha - 1))


def spectrum(kind, index):
    """One of ten kinds of spectra, about 100 values."""
    draw = rng.stream(index, "fit", kind)

    def gram(entries):
        return np.linalg.eigvalsh(entries @ entries.T / entries.shape[1])

    return {
        "pareto": lambda: (1 - draw.random(120)) ** (-1 / draw.uniform(0.5, 4)),
        "pareto with a body": lambda: np.append(
            draw.uniform(0.2, 1, 60), (1 - draw.random(80)) ** (-1 / 1.5)
        ),
        "lognormal": lambda: draw.lognormal(sigma=draw.uniform(0.2, 2), size=120),
        "exponential": lambda: draw.exponential(size=100),
        "wishart": lambda: gram(draw.normal(size=(100, 100))),
        "marchenko-pastur": lambda: gram(draw.normal(size=(80, 320))),
        "student": lambda: gram(draw.standard_t(2.5, size=(100, 200))),
        "spikes": lambda: gram(draw.normal(size=(90, 180)) * (1 + 9 * (np.arange(180) < 5))),
        "ties": lambda: np.ceil(10 * (1 - draw.random(150)) ** (-1 / 1.5)) / 10,
        "uniform": lambda: draw.uniform(1, 3, 90),
    }[kind]()


KINDS = [
    "pareto",
    "pareto with a body",
    "lognormal",
    "exponential",
    "wishart",
    "marchenko-pastur",
    "student",
    "spikes",
    "ties",
    "uniform",
]
