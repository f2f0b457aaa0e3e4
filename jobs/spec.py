"""The job file, field by field: what may be asked, with what defaults, and which combinations mean nothing.

These models are the whole truth about a job file. The JSON schema that editors complete from, the reference
page and the errors a user sees are all made from the descriptions here. What a job asks for is honoured or
refused by the field's name; an unknown key is an error.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, JsonValue
from pydantic_core import PydanticCustomError

from jobs.refused_runners import refused_runner
from jobs.section import Section
from jobs.submission.settings import Dataflow, Flink, Portable, Spark
from pipeline.errors import InputError
from pipeline.openai_requests import OPENAI_BATCH
from pipeline.urls import refuse_secrets

LARGEST_SEED = (1 << 63) - 1


def _without_secrets(location: str) -> str:
    try:
        refuse_secrets(location)
    except InputError as error:
        raise PydanticCustomError("secret_in_url", "{problem}", {"problem": str(error)}) from None
    return location


Location = Annotated[str, Field(min_length=1), AfterValidator(_without_secrets)]
Template = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Mesh = Annotated[
    str, Field(pattern=r"^([1-9]\d*\*)?[1-9]\d*(x[1-9]\d*){0,2}$", examples=["8", "4x4", "2x2x2", "2*4x4x4"])
]


class Model(Section):
    checkpoint: Annotated[Location, Field(examples=["./checkpoint", "gs://bucket/llama-3.2-1b"])]
    """Directory of a Hugging Face checkpoint (config.json, *.safetensors, tokenizer files): a local path or a
    URL that fsspec reads, such as gs:// or s3://."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What the model is computed in. `auto` is bfloat16 for a bfloat16 checkpoint on an accelerator, else float32;
    name one if a job may be resumed on another kind of machine."""
    weights: Literal["auto", "int8"] = "auto"
    """`int8` quantises the matrices as they are loaded, with a scale for each output; `auto` holds them in dtype."""
    kv: Literal["auto", "int8"] = "auto"
    """`int8` keeps keys and values quantised, with a scale for each position and head; `auto` keeps them in dtype."""


class Input(Section):
    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["path"]}, {"required": ["tfds"]}]})

    path: Annotated[Location | None, Field(examples=["data/*.jsonl"])] = None
    """A file, a directory or a glob; a local path or a URL that fsspec reads."""
    format: Literal["jsonl", "csv", "text", "parquet", "openai-batch"] | None = None
    """How the files are written; by default their extension says. `text` is one row per line, in the column
    `text`. `openai-batch` are request files of OpenAI's Batch API: they say by themselves what is asked and how it is
    sampled, `custom_id` is the record id, and the job has no prompt."""
    endpoint: Literal["/v1/chat/completions", "/v1/completions"] = "/v1/chat/completions"
    """With `openai-batch`: the `url` of the requests. Those for another are failed rows."""
    id: Annotated[str | None, Field(min_length=1)] = None
    """The column that identifies a row: it becomes `record_id`, and random samples depend on it. By default a
    row is known by its file and its position there."""
    tfds: Annotated[str | None, Field(min_length=1, examples=["my_dataset/config:1.0.0"])] = None
    """A prepared TensorFlow dataset instead of `path`, as name, name/config or name/config:version.
    TensorFlow is not needed."""
    split: Annotated[str | None, Field(min_length=1, examples=["train", "train[:10%]", "train+test"])] = None
    """Which split of the TensorFlow dataset, in its slicing syntax."""
    data_dir: Location | None = None
    """Where the TensorFlow dataset was prepared; by default ~/tensorflow_datasets."""

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        if self._given("path") == self._given("tfds"):
            yield "path", "give one of path (files) and tfds (a TensorFlow dataset)"
        for field in ("split", "data_dir"):
            if self._given("path") and self._given(field):
                yield field, "belongs to tfds; an input of files has none"
        if self._given("endpoint") and not self.is_openai_batch:
            yield "endpoint", "belongs to format openai-batch"
        if self.is_openai_batch and self._given("id"):
            yield "id", "leave it out: requests of openai-batch are known by their custom_id"
        if self._given("tfds") and self._given("format"):
            yield "format", "belongs to path; a TensorFlow dataset knows its own format"
        if self._given("tfds") and not self._given("split"):
            yield "split", "is missing: name the split to read, such as train or test[:100]"

    @property
    def is_openai_batch(self) -> bool:
        return self.format == "openai-batch"

    @property
    def file_format(self) -> str | None:
        """How the lines of the files are read."""
        return "jsonl" if self.is_openai_batch else self.format

    @property
    def id_column(self) -> str | None:
        """Where the id of a row stands."""
        return "custom_id" if self.is_openai_batch else self.id


class Message(Section):
    role: Annotated[str, Field(min_length=1, examples=["system", "user", "assistant"])]
    """Who speaks."""
    content: str
    """What is said: a Jinja template over the row's columns."""


