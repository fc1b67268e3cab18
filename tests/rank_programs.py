"""What two ranks of torch.distributed do in tests/test_parallel.py, and the data of their shares.

``python rank_programs.py RANK FOLDER`` writes what each program found to FOLDER/RANK.pt.
"""

import os
import re
import sys
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn

import hessrmt as hr
from hessrmt.curvature.lanczos import extremal_eigenvalues
from hessrmt.curvature.stochastic import traces
from hessrmt.errors import HessrmtError

KINDS = ("hessian", "ggn", "fisher")
IGNORED = -100


def network(seed=0, inputs=4, outputs=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(inputs, 3), nn.Tanh(), nn.Linear(3, outputs))
    return model.double()


class Tagger(nn.Module):
    """Scores of four tokens in each place of a sequence."""

    def __init__(self):
        super().__init__()
        self.body = network(outputs=4)
        self.register_buffer("shift", torch.full((4,), 0.25, dtype=torch.float64))

    def forward(self, x):
        return (self.body(x) + self.shift).transpose(1, 2)  # classes second


def pairs(sizes, seed=1):
    draw = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, 4, generator=draw, dtype=torch.float64),
            torch.randint(0, 3, (size,), generator=draw),
        )
        for size in sizes
    ]


def sequences():
    """Batches of two sequences of five tokens with 10, 3, 0 and 1 labels that count."""
    draw = torch.Generator().manual_seed(2)
    found = []
    for counted in (10, 3, 0, 1):
        labels = torch.randint(0, 4, (10,), generator=draw)
        labels[counted:] = IGNORED
        x = torch.randn(2, 5, 4, generator=draw, dtype=torch.float64)
        found.append((x, labels.reshape(2, 5)))
    return found


def unequal():
    """Two batches of 4 and 3 samples on rank 0, one of 5 on rank 1."""
    first, second, third = pairs((4, 3, 5))
    return [[first, second], [third]]


def summed(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="sum")


CASES = {
    "unequal shares": (network, "cross-entropy", unequal),
    "nothing on rank 1": (network, "cross-entropy", lambda: [pairs((4, 3)), []]),
    "one batch in all": (network, "cross-entropy", lambda: [[], pairs((6,))]),
    "one sample each": (network, "cross-entropy", lambda: [[part] for part in pairs((1, 1))]),
    "a sum": (network, summed, unequal),
    "masked tokens": (
        Tagger,
        nn.functional.cross_entropy,
        lambda: [sequences()[:2], sequences()[2:]],
    ),
    "all masked on rank 0": (
        Tagger,
        nn.functional.cross_entropy,
        lambda: [sequences()[2:3], sequences()[:2]],
    ),
}
"""Model, loss and the shares of both ranks."""


def facts(matrix):
    """The whole matrix, and all that the operator says of it."""
    identity = torch.eye(matrix.dimension, dtype=torch.float64)
    names = ("loss", "gradient_norm", "samples", "parts", "kept")
    return {name: getattr(matrix, name) for name in names} | {"matrix": matrix @ identity}


def operator(case, rank, kind="hessian", **options):
    model, loss, shares = CASES[case]
    return hr.CurvatureOperator(
        model(), loss, shares()[rank], kind, group=dist.group.WORLD, **options
    )


def cases(rank):
    return {case: facts(operator(case, rank)) for case in CASES}


def kinds(rank):
    found = {kind: facts(operator("unequal shares", rank, kind)) for kind in KINDS}
    found["read anew"] = facts(operator("unequal shares", rank, linearise=False))
    found["linearised"] = facts(operator("one sample each", rank, linearise=True))
    found["block"] = facts(operator("unequal shares", rank).block("2.*"))
    problem = hr.Problem(network(), "cross-entropy", pairs((5, 5))[rank])
    found["in memory"] = facts(hr.GaussNewton(problem, batch=2, group=dist.group.WORLD))
    return found


