"""Images in JSON: found in the bytes of the body and decoded there, past the JSON reader.

A body of 80 KB is one image in base64 and a few brackets. Reading it as JSON looks at each character, and
makes a string of the image only to have it decoded. So the long strings are cut out first, by the quotes
around them; what is left is JSON of some bytes. Any doubt is left to the JSON reader alone.
"""

import binascii
import secrets
from collections.abc import Callable, Mapping
from typing import Any

import pybase64

Decode = Callable[[bytes], bytes | None]
"""From the text between quotes to what it means; None for what is not to be taken out."""

# Cutting pays from here on; and it is not for bodies of many little strings.
_LONG = 2048
_MOST_STRINGS = 1000

# What stands for an image that was cut out; nobody can send it.
_TOKEN = secrets.token_hex(16)


def load(body: bytes, field: str, read: Callable[[bytes], Any], decode: Decode) -> Any:
    """What ``read`` makes of a JSON body, but long strings in its list ``field`` are as ``decode`` has them.

    A string stays as it is where ``decode`` says None, and may. Raises what ``read`` raises.
    """
    if len(body) > _LONG and (cut := _cut(body, decode)):
        skeleton, images = cut
        try:
            content = read(skeleton)
        except (ValueError, RecursionError):
            return read(body)  # to have it told of the body as it came
        if _restore(content, field, images):
            return content
    return read(body)


def from_base64(text: bytes | str) -> bytes | None:
    """Base64 without anything else in it, to bytes; None for what is not that."""
    try:
        return pybase64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def _cut(body: bytes, decode: Decode) -> tuple[bytes, Mapping[str, bytes]] | None:
    """The body with tokens for its long strings, and those decoded; None where that is not sure to be right.

    Without a backslash each second quote ends a string. The alphabet of base64 has neither quotes nor
    backslashes nor anything that JSON forbids, so one such string may take another's place.
    """
    pieces: list[bytes] = []
    images: dict[str, bytes] = {}
    kept = at = 0
    for _ in range(_MOST_STRINGS):
        start = body.find(b'"', at)
        if start < 0:
            break
        end = body.find(b'"', start + 1)
        if end < 0:
            return None
        if end - start > _LONG:
            image = decode(body[start + 1 : end])
            if image is None:
                return None
            token = f"{_TOKEN}{len(images)}"
            images[token] = image
            pieces += body[kept : start + 1], token.encode()
            kept = end
        elif body.find(b"\\", start, end) >= 0:
            return None
        at = end + 1
    else:
        return None
    return (b"".join((*pieces, body[kept:])), images) if images else None


def _restore(content: Any, field: str, images: Mapping[str, bytes]) -> bool:
    """Put the images in the places of their tokens, if each is in the list where images are looked for."""
    values = content.get(field) if isinstance(content, dict) else None
    if not isinstance(values, list):
        return False
    found = [i for i, value in enumerate(values) if isinstance(value, str) and value in images]
    if len(found) != len(images):
        return False
    for i in found:
        values[i] = images[values[i]]
    return True
