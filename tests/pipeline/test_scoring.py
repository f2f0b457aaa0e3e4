"""What of a row is scored, and the score columns, against numbers worked out by hand."""

from __future__ import annotations

import json
import math

import pytest

from engine import Score as Answer
from pipeline.errors import PromptError
from pipeline.scoring import Score
from pipeline.tokenizer import Tokenizer
from tests.fake_job import score_settings
from tests.pipeline import tiny_tokenizers

BOS = 0
CONTEXT = {"template": "{{ context }}"}


def choices(*texts: str, **changes) -> dict:
    return score_settings(prompt=CONTEXT, continuations=list(texts), **changes)


def whole(**changes) -> dict:
    return score_settings(prompt=None, text="{{ text }}", **changes)


@pytest.fixture
def without_bos(tmp_path) -> Tokenizer:
    path = tiny_tokenizers.save_byte_level(tmp_path) / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "post_processor": None}))
    return Tokenizer.load(str(tmp_path))


def test_a_continuation_is_scored_behind_its_context(byte_level: Tokenizer) -> None:
    prompt = Score(choices(" world", " test"), byte_level).prepare({"context": "Hello"})
    (first, start), (second, _) = prompt.sequences
    assert first[:start] == second[:start] == (BOS, *byte_level.encode("Hello", add_special_tokens=False))
    assert byte_level.decode(first[start:]) == " world"
    assert byte_level.decode(second[start:]) == " test"
    assert (prompt.text, prompt.token_count, prompt.continuations) == ("Hello", start, (" world", " test"))
    assert prompt.context_tokens == max(len(first), len(second))


def test_spaces_at_the_end_of_the_context_are_scored(byte_level: Tokenizer) -> None:
    spaced = Score(choices("world"), byte_level).prepare({"context": "Hello "})
    assert spaced.sequences == Score(choices(" world"), byte_level).prepare({"context": "Hello"}).sequences
    assert spaced.continuations == ("world",)


def test_a_chat_context_gets_no_second_bos(byte_level: Tokenizer) -> None:
    asked = score_settings(prompt={"messages": [{"role": "user", "content": "{{ context }}"}]}, continuations=["yes"])
    ((tokens, start),) = Score(asked, byte_level).prepare({"context": "Hello"}).sequences
    assert tokens.count(BOS) == 1
    assert byte_level.decode(tokens[start:]) == "yes"


def test_templates_of_continuations_count_among_the_columns(byte_level: Tokenizer) -> None:
    assert Score(choices("{{ a }}", "{{ b }}"), byte_level).columns == {"context", "a", "b"}


def test_an_empty_continuation_is_refused(byte_level: Tokenizer) -> None:
    task = Score(choices("yes", "{{ a }}"), byte_level)
    with pytest.raises(PromptError, match="continuation 1 is empty"):
        task.prepare({"context": "Hello", "a": ""})


def test_choices_are_compared(byte_level: Tokenizer) -> None:
    task = Score(choices("é", "ab", "cd", token_logprobs=True), byte_level)
    answers = [
        Answer((-1.0, -3.0), (True, False)),
        Answer((-0.5, -0.5), (True, True)),
        Answer((-1.0,), (False,)),
    ]
    (row,) = task.rows(task.prepare({"context": "Hello"}), answers)
    assert row == {
        "continuations": ("é", "ab", "cd"),
        "logprob": [-4.0, -1.0, -1.0],
        "token_count": [2, 2, 1],
        "is_greedy": [False, True, False],
        "token_logprobs": [(-1.0, -3.0), (-0.5, -0.5), (-1.0,)],
        "best_index": 1,  # the first of equals
        "logprob_per_token": [-2.0, -0.5, -1.0],
        "logprob_per_byte": [-2.0, -0.5, -0.5],  # é has two bytes in UTF-8
        "perplexity": None,
    }


def test_token_logprobs_are_written_only_on_request(byte_level: Tokenizer) -> None:
    task = Score(choices("ab"), byte_level)
    (row,) = task.rows(task.prepare({"context": "Hello"}), [Answer((-1.0,), (True,))])
    assert row["token_logprobs"] is None


@pytest.mark.parametrize(
    "asked",
    [
        whole(),
        score_settings(prompt={"template": "{{ text }}"}),
        score_settings(prompt=None, continuations=["{{ text }}"]),
    ],
    ids=["score.text", "prompt alone", "a continuation alone"],
)
def test_a_whole_text_is_scored_behind_bos(byte_level: Tokenizer, asked: dict) -> None:
    task = Score(asked, byte_level)
    prompt = task.prepare({"text": "Hello world"})
    ((tokens, start),) = prompt.sequences
    assert (tokens[0], start) == (BOS, 1)
    assert byte_level.decode(tokens[1:]) == "Hello world"
    (row,) = task.rows(prompt, [Answer((-2.0, -4.0), (True, True))])
    assert row["continuations"] == ("Hello world",)
    assert (row["logprob"], row["token_count"], row["is_greedy"]) == ([-6.0], [2], [True])
    assert row["perplexity"] == math.exp(3.0)
    assert row["logprob_per_byte"] == [-6.0 / 11]
    assert row["best_index"] is None


def test_without_bos_the_first_token_is_not_scored(without_bos: Tokenizer) -> None:
    ((tokens, start),) = Score(whole(), without_bos).prepare({"text": "Hello world"}).sequences
    assert start == 1
    assert without_bos.decode(tokens) == "Hello world"


def test_one_token_without_bos_is_refused(without_bos: Tokenizer) -> None:
    with pytest.raises(PromptError, match="nothing to score"):
        Score(whole(), without_bos).prepare({"text": "a"})


def test_an_empty_text_is_refused(byte_level: Tokenizer) -> None:
    with pytest.raises(PromptError, match="nothing to score"):
        Score(whole(), byte_level).prepare({"text": ""})


def test_a_whole_text_is_left_out_with_the_prompts(byte_level: Tokenizer) -> None:
    task = Score(whole(include_prompt=False), byte_level)
    (row,) = task.rows(task.prepare({"text": "Hello"}), [Answer((-1.0,), (True,))])
    assert row["continuations"] is None


def test_a_hopeless_text_has_infinite_perplexity(byte_level: Tokenizer) -> None:
    task = Score(whole(), byte_level)
    (row,) = task.rows(task.prepare({"text": "Hello"}), [Answer((-1e6,), (False,))])
    assert row["perplexity"] == math.inf
