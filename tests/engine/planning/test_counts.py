"""What is counted of a program against the program's own trace, against memory, and against sums done by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.layout import AttentionSharding, Feedforward, Layouts
from engine.mesh import MeshShape
from engine.model.params import count
from engine.planning.chips import named_chip
from engine.planning.collectives import wire_bytes
from engine.planning.counts import Counts, counts, nominal_parameters
from engine.planning.memory import cache_bytes
from engine.planning.named_models import NAMED_MODELS, named_model
from engine.planning.program import Dtype, Phase, Program
from engine.planning.volumes import Traffic
from tests.engine.planning.traced import (
    product_flops_of_decode,
    product_flops_of_prefill,
    product_flops_of_score,
)

V4 = named_chip("v4")


def program(
    model: str,
    mesh: str,
    phase: Phase,
    rows: int,
    context: int,
    how: tuple[Feedforward, AttentionSharding] = ("ws2d", "batch"),
    layers: int | None = None,
    weights: Dtype = "bfloat16",
    kv: Dtype = "bfloat16",
) -> Program:
    config = named_model(model)
    if layers is not None:
        config = replace(config, layers=layers, windows=config.windows[:layers])
    return Program(config, V4, Layouts.of(MeshShape.parse(mesh), how, how), phase, rows, context, weights, kv)


@pytest.mark.parametrize(
    ("model", "mesh", "how"),
    [
        ("palm-540b", "4x4x4", ("ws2d", "batch")),
        ("palm-540b", "4x4x4", ("wg-xyz", "batch")),
        ("llama-3.1-70b", "4x2x2", ("wg-x", "heads")),
        ("gpt3-175b", "2x4x1", ("ws1d", "heads")),
    ],
)
def test_products_are_those_of_the_traced_program(
    model: str, mesh: str, how: tuple[Feedforward, AttentionSharding]
) -> None:
    """One chip's; keys and values of heads that every chip needs are computed in parts, so nothing is done twice."""
    prefill = program(model, mesh, "prefill", 64, 128, how, layers=2)
    assert counts(prefill).matmul_flops == product_flops_of_prefill(prefill.config, prefill.layouts, 64, 128)
    decode = program(model, mesh, "decode", 64, 256, how, layers=2)
    assert counts(decode).matmul_flops == product_flops_of_decode(decode.config, decode.layouts, 64, 256)


def test_scoring_computes_all_layers_and_all_logits() -> None:
    one = program("llama-3.1-70b", "2x2x2", "score", 16, 128, ("wg-x", "batch"), layers=2)
    assert counts(one).matmul_flops == product_flops_of_score(one.config, one.layouts, 16, 128)
    prefill = counts(replace(one, phase="prefill"))
    assert counts(one).attention_flops == 2 * prefill.attention_flops > 0
    assert counts(one).weight_bytes > 1.5 * prefill.weight_bytes
    assert counts(one).kv_bytes == 0


@pytest.mark.parametrize("phase", ["prefill", "decode", "score"])
def test_what_is_sent_is_what_volumes_count(phase: Phase) -> None:
    one = program("llama-3.1-405b", "4x4x4", phase, 64, 1024, ("wg-x", "batch"), weights="int8")
    tokens = 64 if phase == "decode" else 64 * 1024
    traffic = Traffic(one.config, one.layout, one.held, phase, tokens, weight_bytes=1)
    assert counts(one).collective_bytes == pytest.approx(wire_bytes(traffic.program()), rel=1e-12)


def test_few_tokens_send_in_proportion_and_weights_do_not() -> None:
    def of(rows: int, how: Feedforward) -> Counts:
        return counts(program("palm-540b", "4x4x4", "decode", rows, 2048, (how, "batch")))

    assert of(16, "ws2d").collective_bytes == pytest.approx(of(64, "ws2d").collective_bytes / 4)
    gathered = sum(one.wire_bytes for one in of(64, "wg-xyz").sent if one.of_weights)
    assert sum(one.wire_bytes for one in of(1, "wg-xyz").sent if one.of_weights) == gathered > 1e12


