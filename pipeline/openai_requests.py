"""The request files of OpenAI's Batch API: what one line asks for.

    {"custom_id": ID, "method": "POST", "url": "/v1/chat/completions", "body": {"model": M, "messages": [...], ...}}
    {"custom_id": ID, "method": "POST", "url": "/v1/completions", "body": {"model": M, "prompt": TEXT, ...}}

A body says how its own completion is sampled; what it leaves out, or says is null, is as the job has it. A field that
asks for what cannot be done fails its row with the field's name, and so does one that nobody knows: nothing that bears
on a result is passed over. `model` is the client's name for the one that the job names by its checkpoint.
Reference: platform.openai.com/docs/api-reference/batch/request-input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from .errors import PromptError

OPENAI_BATCH = "openai_batch"
"""In the `prompt` of a plan, beside `template` and `messages`: the requests say it, and here is their endpoint."""
CHAT, COMPLETIONS = ("/v1/chat/completions", "/v1/completions")
COLUMNS = frozenset({"method", "url", "body"})

LARGEST_INT = 2**31 - 1
LARGEST_SEED = 2**63 - 1
LEAST_TEMPERATURE, LARGEST_TEMPERATURE = 0.01, 2.0
MOST_SAMPLES, MOST_STOPS, MOST_LOGPROBS = 128, 16, 20

_CLIENTS = frozenset({"model", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"})
"""For whoever serves and bills requests; they bear on no result."""
_SAMPLING = frozenset(
    {"temperature", "top_p", "top_k", "min_p", "n", "seed", "stop", "min_tokens", "ignore_eos", "max_tokens"}
    | {"max_completion_tokens", "logprobs", "top_logprobs"}
)
_NOTHING_ASKED: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "stream": (False,),
    "suffix": ("",),
    "tool_choice": ("none",),
    "tools": ([],),
}
"""What is not supported -> the values with which it asks for nothing."""


def read_request(values: Mapping[str, Any], endpoint: str, job: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The messages or the text of a request, and how it is sampled; PromptError says why that cannot be done.

    `job` is the job's own `sampling`, as plans have it.
    """
    if values.get("method") != "POST":
        raise PromptError(f"method: must be POST, not {_shown(values.get('method'))}")
    if values.get("url") != endpoint:
        raise PromptError(f"url: {_shown(values.get('url'))}, and input.endpoint is {endpoint}: a batch has one")
    body = values.get("body")
    if not isinstance(body, Mapping):
        raise PromptError(f"body: must be an object, not {_shown(body)}")
    body = {name: value for name, value in body.items() if value is not None}
    asked = "messages" if endpoint == CHAT else "prompt"
    _refuse_unsupported(body, {asked})
    if asked not in body:
        raise PromptError(f"body.{asked}: is missing")
    said = _messages(body[asked]) if endpoint == CHAT else _prompt(body[asked])
    return said, {**job, **_sampling(body, endpoint)}


def _refuse_unsupported(body: Mapping[str, Any], asked: set[str]) -> None:
    for name in sorted(body.keys() - _CLIENTS - _SAMPLING - asked):
        harmless = _NOTHING_ASKED.get(name)
        if harmless is None:
            raise PromptError(f"body.{name[:60]}: is not known; leave it out")
        value = body[name]
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in harmless):
            raise PromptError(f"body.{name}: {_shown(body[name])} is not supported; leave it out")


def _messages(messages: Any) -> list[dict[str, Any]]:
    """As chat templates take them: parts of text are put together; other parts, such as images, cannot be read."""
    if not isinstance(messages, list) or not messages:
        raise PromptError(f"body.messages: must be a list, at least one long, not {_shown(messages)}")
    plain = []
    for i, message in enumerate(messages):
        where = f"body.messages[{i}]"
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise PromptError(f"{where}: must be an object with a role, not {_shown(message)}")
        said = {name: value for name, value in message.items() if value is not None}
        if stray := sorted(said.keys() - {"role", "content", "name"}):
            raise PromptError(f"{where}.{stray[0][:60]}: is not supported; leave it out")
        plain.append({**said, "content": _content(said.get("content"), f"{where}.content")})
    return plain


