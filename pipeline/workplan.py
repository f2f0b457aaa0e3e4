"""What a job computes, decided once: input files, settings, models, and the list of shards.

The plan is created at the output if absent, and from then on it is what every run of the job does. A later
run that asks for the same takes over the stored shard list without reading the rows again; one that asks for
anything else is refused, field by field, because the results of two jobs in one place could not be told
apart.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, TypedDict, Unpack

import pyarrow as pa

from schemas.completion import COMPLETION_VERSION, completion_schema
from schemas.documents import DocumentError
from schemas.lease import LEASES_NAME
from schemas.manifest import (
    ERRORS_NAME,
    MANIFEST_NAME,
    PLAN_NAME,
    InputFile,
    Plan,
    decode_fields,
    encode_fields,
)
from schemas.score import SCORE_VERSION, score_schema

from . import storage
from .errors import EmptyInput, JobError, OutputError, PlanMismatch
from .kept_columns import kept_fields
from .records import canonical_json, content_hash
from .sources import read_rows
from .sources.base import Row, Source, WorkItem
from .storage import FileFacts

_HASHED_WHOLE_BYTES = 64 * 2**20
_PIECE_BYTES = 64 * 2**10
_PIECES = 66  # of a larger file: its first, its last, and 64 evenly between
_DIFFERENCES_SHOWN = 5
_SHOWN_CHARS = 60
_ABSENT = "(absent)"

_TABLES: Mapping[str, tuple[int, Callable[[Sequence[pa.Field]], pa.Schema]]] = {
    "generate": (COMPLETION_VERSION, completion_schema),
    "score": (SCORE_VERSION, score_schema),
}


class Asked(TypedDict):
    """What a run asks for, as far as it is known without reading the rows."""

    name: str
    task: str  # generate | score
    settings: Mapping[str, Any]  # JSON: all of the job that bears on results; no output path, runner or slots
    model_fingerprint: str
    tokenizer_fingerprint: str
    keep_columns: Sequence[str]
    shard_rows: int


@dataclass(frozen=True)
class PlanFacts:
    """What a worker needs of the plan to write a shard: small, picklable, JSON-able."""

    task: str
    columns: str
    shards: int
    job_fingerprint: str
    model_fingerprint: str

    @classmethod
    def of(cls, plan: Plan) -> PlanFacts:
        return cls(plan.task, plan.columns, len(plan.shards), plan.job_fingerprint, plan.model_fingerprint)

    @property
    def kept(self) -> list[pa.Field]:
        """The input columns that are carried to the output."""
        return decode_fields(self.columns)

    @property
    def schema(self) -> pa.Schema:
        """The schema of every result file of the job."""
        return _TABLES[self.task][1](self.kept)


def plan_job(
    output: str, source: Source, items: Sequence[WorkItem] = (), *, may_be_empty: bool = False, **asked: Unpack[Asked]
) -> Plan:
    """The plan of the job at `output`: the stored one when it is what is asked, else a new one, then stored.

    `items`: the shards, if they are known; finding them reads the input.
    """
    if not storage.exists(storage.join(output, PLAN_NAME)):
        return commit_plan(output, make_plan(source, items, may_be_empty=may_be_empty, **asked))
    stored = read_plan(output)
    return commit_plan(output, replace(stored, **_header(asked, identify(source)), columns=_named(stored, asked)))


def make_plan(
    source: Source, items: Sequence[WorkItem] = (), *, may_be_empty: bool = False, **asked: Unpack[Asked]
) -> Plan:
    """Read the input once and cut it into shards. No row is an error, or, where it may be empty, no shard."""
    header = _header(asked, identify(source))
    items = list(items) or _planned(source, asked["shard_rows"])
    if not items and not may_be_empty:
        raise EmptyInput(f"the input has no rows: {', '.join(file.url for file in header['inputs'][:8])}")
    assert [item.shard for item in items] == list(range(len(items)))
    kept = kept_fields(source, asked["keep_columns"], _all_rows(items))
    return Plan(
        **header,
        columns=encode_fields(kept),
        job_fingerprint=_job_fingerprint(header, kept, {item.source: item.source_file for item in items}),
        rows_total=sum(item.rows for item in items),
        shards=tuple(item.to_json() for item in items),
    )


def _planned(source: Source, shard_rows: int) -> list[WorkItem]:
    try:
        return list(source.work_items(shard_rows))
    except EmptyInput:
        return []


def commit_plan(output: str, plan: Plan) -> Plan:
    """Store the plan unless the output has one; the plan that is there now, which must be the same."""
    for directory in (output, *(storage.join(output, name) for name in (MANIFEST_NAME, ERRORS_NAME, LEASES_NAME))):
        storage.remove_abandoned(directory)
    url = storage.join(output, PLAN_NAME)
    others = [name for name in storage.list_names(output) if not name.startswith(".")]
    if others and not storage.exists(url):
        raise OutputError(
            f"{output} holds {', '.join(others[:8])} but no {PLAN_NAME}: it is not the output of this job; "
            "choose a new or empty output.path"
        )
    if storage.publish_if_absent(url, plan.to_json()):
        return plan
    stored = read_plan(output)
    found = list(itertools.islice(_differences(_comparable(stored), _comparable(plan)), _DIFFERENCES_SHOWN + 1))
    if found:
        lines = [f"  {where}: {old} -> {new}" for where, old, new in found[:_DIFFERENCES_SHOWN]]
        lines += ["  ..."] if len(found) > _DIFFERENCES_SHOWN else []
        raise PlanMismatch(
            "\n".join([f"{output} was planned for another job:", *lines])
            + "\nchoose a new output.path, or delete the old output to start again"
        )
    return stored


def read_plan(output: str) -> Plan:
    """The stored plan of an output."""
    url = storage.join(output, PLAN_NAME)
    try:
        plan = Plan.from_json(storage.read_bytes(url))
        decode_fields(plan.columns)
        return plan
    except FileNotFoundError as e:
        raise OutputError(f"there is no {url}: {output} is not the output of a job") from e
    except DocumentError as e:
        raise OutputError(f"{url} cannot be used: {e}") from e


def work_items(plan: Plan) -> list[WorkItem]:
    """The shards of a plan."""
    try:
        return [WorkItem.from_json(shard) for shard in plan.shards]
    except (ValueError, TypeError, AttributeError) as e:
        raise OutputError(f"{PLAN_NAME} has a damaged shard list: {e}") from e


def identify(source: Source) -> tuple[InputFile, ...]:
    """The input files with what changes when their content does: the store's etag, or a hash of the content."""
    with ThreadPoolExecutor() as pool:
        return tuple(sorted(pool.map(_identified, source.files()), key=lambda file: file.url))


