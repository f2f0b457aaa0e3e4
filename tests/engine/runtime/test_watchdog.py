"""A device that does not answer is noticed; one that is only slow, or compiles, is left alone."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from engine.errors import DeviceHung
from engine.runtime import engine as engine_module
from engine.runtime.executor import Executor
from engine.runtime.request import GenerateRequest, Sampling
from engine.runtime.watchdog import FIRST_SECONDS, LEAST_SECONDS, TICK_SECONDS, Watchdog
from tests.engine import tiny

CONFIG = replace(tiny.CONFIG, layers=1)
BOUND_SECONDS = 3.0
OPTIONS = {"max_length": 16, "pages": 9}


def dog(bound_seconds: float | None = None) -> tuple[Watchdog, list[DeviceHung]]:
    """One that is told when time passes."""
    hung: list[DeviceHung] = []
    return Watchdog(hung.append, bound_seconds), hung


def wait(dog: Watchdog, seconds: float) -> None:
    for _ in range(round(seconds / TICK_SECONDS)):
        dog.tick(TICK_SECONDS)


def test_the_first_call_of_a_kind_may_take_long_and_later_ones_as_long_as_those_before_suggest() -> None:
    watched, hung = dog()
    assert watched.bound_seconds("decode") == FIRST_SECONDS
    with watched.call("decode"):
        wait(watched, FIRST_SECONDS)
    with watched.call("score"):
        wait(watched, 3)
    assert watched.bound_seconds("decode") == 30 * FIRST_SECONDS
    assert watched.bound_seconds("score") == LEAST_SECONDS
    assert not hung
    with pytest.raises(DeviceHung, match=r"score has taken 601 s, and may take 600 s"), watched.call("score"):
        wait(watched, LEAST_SECONDS + 1)
    assert len(hung) == 1


def test_what_a_user_sets_is_what_counts() -> None:
    watched, hung = dog(bound_seconds=20.0)
    for _ in range(3):
        with watched.call("decode"):
            wait(watched, 19)
    with pytest.raises(DeviceHung), watched.call("decode"):
        wait(watched, 21)
    assert len(hung) == 1


def test_neither_compiling_nor_idling_nor_a_process_that_was_stopped_counts() -> None:
    watched, hung = dog(bound_seconds=20.0)
    wait(watched, 1000)
    with watched.call("decode"):
        with watched.paused():
            wait(watched, 1000)
        watched.tick(1e6)
        wait(watched, 15)
    assert not hung


def hang(monkeypatch: pytest.MonkeyPatch, program: str) -> threading.Event:
    """Has calls of it hang until the event."""
    released = threading.Event()
    plain = getattr(Executor, program)

    def hanging(self: Executor, *args: Any) -> Any:
        released.wait(60)
        return plain(self, *args)

    monkeypatch.setattr(Executor, program, hanging)
    return released


@pytest.fixture
def announced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """This process stays."""
    announced: list[str] = []

    class NoDeparture:
        def announce(self) -> None:
            announced.append("at exit it leaves at once")

    monkeypatch.setattr(engine_module, "Departure", NoDeparture)
    return announced


def test_a_hung_device_fails_what_is_open_and_what_comes_later(monkeypatch, caplog, announced) -> None:
    released = hang(monkeypatch, "decode")
    engine = engine_module.Engine(
        tiny.random_params(CONFIG), CONFIG, tiny.options(**OPTIONS), tiny.EOS, watchdog_seconds=BOUND_SECONDS
    )
    requests = [GenerateRequest(prompt, Sampling(max_tokens=4)) for prompt in tiny.prompts(12, 8)]
    futures = [engine.submit(request) for request in requests]
    for future in futures:
        with pytest.raises(DeviceHung, match="the device does not answer: decode has taken"):
            future.result(timeout=60)
    with pytest.raises(DeviceHung):
        engine.submit(requests[0])
    engine.close()  # does not wait for the device either
    assert "released.wait(60)" in caplog.text, "where the device thread is"
    assert announced
    released.set()
    engine._thread.join(timeout=60)
    assert not engine._thread.is_alive()


def test_a_slow_compilation_is_no_hung_device(monkeypatch) -> None:
    plain = Executor._compile

    def slow(self: Executor, lowered: Any) -> Any:
        if not self._compiled:
            time.sleep(1.5 * BOUND_SECONDS)
        return plain(self, lowered)

    monkeypatch.setattr(Executor, "_compile", slow)
    with engine_module.Engine(
        tiny.random_params(CONFIG), CONFIG, tiny.options(**OPTIONS), tiny.EOS, watchdog_seconds=BOUND_SECONDS
    ) as engine:
        assert engine.submit(GenerateRequest((5, 6), Sampling(max_tokens=2))).result(timeout=120)
        assert engine.counters["compile_seconds"] > BOUND_SECONDS
