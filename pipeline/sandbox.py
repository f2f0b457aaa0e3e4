"""Jinja for templates that came with data: no way to Python's internals, and always an end.

Jinja's own sandbox forbids underscores and changes to lists and dicts. This one is narrower in two ways:

- Reach. Attributes, filters and tests are allow-lists (attributes by type). What is random or meant for HTML is not
  there, nor is what needs other files (`include`, `extends`).
- Cost. Everything that runs more than once, or grows, is paid for from a `budget`: operators, calls, filters, tests and
  output through the hooks that Jinja offers, everything else by `metering`.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Mapping
from types import BuiltinMethodType
from typing import Any

from jinja2 import Template, meta, nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter, safe_range
from jinja2.utils import Cycler, Joiner, Namespace, pass_context

from . import budget
from .errors import PromptError
from .metering import OPERATIONS, Metering
from .template_filters import FILTERS, TESTS

_STEPS_PER_CALL = 16
_REASON_CHARS = 300
_DATE = "day isocalendar isoformat isoweekday month strftime weekday year"
_TIME = "hour isoformat microsecond minute second strftime"
_ATTRIBUTE_NAMES: dict[type, str] = {
    str: "capitalize casefold center count endswith find format index isalnum isalpha isascii isdecimal isdigit islower"
    " isnumeric isspace istitle isupper join ljust lower lstrip partition removeprefix removesuffix replace rfind"
    " rindex rjust rpartition rsplit rstrip split splitlines startswith strip swapcase title upper zfill",
    dict: "copy get items keys values",
    list: "copy count index",
    tuple: "count grouper index list",  # `groupby` gives tuples with the names grouper and list
    datetime.date: _DATE,
    datetime.time: _TIME,
    datetime.datetime: f"{_DATE} {_TIME} date time timestamp",
    datetime.timedelta: "days seconds total_seconds",
    LoopContext: "cycle depth depth0 first index index0 last length nextitem previtem revindex revindex0",
    Cycler: "current next reset",
}
_ATTRIBUTES = {kind: frozenset(names.split()) for kind, names in _ATTRIBUTE_NAMES.items()}


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment where every template is safe to render; `null_text` is how null prints (None: it is an error)."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)
    concat = staticmethod(budget.concat)

    def __init__(self, *, undefined: type[Undefined], null_text: str | None, **options: Any) -> None:
        extensions = (loopcontrols, GenerationBlock)
        # Not optimized: constant expressions would be computed while compiling, on no budget.
        super().__init__(
            undefined=undefined, finalize=_printed, optimized=False, autoescape=False, extensions=extensions, **options
        )
        self.null_text = null_text
        self.filters = {**FILTERS, **OPERATIONS}
        self.tests = dict(TESTS)
        self.globals = {
            "cycler": Cycler,
            "dict": _make_dict,
            "joiner": Joiner,
            "namespace": SafeNamespace,
            "range": safe_range,
        }

    def text(self, value: Any) -> str:
        """The one way from a value to its text, wherever a template needs it."""
        if isinstance(value, str):
            budget.spend(len(value) // budget.CHARS_PER_STEP)
            return value
        if value is None:
            if self.null_text is None:
                raise PromptError("the template prints a null; test for it with `is none`, or use `or`")
            return self.null_text
        text = str(budget.read(value))
        budget.spend(len(text) // budget.CHARS_PER_STEP)
        return text

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, Namespace):
            return not attr.startswith("_")
        kind = next((k for k in type(obj).__mro__ if k in _ATTRIBUTES), None)
        return kind is not None and attr in _ATTRIBUTES[kind]

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        raise SecurityError(f"attribute {attribute!r} of a {type(obj).__name__} is out of reach of templates")

    def getitem(self, obj: Any, argument: Any) -> Any:
        budget.spend(1)
        return super().getitem(obj, budget.read(argument))

    def getattr(self, obj: Any, attribute: str) -> Any:
        budget.spend(1)
        return super().getattr(obj, attribute)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if isinstance(value, BuiltinMethodType) and value.__name__ == "format" and isinstance(value.__self__, str):
            template = value.__self__
            return lambda *arguments, **options: _Formatter(self).vformat(template, arguments, options)
        return None

    def call_filter(self, *arguments: Any, **options: Any) -> Any:  # by name, once for each item of a `map`
        budget.spend(_STEPS_PER_CALL)
        return super().call_filter(*arguments, **options)

    def call_test(self, *arguments: Any, **options: Any) -> Any:  # of a `select`
        budget.spend(_STEPS_PER_CALL)
        return super().call_test(*arguments, **options)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            return budget.percent_format(left, right)
        budget.arithmetic(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, function: Any, /, *arguments: Any, **options: Any) -> Any:
        budget.spend(1 + len(arguments) + len(options))
        if not isinstance(function, BuiltinMethodType):
            budget.spend(_STEPS_PER_CALL)
            with budget.nested_call():
                return super().call(context, function, *arguments, **options)
        for scope in ("_loop_vars", "_block_vars"):  # Jinja's own, meant for functions that want the context
            options.pop(scope, None)
        owner, name = function.__self__, function.__name__
        if isinstance(owner, str):
            return budget.text_method(owner, name, arguments, options)
        budget.read([*arguments, *options.values()])
        if name in ("copy", "count", "index"):
            budget.read(owner)
        elif name == "strftime" and arguments:
            budget.date_format(str(arguments[0]))
        return function(*arguments, **options)


class SafeNamespace(Namespace):
    """`namespace()`, without names that Python gives a meaning."""

    def __init__(*arguments: Any, **attributes: Any) -> None:  # as in Jinja: leaves `self` free as a keyword
        self, *pairs = arguments
        values = _make_dict(*pairs, **attributes)
        for name in values:
            _check_namespace_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_namespace_name(name)
        super().__setitem__(name, value)


class GenerationBlock(Extension):
    """`{% generation %}`, by which chat templates mark the assistant's words for training: the words as they are."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def compile_template(sandbox: Sandbox, source: str, called: str) -> tuple[Template, frozenset[str]]:
    """The compiled template and the names that it takes from outside; errors start with `called` and give the line."""
    try:
        tree = Metering().visit(sandbox.parse(source))
        return sandbox.from_string(tree), frozenset(meta.find_undeclared_variables(tree))
    except TemplateSyntaxError as e:
        lines = source.splitlines()
        line = lines[e.lineno - 1].strip() if 0 < e.lineno <= len(lines) else ""
        message = str(e.message).rstrip(".") + (f" in {line[:80]!r}" if line else "")
        if message.startswith("No filter named"):
            message += f"; there are {', '.join(sorted(FILTERS))}"
        raise PromptError(f"{called}, line {e.lineno}: {message}") from e
    except (RecursionError, MemoryError, SyntaxError, ValueError) as e:  # nested deeper than Python compiles, ...
        raise PromptError(f"{called} cannot be compiled: {type(e).__name__}: {e}") from e


