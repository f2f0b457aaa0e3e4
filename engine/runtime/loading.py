"""What model to load and how to hold it: the same in every process that has a part of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from engine.compilation.placement import Placement
from engine.compilation.preflight import preflight
from engine.errors import NoFeasiblePlan, OutOfMemory
from engine.families import Open, open_local, read_config
from engine.layout import Layouts
from engine.mesh import MeshShape
from engine.model.params import Params, count
from engine.planning.chips import named_chip
from engine.runtime.device_check import check_devices, find_devices
from engine.weights.load import load_params
from engine.weights.shards import Shards


@dataclass(frozen=True)
class Loaded:
    """Parameters where they rest, on the chips of this process."""

    params: Params
    placement: Placement
    eos_tokens: tuple[int, ...]
    device: Any
    """A jax.Device of this process."""
    dtype: str
    kv_dtype: str


@dataclass(frozen=True)
class ModelAsked:
    """See `Engine.load` for the fields."""

    checkpoint: str
    open: Open = open_local
    dtype: str = "auto"
    weights: str = "auto"
    kv: str = "auto"
    mesh: str | None = None
    prefill: Sequence[str | None] | None = None
    decode: Sequence[str | None] | None = None
    chip: str = "auto"

    def __post_init__(self) -> None:
        for name, value, possible in (
            ("dtype", self.dtype, ("auto", "float32", "bfloat16")),
            ("weights", self.weights, ("auto", "int8")),
            ("kv", self.kv, ("auto", "int8")),
        ):
            if value not in possible:
                raise NoFeasiblePlan(f"{name} must be one of {', '.join(possible)}; got {value!r}")
        if self.chip != "auto":
            named_chip(self.chip)

    def terms(self) -> dict[str, str]:
        """What processes that compute together must agree in. Of the checkpoint headers and samples are read."""
        facts = preflight(self.checkpoint, self.open, mesh=self.mesh, prefill=self.prefill, decode=self.decode)
        layouts = {"prefill": self.prefill, "decode": self.decode}
        return {
            "jax": jax.__version__,
            "the checkpoint's fingerprint": facts.fingerprint,
            "model.dtype": self.dtype,
            "model.weights": self.weights,
            "model.kv": self.kv,
            "engine.mesh": self.mesh or "1x1x1",
            "engine.chip": self.chip,
        } | {f"engine.{phase}": " ".join(name or "auto" for name in names or ()) for phase, names in layouts.items()}

    def load(self) -> Loaded:
        """Reads what the chips of this process need, straight to where it rests.

        Raises WrongDevice before it reads anything, and OutOfMemory before it reads weights that cannot fit.
        """
        found = find_devices()
        check_devices(found, MeshShape.parse(self.mesh or "1x1x1"), self.chip, self.dtype)
        facts = read_config(self.checkpoint, self.open)
        layouts = Layouts.asked(facts.model.kv_heads, self.mesh, self.prefill, self.decode)
        placement = Placement.on_devices(facts.model, layouts)
        device = jax.local_devices()[0]
        dtype = self.dtype
        if dtype == "auto":
            dtype = "bfloat16" if device.platform != "cpu" and facts.dtype == "bfloat16" else "float32"
        held = self.weights if self.weights == "int8" else dtype
        least_bytes = count(facts.model) * jnp.dtype(held).itemsize // layouts.mesh.chips
        if found.memory_bytes and least_bytes > found.memory_bytes:
            raise OutOfMemory(
                f"the weights take at least {least_bytes / 2**30:.2f} GiB of each chip in {held} on a mesh of "
                f"{layouts.mesh}, and each has {found.memory_bytes / 2**30:.2f} GiB. Hold them as int8 (model.weights) "
                "or over more chips (engine.mesh); penstock plan finds what fits"
            )
        params = load_params(
            self.checkpoint,
            facts.model,
            open=self.open,
            dtype=dtype,
            weights="int8" if self.weights == "int8" else None,
            held=placement.held,
            to=Shards(placement.param_sharding) if placement.mesh else None,
            place=lambda _, array: jax.device_put(array, device),
        )
        kv_dtype = dtype if self.kv == "auto" else self.kv
        return Loaded(params, placement, facts.eos_token_ids, device, dtype, kv_dtype)


def check_hosts(placement: Placement) -> None:
    """Raises NoFeasiblePlan unless all chips of all processes are used."""
    chips, there = placement.layouts.mesh.chips, len(jax.devices())
    if chips != there:
        raise NoFeasiblePlan(
            f"engine.mesh {placement.layouts.mesh} is {chips} chips, and the {jax.process_count()} hosts have {there} "
            "together: use all of them, or fewer hosts"
        )