class Prompt(Section):
    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["template"]}, {"required": ["messages"]}]})

    template: Annotated[str | None, Field(min_length=1, examples=["Q: {{ question }}\nA:"])] = None
    """A Jinja template over the row's columns; it runs in a sandbox."""
    messages: Annotated[tuple[Message, ...], Field(min_length=1)] | Annotated[str, Field(min_length=1)] | None = None
    """A conversation, written out by the checkpoint's own chat template: a list of messages, or the name of
    the column that holds such a list."""
    date: Annotated[str | None, Field(pattern=r"^\d{4}-\d{2}-\d{2}$", examples=["2026-01-31"])] = None
    """What a chat template is told when it asks for today's date, so that the prompts are the same tomorrow."""

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        if self._given("template") == self._given("messages"):
            yield "template", "give one of template (plain text) and messages (a chat)"
        if self._given("date"):
            if not self._given("messages"):
                yield "date", "is for chat templates; write the date into the template"
            try:
                datetime.date.fromisoformat(self.date or "")
            except ValueError as error:
                yield "date", f"is no date: {error}"


class Sampling(Section):
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """0 takes the most likely token every time; higher is more varied, 1 is the model's own distribution."""
    top_k: Annotated[int, Field(ge=-1)] = 0
    """Sample among this many most likely tokens; 0 or -1 is all of them."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample among the most likely tokens that together reach this probability; 1 is all of them."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Sample among tokens at least this fraction as likely as the most likely one; 0 is all of them."""
    max_tokens: Count = 64
    """Longest completion; one that reaches it has finish_reason `length`."""
    min_tokens: Annotated[int, Field(ge=0)] = 0
    """Shortest completion: nothing stops it before."""
    stop: Template | tuple[Template, ...] = ()
    """Text, or a list of texts, that ends the completion where it first appears. It is left out of `text`."""
    stop_token_ids: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(max_length=8)] = ()
    """Tokens that end the completion, besides the checkpoint's own end-of-sequence tokens."""
    ignore_eos: bool = False
    """Go on past the checkpoint's end-of-sequence tokens."""
    n: Annotated[int, Field(ge=1, le=256)] = 1
    """How many completions of each row: one output row each, told apart by `sample_index`."""
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] = 0
    """The same seed gives the same completions, however the job is split, batched or resumed."""
    logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    """Log-probabilities of this many most likely tokens at every position. Those of the chosen tokens are
    always there."""

    NOT_SUPPORTED: ClassVar[dict[str, str]] = {
        "allowed_token_ids": "tokens cannot be allowed one by one",
        "bad_words": "words cannot be forbidden",
        "best_of": "ask for n completions and choose among their cumulative_logprob",
        "detokenize": "text is always written, beside the token ids",
        "frequency_penalty": "there are no penalties yet; leave it out or set temperature, top_p or min_p",
        "guided_decoding": "output cannot be held to a grammar",
        "include_stop_str_in_output": "the stop string is always left out of text; stop_reason names it",
        "logit_bias": "logits cannot be biased",
        "logits_processors": "a job holds no code",
        "presence_penalty": "there are no penalties yet; leave it out or set temperature, top_p or min_p",
        "prompt_logprobs": "use task: score, which gives log-probabilities of given text",
        "repetition_penalty": "there are no penalties yet; leave it out or set temperature, top_p or min_p",
        "skip_special_tokens": "text never holds special tokens; token_ids does",
        "spaces_between_special_tokens": "text never holds special tokens; token_ids does",
        "structured_outputs": "output cannot be held to a grammar",
        "truncate_prompt_tokens": "a prompt that is too long is a failed row; shorten it in prompt.template",
    }
    """Names that vLLM's SamplingParams has and this engine lacks, and what to do instead."""

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        if self.min_tokens > self.max_tokens:
            yield "min_tokens", f"is {self.min_tokens}, more than max_tokens ({self.max_tokens})"
        if self.n > 1 and self.temperature == 0:
            yield "n", f"{self.n} completions at temperature 0 are all the same; set a temperature, or n to 1"

    def settings(self) -> dict[str, Any]:
        """As the pipeline takes it: one way of writing each thing."""
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        return {**self.model_dump(mode="json"), "stop": list(stop), "top_k": max(0, self.top_k)}


