"""The TPU compiler itself, on small programs: what it answers, and how it fails."""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from engine.compilation import tpu_compiler
from engine.compilation.compile_check import Question, check
from engine.compilation.hlo_report import report
from engine.compilation.topology import FACTS, Topology, options_for
from engine.compilation.tpu_compiler import CompilerFailed, CompilerMissing, compile_programs, mesh_axes
from engine.errors import NoFeasiblePlan
from engine.mesh import MeshShape
from engine.steps.decode import TOP_LOGPROBS
from tests.engine.compilation.small_programs import PROGRAMS, SMALL, recorded
from tests.engine.tiny_models import LLAMA

compiles = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: pip install 'penstock[tpu]'"
)
HERE = "tests.engine.compilation.test_tpu_compiler"
ONE = Topology.parse("v5e:1x1")


# What the compiler's process is asked for.


def products(mesh: Mesh, size: int) -> Iterator[tuple[str, Any, Any]]:
    yield "product", jax.jit(lambda a, b: a @ b), [jax.ShapeDtypeStruct((size, size), jnp.bfloat16)] * 2


def too_large(mesh: Mesh, gib: int) -> Iterator[tuple[str, Any, Any]]:
    sharding = NamedSharding(mesh, PartitionSpec())
    yield "negate", jax.jit(jnp.negative), [jax.ShapeDtypeStruct((gib, 2**28), jnp.float32, sharding=sharding)]


