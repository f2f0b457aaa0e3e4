"""Every file of a job, local or in an object store, through fsspec alone.

Reading: `expand` a path, directory or glob into file URLs, `stat` and `open_input` one of them. Local files
go by plain absolute paths, all others by URL (gs://, s3://, memory://).

Publishing: a name becomes visible with its whole content or not at all, and only its first publisher wins.
Object stores have that as a conditional put (ifGenerationMatch=0, If-None-Match: *), local disks get it from
hard links (`local_files`). A filesystem that cannot refuse an existing name atomically is refused as an
output.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
import fsspec.core
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from . import local_files
from .errors import InputError, MissingFile, OutputError

_EXTRAS = {"gs": "gcp", "gcs": "gcp", "s3": "s3", "s3a": "s3"}
_DRIVERS = {"gcp": "gcsfs", "s3": "s3fs"}
_EXCLUSIVE_CREATE = {"file", "local", "memory", *_EXTRAS}
_CONTENT_IDENTITIES = ("md5Hash", "ETag", "etag", "generation")  # in an object's listing, most lasting first
_MEMORY_LOCK = threading.Lock()  # memory:// checks and creates in two steps


@dataclass(frozen=True)
class FileFacts:
    """One file, its size, what changes whenever its content does (None: the store knows no such thing)."""

    url: str
    size_bytes: int
    etag: str | None


# --- reading


def expand(pattern: str) -> list[str]:
    """The files that a path, a directory (recursively) or a glob means, sorted; never an empty list.

    Names that start with `_` or `.` are bookkeeping and are skipped, unless the pattern spells them out.
    """
    fs, path = _resolve(pattern)
    try:
        facts = _info(fs, path)
        if facts is not None and facts["type"] == "file":
            return [_url(fs, path)]
        if facts is not None:
            files = [name for name in fs.find(path) if not _is_hidden(os.path.relpath(name, path))]
        elif any(c in path for c in "*?["):
            found = cast(dict[str, Any], fs.glob(path, detail=True))
            files = [name for name, info in found.items() if info["type"] == "file"]
            if not _is_hidden(os.path.basename(path)):
                files = [name for name in files if not _is_hidden(os.path.basename(name))]
        else:
            files = []
        if files:
            return sorted(_url(fs, name) for name in files)
        neighbours = _neighbours(fs, path)
    except Exception as e:  # drivers raise their own kinds: no credentials, no such bucket, no network
        raise InputError(f"cannot read {pattern}: {type(e).__name__}: {e}") from e
    raise InputError(f"no input file matches {pattern}{neighbours}")


def stat(url: str) -> FileFacts:
    """Size and identity of one file."""
    fs, path = _resolve(url)
    info = _info(fs, path)
    if info is None:
        raise InputError(f"there is no file {url}")
    etag = next((str(info[key]) for key in _CONTENT_IDENTITIES if info.get(key)), None)
    return FileFacts(url, int(info["size"]), None if _is_local(fs) else etag)


def open_input(url: str) -> BinaryIO:
    """A seekable binary file, open for reading; MissingFile when it is absent."""
    try:
        return _open(*_resolve(url))
    except FileNotFoundError as e:
        raise MissingFile(f"there is no file {url}") from e
    except OSError as e:
        raise InputError(f"cannot read {url}: {e}") from e


def exists(url: str) -> bool:
    """Whether a file or directory is there; an unreachable store is an error, not a `False`."""
    fs, path = _resolve(url)
    return _info(fs, path) is not None


def read_bytes(url: str, limit_bytes: int = 256 * 2**20) -> bytes:
    """All of a small file; FileNotFoundError when it is absent."""
    with _open(*_resolve(url)) as f:
        data = f.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise InputError(f"{url} is larger than the {limit_bytes} bytes such a file may have")
    return data


def list_names(directory: str) -> list[str]:
    """The names directly inside a directory, sorted; empty when it does not exist."""
    fs, path = _resolve(directory)
    try:
        children = os.listdir(path) if _is_local(fs) else fs.ls(path, detail=False)
    except FileNotFoundError:
        return []
    names = (os.path.basename(str(child).rstrip("/")) for child in children if str(child) != path)
    return sorted(name for name in names if name)


def join(base: str, *parts: str) -> str:
    """`base` with relative parts below it; a part can never lead out of `base`."""
    for part in parts:
        if any(step in ("", ".", "..") for step in part.split("/")):
            raise InputError(f"{part!r} is not a name below {base}")
    return (base if base.endswith("/") else base + "/") + "/".join(parts)


# --- publishing


def publish_if_absent(url: str, data: bytes | Path) -> bool:
    """Make `data` visible as `url`, whole; True if this call created it, False if it was already there.

    A file given as a Path must not be written to afterwards. When the reply to a put is lost, an object
    store may report our own object as already there: callers that need to know what was published read it
    back.
    """
    fs, path = _resolve_output(url)
    try:
        if _is_local(fs):
            return local_files.create(path, data)
        _put(fs, path, data, mode="create")
    except FileExistsError:
        return False
    except OSError as e:
        if not _is_local(fs) and _info(fs, path) is not None:
            return False  # concurrent puts were in conflict, or the reply to ours was lost
        hint = "; the output needs a filesystem with hard links, or an object store" if _is_local(fs) else ""
        raise OutputError(f"cannot create {url}: {e}{hint}") from e
    return True


def publish_over(url: str, data: bytes) -> None:
    """Replace the content of `url` atomically; nothing is written when it already is `data`."""
    fs, path = _resolve_output(url)
    with contextlib.suppress(FileNotFoundError):
        if read_bytes(url) == data:
            return
    try:
        if _is_local(fs):
            local_files.replace(path, data)
        else:
            _put(fs, path, data, mode="overwrite")
    except OSError as e:
        raise OutputError(f"cannot write {url}: {e}") from e


@contextlib.contextmanager
def scratch(url: str) -> Iterator[Path]:
    """A temporary local file in which to build the content of `url`; publish it before the block ends.

    It lies hidden beside `url`, or in the temporary directory when that is in an object store.
    """
    fs, path = _resolve_output(url)
    if _is_local(fs):
        with local_files.temporary_beside(path) as temporary:
            yield temporary
    else:
        with tempfile.TemporaryDirectory(prefix="penstock-") as directory:
            yield Path(directory) / os.path.basename(path)


def remove_abandoned(directory: str) -> list[str]:
    """Remove what killed publishers left behind; the names removed. Object stores show nothing to remove."""
    fs, path = _resolve(directory)
    return local_files.remove_abandoned(path) if _is_local(fs) else []


def check_writable(directory: str) -> None:
    """Publish and remove a probe in `directory`: a job that cannot deliver is to fail before it computes."""
    probe = join(directory, f".probe-{uuid.uuid4().hex}")
    fs, path = _resolve_output(probe)
    try:
        publish_if_absent(probe, b"")
        fs.rm_file(path)
    except OutputError:
        raise
    except Exception as e:  # drivers raise their own kinds
        raise OutputError(f"cannot write to {directory}: {type(e).__name__}: {e}") from e


# --- inside


def _resolve(url: str, purpose: str = "reading") -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem of a URL and the path in it; listings are never served from a cache."""
    protocol = url.split("://", 1)[0]
    try:
        fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as e:
        extra = _EXTRAS.get(protocol)
        need = f"{_DRIVERS[extra]}: pip install 'penstock[{extra}]'" if extra else f"another package: {e}"
        raise InputError(f"{purpose} {protocol}:// needs {need}") from e
    except ValueError as e:
        raise InputError(f"cannot use {url}: {e}") from e
    return fs, str(path).rstrip("/") or "/"


