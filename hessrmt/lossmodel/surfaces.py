"""Whole loss surfaces: a Gaussian process as a sum of random waves, differentiable everywhere.

    L_emp(w) = L_true(w) + ε(w),   ε(w) = √(k(0)/F) Σ_j [z_j cos(ω_j·w) + z'_j sin(ω_j·w)],

z and z' standard normal, ω_j from the kernel's spectral measure. With both waves of a frequency ε
is, given the frequencies, exactly Gaussian and exactly stationary; over frequencies its covariance
is exactly k. One wave with a random phase has neither property at finite F.

A Hessian is Σ_j c_j ω_j ω_jᵀ, a free compound Poisson law of F/n jumps a level: semicircular up to
a fourth free cumulant κ₄/κ₂² = 3n/F·E s⁴/(E s²)², which moves the integrated density by κ₄/(4πκ₂²)
at most, to first order: δG = -κ₄ (G⁴/4)' from the R-transform κ₂G + κ₄G³ (Nica, Speicher, Lectures
on the Combinatorics of Free Probability, 2006, 12.16).

Source: [B] (Baskerville, Granziol, Keating), equations (13) to (15); Rahimi, Recht, NIPS 20 (2007).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from hessrmt import rng
from hessrmt.backend.memory import free_host_memory
from hessrmt.errors import LossModelError
from hessrmt.lossmodel.arguments import real_array, whole
from hessrmt.lossmodel.features import Mixing, draw_rates
from hessrmt.lossmodel.process import Stationary
from hessrmt.problems.problem import Problem

if TYPE_CHECKING:
    from jaxtyping import Float, Float64
    from numpy.typing import ArrayLike

TrueLoss = Callable[[Tensor], Tensor]
"""L_true: (n,) parameters to a scalar, made of torch functions."""

_FEATURES_PER_DIMENSION = 64
_LEAST_FEATURES = 1024


class Quadratic(nn.Module):
    """L_true(w) = ½ Σ_i λ_i (v_i·(w - m))², a true loss whose Hessian has a chosen spectrum.

    Attributes:
        eigenvalues: (r,) λ.
        directions: (r, n) orthonormal v.
        minimum: (n,) m.
    """

    eigenvalues: Tensor
    directions: Tensor
    minimum: Tensor

    def __init__(self, eigenvalues: Tensor, directions: Tensor, minimum: Tensor) -> None:
        super().__init__()
        self.register_buffer("eigenvalues", eigenvalues)
        self.register_buffer("directions", directions)
        self.register_buffer("minimum", minimum)

    def forward(self, w: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        """The loss at w."""
        along = self.directions @ (w - self.minimum)
        return (self.eigenvalues * along.square()).sum() / 2

    def hessian(self) -> Float64[np.ndarray, "n n"]:
        """H_true = Σ_i λ_i v_i v_iᵀ."""
        return ((self.directions.T * self.eigenvalues) @ self.directions).numpy()


def quadratic(
    eigenvalues: ArrayLike, n: int, seed: int = 0, minimum: ArrayLike | None = None
) -> Quadratic:
    """A quadratic true loss of low rank, in uniformly random directions.

    Args:
        eigenvalues: (r,) non-zero eigenvalues of H_true, r <= n.
        n: Dimension.
        seed: Of the directions.
        minimum: (n,) its minimum; default the origin.

    Returns:
        The loss, to be given as ``true_loss``.

    Raises:
        LossModelError: If there are more eigenvalues than dimensions, or the minimum is no point.
    """
    n = whole("n", n, 1)
    values = real_array("eigenvalues", eigenvalues, 1)
    if len(values) > n:
        raise LossModelError(f"{len(values)} eigenvalues do not fit into n = {n} dimensions")
    middle = np.zeros(n) if minimum is None else real_array("minimum", minimum, 1)
    if len(middle) != n:
        raise LossModelError(f"minimum must have n = {n} entries, got {len(middle)}")
    draw = rng.stream(whole("seed", seed), "true-loss", n)
    # the signs make QR's basis uniform (Mezzadri, Notices AMS 54, 592, 2007)
    basis, triangle = np.linalg.qr(draw.normal(size=(n, len(values))))
    directions = (basis * np.sign(np.diag(triangle))).T
    return Quadratic(*(torch.from_numpy(x.copy()) for x in (values, directions, middle)))


@dataclass(frozen=True, eq=False)
class RandomFeatureSurface:
    """One loss surface; call it at a point (n,) or at points (batch, n).

    Attributes:
        frequencies: (F, n) float64, ω.
        amplitudes: (F, 2) float64, √(k(0)/F) times z and z'.
        true_loss: L_true, or None for zero.
        settings: What determines ε, as plain values.
    """

    frequencies: Float64[Tensor, "F n"]
    amplitudes: Float64[Tensor, "F 2"]
    true_loss: TrueLoss | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def dimension(self) -> int:
        """The number n of parameters."""
        return self.frequencies.shape[1]

    @property
    def features(self) -> int:
        """F, the number of frequencies."""
        return self.frequencies.shape[0]

    @property
    def density_error(self) -> float:
        """Largest first-order error of the integrated spectral density, κ₄/(4πκ₂²).

        From the frequencies drawn, 3n Σ|ω|⁸ / (4π (Σ|ω|⁴)²); more features make it smaller. Heavy
        tails (Matérn with ν ≤ 4) have no finite expectation of it.
        """
        square = self.frequencies.square().sum(1)
        fourth = float(square.pow(4).sum() / square.square().sum().square())
        return 3 * self.dimension * fourth / (4 * np.pi)

    def noise(self, w: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
        """ε alone, differentiable by torch to any order.

        Args:
            w: (n,) or (batch, n) points.

        Returns:
            A scalar or (batch,) values.
        """
        self._require_points(w)
        phase = w @ self.frequencies.T
        return phase.cos() @ self.amplitudes[:, 0] + phase.sin() @ self.amplitudes[:, 1]

    def __call__(self, w: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
        """L_emp = L_true + ε, differentiable by torch.

        Args:
            w: (n,) or (batch, n) float64 points.

        Returns:
            A scalar or (batch,) values.
        """
        noise = self.noise(w)
        return noise if self.true_loss is None else noise + self._true(self.true_loss, w)

    def gradient(self, w: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """∇L_emp: the waves' in closed form, that of L_true by torch.

        Args:
            w: (n,) or (batch, n) float64 points.

        Returns:
            (n,) or (batch, n).
        """
        self._require_points(w)
        phase = w @ self.frequencies.T
        slope = phase.cos() * self.amplitudes[:, 1] - phase.sin() * self.amplitudes[:, 0]
        found = slope @ self.frequencies
        if self.true_loss is None:
            return found
        return found + self._true(torch.func.grad(self.true_loss), w)

    def hessian(self, w: Float[Tensor, " n"]) -> Float[Tensor, "n n"]:
        """∇²L_emp at one point, one matrix product; the closed form that ``hr.hessian`` must meet.

        Args:
            w: (n,) float64 point.

        Returns:
            (n, n).

        Raises:
            LossModelError: If w is no single point of the surface.
        """
        self._require_points(w)
        if w.ndim != 1:
            raise LossModelError(f"a Hessian belongs to one point (n,), got {tuple(w.shape)}")
        phase = self.frequencies @ w
        weight = -phase.cos() * self.amplitudes[:, 0] - phase.sin() * self.amplitudes[:, 1]
        found = (self.frequencies.T * weight) @ self.frequencies
        if self.true_loss is None:
            return found
        return found + torch.func.hessian(self.true_loss)(w)

    def problem(self, w: Float[Tensor, " n"] | ArrayLike) -> Problem:
        """The surface at w as a problem: a linear layer w fed with the frequencies.

        The batch is (ω_j, amplitudes_j) and the loss the mean of F times each wave, so that
        ``hr.spectrum``, ``hr.hessian`` and ``hr.reduction`` apply as to any network. With fewer
        features than dimensions ε is exactly flat in n - F directions.

        Args:
            w: (n,) point.

        Returns:
            The problem, with n trainable parameters in float64.
        """
        point = torch.as_tensor(w, dtype=torch.float64).detach()
        self._require_points(point)
        model = _Waves(point, self.true_loss)
        return Problem(model, _mean_wave, (self.frequencies, self.features * self.amplitudes))

    def _true(self, function: TrueLoss, w: Tensor) -> Tensor:
        return function(w) if w.ndim == 1 else torch.vmap(function)(w)

    def _require_points(self, w: Tensor) -> None:
        if not isinstance(w, Tensor) or w.ndim not in (1, 2) or w.shape[-1] != self.dimension:
            shape = tuple(w.shape) if isinstance(w, Tensor) else type(w).__name__
            raise LossModelError(
                f"points must be a tensor ({self.dimension},) or (batch, {self.dimension}), "
                f"got {shape}"
            )
        if w.dtype != torch.float64:
            raise LossModelError(f"points must be float64, got {w.dtype}; use w.double()")


def random_surface(
    cov: Stationary,
    n: int,
    features: int | None = None,
    seed: int = 0,
    index: int = 0,
    *,
    true_loss: TrueLoss | None = None,
    mixing: Mixing | None = None,
) -> RandomFeatureSurface:
    """Draw a loss surface whose noise has a stationary covariance.

    Args:
        cov: The covariance of ε.
        n: Dimension.
        features: F, how many frequencies; default 64 n, at least 1024.
        seed: Of the run.
        index: Which surface of the run.
        true_loss: L_true, (n,) to a scalar by torch functions, e.g. :func:`quadratic`.
        mixing: Draws the kernel's rates, see :func:`hessrmt.lossmodel.features.draw_rates`.

    Returns:
        The surface; the same arguments give the same one.

    Raises:
        LossModelError: If the covariance is not stationary, its spectral measure is not known, or
            the frequencies do not fit in memory.
    """
    if not isinstance(cov, Stationary):
        raise LossModelError(
            f"a surface needs a stationary covariance (rbf, rational_quadratic, matern, mixture), "
            f"got {type(cov).__name__}; a Hessian at one point needs only sample_hessian"
        )
    n = whole("n", n, 1)
    given = max(_LEAST_FEATURES, _FEATURES_PER_DIMENSION * n) if features is None else features
    count = whole("features", given, 1)
    if true_loss is not None and not callable(true_loss):
        raise LossModelError(f"true_loss must be callable, got {type(true_loss).__name__}")
    needed, free = 2 * 8 * count * n, free_host_memory()  # the frequencies and one copy
    if needed > free:
        raise LossModelError(
            f"{count:,} frequencies in {n:,} dimensions need {needed / 2**30:.1f} GiB and "
            f"{free / 2**30:.1f} GiB are free; at most {free // (16 * n):,} features fit"
        )
    draw = rng.stream(whole("seed", seed), "surface", whole("index", index))
    rates = draw_rates(cov, count, draw, mixing)
    frequencies = draw.normal(size=(count, n))
    frequencies *= np.sqrt(rates)[:, None]
    size = np.sqrt(float(cov.derivative(0, 0.0)) / count)
    amplitudes = size * draw.normal(size=(count, 2))
    settings = {**cov.settings, "n": n, "features": count, "seed": int(seed), "index": int(index)}
    return RandomFeatureSurface(
        torch.from_numpy(frequencies), torch.from_numpy(amplitudes), true_loss, settings
    )


class _Waves(nn.Module):
    """w as the weight of a linear layer; L_true, which no sample owns, beside its outputs."""

    def __init__(self, w: Tensor, true_loss: TrueLoss | None) -> None:
        super().__init__()
        self.w = nn.Linear(len(w), 1, bias=False, dtype=w.dtype)
        self.w.weight.data = w.clone().unsqueeze(0)
        self.true_loss = true_loss
        if isinstance(true_loss, nn.Module):
            true_loss.requires_grad_(False)

    def forward(self, frequencies: Tensor) -> Tensor:
        phase = self.w(frequencies)
        if self.true_loss is None:
            return phase
        return torch.cat([phase, self.true_loss(self.w.weight[0]).expand_as(phase)], dim=1)


def _mean_wave(outputs: Tensor, amplitudes: Tensor) -> Tensor:
    """Mean over the batch of each wave, and of L_true where the outputs carry it."""
    phase = outputs[:, 0]
    waves = phase.cos() * amplitudes[:, 0] + phase.sin() * amplitudes[:, 1]
    return (waves if outputs.shape[1] == 1 else waves + outputs[:, 1]).mean()
