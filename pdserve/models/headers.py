"""What an HTTP answer's headers say of the file it brings."""

import base64
import binascii
from collections.abc import Mapping
from datetime import UTC, datetime


def validator(headers: Mapping[str, str]) -> str | None:
    """What If-Range can compare: a strong ETag, else the date (RFC 9110, 13.1.5)."""
    etag = headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified") or None


def md5(headers: Mapping[str, str]) -> str | None:
    """The MD5 (hexadecimal) promised for the whole body, or None.

    ``Content-MD5`` is base64 (RFC 1864); ``x-bce-content-md5`` is the public model host's form of it;
    both are met in hexadecimal too. An ETag is not used, though object stores often put an MD5 there:
    for an object uploaded in several parts, or encrypted, the same 32 digits mean something else.
    """
    for key in ("Content-MD5", "x-bce-content-md5"):
        value = headers.get(key, "").strip()
        try:
            raw = bytes.fromhex(value) if len(value) == 32 else base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            continue
        if len(raw) == 16:
            return raw.hex()
    return None


def length(headers: Mapping[str, str]) -> int | None:
    """Bytes of the body as sent, None if not said."""
    value = headers.get("Content-Length", "")
    return int(value) if value.isdecimal() else None


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds to wait, given as such or as a date (RFC 9110, 10.2.3); 0 if not said."""
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    from email.utils import parsedate_to_datetime

    try:
        return (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return 0
