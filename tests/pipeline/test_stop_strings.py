"""A stop string is found where a search over the whole text finds it, at the same token, however tokens are fed."""

from __future__ import annotations

import functools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import JobError
from pipeline.stop_strings import StopStrings
from pipeline.tokenizer import Tokenizer
from tests.pipeline.tiny_tokenizers import CORPUS

TEXTS = st.text(st.sampled_from(" \nabehoxQ:東京🎉é"), max_size=30) | st.sampled_from(CORPUS)


def naive(tokenizer: Tokenizer, ids: list[int], stops: list[str], min_tokens: int) -> tuple[int, str, str, str] | None:
    """Decode everything after every token, and take the first occurrence that was not there before."""
    seen: set[tuple[int, int, str]] = set()
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:count])
        found = {
            (m.start() + len(stop), m.start(), stop)
            for stop in stops
            for m in re.finditer(f"(?={re.escape(stop)})", text)
        }
        if count > min_tokens and found - seen:
            end, start, stop = min(found - seen)
            return count, stop, text[:start], text[:end]
        seen |= found
    return None


@functools.cache
def byte_tokens(tokenizer: Tokenizer) -> dict[bytes | str, int]:
    return {tokenizer._token_contents.content(i): i for i in range(tokenizer.vocab_size)}


def ids_of_bytes(tokenizer: Tokenizer, data: bytes) -> list[int]:
    return [byte_tokens(tokenizer)[bytes([byte])] for byte in data]


@st.composite
def generations(draw: st.DrawFn, tokenizer: Tokenizer) -> tuple[list[int], list[str]]:
    """Tokens of a text or any tokens at all, and stops of which many occur."""
    ids = draw(
        st.builds(lambda text: tokenizer.encode(text, add_special_tokens=False), TEXTS)
        | st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=25)
        | st.lists(st.binary(max_size=5) | st.sampled_from(["東".encode(), "🎉".encode(), b"ab"]), max_size=5).map(
            lambda pieces: ids_of_bytes(tokenizer, b"".join(pieces))  # characters over several tokens, and broken ones
        )
    )
    text = tokenizer.decode(ids)
    spans = st.tuples(st.integers(0, max(0, len(text) - 1)), st.integers(1, 4)).map(lambda s: text[s[0] : sum(s)])
    stops = draw(
        st.lists(spans | st.text(st.sampled_from(" \naeo東京"), min_size=1, max_size=3), min_size=1, max_size=3)
    )
    return ids, [stop for stop in stops if stop and "\ufffd" not in stop]


