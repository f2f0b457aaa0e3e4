"""What a store's errors mean: a passing fault, to be tried again, or a refusal, to be said so that it can be mended.

The drivers raise many kinds: their own, those of the HTTP library below, and plain OSErrors. They are told
apart by the HTTP status where there is one, else by kind.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.errors import InputError, OutputError, PenstockError
from pipeline.storage.drivers import kind
from pipeline.urls import redacted


class ShortAnswer(Exception):
    """A store sent less than it was asked for, or did not confirm what it was sent."""


@dataclass(frozen=True)
class Doing:
    """What is asked of a store, and for which URL."""

    what: str
    """read, list, create, replace or delete."""
    url: str

    @property
    def error(self) -> type[PenstockError]:
        return InputError if self.what in ("read", "list") else OutputError

    @property
    def bucket(self) -> str:
        return "/".join(self.url.split("/", 3)[:3])


_PASSING_STATUSES = {408, 425, 429, 500, 502, 503, 504}
_PASSING_CODES = {"ConditionalRequestConflict", "OperationAborted", "RequestTimeout", "SlowDown", "NoSuchUpload"}
_PASSING_KINDS = {
    "aiohttp.ClientError", "botocore.ConnectionError", "botocore.HTTPClientError", "botocore.IncompleteReadError",
    "botocore.ResponseParserError", "botocore.ResponseStreamingError", "gcsfs.ChecksumError", "google.TransportError",
    "requests.RequestException", "urllib3.HTTPError",
}  # fmt: skip
_NO_CREDENTIALS = {
    "botocore.NoCredentialsError", "botocore.PartialCredentialsError", "botocore.TokenRetrievalError",
    "botocore.ProfileNotFound", "google.DefaultCredentialsError", "google.RefreshError",
}  # fmt: skip

_NOT_KNOWN = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired"}

_PERMISSIONS = {
    ("gcp", "read"): "storage.objects.get",
    ("gcp", "list"): "storage.objects.list",
    ("gcp", "create"): "storage.objects.create",
    ("gcp", "replace"): "storage.objects.create and storage.objects.delete",
    ("gcp", "delete"): "storage.objects.delete",
    ("s3", "read"): "s3:GetObject, and s3:ListBucket to be told what is not there",
    ("s3", "list"): "s3:ListBucket",
    ("s3", "create"): "s3:PutObject",
    ("s3", "replace"): "s3:PutObject",
    ("s3", "delete"): "s3:DeleteObject",
}
_SIGN_IN = {
    "gcp": "run `gcloud auth application-default login`, set GOOGLE_APPLICATION_CREDENTIALS, or give the machine a "
    "service account",
    "s3": "run `aws configure` or `aws sso login`, set AWS_PROFILE, or give the machine a role",
}


def is_passing(error: BaseException) -> bool:
    """Whether the same request may well succeed a little later."""
    if _is_lost_upload(error):
        return True
    if (status := status_of(error)) is not None:
        return status in _PASSING_STATUSES or _code_of(error) in _PASSING_CODES
    if isinstance(error, ShortAnswer | ConnectionError | TimeoutError | json.JSONDecodeError):
        return True
    return not _kinds(error).isdisjoint(_PASSING_KINDS) and _kinds(error).isdisjoint(_NO_CREDENTIALS)


def is_no_bucket(error: BaseException, doing: Doing) -> bool:
    """Whether what is missing is the bucket: nothing else can be when an object is put."""
    if kind(doing.url) == "s3":
        return _code_of(error) == "NoSuchBucket"
    return isinstance(error, FileNotFoundError) and doing.what in ("create", "replace") and not _is_lost_upload(error)


def refusal(error: BaseException, doing: Doing) -> PenstockError:
    """The error to raise for one that will not pass: which bucket, what was refused, how to mend it."""
    store, status, said = kind(doing.url), status_of(error), redacted(str(error)) or type(error).__name__
    if store is None:
        verb = {"read": "read", "list": "list"}.get(doing.what, "write")
        return doing.error(f"cannot {verb} {redacted(doing.url)}: {type(error).__name__}: {said}")
    if is_no_bucket(error, doing):
        return doing.error(f"there is no bucket {doing.bucket}; create it, or correct its name")
    if status == 401 or _code_of(error) in _NOT_KNOWN or not _kinds(error).isdisjoint(_NO_CREDENTIALS):
        return doing.error(
            f"{doing.bucket} does not know who asks to {doing.what} {doing.url}; {_SIGN_IN[store]}: {said}"
        )
    if _code_of(error) == "RequestTimeTooSkewed":
        return doing.error(f"{doing.bucket} refuses to {doing.what}: the clock of this machine is wrong: {said}")
    if status == 403:
        return doing.error(
            f"{doing.bucket} refuses to {doing.what} {doing.url}; whoever runs this needs "
            f"{_PERMISSIONS[store, doing.what]} (docs/storage.md): {said}"
        )
    return doing.error(f"cannot {doing.what} {doing.url}: {type(error).__name__}: {said}")


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error, where it is known."""
    for one in _causes(error):
        response = getattr(one, "response", None)  # of botocore
        if isinstance(response, dict):
            return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    code = getattr(error, "code", None)  # of gcsfs; what lies below may be called 400 for a body that was cut
    if isinstance(code, int) or (isinstance(code, str) and code.isdecimal()):
        return int(code)
    if isinstance(error, OSError) and str(error).startswith("Forbidden"):  # as gcsfs says it
        return 403
    return 403 if type(error) is PermissionError else None


def _code_of(error: BaseException) -> str | None:
    for one in _causes(error):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            return response.get("Error", {}).get("Code")
    return None


def _is_lost_upload(error: BaseException) -> bool:
    """An upload in several requests that the store has forgotten, or has finished: it is begun anew."""
    return _code_of(error) == "NoSuchUpload" or (
        "upload_id=" in str(error) and (isinstance(error, FileNotFoundError) or status_of(error) in (404, 410))
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__


def _kinds(error: BaseException) -> set[str]:
    """`package.Class` of an error and all it derives from, so that no driver is imported to be asked."""
    return {f"{one.__module__.split('.')[0]}.{one.__name__}" for one in type(error).__mro__}
