"""What the engine asks of storage: a callable that opens one file. And JSON documents, read with suspicion."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, NoReturn, Protocol, runtime_checkable

from engine.errors import UnsupportedCheckpoint


@runtime_checkable
class File(Protocol):
    """The part of a binary file that is used: BinaryIO and the files of fsspec have it."""

    def read(self, size: int = -1, /) -> bytes: ...
    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def close(self) -> None: ...
    def __enter__(self) -> File: ...
    def __exit__(self, kind: Any, error: Any, traceback: Any, /) -> Any: ...


Open = Callable[[str], File]
"""Opens a file for reading; FileNotFoundError where there is none."""

LARGEST_DOCUMENT_BYTES = 64 << 20  # an index of a hundred thousand tensors has 10 MB


def open_local(path: str) -> File:
    """The `Open` of plain paths."""
    return open(path, "rb")


def join(checkpoint: str, name: str) -> str:
    """The path or URL of a file in the checkpoint's directory."""
    return f"{checkpoint.rstrip('/')}/{name}"


def open_file(checkpoint: str, name: str, open: Open) -> File | None:
    """The file called `name` in the checkpoint, None if there is none."""
    path = join(checkpoint, name)
    try:
        return open(path)
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise UnsupportedCheckpoint(f"{checkpoint} is a file; give the directory that holds config.json") from error
    except (PermissionError, IsADirectoryError) as error:
        raise UnsupportedCheckpoint(f"{path} cannot be read: {error.strerror or error}") from error


def exists(checkpoint: str, name: str, open: Open) -> bool:
    """Found by opening it: names are tried, directories are never listed."""
    file = open_file(checkpoint, name, open)
    if file is not None:
        file.close()
    return file is not None


def read_document(checkpoint: str, name: str, open: Open) -> dict[str, Any] | None:
    """A JSON object in the checkpoint's directory, None if there is no such file."""
    file = open_file(checkpoint, name, open)
    if file is None:
        return None
    where = join(checkpoint, name)
    with file:
        size_bytes = file.seek(0, os.SEEK_END)
        if size_bytes > LARGEST_DOCUMENT_BYTES:
            raise UnsupportedCheckpoint(f"{where} has {size_bytes} bytes; no such document has so many")
        file.seek(0)
        return parse_object(file.read(size_bytes), where)


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """Strict JSON: one object in UTF-8, no key twice, no NaN."""
    try:
        parsed = json.loads(data.decode("utf-8"), object_pairs_hook=_without_repeats, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UnsupportedCheckpoint(f"{where} is not valid JSON: {_short(error)}") from error
    if not isinstance(parsed, dict):
        raise UnsupportedCheckpoint(f"{where} must be a JSON object; it is a {type(parsed).__name__}")
    return parsed


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {repeated[:80]!r} occurs twice")
    return unique


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _short(error: Exception) -> str:
    return str(error)[:200]
