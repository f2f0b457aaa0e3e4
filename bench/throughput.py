"""Tokens per second of the engine on this machine, side by side with Hugging Face transformers where it is installed.

    python -m bench.throughput [--slots 1 8 32 128] [--no-peer]

A random Llama of 125 million parameters in float32; every request has 128 prompt tokens and generates 64. For each
number of slots, four times as many requests as slots (so that slots refill while others run), once to compile and
once to measure. The peer generates one batch of that size at a time, twice, and the second is measured.
"""

from __future__ import annotations

import argparse
import os
import time

import jax
import numpy as np

from engine.cache.pages import page_bytes
from engine.compilation.options import choose_options
from engine.model import params as parameters
from engine.model.config import ModelConfig, Rotary
from engine.runtime.engine import Engine
from engine.runtime.request import GenerateRequest, Sampling

PROMPT, NEW = 128, 64
CONFIG = ModelConfig(
    layers=12,
    embed=768,
    ffn=2048,
    heads=12,
    kv_heads=12,
    head_dim=64,
    vocab=32_000,
    context_tokens=320,
    norm_epsilon=1e-5,
    rotary=Rotary(10_000.0),
    tied_head=False,
)


def measure_engine(params: parameters.Params, slots: int) -> tuple[float, float]:
    """(generated tokens a second, share of slot steps that were busy)."""
    options = choose_options(
        platform=jax.devices()[0].platform,
        context_tokens=CONFIG.context_tokens,
        page_bytes_per_token=page_bytes(CONFIG, 1, np.dtype(np.float32)),
        cache_budget_bytes=4 << 30,
        slots=slots,
    )
    rng = np.random.default_rng(0)
    requests = [
        GenerateRequest(
            tuple(rng.integers(0, CONFIG.vocab, PROMPT).tolist()), Sampling(max_tokens=NEW, ignore_eos=True)
        )
        for _ in range(max(4 * slots, 8))
    ]
    with Engine(params, CONFIG, options) as engine:
        engine.submit(requests[0]).result()
        before, start = engine.counters, time.perf_counter()
        for future in [engine.submit(request) for request in requests]:
            future.result()
        seconds = time.perf_counter() - start
        grown = {name: engine.counters[name] - before[name] for name in before}
    return grown["generated_tokens"] / seconds, grown["slot_steps_busy"] / grown["slot_steps_total"]


def measure_transformers(batch: int) -> float:
    """Generated tokens a second of transformers' generate, one batch at a time."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    config = transformers.LlamaConfig(
        vocab_size=CONFIG.vocab,
        hidden_size=CONFIG.embed,
        intermediate_size=CONFIG.ffn,
        num_hidden_layers=CONFIG.layers,
        num_attention_heads=CONFIG.heads,
        num_key_value_heads=CONFIG.kv_heads,
        max_position_embeddings=CONFIG.context_tokens,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    tokens = torch.randint(0, CONFIG.vocab, (batch, PROMPT))
    for _ in range(2):
        start = time.perf_counter()
        with torch.no_grad():
            model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=NEW,
                min_new_tokens=NEW,
                do_sample=False,
                pad_token_id=0,
            )
        seconds = time.perf_counter() - start
    return batch * NEW / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--no-peer", action="store_true", help="leave transformers out")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    device = jax.devices()[0]
    params = parameters.build(
        CONFIG,
        lambda _, declared: jax.device_put(rng.standard_normal(declared.shape, np.float32) * np.float32(0.02), device),
    )
    print(f"{parameters.count(CONFIG) / 1e6:.0f} M parameters, float32, on {device}, {os.cpu_count()} cores")
    print(f"{PROMPT} tokens in, {NEW} out; generated tokens a second, prefill included")
    for slots in arguments.slots:
        rate, busy = measure_engine(params, slots)
        line = f"{slots:4d} slots: engine {rate:7.1f} (slots busy {busy:.0%})"
        if not arguments.no_peer:
            try:
                peer = measure_transformers(slots)
                line += f"   transformers, batch {slots}: {peer:7.1f}   ratio {rate / peer:.2f}"
            except ImportError:
                line += "   (transformers is not installed)"
        print(line, flush=True)


if __name__ == "__main__":
    main()
