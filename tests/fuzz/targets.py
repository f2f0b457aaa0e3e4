"""Everything that parses what others wrote, as functions of bytes: they end, and only in the errors they announce.

`tests/fuzz/test_targets.py` gives each a hundred damaged files; `python -m bench.fuzz` gives it as many as there
is time for, guided by coverage.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.errors import EngineError, RequestError, UnsupportedCheckpoint
from engine.families import read_config
from engine.families.documents import open_local
from engine.planning.machine import Machine
from engine.runtime.request import Sampling
from engine.weights.safetensors import read_header, read_pieces
from jobs.job_file import load
from jobs.planning.history import Earlier, read_history
from jobs.planning.plan_file import read_plan_file
from jobs.planning.prices import read_prices
from jobs.scheduling.schedule_file import load as load_schedule
from pipeline.chat import ChatPrompt
from pipeline.errors import InputError, JobError, OutputError, PenstockError, PromptError
from pipeline.manifest import Manifest
from pipeline.openai_requests import CHAT, COMPLETIONS, read_request
from pipeline.prompts import PromptTemplate
from pipeline.sources import open_source, read_rows
from pipeline.sources.jsonl import parse as parse_jsonl
from pipeline.tokenizer import Tokenizer
from pipeline.workplan import PlanFacts, read_plan, work_items
from schemas.documents import Document, DocumentError
from schemas.lease import Lease
from schemas.manifest import Plan, ShardEntry, Summary
from schemas.submission import Submission
from tests.engine.planning.test_machine import MACHINE
from tests.fake_job import SAMPLING
from tests.jobs.test_comparison import PREDICTION
from tests.pipeline.example_output import plan_example, run_example

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "jobs" / "examples" / "arithmetic"
ROW = {"question": "what is 1 + 1?", "answer": 2, "tags": ["a", None], "deep": {"x": {"y": 1.5}}, "gone": None}
_PART = "part-00000-of-00001.parquet"
LONGEST_PROMPT = 1 << 20
"""Characters that a template of a few bytes may make of a row; its budget allows less."""


@dataclass(frozen=True)
class Target:
    """One parser."""

    consume: Callable[[bytes], None]
    refusals: tuple[type[Exception], ...]
    """What it may raise for bytes that are wrong."""
    seeds: Callable[[], list[bytes]]
    """Files that are right, to be damaged."""
    suffix: str = ""

    def check(self, data: bytes) -> bool:
        """Whether `data` was accepted; any error but a refusal passes through."""
        try:
            self.consume(data)
        except self.refusals as refusal:
            if not str(refusal).strip():
                raise AssertionError(f"{refusal!r} says nothing") from refusal
            return False
        return True


@contextlib.contextmanager
def _file(data: bytes, name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as directory:
        path = Path(directory) / name
        path.write_bytes(data)
        yield path


# Jobs and templates.


def _job_file(data: bytes) -> None:
    with _file(data, "job.yaml") as path:
        job = load(str(path))
        assert load(str(path)) == job


def _override(data: bytes) -> None:
    load(str(EXAMPLE / "generate.yaml"), [data.decode(errors="surrogateescape")])


def _template(data: bytes) -> None:
    text = PromptTemplate(data.decode(errors="replace")).render(ROW)
    assert len(text) <= LONGEST_PROMPT


def _chat_template(data: bytes) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "{{ question }}"}]
    prompt = ChatPrompt(messages, data.decode(errors="replace"), {"bos_token": "<s>", "eos_token": "</s>"}, None)
    assert len(prompt.render(ROW)) <= LONGEST_PROMPT


def _openai_request(data: bytes) -> None:
    """One line; whatever it asks for is a number of tokens, samples and so on that an engine can be asked for."""
    values, reason = parse_jsonl(data)
    if values is None:
        raise PromptError(reason)
    endpoint = COMPLETIONS if values.get("url") == COMPLETIONS else CHAT
    said, sampling = read_request(values, endpoint, SAMPLING)
    assert isinstance(said, str if endpoint == COMPLETIONS else list)
    assert sampling.keys() == SAMPLING.keys()
    asked = {field.name: sampling[field.name] for field in fields(Sampling)}
    Sampling(**{**asked, "stop_token_ids": tuple(asked["stop_token_ids"])})
    assert 1 <= sampling["n"] <= 128
    assert 0 <= sampling["seed"] < 1 << 63
    assert all(isinstance(stop, str) and stop for stop in sampling["stop"])


def _prices(data: bytes) -> None:
    with _file(data, "prices.yaml") as path:
        read_prices(str(path))


def _schedule(data: bytes) -> None:
    with _file(data, "schedule.yaml") as path:
        (path.parent / "job.yaml").write_bytes(_job_to_schedule())
        load_schedule(str(path))


def _plan_file(data: bytes) -> None:
    with _file(data, "plan.json") as path:
        read_plan_file(str(path))


def _history(data: bytes) -> None:
    with _file(data, "history.jsonl") as path:
        read_history(path)


# Checkpoints.


def _safetensors(data: bytes) -> None:
    file = io.BytesIO(data)
    for tensor in read_header(file, "model.safetensors"):
        if tensor.dtype in ("F32", "F16", "BF16"):
            for _ in read_pieces(file, tensor):
                pass


def _config(data: bytes) -> None:
    with _file(data, "config.json") as path:
        read_config(str(path.parent), open_local)


def _tokenizer(data: bytes) -> None:
    with _file(data, "tokenizer.json") as path:
        Tokenizer.load(str(path.parent)).encode("what is 1 + 1?", add_special_tokens=True)


def _tokenizer_config(data: bytes) -> None:
    with _file((EXAMPLE / "checkpoint" / "tokenizer.json").read_bytes(), "tokenizer.json") as path:
        (path.parent / "tokenizer_config.json").write_bytes(data)
        Tokenizer.load(str(path.parent))


# Inputs: what is planned is what is read.


def _input(suffix: str) -> Callable[[bytes], None]:
    def consume(data: bytes) -> None:
        with _file(data, f"input{suffix}") as path:
            for item in itertools.islice(open_source(path=str(path)).work_items(3), 100):
                rows = list(read_rows(item))
                assert len(rows) == item.rows
                assert all((row.values is None) != (row.error is None) for row in rows)

    return consume


# What lies in an output.


def _document(kind: type[Document]) -> Callable[[bytes], None]:
    def consume(data: bytes) -> None:
        document = kind.from_json(data)
        assert kind.from_json(document.to_json()) == document

    return consume


def _stored_plan(data: bytes) -> None:
    with _file(data, "_plan.json") as path:
        plan = read_plan(str(path.parent))
        work_items(plan)
        _ = PlanFacts.of(plan).schema
        Manifest(str(path.parent), plan).todo()


def _part(data: bytes) -> None:
    """A file with the name of a shard's results, in the output of a job."""
    plan = Plan.from_json(_output()["_plan.json"])
    with _file(data, _PART) as path:
        Manifest(str(path.parent), plan).done()


