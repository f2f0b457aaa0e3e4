"""Measures the processor that this runs on (engine/planning/machine.py says what for).

The engine's own programs are timed with models of two sizes, in float32, from the host's arrays to the host's arrays as
the engine calls them. Their times are put down by non-negative least squares of the relative errors to operations,
bytes of weights, calls, layers, rows, positions, logits, bytes of the cache and vector work. Products alone, with few
and with many rows, say how other dtypes compare with float32. Nothing is taken from a data sheet.

All programs take turns, and the shortest of each one's runs counts: what disturbs the machine for a while lengthens one
run of many programs, and no program's shortest.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from engine.cache.pages import NULL_PAGE
from engine.compilation.options import MAX_STOP_TOKEN_IDS, choose_options
from engine.compilation.placement import Placement
from engine.compilation.programs import Program as Compilable
from engine.compilation.programs import ProgramSet
from engine.layout import Layouts
from engine.model.config import ModelConfig, Rotary
from engine.model.linear import linear
from engine.model.params import Params, build
from engine.model.quantized import quantize
from engine.planning.chips import Chip
from engine.planning.cost import Ideal, ideal
from engine.planning.counts import counts
from engine.planning.machine import Machine, Rates
from engine.planning.program import ITEM_BYTES, Dtype, Phase, Program
from engine.steps.decode import RUNNING, empty_slots

logger = logging.getLogger(__name__)

DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16", "int8")
_LEAST_RUNS, _MOST_RUNS, _SECONDS = 5, 50, 45.0
"""Of every program, and of all of them together if they are fast."""
_WEIGHT_BYTES = 96 << 20
"""Products go through so many, which is more than a processor's caches."""
_ROWS = (8, 32, 128, 256)
_SLOTS = (8, 32, 128)
_LENGTHS = (40, 232)
_PROMPTS = (32, 128, 256)
_SIZES = ((64, 256, 4, 16, 64, 4), (1024, 2816, 16, 64, 16_000, 3))
"""Embed, ffn, heads, head_dim, vocabulary and layers of the models that programs are measured with: one whose products
are nothing, and one that no cache holds."""
_UNKNOWN = ("flop", "byte", "pass", "layer", "row", "position", "logit", "cache", "vector")
_ROUNDS, _EXACT = 8, 0.03
_LEAST = 1e-15
"""Seconds for what was found to take none."""


class Measured(NamedTuple):
    """A program that was timed."""

    work: Ideal
    """At the rates of `_UNIT`: flops and bytes."""
    seconds: float


class Timed(NamedTuple):
    """A program that is to be timed."""

    work: Ideal
    run: Callable[[], Any]
    """Until its results are on the host."""
    times: int = 1
    """That the work is in a run."""


_UNIT = Chip(
    name="unit",
    hbm_bytes=1.0,
    hbm_bytes_per_second=1.0,
    bf16_flops_per_second=1.0,
    int8_ops_per_second=1.0,
    link_bytes_per_second=1.0,
    network_bytes_per_second=1.0,
    source="so that seconds are counts",
    domain=1,
)


def measure(dtypes: tuple[Dtype, ...] = DTYPES) -> Machine:
    """Takes one to two minutes, half of it compiling. The machine should do nothing else at the time."""
    timed = [one for size in _SIZES for one in programs_to_time(_model(*size))]
    shortest = take_turns([one.run for one in timed])
    programs = [Measured(one.work, seconds / one.times) for one, seconds in zip(timed, shortest, strict=True)]
    each, error = fit_programs(programs)
    alone: dict[Dtype, Rates] = {dtype: measure_products(dtype) for dtype in ("float32", *dtypes)}
    products: dict[Dtype, Rates] = {
        dtype: Rates(
            alone[dtype].flops_per_second / alone["float32"].flops_per_second / each["flop"],
            alone[dtype].bytes_per_second / alone["float32"].bytes_per_second / each["byte"],
        )
        for dtype in dtypes
    }
    return Machine(
        name=platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        products=products,
        pass_seconds=each["pass"],
        layer_seconds=each["layer"],
        row_seconds=each["row"],
        position_seconds=each["position"],
        logit_seconds=each["logit"],
        cache_bytes_per_second=1 / each["cache"],
        vector_bytes_per_second=1 / each["vector"],
        error_fraction=error,
    )


