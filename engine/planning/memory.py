"""The most memory that a program needs at once on one device, from the declarations alone.

    peak = arguments + results that do not take an argument's place + the largest set of temporaries alive at once

Arguments are the parameters as they rest and, in decode, the cache, which is donated: the new cache takes its place.
The temporaries are those of the moments below, each the list of what is alive then; only the largest counts. Where a
TPU keeps all temporaries in its on-chip memory, as in decode, the compiler's peak has what it fills of that instead.

This is the peak of the compiler's schedule, which leaves out what is lost between buffers (a few per cent).

A stage of a pipeline has its share of the layers, and at any moment one micro-batch or one group of the slots.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from engine.layout import Axes, DimAxes, HeldSizes, Layout
from engine.model.config import ModelConfig
from engine.model.expert_strategy import MOST_BLOCK_ROWS, entered_over, expert_axes, strategy
from engine.model.params import Parameter, declare, declare_layer
from engine.planning.buckets import CHUNK_STEPS, PAGE_TOKENS
from engine.planning.program import ITEM_BYTES, SCALED, Dtype, Program
from engine.planning.tiling import compact_bytes, tiled_bytes
from engine.planning.volumes import LOOKED_UP_TOKENS, SCORED_POSITIONS

TOP_LOGPROBS = 20

_FLOAT32 = 4
_LANES = 128
_FILLED_TILE_BYTES = 32
"""Of a tile's rows, in bfloat16 16 of them, in int8 32."""
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
    copies: int = 0
    """Of arguments that the program wants in another order: there as long as it runs."""

    @cached_property
    def fullest(self) -> Moment:
        return max(self.moments, key=lambda moment: moment.bytes)

    @property
    def temporaries(self) -> int:
        return max(self.fullest.bytes + self.copies, self.on_chip)

    @property
    def peak(self) -> int:
        return self.weights + self.cache + self.results + self.temporaries + _OTHER_ARGUMENTS_BYTES


