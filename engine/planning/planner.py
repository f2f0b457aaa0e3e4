"""The search for one phase of a model: on which mesh of a slice, and in which layouts, is it the fastest?

The meshes that lie on the slice (engine/planning/slices.py), but for those in 2D that move twice as much as the best
of them by the paper's formula, are tried with every layout that differs there: where X is one, weight-stationary is 1D,
and gathering over an axis of one chip gathers nothing more. What does not divide, or does not fit, is left out; what is
pinned stays as it is. A cost and a peak each take a fraction of a millisecond (engine/planning/cost.py, memory.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from engine.errors import NoFeasiblePlan
from engine.layout import AttentionSharding, Feedforward, HeldSizes, Layout, Layouts, check_divides, indivisible
from engine.mesh import MeshShape
from engine.model.config import ModelConfig
from engine.planning.buckets import Parts, micro_batches, slot_rows
from engine.planning.cost import Cost, cost
from engine.planning.memory import Memory, memory
from engine.planning.paper_volumes import paper_volume, width
from engine.planning.program import Dtype, Phase, Program
from engine.planning.slices import Slice, Wraps, slices_of
from engine.planning.speculation import Speculation

MOST_CHIPS = 1024
"""Of slices that are proposed where others are too small."""

_STAGES = (2, 4, 8)
"""Of pipelines over switched domains that are proposed where one is too small."""
_SHORTLIST = 4
_NEAR = 0.02

ATTENTION: tuple[AttentionSharding, ...] = ("heads", "batch", "sequence")


@dataclass(frozen=True)
class Pinned:
    """What is not to be chosen."""

    mesh: MeshShape | None = None
    ffn: Feedforward | None = None
    attention: AttentionSharding | None = None

    @classmethod
    def named(cls, mesh: str | None, ffn: str | None, attention: str | None) -> Pinned:
        """From what a person writes; NoFeasiblePlan refuses what is no mesh or layout."""
        layout = Layouts.asked(1, None, (ffn, attention)).prefill
        return cls(
            MeshShape.parse(mesh) if mesh else None,
            layout.ffn if ffn else None,
            layout.attention if attention else None,
        )


@dataclass(frozen=True)
class Asked:
    """A phase of a model over so many sequences, wherever it may run."""

    config: ModelConfig
    phase: Phase
    batch: int
    context_tokens: int
    """Of each sequence: its prompt in prefill, what its cache holds in decode."""
    weights: Dtype = "bfloat16"
    kv: Dtype = "bfloat16"
    pinned: Pinned = Pinned()
    shared_tokens: int = 0
    """That all sequences begin with."""
    speculation: Speculation | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.shared_tokens < self.context_tokens:
            raise NoFeasiblePlan(
                f"{self.shared_tokens} shared tokens of {self.context_tokens}: something must be each sequence's own"
            )
        if self.speculation and self.phase != "decode":
            raise NoFeasiblePlan(f"a draft model is for decode; a {self.phase} program guesses nothing")

    @property
    def drafted(self) -> Asked | None:
        """A step of the draft model, for the same sequences."""
        if self.speculation is None:
            return None
        return replace(self, config=self.speculation.draft, speculation=None, pinned=Pinned())


@dataclass(frozen=True)
class PhasePlan:
    """A phase on a slice in certain layouts, with what it takes."""

    on: Slice
    asked: Asked
    program: Program
    wraps: Wraps
    draft: PhasePlan | None = None
    """A step of the draft model, on the same mesh."""

    @cached_property
    def cost(self) -> Cost:
        return cost(self.program, wraps=self.wraps, calibration=self.on.calibration)

    @cached_property
    def memory(self) -> Memory:
        return memory(self.program)

    @property
    def layout(self) -> Layout:
        return self.program.layout

    @property
    def choice(self) -> Pinned:
        """What was chosen, or pinned."""
        return Pinned(self.layout.mesh, self.layout.ffn, self.layout.attention)

    @cached_property
    def peak_bytes(self) -> int:
        """With the draft model's weights and cache, which are there all the time."""
        draft = self.draft.memory if self.draft else None
        return self.memory.peak + (draft.weights + draft.cache if draft else 0)

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= self.on.limit_bytes

    @property
    def seconds(self) -> float:
        """Of one prefill, or one step of decode: with a draft, one round of guesses and the pass that verifies them."""
        return self.cost.seconds + self.draft_seconds

    @property
    def draft_seconds(self) -> float:
        speculation = self.asked.speculation
        return speculation.guesses * self.draft.cost.seconds if speculation and self.draft else 0.0

    @property
    def seconds_per_token(self) -> float:
        """Of a sequence: in decode until its next token, in prefill its time by its tokens."""
        return self.seconds * self.asked.batch / self.tokens

    @property
    def bound_by(self) -> Mapping[str, float]:
        """The share of each resource in the time, and that of the draft."""
        if self.draft is None:
            return self.cost.bound_by
        verifying = self.cost.seconds / self.seconds
        shares = {name: share * verifying for name, share in self.cost.bound_by.items()}
        return shares | {"draft": self.draft_seconds / self.seconds}

    @property
    def rank(self) -> float:
        """What plans are compared by: a time that is not passed by, with the model's error. So what was never measured
        must be faster by more than a hair. A mesh that is the torus as it is, which is what everything else here takes,
        wins near ties."""
        near = 1 if self.layout.mesh == self.on.mesh else 1 + _NEAR
        return self.seconds * (1 + self.cost.error_fraction) * near

    @property
    def tokens(self) -> int | float:
        """That are of use: rows filled up to divide over the chips are not, nor guesses that are refused."""
        asked = self.asked
        if asked.phase == "decode":
            return asked.batch * (asked.speculation.tokens if asked.speculation else 1)
        return asked.batch * asked.context_tokens

    @property
    def mfu(self) -> float:
        """Of tokens that are computed for a use; what is shared is computed once."""
        asked, useful = self.asked, self.tokens
        if asked.phase != "decode":
            useful = asked.batch * (asked.context_tokens - asked.shared_tokens) + asked.shared_tokens
        return self.cost.mfu * (useful / self.program.tokens) * (self.cost.seconds / self.seconds)

    @property
    def chip_seconds_per_token(self) -> float:
        return self.on.chips * self.seconds / self.tokens


