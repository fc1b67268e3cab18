"""The training protocol: stochastic gradient descent with a falling learning rate.

Every epoch draws from its own random streams, so a run resumed after any epoch equals an
uninterrupted one (bit for bit on the CPU). The variations that families of networks are made of are
here too: other initial weights, wrong labels, random crops and flips.

Source: Baskerville, Granziol and Keating 2022, §4; Generalization puzzles (2020), appendices B and
C.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils import _pytree

from hessrmt import rng
from hessrmt.checks import real
from hessrmt.errors import (
    DataError,
    HessrmtError,
    NoMemoryError,
    NonFiniteError,
    ProblemError,
    is_out_of_memory,
    let_pass,
)
from hessrmt.problems.plugins import same_folder
from hessrmt.training.penalties import stable_ranks

if TYPE_CHECKING:
    from numpy.random import Generator

    from hessrmt.config import TrainConfig
    from hessrmt.problems.data import Dataset

Loss = Callable[[Tensor, Tensor], Tensor]
Fetch = Callable[[np.ndarray], tuple[Tensor, Tensor]]
Augment = Callable[[Tensor], Tensor]
Labels = Int64[np.ndarray, " n"]
Images = Float[Tensor, "B channels height width"]


@dataclass(frozen=True)
class TrainState:
    """What continues a run: copies on the CPU, independent of the model being trained.

    Attributes:
        epoch: Completed epochs.
        model: The model's state dict.
        optimizer: The optimiser's state dict.
        history: One ``{"epoch", "lr", "train_loss"}`` per completed epoch; ``train_loss`` is the
            mean over the epoch's samples, each at the parameters its batch was computed with,
            without weight decay and penalty.
    """

    epoch: int
    model: dict[str, Any]
    optimizer: dict[str, Any]
    history: tuple[dict[str, float], ...] = ()


_DECIDING = {"lr", "params", "momentum", "weight_decay", "dampening", "nesterov", "maximize"}
"""What the steps of SGD depend on."""

_UNFIT = "the state to continue from does not fit"


def require_continuing(start: TrainState, model: nn.Module, settings: TrainConfig) -> None:
    """Refuse a state with which training would not go on as it would have gone on by itself.

    Args:
        start: The state; of a file anything can be in it.
        model: The network, of whatever type.
        settings: Of the run.

    Raises:
        ProblemError: If a part of it has another type, shape or value than training gives it.
    """
    fault = next(_faults(start, model, settings), None)
    if fault is not None:
        raise ProblemError(f"{_UNFIT}: {fault}")


def _faults(start: TrainState, model: nn.Module, settings: TrainConfig) -> Iterator[str]:
    epoch, dtype = start.epoch, getattr(torch, settings.dtype)
    if type(epoch) is not int or not 0 <= epoch <= settings.epochs:
        yield f"its epoch is {epoch!r:.60}, of {settings.epochs}"
        return
    yield from _faults_of_history(start.history, epoch)
    own = model.state_dict()
    if start.model.keys() != own.keys():
        yield "its parameters have other names than those of the model"
        return
    for name, value in own.items():
        if isinstance(value, Tensor):
            cast = value.is_floating_point() or value.is_complex()
            yield from _unlike(start.model[name], name, value.shape, dtype if cast else value.dtype)
    parameters = [p for p in model.parameters() if p.requires_grad]
    made = torch.optim.SGD(
        parameters, settings.lr, settings.momentum, weight_decay=settings.weight_decay
    )
    yield from _faults_of_settings(start.optimizer, made)
    held = start.optimizer.get("state")
    with_momentum, numbers = settings.momentum > 0 and epoch > 0, {*range(len(parameters))}
    if not isinstance(held, dict) or bool(held) != with_momentum or not held.keys() <= numbers:
        yield "its optimiser has no momentum, or that of other parameters"
        return
    for number, value in held.items():
        if not isinstance(value, dict) or value.keys() != {"momentum_buffer"}:
            yield f"its optimiser keeps {value!r:.60} of parameter {number}"
        else:
            shape = parameters[number].shape
            yield from _unlike(value["momentum_buffer"], f"momentum {number}", shape, dtype)


def _faults_of_history(history: tuple[Any, ...], epochs: int) -> Iterator[str]:
    if len(history) != epochs:
        yield f"its history is of {len(history)} epochs, and {epochs} are done"
    for number, entry in enumerate(history, 1):
        held = entry if isinstance(entry, dict) else {}
        told = held.get("epoch")
        if type(told) is not int or told != number:
            yield f"its history of epoch {number} is that of {told!r:.60}"
        for name in ("lr", "train_loss"):
            if not _is_finite(held.get(name)):
                yield f"{name} of epoch {number} in its history is {held.get(name)!r:.60}"


def _faults_of_settings(state: dict[str, Any], made: torch.optim.SGD) -> Iterator[str]:
    groups, (wanted,) = state.get("param_groups"), made.state_dict()["param_groups"]
    group = groups[0] if isinstance(groups, list) and len(groups) == 1 else None
    if not isinstance(group, dict) or not group.keys() >= _DECIDING:
        yield "its optimiser has no settings"
        return
    if not _is_finite(group["lr"]):
        yield f"the rate of its optimiser is {group['lr']!r:.60}"
    for name, value in group.items():  # older versions of torch have fewer, newer ones more
        known = {repr(wanted[name])} if name in wanted else {"None", "False"}
        if name != "lr" and repr(value) not in known:
            yield f"{name} of its optimiser is {value!r:.60}"


def _is_finite(value: Any) -> bool:
    return type(value) in {int, float} and abs(value) < math.inf


def _unlike(value: Any, name: str, shape: torch.Size, dtype: torch.dtype) -> Iterator[str]:
    """What a stored tensor has that this network's has not."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_meta:
        yield f"its {name} is no tensor with values"
    elif value.shape != shape or value.dtype != dtype:
        given = str(value.dtype).removeprefix("torch.")
        wanted = str(dtype).removeprefix("torch.")
        yield f"its {name} is {given} {tuple(value.shape)}, expected {wanted} {tuple(shape)}"
    elif not bool(torch.isfinite(value).all()):
        yield f"its {name} holds NaN or infinity"


