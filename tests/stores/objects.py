"""Buckets of whole objects in a directory: an object is there with all its bytes or not at all, also after a kill."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import google_crc32c


class NoSuchBucket(Exception):
    pass


class Taken(Exception):
    """A conditional put found an object there."""


@dataclass(frozen=True)
class Facts:
    key: str
    size_bytes: int
    generation: int
    md5: str
    """In hexadecimal."""
    crc32c: str
    """In base64, big-endian."""
    content_type: str

    @property
    def md5_base64(self) -> str:
        return base64.b64encode(bytes.fromhex(self.md5)).decode()


class Objects:
    """One file for an object: a line of JSON with its facts, then its bytes. A generation is never used twice."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self.puts: list[tuple[str, str]] = []
        """Bucket and key of every put that took effect, in order, since the server began."""

    def make_bucket(self, bucket: str) -> None:
        (self._directory / bucket).mkdir(parents=True, exist_ok=True)

    def has_bucket(self, bucket: str) -> bool:
        return (self._directory / bucket).is_dir()

    def put(self, bucket: str, key: str, data: bytes, *, if_absent: bool, content_type: str = "") -> Facts:
        path = self._path(bucket, key)
        crc32c = base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()
        with self._lock:
            if if_absent and path.exists():
                raise Taken(key)
            facts = Facts(key, len(data), time.time_ns(), hashlib.md5(data).hexdigest(), crc32c, content_type)
            temporary = self._directory / f".{uuid.uuid4().hex}"
            temporary.write_bytes(json.dumps(asdict(facts)).encode() + b"\n" + data)
            os.replace(temporary, path)
            self.puts.append((bucket, key))
        return facts

    def get(self, bucket: str, key: str) -> tuple[Facts, bytes] | None:
        try:
            stored = self._path(bucket, key).read_bytes()
        except FileNotFoundError:
            return None
        facts, _, data = stored.partition(b"\n")
        return Facts(**json.loads(facts)), data

    def delete(self, bucket: str, key: str) -> bool:
        try:
            self._path(bucket, key).unlink()
        except FileNotFoundError:
            return False
        return True

    def list(self, bucket: str, prefix: str = "") -> list[Facts]:
        """In the order of keys."""
        return sorted(self._all(bucket, prefix), key=lambda facts: facts.key)

    def _all(self, bucket: str, prefix: str) -> Iterator[Facts]:
        for path in self._bucket(bucket).iterdir():
            if urllib.parse.unquote(path.name).startswith(prefix):
                try:
                    with path.open("rb") as file:
                        yield Facts(**json.loads(file.readline()))
                except FileNotFoundError:  # deleted meanwhile
                    continue

    def _bucket(self, bucket: str) -> Path:
        if not self.has_bucket(bucket):
            raise NoSuchBucket(bucket)
        return self._directory / bucket

    def _path(self, bucket: str, key: str) -> Path:
        return self._bucket(bucket) / urllib.parse.quote(key, safe="")


PAGE_OBJECTS = 1000
"""The most that one answer lists."""


def page_of(
    found: list[Facts], query: Mapping[str, str], after: str, most: str
) -> tuple[list[tuple[str, Facts | None]], bool]:
    """A page of a listing, and whether there is more: objects, and prefixes that have no facts. `after` and `most` are
    what the protocol calls them."""
    direct, prefixes = _rolled_up(found, query.get("prefix", ""), query.get("delimiter", ""))
    entries = sorted([*((facts.key, facts) for facts in direct), *((name, None) for name in prefixes)])
    entries = [entry for entry in entries if entry[0] > query.get(after, "")]
    page = entries[: min(int(query.get(most, PAGE_OBJECTS)), PAGE_OBJECTS)]
    return page, len(page) < len(entries)


def _rolled_up(found: list[Facts], prefix: str, delimiter: str) -> tuple[list[Facts], list[str]]:
    """A listing as directories: what lies directly below the prefix, and the prefixes of what lies deeper."""
    if not delimiter:
        return found, []
    direct = [facts for facts in found if delimiter not in facts.key[len(prefix) :]]
    deeper = {
        prefix + facts.key[len(prefix) :].split(delimiter)[0] + delimiter
        for facts in found
        if delimiter in facts.key[len(prefix) :]
    }
    return direct, sorted(deeper)
