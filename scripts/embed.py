"""Turn images into features with a pretrained or user-supplied network.

The paper computes Hessians of small heads on features of a ResNet-34 for CIFAR-10:

    python scripts/embed.py --data cifar10 --model resnet34 --size 224 --out features.npz
    hessrmt spectrum --model logistic --data features.npz

Pretrained weights come with torchvision or timm. Without either, --weights takes a file of them, or
``random``: the architecture alone, with the statistics of the first batch in its BatchNorms.
"""

import argparse
import importlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from hessrmt.errors import DataError, DeviceError, HessrmtError, ProblemError
from hessrmt.problems import checkpoints, models
from hessrmt.problems.data import Dataset, load
from hessrmt.problems.plugins import among_neighbours, is_plugin, load_object

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

PRETRAINED, RANDOM = "pretrained", "random"


def build(name: str, weights: str = PRETRAINED, seed: int = 0) -> tuple[nn.Module, bool]:
    """The network, and whether it is a named one with weights (which want ImageNet's scaling).

    Args:
        name: ``file.py:factory``, a name of torchvision or timm, or with other weights than
            pretrained ones a convolutional network of hessrmt, e.g. ``resnet34``.
        weights: ``pretrained``, ``random``, or a file of them, whose last linear layer may have any
            number of outputs.
        seed: Of random weights.

    Returns:
        The module in eval mode, and True for a named network with weights.

    Raises:
        ProblemError: If there is no such network, or it cannot be built.
    """
    if weights != PRETRAINED:
        if is_plugin(name):
            raise ProblemError(f"{name} brings its own weights; leave --weights {weights} out.")
        return _of_hessrmt(name, weights, seed).eval(), weights != RANDOM
    if is_plugin(name):
        factory = load_object(name)
        with among_neighbours(name):
            made = callable(factory) and not isinstance(factory, nn.Module)
            model = factory() if made else factory
        if not isinstance(model, nn.Module):
            raise ProblemError(
                f"{name} gave a {type(model).__name__}, expected a torch.nn.Module from images to "
                f"features."
            )
        return model.eval(), False
    installed = []
    for library, make in (("torchvision", _torchvision), ("timm", _timm)):
        try:
            importlib.import_module(library)
        except ImportError:
            continue
        installed.append(library)
        try:
            model = make(name)
        except OSError as error:  # no network, no space
            raise ProblemError(f"cannot get the weights of {name} ({library}): {error}") from error
        if model is not None:
            return model.eval(), True
    if installed:
        raise ProblemError(
            f"{' and '.join(installed)} has no model {name!r}. Give one of its names, e.g. "
            f"resnet34, or file.py:factory."
        )
    raise ProblemError(
        f"the named model {name!r} needs torchvision or timm, and neither is installed: run "
        f"`pip install torchvision` (or timm), give --weights with a file of them or `random`, or "
        f"give file.py:factory."
    )


