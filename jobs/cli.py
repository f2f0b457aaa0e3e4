"""The `penstock` command: run, follow, validate, plan, profile, status, show, schema, compile.

It parses the command line, sets up logging, and says what went wrong in one sentence. What a command needs is imported
when it runs, so that help answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence

from engine.errors import EngineError
from pipeline.errors import PenstockError

DONE, TOO_MANY_FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130

PLAIN_WIDTH = 160  # characters of a table that goes to a file or a pipe

_ABOUT = """\
Batch offline inference for large language models: a dataset in, generations or scores out, as Parquet.
"""

_EXIT_CODES = """\
exit codes:
  0    done
  1    finished, but a larger share of rows failed than limits.max_failed_fraction allows
       (compile and plan: it does not fit)
  2    the command, the job, the model, the input or the output cannot be used, or the run broke off
  130  interrupted by Ctrl-C
Finished shards are never lost: after 2 and 130 the same command goes on where it stopped.
"""

_RUN = """\
Run a job: every row of the input goes through the model, and the results into Parquet files. Run again, it does only
what is missing; when nothing is, it changes no file.

examples:
  penstock run job.yaml
  penstock run job.yaml --set sampling.max_tokens=32 --set output.path=./short
  penstock run job.yaml --runner BundleBasedDirectRunner      (flags that are not listed here go to Beam)
"""

_FOLLOW = """\
Lend this host's chips to a job whose model is larger than one host. The job file says how many hosts there are, and
where `penstock run`, which leads them, can be reached:

  engine: {mesh: 4x4x1, hosts: {count: 2, coordinator: "10.0.0.1:8476"}}

Start `penstock run` there, and this on every other host, with the same job file and a number of its own; in any order,
within ten minutes. Each reads its own part of the checkpoint. Only the leader reads the input and writes the output.
All end together. When one is lost the others end too, with exit code 2 and the name of the one that was lost; then
start the same commands again.

examples:
  penstock run job.yaml                              (on 10.0.0.1: process 0)
  penstock follow job.yaml --process 1               (on the second host)
  penstock follow job.yaml --process $TPU_WORKER_ID  (where the cluster numbers its hosts from 0; Slurm: $SLURM_PROCID)
"""

_VALIDATE = """\
Look at a job before it runs: render its first prompts, count their tokens, and name the rows that would fail. Writes
nothing and needs no accelerator. The exit code is 1 when more of the rows looked at would fail than
limits.max_failed_fraction allows.

example:
  penstock validate job.yaml --rows 5000
"""

_PLAN = """\
Say what to run on, how it will be laid out, how long it takes and what it costs, before a chip is touched. Nothing is
compiled or measured: times come from a model of the chips, whose error is stated with every answer.

Of a job: looks at rows all over its input, plays the batcher over their lengths, and chooses chips, mesh, layouts,
slots and the number of slices. What the job pins (engine.mesh, layouts, slots, int8) stays. Prints what to write into
the job file, so that it runs like that.

Of one phase of a model, without a job: the best layout on certain chips, or the best chips. A model is a checkpoint's
directory or a published one by name: palm-540b, llama-3.1-70b, mixtral-8x7b ... Chips are slices (v4:4x4x4, v5e:4x4)
or kinds (v5e,v6e: all their slices up to --max-chips). What is not said is chosen; without --batch, many are tried.

examples:
  penstock plan job.yaml --chips v5e,v6e --prices prices.yaml
  penstock plan job.yaml --chips v5p --deadline 6h --output-tokens ./earlier-run
  penstock plan --model llama-3.1-70b --chips v5e:4x4 --phase decode --batch 64 --context 2048 --weights int8
  penstock plan --model palm-540b --chips v4:4x4x4 --phase prefill --batch 512 --context 2048 --ffn wg-xyz --json
  penstock plan --model llama-3.1-405b --chips v5e,v5p,v6e --phase decode --context 2048 --prices prices.yaml
"""

_STATUS = """\
Say what is done and what is left of a job, from its output alone.

example:
  penstock status ./out
"""

_SHOW = """\
Show results as a table.

examples:
  penstock show ./out
  penstock show ./out --failed --limit 50
  penstock show ./out --columns record_id,text,cumulative_logprob
"""

_SCHEMA = """\
Print the JSON schema of a job file. Editors complete and check a job that names it in its first line.

example:
  penstock schema > job.schema.json
  # yaml-language-server: $schema=./job.schema.json
"""

_PROFILE = """\
Measure what this machine's processor reaches with the engine's programs: products, memory, the cost of a call. Takes
one to three minutes and should have the machine to itself. The cost model predicts this machine from the profile.

example:
  penstock profile --out machine.json