def _profile(data: bytes) -> None:
    Machine.from_json(data.decode(errors="replace"))


# Seeds.


@functools.cache
def _output() -> dict[str, bytes]:
    """The files of a small finished output, by name."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as directory:
        output = Path(directory) / "out"
        run_example(str(output), plan_example(Path(directory), str(output), rows=5), failed=frozenset({3})).finalise()
        return {path.name: path.read_bytes() for path in output.rglob("*") if path.is_file()}


def _outputs(*names: str) -> Callable[[], list[bytes]]:
    return lambda: [_output()[name] for name in names]


def _job_to_schedule() -> bytes:
    """Without an output of its own: a schedule says where results go."""
    lines = (EXAMPLE / "generate.yaml").read_text().splitlines(keepends=True)
    job = "".join(line for line in lines if not line.startswith(("output:", "input:")))
    job += "input: {format: parquet, id: id}\noutput: {shard_rows: 100}\n"
    return job.replace("checkpoint: checkpoint", f"checkpoint: {EXAMPLE / 'checkpoint'}").encode()


def _schedules() -> list[bytes]:
    return [
        b"name: hourly\njob: job.yaml\ncron: '0 * * * *'\ntimezone: UTC\nstart: 2026-01-05\n"
        b"input: in/dt={{ ds }}/hour={{ hour }}/*.parquet\noutput: out/dt={{ ds }}/hour={{ hour }}\n"
        b"catch_up: 7d\ndelay: 30min\nconcurrency: 2\n",
        b"name: daily\njob: job.yaml\ncron: '30 3 * * 1-5'\ntimezone: Europe/Berlin\nstart: 2026-01-05\n"
        b"input: in/dt={{ ds }}/*.parquet\noutput: out/dt={{ ds }}\n",
    ]


def _lease() -> bytes:
    lease = Lease(shard=3, run="r", worker="h:1", process="p", nonce="n", renewals=2, taken_at="2026-01-31T00:00:00")
    return lease.to_json()


def _earlier() -> bytes:
    run = Earlier("m", "cpu", "j", foreseen_seconds=2.0, seconds=3.0, startup_seconds=1.0, completion_tokens=5.0)
    return json.dumps(asdict(run)).encode() + b"\n"


def _submission() -> bytes:
    return Submission(
        runner="dataflow", job_id="j", job_name="n", endpoint=None, project="p", region="r", options=("--a",),
        submitted_at="2026-01-31T00:00:00", submitted_by="me", penstock="0.1.0", beam="2.77.0",
    ).to_json()  # fmt: skip


def _jsonl() -> list[bytes]:
    lines = [json.dumps(ROW), '{"a": 1}', "", '  {"b": [1, 2, {"c": "\\u00e9"}]}', "[1]", '{"d": 1e400}', '{"a"']
    return ["\n".join(lines).encode(), b"\xef\xbb\xbf" + lines[0].encode() + b"\r\n"]


def _openai_requests() -> list[bytes]:
    chat = {
        "model": "m",
        "messages": [{"role": "system", "content": [{"type": "text", "text": "a"}]}],
        "n": 2,
        "seed": 1,
    }
    chat |= {"temperature": 0.5, "stop": ["x"], "logprobs": True, "top_logprobs": 3, "tools": [], "user": "u"}
    text = {"model": "m", "prompt": ["b"], "max_tokens": 3, "logprobs": 2, "top_k": -1, "min_tokens": 1, "echo": False}
    lines = [
        {"custom_id": "a", "method": "POST", "url": url, "body": body}
        for url, body in ((CHAT, chat), (COMPLETIONS, text))
    ]
    return [json.dumps(line).encode() for line in lines]


def _csv() -> list[bytes]:
    return [b'a,b\n1,"two, and\na half"\n3,4\n', b'\xef\xbb\xbfid;text\n1;"x ""y"""\n', b"a\n\n\n1\n"]


