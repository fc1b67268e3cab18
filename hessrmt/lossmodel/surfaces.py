"""Whole loss surfaces as a sum of random waves; values at a few points drawn jointly; descent.

    L_emp(w) = L_true(w) + ε(w),   ε(w) = √(k(0)/F) Σ_j [z_j cos(ω_j·w) + z'_j sin(ω_j·w)],

z and z' standard normal, ω_j = √s_j·N(0, I_n) from the kernel's spectral measure, k(q) = k(0)·E
exp(s q), since E cos(ω·d) = E exp(-s|d|²/2). With both waves of a frequency ε is, given the
frequencies, exactly Gaussian and exactly stationary; over frequencies its covariance is exactly k.
One wave with a random phase has neither property at finite F.

A Hessian is Σ_j c_j ω_j ω_jᵀ, a free compound Poisson law of F/n jumps a level: semicircular up to
a fourth free cumulant κ₄/κ₂² = 3n/F·E s⁴/(E s²)², which moves the integrated density by κ₄/(4πκ₂²)
at most, to first order: δG = -κ₄ (G⁴/4)' from the R-transform κ₂G + κ₄G³ (Nica and Speicher 2006,
equation 12.16).

Source: Baskerville, Granziol and Keating 2022, equations 13 to 15 and section 8; Rahimi and Recht
2007.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from scipy.linalg import eigh
from torch import Tensor, nn

from hessrmt import rng
from hessrmt.checks import real, real_array, whole
from hessrmt.errors import DataError
from hessrmt.lossmodel.covariance import Stationary, require_stationary
from hessrmt.memory import free_host_memory
from hessrmt.problems.problem import Problem

if TYPE_CHECKING:
    from jaxtyping import Float, Float64
    from numpy.typing import ArrayLike

TrueLoss = Callable[[Tensor], Tensor]
"""L_true: (n,) parameters to a scalar, made of torch functions."""

Mixing = Callable[[np.random.Generator, int], "Float64[np.ndarray, ' size']"]
"""Draws so many rates s ≥ 0 with k(q) = k(0)·E exp(s q)."""

_FEATURES_PER_DIMENSION = 64
_LEAST_FEATURES = 1024

_MATRICES = 6
"""Matrices of the joint dimension held at the fullest moment, the blocks' tensors among them."""

