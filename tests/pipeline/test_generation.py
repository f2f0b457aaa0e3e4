"""Prompts of a row, and what is written down of the samples that an engine returns for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine import Generation
from pipeline.errors import JobError, PromptError
from pipeline.generation import Generate
from pipeline.tokenizer import Tokenizer
from tests.fake_job import settings
from tests.pipeline import tiny_tokenizers

BOS, EOS = 0, 1


def row_of(task: Generate, sample: Generation) -> dict:
    (row,) = task.rows(task.prepare({"question": "?"}), [[sample]])
    return row


def sample_of(tokenizer: Tokenizer, text: str, **changes) -> Generation:
    ids = tuple(tokenizer.encode(text, add_special_tokens=False))
    sample = Generation(token_ids=ids, logprobs=(-0.5,) * len(ids), finish_reason="length")
    return replace(sample, **changes)


def test_a_template_is_tokenised_with_special_tokens(byte_level: Tokenizer) -> None:
    prompt = Generate(settings(), byte_level).prepare({"question": "why?"})
    assert prompt.text == "Q: why?\nA:"
    assert prompt.token_ids == (BOS, *byte_level.encode(prompt.text, add_special_tokens=False))
    assert prompt.token_count == len(prompt.token_ids)
    assert prompt.context_tokens == len(prompt.token_ids) + 1


def test_a_chat_template_writes_its_special_tokens_itself(byte_level: Tokenizer) -> None:
    asked = settings(prompt={"messages": [{"role": "user", "content": "{{ question }}"}]})
    prompt = Generate(asked, byte_level).prepare({"question": "why?"})
    assert prompt.text == "<s><|user|>why?<|end|><|assistant|>"
    assert prompt.token_ids.count(BOS) == 1


def test_a_chat_without_a_chat_template_is_refused(tmp_path) -> None:
    tokenizer = Tokenizer.load(str(tiny_tokenizers.save_byte_fallback(tmp_path)))
    with pytest.raises(JobError, match=r"prompt\.messages.*chat template"):
        Generate(settings(prompt={"messages": "conversation"}), tokenizer)


def test_the_columns_are_those_of_the_template(byte_level: Tokenizer) -> None:
    assert Generate(settings(prompt={"template": "{{ a }}{{ b }}"}), byte_level).columns == {"a", "b"}


def test_an_empty_prompt_is_refused(byte_level: Tokenizer) -> None:
    with pytest.raises(PromptError, match="empty"):
        Generate(settings(prompt={"template": "{{ question }}"}), byte_level).prepare({"question": ""})


def test_a_stop_string_that_can_never_appear_is_refused_before_any_row(byte_level: Tokenizer) -> None:
    with pytest.raises(JobError, match="stop string"):
        Generate(settings(stop=["\ufffd"]), byte_level)


def test_a_sample_of_full_length(byte_level: Tokenizer) -> None:
    sample = sample_of(byte_level, "hello world")
    row = row_of(Generate(settings(), byte_level), sample)
    assert (row["text"], row["finish_reason"], row["stop_reason"]) == ("hello world", "length", None)
    assert row["token_ids"] == sample.token_ids
    assert row["completion_token_count"] == len(sample.token_ids)
    assert row["logprobs"] == sample.logprobs
    assert row["cumulative_logprob"] == -0.5 * len(sample.token_ids)
    assert row["top_logprobs"] is None


def test_the_end_of_sequence_is_a_stop_without_a_reason(byte_level: Tokenizer) -> None:
    ids = (*byte_level.encode("hello", add_special_tokens=False), EOS)
    row = row_of(Generate(settings(), byte_level), Generation(ids, (-1.0,) * len(ids), "stop"))
    assert (row["text"], row["finish_reason"], row["stop_reason"]) == ("hello", "stop", None)
    assert row["token_ids"][-1] == EOS


def test_a_stop_token_is_named_and_is_not_in_the_text(byte_level: Tokenizer) -> None:
    ids = tuple(byte_level.encode("hello!", add_special_tokens=False))
    row = row_of(Generate(settings(), byte_level), Generation(ids, (-1.0,) * len(ids), "stop", stop_token=ids[-1]))
    assert (row["text"], row["finish_reason"], row["stop_reason"]) == ("hello", "stop", str(ids[-1]))


@pytest.mark.parametrize("stop_token", [None, 7])
def test_a_stop_string_is_named_and_is_not_in_the_text(byte_level: Tokenizer, stop_token: int | None) -> None:
    """Also where the token that completes it is a stop token."""
    task = Generate(settings(stop=["\n"]), byte_level)
    watch = task.watch(task.prepare({"question": "q"}))
    assert watch is not None
    watcher = watch()
    ids = byte_level.encode("one\ntwo", add_special_tokens=False)
    keep = watcher.feed(ids)
    sample = Generation(tuple(ids[:keep]), (-1.0,) * (keep or 0), "stop", stop_token, watcher=watcher)
    row = row_of(task, sample)
    assert (row["text"], row["finish_reason"], row["stop_reason"]) == ("one", "stop", "\n")


def test_without_stop_strings_nobody_watches(byte_level: Tokenizer) -> None:
    task = Generate(settings(), byte_level)
    assert task.watch(task.prepare({"question": "q"})) is None


def test_samples_are_numbered(byte_level: Tokenizer) -> None:
    task = Generate(settings(n=3), byte_level)
    rows = list(task.rows(task.prepare({"question": "?"}), [[sample_of(byte_level, text) for text in "abc"]]))
    assert [(row["sample_index"], row["text"]) for row in rows] == [(0, "a"), (1, "b"), (2, "c")]


def test_the_sum_of_logprobs_does_not_lose_the_small_ones(byte_level: Tokenizer) -> None:
    sample = sample_of(byte_level, "abc", logprobs=(-1e16, -1.0, -1.0), token_ids=(67, 68, 69))
    assert row_of(Generate(settings(), byte_level), sample)["cumulative_logprob"] == -1e16 - 2


def test_top_logprobs_are_written_per_position(byte_level: Tokenizer) -> None:
    sample = sample_of(byte_level, "a", top_logprobs=(((67, -0.25), (68, -1.5)),))
    row = row_of(Generate(settings(logprobs=2), byte_level), sample)
    assert row["top_logprobs"] == [[{"token_id": 67, "logprob": -0.25}, {"token_id": 68, "logprob": -1.5}]]
