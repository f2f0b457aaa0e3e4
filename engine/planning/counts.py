"""What a program does, counted from the declarations: operations, and bytes to and from memory, on one chip.

    products     2 tokens x size of every matrix, in a mixture of the experts a token goes to
    attention    4 heads head_dim for each query and each position it sees (causal, within the layer's window)
    weights      every matrix is read once
    cache        in decode keys and values of all positions that are seen, of every slot
    vector       what products take and give, and the logits of attention

These are counts, not times: engine/planning/cost.py says what they take. Padded heads and vocabulary count as work.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from engine.layout import Axes, HeldSizes, Layout
from engine.model.config import ModelConfig
from engine.model.params import Parameter, declare_layer
from engine.planning.collectives import Kind
from engine.planning.program import ITEM_BYTES, SCALED, Dtype, Phase, Program, own_numbers
from engine.planning.volumes import Traffic

_SCALE_BYTES = 4
"""Of a position of an int8 cache, for each head; of some weights in int4."""
_LOGIT_BYTES = 4


@dataclass(frozen=True)
class Sent:
    """Instructions of one kind over the same axes, together."""

    kind: Kind
    axes: Axes
    of_weights: bool
    times: int
    wire_bytes: float
    """That a chip sends."""


@dataclass(frozen=True)
class Counts:
    """Of one chip, unless it says so."""

    matmul_flops: float
    attention_flops: float
    weight_bytes: float
    """Read from memory."""
    kv_bytes: float
    vector_bytes: float
    positions: float
    """Queries times the positions they see, of all layers."""
    sent: tuple[Sent, ...]
    model_flops: float
    """Of all chips: 2 N tokens, N the parameters of the model as it is published, attention left out (for MFU)."""

    @property
    def flops(self) -> float:
        return self.matmul_flops + self.attention_flops

    @property
    def collective_bytes(self) -> float:
        """Sent by a chip."""
        return math.fsum(one.wire_bytes for one in self.sent)


def counts(program: Program) -> Counts:
    """Everything that is counted of a program. A chip of a pipeline does its stage's part in every tick."""
    config, chips, ticks = program.config, program.layouts.mesh.slice_chips, program.ticks
    once, layers = _products(config, replace(program.held, stages=1), program.phase, program.leaves_out_last)
    tokens = program.tokens / program.pieces * ticks  # that a stage has in its hands
    times_outside = tokens if program.phase == "decode" else program.tokens  # scores come when all is through
    positions = _positions(program)
    pairs = positions * program.part(program.held.heads, program.layout.attention_heads)
    own = layers.times(1 / program.stages)
    products = _Products(
        times_outside * once.numbers + tokens * own.numbers, times_outside * once.ends + tokens * own.ends
    )
    return Counts(
        matmul_flops=2.0 * products.numbers / chips,
        attention_flops=4.0 * pairs * config.head_dim,
        weight_bytes=_weight_bytes(program),
        kv_bytes=kv_bytes(program),
        vector_bytes=products.ends * program.activation_bytes / chips + pairs * _LOGIT_BYTES,
        positions=positions,
        sent=sent(program),
        model_flops=2.0 * nominal_parameters(config) * program.tokens,
    )


