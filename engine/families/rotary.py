"""Rotary position embedding in both dialects of config.json.

Up to transformers 4 it is `rope_theta` beside `rope_scaling` (whose kind was first called `type`, then `rope_type`);
since transformers 5 it is one object, `rope_parameters`. Defaults are those of transformers.
"""

from __future__ import annotations

from engine.errors import UnsupportedCheckpoint
from engine.families.attributes import Attributes
from engine.model.config import LinearScaling, Llama3Scaling, Rotary

_THETA = 10_000.0  # Su et al. 2021


def rotary_from_hf(attributes: Attributes, context_tokens: int, default_theta: float = _THETA) -> Rotary:
    """Takes every attribute about rotary positions; refuses kinds of scaling that are not computed."""
    outer_theta = attributes.number("rope_theta", None)
    if "rope_parameters" in attributes and "rope_scaling" in attributes:
        raise UnsupportedCheckpoint("config.json has both rope_parameters and rope_scaling; keep the one that is meant")
    rope = attributes.section("rope_parameters") or attributes.section("rope_scaling")
    attributes.only("partial_rotary_factor", 1.0)
    if rope is None:
        return Rotary(outer_theta or default_theta)

    theta = rope.number("rope_theta", None)
    if None not in (theta, outer_theta) and theta != outer_theta:
        raise rope.wrong("rope_theta", theta, f"contradicts rope_theta={outer_theta:g} outside it; keep one")
    rope.only("partial_rotary_factor", 1.0)
    scaling = _scaling(rope, context_tokens)
    rope.finish()
    return Rotary(theta or outer_theta or default_theta, scaling)


def _scaling(rope: Attributes, context_tokens: int) -> LinearScaling | Llama3Scaling | None:
    old_kind = rope.text("type", None)
    kind = rope.text("rope_type", old_kind or "default")
    if old_kind is not None and old_kind != kind:
        raise rope.wrong("rope_type", kind, f"contradicts type={old_kind!r}; keep one")
    match kind:
        case "default":
            return None
        case "linear":
            return LinearScaling(rope.number("factor"))
        case "llama3":
            low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
            if high <= low:
                raise rope.wrong("high_freq_factor", high, f"must be above low_freq_factor={low:g}")
            return Llama3Scaling(
                factor=rope.number("factor"),
                low_frequency_factor=low,
                high_frequency_factor=high,
                original_context_tokens=rope.integer("original_max_position_embeddings", context_tokens),
            )
    raise rope.wrong("rope_type", kind, "is not computed here; only default, linear and llama3 are")
