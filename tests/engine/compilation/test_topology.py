"""Topologies by name, as values; the compiler itself is asked in test_tpu_compiler.py."""

from __future__ import annotations

import math

import pytest

from engine.compilation.topology import FACTS, Topology, options_for
from engine.errors import NoFeasiblePlan
from engine.mesh import MeshShape


@pytest.mark.parametrize(
    ("name", "grid", "wraps", "hosts"),
    [
        ("v4:4x4x4", (4, 4, 4), (True, True, True), (2, 2, 1)),
        ("v4:2x2x4", (2, 2, 4), (False, False, True), (2, 2, 1)),
        ("v4:1x1x1", (1, 1, 1), (False, False, False), (1, 1, 1)),
        ("v5p:4x8x2", (4, 8, 2), (True, True, False), (2, 2, 1)),
        ("v5e:4x4", (4, 4, 1), (False, False, False), (4, 2, 1)),
        ("v5e:16x16", (16, 16, 1), (True, True, False), (4, 2, 1)),
        ("v6e:3x2", (3, 2, 1), (False, False, False), (1, 2, 1)),
        ("tpu7x:2x2x4", (2, 2, 8), (False, False, True), (2, 2, 1)),
    ],
)
def test_what_the_compiler_is_told(
    name: str, grid: tuple[int, ...], wraps: tuple[bool, ...], hosts: tuple[int, ...]
) -> None:
    topology = Topology.parse(name)
    told = topology.description()
    assert str(topology) == name
    assert topology.grid == grid
    assert topology.mesh == MeshShape(*grid)
    assert told["wrap"] == wraps
    assert told["chips_per_host_bounds"] == hosts
    assert told["topology_name"] == name
    assert told["num_slices"] == 1
    assert told.get("chip_config_name") == ("megacore" if name[:2] == "v4" or name[:3] == "v5p" else None)


def test_slices() -> None:
    topology = Topology.parse("3*v4:2x2x1")
    assert (topology.count, topology.chips, topology.mesh.chips) == (3, 12, 12)
    assert str(topology) == "3*v4:2x2x1"
    assert topology.description()["num_slices"] == 3
    assert topology.description()["topology_name"] == "v4:2x2x1"


def test_limits_are_those_of_a_device() -> None:
    assert Topology.parse("v4:1x1x1").limit_bytes == 30.75 * 2**30
    assert Topology.parse("v5e:1x1").limit_bytes == 15.75 * 2**30
    seven = Topology.parse("tpu7x:1x1x1")
    assert seven.mesh.chips == 2
    assert seven.hbm_bytes_per_second * 2 == seven.chip.hbm_bytes_per_second


def test_every_chip_the_compiler_knows_has_what_is_needed() -> None:
    for name in FACTS:
        shape = "x".join(["2"] * (2 if name in ("v5e", "v6e") else 3))
        topology = Topology.parse(f"{name}:{shape}")
        assert topology.limit_bytes > 2**33
        # The compiler's links are within a tenth of what the vendor states.
        assert math.isclose(topology.facts.link_bytes_per_second, topology.chip.link_bytes_per_second, rel_tol=0.1)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v9:2x2", "there is no TPU compiler for 'v9'; there is for v4, v5e, v5p, v6e, tpu7x"),
        ("h100:2x2", "there is no TPU compiler for 'h100'"),
        ("v4", "CHIP:AxBxC"),
        ("v4:8", "CHIP:AxBxC"),
        ("2*3*v4:1x1x1", "CHIP:AxBxC"),
        ("v4:4x4", "the torus of v4 has 3 axes; write AxBxC"),
        ("v5e:4x4x4", "the torus of v5e has 2 axes; write AxB"),
        ("v5e:32x16", "the largest slice of v5e is 16x16"),
        ("v4:0x4x4", "at least 1"),
        ("0*v4:4x4x4", "at least 1"),
    ],
)
def test_what_does_not_exist_is_said(name: str, says: str) -> None:
    with pytest.raises(NoFeasiblePlan) as refused:
        Topology.parse(name)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("name", "mesh", "axes"),
    [
        ("v4:4x4x4", "4x4x4", {"x": (0,), "y": (1,), "z": (2,)}),
        ("v4:4x4x4", "16x4x1", {"x": (0, 1), "y": (2,), "z": ()}),
        ("v4:4x4x4", "4x2x8", {"x": (0,), "y": (), "z": ()}),
        ("v5e:4x4", "4x2x2", {"x": (0,), "y": (), "z": ()}),
        ("v5e:4x4", "2x8x1", {"x": (), "y": (), "z": ()}),
        ("v4:1x4x4", "4x4x1", {"x": (1,), "y": (2,), "z": ()}),
    ],
)
def test_mesh_axes_that_are_whole_axes_of_the_torus(name: str, mesh: str, axes: dict[str, tuple[int, ...]]) -> None:
    assert Topology.parse(name).torus_axes(MeshShape.parse(mesh)) == axes


def test_options_of_what_is_no_tpu() -> None:
    assert options_for("NVIDIA H100 80GB HBM3") == {}
    assert options_for("TPU v5 lite") == {}  # gathers are asynchronous there without being asked
    assert options_for("TPU v6 lite")["xla_enable_async_all_gather"] == "ENABLED"
