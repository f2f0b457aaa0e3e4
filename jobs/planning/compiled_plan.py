"""`penstock plan --compile`: what was planned, beside what the TPU compiler makes of the same programs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from engine.compilation.compile_check import Question, check
from engine.planning.planner import PhasePlan
from engine.planning.program import DTYPE_NAMES
from jobs.planning.words import gib, time_words
from pipeline.errors import JobError
from pipeline.storage import open_input


def compiled(model: str, plans: Iterable[PhasePlan]) -> list[dict[str, Any]]:
    """Compiles the program of each plan; what is predicted and what the compiler says stand side by side."""
    return [_compiled(model, plan) for plan in plans if plan.asked.phase != "score"]


def _compiled(model: str, plan: PhasePlan) -> dict[str, Any]:
    program = plan.program
    if program.shared_tokens or program.tokens_a_row > 1 or program.weights in ("fp8", "int4"):
        raise JobError("--compile: what is planned only cannot be compiled; leave out what the notes name")
    if not plan.on.chip.is_tpu:
        raise JobError(f"--compile checks with the TPU compiler, and {plan.on} is no TPU")
    if program.weights not in DTYPE_NAMES or program.kv not in DTYPE_NAMES:
        raise JobError(
            f"--compile: programs in {program.weights} are not compiled for TPUs; set model.dtype to bfloat16"
        )
    question = Question.of(
        model,
        str(plan.on),
        "decode" if program.phase == "decode" else "prefill",
        program.rows,
        program.context_tokens,
        mesh=str(plan.layout.mesh),
        open=open_input,
        ffn=plan.layout.ffn,
        attention=plan.layout.attention,
        weights=DTYPE_NAMES[program.weights],
        kv=DTYPE_NAMES[program.kv],
    )
    answer = check(question).to_json()
    seconds = answer["compute_seconds"]
    return {
        "phase": program.phase,
        "counted": answer["counted"],
        "fits": answer["fits"],
        "peak_bytes": answer["peak_bytes"],
        "planned_peak_bytes": plan.memory.peak,
        "limit_bytes": answer["limit_bytes"],
        "collective_bytes": sum(one["wire_bytes"] for one in answer["collectives"]),
        "planned_collective_bytes": plan.cost.collective_bytes,
        "estimated_seconds": None if seconds is None else seconds + answer["collective_seconds"]["exposed"],
        "planned_seconds": plan.seconds,
        "compile_seconds": answer["compile_seconds"],
        "warnings": answer["warnings"],
        "estimates": answer["estimates"],
    }


def checked_table(found: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("program", title="checked with the TPU compiler: planned / compiled")
    for column in ("peak a device", "sent a chip", "time", ""):
        table.add_column(column, justify="right")
    for one in found:
        estimated = one["estimated_seconds"]
        table.add_row(
            one["counted"],
            f"{gib(one['planned_peak_bytes'])} / {gib(one['peak_bytes'])}",
            f"{one['planned_collective_bytes'] / 1e6:,.1f} MB / {one['collective_bytes'] / 1e6:,.1f} MB",
            f"{time_words(one['planned_seconds'])} / {time_words(estimated) if estimated is not None else '-'}",
            "fits" if one["fits"] else "DOES NOT FIT",
        )
    return table
