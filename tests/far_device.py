"""A device that is main memory, but as strict as a GPU, and counts what makes the host wait for it.

torch calls it "meta". A tensor there is an empty shell around one in main memory: every operation
is done on what is inside, by a mode under everything that torch does with it (autograd, vmap, jvp).
So numbers are those of the CPU; tensors of both places cannot be mixed; and nothing gets from there
to Python unless it is fetched, which is counted with the line of hessrmt that did it.
"""

import contextlib
import functools
import sys
from collections import Counter

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from hessrmt.backend.cpu import CpuBackend

PLACE = torch.device("meta")
HERE = torch.device("cpu")

# the size of what they give, or whether it was possible, is known on the device alone
WAITS = {
    "_linalg_check_errors", "_linalg_eigh", "_linalg_svd", "_local_scalar_dense", "_unique2",
    "bincount", "equal", "linalg_eig", "masked_select", "nonzero", "repeat_interleave",
    "unique_consecutive", "unique_dim",
}  # fmt: skip
INDEXING = {"index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_"}


class Far(torch.Tensor):
    """A tensor on that device."""

    @staticmethod
    def __new__(cls, inside):
        shape = {"strides": inside.stride(), "storage_offset": inside.storage_offset()}
        return torch.Tensor._make_wrapper_subclass(
            cls, inside.shape, dtype=inside.dtype, device=PLACE, **shape
        )

    def __init__(self, inside):
        self.inside = inside

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), keywords=None):
        raise AssertionError(f"{function} of a tensor on the device outside of `counting`")

    def __deepcopy__(self, memo):
        if not getattr(self, "_is_param", False):
            return torch.Tensor.__deepcopy__(self, memo)
        return torch.nn.Parameter(self.data.clone(), self.requires_grad)


class Counting(TorchDispatchMode):
    """Runs operations of the device, and counts those that wait for it.

    Attributes:
        waits: From a line and an operation to how often the host waited there for the device.
        uploads: Likewise for copies to the device that wait until all before them is done.
        wrong: What a GPU would have refused, also where somebody caught it.
    """

    def __init__(self):
        super().__init__()
        self.waits, self.uploads, self.wrong = Counter(), Counter(), []

    @classmethod
    def _should_skip_dynamo(cls):
        return False

    @property
    def total(self):
        return sum(self.waits.values())

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        keywords = dict(keywords or {})
        if _composite(function):  # from within another mode
            with self:
                return function.decompose(*arguments, **keywords)
        name = function._schema.name.partition("::")[2]
        given = [*_tensors(arguments), *_tensors(keywords.values())]
        far = {id(x.inside): x for x in given if isinstance(x, Far)}
        near = [x for x in given if not isinstance(x, Far)]
        wanted = keywords.get("device")
        there = wanted is not None and torch.device(wanted).type == PLACE.type
        if not far and not there:
            return function(*arguments, **keywords)
        if any(x.is_meta for x in near):
            self._refuse(f"{name} of a tensor without numbers")
        copies, fetches = name in ("copy_", "_to_copy"), False
        blocking = not (keywords.get("non_blocking") or (name == "copy_" and True in arguments[2:]))
        if copies and far:
            stays = isinstance(arguments[0], Far) if name == "copy_" else there or wanted is None
            fetches = not stays
        if fetches:
            self._note(self.waits, "copy to main memory")
        elif copies and near and blocking:
            self._note(self.uploads, "copy to the device")
        elif name in INDEXING:
            if not isinstance(arguments[0], Far):
                self._refuse(f"{name} of a tensor in main memory by places on the device")
            indices = [x for x in arguments[1] if x is not None]
            if any(x.dtype in (torch.bool, torch.uint8) for x in indices):
                self._note(self.waits, "mask")
            if any(not isinstance(x, Far) for x in indices):
                self._note(self.uploads, "index")
        elif not copies and any(x.dim() for x in near):
            self._refuse(f"{name} of tensors in two places")
        if name in WAITS:
            self._note(self.waits, name)
        if there:
            keywords["device"] = HERE
        keywords = {name: _opened(x) for name, x in keywords.items()}
        found = function(*map(_opened, arguments), **keywords)
        if fetches:
            return found

        def closed(tensor):
            if tensor._is_zerotensor():
                tensor = torch.zeros(tensor.shape, dtype=tensor.dtype)
            return far[id(tensor)] if id(tensor) in far else Far(tensor)

        if isinstance(found, torch.Tensor):
            return closed(found)
        return _pytree.tree_map_only(torch.Tensor, closed, found)

    def _refuse(self, why):
        self.wrong.append(why)
        raise AssertionError(why)

    @staticmethod
    def _note(counter, what):
        frame, own = sys._getframe(1), ("hessrmt/arrays.py", "hessrmt/curvature/rounding.py")
        while frame and (
            "/hessrmt/" not in frame.f_code.co_filename or frame.f_code.co_filename.endswith(own)
        ):
            frame = frame.f_back
        line = "the test"
        if frame:
            line = f"{frame.f_code.co_filename.rpartition('/hessrmt/')[2]}:{frame.f_lineno}"
        counter[line, what] += 1


def _tensors(values):
    for x in values:
        if isinstance(x, torch.Tensor):
            yield x
        elif isinstance(x, list | tuple):
            yield from _tensors(x)


def _opened(x):
    if isinstance(x, list | tuple):
        return [_opened(part) for part in x]
    return x.inside if isinstance(x, Far) else x


@functools.cache
def _composite(function):
    key = "CompositeImplicitAutograd"
    return torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), key)


class _Made(TorchFunctionMode):
    """torch.tensor would leave its numbers out on "meta"."""

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        keywords = dict(keywords or {})
        if function is torch.tensor and torch.device(keywords.get("device") or "cpu") == PLACE:
            return function(*arguments, **keywords | {"device": HERE}).to(PLACE)
        return function(*arguments, **keywords)


@contextlib.contextmanager
def counting():
    """Make the device work, and count."""
    with _Made(), Counting() as counts:
        yield counts
    assert not counts.wrong


class FarBackend(CpuBackend):
    """The device's backend: eigenvalues are found in main memory, for one wait."""

    def __init__(self):
        super().__init__()
        self.device, self.name = PLACE, "far"

    def _eigvalsh(self, matrix, what="the matrix"):
        return super()._eigvalsh(matrix.cpu(), what)