def feed_in_chunks(watcher: StopStrings, ids: list[int], sizes: list[int]) -> int | None:
    keep, start = None, 0
    for size in [*sizes, len(ids)]:
        keep = watcher.feed(ids[start : start + size])
        start += size
        if keep is not None:
            break
    return keep


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_equals_a_search_over_the_whole_text_in_any_chunks(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids, stops = data.draw(generations(tokenizer))
    min_tokens = data.draw(st.integers(0, 3))
    include = data.draw(st.booleans())
    expected = naive(tokenizer, ids, stops, min_tokens)

    watcher = StopStrings(tokenizer, stops, include=include, min_tokens=min_tokens)
    keep = feed_in_chunks(watcher, ids, data.draw(st.lists(st.integers(0, 5), max_size=10)))

    if expected is None:
        assert (keep, watcher.matched, watcher.text) == (None, None, tokenizer.decode(ids))
    else:
        count, stop, before, through = expected
        assert (keep, watcher.matched, watcher.text) == (count, stop, through if include else before)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_pushed_text_is_the_decoded_text(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids, _ = data.draw(generations(tokenizer))
    detokenizer = tokenizer.detokenizer()
    pushed = "".join(map(detokenizer.push, ids))
    text = tokenizer.decode(ids)
    if tokenizer.vocabulary.decoder_kinds == {"ByteLevel"}:
        assert pushed + "\ufffd" * detokenizer.unfinished == text
    elif "\ufffd" not in text:
        assert (pushed, detokenizer.unfinished) == (text, False)


def ids_of(tokenizer: Tokenizer, *tokens: str) -> list[int]:
    ids = [tokenizer.vocabulary.token_id(token) for token in tokens]
    assert None not in ids, tokens
    return ids  # type: ignore[return-value]


def test_a_stop_inside_tokens_keeps_the_token_and_cuts_the_text(byte_level: Tokenizer) -> None:
    ids = ids_of(byte_level, "Ġthe", "Ġdog", "a")
    watcher = StopStrings(byte_level, ["e d"])
    assert watcher.feed(ids[:1]) is None
    assert watcher.feed(ids[1:]) == 2
    assert (watcher.text, watcher.matched) == (" th", "e d")
    assert watcher.feed([5, 6]) == 2  # what comes later changes nothing


def test_a_character_of_several_tokens_stops_at_its_last_byte(byte_level: Tokenizer, sentencepiece: Tokenizer) -> None:
    emoji = list("🎉".encode())
    for tokenizer, ids in (
        (byte_level, ids_of(byte_level, "a", "ð", "Ł", "İ", "ī", "b")),
        (sentencepiece, ids_of(sentencepiece, "a", *(f"<0x{byte:02X}>" for byte in emoji), "b")),
    ):
        watcher = StopStrings(tokenizer, ["🎉"])
        assert watcher.feed(ids) == 5
        assert watcher.text == "a"


def test_bytes_after_the_stop_in_its_last_token_are_cut_too(byte_level: Tokenizer) -> None:
    """A token that ends a stop string and begins a character."""
    vocabulary = byte_level.vocabulary
    unfinished = (i for i in range(byte_level.vocab_size) if byte_level.decode([i]).endswith("\ufffd"))
    token = next(i for i in unfinished if (vocabulary.token(i) or "").startswith("Ġæ"))
    watcher = StopStrings(byte_level, [" "])
    assert watcher.feed([*ids_of(byte_level, "a"), token]) == 2
    assert watcher.text == "a"


@pytest.mark.parametrize(
    ("stops", "matched", "text"),
    [
        (["dog", "quick"], "quick", "the "),  # complete first, whatever the order
        (["ick b", "quick b", "k b"], "quick b", "the "),  # complete together: the one that began first
        (["quick brown", "ick"], "ick", "the qu"),  # began later, complete earlier
    ],
)
def test_which_of_several_stops_wins(tokenizer: Tokenizer, stops: list[str], matched: str, text: str) -> None:
    watcher = StopStrings(tokenizer, stops)
    watcher.feed(tokenizer.encode("the quick brown fox", add_special_tokens=False))
    assert (watcher.matched, watcher.text) == (matched, text)


def test_min_tokens_ignores_only_what_is_complete_by_then(byte_level: Tokenizer) -> None:
    ids = ids_of(byte_level, "a", "b", "a", "b", "a")
    assert StopStrings(byte_level, ["ab"], min_tokens=1).feed(ids) == 2
    assert StopStrings(byte_level, ["ab"], min_tokens=2).feed(ids) == 4
    assert StopStrings(byte_level, ["ba"], min_tokens=2).feed(ids) == 3  # begun before, complete after


def test_special_tokens_are_no_text(byte_level: Tokenizer) -> None:
    watcher = StopStrings(byte_level, ["</s>", "ab"])
    assert watcher.feed(ids_of(byte_level, "a", "</s>", "b")) == 3
    assert (watcher.matched, watcher.text) == ("ab", "")


def test_an_unfinished_character_stands_between_its_neighbours(byte_level: Tokenizer, sentencepiece: Tokenizer) -> None:
    for tokenizer in (byte_level, sentencepiece):
        half = ids_of_bytes(tokenizer, "東".encode()[:2])
        ids = [*ids_of(tokenizer, "a"), *half, *ids_of(tokenizer, "b")]
        assert StopStrings(tokenizer, ["ab"]).feed(ids) is None


def test_added_tokens_are_spelled_as_they_are(byte_level: Tokenizer) -> None:
    assert StopStrings(byte_level, ["call the 東"]).feed(ids_of(byte_level, "a", "<call the 東 tool>")) == 2


def test_without_stops_the_text_is_everything(tokenizer: Tokenizer) -> None:
    watcher = StopStrings(tokenizer, [])
    assert watcher.feed(tokenizer.encode("the dog", add_special_tokens=False)) is None
    assert watcher.text == "the dog"


@pytest.mark.parametrize("stop", ["", "a\ufffd"])
def test_stops_that_cannot_be_found_are_refused(byte_level: Tokenizer, stop: str) -> None:
    with pytest.raises(JobError, match="can never be found"):
        StopStrings(byte_level, [stop])


@pytest.mark.parametrize("text", ["\n", "🎉", "東"])
def test_cost_does_not_grow_with_the_text(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """However long a generation is, even one of bytes that never end, each token is decoded once."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    decoded_tokens = 0
    decode = tokenizer.vocabulary.decode

    def counted(token_ids: list[int], *, skip_special_tokens: bool) -> str:
        nonlocal decoded_tokens
        decoded_tokens += len(token_ids)
        return decode(token_ids, skip_special_tokens=skip_special_tokens)

    monkeypatch.setattr(tokenizer.vocabulary, "decode", counted)
    watcher = StopStrings(tokenizer, ["never"])
    watcher.feed(ids * 5000 + ids[-1:] * 5000)
    assert decoded_tokens <= tokenizer.vocab_size + 2 * len(ids)
