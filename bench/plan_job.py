"""How long a plan of a job takes: Llama 3.1 405B over all slices of v5e, v5p and v6e up to 256 chips.

    python -m bench.plan_job [--runs 5] [--against TREE]

The checkpoint is headers and a hole: nothing of it is read but names and shapes. The job has 20,000 made-up rows, of
which 1,000 are looked at, in the demo's tokenizer. With --against the same is done, run by run in turn, by the sources
in another directory, and the plans are compared; what counts is the ratio, since other work on the machine slows both.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parents[1]
CHECKPOINT = HERE / "jobs" / "examples" / "arithmetic" / "checkpoint"
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16384, "intermediate_size": 53248,
    "num_hidden_layers": 126, "num_attention_heads": 128, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
}  # fmt: skip
JOB = """\
name: large
task: generate
model: {checkpoint: checkpoint}
input: {path: rows.jsonl, id: id}
prompt: {template: "{{ question }}"}
sampling: {max_tokens: 120}
output: {path: out}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--against", type=Path, metavar="TREE")
    options = parser.parse_args()
    trees = {"this": HERE} | ({"other": options.against.resolve()} if options.against else {})
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in trees}
    answers: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as directory:
        write_job(Path(directory))
        for _ in range(options.runs):
            for name, tree in trees.items():
                cpu, wall, answers[name] = planned(tree, Path(directory))
                taken[name].append((cpu, wall))
    for name, runs in taken.items():
        cpu, wall = zip(*runs, strict=True)
        print(
            f"{name:6}{min(cpu):.2f} s of a core at least, {median(cpu):.2f} in the middle; {min(wall):.2f} s at least"
        )
    if options.against:
        ratios = [mine[0] / other[0] for mine, other in zip(taken["this"], taken["other"], strict=True)]
        plans = [answer["plan"] for answer in answers.values()]
        same = "the same" if plans[0] == plans[1] else "ANOTHER"
        print(f"ratio {median(ratios):.2f} of the other's time; the plan is {same}")


def planned(tree: Path, directory: Path) -> tuple[float, float, dict[str, Any]]:
    """Seconds of a core, seconds that passed, the answer."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree),
        "XDG_CACHE_HOME": str(directory),
        "XDG_CONFIG_HOME": str(directory),
    }
    line = "import sys; from jobs.cli import main; sys.exit(main())"
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    arguments = ["plan", str(directory / "job.yaml"), "--chips", "v5e,v5p,v6e", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", line, *arguments], cwd=tree, env=environment, stdout=subprocess.PIPE, check=True
    )
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall, json.loads(done.stdout)


def write_job(directory: Path) -> None:
    checkpoint = directory / "checkpoint"
    checkpoint.mkdir()
    header, end = {}, 0
    for name, shape in tensors():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (checkpoint / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    (checkpoint / "config.json").write_text(json.dumps(CONFIG))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(CHECKPOINT / name, checkpoint)
    (directory / "job.yaml").write_text(JOB)
    numbers = random.Random(1)
    with (directory / "rows.jsonl").open("w") as file:
        for row in range(20_000):
            length = max(20, min(900, round(numbers.gauss(493, 180))))
            question = "".join(numbers.choice("0123456789 +-=") for _ in range(length))
            file.write(json.dumps({"id": str(row), "question": question}) + "\n")


def tensors() -> list[tuple[str, list[int]]]:
    embed, ffn, vocab, keys = 16384, 53248, 128256, 1024
    found = [
        ("model.embed_tokens.weight", [vocab, embed]),
        ("model.norm.weight", [embed]),
        ("lm_head.weight", [vocab, embed]),
    ]
    for layer in range(126):
        for name, shape in (
            ("self_attn.q_proj", [embed, embed]), ("self_attn.k_proj", [keys, embed]),
            ("self_attn.v_proj", [keys, embed]), ("self_attn.o_proj", [embed, embed]),
            ("mlp.gate_proj", [ffn, embed]), ("mlp.up_proj", [ffn, embed]), ("mlp.down_proj", [embed, ffn]),
            ("input_layernorm", [embed]), ("post_attention_layernorm", [embed]),
        ):  # fmt: skip
            found.append((f"model.layers.{layer}.{name}.weight", shape))
    return found


if __name__ == "__main__":
    main()
