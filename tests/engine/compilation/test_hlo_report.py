"""Reports on programs that the TPU compiler compiled (small_programs.py), against what the programs ask for."""

from __future__ import annotations

import pytest

from engine.compilation.hlo_collectives import Collective
from engine.compilation.hlo_report import Report, Sent, report
from engine.compilation.hlo_text import parse
from tests.engine.compilation.small_programs import SMALL, recorded


def report_on(name: str, **how: object) -> Report:
    small = SMALL[name]
    return report(recorded(name), small.topology, small.axes, small.mesh, **how)


def sent(name: str, **how: object) -> dict[Collective, int]:
    return {one.collective: one.count for one in report_on(name, **how).sent}


def test_an_asynchronous_gather_over_two_axes_is_one_collective() -> None:
    gathered = Collective("all-gather", ("y", "z"), 16, 512 * 2048 * 2, is_async=True)
    assert sent("gather_two_rings") == {gathered: 1}
    assert gathered.wire_bytes == 512 * 2048 * 2 * 15 // 16


def test_a_gather_spread_over_computations_is_one_collective() -> None:
    text = recorded("gather_fused")
    assert text.count(" all-gather(") > 1
    assert sent("gather_fused") == {Collective("all-gather", ("x",), 4, 512 * 2048 * 2, is_async=True): 1}


def test_scattering_a_dimension_of_its_own_sends_exactly_the_shards() -> None:
    assert sent("scatter") == {Collective("reduce-scatter", ("x",), 4, 2048 * 4608 * 2): 1}
    assert not list(report_on("scatter").warnings())


def test_a_padded_reduce_scatter_is_recognised_in_its_disguise() -> None:
    assert " all-reduce(" in recorded("scatter_padded")
    assert " reduce-scatter(" not in recorded("scatter_padded")
    scattered, rim = sent("scatter_padded")
    assert (scattered.kind, scattered.bytes, scattered.was) == ("reduce-scatter", 2048 * 4608 * 2, "")
    assert scattered.padding_bytes == (2112 - 2048) * 4608 * 2
    assert scattered.wire_bytes == 2112 * 4608 * 2 * 3 // 4
    assert (rim.kind, rim.was) == ("collective-permute", "padding")
    assert [warning for warning in report_on("scatter_padded").warnings() if "padded by 3.1%" in warning]


def test_a_reduce_scatter_that_became_an_all_reduce_is_a_warning() -> None:
    (one,) = sent("scatter_of_few_rows")
    assert (one.kind, one.was, one.bytes) == ("all-reduce", "reduce-scatter", 8 * 8192 * 2)
    assert one.wire_bytes == 2 * one.bytes * 3 // 4
    assert [warning for warning in report_on("scatter_of_few_rows").warnings() if "became an all-reduce" in warning]


def test_what_a_loop_sends_is_counted_as_often_as_it_runs() -> None:
    one = 1024 * 512 * 2
    counted = report_on("loop")
    assert {(sent.collective.kind, sent.collective.bytes): sent.count for sent in counted.sent} == {
        ("reduce-scatter", one): 3,
        ("all-gather", one): 3,
    }
    for entry in (sent.to_json() for sent in counted.sent):
        assert entry["bytes"] == 3 * one
        assert entry["wire_bytes"] == 3 * one * 3 // 4
    assert not counted.assumed_runs


@pytest.mark.parametrize(("layer", "of_a_layer"), [("layer1/", 1), ("layer0/", 0), ("", 0)])
def test_what_a_layer_sends_is_what_bears_its_name(layer: str, of_a_layer: int) -> None:
    small = SMALL["scatter"]
    text = recorded("scatter").replace('op_name="jit(_scatter_major)/', f'op_name="jit(_scatter_major)/{layer}')
    (entry,) = (sent.to_json() for sent in report(text, small.topology, small.axes, small.mesh, layers=4).sent)
    of_all = (1, 2048 * 4608 * 2)
    assert (entry["count"], entry["bytes"]) == of_all
    assert (entry["count_per_layer"], entry["bytes_per_layer"]) == (of_all if of_a_layer else (0, 0))


