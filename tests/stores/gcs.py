"""As much of Google Cloud Storage's JSON API as gcsfs uses, and its promises: preconditions, generations, sessions.

A resumable upload is a session: chunks are answered with 308 and how far they came, the last one with the object, and
so is every repetition of it. The condition is checked when the object comes to be, not when the session begins.
"""

from __future__ import annotations

import datetime
import json
import re
import threading
import urllib.parse
import uuid
from dataclasses import dataclass, field
from typing import ClassVar

from tests.stores.faults import Faults
from tests.stores.objects import Facts, NoSuchBucket, Objects, Taken, page_of
from tests.stores.serving import Answer, Request, Store

CHUNK_MULTIPLE_BYTES = 256 * 2**10

_OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/(.+)")
_OBJECTS = re.compile(r"/storage/v1/b/([^/]+)/o/?")
_BUCKET = re.compile(r"/storage/v1/b/([^/]+)")
_UPLOAD = re.compile(r"/upload/storage/v1/b/([^/]+)/o")
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
_REASONS = {401: "Anonymous caller does not have storage access", 403: "Permission denied on resource"}


@dataclass
class Session:
    bucket: str
    key: str
    if_absent: bool
    content_type: str
    data: bytearray = field(default_factory=bytearray)
    done: Facts | None = None


class Gcs(Store):
    address_variable = "STORAGE_EMULATOR_HOST"
    url_variables: ClassVar = {}
    scheme = "gs"
    keeps_bytes: int | None = None
    """Of the next chunk, so many are kept and the rest must be sent again."""
    forgets_uploads = False
    """Sessions are gone as soon as they begin."""

    def __init__(self, objects: Objects, faults: Faults) -> None:
        super().__init__(objects, faults)
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def answer(self, request: Request) -> Answer:
        try:
            if match := _UPLOAD.fullmatch(request.path):
                return self._upload(request, *map(urllib.parse.unquote, match.groups()))
            if match := _OBJECT.fullmatch(request.path):
                return self._object(request, *map(urllib.parse.unquote, match.groups()))
            if match := _OBJECTS.fullmatch(request.path):
                return self._list(request, urllib.parse.unquote(match[1]))
            if match := _BUCKET.fullmatch(request.path):
                return _json({"kind": "storage#bucket", "name": match[1]}) if self._has(match[1]) else self.error(404)
        except NoSuchBucket:
            return self.error(404)
        return self.error(400)

    def error(self, status: int) -> Answer:
        return _json({"error": {"code": status, "message": _REASONS.get(status, f"error {status}")}}, status)

    def _has(self, bucket: str) -> bool:
        return self.objects.has_bucket(urllib.parse.unquote(bucket))

    def _list(self, request: Request, bucket: str) -> Answer:
        found = self.objects.list(bucket, request.query.get("prefix", ""))
        page, is_cut = page_of(found, request.query, "pageToken", "maxResults")
        listing: dict[str, object] = {
            "kind": "storage#objects",
            "items": [_resource(bucket, facts) for _, facts in page if facts],
            "prefixes": [name for name, facts in page if not facts],
        }
        if is_cut:
            listing["nextPageToken"] = page[-1][0]
        return _json({name: value for name, value in listing.items() if value})

    def _object(self, request: Request, bucket: str, key: str) -> Answer:
        if request.method == "DELETE":
            return Answer(204) if self.objects.delete(bucket, key) else self.error(404)
        found = self.objects.get(bucket, key)
        wanted = request.query.get("generation")
        if found is None or (wanted and int(wanted) != found[0].generation):
            return self.error(404)
        facts, data = found
        if request.query.get("alt") != "media":
            return _json(_resource(bucket, facts))
        hashes = f"crc32c={facts.crc32c},md5={facts.md5_base64}"
        headers = {"Content-Type": "application/octet-stream", "X-Goog-Hash": hashes}
        if (ends := request.byte_range(len(data))) is None:
            return Answer(200, data, headers)
        if ends[0] >= len(data):
            return self.error(416)
        headers["Content-Range"] = f"bytes {ends[0]}-{ends[1] - 1}/{len(data)}"
        return Answer(206, data[slice(*ends)], headers)

    def _upload(self, request: Request, bucket: str) -> Answer:
        if not self.objects.has_bucket(bucket):
            raise NoSuchBucket(bucket)
        if upload_id := request.query.get("upload_id"):
            return self._go_on(request, upload_id)
        if_absent = request.query.get("ifGenerationMatch") == "0"
        if request.query["uploadType"] == "multipart":
            metadata, content_type, data = _parts(request)
            return self._put(bucket, metadata["name"], data, if_absent, content_type)
        upload_id = uuid.uuid4().hex
        key = json.loads(request.body)["name"] if request.body else request.query["name"]
        with self._lock:
            self._sessions[upload_id] = Session(bucket, key, if_absent, request.headers["X-Upload-Content-Type"])
        condition = "&ifGenerationMatch=0" if if_absent else ""
        location = f"{request.base}{request.path}?uploadType=resumable{condition}&upload_id={upload_id}"
        return Answer(200, b"", {"Location": location})

    def _go_on(self, request: Request, upload_id: str) -> Answer:
        with self._lock:
            session = self._sessions.get(upload_id)
            if session is None or self.forgets_uploads:
                return self.error(404)
            if request.method == "DELETE":
                del self._sessions[upload_id]
                return Answer(499)
            if session.done:
                return _json(_resource(session.bucket, session.done))
            return self._take(session, request)

    def _take(self, session: Session, request: Request) -> Answer:
        start, last, total = _CONTENT_RANGE.fullmatch(request.headers["Content-Range"]).groups()
        is_last = total != "*" and (last is None or int(last) + 1 == int(total))
        if start is not None:
            if int(start) > len(session.data):
                return _json({"error": {"code": 503, "message": "bytes are missing before this chunk"}}, 503)
            kept = request.body
            if self.keeps_bytes is not None:
                kept, self.keeps_bytes, is_last = kept[: self.keeps_bytes], None, False
            elif not is_last and len(kept) % CHUNK_MULTIPLE_BYTES:
                return self.error(400)
            session.data[int(start) :] = kept
        if not is_last or len(session.data) < int(total):
            return Answer(308, b"", {"Range": f"bytes=0-{len(session.data) - 1}"} if session.data else {})
        return self._put(
            session.bucket, session.key, bytes(session.data), session.if_absent, session.content_type, session
        )

    def _put(
        self, bucket: str, key: str, data: bytes, if_absent: bool, content_type: str, session: Session | None = None
    ) -> Answer:
        try:
            facts = self.objects.put(bucket, key, data, if_absent=if_absent, content_type=content_type)
        except Taken:
            return self.error(412)
        if session:
            session.done = facts
        return _json(_resource(bucket, facts))


