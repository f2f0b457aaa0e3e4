"""An engine without a model: the whole submit API, each answer a pure function of its request.

A generation is drawn from a hash of (prompt, seed, record, sample), a score from a hash of its tokens, so two runs of a
job must agree byte for byte however they were cut, killed, repeated or interleaved, and a million rows cost seconds.
Log-probabilities are multiples of 1/16: float32 holds them exactly.

The callables at the end of the file are what `ShardJob.engine_factory` names.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import queue
import random
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import EngineClosed, RequestError
from engine.runtime.request import GenerateRequest, Generation, Request, Score, ScoreRequest

# Of tests.pipeline.tiny_tokenizers, byte level: special tokens, bytes with the letters among them, pieces of words.
VOCAB_SIZE, EOS_ID, LETTER_A, FIRST_PIECE = 400, 1, 67, 259


@dataclass(frozen=True)
class Options:
    slots: int = 16
    max_length: int = 512


class FakeEngine:
    """Answers inside `submit`; with `delay_seconds`, from a thread of its own, later and out of order.

    `fail_on` gives the numbers of the requests, from 0, whose futures fail for no fault of theirs."""

    def __init__(
        self,
        *,
        options: Options = Options(),
        delay_seconds: float = 0.0,
        fail_on: range | frozenset[int] = frozenset(),
    ) -> None:
        self.options = options
        self._delay_seconds, self._fail_on = delay_seconds, fail_on
        self._lock = threading.Lock()
        self.is_closed = False
        self._numbers = itertools.count()
        self.failures = 0
        self.open_requests = 0
        self.most_open_requests = 0
        self._counters = {"prompt_tokens": 0, "generated_tokens": 0, "scored_tokens": 0}
        self._pending: queue.Queue[tuple[Request, Future[Any]] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        if delay_seconds:
            self._thread.start()

    def submit(self, request: Request) -> Future[Any]:
        self._check(request)
        future: Future[Any] = Future()
        with self._lock:
            self.open_requests += 1
            self.most_open_requests = max(self.most_open_requests, self.open_requests)
        if self._delay_seconds:
            self._pending.put((request, future))
        else:
            self._answer(request, future)
        return future

    @property
    def counters(self) -> dict[str, int]:
        return dict(self._counters)

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "platform": "none", "device_kind": "fake", "devices": 0, "memory_bytes": None, "peak_memory_bytes": None,
            "dtype": "float32", "slots": self.options.slots, "prefill_tokens": 256, "load_seconds": 0.0,
        }  # fmt: skip

    def close(self) -> None:
        self.is_closed = True
        if self._thread.is_alive():
            self._pending.put(None)

    def _check(self, request: Request) -> None:
        if self.is_closed:
            raise EngineClosed("the engine is closed")
        scoring = isinstance(request, ScoreRequest)
        tokens = request.tokens if scoring else request.prompt
        length = len(tokens) + (0 if scoring else request.sampling.max_tokens)
        if length > self.options.max_length:
            raise RequestError(f"{length} tokens are asked for, the engine holds {self.options.max_length}")
        if not all(0 <= token < VOCAB_SIZE for token in tokens):
            raise RequestError(f"a token id is not below {VOCAB_SIZE}, the size of the vocabulary")

    def _serve(self) -> None:
        shuffle = random.Random(0)
        while (first := self._pending.get()) is not None:
            batch = [first]
            while len(batch) < self.options.slots and not self._pending.empty():
                if (another := self._pending.get()) is None:
                    return
                batch.append(another)
            time.sleep(self._delay_seconds)
            shuffle.shuffle(batch)
            for request, future in batch:
                self._answer(request, future)

    def _answer(self, request: Request, future: Future[Any]) -> None:
        with self._lock:
            self.open_requests -= 1
        if not future.set_running_or_notify_cancel():
            return
        if next(self._numbers) in self._fail_on:
            self.failures += 1
            future.set_exception(RuntimeError("the device was lost"))
        elif isinstance(request, ScoreRequest):
            answer = score(request)
            self._count(scored_tokens=len(answer.logprobs))
            future.set_result(answer)
        else:
            answers = [generate(request, sample) for sample in range(request.samples)]
            generated = sum(len(answer.token_ids) for answer in answers)
            self._count(prompt_tokens=len(request.prompt), generated_tokens=generated)
            future.set_result(answers)

    def _count(self, **tokens: int) -> None:
        with self._lock:
            for name, count in tokens.items():
                self._counters[name] += count


def generate(request: GenerateRequest, sample: int) -> Generation:
    """Letters and spaces, and now and then the end of sequence."""
    sampling = request.sampling
    watcher = request.watch() if request.watch else None
    token_ids: list[int] = []
    logprobs: list[float] = []
    top_logprobs: list[tuple[tuple[int, float], ...]] = []
    finish_reason, stop_token = "length", None
    for byte in _bytes("generate", request.prompt, request.seed, request.record, sample):
        letter = LETTER_A + byte % 26 if byte < 200 else FIRST_PIECE + byte % 100
        logprob = -(byte % 64 + 1) / 16
        may_stop = len(token_ids) + 1 > sampling.min_tokens
        token = EOS_ID if byte < 4 and may_stop and not sampling.ignore_eos else letter
        token_ids.append(token)
        logprobs.append(logprob)
        top_logprobs.append(tuple((rank, logprob - rank) for rank in range(sampling.logprobs)))
        keep = watcher.feed([token]) if watcher else None
        if keep is not None:
            finish_reason = "stop"
            del token_ids[keep:], logprobs[keep:], top_logprobs[keep:]
        elif may_stop and token in sampling.stop_token_ids:
            finish_reason, stop_token = "stop", token
        elif token == EOS_ID:
            finish_reason = "stop"
        if finish_reason == "stop" or len(token_ids) == sampling.max_tokens:
            break
    return Generation(
        token_ids=tuple(token_ids),
        logprobs=tuple(logprobs),
        finish_reason=finish_reason,
        stop_token=stop_token,
        top_logprobs=tuple(top_logprobs) if sampling.logprobs else None,
        watcher=watcher,
    )


def score(request: ScoreRequest) -> Score:
    count = len(request.tokens) - request.start
    drawn = [byte for byte, _ in zip(_bytes("score", request.tokens, request.start), range(count), strict=False)]
    return Score(tuple(-(byte % 64 + 1) / 16 for byte in drawn), tuple(byte % 4 == 0 for byte in drawn))


def _bytes(*identity: Any) -> Iterator[int]:
    for block in itertools.count():
        yield from hashlib.blake2b(repr((*identity, block)).encode()).digest()


def instant(checkpoint: str, **asked: Any) -> FakeEngine:
    return FakeEngine(options=_options(asked))


def slow(checkpoint: str, **asked: Any) -> FakeEngine:
    """A shard takes long enough for a kill to land in its middle."""
    return FakeEngine(options=_options(asked), delay_seconds=0.002)


class NotingEngine(FakeEngine):
    """Leaves a line in a file for each request that it answers."""

    def __init__(self, notes: Path, options: Options) -> None:
        super().__init__(options=options, delay_seconds=0.002)
        self._notes = notes

    def _answer(self, request: Request, future: Future[Any]) -> None:
        super()._answer(request, future)
        if not future.cancelled():
            with self._notes.open("a") as notes:
                notes.write(f"{request.record if isinstance(request, GenerateRequest) else request.tokens}\n")


def noting(checkpoint: str, **asked: Any) -> FakeEngine:
    """Slow, and says in the checkpoint's directory what it has answered."""
    return NotingEngine(Path(checkpoint) / f"answered-{os.getpid()}", _options(asked))


def noting_together(checkpoint: str, **asked: Any) -> FakeEngine:
    """Begins when another process has one as well."""
    directory = Path(checkpoint)
    (directory / f"answered-{os.getpid()}").touch()
    deadline = time.monotonic() + 60
    while len(list(directory.glob("answered-*"))) < 2:
        assert time.monotonic() < deadline, "the other has not come"
        time.sleep(0.01)
    return noting(checkpoint, **asked)


def crawling(checkpoint: str, **asked: Any) -> FakeEngine:
    """A job takes long enough to be cancelled from another process."""
    return FakeEngine(options=_options(asked), delay_seconds=0.05)


def failing(checkpoint: str, **asked: Any) -> FakeEngine:
    return FakeEngine(options=_options(asked), fail_on=range(1 << 62))


def breaking_off(checkpoint: str, **asked: Any) -> FakeEngine:
    """A few rows are answered, and then none."""
    return FakeEngine(options=_options(asked), fail_on=range(3, 1 << 62))


def _options(asked: Mapping[str, Any]) -> Options:
    return Options(**{name: asked[name] for name in ("slots", "max_length") if asked.get(name) is not None})
