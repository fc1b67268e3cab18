"""Products by finite differences: within their stated errors of the dense Hessian, or refused."""

import h5py
import numpy as np
import pytest
import torch
from samples import Once, by_double_backward, labelled, network
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel

import hessrmt as hr
from hessrmt.curvature.differences import Differences
from hessrmt.curvature.operators import CurvatureOperator
from hessrmt.curvature.stochastic import traces
from hessrmt.errors import NonFiniteError, ProblemError

FD = "finite-difference"
USED = []
"""Names of the attention kernels that were run."""


class Block(nn.Module):
    """Attention by torch's flash kernel, and a layer with GELU."""

    def __init__(self, width=4):
        super().__init__()
        self.packed, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm, self.wide = nn.LayerNorm(width), nn.Linear(width, 2 * width)
        self.narrow, self.head = nn.Linear(2 * width, width), nn.Linear(width, 3)

    def forward(self, x):
        q, k, v = (part[:, None] for part in self.packed(self.norm(x)).chunk(3, dim=-1))
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        USED.append(type(mixed.grad_fn).__name__)
        x = x + self.out(mixed[:, 0])
        return self.head((x + self.narrow(F.gelu(self.wide(x)))).mean(dim=1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


def conv_net(between=nn.Softplus, pool=nn.AvgPool2d):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), between(), pool(2), nn.Conv2d(4, 5, 2), between(), nn.Flatten(),
        nn.Linear(20, 3),
    )  # fmt: skip


SMOOTH = {
    "tanh": (lambda: network(6, 9, 7, 3), (12, 6)),
    "transformer": (Block, (8, 5, 4)),
    "convolutions": (conv_net, (8, 1, 8, 8)),
    "lstm": (Recurrent, (8, 4, 3)),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.SiLU(), nn.Linear(12, 3)),
        (12, 6),
    ),
}
KINKED = {
    "relu": (lambda: network(6, 16, 16, 3, kind=nn.ReLU), (32, 6)),
    "max-pooling": (lambda: conv_net(nn.Tanh, nn.MaxPool2d), (16, 1, 8, 8)),
    "leaky": (lambda: network(6, 10, 10, 10, 3, kind=nn.LeakyReLU), (32, 6)),
}


def problem(kind, dtype="float64"):
    """Parameters and data are numbers of that precision."""
    make, shape = kind
    torch.manual_seed(0)
    precision = getattr(torch, dtype)
    x, y = labelled(shape, 3)
    return hr.Problem(make().to(precision), "cross-entropy", (x.to(precision), y))


def exact_levels(given):
    return np.linalg.eigvalsh(hr.hessian(given))


def within(found, exact, count, which="LM"):
    """Every value is that of its place, up to its bound and LAPACK's own error."""
    order = {"LA": -exact, "SA": exact, "LM": -np.abs(exact)}[which]
    expected = np.sort(exact[np.argsort(order, kind="stable")[:count]])
    slack = len(exact) * np.finfo(float).eps * np.abs(exact).max()
    assert found.products_by == FD
    assert len(found) == count
    assert (np.abs(found.values - expected) <= found.bounds + slack).all()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", SMOOTH)
def test_smooth_networks_within_their_bounds(kind, dtype):
    given = problem(SMOOTH[kind], dtype)
    exact = exact_levels(given)
    hessian = hr.Hessian(given, products=FD, dtype=dtype)
    for count, which in ((6, "LM"), (4, "SA")):
        found = hr.eigsh(hessian, count, which, tolerance=1e-12)
        within(found, exact, count, which)
        # the best a difference of fourth order can do is ε^(4/5); four digits are left for the
        # constant of the truncation, of rounding, and for probability 0.999
        best = torch.finfo(hessian.dtype).eps ** 0.8
        assert found.bounds.max() <= 1e4 * best * np.abs(exact).max()
    assert found.check <= 1e4 * best


@pytest.mark.parametrize("kind", KINKED)
def test_kinks_are_named_in_single_precision(kind):
    with pytest.raises(ProblemError, match="kinks"):
        hr.Hessian(problem(KINKED[kind], "float32"), products=FD, dtype="float32")


@pytest.mark.parametrize("kind", KINKED)
def test_below_the_kinks_in_double_precision(kind):
    given = problem(KINKED[kind])
    hessian = hr.Hessian(given, products=FD)
    assert hessian._differences.kinked
    within(hr.eigsh(hessian, 6, "LM"), exact_levels(given), 6)


