"""What every mapping of the job file has in common: strict, immutable, described, free of contradictions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

CONTRADICTION = "contradiction"
"""Type of the error for fields that are each right and do not go together. Its context lists (field, problem)
pairs."""


class Section(BaseModel):
    """A mapping in the job file. A subclass says in `_contradictions` what its fields may not say together:
    pairs of the field to change, as a dotted path, and what is wrong with it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        yield from ()

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        if problems := list(self._contradictions()):
            raise PydanticCustomError(CONTRADICTION, "fields do not go together", {"problems": problems})
        return self

    def _given(self, field: str) -> bool:
        return field in self.model_fields_set and getattr(self, field) is not None


def sections(model: type[Section], path: str = "") -> Iterator[tuple[str, type[Section]]]:
    """A model and all the models below it, each with its dotted path."""
    yield path, model
    for name, field in model.model_fields.items():
        for kind in _classes(field.annotation):
            if issubclass(kind, Section):
                yield from sections(kind, f"{path}.{name}" if path else name)


def _classes(annotation: Any) -> Iterator[type]:
    """The classes in a type expression: in `tuple[Message, ...] | None`, Message and NoneType."""
    if isinstance(annotation, type) and not get_args(annotation):
        yield annotation
    for part in get_args(annotation):
        yield from _classes(part)
