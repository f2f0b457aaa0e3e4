"""Which outputs a report is about: one, several, a glob, or a root with partitions below it (`out/dt=2026-02-01/`).

A partition that was found, and not named itself, is shown in its newest version: where scheduled scoring has replaced
it (`schemas/scheduling.py`), that is an output of its own.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from jobs.scheduling.versions import read_versions
from jobs.wording import count_words
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
    is_named: bool = True
    """And was not found below a root, or by a pattern."""


def newest(output: Output) -> Output:
    """The newest whole version of a partition that is done, or the one that was begun first. Files that came late are
    outputs of their own, which the label counts."""
    steps = output.url.split("/")
    keys = len(steps)
    while keys and "=" in steps[keys - 1]:
        keys -= 1
    if output.is_named or keys == len(steps):
        return output
    versions = read_versions("/".join(steps[:keys]), "/".join(steps[keys:]))
    if versions.base is None:
        return output
    number, added = versions.base.number, len(versions.current) - 1
    words = [f"version {number}"] if number > 1 else []
    words += [f"without {count_words(added, 'addition')}"] if added else []
    label = f"{output.label} ({', '.join(words)})" if words else output.label
    return replace(output, label=label, url=versions.base.output)


def find_outputs(places: Iterable[str]) -> list[Output]:
    """The outputs at `places`, in the order of their names; an error when a place has none."""
    places = [place.rstrip("/") or "/" for place in places]
    urls = list(dict.fromkeys(url for place in places for url in _outputs_at(place)))
    base = posixpath.commonpath([posixpath.dirname(url) for url in urls])
    # A URL's two slashes are one to commonpath, so what is common is counted in steps and not in characters.
    steps = len([step for step in base.split("/") if step])
    labels = ["/".join([step for step in url.split("/") if step][steps:]) for url in urls]
    return [Output(label, url, url in places) for label, url in sorted(zip(labels, urls, strict=True))]


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
