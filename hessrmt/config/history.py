"""Settings of ``hessrmt train --history``."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

from pydantic import Field, field_validator

from hessrmt.config.settings import Settings
from hessrmt.errors import ConfigError


class HistoryConfig(Settings):
    """What is recorded during training.

    Attributes:
        epochs: After how many epochs: some numbers in ascending order; one number N for every N-th
            epoch, from 0 on; or ``auto`` for 0, 1, 2, 5, 10, 20, 50 and so on. 0 is the untrained
            network. The last epoch is always recorded too.
        batch: Samples of the batch whose Hessian it is: the first of the test split, in the order
            of the file.
        only: Pattern of the parameter names whose Hessian it is; None for all trainable ones.
        conv: Convolutions as ``slices``, ``pooled`` or ``unfolded``, as for ``hessrmt capacity``.
    """

    epochs: int | tuple[int, ...] | Literal["auto"] = "auto"
    batch: int = Field(64, ge=1)
    only: str | None = None
    conv: Literal["slices", "pooled", "unfolded"] = "slices"

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
            last: Epochs of the run.

        Returns:
            The epochs to record, ascending, ``last`` among them.

        Raises:
            ConfigError: If one lies beyond the last.
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
