"""What can go wrong around the engine, as one short hierarchy.

Every message says what was found, where, and how to mend it; the `penstock` command prints it as it stands,
without a traceback. An error about one row is caught where the row is processed and becomes its `error`
column.
"""

from __future__ import annotations


class PenstockError(Exception):
    """Base of all errors raised on purpose outside the engine."""


class InputError(PenstockError):
    """The input cannot be read, is empty, or holds something that cannot be used."""


class MissingFile(InputError, FileNotFoundError):
    """A file that was asked for by name is not there."""


class EmptyInput(InputError):
    """The input is there and holds no row."""


class OutputError(PenstockError):
    """The output cannot be written, or holds something that does not belong to this job."""


class PlanMismatch(OutputError):
    """The output was planned for another job: other input, model, settings or sharding."""


class PromptError(PenstockError):
    """A template or a tokenizer cannot turn a row into a prompt."""


class JobError(PenstockError):
    """The job asks for something that is unknown, contradictory or not supported."""


class RunFailed(PenstockError):
    """A shard failed for a reason that is no row's fault, more often than the runner repeats it."""
