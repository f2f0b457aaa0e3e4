"""A checkpoint's tokenizer: its vocabulary, its special tokens, its chat template and the tokens that end a generation.

    tokenizer = Tokenizer.load("gs://bucket/checkpoint")
    tokenizer.decode(tokenizer.encode("Hello", add_special_tokens=True))

Ids and texts are those of Hugging Face transformers' AutoTokenizer. The text of a prompt template is encoded with
special tokens; that of a chat template without, because it writes its own. Decoding drops the space in front of a
sequence if the vocabulary puts one there, and nothing else: no "clean-up" of spaces before punctuation.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from . import storage
from .detokenizer import Detokenizer, TokenContents
from .errors import InputError, PromptError
from .vocabulary import JsonVocabulary, SentencePieceVocabulary, Vocabulary

_VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model")
_SETTINGS_FILES = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json")
_CHAT_TEMPLATE_FILE = "chat_template.jinja"


class Tokenizer:
    """Text and token ids of one checkpoint. Safe to share between threads."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        special_tokens: Mapping[str, str],
        eos_ids: Sequence[int],
        chat_template: str | None,
        fingerprint: str,
    ) -> None:
        self.vocabulary = vocabulary
        self.special_tokens = dict(special_tokens)  # bos_token, eos_token, ...: what chat templates know them by
        self.eos_ids = tuple(eos_ids)
        self.chat_template = chat_template
        self.fingerprint = fingerprint

    @classmethod
    def load(cls, checkpoint: str) -> Tokenizer:
        """Read the tokenizer's files from a checkpoint directory, local or remote."""
        files = {name: _read(checkpoint, name) for name in (*_SETTINGS_FILES, _CHAT_TEMPLATE_FILE)}
        settings = {name: _parse(checkpoint, name, files[name]) for name in _SETTINGS_FILES}
        configuration = settings["tokenizer_config.json"]
        special_tokens = _special_tokens(settings["special_tokens_map.json"]) | _special_tokens(configuration)

        present = [name for name in _VOCABULARY_FILES if storage.exists(storage.join(checkpoint, name))]
        if not present:
            found = ", ".join(storage.list_names(checkpoint)[:12]) or "nothing"
            raise InputError(
                f"no {' or '.join(_VOCABULARY_FILES)} in {checkpoint}, which holds {found}; save the tokenizer there"
                " with transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
            )
        vocabulary_file = present[0]
        where = storage.join(checkpoint, vocabulary_file)
        files[vocabulary_file] = data = storage.read_bytes(where)
        if vocabulary_file == "tokenizer.json":
            vocabulary = JsonVocabulary(data, special_tokens.values(), where)
        else:
            vocabulary = SentencePieceVocabulary(data, configuration, where)
            special_tokens = vocabulary.special_tokens | special_tokens

        eos_ids = _eos_ids(settings["generation_config.json"]) or _eos_ids(settings["config.json"])
        if not eos_ids and (eos_id := vocabulary.token_id(special_tokens.get("eos_token", ""))) is not None:
            eos_ids = (eos_id,)
        template_file = files[_CHAT_TEMPLATE_FILE]
        return cls(
            vocabulary,
            special_tokens=special_tokens,
            eos_ids=eos_ids,
            chat_template=template_file.decode() if template_file else _chat_template(configuration),
            fingerprint=_fingerprint(files),
        )

    @property
    def vocab_size(self) -> int:
        """One more than the highest token id."""
        return self.vocabulary.size

    @property
    def bos_id(self) -> int | None:
        return self.vocabulary.token_id(self.special_tokens.get("bos_token", ""))

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as e:
            raise PromptError(
                f"the text is not Unicode: half of a surrogate pair, {text[e.start]!r}, at character {e.start}"
            ) from e
        return self.vocabulary.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self.vocabulary.decode(token_ids, skip_special_tokens=skip_special_tokens)

    @functools.cached_property
    def _token_contents(self) -> TokenContents:
        return TokenContents(self.vocabulary)

    def detokenizer(self) -> Detokenizer:
        """Follows one sequence to text, token by token."""
        return self._token_contents.detokenizer()

    def encode_pair(
        self, context: str, continuation: str, *, add_special_tokens: bool = True
    ) -> tuple[list[int], list[int]]:
        """A context and what follows it, for scoring, cut as lm-evaluation-harness does.

        Spaces at the end of the context belong to the continuation, because tokens begin with their space. The
        continuation is what the ids of the whole text have beyond the number of the context's. An empty context is the
        bos (or eos) token.
        """
        stripped = context.rstrip()
        context, continuation = stripped, context[len(stripped) :] + continuation
        if context:
            context_ids = self.encode(context, add_special_tokens=add_special_tokens)
            whole_ids = self.encode(context + continuation, add_special_tokens=add_special_tokens)
            continuation_ids = whole_ids[len(context_ids) :]
        else:
            first_ids = [i for i in (self.bos_id, *self.eos_ids) if i is not None]
            if not first_ids:
                raise PromptError("the context is empty, and the tokenizer has no bos or eos token to stand in for it")
            context_ids = first_ids[:1]
            continuation_ids = self.encode(continuation, add_special_tokens=False)
        if not continuation_ids:
            raise PromptError(f"the continuation {continuation[:60]!r} has no token of its own after this context")
        return context_ids, continuation_ids


def _read(checkpoint: str, name: str) -> bytes | None:
    try:
        return storage.read_bytes(storage.join(checkpoint, name))
    except FileNotFoundError:
        return None


def _parse(checkpoint: str, name: str, data: bytes | None) -> dict[str, Any]:
    try:
        content = json.loads(data) if data is not None else {}
    except (ValueError, RecursionError) as e:
        raise InputError(f"{storage.join(checkpoint, name)} is not JSON: {e}") from e
    if not isinstance(content, dict):
        raise InputError(f"{storage.join(checkpoint, name)} holds a {type(content).__name__}, not an object")
    return content


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """The entries `..._token`: strings, or objects with the string as `content`."""
    contents = {key: _content(value) for key, value in settings.items() if key.endswith("_token")}
    return {key: content for key, content in contents.items() if content}


def _content(token: Any) -> str | None:
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _eos_ids(settings: Mapping[str, Any]) -> tuple[int, ...]:
    ids = settings.get("eos_token_id")
    return (ids,) if isinstance(ids, int) else tuple(ids or ())


def _chat_template(configuration: Mapping[str, Any]) -> str | None:
    """A template, or a list of named ones, of which `default` counts."""
    template = configuration.get("chat_template")
    if isinstance(template, list):
        template = next((t.get("template") for t in template if t.get("name") == "default"), None)
    return template


def _fingerprint(files: Mapping[str, bytes | None]) -> str:
    digest = hashlib.sha256()
    for name in sorted(files):
        data = files[name]
        if data is not None:
            digest.update(f"{name}\0{len(data)}\0".encode())
            digest.update(data)
    return digest.hexdigest()