"""

_COMPILE = """\
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    options, flags = parser.parse_known_args(arguments)
    if flags and options.handle is not _run:
        parser.error(f"unknown: {' '.join(flags)}; see penstock {options.command} --help")
    options.flags, options.line = flags, shlex.join(["penstock", *arguments])
    _set_up_logging(options.verbose)
    try:
        return options.handle(options)
    except (PenstockError, EngineError) as error:
        logging.getLogger(__name__).info("where it went wrong", exc_info=True)
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever reads our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def _run(options: argparse.Namespace) -> int:
    from rich.console import Console

    from jobs.job_file import load
    from jobs.launch import outcome_lines, run

    job = load(options.job, options.set)
    for note in job.notes():
        print(f"note: {note}", file=sys.stderr)
    console = Console(file=sys.stderr, force_terminal=False if options.verbose else None)
    quiet = contextlib.nullcontext() if options.verbose else contextlib.redirect_stderr(io.StringIO())
    try:
        with quiet:  # Beam's workers print the traceback of every failure, besides raising it
            outcome = run(job, options.flags, console)
    except KeyboardInterrupt:
        print(f"interrupted; finished shards stay. To go on:\n  {options.line}", file=sys.stderr)
        return INTERRUPTED
    _print_lines(outcome_lines(outcome))
    return TOO_MANY_FAILED if outcome.is_over_limit else DONE


def _follow(options: argparse.Namespace) -> int:
    from jobs.follow import follow
    from jobs.job_file import load

    _print_lines([("follow", follow(load(options.job, options.set), options.process))])
    return DONE


def _validate(options: argparse.Namespace) -> int:
    from jobs.job_file import load
    from jobs.validate import finding_lines, validate

    job = load(options.job, options.set)
    findings = validate(job, rows=options.rows, shown=options.show)
    _print_lines([*finding_lines(findings), *(("note", note) for note in job.notes())])
    return TOO_MANY_FAILED if findings.is_over_limit else DONE


def _status(options: argparse.Namespace) -> int:
    from jobs.status import read_status, status_lines

    _print_lines(status_lines(read_status(options.output)))
    return DONE


def _show(options: argparse.Namespace) -> int:
    from rich.console import Console

    from jobs.show import show

    columns = options.columns.split(",") if options.columns else ()
    table = show(options.output, limit=options.limit, columns=columns, failed=options.failed)
    Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH).print(table)
    return DONE


def _schema(options: argparse.Namespace) -> int:
    from jobs.reference import job_reference, job_schema

    print(job_reference() if options.markdown else json.dumps(job_schema(), indent=2) + "\n", end="")
    return DONE


def _compile(options: argparse.Namespace) -> int:
    from rich.console import Console

    from jobs.compile_command import run

    fits = run(options, Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH))
    return DONE if fits else TOO_MANY_FAILED


def _plan(options: argparse.Namespace) -> int:
    from rich.console import Console

    from jobs.plan_command import run

    return DONE if run(options, Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)) else TOO_MANY_FAILED


def _profile(options: argparse.Namespace) -> int:
    from rich.console import Console

    from jobs.profile_command import run

    run(options, Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH))
    return DONE


def _print_lines(lines: Iterable[tuple[str, str]]) -> None:
    for label, text in lines:
        print(f"{label:<9}{text}".rstrip())


def _set_up_logging(verbose: bool) -> None:
    """Quiet: our own warnings. Others raise their errors besides logging them. Verbose: what everybody has to say."""
    logging.basicConfig(format="%(asctime)s %(levelname).1s %(name)s: %(message)s", datefmt="%H:%M:%S")
    logging.getLogger().setLevel(logging.INFO if verbose else logging.CRITICAL)
    for room in ("engine", "pipeline", "jobs"):
        logging.getLogger(room).setLevel(logging.INFO if verbose else logging.WARNING)


def _parser() -> argparse.ArgumentParser:
    shared = {
        "epilog": _EXIT_CODES,
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,
    }
    parser = argparse.ArgumentParser(prog="penstock", description=_ABOUT, **shared)
    parser.add_argument("--version", action="version", version=importlib.metadata.version("penstock"))
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")

    def command(
        handle: Callable[[argparse.Namespace], int], name: str, summary: str, text: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=text, **shared)
        added.add_argument("-v", "--verbose", action="store_true", help="log what happens, and show tracebacks")
        added.set_defaults(handle=handle)
        return added

    run = command(_run, "run", "run a job, or what is missing of it", _RUN)
    follow = command(_follow, "follow", "lend this host to a job that runs on another", _FOLLOW)
    validate = command(_validate, "validate", "look at a job before it runs", _VALIDATE)
    for parser_of_job in (run, follow, validate):
        parser_of_job.add_argument("job", metavar="JOB.yaml", help="the job file; docs/job-reference.md describes it")
        _add_set_option(parser_of_job)
    follow.add_argument(
        "--process", type=int, required=True, metavar="N", help="which host this is: 1 to engine.hosts.count - 1"
    )
    validate.add_argument("--rows", type=_count, default=1000, help="how many rows to look at (default: 1000)")
    validate.add_argument("--show", type=_count, default=3, help="how many prompts to show (default: 3)")

    status = command(_status, "status", "how far a job is", _STATUS)
    show = command(_show, "show", "results as a table", _SHOW)
    for parser_of_output in (status, show):
        parser_of_output.add_argument("output", metavar="OUT", help="the job's output.path")
    show.add_argument("--limit", type=_count, default=10, help="how many rows (default: 10)")
    show.add_argument("--columns", metavar="A,B", help="which columns (default: the ones to read first)")
    show.add_argument("--failed", action="store_true", help="only rows that failed")

    schema = command(_schema, "schema", "JSON schema of a job file, for editors", _SCHEMA)
    schema.add_argument("--markdown", action="store_true", help="the reference page instead")
    _add_plan_options(command(_plan, "plan", "what to run on, how long it takes, what it costs", _PLAN))
    command(_profile, "profile", "measure this machine", _PROFILE).add_argument(
        "--out", metavar="FILE", help="where the profile goes (default: the user's cache)"
    )
    _add_compile_options(command(_compile, "compile", "what the TPU compiler makes of a model", _COMPILE))
    return parser


