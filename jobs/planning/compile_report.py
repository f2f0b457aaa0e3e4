"""`penstock compile`: what the TPU compiler makes of a phase of a model, for people and as JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table

from engine.compilation.compile_check import Question, check
from jobs.planning.words import gib
from pipeline.storage import open_input


def run(options: argparse.Namespace, console: Console) -> bool:
    """Compiles what the command line asks, prints what came of it, and returns whether it fits."""
    question = Question.of(
        options.model,
        options.chips,
        options.phase,
        options.batch,
        options.context,
        mesh=options.mesh,
        layers=options.layers,
        open=open_input,
        ffn=options.ffn,
        attention=options.attention,
        weights=options.weights,
        kv=options.kv,
    )
    answer = check(question).to_json()
    if options.json:
        print(json.dumps(answer, indent=2))
    else:
        console.print(rendered(answer))
    return answer["fits"]


def rendered(answer: Mapping[str, Any]) -> RenderableType:
    """The answer as tables."""
    facts = Table.grid(padding=(0, 2))
    for label, text in _facts(answer):
        facts.add_row(label, text)
    parts: list[RenderableType] = [facts]
    if answer["collectives"]:
        parts += ["", _collectives(answer["collectives"])]
    if answer["warnings"]:
        parts += ["", *(f"warning: {warning}" for warning in answer["warnings"])]
    return Group(*parts, "", f"Note: {answer['estimates']}.")


def _facts(answer: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    layout = answer["layout"]
    layers = f"{answer['layers']} layer{'s' * (answer['layers'] > 1)}"
    yield "program", f"{answer['phase']} of {answer['model']}, {layers}, {answer['batch']} sequences"
    yield "", f"of {answer['context']} tokens, weights {answer['weights']}, cache {answer['kv']}"
    yield "chips", f"{answer['chips']}, mesh {answer['mesh']}, {layout['ffn']}, attention over {layout['attention']}"
    fits = "fits" if answer["fits"] else "DOES NOT FIT"
    yield "memory", f"{fits}: {gib(answer['peak_bytes'])} of {gib(answer['limit_bytes'])} a device"
    if answer["argument_bytes"] is not None:
        yield "", f"arguments {gib(answer['argument_bytes'])}, temporaries {gib(answer['temp_bytes'])}"
    if answer["cache_aliased"] is not None:
        yield "cache", "updated in place" if answer["cache_aliased"] else "COPIED"
    sent = answer["collective_seconds"]
    if answer["compute_seconds"] is not None:
        whole = answer["compute_seconds"] + sent["exposed"]
        yield answer["counted"], f"{_time(whole)}: computation {_time(answer['compute_seconds'])}"
        yield "", f"(operations alone, as if memory were never waited for: {_time(answer['estimated_seconds'])})"
        yield "", f"+ exposed communication {_time(sent['exposed'])} (of {_time(sent['raw'])})"
    if answer["call_seconds"] is not None:
        yield "each call", f"{_time(answer['call_seconds'])} besides its steps"
    yield "compiled in", _time(answer["compile_seconds"])


def _collectives(collectives: Iterable[Mapping[str, Any]]) -> Table:
    table = Table("collective", "over", title="sent, per chip")
    for column in ("count", "a layer", "bytes each", "bytes", "on the wire", "raw time"):
        table.add_column(column, justify="right")
    for one in sorted(collectives, key=lambda one: -one["raw_seconds"]):
        form = " (looped)" if one["looped"] else " (async)" if one["async"] else ""
        kind = one["kind"] + form + (f", was {one['was']}" if one["was"] else "")
        table.add_row(
            kind,
            " ".join(one["axes"]) or f"groups of {one['group']}",
            str(one["count"]),
            str(one["count_per_layer"] or ""),
            f"{one['bytes_each']:,}",
            f"{one['bytes']:,}",
            f"{one['wire_bytes']:,}",
            _time(one["raw_seconds"]),
        )
    return table


def _time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} us"
