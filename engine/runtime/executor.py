"""Runs programs on the device: each is compiled once, when first needed, and kept.

Host arrays become global arrays here; what comes back for the host is on every chip, so any process can read it.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from engine.cache.pages import NULL_PAGE, PagedCache
from engine.compilation.options import DecodeOptions
from engine.compilation.placement import Placement
from engine.compilation.programs import COPIES_AT_A_TIME, Program, ProgramSet
from engine.compilation.topology import options_for
from engine.model.params import Params, leaves
from engine.model.quantized import Quantized
from engine.steps.decode import Generated, Slots

logger = logging.getLogger(__name__)


class Executor:
    """The programs of one model under one set of options, and its parameters. Used by one thread."""

    def __init__(
        self, params: Params, placement: Placement, options: DecodeOptions, eos_tokens: tuple[int, ...] = ()
    ) -> None:
        int8 = any(isinstance(leaf, Quantized) for _, leaf in leaves(params))
        self._params = params
        self._placement = placement
        self._programs = ProgramSet(placement, options, eos_tokens, int8)
        self._compiled: dict[str, Any] = {}
        self.while_compiling: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
        """What a compilation is done in."""

    @property
    def names(self) -> tuple[str, ...]:
        """The programs compiled so far."""
        return tuple(self._compiled)

    def new_cache(self) -> PagedCache:
        return self._run(self._programs.new_cache())

    def prefill_into(self, cache: PagedCache, tokens: np.ndarray, table: np.ndarray) -> PagedCache:
        """Prefills `tokens` [rows, bucket]; block b of row r of part p goes to page `table[p, r, b]` of that part.

        The rows of a part stand together, in the order of the parts.
        """
        keys, values = self._run(self._programs.prefill(*tokens.shape), self._params, tokens)
        return self._run(self._programs.insert(*tokens.shape), cache, keys, values, table)

    def copy_pages(self, cache: PagedCache, copies: list[list[tuple[int, int]]]) -> PagedCache:
        """Copies the (source, target) pages of each part of the cache."""
        for start in range(0, max(map(len, copies)), COPIES_AT_A_TIME):
            some = np.full((2, len(copies), COPIES_AT_A_TIME), NULL_PAGE, np.int32)
            for part, pairs in enumerate(copies):
                for at, pair in enumerate(pairs[start : start + COPIES_AT_A_TIME]):
                    some[:, part, at] = pair
            cache = self._run(self._programs.copy(), cache, some[0].copy(), some[1].copy())
        return cache

    def decode(
        self, cache: PagedCache, table: np.ndarray, slots: Slots, enough_finished: int
    ) -> tuple[PagedCache, Slots, Generated, jax.Array]:
        """A chunk of decode steps; see engine.steps.decode."""
        return self._run(self._programs.decode(), self._params, cache, table, slots, np.int32(enough_finished))

    def score(self, tokens: np.ndarray) -> tuple[jax.Array, jax.Array]:
        """Log-probabilities and greedy flags of the next token at every position of `tokens` [rows, bucket]."""
        return self._run(self._programs.score(*tokens.shape), self._params, tokens)

    def close(self, failure: Exception | None = None) -> None:
        """No more calls will come. A `failure` is why, if that was not the plan."""

    def _run(self, program: Program, *args: Any) -> Any:
        if self._placement.mesh is not None:
            args = tuple(self._placed(arg, spec) for arg, spec in zip(args, program.in_specs, strict=True))
        if program.name not in self._compiled:
            start = time.perf_counter()
            with self.while_compiling():
                self._compiled[program.name] = self._compile(program.jitted(self._placement).lower(*args))
            logger.info("compiled %s in %.1f s", program.name, time.perf_counter() - start)
        return self._compiled[program.name](*args)

    def _compile(self, lowered: Any) -> Any:
        """With the options that the check of a plan compiles with, if this machine's compiler has them."""
        device = next(iter(jax.tree.leaves(self._params)[0].devices()))
        options = options_for(device.device_kind)
        try:
            return lowered.compile(compiler_options=options or None)
        except jax.errors.JaxRuntimeError as error:
            if "No such compile option" not in str(error):
                raise
            logger.warning("without the options that hide communication, which this compiler does not have: %s", error)
            return lowered.compile()

    def _placed(self, arg: Any, spec: Any) -> Any:
        """Arrays of the host on the mesh; others are there already."""
        if not isinstance(spec, P):
            return arg
        sharding = self._placement.sharding(spec)
        assert sharding is not None
        return jax.tree.map(lambda x: _global(x, sharding) if isinstance(x, np.ndarray | np.generic) else x, arg)


def _global(array: np.ndarray | np.generic, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    # Every process has the whole array; device_put would send it round to check that it is the same.
    whole = np.asarray(array)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])