def _add_set_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace a field: a dotted key and a YAML value; may be repeated",
    )


def _add_compile_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="CHECKPOINT|NAME", help="a directory, or a published model")
    parser.add_argument("--chips", required=True, metavar="CHIP:AxBxC", help="which, and how many: v4:4x4x4, v5e:4x4")
    parser.add_argument("--phase", required=True, choices=("prefill", "decode"), help="which program")
    parser.add_argument("--batch", required=True, type=_positive, help="sequences at the same time")
    parser.add_argument("--context", required=True, type=_positive, help="tokens of each: the prompt, or the cache's")
    parser.add_argument("--mesh", metavar="XxYxZ", help="how chips of a slice are numbered (default: as the torus is)")
    parser.add_argument(
        "--ffn", metavar="LAYOUT", help="ws1d, ws2d, wg-x, wg-xy or wg-xyz (default: weight-stationary)"
    )
    parser.add_argument(
        "--attention", metavar="OVER", help="heads, batch or sequence (default: by the model and phase)"
    )
    parser.add_argument("--weights", choices=("bf16", "int8"), default="bf16", help="(default: bf16)")
    parser.add_argument("--kv", choices=("bf16", "int8"), default="bf16", help="the cache (default: bf16)")
    parser.add_argument("--layers", type=_positive, help="only so many; two tell a layer's share from the rest")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _add_plan_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", nargs="?", metavar="JOB.yaml", help="the job file; what it does not say is chosen")
    job = parser.add_argument_group("a job")
    _add_set_option(job)
    job.add_argument(
        "--rows", type=_positive, default=1000, help="how many to look at, all over the input (default: 1000)"
    )
    job.add_argument(
        "--output-tokens",
        metavar="N|FILE|OUT",
        help="how long completions are: a number, a CSV of tokens,count, or the output of an earlier run "
        "(default: sampling.max_tokens)",
    )
    what = parser.add_argument_group("one phase of a model, without a job")
    what.add_argument("--model", metavar="CHECKPOINT|NAME", help="a directory, or a published model")
    what.add_argument("--phase", choices=("prefill", "decode", "score"), help="which program")
    what.add_argument("--batch", type=_positive, help="sequences at the same time (default: tries 1 to 1024)")
    what.add_argument("--context", type=_positive, help="tokens of each: the prompt, or the cache's")
    what.add_argument("--tokens", type=_positive, help="decoded for each sequence (default: 64)")
    what.add_argument("--mesh", metavar="XxYxZ", help="pins the mesh; needs one slice")
    what.add_argument("--ffn", metavar="LAYOUT", help="pins ws1d, ws2d, wg-x, wg-xy or wg-xyz")
    what.add_argument("--attention", metavar="OVER", help="pins heads, batch or sequence")
    what.add_argument("--weights", choices=("bf16", "int8"), help="(default: bf16)")
    what.add_argument("--kv", choices=("bf16", "int8"), help="the cache (default: bf16)")
    choice = parser.add_argument_group("what to choose from, and how")
    choice.add_argument("--chips", metavar="CHIPS", help="such as v5e:4x4 or v5e,v6e (default: all TPUs from v4 on)")
    choice.add_argument("--max-chips", type=_positive, default=256, help="of a slice (default: 256)")
    choice.add_argument("--goal", choices=("cheapest", "fastest", "deadline"), help="(default: cheapest)")
    choice.add_argument(
        "--budget", metavar="MONEY", help="with the goal fastest: spend no more, in the prices' currency"
    )
    choice.add_argument("--deadline", metavar="TIME", help="with the goal deadline: 90min, 6h, 2d")
    choice.add_argument(
        "--startup", type=_number, default=300.0, metavar="SECONDS", help="of a worker, assumed (default: 300)"
    )
    choice.add_argument("--prices", metavar="FILE", help="YAML or CSV with the price of a chip-hour")
    parser.add_argument("--compile", action="store_true", help="check the plan with the TPU compiler (penstock[tpu])")
    parser.add_argument(
        "--plot", metavar="FILE", help="draw frontier and roofline into an .html or .png (penstock[plot])"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rows")
    return int(text)


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return number


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
