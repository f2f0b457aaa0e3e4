"""`penstock follow`: this host's chips for a job that another leads."""

from __future__ import annotations

import argparse

from jobs.commands.arguments import add_job
from jobs.commands.exit_codes import DONE
from jobs.commands.printing import print_lines

NAME = "follow"
SUMMARY = "lend this host to a job that runs on another"
TEXT = """\
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


def add_options(parser: argparse.ArgumentParser) -> None:
    add_job(parser)
    parser.add_argument(
        "--process", type=int, required=True, metavar="N", help="which host this is: 1 to engine.hosts.count - 1"
    )


def handle(options: argparse.Namespace) -> int:
    from jobs.follow import follow
    from jobs.job_file import load

    print_lines([("follow", follow(load(options.job, options.set), options.process))])
    return DONE
