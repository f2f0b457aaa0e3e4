"""Ids and texts equal those of transformers' AutoTokenizer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tokenizer import Tokenizer
from tests.pipeline import tiny_tokenizers
from tests.pipeline.tiny_tokenizers import CORPUS

transformers = pytest.importorskip(
    "transformers", reason="the oracle is transformers (pip install 'penstock[oracles]')"
)

PIECES = [
    "<s>",
    "</s>",
    "<unk>",
    "<|end|>",
    "<tool>",
    "<call the 東 tool>",
    "▁",
    " ",
    "  ",
    "\n",
    "the dog",
    "東京",
    "🎉",
    "\x00",
]
TEXT = st.lists(st.sampled_from(PIECES) | st.text(st.characters(codec="utf-8"), max_size=8), max_size=8).map("".join)
SPECIAL = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
ORDINARY = SPECIAL | {"special": False}
CHECKPOINTS = {
    "byte level": (tiny_tokenizers.save_byte_level, {}),
    "byte level, a named token": (tiny_tokenizers.save_byte_level, {"sep_token": "<tool>"}),
    "byte fallback": (tiny_tokenizers.save_byte_fallback, {}),
    "sentencepiece": (tiny_tokenizers.save_sentencepiece, {}),
    "sentencepiece, legacy": (tiny_tokenizers.save_sentencepiece, {"legacy": True}),
    "sentencepiece, no prefix": (tiny_tokenizers.save_sentencepiece, {"add_prefix_space": False}),
    "sentencepiece, added tokens": (
        tiny_tokenizers.save_sentencepiece,
        {"added_tokens_decoder": {"400": SPECIAL | {"content": "<|end|>"}, "401": ORDINARY | {"content": "<tool>"}}},
    ),
}


@pytest.fixture(scope="module", params=CHECKPOINTS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Tokenizer, Any]]:
    """Ours and theirs, of one checkpoint."""
    save, configuration = CHECKPOINTS[request.param]
    directory: Path = save(tmp_path_factory.mktemp("checkpoint"), **configuration)
    with pytest.MonkeyPatch.context() as patch:
        # sentencepiece's protobuf module may be newer than the protobuf installed; transformers ships one that is not.
        import sentencepiece
        from transformers.utils import sentencepiece_model_pb2_new

        patch.setitem(sys.modules, "sentencepiece.sentencepiece_model_pb2", sentencepiece_model_pb2_new)
        patch.setattr(sentencepiece, "sentencepiece_model_pb2", sentencepiece_model_pb2_new, raising=False)
        yield Tokenizer.load(str(directory)), transformers.AutoTokenizer.from_pretrained(directory)


@settings(max_examples=300, deadline=None)
@given(TEXT | st.sampled_from(CORPUS), st.booleans())
def test_encoding(pair: tuple[Tokenizer, Any], text: str, add_special_tokens: bool) -> None:
    ours, theirs = pair
    expected = theirs.encode(text, add_special_tokens=add_special_tokens)
    assert ours.encode(text, add_special_tokens=add_special_tokens) == expected


@settings(max_examples=300, deadline=None)
@given(st.data(), st.booleans())
def test_decoding(pair: tuple[Tokenizer, Any], data: st.DataObject, skip_special_tokens: bool) -> None:
    ours, theirs = pair
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size - 1), max_size=12))
    expected = theirs.decode(ids, skip_special_tokens=skip_special_tokens)
    assert ours.decode(ids, skip_special_tokens=skip_special_tokens) == expected


def test_vocabulary_and_special_tokens(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    assert ours.vocab_size == len(theirs)
    assert ours.special_tokens == theirs.special_tokens_map
    assert ours.bos_id == theirs.bos_token_id
