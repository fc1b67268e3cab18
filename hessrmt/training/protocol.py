"""The training protocol of [B] §4: stochastic gradient descent with a falling learning rate.

Every epoch draws from its own random streams, so a run resumed after any epoch equals an
uninterrupted one (bit for bit on the CPU).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from hessrmt import rng
from hessrmt.errors import DeviceError, HessrmtError, NonFiniteError, ProblemError

if TYPE_CHECKING:
    from hessrmt.config import TrainConfig
    from hessrmt.problems.data import Dataset

Loss = Callable[[Tensor, Tensor], Tensor]
Fetch = Callable[[np.ndarray], tuple[Tensor, Tensor]]
Augment = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TrainState:
    """What continues a run: copies on the CPU, independent of the model being trained.

    Attributes:
        epoch: Completed epochs.
        model: The model's state dict.
        optimizer: The optimiser's state dict.
        history: One ``{"epoch", "lr", "train_loss"}`` per completed epoch; ``train_loss`` is the
            mean over the epoch's samples, each at the parameters its batch was computed with.
    """

    epoch: int
    model: dict[str, Any]
    optimizer: dict[str, Any]
    history: tuple[dict[str, float], ...] = ()


def learning_rate(epoch: int, settings: TrainConfig) -> float:
    """Learning rate of an epoch, after [B] §4: constant, then linear in the epoch, then constant.

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
    on_batch: Callable[[int, int, int], None] | None = None,
    on_step: Callable[[nn.Module], None] | None = None,
) -> TrainState:
    """Train a model by momentum SGD on shuffled minibatches; the last, smaller batch is used too.

    Args:
        model: Trained in place; moved to the device and dtype.
        loss: (outputs, targets) -> scalar mean over the batch.
        data: The training samples.
        settings: Epochs, batch size, learning rates, momentum, weight decay, dtype and seed.
        device: Where to compute.
        start: State to continue from; None starts at epoch 0 from the model as given.
        rate: Epoch, counted from 0, to its learning rate; None for :func:`learning_rate`.
        augment: Makes the inputs of a batch anew in every step; random numbers are to come from
            torch's global generator of the CPU, which is seeded for every epoch.
        stop: Called with the state after ``on_epoch``; training ends where it is true.
        on_epoch: Called with the state after each epoch.
        on_batch: Called with epoch (from 0), batches done in it, and batches in it.
        on_step: Called with the model after each step of the optimiser.

    Returns:
        The state after the last epoch.

    Raises:
        ProblemError: If ``start`` belongs to another model, or the model or loss fails.
        NonFiniteError: If the loss or a parameter becomes NaN or infinite; ``on_epoch`` is not
            called for that epoch.
    """
    model.to(device=device, dtype=getattr(torch, settings.dtype))
    optimizer = _optimizer(model, settings)
    if start is None:
        start = _state(0, model, optimizer, ())
    else:
        try:
            model.load_state_dict(start.model)
            optimizer.load_state_dict(start.optimizer)
        except (RuntimeError, ValueError, KeyError) as error:
            raise ProblemError(f"the state to continue from does not fit: {error}") from error
    fetch = _fetcher(model, data, settings.dtype, device)
    state, was_training = start, model.training
    model.train()
    for epoch in range(start.epoch, settings.epochs):
        speed = learning_rate(epoch, settings) if rate is None else rate(epoch)
        for group in optimizer.param_groups:
            group["lr"] = speed
        order = rng.stream(settings.seed, "shuffle", epoch).permutation(len(data))
        chunks = [order[i : i + settings.batch] for i in range(0, len(order), settings.batch)]
        losses = []
        with rng.torch_seeded(settings.seed, "train", epoch):
            for done, chunk in enumerate(chunks, 1):
                inputs, targets = fetch(chunk)
                if augment is not None:
                    inputs = augment(inputs)
                losses.append(_step(model, loss, optimizer, inputs, targets))
                if on_step is not None:
                    on_step(model)
                if on_batch is not None:
                    on_batch(epoch, done, len(chunks))
        values = torch.stack(losses).cpu().double().numpy()  # read once: no wait in every step
        fault = _divergence(values, model)
        if fault:
            raise NonFiniteError(
                f"{fault} in epoch {epoch + 1} (learning rate {speed:g}); "
                "try a smaller learning rate"
            )
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
        raise NonFiniteError(
            f"the mean loss over the {data.split} split of {data.name} is {mean}; the parameters "
            "or the data are out of range, so try a smaller learning rate"
        )
    return mean, correct / len(data) if labelled else None


def _optimizer(model: nn.Module, settings: TrainConfig) -> torch.optim.SGD:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ProblemError(f"the model ({type(model).__name__}) has no trainable parameters")
    return torch.optim.SGD(
        parameters,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )


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


def _forward(
    model: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    try:
        outputs = model(inputs)
        value = loss(outputs, targets)
    except HessrmtError:
        raise
    except torch.OutOfMemoryError as error:
        raise _too_large(inputs) from error
    except Exception as error:
        raise ProblemError(
            f"the model or loss failed on inputs {tuple(inputs.shape)} and targets "
            f"{tuple(targets.shape)} of {targets.dtype}: {error}"
        ) from error
    if not isinstance(value, Tensor) or value.dim() != 0:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ProblemError(f"the loss must be a scalar mean over the batch, but it gave {got}")
    return outputs, value


def _step(
    model: nn.Module, loss: Loss, optimizer: torch.optim.SGD, inputs: Tensor, targets: Tensor
) -> Tensor:
    optimizer.zero_grad(set_to_none=True)
    _, value = _forward(model, loss, inputs, targets)
    try:
        value.backward()
    except torch.OutOfMemoryError as error:
        raise _too_large(inputs) from error
    except RuntimeError as error:
        raise ProblemError(f"the loss cannot be differentiated: {error}") from error
    try:
        optimizer.step()
    except torch.OutOfMemoryError as error:
        raise _too_large(inputs) from error
    except RuntimeError as error:
        raise NonFiniteError(
            f"a step of SGD failed ({error}); try a smaller learning rate"
        ) from error
    return value.detach()


def _divergence(losses: np.ndarray, model: nn.Module) -> str | None:
    if not np.isfinite(losses).all():
        first = int(np.argmin(np.isfinite(losses)))
        return f"the loss became {losses[first]} at batch {first + 1} of {len(losses)}"
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        return f"the parameters became NaN or infinite after batch {len(losses)}"
    return None


def _too_large(inputs: Tensor) -> DeviceError:
    return DeviceError(
        f"{inputs.device} has too little memory for a batch of {len(inputs)} samples; "
        "try a smaller batch"
    )


def _state(
    epoch: int, model: nn.Module, optimizer: torch.optim.SGD, history: tuple[dict[str, float], ...]
) -> TrainState:
    return TrainState(epoch, _copied(model.state_dict()), _copied(optimizer.state_dict()), history)


def _copied(tree: Any) -> Any:
    # plain dicts and lists, tensors copied to the CPU
    if isinstance(tree, Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        return {key: _copied(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_copied(value) for value in tree]
    return tree
