"""Random crops and flips of images, as He et al. (2015) and [G] appendix B train ResNets."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hessrmt.errors import DataError

Images = Float[Tensor, "B channels height width"]


def crop_and_flip(images: Images, *, padding: int = 4, fill: float = 0.0) -> Images:
    """Every image padded, cut out again at a random place, and mirrored half of the time.

    Random numbers come from torch's global generator of the CPU, on every device the same.

    Args:
        images: A batch.
        padding: Pixels added on every side.
        fill: Value of the added pixels.

    Returns:
        A batch of the same shape.

    Raises:
        DataError: If these are no images.
    """
    if images.dim() != 4:
        raise DataError(
            f"samples of shape {tuple(images.shape[1:])} cannot be cropped; augmentation needs "
            "images (channels, height, width)"
        )
    count, _, height, width = images.shape
    places = torch.randint(2 * padding + 1, (2, count)).to(images.device)
    mirrored = (torch.rand(count) < 0.5).to(images.device)
    padded = nn.functional.pad(images, (padding,) * 4, value=fill)
    rows = places[0, :, None] + torch.arange(height, device=images.device)
    columns = places[1, :, None] + torch.arange(width, device=images.device)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    batch = torch.arange(count, device=images.device)[:, None, None]
    found = padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]]
    return found.permute(0, 3, 1, 2).contiguous()