def _parquet_seeds() -> list[bytes]:
    table = pa.table(
        {
            "question": ["a", None, "c" * 50],
            "n": pa.array([1, 2, None], pa.int32()),
            "tags": [["x"], [], None],
            "kind": pa.array(["u", "v", "u"]).dictionary_encode(),
            "inner": [{"y": 1.5}, None, {"y": None}],
        }
    )
    files = []
    for options in ({"compression": "zstd"}, {"compression": "none", "row_group_size": 1, "data_page_version": "2.0"}):
        buffer = io.BytesIO()
        pq.write_table(table, buffer, **options)
        files.append(buffer.getvalue())
    return files


def _safetensors_seeds() -> list[bytes]:
    numbers = np.arange(6, dtype=np.float32).tobytes()
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    }
    text = json.dumps(header).encode()
    return [len(text).to_bytes(8, "little") + text + numbers + bytes(8)]


def _templates() -> list[bytes]:
    return [
        b"Q: {{ question }}\nA:",
        b"{% for t in tags %}{{ t or 'none' }}{{ loop.index }}{% endfor %}{{ deep.x.y | round(1) }}",
        b"{% macro f(n) %}{% if n %}{{ f(n - 1) }}{% endif %}x{% endmacro %}{{ f(9) }}{{ 'a' * 40 }}",
        b"{{ '%s %d' % (question, answer) }}{{ ''.join(['a', 'b']) }}{% set ns = namespace(n=0) %}{{ ns.n }}",
    ]


