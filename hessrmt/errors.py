"""The exception tree: every error this package raises on purpose.

An error says what was given, what was expected and what to try. ``exit_code`` is what the
command line returns for it: 2 for bad usage or bad input, 1 for a run that failed.
"""

from __future__ import annotations

import errno

_NO_MEMORY = (
    "out of memory",
    "not enough memory",
    "t allocate memory",
    "alloc_failed",
    "bad_alloc",
)
"""What torch, and the libraries below it, say in a plain RuntimeError."""


class HessrmtWarning(UserWarning):
    """What a reader of the numbers must know, though they are right."""


class HessrmtError(Exception):
    """Base class of every error raised on purpose by hessrmt."""

    exit_code = 2


class ConfigError(HessrmtError):
    """A setting or option has a value that cannot be used."""


class ProblemError(HessrmtError):
    """A model or loss cannot be differentiated as asked, or a checkpoint does not fit it."""


class DataError(HessrmtError, ValueError):
    """Data or an argument cannot be used: missing, unreadable, or of values that none may have."""


LevelsError = EnsembleError = LossModelError = CapacityError = GeneralizationError = DataError
"""Older names of :class:`DataError`."""


class DeviceError(HessrmtError):
    """The requested device is not there, or has too little memory for the work."""


class NoMemoryError(DeviceError):
    """Memory that was planned with, or could not be planned, ran out in the middle of a run."""

    exit_code = 1


class StoreError(HessrmtError):
    """A spectrum file cannot be written, read or resumed."""


class WriteError(StoreError):
    """Writing to a file failed in the middle of a run (disk full, file system gone)."""

    exit_code = 1


class NonFiniteError(HessrmtError):
    """A loss, gradient or Hessian came out as NaN or infinity; no level is reported."""

    exit_code = 1


class ConvergenceError(HessrmtError):
    """An iteration (eigensolver, optimiser) did not converge."""

    exit_code = 1


class OptionError(DataError):
    """An option of a method has a name or a value that it never can have, whatever the levels."""


class ClusterError(HessrmtError):
    """A Dask cluster cannot be reached, lost its workers, or doesn't match this installation."""

    exit_code = 1


class DistributedError(HessrmtError):
    """One process of an MPI run failed, so that the others gave up."""

    exit_code = 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device.

    Args:
        error: Of Python, numpy, torch, CuPy or the system; or the SystemError that Python makes of
            it where numpy, which got no memory for an index, fails and doesn't say why.

    Returns:
        Whether it does.
    """
    if isinstance(error, SystemError):
        return "exception set" in str(error)
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    said = isinstance(error, RuntimeError) and any(w in str(error).lower() for w in _NO_MEMORY)
    system = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or named or said or system


def let_pass(error: BaseException) -> None:
    """Raise an error again if it says that memory ran out: no other way of doing the same helps.

    Args:
        error: As it was caught; the caller goes on if it is another.
    """
    if is_out_of_memory(error):
        raise error
