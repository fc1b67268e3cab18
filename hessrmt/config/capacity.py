"""Settings of ``hessrmt capacity``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from hessrmt.config.settings import Settings, number_or_text

Alternative = Literal["lognormal", "exponential", "truncated"]


class CapacityConfig(Settings):
    """Settings of ``hessrmt capacity``; see :func:`hessrmt.capacity.analyze`.

    Attributes:
        conv: Convolutions as ``slices``, ``pooled`` or ``unfolded``.
        only: Pattern of the layer names to take; None for all.
        min_size: Fewest eigenvalues of a spectrum.
        initial: The network before training, for distances; None for none.
        randomize: Whether matrices with permuted entries are diagonalised too.
        p_values: Bootstrap samples for the p-value of every power law; 0 for none.
        x_max: Where tails end: ``none``, ``max`` (at λ_max) or a number.
        compare: Laws that the power law is compared with.
        exact: Singular values instead of Gram eigenvalues.
        against: Table of accuracies (CSV); None for none.
        device: ``auto``, ``cpu`` or ``cuda[:i]``.
        seed: Of permutations and bootstraps.
    """

    conv: Literal["slices", "pooled", "unfolded"] = "slices"
    only: str | None = None
    min_size: int = Field(2, ge=1)
    initial: str | None = None
    randomize: bool = False
    p_values: int = Field(0, ge=0, le=100_000)
    x_max: str | float = "none"
    compare: tuple[Alternative, ...] = ()
    exact: bool = False
    against: Path | None = None
    device: str = "auto"
    seed: int = Field(0, ge=0)

    @property
    def upper(self) -> float | Literal["max"] | None:
        """``x_max`` as the fit takes it."""
        if self.x_max == "none":
            return None
        return "max" if self.x_max == "max" else float(self.x_max)

    @field_validator("x_max")
    @classmethod
    def _word_or_number(cls, value: str | float) -> str | float:
        number = number_or_text(value) if isinstance(value, str) else value
        if number in {"none", "max"}:
            return value
        if isinstance(number, str) or not 0 < number < float("inf"):
            raise ValueError("should be none, max or a number above 0")
        return float(number)