@dataclass(frozen=True)
class Found:
    """What a search came to; both lists begin with the fastest."""

    plans: list[PhasePlan]
    too_large: list[PhasePlan]
    """Plans that divide and do not fit."""


class DoesNotFit(NoFeasiblePlan):
    """Nothing that is allowed fits; `nearest` lacks the least."""

    def __init__(self, message: str, nearest: PhasePlan) -> None:
        super().__init__(message)
        self.nearest = nearest


def search(asked: Asked, slices: Sequence[Slice]) -> Found:
    """Every plan on these slices; NoFeasiblePlan says why there is none."""
    possible = sorted((plan for on in slices for plan in candidates(asked, on)), key=lambda plan: plan.rank)
    found = Found([plan for plan in possible if plan.fits], [plan for plan in possible if not plan.fits])
    if not found.plans:
        raise _why_none(asked, slices, possible)
    return found


def sweep(asked: Asked, slices: Sequence[Slice], batches: Sequence[int]) -> Found:
    """The same for several batches (`asked.batch` does not count), in layouts that are good at one of their ends.

    Which layout is best changes with the batch once or twice, so trying all at the ends, and those that were among the
    best there in between, loses nothing that is worth the time.
    """
    found = Found([], [])
    ends = {min(batches), max(batches)}
    for on in slices:
        good: set[Pinned] = set()
        for batch in sorted(batches, key=lambda batch: (batch not in ends, batch)):
            some = replace(asked, batch=batch)
            if batch in ends:
                plans = list(candidates(some, on))
                plans.sort(key=lambda plan: (not plan.fits, plan.rank))
                good |= {plan.choice for plan in plans[:_SHORTLIST]}
            else:
                plans = [plan for choice in good for plan in candidates(replace(some, pinned=choice), on)]
            for plan in plans:
                (found.plans if plan.fits else found.too_large).append(plan)
    if not found.plans:
        smallest = replace(asked, batch=min(batches))
        raise _why_none(smallest, slices, [plan for on in slices for plan in candidates(smallest, on)])
    found.plans.sort(key=lambda plan: plan.rank)
    return found