class Score(Section):
    continuations: Annotated[tuple[str, ...] | None, Field(min_length=1)] = None
    """Jinja templates of the texts whose likelihood after the prompt is measured. With several, `best_index`
    names the likeliest."""
    text: Annotated[str | None, Field(min_length=1, examples=["{{ document }}"])] = None
    """Jinja template of a whole text whose likelihood and perplexity are measured, without any prompt."""
    token_logprobs: bool = False
    """Also write the log-probability of every token scored."""

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        if self._given("continuations") and self._given("text"):
            yield "text", "is a whole text by itself; drop it, or drop continuations"


class Output(Section):
    path: Annotated[Location, Field(examples=["./out", "gs://bucket/run-1"])]
    """Directory to write to, local or a URL. It holds one job: another job on the same path is refused."""
    keep_columns: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Input columns carried to the output."""
    include_prompt: bool = True
    """Write the prompt as the model saw it."""
    shard_rows: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    """Input rows per shard: a shard is one output file, and the unit of retry, resume and progress."""

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        for column in {column for column in self.keep_columns if self.keep_columns.count(column) > 1}:
            yield "keep_columns", f"names {column!r} twice"


class PhaseLayout(Section):
    ffn: Literal["auto", "ws1d", "ws2d", "wg-x", "wg-xy", "wg-xyz"] = "auto"
    """How the feed-forward is split: weights stay where they are (`ws1d`, `ws2d`), or are gathered over these axes of
    the mesh just before use (`wg-x`, `wg-xy`, `wg-xyz`), which pays when many tokens go through at once."""
    attention: Literal["auto", "heads", "batch", "sequence"] = "auto"
    """What attention is split over: query heads, sequences, or the positions of every sequence."""

    def names(self) -> tuple[str | None, str | None]:
        """As the engine takes them: None where the choice is left to it."""
        return (None if self.ffn == "auto" else self.ffn, None if self.attention == "auto" else self.attention)


class Hosts(Section):
    count: Annotated[int, Field(ge=2, le=4096)]
    """Processes that hold the model together, one on each host, that of `penstock run` included."""
    coordinator: Annotated[str, Field(pattern=r"^[^\s/]+:[1-9]\d{0,4}$", examples=["10.0.0.1:8476"])]
    """Where `penstock run` listens for the others: an address of its host that they reach, and a free port. On each of
    them start `penstock follow JOB.yaml --process N`, with N from 1 to count - 1."""


class EngineOptions(Section):
    mesh: Mesh = "1x1x1"
    """The chips, as XxYxZ. Weights are split over X along the model's width and over Y x Z along the other side of
    each matrix. Several slices, as S*XxYxZ, are a pipeline: each has a share of the layers. Results are equal within
    rounding on every mesh, and the same to the last bit on the same one."""
    prefill: PhaseLayout = PhaseLayout()
    """How prompts are laid out over the mesh, and scoring. `auto`: what is fastest, where that can be predicted; else
    weights stay, attention over heads."""
    decode: PhaseLayout = PhaseLayout()
    """How generation is laid out over the mesh. `auto`: what is fastest, where that can be predicted; else weights
    stay, attention over heads where every chip has key and value heads of its own, else over the batch."""
    slots: Literal["auto"] | Count = "auto"
    """How many completions are decoded at the same time. Results do not depend on it. `auto` is what is fastest on what
    is here, where that can be predicted, and stays what it was first: see docs/planning.md."""
    max_length: Literal["auto"] | Annotated[int, Field(ge=2)] = "auto"
    """Longest prompt and completion together, in tokens; a longer prompt fails, a longer completion is cut.
    `auto` is what the model's context and the memory allow."""
    prefill_tokens: Literal["auto"] | Count = "auto"
    """How many tokens of prompts go through at the same time, about. More suits gathered weights and takes more memory.
    Results do not depend on it. `auto` as of slots."""
    compile_cache: Annotated[Location, Field(examples=["auto", "off", "gs://bucket/programs"])] = "auto"
    """Where compiled programs are kept, so that the next run need not compile them: a directory, or a URL that all
    workers share. `auto` is the user's cache directory (or JAX_COMPILATION_CACHE_DIR), `off` is nowhere. They are
    machine code: only those may write there who may run code on the workers. Results do not depend on it."""
    chip: Literal["auto", "v3", "v4", "v5e", "v5p", "v6e", "tpu7x", "a100", "h100", "h200", "b200"] = "auto"
    """What every worker's devices must be; another chip is refused before anything is loaded. For a plan that was made
    for one. `auto` takes what is there."""
    watchdog_seconds: Literal["auto"] | Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] = "auto"
    """How long one call on the device may take before it is given up as hung and the worker ends, compiling not
    counted. `auto` is 30 times the longest call of its kind so far, and at least ten minutes."""
    hosts: Hosts | None = None
    """For a model larger than the chips of one host: which processes hold it together. See docs/multi-host.md."""

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        chips = math.prod(int(size) for size in re.split(r"[x*]", self.mesh))
        if self.hosts and chips % self.hosts.count:
            yield "mesh", f"{self.mesh} is {chips} chips, which {self.hosts.count} hosts (hosts.count) cannot share"

    def layouts(self) -> dict[str, Any]:
        """Mesh and layouts as the engine takes them; empty for a single chip."""
        if set(self.mesh) <= {"1", "x"} and "11" not in self.mesh:
            return {}
        return {"mesh": self.mesh, "prefill": list(self.prefill.names()), "decode": list(self.decode.names())}


