"""What workers leave beside the results of a job, in `_workers/`.

They are for reading alone, so one that is absent, damaged or of another version is left out, and is no error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline.errors import PenstockError
from pipeline.storage import join, list_names, read_bytes
from schemas.worker import WORKERS_NAME

MOST_WORKERS = 50
_LIMIT_BYTES = 2**20


def read_workers(output: str) -> list[Mapping[str, Any]]:
    """The first of them, by name."""
    try:
        names = [name for name in list_names(join(output, WORKERS_NAME)) if name.endswith(".json")]
    except (PenstockError, OSError):
        return []
    found = (_document(join(output, WORKERS_NAME, name)) for name in names[:MOST_WORKERS])
    return [document for document in found if document is not None]


def number(document: Mapping[str, Any], name: str) -> float | None:
    """A finite number that is not negative, or None."""
    value = document.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < float("inf") else None


def _document(url: str) -> Mapping[str, Any] | None:
    try:
        value = json.loads(read_bytes(url, limit_bytes=_LIMIT_BYTES))
    except (PenstockError, OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