def candidates(asked: Asked, on: Slice) -> Iterator[PhasePlan]:
    """Every plan on a slice that divides, whether it fits or not."""
    for mesh, wraps in meshes_to_try(asked.config, on, asked.pinned.mesh).items():
        for names in layouts_to_try(mesh, asked.pinned):
            layouts = _layouts(mesh, names)
            rows = rows_of(asked, layouts)
            if rows is None or indivisible(asked.config, layouts) is not None or not has_stages(asked.config, mesh):
                continue
            draft = _draft(asked.drafted, on, mesh) if asked.drafted else None
            if asked.speculation and draft is None:
                continue  # the draft does not divide over this mesh
            program = Program(
                asked.config,
                on.chip,
                layouts,
                asked.phase,
                rows,
                asked.context_tokens,
                weights=asked.weights,
                kv=asked.kv,
                shared_tokens=asked.shared_tokens,
                tokens_a_row=asked.speculation.guesses + 1 if asked.speculation else 1,
            )
            yield PhasePlan(on, asked, program, wraps, draft)


@lru_cache(maxsize=1024)
def _draft(asked: Asked, on: Slice, mesh: MeshShape) -> PhasePlan | None:
    """The fastest step of a draft model on a mesh, if it divides over it."""
    plans = candidates(replace(asked, pinned=Pinned(mesh)), on)
    return min(plans, key=lambda plan: plan.seconds, default=None)


@lru_cache(maxsize=4096)
def has_stages(config: ModelConfig, mesh: MeshShape) -> bool:
    """Whether the layers divide over the slices, each with the same sliding windows."""
    each, left = divmod(config.layers, mesh.slices)
    return not left and (not config.windows or config.windows == config.windows[:each] * mesh.slices)


