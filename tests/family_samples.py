"""Small images and small families of networks trained on them."""

import numpy as np

from hessrmt import rng
from hessrmt.experiments.families import Family


def write_images(path):
    """64 + 40 images of 8 x 8 pixels in 3 classes: a bright column each, with noise."""
    draw = rng.stream(0, "test images")
    y = draw.integers(0, 3, 104)
    x = draw.integers(0, 120, (104, 8, 8))
    x[np.arange(104), :, 2 * y + 1] += 120
    x = x.astype(np.uint8)
    np.savez(path, x_train=x[:64], y_train=y[:64], x_test=x[64:], y_test=y[64:], classes=3)
    return path


def family_on(images, **changes):
    """Settings of a small family."""
    given = {
        "name": "scales",
        "vary": "initial-scale",
        "values": (0.1, 0.3),
        "model": "conv3s2-2",
        "data": str(images),
        "epochs": 3,
        "batch": 16,
        "rates": (0.05, 0.01),
        "momentum": 0.9,
    }
    return Family.model_validate(given | changes)
