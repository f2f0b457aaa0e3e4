"""Frozen dataclasses as JSON documents, read strictly.

A key that is missing, unknown or of the wrong type is an error that names it: a document is only ever
written by us, so anything else means damage, a hand edit or another version, and none of these may be
guessed around.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any, ClassVar, Self, TypeVar

T = TypeVar("T")


class DocumentError(ValueError):
    """A JSON document is not what its type says; the message names the key."""


class NewerVersion(DocumentError):
    """It is as a later Penstock wrote it, and nothing is wrong with it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
    """A versioned JSON document: one line per key, and one line per element of a list."""

    LATEST: ClassVar[int]
    version: int

    def to_json(self) -> bytes:
        lines = []
        for field in dataclasses.fields(self):
            value = _plain(getattr(self, field.name))
            if isinstance(value, list) and value:
                text = "[\n" + ",\n".join(f"  {_dump(element)}" for element in value) + "\n ]"
            else:
                text = _dump(value)
            lines.append(f" {_dump(field.name)}: {text}")
        return ("{\n" + ",\n".join(lines) + "\n}\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """The document in `data`; DocumentError names a wrong key, or a newer Penstock as the writer."""
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as e:
            raise DocumentError(f"it is not whole JSON: {e}") from e
        version = value.get("version") if isinstance(value, dict) else None
        if type(version) is int and version > cls.LATEST:
            raise NewerVersion(
                f"it was written by a newer Penstock (version {version}, this one reads up to {cls.LATEST}); upgrade"
            )
        if type(version) is not int or version != cls.LATEST:
            raise DocumentError(f"it has version {version!r}, not {cls.LATEST}")
        return decode(cls, value)


def decode(kind: type[T], value: Any, where: str = "") -> T:
    """`value` from JSON as the dataclass `kind`, every key checked."""
    if not isinstance(value, dict):
        raise DocumentError(f"{where or 'the document'} must be an object, not {value!r:.80}")
    hints = typing.get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(typing.cast(Any, kind))}
    for problem, keys in (("unknown", value.keys() - names), ("missing", names - value.keys())):
        if keys:
            raise DocumentError(f"{problem} key {', '.join(repr(where + key) for key in sorted(keys))}")
    return kind(**{name: _decode(hints[name], value[name], where + name) for name in names})


def _decode(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return decode(typing.cast(type, hint), value, where + ".")
    if origin in (types.UnionType, typing.Union):
        if any(isinstance(value, option) and type(value) is not bool for option in arguments):
            return value
    elif origin is tuple and isinstance(value, list):
        if arguments[-1] is Ellipsis:
            return tuple(_decode(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
        if len(arguments) == len(value):
            pairs = enumerate(zip(arguments, value, strict=True))
            return tuple(_decode(argument, v, f"{where}[{i}]") for i, (argument, v) in pairs)
    elif origin is dict and isinstance(value, dict):
        return {key: _decode(arguments[1], v, f"{where}.{key}") for key, v in value.items()}
    elif origin is None and (type(value) is hint or (hint is float and type(value) is int)):
        return value
    raise DocumentError(f"{where!r} must be {getattr(hint, '__name__', hint)}, not {value!r:.80}")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(element) for element in value]
    return value


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
