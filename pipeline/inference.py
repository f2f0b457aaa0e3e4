"""Inference: a work item goes in, its result file is there, and one engine does it for the whole process.

`run_shard` computes and publishes one shard. `RunShard` is that as a DoFn, the one that touches the engine: its
instances in a process, one for each thread of the runner, share an engine and a tokenizer.
"""

from __future__ import annotations

import contextlib
import pkgutil
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import apache_beam as beam
from apache_beam.utils.shared import Shared

from schemas.manifest import Plan, ShardEntry

from .activity import Cancelled, cancel, live, reset
from .generation import Generate
from .manifest import committed
from .programs import AUTO, OFF, Programs, default_place
from .records import record_hash
from .scoring import Score
from .shard import Shard
from .sink import write_shard
from .sources.base import WorkItem
from .storage import open_input
from .tokenizer import Tokenizer
from .workplan import PlanFacts

__all__ = ["Cancelled", "RunShard", "ShardJob", "cancel", "live", "reset", "run_shard"]


_OF_THE_ENGINE = ("max_length", "dtype", "weights", "kv", "layouts")


@dataclass(frozen=True)
class ShardJob:
    """What a worker knows of the job, besides its work items: small, picklable, JSON-able."""

    output: str
    plan: PlanFacts
    settings: Mapping[str, Any]
    """All that bears on results, as the plan has it."""
    checkpoint: str
    slots: int | None = None
    prefill_tokens: int | None = None
    hosts: Mapping[str, Any] | None = None
    """`count` and `coordinator` of the processes that hold the model together, where it takes several."""
    compile_cache: str = OFF
    """Where compiled programs are kept: a directory or URL, `auto` (the user's cache) or `off`."""
    engine_factory: str | None = None
    """`module:callable` that is called as `Engine.load` is, and gives another engine: for tests and benchmarks."""

    @classmethod
    def of(cls, output: str, plan: Plan, checkpoint: str, **engine: Any) -> ShardJob:
        return cls(output, PlanFacts.of(plan), plan.settings, checkpoint, **engine)

    @property
    def engine_identity(self) -> tuple[Any, ...]:
        """Jobs that agree in this can share an engine."""
        shape = (
            self.slots,
            self.prefill_tokens,
            repr(self.hosts),
            *(repr(self.settings.get(name)) for name in _OF_THE_ENGINE),
        )
        return (self.engine_factory, self.checkpoint, self.plan.model_fingerprint, *shape)


def run_shard(item: WorkItem, job: ShardJob, engine: Any, tokenizer: Tokenizer) -> ShardEntry:
    """Compute and publish the results of `item`; the entry of the file that is there in the end, ours or an earlier.

    `engine` is an `engine.Engine`, or anything with its `submit`, `options` and `counters`.
    """
    from engine.errors import RequestError

    task = {"generate": Generate, "score": Score}[job.plan.task](job.settings, tokenizer)
    shard = Shard(item, job, task, engine, _requests_for(task, job.settings), RequestError)
    before = engine.counters

    def spent() -> dict[str, int | float]:
        """What the engine did meanwhile, for all open shards together: their steps are the same steps."""
        return {name: round(count - before[name], 6) for name, count in engine.counters.items()}

    with contextlib.closing(shard.rows()) as rows:
        return write_shard(job.output, job.plan, item, rows, spent)


def _requests_for(task: Generate | Score, settings: Mapping[str, Any]) -> Callable[[Any, str], list[Any]]:
    """What turns a prompt of the task, and the id of its record, into requests to the engine."""
    from engine import GenerateRequest, Sampling, ScoreRequest

    if isinstance(task, Score):
        return lambda prompt, record_id: [ScoreRequest(tokens, start) for tokens, start in prompt.sequences]
    asked = settings["sampling"]
    values = {field.name: asked[field.name] for field in fields(Sampling)}
    sampling = Sampling(**{**values, "stop_token_ids": tuple(asked["stop_token_ids"])})

    def requests(prompt: Any, record_id: str) -> list[GenerateRequest]:
        request = GenerateRequest(
            prompt=prompt.token_ids,
            sampling=sampling,
            seed=asked["seed"],
            record=record_hash(record_id),
            samples=asked["n"],
            watch=task.watch,
        )
        return [request]

    return requests


