"""What an output tells of how a run went: `penstock plan --learn-from OUT`."""

from __future__ import annotations

from jobs.comparison import Comparison
from jobs.planning.history import Earlier, earlier_of
from jobs.status import read_status
from pipeline.errors import JobError


def of_output(output: str) -> Earlier:
    """Its shards against its own prediction; JobError where there is nothing to learn."""
    status = read_status(output)
    if status.prediction is None:
        raise JobError(f"--learn-from {output}: nothing was predicted of that run, so there is nothing to compare")
    earlier = earlier_of(Comparison(status.prediction, status.done))
    if earlier is None:
        raise JobError(f"--learn-from {output}: no shard of that run is done")
    return earlier
