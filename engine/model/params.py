"""Every parameter, declared once: shape and logical axes. Arrays, loader targets and byte counts derive from this.

Matrices stand as [outputs, inputs], as Hugging Face stores them: nothing is transposed while loading, and on CPU a
product that contracts the minor axis of both operands gives each row the same bits whatever the number of rows
(tests/engine/test_row_independence.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from engine.axes import Axis
from engine.model.config import ModelConfig

Params = dict[str, Any]
"""A tree of arrays shaped like `declare`'s: {"embedding", "layers": [one dict a layer], "final_norm", "head"}."""

T = TypeVar("T")


@dataclass(frozen=True)
class Parameter:
    """A parameter's declaration."""

    shape: tuple[int, ...]
    axes: tuple[Axis, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def declare(config: ModelConfig) -> Params:
    """The tree of `Parameter` that a model with this configuration has."""
    size: Mapping[Axis, int] = {
        "vocab": config.vocab,
        "embed": config.embed,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "ffn": config.ffn,
    }

    def param(*axes: Axis) -> Parameter:
        return Parameter(tuple(size[axis] for axis in axes), axes)

    def layer() -> Params:
        params = {
            "attention_norm": param("embed"),
            "query": param("heads", "head_dim", "embed"),
            "key": param("kv_heads", "head_dim", "embed"),
            "value": param("kv_heads", "head_dim", "embed"),
            "attention_out": param("embed", "heads", "head_dim"),
            "ffn_norm": param("embed"),
            "gate": param("ffn", "embed"),
            "up": param("ffn", "embed"),
            "down": param("embed", "ffn"),
        }
        if config.attention_bias:
            params |= {
                "query_bias": param("heads", "head_dim"),
                "key_bias": param("kv_heads", "head_dim"),
                "value_bias": param("kv_heads", "head_dim"),
                "attention_out_bias": param("embed"),
            }
        if config.ffn_bias:
            params |= {"gate_bias": param("ffn"), "up_bias": param("ffn"), "down_bias": param("embed")}
        return params

    params: Params = {
        "embedding": param("vocab", "embed"),
        "layers": [layer() for _ in range(config.layers)],
        "final_norm": param("embed"),
    }
    if not config.tied_head:
        params["head"] = param("vocab", "embed")
    return params


def leaves(params: Params, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, leaf) of a parameter tree, in order; the paths read like `layers.3.query`."""
    for name, value in params.items():
        if isinstance(value, list):
            for index, child in enumerate(value):
                yield from leaves(child, f"{prefix}{name}.{index}.")
        else:
            yield f"{prefix}{name}", value


def build(config: ModelConfig, make: Callable[[str, Parameter], T]) -> Params:
    """The parameter tree with every declaration replaced by `make(path, declaration)`."""

    def walk(node: Any, path: str) -> Any:
        if isinstance(node, Parameter):
            return make(path, node)
        if isinstance(node, list):
            return [walk(child, f"{path}.{index}") for index, child in enumerate(node)]
        return {name: walk(child, f"{path}.{name}" if path else name) for name, child in node.items()}

    return walk(declare(config), "")


def count(config: ModelConfig) -> int:
    """Number of parameters; a tied head is not counted twice."""
    return sum(parameter.size for _, parameter in leaves(declare(config)))