def memory(program: Program) -> Memory:
    """What the compiler would say of this program."""
    of_phase = {
        "prefill": (_prefilled_bytes, _prefill_moments),
        "score": (_scores_bytes, _score_moments),
        "decode": (_generated_bytes, _decode_moments),
    }
    results, moments = of_phase[program.phase]
    in_passing = program if program.pieces == 1 else replace(program, rows=program.rows // program.pieces)
    return Memory(
        weights=weight_bytes(program) - _unused_bytes(program),
        cache=cache_bytes(program) if program.phase == "decode" else 0,
        results=results(program),
        moments=tuple(_beside(moments(in_passing), tuple(_throughout(program, in_passing)))),
        on_chip=program.chip.filled_on_chip_bytes,
        copies=_copied_bytes(program) if program.phase == "decode" else 0,
    )


def _beside(moments: Iterator[Moment], held: tuple[Held, ...]) -> Iterator[Moment]:
    return (replace(one, held=(*one.held, *held)) if held else one for one in moments)


# Arguments and results.


def weight_bytes(program: Program) -> int:
    """Of all parameters at rest; the scales of int8 matrices are whole on every device."""
    config, held, at_rest = program.config, program.held, program.at_rest
    layer, outside = _rest_bytes(config, held, at_rest, program.weights)
    return _own_layers(program) * sum(layer.values()) + sum(outside.values())


@lru_cache(maxsize=1024)
def _rest_bytes(
    config: ModelConfig, held: HeldSizes, at_rest: Layout, weights: Dtype
) -> tuple[dict[str, int], dict[str, int]]:
    """Of each parameter of a layer, and of what is outside of layers, on one device."""
    params = declare(config, held)
    outside = {name: declared for name, declared in params.items() if name != "layers"}

    def own(declared: Parameter) -> int:
        split = at_rest.at_rest(declared.axes, held.kv_heads, config.expert_count)
        shape = tuple(-(-size // at_rest.mesh.size(over)) for size, over in zip(declared.shape, split, strict=True))
        if not (declared.is_matrix and weights in SCALED):
            return compact_bytes(shape, 4 if weights == "float32" else 2)
        outputs = declared.shape[: len(declared.shape) - declared.inputs]
        together = SCALED[weights]
        groups = 1 if together is None else -(-math.prod(declared.shape[len(outputs) :]) // together)
        return compact_bytes(shape, ITEM_BYTES[weights]) + groups * compact_bytes(outputs, _FLOAT32)

    return (
        {name: own(declared) for name, declared in declare_layer(config, held).items()},
        {name: own(declared) for name, declared in outside.items()},
    )


def _own_layers(program: Program) -> int:
    """Of a stage."""
    return program.config.layers // program.held.stages


def _unused_bytes(program: Program) -> int:
    """Prefill ends with the last layer's keys and values; what comes after is no argument, unless a barrier holds
    the whole layer, as where weights are gathered."""
    if program.phase != "prefill":
        return 0
    layer, outside = _rest_bytes(program.config, program.held, program.at_rest, program.weights)
    unused = outside.get("head", 0)
    if not program.layout.gathered and program.held.stages == 1:
        needed = ("attention_norm", "key", "value")
        unused += sum(size for name, size in layer.items() if not name.startswith(needed))
    return unused


def cache_bytes(program: Program) -> int:
    """Each slot has room for `context_tokens`, rounded up to whole pages; what all share is there once."""
    layout, size = program.layouts.decode, program.layouts.mesh.size
    heads = max(1, program.held.kv_heads // size(layout.attention_heads))

    def pool(rows: int, tokens: int) -> int:
        positions = program.part(-(-tokens // PAGE_TOKENS), layout.attention_sequence) * PAGE_TOKENS
        shape = (rows, heads, positions, program.config.head_dim)
        scales = compact_bytes(shape[:-1], _FLOAT32) if program.kv == "int8" else 0
        return compact_bytes(shape, ITEM_BYTES[program.kv]) + scales

    own = pool(program.part(program.rows, layout.attention_rows), program.context_tokens - program.shared_tokens)
    shared = pool(1, program.shared_tokens) if program.shared_tokens else 0
    return 2 * _own_layers(program) * (own + shared)


def _prefilled_bytes(program: Program) -> int:
    """Keys and values of every layer, [rows, seq, kv_heads, head_dim]."""
    layout = program.layout
    split = (layout.attention_rows, layout.attention_sequence, layout.kv_heads_held(program.held.kv_heads), ())
    shape = (program.rows, program.context_tokens, program.held.kv_heads, program.config.head_dim)
    return 2 * _own_layers(program) * compact_bytes(_own(program, shape, split), program.activation_bytes)


def _scores_bytes(program: Program) -> int:
    """A log-probability and a flag for each token."""
    shape = (program.rows, program.context_tokens)
    return compact_bytes(shape, _FLOAT32) + compact_bytes(shape, 1)


def _generated_bytes(program: Program) -> int:
    """Tokens, log-probabilities and the likeliest alternatives of a chunk of steps."""
    chosen, best = (CHUNK_STEPS, program.rows), (CHUNK_STEPS, program.rows, TOP_LOGPROBS)
    return 2 * compact_bytes(chosen, _FLOAT32) + 2 * compact_bytes(best, _FLOAT32)


# Temporaries.


def _decode_moments(program: Program) -> Iterator[Moment]:
    layout = program.layout
    logits = (program.part(program.rows, ()), program.part(program.held.vocab, layout.rest_ffn))
    yield Moment("sampling", (Held("logits", tiled_bytes(logits, _FLOAT32)),))
    if layout.gathered:
        names = [name for name in ("gate", "up", "down", "query", "attention_out") if name in program.layer]
        yield Moment("feed-forward", tuple(Held(f"gathered {name}", _used_bytes(program, name)) for name in names))


def _copied_bytes(program: Program) -> int:
    """attention_out, [embed, heads, head_dim], where a device's heads do not fill a tile; and a cache whose head_dim
    does not: it lies compact, and is used padded."""
    layout, config = program.layout, program.config
    declared, split = _layer_split(program, "attention_out")
    shape = _own(program, declared.shape, split)
    item = _weight_item(program)
    copied = 0
    if not layout.gathered and 1 < shape[1] < _FILLED_TILE_BYTES // item:
        copied += int(_own_layers(program) * math.prod(shape) * item)
    if config.head_dim % _LANES:
        copied += cache_bytes(program) * (-(-config.head_dim // _LANES) * _LANES) // config.head_dim
    return copied


def _score_moments(program: Program) -> Iterator[Moment]:
    """Prefill's, with the last layer whole, and logits of a few positions of every chip."""
    yield _embedding(program)
    yield _attention(program)
    yield _feedforward(program)
    if _pieces(program) > 1 and not program.config.experts:
        yield _leaving(program)
    layout = program.layout
    positions = math.gcd(program.part(program.tokens, layout.tokens), SCORED_POSITIONS)
    logits = (positions * program.layouts.mesh.size(layout.tokens), program.part(program.held.vocab, layout.rest_ffn))
    yield Moment(
        "log-probabilities",
        (Held("residual stream", _residual(program)), Held("logits", 2 * tiled_bytes(logits, _FLOAT32))),
    )


def _throughout(program: Program, in_passing: Program) -> Iterator[Held]:
    """Of a pipeline, beside what a stage works on."""
    if program.held.stages > 1 and program.phase != "decode":
        yield Held("arrived from the stage before", _residual(in_passing))
        if program.phase == "score":
            yield Held("hidden states of every micro-batch", _residual(program))


def _prefill_moments(program: Program) -> Iterator[Moment]:
    yield _embedding(program)
    if program.config.layers > 1:  # of the last layer only keys and values are computed
        yield _attention(program)
        yield _feedforward(program)
        if _pieces(program) > 1 and not program.config.experts:
            yield _leaving(program)


def _embedding(program: Program) -> Moment:
    """Some tokens at a time, each chip those of all chips; int8 rows come as float32."""
    layout = program.layout
    pieces = math.gcd(program.part(_tokens(program), layout.tokens), -(-_tokens(program) // LOOKED_UP_TOKENS))
    shape = (_tokens(program) // pieces, program.part(program.config.embed, layout.rest_embed))
    found = _FLOAT32 if program.weights in SCALED else program.activation_bytes
    return Moment(
        "embedding",
        (
            Held("rows found", tiled_bytes(shape, found)),
            Held("rows of this chip's part", tiled_bytes(shape, program.activation_bytes)),
            Held("residual stream", _residual(program) if pieces > 1 else 0),
        ),
    )


def _attention(program: Program) -> Moment:
    """Queries are rotated in float32, and copied into the order in which they are attended."""
    layout = program.layout
    tokens = program.part(_tokens(program), layout.everything if layout.attention == "batch" else layout.gathered)
    heads = program.part(program.held.heads, layout.attention_heads if layout.attention == "heads" else ())
    if layout.attention == "sequence":
        tokens = program.part(_tokens(program), layout.everything)
    rotated = tiled_bytes((tokens, heads, program.config.head_dim), _FLOAT32)
    return Moment(
        "attention",
        (
            Held("residual stream", _residual(program)),
            Held("entered", _entered(program)),
            Held("queries, in float32 twice", 2 * rotated),
        ),
    )


def _feedforward(program: Program) -> Moment:
    """The product with `up`, when the result with `gate` is there and `down` is being gathered."""
    layout, config = program.layout, program.config
    if config.experts:
        return _mixture(program)
    pieces, hidden = _pieces(program), _hidden(program)
    matrices = 3 if config.gated else 2
    fused = bool(layout.gathered) and program.chip.fused_gathers
    entered = _entered(program)
    if fused and pieces == 1 and entered <= program.chip.filled_on_chip_bytes:
        entered = 0  # brought to on-chip memory for the product
    held = [
        Held("residual stream", _residual(program)),
        Held("entered", entered),
        # On a chip that has all of ffn, up's product takes gate's place, but not where it is one with a gather.
        Held("gate and up", hidden * (matrices - 1 if layout.used_embed or layout.used_ffn or fused else 1)),
    ]
    if pieces > 1:
        held.append(Held("a piece of what entered", entered // pieces))
    if config.parallel_block:
        held.append(Held("attention's result, before its product", _mixed(program)))
    elif not fused:
        held.append(Held("attention's result, still to be added", _residual(program)))
    if layout.gathered:
        matrix = _used_bytes(program, "up")
        in_use = 2 if pieces == 1 else matrices
        held.append(Held("gathered matrices", in_use * matrix))
        minor: Axes = tuple(axis for axis in layout.rest_ffn if axis in layout.gathered)
        last = minor or layout.gathered
        held.append(Held("half-gathered matrix", matrix // program.layouts.mesh.size(last)))
        if config.parallel_block:
            held.append(Held("gathered attention_out", _used_bytes(program, "attention_out")))
    return Moment("feed-forward", tuple(held))


def _mixture(program: Program) -> Moment:
    """In the loop over blocks of rows all matrices are there, of all experts that this chip has in use."""
    layout, config, size = program.layout, program.config, program.layouts.mesh.size
    experts = config.experts
    assert experts is not None
    item = _weight_item(program)
    how = strategy(_tokens(program), config, layout, program.activation_bytes, math.ceil(item))
    over = () if how == "gathered" else expert_axes(experts.count, layout)
    tokens = program.part(_tokens(program), layout.tokens) * size(entered_over(how, experts.count, layout))
    here = experts.count // size(over)
    rows = tokens * (size(over) if how == "sent" else 1) * min(experts.per_token, here)
    embed = program.part(config.embed, layout.used_embed)
    held = [
        Held("residual stream", _residual(program)),
        Held("entered", tiled_bytes((tokens, embed), program.activation_bytes)),
        Held("results of rows", tiled_bytes((rows + MOST_BLOCK_ROWS, embed), program.activation_bytes)),
    ]
    if how == "sent" and over:
        held.append(Held("rows sent here", tiled_bytes((rows, embed), program.activation_bytes)))
    split = layout.experts_split(experts.count)
    gathered: Axes = tuple(axis for axis in (*layout.gathered, *split) if axis not in over)
    if gathered:
        names = [name for name in ("gate", "up", "down") if name in program.layer]
        sizes = [_used_bytes(program, name, gathered) for name in names]
        held.append(Held("gathered matrices", sum(sizes)))
        held.append(Held("half-gathered matrix", sizes[-1] // size(gathered[:1])))
    return Moment("feed-forward", tuple(held))


def _leaving(program: Program) -> Moment:
    """What tokens leave the block with, [tokens.G, embed.e]: all pieces, and the whole they are put together to."""
    hidden = _hidden(program)
    return Moment(
        "leaving a block",
        (
            Held("residual stream", _residual(program)),
            Held("the block's result, in pieces and whole", 2 * _entered(program)),
            # A parallel block has attention's result to add, so its last piece is further behind.
            Held("gate, up and their product", hidden * (3 if program.config.parallel_block else 1)),
        ),
    )


# Sizes.


def _tokens(program: Program) -> int:
    """Of a pass of prefill."""
    return program.rows * (program.context_tokens - program.shared_tokens) + program.shared_tokens


def _pieces(program: Program) -> int:
    """Of the tokens that go through a feed-forward."""
    layout = program.layout
    tokens = program.part(_tokens(program), layout.gathered)
    return math.gcd(program.part(tokens, layout.used_embed), -(-tokens // program.micro_tokens))


def _hidden(program: Program) -> int:
    """Of a piece, between the matrices of the feed-forward."""
    layout = program.layout
    tokens = program.part(_tokens(program), layout.gathered) // _pieces(program)
    return tiled_bytes((tokens, program.part(program.config.ffn, layout.used_ffn)), program.activation_bytes)


def _residual(program: Program) -> int:
    layout = program.layout
    shape = (program.part(_tokens(program), layout.tokens), program.part(program.config.embed, layout.used_embed))
    return tiled_bytes(shape, program.activation_bytes)


def _entered(program: Program) -> int:
    layout = program.layout
    shape = (program.part(_tokens(program), layout.gathered), program.part(program.config.embed, layout.used_embed))
    return tiled_bytes(shape, program.activation_bytes)


def _mixed(program: Program) -> int:
    tokens = program.part(_tokens(program), program.layout.gathered)
    heads = program.part(program.held.heads, program.layout.used_ffn)
    return tokens * heads * program.config.head_dim * program.activation_bytes


def _weight_item(program: Program) -> int | float:
    return ITEM_BYTES[program.weights]


def _layer_split(program: Program, name: str) -> tuple[Parameter, DimAxes]:
    declared = program.layer[name]
    return declared, program.layout.at_rest(declared.axes, program.held.kv_heads, program.config.expert_count)


def _used_bytes(program: Program, name: str, gathered: Axes | None = None) -> int:
    declared, split = _layer_split(program, name)
    gathered = program.layout.gathered if gathered is None else gathered
    used: DimAxes = tuple(tuple(axis for axis in over if axis not in gathered) for over in split)
    return int(math.prod(_own(program, declared.shape, used)) * _weight_item(program))


def _own(program: Program, shape: tuple[int, ...], split: DimAxes) -> tuple[int, ...]:
    return tuple(program.part(size, axes) for size, axes in zip(shape, split, strict=True))
