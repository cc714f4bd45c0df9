"""Multipart forms (RFC 7578), taken apart in memory: a body is read as a whole, with a limit, before.

Nothing is written to disk, and a part costs one copy. What is not exactly as the standard has it is
refused; nothing is guessed.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pdserve.errors import RequestError

MAX_HEAD_BYTES = 8 * 1024
"""What the headers of one part may have."""

# RFC 2046: the boundary's own length, and the blanks that may follow it on its line.
_MAX_BOUNDARY = 70
_MAX_PADDING = 64

_PARAMETER = re.compile(r';\s*([!#$%&\'*+.^_`|~0-9A-Za-z-]+)=("(?:[^"\\]|\\.)*"|[^\s";]*)\s*')


@dataclass(frozen=True)
class Part:
    """One part; a file is told by its having a file name, which is of no other interest here."""

    name: str
    is_file: bool
    data: bytes


def boundary_of(content_type: str) -> bytes:
    """The boundary in a Content-Type of multipart/form-data. Raises RequestError where it has none."""
    boundary = _parameters(content_type).get("boundary", "")
    if not boundary or len(boundary) > _MAX_BOUNDARY or not boundary.isascii():
        raise RequestError(f"The form has no boundary of 1 to {_MAX_BOUNDARY} ASCII characters.")
    return boundary.encode()


def parts(body: bytes, boundary: bytes) -> Iterator[Part]:
    """The parts of a form, in order. Raises RequestError for what is no form."""
    delimiter = b"\r\n--" + boundary
    # Before the first delimiter may stand a text that is to be passed over.
    at = len(delimiter) - 2 if body.startswith(delimiter[2:]) else _after(body, delimiter, 0)
    while not body.startswith(b"--", at):
        line_end = body.find(b"\r\n", at, at + _MAX_PADDING)
        if line_end < 0 or body[at:line_end].strip(b" \t"):
            raise _malformed("a boundary's line has more than the boundary")
        head_end = body.find(b"\r\n\r\n", line_end, line_end + MAX_HEAD_BYTES)
        if head_end < 0:
            raise _malformed(f"the headers of a part have no end within {MAX_HEAD_BYTES} bytes")
        # An empty part's own line break may be the one that ends its headers.
        at = _after(body, delimiter, head_end + 2)
        name, is_file = _disposition(body[line_end + 2 : head_end])
        yield Part(name, is_file, body[head_end + 4 : at - len(delimiter)])


def _after(body: bytes, delimiter: bytes, start: int) -> int:
    found = body.find(delimiter, start)
    if found < 0:
        raise _malformed("its last boundary is missing")
    return found + len(delimiter)


def _disposition(head: bytes) -> tuple[str, bool]:
    """The field's name, and whether it is a file, by a part's headers."""
    try:
        lines = head.decode().split("\r\n")
    except UnicodeDecodeError:
        raise _malformed("the headers of a part are not UTF-8") from None
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip().lower() == "content-disposition":
            parameters = _parameters(value)
            if "name" in parameters and value.strip().lower().startswith("form-data"):
                return parameters["name"], "filename" in parameters or "filename*" in parameters
    raise _malformed("a part has no Content-Disposition with a name")


def _parameters(value: str) -> dict[str, str]:
    """The parameters of a header's value, names in small letters; what is no parameter ends them."""
    found: dict[str, str] = {}
    at = value.find(";")
    while at >= 0 and (match := _PARAMETER.match(value, at)):
        text = match[2]
        if text.startswith('"'):
            text = re.sub(r"\\(.)", r"\1", text[1:-1])
        found.setdefault(match[1].lower(), text)
        at = match.end()
    return found


def _malformed(what: str) -> RequestError:
    return RequestError(f"The multipart form cannot be read: {what}.")
