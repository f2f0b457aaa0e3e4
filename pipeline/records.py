"""Who a record is: its id, the 64-bit identity its random keys come from, and the hash of what it holds.

None of these depend on the shard, the worker or the process, so a record has one result wherever it is
computed.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import hashlib
import json
import uuid
from collections.abc import Mapping
from typing import Any


def record_hash(record_id: str) -> int:
    """The unsigned 64-bit identity of a record: BLAKE2b of its id as UTF-8."""
    digest = hashlib.blake2b(record_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def default_record_id(source_file: str, source_row: int) -> str:
    """The id of a record that brings none of its own."""
    return f"{source_file}:{source_row}"


def content_hash(values: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of `values`, in hexadecimal: equal for equal values in any key order."""
    return hashlib.sha256(canonical_json(values).encode("utf-8", "surrogatepass")).hexdigest()


def canonical_json(value: Any) -> str:
    """One JSON text per value: keys sorted, no spaces, characters unescaped; dates and bytes as strings."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_as_json)


def json_line(values: Mapping[str, Any]) -> str:
    """A line of JSON for people: keys in their order; dates and bytes as in `canonical_json`."""
    return json.dumps(values, ensure_ascii=False, default=_as_json) + "\n"


def _as_json(value: Any) -> Any:
    """The JSON form of the non-JSON values that Parquet and TFDS rows hold."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, decimal.Decimal | uuid.UUID):
        return str(value)
    if hasattr(value, "tolist"):  # NumPy arrays and scalars
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} has no JSON form: {value!r:.80}")
