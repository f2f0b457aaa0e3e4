"""The cost model on this machine: predicted against measured tokens per second, for the demo's model and one of 134 M.

    python -m bench.cpu_cost_model [--profile FILE] [--slots 1 8 32 128] [--models demo 134m]

Measures the machine first, unless a profile is given. Then the engine generates with random weights in float32, as
bench/throughput.py does: every slot is filled four times, with 128 tokens in and 64 out (the demo: 24 and 8). Predicted
are the prefills and the steps of decode that the engine counted, at the length in the middle; what the host does
between programs is not in the prediction. The machine should do nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from bench.throughput import CONFIG
from engine.cache.pages import page_bytes
from engine.compilation.measure import measure
from engine.compilation.options import DecodeOptions, choose_options
from engine.layout import Layouts
from engine.model.config import ModelConfig
from engine.model.params import Params, build, count
from engine.planning.cost import cost
from engine.planning.machine import Machine
from engine.planning.program import Phase, Program
from engine.runtime.engine import Engine
from engine.runtime.request import GenerateRequest, Sampling

MODELS: dict[str, tuple[ModelConfig, int, int]] = {
    "demo": (
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
    ),
    "134m": (CONFIG, 128, 64),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    arguments = parser.parse_args()
    machine = Machine.from_json(arguments.profile.read_text()) if arguments.profile else measure(("float32",))
    print(machine.to_json())
    for name in arguments.models:
        config, prompt, new = MODELS[name]
        rng = np.random.default_rng(0)
        params = build(
            config,
            lambda _, one, rng=rng: jax.device_put(rng.standard_normal(one.shape, np.float32) * np.float32(0.02)),
        )
        for slots in arguments.slots:
            options = choose_options(
                platform="cpu",
                context_tokens=config.context_tokens,
                page_bytes_per_token=page_bytes(config, 1, np.dtype(np.float32)),
                cache_budget_bytes=4 << 30,
                slots=slots,
            )
            generated, seconds, steps, prefills = generate(params, config, options, prompt, new)
            of_steps = steps * predicted(machine, config, "decode", options.slot_rows, prompt + new // 2)
            bucket = options.bucket(prompt - 1)
            of_prefills = prefills * predicted(machine, config, "prefill", options.rows(bucket), bucket)
            rate, foreseen = generated / seconds, generated / (of_steps + of_prefills)
            print(
                f"{name} ({count(config) / 1e6:.1f} M), {slots:3} slots: {rate:8.1f} tokens/s, predicted "
                f"{foreseen:8.1f} ({foreseen / rate - 1:+.0%}); of {seconds:.2f} s predicted {of_steps:.2f} in {steps} "
                f"steps and {of_prefills:.2f} in {prefills:.0f} prefills",
                flush=True,
            )


def random_params(config: ModelConfig) -> Params:
    rng = np.random.default_rng(0)
    return build(config, lambda _, one: jax.device_put(rng.standard_normal(one.shape, np.float32) * np.float32(0.02)))


def generate(
    params: Params, config: ModelConfig, options: DecodeOptions, prompt: int, new: int
) -> tuple[int, float, int, float]:
    """Tokens, seconds, steps of decode and prefill programs of a run that was compiled before."""
    rng = np.random.default_rng(0)
    requests = [
        GenerateRequest(
            tuple(rng.integers(0, config.vocab, prompt).tolist()), Sampling(max_tokens=new, ignore_eos=True)
        )
        for _ in range(max(4 * options.slots, 8))
    ]
    with Engine(params, config, options) as engine:
        engine.submit(requests[0]).result()
        before, start = engine.counters, time.perf_counter()
        for future in [engine.submit(request) for request in requests]:
            future.result()
        seconds = time.perf_counter() - start
        grown = {name: engine.counters[name] - before[name] for name in before}
    prefills = -(-len(requests) // options.rows(options.bucket(prompt - 1)))
    return int(grown["generated_tokens"]), seconds, int(grown["decode_steps"]), prefills


def predicted(machine: Machine, config: ModelConfig, phase: Phase, rows: int, tokens: int) -> float:
    """Seconds of one program."""
    program = Program(config, machine.chip("float32"), Layouts(), phase, rows, tokens, "float32", "float32")
    return cost(program, calibration=machine.calibration("float32")).seconds


if __name__ == "__main__":
    main()
