"""Curvature over the ranks of ``torch.distributed``: each has a share of the batches.

Every rank holds all parameters and every Lanczos vector, multiplies with its own batches, and the
products are added up by an all-reduce. So all ranks run the same algorithm on the same numbers, and
come to the same decisions. That they have the same numbers is checked, bit for bit, at every
product: ranks that drift apart would wait for each other for ever. Work that a rank does by itself
fails on all of them if it fails on one (:class:`~hessrmt.backend.world.Processes`).

Networks of 10⁹ to 10¹¹ parameters need more: parameters and vectors that stay sharded, and
products by differences of the gradient (Granziol and Juarev 2026). That is not built here.
"""

from __future__ import annotations

import hashlib
import pickle
import socket
import zlib
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hessrmt.backend.world import Processes
from hessrmt.curvature.dense import gib, usable_memory
from hessrmt.errors import ConfigError, DeviceError, DistributedError, ProblemError
from hessrmt.problems.batches import map_tensors
from hessrmt.problems.problem import is_sharded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.distributed import ProcessGroup

    from hessrmt.arrays import Vectors
    from hessrmt.backend.base import Backend
    from hessrmt.problems.problem import Problem

    Group = ProcessGroup | str

ALONE = "alone"
"""No group. None is what ``dist.group.WORLD`` is before ``init_process_group``, and must not pass
for it: every rank would silently take its own share for all data."""

_COPIES = 4
"""Vectors of all parameters in float64 that a rank needs at least: the gathered model, the
problem's copy of it, the one that is differentiated, and its gradient."""

_NUMBERS = 4
"""Of a fingerprint."""


class Alone:
    """One process, with the methods of :class:`Ranks`; each costs nothing."""

    rank, size, neighbours = 0, 1, 1

    def at(self, step: str, block: Vectors | None = None) -> AbstractContextManager:  # noqa: ARG002
        """A block in which errors are what they are."""
        return nullcontext()

    def gather(self, value: Any) -> list[Any]:
        """The value alone."""
        return [value]

    def share(self, value: Any, root: int = 0) -> Any:  # noqa: ARG002
        """The value."""
        return value

    def total(self, tensor: Tensor) -> Tensor:
        """The tensor."""
        return tensor

    def beside(self, backend: Backend) -> Backend:
        """The backend."""
        return backend

    def whole(self, model: nn.Module, backend: Backend) -> nn.Module:  # noqa: ARG002
        """The model."""
        return model

    def require_one_problem(self, problem: Problem, options: tuple) -> None:
        """There is no other."""

    def require_one_loss(self, evaluated: tuple[float, float], problem: Problem) -> None:
        """There is no other."""


