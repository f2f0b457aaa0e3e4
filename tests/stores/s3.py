"""As much of Amazon S3's REST API as s3fs uses, with what it promises: If-None-Match, If-Match, multipart uploads.

A multipart upload is completed once; then it is gone, and completing it again is NoSuchUpload. Signatures are not
checked.
"""

from __future__ import annotations

import datetime
import hashlib
import threading
import urllib.parse
import uuid
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import ClassVar
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from tests.stores.faults import Faults
from tests.stores.objects import Facts, NoSuchBucket, Objects, Taken, page_of
from tests.stores.serving import Answer, Request, Store

SMALLEST_PART_BYTES = 5 * 2**20

_CODES = {
    400: "InvalidRequest", 401: "InvalidAccessKeyId", 403: "AccessDenied", 404: "NoSuchKey", 412: "PreconditionFailed",
    416: "InvalidRange", 429: "TooManyRequests", 500: "InternalError", 503: "SlowDown",
}  # fmt: skip


@dataclass
class Upload:
    bucket: str
    key: str
    parts: dict[int, bytes] = field(default_factory=dict)


class S3(Store):
    address_variable = "AWS_ENDPOINT_URL_S3"
    url_variables: ClassVar = {
        "AWS_ACCESS_KEY_ID": "AKIADOUBLEDOUBLE0000",
        "AWS_SECRET_ACCESS_KEY": "not-a-secret-of-anyone",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    scheme = "s3"
    ignores_conditions = False
    """As some stores that only look like S3 do."""

    def __init__(self, objects: Objects, faults: Faults) -> None:
        super().__init__(objects, faults)
        self._uploads: dict[str, Upload] = {}
        self._lock = threading.Lock()

    @property
    def open_uploads(self) -> int:
        return len(self._uploads)

    def answer(self, request: Request) -> Answer:
        bucket, _, key = urllib.parse.unquote(request.path).lstrip("/").partition("/")
        try:
            if not self.objects.has_bucket(bucket):
                raise NoSuchBucket(bucket)
            if key:
                return self._object(request, bucket, key)
            if request.method == "HEAD":
                return Answer(200)
            return self._list(request, bucket)
        except NoSuchBucket:
            return _error(404, "NoSuchBucket", "The specified bucket does not exist")

    def error(self, status: int) -> Answer:
        return _error(403 if status == 401 else status, _CODES[status], f"{_CODES[status]} by the double")

    def _object(self, request: Request, bucket: str, key: str) -> Answer:
        query = request.query
        if request.method in ("GET", "HEAD"):
            return self._get(request, bucket, key)
        if request.method == "POST" and "uploads" in query:
            return self._begin(bucket, key)
        if "uploadId" in query:
            return self._go_on(request, query["uploadId"])
        if request.method == "DELETE":
            self.objects.delete(bucket, key)
            return Answer(204)
        if request.method == "PUT":
            return self._put(request, bucket, key, request.body)
        return self.error(400)

    def _get(self, request: Request, bucket: str, key: str) -> Answer:
        if (found := self.objects.get(bucket, key)) is None:
            return self.error(404)
        facts, data = found
        if (asked := request.headers.get("If-Match")) and asked != _etag(facts):
            return _error(412, "PreconditionFailed", _PRECONDITIONS, "If-Match")
        written = formatdate(facts.generation / 1e9, usegmt=True)
        headers = {"ETag": _etag(facts), "Last-Modified": written, "Content-Type": "application/octet-stream"}
        if request.method == "HEAD":
            return Answer(200, b"", headers, size_bytes=len(data))
        if (ends := request.byte_range(len(data))) is None:
            return Answer(200, data, headers)
        if ends[0] >= len(data):
            return self.error(416)
        headers["Content-Range"] = f"bytes {ends[0]}-{ends[1] - 1}/{len(data)}"
        return Answer(206, data[slice(*ends)], headers)

    def _put(self, request: Request, bucket: str, key: str, data: bytes) -> Answer:
        if_absent = request.headers.get("If-None-Match") == "*" and not self.ignores_conditions
        try:
            facts = self.objects.put(bucket, key, data, if_absent=if_absent)
        except Taken:
            return _error(412, "PreconditionFailed", _PRECONDITIONS, "If-None-Match")
        return Answer(200, b"", {"ETag": _etag(facts)})

    def _begin(self, bucket: str, key: str) -> Answer:
        upload_id = uuid.uuid4().hex
        with self._lock:
            self._uploads[upload_id] = Upload(bucket, key)
        return _xml(f"<InitiateMultipartUploadResult><UploadId>{upload_id}</UploadId></InitiateMultipartUploadResult>")

    def _go_on(self, request: Request, upload_id: str) -> Answer:
        with self._lock:
            if (upload := self._uploads.get(upload_id)) is None:
                return _error(404, "NoSuchUpload", "The specified multipart upload does not exist")
            if request.method == "DELETE":
                del self._uploads[upload_id]
                return Answer(204)
            if request.method == "PUT":
                upload.parts[int(request.query["partNumber"])] = request.body
                return Answer(200, b"", {"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})
            return self._complete(request, upload_id, upload)

    def _complete(self, request: Request, upload_id: str, upload: Upload) -> Answer:
        asked = [
            (int(_text(part, "PartNumber")), _text(part, "ETag").strip('"'))
            for part in ElementTree.fromstring(request.body)
            if part.tag.endswith("Part")
        ]
        parts = [upload.parts.get(number, b"") for number, _ in asked]
        if [hashlib.md5(part).hexdigest() for part in parts] != [etag for _, etag in asked]:
            return _error(400, "InvalidPart", "One or more of the specified parts could not be found")
        if any(len(part) < SMALLEST_PART_BYTES for part in parts[:-1]):
            return _error(400, "EntityTooSmall", "Your proposed upload is smaller than the minimum allowed size")
        answer = self._put(request, upload.bucket, upload.key, b"".join(parts))
        if answer.status != 200:
            return answer
        del self._uploads[upload_id]
        etag = escape(answer.headers["ETag"])
        return _xml(f"<CompleteMultipartUploadResult><ETag>{etag}</ETag></CompleteMultipartUploadResult>")

    def _list(self, request: Request, bucket: str) -> Answer:
        found = self.objects.list(bucket, request.query.get("prefix", ""))
        page, is_cut = page_of(found, request.query, "continuation-token", "max-keys")
        quoted = urllib.parse.quote if request.query.get("encoding-type") == "url" else escape
        lines = [f"<IsTruncated>{str(is_cut).lower()}</IsTruncated><KeyCount>{len(page)}</KeyCount>"]
        if request.query.get("encoding-type") == "url":
            lines.append("<EncodingType>url</EncodingType>")
        if is_cut:
            lines.append(f"<NextContinuationToken>{escape(page[-1][0])}</NextContinuationToken>")
        for name, facts in page:
            if facts is None:
                lines.append(f"<CommonPrefixes><Prefix>{quoted(name)}</Prefix></CommonPrefixes>")
                continue
            written = datetime.datetime.fromtimestamp(facts.generation / 1e9, datetime.UTC).strftime(
                "%Y-%m-%dT%H:%M:%SZ"
            )
            lines.append(
                f"<Contents><Key>{quoted(name)}</Key><LastModified>{written}</LastModified>"
                f"<ETag>{escape(_etag(facts))}</ETag><Size>{facts.size_bytes}</Size></Contents>"
            )
        return _xml(f"<ListBucketResult>{''.join(lines)}</ListBucketResult>")


_PRECONDITIONS = "At least one of the pre-conditions you specified did not hold"


def _etag(facts: Facts) -> str:
    return f'"{facts.md5}"'


def _text(part: ElementTree.Element, name: str) -> str:
    return next(child.text or "" for child in part if child.tag.endswith(name))


def _error(status: int, code: str, message: str, condition: str = "") -> Answer:
    told = f"<Condition>{condition}</Condition>" if condition else ""
    return _xml(f"<Error><Code>{code}</Code><Message>{message}</Message>{told}</Error>", status)


def _xml(text: str, status: int = 200) -> Answer:
    return Answer(
        status, f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'.encode(), {"Content-Type": "application/xml"}
    )