def test_products_and_their_measured_errors():
    given = problem(SMOOTH["tanh"])
    exact, hessian = torch.from_numpy(hr.hessian(given)), hr.Hessian(given, products=FD)
    rows = torch.cat([torch.eye(len(exact))[::17], torch.randn(3, len(exact))]).to(exact)
    units = rows / rows.norm(dim=1, keepdim=True)
    errors = (hessian(units) - units @ exact).norm(dim=1)
    assert (errors <= hessian.truncation(units) + hessian.rounding()).all()
    # lengths are taken out and put back; of nothing comes nothing
    assert torch.allclose(hessian(1e3 * units), 1e3 * hessian(units), rtol=1e-9, atol=1e-9)
    assert not hessian(torch.zeros_like(rows[:2])).any()
    assert (hessian @ np.zeros((len(exact), 0))).shape == (len(exact), 0)
    diagonal = hessian.diagonal() - exact.diagonal()
    allowed = hessian.truncation(torch.eye(len(exact)).to(exact)) + hessian.rounding()
    assert (diagonal.abs() <= allowed).all()


def test_the_users_own_kernels_are_run():
    given = problem(SMOOTH["transformer"])
    USED.clear()
    hr.Hessian(given, products=FD)
    assert "ScaledDotProductFlashAttentionForCpuBackward0" in USED
    USED.clear()
    hr.Hessian(given, linearise=False)  # what can be differentiated twice
    assert "ScaledDotProductFlashAttentionForCpuBackward0" not in USED[-1:]


