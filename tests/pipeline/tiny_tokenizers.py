"""Tokenizers trained on the spot, in the files of a checkpoint: byte-level (Llama 3) and SentencePiece (Llama 2)."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = (
    "the quick brown fox jumps over the lazy dog, and the dog sleeps on",
    "Hello world, this is a test. Question: what is this? Answer: a test.",
    "def f(x):\n    return x + 1\n\n\nQ: two  spaces\n\nA: and   three",
    "Zürich naïve café 東京 は 晴れ 東京 です",
    "1234567890 3.14159 <|not a token|>",
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|{{ message.role }}|>{{ message['content'] | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def save_byte_level(directory: Path, **configuration: Any) -> Path:
    """tokenizer.json of a byte-level BPE with bos <s>, eos </s>, a special <|end|> and two ordinary added tokens."""
    (directory / "tokenizer.json").write_text(_byte_level())
    named = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": CHAT_TEMPLATE}
    write_json(
        directory, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **named, **configuration}
    )
    return directory


def save_byte_fallback(directory: Path) -> Path:
    """tokenizer.json of a BPE with byte fallback, its prefix space and its decoder as Llama 2's."""
    (directory / "tokenizer.json").write_text(_byte_fallback())
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(directory, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **named})
    return directory


def save_sentencepiece(directory: Path, **configuration: Any) -> Path:
    """tokenizer.model of a SentencePiece BPE with byte fallback, trained as Llama 2's was."""
    (directory / "tokenizer.model").write_bytes(_sentencepiece())
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": False, **configuration}
    write_json(directory, "tokenizer_config.json", settings)
    return directory


def write_json(directory: Path, name: str, content: Any) -> None:
    (directory / name).write_text(json.dumps(content))


@functools.cache
def _byte_level() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 10, trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ("<tool>", "<call the 東 tool>")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.enable_truncation(8)  # as some published files carry it; no reader may obey it
    return tokenizer.to_str()


@functools.cache
def _byte_fallback() -> str:
    special = ["<unk>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # words while training, none afterwards
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
        limit_alphabet=40,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 10, trainer)
    content = json.loads(tokenizer.to_str())
    content["pre_tokenizer"] = None
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in special]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer.to_str()


@functools.cache
def _sentencepiece() -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 10),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        minloglevel=2,
    )
    return model.getvalue()
