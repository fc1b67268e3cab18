"""Names for the shapes that appear everywhere.

``P`` counts parameters, ``n`` any matrix dimension, ``B`` the samples of a batch, ``k`` vectors
treated together. Results handed to users are float64 NumPy; everything inside is ``torch.Tensor``.
"""

import numpy as np
from jaxtyping import Float, Float64, Int64
from torch import Tensor

Levels = Float64[np.ndarray, "n"]
"""Eigenvalues of one matrix, ascending."""

Stack = Float64[np.ndarray, "batches P"]
"""One row of ascending eigenvalues for each batch."""

Indices = Int64[np.ndarray, "batches B"]
"""Positions of each batch's samples in its split."""

Vector = Float[Tensor, "P"]
Vectors = Float[Tensor, "k P"]
Matrix = Float[Tensor, "n n"]
