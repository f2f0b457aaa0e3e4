"""Every file of a job, local or in an object store, through fsspec alone.

    reading      files by path, directory or glob; their size and identity; their bytes
    publishing   names that appear whole, once
    object_file  an object as a seekable file, in ranges whose length is checked
    retrying     asking again: the one place that repeats what failed in passing
    refusals     what the errors of a store mean, and how to mend them
    drivers      the filesystem behind a URL

What may stand in a URL, and what of it may be shown, is in `pipeline.urls`. Local files go by plain absolute
paths, all others by URL (gs://, s3://, memory://).
"""

from pipeline.storage.publishing import (
    check_writable,
    publish_if_absent,
    publish_over,
    remove,
    remove_abandoned,
    scratch,
)
from pipeline.storage.reading import FileFacts, exists, expand, list_names, modified_at, open_input, read_bytes, stat
from pipeline.urls import join, redacted, refuse_secrets

__all__ = [
    "FileFacts",
    "check_writable",
    "exists",
    "expand",
    "join",
    "list_names",
    "modified_at",
    "open_input",
    "publish_if_absent",
    "publish_over",
    "read_bytes",
    "redacted",
    "refuse_secrets",
    "remove",
    "remove_abandoned",
    "scratch",
    "stat",
]
