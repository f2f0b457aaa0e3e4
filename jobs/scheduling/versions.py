"""The versions of a partition, as they lie in storage; `schemas.scheduling` has the layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pipeline import storage
from pipeline.errors import JobError
from pipeline.stored import read_stored
from pipeline.workplan import read_plan
from schemas.manifest import PLAN_NAME, SUCCESS_NAME, InputFile, Plan
from schemas.scheduling import (
    CLAIM_NAME,
    VERSIONS_NAME,
    Claim,
    addition_name,
    numbered,
    replacement_name,
)


@dataclass(frozen=True)
class Version:
    """An output of a job that is, or is to be, a version of a partition."""

    number: int
    output: str
    base: int
    """The version that this one adds to; its own number if it stands for the partition as a whole."""
    is_done: bool

    @property
    def is_addition(self) -> bool:
        return self.base != self.number


@dataclass(frozen=True)
class Versions:
    """Those that have begun, in order of their numbers."""

    root: str
    key: str
    begun: tuple[Version, ...]

    @property
    def base(self) -> Version | None:
        """The last whole version that is done."""
        return next((v for v in reversed(self.begun) if v.is_done and not v.is_addition), None)

    @property
    def current(self) -> tuple[Version, ...]:
        """Where the results of the partition are: a whole version and its additions, as far as they are done."""
        base = self.base
        return tuple(v for v in self.begun if base and v.base == base.number and v.is_done)

    @property
    def unfinished(self) -> Version | None:
        """The one to go on with: the last, unless it is done or a later one took its place."""
        last = self.begun[-1] if self.begun else None
        return last if last and not last.is_done else None

    def first(self) -> Version:
        return Version(1, storage.join(self.root, self.key), 1, False)

    def addition(self) -> Version:
        base, number = self.base, self._next
        assert base is not None, "an addition needs something to add to"
        return Version(number, storage.join(base.output, addition_name(number)), base.number, False)

    def replacement(self) -> Version:
        number = self._next
        directory = storage.join(self.root, VERSIONS_NAME, self.key)
        return Version(number, storage.join(directory, replacement_name(number)), number, False)

    @property
    def _next(self) -> int:
        return 1 + max((version.number for version in self.begun), default=0)


def read_versions(root: str, key: str) -> Versions:
    """The versions of a partition; nothing but names is read."""
    found = [*_whole(1, storage.join(root, key))]
    replaced = storage.join(root, VERSIONS_NAME, key)
    for name in storage.list_names(replaced):
        if number := numbered("v", name):
            found += _whole(number, storage.join(replaced, name))
    return Versions(root, key, tuple(sorted(found, key=lambda version: version.number)))


def _whole(number: int, output: str) -> Iterable[Version]:
    """A whole version and its additions, as far as they have begun."""
    names = set(storage.list_names(output))
    if PLAN_NAME not in names:
        return
    yield Version(number, output, number, SUCCESS_NAME in names)
    for name in names:
        if addition := numbered("late-", name):
            inside = storage.list_names(storage.join(output, name))
            if PLAN_NAME in inside:
                yield Version(addition, storage.join(output, name), number, SUCCESS_NAME in inside)


@dataclass(frozen=True)
class Difference:
    """How the input of a partition differs from what was planned, by URL."""

    added: frozenset[str] = field(default_factory=frozenset)
    changed: frozenset[str] = field(default_factory=frozenset)
    removed: frozenset[str] = field(default_factory=frozenset)

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)

    def __str__(self) -> str:
        counts = [(self.added, "added"), (self.changed, "changed"), (self.removed, "gone")]
        words = ", ".join(f"{len(urls)} {what}" for urls, what in counts if urls)
        example = min(next(urls for urls in (self.removed, self.changed, self.added) if urls), default="")
        return f"input files: {words} ({example})"


def difference(planned: Iterable[InputFile], found: Iterable[InputFile]) -> Difference:
    """What changed from the planned files to those that are there."""
    before = {file.url: file for file in planned}
    now = {file.url: file for file in found}
    return Difference(
        added=frozenset(now.keys() - before.keys()),
        changed=frozenset(url for url in now.keys() & before.keys() if now[url] != before[url]),
        removed=frozenset(before.keys() - now.keys()),
    )


def plans_of(versions: Iterable[Version]) -> list[Plan]:
    return [read_plan(version.output) for version in versions]


def covered(plans: Iterable[Plan], *, last_alone: bool) -> Mapping[str, InputFile]:
    """The files that versions have scored. With `only_new_rows` every version is planned over the whole input, so the
    last one alone says it."""
    plans = list(plans)[-1:] if last_alone else plans
    return {file.url: file for plan in plans for file in plan.inputs}


def claim(root: str, name: str, template: str) -> None:
    """Makes the output the schedule's own, or refuses because it is another's."""
    if (other := read_claim(root)) is None:
        storage.publish_if_absent(storage.join(root, CLAIM_NAME), Claim(name=name, output=template).to_json())
        other = read_claim(root)
    if other is None or (other.name, other.output) != (name, template):
        owner = f"schedule {other.name!r} (output: {other.output})" if other else "nobody"
        raise JobError(
            f"output: {root} belongs to {owner}, not to {name!r} (output: {template}); choose another output, or delete"
            f" {storage.join(root, CLAIM_NAME)} if this schedule takes it over"
        )


def read_claim(root: str) -> Claim | None:
    """Whose output it is; None for nobody's."""
    return read_stored(Claim, storage.join(root, CLAIM_NAME), limit_bytes=2**16)