def _examples(*names: str) -> Callable[[], list[bytes]]:
    return lambda: [(EXAMPLE / name).read_bytes() for name in names]


TARGETS = {
    "job_file": Target(_job_file, (JobError,), _examples("generate.yaml", "score.yaml")),
    "override": Target(_override, (JobError,), lambda: [b"sampling.max_tokens=32", b"prompt.template={a: [1, 2]}"]),
    "template": Target(_template, (PromptError,), _templates),
    "chat_template": Target(
        _chat_template,
        (PromptError, JobError),
        lambda: [
            *_templates(),
            b"{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m['content'] | trim }}{% endfor %}",
            b"{% if messages[0].role != 'user' %}{{ raise_exception('no') }}{% endif %}{{ strftime_now('%Y') }}",
        ],
    ),
    "openai_request": Target(_openai_request, (PromptError, RequestError), _openai_requests),
    "prices": Target(
        _prices, (PenstockError,), lambda: [b"date: 2026-11-01\ncurrency: USD\nchip_hour: {v5e: 1.20, v6e: 2.70}\n"]
    ),
    "safetensors": Target(_safetensors, (UnsupportedCheckpoint,), _safetensors_seeds),
    "config": Target(_config, (UnsupportedCheckpoint,), _examples("checkpoint/config.json")),
    "tokenizer": Target(_tokenizer, (InputError, PromptError), _examples("checkpoint/tokenizer.json")),
    "tokenizer_config": Target(
        _tokenizer_config, (InputError, PromptError), _examples("checkpoint/tokenizer_config.json")
    ),
    "jsonl": Target(_input(".jsonl"), (InputError,), _jsonl),
    "jsonl_gz": Target(_input(".jsonl.gz"), (InputError,), lambda: [gzip.compress(one, mtime=0) for one in _jsonl()]),
    "csv": Target(_input(".csv"), (InputError,), _csv),
    "text": Target(_input(".txt"), (InputError,), lambda: [b"one\n\n two \r\nthree"]),
    "parquet": Target(_input(".parquet"), (InputError,), _parquet_seeds),
    "plan": Target(_document(Plan), (DocumentError,), _outputs("_plan.json")),
    "stored_plan": Target(_stored_plan, (OutputError,), _outputs("_plan.json")),
    "entry": Target(_document(ShardEntry), (DocumentError,), _outputs("00000.json")),
    "summary": Target(_document(Summary), (DocumentError,), _outputs("_summary.json")),
    "part": Target(_part, (OutputError,), lambda: [*_outputs(_PART)(), *_parquet_seeds()]),
    "schedule": Target(_schedule, (JobError,), _schedules),
    "plan_file": Target(_plan_file, (JobError,), lambda: [PREDICTION.to_json()]),
    "history": Target(_history, (), lambda: [b"{}\n[]\n", _earlier()]),
    "lease": Target(_document(Lease), (DocumentError,), lambda: [_lease()]),
    "submission": Target(_document(Submission), (DocumentError,), lambda: [_submission()]),
    "profile": Target(_profile, (EngineError,), lambda: [MACHINE.to_json().encode()]),
}
