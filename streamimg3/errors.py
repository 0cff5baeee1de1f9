"""The errors a user can meet; each is one clear line and carries the exit code of the command line."""


class StreamImgError(Exception):
    """Anything that ends a run; ``exit_code`` is what the command line returns.

    Examples
    --------
    >>> StreamImgError.exit_code, issubclass(InputError, StreamImgError)
    (1, True)
    """

    exit_code = 1


class InputError(StreamImgError):
    """Bad input or usage: names the file, what is wrong and what to do.

    Examples
    --------
    >>> import streamimg3
    >>> try:
    ...     streamimg3.open("/nowhere/field.zarr")
    ... except streamimg3.InputError as error:
    ...     print(error)
    /nowhere/field.zarr holds no finished store: run 'streamimg3 ingest' or check the path
    """

    exit_code = 2


class BudgetError(StreamImgError):
    """The declared memory cannot hold the work; names the task and the smallest budget that can.

    Examples
    --------
    >>> from streamimg3.engine import Runner, Task
    >>> try:
    ...     Runner(memory=2**20).check([Task("tile", 2**30, 2**29)])
    ... except BudgetError as error:
    ...     print("the smallest budget that works" in str(error))
    True
    """

    exit_code = 3


class StoreError(StreamImgError):
    """The store cannot be read or written.

    Examples
    --------
    >>> from streamimg3 import Observation
    >>> try:
    ...     Observation.at("/nowhere/field.zarr").records()
    ... except StoreError as error:
    ...     print(error)
    /nowhere/field.zarr/exposures/index.json is missing: ingest again
    """


class Interrupted(BaseException):
    """The user has asked to stop; what is finished stays finished. No error: nothing that handles errors may swallow it."""

    exit_code = 130


class TaskError(StreamImgError):
    """A task failed the same way each time it was tried; names its key.

    Examples
    --------
    >>> from streamimg3.engine import Runner, Task
    >>> try:
    ...     Runner().fold(lambda task: 1 // 0, [Task("tile", 0, 0)], 0)
    ... except TaskError as error:
    ...     print(error)
    task tile failed 2 times: ZeroDivisionError: integer division or modulo by zero
    """
