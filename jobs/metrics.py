"""Metrics of a run for Prometheus: scraped while it runs, or as a file for node_exporter's textfile collector.

Nothing is counted twice: a scrape reads the counts that are kept anyway (pipeline.activity, the engine, the
manifest). Those of `penstock_job_` are of the output, so they hold for any runner and over restarts. The others are
of this process and begin at zero with it; what workers in other processes do, they do not see.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline import activity
from pipeline.errors import JobError, OutputError, PenstockError
from pipeline.manifest import Manifest
from pipeline.storage import exists, join
from pipeline.workplan import read_plan
from schemas.manifest import PLAN_NAME, SUCCESS_NAME

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

logger = logging.getLogger(__name__)

OUTPUT_SECONDS = 10.0
"""Between looks at the output, however often somebody scrapes: in an object store each is a listing."""
FILE_SECONDS = 15.0
LOCAL = "127.0.0.1"

_ENGINE = {
    "decode_steps": ("decode_steps", {}, "Decode steps."),
    "slot_steps_busy": (
        "slot_steps",
        {"state": "busy"},
        "Decode steps times slots; busy / (busy + idle) is utilisation.",
    ),
    "prefill_tokens": ("prefill_tokens", {"kind": "useful"}, "Tokens that prefill and score programs computed."),
    "device_seconds": ("device_seconds", {}, "Time in which the device had work."),
    "out_of_memory_retries": ("out_of_memory_retries", {}, "How often the batch was shrunk, out of memory."),
}
"""Counters of the engine: what each is called here, with which label, and what it is."""
_REST = {
    "slot_steps_total": ("slot_steps_busy", "slot_steps", {"state": "idle"}),
    "prefill_tokens_padded": ("prefill_tokens", "prefill_tokens", {"kind": "padding"}),
}
"""Counters that hold another: the difference is what is called so."""


@dataclass(frozen=True)
class Exposed:
    """Where a run's metrics can be had. `port`: [HOST:]PORT to listen on; `file`: a .prom file that is kept fresh."""

    port: str | None = None
    file: str | None = None

    @contextlib.contextmanager
    def while_running(self, job: str, task: str, output: str) -> Iterator[None]:
        """Exposes the metrics until the block ends; a file stays, with the last values."""
        if not (self.port or self.file):
            yield
            return
        registry, collector = _registry(job, task, output)
        with contextlib.ExitStack() as stack:
            if self.port:
                stack.enter_context(_served(registry, self.port))
            if self.file:
                stack.enter_context(_kept_fresh(registry, self.file))
            try:
                yield
            finally:
                collector.end()


def _registry(job: str, task: str, output: str) -> tuple[CollectorRegistry, RunCollector]:
    try:
        from prometheus_client import CollectorRegistry, ProcessCollector
    except ImportError as error:
        raise JobError(
            "--metrics-port and --metrics-file need prometheus_client: pip install 'penstock[metrics]'"
        ) from error
    registry = CollectorRegistry(auto_describe=False)
    collector = RunCollector(job, task, output)
    registry.register(collector)  # type: ignore[arg-type]
    ProcessCollector(registry=registry)
    return registry, collector


class RunCollector:
    """What a scrape gets, in Prometheus' own classes; it never fails a run."""

    def __init__(self, job: str, task: str, output: str) -> None:
        self._labels = {"job": job, "task": task}
        self._started = time.time()
        self._output = _Output(output)

    def describe(self) -> list[Metric]:
        return []

    def end(self) -> None:
        """The run is over: the next look at the output is a fresh one."""
        self._output.forget()

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

        def gauge(name: str, text: str, values: list[tuple[dict[str, str], float]]) -> Metric:
            return _family(GaugeMetricFamily, name, text, values)

        def counter(name: str, text: str, values: list[tuple[dict[str, str], float]]) -> Metric:
            return _family(CounterMetricFamily, name, text, values)

        live = activity.live()
        yield InfoMetricFamily("penstock_run", "The job that runs.", value=self._labels)
        yield gauge("penstock_run_start_timestamp_seconds", "When this process began to run it.", [({}, self._started)])
        done, failed = live["records_done"], live["records_failed"]
        yield counter(
            "penstock_rows",
            "Input rows that got ready.",
            [({"status": "ok"}, done - failed), ({"status": "failed"}, failed)],
        )
        yield counter(
            "penstock_failures", "Failed rows by reason.", [({"reason": k}, n) for k, n in activity.failures().items()]
        )
        kinds = {"prompt": "prompt_tokens", "generated": "generated_tokens", "scored": "scored_tokens"}
        yield counter(
            "penstock_tokens", "Tokens of rows that got ready.", [({"kind": k}, live[n]) for k, n in kinds.items()]
        )
        now = activity.open_now()
        yield gauge("penstock_open_shards", "Shards being computed.", [({}, now["shards"])])
        yield gauge("penstock_queue_rows", "Rows given to the engine and not answered yet.", [({}, now["records"])])
        yield counter(
            "penstock_storage_retries",
            "Requests to a store that were repeated.",
            [({}, activity.events().get("storage_retries", 0))],
        )
        engines = activity.engines()
        yield gauge(
            "penstock_engine_slots",
            "Sequences that can be decoded at a time.",
            [({}, sum(e.options.slots for e in engines))],
        )
        counts = [engine.counters for engine in engines]
        for name, (text, values) in engine_counts(counts).items():
            yield counter(f"penstock_engine_{name}", text, values)
        if (output := self._output.look()) is not None:
            yield gauge(
                "penstock_job_shards", "Shards of the job's output.",
                [({"state": "done"}, output.shards), ({"state": "left"}, output.shards_left)],
            )  # fmt: skip
            yield gauge(
                "penstock_job_rows", "Rows of the job's input.",
                [({"state": "ok"}, output.ok), ({"state": "failed"}, output.failed), ({"state": "left"}, output.left)],
            )  # fmt: skip
            yield gauge(
                "penstock_job_tokens", "Tokens in the job's output.",
                [({"kind": kind}, count) for kind, count in output.tokens.items()],
            )  # fmt: skip
            yield gauge("penstock_job_finished", "1 when the output is complete.", [({}, float(output.is_finished))])