def _parts(request: Request) -> tuple[dict[str, str], str, bytes]:
    """The metadata and the content of a multipart/related body."""
    boundary = re.search(r'boundary="?([^";]+)"?', request.headers["Content-Type"])[1].encode()
    _, first, second = request.body.split(b"--" + boundary, 2)
    second = second[: second.rindex(b"\n--" + boundary)]
    metadata = json.loads(re.split(rb"\r?\n\r?\n", first.strip(), maxsplit=1)[1])
    headers, data = re.split(rb"\r?\n\r?\n", second.lstrip(), maxsplit=1)
    return metadata, headers.partition(b":")[2].strip().decode(), data


def _resource(bucket: str, facts: Facts) -> dict[str, str]:
    written = datetime.datetime.fromtimestamp(facts.generation // 10**9, datetime.UTC).strftime(
        "%Y-%m-%dT%H:%M:%S.000Z"
    )
    return {
        "kind": "storage#object", "bucket": bucket, "name": facts.key, "size": str(facts.size_bytes),
        "generation": str(facts.generation), "metageneration": "1", "md5Hash": facts.md5_base64,
        "crc32c": facts.crc32c, "contentType": facts.content_type, "etag": f"{facts.generation:x}",
        "timeCreated": written, "updated": written, "storageClass": "STANDARD",
    }  # fmt: skip


def _json(value: object, status: int = 200) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})
