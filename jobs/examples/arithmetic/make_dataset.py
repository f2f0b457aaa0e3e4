"""Write the demo's questions: 1000 problems the checkpoint has never seen, as Parquet and as a TFDS dataset.

    python -m jobs.examples.arithmetic.make_dataset     # writes data/ beside this file; needs no TensorFlow

Both hold the same rows in the same order. The Parquet file is the same to the byte whenever the package
versions are; the TFDS file holds protobuf maps, which are written in no fixed order.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow_datasets as tfds

from jobs.examples.arithmetic.problems import PHRASINGS, problems

ROWS = 1000
CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")
TEXT_COLUMNS = ("id", "question", "answer", *CHOICES)
SCHEMA = pa.schema([*((name, pa.string()) for name in TEXT_COLUMNS), ("label", pa.int64())])


def rows() -> Iterator[dict[str, Any]]:
    """The questions; `label` is the position of the answer among the choices."""
    rng = random.Random(2)
    held_out = [problem for problem in problems() if problem.is_held_out]
    for problem in rng.sample(held_out, ROWS):
        choices = problem.choices(rng)
        yield {
            "id": problem.name,
            "question": problem.question(rng.randrange(len(PHRASINGS[problem.operation]))),
            "answer": str(problem.answer),
            **{name: str(choice) for name, choice in zip(CHOICES, choices, strict=True)},
            "label": choices.index(problem.answer),
        }


class ArithmeticQuestions(tfds.core.GeneratorBasedBuilder):
    """Sums and differences of numbers below 100, with four choices each."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    **{name: tfds.features.Text() for name in TEXT_COLUMNS},
                    "label": tfds.features.ClassLabel(names=CHOICES),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {"test": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from enumerate(rows())


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the arithmetic demo's questions.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "data")
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows()), SCHEMA), output / "questions.parquet", compression="zstd")
    shutil.rmtree(output / "tfds" / ArithmeticQuestions.name, ignore_errors=True)  # TFDS would keep what is there
    with tempfile.TemporaryDirectory() as unused:
        builder = ArithmeticQuestions(data_dir=output / "tfds", file_format="array_record")
        builder.download_and_prepare(download_dir=unused)


if __name__ == "__main__":
    main()
