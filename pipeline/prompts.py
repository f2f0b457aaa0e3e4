"""A prompt template: Jinja text over the columns of a row.

    PromptTemplate("Q: {{ question }}\\nA:").render({"question": "Why?"})  ->  "Q: Why?\\nA:"

The text is sent as it is written, trailing newline included. A column that is missing or null is an error that names
it, unless the template provides for it: `{{ hint | default('') }}`, `{% if hint %}`, `is defined`, `is none`. What a
template can reach and cost is bounded (`sandbox`, `budget`), so a row renders or fails, the same way everywhere.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import numpy as np
from jinja2.runtime import StrictUndefined

from .budget import DATA_DEPTH_LIMIT
from .errors import PromptError
from .sandbox import Sandbox, compile_template, render_template
from .template_filters import Null

_SCALARS = (bool, int, float, Decimal, datetime.date, datetime.time, datetime.timedelta)
_NAMED_COLUMNS = 12


class PromptTemplate:
    """A compiled template; `columns` are the names that it takes from a row."""

    def __init__(self, template: str, called: str = "prompt template") -> None:
        self._called = called
        self._template, self.columns = compile_template(_sandbox(), template, called)

    def render(self, values: Mapping[str, Any]) -> str:
        """The prompt of one row; PromptError says why a row has none."""
        return render_template(_sandbox(), self._template, self._variables(values), self._called)

    def _variables(self, values: Mapping[str, Any]) -> dict[str, Any]:
        variables = {}
        for name in self.columns:
            if name in values:
                variables[name] = plain(values[name], f"column {name!r}")
            else:
                variables[name] = StrictUndefined(f"the row has no column {name!r}; it has {_listed(values)}")
        return variables


@functools.cache
def _sandbox() -> Sandbox:
    return Sandbox(undefined=StrictUndefined, null_text=None, keep_trailing_newline=True)


def plain(value: Any, called: str, *, mark_nulls: bool = True, depth: int = 0) -> Any:
    """`value` rebuilt from plain data alone. What has no text, such as null and bytes, is an error once it is used; its
    message says what was `called` so."""
    if depth > DATA_DEPTH_LIMIT:
        raise PromptError(f"{called[:60]}... is nested more than {DATA_DEPTH_LIMIT} deep")
    if isinstance(value, np.generic):
        value = value.item()
    if value is None:
        return Null(f"{called} is null") if mark_nulls else None
    if isinstance(value, str):
        return str(value)
    if isinstance(value, _SCALARS):
        return value
    inner = functools.partial(plain, mark_nulls=mark_nulls, depth=depth + 1)
    if isinstance(value, Mapping):
        return {str(key): inner(item, f"{called}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [inner(item, f"{called}[{i}]") for i, item in enumerate(value)]
    kind = "bytes that are not UTF-8 text" if isinstance(value, bytes) else f"a {type(value).__name__}"
    return StrictUndefined(f"{called} holds {kind}")


def _listed(values: Mapping[str, Any]) -> str:
    names = sorted(map(str, values))
    return (", ".join(names[:_NAMED_COLUMNS]) or "none") + (", ..." if len(names) > _NAMED_COLUMNS else "")
