"""Where rows come from: `open_source` plans an input as work items, `read_rows` reads one of them, anywhere."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from pipeline import storage
from pipeline.errors import InputError
from pipeline.sources import delimited, jsonl, parquet, text_lines, tfds_directory
from pipeline.sources.base import Row, Source, WorkItem, changed_since_plan
from pipeline.sources.files import FileSource, names_directory

__all__ = ["Row", "Source", "WorkItem", "open_source", "read_rows"]

_FORMATS = {
    "jsonl": jsonl.FORMAT,
    "csv": delimited.FORMAT,
    "text": text_lines.FORMAT,
    "parquet": parquet.FORMAT,
}
_READERS = {name: file_format.read for name, file_format in _FORMATS.items()} | {"tfds": tfds_directory.read}


def open_source(
    *,
    path: str | None = None,
    format: str | None = None,
    tfds: str | None = None,
    split: str | None = None,
    data_dir: str | None = None,
) -> Source:
    """An input: either files (`path`, of a `format` that is found by their suffix unless it is given), or a prepared
    TFDS dataset (`tfds` as "name", "name/config" or "name/config:1.0.0", its `split`, and its `data_dir`)."""
    if (path is None) == (tfds is None):
        raise InputError("an input is either files (path) or a TFDS dataset (tfds)")
    if tfds is not None:
        if format is not None:
            raise InputError(f"a TFDS dataset knows its own format; remove format: {format}")
        return tfds_directory.TfdsSource(tfds, split, data_dir)
    assert path is not None
    if split is not None or data_dir is not None:
        raise InputError("split and data_dir belong to TFDS datasets (tfds), not to files (path)")
    if format is not None and format not in _FORMATS:
        raise InputError(f"unknown format {format!r}; there are {', '.join(_FORMATS)}")
    urls = storage.expand(path)
    if format is None or names_directory(path, urls):
        format = _format_by_suffix(path, urls, format)
    return FileSource(path, urls, format, _FORMATS[format])


def read_rows(item: WorkItem, columns: Collection[str] | None = None) -> Iterator[Row]:
    """Exactly `item.rows` rows in order, whatever is in them; an error if the file no longer has them.

    Formats that can will read only `columns` (None: all, but images, audio and video are not decoded then); a
    column that a row does not have is absent from its values.
    """
    found, chosen = 0, item.selection
    for values, error in _READERS[item.format](item, columns):
        if found == len(chosen):
            raise changed_since_plan(item.source, f"there are more than {found} rows in shard {item.shard}")
        if chosen[found]:
            yield Row(item.first_row + found, values, error)
        found += 1
    if found < len(chosen):
        raise changed_since_plan(item.source, f"there are {found} of {len(chosen)} rows in shard {item.shard}")


def _format_by_suffix(path: str, urls: list[str], expected: str | None) -> str:
    """The one format that all files are named for."""
    expected = expected or _format_named(urls[0])
    if expected is None:
        raise InputError(f"the name of {urls[0]} does not tell its format; give it: {', '.join(_FORMATS)}")
    stray = next((url for url in urls if _format_named(url) != expected), None)
    if stray is not None:
        raise InputError(
            f"{path} means also {stray}, which is not named as {expected} files are; say which files are meant"
            f" with a glob, such as *{_FORMATS[expected].suffixes[0]}"
        )
    return expected


def _format_named(url: str) -> str | None:
    named = (name for name, file_format in _FORMATS.items() if url.lower().endswith(file_format.suffixes))
    return next(named, None)