def rows_of(asked: Asked, layouts: Layouts) -> int | None:
    """Of the program: slots and prompts are filled up until they divide over the chips; None if they cannot."""
    size, parts = layouts.mesh.size, Parts.of(layouts)
    if asked.phase == "decode":
        return slot_rows(asked.batch, parts.chips, parts.stages)
    layout = layouts.prefill
    if asked.context_tokens % size(layout.attention_sequence):
        return None
    fewest = math.lcm(size(layout.attention_rows), parts.chips // math.gcd(asked.context_tokens, parts.chips))
    fewest *= micro_batches(asked.context_tokens, asked.batch * asked.context_tokens, parts)
    return -(-asked.batch // fewest) * fewest


def _layouts(mesh: MeshShape, names: tuple[Feedforward, AttentionSharding]) -> Layouts:
    """The other phase, which is not asked about, has the same, as in `penstock compile`."""
    return layouts_of(mesh, names, names)


@lru_cache(maxsize=4096)
def layouts_of(
    mesh: MeshShape,
    prefill: tuple[Feedforward, AttentionSharding],
    decode: tuple[Feedforward, AttentionSharding],
) -> Layouts:
    """Kept, with all that is derived from them: the same few layouts are tried with many batches."""
    return Layouts.of(mesh, prefill, decode)


def meshes_to_try(config: ModelConfig, on: Slice, pinned: MeshShape | None = None) -> dict[MeshShape, Wraps]:
    """The meshes of a slice that may pay: all that is 1D, and what moves not much more than the least in 2D.

    Y and Z differ only in what wg-xy gathers, so where one of them is 1 it is Z.
    """
    if pinned:
        pinned = replace(pinned, slices=max(pinned.slices, on.count))
        return {pinned: on.mesh_wraps(pinned)}
    meshes = {mesh: wraps for mesh, wraps in on.meshes.items() if not (mesh.y == 1 and mesh.z > 1)}
    sides = width(config, HeldSizes(config.heads, config.kv_heads, config.vocab))
    moved = {mesh: paper_volume(Layout(mesh), config.embed, sides).per_token for mesh in meshes}
    most = 2 * min((moved[mesh] for mesh in meshes if mesh.x > 1), default=0)
    return {mesh: wraps for mesh, wraps in meshes.items() if mesh.x == 1 or moved[mesh] <= most}


def layouts_to_try(mesh: MeshShape, pinned: Pinned) -> Iterator[tuple[Feedforward, AttentionSharding]]:
    """The layouts of a phase that differ on this mesh."""
    gathered: dict[Feedforward, tuple[int, ...]] = {
        "wg-x": (mesh.x,),
        "wg-xy": (mesh.x, mesh.y),
        "wg-xyz": (mesh.x, mesh.y, mesh.z),
    }
    choices: list[Feedforward] = ["ws2d" if mesh.x > 1 or mesh.slice_chips == 1 else "ws1d"]
    seen = {1}
    for ffn, sizes in reversed(gathered.items()):  # where two are the same, the one that says all it gathers
        if math.prod(sizes) not in seen:
            choices.append(ffn)
            seen.add(math.prod(sizes))
    for ffn in (pinned.ffn,) if pinned.ffn else choices:
        whole = ffn.startswith("wg") and math.prod(gathered[ffn]) == mesh.slice_chips  # then heads are not split
        sensible = ("batch",) if whole else ("heads",) if mesh.slice_chips == 1 else ATTENTION
        for attention in (pinned.attention,) if pinned.attention else sensible:
            yield ffn, attention


# Where there is no plan.


def _why_none(asked: Asked, slices: Sequence[Slice], possible: Sequence[PhasePlan]) -> NoFeasiblePlan:
    where = slice_names(slices)
    if not possible:
        several = next((on for on in slices if on.count > 1 and not has_stages(asked.config, on.mesh)), None)
        if several:
            check_divides(asked.config, _layouts(several.mesh, next(layouts_to_try(several.mesh, Pinned()))))
        if asked.pinned.mesh:  # says what does not, and what mesh would
            for names in layouts_to_try(asked.pinned.mesh, asked.pinned):
                check_divides(asked.config, _layouts(asked.pinned.mesh, names))
        what = "the model" if asked.phase == "decode" else f"{asked.batch} x {asked.context_tokens} tokens"
        return NoFeasiblePlan(
            f"{what} divides over no mesh of {where} in the layouts that are allowed; pin less, or take a batch that "
            "is a multiple of the chips"
        )
    nearest = min(possible, key=lambda plan: plan.peak_bytes / plan.on.limit_bytes)
    held, limit = nearest.memory, nearest.on.limit_bytes
    needs = {"weights": held.weights, "keys and values": held.cache + held.results, "temporaries": held.temporaries}
    if nearest.draft:
        needs["draft model"] = nearest.peak_bytes - held.peak
    what = f"{asked.phase} of {asked.batch} x {asked.context_tokens} tokens does not fit {where}"
    best = f"{nearest.on}, {nearest.layout.ffn}, attention over {nearest.layout.attention}"
    return DoesNotFit(
        shortfall(what, best, nearest.peak_bytes, limit, needs, _changes_that_fit(asked, nearest.on)), nearest
    )


def shortfall(
    what: str, best: str, peak_bytes: int, limit_bytes: int, needs: Mapping[str, int], changes: Iterable[str]
) -> str:
    """Why `what` does not, what takes the memory of the plan that comes nearest, and what would help."""
    parts = ", ".join(f"{name} {_gib(size)}" for name, size in needs.items())
    ways = "; or ".join(changes)
    return (
        f"{what}: at best (on {best}) a device needs {_gib(peak_bytes)} and has {_gib(limit_bytes)}; {parts}. What "
        f"binds is {max(needs, key=lambda name: needs[name])}. "
        + (f"It would fit with {ways}" if ways else "No single change makes it fit")
    )


def _changes_that_fit(asked: Asked, on: Slice) -> Iterator[str]:
    """The smallest change of each kind that makes a plan possible on this slice, or on a larger one."""
    is_fine = lambda asked, on=on: any(plan.fits for plan in candidates(asked, on))  # noqa: E731
    if asked.pinned != Pinned() and is_fine(replace(asked, pinned=Pinned())):
        yield "other layouts than those that are pinned"
    small = {"int8 weights": replace(asked, weights="int8")}
    if asked.phase == "decode":
        small |= {"an int8 cache": replace(asked, kv="int8")}
    fine = [change for change, changed in small.items() if changed != asked and is_fine(changed)]
    yield from fine
    if not fine and asked.phase == "decode" and is_fine(replace(asked, weights="int8", kv="int8")):
        yield "int8 weights and an int8 cache"
    batch, context = asked.batch // 2, asked.context_tokens // 2
    while batch and not is_fine(replace(asked, batch=batch)):
        batch //= 2
    if batch:
        yield f"a batch of {batch}"
    while context and not is_fine(replace(asked, context_tokens=context)):
        context //= 2
    if context:
        yield f"a context of {context} tokens"
    free = replace(asked, pinned=replace(asked.pinned, mesh=None))
    slices = slices_of(on.chip, MOST_CHIPS)
    pipelines = [replace(slices[-1], count=count) for count in _STAGES] if not on.chip.is_tpu else []
    for larger in (*slices, *pipelines):
        if larger.chips > on.chips and is_fine(free, larger):
            yield f"{larger} ({larger.chips} chips)"
            return


def slice_names(slices: Sequence[Slice]) -> str:
    return ", ".join(map(str, slices)) if len(slices) < 5 else f"any of {len(slices)} slices"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
