"""A YAML document as plain values, with the line of every one: YAML 1.2's core types, and nothing that came
with data runs.

PyYAML parses, this file builds: a mapping with the same key twice is an error instead of the last one
winning, an anchor cannot blow the document up, and a word such as `no` stays a word (YAML 1.1 reads it as
false, and an answer to be scored is often just that).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from pipeline.errors import JobError

LIMIT_BYTES = 1 << 20
LIMIT_VALUES = 100_000
"""Values after anchors are expanded: ten lines of aliases can otherwise describe a billion."""

Path = tuple[str | int, ...]
"""Where a value stands: the keys and list positions that lead to it."""


@dataclass(frozen=True)
class Document:
    values: Any
    lines: dict[Path, int] = field(default_factory=dict)
    """1-based line of every key and list element."""


def parse(text: str, *, source: str) -> Document:
    """The one document in `text`; `source` names it in errors."""
    if len(text.encode(errors="replace")) > LIMIT_BYTES:
        raise JobError(f"{source} is larger than {LIMIT_BYTES} bytes; a job file names its data, it does not hold it")
    try:
        node = yaml.compose(text, Loader=_Loader)
        return Document(None) if node is None else _Builder(source).build(node)
    except RecursionError:
        raise JobError(f"{source} is nested too deeply, or refers to itself") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        hint = "put text that holds any of [ ] { } , : # in quotes"
        raise JobError(f"{where}: not valid YAML: {error.problem or error.context}; {hint}") from error
    except yaml.YAMLError as error:
        raise JobError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from error


class _Loader(yaml.BaseLoader):
    """Tells what an unquoted word is; everything without a rule here is text."""


_TAG = "tag:yaml.org,2002:"
_MAPPING, _SEQUENCE = f"{_TAG}map", f"{_TAG}seq"
_SCALARS: dict[str, Callable[[str], Any]] = {
    # JSON writes a rare character as an escaped surrogate pair: joined here, and half a pair is refused.
    f"{_TAG}str": lambda text: text.encode("utf-16", "surrogatepass").decode("utf-16"),
    f"{_TAG}null": lambda text: None,
    f"{_TAG}bool": lambda text: text.lower() == "true",
    f"{_TAG}int": lambda text: int(text, 0 if text[:2] in ("0o", "0x") else 10),
    f"{_TAG}float": lambda text: float(text.replace(".inf", "inf").replace(".nan", "nan")),
}
for _kind, _pattern in (
    ("null", r"~|null|Null|NULL|"),
    ("bool", r"true|True|TRUE|false|False|FALSE"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan"),
):
    _Loader.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(rf"(?:{_pattern})\Z"), None)


@dataclass
class _Builder:
    source: str
    lines: dict[Path, int] = field(default_factory=dict)
    values: int = 0

    def build(self, node: yaml.Node) -> Document:
        return Document(self._value(node, ()), self.lines)

    def _value(self, node: yaml.Node, path: Path) -> Any:
        self.values += 1
        if self.values > LIMIT_VALUES:
            raise self._refusal(node, f"more than {LIMIT_VALUES} values once its anchors are expanded")
        self.lines.setdefault(path, node.start_mark.line + 1)
        match node:
            case yaml.MappingNode(tag=tag) if tag == _MAPPING:
                return dict(self._items(node, path))
            case yaml.SequenceNode(tag=tag) if tag == _SEQUENCE:
                return [self._value(child, (*path, index)) for index, child in enumerate(node.value)]
            case yaml.ScalarNode(tag=tag) if tag in _SCALARS:
                return self._scalar(node, tag)
        raise self._refusal(node, f"the tag {node.tag!r} is not accepted: a job holds plain values only")

    def _items(self, node: yaml.MappingNode, path: Path) -> Iterator[tuple[str, Any]]:
        first_lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._refusal(key_node, "a key must be a word; put text that begins with { in quotes")
            key, line = self._scalar(key_node, f"{_TAG}str"), key_node.start_mark.line + 1
            if key in first_lines:
                raise self._refusal(
                    key_node, f"the key {key!r} is given twice; the first is on line {first_lines[key]}"
                )
            first_lines[key] = self.lines[*path, key] = line
            yield key, self._value(value_node, (*path, key))

    def _scalar(self, node: yaml.ScalarNode, tag: str) -> Any:
        try:
            return _SCALARS[tag](node.value)
        except ValueError as error:
            raise self._refusal(node, f"{node.value[:40]!r} is not a value: {error}") from error

    def _refusal(self, node: yaml.Node, problem: str) -> JobError:
        return JobError(f"{self.source}:{node.start_mark.line + 1}:{node.start_mark.column + 1}: {problem}")
