"""`penstock compile`: what the TPU compiler makes of a model."""

from __future__ import annotations

import argparse

from jobs.commands.arguments import positive
from jobs.commands.exit_codes import DONE, TOO_MANY_FAILED
from jobs.commands.printing import console

NAME = "compile"
SUMMARY = "what the TPU compiler makes of a model"
TEXT = """\
Compile a phase of a model with the real TPU compiler, for chips that need not be there, and say whether it fits, what
it sends between chips, and how long the compiler thinks it takes. All times are its estimates; nothing is measured.
Needs the compiler: pip install 'penstock[tpu]'.

A model is a checkpoint's directory or a published one by name, shapes alone: palm-540b, llama-3.1-70b, mixtral-8x7b ...
Chips are a slice by its torus: v4:4x4x4, v5e:4x4, v5p:4x4x4, v6e:4x4, tpu7x:2x2x1, or several slices, over
which the layers are a pipeline: 2*v4:4x4x4.

examples:
  penstock compile --model palm-540b --chips v4:4x4x4 --phase prefill --batch 512 --context 2048 --ffn wg-xyz
  penstock compile --model llama-3.1-70b --chips v5e:4x4 --mesh 4x2x2 --phase decode --batch 64 --context 2048 \\
      --weights int8 --kv int8
  penstock compile --model ./checkpoint --chips v6e:2x2 --phase decode --batch 8 --context 1024 --layers 2 --json
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="CHECKPOINT|NAME", help="a directory, or a published model")
    parser.add_argument("--chips", required=True, metavar="CHIP:AxBxC", help="which, and how many: v4:4x4x4, v5e:4x4")
    parser.add_argument("--phase", required=True, choices=("prefill", "decode"), help="which program")
    parser.add_argument("--batch", required=True, type=positive, help="sequences at the same time")
    parser.add_argument("--context", required=True, type=positive, help="tokens of each: the prompt, or the cache's")
    parser.add_argument("--mesh", metavar="XxYxZ", help="how chips of a slice are numbered (default: as the torus is)")
    parser.add_argument(
        "--ffn", metavar="LAYOUT", help="ws1d, ws2d, wg-x, wg-xy or wg-xyz (default: weight-stationary)"
    )
    parser.add_argument(
        "--attention", metavar="OVER", help="heads, batch or sequence (default: by the model and phase)"
    )
    parser.add_argument("--weights", choices=("bf16", "int8"), default="bf16", help="(default: bf16)")
    parser.add_argument("--kv", choices=("bf16", "int8"), default="bf16", help="the cache (default: bf16)")
    parser.add_argument("--layers", type=positive, help="only so many; two tell a layer's share from the rest")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def handle(options: argparse.Namespace) -> int:
    from jobs.planning.compile_report import run

    return DONE if run(options, console()) else TOO_MANY_FAILED
