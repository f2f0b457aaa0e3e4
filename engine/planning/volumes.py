"""The collectives that a program issues, with their bytes: one entry for each line of code that sends something.

Follow engine/model/decoder.py beside this; tests hold every entry against the program itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from engine.axes import FEW_ROWS, RUN, scattered_together
from engine.layout import Axes, HeldSizes, Layout
from engine.model.config import ModelConfig
from engine.model.expert_strategy import entered_over, expert_axes, strategy
from engine.model.params import Parameter, declare_layer
from engine.planning.collectives import Collective, Kind
from engine.planning.program import MICRO_TOKENS, Phase

LOOKED_UP_TOKENS = 16384
"""At a time in the embedding (engine/model/decoder.py)."""
SCORED_POSITIONS = 64
"""Of a chip, at a time (engine/steps/score.py)."""

_FLOAT32 = 4


@dataclass(frozen=True)
class Traffic:
    """Counts the collectives of one program: a phase of a model over a number of tokens, on all chips together."""

    config: ModelConfig
    layout: Layout
    held: HeldSizes
    phase: Phase
    tokens: int
    """Of one pass: rows times their length in prefill, slots in decode."""
    activation_bytes: int = 2
    weight_bytes: int | float = 2
    micro_tokens: int = MICRO_TOKENS
    pieces: int = 1
    """Of the tokens, of which a stage of a pipeline has one at a time: micro-batches, or groups of slots."""

    def layer(self) -> list[Collective]:
        """Of one layer, in the order of the program."""
        config = self.config
        first = [*self._norm("attention norm"), *self._entry("entry gather"), *self._attention()]
        if config.parallel_block:
            return [*first, *self._feedforward(), *self._leave("exit scatter")]
        return [
            *first,
            *self._leave("attention exit scatter"),
            *(self._norm("post-attention norm") if config.post_norms else ()),
            *self._norm("ffn norm"),
            *(self._mixture() if config.experts else self._serial_feedforward()),
            *(self._norm("post-ffn norm") if config.post_norms else ()),
        ]

    def last_prefill_layer(self) -> list[Collective]:
        """Prefill ends with the last layer's keys and values: nothing after them is computed."""
        return [
            *self._norm("attention norm"),
            *self._entry("entry gather"),
            *self._weights("key", "value"),
            *self._keys_or_values("key"),
            *self._keys_or_values("value"),
        ]

    def outside_layers(self) -> list[Collective]:
        """Embedding, and but in prefill what comes after the last layer: in decode for one step."""
        return [*self._embedding(), *self._after_layers()]

    def _after_layers(self) -> list[Collective]:
        if self.phase == "prefill":
            return []
        last = self._sampling() if self.phase == "decode" else self._scores()
        return [*self._norm("final norm"), *self._head(), *last]

    def program(self) -> list[Collective]:
        """One prefill, one pass that scores, or one step of decode."""
        if self.layout.over_slices:
            return self._pipeline()
        whole = self.config.layers - (self.phase == "prefill")
        repeated = [one.repeated(whole) for one in self.layer()]
        return [
            *self.outside_layers(),
            *repeated,
            *(self.last_prefill_layer() if self.phase == "prefill" else ()),
        ]

    def _pipeline(self) -> list[Collective]:
        """Tick by tick, in each of which a stage takes something through its layers (engine/steps/pipeline.py).

        Decode samples in every tick, for another group of the slots; scoring scores when everything is through.
        """
        stages, is_decode = self.layout.mesh.slices, self.phase == "decode"
        tick = replace(self, tokens=self.tokens // self.pieces, pieces=1)
        layers = [one.repeated(self.config.layers // stages) for one in tick.layer()]
        each = [*tick._embedding(), *layers, *tick._handed_on(), *(tick._sampled() if is_decode else ())]
        ticks = self.pieces if is_decode else self.pieces + stages - 1
        return [
            *(one.repeated(ticks) for one in each),
            *(self._scored() if self.phase == "score" else ()),
        ]

    def _handed_on(self) -> Iterator[Collective]:
        """The residual stream, to the next stage."""
        embed = self._part(self.config.embed, self.layout.used_embed)
        over, elements = self.layout.over_slices, self._residual_tokens * embed
        yield from self._over("residual stream to the next stage", "collective-permute", over, elements)

    def _sampled(self) -> Iterator[Collective]:
        yield from self._after_layers()
        yield from self._from_last("tokens", 4)
        yield from self._from_last("log-probabilities", _FLOAT32)

    def _scored(self) -> Iterator[Collective]:
        yield from self._after_layers()
        yield from self._from_last("log-probabilities", _FLOAT32)
        yield from self._from_last("greedy flags", 1)

    def _from_last(self, what: str, width_bytes: int) -> Iterator[Collective]:
        """Every stage gives its own; that of the last counts."""
        over = self.layout.over_slices
        yield from self._over(
            f"{what} of the last stage", "all-gather", over, self.tokens * self.layout.mesh.slices, width_bytes
        )

    # Sizes of one chip's part.

    @property
    def _entered_tokens(self) -> int:
        """In a block."""
        return self._part(self.tokens, self.layout.gathered)

    @property
    def _residual_tokens(self) -> int:
        """Between blocks."""
        return self._part(self.tokens, self.layout.tokens)

    def _part(self, size: int, axes: Axes) -> int:
        chips = self.layout.mesh.size(axes)
        assert size % chips == 0, f"{size} over {chips} chips of {axes}"
        return size // chips

    # Collectives, of which those over no axis are left out.

    def _over(
        self, what: str, kind: Kind, axes: Axes, elements: int, width_bytes: int | None = None, pieces: int = 1
    ) -> Iterator[Collective]:
        """`elements` of D, in so many pieces."""
        if axes:
            width = self.activation_bytes if width_bytes is None else width_bytes
            groups = self._groups(kind, axes, elements // pieces * width)
            yield self._collective(what, kind, groups, elements // pieces, width, pieces)

    def _collective(
        self, what: str, kind: Kind, groups: tuple[Axes, ...], elements: int, width_bytes: int | None, times: int = 1
    ) -> Collective:
        sizes = tuple(map(self.layout.mesh.size, groups))
        each = self.activation_bytes if width_bytes is None else width_bytes
        return Collective(what, kind, groups, sizes, elements * each, times)

    def _groups(self, kind: Kind, axes: Axes, size_bytes: int) -> tuple[Axes, ...]:
        """Which axes go into one instruction (engine/collectives.py)."""
        if kind == "all-reduce":
            return (axes,)
        if kind == "all-gather":
            return _gathered_in(axes)
        if kind == "reduce-scatter":
            sizes = {axis: self.layout.mesh.size((axis,)) for axis in self.layout.everything}
            return scattered_together(axes, size_bytes, sizes)
        return tuple((axis,) for axis in axes)

    # The program, piece by piece.

    def _norm(self, what: str) -> Iterator[Collective]:
        """Sums over rows of which a chip has a part: the mean square, or the mean and then the variance.

        Of few rows the sums of runs.
        """
        rows, columns = self._residual_tokens, self._part(self.config.embed, self.layout.used_embed)
        sums = columns // RUN if rows < FEW_ROWS and columns % RUN == 0 else 1
        for sum_of in ("mean", "variance") if self.config.norm == "layer" else ("mean square",):
            yield from self._over(f"{what}, {sum_of}", "all-reduce", self.layout.used_embed, rows * sums, _FLOAT32)

    def _entry(self, what: str) -> Iterator[Collective]:
        embed = self._part(self.config.embed, self.layout.used_embed)
        yield from self._over(what, "all-gather", self.layout.entry, self._entered_tokens * embed)

    def _leave(self, what: str) -> Iterator[Collective]:
        embed = self._part(self.config.embed, self.layout.used_embed)
        yield from self._over(what, "reduce-scatter", self.layout.entry, self._entered_tokens * embed)

    def _weights(self, *names: str) -> Iterator[Collective]:
        """Gathered dimension by dimension."""
        yield from self._gathered_weights(self.layout.gathered, *names)

    def _gathered_weights(self, gathered: Axes, *names: str) -> Iterator[Collective]:
        if gathered:
            yield from _gathers(self.config, self.layout, self.held, gathered, names, self.weight_bytes)

    def _attention(self) -> Iterator[Collective]:
        layout, heads = self.layout, self.held.heads
        elements = self._entered_tokens * self._part(heads, layout.used_ffn) * self.config.head_dim
        moved = self._part(elements, layout.used_embed)
        yield from self._weights("query", "key", "value", "attention_out")
        yield from self._over("query scatter", "reduce-scatter", layout.used_embed, elements)
        if layout.attention != "heads":
            yield from self._over("query all-to-all", "all-to-all", layout.used_ffn, moved)
        yield from self._keys_or_values("key")
        yield from self._keys_or_values("value")
        yield from self._attend()
        if layout.attention != "heads":
            yield from self._over("attention all-to-all", "all-to-all", layout.used_ffn[::-1], moved)
        yield from self._over("attention gather", "all-gather", layout.used_embed, elements)

    def _keys_or_values(self, name: str) -> Iterator[Collective]:
        layout, kv_heads, head_dim = self.layout, self.held.kv_heads, self.config.head_dim
        elements = self._entered_tokens * self._part(kv_heads * head_dim, layout.used_ffn)
        few = self._entered_tokens < FEW_ROWS * layout.mesh.size(layout.used_embed)
        if few and layout.attention != "heads" and layout.used_embed and layout.used_ffn and not layout.gathered:
            yield from self._over(f"{name} sum", "all-reduce", layout.used_embed, elements, _FLOAT32)
            everywhere = elements * layout.mesh.size(layout.used_ffn)
            yield self._collective(f"{name} gather", "all-gather", (layout.used_ffn,), everywhere, None)
            return
        yield from self._over(f"{name} scatter", "reduce-scatter", layout.used_embed, elements)
        if layout.attention != "heads":
            moved = self._part(elements, layout.used_embed)
            yield from self._over(f"{name} all-to-all", "all-to-all", layout.used_ffn, moved)
        elif not layout.kv_heads_whole(kv_heads):
            by_head = _without(layout.kv_heads_split(kv_heads), layout.gathered)
            by_dim = _without(layout.used_ffn, by_head)
            whole = self._entered_tokens * self._part(kv_heads, by_head) * head_dim
            part = self._part(whole, layout.used_embed)
            yield from self._over(f"{name} gather, head_dim", "all-gather", by_dim, part)
            yield from self._over(f"{name} gather, tokens", "all-gather", layout.used_embed, whole)

    def _attend(self) -> Iterator[Collective]:
        """Where a chip has some of the positions of every sequence."""
        axes, head_dim = self.layout.attention_sequence, self.config.head_dim
        keys, queries = (self.tokens * heads for heads in (self.held.kv_heads, self.held.heads))
        if self.phase != "decode":
            yield from self._over("key gather, sequence", "all-gather", axes, keys * head_dim)
            yield from self._over("value gather, sequence", "all-gather", axes, keys * head_dim)
            return
        yield from self._over("query gather, slots", "all-gather", axes, queries * head_dim)
        yield from self._over("key gather, slots", "all-gather", axes, keys * head_dim)
        yield from self._over("value gather, slots", "all-gather", axes, keys * head_dim)
        yield from self._over("merge, maximum", "all-reduce", axes, queries, _FLOAT32)
        yield from self._over("merge, normaliser", "reduce-scatter", axes, queries, _FLOAT32)
        yield from self._over("merge, values", "reduce-scatter", axes, queries * head_dim, _FLOAT32)

    def _serial_feedforward(self) -> Iterator[Collective]:
        yield from self._entry("ffn entry gather")
        yield from self._feedforward()
        yield from self._leave("ffn exit scatter")

    def _mixture(self) -> Iterator[Collective]:
        """engine/model/experts.py. Where rows go is known on the device alone: as many to each expert are assumed."""
        layout, experts = self.layout, self.config.experts
        assert experts is not None
        how = strategy(self.tokens, self.config, layout, self.activation_bytes, math.ceil(self.weight_bytes))
        over = () if how == "gathered" else expert_axes(experts.count, layout)
        entry, size = entered_over(how, experts.count, layout), layout.mesh.size
        tokens = self._residual_tokens * size(entry)
        elements = tokens * self._part(self.config.embed, layout.used_embed)
        yield from self._over("ffn entry gather", "all-gather", entry, elements)
        gathered = _without((*layout.gathered, *_without(layout.experts_split(experts.count), layout.gathered)), over)
        yield from self._gathered_weights(gathered, "gate", "up", "down")
        yield from self._over("router sum", "all-reduce", layout.used_embed, tokens * experts.count, _FLOAT32)
        rows = tokens * experts.per_token  # of this chip's experts
        if how == "sent":
            yield from self._over("rows by expert", "all-gather", over, size(over) * experts.count, 4)
            sent = elements * experts.per_token
            yield self._collective("rows to experts", "all-to-all", (over,), sent, None)
        elif over:
            rows //= size(over)
        hidden = rows * self._part(self.config.ffn, _without(layout.used_ffn, layout.experts_split(experts.count)))
        for name in ("gate", "up") if self.config.gated else ("up",):
            yield from self._over(f"{name} scatter", "reduce-scatter", layout.used_embed, hidden)
        yield from self._over("ffn gather", "all-gather", layout.used_embed, hidden)
        if how == "sent":
            yield self._collective("results of experts", "all-to-all", (over,), elements * experts.per_token, None)
        yield from self._over("ffn exit scatter", "reduce-scatter", entry, elements)

    def _feedforward(self) -> Iterator[Collective]:
        layout = self.layout
        tokens, over = self._entered_tokens, layout.used_embed
        elements = tokens * self._part(self.config.ffn, layout.used_ffn)
        pieces = math.gcd(self._part(tokens, over), -(-tokens // self.micro_tokens))
        yield from self._weights("gate", "up", "down")
        yield from self._over("up scatter", "reduce-scatter", over, elements, pieces=pieces)
        if self.config.gated:
            yield from self._over("gate scatter", "reduce-scatter", over, elements, pieces=pieces)
        yield from self._over("ffn gather", "all-gather", over, elements, pieces=pieces)

    def _embedding(self) -> Iterator[Collective]:
        """Each chip looks up what it has of the table, in vocabulary and in embed."""
        layout = self.layout
        elements = self.tokens * self._part(self.config.embed, layout.rest_embed)
        pieces = math.gcd(self._residual_tokens, -(-self.tokens // LOOKED_UP_TOKENS))
        if layout.used_embed == layout.rest_embed:
            yield from self._over("embedding scatter", "reduce-scatter", layout.tokens, elements, pieces=pieces)
            return
        others = _without(layout.everything, layout.rest_embed)
        yield from self._over("embedding scatter", "reduce-scatter", others, elements, pieces=pieces)
        part = self._part(elements, others)
        yield from self._over("embedding all-to-all", "all-to-all", layout.rest_embed, part, pieces=pieces)

    def _head(self) -> Iterator[Collective]:
        """Tokens meet the table where it rests; then in decode each chip gets all logits of its own slots. Scoring has
        a few positions a chip at a time."""
        layout, pieces = self.layout, self._pieces
        others = _without(layout.tokens, layout.rest_embed)
        elements = self.tokens * self._part(self.config.embed, layout.rest_embed)
        yield from self._over("head gather", "all-gather", others, elements, pieces=pieces)
        if layout.used_embed != layout.rest_embed:
            yield from self._over("head all-to-all", "all-to-all", layout.rest_embed, elements, pieces=pieces)
        logits = self.tokens * self._part(self.held.vocab, layout.rest_ffn)
        yield from self._over("logits scatter", "reduce-scatter", layout.rest_embed, logits, _FLOAT32, pieces)
        if self.phase == "decode":
            part = self._part(logits, layout.rest_embed)
            yield from self._over("logits all-to-all", "all-to-all", layout.rest_ffn, part, _FLOAT32)

    @property
    def _pieces(self) -> int:
        """In which logits are made."""
        if self.phase == "decode":
            return 1
        return self._residual_tokens // math.gcd(self._residual_tokens, SCORED_POSITIONS)

    def _scores(self) -> Iterator[Collective]:
        """Of the part of each piece whose logits a chip has some columns of."""
        layout, pieces = self.layout, self._pieces
        part = self._part(self.tokens, layout.rest_embed)
        for what in ("largest logit", "normaliser", "target's logit", "best logit", "best token"):
            yield from self._over(what, "all-reduce", layout.rest_ffn, part, _FLOAT32, pieces)
        yield from self._over("log-probabilities", "all-gather", layout.rest_embed, self.tokens, _FLOAT32, pieces)
        yield from self._over("greedy flags", "all-gather", layout.rest_embed, self.tokens, 1, pieces)

    def _sampling(self) -> Iterator[Collective]:
        """Every chip is told what the others sampled; the most likely alternatives only if wanted, so not here."""
        yield from self._over("tokens", "all-gather", self.layout.everything, self.tokens, 4)
        yield from self._over("log-probabilities", "all-gather", self.layout.everything, self.tokens, 4)


def _gathered_in(axes: Axes) -> tuple[Axes, ...]:
    """Over at most two axes at once."""
    return (axes[:2], axes[2:]) if len(axes) > 2 else (axes,)


@lru_cache(maxsize=4096)
def _gathers(
    config: ModelConfig,
    layout: Layout,
    held: HeldSizes,
    gathered: Axes,
    names: tuple[str, ...],
    item_bytes: int | float,
) -> tuple[Collective, ...]:
    """Of weights, whatever the number of tokens."""
    layer, found = declare_layer(config, held), list[Collective]()
    for name in names:
        if name not in layer:
            continue
        declared: Parameter = layer[name]
        split = layout.at_rest(declared.axes, held.kv_heads, config.expert_count)
        parts: list[Axes] = sorted((tuple(axis for axis in over if axis in gathered) for over in split), key=len)
        groups = tuple(group for axes in reversed(parts) if axes for group in _gathered_in(axes))
        used = 1
        for size, over in zip(declared.shape, split, strict=True):
            chips = layout.mesh.size(_without(over, gathered))
            assert size % chips == 0, f"{name}: {size} over {chips} chips"
            used *= size // chips
        if groups:
            sizes = tuple(map(layout.mesh.size, groups))
            found.append(Collective(f"{name} weights", "all-gather", groups, sizes, int(used * item_bytes)))
    return tuple(found)


def _without(axes: Axes, taken: Axes) -> Axes:
    return tuple(axis for axis in axes if axis not in taken)
