"""The layouts of Pope et al. (2022, sections 3.2 and 3.3) as values: over which mesh axes each thing is split.

Weights rest as E_x F_yz (`rest` "2d") and every phase uses the same arrays. A phase is one of

    ws2d          weights stay; activations are gathered and summed over yz on one side, over x on the other
    wg-x/xy/xyz   weights are gathered over these axes just before use, and the tokens are split over them instead
    ws1d          weights stay as E F_xyz, so they rest that way too (`rest` "1d"); the same as ws2d where X = 1

F stands for whatever a matrix has besides embed: ffn, heads, vocab. Its axes are ordered z, y, x, so that gathering a
minor axis leaves contiguous pieces. Tokens are ordered x, y, z.

Between blocks the residual stream is [tokens.tokens, embed.embed]. Where the paper scatters E over yz, here tokens are
scattered: the volume is the same, each chip holds the same number of elements, and the scattered dimension is a major
one, which a TPU can reduce-scatter without detour (a minor dimension it can only if its shard is a multiple of 256).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

from engine.axes import Axis, MeshAxis
from engine.errors import NoFeasiblePlan
from engine.mesh import AXES, MeshShape

Feedforward = Literal["ws1d", "ws2d", "wg-x", "wg-xy", "wg-xyz"]
AttentionSharding = Literal["heads", "batch", "sequence"]
Rest = Literal["1d", "2d"]
Axes = tuple[MeshAxis, ...]
DimAxes = tuple[Axes, ...]
"""For each dimension of an array the mesh axes it is split over, major first."""

_GATHERED: dict[str, Axes] = {"wg-x": ("x",), "wg-xy": ("x", "y"), "wg-xyz": ("x", "y", "z")}


def is_matrix(axes: Sequence[Axis]) -> bool:
    """Whether a parameter with these axes is large: split over chips, and quantised where that is asked for.

    Norms, biases, the router of a mixture and learned positions are not.
    """
    return len(axes) > 1 and "embed" in axes and "positions" not in axes and tuple(axes) != ("experts", "embed")


@dataclass(frozen=True)
class Layout:
    """Where everything is during one phase. Axes of size one are left out of every property."""

    mesh: MeshShape = MeshShape()
    ffn: Feedforward = "ws2d"
    attention: AttentionSharding = "heads"
    rest: Rest = "2d"

    def __post_init__(self) -> None:
        for value, options, what in (
            (self.ffn, get_args(Feedforward), "a feed-forward layout"),
            (self.attention, get_args(AttentionSharding), "an attention sharding"),
        ):
            if value not in options:
                raise NoFeasiblePlan(f"{value!r} is not {what}; choose one of {', '.join(options)}")
        if self.mesh.x > 1 and (self.ffn, self.rest) in (("ws1d", "2d"), ("ws2d", "1d")):
            raise NoFeasiblePlan(
                f"{self.ffn} needs weights at rest in the other form than {self.rest}: the two phases cannot be ws1d and "
                "ws2d on a mesh with X > 1"
            )

    def _real(self, axes: Sequence[MeshAxis]) -> Axes:
        return tuple(axis for axis in axes if self.mesh.size((axis,)) > 1)

    # Weights.

    @cached_property
    def rest_embed(self) -> Axes:
        """Of the embed dimension of weights at rest."""
        return self._real(("x",)) if self.rest == "2d" else ()

    @cached_property
    def rest_ffn(self) -> Axes:
        """Of the ffn, heads or vocab dimension of weights at rest."""
        return self._real(("z", "y") if self.rest == "2d" else ("z", "y", "x"))

    @cached_property
    def gathered(self) -> Axes:
        """What weights are gathered over just before use; tokens are split over it throughout the layer."""
        return self._real(_GATHERED.get(self.ffn, ()))

    @cached_property
    def used_embed(self) -> Axes:
        """Of the embed dimension of weights in use."""
        return tuple(axis for axis in self.rest_embed if axis not in self.gathered)

    @cached_property
    def used_ffn(self) -> Axes:
        """Of the ffn or heads dimension of weights in use."""
        return tuple(axis for axis in self.rest_ffn if axis not in self.gathered)

    # Activations.

    @cached_property
    def entry(self) -> Axes:
        """Over these axes tokens are gathered where a block is entered, and summed and scattered where it is left."""
        taken = (*self.gathered, *self.used_embed)
        return tuple(axis for axis in self._real(AXES) if axis not in taken)

    @cached_property
    def tokens(self) -> Axes:
        """Of the tokens of the residual stream; its embed dimension is over `used_embed`."""
        return (*self.gathered, *self.entry)

    @cached_property
    def everything(self) -> Axes:
        """All axes, in the order in which tokens are split over them."""
        return self._real(AXES)

    # Attention.

    @cached_property
    def attention_rows(self) -> Axes:
        """Of the rows (sequences, or slots) whose attention a chip computes; its share of the cache goes by rows too."""
        return {"batch": self.everything, "heads": self.gathered, "sequence": ()}[self.attention]

    @cached_property
    def attention_sequence(self) -> Axes:
        """Of the positions whose keys and values a chip holds."""
        return self.everything if self.attention == "sequence" else ()

    @cached_property
    def attention_heads(self) -> Axes:
        """Of the query heads whose attention a chip computes."""
        return (*self.used_ffn, *self.used_embed) if self.attention == "heads" else ()

    def kv_heads_split(self, kv_heads: int) -> Axes:
        """Of key and value heads at rest: as many major axes of `rest_ffn` as divide them; head_dim has the others."""
        axes: Axes = ()
        for axis in self.rest_ffn:
            if kv_heads % self.mesh.size((*axes, axis)):
                break
            axes = (*axes, axis)
        return axes

    def kv_heads_whole(self, kv_heads: int) -> bool:
        """Whether key and value heads are split as query heads are, with no copies."""
        return self.kv_heads_split(kv_heads) == self.rest_ffn and not kv_heads % self.mesh.size(self.attention_heads)

    def kv_heads_held(self, kv_heads: int) -> Axes:
        """Of the key and value heads that a chip attends with; the other axes of `attention_heads` hold copies."""
        if self.attention != "heads":
            return ()
        if self.kv_heads_whole(kv_heads):
            return self.attention_heads
        return tuple(axis for axis in self.kv_heads_split(kv_heads) if axis in self.used_ffn)

    # Parameters.

    def at_rest(self, axes: Sequence[Axis], kv_heads: int) -> DimAxes:
        """How a parameter with these logical axes is split at rest; what is no matrix is whole everywhere."""
        if not is_matrix(axes):
            return ((),) * len(axes)
        kv = self.kv_heads_split(kv_heads)
        where: dict[str, Axes] = {"embed": self.rest_embed, "experts": ()}
        where |= dict.fromkeys(("ffn", "heads", "vocab"), self.rest_ffn)
        where |= {"kv_heads": kv, "head_dim": self.rest_ffn[len(kv) :] if "kv_heads" in axes else ()}
        return tuple(where[axis] for axis in axes)

    # What a model must divide into, and what is padded.

    @cached_property
    def head_shards(self) -> int:
        """Query heads are padded to a multiple of this."""
        most = self.attention_heads if self.attention == "heads" else self.used_ffn
        return max(self.mesh.size(self.rest_ffn), self.mesh.size(most))

    @cached_property
    def vocab_shards(self) -> int:
        return self.mesh.size(self.rest_ffn)


@dataclass(frozen=True)
class Layouts:
    """The layout of each phase, over one mesh and the same arrays at rest."""

    prefill: Layout = Layout()
    decode: Layout = Layout()

    @classmethod
    def of(
        cls,
        mesh: MeshShape,
        prefill: tuple[Feedforward, AttentionSharding],
        decode: tuple[Feedforward, AttentionSharding],
    ) -> Layouts:
        """Weights rest E F_xyz if a phase is ws1d, else E_x F_yz."""
        rest: Rest = "1d" if "ws1d" in (prefill[0], decode[0]) else "2d"
        return cls(Layout(mesh, *prefill, rest), Layout(mesh, *decode, rest))

    @property
    def mesh(self) -> MeshShape:
        return self.prefill.mesh


@dataclass(frozen=True)
class HeldSizes:
    """Sizes of the dimensions that are padded with zeros to divide over the chips."""

    heads: int
    kv_heads: int
    vocab: int


def held_sizes(heads: int, kv_heads: int, vocab: int, layouts: Layouts) -> HeldSizes:
    """The smallest sizes that divide.

    Query heads are padded within their group, so that each stays with its key and value head; where each has its own
    they are padded together. Where neither the number of shards nor that of key and value heads divides the other, key
    and value heads are padded up to the next number that does.
    """
    shards = math.lcm(layouts.prefill.head_shards, layouts.decode.head_shards)
    vocab_held = _up_to(vocab, layouts.prefill.vocab_shards)
    if heads == kv_heads:
        return HeldSizes(_up_to(heads, shards), _up_to(heads, shards), vocab_held)
    kv_held = kv_heads
    while kv_held % shards and shards % kv_held:
        kv_held += 1
    group = heads // kv_heads
    if kv_held < shards:
        group = _up_to(group, shards // kv_held)
    return HeldSizes(kv_held * group, kv_held, vocab_held)


def check_divides(embed: int, ffn: int, kv_dim: int, layouts: Layouts) -> None:
    """Raises NoFeasiblePlan, with the nearest mesh that works, where the model does not divide over the mesh.

    `kv_dim` is key and value heads times head_dim.
    """
    fault = _indivisible(embed, ffn, kv_dim, layouts.prefill)
    if fault is None:
        return
    mesh = layouts.mesh
    near = [
        candidate
        for chips in range(1, 2 * mesh.chips + 1)
        for candidate in _meshes(chips)
        if _indivisible(embed, ffn, kv_dim, replace(layouts.prefill, mesh=candidate)) is None
    ]
    best = min(near, key=lambda one: (abs(one.chips - mesh.chips), _distance(one, mesh)))
    raise NoFeasiblePlan(f"the mesh {mesh} does not divide the model: {fault}; the nearest mesh that does is {best}")


def _indivisible(embed: int, ffn: int, kv_dim: int, layout: Layout) -> str | None:
    across_ffn, across_embed = layout.mesh.size(layout.rest_ffn), layout.mesh.size(layout.rest_embed)
    for name, size, shards, axes in (
        ("embed", embed, across_embed, layout.rest_embed),
        ("ffn", ffn, across_ffn, layout.rest_ffn),
        ("kv_heads x head_dim", kv_dim, across_ffn, layout.rest_ffn),
    ):
        if size % shards:
            return f"{name}={size} over {' x '.join(sorted(axes))} = {shards}"
    return None


def _meshes(chips: int) -> list[MeshShape]:
    divisors = [size for size in range(1, chips + 1) if chips % size == 0]
    return [MeshShape(x, y, chips // x // y) for x in divisors for y in divisors if chips % (x * y) == 0]


def _distance(one: MeshShape, other: MeshShape) -> float:
    return sum(abs(math.log2(getattr(one, axis) / getattr(other, axis))) for axis in AXES)


def _up_to(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
