"""Inputs, wherever they lie: which files a path, a directory or a glob means, what is known of them, their bytes."""

from __future__ import annotations

import contextlib
import datetime
import io
import os
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.errors import InputError, MissingFile
from pipeline.storage.drivers import is_local, kind, resolve, url_of
from pipeline.storage.globbing import glob, has_magic
from pipeline.storage.object_file import open_object
from pipeline.storage.refusals import Doing
from pipeline.storage.retrying import ask
from pipeline.urls import is_hidden

_CONTENT_IDENTITIES = ("md5Hash", "ETag", "etag", "generation")  # in an object's listing, most lasting first


@dataclass(frozen=True)
class FileFacts:
    """One file, its size, what changes whenever its content does (None: the store knows no such thing)."""

    url: str
    size_bytes: int
    etag: str | None


def expand(pattern: str) -> list[str]:
    """The files that a path, a directory (recursively) or a glob means, sorted; never an empty list.

    Names that start with `_` or `.` are bookkeeping and are skipped, unless the pattern spells them out.
    """
    fs, path = resolve(pattern)
    facts = info(fs, path, pattern)
    if facts is not None and facts["type"] == "file":
        return [url_of(fs, path)]
    files: list[str] = []
    listing = Doing("list", pattern)
    if facts is not None:
        found = cast(list[str], ask(listing, lambda: fs.find(path)))
        files = [name for name in found if not is_hidden(os.path.relpath(name, path))]
    elif has_magic(path):
        matched: dict[str, Any] = {}
        with contextlib.suppress(FileNotFoundError):  # so says gcsfs of a bucket that is not there
            if kind(pattern) == "s3":
                matched = glob(fs, path, listing)
            else:
                matched = cast(dict[str, Any], ask(listing, lambda: fs.glob(path, detail=True)))
        files = [name for name, facts in matched.items() if facts["type"] == "file"]
        if not is_hidden(os.path.basename(path)):
            files = [name for name in files if not is_hidden(os.path.basename(name))]
    if not files:
        raise MissingFile(f"no input file matches {pattern}{_neighbours(fs, path)}")
    return sorted(url_of(fs, name) for name in files)


def stat(url: str) -> FileFacts:
    """Size and identity of one file."""
    fs, path = resolve(url)
    facts = info(fs, path, url)
    if facts is None:
        raise InputError(f"there is no file {url}")
    etag = next((str(facts[key]) for key in _CONTENT_IDENTITIES if facts.get(key)), None)
    return FileFacts(url, int(facts["size"]), None if is_local(fs) else etag)


def open_input(url: str) -> BinaryIO:
    """A seekable binary file, open for reading; MissingFile when it is absent."""
    try:
        return _open(*resolve(url), url)
    except FileNotFoundError as e:
        raise MissingFile(f"there is no file {url}") from e
    except OSError as e:
        raise InputError(f"cannot read {url}: {e}") from e


def modified_at(url: str) -> datetime.datetime | None:
    """When a file was last written, by the clock of its store; None where the store does not say."""
    fs, path = resolve(url)
    try:
        moment = ask(Doing("read", url), lambda: fs.modified(path))
    except (NotImplementedError, FileNotFoundError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)


def exists(url: str) -> bool:
    """Whether a file or directory is there; an unreachable store is an error, not a `False`."""
    return info(*resolve(url), url) is not None


def read_bytes(url: str, limit_bytes: int = 256 * 2**20) -> bytes:
    """All of a small file; FileNotFoundError when it is absent."""
    with _open(*resolve(url), url) as f:
        data = f.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise InputError(f"{url} is larger than the {limit_bytes} bytes such a file may have")
    return data


def list_names(directory: str) -> list[str]:
    """The names directly inside a directory, sorted; empty when it does not exist."""
    fs, path = resolve(directory)
    try:
        if is_local(fs):
            children: list[Any] = os.listdir(path)
        else:
            children = ask(Doing("list", directory), lambda: fs.ls(path, detail=False))
    except FileNotFoundError:
        return []
    names = (os.path.basename(str(child).rstrip("/")) for child in children if str(child) != path)
    return sorted(name for name in names if name)


def info(fs: fsspec.AbstractFileSystem, path: str, url: str) -> dict[str, Any] | None:
    """What a filesystem says of a file or directory; None where there is none."""
    try:
        return ask(Doing("read", url), lambda: fs.info(path))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _open(fs: fsspec.AbstractFileSystem, path: str, url: str) -> BinaryIO:
    if is_local(fs):
        return open(path, "rb")
    if isinstance(fs, MemoryFileSystem):  # its open() hands every reader the same file position
        return io.BytesIO(fs.cat_file(path))
    if kind(url):
        return cast(BinaryIO, open_object(fs, url, path))
    return cast(BinaryIO, ask(Doing("read", url), lambda: fs.open(path, "rb")))


def _neighbours(fs: fsspec.AbstractFileSystem, path: str) -> str:
    """What the nearest existing directory above a missing path holds, for the error message."""
    directory = os.path.dirname(path)
    while directory not in ("", "/") and (info(fs, directory, url_of(fs, directory)) or {}).get("type") != "directory":
        directory = os.path.dirname(directory)
    if not directory:
        bucket = url_of(fs, path.split("/", 1)[0])
        return f"; {bucket} is empty, or there is no such bucket" if kind(bucket) else ""
    names = list_names(url_of(fs, directory))
    listed = ", ".join([*names[:8], "..."] if len(names) > 8 else names)
    return f"; {url_of(fs, directory)} holds {listed or 'nothing'}"
