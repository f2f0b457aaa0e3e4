"""The two kinds of vocabulary file, behind one face: text -> ids, id -> token, tokens -> text.

`tokenizer.json` is run by `tokenizers` as it stands, except that truncation and padding are off. `tokenizer.model` is
run by `sentencepiece`, with what Hugging Face transformers adds around it: special tokens written in the text are those
tokens, and tokens become text by the same decoder, which drops one space from the front of a sequence. Where
transformers and sentencepiece disagree, transformers is followed: no space goes in front of a text that begins with
one, nor, unless `legacy` is set, in front of what follows a special token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import sentencepiece
import tokenizers
from tokenizers import AddedToken, decoders

from .errors import InputError

_SPACE = "▁"  # how SentencePiece writes a space
# Protobuf merges what is appended: this is a ModelProto with normalizer_spec (3) { add_dummy_prefix (3): false }.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


class Vocabulary(Protocol):
    """What a vocabulary file knows."""

    size: int  # one more than the highest id
    special_ids: frozenset[int]  # control tokens; no text of their own
    decoder_kinds: frozenset[str]  # the `tokenizers` decoders that turn tokens into text

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...

    def token(self, token_id: int) -> str | None: ...

    def token_id(self, token: str) -> int | None: ...


class JsonVocabulary:
    """tokenizer.json; `special_tokens` are those that the checkpoint's configuration names besides."""

    def __init__(self, data: bytes, special_tokens: Iterable[str], where: str) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(data)
        except Exception as e:
            version = tokenizers.__version__
            raise InputError(f"{where} is not a tokenizer that `tokenizers` {version} can read: {e}") from e
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        known = [token for token in special_tokens if self._tokenizer.token_to_id(token) is not None]
        self._tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in known])
        added = self._tokenizer.get_added_tokens_decoder()
        self.size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.decoder_kinds = _decoder_kinds(self._tokenizer.decoder)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def token(self, token_id: int) -> str | None:
        return self._tokenizer.id_to_token(token_id)

    def token_id(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)


class SentencePieceVocabulary:
    """tokenizer.model; `settings` is the content of tokenizer_config.json."""

    def __init__(self, data: bytes, settings: Mapping[str, Any], where: str) -> None:
        self._model, own_prefix = _load_sentencepiece(data, where)
        self._add_prefix = bool(settings.get("add_prefix_space", own_prefix))
        self._prefix_after_special = bool(settings.get("legacy", False))
        self._add_bos = bool(settings.get("add_bos_token", True)) and self._model.bos_id() >= 0
        self._add_eos = bool(settings.get("add_eos_token", False)) and self._model.eos_id() >= 0

        pieces = self._model.get_piece_size()
        controls = [i for i in range(pieces) if self._model.is_control(i) or self._model.is_unknown(i)]
        added = {int(i): token for i, token in settings.get("added_tokens_decoder", {}).items()}
        for token in added.values():
            if token.get("lstrip") or token.get("rstrip") or token.get("single_word"):
                name = token["content"]
                raise InputError(f"{where}: added token {name!r} takes spaces along; convert to tokenizer.json")
        self._added = {self._model.id_to_piece(i): i for i in controls} | {t["content"]: i for i, t in added.items()}
        self._added_by_id = {i: token for token, i in self._added.items()}
        longest_first = sorted(self._added, key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(map(re.escape, longest_first))})").split if longest_first else _whole

        named = {"bos": self._model.bos_id(), "eos": self._model.eos_id(), "unk": self._model.unk_id()}
        self.special_tokens = {f"{name}_token": self._model.id_to_piece(i) for name, i in named.items() if i >= 0}
        self.size = max(pieces, *(i + 1 for i in added), 0)
        self.special_ids = frozenset(controls) | {i for i, token in added.items() if token.get("special", True)}
        steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        self._decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if self._add_prefix else steps)
        self.decoder_kinds = _decoder_kinds(self._decoder)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        token_ids = [self._model.bos_id()] if add_special_tokens and self._add_bos else []
        for i, part in enumerate(self._split(text)):
            if i % 2:
                token_ids.append(self._added[part])
            elif part:
                prefix = self._add_prefix and (i == 0 or self._prefix_after_special) and part[0] not in (" ", _SPACE)
                token_ids += self._model.encode(" " + part if prefix else part)
        return [*token_ids, self._model.eos_id()] if add_special_tokens and self._add_eos else token_ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        skipped = self.special_ids if skip_special_tokens else frozenset()
        tokens = (self.token(i) for i in token_ids if i not in skipped)
        return self._decoder.decode([token for token in tokens if token is not None])

    def token(self, token_id: int) -> str | None:
        if token_id in self._added_by_id:
            return self._added_by_id[token_id]
        return self._model.id_to_piece(token_id) if 0 <= token_id < self._model.get_piece_size() else None

    def token_id(self, token: str) -> int | None:
        if token in self._added:
            return self._added[token]
        token_id = self._model.piece_to_id(token)
        return token_id if self._model.id_to_piece(token_id) == token else None


def _load_sentencepiece(data: bytes, where: str) -> tuple[sentencepiece.SentencePieceProcessor, bool]:
    """The model without its dummy prefix, and whether it had one."""
    model = sentencepiece.SentencePieceProcessor()
    try:
        model.LoadFromSerializedProto(data)
        own_prefix = "".join(model.encode("a", out_type=str)).startswith(_SPACE)
        model.LoadFromSerializedProto(data + _NO_DUMMY_PREFIX)
    except Exception as e:
        raise InputError(f"{where} is not a SentencePiece model: {e}; convert the tokenizer to tokenizer.json") from e
    if model.encode(" a") == model.encode("a"):
        raise InputError(f"{where} throws spaces away; convert the tokenizer to tokenizer.json")
    return model, own_prefix


def _whole(text: str) -> list[str]:
    return [text]


def _decoder_kinds(decoder: Any) -> frozenset[str]:
    """The types in a decoder, which is a tree in JSON."""
    kinds = set()
    open_nodes = [json.loads(decoder.__getstate__())] if decoder is not None else []
    while open_nodes:
        node = open_nodes.pop()
        kinds.add(node["type"])
        open_nodes.extend(node.get("decoders", ()))
    return frozenset(kinds - {"Sequence"})
