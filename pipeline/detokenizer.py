"""Tokens -> text, one token at a time, at a constant cost a token.

A token is not always whole characters: 東 may be three tokens of a byte each. `push` returns the text that a token
makes certain, and holds back the bytes of a character that is not finished. Nothing is ever decoded twice. How bytes
that are no UTF-8 come out is the vocabulary's way, so that the pushed text is that of decoding the whole sequence:

- byte-level vocabularies (GPT-2, Llama 3): every token is bytes; what is not UTF-8 becomes U+FFFD where it stands;
- vocabularies with byte fallback (SentencePiece, Llama 2): tokens are text, and characters without a token are runs
  of one-byte tokens; a run that is not UTF-8 as a whole becomes U+FFFD as a whole, one for each byte.

In the second case characters of a run may have been pushed before the run went wrong; they are not taken back.
"""

from __future__ import annotations

import codecs
import re
from typing import Protocol

from .errors import InputError
from .vocabulary import Vocabulary

REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_TEXT_DECODERS = frozenset({"ByteFallback", "Fuse", "Metaspace", "Replace", "Strip"})
_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer(Protocol):
    """One sequence on its way to text."""

    def push(self, token_id: int) -> str:
        """The text that became certain with this token."""
        ...

    @property
    def unfinished(self) -> bool:
        """Whether bytes of a character are held back; decoding the sequence as it stands ends with U+FFFD for them."""
        ...


class TokenContents:
    """What the tokens of a vocabulary are made of, found out once for each; makes the detokenizers of its sequences."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._contents: dict[int, bytes | str] = {}
        self._anchor: tuple[int, str] | None = None
        self._byte_of: dict[str, int] = {}
        if vocabulary.decoder_kinds == {"ByteLevel"}:
            self._byte_of = _byte_level_alphabet()
        elif not vocabulary.decoder_kinds <= _TEXT_DECODERS:
            kinds = ", ".join(sorted(vocabulary.decoder_kinds))
            raise InputError(f"text cannot be followed token by token with this tokenizer, whose decoder is {kinds}")

    def detokenizer(self) -> Detokenizer:
        """A fresh one, for one sequence."""
        return _ByteLevelDetokenizer(self) if self._byte_of else _FallbackDetokenizer(self)

    def content(self, token_id: int) -> bytes | str:
        """Bytes to be continued, or text that is whole; empty for special tokens and unknown ids."""
        content = self._contents.get(token_id)
        if content is None:
            content = self._contents[token_id] = self._find_content(token_id)
        return content

    def first_text(self, token_id: int) -> str:
        """The text of a token at the start of a sequence, where the vocabulary may drop a space."""
        return self._vocabulary.decode([token_id], skip_special_tokens=True)

    def _find_content(self, token_id: int) -> bytes | str:
        token = self._vocabulary.token(token_id)
        if token is None or token_id in self._vocabulary.special_ids:
            return ""
        if self._byte_of:
            whole_bytes = all(char in self._byte_of for char in token)  # an added token may be spelled as it is
            return bytes(self._byte_of[char] for char in token) if whole_bytes else token.encode()
        if byte := _BYTE_TOKEN.fullmatch(token):
            return bytes.fromhex(byte[1])
        anchor, anchor_text = self._find_anchor()
        return self._vocabulary.decode([anchor, token_id], skip_special_tokens=True).removeprefix(anchor_text)

    def _find_anchor(self) -> tuple[int, str]:
        """A token with text, after which other tokens read as they do inside a sequence."""
        if self._anchor is None:
            texts = ((i, self.first_text(i)) for i in range(self._vocabulary.size))
            self._anchor = next((i, text) for i, text in texts if text and REPLACEMENT not in text)
        return self._anchor


class _ByteLevelDetokenizer:
    def __init__(self, tokens: TokenContents) -> None:
        self._tokens = tokens
        self._utf8 = _Utf8Decoder("replace")

    def push(self, token_id: int) -> str:
        content = self._tokens.content(token_id)
        return self._utf8.decode(content) if isinstance(content, bytes) else ""

    @property
    def unfinished(self) -> bool:
        return bool(self._utf8.getstate()[0])


class _FallbackDetokenizer:
    def __init__(self, tokens: TokenContents) -> None:
        self._tokens = tokens
        self._utf8 = _Utf8Decoder("strict")
        self._run_is_broken = False
        self._at_start = True

    def push(self, token_id: int) -> str:
        content = self._tokens.content(token_id)
        if not content:
            return ""
        text = self._end_run() + content if isinstance(content, str) else self._extend_run(content)
        if self._at_start:
            self._at_start = False
            return text if self.unfinished or self._run_is_broken else self._tokens.first_text(token_id)
        return text

    @property
    def unfinished(self) -> bool:
        return bool(self._utf8.getstate()[0])

    def _extend_run(self, byte: bytes) -> str:
        if not self._run_is_broken:
            try:
                return self._utf8.decode(byte)
            except UnicodeDecodeError:
                self._run_is_broken = True
        return REPLACEMENT

    def _end_run(self) -> str:
        text = REPLACEMENT if self.unfinished and not self._run_is_broken else ""
        self._utf8.reset()
        self._run_is_broken = False
        return text


def _byte_level_alphabet() -> dict[str, int]:
    """The characters that byte-level vocabularies write bytes with: printable ones as they are, others from U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
