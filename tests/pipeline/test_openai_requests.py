"""Lines of OpenAI's Batch API: what is taken, what is refused and how that is said."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pipeline.errors import PromptError
from pipeline.openai_requests import CHAT, COMPLETIONS, read_request
from tests.fake_job import SAMPLING

HELLO = [{"role": "user", "content": "hello"}]


def chat(**body: Any) -> dict[str, Any]:
    body = {"model": "any", "messages": HELLO, **body}
    return {"custom_id": "a", "method": "POST", "url": CHAT, "body": body}


def completion(**body: Any) -> dict[str, Any]:
    return {"custom_id": "a", "method": "POST", "url": COMPLETIONS, "body": {"prompt": "hello", **body}}


def sampled(values: dict[str, Any]) -> dict[str, Any]:
    """In what the request differs from the job."""
    _, sampling = read_request(values, values["url"], SAMPLING)
    assert sampling.keys() == SAMPLING.keys()
    return {name: value for name, value in sampling.items() if value != SAMPLING[name]}


def test_what_a_body_leaves_out_is_as_the_job_has_it() -> None:
    assert read_request(chat(), CHAT, SAMPLING) == (HELLO, SAMPLING)
    assert read_request(completion(), COMPLETIONS, SAMPLING) == ("hello", SAMPLING)
    assert sampled(chat(temperature=None, seed=None, stop=None, tools=None, frequency_penalty=None)) == {}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"temperature": 0.7, "top_p": 0.9, "min_p": 0.1}, {"temperature": 0.7, "top_p": 0.9, "min_p": 0.1}),
        ({"top_k": 5}, {"top_k": 5}),
        ({"top_k": -1}, {}),
        ({"max_tokens": 3}, {"max_tokens": 3}),
        ({"max_completion_tokens": 3}, {"max_tokens": 3}),
        ({"max_completion_tokens": 3, "max_tokens": 3}, {"max_tokens": 3}),
        ({"n": 4, "seed": 2**63 - 1}, {"n": 4, "seed": 2**63 - 1}),
        ({"stop": "\n"}, {"stop": ["\n"]}),
        ({"stop": ["a", "b"]}, {"stop": ["a", "b"]}),
        ({"stop": ""}, {}),
        ({"ignore_eos": True, "min_tokens": 2}, {"ignore_eos": True, "min_tokens": 2}),
        ({"logprobs": True, "top_logprobs": 5}, {"logprobs": 5}),
        ({"logprobs": True}, {}),
        ({"logprobs": False, "stream": False, "tools": [], "tool_choice": "none", "logit_bias": {}}, {}),
        ({"frequency_penalty": 0.0, "presence_penalty": 0, "response_format": {"type": "text"}}, {}),
        ({"user": "u", "metadata": {"a": 1}, "store": True, "service_tier": "auto"}, {}),
    ],
)
def test_a_body_says_how_it_is_sampled(body: dict[str, Any], expected: dict[str, Any]) -> None:
    assert sampled(chat(**body)) == expected


def test_logprobs_of_a_completion_are_a_number() -> None:
    assert sampled(completion(logprobs=3)) == {"logprobs": 3}
    with pytest.raises(PromptError, match=r"body.top_logprobs: is for chats; say logprobs: N"):
        sampled(completion(top_logprobs=3))


def test_parts_of_text_are_put_together() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    said, _ = read_request(chat(messages=[{"role": "user", "content": parts, "refusal": None}]), CHAT, SAMPLING)
    assert said == [{"role": "user", "content": "ab"}]
    assert read_request(completion(prompt=["one"]), COMPLETIONS, SAMPLING)[0] == "one"


IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (chat() | {"method": "GET"}, "method: must be POST, not 'GET'"),
        (chat() | {"url": "/v1/embeddings"}, "url: '/v1/embeddings', and input.endpoint is /v1/chat/completions"),
        (chat() | {"url": None}, "url: nothing, and"),
        (chat() | {"body": "text"}, "body: must be an object, not 'text'"),
        (chat(messages=None), "body.messages: is missing"),
        (chat(messages=[]), "body.messages: must be a list, at least one long, not a list"),
        (chat(messages=["hi"]), "body.messages[0]: must be an object with a role, not 'hi'"),
        (chat(messages=[{"role": "user"}]), "body.messages[0].content: must be text or a list of parts, not nothing"),
        (chat(messages=IMAGE), "body.messages[0].content: a part is 'image_url'; only text can be read"),
        (
            chat(messages=[{"role": "assistant", "content": "", "tool_calls": [1]}]),
            "body.messages[0].tool_calls: is not supported; leave it out",
        ),
        (chat(temperature="hot"), "body.temperature: must be 0, or from 0.01 to 2.0, not 'hot'"),
        (chat(temperature=1e-30), "body.temperature: must be 0, or from 0.01 to 2.0, not 1e-30"),
        (chat(temperature=True), "body.temperature: must be 0, or from 0.01 to 2.0, not True"),
        (chat(top_p=0), "body.top_p: must be above 0 and at most 1, not 0"),
        (chat(max_tokens=0), "body.max_tokens: must be a whole number from 1 to 2147483647, not 0"),
        (chat(max_tokens=10**30), "body.max_tokens: must be a whole number"),
        (chat(max_tokens=1.5), "body.max_tokens: must be a whole number"),
        (chat(max_tokens=3, max_completion_tokens=4), "body.max_completion_tokens: is another number than max_tokens"),
        (chat(n=10**6), "body.n: must be a whole number from 1 to 128, not 1000000"),
        (chat(seed=-1), "body.seed: must be a whole number from 0 to"),
        (chat(stop=[1]), "body.stop: must be a text or a list of at most 16, not a list"),
        (chat(logprobs=3), "body.logprobs: must be true or false, not 3"),
        (chat(top_logprobs=3), "body.top_logprobs: needs logprobs: true"),
        (chat(top_logprobs=21, logprobs=True), "body.top_logprobs: must be a whole number from 0 to 20, not 21"),
        (chat(frequency_penalty=0.5), "body.frequency_penalty: 0.5 is not supported; leave it out"),
        (chat(stream=True), "body.stream: True is not supported; leave it out"),
        (chat(tools=[{"type": "function"}]), "body.tools: a list is not supported; leave it out"),
        (
            chat(response_format={"type": "json_object"}),
            "body.response_format: an object is not supported; leave it out",
        ),
        (chat(temprature=1), "body.temprature: is not known; leave it out"),
        (completion(prompt=[1, 2]), "body.prompt: must be one text, not a list; write several as several lines"),
        (completion(messages=HELLO), "body.messages: is not known; leave it out"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(values: dict[str, Any], problem: str) -> None:
    endpoint = COMPLETIONS if values["url"] == COMPLETIONS else CHAT
    with pytest.raises(PromptError, match=re.escape(problem)):
        read_request(values, endpoint, SAMPLING)
