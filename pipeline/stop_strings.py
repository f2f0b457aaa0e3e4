"""Stop strings: where in a growing text one of some strings first appears, and how many tokens that takes.

    watcher = StopStrings(tokenizer, ["\\n\\n", "Q:"])
    keep = watcher.feed(new_token_ids)      # None, or the number of tokens to keep; then watcher.text, watcher.matched

The stop string that is complete first wins; of those complete at the same character, the one that began first. It may
begin and end inside tokens. The token that completes it is the last one kept, and the text is cut before the string
(after it with `include`). Every token is looked at once, with as much text before it as a stop string is long, so
neither the answer nor the cost depends on how the tokens are fed.
"""

from __future__ import annotations

from collections.abc import Sequence

from .detokenizer import REPLACEMENT
from .errors import JobError
from .tokenizer import Tokenizer


class StopStrings:
    """Watches one generation. A string that is complete within the first `min_tokens` tokens does not count."""

    def __init__(
        self, tokenizer: Tokenizer, stops: Sequence[str], *, include: bool = False, min_tokens: int = 0
    ) -> None:
        for stop in stops:
            if not stop or REPLACEMENT in stop:
                raise JobError(f"stop string {stop!r} can never be found; it needs characters, and none of them U+FFFD")
        self._tokenizer = tokenizer
        self._detokenizer = tokenizer.detokenizer()
        self._stops = tuple(stops)
        self._include = include
        self._min_tokens = min_tokens
        self._tail_chars = max(map(len, stops), default=1) - 1
        self._tail = ""
        self._token_ids: list[int] = []
        self._cut_chars = 0  # from the end of the text
        self.matched: str | None = None

    def feed(self, token_ids: Sequence[int]) -> int | None:
        """The next tokens, in order; the number of tokens of the whole generation to keep, once that is known."""
        for token_id in token_ids:
            if self.matched is not None:
                break
            self._token_ids.append(token_id)
            self._search(self._detokenizer.push(token_id))
        return None if self.matched is None else len(self._token_ids)

    @property
    def text(self) -> str:
        """The text of the tokens kept, cut at the stop string."""
        text = self._tokenizer.decode(self._token_ids)
        return text[: len(text) - self._cut_chars]

    def _search(self, new_text: str) -> None:
        text = self._tail + new_text
        if len(self._token_ids) > self._min_tokens:
            # A match that ends within the tail was complete before this token.
            starts = ((text.find(stop, max(0, len(self._tail) + 1 - len(stop))), stop) for stop in self._stops)
            matches = [(start + len(stop), start, stop) for start, stop in starts if start >= 0]
            if matches:
                end, start, self.matched = min(matches)
                self._cut_chars = len(text) - (end if self._include else start) + self._detokenizer.unfinished
                return
        self._tail = text[max(0, len(text) - self._tail_chars) :]