def sent(program: Program) -> tuple[Sent, ...]:
    """Of as many tokens as there are; where not every chip can have as many of them, in proportion."""
    together = program.chips * program.pieces
    tokens = -(-program.tokens // together) * together
    found = _sent(
        program.config,
        program.layout,
        program.held,
        program.phase,
        tokens,
        program.activation_bytes,
        ITEM_BYTES[program.weights],
        program.micro_tokens,
        program.pieces,
    )
    if tokens == program.tokens:
        return found
    share = program.tokens / tokens
    return tuple(one if one.of_weights else replace(one, wire_bytes=one.wire_bytes * share) for one in found)


@lru_cache(maxsize=4096)
def _sent(
    config: ModelConfig,
    layout: Layout,
    held: HeldSizes,
    phase: Phase,
    tokens: int,
    activation_bytes: int,
    weight_bytes: int | float,
    micro_tokens: int,
    pieces: int,
) -> tuple[Sent, ...]:
    traffic = Traffic(config, layout, held, phase, tokens, activation_bytes, weight_bytes, micro_tokens, pieces)
    times: Counter[tuple[Kind, Axes, bool]] = Counter()
    total: dict[tuple[Kind, Axes, bool], float] = {}
    for one in traffic.program():
        for stage in one.stages:
            what = stage.kind, stage.axes, one.what.endswith(" weights")
            times[what] += one.times
            total[what] = total.get(what, 0.0) + one.times * stage.wire_bytes
    return tuple(Sent(*what, times[what], total[what]) for what in total)


@lru_cache
def nominal_parameters(config: ModelConfig) -> int:
    """Those that a token meets: of a mixture the experts it goes to, of two tables of the vocabulary one."""
    heads = 2 * (config.heads + config.kv_heads) * config.head_dim
    feedforward = (3 if config.gated else 2) * config.ffn * (config.experts.per_token if config.experts else 1)
    return config.embed * (config.layers * (heads + feedforward) + config.vocab)


def kv_bytes(program: Program) -> float:
    """Read by one step of decode, with the scales of int8: of every row its own, and once what all share. Prefill reads
    what was shared once."""
    if program.phase != "decode" and not program.shared_tokens:
        return 0.0
    layout, config = program.layout, program.config
    rows = program.part(program.rows - program.idle_rows, layout.attention_rows) if program.phase == "decode" else 0
    context_tokens = program.seen_tokens or program.context_tokens
    heads = program.part(program.held.kv_heads, layout.kv_heads_held(program.held.kv_heads))
    position = 2 * heads * (config.head_dim * ITEM_BYTES[program.kv] + _SCALE_BYTES * (program.kv == "int8"))
    seen = 0.0
    for window, layers in _windows(config).items():
        whole = _least(context_tokens, window)
        shared = max(0, whole - (context_tokens - program.shared_tokens))
        seen += layers * (rows * (whole - shared) + shared)
    return position * seen / program.stages / program.layouts.mesh.size(layout.attention_sequence)


@dataclass(frozen=True)
class _Products:
    """Of one token, through all chips."""

    numbers: float = 0.0
    """Of the matrices it meets."""
    ends: float = 0.0
    """That go in and come out."""

    def times(self, layers: int | float) -> _Products:
        return _Products(self.numbers * layers, self.ends * layers)

    def plus(self, other: _Products) -> _Products:
        return _Products(self.numbers + other.numbers, self.ends + other.ends)


@lru_cache(maxsize=1024)
def _products(config: ModelConfig, held: HeldSizes, phase: Phase, leaves_out_last: bool) -> tuple[_Products, _Products]:
    """Outside of the layers, and of all of them; prefill ends with the last layer's keys and values."""
    each = {name: _product(config, one) for name, one in declare_layer(config, held).items() if one.is_matrix}
    whole = _sum_of(each.values())
    if leaves_out_last:
        return _sum_of(each[name] for name in ("key", "value")), whole.times(config.layers - 1)
    if phase == "prefill":
        return _Products(), whole.times(config.layers)
    head = _Products(float(held.vocab * config.embed), float(held.vocab + config.embed))
    return head, whole.times(config.layers)


def _product(config: ModelConfig, declared: Parameter) -> _Products:
    inputs = math.prod(declared.shape[len(declared.shape) - declared.inputs :])
    outputs = declared.size // inputs
    if not config.experts or "experts" not in declared.axes:
        return _Products(float(declared.size), float(inputs + outputs))
    chosen, count = config.experts.per_token, config.experts.count
    return _Products(declared.size * chosen / count, chosen * (inputs + outputs / count))


def _sum_of(products: Iterable[_Products]) -> _Products:
    total = _Products()
    for one in products:
        total = total.plus(one)
    return total


def _positions(program: Program) -> float:
    """Queries times the positions they see, of one head, on one chip."""
    layout, config = program.layout, program.config
    windows = _windows(config, config.layers - program.leaves_out_last)
    rows = program.part(program.rows - program.idle_rows, layout.attention_rows)
    seen = 0.0
    for window, layers in windows.items():
        if program.phase == "decode":
            context_tokens = program.seen_tokens or program.context_tokens
            seen += layers * rows * program.tokens_a_row * _least(context_tokens, window)
        else:
            shared = _causal_pairs(program.shared_tokens, window)  # once, on some of the chips
            own = _causal_pairs(program.context_tokens, window) - shared
            seen += layers * (rows * own + shared * rows / program.rows)
    idle = program.ticks / program.pieces
    return seen * idle / program.stages / program.layouts.mesh.size(layout.attention_sequence)


def _weight_bytes(program: Program) -> float:
    """Of prefill's last layer only keys and values; of the embedding table only as a head. A pipeline reads its weights
    in every tick."""
    config, item = program.config, weight_item_bytes(program.weights)
    own = own_numbers(config, program.held, program.at_rest)
    read = 0.0
    for name, declared in program.layer.items():
        layers = program.stage_layers - (program.leaves_out_last and name not in ("key", "value"))
        each = item if declared.is_matrix else program.activation_bytes
        read += program.ticks * layers * own[name] * each * _read_share(program, declared)
    if program.phase != "prefill":
        times = program.ticks if program.phase == "decode" else 1
        read += times * own["embedding" if config.tied_head else "head"] * item
    return read


def weight_item_bytes(weights: Dtype) -> int | float:
    """Of a number of a matrix, with its part of the scales where few numbers share one."""
    together = SCALED.get(weights)
    return ITEM_BYTES[weights] + (_SCALE_BYTES / together if together else 0)


def _read_share(program: Program, declared: Parameter) -> float:
    """Of a mixture's experts, those that some token goes to, if each token chooses as it likes."""
    experts = program.config.experts
    if experts is None or "experts" not in declared.axes or not declared.is_matrix:
        return 1.0
    return 1 - (1 - experts.per_token / experts.count) ** (program.tokens / program.pieces)


@lru_cache
def _windows(config: ModelConfig, layers: int | None = None) -> dict[int | None, int]:
    """In how many of the first layers each window is."""
    layers = config.layers if layers is None else layers
    return dict(Counter(config.windows[:layers])) if config.windows else {None: layers}


def _causal_pairs(tokens: int, window: int | None) -> float:
    """Of one sequence."""
    near = _least(tokens, window)
    return near * (near + 1) / 2 + (tokens - near) * near


def _least(tokens: int, window: int | None) -> int:
    return tokens if window is None else min(tokens, window)
