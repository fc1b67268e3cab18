"""The exception tree: every error this package raises on purpose.

An error says what was given, what was expected and what to try. ``exit_code`` is what the
command line returns for it: 2 for bad usage or bad input, 1 for a run that failed.
"""


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
