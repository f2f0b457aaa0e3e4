"""The three kinds of tokenizer that the tests of text run on."""

from __future__ import annotations

import pytest

from pipeline.tokenizer import Tokenizer
from tests.pipeline import tiny_tokenizers

KINDS = {
    "byte level": tiny_tokenizers.save_byte_level,
    "byte fallback": tiny_tokenizers.save_byte_fallback,
    "sentencepiece": tiny_tokenizers.save_sentencepiece,
}


@pytest.fixture(scope="session", params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(str(KINDS[request.param](tmp_path_factory.mktemp("checkpoint"))))


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(str(tiny_tokenizers.save_byte_level(tmp_path_factory.mktemp("checkpoint"))))


@pytest.fixture(scope="session")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(str(tiny_tokenizers.save_sentencepiece(tmp_path_factory.mktemp("checkpoint"))))
