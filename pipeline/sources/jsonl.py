"""JSON lines: one object a line. What is not a strict, reasonable JSON object is a bad row.

Stricter than Python's json where leniency would end in output that cannot be written or read back: bytes that
are not UTF-8, escapes of half a surrogate pair, NaN and infinities (also numbers too large for a float), and
nesting beyond a fixed depth. The last of several equal keys counts, as in most JSON readers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator
from typing import Any, NoReturn

from pipeline.sources.base import Format, Parsed, WorkItem
from pipeline.sources.lines import LINE_LIMIT_BYTES, not_utf8, plan_lines, read_lines

_MAX_DEPTH = 128  # far below Python's own limit, which depends on who calls
_KINDS = {list: "an array", str: "a string", int: "a number", float: "a number", bool: "a boolean"}


def _read(item: WorkItem, columns: Collection[str] | None) -> Iterator[Parsed]:
    """Whole objects: to leave out columns would save nothing here."""
    for line in read_lines(item.source, item.start, item.stop):
        yield parse(line) if line is not None else (None, f"line over {LINE_LIMIT_BYTES >> 20} MiB")


def parse(line: bytes) -> Parsed:
    """The object of one line, or the reason why it is none."""
    try:
        text = line.decode()
        value = _DECODER.decode(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair has no UTF-8
    except UnicodeDecodeError as e:
        return None, not_utf8(e)
    except UnicodeEncodeError:
        return None, "invalid JSON: an escape of half a surrogate pair"
    except json.JSONDecodeError as e:
        return None, f"invalid JSON: {e.msg.removesuffix(' at')} at character {e.pos}"
    except ValueError as e:
        return None, f"invalid JSON: {e}"
    except RecursionError:
        return None, f"invalid JSON: nested over {_MAX_DEPTH} deep"
    if not isinstance(value, dict):
        return None, f"not a JSON object: {_KINDS.get(type(value), 'null')}"
    if text.count("{") + text.count("[") > _MAX_DEPTH and not _within_depth(value):
        return None, f"invalid JSON: nested over {_MAX_DEPTH} deep"
    return value, None


def _within_depth(value: Any) -> bool:
    level = [value]
    for _ in range(_MAX_DEPTH):
        inside = (parent.values() if type(parent) is dict else parent for parent in level)
        level = [child for children in inside for child in children if type(child) in (dict, list)]
        if not level:
            return True
    return False


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError("a number is too large for a 64-bit float")
    return number


_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)

FORMAT = Format(
    suffixes=(".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"),
    plan=plan_lines,
    read=_read,
    columns=lambda url: None,
)
