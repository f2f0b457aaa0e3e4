"""Right answers are counted as right, everything else as wrong: wrong ones, failed rows, near misses of whitespace."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.examples.arithmetic.accuracy import Accuracy, accuracy, main


def test_of_generations(tmp_path: Path) -> None:
    columns = {"text": [" 85", "85", "84", "8 5", None, ""], "answer": ["85"] * 6}
    pq.write_table(pa.table(columns), tmp_path / "part-00000-of-00001.parquet")
    assert accuracy(str(tmp_path)) == Accuracy(right=2, rows=6)


def test_of_choices(tmp_path: Path) -> None:
    columns = {"best_index": [0, 3, None, 1], "label": [0, 2, 0, 1]}
    pq.write_table(pa.table(columns), tmp_path / "part-00000-of-00001.parquet")
    assert accuracy(str(tmp_path)) == Accuracy(right=2, rows=4)


def test_words() -> None:
    assert str(Accuracy(right=985, rows=1000)) == "985 of 1,000 right (98.5%)"


def test_without_an_output_it_says_how_it_is_called() -> None:
    with pytest.raises(SystemExit, match="OUT"):
        main([])
