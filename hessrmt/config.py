"""Settings of the commands, each declared once: type, default, limits, and what it means.

A settings class is what a TOML file holds, what a command takes as options
(:mod:`hessrmt.cli.options` makes them from the class), and what is stored with a result.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from hessrmt.errors import ConfigError
from hessrmt.files import require_ordinary
from hessrmt.tables import printable

_MOST = 10**12
"""Of anything: numpy refuses sizes beyond some 10^18 with errors of its own."""

_NAME = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')"""
_DEEP_KEY = re.compile(rf"(?<![\w-])(?:{_NAME}[ \t]*+\.[ \t]*+){{64}}")
"""A key of TOML, such as a.b.c, with more parts than any setting has."""


class Settings(BaseModel):
    """What every settings class does: frozen, no unknown names, numbers that are some."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        values = value if isinstance(value, list | tuple) else [value]
        kind = cls.model_fields[str(info.field_name)].annotation
        if any(isinstance(item, bool) for item in values) and not _holds_truth(kind):
            raise ValueError("should not be true or false")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _no_endless_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, int) and info.field_name != "seed" and abs(value) > _MOST:
            raise ValueError(f"should be at most {_MOST:,}")
        return value


def _holds_truth(annotation: Any) -> bool:
    """Whether a setting of this type may be true or false."""
    return annotation is bool or any(map(_holds_truth, get_args(annotation)))


SettingsT = TypeVar("SettingsT", bound=Settings)


def option(default: Any, help: str, *, shown: str = "", **limits: Any) -> Any:
    """A setting.

    Args:
        default: Its value where none is given.
        help: What it means, with its unit.
        shown: The default in words, where the value itself says nothing.
        limits: Of pydantic's fields; ``panel`` is the heading in ``--help``, ``metavar`` what
            stands for the value there.

    Returns:
        A pydantic field.
    """
    extra = {name: limits.pop(name) for name in ("panel", "metavar") if name in limits}
    if isinstance(default, float) and default != float("inf"):
        limits.setdefault("allow_inf_nan", False)
    return Field(default, description=help, json_schema_extra={"shown": shown, **extra}, **limits)


def load_settings(kind: type[SettingsT], file: Path | None = None, **options: Any) -> SettingsT:
    """Settings from a TOML file, overridden by the options that are not None.

    Args:
        kind: Which settings class to build.
        file: TOML file with the class's field names as keys, or None.
        options: Values given on the command line; None means "not given".

    Returns:
        The validated settings.

    Raises:
        ConfigError: If the file is unreadable, a name is unknown or a value cannot be used.
    """
    values: dict[str, Any] = {}
    if file is not None:
        require_ordinary(file)
        try:
            text = file.read_text(encoding="utf-8-sig")
            if _DEEP_KEY.search(text):  # tomllib takes memory of the depth squared
                raise ConfigError(f"{file} is nested too deep for settings")
            values = tomllib.loads(text)
        except OSError as error:
            raise ConfigError(f"cannot read the settings file {file}: {error.strerror}") from error
        except RecursionError as error:
            raise ConfigError(f"{file} is nested too deep for settings") from error
        except ValueError as error:  # no TOML, no UTF-8, or a number of thousands of digits
            raise ConfigError(f"{file} is not valid TOML: {error}") from error
    values |= {name: value for name, value in options.items() if value is not None}
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_in_words(error, values)) from error


def _in_words(error: ValidationError, values: Mapping[str, Any]) -> str:
    lines: dict[str, str] = {}
    for item in error.errors():
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "there is no such setting"
        if item["loc"]:
            name = _place(item["loc"], values)
            lines.setdefault(name, f"{name}: {message} (got {item['input']!r})")
        else:  # about several settings together
            lines.setdefault("", message)
    said = list(lines.values())
    if len(said) > _LISTED:
        said[_LISTED:] = [f"and {len(said) - _LISTED:,} more like it"]
    return "; ".join(said)


_LISTED = 8
"""Settings that are wrong, named in one message."""


def _place(location: Iterable[str | int], values: Any) -> str:
    """Names down to the setting that is wrong, without what pydantic adds of its type."""
    names = []
    for name in location:
        if not isinstance(values, Mapping):
            break
        names.append(printable(str(name)))
        values = values.get(name)
    return ".".join(names)


def number_or_text(value: str) -> int | float | str:
    """A value as the most special of integer, number and text."""
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def window_bounds(text: str) -> tuple[float | None, float | None]:
    """The bounds of a window in words.

    Args:
        text: ``LOW:HIGH``, ``LOW:`` or ``:HIGH``.

    Returns:
        Lower and upper bound, None for an open side.

    Raises:
        ValueError: If it is anything else.
    """
    try:
        low, high = (float(side) if side.strip() else None for side in text.split(":"))
    except ValueError:
        raise ValueError(
            "should be two numbers with a colon between them, one of which may be left out: "
            "0.1:0.5, 0.5: or :-0.1"
        ) from None
    return low, high


def _number_or(*words: str, wanted: str, kind: Any = int | float, above: float = 0) -> Any:
    """Checks that a setting is a number of some kind, or one of some words."""

    def checked(value: Any) -> Any:
        number: Any = number_or_text(value) if isinstance(value, str) else value
        known = isinstance(number, kind) and not isinstance(number, bool)
        if value not in words and not (known and above < number < float("inf")):
            raise ValueError(f"should be {wanted}")
        return number

    return BeforeValidator(checked)


CountOrAll = Annotated[
    int | Literal["all"],
    _number_or("all", wanted="a positive integer, or 'all'", kind=int),
]
"""How many, or all that there are."""


def _words_of(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(filter(None, (part.strip() for part in value.split(","))))
    return value


Words = Annotated[tuple[str, ...], BeforeValidator(_words_of)]
"""Several words, as a list or with commas between them."""

Cutoff = Annotated[
    float | Literal["certified", "paper"],
    _number_or("certified", "paper", wanted="certified, paper or a number", above=-float("inf")),
]
UpperEnd = Annotated[
    float | Literal["none", "max"],
    _number_or("none", "max", wanted="none, max or a number above 0"),
]
Dtype = Literal["float32", "float64"]
Split = Literal["train", "test"]
Operator = Literal["hessian", "ggn"]
ConvolutionAs = Literal["slices", "pooled", "unfolded"]

_MODEL = (
    "logistic, mlp2, mlp3, lenet5, conv3-N, conv3s2-N, conv5, conv5-N (N filters), resnet8, "
    "resnet20, ... (6n+2), resnet18, resnet34 (ImageNet's), or file.py:factory."
)
_DATA = (
    "mnist, fashion-mnist, cifar10, cifar100, an .npz file with x and y, or a directory of IDX "
    "files or CIFAR batches."
)
_LOSS = (
    "cross-entropy, mse (squares summed over outputs, mean over samples), next-token (language "
    "models), or file.py:function."
)
_CHECKPOINT = (
    "Trained parameters: a .pt, .pth, .bin, .ckpt, .pth.tar, .safetensors or .npz file, or a "
    "folder of shards."
)
_OPERATOR = "hessian, or ggn for the generalised Gauss-Newton matrix."
_ONLY = "Names of the parameters to differentiate in, as a pattern, e.g. '7.*'."
_DEVICE = "auto, cpu, cuda or cuda:N."
_SEED = "Seed of all random numbers."
_MOST_SEED = 2**64 - 1  # what files can hold
_RANDOM = "random initial values"


class _OnData(Settings):
    """Settings of every command that takes a network and data."""

    model: str = option("mlp3", _MODEL)
    data: str = option("mnist", _DATA)
    loss: str = option("cross-entropy", _LOSS)
    device: str = option("auto", _DEVICE)
    seed: int = option(0, _SEED, ge=0, le=_MOST_SEED)


class _OfCurvature(_OnData):
    """Settings of every command that takes the Hessian of a network."""

    split: Split | None = option(None, "train or test.", shown="test")
    checkpoint: Path | None = option(None, _CHECKPOINT, shown=_RANDOM)
    operator: Operator = option("hessian", _OPERATOR)
    only: str | None = option(None, _ONLY, shown="all")
    dtype: Dtype = option("float64", "float64 or float32.")


class SpectrumConfig(_OfCurvature):
    """Settings of ``hessrmt spectrum``."""

    batch: CountOrAll = option(
        64, "Samples in a batch, or 'all' for one Hessian of the whole split."
    )
    batches: CountOrAll = option(4, "Number of batches from the start, or 'all'.")
    reduce: Literal["auto", "range", "dense", "none"] = option(
        "auto",
        "dense diagonalises in the coordinates that the network's structure leaves; range in a "
        "basis of the range, as small as the rank; auto takes the cheaper; none the full matrix.",
    )
    blocks: Literal["layer"] | None = option(
        None,
        "layer: a spectrum for the parameters of each layer, all others held constant.",
        shown="the whole matrix",
    )

    @model_validator(mode="after")
    def _one_batch_of_all(self) -> Self:
        asked = self.batches if "batches" in self.model_fields_set else "all"
        if self.batch == "all" and asked not in {1, "all"}:
            raise ValueError(f"batch = all is one batch of the split, not {asked}; leave one out")
        return self


class DensityConfig(_OfCurvature):
    """Settings of ``hessrmt density``."""

    samples: CountOrAll = option(
        "all", "The loss is the mean over so many samples from the start, or 'all'."
    )
    batch: int = option(256, "Samples differentiated at a time.", ge=1)
    probes: int = option(10, "Probes: random vectors that the density is averaged over.", ge=1)
    steps: int = option(100, "Lanczos steps from each probe.", ge=1)
    law: Literal["rademacher", "gaussian"] = option(
        "rademacher", "Entries of the probes: rademacher (±1) or gaussian."
    )
    top: int = option(0, "Also the K largest eigenvalues, with error bounds.", ge=0, metavar="K")
    bottom: int = option(
        0, "Also the K smallest eigenvalues, with error bounds.", ge=0, metavar="K"
    )
    largest: int = option(0, "The K eigenvalues of largest magnitude instead.", ge=0, metavar="K")
    window: str | None = option(
        None,
        "All eigenvalues between LOW and HIGH instead, and how surely none was missed; one side "
        "may be open: 0.5: or :-0.1. Zero must lie outside.",
        metavar="LOW:HIGH",
        shown="none",
    )
    failure_probability: float = option(
        1e-6, "That a window's completeness may fail with.", gt=0, le=0.5
    )
    tolerance: float = option(
        1e-10, "Largest residual of these eigenvalues, relative to the norm.", gt=0, lt=1
    )
    products: Literal["differentiation", "finite-difference"] = option(
        "differentiation",
        "finite-difference: central differences of the gradient, for networks that torch cannot "
        "differentiate twice.",
    )
    check_multiplicity: bool = option(
        True, "Search again for further copies of multiple eigenvalues.", shown="yes"
    )
    trace: Literal["hutch++", "xtrace"] | None = option(
        None, "hutch++ or xtrace: estimate trace and Frobenius norm.", shown="neither"
    )
    trace_products: int = option(60, "Hessian-vector products for the trace.", ge=6)

    @model_validator(mode="after")
    def _one_kind_of_end(self) -> Self:
        if self.largest and (self.top or self.bottom):
            raise ValueError("largest takes eigenvalues of both ends; leave out top and bottom")
        if self.window is not None and (self.top or self.bottom or self.largest):
            raise ValueError("window takes all its eigenvalues; leave out top, bottom and largest")
        return self

    @model_validator(mode="after")
    def _differences_of_hessian(self) -> Self:
        if self.products == "finite-difference" and self.operator != "hessian":
            raise ValueError("products by finite-difference are those of the operator hessian")
        return self

    @field_validator("window")
    @classmethod
    def _two_numbers(cls, text: str | None) -> str | None:
        if text is not None:
            window_bounds(text)
        return text


class LandscapeConfig(_OfCurvature):
    """Settings of ``hessrmt landscape``."""

    batch: CountOrAll = option(64, "Samples from the start of the split, or 'all'.")
    directions: int = option(1, "Eigenvectors: 1 or 2.", ge=1, le=2)
    points: int = option(41, "Points along each, an odd number.", ge=3)
    span: float | None = option(
        None,
        "Largest distance from the parameters.",
        gt=0,
        shown="where a parabola has added the loss",
    )


class TrainConfig(_OnData):
    """Settings of ``hessrmt train``; the defaults are the protocol of Baskerville et al. (2022).

    The learning rate is ``lr`` up to epoch ``decay_start``, falls linearly to ``final_lr`` at
    ``decay_end`` and stays there.
    """

    epochs: int = option(300, "Passes over the training data.", ge=1)
    batch: int = option(128, "Samples in a minibatch.", ge=1)
    lr: float = option(0.003, "Learning rate up to --decay-start.", gt=0)
    final_lr: float = option(0.00003, "Learning rate from --decay-end on.", ge=0, shown="0.00003")
    momentum: float = option(0.9, "Momentum of SGD.", ge=0, lt=1)
    weight_decay: float = option(5e-4, "Weight decay.", ge=0)
    stable_rank: float = option(
        0.0,
        "Weight μ of a penalty μ Σ ‖W‖_F²/‖W‖₂², the layers' stable ranks, that is added to the "
        "loss.",
        ge=0,
        shown="0, none",
    )
    decay_start: int = option(150, "Epoch at which the rate starts to fall.", ge=0)
    decay_end: int = option(270, "Epoch at which the rate stops falling.", ge=0)
    dtype: Dtype = option("float32", "float32 or float64.")

    @model_validator(mode="after")
    def _decay_in_order(self) -> Self:
        if self.decay_end < self.decay_start:
            raise ValueError("decay_end comes before decay_start")
        return self

    @property
    def identity(self) -> dict[str, Any]:
        """What a run that continues a file must share; files from before a setting lack it."""
        return self.model_dump(mode="json", exclude=None if self.stable_rank else {"stable_rank"})


class HistoryConfig(Settings):
    """What ``hessrmt train --history`` records during training."""

    epochs: int | tuple[int, ...] | Literal["auto"] = option(
        "auto",
        "Epochs to record: 0,1,5 (0 is the untrained network), or N for every N-th; the last one "
        "always.",
        shown="0,1,2,5,10,20,50 and so on",
    )
    batch: int = option(
        64, "Samples of the Hessian's batch, the first ones of the test split.", ge=1
    )
    only: str | None = option(
        None, "Names of the parameters whose Hessian it is, as a pattern, e.g. '7.*'.", shown="all"
    )
    conv: ConvolutionAs = option(
        "slices", "Convolutions as slices, pooled or unfolded; see hessrmt capacity."
    )

    @field_validator("epochs", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        wanted = "should be numbers such as 0,1,10, one number N for every N-th, or auto"
        if isinstance(value, str) and value != "auto":
            parts = [part.strip() for part in value.split(",")]
            if not all(part.isascii() and part.isdigit() for part in parts if part):
                raise ValueError(wanted)
            numbers = tuple(int(part) for part in parts if part)
            value = numbers if len(parts) > 1 else numbers[0] if numbers else ()
        if isinstance(value, list | tuple):
            plain = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in value)
            if not value or not plain:
                raise ValueError(wanted)
            if any(b <= a for a, b in pairwise(value)):
                raise ValueError("should ascend, each number once")
        elif value != "auto" and (isinstance(value, bool) or not isinstance(value, int)):
            raise ValueError(wanted)
        elif value != "auto" and value < 1:
            raise ValueError("every N-th needs N of at least 1; for the untrained network give 0,")
        return value

    def schedule(self, last: int) -> tuple[int, ...]:
        """The epochs of a run.

        Args:
            last: The last epoch of the training.

        Returns:
            Ascending, the last epoch among them.

        Raises:
            ConfigError: If an epoch after the last one is asked for.
        """
        if self.epochs == "auto":
            decades = range(len(str(last)))
            chosen = [0, *(k * 10**d for d in decades for k in (1, 2, 5) if k * 10**d <= last)]
        elif isinstance(self.epochs, int):
            chosen = list(range(0, last + 1, self.epochs))
        else:
            chosen = list(self.epochs)
            if chosen[-1] > last:
                raise ConfigError(
                    f"epoch {chosen[-1]} cannot be recorded: the training ends after {last}"
                )
        return tuple(chosen) if chosen[-1] == last else (*chosen, last)


class LevelsConfig(Settings):
    """Settings of ``hessrmt levels``."""

    cutoff: Cutoff = option(
        "certified",
        "Eigenvalues to keep: certified (|λ| above the noise floor), paper (|λ| > 1e-20) or a "
        "number (|λ| above it).",
    )
    compare: bool = option(False, "Both cutoffs, paper and certified, side by side.")
    unfold: str = option(
        "auto",
        "How to unfold (mean spacing 1): auto, pooled, window, kernel, spline, polynomial or "
        "analytic; with options: polynomial:degree=7. auto is pooled from 30 spectra on, else "
        "window.",
    )
    rotate: bool = option(
        True,
        "Pooled unfolding: every third of the spectra by the other two, or the published split "
        "(⅔ pool, ⅓ unfolded).",
        shown="rotate",
    )
    window: str | None = option(
        None,
        "Range of the eigenvalues to take, e.g. 1e-6:0.1; either end may be left out.",
        shown="all",
        metavar="LOW:HIGH",
    )
    drop_outliers: Literal["none", "gap", "marchenko-pastur"] = option(
        "none",
        "Leave out levels beyond the bulk: beyond a gap near an end of the spectrum, or above the "
        "edge of Marchenko and Pastur's law (positive matrices).",
    )
    orders: int = option(
        1,
        "Also spacings and ratios of every k-th level, up to this k, beside those of GOE and "
        "Poisson surrogates.",
        ge=1,
        le=10,
    )
    surrogates: int = option(
        200,
        "Data sets for each p-value of spacings (surrogates); 0: p-values of ratios only.",
        ge=0,
        le=100_000,
    )
    device: str = option("auto", _DEVICE)
    seed: int = option(0, _SEED, ge=0, le=_MOST_SEED)

    @property
    def cutoffs(self) -> dict[str, float | str]:
        """Name to cutoff of each analysis."""
        chosen = ("paper", "certified") if self.compare else (self.cutoff,)
        return {str(cutoff): cutoff for cutoff in chosen}

    @property
    def range(self) -> tuple[float, float] | None:
        """The window as two numbers."""
        if self.window is None:
            return None
        low, colon, high = self.window.partition(":")
        try:
            ends = float(low or "-inf"), float(high or "inf")
        except ValueError:
            ends = (0.0, 0.0)
        if not (colon and ends[0] < ends[1]):
            wanted = "should be LOW:HIGH with LOW < HIGH, e.g. 1e-6:0.1 or 1e-6:"
            raise ValueError(f"window: {wanted} (got {self.window!r})")
        return ends

    @property
    def method(self) -> tuple[str, dict[str, int | float | str]]:
        """Unfolding method and its options."""
        name, _, rest = self.unfold.partition(":")
        options: dict[str, int | float | str] = {}
        for part in filter(None, rest.split(",")):
            key, _, value = part.partition("=")
            if not (key and value):
                wanted = "should be METHOD or METHOD:OPTION=VALUE,..., e.g. spline:knots=20"
                raise ValueError(f"unfold: {wanted} (got {self.unfold!r})")
            options[key.strip()] = number_or_text(value.strip())
        return name.strip(), options

    @model_validator(mode="after")
    def _can_be_used(self) -> Self:
        if self.compare and self.cutoff != "certified":
            raise ValueError("compare takes the cutoffs paper and certified; leave out cutoff")
        _ = self.range, self.method  # raise if they cannot be read
        return self


class CapacityConfig(Settings):
    """Settings of ``hessrmt capacity``; see :func:`hessrmt.capacity.analyze`."""

    conv: ConvolutionAs = option(
        "slices",
        "Convolutions as slices (a matrix for each kernel position), pooled (their eigenvalues "
        "together) or unfolded (one matrix).",
    )
    only: str | None = option(None, "Pattern of the layers to take, e.g. 'encoder.*'.", shown="all")
    min_size: int = option(2, "Leave out matrices of fewer eigenvalues.", ge=1)
    base: str | None = option(
        None,
        "The network that the sources are LoRA adapters of: measured is their sum.",
        metavar="F",
    )
    initial: str | None = option(
        None, "The network before training, to measure distances from.", metavar="F"
    )
    randomize: bool = option(
        False, "Also with the entries of each matrix permuted: what stays above the bulk?"
    )
    p_values: int = option(
        0,
        "Bootstrap samples for the p-value of each power law, 0 for none.",
        ge=0,
        le=100_000,
        metavar="N",
    )
    x_max: UpperEnd = option(
        "none",
        "Upper end of the power laws: none, max (the largest eigenvalue) or a number.",
    )
    two_sided: bool = option(
        False,
        "Power laws by the two-sided Kolmogorov-Smirnov distance, not that of steps' lower ends "
        "alone (as the package powerlaw).",
    )
    compare: tuple[Literal["lognormal", "exponential", "truncated"], ...] = option(
        (), "Compare the power law with lognormal, exponential or truncated; repeatable."
    )
    exact: bool = option(
        False, "Singular values of W instead of eigenvalues of WᵀW: slower, more digits."
    )
    against: Path | None = option(
        None,
        "Accuracies of the series: a column source or name, and columns of numbers; with a column "
        "path no SOURCE is needed.",
        metavar="CSV",
    )
    side_by_side: bool = option(
        False, "Compare networks layer by layer; --csv and --plot are then about that."
    )
    columns: Words = option(
        (), "Columns of that table to compare with, e.g. test_error,test_loss.", shown="all"
    )
    device: str = option("auto", _DEVICE)
    seed: int = option(0, _SEED, ge=0, le=_MOST_SEED)

    @property
    def upper(self) -> float | Literal["max"] | None:
        """``x_max`` as the fit takes it."""
        if self.x_max == "none":
            return None
        return self.x_max


class NormalizeConfig(_OnData):
    """Settings of ``hessrmt normalize``."""

    checkpoint: Path | None = option(None, "Trained parameters (as of spectrum); else random ones.")
    norm: float = option(2, "p of the L_p norms, from 1 on; inf for the largest.", ge=1)
    by: Literal["layers", "output"] = option(
        "layers",
        "layers, or output: the norm of the output on the first training samples, for networks "
        "that are not homogeneous.",
    )
    reference: int = option(1, "How many samples --by output takes.", ge=1)
    batch: int = option(1024, "Samples computed at a time.", ge=1)
    fit: Path | None = option(
        None,
        "Instead, the line of test against training losses in this table, a row for each network; "
        "rows without a test loss are predicted.",
        metavar="CSV",
    )
    columns: Words = option(
        (),
        "Training and test column of that table.",
        shown="train,test, or train_loss,test_loss, or both with normalized_ before them",
    )
    level: float = option(0.95, "Probability of its prediction intervals.", gt=0, lt=1)

    @model_validator(mode="after")
    def _a_table_or_a_network(self) -> Self:
        if self.fit is None and self.columns:
            raise ValueError("columns are those of a table; give one with fit")
        if self.fit is not None and self.checkpoint is not None:
            raise ValueError("fit reads a table alone; leave out checkpoint")
        if self.columns and len(self.columns) != 2:
            raise ValueError("columns should be two names, training and test, e.g. train,test")
        return self


Kernel = Literal["paper", "rbf", "rational-quadratic", "matern", "p-spin", "mixed-spherical"]

KERNELS: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "paper": {"k1": 1.0, "k2": 1.0, "k0": 1.0},
        "rbf": {"variance": 1.0, "length": 1.0},
        "rational-quadratic": {"variance": 1.0, "length": 1.0, "alpha": 1.0},
        "matern": {"nu": 2.5, "variance": 1.0, "length": 1.0},
        "p-spin": {"p": 3},
        "mixed-spherical": {"coefficients": None},
    }
)
"""Kernel to its options and their defaults; None for one that must be given."""

OUTLIER_SCALE = 10.0
"""Scale of drawn outliers wherever none is given: that of the published code."""


def _numbers_of(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise ValueError("should be numbers with commas between them, e.g. 30,50") from None


Numbers = Annotated[tuple[float, ...], BeforeValidator(_numbers_of)]
"""Several numbers, as a list or with commas between them."""


class SimulateConfig(Settings):
    """Settings of ``hessrmt simulate``."""

    kernel: Kernel = option(
        "rbf",
        "rbf, rational-quadratic, matern, p-spin, mixed-spherical, or paper: the published "
        "covariance.",
        panel="Kernel",
    )
    k1: float | None = option(None, "k'(0), of paper.", shown="1", panel="Kernel")
    k2: float | None = option(None, "k''(0), of paper.", shown="1", panel="Kernel")
    k0: float | None = option(None, "k(0), of paper.", shown="1", panel="Kernel")
    length: float | None = option(
        None, "Length scale of rbf, rational-quadratic and matern.", shown="1", panel="Kernel"
    )
    variance: float | None = option(
        None, "k(0) of rbf, rational-quadratic and matern.", shown="1", panel="Kernel"
    )
    alpha: float | None = option(None, "Shape of rational-quadratic.", shown="1", panel="Kernel")
    nu: float | None = option(None, "Smoothness of matern, above 2.", shown="2.5", panel="Kernel")
    p: int | None = option(None, "Degree p of p-spin.", shown="3", panel="Kernel")
    coefficients: Numbers | None = option(
        None, "Coefficients of t², t³, ... in ν(t) of mixed-spherical, e.g. 1,0.5.", panel="Kernel"
    )
    given_loss: float | None = option(
        None, "The random part of the loss at the point, if it is known.", panel="Kernel"
    )
    dimension: int = option(300, "Directions in which the loss is random.", ge=1, panel="Model")
    samples: int = option(100, "Hessians to sample.", ge=1, panel="Model")
    outliers: int = option(
        0,
        "How many outliers s(1 + g²), g standard normal, are drawn for each sample.",
        ge=0,
        panel="Model",
    )
    outlier_scale: float | None = option(
        None,
        "Scale s of the outliers.",
        shown=f"{OUTLIER_SCALE:g}",
        gt=0,
        allow_inf_nan=False,
        panel="Model",
    )
    outlier_values: Numbers | None = option(
        None, "Outliers of these sizes, the same in every sample, e.g. 30,50.", panel="Model"
    )
    degenerate: int = option(
        0,
        "Further directions in which the loss is constant: exact zeros.",
        ge=0,
        panel="Model",
    )
    method: Literal["auto", "tridiagonal", "dense"] = option(
        "auto", "tridiagonal (a band with outliers; no n × n matrix), dense, or auto."
    )
    device: str = option("auto", _DEVICE)
    seed: int = option(0, _SEED, ge=0, le=_MOST_SEED)

    @property
    def kernel_options(self) -> dict[str, Any]:
        """Options of the kernel, defaults filled in."""
        given = {name: getattr(self, name) for name in KERNELS[self.kernel]}
        return KERNELS[self.kernel] | {k: v for k, v in given.items() if v is not None}

    @model_validator(mode="after")
    def _options_belong(self) -> Self:
        own = KERNELS[self.kernel]
        for name in {name for options in KERNELS.values() for name in options} - own.keys():
            if getattr(self, name) is not None:
                raise ValueError(
                    f"the kernel {self.kernel} has no option {name}; it has {', '.join(own)}"
                )
        for name, value in self.kernel_options.items():
            if value is None:
                raise ValueError(f"the kernel {self.kernel} needs {name}")
        if self.outlier_values is not None and self.outliers:
            raise ValueError(
                "outliers are drawn, outlier_values are given once and for all: leave one of them "
                "out"
            )
        if self.outlier_scale is not None and not self.outliers:
            raise ValueError("outlier_scale is that of drawn outliers; say how many with outliers")
        return self