def _resolve_output(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    fs, path = _resolve(url, "writing")
    if not _EXCLUSIVE_CREATE.intersection([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol):
        raise OutputError(f"cannot write to {url}: no exclusive create; use a local path, gs:// or s3://")
    return fs, path


def _is_local(fs: fsspec.AbstractFileSystem) -> bool:
    return isinstance(fs, LocalFileSystem)


def _is_hidden(relative_path: str) -> bool:
    return any(step.startswith(("_", ".")) for step in relative_path.split("/"))


def _url(fs: fsspec.AbstractFileSystem, path: str) -> str:
    return path if _is_local(fs) else fs.unstrip_protocol(path)


def _info(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, Any] | None:
    try:
        return fs.info(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _open(fs: fsspec.AbstractFileSystem, path: str) -> BinaryIO:
    if _is_local(fs):
        return open(path, "rb")
    if isinstance(fs, MemoryFileSystem):  # its open() hands every reader the same file position
        return io.BytesIO(fs.cat_file(path))
    return cast(BinaryIO, fs.open(path, "rb"))


def _put(fs: fsspec.AbstractFileSystem, path: str, data: bytes | Path, mode: str) -> None:
    """Put a whole object; files are streamed, except into memory:// where a stream shows half-written."""
    if isinstance(fs, MemoryFileSystem):
        with _MEMORY_LOCK:
            fs.pipe_file(path, data if isinstance(data, bytes) else data.read_bytes(), mode=mode)
    elif isinstance(data, bytes):
        fs.pipe_file(path, data, mode=mode)
    else:
        fs.put_file(str(data), path, mode=mode)


def _neighbours(fs: fsspec.AbstractFileSystem, path: str) -> str:
    """What the nearest existing directory above a missing path holds, for the error message."""
    directory = os.path.dirname(path)
    while directory not in ("", "/") and (_info(fs, directory) or {}).get("type") != "directory":
        directory = os.path.dirname(directory)
    if not directory:
        return ""
    names = list_names(_url(fs, directory))
    listed = ", ".join([*names[:8], "..."] if len(names) > 8 else names)
    return f"; {_url(fs, directory)} holds {listed or 'nothing'}"