class Ranks(Processes):
    """The ranks of a process group.

    Args:
        group: Which this rank belongs to.

    Attributes:
        neighbours: How many of them share this one's memory, this one included; known from
            :meth:`beside` on.
    """

    def __init__(self, group: ProcessGroup) -> None:
        self._group, self.neighbours, self._device = group, 1, None
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    @contextmanager
    def at(self, step: str, block: Vectors | None = None) -> Iterator[None]:
        """:meth:`Processes.together` at one step, which must be the same on all ranks.

        Args:
            step: What is being done, in words.
            block: (k, P) vectors that must be the same on all ranks.

        Yields:
            None.
        """
        own: Exception | None = None
        try:
            yield
        except Exception as error:
            own = error
        numbers = () if block is None else _fingerprint(block)
        if not self._all_at(own is None, step, numbers):  # words take longer than numbers
            rows, size, *sums = numbers or (0, 0)
            vectors = f" of {rows} vectors of {size} numbers (checksums {sums})" if rows else ""
            with self.together(step + vectors):
                if own is not None:
                    raise own

    def _all_at(self, well: bool, step: str, numbers: tuple[int, ...]) -> bool:
        """Whether all ranks are well, and at one step with the same numbers."""
        code = [int(well), zlib.crc32(step.encode()), *numbers]
        mine = torch.zeros(2 + _NUMBERS, dtype=torch.int64)
        mine[: len(code)] = torch.tensor(code)
        if self._device is None:
            rows = self.gather(mine)
        else:
            mine = mine.to(self._device)
            rows = [torch.empty_like(mine) for _ in range(self.size)]
            with self._collective():
                dist.all_gather(rows, mine, group=self._group)
        found = torch.stack(rows).cpu()
        return bool(found[:, 0].all()) and bool((found == found[0]).all())

    def gather(self, value: Any) -> list[Any]:
        """See :class:`Processes`."""
        found: list[Any] = [None] * self.size
        with self._collective():
            dist.all_gather_object(found, value, group=self._group)
        return found

    def share(self, value: Any, root: int = 0) -> Any:
        """One rank's value, on every rank.

        Args:
            value: Anything with tensors in it; ignored on other ranks.
            root: Whose.

        Returns:
            The value, its tensors in main memory.
        """
        packed = [b""]
        with self.at("data to be shared"):
            if self.rank == root:  # a view would take all that it is a view of along
                plain = map_tensors(value, lambda leaf: leaf.detach().cpu().clone())
                packed = [pickle.dumps(plain)]
        with self._collective():
            source = dist.get_global_rank(self._group, root)
            dist.broadcast_object_list(packed, source, group=self._group)
        with self.at("shared data"):
            return pickle.loads(packed[0])

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of everybody's tensors, on every rank, with the same bits.

        Args:
            tensor: Of one shape, precision and kind of device on all; overwritten.

        Returns:
            The tensor.
        """
        with self._collective():
            dist.all_reduce(tensor, group=self._group)
        return tensor

    def beside(self, backend: Backend) -> Backend:
        """A backend whose free memory is what every rank has, where several share a machine too.

        Args:
            backend: This rank's.

        Returns:
            The same backend but for that; asking for its memory takes all ranks.

        Raises:
            DeviceError: If the group cannot add up tensors that live there.
        """
        place = socket.gethostname(), str(backend.device)
        self.neighbours = self.gather(place).count(place)
        try:
            dist.all_reduce(torch.zeros(1, device=backend.device), group=self._group)
        except RuntimeError as error:
            raise DeviceError(
                f"the process group, of backend {dist.get_backend(self._group)!r}, cannot add up "
                f"tensors on {backend.device} ({error}); start it with "
                'init_process_group("cpu:gloo,cuda:nccl")'
            ) from error
        self._device = backend.device
        shared: Any = _SharedBackend(backend, self)
        return shared

    def whole(self, model: nn.Module, backend: Backend) -> nn.Module:
        """A model whose sharded parameters are gathered, without the hooks that gathered them.

        Args:
            model: Of FSDP2, tensor-parallel, or a plain one.
            backend: Where there must be room, from :meth:`beside`.

        Returns:
            A plain copy with the same names; the model itself if nothing is sharded.

        Raises:
            DeviceError: If a rank has no room for all parameters.
        """
        held = [*model.named_parameters(), *model.named_buffers()]
        sharded = [tensor for _, tensor in held if is_sharded(tensor)]
        if not any(self.gather(len(sharded))):
            return model
        with self.at(f"{len(sharded)} sharded tensors"):
            size = _COPIES * sum(8 * tensor.numel() for tensor in sharded)
        free = usable_memory(backend)
        if size > free:
            raise DeviceError(
                f"every rank holds all parameters, and that takes {gib(size)} on each, where "
                f"{gib(free)} are free; vectors that stay sharded are not built. Take fewer ranks "
                "on a machine, or machines with more memory"
            )
        with torch.no_grad(), self._collective():
            full = {id(tensor): _full(tensor) for tensor in sharded}
        with self.at("copy of the sharded model"):
            return _plain_copy(model, full)

    def require_one_problem(self, problem: Problem, options: tuple) -> None:
        """Refuse ranks that hold different parameters or ask for different things.

        Args:
            problem: In its final precision and place.
            options: What is asked for.

        Raises:
            ProblemError: If they do.
        """
        with self.at("comparison of parameters"):
            model = problem.model
            mine = {
                name: _digest(tensor)
                for named in (model.named_parameters(), model.named_buffers())
                for name, tensor in named
            }
        found = self.gather((options, problem.names, mine))
        for rank, (theirs, names, digests) in enumerate(found):
            asked, first_names, first = found[0]
            if theirs != asked:
                what = f"rank 0 asks for {asked} and rank {rank} for {theirs}"
            elif names != first_names or digests.keys() != first.keys():
                what = f"the models of rank 0 and rank {rank} have other parameters or buffers"
            else:
                other = [name for name, digest in digests.items() if digest != first[name]]
                if not other:
                    continue
                what = f"{other[0]} is not the same on rank {rank} as on rank 0"
            raise ProblemError(
                f"{what}; all ranks must ask for the same matrix at the same parameters and "
                "buffers: load the same checkpoint on each, or broadcast rank 0's"
            )

    def require_one_loss(self, evaluated: tuple[float, float], problem: Problem) -> None:
        """Refuse ranks that find different losses for the same data.

        Args:
            evaluated: Loss and gradient norm of one batch, the same on all ranks.
            problem: In its final precision and place.

        Raises:
            ProblemError: If they differ by more than rounding.
        """
        digits = torch.finfo(problem.dtype).eps ** 0.5
        found = self.gather(evaluated)
        for rank, theirs in enumerate(found):
            for mine, other in zip(found[0], theirs, strict=True):
                if abs(mine - other) > digits * max(1.0, abs(mine)):
                    raise ProblemError(
                        f"of the same batch rank 0 finds loss and gradient norm {found[0]} and "
                        f"rank {rank} {theirs}; all ranks must hold the same model and loss"
                    )

    @contextmanager
    def _collective(self) -> Iterator[None]:
        """What fails between ranks cannot be told to the others any more."""
        try:
            yield
        except Exception as error:
            raise DistributedError(
                f"rank {self.rank} of {self.size} has lost the others: "
                f"{type(error).__name__}: {error}"
            ) from error


def ranks_of(group: Group) -> Alone | Ranks:
    """The processes that a group stands for.

    Args:
        group: Of ``torch.distributed``, or :data:`ALONE`.

    Returns:
        The processes.

    Raises:
        ConfigError: If it is no group that this process belongs to.
    """
    if isinstance(group, str) and group == ALONE:
        return Alone()
    started = dist.is_available() and dist.is_initialized()
    if not started or not isinstance(group, dist.ProcessGroup):
        raise ConfigError(
            f"the group is {group!r}, not a process group that this process belongs to; call "
            "torch.distributed.init_process_group first and give torch.distributed.group.WORLD, "
            f"or leave the group out ({ALONE!r}) for the data of one process"
        )
    return Ranks(group)


class _SharedBackend:
    """A backend whose plans for memory come out the same on all ranks."""

    def __init__(self, backend: Backend, ranks: Ranks) -> None:
        self._backend, self._ranks = backend, ranks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def free_memory(self) -> int:
        """Bytes that every rank can allocate now."""
        with self._ranks.at("question for free memory"):
            mine = self._backend.free_memory() // self._ranks.neighbours
        return min(self._ranks.gather(mine))


def _fingerprint(block: Vectors) -> tuple[int, ...]:
    """Numbers that change with any bit of the entries."""
    bits = block.contiguous().view(torch.int64 if block.element_size() == 8 else torch.int32)
    bits = bits.to(torch.int64)  # sums wrap around; squares keep opposite changes from cancelling
    return (*block.shape, int(bits.sum()), int((bits * bits).sum()))


def _digest(tensor: Tensor) -> str:
    dense = tensor.detach() if tensor.layout == torch.strided else tensor.detach().to_dense()
    flat = dense.resolve_conj().resolve_neg().contiguous().reshape(-1).cpu()
    digest = hashlib.blake2b(flat.view(torch.uint8).numpy().tobytes())
    return f"{tensor.dtype} {tuple(tensor.shape)} {digest.hexdigest()}"


def _full(tensor: Any) -> Tensor:
    """All of a sharded tensor; every rank takes part."""
    return tensor.full_tensor().detach().clone()


def _plain_copy(model: nn.Module, full: dict[int, Tensor]) -> nn.Module:
    """A copy with given tensors in place of sharded ones, of the classes that FSDP2 replaced."""

    def change(tensor: Tensor) -> Tensor:
        found = full.get(id(tensor))
        if found is None:
            return tensor.detach().clone()
        if not isinstance(tensor, nn.Parameter):
            return found
        return nn.Parameter(found, requires_grad=tensor.requires_grad)

    changed: list[tuple[Any, dict[str, Any], type]] = []
    try:
        for module in model.modules():
            changed.append((module, dict(vars(module)), type(module)))
            for name, value in changed[-1][1].items():
                if name.startswith("__composable_api"):  # what fully_shard notes down
                    del vars(module)[name]
                elif name.endswith("_hooks") and isinstance(value, dict):
                    kept = {key: hook for key, hook in value.items() if not _of_torch(hook)}
                    vars(module)[name] = type(value)(kept)
            module.__class__ = _unwrapped_class(type(module))
        return map_tensors(model, change)
    finally:
        for module, held, kind in changed:
            module.__class__ = kind
            vars(module).clear()
            vars(module).update(held)


def _of_torch(what: Any) -> bool:
    """Whether a hook or a class is one by which torch handles sharded parameters."""
    return (getattr(what, "__module__", None) or "").startswith("torch.distributed")


def _unwrapped_class(kind: type) -> type:
    """The class that FSDP2 derived one from, which it gives to modules in place of their own."""
    return kind.__bases__[1] if len(kind.__bases__) == 2 and _of_torch(kind.__bases__[0]) else kind
