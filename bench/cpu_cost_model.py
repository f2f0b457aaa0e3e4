"""The cost model on this machine: predicted against measured tokens per second, for the demo's model and one of 134 M.

    python -m bench.cpu_cost_model [--profile FILE] [--slots 1 8 32 128] [--models demo 134m] [--rounds 2]

One command, six to eight minutes on two cores; the machine should do nothing else meanwhile. It measures the machine
(unless a profile is given), then what the host does for a request, a token and a call, with a model that is nothing,
and predicts from that alone: steps and prefills come from the planner's small batcher (engine/planning/batching.py),
their times from the cost model. Then the engine generates with random weights in float32, 128 tokens in and 64 out (the
demo: 1000 prompts, 24 in and 8 out). All numbers of slots take turns, and the best round of each counts.

The programs have eight rows at least, so one slot takes nearly as long as eight.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from bench.throughput import CONFIG
from engine.cache.pages import page_bytes
from engine.compilation.measure import measure
from engine.compilation.options import DecodeOptions, choose_options
from engine.layout import Layouts
from engine.model.config import ModelConfig
from engine.model.params import Params, build, count
from engine.planning.batching import Flow, Workload, play
from engine.planning.cost import cost
from engine.planning.machine import Machine
from engine.planning.program import Phase, Program
from engine.runtime.engine import Engine
from engine.runtime.request import GenerateRequest, Sampling


class Asked(NamedTuple):
    config: ModelConfig
    prompt: int
    new: int
    requests: int
    """Of a round, at least; so many that it takes a second or more."""


class Host(NamedTuple):
    """Seconds of the engine's thread beside its programs."""

    request: float
    token: float
    call: float
    """Of the decode program, with what is admitted before it."""


MODELS: dict[str, Asked] = {
    "demo": Asked(
        replace(
            CONFIG,
            layers=3,
            embed=128,
            ffn=384,
            heads=4,
            kv_heads=2,
            head_dim=32,
            vocab=349,
            context_tokens=256,
            tied_head=True,
        ),
        24,
        8,
        1000,
    ),
    "134m": Asked(CONFIG, 128, 64, 3),
}
NOTHING = replace(CONFIG, layers=1, embed=16, ffn=16, heads=1, kv_heads=1, head_dim=16, vocab=64)
"""A model whose programs take no time, so that what is left is the host's."""
_MOST = 128
_HOST_REQUESTS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    start = time.perf_counter()
    machine = Machine.from_json(arguments.profile.read_text()) if arguments.profile else measure(("float32",))
    print(machine.to_json())
    host = host_seconds(machine)
    print(
        f"host: {host.request * 1e6:.0f} us a request, {host.token * 1e6:.1f} a token, {host.call * 1e6:.0f} a call\n"
    )
    print("| model | slots | predicted tokens/s | measured | ratio | predicted: steps, prefills, host |")
    print("|---|--:|--:|--:|--:|---|")
    for name in arguments.models:
        asked = MODELS[name]
        measured = rates(asked, arguments.slots, arguments.rounds)
        for slots, rate in zip(arguments.slots, measured, strict=True):
            parts = predicted(machine, host, asked, slots)
            foreseen = requests_of(asked, slots) * asked.new / sum(parts)
            shares = ", ".join(f"{part / sum(parts):.0%}" for part in parts)
            print(
                f"| {name} ({count(asked.config) / 1e6:.1f} M) | {slots} | {foreseen:.1f} | {rate:.1f} "
                f"| {foreseen / rate:.2f} | {shares} |",
                flush=True,
            )
    print(f"\n{time.perf_counter() - start:.0f} s in all")


def requests_of(asked: Asked, slots: int) -> int:
    """Of one round: each slot is filled twice, if that does not take too long."""
    return max(asked.requests, slots, min(2 * slots, _MOST))


# Predicted.


def predicted(machine: Machine, host: Host, asked: Asked, slots: int) -> tuple[float, float, float]:
    """Seconds of one round: in steps of decode, in prefills, on the host."""
    requests = requests_of(asked, slots)
    flow = flow_of(asked, slots, requests)
    steps, prefills = in_programs(machine, asked, slots, flow)
    return steps, prefills, requests * (host.request + asked.new * host.token) + flow.chunks * host.call


