"""What the TPU compiler makes of every layout: does each collective of a layer move the bytes that it should?

    python -m bench.compiled_layouts --out FILE.jsonl [--models palm-540b] [--chips v4:4x4x4] [--phases decode]

Compiles three layers of each model for each slice in each layout and phase, and compares the collectives of the layer
in the middle with those of engine/planning/volumes.py, which tests hold to the formulas of the paper: kind, mesh axes,
bytes, how often. Prints what differs, and what the peak of memory is against engine/planning/memory.py. Every answer
is a line of FILE; what stands there already is not compiled again. About ten seconds a program on one core.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast, get_args

from engine.compilation.compile_check import Phase, Question, check
from engine.errors import EngineError
from engine.layout import AttentionSharding, Feedforward, held_sizes
from engine.planning.memory import memory
from engine.planning.program import DTYPES, Dtype, Program
from engine.planning.volumes import Traffic

LAYERS = 3
ITEM_BYTES = {"bf16": 2, "int8": 1}
SMALL_BYTES = 16 * 2**10
"""Of such a collective the compiler may make what it likes."""

Sent = Counter[tuple[str, tuple[str, ...], int]]
"""(kind, mesh axes, bytes of each) -> how often."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["palm-540b", "llama-3.1-70b", "llama-3.1-405b"])
    parser.add_argument("--chips", nargs="+", default=["v4:4x4x4", "v5p:4x4x4", "v5e:4x4"])
    parser.add_argument("--ffn", nargs="+", default=list(get_args(Feedforward)))
    parser.add_argument("--attention", nargs="+", default=list(get_args(AttentionSharding)))
    parser.add_argument("--phases", nargs="+", default=list(get_args(Phase)))
    parser.add_argument("--weights", nargs="+", default=["bf16"])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    known = {}
    if options.out.exists():
        known = {line["key"]: line for line in map(json.loads, options.out.read_text().splitlines())}
    equal = compiled = 0
    for key, how in asked(options):
        line = known.get(key)
        if line is None:
            line = {"key": key, **answer(how)}
            with options.out.open("a") as out:
                out.write(json.dumps(line) + "\n")
        compiled += 1
        equal += line.get("differences") == []
        print(key, *described(line), flush=True)
    print(f"{equal} of {compiled} programs send in a layer exactly what is counted")


def asked(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    for model in options.models:
        for chips in options.chips:
            for phase in options.phases:
                for ffn in options.ffn:
                    for attention in options.attention:
                        for weights in options.weights:
                            names = ("model", "chips", "phase", "ffn", "attention", "weights")
                            values = (model, chips, phase, ffn, attention, weights)
                            yield " ".join(values), dict(zip(names, values, strict=True))


def answer(how: Mapping[str, Any]) -> dict[str, Any]:
    try:
        batch = 64 if how["phase"] == "prefill" else 256
        question = Question.of(**how, batch=batch, context_tokens=2048, layers=LAYERS, kv="bf16")
        found = check(question).to_json()
    except EngineError as error:
        return {"error": str(error)}
    program = Program(
        question.config,
        question.topology.chip,
        question.layouts,
        question.phase,
        batch,
        2048,
        cast("Dtype", DTYPES[question.weights]),
    )
    return {
        "differences": differences(intended(question), in_a_layer(found)) if found["collectives"] else ["no text"],
        "predicted_peak_bytes": memory(program).peak,
        **found,
    }


def intended(question: Question) -> Sent:
    tokens = question.batch * (question.context_tokens if question.phase == "prefill" else 1)
    traffic = Traffic(
        question.config,
        question.layout,
        held_sizes(question.config, question.layouts),
        question.phase,
        tokens,
        weight_bytes=ITEM_BYTES[question.weights],
    )
    sent: Sent = Counter()
    for one in traffic.layer():
        for stage in one.stages:
            sent[stage.kind, tuple(sorted(stage.axes)), stage.bytes] += one.times
    return sent


def in_a_layer(found: Mapping[str, Any]) -> Sent:
    """What the compiler has; padding and what it moves for itself are no part of it."""
    sent: Sent = Counter()
    for one in found["collectives"]:
        sent[one["was"] or one["kind"], tuple(one["axes"]), one["bytes_each"]] += one["count_per_layer"]
    return sent


def differences(expected: Sent, got: Sent) -> list[str]:
    found = [("missing", expected - got), ("besides", got - expected)]
    return [
        f"{what}: {count} x {kind} over {' '.join(axes)} of {size}"
        for what, some in found
        for (kind, axes, size), count in sorted(some.items())
        if size >= SMALL_BYTES
    ]


def described(line: Mapping[str, Any]) -> Iterator[str]:
    if "error" in line:
        yield f"ERROR {line['error']}"
        return
    yield f"memory {line['predicted_peak_bytes'] / line['peak_bytes'] - 1:+.1%}"
    yield "equal" if not line["differences"] else "DIFFERS"
    yield from (f"\n    {one}" for one in line["differences"])
    yield from (f"\n    {one}" for one in line["warnings"] if "became" in one or "padded" in one)


if __name__ == "__main__":
    main()