def learning_rate(epoch: int, settings: TrainConfig) -> float:
    """Learning rate of an epoch: constant, then linear in the epoch, then constant.

    Args:
        epoch: Epoch, counted from 0.
        settings: ``lr`` is used up to epoch ``decay_start``, ``final_lr`` from ``decay_end`` on.

    Returns:
        The learning rate of every step of that epoch.
    """
    if epoch <= settings.decay_start:
        return settings.lr
    if epoch >= settings.decay_end:
        return settings.final_lr
    done = (epoch - settings.decay_start) / (settings.decay_end - settings.decay_start)
    return settings.lr + done * (settings.final_lr - settings.lr)


def train(
    model: nn.Module,
    loss: Loss,
    data: Dataset,
    settings: TrainConfig,
    *,
    device: torch.device,
    start: TrainState | None = None,
    rate: Callable[[int], float] | None = None,
    augment: Augment | None = None,
    stop: Callable[[TrainState], bool] | None = None,
    on_epoch: Callable[[TrainState], None] | None = None,
    on_step: Callable[[nn.Module], None] | None = None,
) -> TrainState:
    """Train a model by momentum SGD on shuffled minibatches; the last, smaller batch is used too.

    Args:
        model: Trained in place; moved to the device and dtype.
        loss: (outputs, targets) -> scalar mean over the batch.
        data: The training samples.
        settings: Epochs, batch size, learning rates, momentum, weight decay, penalty, dtype and
            seed.
        device: Where to compute.
        start: State to continue from; None starts at epoch 0 from the model as given.
        rate: Epoch, counted from 0, to its learning rate; None for :func:`learning_rate`.
        augment: Makes the inputs of a batch anew in every step; random numbers are to come from
            torch's global generator of the CPU, which is seeded for every epoch.
        stop: Called with the state after ``on_epoch``; training ends where it is true.
        on_epoch: Called with the state after each epoch.
        on_step: Called with the model after each step of the optimiser.

    Returns:
        The state after the last epoch.

    Raises:
        ProblemError: If ``start`` belongs to another model, or the model or loss fails.
        NonFiniteError: If the loss or a parameter becomes NaN or infinite; ``on_epoch`` is not
            called for that epoch.
    """
    model.to(device=device, dtype=getattr(torch, settings.dtype))
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ProblemError(f"the model ({type(model).__name__}) has no trainable parameters")
    optimizer = torch.optim.SGD(
        parameters, settings.lr, settings.momentum, weight_decay=settings.weight_decay
    )
    if start is not None:
        require_continuing(start, model, settings)
        try:
            model.load_state_dict(start.model)
            optimizer.load_state_dict(start.optimizer)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            let_pass(error)
            raise ProblemError(f"{_UNFIT}: {error}") from error
    state = start or _state(0, model, optimizer, ())
    fetch = _fetcher(model, data, settings.dtype, device)
    was_training = model.training
    model.train()
    for epoch in range(state.epoch, settings.epochs):
        speed = learning_rate(epoch, settings) if rate is None else rate(epoch)
        for group in optimizer.param_groups:
            group["lr"] = speed
        order = rng.stream(settings.seed, "shuffle", epoch).permutation(len(data))
        chunks = [order[i : i + settings.batch] for i in range(0, len(order), settings.batch)]
        losses = []
        with rng.torch_seeded(settings.seed, "train", epoch):
            for chunk in chunks:
                inputs, targets = fetch(chunk)
                if augment is not None:
                    inputs = augment(inputs)
                losses.append(_step(model, loss, optimizer, inputs, targets, settings.stable_rank))
                if on_step is not None:
                    on_step(model)
        values = torch.stack(losses).cpu().double().numpy()  # read once: no wait in every step
        _require_finite(values, model, f"in epoch {epoch + 1} (learning rate {speed:g})")
        mean = float(np.average(values, weights=[len(chunk) for chunk in chunks]))
        entry = {"epoch": epoch + 1, "lr": speed, "train_loss": mean}
        state = _state(epoch + 1, model, optimizer, (*state.history, entry))
        if on_epoch is not None:
            on_epoch(state)
        if stop is not None and stop(state):
            break
    model.train(was_training)
    return state


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loss: Loss,
    data: Dataset,
    *,
    device: torch.device,
    dtype: str = "float32",
    batch: int = 1024,
) -> tuple[float, float | None]:
    """Mean loss and accuracy over a whole data set, with the model in evaluation mode.

    Args:
        model: The model, on ``device`` and in ``dtype``.
        loss: (outputs, targets) -> scalar mean over the batch.
        data: The samples.
        device: Where the model is.
        dtype: The model's precision.
        batch: Samples computed at a time; the means are weighted by batch size.

    Returns:
        Mean loss, and the fraction of samples whose largest output is the label's, or None where
        targets are not class labels or the model has no output per class.

    Raises:
        NonFiniteError: If the mean loss is NaN or infinite.
    """
    fetch = _fetcher(model, data, dtype, device)
    total, correct, labelled = 0.0, 0, data.classes is not None
    was_training = model.training
    model.eval()
    for first in range(0, len(data), batch):
        inputs, targets = fetch(np.arange(first, min(first + batch, len(data))))
        outputs, value = _forward(model, loss, inputs, targets)
        total += float(value) * len(targets)
        labelled &= outputs.shape == (len(targets), data.classes)
        if labelled:
            correct += int((outputs.argmax(dim=-1) == targets).sum())
    model.train(was_training)
    mean = total / len(data)
    if not np.isfinite(mean):
        what = f"the mean loss over the {data.split} split of {data.name} is {mean}"
        raise NonFiniteError(f"{what}: values are out of range; try a smaller learning rate")
    return mean, correct / len(data) if labelled else None


