"""What a program does, counted from the declarations: operations, and bytes to and from memory, on one chip.

    products     2 tokens x size of every matrix, in a mixture of the experts a token goes to
    attention    4 heads head_dim for each query and each position it sees (causal, within the layer's window)
    weights      each matrix in use is read once; a gathered one is also written
    cache        in decode keys and values of all positions that are seen, of every slot

These are counts, not times: engine/planning/cost.py says what they take.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from engine.layout import Axes
from engine.model.params import Parameter
from engine.planning.collectives import Collective
from engine.planning.program import ITEM_BYTES, Program, own_numbers
from engine.planning.volumes import Traffic

_SCALE_BYTES = 4
"""Of an int8 number's scale: one for each output of a matrix, one for each position of the cache."""


@dataclass(frozen=True)
class Counts:
    """Of one chip, unless it says so."""

    matmul_flops: float
    attention_flops: float
    weight_bytes: float
    """Read from memory; what is gathered is written and read again besides."""
    gathered_bytes: float
    kv_bytes: float
    collectives: tuple[Collective, ...]
    model_flops: float
    """Of all chips: 2 N tokens, N the model's own parameters without attention (the paper's, for MFU)."""

    @property
    def flops(self) -> float:
        return self.matmul_flops + self.attention_flops

    @property
    def collective_bytes(self) -> float:
        """Sent by a chip."""
        return math.fsum(one.times * one.wire_bytes for one in self.collectives)


def counts(program: Program) -> Counts:
    """Everything that is counted of a program."""
    read, gathered = _weights(program)
    return Counts(
        matmul_flops=_matmul_flops(program),
        attention_flops=_attention_flops(program),
        weight_bytes=read,
        gathered_bytes=gathered,
        kv_bytes=kv_bytes(program),
        collectives=collectives(program),
        model_flops=2.0 * nominal_parameters(program) * program.tokens,
    )


def collectives(program: Program) -> tuple[Collective, ...]:
    """Of as many tokens as there are; where that is less than every chip can have one of, in proportion."""
    tokens = -(-program.tokens // program.chips) * program.chips
    traffic = Traffic(
        program.config,
        program.layout,
        program.held,
        program.phase,
        tokens,
        program.activation_bytes,
        ITEM_BYTES[program.weights],
        program.micro_tokens,
    )
    if tokens == program.tokens:
        return tuple(traffic.program())
    share = program.tokens / tokens
    return tuple(
        one if one.what.endswith("weights") else replace(one, bytes=one.bytes * share) for one in traffic.program()
    )


def nominal_parameters(program: Program) -> float:
    """Those that a token meets: of a mixture the experts it goes to, of two tables of the vocabulary one."""
    config = program.config
    heads, kv_heads = config.heads * config.head_dim, config.kv_heads * config.head_dim
    feedforward = (3 if config.gated else 2) * config.embed * config.ffn
    experts = config.experts.per_token if config.experts else 1
    return config.layers * (2 * config.embed * (heads + kv_heads) + experts * feedforward) + config.vocab * config.embed


def kv_bytes(program: Program) -> float:
    """Read by one step of decode, with the scales of int8."""
    if program.phase != "decode":
        return 0.0
    layout, config = program.layout, program.config
    rows = program.part(program.rows, layout.attention_rows)
    heads = program.part(program.held.kv_heads, layout.kv_heads_held(program.held.kv_heads))
    scale = _SCALE_BYTES if program.kv == "int8" else 0
    position = 2 * heads * (config.head_dim * ITEM_BYTES[program.kv] + scale)
    seen = sum(_least(program.context_tokens, config.window(layer)) for layer in range(config.layers))
    return rows * position * seen / program.layouts.mesh.size(layout.attention_sequence)


def _matmul_flops(program: Program) -> float:
    """Padded heads and vocabulary are computed as well; the work is split over all chips alike."""
    config, tokens = program.config, program.tokens
    experts = config.experts
    layer = 0.0
    for declared in program.layer.values():
        if not declared.is_matrix:
            continue
        share = experts.per_token / experts.count if experts and "experts" in declared.axes else 1
        layer += declared.size * share
    whole = config.layers * layer
    if program.phase == "prefill":  # of the last layer only keys and values
        whole -= layer - program.layer["key"].size - program.layer["value"].size
        head = 0
    else:
        head = program.held.vocab * config.embed
    return 2.0 * tokens * (whole + head) / program.chips


def _attention_flops(program: Program) -> float:
    layout, config = program.layout, program.config
    layers = range(config.layers - (program.phase == "prefill"))
    if program.phase == "decode":
        pairs = float(sum(_least(program.context_tokens, config.window(layer)) for layer in layers))
    else:
        pairs = math.fsum(_causal_pairs(program.context_tokens, config.window(layer)) for layer in layers)
    rows = program.part(program.rows, layout.attention_rows)
    heads = program.part(program.held.heads, layout.attention_heads)
    return 4.0 * rows * heads * config.head_dim * pairs / program.layouts.mesh.size(layout.attention_sequence)


def _weights(program: Program) -> tuple[float, float]:
    """Read at rest, and read once gathered."""
    config, item = program.config, ITEM_BYTES[program.weights]
    layout = program.layout
    read = gathered = 0.0
    for name, declared in program.layer.items():
        times = config.layers
        if program.phase == "prefill" and name not in ("key", "value"):
            times -= 1
        own = times * own_numbers(program, declared) * _read_share(program, declared)
        read += own * (item if declared.is_matrix else program.activation_bytes)
        if layout.gathered and declared.is_matrix:
            gathered += own * item * program.layouts.mesh.size(_gathered_over(program, declared))
    if program.phase != "prefill":
        table = program.outside_layers.get("head", program.outside_layers["embedding"])
        read += own_numbers(program, table) * item
    return read, gathered


def _gathered_over(program: Program, declared: Parameter) -> Axes:
    layout = program.layout
    split = layout.at_rest(declared.axes, program.held.kv_heads, program.config.expert_count)
    return tuple(axis for over in split for axis in over if axis in layout.gathered)


def _read_share(program: Program, declared: Parameter) -> float:
    """Of a mixture's experts, those that some token goes to, if each token chooses as it likes."""
    experts = program.config.experts
    if experts is None or "experts" not in declared.axes:
        return 1.0
    return 1 - (1 - experts.per_token / experts.count) ** program.tokens


def _causal_pairs(tokens: int, window: int | None) -> float:
    """Queries times the positions they see, of one sequence."""
    near = _least(tokens, window)
    return near * (near + 1) / 2 + (tokens - near) * near


def _least(tokens: int, window: int | None) -> int:
    return tokens if window is None else min(tokens, window)
