"""What a tokenizer takes from a checkpoint's files, and how it cuts texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.errors import InputError, PromptError
from pipeline.tokenizer import Tokenizer
from tests.pipeline import tiny_tokenizers
from tests.pipeline.tiny_tokenizers import CHAT_TEMPLATE, write_json

TEXT = st.text(st.characters(codec="utf-8"), max_size=30)


@given(TEXT)
def test_text_survives_encoding_and_decoding(tokenizer: Tokenizer, text: str) -> None:
    assume(not any(token in text for token in ("<s>", "</s>", "<unk>", "<|end|>")))
    ids = tokenizer.encode("x" + text, add_special_tokens=True)
    expected = text if tokenizer.vocabulary.decoder_kinds == {"ByteLevel"} else text.replace("▁", " ")
    assert tokenizer.decode(ids) == "x" + expected


def test_special_tokens_are_added_when_asked(tokenizer: Tokenizer) -> None:
    plain = tokenizer.encode("the dog", add_special_tokens=False)
    assert tokenizer.encode("the dog", add_special_tokens=True) == [tokenizer.bos_id, *plain]


def test_special_tokens_in_the_text_are_those_tokens(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a</s>", add_special_tokens=False)
    assert ids[-1] == tokenizer.eos_ids[0]
    assert tokenizer.decode(ids) == "a"
    assert tokenizer.decode(ids, skip_special_tokens=False).endswith("</s>")


def test_truncation_in_the_file_is_not_obeyed(byte_level: Tokenizer) -> None:
    assert len(byte_level.encode("a b " * 100, add_special_tokens=False)) >= 200


def test_ids_without_a_token_decode_to_nothing(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([*tokenizer.encode("a", add_special_tokens=False), tokenizer.vocab_size + 7]) == "a"


def test_half_of_a_surrogate_pair_fails_the_row(tokenizer: Tokenizer) -> None:
    with pytest.raises(PromptError, match=r"half of a surrogate pair, '\\ud800', at character 1"):
        tokenizer.encode("a\ud800", add_special_tokens=False)


def test_the_sentencepiece_prefix_space(tmp_path: Path) -> None:
    """In front of a text unless it begins with a space; after a special token only for `legacy` tokenizers."""

    def pieces(text: str, **configuration: Any) -> list[str | None]:
        tokenizer = Tokenizer.load(str(tiny_tokenizers.save_sentencepiece(tmp_path, **configuration)))
        return [tokenizer.vocabulary.token(i) for i in tokenizer.encode(text, add_special_tokens=False)]

    assert pieces("the") == pieces(" the") == ["▁the"]
    assert pieces("  the") == ["▁", "▁the"]
    assert pieces("the</s>the") == ["▁the", "</s>", "t", "h", "e"]
    assert pieces("the</s>the", legacy=True) == ["▁the", "</s>", "▁the"]
    assert pieces("the", add_prefix_space=False) == ["t", "h", "e"]


def test_added_tokens_of_a_sentencepiece_model(tmp_path: Path) -> None:
    token = {"content": "<|im|>", "lstrip": False, "rstrip": False, "single_word": False, "special": False}
    tiny_tokenizers.save_sentencepiece(tmp_path, added_tokens_decoder={"400": token})
    tokenizer = Tokenizer.load(str(tmp_path))
    ids = tokenizer.encode("a<|im|>", add_special_tokens=False)
    assert (ids[-1], tokenizer.vocab_size, tokenizer.decode(ids)) == (400, 401, "a<|im|>")

    tiny_tokenizers.save_sentencepiece(tmp_path, added_tokens_decoder={"400": token | {"rstrip": True}})
    with pytest.raises(InputError, match=r"'<\|im\|>' takes spaces along; convert to tokenizer.json"):
        Tokenizer.load(str(tmp_path))


def test_bos_and_eos_of_a_sentencepiece_model_follow_its_configuration(tmp_path: Path) -> None:
    def ends(**configuration: Any) -> tuple[int, int]:
        ids = Tokenizer.load(str(tiny_tokenizers.save_sentencepiece(tmp_path, **configuration))).encode(
            "the dog", add_special_tokens=True
        )
        return ids[0], ids[-1]

    last = ends()[1]
    assert (ends()[0], last == 2) == (1, False)
    assert ends(add_bos_token=False)[0] != 1
    assert ends(add_eos_token=True) == (1, 2)


# --- scoring


def test_spaces_between_context_and_continuation_belong_to_the_continuation(tokenizer: Tokenizer) -> None:
    context, continuation = tokenizer.encode_pair("the quick ", "dog")
    assert context == tokenizer.encode("the quick", add_special_tokens=True)
    assert context + continuation == tokenizer.encode("the quick dog", add_special_tokens=True)
    assert tokenizer.encode_pair("the quick", " dog") == (context, continuation)


def test_an_empty_context_is_the_first_token_of_a_sequence(tokenizer: Tokenizer) -> None:
    context, continuation = tokenizer.encode_pair("", "dog")
    assert context == [tokenizer.bos_id]
    assert continuation == tokenizer.encode("dog", add_special_tokens=False)


def test_a_continuation_that_merges_into_its_context_fails_the_row(byte_level: Tokenizer) -> None:
    with pytest.raises(PromptError, match="'e' has no token of its own"):
        byte_level.encode_pair("th", "e")
    with pytest.raises(PromptError, match="no token of its own"):
        byte_level.encode_pair("the", "")


# --- files


def test_eos_ids_come_from_the_generation_config_first(tmp_path: Path) -> None:
    tiny_tokenizers.save_byte_level(tmp_path)
    assert Tokenizer.load(str(tmp_path)).eos_ids == (1,)
    write_json(tmp_path, "config.json", {"eos_token_id": 5})
    assert Tokenizer.load(str(tmp_path)).eos_ids == (5,)
    write_json(tmp_path, "generation_config.json", {"eos_token_id": [7, 1]})
    assert Tokenizer.load(str(tmp_path)).eos_ids == (7, 1)


def test_chat_template_from_either_place(tmp_path: Path) -> None:
    tiny_tokenizers.save_byte_level(tmp_path)
    assert Tokenizer.load(str(tmp_path)).chat_template == CHAT_TEMPLATE
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    tiny_tokenizers.save_byte_level(tmp_path, chat_template=named)
    assert Tokenizer.load(str(tmp_path)).chat_template == "D"
    tiny_tokenizers.save_byte_level(tmp_path, chat_template=named[:1])
    assert Tokenizer.load(str(tmp_path)).chat_template is None
    (tmp_path / "chat_template.jinja").write_text("F é", encoding="utf-8")
    assert Tokenizer.load(str(tmp_path)).chat_template == "F é"


def test_special_tokens_may_be_objects_or_come_from_their_map(tmp_path: Path) -> None:
    token = {"content": "<|end|>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    tiny_tokenizers.save_byte_level(tmp_path, eos_token=token, bos_token=None, add_bos_token=True)
    write_json(tmp_path, "special_tokens_map.json", {"bos_token": "<s>", "eos_token": "</s>"})
    tokenizer = Tokenizer.load(str(tmp_path))
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "<|end|>"}
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (0, (2,))


def test_tokens_that_the_configuration_names_are_special(tmp_path: Path) -> None:
    tiny_tokenizers.save_byte_level(tmp_path, eos_token="<tool>", pad_token="not in the vocabulary")
    tokenizer = Tokenizer.load(str(tmp_path))
    assert tokenizer.decode(tokenizer.encode("a<tool>b", add_special_tokens=False)) == "ab"
    assert tokenizer.vocabulary.token_id("not in the vocabulary") is None


def test_the_fingerprint_is_that_of_the_files(tmp_path: Path) -> None:
    tiny_tokenizers.save_byte_level(tmp_path)
    before = Tokenizer.load(str(tmp_path)).fingerprint
    (tmp_path / "unrelated.txt").write_text("x")
    assert Tokenizer.load(str(tmp_path)).fingerprint == before
    write_json(tmp_path, "generation_config.json", {"eos_token_id": 7})
    assert Tokenizer.load(str(tmp_path)).fingerprint != before


def test_a_checkpoint_may_be_remote(tmp_path: Path) -> None:
    local = Tokenizer.load(str(tiny_tokenizers.save_byte_level(tmp_path)))
    fsspec.filesystem("memory").put(str(tmp_path), "/tokenizer-test/checkpoint", recursive=True)
    remote = Tokenizer.load("memory://tokenizer-test/checkpoint")
    assert remote.fingerprint == local.fingerprint
    assert remote.encode("the dog", add_special_tokens=True) == local.encode("the dog", add_special_tokens=True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", b"{}", "no tokenizer.json or tokenizer.model in .*, which holds vocab.json; save the tokenizer"),
        ("tokenizer.json", b"{", "tokenizer.json is not a tokenizer that `tokenizers` .* can read"),
        ("tokenizer.model", b"IQ== 0\nIg== 1\n", "tokenizer.model is not a SentencePiece model"),
        ("tokenizer_config.json", b"{", "tokenizer_config.json is not JSON"),
        ("config.json", b"[]", "config.json holds a list, not an object"),
    ],
)
def test_broken_checkpoints_say_which_file(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        Tokenizer.load(str(tmp_path))


def test_a_decoder_that_cannot_be_followed_is_named(tmp_path: Path) -> None:
    tiny_tokenizers.save_byte_level(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    write_json(tmp_path, "tokenizer.json", content)
    with pytest.raises(InputError, match="whose decoder is WordPiece"):
        Tokenizer.load(str(tmp_path)).detokenizer()
