"""Driver and workers must be the same Penstock: what one sends by name, the other must understand the same way."""

from __future__ import annotations

import importlib.metadata

from .errors import JobError


def refuse_other_version(planned_with: str | None) -> None:
    """An error if the work was planned by another version than this worker's; None says nothing."""
    here = importlib.metadata.version("penstock")
    if planned_with not in (None, here):
        raise JobError(
            f"this worker has Penstock {here}, and the job was submitted with {planned_with}; use an image of "
            f"{planned_with}, or submit with {here}"
        )
