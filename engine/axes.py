"""The glossary of axis names: logical axes of parameters and activations, and the axes of the mesh.

A parameter says which axes it has, never where they live; a layout says where an axis lives, never who has it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

Axis = Literal["stages", "vocab", "embed", "heads", "kv_heads", "head_dim", "ffn", "experts", "positions"]
"""vocab: token ids. embed: the residual stream, the paper's E (d_model). heads, kv_heads: query and key/value heads, H.
head_dim: one head's width, Q. ffn: the feed-forward width, F (d_ff). experts: of a mixture. positions: learned ones.
stages: of a pipeline, each with as many layers."""

MeshAxis = Literal["slice", "x", "y", "z"]
"""The torus X x Y x Z of chips, and the slices that are such a torus each."""

FEW_ROWS, RUN = 8, 512
"""Of fewer rows a chip than a tile has TPUs are given sums in runs of so many numbers, or all of them everywhere."""

_SCATTERED_TOGETHER_BYTES = range(2**18, 2**23 + 1)


def scattered_together(
    axes: tuple[MeshAxis, ...], size_bytes: int, mesh: Mapping[str, int]
) -> tuple[tuple[MeshAxis, ...], ...]:
    """Which axes a reduce-scatter of D = `size_bytes` goes over in one operation, in their order.

    Two at once use the rings of both, if they are not all of the mesh: then it would become an all-reduce, and so would
    one of few bytes. Of large arrays it would be padded, and its overhang moved in a second step.
    """
    both = math.prod(mesh[axis] for axis in axes[:2])
    of_slice = math.prod(size for axis, size in mesh.items() if axis != "slice")
    if len(axes) > 1 and size_bytes in _SCATTERED_TOGETHER_BYTES and both < of_slice:
        return (axes[:2], *((axis,) for axis in axes[2:]))
    return tuple((axis,) for axis in axes)
