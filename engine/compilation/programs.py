"""WHICH programs exist: prefill, insert and score for each length bucket, one decode, one page copy.

A program is a pure function over global arrays, with where its arguments and results live. What runs them compiles each
once, for fixed shapes (engine/runtime/executor.py); the check against the TPU compiler compiles the very same
(engine/compilation/abstract.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from engine.cache import pages
from engine.compilation.options import DecodeOptions
from engine.compilation.placement import Placement
from engine.steps.decode import decode
from engine.steps.hand_over import hand_over
from engine.steps.prefill import prefill
from engine.steps.score import score

COPIES_AT_A_TIME = 64

_EVERYWHERE = P()


@dataclass(frozen=True)
class Program:
    """`donated` are the positions of arguments that are given up, so that the result can take their place."""

    name: str
    function: Callable[..., Any]
    in_specs: tuple[Any, ...]
    out_specs: Any
    donated: tuple[int, ...] = ()

    def jitted(self, placement: Placement) -> Any:
        run = placement.on_all_chips(self.function, self.in_specs, self.out_specs)
        return jax.jit(run, donate_argnums=self.donated)


@dataclass(frozen=True)
class ProgramSet:
    """All programs of a placed model under one set of options. `int8_weights`: matrices come quantised."""

    placement: Placement
    options: DecodeOptions
    eos_tokens: tuple[int, ...] = ()
    int8_weights: bool = False

    @property
    def _params(self) -> Any:
        return self.placement.param_specs(self.int8_weights)

    @property
    def _table(self) -> P:
        """A page table names pages of one part of the cache in each of its rows."""
        return P(self.placement.cache_axes or None)

    def new_cache(self) -> Program:
        """() -> an empty cache."""
        config, model = self.placement.config, self.placement.decode

        def program() -> Any:
            return pages.allocate(
                config.layers // self.placement.held.stages,
                self.options.pages_in_part,
                model.cache_kv_heads,
                self.options.positions_in_page,
                config.head_dim,
                self.options.kv_dtype,
            )

        return Program("cache", program, (), self.placement.cache_spec)

    def prefill(self, rows: int, bucket: int) -> Program:
        """(params, tokens [rows, bucket]) -> keys, values of every layer."""
        spec = self.placement.prefilled_spec

        def program(params: Any, tokens: Any) -> Any:
            return prefill(params, self.placement.prefill, tokens, self.options.micro_batches(bucket))[:2]

        return Program(f"prefill[{rows}x{bucket}]", program, (self._params, _EVERYWHERE), (spec, spec))

    def insert(self, rows: int, bucket: int) -> Program:
        """(cache, keys, values, table [parts, rows of a part, blocks]) -> cache: block b of a row goes to its page."""
        placement, options = self.placement, self.options

        def program(cache: Any, keys: Any, values: Any, table: Any) -> Any:
            keys, values = (
                [hand_over(x, placement.prefill, placement.decode, options.page_tokens) for x in some]
                for some in (keys, values)
            )
            return pages.insert(cache, keys, values, table[0])

        spec = placement.prefilled_spec
        in_specs = (placement.cache_spec, spec, spec, self._table)
        return Program(f"insert[{rows}x{bucket}]", program, in_specs, placement.cache_spec, donated=(0,))

    def copy(self) -> Program:
        """(cache, source [parts, copies], target [parts, copies]) -> cache."""

        def program(cache: Any, source: Any, target: Any) -> Any:
            return pages.copy(cache, source[0], target[0])

        spec = self.placement.cache_spec
        return Program("copy", program, (spec, self._table, self._table), spec, donated=(0,))

    def decode(self) -> Program:
        """(params, cache, table [parts, rows of a part, blocks], slots, enough finished) -> as engine.steps.decode."""
        options = self.options

        def program(params: Any, cache: Any, table: Any, slots: Any, enough: Any) -> Any:
            return decode(
                params,
                self.placement.decode,
                cache,
                table,
                slots,
                self.eos_tokens,
                enough,
                options.chunk_steps,
                options.attention,
                options.page_tokens,
            )

        spec = self.placement.cache_spec
        in_specs = (self._params, spec, self._table, _EVERYWHERE, _EVERYWHERE)
        out_specs = (spec, _EVERYWHERE, _EVERYWHERE, _EVERYWHERE)
        name = f"decode[{options.slot_rows}x{options.chunk_steps}]"
        return Program(name, program, in_specs, out_specs, donated=(1,))

    def score(self, rows: int, bucket: int) -> Program:
        """(params, tokens [rows, bucket]) -> log-probabilities and greedy flags of the next token, [rows, bucket]."""

        def program(params: Any, tokens: Any) -> Any:
            return score(params, self.placement.prefill, tokens, self.options.micro_batches(bucket))

        return Program(f"score[{rows}x{bucket}]", program, (self._params, _EVERYWHERE), (_EVERYWHERE, _EVERYWHERE))
