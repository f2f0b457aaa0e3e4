"""Every parameter, declared once: shape and logical axes. Arrays, loader targets and byte counts derive from this.

Matrices stand as [outputs, inputs], as Hugging Face stores them: nothing is transposed while loading, and on CPU a
product that contracts the minor axis of both operands gives each row the same bits whatever the number of rows
(tests/engine/test_row_independence.py).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from engine.axes import Axis
from engine.layout import HeldSizes, is_matrix
from engine.model.config import ModelConfig

Params = dict[str, Any]
"""A tree of arrays shaped like `declare`'s: {"embedding", "layers": [one dict a layer of a stage], "final_norm",
"head"}."""

T = TypeVar("T")


@dataclass(frozen=True)
class Parameter:
    """A parameter's declaration."""

    shape: tuple[int, ...]
    axes: tuple[Axis, ...]
    inputs: int = 1
    """How many of the last axes a product contracts; the others are its outputs."""

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        return is_matrix(self.axes)


def declare(config: ModelConfig, held: HeldSizes | None = None) -> Params:
    """The tree of `Parameter` that a model with this configuration has; `held` pads it, see engine/layout.py.

    Where `held` has several stages, "layers" are those of one, and their parameters have a leading axis of stages.

    To be read only: layers are alike and share one declaration.
    """
    param = _Declared(config, held).param
    params: Params = {"embedding": param("vocab", "embed")}
    if config.learned_positions:
        params["position_embedding"] = param("positions", "embed")
    layer = declare_layer(config, held)
    stages = held.stages if held else 1
    params |= {"layers": [layer] * (config.layers // stages), **_Declared(config, held).norm("final_norm")}
    if not config.tied_head:
        params["head"] = param("vocab", "embed")
    return params


@functools.lru_cache
def declare_layer(config: ModelConfig, held: HeldSizes | None = None) -> Params:
    """Of one layer. Cached, since whoever looks for a plan asks thousands of times; to be read only."""
    declared = _Declared(config, held)
    params = declared.norm("attention_norm") | declared.attention()
    if config.post_norms:
        params |= declared.norm("post_attention_norm")
    if not config.parallel_block:
        params |= declared.norm("ffn_norm")
    params |= declared.feedforward()
    if config.post_norms:
        params |= declared.norm("post_ffn_norm")
    stages = held.stages if held else 1
    return params if stages == 1 else {name: _of_stages(one, stages) for name, one in params.items()}


def _of_stages(one: Parameter, stages: int) -> Parameter:
    return Parameter((stages, *one.shape), ("stages", *one.axes), one.inputs)


@dataclass(frozen=True)
class _Declared:
    """Writes declarations in the sizes of one model."""

    config: ModelConfig
    held: HeldSizes | None

    def param(self, *axes: Axis, inputs: int = 1) -> Parameter:
        return Parameter(tuple(self._size(axis) for axis in axes), axes, inputs)

    def _size(self, axis: Axis) -> int:
        padded = self.held or self.config
        match axis:
            case "vocab" | "heads" | "kv_heads":
                return getattr(padded, axis)
            case "experts":
                return self.config.expert_count
            case "positions":
                return self.config.context_tokens
        return getattr(self.config, axis)

    def norm(self, name: str) -> Params:
        bias = {f"{name}_bias": self.param("embed")} if self.config.norm_bias else {}
        return {name: self.param("embed")} | bias

    def attention(self) -> Params:
        param = self.param
        params = {
            "query": param("heads", "head_dim", "embed"),
            "key": param("kv_heads", "head_dim", "embed"),
            "value": param("kv_heads", "head_dim", "embed"),
            "attention_out": param("embed", "heads", "head_dim", inputs=2),
        }
        if self.config.attention_bias:
            params |= {
                "query_bias": param("heads", "head_dim"),
                "key_bias": param("kv_heads", "head_dim"),
                "value_bias": param("kv_heads", "head_dim"),
                "attention_out_bias": param("embed"),
            }
        return params

    def feedforward(self) -> Params:
        param, config = self.param, self.config
        if config.experts:
            return {
                "router": param("experts", "embed"),
                "gate": param("experts", "ffn", "embed"),
                "up": param("experts", "ffn", "embed"),
                "down": param("experts", "embed", "ffn"),
            }
        gate = {"gate": param("ffn", "embed")} if config.gated else {}
        params = gate | {"up": param("ffn", "embed"), "down": param("embed", "ffn")}
        if config.ffn_bias:
            gate_bias = {"gate_bias": param("ffn")} if config.gated else {}
            params |= gate_bias | {"up_bias": param("ffn"), "down_bias": param("embed")}
        return params


def leaves(params: Params, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, leaf) of a parameter tree, in order; the paths read like `layers.3.query`."""
    for name, value in params.items():
        if isinstance(value, list):
            for index, child in enumerate(value):
                yield from leaves(child, f"{prefix}{name}.{index}.")
        else:
            yield f"{prefix}{name}", value


def build(config: ModelConfig, make: Callable[[str, Parameter], T], held: HeldSizes | None = None) -> Params:
    """The parameter tree with every declaration replaced by `make(path, declaration)`."""

    def walk(node: Any, path: str) -> Any:
        if isinstance(node, Parameter):
            return make(path, node)
        if isinstance(node, list):
            return [walk(child, f"{path}.{index}") for index, child in enumerate(node)]
        return {name: walk(child, f"{path}.{name}" if path else name) for name, child in node.items()}

    return walk(declare(config, held), "")


def count(config: ModelConfig) -> int:
    """Number of parameters; a tied head is not counted twice."""
    return sum(parameter.size for _, parameter in leaves(declare(config)))
