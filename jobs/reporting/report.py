"""From places to a page that is written: what `penstock report` does."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jobs.reporting.facts import read_facts
from jobs.reporting.outputs import find_outputs, newest
from jobs.reporting.page import MARK, page
from jobs.reporting.sampling import SAMPLED_ROWS
from jobs.reporting.trend import Partition, trend
from jobs.wording import count_words, failed_words
from pipeline.errors import OutputError
from pipeline.storage import exists, open_input, publish_over

_SAMPLED_IN_ALL = 1_000_000
"""Rows of all partitions together: their samples are in memory at the same time."""
_LEAST_SAMPLE = 2_000


@dataclass(frozen=True)
class Report:
    partitions: Sequence[Partition]
    path: str
    size_bytes: int

    @property
    def drifted(self) -> list[str]:
        """What has moved in the last partition."""
        return self.partitions[-1].drifted

    def lines(self) -> Iterator[tuple[str, str]]:
        """What the command prints."""
        last = self.partitions[-1]
        status = last.facts.status
        yield "job", f"{status.plan.name} ({status.plan.task}), {'finished' if status.is_finished else 'not finished'}"
        if len(self.partitions) > 1:
            flagged = [partition for partition in self.partitions if partition.drifted]
            yield "drift", f"{count_words(len(flagged), 'partition')} of {len(self.partitions)} flagged"
            yield from (("", f"{p.facts.label}: {', '.join(p.drifted)}") for p in flagged[-10:])
        yield "rows", f"{status.records_done:,} of {status.plan.rows_total:,} done, {failed_words(status.done)}"
        yield from (("problem", problem) for problem in last.facts.sample.problems[:3])
        yield "report", f"{self.path} ({self.size_bytes / 1024:,.0f} KiB)"


def write_report(places: Sequence[str], path: str, *, last: int = 100, sampled_rows: int | None = None) -> Report:
    """Reads the outputs at `places` and writes the page to `path`."""
    _refuse_other_files(path)
    outputs = find_outputs(places)
    shown = [newest(output) for output in outputs[-last:]]
    share = SAMPLED_ROWS if len(shown) == 1 else min(SAMPLED_ROWS, max(_LEAST_SAMPLE, _SAMPLED_IN_ALL // len(shown)))
    partitions = trend([read_facts(output, sampled_rows or share) for output in shown])
    html = page(partitions, left_out=len(outputs) - len(shown))
    publish_over(path, html)
    return Report(partitions, path, len(html))


def _refuse_other_files(path: str) -> None:
    """An earlier report is replaced; anything else that is there is not."""
    if "://" not in path and os.path.isdir(path):
        raise OutputError(f"--out {path} is a directory; name a file, such as {os.path.join(path, 'report.html')}")
    if exists(path):
        with open_input(path) as file:
            if file.read(len(MARK)) != MARK:
                raise OutputError(f"--out {path} is there and is no report; choose another name, or delete it")