class FusedGELU(torch.autograd.Function):
    """GELU with the analytic derivative; nothing can be differentiated twice."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.special.ndtr(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        (x,) = ctx.saved_tensors
        bell = torch.exp(-x.square() / 2) / (2 * torch.pi) ** 0.5
        return slope * (torch.special.ndtr(x) + x * bell)


class Fused(nn.Module):
    def __init__(self, function=FusedGELU.apply):
        super().__init__()
        self.first, self.last, self.function = nn.Linear(6, 10), nn.Linear(10, 3), function

    def forward(self, x):
        return self.last(self.function(self.first(x)))


@pytest.mark.parametrize(("own", "plain"), [(FusedGELU.apply, F.gelu), (Once.apply, torch.tanh)])
def test_kernels_without_a_second_derivative(own, plain):
    given = problem((lambda: Fused(own), (12, 6)))
    with pytest.raises(ProblemError, match="finite-difference"):
        hr.Hessian(given)
    exact = exact_levels(problem((lambda: Fused(plain), (12, 6))))
    within(hr.eigsh(hr.Hessian(given, products=FD), 8, "LM"), exact, 8)


def test_micro_batches_of_a_loader_and_blocks():
    given = problem(SMOOTH["layer norm"])
    exact = exact_levels(given)
    x, y = given.batch.inputs, given.batch.targets
    batches = [(x[a:b], y[a:b]) for a, b in ((0, 5), (5, 10), (10, 12))]
    streamed = CurvatureOperator(given.model, "cross-entropy", batches, products=FD)
    within(hr.eigsh(streamed, 5, "LM"), exact, 5)
    part = streamed.block("0.*")
    within(hr.eigsh(part, 3, "LM"), exact_levels(given.restricted("0.*")), 3)


def test_parts_that_are_read_anew(monkeypatch):
    given = problem(SMOOTH["layer norm"])
    monkeypatch.setattr(CurvatureOperator, "_room", lambda _: 1)
    hessian = hr.Hessian(given, batch=4, products=FD)
    assert (hessian.kept, hessian.parts) == (1, 3)
    within(hr.eigsh(hessian, 5, "LM"), exact_levels(given), 5)


def test_sums_with_other_matrices_keep_the_error():
    given = problem(SMOOTH["tanh"])
    hessian = hr.Hessian(given, products=FD)
    shifted = hessian - 3.0 * hr.Identity(hessian.dimension)
    found = hr.eigsh(shifted, 4, "SA")
    within(found, exact_levels(given) - 3.0, 4, "SA")
    assert found.round_off >= hessian.rounding()


def test_no_curvature_is_none_within_the_bound():
    given = hr.Problem(nn.Linear(5, 3).double(), lambda o, _: o.mean(), labelled((8, 5), 3))
    found = hr.eigsh(hr.Hessian(given, products=FD), 4, "LM")
    assert (np.abs(found.values) <= found.bounds).all()
    assert found.bounds.max() <= 1e-9
    edges = hr.extremal_eigenvalues(hr.Hessian(given, products=FD), top=3)
    assert not edges.certified.any()


class Wrong(Once):
    """tanh whose backward pass is half again too large."""

    @staticmethod
    def backward(ctx, slope):
        return 1.5 * Once.backward(ctx, slope)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_wrong_gradient_is_not_how_the_loss_changes(dtype):
    given = problem((lambda: Fused(Wrong.apply), (12, 6)), dtype)
    with pytest.raises(ProblemError, match="backward pass"):
        hr.Hessian(given, products=FD, dtype=dtype)


def test_a_wrong_gradient_that_is_zero_here_is_not_symmetric():
    model = Fused(Wrong.apply).double()
    x, _ = labelled((12, 6), 3)
    given = hr.Problem(model, "mse", (x, model(x).detach()))
    assert given.at(torch.float64, torch.device("cpu")).evaluate() == (0.0, 0.0)
    with pytest.raises(ProblemError, match="not those of a symmetric matrix"):
        hr.Hessian(given, products=FD)


class Noisy(nn.Linear):
    def forward(self, x):
        return super().forward(x) + torch.rand(len(x), 1).to(x) * x[:, :3]


def root(outputs, _):
    """Its gradient is infinite where an output is zero."""
    return outputs.abs().sqrt().mean()


@pytest.mark.parametrize(
    ("make", "error", "named"),
    [
        (lambda: problem((lambda: Noisy(5, 3), (8, 5))), ProblemError, "not deterministic"),
        (lambda: problem((lambda: nn.Sequential(nn.Linear(5, 3), nn.Dropout()), (8, 5))),
         ProblemError, "eval"),
        (lambda: hr.Problem(nn.Linear(5, 3, bias=False).double(), root,
                            (torch.zeros(4, 5), torch.zeros(4))), NonFiniteError, "gradient"),
    ],
)  # fmt: skip
def test_what_has_no_hessian_is_refused_as_ever(make, error, named):
    with pytest.raises(error, match=named):
        hr.Hessian(make(), products=FD)


def test_what_there_are_no_differences_for():
    given = problem(SMOOTH["tanh"])
    for kind in (hr.GaussNewton, hr.EmpiricalFisher):
        with pytest.raises(ProblemError, match="those of the Hessian"):
            kind(given, products=FD)
    with pytest.raises(ProblemError, match="finite-difference"):
        hr.Hessian(given, products="differences")


def test_the_floor_of_a_spectrum_of_differences_holds_their_error():
    for kind in SMOOTH.values():
        given = problem(kind)
        exact, found = hr.spectrum(given), hr.spectrum(hr.Hessian(given, products=FD))
        far = np.abs(found.eigenvalues - exact.eigenvalues).max()
        assert far <= found.noise_floor + exact.noise_floor
        assert found.noise_floor > exact.noise_floor


def test_densities_say_that_they_are_not_exact(tmp_path):
    given = problem(SMOOTH["tanh"])
    exact = hr.hessian(given)
    options = {"top": 3, "trace": "hutch++", "trace_products": 30}
    found = hr.density(given, 3, 20, products=FD, **options)
    plain = hr.density(given, 3, 20, **options)
    assert (found.products_by, plain.products_by) == (FD, "differentiation")
    within(found.edges, np.linalg.eigvalsh(exact), 3, "LA")
    # the nodes are those of a matrix within 2 √m e of H; so their moments, to first order
    bound = 2 * 20**0.5 * found.product_error
    moments, others = (r.quadrature.moments(1)[0][0] for r in (found, plain))
    assert abs(moments - others) <= bound
    assert found.product_error > plain.product_error
    assert "products_by=finite-difference" in repr(found.edges)
    assert found.to_dict()["edges"]["products_by"] == FD
    found.save(tmp_path / "d.h5")
    loaded = hr.load(tmp_path / "d.h5")
    assert loaded.to_dict() == found.to_dict()


def test_density_files_from_before_there_was_a_choice(tmp_path):
    hr.density(problem(SMOOTH["tanh"]), 2, 8, top=2).save(tmp_path / "d.h5")
    with h5py.File(tmp_path / "d.h5", "a") as file:
        for group in (file, file["edges"]):
            del group.attrs["products_by"]
        del file.attrs["product_error"]
    loaded = hr.load(tmp_path / "d.h5")
    assert loaded.products_by == loaded.edges.products_by == "differentiation"
    assert np.isnan(loaded.product_error)


@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
def test_errors_of_traces_hold_those_of_products(method):
    given = problem(SMOOTH["layer norm"])
    exact = hr.hessian(given)
    # enough vectors for all of the matrix: no random error is left
    found = traces(hr.Hessian(given, products=FD), 3 * len(exact), method)
    slack = len(exact) * np.finfo(float).eps * np.abs(exact).sum()
    assert found.products_by == FD
    assert abs(found.trace - exact.trace()) <= found.trace_error + slack
    assert abs(found.square - (exact**2).sum()) <= found.square_error + slack
    assert found.trace_error <= 1e-6 * np.abs(exact.trace())


def test_the_command_and_its_file(cli, digits, tmp_path):
    words = ["--model", "mlp2", "--data", digits, "--samples", "30", "--probes", "1"]
    words += ["--steps", "4", "--dtype", "float32", "--device", "cpu", "--products", FD]
    done = cli("density", *words)  # mlp2 is of ReLU
    assert done.returncode == 2
    assert "kinks" in done.stderr
    done = cli("density", *words, "--operator", "ggn")
    assert done.returncode == 2
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def make(outputs):\n"
        "    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, outputs))\n"
    )
    words[1] = "net.py:make"
    done = cli("density", *words, "--top", "2")
    assert done.returncode == 0
    assert "Not exact" in done.stdout
    assert hr.load(tmp_path / "density.h5").products_by == FD
    done = cli("density", *words[:-2], "--resume")  # of exact products
    assert done.returncode == 2
    assert "products" in done.stderr


def test_the_double_backward_reference():
    """What the other tests compare with is the Hessian of the network as it was given."""
    given = problem(SMOOTH["lstm"])
    x, y = given.batch.inputs, given.batch.targets
    plain = by_double_backward(given.model, F.cross_entropy, x, y)
    assert np.allclose(hr.hessian(given), plain, rtol=1e-9, atol=1e-12)


class Wave(nn.Module):
    """A quadratic form, and one parameter along which the loss is a fast wave."""

    def __init__(self, size, pace, height):
        super().__init__()
        self.bulk = nn.Parameter(0.01 * torch.randn(size, dtype=torch.float64))
        self.fast = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.register_buffer("curvature", torch.linspace(0, 1, size, dtype=torch.float64) ** 8)
        self.pace, self.height = pace, height

    def forward(self, x):
        """The same for all samples."""
        wave = self.height * torch.cos(self.pace * self.fast) / self.pace**2
        return 0 * x[:, :1] + (self.curvature * self.bulk**2).sum() / 2 - wave


def wave(pace, height, size=200):
    torch.manual_seed(0)
    data = torch.ones(2, 1, dtype=torch.float64), torch.zeros(2)
    problem = hr.Problem(Wave(size, pace, height), lambda out, _: out.mean(), data)
    return hr.Hessian(problem, products="finite-difference", dtype="float32")


def test_a_step_too_long_for_one_vector_is_called_that():
    """Random vectors have little of the fast parameter, its eigenvector everything."""
    with pytest.raises(ProblemError, match="step of the finite differences is too long"):
        hr.eigsh(wave(60.0, 0.3), window=(0.04, None))


@pytest.mark.parametrize(("pace", "height"), [(10.0, 0.3), (30.0, 0.3)])
def test_a_window_has_the_truncation_along_its_own_eigenvectors(pace, height):
    operator = wave(pace, height)
    found = hr.eigsh(operator, window=(0.04, None))
    stray = operator.truncation(found.vectors.T).numpy()
    assert (found.bounds >= stray).all()
    assert found.window.matched_bound >= stray.max()
    place = int(found.vectors[-1].abs().argmax())  # λ = height belongs to the fast parameter
    product = operator(found.vectors[:, place][None])[0]
    assert found.window.matched_bound >= abs(float(product[-1]) - height)


def test_a_shorter_step_for_one_vector_shows_in_the_error():
    kink = [float("inf")]

    def slopes(points, number=None):
        # λ = 1, and 2 beyond the kink
        found = points.clone()
        found[:, 0] += (points[:, 0] - kink[0]).clamp(min=0.0)
        return found if number is None else found * (1 + np.finfo(float).eps)

    ones = torch.eye(30, dtype=torch.float64)
    ways = Differences(slopes, torch.ones(30, dtype=torch.float64))
    ways.kinked, before = True, ways.rounding  # as if kinks had been seen
    kink[0] = 1 + 0.5 * ways.step
    product = ways(ones[:1])[0]
    assert float((product - ones[0]).norm()) <= ways.rounding
    assert ways.rounding == 8 * before
    ways(ones[1:])
    assert ways.rounding == 8 * before
