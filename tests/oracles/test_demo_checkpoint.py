"""The demo checkpoint in the hands of transformers: it loads like any published one, and it can add.

What is measured here is what `make demo` has to reach: the same questions through Hugging Face's own generation,
chat template and log-likelihoods.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import jobs.examples.arithmetic as example
from jobs.examples.arithmetic.problems import PROMPT

torch = pytest.importorskip("torch", reason="the oracle needs torch: pip install 'penstock[oracles]'")
transformers = pytest.importorskip(
    "transformers", reason="the oracle needs transformers: pip install 'penstock[oracles]'"
)

HERE = Path(example.__file__).parent
CHECKPOINT = HERE / "checkpoint"
QUESTIONS = 100
LEAST_RIGHT = 95


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return pq.read_table(HERE / "data" / "questions.parquet").to_pylist()[:QUESTIONS]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(CHECKPOINT, padding_side="left")


@pytest.fixture(scope="module")
def model() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()


def generate(model: Any, tokenizer: Any, prompts: list[str], *, add_special_tokens: bool) -> list[str]:
    batch = tokenizer(prompts, add_special_tokens=add_special_tokens, padding=True, return_tensors="pt")
    output = model.generate(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=8, do_sample=False
    )
    return tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def test_it_is_a_small_llama_with_grouped_queries(model: Any) -> None:
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) < 3_000_000


def test_numbers_are_spelt_digit_by_digit(tokenizer: Any) -> None:
    assert tokenizer.convert_ids_to_tokens(tokenizer("A: 185\n")["input_ids"]) == ["<s>", "A", ":", "Ġ1", "8", "5", "Ċ"]
    assert tokenizer.decode(tokenizer("Zoë: 12 €\n")["input_ids"], skip_special_tokens=True) == "Zoë: 12 €\n"


def test_it_answers_plain_questions(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> None:
    prompts = [PROMPT.format(question=row["question"]) for row in rows]
    texts = generate(model, tokenizer, prompts, add_special_tokens=True)
    assert all(text.endswith("\n") for text in texts), "every answer ends its line, then the text"
    assert sum(text.strip() == row["answer"] for text, row in zip(texts, rows, strict=True)) >= LEAST_RIGHT


def test_it_answers_in_a_chat(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> None:
    chats = [[{"role": "user", "content": row["question"]}] for row in rows]
    prompts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    texts = generate(model, tokenizer, prompts, add_special_tokens=False)
    assert sum(text == row["answer"] for text, row in zip(texts, rows, strict=True)) >= LEAST_RIGHT


@torch.no_grad()
def test_the_right_choice_is_the_likeliest(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> None:
    right = 0
    for row in rows:
        context = len(tokenizer(PROMPT.format(question=row["question"]))["input_ids"])
        choices = [PROMPT.format(question=row["question"]) + f" {row[f'choice_{letter}']}" for letter in "abcd"]
        tokens = tokenizer(choices, return_tensors="pt")["input_ids"]  # choices have equally many digits
        logprobs = model(input_ids=tokens).logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])
        right += int(logprobs[:, context - 1 :].sum((1, 2)).argmax()) == row["label"]
    assert right >= LEAST_RIGHT
