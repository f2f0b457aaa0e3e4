"""A model by the name that a person gives it: a published one, or a checkpoint. Nothing of jax is imported for it."""

from __future__ import annotations

from engine.errors import NoFeasiblePlan, UnsupportedCheckpoint
from engine.families import Open, open_local, read_config
from engine.model.config import ModelConfig
from engine.planning.named_models import NAMED_MODELS


def read_model(name: str, open: Open = open_local) -> ModelConfig:
    """A published model by its name, or the one that a checkpoint holds."""
    if name.lower() in NAMED_MODELS:
        return NAMED_MODELS[name.lower()]
    try:
        return read_config(name, open).model
    except UnsupportedCheckpoint as error:
        if "/" in name or "there is no checkpoint" not in str(error):
            raise
        raise NoFeasiblePlan(
            f"{name!r} is neither a directory with a checkpoint nor a model known by name; those are "
            f"{', '.join(NAMED_MODELS)}"
        ) from error