@pytest.mark.parametrize("kv", ["bfloat16", "int8"])
@pytest.mark.parametrize(("attention", "mesh"), [("heads", "8x1x1"), ("batch", "4x4x1"), ("sequence", "4x2x2")])
def test_a_step_reads_the_cache_that_memory_holds(attention: AttentionSharding, mesh: str, kv: Dtype) -> None:
    """Where the context is a whole number of pages on every chip; what a TPU's tiles add to scales is left out."""
    one = program("llama-3.1-70b", mesh, "decode", 64, 8192, ("ws2d", attention), kv=kv)
    assert counts(one).kv_bytes == pytest.approx(cache_bytes(one), rel=0.001)


def test_multiquery_over_heads_reads_the_one_head_everywhere() -> None:
    """Pope et al. 2022, section 3.3: over the batch each of 64 chips reads a 64th."""
    heads, batch = (
        counts(program("palm-540b", "4x4x4", "decode", 512, 2048, ("ws2d", attention))).kv_bytes
        for attention in ("heads", "batch")
    )
    assert heads == 64 * batch
    assert batch == 512 / 64 * 2048 * 118 * 2 * 256 * 2


def test_windows_bound_what_is_read_and_attended() -> None:
    """Gemma 2: every second of 46 layers sees 4096 positions."""
    near, far = (program("gemma-2-27b", "1x1x1", "decode", 1, context) for context in (4096, 8192))
    assert counts(far).kv_bytes == 1.5 * counts(near).kv_bytes
    assert counts(far).attention_flops == 1.5 * counts(near).attention_flops
    whole = replace(far, phase="prefill")
    of_all = replace(whole, config=replace(whole.config, windows=()))
    pairs = 8192 * 8193 / 2
    assert counts(of_all).attention_flops == 4 * 45 * 32 * 128 * pairs
    outside = 4096 * 4097 / 2  # pairs further apart than the window: of queries from the 4097th on
    assert counts(whole).attention_flops == 4 * 32 * 128 * (45 * pairs - 23 * outside)


def test_a_mixture_computes_the_chosen_experts_and_reads_those_that_are_chosen() -> None:
    config = named_model("mixtral-8x7b")
    of_experts = 3 * config.embed * config.ffn * config.layers
    one, many = (counts(program("mixtral-8x7b", "1x1x1", "decode", rows, 128)) for rows in (1, 512))
    assert many.weight_bytes - one.weight_bytes == pytest.approx(2 * 6 * of_experts)  # two of eight by one token
    assert many.matmul_flops == 512 * one.matmul_flops
    others = count(config) - 8 * of_experts - config.vocab * config.embed
    assert one.matmul_flops == pytest.approx(2 * (others + 2 * of_experts), rel=1e-3)  # norms, router


def test_a_decode_step_reads_every_weight_but_the_table_of_embeddings() -> None:
    config = named_model("llama-2-13b")
    read = counts(program("llama-2-13b", "1x1x1", "decode", 8, 128)).weight_bytes
    assert read == pytest.approx(2 * (count(config) - config.vocab * config.embed), rel=1e-5)
    int8 = counts(program("llama-2-13b", "1x1x1", "decode", 8, 128, weights="int8")).weight_bytes
    assert int8 == pytest.approx(read / 2, rel=1e-3)


def test_gpt_3_s_weights() -> None:
    """Kipply: 350 GB in 16 bits, half of it in int8."""
    one = program("gpt3-175b", "1x1x1", "decode", 1, 1)
    assert counts(one).weight_bytes == pytest.approx(350e9, rel=5e-3)
    assert counts(replace(one, weights="int8")).weight_bytes == pytest.approx(175e9, rel=5e-3)


@pytest.mark.parametrize("name", ["palm-8b", "palm-62b", "palm-540b", "llama-2-7b"])
def test_nominal_parameters_are_the_published_without_norms_and_a_second_table(name: str) -> None:
    config = NAMED_MODELS[name]
    second = 0 if config.tied_head else config.vocab * config.embed
    assert nominal_parameters(config) == pytest.approx(count(config) - second, rel=1e-3)


def test_padded_heads_are_work_and_no_use() -> None:
    """Pope et al. 2022, section 4: padding 48 heads to 64 costs 3 % of the FLOPS utilisation."""
    plain = program("palm-540b", "4x4x4", "decode", 512, 2048)
    padded = replace(plain, layouts=Layouts.of(MeshShape(4, 4, 4), ("ws2d", "heads"), ("ws2d", "heads")))
    assert padded.held.heads == 64
    assert counts(padded).matmul_flops / counts(plain).matmul_flops == pytest.approx(1.033, abs=1e-3)
    assert counts(padded).model_flops == counts(plain).model_flops