def algorithms(rank):
    matrix = operator("unequal shares", rank)
    pairs = hr.eigsh(matrix, 3)
    shifted = hr.eigsh(matrix + hr.Identity(matrix.dimension), 1)
    density = hr.density(matrix, 2, 4)
    trace = traces(matrix, 12)
    edges = extremal_eigenvalues(matrix, 1, 1)
    differences = hr.eigsh(operator("unequal shares", rank, products="finite-difference"), 3)
    return {
        "by differences": (differences.values, differences.bounds, differences.products_by),
        "values": pairs.values,
        "bounds": pairs.bounds,
        "vectors": pairs.vectors,
        "check": pairs.check,
        "rounding": matrix.rounding(),
        "shifted": shifted.values,
        "moments": density.quadrature.moments()[0],
        "trace": (trace.trace, trace.square),
        "edges": edges.values,
        "diagonal": matrix.diagonal(),
    }


def wrapped(rank):
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    x, share = pairs((2,), seed=3)[0][0], unequal()[rank]

    def measured(model, matrix, **more):
        return more | facts(matrix) | {"names": [*matrix.unflatten(matrix.diagonal())]}

    def over(model):
        return hr.CurvatureOperator(model, "cross-entropy", share, group=dist.group.WORLD)

    replicated = nn.parallel.DistributedDataParallel(network())
    found = {"ddp": measured(replicated, over(replicated))}

    sharded = network()
    fully_shard(sharded[0])
    fully_shard(sharded)
    before, kind = sharded(x), type(sharded)
    found["fsdp"] = measured(sharded, over(sharded))
    found["fsdp alone"] = refused(lambda: hr.Problem(sharded, "cross-entropy", share[0]))
    after = sharded(x)
    after.sum().backward()
    found["fsdp left alone"] = {
        "same": bool(torch.equal(before, after)) and type(sharded) is kind,
        "sharded": type(sharded[0].weight).__name__,
        "slope": sharded[0].weight.grad.full_tensor(),
    }
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel(output_layouts=Replicate())}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tensors = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    found["plain"] = measured(tensors, over(tensors))
    parallel = parallelize_module(tensors, mesh, plan)
    found["tensor parallel"] = measured(parallel, over(parallel))
    return found


def refused(function):
    """The error of a call, as its class and its words."""
    try:
        function()
    except HessrmtError as error:
        return type(error).__name__, str(error)
    return "no error", ""


class Changing:
    """Batches which rank 1 finds changed, or fails to read, from a certain pass on."""

    def __init__(self, rank, error=None):
        self.rank, self.error, self.spoiled = rank, error, False

    def __iter__(self):
        for x, y in unequal()[self.rank]:
            if self.rank and self.spoiled:
                if self.error:
                    raise self.error
                yield x + 1, y
            else:
                yield x, y