_REFUSAL_PROBABILITY = 1e-9
"""How rarely rates that do have the kernel's law are refused."""


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
        DataError: If there are more eigenvalues than dimensions, or the minimum is no point.
    """
    n = whole("n", n, 1)
    values = real_array("eigenvalues", eigenvalues, dimensions=1)
    middle = np.zeros(n) if minimum is None else real_array("minimum", minimum, dimensions=1)
    if len(values) > n or len(middle) != n:
        given = f"{len(values)} eigenvalues and a minimum of {len(middle)} entries"
        raise DataError(f"{given} do not fit into n = {n} dimensions")
    draw = rng.stream(whole("seed", seed), "true-loss", n)
    # the signs make QR's basis uniform (Mezzadri 2007)
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
        cosine, sine = self._waves(w)
        return cosine @ self.amplitudes[:, 0] + sine @ self.amplitudes[:, 1]

    def __call__(self, w: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
        """L_emp = L_true + ε, differentiable by torch.

        Args:
            w: (n,) or (batch, n) float64 points.

        Returns:
            A scalar or (batch,) values.
        """
        return self._with_true(self.noise(w), lambda loss: loss, w)

    def gradient(self, w: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """∇L_emp: the waves' in closed form, that of L_true by torch.

        Args:
            w: (n,) or (batch, n) float64 points.

        Returns:
            (n,) or (batch, n).
        """
        cosine, sine = self._waves(w)
        slope = cosine * self.amplitudes[:, 1] - sine * self.amplitudes[:, 0]
        return self._with_true(slope @ self.frequencies, torch.func.grad, w)

    def hessian(self, w: Float[Tensor, " n"]) -> Float[Tensor, "n n"]:
        """∇²L_emp at one point, one matrix product; the closed form that ``hr.hessian`` must meet.

        Args:
            w: (n,) float64 point.

        Returns:
            (n, n).

        Raises:
            DataError: If w is no single point of the surface.
        """
        cosine, sine = self._waves(w)
        if w.ndim != 1:
            raise DataError(f"a Hessian belongs to one point (n,), got {tuple(w.shape)}")
        weight = -cosine * self.amplitudes[:, 0] - sine * self.amplitudes[:, 1]
        found = (self.frequencies.T * weight) @ self.frequencies
        return self._with_true(found, torch.func.hessian, w)

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
        self._waves(point)
        model = _Waves(point, self.true_loss)
        return Problem(model, _mean_wave, (self.frequencies, self.features * self.amplitudes))

    def _with_true(
        self, noise: Tensor, derivative: Callable[[TrueLoss], TrueLoss], w: Tensor
    ) -> Tensor:
        """What the waves give, and the same derivative of L_true."""
        if self.true_loss is None:
            return noise
        function = derivative(self.true_loss)
        return noise + (function(w) if w.ndim == 1 else torch.vmap(function)(w))

    def _waves(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """cos(ω_j·w) and sin(ω_j·w)."""
        n = self.dimension
        if not isinstance(w, Tensor) or w.ndim not in (1, 2) or w.shape[-1] != n:
            shape = tuple(w.shape) if isinstance(w, Tensor) else type(w).__name__
            raise DataError(f"points must be a tensor ({n},) or (batch, {n}), got {shape}")
        if w.dtype != torch.float64:
            raise DataError(f"points must be float64, got {w.dtype}; use w.double()")
        phase = w @ self.frequencies.T
        return phase.cos(), phase.sin()


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
        mixing: Draws the kernel's rates s instead, for kernels given as a function, whose spectral
            measure is not known. What it draws is compared with the kernel.

    Returns:
        The surface; the same arguments give the same one.

    Raises:
        DataError: If the covariance is not stationary, its spectral measure is not known, the rates
            of ``mixing`` are not those of the kernel, or the frequencies do not fit in memory.
    """
    require_stationary(cov)
    n = whole("n", n, 1)
    given = max(_LEAST_FEATURES, _FEATURES_PER_DIMENSION * n) if features is None else features
    count = whole("features", given, 1)
    if true_loss is not None and not callable(true_loss):
        raise DataError(f"true_loss must be callable, got {type(true_loss).__name__}")
    # the frequencies and one copy
    what = f"the frequencies in {n:,} dimensions"
    require_memory(what, count, 2 * 8 * n, "Take fewer features", power=1)
    draw = rng.stream(whole("seed", seed), "surface", whole("index", index))
    rates = _mixed(cov, mixing, count, draw) if mixing else cov.kernel.rates(count, draw)
    frequencies = draw.normal(size=(count, n))
    frequencies *= np.sqrt(rates)[:, None]
    size = np.sqrt(float(cov.derivative(0, 0.0)) / count)
    amplitudes = size * draw.normal(size=(count, 2))
    settings = {**cov.settings, "n": n, "features": count, "seed": int(seed), "index": int(index)}
    waves = torch.from_numpy(frequencies), torch.from_numpy(amplitudes)
    return RandomFeatureSurface(*waves, true_loss, settings)


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


class Jets(NamedTuple):
    """Joint samples at m points.

    Attributes:
        values: (samples, m), ε.
        gradients: (samples, m, n), ∇ε.
        hessians: (samples, m, n, n), ∇²ε.
    """

    values: Float64[np.ndarray, "samples m"]
    gradients: Float64[np.ndarray, "samples m n"]
    hessians: Float64[np.ndarray, "samples m n n"]


