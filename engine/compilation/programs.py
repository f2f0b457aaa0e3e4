"""WHICH programs exist: prefill, insert and score for each length bucket, one decode, one page copy.

Each is compiled once, for fixed shapes, when first needed, so a run's programs are few and can be counted. The cache is
donated to every program that changes it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engine.cache import pages
from engine.cache.pages import NULL_PAGE, PagedCache
from engine.compilation.options import DecodeOptions
from engine.model.config import ModelConfig
from engine.model.params import Params
from engine.steps.decode import Generated, Slots, decode
from engine.steps.prefill import prefill
from engine.steps.score import score

logger = logging.getLogger(__name__)

COPIES_AT_A_TIME = 64


class Programs:
    """The compiled programs of one model under one set of options. Used by one thread."""

    def __init__(
        self, params: Params, config: ModelConfig, options: DecodeOptions, eos_tokens: tuple[int, ...]
    ) -> None:
        self._params = params
        self._config = config
        self._options = options
        self._eos_tokens = eos_tokens
        self._compiled: dict[str, Any] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The programs compiled so far."""
        return tuple(self._compiled)

    def prefill_into(self, cache: PagedCache, tokens: np.ndarray, table: np.ndarray) -> PagedCache:
        """Prefills `tokens` [rows, bucket] and writes block b of row r to page `table[r, b]`."""
        keys, values = self._run(
            f"prefill[{tokens.shape[0]}x{tokens.shape[1]}]",
            lambda params, tokens: prefill(params, self._config, tokens)[:2],
            self._params,
            tokens,
        )
        return self._run(
            f"insert[{tokens.shape[0]}x{tokens.shape[1]}]",
            pages.insert,
            cache,
            keys,
            values,
            table,
            donate=(0,),
        )

    def copy_pages(self, cache: PagedCache, copies: list[tuple[int, int]]) -> PagedCache:
        """Copies (source, target) pages."""
        for start in range(0, len(copies), COPIES_AT_A_TIME):
            some = np.full((COPIES_AT_A_TIME, 2), NULL_PAGE, np.int32)
            piece = copies[start : start + COPIES_AT_A_TIME]
            some[: len(piece)] = piece
            cache = self._run("copy", pages.copy, cache, some[:, 0].copy(), some[:, 1].copy(), donate=(0,))
        return cache

    def decode(
        self, cache: PagedCache, table: np.ndarray, slots: Slots, enough_finished: int
    ) -> tuple[PagedCache, Slots, Generated, jax.Array]:
        """A chunk of decode steps; see engine.steps.decode."""
        options = self._options

        def program(params: Params, cache: PagedCache, table: Any, slots: Slots, enough: Any) -> Any:
            return decode(
                params,
                self._config,
                cache,
                table,
                slots,
                self._eos_tokens,
                enough,
                options.chunk_steps,
                options.loop_over_slots,
            )

        name = f"decode[{options.slot_rows}x{options.chunk_steps}]"
        return self._run(name, program, self._params, cache, table, slots, np.int32(enough_finished), donate=(1,))

    def score(self, tokens: np.ndarray) -> tuple[jax.Array, jax.Array]:
        """Log-probabilities and greedy flags of the next token at every position of `tokens` [rows, bucket]."""
        name = f"score[{tokens.shape[0]}x{tokens.shape[1]}]"
        return self._run(name, lambda params, tokens: score(params, self._config, tokens), self._params, tokens)

    def new_cache(self, dtype: jnp.dtype) -> PagedCache:
        return pages.allocate(self._config, self._options.pages, self._options.page_tokens, dtype)

    def _run(self, name: str, program: Callable[..., Any], *args: Any, donate: tuple[int, ...] = ()) -> Any:
        if name not in self._compiled:
            start = time.perf_counter()
            self._compiled[name] = jax.jit(program, donate_argnums=donate).lower(*args).compile()
            logger.info("compiled %s in %.1f s", name, time.perf_counter() - start)
        return self._compiled[name](*args)
