"""What a network is made of is found by running it: spectra of networks used in every way."""

import numpy as np
import pytest
import torch
from network_samples import MIXING, NETWORKS, at_double, network
from samples import by_double_backward, by_jacobian
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel

import hessrmt as hr
from hessrmt.curvature import gram
from hessrmt.curvature.reduction import reduce_problem
from hessrmt.problems.losses import LOSSES

EPS = float(np.finfo(np.float64).eps)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("operator", "loss"), [("hessian", "cross-entropy"), ("ggn", "cross-entropy"), ("ggn", "mse")]
)
def test_spectra_of_networks(name, operator, loss):
    net, x, y = network(name)
    dense = by_double_backward if operator == "hessian" else by_jacobian
    with sdpa_kernel(SDPBackend.MATH):
        matrix = dense(net, LOSSES[loss], x, y)
    exact = np.linalg.eigvalsh(matrix)
    problem = hr.Problem(net, loss, (x, y))
    found = hr.spectrum(problem, operator=operator)
    assert np.abs(found.eigenvalues - exact).max() <= 10 * len(exact) * EPS * np.abs(exact).max()
    assert 0 <= found.check < 1e-12
    if operator == "ggn":
        assert found.reduced_dimension <= min(len(exact), len(y) * net(x).shape[1])
    else:  # the reduced basis loses nothing
        basis = hr.reduction(problem)
        q = basis.lift(torch.eye(basis.reduced_dimension, dtype=torch.float64)).T
        kept = q @ (q.T @ matrix @ q) @ q.T
        assert float((kept - matrix).abs().max()) <= 1e-12 * float(matrix.abs().max())


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_are_found_by_what_they_do(name):
    net, x, y = network(name)
    problem = at_double(hr.Problem(net, "cross-entropy", (x, y)))
    assert {layer.name for layer in problem.structure} == NETWORKS[name][3]
    apart = {layer.name for layer in gram.find_layers(problem)}
    assert apart == MIXING.get(name, NETWORKS[name][3])


def test_coordinates_are_in_the_order_of_the_parameters():
    """In whichever order Python keeps names in a set: processes have to agree on it."""
    net, x, y = network("conv1d")
    basis = reduce_problem(at_double(hr.Problem(net, "cross-entropy", (x, y))))
    assert len(basis.others) > 100
    assert bool((basis.others.diff() > 0).all())


def test_a_shift_of_all_scores_matters_where_they_are_not_the_output_itself():
    for name, turned in (("mlp", True), ("in place at the end", False)):
        net, x, y = network(name)
        basis = reduce_problem(at_double(hr.Problem(net, F.cross_entropy, (x, y)))).layers[-1]
        assert (basis.left.dim() == 2) == turned