def sample_jets(cov: Stationary, points: ArrayLike, samples: int = 1, seed: int = 0) -> Jets:
    """Values, gradients and Hessians of one process at several points, jointly.

    Exact: a normal vector with the covariance matrix of :meth:`Stationary.joint`. Its dimension
    m(1 + n + n(n+1)/2) makes this the tool for few points in few dimensions;
    :func:`random_surface` is that for many.

    Args:
        cov: A stationary covariance.
        points: (m, n) points; coincident ones get the same numbers, to half the digits.
        samples: How many independent surfaces.
        seed: Of the run.

    Returns:
        The samples.
    """
    require_stationary(cov)
    at = real_array("points", points, dimensions=2)
    samples, (m, n) = whole("samples", samples, 1), at.shape
    block = 1 + n + n * (n + 1) // 2
    what = f"values, gradients and second derivatives at {m} points in {n} dimensions"
    advice = "Take fewer points or dimensions, or random_surface"
    require_memory(what, m * block, 8 * _MATRICES, advice)
    root = covariance_root(cov.joint(at))
    draw = rng.stream(whole("seed", seed), "jets")
    flat = (draw.normal(size=(samples, root.shape[1])) @ root.T).reshape(samples, m, block)
    hessians = np.empty((samples, m, n, n))
    rows, columns = np.triu_indices(n)
    hessians[..., rows, columns] = flat[..., 1 + n :]
    hessians[..., columns, rows] = flat[..., 1 + n :]
    return Jets(flat[..., 0].copy(), flat[..., 1 : 1 + n].copy(), hessians)


def covariance_root(covariance: Float64[np.ndarray, "n n"]) -> Float64[np.ndarray, "n r"]:
    """R with R Rᵀ the covariance, which may be singular.

    Components are scaled to variance one first, so that small ones keep their digits.

    Args:
        covariance: (n, n) symmetric, positive semi-definite to rounding.

    Returns:
        (n, r) with r the rank to rounding.

    Raises:
        DataError: If an eigenvalue is negative beyond rounding.
    """
    size = np.sqrt(np.diag(covariance))
    scale = np.where(size > 0, size, 1.0)
    values, vectors = eigh(covariance / np.outer(scale, scale))
    # a dense symmetric eigensolver's error, and that of the entries, n ε ‖C‖ each
    floor = 4 * len(values) * np.finfo(float).eps * max(values[-1], 0.0)
    if values[0] < -floor:
        what = f"not positive semi-definite, its correlations have the eigenvalue {values[0]:.3g}"
        raise DataError(f"the covariance is {what}: k is no covariance in so many dimensions")
    kept = values > floor
    return scale[:, None] * vectors[:, kept] * np.sqrt(values[kept])


def require_memory(what: str, count: int, each: int, advice: str, power: int = 2) -> None:
    """Refuse what does not fit into the free memory of the host.

    Args:
        what: Is to be held, in the plural.
        count: How many numbers a side.
        each: Bytes; ``each * count**power`` are needed.
        advice: What to do.
        power: 2 for a matrix, 1 for a vector.

    Raises:
        DataError: If it does not fit.
    """
    needed, free = each * count**power, free_host_memory()
    if needed > free:
        enough = free // each if power == 1 else math.isqrt(free // each)
        raise DataError(
            f"{what} are {count:,}: that needs {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB "
            f"are free, enough for {enough:,}. {advice}"
        )


class TrueLosses(NamedTuple):
    """L_true at three points of one trajectory.

    Attributes:
        last: At the last iterate.
        average: At the mean of all iterates.
        tail_average: At the mean of the last ones.
    """

    last: float
    average: float
    tail_average: float