class RunShard(beam.DoFn):
    """A work item in; the number of the shard out, once its result file is there."""

    def __init__(self, job: ShardJob) -> None:
        self._job = job

    def setup(self) -> None:
        self._worker = _shared_worker(self._job)

    def process(self, item: WorkItem) -> Iterator[int]:
        from engine.errors import EngineClosed, OutOfMemory

        try:
            if committed(self._job.output, self._job.plan, item.shard) is None:
                run_shard(item, self._job, self._worker.engine, self._worker.tokenizer)
                if self._worker.programs:
                    self._worker.programs.share()
        except (EngineClosed, OutOfMemory):
            _give_up(self._worker)
            raise
        yield item.shard


class _Worker:
    """The engine and the tokenizer of this process. The engine is closed when nobody uses it any more."""

    def __init__(self, job: ShardJob) -> None:
        self.tokenizer = Tokenizer.load(job.checkpoint)
        self.programs = _kept_programs(job)
        self.engine = _load_engine(job)
        self.is_lost = False
        weakref.finalize(self, self.engine.close)


def _kept_programs(job: ShardJob) -> Programs | None:
    """The compiled programs of earlier runs, handed to jax before it compiles."""
    if job.compile_cache == OFF or job.engine_factory is not None:
        return None
    from engine.compilation import kept_programs

    if job.compile_cache == AUTO and kept_programs.is_kept_already():
        return None
    place = default_place() if job.compile_cache == AUTO else job.compile_cache
    programs = Programs(place, kept_programs.machine(), kept_programs.is_whole)
    kept_programs.keep_programs_in(programs.directory)
    return programs


def _load_engine(job: ShardJob) -> Any:
    if job.engine_factory is None:
        from engine import Engine

        load = Engine.load
    else:
        load = pkgutil.resolve_name(job.engine_factory)
    max_length = job.settings["max_length"]
    return load(
        job.checkpoint,
        slots=job.slots,
        max_length=None if max_length == "auto" else max_length,
        **({"prefill_tokens": job.prefill_tokens} if job.prefill_tokens else {}),
        **({"hosts": _hosts(job.hosts)} if job.hosts else {}),
        **_model(job.settings),
    )


def follow(checkpoint: str, settings: Mapping[str, Any], hosts: Mapping[str, Any], process: int) -> None:
    """Holds a part of the model for the job whose engine runs elsewhere, until it ends; see docs/multi-host.md."""
    from engine.runtime import follower
    from engine.runtime.loading import ModelAsked

    follower.follow(ModelAsked(checkpoint, **_model(settings)), _hosts(hosts), process)


def _hosts(hosts: Mapping[str, Any]) -> Any:
    from engine.runtime.hosts import Hosts

    return Hosts(**hosts)


def _model(settings: Mapping[str, Any]) -> dict[str, Any]:
    """How the engine is to hold the model."""
    numbers = {name: settings[name] for name in ("weights", "kv") if name in settings}
    return {"open": open_input, "dtype": settings["dtype"], **numbers, **settings.get("layouts", {})}


_SHARED = Shared()  # keeps what was acquired last, and makes it anew when the tag is another
_engines_lost = 0
_loss = threading.Lock()


def _shared_worker(job: ShardJob) -> _Worker:
    return _SHARED.acquire(lambda: _Worker(job), (*job.engine_identity, _engines_lost))


def _give_up(worker: _Worker) -> None:
    """An engine that failed stays down: the next attempt is to load another."""
    global _engines_lost
    with _loss:
        _engines_lost += not worker.is_lost
        worker.is_lost = True