def measure_products(dtype: Dtype) -> Rates:
    """A line through the times of products with different numbers of rows."""
    outputs, inputs = 4096, 1024
    count = max(1, int(_WEIGHT_BYTES / (outputs * inputs * ITEM_BYTES[dtype])))
    rng = np.random.default_rng(0)
    plain = rng.standard_normal((outputs, inputs), np.float32)
    one: Any = quantize(plain) if dtype == "int8" else jnp.asarray(plain, dtype)
    weights = [jax.tree.map(lambda x: x + jnp.zeros((), x.dtype), one) for _ in range(count)]
    activations = jnp.float32 if dtype == "float32" else jnp.bfloat16
    program = jax.jit(lambda x, weights: sum(jnp.sum(linear(x, weight)[:, 0]) for weight in weights))
    numbers = count * outputs * inputs
    inputs_of = [jnp.asarray(rng.standard_normal((rows, inputs), np.float32), activations) for rows in _ROWS]
    shortest = take_turns([partial(program, x, weights) for x in inputs_of], _SECONDS / 10)
    times = [seconds / numbers for seconds in shortest]
    # Relative errors: few rows matter as much as many.
    columns = np.array([[ITEM_BYTES[dtype], 2.0 * rows] for rows in _ROWS])
    per_byte, per_flop = _positive(columns, np.array(times))
    logger.info("%s products: seconds a number by rows %s", dtype, dict(zip(_ROWS, times, strict=True)))
    return Rates(flops_per_second=float(1 / max(per_flop, 1e-18)), bytes_per_second=float(1 / max(per_byte, 1e-18)))


def programs_to_time(config: ModelConfig) -> Iterator[Timed]:
    """Steps of decode with several numbers of slots and lengths; prefill, and its keys and values into the cache."""
    rng = np.random.default_rng(1)
    params = build(config, lambda _, one: jnp.asarray(rng.standard_normal(one.shape, np.float32) * np.float32(0.02)))
    placement = Placement(config, Layouts())
    for slots in _SLOTS:
        options = choose_options(
            platform="cpu",
            context_tokens=config.context_tokens,
            page_bytes_per_token=config.layers * 8 * config.kv_heads * config.head_dim,
            cache_budget_bytes=4 << 30,
            slots=slots,
        )
        yield from _steps(ProgramSet(placement, options), params)
    programs = ProgramSet(placement, options)
    cache = [_compiled(programs.new_cache(), placement)()]
    for length in _PROMPTS:
        rows = options.rows(length)
        tokens = np.ones((rows, length), np.int32)
        prefill = _compiled(programs.prefill(rows, length), placement, params, tokens)
        keys, values = prefill(params, tokens)
        blocks = options.pages_of(length)
        table = np.arange(rows * blocks, dtype=np.int32).reshape(1, rows, blocks)
        insert = _compiled(programs.insert(rows, length), placement, cache[0], keys, values, table)

        def prefilled(prefill: Any = prefill, insert: Any = insert, tokens: Any = tokens, table: Any = table) -> Any:
            keys, values = prefill(params, tokens)
            cache[0] = insert(cache[0], keys, values, table)
            return cache[0]

        yield Timed(_work(config, "prefill", rows, length), prefilled)


