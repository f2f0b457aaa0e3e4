"""What int8 weights and an int8 cache cost or gain on this machine: generated tokens a second against float32.

    python -m bench.int8 [--slots 8 32] [--rounds 2]

The random Llama of `bench.throughput` (134 million parameters, 128 tokens in, 64 out, twice as many requests as slots).
All forms take turns, `--rounds` times, and each one's best round counts. Beside tokens a second stand tokens per second
of processor time, over all threads: on a machine that others use too, those are the ones to compare.
"""

from __future__ import annotations

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from bench.throughput import CONFIG, NEW, PROMPT
from engine.cache.pages import page_bytes
from engine.compilation.options import choose_options
from engine.model.params import Parameter, Params, build, leaves
from engine.model.quantized import quantize
from engine.runtime.engine import Engine
from engine.runtime.request import GenerateRequest, Sampling

FORMS = {
    "float32": ("float32", "float32"),
    "int8 weights": ("int8", "float32"),
    "int8 cache": ("float32", "int8"),
    "both int8": ("int8", "int8"),
}


def random_params(weights: str) -> Params:
    rng = np.random.default_rng(0)

    def make(_: str, declared: Parameter) -> object:
        array = jnp.asarray(rng.standard_normal(declared.shape, np.float32) * np.float32(0.02))
        return quantize(array, declared.inputs) if weights == "int8" and declared.is_matrix else array

    return build(CONFIG, make)


def rates(engine: Engine, slots: int) -> tuple[float, float]:
    """Generated tokens per second and per second of processor time."""
    rng = np.random.default_rng(0)
    requests = [
        GenerateRequest(
            tuple(rng.integers(0, CONFIG.vocab, PROMPT).tolist()), Sampling(max_tokens=NEW, ignore_eos=True)
        )
        for _ in range(2 * slots)
    ]
    before, start, cpu_start = engine.counters, time.perf_counter(), time.process_time()
    for future in [engine.submit(request) for request in requests]:
        future.result()
    tokens = engine.counters["generated_tokens"] - before["generated_tokens"]
    return tokens / (time.perf_counter() - start), tokens / (time.process_time() - cpu_start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    params = {weights: random_params(weights) for weights in ("float32", "int8")}
    for weights, tree in params.items():
        held = sum(leaf.nbytes for _, leaf in leaves(tree))
        print(f"weights in {weights}: {held / 2**20:.0f} MiB")
    for slots in arguments.slots:
        best = dict.fromkeys(FORMS, (0.0, 0.0))
        engines = {}
        for name, (weights, kv) in FORMS.items():
            options = choose_options(
                platform=jax.devices()[0].platform,
                context_tokens=CONFIG.context_tokens,
                page_bytes_per_token=page_bytes(CONFIG, 1, kv),
                cache_budget_bytes=1 << 30,
                slots=slots,
                kv_dtype=kv,
            )
            engines[name] = Engine(params[weights], CONFIG, options)
            rates(engines[name], 1)  # compiles
        for _ in range(arguments.rounds):
            for name, engine in engines.items():
                best[name] = tuple(map(max, best[name], rates(engine, slots)))
        for name, engine in engines.items():
            engine.close()
            ratios = (of / base for of, base in zip(best[name], best["float32"], strict=True))
            figures = zip(best[name], ratios, ("tokens/s", "tokens/processor second"), strict=True)
            shown = "   ".join(f"{rate:7.1f} {what} ({ratio:.2f})" for rate, ratio, what in figures)
            print(f"{slots:4d} slots, {name:12s} {shown}", flush=True)


if __name__ == "__main__":
    main()