def descend(
    surface: RandomFeatureSurface,
    start: ArrayLike,
    lr: float,
    steps: int,
    *,
    weight_decay: float = 0.0,
    noise: float = 0.0,
    damping: float | None = None,
    seed: int = 0,
) -> Float64[np.ndarray, "T P"]:
    """Gradient descent on L_emp, w ← w - αA(∇L_emp + λw + σ·normal).

    Args:
        surface: The loss surface.
        start: (P,) first point.
        lr: Learning rate α.
        steps: How many steps.
        weight_decay: λ.
        noise: σ, standard deviation of each component of an independent gradient noise.
        damping: δ of A = (|H| + δI)⁻¹, with |H| the Hessian of L_emp at the iterate, its
            eigenvalues in magnitude; None for A = I.
        seed: Of the noise.

    Returns:
        (steps, P) iterates, the start not among them.

    Raises:
        DataError: If an argument is out of range or the iterates diverge.
    """
    w = torch.from_numpy(real_array("start", start, dimensions=1))
    lr, steps = real("lr", lr, above=0), whole("steps", steps, 1)
    decay, sigma = real("weight_decay", weight_decay, least=0), real("noise", noise, least=0)
    delta = None if damping is None else real("damping", damping, above=0)
    draw = rng.stream(whole("seed", seed), "descent")
    found = np.empty((steps, len(w)))
    for step in range(steps):
        gradient = surface.gradient(w) + decay * w
        if sigma:
            gradient = gradient + sigma * torch.from_numpy(draw.normal(size=len(w)))
        if delta is not None:
            values, vectors = torch.linalg.eigh(surface.hessian(w))
            gradient = vectors @ ((vectors.T @ gradient) / (values.abs() + delta))
        w = w - lr * gradient
        if not bool(torch.isfinite(w).all()):
            rule = "a quadratic of largest eigenvalue h needs lr < 2/h"
            raise DataError(f"the iterates diverge at step {step + 1}; {rule}, got lr = {lr:g}")
        found[step] = w.numpy()
    return found


def iterate_average(points: ArrayLike, tail: float = 1.0) -> Float64[np.ndarray, " P"]:
    """Mean of the last part of a trajectory: iterate averaging, or tail averaging for tail < 1.

    Args:
        points: (T, P) trajectory.
        tail: Which part of it, above 0 and at most 1; at least one point is taken.

    Returns:
        (P,) mean of the last max(1, round(tail·T)) points.
    """
    at, part = real_array("points", points, dimensions=2), real("tail", tail, above=0, most=1)
    return at[-max(1, round(part * len(at))) :].mean(axis=0)


def true_losses(surface: RandomFeatureSurface, points: ArrayLike, tail: float = 0.5) -> TrueLosses:
    """L_true at the last iterate, at the iterate average and at the tail average.

    Args:
        surface: With a true loss.
        points: (T, P) trajectory.
        tail: The part that tail averaging takes.

    Returns:
        The three.

    Raises:
        DataError: If the surface has no true loss.
    """
    if surface.true_loss is None:
        raise DataError("this surface has no true_loss; give one to random_surface")
    at = real_array("points", points, dimensions=2)
    where = at[-1], iterate_average(at), iterate_average(at, tail)
    return TrueLosses(*(float(surface.true_loss(torch.from_numpy(w.copy()))) for w in where))


def _mixed(
    cov: Stationary, mixing: Mixing, size: int, generator: np.random.Generator
) -> Float64[np.ndarray, " size"]:
    """Rates that a user draws: the mean of exp(s q) is k(q)/k(0), within Hoeffding's inequality."""
    rates = np.asarray(mixing(generator, size), dtype=np.float64)
    if rates.shape != (size,) or not np.isfinite(rates).all() or (rates < 0).any():
        wanted = f"{size} finite rates s >= 0 with k(q) = k(0) E exp(s q)"
        raise DataError(f"mixing(generator, {size}) must return {wanted}, got shape {rates.shape}")
    variance = cov.derivative(0, 0.0)
    points = -variance / cov.derivative(1, 0.0) * np.array([0.25, 1.0, 4.0])
    # exp(s q) lies in [0, 1]: P(error > t) < 2 exp(-2 size t²)
    allowed = np.sqrt(np.log(2 * len(points) / _REFUSAL_PROBABILITY) / (2 * size))
    for q in points:
        found, wanted = np.exp(rates * q).mean(), cov.derivative(0, q) / variance
        if abs(found - wanted) > allowed:
            raise DataError(
                f"mixing draws rates of another kernel: E exp(s q) = {found:.4f} at q = {q:.4g}, "
                f"but k(q)/k(0) = {wanted:.4f}; frequencies are √s·N(0, I), so give s, not √s"
            )
    return rates
