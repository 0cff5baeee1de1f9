"""The errors a user can meet; each is one clear line and carries the exit code of the command line."""


class StreamImgError(Exception):
    """Anything that ends a run; ``exit_code`` is what the command line returns."""

    exit_code = 1


class InputError(StreamImgError):
    """Bad input or usage: names the file, what is wrong and what to do."""

    exit_code = 2


class BudgetError(StreamImgError):
    """The declared memory cannot hold the work; names the task and the smallest budget that can."""

    exit_code = 3


class StoreError(StreamImgError):
    """The store cannot be read or written."""


class Interrupted(BaseException):
    """The user has asked to stop; what is finished stays finished. No error: nothing that handles errors may swallow it."""

    exit_code = 130


class TaskError(StreamImgError):
    """A task failed the same way each time it was tried; names its key."""
