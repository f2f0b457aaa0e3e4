"""The whole Beam pipeline on one screen.

    work items -> Reshuffle -> RunShard -> count -> Finalise
                                  | what another run is computing: again, when all others are done

An element is a work item or a number, never a row. Results are published by RunShard, shard by shard; what flows on is
the news that they are there, so the last step runs once, after all of them. No runner knows what the output does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import apache_beam as beam
from apache_beam.pvalue import PCollection

from schemas.manifest import Summary

from .inference import RunShard, ShardJob
from .manifest import Manifest
from .sources.base import WorkItem
from .workplan import read_plan


def build(pipeline: beam.Pipeline, todo: Sequence[WorkItem], job: ShardJob) -> PCollection[Summary]:
    """Computes the shards in `todo`; then, with every shard of the plan there, declares the job finished."""
    shards = (
        pipeline
        | "WorkItems" >> beam.Create(todo)
        | "Spread" >> beam.Reshuffle()
        | "RunShard" >> beam.ParDo(RunShard(job)).with_outputs(RunShard.HELD, main="done")
    )
    held = (
        shards[RunShard.HELD]
        | "AfterOthers" >> beam.Reshuffle()
        | "RunHeldShard" >> beam.ParDo(RunShard(job, is_last=True))
    )
    return (
        (shards["done"], held)
        | "AllShards" >> beam.Flatten()
        | "Count" >> beam.combiners.Count.Globally()
        | "Finalise" >> beam.Map(_finalise, job.output)
    )


def _finalise(_: int, output: str) -> Summary:
    return Manifest(output, read_plan(output)).finalise()
