"""A model placed on a mesh for both phases: where every argument and result of its programs lives.

Programs are written for one chip's part (engine/steps) and run on all chips by one shard_map. On a single chip they
run as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from engine.compilation.topology import fused_gathers, looped_tokens
from engine.layout import DimAxes, HeldSizes, Layout, Layouts, check_divides, held_sizes
from engine.mesh import make_mesh
from engine.model.config import ModelConfig
from engine.model.params import Parameter, Params, build
from engine.model.partition import Partition
from engine.model.quantized import Quantized


def spec(split: DimAxes) -> P:
    """A split of every dimension as jax writes it."""
    return P(*(axes or None for axes in split))


@dataclass(frozen=True)
class Placement:
    """`mesh` is None on a single chip."""

    config: ModelConfig
    layouts: Layouts = Layouts()
    mesh: Mesh | None = None

    @classmethod
    def on_devices(cls, config: ModelConfig, layouts: Layouts, devices: Sequence[Any] | None = None) -> Placement:
        """Checks that the model divides over the mesh and that there are enough devices."""
        check_divides(config, layouts)
        mesh = make_mesh(layouts.mesh, devices) if layouts.mesh.chips > 1 else None
        return cls(config, layouts, mesh)

    @cached_property
    def held(self) -> HeldSizes:
        return held_sizes(self.config, self.layouts)

    @cached_property
    def prefill(self) -> Partition:
        return replace(self._partition(self.layouts.prefill), attention_kernel="splash")

    @cached_property
    def decode(self) -> Partition:
        return self._partition(self.layouts.decode)

    def _partition(self, layout: Layout) -> Partition:
        plain = Partition(self.config, self.held, layout)
        if self.mesh is None:
            return plain
        kind = self.mesh.devices.flat[0].device_kind
        return replace(plain, looped_tokens=looped_tokens(kind), fused_gathers=fused_gathers(kind))

    def param_sharding(self, declared: Parameter) -> NamedSharding:
        """Where a parameter, or the scales of an int8 one, rests."""
        assert self.mesh is not None, "on a single chip there is nothing to shard"
        return NamedSharding(self.mesh, self._at_rest(declared))

    def _at_rest(self, declared: Parameter) -> P:
        return spec(self.layouts.decode.at_rest(declared.axes, self.held.kv_heads, self.config.expert_count))

    def param_specs(self, int8: bool = False) -> Params:
        """Of the parameters at rest; `int8`: matrices are quantised, their scales whole on every chip of a stage."""

        def of(_: str, declared: Parameter) -> Any:
            split = self._at_rest(declared)
            if not (int8 and declared.is_matrix):
                return split
            return Quantized(split, P(*split[: declared.axes.count("stages")]))

        return build(self.config, of, self.held)

    @property
    def cache_spec(self) -> P:
        """Of [pages, kv_heads, ...]: every chip has pages of its own rows or positions, and of its own heads.

        Each stage has a pool like every other, for its layer, and they stand in the dimension of pages.
        """
        layout = self.layouts.decode
        return P((*layout.over_slices, *self.cache_axes) or None, layout.attention_heads or None)

    @property
    def cache_axes(self) -> tuple[str, ...]:
        """Over which chips of a slice pages are numbered each for themselves."""
        layout = self.layouts.decode
        return layout.attention_rows + layout.attention_sequence

    @property
    def prefilled_spec(self) -> P:
        """Of prefilled keys and values, [rows, seq, kv_heads, head_dim]; stages stand in the dimension of rows."""
        layout = self.layouts.prefill
        rows = (*layout.over_slices, *layout.attention_rows)
        return spec((rows, layout.attention_sequence, layout.kv_heads_held(self.held.kv_heads)))

    def sharding(self, split: P) -> NamedSharding | None:
        return None if self.mesh is None else NamedSharding(self.mesh, split)

    def on_all_chips(self, program: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        """The program over global arrays, of which each chip computes with its part."""
        if self.mesh is None:
            return program
        return jax.shard_map(program, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
