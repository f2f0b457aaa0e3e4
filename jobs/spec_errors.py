"""What is wrong with a job file, in words: every wrong field, where it stands, what it should be.

Pydantic finds the faults; this file says them as the user wrote them, merges the branches of a union into one
sentence and guesses at misspelt keys.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from jobs.document import Path
from jobs.section import CONTRADICTION, Section, sections
from jobs.spec import Job, Sampling

Models = Mapping[str, type[Section]]
"""The model of every mapping in a file, by dotted path."""


def explain(
    error: ValidationError, values: Any, origins: Mapping[Path, str], of: type[Section] = Job, called: str = "job"
) -> list[str]:
    """One line per wrong field. `origins` says where a value was written: a line, or an override."""
    models: Models = dict(sections(of))
    problems: dict[Path, list[str]] = {}
    for path, problem in _problems(error, values, models, called):
        problems.setdefault(path, []).append(problem)
    return [f"{_origin(path, origins)}: {_sentence(path, said, values, called)}" for path, said in problems.items()]


def dotted(path: Path) -> str:
    return ".".join(map(str, path))


def _problems(error: ValidationError, values: Any, models: Models, called: str) -> Iterator[tuple[Path, str]]:
    found = [(_path(detail, values), detail) for detail in error.errors(include_url=False)]
    for path, detail in found:
        is_other_branch = any(len(other) > len(path) and other[: len(path)] == path for other, _ in found)
        if detail["type"] == CONTRADICTION:
            for field, problem in detail.get("ctx", {})["problems"]:
                yield (*path, *field.split(".")), problem
        elif detail["type"] == "extra_forbidden":
            yield path, _unknown(path, models, called)
        elif detail["type"] == "missing":
            yield path, f"is missing: {_description(path, models)}"
        elif not is_other_branch:
            message = re.sub(r"^(Input|String|Tuple|Value) (?=should)", "", detail["msg"])
            yield path, message.replace("an object", "a mapping").replace("a valid array", "a list")


def _path(detail: ErrorDetails, values: Any) -> Path:
    """Where the fault is in the file: pydantic's location without the names of a union's branches."""
    path: Path = ()
    for step in detail["loc"]:
        is_missing = detail["type"] == "missing" and step == detail["loc"][-1]
        if is_missing or _holds(values, step):
            path = (*path, step)
            values = None if is_missing else values[step]
    return path


def _holds(values: Any, step: str | int) -> bool:
    return step in values if isinstance(values, dict) else isinstance(values, list) and isinstance(step, int)


def _sentence(path: Path, said: list[str], values: Any, called: str) -> str:
    name = dotted(path) or f"the {called}"
    if not all(problem.startswith("should ") for problem in said):
        return f"{name}: {'; '.join(said)}"
    for step in path:
        values = values[step]
    got = json.dumps(values, ensure_ascii=False)
    first, *others = dict.fromkeys(said)
    wanted = " or ".join([first, *(other.removeprefix("should be ") for other in others)])
    return f"{name}: {wanted}; got {got if len(got) <= 60 else got[:57] + '...'}"


def _unknown(path: Path, models: Models, called: str) -> str:
    section, key = _section(path), str(path[-1])
    model = models[section]
    if model is Sampling and key in Sampling.NOT_SUPPORTED:
        return f"is not supported here, though vLLM has it: {Sampling.NOT_SUPPORTED[key]}"
    if close := difflib.get_close_matches(key.lower(), model.model_fields, n=1):
        return f"is not a field; did you mean {close[0]}?"
    if elsewhere := [other for other, model in models.items() if other and key in model.model_fields]:
        return f"is not a field here; did you mean {elsewhere[0]}.{key}?"
    return f"is not a field; {section or f'a {called}'} has {', '.join(model.model_fields)}"


def _description(path: Path, models: Models) -> str:
    return " ".join((models[_section(path)].model_fields[str(path[-1])].description or "").split())


def _section(path: Path) -> str:
    """The mapping that a field stands in, as a dotted path without list positions."""
    return dotted(tuple(step for step in path[:-1] if isinstance(step, str)))


def _origin(path: Path, origins: Mapping[Path, str]) -> str:
    """Where the value was written; for a missing one, where the mapping that lacks it was."""
    while path and path not in origins:
        path = path[:-1]
    return origins[path]
