"""Base64 as callers write it: strict, with blanks and line breaks, or with anything else in it.

Large texts are decoded in calls that let go of Python's lock, and in slices where there are none.
"""

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass

import pybase64

from pdserve.services.parsing import SLICE, Buffer, View

Text = str | View
"""Base64 as text, or as the bytes of a text in UTF-8."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a text was the base64 of."""

    data: bytes


_BLANKS = b" \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f"  # of ASCII, what str.split takes for blanks
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_STRANGE = bytes(set(range(256)) - set(_ALPHABET) - {ord("=")})
_SMALL = 1024 * 1024


def strict(text: Text) -> bytes | None:
    """Base64 (RFC 4648) without anything else in it, to bytes; None for what is not that."""
    try:
        return pybase64.b64decode(text, validate=True)
    except ValueError:
        return None


def with_blanks(text: Text) -> Buffer:
    """Base64 that may have blanks and line breaks in it, to bytes. Raises ValueError for what is not that."""
    if len(text) > _SMALL:
        return _in_slices(_bytes(text), _BLANKS)
    if not isinstance(text, str):
        text = str(text, "utf-8")
    if text.isascii():
        return _decoded(text.encode().translate(None, _BLANKS))
    return _decoded("".join(text.split()).encode())


def lenient(text: Text) -> Buffer:
    """Base64 as Python reads it: what is not of its alphabet is passed over. Raises ValueError.

    In texts of more than a megabyte a ``=`` may only be at the end.
    """
    if len(text) > _SMALL:
        return _in_slices(_bytes(text), _STRANGE)
    return base64.b64decode(text if isinstance(text, str) else str(text, "utf-8"))


def _bytes(text: Text) -> memoryview:
    return memoryview(text.encode() if isinstance(text, str) else text)


def _decoded(text: bytes) -> bytes:
    try:
        return pybase64.b64decode(text, validate=True)
    except binascii.Error:
        raise
    except ValueError as error:
        raise binascii.Error(str(error)) from error


def _in_slices(text: memoryview, drop: bytes) -> bytearray:
    """Decode a text without the bytes of ``drop``."""
    out, rest = bytearray(), b""
    for piece in _pieces(text, drop):
        rest += piece
        whole = max(0, len(rest) - 1) // 4 * 4  # the last four, which may have a =, stay
        if not whole:
            continue
        if b"=" in rest[:whole]:
            raise binascii.Error("Excess data after padding")
        out += _decoded(rest[:whole])
        rest = rest[whole:]
    out += _decoded(rest)
    return out


def _pieces(text: memoryview, drop: bytes) -> Iterator[bytes]:
    for at in range(0, len(text), SLICE):
        piece = bytes(text[at : at + SLICE])
        if not piece.isascii() and drop is _BLANKS:
            raise binascii.Error("Non-base64 digit found")
        yield piece.translate(None, drop)
