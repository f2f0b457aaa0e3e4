"""The counts and times of a job in words, the same in every report."""

from __future__ import annotations

from schemas.manifest import Summary


def count_words(count: int, what: str) -> str:
    """`1 shard`, `2 shards`."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def failed_words(done: Summary) -> str:
    return f"{done.failed:,} failed ({done.failed_fraction:.2%})" if done.failed else "none failed"


def token_words(done: Summary) -> str:
    counts = [
        (done.prompt_tokens, "of prompts"),
        (done.completion_tokens, "generated"),
        (done.scored_tokens, "scored"),
    ]
    return ", ".join(f"{count:,} {what}" for count, what in counts if count) or "none"


def rate_words(done: Summary, seconds: float) -> str:
    records, tokens = done.ok + done.failed, done.completion_tokens + done.scored_tokens
    return f"{records / seconds:,.1f} rows and {tokens / seconds:,.0f} tokens per second"


def duration(seconds: float) -> str:
    """A length of time in two units at most."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    units = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    first = next(i for i, (count, _) in enumerate(units) if count)
    return " ".join(f"{count} {unit}" for count, unit in units[first : first + 2] if count)


def few_digits(number: float) -> str:
    """Two places behind the point, or two digits of what is small."""
    return f"{number:,.2f}" if number >= 0.1 or not number else f"{number:.2g}"


def printable(text: str) -> str:
    """Text from data or a model, for a terminal that it must not steer: control characters are spelt out."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
