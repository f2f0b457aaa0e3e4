"""Inference: a work item goes in, its result file is there, and one engine does it for the whole process.

`run_shard` computes and publishes one shard. `RunShard` is that as a DoFn, the one that touches the engine: its
instances in a process, one for each thread of the runner, share an engine and a tokenizer.

A shard that another run is computing (pipeline/leases.py) is handed on, to be looked at again after all others.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import pkgutil
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput
from apache_beam.utils.shared import Shared

from schemas.manifest import Plan, ShardEntry

from . import activity, cancellation
from .activity import Cancelled, cancel, live, reset
from .counters import EngineReport, count_computed, count_found_done, count_left_to_another_run
from .errors import PenstockError
from .generation import Generate
from .leases import LEASE_SECONDS, Leases
from .manifest import committed, is_recorded
from .programs import AUTO, OFF, Programs, default_place
from .records import record_hash
from .scoring import Score
from .shard import Shard
from .sink import write_shard
from .sources.base import WorkItem
from .storage import open_input
from .tokenizer import Tokenizer
from .worker_facts import WorkerRecord, refuse_other_dtype
from .worker_version import refuse_other_version
from .workplan import PlanFacts

__all__ = ["Cancelled", "RunShard", "ShardJob", "cancel", "live", "reset", "run_shard"]

logger = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 0.1
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
    chip: str = "auto"
    """What the devices must be; see engine/planning/chips.py."""
    watchdog_seconds: float | None = None
    """How long a call on the device may take; derived from those before it if not given."""
    hosts: Mapping[str, Any] | None = None
    """`count` and `coordinator` of the processes that hold the model together, where it takes several."""
    compile_cache: str = OFF
    """Where compiled programs are kept: a directory or URL, `auto` (the user's cache) or `off`."""
    engine_factory: str | None = None
    """`module:callable` that is called as `Engine.load` is, and gives another engine: for tests and benchmarks."""
    run: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Tells this run from others at the same output."""
    lease_seconds: float = LEASE_SECONDS
    ignores_cancel: str | None = None
    """The token of a `penstock cancel` that came before this run; see `cancellation`."""
    penstock: str | None = None
    """The version that planned the work: workers must have the same."""

    @classmethod
    def of(cls, output: str, plan: Plan, checkpoint: str, **engine: Any) -> ShardJob:
        return cls(output, PlanFacts.of(plan), plan.settings, checkpoint, **engine)

    @property
    def engine_identity(self) -> tuple[Any, ...]:
        """Jobs that agree in this can share an engine."""
        shape = (
            self.slots,
            self.prefill_tokens,
            self.chip,
            self.watchdog_seconds,
            repr(self.hosts),
            *(repr(self.settings.get(name)) for name in _OF_THE_ENGINE),
        )
        return (self.engine_factory, self.checkpoint, self.plan.model_fingerprint, *shape)


def run_shard(item: WorkItem, job: ShardJob, engine: Any, tokenizer: Tokenizer) -> ShardEntry:
    """Compute and publish the results of `item`; the entry of the file that is there in the end, ours or an earlier.

    `engine` is an `engine.Engine`, or anything with its `submit`, `options`, `counters` and `facts`.
    """
    from engine.errors import RequestError

    task = {"generate": Generate, "score": Score}[job.plan.task](job.settings, tokenizer)
    shard = Shard(item, job, task, engine, _requests_for(task, job.settings), RequestError)
    before = engine.counters

    def spent() -> dict[str, int | float]:
        """What the engine did meanwhile, for all open shards together: their steps are the same steps."""
        return {name: round(count - before[name], 6) for name, count in engine.counters.items()}

    with activity.working_on(item.shard), contextlib.closing(shard.rows()) as rows:
        return write_shard(job.output, job.plan, item, rows, spent)


def _requests_for(task: Generate | Score, settings: Mapping[str, Any]) -> Callable[[Any, str], list[Any]]:
    """What turns a prompt of the task, and the id of its record, into requests to the engine."""
    from engine import GenerateRequest, Sampling, ScoreRequest

    if isinstance(task, Score):
        return lambda prompt, record_id: [ScoreRequest(tokens, start) for tokens, start in prompt.sequences]

    def sampling_of(asked: Mapping[str, Any]) -> Sampling:
        values = {field.name: asked[field.name] for field in fields(Sampling)}
        return Sampling(**{**values, "stop_token_ids": tuple(asked["stop_token_ids"])})

    of_the_job = sampling_of(settings["sampling"])

    def requests(prompt: Any, record_id: str) -> list[GenerateRequest]:
        asked = prompt.sampling or settings["sampling"]
        request = GenerateRequest(
            prompt=prompt.token_ids,
            sampling=sampling_of(asked) if prompt.sampling else of_the_job,
            seed=asked["seed"],
            record=record_hash(record_id),
            samples=asked["n"],
            watch=task.watch(prompt),
        )
        return [request]

    return requests


class RunShard(beam.DoFn):
    """A work item in; the number of the shard out, once its result file is there.

    An item whose shard another run is computing goes to the output `HELD`; or, if this is the last time it is looked
    at, is waited for until it is there or the other run has let go of it.
    """

    HELD = "held"

    def __init__(self, job: ShardJob, is_last: bool = False) -> None:
        self._job = job
        self._is_last = is_last

    def setup(self) -> None:
        refuse_other_version(self._job.penstock)
        self._worker = _shared_worker(self._job)
        self._leases, self._record = _of_this_run(self._job.output, self._job.run, self._job.lease_seconds)
        if self._job.settings["dtype"] == "auto":
            refuse_other_dtype(self._job.output, self._worker.engine.facts)

    def teardown(self) -> None:
        if "_record" not in vars(self) or self._worker.is_lost:  # set up in part, or not to be asked any more
            return
        engine = self._worker.engine
        with contextlib.suppress(PenstockError):  # the record is for reading, and the shards are there
            self._record.write(engine.facts, engine.counters, is_last=True)

    def process(self, item: WorkItem) -> Iterator[int | TaggedOutput]:
        from engine.errors import DeviceHung, EngineClosed, OutOfMemory

        try:
            with cancellation.watched(self._job.output, self._job.ignores_cancel):
                is_there = self._is_there(item)
        except (EngineClosed, OutOfMemory) as error:
            _give_up(self._worker)
            if isinstance(error, DeviceHung) and not activity.driver_is_here():
                _end_process(error)
            raise
        if not is_there:
            count_left_to_another_run()
        yield item.shard if is_there else TaggedOutput(self.HELD, item)

    def _is_there(self, item: WorkItem) -> bool:
        """Whether the result file is there now; False if another run is at it, and may go on."""
        pause_seconds = _FIRST_PAUSE_SECONDS
        while not is_recorded(self._job.output, self._job.plan, item.shard):
            with self._leases.taken(item.shard) as is_ours:
                if is_ours:
                    if committed(self._job.output, self._job.plan, item.shard) is None:
                        self._compute(item)
                    return True
            if not self._is_last:
                return False
            if pause_seconds == _FIRST_PAUSE_SECONDS:
                holder = self._leases.holder(item.shard)
                logger.warning("waiting for shard %d, which is being computed by %s", item.shard, holder)
            activity.pause(pause_seconds, self._job.output, self._job.ignores_cancel)
            pause_seconds = min(2 * pause_seconds, self._job.lease_seconds / 6)
        count_found_done()
        return True

    def _compute(self, item: WorkItem) -> None:
        worker, started = self._worker, time.monotonic()
        entry = run_shard(item, self._job, worker.engine, worker.tokenizer)
        counters = worker.engine.counters
        count_computed(entry, time.monotonic() - started, worker.report.since_last(counters))
        self._record.write(worker.engine.facts, counters)
        if worker.programs:
            worker.programs.share()


class _Worker:
    """The engine and the tokenizer of this process. The engine is closed when nobody uses it any more."""

    def __init__(self, job: ShardJob) -> None:
        self.tokenizer = Tokenizer.load(job.checkpoint)
        self.programs = _kept_programs(job)
        self.engine = _load_engine(job)
        self.report = EngineReport()
        self.is_lost = False
        activity.engine_started(self.engine)
        weakref.finalize(self, self.engine.close)


def _kept_programs(job: ShardJob) -> Programs | None:
    """The compiled programs of earlier runs, handed to jax before it compiles."""
    if job.compile_cache == OFF or job.engine_factory is not None:
        return None
    from engine.compilation import kept_programs

    if job.compile_cache == AUTO and kept_programs.is_kept_already():
        return None
    place = default_place() if job.compile_cache == AUTO else job.compile_cache
    programs = Programs(place, kept_programs.machine())
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
        **({"chip": job.chip} if job.chip != "auto" else {}),
        **({"watchdog_seconds": job.watchdog_seconds} if job.watchdog_seconds else {}),
        **_model(job.settings),
    )


def follow(
    checkpoint: str, settings: Mapping[str, Any], hosts: Mapping[str, Any], process: int, chip: str = "auto"
) -> None:
    """Holds a part of the model for the job whose engine runs elsewhere, until it ends; see docs/multi-host.md."""
    from engine.runtime import follower
    from engine.runtime.loading import ModelAsked

    follower.follow(ModelAsked(checkpoint, chip=chip, **_model(settings)), _hosts(hosts), process)


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


@functools.lru_cache(maxsize=8)
def _made_for_run(output: str, run: str, lease_seconds: float) -> tuple[Leases, WorkerRecord]:
    return Leases(output, run, lease_seconds), WorkerRecord(output, run)


def _of_this_run(output: str, run: str, lease_seconds: float) -> tuple[Leases, WorkerRecord]:
    """The same for all threads of this process."""
    with _loss:
        return _made_for_run(output, run, lease_seconds)


def _end_process(hung: Exception) -> None:
    """Of a runner's worker: another in its place may get a device that answers. Leaves time to report the failure."""
    from engine.runtime.departure import Departure

    Departure().begin(hung)


def _give_up(worker: _Worker) -> None:
    """An engine that failed stays down: the next attempt is to load another."""
    global _engines_lost
    with _loss:
        _engines_lost += not worker.is_lost
        worker.is_lost = True
