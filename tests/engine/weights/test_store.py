"""How a store is read, from a look at one of its files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import fsspec
import pytest

from engine.families import open_local
from engine.weights.store import LOCAL_SKIPPED_BYTES, READERS, SKIPPED_BYTES, Store, survey
from tests.engine.weights.stores import CountingOpen


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "some").write_bytes(bytes(10))
    return str(tmp_path / "some")


def open_fsspec(url: str) -> Any:
    return fsspec.open(url, "rb").open()


@pytest.mark.parametrize("open", [open_local, open_fsspec])
def test_a_local_disk_has_no_more_readers_than_processors(
    path: str, monkeypatch: pytest.MonkeyPatch, open: Any
) -> None:
    for processors, readers in ((3, 3), (64, READERS), (None, 1)):
        monkeypatch.setattr("os.cpu_count", lambda found=processors: found)
        assert survey(open, path) == Store(readers, LOCAL_SKIPPED_BYTES)
    assert survey(open, path, 20) == Store(20, LOCAL_SKIPPED_BYTES)


def test_others_are_taken_for_distant(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    store = CountingOpen()
    for distant in (store, lambda path: io.BytesIO(bytes(10))):
        assert survey(distant, path) == Store(READERS, SKIPPED_BYTES)
        assert survey(distant, path, 2) == Store(2, SKIPPED_BYTES)
    assert store.opened == store.closed
    assert not store.read_bytes


def test_one_object_for_all_who_open_a_file_has_one_reader() -> None:
    fsspec.filesystem("memory").pipe("/survey/some", bytes(10))
    assert survey(open_fsspec, "memory://survey/some").readers == 1
    assert survey(CountingOpen(open_fsspec), "memory://survey/some", 5).readers == 1
