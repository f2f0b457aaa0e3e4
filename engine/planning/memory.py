"""The most memory that a program needs at once on one device, from the declarations alone.

    peak = arguments + results that do not take an argument's place + the largest set of temporaries alive at once

Arguments are the parameters as they rest and, in decode, the cache, which is donated: the new cache takes its place.
The temporaries are those of the moments below, each the list of what is alive then; only the largest counts. Where a
TPU keeps all temporaries in its on-chip memory, as in decode, the compiler's peak has what it fills of that instead.

This is the peak of the compiler's schedule, which leaves out what is lost between buffers (a few per cent). Not
foreseen: the copy of a cache whose head_dim is no multiple of 128 into another layout, and a mixture's rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from engine.layout import Axes, DimAxes, HeldSizes, Layout, Layouts, held_sizes
from engine.model.config import ModelConfig
from engine.model.params import Parameter, declare, leaves
from engine.planning.tiling import compact_bytes, tiled_bytes
from engine.planning.volumes import LOOKED_UP_TOKENS, MICRO_TOKENS, Phase

Dtype = Literal["float32", "bfloat16", "int8"]

ITEM_BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2, "int8": 1}
PAGE_TOKENS = 128
CHUNK_STEPS = 32
TOP_LOGPROBS = 20

_FLOAT32 = 4
_OTHER_ARGUMENTS_BYTES = 2**20
"""Tokens, slots and page tables: less than this."""


@dataclass(frozen=True)
class Held:
    """Something that takes memory."""

    what: str
    bytes: int


@dataclass(frozen=True)
class Moment:
    """A point of the program, and the temporaries that are alive there."""

    what: str
    held: tuple[Held, ...]

    @property
    def bytes(self) -> int:
        return sum(one.bytes for one in self.held)


@dataclass(frozen=True)
class Memory:
    """Of one device, in bytes."""

    weights: int
    cache: int
    """Of decode."""
    results: int
    """That take no argument's place: keys and values in prefill, tokens in decode."""
    moments: tuple[Moment, ...]
    on_chip: int

    @cached_property
    def fullest(self) -> Moment:
        return max(self.moments, key=lambda moment: moment.bytes)

    @property
    def temporaries(self) -> int:
        return max(self.fullest.bytes, self.on_chip)

    @property
    def peak(self) -> int:
        return self.weights + self.cache + self.results + self.temporaries + _OTHER_ARGUMENTS_BYTES


