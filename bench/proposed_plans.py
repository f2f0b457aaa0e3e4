"""Plans as the planner proposes them, compiled whole: are the memory and the bytes sent those that were planned?

    python -m bench.proposed_plans --out FILE.jsonl [--only llama-3.1-8b]

Each is what `penstock plan --model MODEL --chips SLICE --phase PHASE --batch N --context N --weights W --kv W` answers,
with no mesh or layout pinned, and what `--compile` says of it. Every answer is a line of FILE; what stands there
already is not compiled again. One to five minutes a program on one core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from engine.compilation.model_named import read_model
from engine.planning.planner import Asked, PhasePlan, search
from engine.planning.program import DTYPES, Phase
from engine.planning.slices import Slice
from jobs.planning.compiled_plan import compiled


class Case(NamedTuple):
    model: str
    chips: str
    phase: Phase
    batch: int
    context: int
    weights: str
    kv: str

    @property
    def key(self) -> str:
        return " ".join(map(str, self))


CASES = (
    Case("llama-3.1-8b", "v5e:2x4", "decode", 64, 2048, "int8", "int8"),
    Case("llama-3.1-8b", "v6e:2x2", "prefill", 64, 2048, "bf16", "bf16"),
    Case("llama-3.1-70b", "v5e:4x4", "decode", 128, 2048, "int8", "int8"),
    Case("palm-62b", "v4:2x2x2", "decode", 256, 2048, "bf16", "bf16"),
    Case("mixtral-8x7b", "v5p:2x2x2", "decode", 128, 2048, "bf16", "bf16"),
    Case("mixtral-8x7b", "v5e:4x4", "prefill", 32, 2048, "int8", "bf16"),
    Case("llama-2-13b", "v5e:2x4", "prefill", 16, 2048, "bf16", "bf16"),
    Case("palm-8b", "v6e:2x2", "decode", 64, 2048, "int8", "bf16"),
    Case("palm-62b", "v4:2x2x4", "prefill", 64, 2048, "bf16", "bf16"),
    Case("llama-3.1-70b", "v5p:2x2x2", "prefill", 64, 2048, "bf16", "bf16"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="models, slices, phases or dtypes: cases that have all of these")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    known = {}
    if options.out.exists():
        known = {line["key"]: line for line in map(json.loads, options.out.read_text().splitlines())}
    print("| model | chips | phase | weights, cache | proposed | peak, GB | | sent, MB | |")
    print("|---|---|---|---|---|--:|--:|--:|--:|")
    for case in CASES:
        if options.only and not set(options.only) <= {str(one) for one in case}:
            continue
        line = known.get(case.key)
        if line is None:
            line = {"key": case.key, **answer(case)}
            with options.out.open("a") as out:
                out.write(json.dumps(line) + "\n")
        print(row(case, planned(case), line), flush=True)


def planned(case: Case) -> PhasePlan:
    """What is proposed now: the figures of the plan are never from the file."""
    asked = Asked(read_model(case.model), case.phase, case.batch, case.context, DTYPES[case.weights], DTYPES[case.kv])
    return search(asked, [Slice.parse(case.chips)]).plans[0]


def answer(case: Case) -> dict[str, Any]:
    plan = planned(case)
    return {"proposed": proposed(plan), **compiled(case.model, [plan])[0]}


def proposed(plan: PhasePlan) -> str:
    return f"{plan.layout.mesh} {plan.layout.ffn} {plan.layout.attention}"


def row(case: Case, plan: PhasePlan, line: Mapping[str, Any]) -> str:
    now = proposed(plan)
    layout = now if now == line["proposed"] else f"{now}; compiled as {line['proposed']}"
    return (
        f"| {case.model} | {case.chips} | {case.phase} {case.batch} x {case.context} | {case.weights}, {case.kv} "
        f"| {layout} | {_both(plan.memory.peak, line['peak_bytes'], 1e9)} "
        f"| {_both(plan.cost.collective_bytes, line['collective_bytes'], 1e6)} |"
    )


def _both(planned: float, compiled: float, unit: float) -> str:
    return f"{planned / unit:,.3f} / {compiled / unit:,.3f} | {planned / compiled - 1:+.2%}"


if __name__ == "__main__":
    main()
