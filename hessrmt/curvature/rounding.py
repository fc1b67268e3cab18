"""How far rounding moves a computed product: every operation is computed again, rounded otherwise.

Monte Carlo arithmetic (Parker 1997): each operation's result is changed at random
by up to an ulp, those of sums their operands too. The difference to the result without changes has
the size of the rounding errors, whatever layers and losses there are, and where 1 - p has lost all
digits of 1 - p as well. It sees no error of a formula in exact arithmetic (the ε within torch's
binary cross-entropy): such formulas are replaced (``hessrmt.problems.equivalents``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from hessrmt import rng
from hessrmt.arrays import fetched
from hessrmt.errors import NonFiniteError, ProblemError

if TYPE_CHECKING:
    from hessrmt.arrays import Vector, Vectors
    from hessrmt.problems.problem import Problem


DIRECTIONS = 5
FEW_DIRECTIONS = 2
"""Random vectors; few where each costs passes over all data or through a large network."""

_FAILURE = 1e-3
"""Probability that a bound fails."""

_TABLE = 2**16 + 1
"""Random numbers that are drawn once and used from a random place on."""

_OF_DIFFERENCES = (
    ". Or the gradient jumps between the points of finite differences: take smooth activations in "
    "place of kinks (ReLU, max-pooling)"
)


def norm_bound(differences: Sequence[float]) -> float:
    """A bound on ‖E‖₂ from the norms of products E ω with independent Gaussian vectors.

    With r of them ‖E‖₂ ≤ α √(2/π) max ‖E ω‖ fails with probability α⁻ʳ (Halko, Martinsson and Tropp
    2011, lemma 4.1), here one in a thousand.

    Args:
        differences: ‖E ω‖ of each.

    Returns:
        The bound; 0.0 of none.

    Raises:
        NonFiniteError: If one is NaN or infinite: then nothing is known of E.
    """
    if not differences:
        return 0.0
    if not all(map(math.isfinite, differences)):
        raise NonFiniteError(
            "a product with the matrix is NaN or infinite, or becomes so if an operation is "
            "rounded otherwise: some part of the network or of the loss is at the edge of where it "
            "is defined, such as the root or the logarithm of what is zero but for round-off"
        )
    return _FAILURE ** (-1 / len(differences)) * math.sqrt(2 / math.pi) * max(differences)


def round_off(norm: float, size: int, dtype: torch.dtype) -> float:
    """What rounding may add to a product with a unit vector: 10 √P ε ‖H‖₂.

    An entry is a sum whose rounding errors grow like the root of its length (Higham and
    Mary 2019); the norm over P entries brings √P. What has been measured of an operator
    (:meth:`~hessrmt.curvature.operators.CurvatureOperator.rounding`) counts where it is more.

    Args:
        norm: ‖H‖₂.
        size: P.
        dtype: Of the products.

    Returns:
        In the units of the eigenvalues.
    """
    return 10 * size**0.5 * torch.finfo(dtype).eps * norm


def require_symmetric(gap: float, norm: float, slack: float, *, differences: bool = False) -> None:
    """Refuse a matrix whose products contradict H = Hᵀ.

    Args:
        gap: Largest |wᵀ(Hv) - vᵀ(Hw)| seen for unit vectors.
        norm: ‖H‖₂ as far as it was seen.
        slack: What may be rounding.
        differences: Whether products are finite differences of a gradient.

    Raises:
        ProblemError: If it is not symmetric.
    """
    if gap > slack:
        raise ProblemError(
            f"the matrix is not symmetric: wᵀ(Hv) and vᵀ(Hw) differ by {gap:.3g} for unit "
            f"vectors, its norm is {norm:.3g}. Eigenvalues by Lanczos need H = Hᵀ; an "
            "operation of a model with a wrong second derivative in torch must be replaced"
            + (_OF_DIFFERENCES if differences else "")
        )


def length(vector: Tensor) -> float:
    """‖v‖, also where the squares of all entries would underflow or overflow.

    Args:
        vector: v.

    Returns:
        Its norm.
    """
    return lengths([vector])[0]


def lengths(vectors: Sequence[Tensor]) -> list[float]:
    """:func:`length` of several vectors, of which the device is asked once.

    Args:
        vectors: In one place.

    Returns:
        Their norms.
    """
    if not vectors:
        return []
    largest = [v.abs().max() if v.numel() else v.new_zeros(()) for v in vectors]
    over = [(v / size).norm() for v, size in zip(vectors, largest, strict=True)]
    pairs = zip(*fetched(torch.stack(largest), torch.stack(over)), strict=True)
    known = [(float(size), float(norm)) for size, norm in pairs]
    return [size * norm if size and math.isfinite(size) else size for size, norm in known]


def gaussian(shape: int | Sequence[int], like: Any, *stream: Any, seed: int = 0) -> Tensor:
    """Independent standard normal numbers, drawn on the CPU in float64 so that devices agree.

    Args:
        shape: Of the tensor.
        like: Says of what precision and in what place: anything with ``dtype`` and ``device``.
        stream: Name of the random stream.
        seed: Of the stream.

    Returns:
        The numbers.
    """
    generator = rng.torch_generator(seed, *stream)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    return drawn.to(dtype=like.dtype, device=like.device, non_blocking=True)


def directions(problem: Problem, count: int = DIRECTIONS) -> Vectors:
    """Independent Gaussian vectors in the space of the parameters.

    Args:
        problem: In its final precision and place.
        count: How many.

    Returns:
        (count, P).
    """
    theta = problem.theta
    return torch.stack([gaussian(len(theta), theta, "agreement", n) for n in range(count)])


def rounding_of(function: Callable[[Vector], Vector], rows: Vectors, products: Vectors) -> float:
    """A bound on the rounding error of a product with a matrix, in the 2-norm.

    Args:
        function: The product with one vector, from the network on.
        rows: (r, P) Gaussian vectors.
        products: (r, P) what the function makes of each.

    Returns:
        The bound, in the units of the eigenvalues.
    """
    return norm_bound(changes(function, rows, products))


def changes(function: Callable[[Vector], Vector], points: Vectors, values: Vectors) -> list[float]:
    """How far each value of a function moves if every operation is rounded otherwise.

    Args:
        function: Of one vector.
        points: (r, n) where.
        values: (r, m) the values there.

    Returns:
        The Euclidean norms of the differences.
    """
    found = []
    for number, (point, value) in enumerate(zip(points, values, strict=True)):
        with Perturbed(number):
            found.append(function(point) - value)
    return lengths(found)


class Perturbed(TorchDispatchMode):
    """Each result of a floating-point operation is changed at random by up to one ulp.

    Args:
        number: Of the stream of random numbers.
        part: Of the data, if each has a stream of its own.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Spare torch the import of its compiler, half a second: nothing is compiled here."""
        return False

    def __init__(self, number: int, part: int = 0) -> None:
        super().__init__()
        self._places = rng.stream(0, "ulps", number, *([part] if part else []))
        self._steps = torch.from_numpy(self._places.choice([1.0, -0.5], _TABLE))
        self._tables: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def _near(self, leaf: Any) -> Any:
        """A tensor whose entries have moved by an ulp."""
        return leaf * self._factors(leaf) if _rounded(leaf) else leaf

    def _factors(self, leaf: Tensor) -> Tensor:
        """The next numbers above and below 1: whatever they multiply moves, and -inf stays."""
        key = leaf.dtype, leaf.device
        if key not in self._tables:
            epsilon = torch.finfo(leaf.dtype).eps
            self._tables[key] = (1 + epsilon * self._steps).to(leaf, non_blocking=True)
        table, count = self._tables[key], leaf.numel()
        start = int(self._places.integers(_TABLE))
        if count + start > _TABLE:
            table = table.repeat(2 + count // _TABLE)
        return table[start : start + count].view(leaf.shape)

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        keywords = keywords or {}
        schema = getattr(function, "_schema")  # noqa: B009
        name = schema.name.partition("::")[2]
        chosen = any(part in ("amax", "amin") for part in arguments if isinstance(part, str))
        if name in _SUMS and not chosen:
            arguments = _pytree.tree_map(self._near, arguments)
        found = function(*arguments, **keywords)
        if chosen or name.rstrip("_") in _EXACT:  # chosen: scatter_reduce and its kind
            return found
        results = found if isinstance(found, tuple | list) else (found,)
        for result, declared in zip(results, schema.returns, strict=False):
            made = declared.alias_info is None or declared.alias_info.is_write
            if made and _rounded(result):
                result.mul_(self._factors(result))
        return found


def _rounded(leaf: Any) -> bool:
    """Whether it is a tensor of numbers that are rounded, with memory for each."""
    if not isinstance(leaf, Tensor) or leaf.layout != torch.strided or not leaf.numel():
        return False
    return (leaf.is_floating_point() or leaf.is_complex()) and not leaf._is_zerotensor()


_EXACT = frozenset(
    """
    abs amax amin arange argmax argmin as_strided bernoulli bitwise_and bitwise_not bitwise_or cat
    ceil clamp clamp_max clamp_min clone constant_pad_nd copy diagonal_backward embedding empty
    empty_like empty_strided eq eye fill flip floor full full_like gather ge gt hardtanh
    hardtanh_backward index index_put index_select isfinite isinf isnan le lift_fresh
    lift_fresh_copy linspace logical_and logical_not logical_or lt masked_fill masked_scatter max
    max_pool2d_with_indices max_pool2d_with_indices_backward maximum min minimum nan_to_num ne neg
    new_empty new_empty_strided new_full new_ones new_zeros ones ones_like rand randn relu repeat
    roll round scalar_tensor scatter select_backward select_scatter sgn sign slice_backward
    slice_scatter sort stack threshold threshold_backward topk tril triu trunc unfold_backward
    value_selecting_reduction_backward where zero zeros zeros_like _to_copy _unsafe_view
    """.split()  # noqa: SIM905 (a hundred names read better as a paragraph)
)
"""Operations that round nothing: they choose, copy, compare or make numbers."""

_SUMS = frozenset(
    """
    addbmm addmm addmv addr avg_pool1d avg_pool2d avg_pool2d_backward avg_pool3d
    avg_pool3d_backward baddbmm bmm convolution convolution_backward cumsum dot
    embedding_dense_backward index_add linalg_vector_norm logsumexp mean mm mv native_batch_norm
    native_batch_norm_backward native_group_norm native_group_norm_backward native_layer_norm
    native_layer_norm_backward prod scatter_add scatter_reduce sum var var_mean vdot
    _adaptive_avg_pool2d _adaptive_avg_pool2d_backward _log_softmax _log_softmax_backward_data
    _native_batch_norm_legit _softmax _softmax_backward_data
    """.split()  # noqa: SIM905
)
"""Operations that add up many numbers, and round what cancels in the end."""