def _of_hessrmt(name: str, weights: str, seed: int) -> nn.Module:
    """A network of hessrmt for colour images, without its classifier."""
    state = None if weights == RANDOM else checkpoints.load_state(Path(weights))
    # the first number of the last matrix: how many classes the weights are for
    matrices = [len(tensor) for tensor in (state or {}).values() if tensor.ndim == 2]
    model = models.build(name, (3, 224, 224), matrices[-1] if matrices else 1000, seed)
    if not any(isinstance(module, nn.Conv2d) for module in model.modules()):
        raise ProblemError(f"{name} has no convolutions; for images take e.g. resnet34.")
    if state is not None:
        # older files have no counts of batches, which nothing here depends on
        counts = {k: v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")}
        checkpoints.apply_state(model, counts | state)
    return _cut(model, name)


def _torchvision(name: str) -> nn.Module | None:
    zoo = importlib.import_module("torchvision.models")
    if name not in zoo.list_models(module=zoo):
        return None
    return _cut(zoo.get_model(name, weights="DEFAULT"), name)


def _cut(model: nn.Module, name: str) -> nn.Module:
    """The network without its last linear layer."""
    linear = [key for key, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ProblemError(f"{name} has no linear classifier to remove; give file.py:factory.")
    parent, _, last = linear[-1].rpartition(".")
    setattr(model.get_submodule(parent), last, nn.Identity())
    return model


def _timm(name: str) -> nn.Module | None:
    timm = importlib.import_module("timm")
    if not timm.is_model(name):
        return None
    return timm.create_model(name, pretrained=True, num_classes=0)


def preparation(
    data: Dataset, model: nn.Module, pretrained: bool, size: int | None
) -> Callable[[Tensor], Tensor]:
    """What happens to a batch of images before the network sees it.

    Args:
        data: The images.
        model: The network.
        pretrained: Whether to scale as ImageNet's networks expect; otherwise pixels are in
            [-1, 1], as everywhere in hessrmt.
        size: Height and width to resize to, or None.

    Returns:
        A function of a (B, channels, height, width) batch.

    Raises:
        DataError: If the data are not images the network can take.
    """
    shape = data.input_shape
    images = len(shape) == 3 and shape[0] in {1, 3}
    if pretrained and not (images and data.x.dtype == np.uint8):
        raise DataError(
            f"{data.name} holds {data.x.dtype} samples of shape {shape}; a pretrained network "
            f"needs uint8 images of 1 or 3 channels."
        )
    if size is not None and len(shape) != 3:
        raise DataError(f"--size resizes images, but samples of {data.name} have shape {shape}.")
    convolution = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    wants_three = pretrained or (convolution is not None and convolution.in_channels == 3)
    repeat = images and shape[0] == 1 and wants_three

    def prepare(x: Tensor) -> Tensor:
        if repeat:
            x = x.expand(-1, 3, -1, -1)
        if size is not None:
            x = nn.functional.interpolate(
                x, (size, size), mode="bilinear", align_corners=False, antialias=True
            )
        if pretrained:
            mean = x.new_tensor(IMAGENET_MEAN)[:, None, None]
            std = x.new_tensor(IMAGENET_STD)[:, None, None]
            x = (x * 0.5 + 0.5 - mean) / std
        return x

    return prepare


def embed(
    data: Dataset, model: nn.Module, prepare: Callable[[Tensor], Tensor], batch: int, device: str
) -> np.ndarray:
    """Features of every sample.

    Args:
        data: N samples.
        model: The network, in eval mode.
        prepare: What :func:`preparation` returned.
        batch: Samples in one forward pass.
        device: Where to compute.

    Returns:
        (N, ...) float32 features.

    Raises:
        ProblemError: If the network cannot take the samples, or its output is not finite features.
    """
    done = []
    starts = range(0, len(data), batch)
    with torch.inference_mode():
        for start in tqdm(starts, desc=f"{data.name} {data.split}", unit="batch", file=sys.stderr):
            x, _ = data.tensors(slice(start, start + batch), torch.float32)
            try:
                features = model(prepare(x.to(device)))
            except (RuntimeError, TypeError, ValueError) as error:
                raise ProblemError(
                    f"the network failed on samples of shape {tuple(x.shape)}: {error}"
                ) from error
            if not isinstance(features, Tensor) or features.shape[:1] != x.shape[:1]:
                given = tuple(features.shape) if isinstance(features, Tensor) else type(features)
                raise ProblemError(
                    f"the network returned {given} for {len(x)} samples, expected a tensor "
                    f"({len(x)}, ...) of features."
                )
            if not bool(torch.isfinite(features).all()):
                raise ProblemError(
                    f"the network returned NaN or infinity in samples {start} to "
                    f"{start + len(x) - 1} of {data.name}."
                )
            done.append(features.float().cpu().numpy())
    return np.concatenate(done)


def settle(
    data: Dataset, model: nn.Module, prepare: Callable[[Tensor], Tensor], batch: int, device: str
) -> None:
    """Put the statistics of the first batch into every BatchNorm, in one pass.

    Args:
        data: Images.
        model: The network; in eval mode afterwards.
        prepare: What :func:`preparation` returned.
        batch: Images in the batch.
        device: Where to compute.

    Raises:
        ProblemError: If the network cannot take the images.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    x, _ = data.tensors(slice(batch), torch.float32)
    try:
        with torch.no_grad():
            model.train()(prepare(x.to(device)))
    except (RuntimeError, TypeError, ValueError) as error:
        shape = tuple(x.shape)
        raise ProblemError(f"the network failed on samples of shape {shape}: {error}") from error
    finally:
        model.eval()
        for norm, momentum in zip(norms, kept, strict=True):
            norm.momentum = momentum


def write(out: Path, arrays: dict[str, Any]) -> None:
    """Write an ``.npz`` completely or not at all.

    Args:
        out: The file.
        arrays: Its content.
    """
    handle, temporary = tempfile.mkstemp(dir=out.parent, prefix=out.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(out)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def run(options: argparse.Namespace) -> None:
    """Everything, from the options to the written file.

    Args:
        options: What :func:`parse` returned.

    Raises:
        DataError: If the output exists or cannot be written, or the data cannot be used.
        DeviceError: If the device is not there.
    """
    out: Path = options.out
    if out.suffix != ".npz" or not out.parent.is_dir():
        raise DataError(
            f"cannot write {out}: expected a name ending in .npz in an existing folder."
        )
    if out.exists() and not options.overwrite:
        raise DataError(f"{out} exists; give --overwrite to replace it, or another --out.")
    first = load(options.data, options.split)
    both = options.split is None and first.split != "all"
    parts = [load(options.data, "train"), first] if both else [first]
    model, pretrained = build(options.model, options.weights, options.seed)
    prepare = preparation(first, model, pretrained, options.size)
    try:
        model.to(options.device)
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(f"cannot use the device {options.device!r}: {error}") from error
    if options.weights == RANDOM:
        settle(parts[0], model, prepare, options.batch, options.device)
    arrays: dict[str, Any] = {}
    for data in parts:
        end = f"_{data.split}" if both else ""
        arrays[f"x{end}"] = embed(data, model, prepare, options.batch, options.device)
        arrays[f"y{end}"] = data.y
    if first.classes is not None:
        arrays["classes"] = first.classes
    try:
        write(out, arrays)
    except OSError as error:
        raise DataError(f"cannot write {out}: {error.strerror or error}.") from error
    shapes = ", ".join(f"{key} {np.shape(value)}" for key, value in arrays.items())
    print(f"{first.origin}\nwrote {out}: {shapes}", file=sys.stderr)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line.

    Args:
        arguments: Words to parse; None for the program's own.

    Returns:
        The options.
    """
    parser = argparse.ArgumentParser(
        description="Turn images into features; write them as an .npz that hessrmt reads."
    )
    parser.add_argument(
        "--data",
        required=True,
        help="mnist, fashion-mnist, cifar10, cifar100, an .npz file with x and y, or a folder of "
        "IDX files or CIFAR batches",
    )
    parser.add_argument(
        "--model",
        required=True,
        help="name of torchvision or timm (pretrained), file.py:factory, or with --weights a "
        "network of hessrmt: resnet34, resnet18, ...",
    )
    parser.add_argument(
        "--weights",
        default=PRETRAINED,
        help="pretrained (the default), a .pth or .safetensors file with the state dict of the "
        "network (for resnet34 torchvision's), or random",
    )
    parser.add_argument("--seed", type=int, default=0, help="of random weights (0)")
    parser.add_argument("--out", required=True, type=Path, help="the .npz to write")
    parser.add_argument(
        "--split", choices=("train", "test"), help="only this split, written as x and y"
    )
    parser.add_argument("--batch", type=_positive, default=256, help="samples per pass (256)")
    parser.add_argument("--device", default="cpu", help="cpu (the default) or cuda[:i]")
    parser.add_argument("--size", type=_positive, help="resize images to this height and width")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --out")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the script.

    Args:
        arguments: Words to parse; None for the program's own.

    Returns:
        0, or the exit code of the error.
    """
    try:
        run(parse(arguments))
    except HessrmtError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