def evaluate_splits(
    model: nn.Module, loss: Loss, sets: Mapping[str, Dataset | None], **options: Any
) -> dict[str, float | None]:
    """Mean losses and accuracies over several data sets.

    Args:
        model: As for :func:`evaluate`.
        loss: Likewise.
        sets: Split to samples; None where there are none.
        options: Of :func:`evaluate`.

    Returns:
        ``{split}_loss`` and ``{split}_accuracy`` to value; None where there are no samples.
    """
    found: dict[str, float | None] = {}
    for split, data in sets.items():
        values = (None, None) if data is None else evaluate(model, loss, data, **options)
        found[f"{split}_loss"], found[f"{split}_accuracy"] = values
    return found


def _fetcher(model: nn.Module, data: Dataset, dtype: str, device: torch.device) -> Fetch:
    # one copy of the whole set on the device; left on the host if the device cannot hold it
    precision = getattr(torch, dtype)
    inputs, targets = data.tensors(np.arange(len(data)), precision, model)
    with suppress(torch.OutOfMemoryError):
        inputs, targets = inputs.to(device), targets.to(device)

    def fetch(indices: np.ndarray) -> tuple[Tensor, Tensor]:
        index = torch.from_numpy(indices).to(inputs.device)
        return inputs[index].to(device), targets[index].to(device)

    return fetch


@contextmanager
def _explained(inputs: Tensor, kind: type[HessrmtError], words: str) -> Iterator[None]:
    """Turn what fails inside a ``with`` block into an error of ours."""
    try:
        yield
    except HessrmtError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise NoMemoryError(
                f"{inputs.device} has too little memory for a batch of {len(inputs)} samples; "
                "try a smaller batch"
            ) from error
        raise kind(words.format(error)) from error


