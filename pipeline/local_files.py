"""Publishing on a local disk: a name appears with its whole content or not at all; the first publisher wins.

Content is built in a hidden temporary file in the directory of its name, made durable, then linked (which
fails when the name exists) or moved over it. A publisher holds a lock on its temporary file for as long as
it lives, so what a killed one left behind is known by its lock being free.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

_SUFFIX = ".partial"


@contextlib.contextmanager
def temporary_beside(path: str) -> Iterator[Path]:
    """A new hidden file in the directory of `path`, locked while the block runs and gone afterwards."""
    directory, name = os.path.split(path)
    os.makedirs(directory, exist_ok=True)
    while True:
        temporary = Path(directory) / f".{name}.{uuid.uuid4().hex}{_SUFFIX}"
        with open(temporary, "xb") as f:
            with contextlib.suppress(OSError):  # no locks on this filesystem: leftovers are removed by hand
                fcntl.flock(f, fcntl.LOCK_EX)
            if os.fstat(f.fileno()).st_nlink == 0:
                continue  # taken for abandoned before it was locked
            try:
                yield temporary
            finally:
                temporary.unlink(missing_ok=True)
            return


def create(path: str, data: bytes | Path) -> bool:
    """Publish `data` as `path` unless that exists; True if this call did it."""
    with _staged(path, data) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
    _sync_directory(path)
    return True


def replace(path: str, data: bytes) -> None:
    """Publish `data` as `path`, in place of what is there."""
    with _staged(path, data) as temporary:
        os.replace(temporary, path)
    _sync_directory(path)


def remove_abandoned(directory: str) -> list[str]:
    """Remove what killed publishers left in `directory`; live ones are not disturbed. The names removed."""
    removed = []
    for name in os.listdir(directory) if os.path.isdir(directory) else []:
        if not (name.startswith(".") and name.endswith(_SUFFIX)):
            continue
        path = os.path.join(directory, name)
        with contextlib.suppress(OSError), open(path, "r+b") as f:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while its publisher lives
            os.unlink(path)
            removed.append(name)
    return removed


@contextlib.contextmanager
def _staged(path: str, data: bytes | Path) -> Iterator[Path]:
    """`data` as a durable hidden file in the directory of `path`; a file built there is taken as it is."""
    if isinstance(data, Path) and data.parent == Path(path).parent:
        with open(data, "rb") as f:
            os.fsync(f.fileno())
        yield data
        return
    with temporary_beside(path) as temporary:
        with open(temporary, "wb") as f:
            if isinstance(data, bytes):
                f.write(data)
            else:
                with open(data, "rb") as source:
                    shutil.copyfileobj(source, f)
            f.flush()
            os.fsync(f.fileno())
        yield temporary


def _sync_directory(path: str) -> None:
    """Make the entry of `path` in its directory durable."""
    descriptor = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
