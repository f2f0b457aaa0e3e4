"""The attributes of a config.json, each asked for by name, so that those nobody asked for can be refused.

An attribute that is ignored by mistake gives a model that answers fluently and wrongly. So every attribute is read and
checked, or compared with the only value we compute, or listed as having no bearing on the result; `finish` refuses the
rest. `null` means not set, as it does to transformers; for a few attributes that is not the same as saying nothing.
"""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from engine.errors import UnsupportedCheckpoint

REQUIRED: Any = object()

_LARGEST = 2**31 - 1  # of any size: the device counts in int32

T = TypeVar("T")


def shown(value: object) -> str:
    """A value for an error message, cut short when it is long or deep."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 60
    return short.repr(value)


class Attributes:
    """One JSON object of a config; `where` and the names of enclosing objects lead every message."""

    def __init__(self, values: Mapping[str, Any], where: str = "config.json", prefix: str = "") -> None:
        self._rest = {name: value for name, value in values.items() if value is not None}
        self._null = frozenset(name for name, value in values.items() if value is None)
        self._where, self._prefix = where, prefix

    def __contains__(self, name: str) -> bool:
        return name in self._rest

    def integer(self, name: str, default: T = REQUIRED, *, at_least: int = 1, at_most: int = _LARGEST) -> int | T:
        value = self._take(name, default)
        if value is default:
            return default
        if type(value) is not int or not at_least <= value <= at_most:
            raise self.wrong(name, value, f"must be a whole number from {at_least} to {at_most}")
        return value

    def number(self, name: str, default: T = REQUIRED) -> float | T:
        """A positive number, as every one in a config is."""
        value = self._take(name, default)
        if value is default:
            return default
        if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:
            raise self.wrong(name, value, "must be a finite number above 0")
        return float(value)

    def boolean(self, name: str, default: T = REQUIRED) -> bool | T:
        value = self._take(name, default)
        if value is not default and type(value) is not bool:
            raise self.wrong(name, value, "must be true or false")
        return value

    def text(self, name: str, default: T = REQUIRED) -> str | T:
        value = self._take(name, default)
        if value is not default and type(value) is not str:
            raise self.wrong(name, value, "must be a string")
        return value

    def choices(self, name: str, options: Sequence[str]) -> list[str] | None:
        """A list in which each is one of the options; None if not set."""
        value = self._take(name, None)
        if value is not None and (type(value) is not list or not all(one in options for one in value)):
            raise self.wrong(name, value, f"must be a list of {' and '.join(map(shown, options))}")
        return value

    def says_null(self, name: str) -> bool:
        """Whether the attribute is there, with the value null."""
        return name in self._null

    def section(self, name: str) -> Attributes | None:
        """A nested object; its own `finish` is the caller's to call."""
        value = self._take(name, None)
        if value is None:
            return None
        if type(value) is not dict:
            raise self.wrong(name, value, "must be an object")
        return Attributes(value, self._where, f"{self._prefix}{name}.")

    def only(self, name: str, *computed: Any) -> None:
        """Absent, or one of the values we compute."""
        value = self._take(name, computed[0])
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in computed):
            raise self.wrong(name, value, f"is not computed here; only {' or '.join(map(shown, computed))} is")

    def disregard(self, names: Iterable[str]) -> None:
        for name in names:
            self._rest.pop(name, None)

    def finish(self) -> None:
        if self._rest:
            listed = ", ".join(
                f"{self._prefix}{name[:80]}={shown(value)}" for name, value in list(self._rest.items())[:5]
            )
            more = f" and {len(self._rest) - 5} more" if len(self._rest) > 5 else ""
            raise UnsupportedCheckpoint(
                f"{self._where} has attributes this engine does not know: {listed}{more}; remove those that do not "
                "change the result"
            )

    def wrong(self, name: str, value: object, rule: str) -> UnsupportedCheckpoint:
        return UnsupportedCheckpoint(f"{self._where}: {self._prefix}{name}={shown(value)} {rule}")

    def _take(self, name: str, default: Any) -> Any:
        if name in self._rest:
            return self._rest.pop(name)
        if default is REQUIRED:
            raise UnsupportedCheckpoint(
                f"{self._where} lacks {self._prefix}{name}; the model cannot be known without it"
            )
        return default
