"""Which outputs a report is about: one, several, a glob, or a root with partitions below it (`out/dt=2026-02-01/`)."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pipeline.errors import InputError, OutputError
from pipeline.storage import exists, expand, join
from schemas.manifest import PLAN_NAME

DEEPEST_PARTITION = 4
"""Levels of `key=value` directories below a root."""


@dataclass(frozen=True)
class Output:
    label: str
    """What tells it from the others on the page."""
    url: str


def find_outputs(places: Iterable[str]) -> list[Output]:
    """The outputs at `places`, in the order of their names; an error when a place has none."""
    urls = list(dict.fromkeys(url for place in places for url in _outputs_at(place.rstrip("/") or "/")))
    base = posixpath.commonpath([posixpath.dirname(url) for url in urls])
    # A URL's two slashes are one to commonpath, so what is common is counted in steps and not in characters.
    steps = len([step for step in base.split("/") if step])
    labels = ["/".join([step for step in url.split("/") if step][steps:]) for url in urls]
    return [Output(label, url) for label, url in sorted(zip(labels, urls, strict=True))]


def _outputs_at(place: str) -> Iterator[str]:
    if exists(join(place, PLAN_NAME)):
        yield place
        return
    if any(character in place for character in "*?["):
        patterns = [join(place, PLAN_NAME)]
    else:
        patterns = [join(place, *["*=*"] * depth, PLAN_NAME) for depth in range(1, DEEPEST_PARTITION + 1)]
    found = [plan for pattern in patterns for plan in _plans(pattern)]
    if not found:
        raise OutputError(
            f"there is no {join(place, PLAN_NAME)}, nor one in partitions below it ({place}/key=value/): "
            f"{place} is not the output of a job"
        )
    yield from (plan.removesuffix(f"/{PLAN_NAME}") for plan in found)


def _plans(pattern: str) -> list[str]:
    try:
        return expand(pattern)
    except InputError as error:
        if "no input file matches" in str(error):
            return []
        raise
