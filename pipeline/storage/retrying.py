"""Asking again: exponential backoff with full jitter, a bound, and a line in the log.

gcsfs and botocore ask again by themselves, a few times within half a minute, and say nothing. What still
fails then is taken up here: an outage of some minutes, a timeout that they do not repeat, a body that is too
short. Whatever goes to an object store goes through `ask`, and through nothing else.

A pause is drawn evenly from 0 to a ceiling that doubles from FIRST_SECONDS to LONGEST_SECONDS ("full jitter"):
of a thousand workers that were refused together, no two come back together.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from pipeline import activity
from pipeline.errors import PenstockError
from pipeline.storage.refusals import Doing, is_no_bucket, is_passing, refusal
from pipeline.urls import redacted

TRIES = 6
FIRST_SECONDS = 1.0
LONGEST_SECONDS = 30.0

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


def ask(doing: Doing, function: Callable[[], _T]) -> _T:
    """`function()`, again while it fails in passing.

    That a name is missing or taken is an answer, and is raised as it is, unless it is the bucket that
    is missing. Any other failure that does not pass is an InputError or OutputError that says how to mend it.
    """
    for attempt in range(1, TRIES + 1):
        try:
            return function()
        except PenstockError:
            raise
        except Exception as error:
            if is_no_bucket(error, doing):
                raise refusal(error, doing) from _without_secrets(error)
            if not is_passing(error):
                if isinstance(error, FileNotFoundError | FileExistsError | NotADirectoryError):
                    raise
                raise refusal(error, doing) from _without_secrets(error)
            if attempt == TRIES:
                raise given_up(error, doing) from _without_secrets(error)
            pause(attempt, error, doing)
    raise AssertionError("unreachable")


def pause(attempt: int, error: BaseException, doing: Doing) -> None:
    """Say that `attempt` failed, and wait."""
    activity.happened("storage_retries")
    seconds = random.uniform(0, min(LONGEST_SECONDS, FIRST_SECONDS * 2 ** (attempt - 1)))
    _log.warning(
        "could not %s %s (%s: %s); trying again in %.1f s, for the %d. of %d times",
        doing.what, redacted(doing.url), type(error).__name__, redacted(str(error))[:200], seconds, attempt + 1, TRIES,
    )  # fmt: skip
    time.sleep(seconds)
    activity.stop_if_cancelled()


def given_up(error: BaseException, doing: Doing) -> PenstockError:
    said = redacted(str(error)) or "no answer"
    return doing.error(
        f"cannot {doing.what} {redacted(doing.url)}: still {type(error).__name__} after {TRIES} tries: {said}; when "
        "the store answers again, the same command goes on where it stopped"
    )


def _without_secrets(error: BaseException) -> BaseException | None:
    """The cause to name in a traceback: none where its text holds what must not be shown."""
    return error if redacted(str(error)) == " ".join(str(error).split()) else None
