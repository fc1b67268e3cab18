"""Settings of ``hessrmt simulate``: which kernels there are, and which options each of them has."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from hessrmt.config.settings import Settings

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
"""That of the published code."""


class SimulateConfig(Settings):
    """Settings of ``hessrmt simulate``.

    Attributes:
        kernel: One of :data:`KERNELS`.
        k1: k'(0), for the kernel ``paper``.
        k2: k''(0), for the kernel ``paper``.
        k0: k(0), for the kernel ``paper``.
        variance: Of the loss.
        length: Of the kernel, in units of the weights.
        alpha: Shape of the rational quadratic kernel.
        nu: Smoothness of the Matérn kernel, above 2.
        p: Spins that interact.
        coefficients: Of t², t³, ... in ν(t) of the mixed spherical model.
        dimension: Directions in which the loss is random, n.
        samples: How many Hessians.
        outliers: How many outliers s (1 + g²), g standard normal, are drawn for each sample.
        outlier_scale: s; None for 10, which the published code takes.
        outlier_values: Outliers instead, the same in every sample.
        degenerate: Further directions in which the loss is constant: exact zeros.
        given_loss: The loss at the point if it is known.
        method: ``auto``, ``tridiagonal`` (or band) or ``dense``.
        device: ``auto``, ``cpu`` or ``cuda[:i]``.
        seed: The run's seed.
    """

    kernel: Kernel = "rbf"
    k1: float | None = None
    k2: float | None = None
    k0: float | None = None
    variance: float | None = None
    length: float | None = None
    alpha: float | None = None
    nu: float | None = None
    p: int | None = None
    coefficients: tuple[float, ...] | None = None
    dimension: int = Field(300, ge=1)
    samples: int = Field(100, ge=1)
    outliers: int = Field(0, ge=0)
    outlier_scale: float | None = Field(None, gt=0, allow_inf_nan=False)
    outlier_values: tuple[float, ...] | None = None
    degenerate: int = Field(0, ge=0)
    given_loss: float | None = None
    method: Literal["auto", "tridiagonal", "dense"] = "auto"
    device: str = "auto"
    seed: int = Field(0, ge=0)

    @property
    def kernel_options(self) -> dict[str, Any]:
        """Options of the kernel, defaults filled in."""
        given = {name: getattr(self, name) for name in KERNELS[self.kernel]}
        return KERNELS[self.kernel] | {k: v for k, v in given.items() if v is not None}

    @field_validator("coefficients", "outlier_values", mode="before")
    @classmethod
    def _comma_separated(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return tuple(float(part) for part in value.split(","))
        except ValueError:
            raise ValueError("should be numbers with commas between them, e.g. 30,50") from None

    @model_validator(mode="after")
    def _options_belong(self) -> Self:
        own = KERNELS[self.kernel]
        every = {name: None for options in KERNELS.values() for name in options}
        for name in every:
            if name not in own and getattr(self, name) is not None:
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
