"""Cross-validation stability: what becomes of a solution when one sample is left out.

Poggio, Banburski and Liao 2020, §4, argue that gradient flow selects minimum-norm solutions, that
these are the most stable ones when a sample is left out, and that stability bounds the expected
error. Measured here in two settings: along gradient flows of bias-free networks under the
exponential loss, and for the square loss, where everything is known in closed form.

*Square loss.* X has n rows. Gradient flow of ‖Xw - y‖²/2 from w_0 is
w(t) = w_0 + X⁺(1 - e^{-XXᵀt})(y - X w_0), and ends in X⁺y plus the part of w_0 that X doesn't see:
the interpolant that is nearest to w_0, for w_0 = 0 the one of least norm. What it gives at a sample
that is left out follows from one inverse (Allen 1974; Golub, Heath and Wahba 1979): for n < d and
r = y - X w_0 the error there is -(K⁻¹r)_i/(K⁻¹)_ii, K = XXᵀ; for n > d it is minus the residual
over 1 - h_i, h_i the leverage. Noise of variance σ² in y moves w by σ² Tr (XXᵀ)⁺ in the mean
square. For independent standard normal elements of X that is σ² n/(d - n - 1) if d > n + 1 and
σ² d/(n - d - 1) if n > d + 1 (Hastie, Montanari, Rosset and Tibshirani 2022): stability is lost
where n is close to d.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hessrmt import rng
from hessrmt.checks import one_of, real, real_array, whole
from hessrmt.errors import DataError
from hessrmt.generalization import bias_free
from hessrmt.generalization.flow import Flow, gradient_flow, time_grid
from hessrmt.results import Result

if TYPE_CHECKING:
    from jaxtyping import Float64
    from numpy.typing import ArrayLike

    from hessrmt.generalization.bias_free import Inputs, Layers

    Times = Float64[np.ndarray, " T"]
    Draws = Float64[np.ndarray, "D R"]
    Weights = Float64[np.ndarray, " d"]
    Values = Float64[np.ndarray, " n"]


@dataclass(frozen=True)
class LeaveOneOut(
    Result,
    axes={"time": "log_times instability left_out_loss left_out_error test_loss test_error margin"},
    picture="generalization.stability",
):
    """Cross-validation along gradient flows, of networks divided by the norms of their layers.

    Attributes:
        log_times: (T,) log(1 + t).
        instability: (T,) mean over samples of |ℓ_i(f^(i)) - ℓ_i(f)|, ℓ_i the loss e^{-y f} of
            sample i under the normalised network, f^(i) the network trained without it.
        left_out_loss: (T,) mean of ℓ_i(f^(i)).
        left_out_error: (T,) share of samples that f^(i) classifies wrongly.
        test_loss: (T,) mean loss of the normalised network on fresh samples.
        test_error: (T,) share of fresh samples classified wrongly.
        margin: (T,) smallest normalised margin on the training samples.
    """

    log_times: Times
    instability: Times
    left_out_loss: Times
    left_out_error: Times
    test_loss: Times
    test_error: Times
    margin: Times


def leave_one_out(
    layers: Sequence[ArrayLike],
    x: ArrayLike,
    y: ArrayLike,
    fresh: tuple[ArrayLike, ArrayLike],
    *,
    kind: str = "descent",
    loss: str = "exponential",
    activation: str = "smooth-relu",
    log_time: float = 20.0,
    saved: int | ArrayLike = 41,
    rtol: float = 1e-6,
    atol: float = 1e-8,
) -> LeaveOneOut:
    """Follow the flow of all samples, and without each of them, from the same start.

    Args:
        layers: W_1 ... W_K at t = 0.
        x: (B, d) inputs.
        y: (B,) labels -1 and 1.
        fresh: (M, d) inputs and (M,) labels that were not trained on.
        kind: Of the flow.
        loss: ``"exponential"`` or ``"logistic"``.
        activation: Positively homogeneous.
        log_time: log(1 + t) at the end.
        saved: How many times are saved, or (T,) values of log(1 + t).
        rtol: Relative tolerance of a step.
        atol: Absolute tolerance of a step.

    Returns:
        Stability and errors along the flow.

    Raises:
        DataError: If there are fewer than two samples, or the loss has several outputs.
    """
    one_of("loss", loss, ("exponential", "logistic"))
    inputs, labels = real_array("x", x, dimensions=2), np.asarray(y, dtype=float)
    if len(inputs) < 2:
        raise DataError("leaving one sample out needs at least two")
    given = {"kind": kind, "loss": loss, "activation": activation, "rtol": rtol, "atol": atol}
    given["saved"] = time_grid(saved, log_time)
    whole_flow = gradient_flow(layers, inputs, labels, **given)
    fresh_x = real_array("fresh inputs", fresh[0], dimensions=2)
    fresh_y = bias_free.checked_labels(loss, fresh[1], len(fresh_x), 1)
    left_out = np.empty((len(whole_flow.log_times), len(inputs)))
    for i in range(len(inputs)):
        kept = np.arange(len(inputs)) != i
        flow = gradient_flow(layers, inputs[kept], labels[kept], **given)
        left_out[:, i] = normalized_margins(flow, inputs[[i]], labels[[i]])[:, 0]
    within = np.exp(-whole_flow.margins)
    without = np.exp(-left_out)
    tested = normalized_margins(whole_flow, fresh_x, fresh_y)
    return LeaveOneOut(
        whole_flow.log_times,
        np.abs(without - within).mean(axis=1),
        without.mean(axis=1),
        (left_out <= 0).mean(axis=1),
        np.exp(-tested).mean(axis=1),
        (tested <= 0).mean(axis=1),
        whole_flow.margin,
    )


def normalized_margins(flow: Flow, x: Inputs, y: Values) -> Float64[np.ndarray, "T M"]:
    """Margins y f(V; x) along a flow of samples that it wasn't trained on.

    Args:
        flow: Of a network with one output.
        x: (M, d) inputs.
        y: (M,) labels -1 and 1.

    Returns:
        (T, M) margins.
    """
    layers: list[Layers] = list(zip(*flow.directions, strict=True))
    return np.array([y * bias_free.forward(v, x, flow.activation)[:, 0] for v in layers])


def square_flow(
    x: ArrayLike, y: ArrayLike, time: float = np.inf, start: ArrayLike | None = None
) -> Weights:
    """Where the gradient flow of ‖Xw - y‖²/2 is at a time.

    Args:
        x: (n, d) X.
        y: (n,) targets.
        time: t, possibly infinite.
        start: (d,) w_0; None for zero.

    Returns:
        (d,) w(t).

    Raises:
        DataError: If shapes don't fit.
    """
    inputs = real_array("x", x, dimensions=2)
    targets = real_array("y", y, dimensions=1)
    first = np.zeros(inputs.shape[1]) if start is None else real_array("start", start, dimensions=1)
    if len(targets) != len(inputs) or len(first) != inputs.shape[1]:
        shapes = f"{targets.shape} targets and a start {first.shape} for X {inputs.shape}"
        raise DataError(f"{shapes}; expected (n,), (d,) and (n, d)")
    if np.isnan(time) or time < 0:
        raise DataError(f"time must be a number from 0 on, possibly infinite, got {time}")
    u, s, v = np.linalg.svd(inputs, full_matrices=False)
    seen = s > s.max(initial=0) * max(inputs.shape) * np.finfo(float).eps
    u, s, v = u[:, seen], s[seen], v[seen]
    factor = -np.expm1(-(s**2) * time) / s if np.isfinite(time) else 1 / s
    return first + v.T @ (factor * (u.T @ (targets - inputs @ first)))


def left_out_errors(x: ArrayLike, y: ArrayLike, start: ArrayLike | None = None) -> Values:
    """What least squares give at each sample when it is left out, less its target.

    Args:
        x: (n, d) X of full rank, n and d different and n at least 2.
        y: (n,) targets.
        start: (d,) where gradient flow starts; None for zero.

    Returns:
        (n,) errors f^(i)(x_i) - y_i.

    Raises:
        DataError: If X hasn't full rank, or n = d or n = d + 1, where leaving one out changes which
            of the two formulas holds.
    """
    inputs, targets = real_array("x", x, dimensions=2), real_array("y", y, dimensions=1)
    n, d = inputs.shape
    if n in {d, d + 1} or n < 2 or np.linalg.matrix_rank(inputs) < min(n, d):
        raise DataError(f"X {inputs.shape} must have full rank, n neither d nor d + 1, and n > 1")
    first = np.zeros(d) if start is None else real_array("start", start, dimensions=1)
    residual = targets - inputs @ first
    if n < d:
        inverse = np.linalg.inv(inputs @ inputs.T)
        return -(inverse @ residual) / np.diag(inverse)
    q = np.linalg.qr(inputs)[0]
    leverage = np.square(q).sum(axis=1)
    return -(residual - q @ (q.T @ residual)) / (1 - leverage)


STARTS = ("zero", "random", "truth")


@dataclass(frozen=True)
class SquareLossStudy(
    Result,
    axes={
        "dimension": "dimensions expected_sensitivity",
        "dimension draw": "sensitivity off",
        "start dimension draw": "error instability left_out",
    },
    picture="generalization.square_loss",
):
    """Least squares by gradient flow from three starts, over random regression problems.

    Attributes:
        samples: n.
        noise: σ, of the targets.
        dimensions: (D,) d.
        starts: ``"zero"``, the pseudoinverse; ``"random"``, a random w_0 as long as the truth;
            ``"truth"``, the truth itself.
        error: (3, D, R) ‖w - w*‖², the expected square error without the noise of the targets.
        instability: (3, D, R) mean square change of the prediction at a sample when it is left out.
        left_out: (3, D, R) mean square error at samples that are left out.
        sensitivity: (D, R) Tr (XXᵀ)⁺, the mean square of w's change for noise of variance 1.
        expected_sensitivity: (D,) its mean over X; NaN for |n - d| < 2, where it has none.
        off: (D, R) relative distance of the flow's end from LAPACK's solution of least norm.
    """

    samples: int
    noise: float
    dimensions: Float64[np.ndarray, " D"]
    starts: tuple[str, ...]
    error: Float64[np.ndarray, "3 D R"]
    instability: Float64[np.ndarray, "3 D R"]
    left_out: Float64[np.ndarray, "3 D R"]
    sensitivity: Draws
    expected_sensitivity: Float64[np.ndarray, " D"]
    off: Draws


def square_loss_study(
    samples: int = 30,
    dimensions: Sequence[int] = (5, 10, 20, 25, 40, 60, 120, 240),
    *,
    noise: float = 0.3,
    draws: int = 200,
    seed: int = 0,
) -> SquareLossStudy:
    """Stability, norm and expected error of least squares for random problems.

    X has independent standard normal elements, the truth w* is uniform on the unit sphere, and
    y = X w* + σ times standard normal noise.

    Args:
        samples: n.
        dimensions: d; none n - 1, n, n + 1.
        noise: σ.
        draws: R problems of each dimension.
        seed: Of the run.

    Returns:
        What was found for each start.

    Raises:
        DataError: If a setting cannot be used.
    """
    n, count = whole("samples", samples, 3), whole("draws", draws, 1)
    sizes = [whole("a dimension", d, 1) for d in dimensions]
    if not sizes or {n - 1, n, n + 1} & set(sizes):
        raise DataError(f"dimensions must not be {n - 1}, {n} or {n + 1}: no moments exist there")
    sigma = real("noise", noise, least=0)
    found = np.empty((3, len(STARTS), len(sizes), count))
    sensitivity, off = np.empty((2, len(sizes), count))
    for i, d in enumerate(sizes):
        for r in range(count):
            draw = rng.stream(seed, "least squares", n, d, r)
            x = draw.normal(size=(n, d))
            truth, other = draw.normal(size=(2, d))
            truth /= np.linalg.norm(truth)
            y = x @ truth + sigma * draw.normal(size=n)
            starts = np.zeros(d), other / np.linalg.norm(other), truth
            for s, start in enumerate(starts):
                w, out = square_flow(x, y, start=start), left_out_errors(x, y, start)
                changes = out - (x @ w - y)
                of = np.square(w - truth).sum(), np.square(changes).mean(), np.square(out).mean()
                found[:, s, i, r] = of
            sensitivity[i, r] = (1 / np.linalg.svd(x, compute_uv=False) ** 2).sum()
            least = np.linalg.lstsq(x, y, rcond=None)[0]
            off[i, r] = np.linalg.norm(square_flow(x, y) - least) / np.linalg.norm(least)
    d = np.array(sizes, dtype=float)
    expected = np.minimum(n, d) / (np.abs(d - n) - 1)
    error, instability, left_out = found
    of_starts = error, instability, left_out
    return SquareLossStudy(n, sigma, d, STARTS, *of_starts, sensitivity, expected, off)
