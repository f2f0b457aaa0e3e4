"""The leader's side of an engine that spans hosts: it tells its followers of every call, then makes it itself.

A call of the executor is a pure function of arrays of the host and of what earlier calls left on the device. So it is
enough that all processes make the same calls in the same order; what a program computes then comes about on all chips
together, and its results for the host are on every chip.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from engine.cache.pages import PagedCache
from engine.compilation.options import DecodeOptions
from engine.compilation.placement import Placement
from engine.errors import HostLost
from engine.model.params import Params
from engine.runtime.departure import Departure
from engine.runtime.devices import connect_devices, disconnect_devices, refuse_second_connection
from engine.runtime.executor import Executor
from engine.runtime.hosts import Hosts, Terms, gather
from engine.runtime.peer import Loss, Peer
from engine.steps.decode import Generated, Slots

logger = logging.getLogger(__name__)

NOTICE_SECONDS = 5.0
"""A collective that breaks may say so before the connection does."""


class Followers:
    """All the other processes. Used by one thread at a time."""

    def __init__(self, peers: Sequence[Peer], departure: Departure) -> None:
        self._peers = peers
        self._departure = departure
        self._loss = Loss()
        self._closed = False
        for peer in peers:
            peer.loss.watch(self._loss.notice)
        self._loss.watch(departure.begin)

    @classmethod
    def gather(cls, hosts: Hosts, terms: Terms) -> Followers:
        """Waits until all are there, and the devices of all are those of jax."""
        refuse_second_connection()
        peers, welcome = gather(hosts, terms)
        followers = cls(peers, Departure())
        with followers.told_of_failure():
            connect_devices(welcome.jax_coordinator, hosts.count, process=0)
        return followers

    def watch(self, on_loss: Callable[[HostLost], None]) -> None:
        """Has this called when one is lost, by whichever thread notices."""
        self._loss.watch(on_loss)

    def tell(self, call: str, facts: Mapping[str, Any] | None = None, arrays: Sequence[np.ndarray] = ()) -> None:
        for peer in self._peers:
            peer.send(call, facts, arrays)

    @contextlib.contextmanager
    def blamed(self) -> Iterator[None]:
        """If what all run in this block breaks since one of them is gone, that is what is raised."""
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            raise self._loss.within(NOTICE_SECONDS) or error from error

    @contextlib.contextmanager
    def told_of_failure(self) -> Iterator[None]:
        """Ends the run for all of them if the block fails, or one was lost meanwhile."""
        try:
            yield
            if lost := self._loss.within(0.0):
                raise lost
        except Exception as error:
            self.close(error)
            raise

    def close(self, failure: Exception | None = None) -> None:
        """Ends the run: without a failure together, all of them at the same time. May be called twice."""
        if self._closed:
            return
        self._closed = True
        lost = self._loss.within(0.0)
        if lost and failure is None:
            logger.warning("%s", lost)
        failure = failure or lost
        if failure is None:
            try:
                self.tell("end")
                for peer in self._peers:
                    peer.receive()  # its answer, that it has done all that came before
                for peer in self._peers:
                    peer.close()
                disconnect_devices()
                return
            except HostLost as lost:
                logger.warning("%s", lost)
                failure = lost
        for peer in self._peers:
            peer.close(str(failure))
        self._departure.announce()


class LeadingExecutor(Executor):
    """An executor whose followers make the same calls. See engine/runtime/follower.py for their side.

    Each call is over before the next begins, here and there: on CPU, programs that do not need each other's results
    would run in any order, and their messages between processes meet the wrong ones.
    """

    def __init__(
        self,
        params: Params,
        placement: Placement,
        options: DecodeOptions,
        eos_tokens: tuple[int, ...],
        followers: Followers,
    ) -> None:
        super().__init__(params, placement, options, eos_tokens)
        self._followers = followers
        followers.tell("start", {"options": dataclasses.asdict(options), "eos_tokens": eos_tokens})

    def new_cache(self) -> PagedCache:
        with self._call("new_cache"):
            return jax.block_until_ready(super().new_cache())

    def prefill_into(self, cache: PagedCache, tokens: np.ndarray, table: np.ndarray) -> PagedCache:
        with self._call("prefill_into", arrays=(tokens, table)):
            return jax.block_until_ready(super().prefill_into(cache, tokens, table))

    def copy_pages(self, cache: PagedCache, copies: list[list[tuple[int, int]]]) -> PagedCache:
        if not any(copies):
            return cache
        with self._call("copy_pages", {"copies": copies}):
            return jax.block_until_ready(super().copy_pages(cache, copies))

    def decode(
        self, cache: PagedCache, table: np.ndarray, slots: Slots, enough_finished: int
    ) -> tuple[PagedCache, Slots, Generated, jax.Array]:
        arrays = (table, *jax.tree.leaves(slots))
        with self._call("decode", {"enough_finished": enough_finished}, arrays):
            return jax.block_until_ready(super().decode(cache, table, slots, enough_finished))

    def score(self, tokens: np.ndarray) -> tuple[jax.Array, jax.Array]:
        with self._call("score", arrays=(tokens,)):
            return jax.block_until_ready(super().score(tokens))

    @contextlib.contextmanager
    def _call(
        self, name: str, facts: Mapping[str, Any] | None = None, arrays: Sequence[np.ndarray] = ()
    ) -> Iterator[None]:
        self._followers.tell(name, facts, arrays)
        with self._followers.blamed():
            yield

    def close(self, failure: Exception | None = None) -> None:
        self._followers.close(failure)