def _content(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise PromptError(f"{where}: must be text or a list of parts, not {_shown(content)}")
    texts = []
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else part
            raise PromptError(f"{where}: a part is {_shown(kind)}; only text can be read")
        texts.append(part["text"])
    return "".join(texts)


def _prompt(prompt: Any) -> str:
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise PromptError(f"body.prompt: must be one text, not {_shown(prompt)}; write several as several lines")
    return prompt


def _sampling(body: Mapping[str, Any], endpoint: str) -> dict[str, Any]:
    """What the body itself says, in the job's names."""
    found: dict[str, Any] = {}
    for name, take in _TAKEN.items():
        if name in body:
            found[name] = take(body[name], f"body.{name}")
    if (most := body.get("max_completion_tokens")) is not None:
        if found.get("max_tokens", most) != most:
            raise PromptError("body.max_completion_tokens: is another number than max_tokens; leave one of them out")
        found["max_tokens"] = _whole(1)(most, "body.max_completion_tokens")
    if "top_k" in found:
        found["top_k"] = max(0, found["top_k"])  # -1, as 0, is all of them
    return found | _logprobs(body, endpoint)


def _logprobs(body: Mapping[str, Any], endpoint: str) -> dict[str, int]:
    """Chats ask whether, and then how many; plain completions how many. Those of the chosen are always written."""
    count = _whole(0, MOST_LOGPROBS)
    if endpoint == COMPLETIONS:
        if "top_logprobs" in body:
            raise PromptError("body.top_logprobs: is for chats; say logprobs: N")
        return {"logprobs": count(body["logprobs"], "body.logprobs")} if "logprobs" in body else {}
    if "logprobs" in body:
        _truth(body["logprobs"], "body.logprobs")
    if "top_logprobs" not in body:
        return {"logprobs": 0} if "logprobs" in body else {}
    if not body.get("logprobs"):
        raise PromptError("body.top_logprobs: needs logprobs: true")
    return {"logprobs": count(body["top_logprobs"], "body.top_logprobs")}


Take = Callable[[Any, str], Any]
"""Takes a value and where it stands; PromptError if it is none of those that can be."""


def _whole(least: int, most: int = LARGEST_INT) -> Take:
    def take(value: Any, where: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise PromptError(f"{where}: must be a whole number from {least} to {most}, not {_shown(value)}")
        return value

    return take


def _number(is_right: Callable[[float], bool], rule: str) -> Take:
    def take(value: Any, where: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not is_right(value):
            raise PromptError(f"{where}: must be {rule}, not {_shown(value)}")
        return float(value)

    return take


def _truth(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise PromptError(f"{where}: must be true or false, not {_shown(value)}")
    return value


def _stops(value: Any, where: str) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MOST_STOPS or not all(isinstance(stop, str) for stop in stops):
        raise PromptError(f"{where}: must be a text or a list of at most {MOST_STOPS}, not {_shown(value)}")
    return [stop for stop in stops if stop]


_TAKEN: Mapping[str, Take] = {
    "temperature": _number(
        lambda t: t == 0 or LEAST_TEMPERATURE <= t <= LARGEST_TEMPERATURE,
        f"0, or from {LEAST_TEMPERATURE} to {LARGEST_TEMPERATURE}",
    ),
    "top_p": _number(lambda p: 0 < p <= 1, "above 0 and at most 1"),
    "min_p": _number(lambda p: 0 <= p <= 1, "from 0 to 1"),
    "top_k": _whole(-1),
    "max_tokens": _whole(1),
    "min_tokens": _whole(0),
    "n": _whole(1, MOST_SAMPLES),
    "seed": _whole(0, LARGEST_SEED),
    "stop": _stops,
    "ignore_eos": _truth,
}


def _shown(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    kinds = {dict: "an object", list: "a list", type(None): "nothing"}
    text = kinds.get(type(value)) or repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
