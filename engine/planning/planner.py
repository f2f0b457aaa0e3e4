"""The search for one phase of a model: on which mesh of a slice, and in which layouts, is it the fastest?

Every mesh that lies on the slice (engine/planning/slices.py) is tried with every layout that differs there: where X is
one, weight-stationary is 1D, and gathering over an axis of one chip gathers nothing more. What does not divide, or does
not fit, is left out; what is pinned stays as it is. The search is exhaustive: a cost and a peak each take a fraction of
a millisecond (engine/planning/cost.py, memory.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from engine.errors import NoFeasiblePlan
from engine.layout import AttentionSharding, Feedforward, Layout, Layouts, check_divides, indivisible
from engine.mesh import MeshShape
from engine.model.config import ModelConfig
from engine.planning.cost import Cost, cost
from engine.planning.memory import Memory, memory
from engine.planning.program import Dtype, Phase, Program
from engine.planning.slices import Slice, Wraps, slices_of

MIN_ROWS = 8
"""Of a decode program (engine/compilation/options.py)."""

MOST_CHIPS = 1024
"""Of slices that are proposed where others are too small."""

ATTENTION: tuple[AttentionSharding, ...] = ("heads", "batch", "sequence")


@dataclass(frozen=True)
class Pinned:
    """What is not to be chosen."""

    mesh: MeshShape | None = None
    ffn: Feedforward | None = None
    attention: AttentionSharding | None = None


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


@dataclass(frozen=True)
class PhasePlan:
    """A phase on a slice in certain layouts, with what it takes."""

    on: Slice
    asked: Asked
    program: Program
    wraps: Wraps

    @cached_property
    def cost(self) -> Cost:
        return cost(self.program, wraps=self.wraps)

    @cached_property
    def memory(self) -> Memory:
        return memory(self.program)

    @property
    def layout(self) -> Layout:
        return self.program.layout

    @property
    def fits(self) -> bool:
        return self.memory.peak <= self.on.limit_bytes

    @property
    def seconds(self) -> float:
        """Of one prefill, or one step of decode."""
        return self.cost.seconds

    @property
    def tokens(self) -> int:
        """That are of use: rows filled up to divide over the chips are not."""
        asked = self.asked
        return asked.batch * (asked.context_tokens if asked.phase == "prefill" else 1)

    @property
    def mfu(self) -> float:
        return self.cost.mfu * self.tokens / self.program.tokens

    @property
    def chip_seconds_per_token(self) -> float:
        return self.on.chips * self.seconds / self.tokens


def phase_plans(asked: Asked, slices: Sequence[Slice]) -> list[PhasePlan]:
    """Every plan that divides and fits, for each slice the fastest first; NoFeasiblePlan if there is none."""
    possible = [plan for on in slices for plan in candidates(asked, on)]
    found = sorted((plan for plan in possible if plan.fits), key=lambda plan: plan.seconds)
    if not found:
        raise NoFeasiblePlan(_why_none(asked, slices, possible))
    return found


def candidates(asked: Asked, on: Slice) -> Iterator[PhasePlan]:
    """Every plan on a slice that divides, whether it fits or not."""
    for mesh, wraps in meshes_to_try(on, asked.pinned.mesh).items():
        for names in layouts_to_try(mesh, asked.pinned):
            layouts = _layouts(asked, mesh, names)
            if asked.pinned.mesh:
                check_divides(asked.config, layouts)
            rows = rows_of(asked, layouts)
            if rows is not None and indivisible(asked.config, layouts) is None:
                program = Program(
                    asked.config,
                    on.chip,
                    layouts,
                    asked.phase,
                    rows,
                    asked.context_tokens,
                    weights=asked.weights,
                    kv=asked.kv,
                )
                yield PhasePlan(on, asked, program, wraps)


def rows_of(asked: Asked, layouts: Layouts) -> int | None:
    """Of the program: slots are filled up until they divide over the chips; a prefill that does not is impossible."""
    chips, size = layouts.mesh.chips, layouts.mesh.size
    if asked.phase == "decode":
        return _up_to(max(asked.batch, MIN_ROWS), chips)
    layout = layouts.prefill
    rows = math.lcm(size(layout.attention_rows), chips // math.gcd(asked.context_tokens, chips))
    if asked.batch % rows or asked.context_tokens % size(layout.attention_sequence):
        return None
    return asked.batch


def _layouts(asked: Asked, mesh: MeshShape, names: tuple[Feedforward, AttentionSharding]) -> Layouts:
    """With the usual layout in the other phase, as `penstock compile` has it."""
    of = {asked.phase: names}
    return Layouts.asked(asked.config.kv_heads, str(mesh), of.get("prefill"), of.get("decode"))


def meshes_to_try(on: Slice, pinned: MeshShape | None = None) -> dict[MeshShape, Wraps]:
    """The meshes of a slice, without those that are another under other names.

    Y and Z differ only in what wg-xy gathers, so where one of them is 1 it is Z.
    """
    if pinned:
        return {pinned: on.mesh_wraps(pinned)}
    return {mesh: wraps for mesh, wraps in on.meshes().items() if not (mesh.y == 1 and mesh.z > 1)}


def layouts_to_try(mesh: MeshShape, pinned: Pinned) -> Iterator[tuple[Feedforward, AttentionSharding]]:
    """The layouts of a phase that differ on this mesh."""
    gathered: dict[Feedforward, tuple[int, ...]] = {
        "wg-x": (mesh.x,),
        "wg-xy": (mesh.x, mesh.y),
        "wg-xyz": (mesh.x, mesh.y, mesh.z),
    }
    choices: list[Feedforward] = ["ws2d" if mesh.x > 1 or mesh.chips == 1 else "ws1d"]
    seen = {1}
    for ffn, sizes in reversed(gathered.items()):  # where two are the same, the one that says all it gathers
        if math.prod(sizes) not in seen:
            choices.append(ffn)
            seen.add(math.prod(sizes))
    for ffn in (pinned.ffn,) if pinned.ffn else choices:
        whole = ffn.startswith("wg") and math.prod(gathered[ffn]) == mesh.chips  # then heads are not split at all
        sensible = ("batch",) if whole else ("heads",) if mesh.chips == 1 else ATTENTION
        for attention in (pinned.attention,) if pinned.attention else sensible:
            yield ffn, attention


# Where there is no plan.


def _why_none(asked: Asked, slices: Sequence[Slice], possible: Sequence[PhasePlan]) -> str:
    where = _names(slices)
    if not possible:
        what = f"{asked.batch} x {asked.context_tokens} tokens" if asked.phase == "prefill" else "the model"
        return (
            f"{what} divides over no mesh of {where} in the layouts that are allowed; pin less, or take a batch that "
            "is a multiple of the chips"
        )
    nearest = min(possible, key=lambda plan: plan.memory.peak / plan.on.limit_bytes)
    held, limit = nearest.memory, nearest.on.limit_bytes
    needs = {"weights": held.weights, "keys and values": held.cache + held.results, "temporaries": held.temporaries}
    parts = ", ".join(f"{what} {_gib(size)}" for what, size in needs.items())
    changes = list(_changes_that_fit(asked, nearest.on))
    return (
        f"{asked.phase} of {asked.batch} x {asked.context_tokens} tokens does not fit {where}: at best (on "
        f"{nearest.on}, {nearest.layout.ffn}, attention over {nearest.layout.attention}) a device needs "
        f"{_gib(held.peak)} and has {_gib(limit)}; {parts}. What binds is {max(needs, key=lambda what: needs[what])}. "
        + (f"It would fit with {'; or '.join(changes)}" if changes else "No single change makes it fit")
    )


def _changes_that_fit(asked: Asked, on: Slice) -> Iterator[str]:
    """The smallest change of each kind that makes a plan possible on this slice, or on a larger one."""
    is_fine = lambda asked, on=on: any(plan.fits for plan in candidates(asked, on))  # noqa: E731
    if asked.weights != "int8" and is_fine(replace(asked, weights="int8")):
        yield "int8 weights"
    if asked.kv != "int8" and asked.phase == "decode" and is_fine(replace(asked, kv="int8")):
        yield "an int8 cache"
    if asked.weights != "int8" and asked.kv != "int8" and is_fine(replace(asked, weights="int8", kv="int8")):
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
    for larger in slices_of(on.chip, MOST_CHIPS):
        if larger.chips > on.chips and is_fine(free, larger):
            yield f"{larger} ({larger.chips} chips)"
            return


def _names(slices: Sequence[Slice]) -> str:
    return ", ".join(map(str, slices)) if len(slices) < 5 else f"any of {len(slices)} slices"


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def _up_to(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
