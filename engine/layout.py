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

Where there are several slices, each is a stage of a pipeline: it has as many of the layers as any other, laid out over
its own chips as all of this says. Between slices goes the residual stream alone (engine/steps/pipeline.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Protocol, get_args, runtime_checkable

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
    axes = [axis for axis in axes if axis != "stages"]
    return len(axes) > 1 and "embed" in axes and "positions" not in axes and axes != ["experts", "embed"]


@dataclass(frozen=True)
class Layout:
    """Where everything is during one phase. Axes of size one are left out of every property."""

    mesh: MeshShape = MeshShape()
    ffn: Feedforward = "ws2d"
    attention: AttentionSharding = "heads"
    rest: Rest = "2d"

    def __post_init__(self) -> None:
        if self.mesh.x > 1 and (self.ffn, self.rest) in (("ws1d", "2d"), ("ws2d", "1d")):
            raise NoFeasiblePlan(
                f"{self.ffn} needs weights at rest in another form than {self.rest}: where X > 1, one phase cannot be "
                "ws1d and the other ws2d"
            )

    @property
    def names(self) -> tuple[Feedforward, AttentionSharding]:
        """As a phase's layout is asked for."""
        return self.ffn, self.attention

    def _real(self, axes: Sequence[MeshAxis]) -> Axes:
        return tuple(axis for axis in axes if self.mesh.size((axis,)) > 1)

    # Weights.

    @cached_property
    def over_slices(self) -> Axes:
        """Of the stages of a pipeline; empty where there is one slice."""
        return self._real(("slice",))

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
        """All axes of a slice, in the order in which tokens are split over them."""
        return self._real(AXES)

    # Attention.

    @cached_property
    def attention_rows(self) -> Axes:
        """Of the rows (sequences, or slots) whose attention a chip computes, and whose part of the cache it has."""
        return {"batch": self.everything, "heads": self.gathered, "sequence": ()}[self.attention]

    @cached_property
    def attention_sequence(self) -> Axes:
        """Of the positions whose keys and values a chip holds."""
        return self.everything if self.attention == "sequence" else ()

    @cached_property
    def attention_heads(self) -> Axes:
        """Of the query heads whose attention a chip computes."""
        return (*self.used_ffn, *self.used_embed) if self.attention == "heads" else ()

    def _major_split(self, count: int) -> Axes:
        """As many major axes of `rest_ffn` as divide a number of things."""
        axes: Axes = ()
        for axis in self.rest_ffn:
            if count % self.mesh.size((*axes, axis)):
                break
            axes = (*axes, axis)
        return axes

    def kv_heads_split(self, kv_heads: int) -> Axes:
        """Of key and value heads at rest: as many major axes of `rest_ffn` as divide them; head_dim has the others."""
        return self._major_split(kv_heads)

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

    def experts_split(self, experts: int) -> Axes:
        """Of a mixture's experts at rest: as many major axes of `rest_ffn` as divide them; ffn has the others."""
        return self._major_split(experts)

    def at_rest(self, axes: Sequence[Axis], kv_heads: int, experts: int = 0) -> DimAxes:
        """How a parameter with these logical axes is split at rest; what is no matrix, only into stages."""
        if not is_matrix(axes):
            return tuple(self.over_slices if axis == "stages" else () for axis in axes)
        kv, mixed = self.kv_heads_split(kv_heads), self.experts_split(experts) if "experts" in axes else ()
        where: dict[str, Axes] = {"embed": self.rest_embed, "experts": mixed, "ffn": self.rest_ffn[len(mixed) :]}
        where["stages"] = self.over_slices
        where |= dict.fromkeys(("heads", "vocab"), self.rest_ffn)
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

    @classmethod
    def asked(
        cls,
        kv_heads: int,
        mesh: str | None,
        prefill: Sequence[str | None] | None = None,
        decode: Sequence[str | None] | None = None,
    ) -> Layouts:
        """Layouts by name, (feed-forward, attention) for each phase; None leaves the choice to the usual one.

        That is weight-stationary, attention over heads where every chip has key and value heads of its own and else
        over the batch, in prefill over heads.
        """
        shape = MeshShape.parse(mesh) if mesh else MeshShape()
        over: AttentionSharding = "batch" if kv_heads % shape.slice_chips else "heads"

        for ffn, sharding in (one for one in (prefill, decode) if one):
            for value, possible, what in (
                (ffn, get_args(Feedforward), "a feed-forward layout"),
                (sharding, get_args(AttentionSharding), "an attention sharding"),
            ):
                if value is not None and value not in possible:
                    raise NoFeasiblePlan(f"{value!r} is not {what}; choose one of {', '.join(possible)}")

        def phase(names: Sequence[str | None] | None, attention: AttentionSharding, other: object) -> tuple:
            ffn, sharding = names or (None, None)
            if ffn is None:
                ffn = "ws1d" if other == "ws1d" else "ws2d"
            return ffn, sharding or ("batch" if sharding is None and ffn == "wg-xyz" else attention)

        of_prefill = phase(prefill, "heads", decode and decode[0])
        return cls.of(shape, of_prefill, phase(decode, over, of_prefill[0]))

    @property
    def mesh(self) -> MeshShape:
        return self.prefill.mesh


@runtime_checkable
class ModelSizes(Protocol):
    """The part of a ModelConfig that layouts are about."""

    @property
    def layers(self) -> int: ...
    @property
    def windows(self) -> tuple[int | None, ...]: ...
    @property
    def embed(self) -> int: ...
    @property
    def ffn(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def vocab(self) -> int: ...
    @property
    def expert_count(self) -> int: ...


@dataclass(frozen=True)
class HeldSizes:
    """Sizes of the dimensions that are padded with zeros to divide over the chips, and the stages of the layers."""

    heads: int
    kv_heads: int
    vocab: int
    stages: int = 1
    """Layer i of every stage stands in one array: stage s has layers s * layers / stages and so on."""


def held_sizes(config: ModelSizes, layouts: Layouts) -> HeldSizes:
    """The smallest sizes that divide in both phases.

    Query heads are padded within their group, so that each stays with its key and value head; where each has its own
    they are padded together. Where neither the number of shards nor that of key and value heads divides the other, key
    and value heads are padded up to the next number that does.
    """
    vocab, stages = _up_to(config.vocab, layouts.prefill.vocab_shards), layouts.mesh.slices
    shards = {layouts.prefill.head_shards, layouts.decode.head_shards}
    if config.heads == config.kv_heads:
        heads = _up_to(config.heads, math.lcm(*shards))
        return HeldSizes(heads, heads, vocab, stages)
    kv_heads = config.kv_heads
    while any(kv_heads % one and one % kv_heads for one in shards):
        kv_heads += 1
    copies = math.lcm(*(max(1, one // kv_heads) for one in shards))
    return HeldSizes(kv_heads * _up_to(config.heads // config.kv_heads, copies), kv_heads, vocab, stages)


def check_divides(config: ModelSizes, layouts: Layouts) -> None:
    """Raises NoFeasiblePlan, with the nearest mesh that works, where the model does not divide over the mesh."""
    _check_stages(config, layouts.mesh)
    fault = indivisible(config, layouts)
    if fault is None:
        return
    mesh = layouts.mesh

    def over(candidate: MeshShape) -> Layouts:
        return Layouts(replace(layouts.prefill, mesh=candidate), replace(layouts.decode, mesh=candidate))

    near = [
        candidate
        for chips in range(1, 2 * mesh.slice_chips + 1)
        for candidate in _meshes(chips, mesh.slices)
        if indivisible(config, over(candidate)) is None
    ]
    best = min(near, key=lambda one: (abs(one.chips - mesh.chips), _distance(one, mesh)))
    raise NoFeasiblePlan(f"the mesh {mesh} does not divide the model: {fault}; the nearest mesh that does is {best}")


def _check_stages(config: ModelSizes, mesh: MeshShape) -> None:
    """Every stage runs the same program, so it has as many layers, with the same windows."""

    def fault(slices: int) -> str | None:
        each, left = divmod(config.layers, slices)
        if left or not each:
            return f"layers={config.layers} do not divide over {slices} slices"
        if config.windows and config.windows != config.windows[:each] * slices:
            return f"the sliding windows of its {config.layers} layers do not repeat every {each}, over {slices} slices"
        return None

    found = fault(mesh.slices)
    if found is None:
        return
    near = [slices for slices in range(1, config.layers + 1) if fault(slices) is None]
    best = min(near, key=lambda slices: (abs(slices - mesh.slices), -slices))
    raise NoFeasiblePlan(
        f"the mesh {mesh} does not divide the model: {found}; the nearest number of slices that does is {best}: "
        f"{replace(mesh, slices=best)}"
    )


def indivisible(config: ModelSizes, layouts: Layouts) -> str | None:
    """What of a model does not divide over the chips of a slice; None if everything does."""
    layout, mesh = layouts.prefill, layouts.mesh
    kv_heads = held_sizes(config, layouts).kv_heads
    mixed = layout.experts_split(config.expert_count) if config.expert_count else ()
    kv_dim_axes = layout.rest_ffn[len(layout.kv_heads_split(kv_heads)) :]
    for name, size, axes in (
        ("embed", config.embed, layout.rest_embed),
        ("ffn", config.ffn, layout.rest_ffn[len(mixed) :]),
        ("head_dim", config.head_dim, kv_dim_axes),
    ):
        if size % mesh.size(axes):
            return f"{name}={size} is not a multiple of {' x '.join(sorted(axes)).upper()} = {mesh.size(axes)}"
    return None


def _meshes(chips: int, slices: int) -> list[MeshShape]:
    """Of so many chips in each slice."""
    divisors = [size for size in range(1, chips + 1) if chips % size == 0]
    return [MeshShape(x, y, chips // x // y, slices) for x in divisors for y in divisors if chips % (x * y) == 0]


def _distance(one: MeshShape, other: MeshShape) -> float:
    return sum(abs(math.log2(getattr(one, axis) / getattr(other, axis))) for axis in AXES)


def _up_to(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
