"""Outputs: a name becomes visible with its whole content or not at all, and only its first publisher wins.

Object stores have that as a conditional put (ifGenerationMatch=0, If-None-Match: *), local disks get it from
hard links (`local_files`). A filesystem that cannot refuse an existing name atomically is refused as an
output.

The reply to a put can be lost after the put took effect, and the driver's second try then finds the name taken,
by itself. So a name that is taken settles nothing: what is there is read back, and counts as ours when it is
what we put.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

from pipeline import local_files
from pipeline.errors import OutputError, PenstockError
from pipeline.storage.drivers import is_local, resolve, resolve_output
from pipeline.storage.object_file import open_object
from pipeline.storage.reading import read_bytes
from pipeline.storage.refusals import Doing, ShortAnswer, is_no_bucket, is_passing, refusal, status_of
from pipeline.storage.retrying import TRIES, ask, given_up, pause
from pipeline.urls import join

_MEMORY_LOCK = threading.Lock()  # memory:// checks and creates in two steps
_COMPARED_BYTES = 2**20
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


def publish_if_absent(url: str, data: bytes | Path) -> bool:
    """Make `data` visible as `url`, whole; True if this call created it, False if something else was there.

    A file given as a Path must not be written to afterwards. In an object store, content that is equal to
    `data` counts as created here, whoever put it: publishers that must know themselves apart put a name of
    their own into what they publish.
    """
    fs, path = resolve_output(url)
    if isinstance(fs, MemoryFileSystem):
        return _create_in_memory(fs, path, data)
    if not is_local(fs):
        return _create(fs, url, path, data)
    try:
        return local_files.create(path, data)
    except OSError as e:
        raise _not_written("create", url, e) from e


def publish_over(url: str, data: bytes) -> None:
    """Replace the content of `url` atomically; nothing is written when it already is `data`."""
    fs, path = resolve_output(url)
    with contextlib.suppress(FileNotFoundError):
        if read_bytes(url) == data:
            return
    if not is_local(fs):
        ask(Doing("replace", url), lambda: _put(fs, path, data, mode="overwrite"))
        return
    try:
        local_files.replace(path, data)
    except OSError as e:
        raise _not_written("write", url, e) from e


def remove(url: str) -> None:
    """Remove one file, if it is there."""
    fs, path = resolve_output(url)
    try:
        with contextlib.suppress(FileNotFoundError):
            ask(Doing("delete", url), lambda: fs.rm_file(path))
    except OSError as e:
        raise OutputError(f"cannot remove {url}: {e}") from e


@contextlib.contextmanager
def scratch(url: str) -> Iterator[Path]:
    """A temporary local file in which to build the content of `url`; publish it before the block ends.

    It lies hidden beside `url`, or in the temporary directory when that is in an object store.
    """
    fs, path = resolve_output(url)
    try:
        if is_local(fs):
            with local_files.temporary_beside(path) as temporary:
                yield temporary
        else:
            with tempfile.TemporaryDirectory(prefix="penstock-") as directory:
                yield Path(directory) / os.path.basename(path)
    except OSError as e:
        if e.errno not in _FULL or isinstance(e, PenstockError):
            raise
        raise _not_written("build", url, e, "" if is_local(fs) else f" in {tempfile.gettempdir()} (TMPDIR)") from e


def remove_abandoned(directory: str) -> list[str]:
    """Remove what killed publishers left behind; the names removed. Object stores show nothing to remove."""
    fs, path = resolve(directory)
    return local_files.remove_abandoned(path) if is_local(fs) else []


def check_writable(directory: str) -> None:
    """Publish and remove a probe in `directory`: a job that cannot deliver is to fail before it computes.

    A store that takes the same name twice is refused: it would let two workers write one shard.
    """
    probe = join(directory, f".probe-{uuid.uuid4().hex}")
    fs, path = resolve_output(probe)
    publish_if_absent(probe, b"first")
    is_taken_twice = not is_local(fs) and publish_if_absent(probe, b"second")
    try:
        with contextlib.suppress(FileNotFoundError):  # a first try took effect, and its reply was lost
            ask(Doing("delete", probe), lambda: fs.rm_file(path))
    except OSError as e:
        raise OutputError(f"cannot write to {directory}: {type(e).__name__}: {e}") from e
    if is_taken_twice:
        raise OutputError(
            f"{directory} is in a store that ignores conditional writes (If-None-Match, ifGenerationMatch), so that "
            "results could be written twice; use another store, or a newer version of this one"
        )


def _create(fs: fsspec.AbstractFileSystem, url: str, path: str, data: bytes | Path) -> bool:
    """A conditional put to an object store, until it is known whose object is there."""
    doing = Doing("create", url)
    for attempt in range(1, TRIES + 1):
        try:
            _put(fs, path, data, mode="create")
            return True
        except Exception as error:
            may_be_there = is_passing(error) or isinstance(error, FileExistsError) or status_of(error) == 412
            if is_no_bucket(error, doing) or not may_be_there:
                raise refusal(error, doing) from None
            try:
                is_ours = _is_there(fs, url, path, data)
            except PenstockError as unknown:
                raise given_up(error, doing) from unknown
            if is_ours is not None:
                return is_ours
            if attempt == TRIES:
                raise given_up(error, doing) from None
            pause(attempt, error, doing)
    raise AssertionError("unreachable")


def _is_there(fs: fsspec.AbstractFileSystem, url: str, path: str, data: bytes | Path) -> bool | None:
    """Whether an object holds just `data`; None where there is no object."""
    try:
        there = open_object(fs, url, path)
    except FileNotFoundError:
        return None
    size_bytes = len(data) if isinstance(data, bytes) else data.stat().st_size
    if there.seek(0, os.SEEK_END) != size_bytes:
        return False
    there.seek(0)
    if isinstance(data, bytes):
        return there.read() == data
    with open(data, "rb") as ours:
        while chunk := ours.read(_COMPARED_BYTES):
            if there.read(len(chunk)) != chunk:
                return False
    return True


def _put(fs: fsspec.AbstractFileSystem, path: str, data: bytes | Path, mode: str) -> None:
    """Put a whole object; files are streamed."""
    if isinstance(fs, MemoryFileSystem):
        fs.pipe_file(path, data if isinstance(data, bytes) else data.read_bytes(), mode=mode)
        return
    confirmed: dict[str, Any] = {"consistency": "size"} if "gs" in fs.protocol else {}
    try:
        if isinstance(data, bytes):
            fs.pipe_file(path, data, mode=mode, **confirmed)
        else:
            fs.put_file(str(data), path, mode=mode, **confirmed)
    except (AssertionError, TypeError, KeyError) as e:  # gcsfs: no size in the last answer, or another one
        raise ShortAnswer(f"the store did not confirm the upload: {e!r}") from e


def _create_in_memory(fs: MemoryFileSystem, path: str, data: bytes | Path) -> bool:
    try:
        with _MEMORY_LOCK:
            _put(fs, path, data, mode="create")
    except FileExistsError:
        return False
    return True


def _not_written(verb: str, url: str, error: OSError, where: str = "") -> OutputError:
    hint = ""
    if error.errno in _FULL:
        hint = "; make room, and the same command goes on where it stopped"
    elif error.errno in _NO_LINKS:
        hint = "; the output needs a filesystem with hard links, or an object store"
    return OutputError(f"cannot {verb} {url}{where}: {error}{hint}")