def _forward(
    model: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    given = f"inputs {tuple(inputs.shape)} and targets {tuple(targets.shape)} of {targets.dtype}"
    failed = f"the model or loss failed on {given}: {{}}"
    with same_folder(), _explained(inputs, ProblemError, failed):
        outputs = model(inputs)
        value = loss(outputs, targets)
    if not isinstance(value, Tensor) or value.dim() != 0:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ProblemError(f"the loss must be a scalar mean over the batch, but it gave {got}")
    return outputs, value


def _step(
    model: nn.Module,
    loss: Loss,
    optimizer: torch.optim.SGD,
    inputs: Tensor,
    targets: Tensor,
    penalty: float = 0.0,
) -> Tensor:
    optimizer.zero_grad(set_to_none=True)
    _, value = _forward(model, loss, inputs, targets)
    with _explained(inputs, ProblemError, "the loss cannot be differentiated: {}"):
        (value + penalty * stable_ranks(model).sum() if penalty else value).backward()
    failed = "a step of SGD failed ({}); try a smaller learning rate"
    with _explained(inputs, NonFiniteError, failed):
        optimizer.step()
    return value.detach()


def _require_finite(losses: np.ndarray, model: nn.Module, where: str) -> None:
    finite, fault = np.isfinite(losses), ""
    if not finite.all():
        first = int(np.argmin(finite))
        fault = f"the loss became {losses[first]} at batch {first + 1} of {len(losses)}"
    elif not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        fault = f"the parameters became NaN or infinite after batch {len(losses)}"
    if fault:
        raise NonFiniteError(f"{fault} {where}; try a smaller learning rate")


def _state(
    epoch: int, model: nn.Module, optimizer: torch.optim.SGD, history: tuple[dict[str, float], ...]
) -> TrainState:
    tensors = _copied(dict(model.state_dict())), _copied(optimizer.state_dict())
    return TrainState(epoch, *tensors, history)


def _copied(tree: Any) -> Any:
    return _pytree.tree_map(
        lambda leaf: leaf.detach().to("cpu", copy=True) if isinstance(leaf, Tensor) else leaf, tree
    )


@torch.no_grad()
def initialize(model: nn.Module, scale: float, generator: torch.Generator) -> None:
    """Draw the weights of linear and convolution layers from N(0, s²), set their biases to 0.

    Everything else, such as BatchNorm's scale and shift, stays as it is.

    Args:
        model: Changed in place; on the CPU.
        scale: s.
        generator: Where the random numbers come from.

    Raises:
        ProblemError: If there is no such layer, or s is not positive.
    """
    real("the initial scale", scale, above=0, error=ProblemError)
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | _ConvNd)]
    if not layers:
        raise ProblemError(f"the model ({type(model).__name__}) has no linear or convolution layer")
    for layer in layers:
        layer.weight.normal_(0, scale, generator=generator)
        if layer.bias is not None:
            layer.bias.zero_()


def permuted(labels: Labels, share: float, generator: Generator) -> Labels:
    """A share of the labels permuted among themselves; how many there are of each stays the same.

    Those of a random subset are put into a random order, so that some of them stay right by
    chance: of ten equally frequent classes a tenth.

    Args:
        labels: (n,) labels.
        share: Of labels to permute, 0 to 1; rounded to a whole number of them.
        generator: Where the random numbers come from.

    Returns:
        (n,) labels, a copy.
    """
    real("the share of permuted labels", share, least=0, most=1)
    chosen = generator.permutation(len(labels))[: round(share * len(labels))]
    found = labels.copy()
    found[chosen] = labels[generator.permutation(chosen)]
    return found


def drawn(count: int, classes: int, generator: Generator) -> Labels:
    """Labels drawn at random, all classes equally likely.

    Args:
        count: How many.
        classes: Number of classes.
        generator: Where the random numbers come from.

    Returns:
        (count,) labels, 0 to ``classes - 1``.
    """
    return generator.integers(classes, size=count, dtype=np.int64)


def crop_and_flip(images: Images, *, padding: int = 4, fill: float = 0.0) -> Images:
    """Every image padded, cut out again at a random place, and mirrored half of the time.

    As ResNets are trained (He et al. 2016). Random numbers come from torch's global generator of
    the CPU, on every device the same.

    Args:
        images: A batch.
        padding: Pixels added on every side.
        fill: Value of the added pixels.

    Returns:
        A batch of the same shape.

    Raises:
        DataError: If these are no images.
    """
    if images.dim() != 4:
        shape = tuple(images.shape[1:])
        raise DataError(f"augmentation needs images (channels, height, width), got {shape}")
    count, _, height, width = images.shape
    places = torch.randint(2 * padding + 1, (2, count, 1))
    rows, columns = places[0] + torch.arange(height), places[1] + torch.arange(width)
    columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(1), columns)
    at = torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]
    padded = nn.functional.pad(images, (padding,) * 4, value=fill).permute(0, 2, 3, 1)
    found = padded[tuple(index.to(images.device) for index in at)]
    return found.permute(0, 3, 1, 2).contiguous()
