"""The prediction on disk: read as it was written, and nothing else."""

from __future__ import annotations

import json

import pytest

from schemas.documents import DocumentError
from schemas.prediction import Prediction
from tests.jobs.test_comparison import PREDICTION


def test_it_is_read_as_it_was_written() -> None:
    assert Prediction.from_json(PREDICTION.to_json()) == PREDICTION
    assert PREDICTION.engine.section()["prefill"] == {"ffn": "ws1d", "attention": "heads"}
    assert PREDICTION.in_brief().items() <= vars(PREDICTION).items()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": 2}, r"newer Penstock \(version 2, this one reads up to 1\)"),
        ({"seconds": -1.0}, "'seconds' must be a positive number"),
        ({"mfu": float("nan")}, "'mfu' must be a positive number"),
        ({"price": float("inf")}, "'price' must be a positive number"),
        ({"chip_hours": 0.0}, "'chip_hours' must be above zero"),
        ({"engine": {"mesh": "1x1x1"}}, r"missing key 'engine\.decode'"),
        ({"speed": 3}, "unknown key 'speed'"),
        ({"rows": "many"}, "'rows' must be int"),
    ],
)
def test_what_is_none_is_refused(changes: dict, says: str) -> None:
    with pytest.raises(DocumentError, match=says):
        Prediction.from_json(json.dumps(json.loads(PREDICTION.to_json()) | changes).encode())


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 100_000, b"\xff", b"[]", b"null"])
def test_what_is_no_json_is_refused(text: bytes) -> None:
    with pytest.raises(DocumentError):
        Prediction.from_json(text)