def _steps(programs: ProgramSet, params: Params) -> Iterator[Timed]:
    config, options = programs.placement.config, programs.options
    slots, pages = options.slots, options.pages_of(options.max_length)
    table = np.full((1, options.slot_rows, pages), NULL_PAGE, np.int32)
    table[0, :slots] = np.arange(slots * pages).reshape(slots, pages)
    running = np.arange(options.slot_rows) < slots
    empty = empty_slots(options.slot_rows, MAX_STOP_TOKEN_IDS)
    cache = [_compiled(programs.new_cache(), programs.placement)()]
    decode = _compiled(programs.decode(), programs.placement, params, cache[0], table, empty, np.int32(slots))
    for length in _LENGTHS:
        state = replace(
            empty,
            length=np.where(running, length, 0).astype(np.int32),
            finish=np.where(running, RUNNING, empty.finish).astype(np.int32),
            max_tokens=np.full_like(empty.max_tokens, options.max_length),
            ignore_eos=np.ones_like(empty.ignore_eos),
        )

        def chunk(state: Any = state) -> Any:
            cache[0], after, generated, steps = decode(params, cache[0], table, state, np.int32(slots))
            return jax.tree.map(np.asarray, (after, generated, steps))

        assert int(chunk()[2]) == options.chunk_steps
        middle = length + options.chunk_steps // 2
        yield Timed(_work(config, "decode", options.slot_rows, middle), chunk, options.chunk_steps)


def _compiled(program: Compilable, placement: Placement, *args: Any) -> Any:
    return program.jitted(placement).lower(*args).compile()


def fit_programs(programs: list[Measured]) -> tuple[dict[str, float], float]:
    """Seconds for each unit of work, and the rms of the relative errors that remain."""
    times = np.array([seconds for _, seconds in programs])
    columns = np.array(
        [[w.products, w.weights, 1.0, w.layers, w.rows, w.positions, w.logits, w.cache, w.vector] for w, _ in programs]
    )
    found = _positive(columns, times)
    for _ in range(_ROUNDS):  # towards the least sum of errors, which a few runs that something disturbed do not move
        wrong = np.abs(columns @ found / times - 1)
        found = _positive(columns, times, 1 / np.maximum(wrong, _EXACT))
    error = float(np.sqrt(np.mean((columns @ found / times - 1) ** 2)))
    each = {name: max(float(value), _LEAST) for name, value in zip(_UNKNOWN, found, strict=True)}
    logger.info("programs: %s, error %.0f %%", {name: f"{value:.3g}" for name, value in each.items()}, 100 * error)
    return each, error


def _work(config: ModelConfig, phase: Phase, rows: int, length: int) -> Ideal:
    program = Program(config, _UNIT, Layouts(), phase, rows, length, "float32")
    return ideal(program, counts(program))


def _model(embed: int, ffn: int, heads: int, head_dim: int, vocab: int, layers: int) -> ModelConfig:
    return ModelConfig(
        layers=layers,
        embed=embed,
        ffn=ffn,
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        vocab=vocab,
        context_tokens=256,
        norm_epsilon=1e-5,
        rotary=Rotary(10_000.0),
        tied_head=False,
    )


def take_turns(runs: Sequence[Callable[[], Any]], seconds: float | None = None) -> list[float]:
    """The shortest time of each, after a run that warms up."""
    seconds = _SECONDS if seconds is None else seconds
    shortest, start, rounds = [float("inf")] * len(runs), time.perf_counter(), -1
    while rounds < _LEAST_RUNS or (time.perf_counter() - start < seconds and rounds < _MOST_RUNS):
        for at, run in enumerate(runs):
            before = time.perf_counter()
            jax.block_until_ready(run())
            if rounds >= 0:
                shortest[at] = min(shortest[at], time.perf_counter() - before)
        rounds += 1
    return shortest


def _positive(columns: np.ndarray, values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Weighted least squares of columns @ x / values - 1 with x >= 0: the best over all subsets of columns."""
    root = np.sqrt(np.ones_like(values) if weights is None else weights)
    weighted, wanted = columns / values[:, None] * root[:, None], root
    weighted, scale = weighted / (most := np.abs(weighted).max(0)), most
    best, least = np.zeros(columns.shape[1]), np.inf
    for chosen in range(1, 1 << columns.shape[1]):
        subset = [at for at in range(columns.shape[1]) if chosen >> at & 1]
        found = np.linalg.lstsq(weighted[:, subset], wanted, rcond=None)[0]
        error = float(np.sum((weighted[:, subset] @ found - wanted) ** 2))
        if np.all(found >= 0) and error < least:
            least, best = error, np.zeros(columns.shape[1])
            best[subset] = found
    return best / scale