def engine_counts(
    counters: list[dict[str, Any]],
) -> dict[str, tuple[str, list[tuple[dict[str, str], float]]]]:
    """The engine's counters by the names they have here: text, and values with labels. Others are left out."""
    totals: dict[str, float] = {}
    for counts in counters:
        for name, count in counts.items():
            totals[name] = totals.get(name, 0) + count
    families: dict[str, tuple[str, list[tuple[dict[str, str], float]]]] = {}
    for name, (ours, labels, text) in _ENGINE.items():
        if name in totals:
            families.setdefault(ours, (text, []))[1].append((labels, totals[name]))
    for name, (part, ours, labels) in _REST.items():
        if name in totals and ours in families:
            families[ours][1].append((labels, max(0.0, totals[name] - totals[part])))
    return families


def _family(kind: Any, name: str, text: str, values: list[tuple[dict[str, str], float]]) -> Any:
    labels = list(values[0][0]) if values else ["reason"]
    family = kind(name, text, labels=labels)
    for given, value in values:
        family.add_metric(list(given.values()), value)
    return family


@dataclass(frozen=True)
class _Seen:
    shards: int
    shards_left: int
    ok: int
    failed: int
    left: int
    tokens: dict[str, int]
    is_finished: bool


class _Output:
    """The output of the job, looked at now and then."""

    def __init__(self, output: str) -> None:
        self._output = output
        self._manifest: Manifest | None = None
        self._seen: _Seen | None = None
        self._next = 0.0
        self._lock = threading.Lock()

    def forget(self) -> None:
        with self._lock:
            self._next = 0.0

    def look(self) -> _Seen | None:
        """None before there is a plan, or while the output cannot be read."""
        with self._lock:
            if time.monotonic() >= self._next:
                try:
                    self._seen = self._read()
                except (PenstockError, OSError) as error:
                    logger.info("the output cannot be looked at for metrics: %s", error)
                self._next = time.monotonic() + (OUTPUT_SECONDS if self._manifest else 0.0)
            return self._seen

    def _read(self) -> _Seen | None:
        if self._manifest is None:
            if not exists(join(self._output, PLAN_NAME)):
                return None
            self._manifest = Manifest(self._output, read_plan(self._output))
        plan, entries = self._manifest.plan, self._manifest.entries()
        ok, failed = sum(entry.ok for entry in entries), sum(entry.failed for entry in entries)
        return _Seen(
            shards=len(entries),
            shards_left=len(plan.shards) - len(entries),
            ok=ok,
            failed=failed,
            left=plan.rows_total - ok - failed,
            tokens={
                "prompt": sum(entry.prompt_tokens for entry in entries),
                "generated": sum(entry.completion_tokens for entry in entries),
                "scored": sum(entry.scored_tokens for entry in entries),
            },
            is_finished=exists(join(self._output, SUCCESS_NAME)),
        )


@contextlib.contextmanager
def _served(registry: CollectorRegistry, address: str) -> Iterator[None]:
    from prometheus_client import start_http_server

    host, _, port = address.rpartition(":")
    if not (port.isdecimal() and 0 < int(port) < 65536):
        raise JobError(f"--metrics-port {address}: write PORT or HOST:PORT, such as 9464 or 0.0.0.0:9464")
    try:
        server, thread = start_http_server(int(port), host.strip("[]") or LOCAL, registry)
    except OSError as error:
        raise JobError(
            f"--metrics-port {address}: cannot listen there: {error.strerror or error}; another run may have it"
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def _kept_fresh(registry: CollectorRegistry, path: str) -> Iterator[None]:
    if not path.endswith(".prom"):
        raise JobError(f"--metrics-file {path}: the name must end in .prom, or node_exporter does not read it")
    _write(registry, path)
    ended = threading.Event()

    def refresh() -> None:
        while not ended.wait(FILE_SECONDS):
            with contextlib.suppress(OutputError):  # said at the end
                _write(registry, path)

    thread = threading.Thread(target=refresh, name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        try:
            _write(registry, path)
        except OutputError as error:
            logger.warning("%s", error)


def _write(registry: CollectorRegistry, path: str) -> None:
    from prometheus_client import write_to_textfile

    try:
        write_to_textfile(os.fspath(path), registry)  # beside it, then renamed
    except OSError as error:
        raise OutputError(f"--metrics-file {path}: cannot be written: {error.strerror or error}") from error
