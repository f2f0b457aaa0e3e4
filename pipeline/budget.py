"""What a template may spend: steps, counted, so that a runaway template ends at the same place on every machine.

No clock is read. A step is a small piece of work of roughly equal size wherever it is done: a few syntax nodes
executed, one item of a list looked at, or CHARS_PER_STEP characters read or built. Work is paid for before it is done,
so the limit on steps also bounds the time (about a second) and the memory (CHARS_PER_STEP characters a step) of a
render. `sandbox` sees to it that everything a template can do passes through here.
"""

from __future__ import annotations

import contextlib
import datetime
import re
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from decimal import Decimal
from typing import Any

from jinja2.runtime import Undefined

from .errors import PromptError

STEP_LIMIT = 1_000_000
CHARS_PER_STEP = 32
CALL_DEPTH_LIMIT = 50  # calls inside calls: macros, recursive loops
DATA_DEPTH_LIMIT = 100  # lists inside lists
INTEGER_BITS_LIMIT = 4096  # arithmetic on wider integers takes more than a step, and so does printing them
SEARCH_TEXT_METHODS = frozenset({"split", "rsplit", "splitlines"})  # these build a list, a step for each item

_SCALARS = (float, type(None), datetime.date, datetime.time, datetime.timedelta)
_LISTS = (list, tuple, range, type({}.keys()), type({}.values()), type({}.items()))
_PADDING_METHODS = frozenset({"center", "ljust", "rjust", "zfill"})
_PERCENT_CONVERSION = re.compile(r"%(\([^()]*\))?[-+ #0]*\d{0,3}(\.\d{0,3})?[hlL]?[diouxXeEfFgGcrsa%]")
_WIDE_FIELD = re.compile(r"\d{4}")
_ALLOWED_WIDTHS = "of up to 3 digits"
_FIELD_CHARS = 1000  # what the widest field that these two patterns allow can add to its value


class Budget:
    """The steps left to one render, and how deep its calls are nested."""

    __slots__ = ("call_depth", "steps_left")

    def __init__(self, steps: int) -> None:
        self.steps_left = steps
        self.call_depth = 0


_CURRENT: ContextVar[Budget] = ContextVar("budget")


@contextlib.contextmanager
def budgeted(steps: int = STEP_LIMIT) -> Iterator[None]:
    """Run the block, one render, on a fresh budget."""
    token = _CURRENT.set(Budget(steps))
    try:
        yield
    finally:
        _CURRENT.reset(token)


def spend(steps: int) -> None:
    """Pay for work that is about to be done."""
    budget = _CURRENT.get()
    budget.steps_left -= steps
    if budget.steps_left < 0:
        raise PromptError(
            f"the template does not end within {STEP_LIMIT:,} steps: it loops, or builds text or numbers, without end"
        )


@contextlib.contextmanager
def nested_call() -> Iterator[None]:
    """One level of calls deeper; Python's own recursion limit depends on who calls, this one does not."""
    budget = _CURRENT.get()
    if budget.call_depth >= CALL_DEPTH_LIMIT:
        raise PromptError(f"the template's calls are nested more than {CALL_DEPTH_LIMIT} deep: a macro calls itself")
    budget.call_depth += 1
    try:
        yield
    finally:
        budget.call_depth -= 1