@dataclass(frozen=True)
class Plan:
    """A program whose memory is asked for: prefill of `rows` sequences, or decode with as many slots."""

    config: ModelConfig
    layouts: Layouts
    phase: Phase
    rows: int
    context_tokens: int
    """Length of the sequences in prefill; what the cache has room for in decode."""
    weights: Dtype = "bfloat16"
    kv: Dtype = "bfloat16"
    micro_tokens: int = MICRO_TOKENS
    on_chip_bytes: int = 0
    """`filled_on_chip_bytes` of the chip (engine/planning/chips.py)."""

    @cached_property
    def held(self) -> HeldSizes:
        return held_sizes(self.config, self.layouts)

    @property
    def layout(self) -> Layout:
        return self.layouts.prefill if self.phase == "prefill" else self.layouts.decode

    @property
    def activation_bytes(self) -> int:
        return _FLOAT32 if self.weights == "float32" else ITEM_BYTES["bfloat16"]

    def memory(self) -> Memory:
        is_prefill = self.phase == "prefill"
        return Memory(
            weights=self.weight_bytes() - self._unused_bytes(),
            cache=0 if is_prefill else self.cache_bytes(),
            results=self._prefilled_bytes() if is_prefill else self._generated_bytes(),
            moments=tuple(self._prefill_moments() if is_prefill else self._decode_moments()),
            on_chip=self.on_chip_bytes,
        )

    # Arguments and results.

    def weight_bytes(self) -> int:
        """Of all parameters at rest; the scales of int8 matrices are whole on every device."""
        return sum(self._at_rest_bytes(declared) for _, declared in leaves(declare(self.config, self.held)))

    def _unused_bytes(self) -> int:
        """Prefill ends with the last layer's keys and values; what comes after is no argument, unless a barrier holds
        the whole layer, as where weights are gathered."""
        if self.phase == "decode":
            return 0
        params = declare(self.config, self.held)
        unused = [declared for name, declared in params.items() if name == "head"]
        if not self.layout.gathered:
            needed = ("attention_norm", "key", "value")
            last: dict[str, Parameter] = params["layers"][-1]
            unused += [declared for name, declared in last.items() if not name.startswith(needed)]
        return sum(map(self._at_rest_bytes, unused))

    def _at_rest_bytes(self, declared: Parameter) -> int:
        split = self.layouts.decode.at_rest(declared.axes, self.held.kv_heads, self.config.expert_count)
        if not (declared.is_matrix and self.weights == "int8"):
            return compact_bytes(self._own(declared.shape, split), self.activation_bytes)
        outputs = declared.shape[: len(declared.shape) - declared.inputs]
        return compact_bytes(self._own(declared.shape, split), 1) + compact_bytes(outputs, _FLOAT32)

    def cache_bytes(self) -> int:
        """Each slot has room for `context_tokens`, rounded up to whole pages."""
        layout, size = self.layouts.decode, self.layouts.mesh.size
        blocks = -(-self.context_tokens // PAGE_TOKENS)
        positions = -(-blocks // size(layout.attention_sequence)) * PAGE_TOKENS
        heads = max(1, self.held.kv_heads // size(layout.attention_heads))
        pool = (self.rows // size(layout.attention_rows), heads, positions, self.config.head_dim)
        scales = compact_bytes(pool[:-1], _FLOAT32) if self.kv == "int8" else 0
        return 2 * self.config.layers * (compact_bytes(pool, ITEM_BYTES[self.kv]) + scales)

    def _prefilled_bytes(self) -> int:
        """Keys and values of every layer, [rows, seq, kv_heads, head_dim]."""
        layout = self.layout
        split = (layout.attention_rows, layout.attention_sequence, layout.kv_heads_held(self.held.kv_heads), ())
        shape = (self.rows, self.context_tokens, self.held.kv_heads, self.config.head_dim)
        return 2 * self.config.layers * compact_bytes(self._own(shape, split), self.activation_bytes)

    def _generated_bytes(self) -> int:
        """Tokens, log-probabilities and the likeliest alternatives of a chunk of steps."""
        chosen, best = (CHUNK_STEPS, self.rows), (CHUNK_STEPS, self.rows, TOP_LOGPROBS)
        return 2 * compact_bytes(chosen, _FLOAT32) + 2 * compact_bytes(best, _FLOAT32)

    # Temporaries.

    def _decode_moments(self) -> Iterator[Moment]:
        layout = self.layout
        logits = (self._part(self.rows, ()), self._part(self.held.vocab, layout.rest_ffn))
        yield Moment("sampling", (Held("logits", tiled_bytes(logits, _FLOAT32)),))

    def _prefill_moments(self) -> Iterator[Moment]:
        yield self._embedding()
        if self.config.layers > 1:  # of the last layer only keys and values are computed
            yield self._attention()
            yield self._feedforward()

    def _embedding(self) -> Moment:
        """Some tokens at a time, each chip those of all chips; int8 rows come as float32."""
        layout = self.layout
        pieces = math.gcd(self._part(self._tokens, layout.tokens), -(-self._tokens // LOOKED_UP_TOKENS))
        shape = (self._tokens // pieces, self._part(self.config.embed, layout.rest_embed))
        found = _FLOAT32 if self.weights == "int8" else self.activation_bytes
        return Moment(
            "embedding",
            (
                Held("rows found", tiled_bytes(shape, found)),
                Held("rows of this chip's part", tiled_bytes(shape, self.activation_bytes)),
                Held("residual stream", self._residual if pieces > 1 else 0),
            ),
        )

    def _attention(self) -> Moment:
        """Queries are rotated in float32, and copied into the order in which they are attended."""
        layout = self.layout
        tokens = self._part(self._tokens, layout.everything if layout.attention == "batch" else layout.gathered)
        heads = self._part(self.held.heads, layout.attention_heads if layout.attention == "heads" else ())
        if layout.attention == "sequence":
            tokens = self._part(self._tokens, layout.everything)
        rotated = tiled_bytes((tokens, heads, self.config.head_dim), _FLOAT32)
        return Moment(
            "attention",
            (
                Held("residual stream", self._residual),
                Held("entered", self._entered),
                Held("queries, in float32 twice", 2 * rotated),
            ),
        )

    def _feedforward(self) -> Moment:
        """The product with `up`, when the result with `gate` is there and `down` is being gathered."""
        layout, config = self.layout, self.config
        tokens = self._part(self._tokens, layout.gathered)
        pieces = math.gcd(self._part(tokens, layout.used_embed), -(-tokens // self.micro_tokens))
        hidden = tiled_bytes((tokens // pieces, self._part(config.ffn, layout.used_ffn)), self.activation_bytes)
        matrices = 3 if config.gated else 2
        held = [
            Held("residual stream", self._residual),
            Held("entered", self._entered),
            Held("gate and up", hidden * (matrices - 1)),
        ]
        if pieces > 1:
            held.append(Held("a piece of what entered", self._entered // pieces))
        if config.parallel_block:
            held.append(Held("attention's result, before its product", self._mixed))
        else:
            held.append(Held("attention's result, still to be added", self._residual))
        if layout.gathered:
            matrix = self._used_bytes("up")
            in_use = 2 if pieces == 1 else matrices
            held.append(Held("gathered matrices", in_use * matrix))
            minor: Axes = tuple(axis for axis in layout.rest_ffn if axis in layout.gathered)
            last = minor or layout.gathered
            held.append(Held("half-gathered matrix", matrix // self.layouts.mesh.size(last)))
            if config.parallel_block:
                held.append(Held("gathered attention_out", self._used_bytes("attention_out")))
            copies = max(0, config.layers - 2)
            held.append(Held("copies of matrices at rest, for asynchronous gathers", copies * self._rest_bytes("up")))
        return Moment("feed-forward", tuple(held))

    # Sizes.

    @property
    def _tokens(self) -> int:
        return self.rows * self.context_tokens

    @property
    def _residual(self) -> int:
        layout = self.layout
        shape = (self._part(self._tokens, layout.tokens), self._part(self.config.embed, layout.used_embed))
        return tiled_bytes(shape, self.activation_bytes)

    @property
    def _entered(self) -> int:
        layout = self.layout
        shape = (self._part(self._tokens, layout.gathered), self._part(self.config.embed, layout.used_embed))
        return tiled_bytes(shape, self.activation_bytes)

    @property
    def _mixed(self) -> int:
        tokens = self._part(self._tokens, self.layout.gathered)
        heads = self._part(self.held.heads, self.layout.used_ffn)
        return tokens * heads * self.config.head_dim * self.activation_bytes

    @property
    def _weight_item(self) -> int:
        return ITEM_BYTES[self.weights]

    def _layer_split(self, name: str) -> tuple[Parameter, DimAxes]:
        declared: Parameter = declare(self.config, self.held)["layers"][0][name]
        return declared, self.layout.at_rest(declared.axes, self.held.kv_heads, self.config.expert_count)

    def _rest_bytes(self, name: str) -> int:
        declared, split = self._layer_split(name)
        return math.prod(self._own(declared.shape, split)) * self._weight_item

    def _used_bytes(self, name: str) -> int:
        declared, split = self._layer_split(name)
        used: DimAxes = tuple(tuple(axis for axis in over if axis not in self.layout.gathered) for over in split)
        return math.prod(self._own(declared.shape, used)) * self._weight_item

    def _own(self, shape: tuple[int, ...], split: DimAxes) -> tuple[int, ...]:
        return tuple(self._part(size, axes) for size, axes in zip(shape, split, strict=True))

    def _part(self, size: int, axes: Axes) -> int:
        return -(-size // self.layouts.mesh.size(axes))
