"""Two real ranks of torch.distributed equal one process, and fail together.

What they do is in tests/rank_programs.py; they are started once for all tests.
"""

import fcntl
import os
import subprocess
import sys

import numpy as np
import pytest
import rank_programs as programs
import torch
import torch.distributed as dist

import hessrmt as hr
from hessrmt.curvature.lanczos import extremal_eigenvalues, round_off
from hessrmt.curvature.parallel import ranks_of
from hessrmt.curvature.stochastic import traces
from hessrmt.errors import ConfigError, ProblemError

if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("this torch has no gloo", allow_module_level=True)

LIMIT = 600
"""Seconds after which it hangs."""


def run_both(folder):
    started = [
        subprocess.Popen(
            [sys.executable, programs.__file__, str(rank), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=LIMIT)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What both ranks found; they run once, whichever test process needs them first."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "two ranks"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            run_both(folder)
            (folder / "complete").touch()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def same(one, other):
    """Whether two results agree in every bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    return one == other


def alone(case, kind="hessian", **options):
    model, loss, shares = programs.CASES[case]
    first, second = shares()
    return hr.CurvatureOperator(model(), loss, [*first, *second], kind, **options)


def require_equal(found, expected):
    """Facts of an operator to rounding: sums of as many products in another order."""
    exact = expected["matrix"]
    bound = round_off(float(torch.linalg.matrix_norm(exact, 2)), len(exact), exact.dtype)
    assert float((found["matrix"] - exact).norm(dim=0).max()) <= bound
    for name in ("loss", "gradient_norm"):
        # a mean over at most 20 samples or tokens, each rounded a few times
        assert found[name] == pytest.approx(expected[name], rel=1000 * np.finfo(float).eps)
    for name in ("samples", "parts", "kept"):
        assert found[name] == expected[name], name


@pytest.mark.slow
def test_every_rank_has_the_same_bits(ranks):
    for program in ("cases", "kinds", "algorithms", "wrapped", "refusals", "documented"):
        one, other = (found[program] for found in ranks)
        assert same(one, other), program


@pytest.mark.parametrize("case", programs.CASES)
def test_two_ranks_equal_one_process(ranks, case):
    require_equal(ranks[0]["cases"][case], programs.facts(alone(case)))


@pytest.mark.parametrize("case", ["unequal shares", "masked tokens", "all masked on rank 0"])
def test_two_ranks_equal_the_dense_hessian_of_all_data(ranks, case):
    model, loss, shares = programs.CASES[case]
    batches = [pair for share in shares() for pair in share]
    data = tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    problem = hr.Problem(model(), loss, data)
    exact = torch.from_numpy(hr.hessian(problem))
    found = ranks[0]["cases"][case]["matrix"]
    bound = round_off(float(torch.linalg.matrix_norm(exact, 2)), len(exact), exact.dtype)
    assert float((found - exact).norm(dim=0).max()) <= bound


@pytest.mark.parametrize("kind", programs.KINDS)
def test_every_matrix_is_summed(ranks, kind):
    require_equal(ranks[0]["kinds"][kind], programs.facts(alone("unequal shares", kind)))


def test_ways_of_multiplying_and_blocks(ranks):
    found = ranks[0]["kinds"]
    expected = programs.facts(alone("unequal shares"))
    require_equal(found["read anew"], expected | {"kept": 0})
    require_equal(found["linearised"], programs.facts(alone("one sample each")))
    block = alone("unequal shares").block("2.*")
    require_equal(found["block"], programs.facts(block))
    batches = programs.pairs((5, 5))
    whole = tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    memory = programs.facts(hr.GaussNewton(hr.Problem(programs.network(), "cross-entropy", whole)))
    require_equal(found["in memory"], memory | {"parts": 6, "kept": 6})


def test_algorithms_find_the_same_as_on_one_process(ranks):
    found, matrix = ranks[0]["algorithms"], alone("unequal shares")
    exact = np.linalg.eigvalsh(programs.facts(matrix)["matrix"].numpy())
    size, norm = len(exact), np.abs(exact).max()
    rounding = round_off(norm, size, torch.float64)
    assert (np.abs(found["values"] - exact[-3:]) <= found["bounds"] + rounding).all()
    assert np.abs(found["bounds"]).max() <= 1e-8 * norm + 2 * rounding
    products = (matrix @ found["vectors"]).numpy()
    residuals = np.linalg.norm(products - found["values"] * found["vectors"].numpy(), axis=0)
    assert (residuals <= found["bounds"] + rounding).all()
    assert found["check"] * norm <= rounding
    values, bounds, products_by = found["by differences"]
    assert products_by == "finite-difference"
    assert (np.abs(values - exact[-3:]) <= bounds).all()
    assert bounds.max() <= 1e-8 * norm
    # the same random roundings, batch by batch; those of the sum over batches are as large
    assert 0.1 < found["rounding"] / matrix.rounding() < 10
    assert abs(found["shifted"][-1] - 1 - exact[-1]) <= 1e-8 * (1 + norm)
    ends = extremal_eigenvalues(matrix, 1, 1)
    assert np.abs(found["edges"] - ends.values).max() <= 2 * ends.bounds.max()
    # moments are linear in powers of H, of the same vectors
    moments = hr.density(matrix, 2, 4).quadrature.moments()[0]
    assert np.abs(found["moments"] - moments).max() <= 4 * rounding * max(1, norm) ** 3
    trace = traces(matrix, 12)
    # of a dozen products, squared for the second
    assert abs(found["trace"][0] - trace.trace) <= 12 * size * rounding
    assert abs(found["trace"][1] - trace.square) <= 24 * size * norm * rounding
    assert float((found["diagonal"] - matrix.diagonal()).abs().max()) <= rounding


def test_wrapped_models(ranks):
    found = ranks[0]["wrapped"]
    expected = programs.facts(alone("unequal shares"))
    names = [name for name, _ in programs.network().named_parameters()]
    for kind in ("ddp", "fsdp"):
        require_equal(found[kind], expected)
        assert found[kind]["names"] == names
    require_equal(found["tensor parallel"], found["plain"])
    raised, said = found["fsdp alone"]
    assert raised == "ProblemError"
    assert "0.weight is spread over several processes" in said
    # the user's own goes on as before: sharded, with hooks that gather and reduce
    x, model = programs.pairs((2,), seed=3)[0][0], programs.network()
    model(x).sum().backward()
    left = found["fsdp left alone"]
    assert left["same"]
    assert left["sharded"] == "DTensor"
    assert float((left["slope"] - model[0].weight.grad).abs().max()) <= 1e-14 * float(x.abs().sum())


REFUSED = {
    "not a number": ("DataError", "process 1 of 2: the inputs have NaN"),
    "too large": ("NonFiniteError", "process 1 of 2: the gradient's norm is inf"),
    "nothing": ("DataError", "there is no batch of data"),
    "iterator": ("DataError", "process 1 of 2: the batches can be read only once"),
    "changed": ("DataError", "process 1 of 2: the batches are other ones"),
    "unreadable": ("DistributedError", "process 1 of 2: OSError: no such shard"),
    "vectors": ("DistributedError", "with the same numbers to the last bit"),
    "swapped": ("DistributedError", "with the same numbers to the last bit"),
    "steps": ("DistributedError", "at the rounding error of products"),
    "parameters": ("ProblemError", "0.weight is not the same on rank 1"),
    "sizes": ("ProblemError", "weight is not the same on rank 1"),
    "dtype": ("ProblemError", "('hessian', 'float32', 'differentiation')"),
    "operator": ("ProblemError", "and rank 1 for ('ggn', 'float64'"),
    "only": ("ProblemError", "other parameters or buffers"),
    "loss": ("ProblemError", "of the same batch rank 0 finds loss and gradient norm"),
    "buffer": ("ProblemError", "shift is not the same on rank 1"),
    "no mean": ("ProblemError", "is no mean over samples"),
    "memory": ("DeviceError", "3 eigenvalues need a basis"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_fails_on_one_rank_fails_on_both(ranks, case):
    kind, words = REFUSED[case]
    for found in ranks:
        raised, said = found["refusals"][case]
        assert raised == kind
        assert words in said


def test_the_smallest_memory_decides_on_all_ranks(ranks):
    for found in ranks:
        basis, density, gathered = found["refusals"]["memory of one"]
        assert basis[0] == density[0] == gathered[0] == "DeviceError"
        assert "every rank holds all parameters" in gathered[1]


def test_a_group_works_on_after_an_error(ranks):
    matrix = alone("unequal shares")
    product = matrix @ torch.ones(matrix.dimension, dtype=torch.float64)
    found = ranks[1]["refusals"]
    assert float((found["after changed"] - product).norm()) <= 1e-12 * float(product.norm())
    assert torch.equal(found["after changed"], found["after unreadable"])
    assert torch.equal(found["left out"], ranks[1]["cases"]["unequal shares"]["matrix"])


def test_a_group_of_some_ranks(ranks):
    assert ranks[0]["subgroup"] == "ConfigError"  # it does not belong to it
    require_equal(ranks[1]["subgroup"], programs.facts(alone("unequal shares")))


def test_a_rank_that_dies_is_not_waited_for(ranks):
    raised, said = ranks[0]["death"]
    assert raised == "DistributedError"
    assert said.startswith("rank 0 of 2 has lost the others")


@pytest.mark.parametrize("group", [None, "world", dist.GroupMember.NON_GROUP_MEMBER])
def test_what_is_no_group_is_refused(group):
    # dist.group.WORLD is None before init_process_group, and would stand for one process
    with pytest.raises(ConfigError, match="init_process_group"):
        alone("unequal shares", group=group)
    assert ranks_of("alone").size == 1


def test_a_torch_without_process_groups_says_so(monkeypatch):
    monkeypatch.setattr(dist, "is_available", lambda: False)
    monkeypatch.delattr(dist, "ProcessGroup")
    with pytest.raises(ConfigError, match="init_process_group"):
        alone("unequal shares", group=object())
    assert alone("unequal shares").samples == 12


def test_fsdp1_is_refused():
    class FullyShardedDataParallel(torch.nn.Sequential):
        pass

    wrapped = FullyShardedDataParallel(programs.network())
    with pytest.raises(ProblemError, match="fully_shard"):
        hr.Problem(wrapped, "cross-entropy", programs.pairs((3,))[0])


def test_the_example_of_the_documentation(ranks):
    found = ranks[0]["documented"]
    assert found["samples"] == 80
    assert len(found["values"]) == 3


@pytest.mark.slow
def test_torchrun_runs_the_example_of_the_documentation(tmp_path):
    (tmp_path / "script.py").write_text(programs.example())
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc-per-node", "2", str(tmp_path / "script.py")],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    lines = sorted(done.stdout.splitlines())
    assert len(lines) == 2, done.stdout
    assert lines[0].startswith("rank 0: ")
    assert lines[0][len("rank 0: ") :] == lines[1][len("rank 1: ") :]
