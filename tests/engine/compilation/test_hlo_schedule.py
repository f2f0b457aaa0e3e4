"""The walk through a schedule, on schedules written by hand whose time is plain."""

from __future__ import annotations

import pytest

from engine.compilation.hlo_loops import Loops
from engine.compilation.hlo_report import report
from engine.compilation.hlo_schedule import Times
from engine.compilation.hlo_text import parse
from engine.compilation.hlo_traffic import hbm_bytes
from engine.compilation.topology import Topology
from engine.mesh import MeshShape

V4 = Topology.parse("v4:4x4x4")
CUBE = MeshShape(4, 4, 4)
AXES = (("x", 4), ("y", 4), ("z", 4))
MB = 448_000
"""Elements of bf16 that one link moves in 20 microseconds: 896 000 bytes at 44.8 GB/s."""
ALONG_Z = "replica_groups=[16,4]<=[64]"


def times(lines: str, computations: str = "") -> Times:
    body = "\n".join(f"  {line.strip()}" for line in lines.strip().splitlines())
    text = (
        f"HloModule m, is_scheduled=true\n\n{computations}\nENTRY %main (p: bf16[{MB}]) -> bf16[{MB}] {{\n{body}\n}}\n"
    )
    return report(text, V4, AXES, CUBE).times


def work(name: str, of: str, microseconds: float) -> str:
    """An operation on on-chip memory that takes so long."""
    cycles = round(microseconds * 1e-6 * V4.facts.clock_hz)
    return f'%{name} = bf16[{MB}]{{0:S(3)}} add(%{of}, %{of}), backend_config={{"estimated_cycles":"{cycles}"}}'


PARAMETER = f"%p = bf16[{MB}]{{0:S(3)}} parameter(0)"
START = f"%s = (bf16[{MB}], bf16[{4 * MB}]) all-gather-start(%p), channel_id=1, {ALONG_Z}, dimensions={{0}}"
DONE = f"%d = bf16[{4 * MB}]{{0:S(3)}} all-gather-done(%s)"
GATHER = 4 * 2 * MB / (2 * 44.8e9)  # 40 microseconds: what comes out, over two links


def test_work_alone() -> None:
    took = times("\n".join([PARAMETER, work("a", "p", 30), work("b", "a", 12)]))
    assert took.compute == pytest.approx(42e-6, rel=1e-4)
    assert (took.collectives, took.exposed, took.unestimated) == (0, 0, 0)


def test_a_gather_that_nothing_hides() -> None:
    took = times("\n".join([PARAMETER, START, DONE, work("a", "p", 30)]))
    assert took.compute == pytest.approx(30e-6, rel=1e-4)
    assert took.collectives == pytest.approx(GATHER)
    assert took.exposed == pytest.approx(GATHER)


@pytest.mark.parametrize(("microseconds", "exposed"), [(30, 10e-6), (40, 0), (75, 0)])
def test_a_gather_beside_work(microseconds: int, exposed: float) -> None:
    took = times("\n".join([PARAMETER, START, work("a", "p", microseconds), DONE]))
    assert took.collectives == pytest.approx(40e-6)
    assert took.exposed == pytest.approx(exposed, abs=1e-8)


def test_collectives_wait_for_each_other() -> None:
    second = [line.replace("%s", "%s2").replace("%d", "%d2") for line in (START, DONE)]
    took = times("\n".join([PARAMETER, START, second[0], work("a", "p", 50), DONE, second[1]]))
    assert took.collectives == pytest.approx(80e-6)
    assert took.exposed == pytest.approx(30e-6, rel=1e-3)


def test_a_loop_is_counted_as_often_as_it_runs() -> None:
    loop = f"""%body (q: (s32[], bf16[{MB}])) -> (s32[], bf16[{MB}]) {{
  %q = (s32[], bf16[{MB}]{{0:S(3)}}) parameter(0)
  %i = s32[] get-tuple-element(%q), index=0
  %x = bf16[{MB}]{{0:S(3)}} get-tuple-element(%q), index=1
  {work("y", "x", 10)}
  ROOT %t = (s32[], bf16[{MB}]{{0:S(3)}}) tuple(%i, %y)
}}

%condition (q: (s32[], bf16[{MB}])) -> pred[] {{
  %q = (s32[], bf16[{MB}]{{0:S(3)}}) parameter(0)
  %i = s32[] get-tuple-element(%q), index=0
  %n = s32[] constant(7)
  ROOT %c = pred[] compare(%i, %n), direction=LT
}}
"""
    while_ = f"%w = (s32[], bf16[{MB}]{{0:S(3)}}) while(%t), condition=%condition, body=%body"
    start = ["%zero = s32[] constant(2)", f"%t = (s32[], bf16[{MB}]{{0:S(3)}}) tuple(%zero, %p)"]
    looped = times("\n".join([PARAMETER, *start, while_]), loop)
    assert (looped.compute, looped.estimated) == (pytest.approx(50e-6, rel=1e-3), pytest.approx(50e-6, rel=1e-3))
    noted = while_ + ', backend_config={"known_trip_count":{"n":"11"}}'
    assert times("\n".join([PARAMETER, *start, noted]), loop).compute == pytest.approx(110e-6, rel=1e-3)
    unknown = loop.replace("direction=LT", "direction=NE")
    assert times("\n".join([PARAMETER, *start, while_]), unknown).compute == pytest.approx(10e-6, rel=1e-3)


