"""The JAX engine: token ids in, token ids and scores out, on a mesh.

    from engine import Engine, GenerateRequest, Sampling

    with Engine.load("path/to/checkpoint") as engine:
        future = engine.submit(GenerateRequest(prompt=(1, 2, 3), sampling=Sampling(max_tokens=8)))
        print(future.result()[0].token_ids)

Names are loaded when first used, so `import engine` costs nothing and touches no device.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.runtime.engine import Engine
    from engine.runtime.request import GenerateRequest, Generation, Sampling, Score, ScoreRequest

_HOME = {
    "Engine": "engine.runtime.engine",
    "Generation": "engine.runtime.request",
    "GenerateRequest": "engine.runtime.request",
    "Sampling": "engine.runtime.request",
    "Score": "engine.runtime.request",
    "ScoreRequest": "engine.runtime.request",
}
__all__ = ["Engine", "GenerateRequest", "Generation", "Sampling", "Score", "ScoreRequest"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'engine' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
