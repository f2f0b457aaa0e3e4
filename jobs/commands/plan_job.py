"""`penstock plan`: what to run on, how long it takes, what it costs."""

from __future__ import annotations

import argparse

from jobs.commands.arguments import add_goal_options, add_set_option, positive, seconds, share
from jobs.commands.exit_codes import DONE, TOO_MANY_FAILED
from jobs.commands.printing import console

NAME = "plan"
SUMMARY = "what to run on, how long it takes, what it costs"
TEXT = """\
Say what to run on, how it will be laid out, how long it takes and what it costs, before a chip is touched. Nothing is
compiled or measured: times come from a model of the chips, whose error is stated with every answer.

Of a job: looks at rows all over its input, plays the batcher over their lengths, and chooses chips, mesh, layouts,
slots and the number of slices. What the job pins (engine.mesh, layouts, slots, int8) stays. Prints what to write into
the job file, so that it runs like that.

Of one phase of a model, without a job: the best layout on certain chips, or the best chips. A model is a checkpoint's
directory or a published one by name: palm-540b, llama-3.1-70b, mixtral-8x7b ... Chips are slices (v4:4x4x4, v5e:4x4)
or kinds (v5e,v6e: all their slices up to --max-chips), or several slices that are a pipeline (2*v4:4x4x4). What is not
said is chosen; without --batch, many are tried.

examples:
  penstock plan job.yaml --chips v5e,v6e --prices prices.yaml
  penstock plan job.yaml --chips here --out plan.json && penstock run job.yaml --plan plan.json
  penstock plan job.yaml --chips v5p --deadline 6h --output-tokens ./earlier-run
  penstock plan --model llama-3.1-70b --chips v5e:4x4 --phase decode --batch 64 --context 2048 --weights int8
  penstock plan --model palm-540b --chips v4:4x4x4 --phase prefill --batch 512 --context 2048 --ffn wg-xyz --json
  penstock plan --model llama-3.1-405b --chips v5e,v5p,v6e --phase decode --context 2048 --prices prices.yaml
  penstock plan --model llama-3.1-405b --chips '2*h100:8' --phase decode --batch 64 --context 2048
  penstock plan --model llama-3.1-70b --chips v5p:2x2x1 --phase decode --batch 4 --context 2048 \\
      --draft llama-3.1-8b --draft-tokens 4 --acceptance 0.7
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", nargs="?", metavar="JOB.yaml", help="the job file; what it does not say is chosen")
    job = parser.add_argument_group("a job")
    add_set_option(job)
    job.add_argument(
        "--rows", type=positive, default=1000, help="how many to look at, all over the input (default: 1000)"
    )
    job.add_argument(
        "--output-tokens",
        metavar="N|FILE|OUT",
        help="how long completions are: a number, a CSV of tokens,count, or the output of an earlier run "
        "(default: sampling.max_tokens)",
    )
    job.add_argument("--out", metavar="FILE", help="write the plan into a file, for penstock run JOB.yaml --plan FILE")
    job.add_argument(
        "--learn-from",
        action="append",
        default=[],
        metavar="OUT",
        help="correct times by how an earlier run went, besides those of this user; may be repeated",
    )
    what = parser.add_argument_group("one phase of a model, without a job")
    what.add_argument("--model", metavar="CHECKPOINT|NAME", help="a directory, or a published model")
    what.add_argument("--phase", choices=("prefill", "decode", "score"), help="which program")
    what.add_argument("--batch", type=positive, help="sequences at the same time (default: tries 1 to 1024)")
    what.add_argument("--context", type=positive, help="tokens of each: the prompt, or the cache's")
    what.add_argument("--tokens", type=positive, help="decoded for each sequence (default: 64)")
    what.add_argument("--mesh", metavar="XxYxZ", help="pins the mesh; needs one slice")
    what.add_argument("--ffn", metavar="LAYOUT", help="pins ws1d, ws2d, wg-x, wg-xy or wg-xyz")
    what.add_argument("--attention", metavar="OVER", help="pins heads, batch or sequence")
    what.add_argument(
        "--weights", choices=("bf16", "int8", "fp8", "int4"), help="(default: bf16); fp8 and int4 are planned only"
    )
    what.add_argument("--kv", choices=("bf16", "int8"), help="the cache (default: bf16)")
    what.add_argument(
        "--shared-prefix", type=positive, metavar="TOKENS", help="of each context, the same in all (planned only)"
    )
    what.add_argument("--draft", metavar="CHECKPOINT|NAME", help="a small model that guesses tokens (planned only)")
    what.add_argument("--draft-tokens", type=positive, metavar="N", help="guessed in a round (default: 4)")
    what.add_argument("--acceptance", type=share, metavar="SHARE", help="of the guesses, 0 to 1")
    choice = parser.add_argument_group("what to choose from, and how")
    choice.add_argument(
        "--chips",
        metavar="CHIPS",
        help="such as v5e:4x4 or v5e,v6e; here: what this machine has; cpu: its processor, once penstock profile has "
        "measured it (default: all TPUs from v4 on)",
    )
    choice.add_argument("--max-chips", type=positive, default=256, help="of a slice (default: 256)")
    add_goal_options(choice)
    choice.add_argument(
        "--startup", type=seconds, metavar="SECONDS", help="of a worker (default: as in earlier runs, or else 300)"
    )
    choice.add_argument("--prices", metavar="FILE", help="YAML or CSV with the price of a chip-hour")
    parser.add_argument("--compile", action="store_true", help="check the plan with the TPU compiler (penstock[tpu])")
    parser.add_argument(
        "--plot", metavar="FILE", help="draw frontier and roofline into an .html or .png (penstock[plot])"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def handle(options: argparse.Namespace) -> int:
    from jobs.planning.answer import run

    return DONE if run(options, console()) else TOO_MANY_FAILED