def read(value: Any) -> Any:
    """Pay for looking at everything inside `value`, as comparing, hashing or printing it does; returns it.

    A list that holds another one twice costs twice as much, like the work: n doublings cannot hide 2**n items.
    """
    if type(value) is str:
        spend(len(value) // CHARS_PER_STEP)
        return value
    if isinstance(value, int):
        _check_width(value)
        return value
    level, depth = [value], 0
    while level:
        spend(len(level))
        inner: list[Any] = []
        for item in level:
            if isinstance(item, str):
                spend(len(item) // CHARS_PER_STEP)
            elif isinstance(item, (int, Decimal)):
                _check_width(item)
            elif isinstance(item, dict):
                spend(2 * len(item))
                inner.extend(item.keys())
                inner.extend(item.values())
            elif isinstance(item, _LISTS):
                spend(len(item))
                inner.extend(item)
            elif not isinstance(item, (*_SCALARS, Undefined)):
                hint = "; make it a list with `| list`" if isinstance(item, Iterator) else ""
                raise PromptError(f"the template uses a {type(item).__name__} as a value{hint}")
        level, depth = inner, depth + 1
        if depth > DATA_DEPTH_LIMIT:
            raise PromptError(f"the template reads data nested more than {DATA_DEPTH_LIMIT} deep")
    return value


def items(value: Any) -> Any:
    """Pay for going once through `value`; an iterator comes back as a list, everything else as it is."""
    if isinstance(value, Iterator):
        listed = []
        for item in value:
            spend(1)
            listed.append(item)
        return listed
    if isinstance(value, (str, dict, *_LISTS)):
        spend(len(value))
    return value


def concat(parts: Any) -> str:
    """Join the parts of an output, paying for each as it comes."""
    paid = []
    for part in parts:
        spend(len(part) // CHARS_PER_STEP)
        paid.append(part)
    return "".join(paid)


def text_method(text: str, name: str, arguments: tuple[Any, ...] = (), options: Mapping[str, Any] | None = None) -> Any:
    """`text.name(*arguments, **options)`, paid for by what it reads and what it builds."""
    options = options or {}
    if name == "join" and arguments:
        parts = items(arguments[0])
        arguments = (list(parts), *arguments[1:])
    read([*arguments, *options.values()])

    chars = len(text)
    if name in _PADDING_METHODS and arguments and isinstance(arguments[0], int):
        chars += max(arguments[0], 0)
    elif name == "join" and arguments:
        chars *= len(arguments[0])
    elif name == "replace" and len(arguments) >= 2 and all(isinstance(a, str) for a in arguments[:2]):
        old, new = arguments[:2]
        chars += (text.count(old) if old else len(text) + 1) * len(new)
    elif name in SEARCH_TEXT_METHODS:
        chars += CHARS_PER_STEP * (len(text) // 8)
    # Searching from the right, and stripping, may compare every character with every one of the argument.
    needle = max((len(a) for a in (*arguments, *options.values()) if isinstance(a, str)), default=0)
    spend((chars + len(text) * needle // CHARS_PER_STEP) // CHARS_PER_STEP)

    result = getattr(text, name)(*arguments, **options)
    if isinstance(result, list):
        spend(len(result))
    return result


def percent_format(template: str, values: Any) -> str:
    """`template % values`, with fields of a sane width."""
    rest, fields = _PERCENT_CONVERSION.subn("", template)
    if "%" in rest:
        raise PromptError(
            f"the template's % format {template[:60]!r} is not supported: widths {_ALLOWED_WIDTHS}, no '*'"
        )
    before = _CURRENT.get().steps_left
    read(values)
    cost_of_values = before - _CURRENT.get().steps_left
    spend(len(template) // CHARS_PER_STEP + fields * (_FIELD_CHARS // CHARS_PER_STEP + cost_of_values))
    return template % values


def check_format_field(value: Any, specification: str) -> None:
    """Pay for one `{...:specification}` of str.format."""
    if _WIDE_FIELD.search(specification):
        raise PromptError(
            f"the template's format field {specification[:60]!r} is not supported: widths {_ALLOWED_WIDTHS}"
        )
    if isinstance(value, datetime.date):
        date_format(specification)
    spend(1 + _FIELD_CHARS // CHARS_PER_STEP)


def date_format(pattern: str) -> None:
    """Pay for strftime, whose fields may be 256 times as long as their pattern."""
    spend(1 + 256 * len(pattern) // CHARS_PER_STEP)


def arithmetic(operator: str, left: Any, right: Any) -> None:
    """Pay for `left operator right`: copies and repeats of sequences; integers are kept to a sane width."""
    for operand in (left, right):
        if isinstance(operand, int):
            _check_width(operand)
        elif isinstance(operand, str):
            spend(len(operand) // CHARS_PER_STEP)
        elif isinstance(operand, (list, tuple)):
            spend(len(operand))
    if operator == "**" and isinstance(left, int) and isinstance(right, int):
        if left.bit_length() * right > 2 * INTEGER_BITS_LIMIT:
            raise _too_wide()
    elif operator == "*":
        for sequence, times in ((left, right), (right, left)):
            if isinstance(times, int) and isinstance(sequence, (str, list, tuple)):
                spend(len(sequence) * max(times, 0) // (CHARS_PER_STEP if isinstance(sequence, str) else 1))


def _check_width(number: int | Decimal) -> None:
    bits = number.bit_length() if isinstance(number, int) else 4 * abs(number.adjusted())
    if bits > INTEGER_BITS_LIMIT:
        raise _too_wide()


def _too_wide() -> PromptError:
    return PromptError(f"the template computes with an integer of more than {INTEGER_BITS_LIMIT} bits")