class Limits(Section):
    max_failed_fraction: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Largest share of failed rows with which the finished job still counts as done (exit code 0)."""


def _explain_refused(name: Any) -> Any:
    if isinstance(name, str) and (reason := refused_runner(name)):
        raise PydanticCustomError("refused_runner", "{reason}", {"reason": reason})
    return name


class Runner(Section):
    name: Annotated[Literal["local", "dataflow", "flink", "spark", "portable"], BeforeValidator(_explain_refused)] = (
        "local"
    )
    """Where the job runs. `local` is this process, on this machine's devices; the others take jobs from
    `penstock submit`. See docs/runners.md."""
    workers: Annotated[int, Field(ge=1, le=64)] = 2
    """Shards that a process has open at a time. With two, the batch never drains at a shard's end."""
    dataflow: Dataflow | None = None
    """Google Cloud Dataflow. See docs/dataflow.md."""
    portable: Portable | None = None
    """Any runner that takes jobs at an endpoint of Beam's job API."""
    flink: Flink | None = None
    """Apache Flink."""
    spark: Spark | None = None
    """Apache Spark."""


class Job(Section):
    """A batch inference job: which rows, which model, what is asked of it, and where the answers go."""

    model_config = ConfigDict(title="Penstock job")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", examples=["capitals"])]
    """What the job is called, in reports: letters, digits and . _ -"""
    task: Literal["generate", "score"]
    """`generate` continues each prompt; `score` measures how likely given text is."""
    model: Model
    """Which model."""
    input: Input
    """Which rows."""
    prompt: Prompt | None = None
    """What the model is given. For `score` it is the context of the continuations, or, without any, the text
    itself."""
    sampling: Sampling = Sampling()
    """How tokens are chosen, with the names and meanings of vLLM's SamplingParams. Only for `generate`."""
    score: Score | None = None
    """What is scored. Only for `score`."""
    output: Output
    """Where the results go."""
    engine: EngineOptions = EngineOptions()
    """How the engine is shaped."""
    limits: Limits = Limits()
    """When a finished job counts as failed."""
    runner: Runner = Runner()
    """Where the job runs."""

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        if self.input.is_openai_batch:
            if self.task == "score":
                yield "input.format", "requests of openai-batch ask for completions; use task generate"
            elif self.prompt:
                yield "prompt", "leave it out: requests of openai-batch bring their own messages or prompt"
        elif self.task == "generate" and self.prompt is None:
            yield "prompt", "is missing: task generate continues a prompt; give template or messages"
        if self.task == "score":
            yield from self._score_contradictions()
        for column in sorted(set(self.output.keep_columns) & output_columns(self.task)):
            yield (
                "output.keep_columns",
                f"{column!r} is a column of the output itself; rename it or leave it out",
            )

    def _score_contradictions(self) -> Iterator[tuple[str, str]]:
        if self._given("sampling"):
            yield "sampling", "task score samples nothing; leave sampling out"
        continuations = self.score.continuations if self.score else None
        if self.score and self.score.text:
            if self.prompt:
                yield "score.text", "is scored without a prompt; drop one of them, or use score.continuations"
        elif not self.prompt and not continuations:
            yield "score", "nothing to score: give prompt and score.continuations, or score.text"
        elif not self.prompt and continuations and len(continuations) > 1:
            yield "prompt", "is missing: it is the context that the continuations follow"

    def notes(self) -> Iterator[str]:
        """What a user should know about a job that is right: nothing is ignored in silence."""
        if self.task == "generate" and self.score:
            yield "task is generate, so the section score is not used"

    def settings(self) -> dict[str, JsonValue]:
        """All that bears on a row's result, defaults written out. Paths are not in it: fingerprints and input lists
        stand for them. Neither are slots, prefill_tokens, compile_cache, hosts, limits and runner, which change how
        fast and not what.
        """
        prompt = self.prompt.model_dump(mode="json", exclude_none=True) if self.prompt else None
        if self.input.is_openai_batch:
            prompt = {OPENAI_BATCH: self.input.endpoint}
        chosen: dict[str, JsonValue] = {}  # what plans did not know at first is in them only where it is asked for
        if self.model.weights != "auto" or self.model.kv != "auto":
            chosen |= {"weights": self.model.weights, "kv": self.model.kv}
        if layouts := self.engine.layouts():
            chosen["layouts"] = layouts
        return chosen | {
            "task": self.task,
            "dtype": self.model.dtype,
            "id": self.input.id_column,
            "prompt": prompt,
            "sampling": self.sampling.settings() if self.task == "generate" else None,
            "score": self.score.model_dump(mode="json") if self.task == "score" and self.score else None,
            "include_prompt": self.output.include_prompt,
            "max_length": self.engine.max_length,
        }


def output_columns(task: str) -> set[str]:
    """The columns that the output of a task has by itself."""
    from schemas.completion import completion_schema
    from schemas.score import score_schema

    return set((completion_schema() if task == "generate" else score_schema()).names)
