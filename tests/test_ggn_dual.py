"""The dual Gram matrix of the Gauss-Newton matrix, layer by layer, against dense JᵀSJ."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from network_samples import Called, at_double, mixing, network
from samples import Once, by_jacobian, labelled
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel

import hessrmt as hr
from hessrmt.backend.cpu import CpuBackend
from hessrmt.curvature import gauss_newton as ggn_module
from hessrmt.curvature import gram
from hessrmt.errors import DeviceError, ProblemError

EPS = float(np.finfo(np.float64).eps)


def assert_exact(problem, loss=F.cross_entropy):
    """The dual route was taken and its spectrum is that of dense JᵀSJ."""
    local = at_double(problem)
    expected = np.linalg.eigvalsh(by_jacobian(local.model, loss, local.inputs, local.targets))
    found = hr.spectrum(problem, device="cpu", operator="ggn")
    assert found.reduced_dimension < problem.dimension
    assert np.abs(found.eigenvalues - expected).max() <= 10 * len(expected) * EPS * expected[-1]
    return found


class Residual(nn.Module):
    def __init__(self, channels, filters, stride):
        super().__init__()
        self.first = nn.Conv2d(channels, filters, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(filters)
        self.second = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
        self.other = nn.BatchNorm2d(filters)
        self.shortcut = nn.Conv2d(channels, filters, 1, stride, bias=False)

    def forward(self, x):
        branch = self.other(self.second(torch.relu(self.norm(self.first(x)))))
        branch += self.shortcut(x)
        return branch.relu_()


def resnet(widths=(2, 4, 8), classes=4):
    """A small ResNet whose BatchNorm has statistics and affine parameters of its own."""
    torch.manual_seed(0)
    blocks, channels = [nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)], widths[0]
    blocks += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    for stage, width in enumerate(widths):
        blocks.append(Residual(channels, width, 2 if stage else 1))
        channels = width
    net = nn.Sequential(
        *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
    )
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.2)
    return net.eval()


@pytest.fixture(scope="module")
def small_resnet():
    return hr.Problem(resnet(), "cross-entropy", labelled((8, 3, 12, 12), 4))


def test_a_shrunken_resnet_against_the_dense_matrix(small_resnet):
    assert 1000 < small_resnet.dimension < 2000
    found = assert_exact(small_resnet)
    assert found.reduced_dimension == found.rank == 8 * 3
    # every parameter sits in a layer, so nothing took the slow way
    layers = gram.find_layers(at_double(small_resnet))
    assert sum(layer.row for layer in layers) == small_resnet.dimension
    assert {layer.keeps_rows for layer in layers} == {True, False}
    # the check is a residual of the size of rounding, and not of nothing
    assert 0 < found.check < 10 * small_resnet.dimension**0.5 * EPS


def test_a_tiny_working_memory_changes_nothing_but_rounding(small_resnet, monkeypatch):
    whole = hr.spectrum(small_resnet, operator="ggn")
    monkeypatch.setattr(ggn_module, "WORK_BYTES", 2**12)
    monkeypatch.setattr(gram, "_TILE", 5)
    # groups of one layer, one sample at a time, slices of outputs and ranges of coordinates
    problem = at_double(small_resnet)
    assert len(list(gram._groups(gram.find_layers(problem), 24, 8, 2**12))) > 10
    assert gram.saved_for_backward(problem.part(slice(0, 1))) > 2**12
    sliced = hr.spectrum(small_resnet, operator="ggn")
    # K is a sum of P products in another order: within its rounding, twice
    assert np.abs(whole.eigenvalues - sliced.eigenvalues).max() <= 2 * whole.noise_floor


def test_rounding_bound_holds_in_single_precision(small_resnet):
    """Float32 errors are known exactly from float64; the same formulas bound both."""
    exact = at_double(small_resnet)
    rounded = hr.Problem(  # parameters and data that float32 holds exactly
        exact.model.float(), "cross-entropy", (exact.inputs.float(), exact.targets)
    )
    double = hr.spectrum(rounded, operator="ggn")
    single = hr.spectrum(rounded, operator="ggn", dtype="float32")
    error = np.abs(double.eigenvalues - single.eigenvalues).max()
    assert 0 < error <= single.noise_floor
    ratio = single.noise_floor / double.noise_floor  # changes by an ulp are drawn anew in each
    np.testing.assert_allclose(ratio, np.finfo(np.float32).eps / EPS, rtol=0.3)


def test_rounding_of_a_gram_matrix_of_many_terms():
    """The formula against products of float32 rows whose float64 product is known."""
    draw = torch.Generator().manual_seed(1)
    for terms in (1_000, 100_000):
        rows = torch.randn(40, terms, generator=draw)
        exact = rows.double() @ rows.double().T
        error = torch.linalg.matrix_norm((rows @ rows.T).double() - exact, ord=2)
        assert 0 < float(error) <= ggn_module.rounding_of_gram((rows @ rows.T), terms)


@pytest.mark.parametrize("name", ["attention", "depthwise"])
def test_one_sample_and_single_precision(name):
    net, x, y = network(name)
    with sdpa_kernel(SDPBackend.MATH):
        assert_exact(hr.Problem(net, "cross-entropy", (x[:1], y[:1])))
    net = net.float()  # parameters that both precisions hold exactly
    problem = hr.Problem(net, "cross-entropy", (x, y))
    single = hr.spectrum(problem, operator="ggn", dtype="float32")
    double = hr.spectrum(problem, operator="ggn")
    assert single.reduced_dimension == double.reduced_dimension
    # the floor is of the formed matrix; rounding the data to float32 moves G by about as much
    assert np.abs(single.eigenvalues - double.eigenvalues).max() <= 3 * single.noise_floor
    assert 0 < single.check < 1e-5


def test_one_block_only():
    net, x, y = network("strided")
    problem = hr.Problem(net, "cross-entropy", (x, y), only="0.*")
    assert [layer.name for layer in gram.find_layers(at_double(problem))] == ["0"]
    assert_exact(problem)


def coupled(outputs, targets):
    """Convex in the outputs, but their mean over the batch enters."""
    return outputs.square().mean() + outputs.mean(0).square().sum() + torch.logsumexp(outputs, 0)[0]


def test_samples_that_the_network_is_certain_of_keep_their_digits():
    """The curvature of softmax by differentiation would have an error of ε/B, not ε p(1 - p)/B."""
    net, x, y = network("mlp")
    with torch.no_grad():
        net[2].bias.copy_(torch.tensor([30.0, 0.0, -3.0]))
    found = hr.spectrum(hr.Problem(net, "cross-entropy", (x, y)), operator="ggn")
    assert found.reduced_dimension == found.rank == 14
    assert found.eigenvalues[-1] < 1e-11

    exact = at_double(hr.Problem(net, "cross-entropy", (x, y)))
    theta = exact.theta
    jacobian = torch.autograd.functional.jacobian(exact.outputs, theta)
    p = np.exp(np.asarray(exact.outputs(theta).detach(), dtype=np.longdouble))
    p /= p.sum(1, keepdims=True)
    rows = []
    for b in range(len(x)):
        columns = np.sqrt(p[b] / len(x)) * (np.eye(3) - p[b][:, None])
        rows.append(columns.T.astype(np.float64) @ jacobian[b].numpy())
    singular = np.linalg.svd(np.concatenate(rows), compute_uv=False)[:14]
    # a relative error of |f| ε in p, f = 30, and the SVD's own
    assert np.abs(found.resolved[::-1] - singular**2).max() <= 1e3 * EPS * singular[0] ** 2


@pytest.mark.parametrize(
    "how",
    [
        lambda h: h - h.mean(0),
        lambda h: h + torch.roll(h, 1, 0),
        lambda h: torch.softmax(h @ h.T, -1) @ h,
        lambda h: h * len(h),
    ],
    ids=["mean", "roll", "attention over samples", "length"],
)
def test_networks_that_mix_samples_take_the_whole_batch(how):
    torch.manual_seed(0)
    pair = labelled((7, 6), 3)
    net = mixing(how)
    problem = hr.Problem(net, "cross-entropy", pair)
    local = at_double(problem)
    assert not gram.samples_are_apart(local, local.outputs(local.theta).detach())
    assert assert_exact(problem).reduced_dimension == 14
    assert_exact(hr.Problem(net, coupled, pair), coupled)


def test_a_network_that_mixes_unseen_is_refused(monkeypatch):
    """The trial is of a few samples; what it cannot see, the check does."""
    monkeypatch.setattr(ggn_module, "samples_are_apart", lambda problem, outputs: True)
    torch.manual_seed(0)
    problem = hr.Problem(mixing(lambda h: h - h.mean(0)), "cross-entropy", labelled((7, 6), 3))
    with pytest.raises(ProblemError, match="does not act as the Gauss-Newton matrix"):
        hr.spectrum(problem, operator="ggn")


def test_a_wrong_gram_matrix_is_refused(small_resnet, monkeypatch):
    def spoiled(*arguments, **options):
        found = gram.gram(*arguments, **options)
        found[3, 5] += 1e-9 * found[3, 3]
        found[5, 3] = found[3, 5]
        return found

    monkeypatch.setattr(ggn_module, "gram", spoiled)
    with pytest.raises(ProblemError, match="No level is reported"):
        hr.spectrum(small_resnet, operator="ggn")


def test_without_second_derivatives_there_is_no_check():
    spectra = []
    for how in (Once.apply, torch.tanh):
        torch.manual_seed(0)
        problem = hr.Problem(mixing(how), "cross-entropy", labelled((6, 6), 3))
        spectra.append(hr.spectrum(problem, operator="ggn"))
    found, expected = spectra
    assert np.isnan(found.check)
    np.testing.assert_allclose(found.eigenvalues, expected.eigenvalues, atol=expected.noise_floor)


def test_nothing_depends_on_the_parameters():
    net = Called(lambda _, x: x[:, :3], layer=nn.Linear(6, 3))
    found = hr.spectrum(hr.Problem(net, "cross-entropy", labelled((4, 6), 3)), operator="ggn")
    assert found.rank == 0
    assert found.check == 0
    assert not found.eigenvalues.any()


def test_too_little_memory_is_refused_with_numbers(small_resnet, monkeypatch):
    monkeypatch.setattr(CpuBackend, "free_memory", lambda self: 50_000)
    with pytest.raises(DeviceError, match=r"Gram matrix \(32 x 32\).*GiB.*smaller batch"):
        hr.spectrum(small_resnet, device="cpu", operator="ggn")


def test_a_loss_that_is_not_convex_needs_room_for_its_factor(small_resnet, monkeypatch):
    def saddle(outputs, targets):
        return (outputs[:, 0] * outputs[:, 1]).mean()

    problem = hr.Problem(small_resnet.model, saddle, (small_resnet.inputs, small_resnet.targets))
    found = hr.spectrum(problem, device="cpu", operator="ggn")
    assert found.reduced_dimension == found.rank == 16
    monkeypatch.setattr(CpuBackend, "free_memory", lambda self: 2**24)
    monkeypatch.setattr(ggn_module, "_TRIANGLES", 2**12)
    with pytest.raises(DeviceError, match="'saddle' is not convex"):
        hr.spectrum(problem, device="cpu", operator="ggn")


def test_progress_ends_with_all_parameters(small_resnet):
    seen = []
    ggn_module.smallest_ggn(at_double(small_resnet), CpuBackend(), lambda *step: seen.append(step))
    assert seen[-1] == ("matrix", small_resnet.dimension, small_resnet.dimension)
    assert [done for _, done, _ in seen] == sorted({done for _, done, _ in seen})


PEAK = """
import resource, sys, torch
import hessrmt as hr
from hessrmt.problems import models
torch.set_num_threads(1)
model = models.build("resnet56", (3, 32, 32), 10, 0).eval()
draw = torch.Generator().manual_seed(0)
x = torch.randn(64, 3, 32, 32, generator=draw, dtype=torch.float64)
found = hr.spectrum(hr.Problem(model, "cross-entropy", (x, torch.arange(64) % 10)), operator="ggn")
print(found.reduced_dimension, found.rank, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_peak_memory_of_resnet56():
    done = subprocess.run(
        [sys.executable, "-c", PEAK], capture_output=True, text=True, check=True, timeout=1800
    )
    rows, rank, peak = map(int, done.stdout.split())
    assert rows == rank == 576
    assert peak * 1024 < 3e9
