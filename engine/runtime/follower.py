"""A follower's side of an engine that spans hosts: it holds its part of the model and makes the calls it is told to.

It keeps the cache, as the leader does, and gives the results for the host away: they are the same on every chip.
"""

from __future__ import annotations

import logging
from typing import Any

import jax

from engine.compilation.options import MAX_STOP_TOKEN_IDS, DecodeOptions
from engine.errors import EngineError, HostLost
from engine.planning.buckets import Parts
from engine.runtime.channel import Frame
from engine.runtime.departure import EXIT_CODE, Departure
from engine.runtime.devices import connect_devices, disconnect_devices
from engine.runtime.executor import Executor
from engine.runtime.hosts import Hosts, join
from engine.runtime.leader import NOTICE_SECONDS
from engine.runtime.loading import Loaded, ModelAsked, check_hosts
from engine.runtime.peer import Peer
from engine.steps.decode import empty_slots

logger = logging.getLogger(__name__)

INTERRUPTED = 130
"""The exit code of a shell for Ctrl-C."""


def follow(model: ModelAsked, hosts: Hosts, process: int) -> None:
    """Serves a leader until it ends the run; returns then, in a process that has no more use.

    Raises HostLost when the leader is lost, or refuses this process.
    """
    leader, welcome = join(hosts, process, model.terms())
    logger.info("joined %s as process %d", leader.name, process)
    departure = Departure(grace_seconds=1.0)  # there is nobody to tell, and nothing to save
    leader.loss.watch(departure.begin)
    try:
        connect_devices(welcome.jax_coordinator, hosts.count, process)
        loaded = model.load()
        check_hosts(loaded.placement)
        serve(leader, loaded)
    except BaseException as error:
        lost = leader.loss.within(NOTICE_SECONDS if isinstance(error, jax.errors.JaxRuntimeError) else 0.0)
        leader.close(failure=_why(error))
        departure.announce(_exit_code(error))
        if lost and isinstance(error, Exception):
            raise lost from error
        raise
    leader.close()
    disconnect_devices()


def serve(leader: Peer, loaded: Loaded) -> None:
    """Makes the calls the leader makes, in their order, until it says that this is the end."""
    executor = _executor(leader.receive(), loaded)
    cache: Any = None
    while (frame := leader.receive()).name != "end":
        cache = jax.block_until_ready(_call(executor, cache, frame))


def _executor(frame: Frame, loaded: Loaded) -> Executor:
    assert frame.name == "start", frame.name
    asked = frame.facts["options"]
    options = DecodeOptions(**{**asked, "parts": Parts(**asked["parts"])})
    return Executor(loaded.params, loaded.placement, options, tuple(frame.facts["eos_tokens"]))


def _call(executor: Executor, cache: Any, frame: Frame) -> Any:
    """The cache after the call."""
    if frame.name == "new_cache":
        return executor.new_cache()
    if frame.name == "prefill_into":
        tokens, table = frame.arrays
        return executor.prefill_into(cache, tokens, table)
    if frame.name == "copy_pages":
        return executor.copy_pages(cache, [[(source, to) for source, to in some] for some in frame.facts["copies"]])
    if frame.name == "decode":
        table, *leaves = frame.arrays
        slots = jax.tree.unflatten(jax.tree.structure(empty_slots(1, MAX_STOP_TOKEN_IDS)), leaves)
        return executor.decode(cache, table, slots, frame.facts["enough_finished"])[0]
    if frame.name == "score":
        jax.block_until_ready(executor.score(*frame.arrays))
        return cache
    raise HostLost(f"the leader asks for {frame.name!r}, which this version does not know")


def _exit_code(error: BaseException) -> int:
    """An interrupt that is not Ctrl-C says itself which."""
    return getattr(error, "exit_code", INTERRUPTED) if isinstance(error, KeyboardInterrupt) else EXIT_CODE


def _why(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "it was interrupted by Ctrl-C"
    return str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
