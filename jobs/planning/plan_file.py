"""A plan in a file: `penstock plan JOB.yaml --out FILE` writes it, `penstock run JOB.yaml --plan FILE` takes it.

It is the document that is kept as `_prediction.json` (schemas/prediction.py). What of the engine it says is as though
the job said it; where the job says something else itself, or is another job, the plan is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobs.job_file import with_engine
from jobs.planning.asked import asked_of, differences
from jobs.spec import EngineOptions, Job, PhaseLayout
from pipeline.errors import InputError, JobError
from pipeline.prediction import LIMIT_BYTES
from pipeline.storage import publish_over, read_bytes
from schemas.documents import DocumentError
from schemas.prediction import Prediction

if TYPE_CHECKING:
    from jobs.launch import Parts


def write_plan(path: str, plan: Prediction) -> None:
    publish_over(path, plan.to_json())


def read_plan_file(path: str) -> Prediction:
    """The plan in a file; JobError says what is wrong with it."""
    try:
        return Prediction.from_json(read_bytes(path, LIMIT_BYTES))
    except FileNotFoundError as error:
        raise JobError(f"--plan {path}: there is no such file; penstock plan JOB.yaml --out {path} makes it") from error
    except DocumentError as error:
        raise JobError(f"--plan {path} is no plan that can be used: {error}") from error
    except (OSError, InputError) as error:
        raise JobError(f"--plan {path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def planned(job: Job, plan: Prediction, path: str) -> Job:
    """The job with what the plan says of the engine."""
    conflicts = [
        f"engine.{name}: the plan has {value}, the job {shown_field(job.engine, name)}"
        for name, value in plan.engine.section().items()
        if name in job.engine.model_fields_set and not _agree(name, shown_field(job.engine, name), value)
    ]
    if conflicts:
        raise JobError(f"--plan {path} is of another job: " + "; ".join(conflicts))
    return with_engine(job, plan.engine.section(), f"--plan {path}")


def refuse_other_job(plan: Prediction, parts: Parts, path: str) -> None:
    if found := list(differences(plan.asked, asked_of(parts))):
        raise JobError(f"--plan {path} is of another job ({plan.job}): " + "; ".join(found))


def is_open(engine: EngineOptions, name: str) -> bool:
    """Whether the job leaves a field of its engine section, or a part of it, to be chosen."""
    value = getattr(engine, name)
    if name == "mesh":
        return "mesh" not in engine.model_fields_set
    return None in value.names() if isinstance(value, PhaseLayout) else value == "auto"


def shown_field(engine: EngineOptions, name: str) -> Any:
    value = getattr(engine, name)
    return value.model_dump() if isinstance(value, PhaseLayout) else value


def _agree(name: str, said: Any, planned: Any) -> bool:
    """Whether the plan says what the job says, where that says anything."""
    if name == "mesh":
        return _sizes(said) == _sizes(planned)
    if isinstance(said, dict) and isinstance(planned, dict):
        return all(value in ("auto", planned.get(key)) for key, value in said.items())
    return said in ("auto", planned)


def _sizes(mesh: str) -> list[str]:
    """The same for 4x4 and 4x4x1."""
    return [*mesh.split("x"), "1", "1"][:3]
