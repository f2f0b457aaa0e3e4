"""Globs over an S3 bucket, in which no directory is left out because its listing failed.

fsspec's walk, on which the glob of s3fs rests, takes a directory that cannot be listed for an empty one, so that one
503 would lose its files without a word. Here every listing is asked for by itself, and again while it fails in passing.
gcsfs lists a tree flat, and raises.
"""

from __future__ import annotations

import re
from typing import Any, cast

import fsspec
from fsspec.utils import glob_translate

from pipeline.storage.refusals import Doing
from pipeline.storage.retrying import ask

Listing = dict[str, dict[str, Any]]
"""What there is, by its path."""


def glob(fs: fsspec.AbstractFileSystem, path: str, doing: Doing) -> Listing:
    """What a pattern matches; nothing where the literal part of it is not there."""
    bucket, *parts = path.split("/")
    found: Listing = {bucket: {"type": "directory"}}
    for i, part in enumerate(parts):
        if "**" in part:
            return _below(fs, found, path, doing)
        is_last = i == len(parts) - 1
        if not is_last and not has_magic(part):
            found = {f"{directory}/{part}": facts for directory, facts in found.items()}
            continue
        matches = re.compile(glob_translate(part)).match
        inside = [_children(fs, directory, doing) for directory in found]
        found = {
            name: facts
            for children in inside
            for name, facts in children.items()
            if matches(name.rpartition("/")[2]) and (is_last or facts["type"] == "directory")
        }
    return found


def has_magic(path: str) -> bool:
    return any(c in path for c in "*?[")


def _children(fs: fsspec.AbstractFileSystem, directory: str, doing: Doing) -> Listing:
    try:
        listed: list[dict[str, Any]] = ask(doing, lambda: fs.ls(directory, detail=True))
    except FileNotFoundError:
        return {}
    return {facts["name"].rstrip("/"): facts for facts in listed if facts["name"].rstrip("/") != directory}


def _below(fs: fsspec.AbstractFileSystem, directories: Listing, path: str, doing: Doing) -> Listing:
    """The files at any depth that the whole pattern matches."""
    matches = re.compile(glob_translate(path)).match
    trees = [cast(Listing, ask(doing, lambda d=directory: fs.find(d, detail=True))) for directory in directories]
    return {name: facts for tree in trees for name, facts in tree.items() if matches(name)}