def render_template(sandbox: Sandbox, template: Template, values: Mapping[str, Any], called: str) -> str:
    """One render on its own budget. Whatever goes wrong inside is a PromptError, in the same words on every machine."""
    try:
        with budget.budgeted():
            return sandbox.concat(template.root_render_func(template.new_context(dict(values))))
    except PromptError as e:
        raise PromptError(_reason(str(e))) from e
    except MemoryError:
        raise
    except TemplateError as e:
        raise PromptError(_reason(f"{called}: {e.message}")) from e
    except Exception as e:
        raise PromptError(_reason(f"{called}: {type(e).__name__}: {e}")) from e


def _reason(message: str) -> str:
    message = re.sub(r" at 0x[0-9a-f]+", "", message[: 2 * _REASON_CHARS])
    return message if len(message) <= _REASON_CHARS else message[:_REASON_CHARS] + "..."


@pass_context  # which also tells Jinja not to print constants while compiling
def _printed(context: Context, value: Any) -> str:
    return context.environment.text(value)  # type: ignore[attr-defined]


def _make_dict(*arguments: Any, **values: Any) -> dict[Any, Any]:
    budget.read([*arguments, *values.values()])
    return dict(*arguments, **values)


def _check_namespace_name(name: Any) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold the name {name!r}")


class _Formatter(SandboxedFormatter):
    """str.format, each field paid for."""

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> Any:
        value, first = super().get_field(field_name, args, kwargs)
        return budget.read(value), first

    def format_field(self, value: Any, format_spec: str) -> Any:
        budget.check_format_field(value, format_spec)
        return super().format_field(value, format_spec)
