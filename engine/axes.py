"""The glossary of axis names: logical axes of parameters and activations, and the axes of the mesh.

A parameter says which axes it has, never where they live; a layout says where an axis lives, never who has it.
"""

from __future__ import annotations

from typing import Literal

Axis = Literal["stages", "vocab", "embed", "heads", "kv_heads", "head_dim", "ffn", "experts", "positions"]
"""vocab: token ids. embed: the residual stream, the paper's E (d_model). heads, kv_heads: query and key/value heads, H.
head_dim: one head's width, Q. ffn: the feed-forward width, F (d_ff). experts: of a mixture. positions: learned ones.
stages: of a pipeline, each with as many layers."""

MeshAxis = Literal["slice", "x", "y", "z"]
"""The torus X x Y x Z of chips, and the slices that are such a torus each."""
