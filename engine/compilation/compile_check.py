"""The check against the TPU compiler: does a phase of a model fit chips, what does it send, how long may it take.

What is compiled are the engine's own programs (engine/compilation/abstract.py). Every time is an estimate of the
compiler; nothing was measured.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from engine.compilation.hlo_report import Report, report
from engine.compilation.model_named import read_model
from engine.compilation.topology import Topology
from engine.compilation.tpu_compiler import Compiled, compile_programs, mesh_axes
from engine.errors import NoFeasiblePlan
from engine.families import Open, open_local
from engine.layout import Layout, Layouts
from engine.mesh import MeshShape
from engine.model.config import ModelConfig
from engine.planning.program import DTYPES

Phase = Literal["prefill", "decode"]

ESTIMATES = "all times are the TPU compiler's estimates; nothing was measured"

_KEY_BLOCK = 128
"""Positions that one round of an attention loop takes, in the cache's pages and in prefill."""


@dataclass(frozen=True)
class Question:
    """What is to be compiled, for what."""

    model: str
    """As it was named."""
    config: ModelConfig
    topology: Topology
    phase: Phase
    batch: int
    """Sequences of all slices together: of a prefill, or decoded at the same time."""
    context_tokens: int
    """Of each: its prompt in prefill, what its cache holds in decode."""
    mesh: MeshShape | None = None
    """Of a slice; its torus, if not given. Several slices are the stages of a pipeline."""
    ffn: str | None = None
    attention: str | None = None
    weights: str = "bf16"
    kv: str = "bf16"

    @classmethod
    def of(
        cls,
        model: str,
        chips: str,
        phase: Phase,
        batch: int,
        context_tokens: int,
        *,
        mesh: str | None = None,
        layers: int | None = None,
        open: Open = open_local,
        **how: Any,
    ) -> Question:
        """From what a person writes; `layers` of the model, if not all. `how`: ffn, attention, weights and kv."""
        config = read_model(model, open)
        if layers is not None:
            config = with_layers(config, layers)
        shape = MeshShape.parse(mesh) if mesh else None
        return cls(model, config, Topology.parse(chips), phase, batch, context_tokens, shape, **how)

    @property
    def mesh_shape(self) -> MeshShape:
        mesh = self.mesh or self.topology.mesh
        return mesh if mesh.slices > 1 else replace(mesh, slices=self.topology.count)

    @property
    def layouts(self) -> Layouts:
        """The other phase, which is not asked about, has the same: it makes no demands of its own."""
        return Layouts(self.layout, self.layout)

    @property
    def layout(self) -> Layout:
        asked = {self.phase: (self.ffn, self.attention)}
        both = Layouts.asked(self.config.kv_heads, str(self.mesh_shape), asked.get("prefill"), asked.get("decode"))
        return both.prefill if self.phase == "prefill" else both.decode

    @property
    def counted(self) -> str:
        """What times and collectives are of: a tick of a pipeline takes one group of the slots a stage further."""
        if self.phase == "prefill":
            return "one prefill"
        stages = self.mesh_shape.slices
        if stages == 1:
            return "one decode step"
        return f"one tick ({stages} a step)"

    @property
    def assumed_runs(self) -> tuple[int, ...]:
        """Of loops whose end depends on data: one tick of decode, and as much attention as a full context needs."""
        blocks = -(-self.context_tokens // _KEY_BLOCK)
        if self.phase == "decode":
            return 1, -(-blocks // self.layout.mesh.size(self.layout.attention_sequence))
        return (-(-(blocks + 1) // 2),)  # a block of queries sees half the keys on average


@dataclass(frozen=True)
class Answer:
    """One program as the compiler made it; `report` is None if it does not fit."""

    question: Question
    compiled: Compiled
    report: Report | None

    @property
    def limit_bytes(self) -> int:
        return self.question.topology.limit_bytes

    @property
    def cache_aliased(self) -> bool | None:
        """Whether everything that is given up to the program is updated in place; None if nothing is, or unknown."""
        if not self.compiled.donated or self.report is None:
            return None
        return self.report.aliased >= self.compiled.donated

    @property
    def warnings(self) -> list[str]:
        found = list(self.report.warnings()) if self.report else []
        if not self.compiled.fits:
            needs, has = self.compiled.peak_bytes / 2**30, self.limit_bytes / 2**30
            found.insert(0, f"it does not fit: {needs:.2f} GiB a device are needed, and a program may use {has:.2f}")
        if self.cache_aliased is False:
            aliased = self.report.aliased if self.report else 0
            found.append(f"of {self.compiled.donated} buffers that should be updated in place {aliased} are")
        return found

    def to_json(self) -> dict[str, Any]:
        question, compiled = self.question, self.compiled
        times, outside = (self.report.times, self.report.outside) if self.report else (None, None)
        return {
            "model": question.model,
            "layers": question.config.layers,
            "chips": str(question.topology),
            "mesh": str(question.mesh_shape),
            "phase": question.phase,
            "batch": question.batch,
            "context": question.context_tokens,
            "layout": {"ffn": question.layout.ffn, "attention": question.layout.attention},
            "weights": question.weights,
            "kv": question.kv,
            "program": compiled.name,
            "counted": question.counted,
            "fits": compiled.fits,
            "peak_bytes": compiled.peak_bytes,
            "limit_bytes": self.limit_bytes,
            "argument_bytes": compiled.argument_bytes,
            "temp_bytes": compiled.temp_bytes,
            "cache_aliased": self.cache_aliased,
            "collectives": [sent.to_json() for sent in self.report.sent] if self.report else [],
            "copies": [copy.to_json() for copy in self.report.copies] if self.report else [],
            "estimates": ESTIMATES,
            "compute_seconds": times and times.compute,
            "estimated_seconds": times and times.estimated,
            "collective_seconds": {
                "raw": times and times.collectives,
                "exposed": times and times.exposed,
                "scheduler_raw": times and compiled.scheduler_raw_seconds,
                "scheduler_exposed": times and compiled.scheduler_exposed_seconds,
            },
            "call_seconds": outside and outside.compute + outside.exposed,
            "compile_seconds": compiled.seconds,
            "warnings": self.warnings,
        }


def with_layers(config: ModelConfig, layers: int) -> ModelConfig:
    """The model's first layers."""
    if not 1 <= layers <= config.layers:
        raise NoFeasiblePlan(f"the model has {config.layers} layers; {layers} of them cannot be compiled")
    return replace(config, layers=layers, windows=config.windows[:layers])


def check(question: Question) -> Answer:
    """Compiles, in a process of its own, and reads the result."""
    compiled = compile_programs(question.topology, question.mesh_shape, f"{__name__}:programs", question)[0]
    if not compiled.fits and not compiled.text:
        return Answer(question, compiled, None)
    read = report(
        compiled.text,
        question.topology,
        mesh_axes(question.topology, question.mesh_shape),
        question.mesh_shape,
        layers=question.config.layers // question.mesh_shape.slices,
        assumed_runs=question.assumed_runs,
        of_step=question.phase == "decode",
    )
    return Answer(question, compiled, read)


def programs(mesh: Any, question: Question) -> Iterable[tuple[str, Any, Any]]:
    """The phase's program, for `compile_programs`."""
    from engine.compilation.abstract import decode_programs, prefill_programs  # jax is wanted in that process alone

    common = (question.config, question.layouts, mesh, question.batch, question.context_tokens)
    if question.phase == "prefill":
        found = prefill_programs(*common, weights=DTYPES[question.weights])
    else:
        found = decode_programs(*common, weights=DTYPES[question.weights], kv=DTYPES[question.kv])
    return [(one.name, one.jitted, one.args) for one in found]