def in_programs(machine: Machine, asked: Asked, slots: int, flow: Flow) -> tuple[float, float]:
    config, prompt, new, _ = asked
    options = options_of(config, slots)
    idle = options.slot_rows - round(slots * flow.busy_fraction)
    steps = flow.decode_steps * program_seconds(machine, config, "decode", options.slot_rows, prompt + new // 2, idle)
    bucket = options.bucket(prompt - 1)
    programs = sum(-(-most // options.rows(bucket)) * times for (_, most), times in flow.admitted.items())
    prefills = programs * program_seconds(machine, config, "prefill", options.rows(bucket), bucket)
    return steps, prefills


def flow_of(asked: Asked, slots: int, requests: int) -> Flow:
    lengths = (asked.prompt,) * requests, (asked.new,) * requests
    most = options_of(asked.config, slots).max_length
    return play(Workload(*lengths, requests, most, shard_requests=requests), slots, requests)


def program_seconds(
    machine: Machine, config: ModelConfig, phase: Phase, rows: int, tokens: int, idle: int = 0
) -> float:
    chip = machine.chip("float32")
    program = Program(config, chip, Layouts(), phase, rows, tokens, "float32", "float32", idle_rows=idle)
    return cost(program, calibration=machine.calibration("float32")).seconds


# Measured.


def host_seconds(machine: Machine) -> Host:
    """What is left of the time of a model that is nothing when its programs are taken away."""
    params, counts, taken = random_params(NOTHING), [], []
    for slots in (1, 32):
        with Engine(params, NOTHING, options_of(NOTHING, slots)) as engine:
            run(engine, NOTHING, 32, 2, 1)  # compiles
            for new in (8, 64):
                asked = Asked(NOTHING, 32, new, _HOST_REQUESTS)
                flow = flow_of(asked, slots, _HOST_REQUESTS)
                shortest = min(run(engine, NOTHING, 32, new, _HOST_REQUESTS)[0] for _ in range(3))
                taken.append(shortest - sum(in_programs(machine, asked, slots, flow)))
                counts.append((_HOST_REQUESTS, _HOST_REQUESTS * new, flow.chunks))
    found = np.linalg.lstsq(np.array(counts, float), np.array(taken), rcond=None)[0]
    return Host(*(max(0.0, float(seconds)) for seconds in found))


def rates(asked: Asked, slots: list[int], rounds: int) -> list[float]:
    """Generated tokens a second with each number of slots: the best of so many rounds, in which all take turns."""
    config, prompt, new, _ = asked
    params, best = random_params(config), [0.0] * len(slots)
    engines = [Engine(params, config, options_of(config, each)) for each in slots]
    try:
        for engine in engines:
            run(engine, config, prompt, 2, 1)  # compiles
        for _ in range(rounds):
            for at, (engine, each) in enumerate(zip(engines, slots, strict=True)):
                wall, tokens = run(engine, config, prompt, new, requests_of(asked, each))
                best[at] = max(best[at], tokens / wall)
    finally:
        for engine in engines:
            engine.close()
    return best


def run(engine: Engine, config: ModelConfig, prompt: int, new: int, requests: int) -> tuple[float, int]:
    """Seconds, and tokens."""
    rng = np.random.default_rng(0)
    asked = [
        GenerateRequest(
            tuple(rng.integers(0, config.vocab, prompt).tolist()), Sampling(max_tokens=new, ignore_eos=True)
        )
        for _ in range(requests)
    ]
    before, start = engine.counters["generated_tokens"], time.perf_counter()
    for future in [engine.submit(one) for one in asked]:
        future.result()
    return time.perf_counter() - start, int(engine.counters["generated_tokens"] - before)


def options_of(config: ModelConfig, slots: int) -> DecodeOptions:
    return choose_options(
        platform="cpu",
        context_tokens=config.context_tokens,
        page_bytes_per_token=page_bytes(config, 1, np.dtype(np.float32)),
        cache_budget_bytes=4 << 30,
        slots=slots,
    )


def random_params(config: ModelConfig) -> Params:
    rng = np.random.default_rng(0)
    return build(config, lambda _, one: jax.device_put(rng.standard_normal(one.shape, np.float32) * np.float32(0.02)))


if __name__ == "__main__":
    main()
