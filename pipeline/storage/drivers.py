"""Which filesystem a URL means: the local disk, gs:// through gcsfs, s3:// through s3fs, others through fsspec.

The two object stores are opened here, once in a process and for all its threads (fsspec would make a client
for each thread). Their credentials, endpoints and proxies are those that the machine is set up with.

gcsfs is used by its core class alone: the one that it registers also asks a second service, through another
protocol, what kind of bucket it deals with, which takes minutes where that service does not answer.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import fsspec
import fsspec.core
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import InputError, OutputError
from pipeline.urls import refuse_secrets

CONNECT_SECONDS = 10
SILENCE_SECONDS = 60
"""After this long without a byte a request is given up and tried again."""
REQUEST_SECONDS = 600

_EXTRAS = {"gs": "gcp", "gcs": "gcp", "s3": "s3", "s3a": "s3"}
_DRIVERS = {"gcp": "gcsfs", "s3": "s3fs"}
_EXCLUSIVE_CREATE = {"file", "local", "memory", *_EXTRAS}
_S3_TRIES = 5  # by botocore, of one request
_CONNECTIONS = 32


def resolve(url: str, purpose: str = "reading") -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem of a URL and the path in it; listings are never served from a cache."""
    refuse_secrets(url)
    protocol = url.split("://", 1)[0] if "://" in url and "::" not in url else ""
    extra = _EXTRAS.get(protocol)
    try:
        if extra:
            fs = _open_store(extra, os.getpid())
            path: Any = fs._strip_protocol(url)
        else:
            fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as e:
        need = f"{_DRIVERS[extra]}: pip install 'penstock[{extra}]'" if extra else f"another package: {e}"
        raise InputError(f"{purpose} {protocol}:// needs {need}") from e
    except ValueError as e:
        raise InputError(f"cannot use {url}: {e}") from e
    return fs, str(path).rstrip("/") or "/"


def resolve_output(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The same for a place that is written to, which must be able to refuse a name that is taken."""
    fs, path = resolve(url, "writing")
    if not _EXCLUSIVE_CREATE.intersection([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol):
        raise OutputError(f"cannot write to {url}: no exclusive create; use a local path, gs:// or s3://")
    return fs, path


def is_local(fs: fsspec.AbstractFileSystem) -> bool:
    return isinstance(fs, LocalFileSystem)


def kind(url: str) -> str | None:
    """`gcp` or `s3` for an object store, else None."""
    return _EXTRAS.get(url.split("://", 1)[0])


def url_of(fs: fsspec.AbstractFileSystem, path: str) -> str:
    """Local files go by plain absolute paths, all others by URL."""
    return path if is_local(fs) else fs.unstrip_protocol(path)


@functools.lru_cache
def _open_store(extra: str, process: int) -> fsspec.AbstractFileSystem:
    """One client a process: a forked one has no use for its parent's connections."""
    return _open_gcs() if extra == "gcp" else _open_s3()


def forget_stores() -> None:
    """For a process whose credentials or endpoints change while it runs."""
    _open_store.cache_clear()


def _open_gcs() -> fsspec.AbstractFileSystem:
    import aiohttp
    from gcsfs.core import GCSFileSystem

    timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
    return GCSFileSystem(
        token="anon" if "STORAGE_EMULATOR_HOST" in os.environ else None,
        requests_timeout=timeout,  # pyright: ignore[reportArgumentType]
        use_listings_cache=False,
        skip_instance_cache=True,
    )


def _open_s3() -> fsspec.AbstractFileSystem:
    from s3fs import S3FileSystem

    config = {
        "connect_timeout": CONNECT_SECONDS,
        "read_timeout": SILENCE_SECONDS,
        "max_pool_connections": _CONNECTIONS,
        "retries": {"mode": "standard", "total_max_attempts": _S3_TRIES},
    }
    return S3FileSystem(config_kwargs=config, use_listings_cache=False, skip_instance_cache=True)
