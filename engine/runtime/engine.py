"""The engine: requests from any thread in, futures out, and one thread that owns the device.

The loop is short. Admit: prefill waiting prompts into free slots. Decode: run a chunk of steps for all slots. Harvest:
hand finished samples back. Scoring batches run in between. Everything a program changes (cache, slots) has one owner,
this thread.

When a program does not fit the device's memory, the loop begins again with smaller programs (engine/runtime/smaller.py)
and all that is not finished: the failed call may have taken the cache with it, and a sample's random keys come from its
position, so it comes out the same.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any, overload

import jax
import numpy as np

from engine.cache.pages import NULL_PAGE
from engine.compilation.options import DecodeOptions
from engine.compilation.placement import Placement
from engine.errors import DeviceHung, EngineClosed, EngineError, OutOfMemory, RequestError
from engine.families import Open, open_local
from engine.model.config import ModelConfig
from engine.model.params import Params
from engine.runtime.batcher import Batcher, Group, PrefillRow, Sample, Scoring
from engine.runtime.departure import Departure
from engine.runtime.device_check import memory_stat
from engine.runtime.executor import Executor
from engine.runtime.hosts import Hosts
from engine.runtime.leader import Followers, LeadingExecutor
from engine.runtime.loading import ModelAsked, check_hosts
from engine.runtime.memory import computed_in, devices_of, fitting_options, is_out_of_memory, too_large
from engine.runtime.request import (
    GenerateRequest,
    Generation,
    Request,
    Score,
    ScoreRequest,
)
from engine.runtime.slot_table import SlotTable, put_pages
from engine.runtime.smaller import difference, smaller
from engine.runtime.watchdog import Watchdog
from engine.steps.decode import LENGTH, RUNNING, STOP_TOKEN, Generated

logger = logging.getLogger(__name__)

_JOIN_SECONDS = 0.5


class Engine:
    """One model on one device. Thread-safe; a context manager."""

    def __init__(
        self,
        params: Params,
        placement: Placement | ModelConfig,
        options: DecodeOptions,
        eos_tokens: tuple[int, ...] = (),
        followers: Followers | None = None,
        watchdog_seconds: float | None = None,
    ) -> None:
        """Takes parameters that are where the placement has them. Most callers want `Engine.load`."""
        if isinstance(placement, ModelConfig):
            placement = Placement(placement)
        self.config = placement.config
        self.options = options
        self._params, self._placement, self._eos_tokens, self._followers = params, placement, eos_tokens, followers
        self._counters = dict.fromkeys(_COUNTERS, 0) | {"device_seconds": 0.0, "compile_seconds": 0.0}
        self._arrived: list[Group | Scoring] = []
        self._wake = threading.Condition()
        self._stopped: EngineError | None = None
        self._watchdog = Watchdog(self._give_up_device, watchdog_seconds)
        self._doing = "cache"
        self.load_seconds = 0.0
        """Of `load`: reading the checkpoint, with waiting for other processes."""
        self._programs = self._executor()
        self._batcher = Batcher(options)
        self._slots = SlotTable(options, self.config.vocab)
        self._thread = threading.Thread(target=self._run, name="penstock-device", daemon=True)
        self._thread.start()
        self._watchdog.start()
        if followers:
            followers.watch(self._stop)
            atexit.register(self.close)  # before jax's own, which waits for the followers

    @classmethod
    def load(
        cls,
        checkpoint: str,
        *,
        open: Open = open_local,
        dtype: str = "auto",
        weights: str = "auto",
        kv: str = "auto",
        mesh: str | None = None,
        prefill: Sequence[str | None] | None = None,
        decode: Sequence[str | None] | None = None,
        slots: int | None = None,
        max_length: int | None = None,
        prefill_tokens: int | None = None,
        hosts: Hosts | None = None,
        chip: str = "auto",
        watchdog_seconds: float | None = None,
    ) -> Engine:
        """Loads a Hugging Face checkpoint directory (config.json and *.safetensors).

        Args:
          checkpoint: a directory, or whatever prefix `open` understands.
          open: opens one file for reading; give one that knows gs:// to load from there. Several threads call it.
          dtype: what weights, activations and cache are held in: "float32", "bfloat16", or "auto": bfloat16 for a
            bfloat16 checkpoint on an accelerator, else float32 (which on CPU is the faster, and loses nothing).
          weights: "int8" quantises matrices as they are loaded; "auto" holds them in dtype.
          kv: "int8" keeps keys and values quantised; "auto" keeps them in dtype.
          mesh: chips as "XxYxZ", such as "2x2x2", or "2*2x2x2" for a pipeline over two slices of that; one chip if not
            given.
          prefill, decode: the phase's layout as (feed-forward, attention), such as ("wg-xyz", "batch"); what is None
            is chosen. See engine/layout.py.
          slots: samples decoded at the same time; chosen if not given.
          max_length: tokens of the longest request, prompt and answer together; what the model and memory allow if not
            given.
          prefill_tokens: of prompts that go through at the same time, about; chosen if not given.
          hosts: the processes that hold the model together. This one leads; the others call
            engine.runtime.follower.follow. Waits for them. In a process that has not used its devices before.
          chip: what the devices must be, such as "v5e"; "auto" takes what is there. Names are in
            engine/planning/chips.py.
          watchdog_seconds: how long one call on the device may take before it is given up; derived from those before
            it if not given. See engine/runtime/watchdog.py.

        Raises:
          WrongDevice: the devices there are not those asked for, or cannot be used.
          OutOfMemory: the device cannot hold the weights.
          UnsupportedCheckpoint: the files are damaged or describe a model that would not be computed exactly.
          NoFeasiblePlan: mesh, layouts, slots, max_length or hosts cannot be had.
          HostLost: another process did not come, or is gone.
        """
        started = time.perf_counter()
        asked = ModelAsked(checkpoint, open, dtype, weights, kv, mesh, prefill, decode, chip)
        followers = Followers.gather(hosts, asked.terms()) if hosts else None
        with followers.told_of_failure() if followers else contextlib.nullcontext():
            try:
                loaded = asked.load()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                raise OutOfMemory(
                    "the device ran out of memory while the weights were loaded: hold them as int8 (model.weights) or "
                    f"over more chips (engine.mesh) ({error})"
                ) from error
            if hosts:
                check_hosts(loaded.placement)
            engine = cls(
                loaded.params,
                loaded.placement,
                fitting_options(loaded, slots, max_length, prefill_tokens),
                loaded.eos_tokens,
                followers,
                watchdog_seconds,
            )
            engine.load_seconds = time.perf_counter() - started
            return engine

    @overload
    def submit(self, request: GenerateRequest) -> Future[list[Generation]]: ...
    @overload
    def submit(self, request: ScoreRequest) -> Future[Score]: ...

    def submit(self, request: Request) -> Future[Any]:
        """Queues a request; the future resolves to one Generation a sample, or to a Score.

        Raises RequestError at once when the request can never be served, EngineClosed when the engine has stopped.
        """
        item: Group | Scoring
        future: Future[Any] = Future()
        if isinstance(request, GenerateRequest):
            self._check_tokens(request.prompt, "prompt")
            self._check_tokens(request.sampling.stop_token_ids, "sampling.stop_token_ids")
            room = self.options.max_length - len(request.prompt)
            if room < 1:
                raise RequestError(
                    f"the prompt has {len(request.prompt)} tokens; the engine holds {self.options.max_length} of "
                    f"prompt and answer together, at most {self.options.max_length - 1} of prompt (engine.max_length, "
                    "the model's context, or cache memory)"
                )
            item = Group(request, min(request.sampling.max_tokens, room), future)
        else:
            self._check_tokens(request.tokens, "tokens")
            if len(request.tokens) > self.options.max_length:
                raise RequestError(
                    f"the text has {len(request.tokens)} tokens; the engine holds {self.options.max_length} "
                    "(engine.max_length, the model's context, or cache memory)"
                )
            item = Scoring(request, future)
        with self._wake:
            if self._stopped:
                raise self._stopped
            self._arrived.append(item)
            self._wake.notify()
        return future

    @property
    def counters(self) -> dict[str, int | float]:
        """Counts since the start; see _COUNTERS. Numbers shown to users come from these."""
        return dict(self._counters)

    @property
    def facts(self) -> dict[str, Any]:
        """What runs it, in what, and how it is shaped now. Memory is of one device, None where it does not tell."""
        found = devices_of(self._params)
        return {
            "platform": found[0].platform,
            "device_kind": found[0].device_kind,
            "devices": len(found),
            "memory_bytes": memory_stat(found[0], "bytes_limit"),
            "peak_memory_bytes": memory_stat(found[0], "peak_bytes_in_use"),
            "dtype": computed_in(self._params),
            "slots": self.options.slots,
            "prefill_tokens": self.options.prefill_tokens,
            "load_seconds": round(self.load_seconds, 3),
        }

    @property
    def programs(self) -> tuple[str, ...]:
        """Names of the programs compiled so far."""
        return self._programs.names

    def close(self) -> None:
        """Stops the device thread; requests that are not finished fail with EngineClosed. May be called twice."""
        self._stop(EngineClosed("the engine was closed before this request was finished"))
        while self._thread.is_alive() and not self._watchdog.hung:
            self._thread.join(_JOIN_SECONDS)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_tokens(self, tokens: tuple[int, ...], what: str) -> None:
        if tokens and (min(tokens) < 0 or max(tokens) >= self.config.vocab):
            bad = next(token for token in tokens if not 0 <= token < self.config.vocab)
            raise RequestError(f"{what} has token id {bad}; the model's vocabulary is 0 to {self.config.vocab - 1}")

    def _stop(self, reason: EngineError) -> None:
        with self._wake:
            self._stopped = self._stopped or reason
            self._wake.notify()

    def _give_up_device(self, hung: DeviceHung) -> None:
        """Called by the watchdog: the device thread waits for a device that does not answer."""
        self._stop(hung)
        self._fail_everything()
        Departure().announce()  # at exit jax would wait for the device
        if self._followers:
            self._followers.close(hung)

    # The device thread. Nothing below is called from another.

    def _run(self) -> None:
        failure = None
        while True:
            try:
                self._serve()
                break
            except Exception as error:
                failure = _explain(error)
                shrinks = isinstance(failure, OutOfMemory) and not self._followers
                if not (shrinks and (options := smaller(self.options, self._doing))):
                    if isinstance(failure, OutOfMemory):
                        failure = too_large(
                            self._doing, self._params, self._placement, self.options, failure, bool(self._followers)
                        )
                    level = logging.INFO if failure is error else logging.ERROR
                    logger.log(level, "the device thread stopped", exc_info=True)
                    self._stop(failure)
                    break
            self._start_over(options, failure)  # out of the block, for the error holds on to the cache
            failure = None
        if not self._watchdog.hung:
            self._fail_everything()
            self._watchdog.close()
            self._programs.close(failure)

    def _serve(self) -> None:
        """Until the engine is to stop."""
        with self._timed("cache"):
            cache = self._programs.new_cache()
        while self._receive():
            if self._batcher.scores_waiting:
                self._score()
            if self._batcher.samples_waiting:
                cache = self._admit(cache)
            if self._batcher.running:
                cache = self._decode(cache)

    def _executor(self) -> Executor:
        common = (self._params, self._placement, self.options, self._eos_tokens)
        programs = LeadingExecutor(*common, self._followers) if self._followers else Executor(*common)
        programs.while_compiling = self._compiling
        return programs

    def _start_over(self, options: DecodeOptions, failure: EngineError) -> None:
        """Goes on with programs that need less memory."""
        logger.warning(
            "out of memory in %s, going on with %s; to start like this, write it into the job's engine section (%s)",
            self._doing,
            difference(self.options, options),
            failure,
        )
        self._counters["out_of_memory_retries"] += 1
        self.options = options
        self._programs = self._executor()
        self._batcher = self._batcher.started_over(options)
        self._slots = SlotTable(options, self.config.vocab)

    @contextlib.contextmanager
    def _compiling(self) -> Iterator[None]:
        start = time.perf_counter()
        with self._watchdog.paused():
            yield
        self._counters["compile_seconds"] += time.perf_counter() - start

    def _receive(self) -> bool:
        """Takes what has arrived; waits while there is nothing to do. False when the engine is to stop."""
        with self._wake:
            idle = not (self._batcher.running or self._batcher.samples_waiting or self._batcher.scores_waiting)
            while idle and not self._arrived and not self._stopped:
                self._wake.wait()
            arrived, self._arrived = self._arrived, []
            stopped = self._stopped
        for item in arrived:
            if not item.future.set_running_or_notify_cancel():
                continue
            if isinstance(item, Group):
                self._batcher.add(item)
            else:
                self._batcher.add_score(item)
        return stopped is None

    def _fail_everything(self) -> None:
        self._receive()
        assert self._stopped
        for future in self._batcher.open_futures():
            with contextlib.suppress(InvalidStateError):  # a device that was given up may answer after all
                future.set_exception(self._stopped)

    def _admit(self, cache: Any) -> Any:
        admission = self._batcher.admit()
        with self._timed("prefill"):
            for bucket, by_part in admission.prefills:
                tokens, table = self._prefill_arrays(bucket, by_part)
                cache = self._programs.prefill_into(cache, tokens, table)
                self._counters["prefill_tokens"] += sum(len(row.token_ids) for rows in by_part for row in rows)
                self._counters["prefill_tokens_padded"] += tokens.size
        with self._timed("copy"):
            cache = self._programs.copy_pages(cache, admission.copies)
        for sample in admission.samples:
            self._slots.fill(sample)
            if not sample.group.is_counted:
                sample.group.is_counted = True
                self._counters["prompt_tokens"] += len(sample.group.request.prompt)
        return cache

    def _prefill_arrays(self, bucket: int, by_part: list[list[PrefillRow]]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [rows, bucket] and the table of their pages; see Executor.prefill_into."""
        count, page_parts = self.options.rows(bucket), self.options.parts.of_sequence
        rows_of_part = count // len(by_part)
        blocks = self.options.pages_of(bucket)
        shape = (len(by_part), rows_of_part, blocks) if page_parts == 1 else (page_parts, count, blocks)
        tokens, table = np.zeros((count, bucket), np.int32), np.full(shape, NULL_PAGE, np.int32)
        for part, rows in enumerate(by_part):
            for at, row in enumerate(rows, start=part * rows_of_part):
                tokens[at, : len(row.token_ids)] = row.token_ids
                put_pages(table, at, row.pages, page_parts)
        return tokens, table

    def _decode(self, cache: Any) -> Any:
        running = dict(self._batcher.running)
        refill = self._batcher.samples_waiting
        enough = max(1, len(running) // 8) if refill else len(running)
        with self._timed("decode"):
            cache, after, generated, steps = self._programs.decode(cache, self._slots.pages, self._slots.state, enough)
            counts = self._slots.update(after)
            produced = jax.tree.map(np.asarray, generated)
        self._counters["decode_steps"] += int(steps)
        self._counters["slot_steps_busy"] += int(counts.sum())
        self._counters["slot_steps_total"] += int(steps) * self.options.slots
        for slot, sample in running.items():
            if self._batcher.running.get(slot) is sample:  # its request may have failed with another sample of it
                self._harvest(sample, int(counts[slot]), produced)
        return cache

    def _harvest(self, sample: Sample, count: int, produced: Generated) -> None:
        """Takes a slot's new tokens; finishes the sample if the device or its watcher says so."""
        slot, sampling = sample.slot, sample.group.request.sampling
        new = produced.tokens[:count, slot].tolist()
        sample.token_ids += new
        sample.logprobs += produced.logprobs[:count, slot].tolist()
        if sampling.logprobs:
            for step in range(count):
                ids, values = (
                    produced.top_tokens[step, slot].tolist(),
                    produced.top_logprobs[step, slot].tolist(),
                )
                sample.top_logprobs.append(tuple(zip(ids, values, strict=True))[: sampling.logprobs])
        try:
            keep = sample.watcher.feed(new) if sample.watcher else None
        except Exception as error:
            logger.exception("a watcher failed")
            for dropped in self._batcher.fail(sample.group, error):
                self._slots.empty(dropped.slot)
            return
        finish = int(self._slots.state.finish[slot])
        if keep is None and finish == RUNNING:
            return
        self._slots.empty(slot)
        kept = len(sample.token_ids) if keep is None else keep
        self._counters["generated_tokens"] += kept
        generation = Generation(
            token_ids=tuple(sample.token_ids[:kept]),
            logprobs=tuple(sample.logprobs[:kept]),
            finish_reason="length" if keep is None and finish == LENGTH else "stop",
            stop_token=sample.token_ids[-1] if keep is None and finish == STOP_TOKEN else None,
            top_logprobs=tuple(sample.top_logprobs[:kept]) if sampling.logprobs else None,
            watcher=sample.watcher,
        )
        self._batcher.finish(sample, generation)

    def _score(self) -> None:
        bucket, batch = self._batcher.next_scores()
        tokens = np.zeros((self.options.rows(bucket), bucket), np.int32)
        for row, scoring in enumerate(batch):
            tokens[row, : len(scoring.request.tokens)] = scoring.request.tokens
        with self._timed("score"):
            logprobs, greedy = (np.asarray(x) for x in self._programs.score(tokens))
        self._counters["prefill_tokens_padded"] += tokens.size
        scores = []
        for row, scoring in enumerate(batch):
            scored = slice(scoring.request.start - 1, len(scoring.request.tokens) - 1)
            self._counters["prefill_tokens"] += len(scoring.request.tokens)
            self._counters["scored_tokens"] += scored.stop - scored.start
            scores.append(Score(tuple(logprobs[row, scored].tolist()), tuple(greedy[row, scored].tolist())))
        self._batcher.finish_scores(scores)

    @contextlib.contextmanager
    def _timed(self, doing: str) -> Iterator[None]:
        """Around what waits for the device: under the eye of the watchdog, its time added to `device_seconds`."""
        self._doing = doing
        start = time.perf_counter()
        with self._watchdog.call(doing):
            yield
        self._counters["device_seconds"] += time.perf_counter() - start


_COUNTERS = (
    "prompt_tokens",  # of the requests that started
    "generated_tokens",  # in finished samples, after stop strings
    "scored_tokens",
    "prefill_tokens",  # that prefill and score programs had to compute
    "prefill_tokens_padded",  # that they did compute, padding included
    "decode_steps",
    "slot_steps_busy",  # decode steps times slots that were running in them
    "slot_steps_total",  # decode steps times slots
    "out_of_memory_retries",  # how often the loop began again with smaller programs
)


def _explain(error: Exception) -> EngineError:
    if isinstance(error, EngineError):
        return error
    if is_out_of_memory(error):
        return OutOfMemory(f"the device ran out of memory: {str(error).strip() or type(error).__name__}")
    return EngineClosed(f"the device thread stopped: {type(error).__name__}: {error}")
