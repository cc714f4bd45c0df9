"""JSON bodies, whose long texts are left where they are: images in base64, mostly.

No JSON parser lets go of Python's lock, and one that makes a text of 200 MB holds it for a second. So long
texts are cut out first, by their quotation marks; the rest is small, or refused, and is counted before it is
parsed. Long lists of numbers are cut out, too, where a body may have some: they are read in slices.
"""

import codecs
import json
import os
from typing import Any

import orjson

from pdserve.services import base64_text
from pdserve.services.base64_text import Decoded, Text
from pdserve.services.http.json_numbers import numbers_between
from pdserve.services.parsing import SLICE, Bounds, Buffer, TooMuchError, View, find

LONG = 4096
"""Bytes of a text above which it is cut out."""
_BEGINNING = 8 * 1024  # bytes that show whether JSON is nested more deeply than orjson reads


class JsonBody:
    """The ``content`` of a body; what stands in it for a long text is to be handed to `taken`."""

    def __init__(
        self,
        content: Any,
        body: bytes | bytearray,
        places: dict[str, tuple[int, int]],
        lists: dict[str, tuple[int, int]] | None = None,
    ) -> None:
        self.content = content
        self._body = body
        self._places = places
        self._lists = lists or {}

    def numbers(self, value: object) -> memoryview | None:
        """A long list of numbers, or of lists of them, as it stands in the body; None for another value."""
        place = self._lists.get(value) if isinstance(value, str) else None
        return None if place is None else memoryview(self._body)[slice(*place)]

    def is_long(self, value: object) -> bool:
        """Whether a value of the content stands for a long text: longer than any name or label."""
        return isinstance(value, str) and value in self._places

    def taken(self, text: str, lenient: bool = False) -> Text | Decoded:
        """A text of the content: what it says, or the bytes that it is the base64 of. Long ones once only.

        ``lenient``: what is no UTF-8 is replaced. Raises ValueError where the text is no JSON.
        """
        place = self._places.pop(text, None)
        if place is None:
            return text
        raw = memoryview(self._body)[slice(*place)]
        image = base64_text.strict(raw)
        return _unescaped(raw, lenient) if image is None else Decoded(image)


def read_json(
    body: bytes | bytearray, bounds: Bounds, lenient: bool = False, *, numbers: bool = False
) -> JsonBody:
    """Parse a body. Raises ValueError for what is no JSON, TooMuchError.

    ``numbers``: long lists of numbers are left where they are, see `JsonBody.numbers`. ``lenient``: as the
    published gateway does: text after the value is ignored, what is no UTF-8 replaced, and an empty body is
    None.
    """
    lists: dict[str, tuple[int, int]] = {}
    plain, places = _cut(body, bounds, lists if numbers else None)
    if len(plain) > bounds.plain_bytes:
        raise TooMuchError(bounds, "bytes")
    if sum(plain.count(mark) for mark in (b",", b"[", b"{")) > bounds.values:
        try:
            orjson.loads(plain[:_BEGINNING])
        except orjson.JSONDecodeError as error:
            if "depth" in error.msg:  # it is no JSON that anybody reads, however short the rest
                raise
        raise TooMuchError(bounds)
    try:
        content = orjson.loads(plain)
    except orjson.JSONDecodeError:
        if not lenient:
            raise
        try:
            text = "".join(codecs.iterdecode(_slices(plain), "utf-8", "replace")).lstrip(" \t\r\n")
            content = _DECODER.raw_decode(text)[0] if text else None
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error
    return JsonBody(content, body, places, lists)