def test_a_step_of_a_loop_without_an_end_that_is_known() -> None:
    step = report_on("steps", assumed_runs=(1, 5), of_step=True)
    assert {(one.collective.kind, one.collective.axes): one.count for one in step.sent} == {
        ("collective-permute", ("x",)): 1,
        ("all-reduce", ("x", "y")): 1,
    }
    assert dict(step.assumed_runs) == {5: 1}  # the inner loop; the outer one is the step
    assert step.aliased == 1
    assert step.outside is not None
    assert step.outside.compute < step.times.compute
    # Ten times the inner loop is less than ten times the step, and more than the step.
    longer = report_on("steps", assumed_runs=(1, 50), of_step=True)
    assert 2 < longer.times.compute / step.times.compute < 10


def test_the_whole_of_a_loop_without_an_end_that_is_known() -> None:
    once, thrice = (report_on("steps", assumed_runs=(runs, 5)) for runs in (1, 3))
    assert [one.count for one in thrice.sent] == [3 * one.count for one in once.sent]
    assert thrice.outside is None


def test_the_hops_of_a_ring_are_the_collective_that_they_are_together() -> None:
    small = SMALL["steps"]
    text = recorded("steps").replace("/ppermute", "/looped_reduce_scatter/ppermute")

    def along_x(report: Report) -> Sent:
        (one,) = [one for one in report.sent if one.collective.axes == ("x",)]
        return one

    hop = along_x(report_on("steps", assumed_runs=(1, 5)))
    chips, hops = hop.collective.group, hop.collective.group - 1
    ring = along_x(report(text, small.topology, small.axes, small.mesh, assumed_runs=(2 * hops, 5)))
    assert (ring.collective.kind, ring.collective.bytes) == ("reduce-scatter", chips * hop.collective.bytes)
    assert (ring.count, ring.collective.wire_bytes) == (2, hops * hop.collective.wire_bytes)
    assert ring.seconds == pytest.approx(2 * hops * hop.seconds)
    assert ring.to_json()["looped"]
    assert not hop.to_json()["looped"]


def test_an_exchange() -> None:
    assert sent("exchange") == {Collective("all-to-all", ("x",), 4, 512 * 1024 * 2): 1}


def test_slices_exchange_through_their_hosts() -> None:
    (one,) = report_on("between_slices").sent
    assert one.collective == Collective("all-reduce", ("slice",), 2, 512 * 1024 * 2, is_async=True)
    network = SMALL["between_slices"].topology.chip.network_bytes_per_second
    assert one.seconds == pytest.approx(512 * 1024 * 2 / network)  # half of it there, half of it back


def test_an_argument_that_is_laid_out_anew_is_a_warning() -> None:
    (copy,) = report_on("laid_out_anew").copies
    assert copy.argument == "w s8[2048,4096]"
    assert copy.count == 1
    assert [warning for warning in report_on("laid_out_anew").warnings() if "w s8[2048,4096]" in warning]


@pytest.mark.parametrize("name", ["scatter", "loop", "gather_fused"])
def test_arguments_that_are_read_where_they_lie_are_no_copies(name: str) -> None:
    assert report_on(name).copies == ()


def test_groups_along_no_axis_of_the_mesh_are_said() -> None:
    text = recorded("scatter").replace("{{0,16,32,48}", "{{0,17,34,51}")
    small = SMALL["scatter"]
    assert text != recorded("scatter")
    (one,) = report(text, small.topology, small.axes, small.mesh).sent
    assert (one.collective.axes, one.collective.group) == ((), 4)


def test_groups_in_the_short_form() -> None:
    small = SMALL["scatter"]
    start = recorded("scatter").index("replica_groups=")
    end = recorded("scatter").index("}}", start) + 2
    text = recorded("scatter")[:start] + "replica_groups=[16,4]<=[4,16]T(1,0)" + recorded("scatter")[end:]
    (one,) = report(text, small.topology, small.axes, small.mesh).sent
    assert one.collective == Collective("reduce-scatter", ("x",), 4, 2048 * 4608 * 2)


def test_a_kernels_own_metadata_over_several_lines_ends_no_computation() -> None:
    module = parse(
        "HloModule m\n\n"
        "ENTRY %main (a: f32[8]) -> f32[8] {\n"
        "  %a = f32[8]{0} parameter(0)\n"
        "  %kernel = f32[8]{0} custom-call(%a), frontend_attributes={kernel_metadata={\n"
        '"block": 512\n'
        '}}, backend_config={"estimated_cycles":"7"}\n'
        "  ROOT %out = f32[8]{0} negate(%kernel)\n"
        "}\n"
    )
    assert [one.opcode for one in module.entry] == ["parameter", "custom-call", "negate"]
