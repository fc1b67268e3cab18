"""Small problems that several test files build."""

import gzip
import struct
from itertools import pairwise

import numpy as np
import torch
from torch import nn

RNG = np.random.default_rng(0)


def labelled(shape, classes, seed=0):
    """Standard normal inputs of a shape and uniform labels."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, classes, (shape[0],), generator=generator)


def write_idx(path, array):
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 0x08, array.ndim, *array.shape)
    raw = head + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw)


def write_set(folder, train=12, test=5, top=9, end=".gz"):
    """Four IDX files of random images; labels count down from ``top``."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, n in (("train", train), ("t10k", test)):
        images = RNG.integers(0, 256, (n, 28, 28))
        write_idx(folder / f"{stem}-images-idx3-ubyte{end}", images)
        write_idx(folder / f"{stem}-labels-idx1-ubyte{end}", (top - np.arange(n)) % (top + 1))
    return folder


def by_double_backward(model, loss, x, y):
    """The Hessian from the module itself: no copy, no functional call."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    outputs = model(*x) if isinstance(x, tuple) else model(x)
    first = torch.autograd.grad(
        loss(outputs, y), parameters, create_graph=True, materialize_grads=True
    )
    rows = [
        torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True)
        if value.requires_grad
        else [torch.zeros_like(p) for p in parameters]
        for value in torch.cat([g.reshape(-1) for g in first])
    ]
    return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows]).detach()


def by_jacobian(model, loss, x, y):
    """Jᵀ S J, J and S by plain reverse mode."""
    parameters, outputs = [p for p in model.parameters() if p.requires_grad], model(x)
    point = outputs.detach().requires_grad_()
    slope = torch.autograd.grad(loss(point, y), point, create_graph=True)[0].reshape(-1)

    def rows(values, leaves):
        found = []
        for value in values:
            parts = [torch.zeros_like(leaf) for leaf in leaves]
            if value.requires_grad:
                parts = torch.autograd.grad(
                    value, leaves, retain_graph=True, materialize_grads=True
                )
            found.append(torch.cat([part.to_dense().reshape(-1) for part in parts]))
        return torch.stack(found).detach()

    jacobian = rows(outputs.reshape(-1), parameters)
    return jacobian.T @ rows(slope, [point]) @ jacobian


def network(*widths, kind=nn.Tanh, seed=0, bias=True):
    """Linear layers of some widths with an activation between them, in float64."""
    torch.manual_seed(seed)
    layers = [nn.Linear(a, b, bias=bias) for a, b in pairwise(widths)]
    return nn.Sequential(*[m for layer in layers for m in (layer, kind())][:-1]).double()


class WrongForwardRule(torch.autograd.Function):
    """x³ with a right backward pass and a wrong rule of forward mode."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, _):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, slope):
        return 3 * ctx.saved_tensors[0] ** 2 * slope

    @staticmethod
    def jvp(ctx, tangent):
        return 4 * ctx.saved_tensors[0] ** 2 * tangent


class Once(torch.autograd.Function):
    """tanh whose backward pass cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        return slope * (1 - torch.tanh(ctx.saved_tensors[0]) ** 2)