def _cut(
    body: bytes | bytearray, bounds: Bounds, lists: dict[str, tuple[int, int]] | None = None
) -> tuple[bytes | bytearray, dict[str, tuple[int, int]]]:
    """The body with something short in place of each long text, and where those are. Raises TooMuchError.

    ``lists`` gets the places of long lists of numbers, which are cut out likewise; None: they are not.
    """
    if len(body) <= LONG:
        return body, {}
    secret = os.urandom(8).hex()  # so that no text of the caller can be taken for another
    view = memoryview(body)
    pieces: list[View] = []
    places: dict[str, tuple[int, int]] = {}
    done = plain = marks = 0

    def cut_numbers(begin: int, end: int) -> None:
        """Cut a list out of what stands between two texts."""
        nonlocal done, plain
        found = None if lists is None or end - begin <= LONG else numbers_between(body, begin, end)
        if lists is None or found is None:
            return
        name = f"a list of {found[1] - found[0]} bytes ({secret}.{len(lists)})"
        lists[name] = found
        pieces.extend((view[done : found[0]], b'"%s"' % name.encode()))
        plain += found[0] - done
        done = found[1]

    start = find(body, b'"', 0)
    between = 0
    while start >= 0:
        cut_numbers(between, start)
        end = find(body, b'"', start + 1)
        while end >= 0 and body[end - 1] == 92 and _backslashes(body, start, end) % 2:
            marks += 1
            if marks > 2 * bounds.values:
                raise TooMuchError(bounds)
            end = find(body, b'"', end + 1)
        marks += 1
        if marks > 2 * bounds.values:
            raise TooMuchError(bounds)
        if end < 0:
            break
        if end - start > LONG:
            name = f"a text of {end - start - 1} bytes ({secret}.{len(places)})"
            places[name] = start + 1, end
            pieces += view[done : start + 1], name.encode()
            plain += start + 1 - done
            done = end
            if plain > bounds.plain_bytes:
                raise TooMuchError(bounds, "bytes")
        between = end + 1
        start = find(body, b'"', between)
    else:
        cut_numbers(between, len(body))
    if plain + len(body) - done > bounds.plain_bytes:
        raise TooMuchError(bounds, "bytes")
    return b"".join((*pieces, view[done:])), places


def _backslashes(body: bytes | bytearray, start: int, end: int) -> int:
    """How many there are right before ``end``, not looking before ``start``."""
    count = 0
    while end > start:
        piece = bytes(body[max(start, end - SLICE if count else end - 16) : end])
        kept = len(piece.rstrip(b"\\"))
        count += len(piece) - kept
        if kept:
            break
        end -= len(piece)
    return count


def _unescaped(raw: memoryview, lenient: bool) -> Buffer:
    """What a JSON text says, in UTF-8. Raises ValueError."""
    if len(raw) <= SLICE:
        return _said(bytes(raw), lenient)
    out, at = bytearray(), 0
    while at < len(raw):
        piece = bytes(raw[at : at + SLICE])
        if at + SLICE < len(raw):
            piece = piece[: _whole(piece)]
        at += len(piece)
        out += _said(piece, lenient)
    return out


def _said(piece: bytes, lenient: bool) -> bytes:
    quoted = b'"' + piece + b'"'
    try:
        text: str = orjson.loads(quoted)
    except orjson.JSONDecodeError:
        if not lenient:
            raise
        text = _DECODER.decode(quoted.decode("utf-8", "replace"))
        return text.encode("ascii", "replace")
    return text.encode()


def _whole(piece: bytes) -> int:
    """How many of the bytes end neither in an escape nor in a character of several bytes."""
    end = len(piece)
    last = piece.rfind(b"\\", end - 12)
    if last >= 0 and _backslashes(piece, 0, last + 1) % 2:
        end = last
    while end > len(piece) - 20 and piece[end - 1] & 0xC0 == 0x80:
        end -= 1
    if piece[end - 1] >= 0xC0:
        end -= 1
    return end


def _slices(data: View) -> list[bytes]:
    return [bytes(data[at : at + SLICE]) for at in range(0, len(data), SLICE)]


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")  # Python would take NaN and Infinity


_DECODER = json.JSONDecoder(parse_constant=_refuse)
