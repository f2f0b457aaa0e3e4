"""On what the workers of a submitted job compute, and in what shape: what the job leaves open is chosen once.

On Dataflow the planner chooses among the machines that have the accelerator: how many chips a worker has, layouts,
slots, and with `accelerator: auto` the chips too. The number of machines is the job's, if it says one. Workers of other
runners are somebody's own, so only what `engine.chip` says of them is known: the mesh is the job's, the rest is chosen.
What is pinned stays, and the output keeps what was chosen, as it does for `penstock run`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from engine.planning.chips import named_chip
from engine.planning.planner import Pinned
from engine.planning.slices import Slice
from jobs.job_file import with_engine
from jobs.planning.places import CPU, NothingForeseen, whole_slice
from jobs.planning.plan_file import is_open
from jobs.settle import Planning, Settled, by_foresight, choose_here
from jobs.spec import Job
from jobs.submission.beam_flags import beam_flags
from jobs.submission.dataflow_machines import (
    CHIPS,
    ELSEWHERE,
    TARGET,
    TPU_HOSTS,
    chips_of,
    gpu_machine,
    gpus_of_machine,
    tpu_host,
)
from jobs.submission.reachable import is_here
from jobs.submission.settings import Dataflow
from jobs.wording import count_words
from pipeline.errors import JobError
from schemas.prediction import Prediction

MOST_CHIPS = 256
"""Of all machines, where neither the job nor the command says how many."""

if TYPE_CHECKING:
    from jobs.launch import Parts
    from jobs.planning.known import Known


def applied(job: Job, planning: Planning) -> Job:
    """The job with what a plan says; what no plan or goal can ask of its runner is refused."""
    runner, plan = job.runner, planning.plan
    said = planning.goal.said or ("--max-chips" if planning.most_chips else "")
    if said and runner.name != "dataflow":
        raise JobError(f"{said}: is for runner dataflow, whose machines can be chosen; those of {runner.name} cannot")
    if planning.most_chips and "machines" in _settings(job).model_fields_set:
        raise JobError(f"--max-chips: runner.dataflow.machines says how many there are, {_settings(job).machines}")
    if runner.name == "dataflow":
        for accelerator in _accelerators(job):
            _slices(job, accelerator)  # refuses a mesh that no machine has
    if plan is None or is_here(job):
        return planning.applied(job)
    path, chip = planning.plan_path, plan.chips.partition(":")[0]
    if chip == CPU:
        raise JobError(
            f"--plan {path} is for the processor that it was made on, and workers of {runner.name} are not here"
        )
    if job.engine.chip not in ("auto", chip):
        raise JobError(f"--plan {path} is for {plan.chips}, and engine.chip is {job.engine.chip}; plan again")
    if runner.name == "dataflow":
        allowed = [on for accelerator in _accelerators(job) for on in _slices(job, accelerator, any_mesh=True)]
        if plan.chips not in map(str, allowed):
            has = ", ".join(map(str, allowed)) or "of no chip whose times are known"
            raise JobError(
                f"--plan {path} is for {plan.chips}, and by runner.dataflow workers are {has}; plan again with "
                f"--chips {','.join(map(str, allowed)) or 'of another accelerator'}"
            )
        return planning.applied(job)
    return with_engine(planning.applied(job), {"chip": chip}, f"--plan {path}")


def choose(parts: Parts, planning: Planning, flags: Sequence[str]) -> Settled:
    """For workers that are not here; the shape of an output that nothing is kept of."""
    job = parts.job
    if is_here(job):
        return choose_here(parts, planning, flags)
    if job.runner.name == "dataflow":
        return by_foresight(parts, planning, lambda known: _on_dataflow(parts, planning, known))
    settled = by_foresight(parts, planning, lambda known: _on_unknown_workers(parts, planning, known))
    if settled.prediction is None:
        return settled
    note = f"how many workers there are is for {job.runner.name} to say: what is foreseen is of one"
    return Settled(settled.parts, settled.prediction, notes=(*settled.notes, note))


def placed(settled: Settled) -> Job:
    """The job with its workers named: of Dataflow the accelerator, topology, machine, how many, and which image."""
    job, kept = settled.parts.job, settled.prediction
    if job.runner.name != "dataflow":
        return job
    settings, mesh = _settings(job), job.engine.mesh
    accelerator, chip = settings.accelerator, kept.chips.partition(":")[0] if kept else ""
    if accelerator == "auto":
        accelerator = next((name for name, of in CHIPS.items() if of == chip), None)
        if accelerator is None:
            raise JobError(
                f"runner.dataflow.accelerator: auto: {job.output.path} was begun on {chip or 'what is not known'}; "
                "name one of Dataflow's"
            )
    values: dict[str, Any] = {"accelerator": accelerator}
    if kept and "machines" not in settings.model_fields_set and CHIPS.get(accelerator) == chip:
        values["machines"] = kept.workers
    if accelerator in TPU_HOSTS:
        host = tpu_host(accelerator, settings.topology, mesh)
        values |= {"topology": host.topology, "machine_type": host.machine_type}
        target = host.accelerator_type
    else:
        values["machine_type"] = gpu_machine(accelerator, settings.machine_type, mesh)
        target = "cpu" if accelerator == "cpu" else "cuda"
    values["image"] = settings.image.replace(TARGET, target)
    runner = job.runner.model_copy(update={"dataflow": settings.model_copy(update=values)})
    return job.model_copy(update={"runner": runner})


def remarks(job: Job, settled: Settled, planning: Planning, shards: int) -> Iterator[str]:
    """What a user should know of a job whose workers are named, with so many shards to do."""
    settings, goal = job.runner.dataflow, planning.goal
    if settled.is_kept and goal.said:
        yield f"{job.output.path} has had its shape since it was begun, so {goal.said} chooses nothing"
    if job.runner.name != "dataflow" or settings is None:
        return
    if shards and settings.machines > shards:
        idle = count_words(settings.machines - shards, "machine")
        yield f"{count_words(shards, 'shard')} to do, so {idle} of {settings.machines:,} would be idle"
    is_fixed = TARGET not in _settings(settled.parts.job).image
    if is_fixed and settings.accelerator in TPU_HOSTS and settled.prediction and "mesh" in settled.prediction.chosen:
        host = tpu_host(settings.accelerator, settings.topology, job.engine.mesh)
        yield f"{settings.image} must be the image that was made with TPU_TYPE={host.accelerator_type}"


def _on_dataflow(parts: Parts, planning: Planning, known: Known) -> Prediction:
    from jobs.planning.foresight import foresee_on

    job, plan, settings = parts.job, planning.plan, _settings(parts.job)
    found = [on for accelerator in _priced(job, planning, known) for on in _slices(job, accelerator)]
    if plan:
        found = [on for on in found if str(on) == plan.chips]
    said = settings.machines if "machines" in settings.model_fields_set else None
    chooses_mesh = is_open(job.engine, "mesh")
    try:
        if not found:
            raise NothingForeseen(f"nothing is predicted of {settings.accelerator}: its times are not known")
        return foresee_on(
            parts,
            known,
            found,
            planning.goal,
            workers=said or (plan.workers if plan else None),
            most_chips=planning.most_chips or MOST_CHIPS,
            chooses_mesh=chooses_mesh,
        )
    except NothingForeseen as nothing:
        reason = str(nothing.__cause__ or nothing)
        if planning.goal.said:
            raise JobError(f"{planning.goal.said}: {reason}") from nothing
        if settings.accelerator == "auto":
            raise JobError(f"runner.dataflow.accelerator: auto: {reason}") from nothing
        if chooses_mesh and found:
            raise JobError(
                f"engine.mesh: none can be chosen: {reason}. Workers of Dataflow are single hosts: for a larger slice, "
                f"{ELSEWHERE}. To try one all the same, say it"
            ) from nothing
        if plan and said not in (None, plan.workers):
            raise JobError(
                f"--plan {planning.plan_path} is for {plan.workers} workers, and runner.dataflow.machines is {said}; "
                f"for others {reason}"
            ) from nothing
        raise


def _on_unknown_workers(parts: Parts, planning: Planning, known: Known) -> Prediction:
    from jobs.planning.foresight import foresee_on

    engine, runner = parts.job.engine, parts.job.runner.name
    if engine.chip == "auto":
        raise NothingForeseen(
            f"nothing is predicted, because what the workers of {runner} compute on is not known here; engine.chip "
            "says it to both"
        )
    chip, mesh = named_chip(engine.chip), Pinned.named(engine.mesh, None, None).mesh
    assert mesh
    plan, chips = planning.plan, -(-mesh.chips // chip.devices)
    on = Slice.parse(plan.chips) if plan else whole_slice(chip, chips)
    return foresee_on(parts, known, [on], planning.goal, workers=1, most_chips=MOST_CHIPS, chooses_mesh=False)


def _settings(job: Job) -> Dataflow:
    settings = job.runner.dataflow
    if settings is None:
        beam_flags(job)  # says what is missing
    assert settings
    return settings


def _accelerators(job: Job) -> list[str]:
    """That the job allows, of those whose times are known."""
    settings = _settings(job)
    named = CHIPS if settings.accelerator == "auto" else (settings.accelerator,)
    return [name for name in named if job.engine.chip in ("auto", CHIPS.get(name))]


def _priced(job: Job, planning: Planning, known: Known) -> list[str]:
    """Of several only those can be compared by cost that a table of the user's has."""
    found, goal = _accelerators(job), planning.goal
    priced = [name for name in found if known.prices and CHIPS.get(name) in known.prices.chip_hour]
    goal.refuse_without_prices(bool(priced))
    if _settings(job).accelerator != "auto" or not goal.compares_costs:
        return found
    if not priced:
        raise JobError(
            "runner.dataflow.accelerator: auto: chips of different kinds are compared by what they cost: give "
            f"--prices FILE with some of {', '.join(dict.fromkeys(CHIPS.values()))}, or --goal fastest, or name one"
        )
    return priced


def _slices(job: Job, accelerator: str, *, any_mesh: bool = False) -> list[Slice]:
    """What a worker can have of it, with as many chips as the job says, if it says that."""
    settings, mesh = _settings(job), job.engine.mesh
    chips = None if any_mesh or is_open(job.engine, "mesh") else chips_of(mesh)
    alone = settings.accelerator != "auto"
    if accelerator in TPU_HOSTS:
        if chips is not None and alone:
            tpu_host(accelerator, settings.topology, mesh)  # refuses what there is no worker for
        return [
            Slice.parse(f"{host.chip}:{host.topology}")
            for host in TPU_HOSTS[accelerator]
            if settings.topology in ("auto", host.topology)
            and settings.machine_type in ("auto", host.machine_type)
            and chips in (None, host.chips)
        ]
    if accelerator not in CHIPS:
        return []
    if chips is not None and alone:
        gpu_machine(accelerator, settings.machine_type, mesh)
    counts = gpus_of_machine(accelerator, settings.machine_type)
    return [Slice.parse(f"{CHIPS[accelerator]}:{count}") for count in counts if chips in (None, count)]
