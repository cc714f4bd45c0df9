"""Multipart forms (RFC 7578): their parts are found and counted before anything is made of them.

The heads of the parts are read by the library multipart, which is given the form without its contents.
"""

from collections.abc import Iterator

from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from pdserve.errors import BodyTooLargeError, RequestError
from pdserve.services.parsing import Buffer, View, copied, find
from pdserve.settings import ServerSettings

# Fields of a form beside the images, and what one may hold.
_MAX_FIELDS = 16
_MAX_FIELD_BYTES = 64 * 1024
# What a line of a part's headers may have, and how many there may be.
_MAX_HEADER_BYTES = 8 * 1024
_MAX_HEADERS = 8
_MAX_HEAD_BYTES = (_MAX_HEADERS + 1) * (_MAX_HEADER_BYTES + 2)
# In a head: parameters, and backslashes, since for each quoted text without an end the library looks at all
# that follows.
_MAX_MARKS = 32
_MAX_TYPE_LENGTH = 2048


def read_form(
    content_type: str, body: bytes | bytearray, limits: ServerSettings
) -> tuple[list[Buffer], dict[str, list[str]]]:
    """A multipart form's files in the field ``images``, at least one, and its text fields.

    Raises RequestError, BodyTooLargeError for more than ``max_images`` files or a part of more than
    ``max_part_bytes``.
    """
    max_images = limits.max_images
    files: list[Buffer] = []
    fields: dict[str, list[str]] = {}
    file_count = text_count = 0
    for name, is_file, data in _parts(body, content_type, 2 * max_images + _MAX_FIELDS):
        if len(data) > limits.max_part_bytes:
            raise BodyTooLargeError(
                f"A part of the form is larger than the limit of {limits.max_part_bytes} bytes; send smaller "
                "ones or raise max_part_bytes."
            )
        if is_file:
            file_count += 1
            if file_count > max_images:
                raise BodyTooLargeError(
                    f"The form has more than {max_images} files, which is the limit; send several requests."
                )
            if name == "images":
                files.append(copied(data))
            continue
        text_count += 1
        if text_count > max_images + _MAX_FIELDS or len(data) > _MAX_FIELD_BYTES:
            raise RequestError(
                f"The form has more than {max_images + _MAX_FIELDS} text fields, or one of more than "
                f"{_MAX_FIELD_BYTES} bytes."
            )
        try:
            fields.setdefault(name, []).append(str(data, "utf-8"))
        except UnicodeDecodeError as error:
            raise RequestError(f"The form's field {name[:100]!r} is not UTF-8.") from error
    if not files:
        raise RequestError("The form has no file in a field called images.")
    return files, fields


def _parts(body: bytes | bytearray, content_type: str, most: int) -> Iterator[tuple[str, bool, memoryview]]:
    """The first parts of a form, one more than ``most``: name, whether it is a file, content.

    Raises RequestError.
    """
    if len(content_type) > _MAX_TYPE_LENGTH or content_type.count("\\") > _MAX_MARKS:
        raise RequestError("The multipart form cannot be read: its Content-Type is too long, or too odd.")
    try:
        boundary = parse_options_header(content_type)[1].get("boundary", "")
        with PushMultipartParser(
            boundary, max_header_size=_MAX_HEADER_BYTES, max_header_count=_MAX_HEADERS, strict=True
        ) as parser:
            heads, contents = _split(body, boundary.encode(), most)
            if heads.count(b"\\") + heads.count(b";") > _MAX_MARKS * (most + 1):
                raise MultipartError("the heads of its parts have too many parameters")
            for event in parser.parse(heads):
                content = next(contents, None) if isinstance(event, MultipartSegment) else None
                if content is None:  # of a part without an end, too, which the library says then
                    continue
                # Some clients name a file by RFC 5987 alone, which the parser does not read.
                is_file = event.filename is not None or "filename*=" in event["Content-Disposition"]
                yield event.name or "", is_file, content
    except MultipartError as error:
        raise RequestError(f"The multipart form cannot be read: {error}.") from error


def _split(body: bytes | bytearray, boundary: bytes, most: int) -> tuple[bytes, Iterator[memoryview]]:
    """The form without its contents, and the contents."""
    view = memoryview(body)
    delimiter = b"\r\n--" + boundary
    heads: list[View] = []
    contents: list[memoryview] = []
    at = find(body, delimiter[2:], 0)
    if at < 0:
        return bytes(view[:_MAX_HEAD_BYTES]), iter(contents)
    if at:
        heads.append(view[at - 2 : at] if at > 1 else view[:at])
    while True:
        ends = at + _MAX_HEAD_BYTES + len(delimiter)
        head = body.find(b"\r\n\r\n", at, ends)
        end = -1 if head < 0 else find(body, delimiter, head + 4)
        begins = bytes(view[at : at + len(delimiter) + 2]).removeprefix(b"\r\n")
        if end < 0 or not begins.startswith(delimiter[2:] + b"\r\n"):
            # The end, or what the library has words for.
            is_last = begins.startswith(delimiter[2:] + b"--")
            heads.append(view[at : at + len(delimiter) + 2] if is_last else view[at:ends])
            return b"".join(heads), iter(contents)
        heads.append(view[at : head + 4])
        contents.append(view[head + 4 : end])
        if len(contents) > most:
            return b"".join((*heads, delimiter, b"--")), iter(contents)
        at = end