def refusals(rank):
    group, share = dist.group.WORLD, unequal()[rank]
    found = {}

    def on(model=None, loss="cross-entropy", batches=share, *options, **named):
        return hr.CurvatureOperator(
            network() if model is None else model, loss, batches, *options, group=group, **named
        )

    def spoil(name, value):
        x, y = share[0]
        if rank:
            x = x.clone()
            x[1, 2] = value
        found[name] = refused(lambda: on(network()[0], batches=[(x, y)]))

    spoil("not a number", torch.nan)
    spoil("too large", 1e308)
    found["nothing"] = refused(lambda: on(batches=[]))
    found["iterator"] = refused(lambda: on(batches=iter(share) if rank else share))
    for name, error in (("changed", None), ("unreadable", OSError("no such shard"))):
        batches = Changing(rank, error)
        matrix = on(None, "cross-entropy", batches, linearise=False)
        v = torch.ones(matrix.dimension, dtype=torch.float64)
        batches.spoiled = True
        found[name] = refused(lambda matrix=matrix, v=v: matrix @ v)
        batches.spoiled = False
        found[f"after {name}"] = matrix @ v
    found["vectors"] = refused(lambda: matrix @ (v * (1 + rank * 2**-52)))
    found["swapped"] = refused(lambda: matrix @ (v if rank == 0 else v.flip(0) * 2))
    found["steps"] = refused(lambda: matrix.rounding() if rank else matrix @ v)
    found["parameters"] = refused(lambda: on(network(seed=rank)))
    found["sizes"] = refused(lambda: on(nn.Linear(4, 3 + rank).double()))
    found["dtype"] = refused(lambda: on(dtype=("float64", "float32")[rank]))
    found["operator"] = refused(lambda: on(None, "cross-entropy", share, KINDS[rank]))
    found["only"] = refused(lambda: on(only=("0.*", "2.*")[rank]))

    def weighted(outputs, targets):
        return (1 + rank) * nn.functional.cross_entropy(outputs, targets)

    found["loss"] = refused(lambda: on(loss=weighted))
    buffered = Tagger()
    buffered.shift += rank
    tagged = CASES["masked tokens"][2]()[rank]
    found["buffer"] = refused(lambda: on(buffered, nn.functional.cross_entropy, tagged))
    coupled = {"loss": lambda f, y: f.mean().square(), "batches": [pairs((1, 1))[rank]]}
    found["no mean"] = refused(lambda: on(**coupled))
    found["memory"] = refused(lambda: hr.eigsh(matrix, 3, memory=1))
    found["memory of one"] = short_of_memory(rank)
    found["left out"] = facts(on())["matrix"]
    return found


def short_of_memory(rank):
    """Rank 1 has 1 kB, which hold no basis, and no FSDP model as a whole."""
    from torch.distributed.fsdp import fully_shard

    from hessrmt.backend.cpu import CpuBackend

    matrix, sharded = operator("unequal shares", rank), network()
    fully_shard(sharded)
    before = CpuBackend.free_memory
    found = []
    try:
        if rank:
            CpuBackend.free_memory = lambda _self: 1000
        found.append(refused(lambda: hr.eigsh(matrix, 3)))
        found.append(refused(lambda: hr.density(matrix, 2, 3)))
        share = unequal()[rank]
        found.append(
            refused(
                lambda: hr.CurvatureOperator(
                    sharded, "cross-entropy", share, group=dist.group.WORLD
                )
            )
        )
    finally:
        CpuBackend.free_memory = before
    return found


def documented(_rank):
    """The example of docs/distributed.md, in the group that is there."""
    names = {}
    with (
        mock.patch.object(dist, "init_process_group"),
        mock.patch.object(dist, "destroy_process_group"),
    ):
        exec(example(), names)
    density = names["density"]
    return {
        "loss": names["H"].loss,
        "values": names["pairs"].values,
        "trace": density.traces.trace,
        "nodes": density.quadrature.nodes,
        "samples": names["H"].samples,
    }


def example():
    """The script in docs/distributed.md."""
    text = (Path(__file__).parents[1] / "docs" / "distributed.md").read_text(encoding="utf-8")
    found = re.search(r"^```python\n(import os.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def subgroup(_rank):
    """A group of rank 1 alone, with all data."""
    group = dist.new_group([1])
    first, second = unequal()
    batches = [*first, *second]
    try:
        return facts(hr.CurvatureOperator(network(), "cross-entropy", batches, group=group))
    except HessrmtError as error:
        return type(error).__name__


def death(rank):
    """Rank 1 ends in the middle of a product."""
    matrix = operator("unequal shares", rank)
    if rank:
        os._exit(0)
    return refused(matrix.diagonal)


PROGRAMS = (cases, kinds, algorithms, wrapped, refusals, documented, subgroup, death)


def main(rank, folder):
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    found = {}
    for program in PROGRAMS:
        torch.save(found, folder / f"{rank}.pt")  # of rank 1 the last program comes to no end
        found[program.__name__] = program(rank)
    torch.save(found, folder / f"{rank}.pt")
    os._exit(0)  # the group has lost a rank, and cannot be taken down


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
