"""The filters and tests that a template may use: Jinja's, without those that are random, lazy, or meant for HTML.

Text filters go through `budget.text_method`; filters over items pay for the items first, and hand out finished lists
behind their iterators, so that nothing is computed unpaid later. `tojson` writes JSON as `json.dumps` does, not HTML.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from typing import Any

from jinja2.filters import FILTERS as JINJA_FILTERS
from jinja2.filters import do_indent, do_title, do_truncate, do_wordcount, make_attrgetter
from jinja2.runtime import StrictUndefined, Undefined
from jinja2.tests import TESTS as JINJA_TESTS
from jinja2.utils import pass_environment

from . import budget
from .errors import PromptError

_AS_THEY_ARE = ("abs", "count", "d", "default", "first", "last", "length")
_OVER_ITEMS = ("items", "list", "map", "reject", "rejectattr", "reverse", "select", "selectattr")
_OVER_CONTENTS = ("dictsort", "groupby", "max", "min", "sort", "unique")  # these compare what the items hold
_EQUALITY_TESTS = ("==", "eq", "equalto", "!=", "ne", "in")
_ORDER_TESTS = (">", "gt", "greaterthan", ">=", "ge", "<", "lt", "lessthan", "<=", "le")
_TYPE_TESTS = ("boolean", "callable", "float", "integer", "iterable", "mapping", "number", "sequence", "string")
_IDENTITY_TESTS = ("false", "sameas", "true")
_DIGITS_LIMIT = 1000
_PRECISION_LIMIT = 300
_INDENT_LIMIT = 32


class Null(StrictUndefined):
    """A null of the row: `none` to every test, false, covered by `default`; any other use is an error that names it."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return other is None or isinstance(other, Null)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(None)

    def __repr__(self) -> str:  # inside a printed list
        return "None"


def _over_items(function: Callable[..., Any], *, read_contents: bool) -> Callable[..., Any]:
    """A filter of Jinja's, whose first value is gone through once, or read in full."""
    position = int(hasattr(function, "jinja_pass_arg"))  # after the context or environment that Jinja passes

    @functools.wraps(function)
    def paid(*arguments: Any, **options: Any) -> Any:
        value = budget.items(arguments[position])
        others = arguments[position + 1 :]
        budget.read([*others, *options.values(), *([value] if read_contents else ())])
        result = function(*arguments[:position], value, *others, **options)
        return iter(budget.items(result)) if isinstance(result, Iterator) else result

    return paid


def _text_filter(method: str) -> Callable[..., str]:
    @pass_environment
    def apply(environment: Any, value: Any) -> str:
        return budget.text_method(environment.text(value), method)

    return apply


@pass_environment
def _attr(environment: Any, value: Any, name: str) -> Any:
    return JINJA_FILTERS["attr"](environment, value, budget.read(name))


@pass_environment
def _center(environment: Any, value: Any, width: int = 80) -> str:
    return budget.text_method(environment.text(value), "center", (width,))


def _float(value: Any, default: float = 0.0) -> float:
    return JINJA_FILTERS["float"](budget.read(value), default)


@pass_environment
def _format(environment: Any, value: Any, *arguments: Any, **options: Any) -> str:
    return budget.percent_format(environment.text(value), options or arguments)


