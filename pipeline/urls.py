"""What may stand in a URL, how names are joined to it, and what of it may be shown.

Credentials come from the usual places of the machine (docs/storage.md), never from a URL: a URL is stored in
plans and printed in messages. One that carries a password, a token or a signature is refused before it is
used, and what drivers say is cleared of such things before it is repeated.
"""

from __future__ import annotations

import re

from pipeline.errors import InputError

_USER_INFO = re.compile(r"://[^/\s@]*@")
_SECRET_NAME = (
    r"(?:signature|credential|security-token|access[_-]?key|secret|passw|api[_-]?key|token|upload_id)[\w.-]{0,40}"
)
_SECRET_PARAMETER = re.compile(rf"([?&#;](?:[\w.-]{{0,40}}{_SECRET_NAME}|sig|key|pwd))=[^&#;\s'\"]*", re.IGNORECASE)
_SHOWN_SECRETS = (
    (_USER_INFO, "://***@"),
    (_SECRET_PARAMETER, r"\1=***"),
    (re.compile(r"\b(Bearer|Basic|AWS4-HMAC-SHA256)\s+[^\r\n'\"]+", re.IGNORECASE), r"\1 ***"),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}"), "***"),
    (re.compile(r"\bya29\.[\w.-]+"), "***"),
    # counts of tokens are no secrets
    (
        re.compile(rf"((?!tokens|token_|tokeniz){_SECRET_NAME}['\"]?\s*[:=]\s*['\"]?)[^\s'\",&]+", re.IGNORECASE),
        r"\1***",
    ),
)


def refuse_secrets(url: str) -> None:
    """Raises InputError for a URL that carries credentials; the message does not repeat them."""
    if _USER_INFO.search(url):
        carries = "a user name or password"
    elif "://" in url and (found := _SECRET_PARAMETER.search(url)):
        carries = f"a secret ({found[1][1:]}=...)"
    else:
        return
    raise InputError(
        f"the URL {redacted(url)} carries {carries}, which would be stored with the results; leave it out, and give "
        "credentials in the usual places instead (docs/storage.md)"
    )


def redacted(text: str) -> str:
    """`text` on one line, without passwords, tokens, signatures and access keys."""
    return " ".join(without_secrets(text).split())


def without_secrets(text: str) -> str:
    """The same, its lines kept."""
    for pattern, replacement in _SHOWN_SECRETS:
        text = pattern.sub(replacement, text)
    return text


def join(base: str, *parts: str) -> str:
    """`base` with relative parts below it; a part can never lead out of `base`."""
    for part in parts:
        if any(step in ("", ".", "..") for step in part.split("/")):
            raise InputError(f"{part!r} is not a name below {base}")
    return (base if base.endswith("/") else base + "/") + "/".join(parts)


def is_hidden(relative_path: str) -> bool:
    """Whether a name, or a directory on the way to it, is bookkeeping: it starts with `_` or `.`."""
    return any(step.startswith(("_", ".")) for step in relative_path.split("/"))
