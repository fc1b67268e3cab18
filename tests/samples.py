"""Small problems that several test files build."""

import torch


def labelled(shape, classes, seed=0):
    """Standard normal inputs of a shape and uniform labels."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, classes, (shape[0],), generator=generator)
