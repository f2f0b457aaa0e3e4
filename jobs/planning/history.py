"""How earlier runs went, so that later plans are corrected.

At its end a run leaves a line in a file of its user: which model on which chip, what was foreseen for the tokens there
were, and what it took. With the ratios r of the last runs of a model on a chip, and the model of time itself counted
as one more run, whose ratio is 1 and whose error e is the one it states:

    correction = exp(sum of ln r / (n + 1))
    error      = sqrt((e^2 + sum of (ln r - ln correction)^2) / (n + 1))

So one run moves a prediction half of the way, nine runs nine tenths, and the interval narrows as runs agree and widens
as they do not. Only predictions depend on the file, and what is chosen by them; never a row.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from jobs.comparison import Comparison
from jobs.planning.kept_machine import kept_at
from pipeline.records import content_hash
from schemas.documents import DocumentError, decode

logger = logging.getLogger(__name__)

RUNS = 20
"""The last so many of a model on a chip count."""
_MOST_BYTES = 1 << 20
_KEPT_LINES = 1000
_SANE_RATIO = 1000.0


@dataclass(frozen=True)
class Earlier:
    """One run that is over, or an output."""

    model: str
    """Fingerprint of the model, with how it was held."""
    chip: str
    job: str
    """Hash of what was asked: jobs that ask the same have completions of like lengths."""
    foreseen_seconds: float
    """For the tokens there were, without the start and without any correction."""
    seconds: float
    """That was computed, without compiling."""
    startup_seconds: float | None
    """All the rest of the run; not known of an output."""
    completion_tokens: float
    """Of a sequence, on the average."""

    @property
    def ratio(self) -> float:
        return self.seconds / self.foreseen_seconds

    @property
    def is_sane(self) -> bool:
        numbers = [self.foreseen_seconds, self.seconds, self.completion_tokens, self.startup_seconds or 0.0]
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            return False
        return min(self.foreseen_seconds, self.seconds) > 0 and 1 / _SANE_RATIO < self.ratio < _SANE_RATIO


@dataclass(frozen=True)
class Correction:
    """What times are multiplied by, and the error that is left."""

    factor: float = 1.0
    error_fraction: float = 0.0
    runs: int = 0

    @classmethod
    def of(cls, ratios: Sequence[float], error_fraction: float) -> Correction:
        if not ratios:
            return cls(1.0, error_fraction)
        logs, count = [math.log(ratio) for ratio in ratios], len(ratios) + 1
        middle = math.fsum(logs) / count
        spread = error_fraction**2 + math.fsum((one - middle) ** 2 for one in logs)
        return cls(math.exp(middle), math.sqrt(spread / count), len(ratios))


@dataclass(frozen=True)
class History:
    """The runs that are known of."""

    runs: tuple[Earlier, ...] = ()
    note: str | None = None
    """What is wrong with the file."""

    def of(self, model: str, chip: str) -> list[Earlier]:
        return [run for run in self.runs if (run.model, run.chip) == (model, chip)][-RUNS:]

    def correction(self, model: str, chip: str, error_fraction: float) -> Correction:
        return Correction.of([run.ratio for run in self.of(model, chip)], error_fraction)

    def startup(self, model: str, chip: str) -> tuple[int, float | None]:
        """How many runs told, and the seconds of the one in the middle."""
        known = [run.startup_seconds for run in self.of(model, chip) if run.startup_seconds is not None]
        return len(known), median(known) if known else None

    def completion_tokens(self, job: str) -> tuple[float, int] | None:
        """Of a sequence, on the average of so many runs of jobs that ask the same."""
        same = [run.completion_tokens for run in self.runs if run.job == job and run.completion_tokens][-RUNS:]
        return (math.fsum(same) / len(same), len(same)) if same else None

    def with_runs(self, runs: Iterable[Earlier]) -> History:
        return History((*self.runs, *runs), self.note)


NOTHING_KNOWN = History()


def earlier_of(compared: Comparison, run_seconds: float | None = None) -> Earlier | None:
    """What is to be learnt of some shards; None where they are too few to say anything."""
    plan, done = compared.prediction, compared.done
    if compared.ratio is None:
        return None
    earlier = Earlier(
        model=model_key(plan.asked),
        chip=plan.chips.partition(":")[0],
        job=job_key(plan.asked),
        foreseen_seconds=compared.foreseen_seconds / plan.correction,
        seconds=compared.seconds,
        startup_seconds=None if run_seconds is None else max(0.0, run_seconds - compared.seconds),
        completion_tokens=done.completion_tokens / max(1, done.ok * plan.asked.get("sampling.n", 1)),
    )
    return earlier if earlier.is_sane else None


def model_key(asked: Mapping[str, Any]) -> str:
    """The model, and how it is held, out of what a plan was asked."""
    return content_hash({name: asked.get(name) for name in ("model", "dtype", "weights", "kv")})[:16]


def job_key(asked: Mapping[str, Any]) -> str:
    return content_hash(dict(asked))[:16]


def history_at() -> Path:
    """Beside the profile of the machine."""
    return kept_at().with_name("history.jsonl")


def read_history(path: Path | None = None) -> History:
    """What the file has; what cannot be read of it is left out, and said."""
    path = path or history_at()
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _MOST_BYTES))
            cut = file.tell() > 0
            lines = file.read().splitlines()[cut:]
    except FileNotFoundError:
        return History()
    except OSError as error:
        return History(note=f"{path} cannot be read, so earlier runs do not count: {error.strerror or error}")
    runs = [run for line in lines if (run := _read(line)) is not None]
    bad = len(lines) - len(runs)
    note = f"{bad} of {len(lines)} lines of {path} are no runs and do not count; delete it to start afresh"
    return History(tuple(runs), note if bad else None)


def remember(run: Earlier, path: Path | None = None) -> None:
    """Adds a run; a file that cannot be written is no reason to fail."""
    path = path or history_at()
    if not run.is_sane:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(json.dumps(asdict(run)).encode() + b"\n")
        if path.stat().st_size > _MOST_BYTES:
            _shorten(path)
    except OSError as error:
        logger.warning("this run is not remembered for later plans: %s", error)


def _shorten(path: Path) -> None:
    kept = path.read_bytes().splitlines(keepends=True)[-_KEPT_LINES:]
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        new.write_bytes(b"".join(kept))
        new.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            new.unlink()


def _read(line: bytes) -> Earlier | None:
    try:
        run = decode(Earlier, json.loads(line))
        return run if run.is_sane else None
    except (ValueError, RecursionError, DocumentError):
        return None
