"""A document that may lie beside the results of a job."""

from __future__ import annotations

from typing import TypeVar

from schemas.documents import Document, DocumentError

from . import storage
from .errors import OutputError

D = TypeVar("D", bound=Document)


def read_stored(kind: type[D], url: str, *, limit_bytes: int, remedy: str = "") -> D | None:
    """None where there is no such file; OutputError for what is no `kind`, with the way out."""
    try:
        return kind.from_json(storage.read_bytes(url, limit_bytes=limit_bytes))
    except FileNotFoundError:
        return None
    except DocumentError as error:
        raise OutputError(f"{url} cannot be used: {error}{remedy}") from error
