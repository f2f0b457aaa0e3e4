"""Who chose what of a submitted job's shape, value by value: what `submit --dry-run` says of it.

pinned   the job says it, in its file or with --set
planned  the plan in a file does (--plan)
kept     it was chosen when the output was begun
chosen   the planner did, now
follows  from the chips and the mesh
default  nobody did
"""

from __future__ import annotations

from collections.abc import Iterator

from jobs.settle import Planning, Settled
from jobs.spec import Job, PhaseLayout

_OF_THE_ENGINE = ("mesh", "prefill", "decode", "slots", "max_length", "prefill_tokens")


def choices(job: Job, placed: Job, settled: Settled, planning: Planning) -> Iterator[tuple[str, str]]:
    """`job` as it was asked for, `placed` as it is sent: who chose a value, and the value."""
    who = "planned" if planning.plan else "kept" if settled.is_kept else "chosen"
    asked, foreseen = job.engine, settled.prediction

    def of_engine(name: str, field: str, said: object, now: object) -> tuple[str, str]:
        if field in asked.model_fields_set and said != "auto":
            return "pinned", f"{name}: {now}"
        return who if foreseen and field in foreseen.chosen else "default", f"{name}: {now}"

    for field in _OF_THE_ENGINE:
        said, now = getattr(asked, field), getattr(placed.engine, field)
        if isinstance(said, PhaseLayout):
            for part in ("ffn", "attention"):
                yield of_engine(f"engine.{field}.{part}", field, getattr(said, part), getattr(now, part))
        else:
            yield of_engine(f"engine.{field}", field, said, now)
    before, after = job.runner.dataflow, placed.runner.dataflow
    if job.runner.name != "dataflow" or before is None or after is None:
        return
    otherwise = {"topology": "follows", "machine_type": "follows"}
    for field in ("accelerator", "topology", "machine_type", "machines"):
        said, now = getattr(before, field), getattr(after, field)
        is_pinned = field in before.model_fields_set and said == now
        by = "pinned" if is_pinned else otherwise.get(field, who if foreseen else "default")
        if now != "auto":
            yield by, f"runner.dataflow.{field}: {now}"