def dies(mesh: Mesh, how: str) -> Iterator[tuple[str, Any, Any]]:
    if how == "refuses":
        raise NoFeasiblePlan("the plan does not divide")
    if how == "sleeps":
        time.sleep(60)
    print("the last thing that it says", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
    yield "never", None, ()


def nothing(mesh: Mesh, kind: str) -> Iterator[tuple[str, Any, Any]]:
    if (found := mesh.devices.item(0).device_kind) != kind:
        raise NoFeasiblePlan(f"jax calls it {found}")
    yield from products(mesh, 8)


# What it answers.


@compiles
@pytest.mark.parametrize("chip", ["v4", "v5p"])
def test_a_device_s_kind_is_what_its_options_are_found_by(chip: str) -> None:
    kind = FACTS[chip].device_kind
    assert compile_programs(Topology.parse(f"{chip}:1x1x1"), MeshShape(1, 1, 1), f"{HERE}:nothing", kind)
    assert options_for(kind) == FACTS[chip].options


@compiles
def test_programs_are_compiled_to_what_is_recorded() -> None:
    """Forms, bytes and times, not the text: other versions name things otherwise."""
    names = ["gather_two_rings", "scatter", "scatter_padded", "loop"]
    small = SMALL[names[0]]
    found = compile_programs(small.topology, small.mesh, PROGRAMS, names)
    assert [one.name for one in found] == names
    for one in found:
        fresh, old = (report(text, small.topology, small.axes, small.mesh) for text in (one.text, recorded(one.name)))
        assert fresh.sent == old.sent
        assert fresh.times.compute == pytest.approx(old.times.compute, rel=0.05)
        assert one.fits
        assert one.temp_bytes is not None
        assert one.seconds > 0
    # The scheduler's cost of its asynchronous gather is the one that a report counts with.
    gather = report(found[0].text, small.topology, small.axes, small.mesh)
    assert found[0].scheduler_raw_seconds == pytest.approx(gather.times.collectives, rel=0.01)
    assert found[1].scheduler_raw_seconds == 0  # nothing asynchronous


@compiles
def test_a_donated_argument_is_counted_and_aliased() -> None:
    small = SMALL["steps"]
    (found,) = compile_programs(small.topology, small.mesh, PROGRAMS, ["steps"])
    assert found.donated == 1
    assert found.alias_bytes == 1024 * 512 * 2
    assert report(found.text, small.topology, small.axes, small.mesh).aliased == 1


@compiles
@pytest.mark.parametrize(("chips", "size"), [("v4:1x1x1", 8192), ("v5e:1x1", 4096)])
def test_a_large_product_takes_what_arithmetic_says(chips: str, size: int) -> None:
    """Within 12 %, and not less than the chip's peak allows. Its arguments are placed though they say no place."""
    topology = Topology.parse(chips)
    (found,) = compile_programs(topology, topology.mesh, f"{HERE}:products", size)
    took = report(found.text, topology, mesh_axes(topology, topology.mesh), topology.mesh).times.compute
    ideal = 2 * size**3 / topology.chip.bf16_flops_per_second
    assert ideal <= took <= 1.12 * ideal
    assert found.argument_bytes == 2 * size**2 * 2
    assert found.peak_bytes >= 3 * size**2 * 2


@compiles
def test_what_does_not_fit_is_an_answer_with_a_number() -> None:
    (found,) = compile_programs(ONE, ONE.mesh, f"{HERE}:too_large", 8)
    assert not found.fits
    assert found.peak_bytes == pytest.approx(16 * 2**30, rel=0.01)
    assert found.text == ""


@compiles
def test_a_compiler_that_breaks_down_is_an_error_with_its_last_words() -> None:
    with pytest.raises(CompilerFailed, match="ended by SIGSEGV while compiling for v5e:1x1") as failed:
        compile_programs(ONE, ONE.mesh, f"{HERE}:dies", "at once")
    assert "the last thing that it says" in str(failed.value)


@compiles
def test_what_the_engine_refuses_there_it_refuses_here() -> None:
    with pytest.raises(NoFeasiblePlan, match=r"^the plan does not divide$"):
        compile_programs(ONE, ONE.mesh, f"{HERE}:dies", "refuses")


@compiles
def test_what_the_compiler_refuses_for_another_reason_is_an_error() -> None:
    with pytest.raises(CompilerFailed, match=r"refuses product for v5e:1x1: .*xla_no_such_option"):
        compile_programs(ONE, ONE.mesh, f"{HERE}:products", 128, options={"xla_no_such_option": "1"})


@compiles
def test_a_compiler_that_takes_too_long_is_an_error() -> None:
    with pytest.raises(CompilerFailed, match="did not finish within 3 s"):
        compile_programs(ONE, ONE.mesh, f"{HERE}:dies", "sleeps", timeout_seconds=3.0)


@compiles
def test_between_the_stages_of_a_pipeline_goes_the_residual_stream() -> None:
    """And what was sampled: tokens, log-probabilities and, in a branch, the likeliest of every slot."""
    config = replace(LLAMA, embed=1024, ffn=1024, heads=4, kv_heads=4, head_dim=128, vocab=1024, context_tokens=2048)
    answer = check(Question("small", config, Topology.parse("2*v5e:2x1"), "decode", 32, 256))
    assert answer.report
    assert answer.cache_aliased
    sent = [one for one in answer.report.sent if "slice" in one.collective.axes]
    (handed_on,) = [one for one in sent if one.collective.kind == "collective-permute"]
    slots = 16  # in a group; of the stream every chip has a half
    assert (handed_on.count, handed_on.collective.bytes) == (1, slots * 1024 * 2 // 2)
    assert all(one.collective.bytes <= 2 * slots * TOP_LOGPROBS * 4 for one in sent if one is not handed_on)


# What is known without it.


def test_without_the_compiler_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpu_compiler.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CompilerMissing, match=r"pip install 'penstock\[tpu\]'"):
        compile_programs(ONE, ONE.mesh, PROGRAMS, [])


@pytest.mark.parametrize(
    ("chips", "mesh", "says"),
    [
        ("v4:4x4x4", "4x4x2", "a mesh of 4x4x2 is 32 devices, and a slice of v4:4x4x4 has 64; use 4x4x4"),
        ("2*v4:2x2x1", "2x2x2", r"a slice of 2\*v4:2x2x1 has 4; use 2x2x1"),
        ("2*v4:2x2x1", "3*2x2x1", r"a mesh of 3\*2x2x1 is 3 slices, and 2\*v4:2x2x1 is 2"),
        ("tpu7x:2x2x1", "2x2x1", r"a slice of tpu7x:2x2x1 has 8 \(2 a chip\); use 2x2x2"),
    ],
)
def test_a_mesh_must_be_as_large_as_a_slice(chips: str, mesh: str, says: str) -> None:
    with pytest.raises(NoFeasiblePlan, match=says):
        mesh_axes(Topology.parse(chips), MeshShape.parse(mesh))


def test_slices_are_the_major_axis() -> None:
    topology = Topology.parse("2*v5e:4x4")
    for mesh in (MeshShape(4, 2, 2), MeshShape(4, 2, 2, slices=2)):
        assert mesh_axes(topology, mesh) == (("slice", 2), ("x", 4), ("y", 2), ("z", 2))