def _identified(file: FileFacts) -> InputFile:
    """Small files are hashed whole, large ones in evenly spaced pieces."""
    if file.etag is not None:
        return InputFile(file.url, file.size_bytes, file.etag)
    digest = hashlib.sha256()
    with storage.open_input(file.url) as f:
        if file.size_bytes <= _HASHED_WHOLE_BYTES:
            while chunk := f.read(2**20):
                digest.update(chunk)
            return InputFile(file.url, file.size_bytes, f"sha256:{digest.hexdigest()}")
        for i in range(_PIECES):
            f.seek((file.size_bytes - _PIECE_BYTES) * i // (_PIECES - 1))
            digest.update(f.read(_PIECE_BYTES))
    return InputFile(file.url, file.size_bytes, f"sampled-sha256:{digest.hexdigest()}")


def _header(asked: Asked, inputs: tuple[InputFile, ...]) -> dict[str, Any]:
    """The fields of a Plan that are known without reading the rows; what cannot be asked is refused here."""
    if asked["task"] not in _TABLES:
        raise JobError(f"task: {asked['task']!r} is unknown; use {' or '.join(_TABLES)}")
    if asked["shard_rows"] < 1:
        raise JobError(f"output.shard_rows: must be at least 1, not {asked['shard_rows']}")
    version, schema = _TABLES[asked["task"]]
    try:
        schema([pa.field(name, pa.null()) for name in asked["keep_columns"]])
    except ValueError as e:
        raise JobError(f"output.keep_columns: {e}; rename the input column, or do not keep it") from e
    return {
        "name": asked["name"],
        "task": asked["task"],
        "table_version": version,
        "model_fingerprint": asked["model_fingerprint"],
        "tokenizer_fingerprint": asked["tokenizer_fingerprint"],
        "settings": json.loads(canonical_json(asked["settings"])),
        "shard_rows": asked["shard_rows"],
        "inputs": inputs,
    }


def _job_fingerprint(header: Mapping[str, Any], kept: Sequence[pa.Field], names: Mapping[str, str]) -> str:
    """What bears on the rows: not the job's name, where the input lies, or how it is cut into shards."""
    bearing = ("task", "table_version", "model_fingerprint", "tokenizer_fingerprint", "settings")
    return content_hash(
        {
            **{key: header[key] for key in bearing},
            "inputs": [[names.get(file.url), file.size_bytes, file.etag] for file in header["inputs"]],
            "kept": [[field.name, str(field.type)] for field in kept],
        }
    )


def _all_rows(items: Sequence[WorkItem]) -> Iterator[Row]:
    """The rows of all shards, each file read in one go."""
    for whole, group in itertools.groupby(items, key=lambda item: (item.source, item.options, all(item.selection))):
        if not whole[-1]:
            for item in group:
                yield from read_rows(item)
            continue
        first, *rest = group
        last = rest[-1] if rest else first
        yield from read_rows(replace(first, rows=last.first_row + last.rows - first.first_row, stop=last.stop))


def _named(stored: Plan, asked: Asked) -> str:
    """The kept columns as asked, with their types as stored."""
    types = {field.name: field.type for field in decode_fields(stored.columns)}
    return encode_fields([pa.field(name, types.get(name, pa.null())) for name in asked["keep_columns"]])


def _comparable(plan: Plan) -> dict[str, Any]:
    """A plan without its label and what is derived, the kept columns readable."""
    fields = asdict(plan)
    for key in ("version", "name", "job_fingerprint", "columns"):
        del fields[key]
    fields["inputs"] = {file.url: f"{file.size_bytes} bytes, {file.etag}" for file in plan.inputs}
    fields["keep_columns"] = [f"{field.name}: {field.type}" for field in decode_fields(plan.columns)]
    return fields


def _differences(old: Any, new: Any, where: str = "") -> Iterator[tuple[str, str, str]]:
    """Where two JSON values differ, outermost first, with both values as text."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(key, _ABSENT), new.get(key, _ABSENT), f"{where}.{key}" if where else key)
    elif isinstance(old, list | tuple) and isinstance(new, list | tuple):
        for i, (a, b) in enumerate(itertools.zip_longest(old, new, fillvalue=_ABSENT)):
            yield from _differences(a, b, f"{where}[{i}]")
    elif old != new:
        old, new = (value if value is _ABSENT else repr(value) for value in (old, new))
        same = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), 0)
        yield where, _excerpt(old, same - 10), _excerpt(new, same - 10)


def _excerpt(text: str, begin: int) -> str:
    """A long text from `begin`, where it gets interesting."""
    if len(text) <= _SHOWN_CHARS:
        return text
    begin = max(0, min(begin, len(text) - _SHOWN_CHARS))
    end = begin + _SHOWN_CHARS
    return f"{'...' if begin else ''}{text[begin:end]}{'...' if end < len(text) else ''}"