def test_what_reads_memory_takes_as_long_as_that() -> None:
    """1 200 000 elements of bf16, read and written: 4.8 MB at 1.2e12 bytes a second are 4 microseconds."""
    lines = "%p = bf16[1200000] parameter(0)\n%a = bf16[1200000] negate(%p)"
    assert times(lines).compute == pytest.approx(4e-6)
    slower = lines + ', backend_config={"estimated_cycles":"10500"}'
    assert times(slower).compute == pytest.approx(10e-6)
    unknown = lines + ', backend_config={"estimated_cycles":"9223372036854775807"}'
    assert times(unknown).compute == pytest.approx(4e-6)


def test_a_copy_runs_beside_work_and_is_waited_for() -> None:
    """3 MB take 2.5 microseconds."""
    start = "%s = (bf16[1500000]{0:S(3)}, bf16[1500000], u32[]) copy-start(%w)"
    done = "%d = bf16[1500000]{0:S(3)} copy-done(%s)"
    first = [PARAMETER, "%w = bf16[1500000] parameter(1)", start]
    waiting = times("\n".join([*first, work("a", "p", 2), done]))
    assert (waiting.compute, waiting.estimated) == (pytest.approx(2.5e-6), pytest.approx(2e-6))
    assert times("\n".join([*first, work("a", "p", 9), done])).compute == pytest.approx(9e-6, rel=1e-3)


def test_an_asynchronous_slice_counts_what_it_takes_and_that_once() -> None:
    """Of 6 MB 3 are brought to on-chip memory, in 2.5 microseconds; a copy within HBM moves them twice."""
    slice_start = "%s = ((bf16[3000000]), bf16[1500000]{{0:{space}}}, s32[]) slice-start(%w), slice={{[0:1500000]}}"
    done = "%d = bf16[1500000]{0:S(3)} slice-done(%s)"
    first = [PARAMETER, "%w = bf16[3000000] parameter(1)"]
    assert times("\n".join([*first, slice_start.format(space="S(3)"), done])).compute == pytest.approx(2.5e-6)
    assert times("\n".join([*first, slice_start.format(space=""), done])).compute == pytest.approx(5e-6)


def test_two_rings_are_twice_as_fast_as_one_and_three_are_not() -> None:
    def seconds(groups: str) -> float:
        gather = f"%g = bf16[{MB}]{{0:S(3)}} reduce-scatter(%p), replica_groups={groups}, dimensions={{0}}"
        return times(f"{PARAMETER}\n{gather}").collectives

    one, two, three = seconds("[16,4]<=[64]"), seconds("[4,16]<=[64]"), seconds("[1,64]<=[64]")
    assert one == pytest.approx(10e-6)
    assert two == pytest.approx(5e-6)
    assert three == pytest.approx(10e-6)


def test_a_slice_of_a_large_buffer_is_read_as_a_slice_and_an_update_written_as_one() -> None:
    text = """HloModule m

%slice (whole: bf16[1000000], at: s32[]) -> bf16[100] {
  %whole = bf16[1000000] parameter(0)
  %at = s32[] parameter(1)
  ROOT %s = bf16[100] dynamic-slice(%whole, %at), dynamic_slice_sizes={100}
}

%update (whole: bf16[1000000], part: bf16[100], at: s32[]) -> bf16[1000000] {
  %whole = bf16[1000000] parameter(0)
  %part = bf16[100] parameter(1)
  %at = s32[] parameter(2)
  ROOT %u = bf16[1000000] dynamic-update-slice(%whole, %part, %at)
}

ENTRY %main (p: bf16[1000000], i: s32[]) -> bf16[1000000] {
  %p = bf16[1000000] parameter(0)
  %i = s32[] parameter(1)
  %a = bf16[100] fusion(%p, %i), kind=kLoop, calls=%slice
  ROOT %b = bf16[1000000] fusion(%p, %a, %i), kind=kLoop, calls=%update
}
"""
    module = parse(text)
    moved = {one.name: hbm_bytes(module, module.entry, one) for one in module.entry}
    assert moved == {"p": 0, "i": 0, "a": 200 + 200 + 4, "b": 200 + 200 + 4}
    assert [times for _, times in Loops(module).executed(module.entry)] == [1]


def test_what_a_fusion_within_a_fusion_only_names_anew_is_read_by_its_user() -> None:
    text = """HloModule m

%names (x: s8[8,100]) -> s8[800] {
  %x = s8[8,100] parameter(0)
  ROOT %b = s8[800] bitcast(%x)
}

%product (pool: s8[8,100], by: f32[800]) -> f32[] {
  %pool = s8[8,100] parameter(0)
  %by = f32[800]{0:S(1)} parameter(1)
  %flat = s8[800] fusion(%pool), kind=kLoop, calls=%names
  ROOT %c = f32[] custom-call(%flat, %by)
}

ENTRY %main (p: s8[8,100], w: f32[800]) -> f32[] {
  %p = s8[8,100] parameter(0)
  %w = f32[800]{0:S(1)} parameter(1)
  ROOT %a = f32[]{:S(1)} fusion(%p, %w), kind=kOutput, calls=%product
}
"""
    module = parse(text)
    assert hbm_bytes(module, module.entry, module.entry.instructions["a"]) == 800 + 4