@pass_environment
def _indent(environment: Any, value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    text = environment.text(value)
    lines = len(budget.text_method(text, "splitlines"))
    width_chars = len(width) if isinstance(width, str) else max(width, 0)
    budget.spend((lines + 1) * width_chars // budget.CHARS_PER_STEP)
    return do_indent(text, width, first, blank)


def _int(value: Any, default: int = 0, base: int = 10) -> int:
    if isinstance(value, str) and len(value) > _DIGITS_LIMIT:
        raise PromptError(f"the template reads an integer from {len(value)} characters; at most {_DIGITS_LIMIT}")
    return JINJA_FILTERS["int"](budget.read(value), default, base)


@pass_environment
def _join(environment: Any, value: Any, d: str = "", attribute: str | int | None = None) -> str:
    item_of = make_attrgetter(environment, budget.read(attribute))
    texts = [environment.text(item_of(item)) for item in budget.items(value)]
    return budget.text_method(environment.text(d), "join", (texts,))


@pass_environment
def _replace(environment: Any, value: Any, old: Any, new: Any, count: int | None = None) -> str:
    arguments = (environment.text(old), environment.text(new), -1 if count is None else count)
    return budget.text_method(environment.text(value), "replace", arguments)


def _round(value: float, precision: int = 0, method: str = "common") -> float:
    if not -_PRECISION_LIMIT <= precision <= _PRECISION_LIMIT:
        raise PromptError(f"the template rounds to {precision} digits; at most {_PRECISION_LIMIT}, of either sign")
    return JINJA_FILTERS["round"](_number(value), precision, method)


@pass_environment
def _sum(environment: Any, value: Iterable[Any], attribute: str | int | None = None, start: Any = 0) -> Any:
    if not isinstance(start, (int, float, Decimal)):  # adding lists one by one copies the sum again and again
        raise PromptError("the template's `sum` adds numbers only")
    return _over_items(JINJA_FILTERS["sum"], read_contents=True)(environment, value, attribute, start)


@pass_environment
def _text(environment: Any, value: Any) -> str:
    return environment.text(value)


@pass_environment
def _title(environment: Any, value: Any) -> str:
    text = environment.text(value)
    budget.spend(len(text) // 8)
    return do_title(text)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as chat templates expect it (the parameters are those of Hugging Face transformers)."""
    indent_chars = len(indent) if isinstance(indent, str) else indent or 0
    if max(indent_chars, *(len(s) for s in separators or ("",))) > _INDENT_LIMIT:
        raise PromptError(f"the template's `tojson` indents or separates by more than {_INDENT_LIMIT} characters")
    for _ in range(1 + max(indent_chars, 0)):
        budget.read(value)
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys, default=_json_null
    )


def _json_null(value: Any) -> None:
    if isinstance(value, Null):
        return
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON")


@pass_environment
def _trim(environment: Any, value: Any, chars: str | None = None) -> str:
    return budget.text_method(environment.text(value), "strip", () if chars is None else (chars,))


@pass_environment
def _truncate(environment: Any, value: Any, *arguments: Any, **options: Any) -> str:
    budget.read([*arguments, *options.values()])
    return do_truncate(environment, environment.text(value), *arguments, **options)


@pass_environment
def _wordcount(environment: Any, value: Any) -> int:
    text = environment.text(value)
    budget.spend(len(text) // 8)
    return do_wordcount(text)


def _comparing(test: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    return lambda value, other: test(budget.read(value), budget.read(other))


def _number(value: Any) -> Any:
    """A number as it is. Of other values, `%` and `*` would make texts and lists of any size."""
    if not isinstance(value, (int, float, Decimal)):
        raise TypeError(f"a number is needed, not a {type(value).__name__}")
    return budget.read(value)


def _of_number(test: Callable[..., bool]) -> Callable[..., bool]:
    return lambda value, *others: test(_number(value), *map(_number, others))


def _of_text(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: test(budget.read(value))


FILTERS: dict[str, Callable[..., Any]] = {
    **{name: JINJA_FILTERS[name] for name in _AS_THEY_ARE},
    **{name: _over_items(JINJA_FILTERS[name], read_contents=False) for name in _OVER_ITEMS},
    **{name: _over_items(JINJA_FILTERS[name], read_contents=True) for name in _OVER_CONTENTS},
    **{name: _text_filter(name) for name in ("capitalize", "lower", "upper")},
    "attr": _attr,
    "center": _center,
    "float": _float,
    "format": _format,
    "indent": _indent,
    "int": _int,
    "join": _join,
    "replace": _replace,
    "round": _round,
    "safe": _text,
    "string": _text,
    "sum": _sum,
    "title": _title,
    "tojson": _tojson,
    "trim": _trim,
    "truncate": _truncate,
    "wordcount": _wordcount,
}

TESTS: dict[str, Callable[..., bool]] = {
    **{name: JINJA_TESTS[name] for name in (*_TYPE_TESTS, *_IDENTITY_TESTS)},
    **{name: _comparing(JINJA_TESTS[name]) for name in (*_EQUALITY_TESTS, *_ORDER_TESTS)},
    **{name: _of_number(JINJA_TESTS[name]) for name in ("divisibleby", "even", "odd")},
    **{name: _of_text(JINJA_TESTS[name]) for name in ("lower", "upper")},
    "none": lambda value: value is None or isinstance(value, Null),
    "defined": lambda value: not isinstance(value, Undefined) or isinstance(value, Null),
    "undefined": lambda value: isinstance(value, Undefined) and not isinstance(value, Null),
}
