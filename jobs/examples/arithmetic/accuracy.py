"""How many answers were right, from the outputs of the demo's jobs.

    python -m jobs.examples.arithmetic.accuracy OUT...

A generation is right if its text is the answer, a multiple choice if the likeliest choice is the right one;
a failed row is wrong. Rates are those of `penstock status`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pyarrow.parquet as pq

from jobs.status import rate_words, read_status


@dataclass(frozen=True)
class Accuracy:
    right: int
    rows: int

    def __str__(self) -> str:
        return f"{self.right:,} of {self.rows:,} right ({self.right / max(1, self.rows):.1%})"


def accuracy(output: str) -> Accuracy:
    """Of a generation that kept `answer`, or of a score that kept `label`."""
    table = pq.read_table(output)
    if "best_index" in table.column_names:
        found, expected = table["best_index"].to_pylist(), table["label"].to_pylist()
    else:
        found = [text.strip() if text is not None else None for text in table["text"].to_pylist()]
        expected = table["answer"].to_pylist()
    right = sum(f is not None and f == e for f, e in zip(found, expected, strict=True))
    return Accuracy(right, len(expected))


def main(outputs: list[str]) -> None:
    if not outputs:
        raise SystemExit(__doc__)
    for output in outputs:
        status = read_status(output)
        print(f"{status.plan.name}: {accuracy(output)}")
        print(f"  {rate_words(status.done, status.busy_seconds)}")
        print(f"  {output}")


if __name__ == "__main__":
    main(sys.argv[1:])
