"""Damaged files of every kind: cut, spliced, overwritten. Nothing but the announced errors comes out."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.targets import TARGETS

DAMAGED = 120
"""Files for each parser; `python -m bench.fuzz` tries many more."""
_INTERESTING = (
    b"",
    b"\0",
    b"\xff",
    b"\n",
    b'"',
    b"{",
    b"[",
    b"}",
    b"-1",
    b"9" * 30,
    b"null",
    b"\xf0\x9f\x92\xa9",
    b"a: ",
)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A few changes of one kind each, at random places."""
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randint(0, len(data)), rng.choice((1, 1, 2, 4, 8, 64, 1000))
        piece = data[at : at + length]
        match rng.randrange(6):
            case 0:
                data = data[:at]
            case 1:
                data = data[:at] + data[at + length :]
            case 2:
                data = data[:at] + rng.choice(_INTERESTING) + data[at + rng.randint(0, 1) :]
            case 3:
                data = data[:at] + piece * rng.choice((2, 3, 50)) + data[at + length :]
            case 4:
                data = data[:at] + bytes(byte ^ (1 << rng.randrange(8)) for byte in piece) + data[at + length :]
            case 5:
                data = data[:at] + rng.randbytes(len(piece)) + data[at + length :]
    return data


@pytest.mark.parametrize("name", TARGETS)
def test_whole_files_are_accepted_and_damaged_ones_are_refused_by_name(name: str) -> None:
    target, rng = TARGETS[name], random.Random(name)
    seeds = target.seeds()
    assert any(target.check(seed) for seed in seeds), "no seed is right: the target tests nothing"
    for _ in range(DAMAGED):
        data = damaged(rng.choice(seeds), rng)
        try:
            target.check(data)
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error}, for {data[:300]!r}") from error
    for data in (b"", b"\0" * 100, b"{" * 5000, b"[" * 5000, b"\xff" * 300, b"9" * 5000):
        target.check(data)
